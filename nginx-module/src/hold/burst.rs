//! A burst of requests that wait, in one process: one line in the log.

use handoff_core::hold::Full;
use handoff_core::room::Ending;
use nginx_sys::{NGX_LOG_NOTICE, NGX_LOG_WARN, ngx_log_t};
use ngx::ngx_log_error;
use std::cell::Cell;

/// A pause that ends a burst.
const PAUSE_MS: u64 = 1000;

#[derive(Default)]
pub(super) struct Burst(Cell<Counts>);

#[derive(Clone, Copy, Default)]
struct Counts {
    requests: u32,
    endings: [u32; Ending::ALL.len()],
    overflowed: u32,
    longest: u64,
    /// When something happened; 0: nothing did.
    last: u64,
}

// === impl Burst ===

impl Burst {
    pub(super) fn begins(&self, now: u64) {
        self.count(now, |counts| counts.requests = counts.requests.saturating_add(1));
    }

    pub(super) fn ends(&self, ending: Ending, waited: u64, now: u64) {
        self.count(now, |counts| {
            if let Some(counter) = counts.endings.get_mut(ending as usize) {
                *counter = counter.saturating_add(1);
            }
            counts.longest = counts.longest.max(waited);
        });
    }

    /// The first is told at once: somebody may want to know while it lasts.
    pub(super) fn overflows(&self, name: &str, why: Full, now: u64, log: *mut ngx_log_t) {
        if self.0.get().overflowed == 0 {
            let why = match why {
                Full::Requests => "as many requests wait as handoff_queue allows",
                Full::Bytes => "those that wait are as large as handoff_queue allows",
                Full::Connections => "half of the connections of this process are in use",
            };
            ngx_log_error!(
                NGX_LOG_WARN,
                log,
                "handoff: nobody is up in upstream \"{name}\", and {why}: answering 503"
            );
        }
        self.count(now, |counts| counts.overflowed = counts.overflowed.saturating_add(1));
    }

    fn count(&self, now: u64, change: impl FnOnce(&mut Counts)) {
        let mut counts = self.0.get();
        change(&mut counts);
        counts.last = now;
        self.0.set(counts);
    }

    /// If it is over.
    pub(super) fn tell(&self, name: &str, now: u64, log: *mut ngx_log_t) {
        let counts = self.0.get();
        if counts.last == 0 || now.saturating_sub(counts.last) < PAUSE_MS {
            return;
        }
        self.0.take();
        let Counts { requests, endings: [resumed, released, timed_out, left], overflowed, longest, .. } =
            counts;
        ngx_log_error!(
            NGX_LOG_NOTICE,
            log,
            "handoff: {requests} requests waited for upstream \"{name}\", at most {longest} ms: {resumed} went on, \
             {released} released, {timed_out} timed out, {left} left; {overflowed} found no room"
        );
    }
}
