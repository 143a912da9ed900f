//! How an attempt ended, as nginx has it when it frees the peer.

use crate::nginx::PeerConnection;
use handoff_core::ending::{Answer, Closed, Ending};
use nginx_sys::{ngx_connection_t, ngx_event_t, ngx_http_upstream_t};

/// Whether the peer closed the connection, and how: what nginx read there last tells it.
#[inline]
pub(crate) fn closed(pc: PeerConnection) -> Option<Closed> {
    let read = pc.connection().and_then(read)?;
    match (read.error() != 0, read.eof() != 0) {
        (true, _) => Some(Closed::Reset),
        (false, true) => Some(Closed::Orderly),
        (false, false) => None,
    }
}

/// `is_read`: the whole header of an answer.
#[cold]
pub(crate) fn of(u: &ngx_http_upstream_t, pc: PeerConnection, failed: bool, is_read: bool) -> Ending {
    Ending { failed, timed_out: is_late(pc), closed: closed(pc), answer: is_read.then(|| answer(u)) }
}

/// Whether nginx did not wait any longer.
pub(crate) fn is_late(pc: PeerConnection) -> bool {
    let is_late = |event: &ngx_event_t| event.timedout() != 0;
    pc.connection().is_some_and(|c| read(c).is_some_and(is_late) || write(c).is_some_and(is_late))
}

/// Of each of nginx's two ways to pass an answer on, what it takes for the end there: `ngx_http_upstream_process_request`
/// and `ngx_http_upstream_process_non_buffered_request`.
fn answer(u: &ngx_http_upstream_t) -> Answer {
    let upgrades = u.upgrade() != 0;
    // SAFETY: null, or made with the request.
    match unsafe { u.pipe.as_ref() }.filter(|_| u.buffering() != 0) {
        Some(pipe) => Answer {
            is_done: pipe.upstream_done() != 0,
            is_open_ended: pipe.length == -1,
            upgrades,
            is_abandoned: pipe.downstream_error() != 0,
        },
        None => {
            Answer { is_done: u.length == 0, is_open_ended: u.length == -1, upgrades, is_abandoned: false }
        }
    }
}

fn read(c: &ngx_connection_t) -> Option<&ngx_event_t> {
    // SAFETY: the events of an open connection are its own.
    unsafe { c.read.as_ref() }
}

fn write(c: &ngx_connection_t) -> Option<&ngx_event_t> {
    // SAFETY: as above.
    unsafe { c.write.as_ref() }
}
