//! A worker that has just begun gets its share of the requests little by little (`handoff_slow_start`).
//!
//! A peer **ramps** when it serves again and somebody else may be behind it: a mark of a program said `checking`, `unhealthy`
//! or `down` of it, or nginx itself left it out. A drain alone replaces nobody, and a person who takes a worker out and gives it
//! back has the same worker. While such a peer is away its share is the smallest already, so that it is small from the first
//! request on.
//!
//! The share is that of the peer's weight, and the balancer does the rest: nothing on the request path asks for it.

use crate::control::Moment;
use crate::sync::{AtomicU64, Ordering};
use handoff_wire::{OwnerKind, SlowStartView, Span, State};

/// The whole share. Weights of an upstream with a slow start are multiplied by so much, so that a part of one is a number, too.
pub const WHOLE: u32 = 100;

/// The share of a peer, between 1 and [`WHOLE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Share(u32);

/// Written under the control lock.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Ramp {
    /// Whoever serves there next is another worker.
    is_due: AtomicU64,
    /// When the last ramp began. 0: none did.
    since: AtomicU64,
}

/// Whether a mark says that whoever serves afterwards may be another worker.
pub(crate) fn replaces(owner: OwnerKind, state: State) -> bool {
    let is_a_person = matches!(owner, OwnerKind::Operator | OwnerKind::Plus);
    !is_a_person && matches!(state, State::Checking | State::Unhealthy | State::Down)
}

// === impl Share ===

impl Share {
    pub const WHOLE: Self = Self(WHOLE);

    /// This part of a weight.
    pub fn of(self, weight: usize) -> usize {
        weight.saturating_mul(self.0 as usize)
    }

    pub fn percent(self) -> u32 {
        self.0
    }

    /// The same, where nobody who serves has more than `most`. Balancers remember what they owe to each peer: if all weights
    /// were small at the same time, they would pay it back in a burst.
    pub fn beside(self, most: Self) -> Self {
        let share = self.0.saturating_mul(WHOLE).checked_div(most.0).unwrap_or(WHOLE);
        Self(share.clamp(1, WHOLE))
    }
}

// === impl Ramp ===

impl Ramp {
    pub(crate) fn replaced(&self) {
        self.is_due.store(1, Ordering::Release);
    }

    /// The peer serves.
    pub(crate) fn begin(&self, now: Moment) {
        if self.is_due.load(Ordering::Acquire) != 0 {
            self.since.store(now.mono.max(1), Ordering::Release);
            self.is_due.store(0, Ordering::Release);
        }
    }

    /// Which share is due to the peer, where a ramp takes so long.
    pub fn share(&self, length: Span, now: Moment) -> Share {
        let part = self.passed(length, now).map_or(WHOLE, |passed| {
            let part = u128::from(passed).saturating_mul(u128::from(WHOLE));
            let part = part.checked_div(u128::from(length.as_millis())).unwrap_or_default();
            u32::try_from(part).unwrap_or(WHOLE)
        });
        Share(part.clamp(1, WHOLE))
    }

    /// How much of a ramp is over; `None` if all of it is.
    fn passed(&self, length: Span, now: Moment) -> Option<u64> {
        if self.is_due.load(Ordering::Acquire) != 0 {
            return Some(0);
        }
        let since = Some(self.since.load(Ordering::Acquire)).filter(|&since| since != 0)?;
        Some(now.mono.saturating_sub(since)).filter(|&passed| passed < length.as_millis())
    }

    pub fn view(&self, length: Span, now: Moment) -> Option<SlowStartView> {
        let passed = self.passed(length, now)?;
        let left = Span::from_millis(length.as_millis().saturating_sub(passed));
        Some(SlowStartView { share: self.share(length, now).percent(), left })
    }

    pub(crate) fn reset(&self) {
        self.is_due.store(0, Ordering::Relaxed);
        self.since.store(0, Ordering::Relaxed);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const LENGTH: Span = Span::from_secs(10);

    fn at(mono: u64) -> Moment {
        Moment { mono, unix: 0 }
    }

    fn share(ramp: &Ramp, now: u64) -> u32 {
        ramp.share(LENGTH, at(now)).percent()
    }

    #[test]
    fn who_was_always_there_has_the_whole_share() {
        let ramp = Ramp::default();
        ramp.begin(at(5000));
        assert_eq!((share(&ramp, 5001), ramp.view(LENGTH, at(5001))), (WHOLE, None));
    }

    #[test]
    fn a_new_worker_gets_it_in_a_straight_line_from_the_moment_that_it_serves() {
        let ramp = Ramp::default();
        ramp.replaced();
        assert_eq!(share(&ramp, 5000), 1, "while nobody serves there");
        ramp.begin(at(60_000));
        let shares = [60_000, 60_099, 60_100, 60_500, 65_000, 69_999, 70_000, 900_000];
        assert_eq!(shares.map(|now| share(&ramp, now)), [1, 1, 1, 5, 50, 99, 100, 100]);
        let left = Span::from_secs(5);
        assert_eq!(ramp.view(LENGTH, at(65_000)), Some(SlowStartView { share: 50, left }));
        assert_eq!(ramp.view(LENGTH, at(70_000)), None);
    }

    #[test]
    fn serving_on_does_not_begin_it_anew_and_another_worker_does() {
        let ramp = Ramp::default();
        ramp.replaced();
        ramp.begin(at(1000));
        ramp.begin(at(6000));
        assert_eq!(share(&ramp, 6000), 50);
        ramp.replaced();
        assert_eq!(share(&ramp, 6000), 1);
        ramp.begin(at(8000));
        assert_eq!(share(&ramp, 13_000), 50);
        ramp.reset();
        assert_eq!(share(&ramp, 13_000), WHOLE);
    }

    #[test]
    fn the_longest_time_that_nginx_reads_overflows_nothing() {
        let ramp = Ramp::default();
        ramp.replaced();
        ramp.begin(at(1));
        assert_eq!(ramp.share(Span::from_millis(u64::MAX), at(u64::MAX - 1)).percent(), 99);
        assert_eq!(Share(WHOLE).of(usize::MAX), usize::MAX);
    }

    #[test]
    fn where_all_are_new_the_oldest_has_the_whole_share() {
        let beside = |most| [1, 10, 25, 50].map(|share| Share(share).beside(Share(most)).percent());
        assert_eq!(beside(100), [1, 10, 25, 50]);
        assert_eq!(beside(50), [2, 20, 50, 100]);
        assert_eq!(beside(1), [100; 4], "whoever has more serves nobody, and gives way as soon as it does");
    }

    #[test]
    fn a_person_and_a_drain_replace_nobody() {
        use OwnerKind::*;
        for owner in [Pm2, Worker, Rollout, Health] {
            for state in State::ALL {
                let replaced = matches!(state, State::Checking | State::Unhealthy | State::Down);
                assert_eq!(replaces(owner, state), replaced, "{owner:?} says {state}");
            }
        }
        assert!([Operator, Plus].iter().all(|&owner| !replaces(owner, State::Down)));
    }
}
