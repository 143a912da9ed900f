//! What a peer answered, by class.

use crate::sync::{AtomicU64, Ordering};
use handoff_wire::Responses;

/// 1xx to 5xx.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Answers([AtomicU64; 5]);

// === impl Answers ===

impl Answers {
    /// Counts the answer of an attempt. A status that is of no class, which nginx passes on as it came, counts nowhere.
    #[inline]
    pub fn count(&self, status: usize) {
        // Nearly all of them first: a division less.
        let class = if matches!(status, 200..=299) { 1 } else { (status / 100).wrapping_sub(1) };
        if let Some(counter) = self.0.get(class) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub fn view(&self) -> Responses {
        let [informational, success, redirection, client_error, server_error] =
            self.0.each_ref().map(|counter| counter.load(Ordering::Relaxed));
        Responses { informational, success, redirection, client_error, server_error }
    }

    pub(crate) fn reset(&self) {
        self.0.iter().for_each(|counter| counter.store(0, Ordering::Relaxed));
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn an_answer_counts_in_the_class_of_its_status() {
        let answers = Answers::default();
        for status in [101, 200, 200, 299, 304, 400, 404, 499, 429, 500, 502, 503, 504, 599] {
            answers.count(status);
        }
        let view = answers.view();
        let counts =
            [view.informational, view.success, view.redirection, view.client_error, view.server_error];
        assert_eq!(counts, [1, 3, 1, 4, 5]);
        assert_eq!((view.total(), view.errors()), (14, 5));
        answers.reset();
        assert_eq!(answers.view(), Responses::default());
    }

    #[test]
    fn a_status_of_no_class_counts_nowhere() {
        let answers = Answers::default();
        for status in [0, 1, 99, 600, 999, usize::MAX] {
            answers.count(status);
        }
        assert_eq!(answers.view(), Responses::default());
    }
}
