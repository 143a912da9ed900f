//! Whether a new worker answers users worse than the others do.

use handoff_wire::PeerView;
use std::time::Duration;

/// Answers since some moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Answers {
    pub all: u64,
    /// 5xx, and connections that broke before an answer.
    pub errors: u64,
}

/// How a release serves users worse than the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Worse {
    Errors,
    Slow,
}

/// Fewer prove nothing.
const ENOUGH: u64 = 3;

/// How long it takes a worker to answer as much as it would in the time `long`, if its share grows from nothing within
/// `slow_start`: that much is half of the time's square.
pub fn trial(slow_start: Duration, long: Duration) -> Duration {
    if slow_start <= 2 * long {
        return long + slow_start / 2;
    }
    Duration::from_secs_f64((2.0 * slow_start.as_secs_f64() * long.as_secs_f64()).sqrt())
}

impl Answers {
    pub fn of(peers: &[PeerView]) -> Self {
        let sum = |count: fn(&PeerView) -> u64| -> u64 { peers.iter().map(count).sum() };
        let (all, errors) = (sum(|peer| peer.responses.total()), sum(|peer| peer.responses.errors()));
        // An answer that nginx did not take for one is a failure too: only what is more than those was no answer.
        let broken = sum(|peer| peer.fails).saturating_sub(errors);
        Self { all: all + broken, errors: errors + broken }
    }

    pub fn since(self, earlier: Self) -> Self {
        Self { all: self.all.saturating_sub(earlier.all), errors: self.errors.saturating_sub(earlier.errors) }
    }

    /// More than twice the share of the others, and a twentieth of all more than that: an outage behind the app hits
    /// them alike, and is no reason to stop.
    pub fn is_worse_than(self, others: Self) -> bool {
        let (new, old) = (u128::from(self.all), u128::from(others.all).max(1));
        let (new_errors, old_errors) = (u128::from(self.errors), u128::from(others.errors));
        self.errors >= ENOUGH && 20 * new_errors * old > (40 * old_errors + old) * new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_worse(new: (u64, u64), old: (u64, u64)) -> bool {
        let answers = |(errors, all)| Answers { all, errors };
        answers(new).is_worse_than(answers(old))
    }

    #[test]
    fn a_worker_that_answers_with_errors_is_worse() {
        assert!(is_worse((3, 3), (0, 90)));
        assert!(is_worse((3, 10), (0, 0)));
        assert!(is_worse((5, 20), (3, 90)));
    }

    #[test]
    fn a_trial_is_so_much_longer_as_the_share_is_smaller() {
        let trial = |slow_start| trial(Duration::from_secs(slow_start), Duration::from_secs(1)).as_millis();
        assert_eq!([0, 1, 2, 8, 50].map(trial), [1000, 1500, 2000, 4000, 10_000]);
    }

    #[test]
    fn a_few_errors_and_an_outage_of_all_are_no_verdict() {
        assert!(!is_worse((2, 2), (0, 90)));
        assert!(!is_worse((3, 100), (0, 300)));
        assert!(!is_worse((10, 10), (90, 100)));
        assert!(!is_worse((0, 0), (0, 0)));
    }
}
