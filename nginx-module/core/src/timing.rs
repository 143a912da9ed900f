//! How long a peer took to answer, and how many bytes went there and came back.

use crate::sync::{AtomicU64, Ordering};
use handoff_wire::{HEADER_BOUNDS, HeaderTimes, Span, TimingView};

/// Milliseconds, and bytes. Each attempt adds to them once, when it ends.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Timing {
    /// One for each bound, and one for what is longer.
    buckets: [AtomicU64; HEADER_BOUNDS.len() + 1],
    header: AtomicU64,
    response: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
    selected: AtomicU64,
}

/// What nginx measured of an attempt that is over.
#[derive(Clone, Copy, Debug)]
pub struct Attempt {
    pub sent: u64,
    pub received: u64,
    /// None: the header did not come.
    pub answer: Option<Times>,
}

/// Milliseconds from the beginning of the attempt.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    pub header: u64,
    pub response: u64,
}

// === impl Timing ===

impl Timing {
    #[inline]
    pub fn count(&self, attempt: &Attempt) {
        self.sent.fetch_add(attempt.sent, Ordering::Relaxed);
        self.received.fetch_add(attempt.received, Ordering::Relaxed);
        if let Some(times) = attempt.answer {
            let bucket = HEADER_BOUNDS.iter().position(|&bound| times.header <= bound);
            if let Some(counter) = self.buckets.get(bucket.unwrap_or(HEADER_BOUNDS.len())) {
                counter.fetch_add(1, Ordering::Relaxed);
            }
            self.header.fetch_add(times.header, Ordering::Relaxed);
            self.response.fetch_add(times.response, Ordering::Relaxed);
        }
    }

    /// An attempt begins; `now` is in milliseconds since 1970.
    #[inline]
    pub(crate) fn select(&self, now: u64) {
        self.selected.store(now, Ordering::Relaxed);
    }

    pub fn view(&self) -> TimingView {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        TimingView {
            header: HeaderTimes {
                sum: Span::from_millis(get(&self.header)),
                buckets: self.buckets.each_ref().map(get),
            },
            response: Span::from_millis(get(&self.response)),
            sent: get(&self.sent),
            received: get(&self.received),
            selected: Some(get(&self.selected)).filter(|&at| at != 0),
        }
    }

    pub(crate) fn reset(&self) {
        let rest = [&self.header, &self.response, &self.sent, &self.received, &self.selected];
        self.buckets.iter().chain(rest).for_each(|counter| counter.store(0, Ordering::Relaxed));
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn answered(header: u64, response: u64) -> Attempt {
        Attempt { sent: 100, received: 1000, answer: Some(Times { header, response }) }
    }

    #[test]
    fn an_answer_counts_once_in_the_first_bucket_that_holds_it() {
        let timing = Timing::default();
        for header in [0, 5, 6, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 10_001, 99_999] {
            timing.count(&answered(header, header + 1));
        }
        let view = timing.view();
        assert_eq!(view.header.buckets, [2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2]);
        assert_eq!(view.header.sum, Span::from_millis(129_446));
        assert_eq!(view.response, Span::from_millis(129_461));
    }

    #[test]
    fn an_attempt_without_an_answer_took_no_time_but_its_bytes_were_sent() {
        let timing = Timing::default();
        timing.count(&Attempt { answer: None, ..answered(7, 7) });
        assert_eq!(timing.view(), TimingView { sent: 100, received: 1000, ..TimingView::default() });
    }

    #[test]
    fn a_peer_that_was_never_selected_says_so_and_a_new_one_begins_with_nothing() {
        let timing = Timing::default();
        assert_eq!(timing.view().selected, None);
        timing.select(1_795_372_605_502);
        assert_eq!(timing.view().selected, Some(1_795_372_605_502));
        timing.count(&answered(1, 1));
        timing.reset();
        assert_eq!(timing.view(), TimingView::default());
    }
}
