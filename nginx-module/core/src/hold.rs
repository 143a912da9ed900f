//! Who waits, how long, and who goes on when: the hold of an upstream that nobody serves just now.
//!
//! A request waits if no peer may serve it and one is expected back. Each nginx process keeps those that wait with it in a
//! [`Line`](crate::line::Line), in the order in which they came; what all processes hold together stands in the zone
//! ([`Room`](crate::room::Room)) and is bounded by the [`Queue`]. While somebody waits, the process looks at its upstream
//! every few milliseconds. Whatever it sees, nobody waits for ever: they go on, they are served as nginx alone would serve
//! them, or their time is over.

use crate::control::{Moment, Standing};
use crate::slot::Slot;

/// `handoff_queue number [bytes=size] [timeout=time];`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queue {
    pub requests: u32,
    /// Of all these requests, as the clients sent them.
    pub bytes: u64,
    /// How long one request waits, all in all. Milliseconds.
    pub timeout: u64,
}

/// How an upstream looks to those who wait for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outlook {
    /// So many peers may serve now.
    Serving(usize),
    /// Peers may serve, and have as many connections as they may have (`max_conns`).
    Full,
    /// Nobody may serve, and somebody is expected back.
    Expected,
    Nobody,
}

/// A request for which the balancer found nobody.
#[derive(Clone, Copy, Debug)]
pub struct Visitor {
    /// It has waited before, and was sent on just now.
    pub was_sent_on: bool,
    /// A peer was chosen for it, and refused because of its marks.
    pub was_refused: bool,
    /// How many peers it was given to before.
    pub tried: u32,
    /// How many of these failed it with some of it already sent.
    pub broke: u32,
    /// Nobody waits for its answer, but its client's next request would wait for it: a mirror, a refresh of the cache.
    pub is_background: bool,
    /// nginx's cache has an answer for it that is old, and may be given where there is no other.
    pub has_stale: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It waits, if there is room.
    Wait,
    /// As nginx alone would do it.
    Stock,
}

/// Why there is no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    Requests,
    Bytes,
    /// This process needs the connections that it has left for others.
    Connections,
}

/// How many of those who wait go on at once. The first get to a peer together, as many as the backlog of a Node server takes
/// (511) from two nginx processes and more; then so many a turn, for others may be about to come up and want their share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ramp {
    left: usize,
    is_open: bool,
}

/// A request that fails where it is tried with some of it sent may be what kills its worker: a second time is enough.
const MAX_BROKE: u32 = 1;

/// For each peer that is up.
const FIRST: usize = 128;
const THEN: usize = 32;

/// What one turn may do at most: the process has others to serve.
pub const BATCH: usize = 128;

/// What a client is told that could not wait, or waited in vain. Seconds; about what a worker takes to start.
pub const RETRY_AFTER: &str = "5";

// === impl Queue ===

impl Default for Queue {
    fn default() -> Self {
        Self { requests: 4096, bytes: 1 << 30, timeout: 30_000 }
    }
}

impl Queue {
    /// Whether a process that has so many connections left may keep one more waiting.
    pub fn spares(free: usize, all: usize) -> bool {
        free >= all.div_ceil(2)
    }
}

// === impl Outlook ===

impl Outlook {
    pub fn of<'a>(peers: impl IntoIterator<Item = (Standing, &'a Slot)>, now: Moment) -> Self {
        let (mut serving, mut full, mut expected) = (0usize, false, false);
        for (peer, slot) in peers {
            if slot.gate.state().serves() {
                serving = serving.saturating_add(usize::from(peer.available && !peer.full));
                full |= peer.available && peer.full;
            } else {
                expected |= !peer.is_taken_out() && slot.is_expected(now);
            }
        }
        match serving {
            0 if full => Self::Full,
            0 if expected => Self::Expected,
            0 => Self::Nobody,
            _ => Self::Serving(serving),
        }
    }
}

// === impl Visitor ===

impl Visitor {
    pub fn verdict(&self, outlook: Outlook) -> Verdict {
        let may_wait = match outlook {
            Outlook::Expected => true,
            // Somebody came up while the balancer chose; or another process was quicker.
            Outlook::Serving(_) => self.tried == 0 && (self.was_refused || self.was_sent_on),
            Outlook::Full => self.tried == 0 && self.was_sent_on,
            Outlook::Nobody => false,
        };
        let is_fit = self.broke <= MAX_BROKE && !self.is_background && !self.has_stale;
        if may_wait && is_fit { Verdict::Wait } else { Verdict::Stock }
    }

    /// Whether it waits behind others, though somebody is up: those who came before it are on their way.
    pub fn joins(&self, others_go_on: bool) -> bool {
        others_go_on && self.tried == 0 && !self.was_sent_on && !self.is_background && !self.has_stale
    }
}

// === impl Ramp ===

impl Ramp {
    /// How many may go on now, to peers or to where nginx alone would send them.
    pub fn turn(&mut self, outlook: Outlook) -> usize {
        match outlook {
            Outlook::Serving(peers) => {
                let more = if self.is_open { THEN } else { FIRST };
                let most = FIRST.saturating_mul(peers);
                self.is_open = true;
                self.left = self.left.saturating_add(more.saturating_mul(peers)).min(most);
                self.left.min(BATCH)
            }
            // Those who have gone on fill them. One of these is done: one more goes on.
            Outlook::Full => 0,
            Outlook::Expected => {
                *self = Self::default();
                0
            }
            Outlook::Nobody => BATCH,
        }
    }

    pub fn spend(&mut self, gone: usize) {
        self.left = self.left.saturating_sub(gone);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const NEW: Visitor = Visitor {
        was_sent_on: false,
        was_refused: true,
        tried: 0,
        broke: 0,
        is_background: false,
        has_stale: false,
    };

    fn waits(visitor: Visitor, outlook: Outlook) -> bool {
        visitor.verdict(outlook) == Verdict::Wait
    }

    #[test]
    fn a_request_waits_for_somebody_who_is_expected_and_for_nobody_else() {
        assert!(waits(NEW, Outlook::Expected));
        assert!(!waits(NEW, Outlook::Nobody));
        assert!(!waits(NEW, Outlook::Full), "merely full");
        let failed = Visitor { tried: 1, broke: 1, ..NEW };
        assert!(waits(failed, Outlook::Expected), "it may be repeated, or nginx would not have asked");
        assert!(
            !waits(Visitor { was_refused: false, ..NEW }, Outlook::Serving(1)),
            "the balancer has its reasons"
        );
        assert!(!waits(Visitor { tried: 1, ..NEW }, Outlook::Serving(1)), "it was tried there");
    }

    #[test]
    fn who_comes_up_while_the_balancer_chooses_is_not_missed() {
        assert!(waits(NEW, Outlook::Serving(1)));
    }

    #[test]
    fn who_was_sent_on_to_peers_that_are_full_by_now_waits_on() {
        let sent_on = Visitor { was_sent_on: true, was_refused: false, ..NEW };
        assert!(waits(sent_on, Outlook::Full) && waits(sent_on, Outlook::Serving(1)));
        assert!(!waits(sent_on, Outlook::Nobody));
        assert!(!waits(Visitor { tried: 1, ..sent_on }, Outlook::Full), "a peer failed it meanwhile");
    }

    #[test]
    fn what_must_not_wait_does_not() {
        for (why, visitor) in [
            ("it may kill whoever it meets", Visitor { tried: 2, broke: 2, ..NEW }),
            ("its client would wait for nothing", Visitor { is_background: true, ..NEW }),
            ("there is an answer", Visitor { has_stale: true, ..NEW }),
        ] {
            assert!(!waits(visitor, Outlook::Expected), "{why}");
            assert!(!visitor.joins(true), "{why}");
        }
    }

    #[test]
    fn who_comes_while_others_go_on_goes_behind_them() {
        assert!(NEW.joins(true) && !NEW.joins(false));
        assert!(!Visitor { was_sent_on: true, ..NEW }.joins(true), "it is one of them");
    }

    #[test]
    fn half_of_the_connections_are_left_for_others() {
        assert!(Queue::spares(384, 768) && !Queue::spares(383, 768));
        assert!(Queue::spares(2, 3) && !Queue::spares(1, 3));
    }

    #[test]
    fn the_first_go_together_and_the_others_in_small_parts() {
        let mut ramp = Ramp::default();
        let mut turn = |outlook| {
            let gone = ramp.turn(outlook);
            ramp.spend(gone);
            gone
        };
        assert_eq!(turn(Outlook::Expected), 0);
        assert_eq!([turn(Outlook::Serving(1)), turn(Outlook::Serving(1))], [FIRST, THEN]);
        assert_eq!(turn(Outlook::Full), 0);
        assert_eq!(turn(Outlook::Serving(1)), THEN);
        assert_eq!(turn(Outlook::Expected), 0);
        assert_eq!(turn(Outlook::Serving(2)), BATCH, "two peers take twice as many, in two turns");
        assert_eq!(turn(Outlook::Serving(2)), BATCH);
        assert_eq!(turn(Outlook::Nobody), BATCH, "nobody is to be spared");
    }

    #[test]
    fn what_was_not_spent_is_there_later_but_does_not_add_up() {
        let mut ramp = Ramp::default();
        for _ in 0..100 {
            assert_eq!(ramp.turn(Outlook::Serving(1)), FIRST);
        }
    }
}
