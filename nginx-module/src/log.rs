//! One line for each change of a mark or a pause, in an operator's words.

use handoff_wire::{Event, EventKind};
use nginx_sys::{NGX_LOG_NOTICE, NGX_LOG_WARN, ngx_log_t};
use ngx::ngx_log_error;

/// Lapses are warnings: somebody who should have spoken did not.
pub(crate) fn tell(log: *mut ngx_log_t, events: &[Event]) {
    for event in events {
        let level = if event.kind == EventKind::Lapse { NGX_LOG_WARN } else { NGX_LOG_NOTICE };
        let Event { upstream, peer, from, to, owner, reason, in_flight, .. } = event;
        let kind = event.kind.as_str();
        if let (Some(from), Some(to)) = (from, to) {
            ngx_log_error!(
                level,
                log,
                "handoff: {kind} of {owner}: peer {peer} in upstream \"{upstream}\" {from} -> {to}, {in_flight} in flight \
                 ({reason})"
            );
        } else {
            ngx_log_error!(
                level,
                log,
                "handoff: {kind} of {owner}: upstream \"{upstream}\", {in_flight} in flight ({reason})"
            );
        }
    }
}
