//! Which request may ride an idle connection. A backend closes one that has been idle for long, and what nginx sends at that
//! moment is lost; nginx then asks again, except for a request that may not be repeated.

use std::cell::Cell;

/// `handoff_reuse idle=time | always;`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reuse {
    /// Any request rides any connection, as in nginx alone.
    Always,
    /// What cannot be repeated rides only what was used less than so many milliseconds ago.
    Idle(u64),
}

/// What is known of a request that would ride an idle connection.
#[derive(Clone, Copy, Debug)]
pub struct Rider {
    /// POST, LOCK or PATCH: whoever repeats it may do it twice.
    pub may_change: bool,
    /// Its body goes to the peer as it arrives, and is not kept for another attempt.
    pub is_unbuffered: bool,
    /// The configuration lets nginx try again after the connection broke.
    pub may_go_on: bool,
}

/// When the connections of a process were last used, each by its place among them.
#[derive(Debug)]
pub struct Uses(Vec<Cell<Use>>);

/// The default is nobody's: no connection has the number 0.
#[derive(Clone, Copy, Debug, Default)]
struct Use {
    number: u64,
    at: u64,
}

// === impl Reuse ===

impl Reuse {
    /// Whether the request rides a connection that has been idle for so many milliseconds, as far as anybody knows.
    #[inline]
    pub fn allows(self, rider: Rider, idle: impl FnOnce() -> Option<u64>) -> bool {
        match self {
            Self::Always => true,
            Self::Idle(limit) => rider.is_repeatable() || idle().is_some_and(|idle| idle < limit),
        }
    }
}

impl Default for Reuse {
    /// Far below the 5 s after which Node closes, and far above the pauses of a backend that is in use.
    fn default() -> Self {
        Self::Idle(1000)
    }
}

// === impl Rider ===

impl Rider {
    #[inline]
    fn is_repeatable(self) -> bool {
        !self.may_change && !self.is_unbuffered && self.may_go_on
    }
}

// === impl Uses ===

impl Uses {
    /// For so many connections; none if there is no memory.
    pub fn of(connections: usize) -> Option<Self> {
        let mut uses = Vec::new();
        uses.try_reserve_exact(connections).ok()?;
        uses.resize(connections, Cell::default());
        Some(Self(uses))
    }

    #[inline]
    pub fn note(&self, place: usize, number: u64, at: u64) {
        if let Some(last) = self.0.get(place) {
            last.set(Use { number, at });
        }
    }

    /// How long a connection has been idle, if its last use was noted.
    pub fn idle(&self, place: usize, number: u64, now: u64) -> Option<u64> {
        let last = self.0.get(place)?.get();
        (last.number == number).then(|| now.wrapping_sub(last.at))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const GET: Rider = Rider { may_change: false, is_unbuffered: false, may_go_on: true };

    const UNREPEATABLE: [(&str, Rider); 3] = [
        ("it may change something", Rider { may_change: true, ..GET }),
        ("its body is gone", Rider { is_unbuffered: true, ..GET }),
        ("nginx is told not to", Rider { may_go_on: false, ..GET }),
    ];

    #[test]
    fn what_can_be_repeated_rides_anything_and_nobody_asks_for_its_age() {
        assert!(Reuse::Idle(1).allows(GET, || unreachable!()));
    }

    #[test]
    fn what_cannot_be_repeated_rides_only_what_was_used_just_now() {
        for (why, rider) in UNREPEATABLE {
            assert!(Reuse::Idle(1000).allows(rider, || Some(999)), "{why}");
            assert!(!Reuse::Idle(1000).allows(rider, || Some(1000)), "{why}");
            assert!(!Reuse::Idle(1000).allows(rider, || None), "{why}: nobody knows how old it is");
        }
    }

    #[test]
    fn always_is_nginx_alone() {
        for (_, rider) in UNREPEATABLE {
            assert!(Reuse::Always.allows(rider, || unreachable!()));
        }
    }

    #[test]
    fn a_use_is_found_again_under_the_same_number_only() {
        let uses = Uses::of(2).unwrap();
        assert_eq!(uses.idle(1, 7, 100), None);
        uses.note(1, 7, 100);
        assert_eq!(uses.idle(1, 7, 350), Some(250));
        assert_eq!(uses.idle(1, 8, 350), None, "another connection in the same place");
        assert_eq!(uses.idle(0, 7, 350), None, "another place");
        uses.note(1, 7, 300);
        assert_eq!(uses.idle(1, 7, 350), Some(50));
    }

    #[test]
    fn a_connection_of_another_cycle_has_no_place() {
        let uses = Uses::of(2).unwrap();
        uses.note(2, 7, 100);
        assert_eq!(uses.idle(2, 7, 100), None);
    }

    #[test]
    fn the_clock_may_turn_over() {
        let uses = Uses::of(1).unwrap();
        uses.note(0, 7, u64::MAX);
        assert_eq!(uses.idle(0, 7, 9), Some(10));
    }

    #[test]
    fn no_memory_is_no_table() {
        assert!(Uses::of(usize::MAX).is_none());
    }
}
