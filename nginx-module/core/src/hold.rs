//! Who waits, how long, and who goes on when: the hold of an upstream that nobody serves just now.
//!
//! A request waits if no peer may serve it and one is expected back, or if its upstream is paused. Each nginx process keeps those that wait with it in a
//! [`Line`](crate::line::Line), in the order in which they came; what all processes hold together stands in the zone
//! ([`Room`](crate::room::Room)) and is bounded by the [`Queue`]. While somebody waits, the process looks at its upstream
//! every few milliseconds. Whatever it sees, nobody waits for ever: they go on, they are served as nginx alone would serve
//! them, or their time is over.

use crate::control::{Moment, Standing};
use crate::retry::MAX_BROKE;
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
    /// Whoever may serve, somebody has paused the upstream.
    Paused,
}

/// A request for which the balancer found nobody.
#[derive(Clone, Copy, Debug)]
pub struct Visitor {
    /// It has waited before, and was sent on just now.
    pub was_sent_on: bool,
    /// Since its balancer began, a peer was chosen for it and refused because of its marks. The balancer takes that for a try.
    pub was_refused: bool,
    /// Since then, marks have changed.
    pub has_news: bool,
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

/// How those who wait in one process go on, once they may. The first get to a peer together, as many as the backlog of a Node
/// server takes (511) from some nginx processes; then so many a turn, for others may be about to come up and want their share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pace {
    left: usize,
    is_open: bool,
    flows: bool,
    not_before: u64,
}

/// What became of a turn.
#[derive(Clone, Copy, Debug)]
pub struct Turn {
    /// How the upstream looked at its beginning, and how it looks at its end.
    pub outlooks: [Outlook; 2],
    /// How many might go on, and how many did.
    pub granted: usize,
    pub gone: usize,
    /// How many wait still.
    pub left: usize,
}

/// For each peer that is up.
const FIRST: usize = 128;
const THEN: usize = 32;

/// After a balancer that had nobody, though somebody is up. Milliseconds.
const PAUSE: u64 = 100;

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
    /// A peer that is up, and behind which nobody was since the owner of one that is expected said its last word, does not
    /// serve: that word may have been its last for good, and then nobody says what became of either.
    pub fn of<'a>(peers: impl Iterator<Item = (Standing, &'a Slot)> + Clone, now: Moment) -> Self {
        let is_open = |slot: &Slot| slot.gate.state().serves();
        let (mut expected, mut last_word) = (false, u64::MAX);
        for (_, slot) in peers.clone().filter(|(peer, slot)| !is_open(slot) && !peer.is_taken_out()) {
            expected |= slot.is_expected(now);
            last_word = last_word.min(slot.last_word(now).unwrap_or(u64::MAX));
        }
        let (mut serving, mut full) = (0usize, false);
        for (peer, slot) in peers.filter(|(peer, slot)| is_open(slot) && peer.available) {
            if slot.missed().is_some_and(|at| at >= last_word) {
                expected = true;
            } else {
                serving = serving.saturating_add(usize::from(!peer.full));
                full |= peer.full;
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
            Outlook::Expected | Outlook::Paused => true,
            // Who was refused may be up now; or another process was quicker. Else who serves has failed it before.
            Outlook::Serving(_) if self.was_refused => self.tried == 0 || self.has_news,
            Outlook::Serving(_) => self.tried == 0 && self.was_sent_on,
            Outlook::Full => self.tried == 0 && self.was_sent_on,
            Outlook::Nobody => false,
        };
        let is_fit = self.broke <= MAX_BROKE && !self.is_background && !self.has_stale;
        if may_wait && is_fit { Verdict::Wait } else { Verdict::Stock }
    }

    /// Whether it waits behind others who are on their way, though somebody is up.
    pub fn joins(&self) -> bool {
        self.tried == 0 && !self.was_sent_on && !self.is_background && !self.has_stale
    }
}

// === impl Pace ===

impl Pace {
    /// How many may go on now, to peers or to where nginx alone would send them.
    pub fn grant(&mut self, outlook: Outlook, now: u64) -> usize {
        match outlook {
            Outlook::Serving(_) if now < self.not_before => 0,
            Outlook::Serving(peers) => {
                let more = if self.is_open { THEN } else { FIRST };
                let most = FIRST.saturating_mul(peers);
                self.is_open = true;
                self.left = self.left.saturating_add(more.saturating_mul(peers)).min(most);
                self.left.min(BATCH)
            }
            // Those who have gone on fill them. When one of these is done, one more goes on.
            Outlook::Full => 0,
            Outlook::Expected | Outlook::Paused => {
                *self = Self::default();
                0
            }
            Outlook::Nobody => BATCH,
        }
    }

    pub fn done(&mut self, turn: Turn, now: u64) {
        let [before, after] = turn.outlooks.map(|outlook| matches!(outlook, Outlook::Serving(_)));
        self.left = self.left.saturating_sub(turn.gone);
        self.flows = before && turn.left > 0 && turn.gone == turn.granted && now >= self.not_before;
        // Peers are up and have room, and yet the balancer had none.
        if after && turn.left > 0 && turn.gone < turn.granted {
            self.not_before = now.saturating_add(PAUSE);
        }
    }

    /// Whether those who wait are on their way, only not all at once.
    pub fn flows(&self) -> bool {
        self.flows
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const NEW: Visitor = Visitor {
        was_sent_on: false,
        was_refused: true,
        has_news: false,
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
        assert!(waits(Visitor { was_refused: false, ..NEW }, Outlook::Paused), "whoever is up");
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
        let failed = Visitor { tried: 1, broke: 1, ..NEW };
        assert!(waits(Visitor { has_news: true, ..failed }, Outlook::Serving(1)));
        assert!(!waits(failed, Outlook::Serving(1)), "who serves has failed it");
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
            assert!(!waits(visitor, Outlook::Paused), "{why}");
            assert!(!visitor.joins(), "{why}");
        }
    }

    #[test]
    fn who_comes_while_others_go_on_goes_behind_them() {
        assert!(NEW.joins());
        assert!(!Visitor { was_sent_on: true, ..NEW }.joins(), "it is one of them");
    }

    #[test]
    fn half_of_the_connections_are_left_for_others() {
        assert!(Queue::spares(384, 768) && !Queue::spares(383, 768));
        assert!(Queue::spares(2, 3) && !Queue::spares(1, 3));
    }

    /// A turn in which all go on who may, and others are left.
    fn turn(pace: &mut Pace, outlook: Outlook) -> usize {
        let granted = pace.grant(outlook, 0);
        pace.done(Turn { outlooks: [outlook; 2], granted, gone: granted, left: 1 }, 0);
        granted
    }

    #[test]
    fn the_first_go_together_and_the_others_in_small_parts() {
        let mut pace = Pace::default();
        let mut turn = |outlook| turn(&mut pace, outlook);
        assert_eq!(turn(Outlook::Expected), 0);
        assert_eq!([turn(Outlook::Serving(1)), turn(Outlook::Serving(1))], [FIRST, THEN]);
        assert_eq!([turn(Outlook::Full), turn(Outlook::Paused)], [0, 0]);
        assert_eq!(turn(Outlook::Serving(1)), FIRST, "after a pause they come together again");
        assert_eq!(turn(Outlook::Serving(1)), THEN);
        assert_eq!(turn(Outlook::Expected), 0);
        assert_eq!(turn(Outlook::Serving(2)), BATCH, "two peers take twice as many, in two turns");
        assert_eq!(turn(Outlook::Serving(2)), BATCH);
        assert_eq!(turn(Outlook::Nobody), BATCH, "nobody is to be spared");
    }

    #[test]
    fn what_was_not_spent_is_there_later_but_does_not_add_up() {
        let mut pace = Pace::default();
        for _ in 0..100 {
            assert_eq!(pace.grant(Outlook::Serving(1), 0), FIRST);
        }
    }

    #[test]
    fn they_flow_while_some_are_left_only_for_the_sake_of_the_pace() {
        let mut pace = Pace::default();
        assert!(!pace.flows());
        turn(&mut pace, Outlook::Serving(1));
        assert!(pace.flows());
        turn(&mut pace, Outlook::Full);
        assert!(!pace.flows());
        turn(&mut pace, Outlook::Serving(1));
        turn(&mut pace, Outlook::Expected);
        assert!(!pace.flows());
        let done = Turn { outlooks: [Outlook::Serving(1); 2], granted: 128, gone: 3, left: 0 };
        pace.done(done, 0);
        assert!(!pace.flows(), "nobody is left");
    }

    #[test]
    fn a_balancer_that_has_nobody_though_somebody_is_up_is_not_asked_all_the_time() {
        let mut pace = Pace::default();
        let serving = Outlook::Serving(1);
        let turn = Turn { outlooks: [serving; 2], granted: pace.grant(serving, 1000), gone: 0, left: 9 };
        pace.done(turn, 1000);
        assert_eq!((pace.grant(serving, 1099), pace.flows()), (0, false));
        assert!(pace.grant(serving, 1100) > 0);
        // It was full by then: that is seen at a glance, and needs no pause.
        let full = Turn { outlooks: [serving, Outlook::Full], ..turn };
        pace.done(full, 1200);
        assert!(pace.grant(serving, 1201) > 0);
    }
}
