//! Whether a request that a peer failed is given to a peer again, and why.
//!
//! What nginx alone would grant is granted, and costs nothing. What is added is bounded three times: by the user's own words
//! (`proxy_next_upstream`, `_tries`, `_timeout`), by a [`Budget`] over all nginx processes, and for each request by one
//! attempt ([`MOST`]). It never repeats what may have been executed, unless nginx would, and never goes to the worker that
//! has just failed: to a peer that nobody has used meanwhile a request goes again only if somebody else is behind it now.
//!
//! ```text
//!            nginx may not: off, timeout, unbuffered, sent ──────────────────────────► refused
//!            nginx would anyhow ─────────────────────────────────────────────────────► next
//!  failed ──►nginx thinks that it was sent, and no byte was ── budget ───────────────► unsent
//!            nobody is up, and somebody is expected ─────────────────────────────────► held
//!            the peers' only one, and another worker is behind it ── budget ─────────► replaced
//!            it answered "come again in a second" ── budget ── rests for so long ────► retry_after
//!            its connection broke, and nobody has said why ── rests for a moment ────► held, replaced or refused
//! ```

use crate::sync::{AtomicU64, Ordering};
use handoff_wire::{GrantedView, RefusedView};

/// `handoff_retry [budget=percent%] [min=number];`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Of the requests that are with a peer.
    pub percent: u32,
    /// So many at the same time in any case.
    pub min: u32,
}

/// What nginx takes for the failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The connection was refused or broke.
    Connection,
    /// Nothing came in time, or what came was no header.
    Answerless,
    /// A status that the configuration takes for a failure.
    Status,
}

/// How much of the request went to the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    Nothing,
    /// nginx takes it for sent from before it first writes; but no byte was written.
    NoByte,
    Something,
}

/// An attempt that failed. Before nginx has decided about it.
#[derive(Clone, Copy, Debug)]
pub struct Failure {
    pub cause: Cause,
    pub sent: Sent,
    /// POST, LOCK or PATCH: whoever repeats it may do it twice.
    pub may_change: bool,
    /// Its body goes to the peer as it arrives, and is not kept for another attempt.
    pub is_unbuffered: bool,
    /// `proxy_next_upstream` names the cause.
    pub is_reason: bool,
    /// It also says `non_idempotent`.
    pub may_repeat_changes: bool,
    /// What `proxy_next_upstream_timeout` leaves, in milliseconds.
    pub time_left: Option<u64>,
    /// How many attempts nginx would still make.
    pub tries_left: usize,
    /// `proxy_next_upstream_tries` allows for one more. Only who was given a request has been tried.
    pub may_try: bool,
    /// How many attempts failed with some of it sent, this one included.
    pub broke: u32,
    /// How many attempts it was given beyond those that nginx alone would have made.
    pub added: u32,
    /// The answer says when to come again, in seconds: as far as that is a number.
    pub retry_after: Option<RetryAfter>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryAfter {
    Seconds(u64),
    /// A date, or nothing that anybody understands.
    Unknown,
}

/// How the upstream looks to a request that failed there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Around {
    /// It would wait: nobody may serve, and somebody is expected back.
    pub would_wait: bool,
    /// Who failed it may serve, and nobody else may.
    pub is_alone: bool,
    /// Another worker is behind that address by now, or others share it.
    pub is_replaced: bool,
    /// There is room for it to wait a moment.
    pub may_rest: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Granted(Granted),
    /// It waits, and is looked at again.
    Rests(Rest),
    Refused(Refused),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Granted {
    /// By nginx alone.
    Next,
    /// No byte of it was written.
    Unsent,
    /// Another worker is behind the address now.
    Replaced,
    /// The worker said when to come again, and it was soon.
    RetryAfter,
    /// Nobody is up, and somebody is expected.
    Held,
    /// It waited on a connection that nobody had taken.
    Orphan,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// `proxy_next_upstream` is off, or does not name the cause.
    Off,
    /// It may have been executed.
    Sent,
    /// Its body was passed on, and not kept.
    Unbuffered,
    /// `proxy_next_upstream_timeout`.
    Timeout,
    /// Every attempt that nginx, and who adds to it, would make was made.
    Tries,
    /// There is nobody but the worker that failed it.
    Same,
    /// It broke two workers.
    Broke,
    /// The worker said when to come again, and it is not soon.
    Later,
    Budget,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// Until somebody says what became of the worker.
    ForNews,
    /// For as long as the worker said.
    ForTime(u64),
}

/// What becomes of one that rests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    Stays,
    Ends(Verdict),
}

/// How often which verdict was given.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Tally {
    granted: [AtomicU64; Granted::ALL.len()],
    refused: [AtomicU64; Refused::ALL.len()],
}

/// Attempts that one request is given beyond those that nginx alone would have made.
pub const MOST: u32 = 1;

/// A request that fails where it is tried with some of it sent may be what kills its worker: a second time is enough.
pub const MAX_BROKE: u32 = 1;

/// How long a request whose connection broke waits for the word that its worker is gone. The sidecar learns of a death at once
/// and needs some milliseconds to say so; on a machine with much to do, some more.
pub const NEWS: u64 = 200;

/// The longest that a `Retry-After` is waited for. Milliseconds.
pub const SOON: u64 = 2000;

// === impl Budget ===

impl Default for Budget {
    /// A worker that is killed breaks several requests at once; so few are no load for the others, whatever a fifth is.
    fn default() -> Self {
        Self { percent: 20, min: 10 }
    }
}

impl Budget {
    /// How many repeats may go on at the same time, with so many requests at the peers.
    pub fn allowed(&self, active: u64) -> u64 {
        let share = active.saturating_mul(self.percent.into()) / 100;
        share.max(self.min.into())
    }
}

// === impl Failure ===

impl Failure {
    /// `around` is asked only if nginx has no attempt left, `takes` a place of the budget only if that is all it needs; without a
    /// budget nothing is added.
    pub fn verdict(
        &self,
        has_budget: bool,
        around: impl FnOnce() -> Around,
        takes: impl FnOnce() -> bool,
    ) -> Verdict {
        if let Some(refused) = self.is_forbidden() {
            return Verdict::Refused(refused);
        }
        let add =
            |granted| if takes() { Verdict::Granted(granted) } else { Verdict::Refused(Refused::Budget) };
        let is_nginxs = !self.may_change || self.may_repeat_changes || self.sent == Sent::Nothing;
        match (self.tries_left > 0, is_nginxs) {
            (true, true) => Verdict::Granted(Granted::Next),
            (_, false) if !has_budget => Verdict::Refused(Refused::Sent),
            (true, false) => add(Granted::Unsent),
            (false, _) if !(self.may_try || self.met_nobody()) => Verdict::Refused(Refused::Tries),
            (false, _) => self.more(has_budget, around(), add),
        }
    }

    /// What nobody may change.
    fn is_forbidden(&self) -> Option<Refused> {
        let may_be_done = self.may_change && !self.may_repeat_changes && self.sent == Sent::Something;
        [
            (!self.is_reason, Refused::Off),
            (may_be_done, Refused::Sent),
            (self.is_unbuffered && self.sent != Sent::Nothing, Refused::Unbuffered),
            (self.time_left == Some(0), Refused::Timeout),
        ]
        .into_iter()
        .find_map(|(is_so, refused)| is_so.then_some(refused))
    }

    /// The connection was refused, as by all workers of an app in the milliseconds before nginx hears that they went. That
    /// is no reason to give up before those who would have waited.
    pub fn met_nobody(&self) -> bool {
        self.cause == Cause::Connection && self.sent == Sent::Nothing
    }

    /// nginx has no attempt left for it.
    fn more(&self, has_budget: bool, around: Around, add: impl FnOnce(Granted) -> Verdict) -> Verdict {
        let soon = self.retry_after.map(|after| self.soon(after));
        if soon == Some(None) {
            return Verdict::Refused(Refused::Later);
        }
        if around.would_wait {
            return Verdict::Granted(Granted::Held);
        }
        if !has_budget || self.added >= MOST {
            return Verdict::Refused(if self.broke > MAX_BROKE { Refused::Broke } else { Refused::Tries });
        }
        if self.broke > MAX_BROKE {
            return Verdict::Refused(Refused::Broke);
        }
        match (self.cause, soon.flatten()) {
            (Cause::Status, Some(time)) if around.may_rest => match add(Granted::RetryAfter) {
                Verdict::Granted(_) => Verdict::Rests(Rest::ForTime(time)),
                refused => refused,
            },
            _ if around.is_alone && around.is_replaced => add(Granted::Replaced),
            (Cause::Connection, _) if around.may_rest => Verdict::Rests(Rest::ForNews),
            _ if around.is_alone => Verdict::Refused(Refused::Same),
            _ => Verdict::Refused(Refused::Tries),
        }
    }

    /// So long it is until the request may come again, if that is soon and in the time that it has.
    fn soon(&self, after: RetryAfter) -> Option<u64> {
        let RetryAfter::Seconds(seconds) = after else { return None };
        let time = seconds.saturating_mul(1000);
        (time <= SOON && self.time_left.is_none_or(|left| time < left)).then_some(time)
    }
}

// === impl Granted ===

impl Granted {
    pub const ALL: [Self; 6] =
        [Self::Next, Self::Unsent, Self::Replaced, Self::RetryAfter, Self::Held, Self::Orphan];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Next => "next",
            Self::Unsent => "unsent",
            Self::Replaced => "replaced",
            Self::RetryAfter => "retry_after",
            Self::Held => "held",
            Self::Orphan => "orphan",
        }
    }
}

// === impl Refused ===

impl Refused {
    pub const ALL: [Self; 9] = [
        Self::Off,
        Self::Sent,
        Self::Unbuffered,
        Self::Timeout,
        Self::Tries,
        Self::Same,
        Self::Broke,
        Self::Later,
        Self::Budget,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Sent => "sent",
            Self::Unbuffered => "unbuffered",
            Self::Timeout => "timeout",
            Self::Tries => "tries",
            Self::Same => "same",
            Self::Broke => "broke",
            Self::Later => "later",
            Self::Budget => "budget",
        }
    }
}

// === impl Verdict ===

impl Verdict {
    /// None while nothing is decided.
    pub fn as_str(self) -> Option<&'static str> {
        match self {
            Self::Granted(granted) => Some(granted.as_str()),
            Self::Refused(refused) => Some(refused.as_str()),
            Self::Rests(_) => None,
        }
    }
}

// === impl Rest ===

impl Rest {
    pub fn length(self) -> u64 {
        match self {
            Self::ForNews => NEWS,
            Self::ForTime(time) => time,
        }
    }

    /// `has_place`: in the budget, for one more. One that rests for so long as it was told has one already.
    pub fn look(
        self,
        is_over: bool,
        around: impl FnOnce() -> Around,
        has_place: impl FnOnce() -> bool,
    ) -> Look {
        let around = match self {
            Self::ForTime(_) if is_over => return Look::Ends(Verdict::Granted(Granted::RetryAfter)),
            Self::ForTime(_) => return Look::Stays,
            Self::ForNews => around(),
        };
        let is_replaced = around.is_alone && around.is_replaced;
        if around.would_wait {
            Look::Ends(Verdict::Granted(Granted::Held))
        } else if is_replaced && has_place() {
            Look::Ends(Verdict::Granted(Granted::Replaced))
        } else if !is_over {
            Look::Stays
        } else if is_replaced {
            Look::Ends(Verdict::Refused(Refused::Budget))
        } else {
            Look::Ends(Verdict::Refused(Refused::Same))
        }
    }
}

// === impl Tally ===

impl Tally {
    pub fn count(&self, verdict: Verdict) {
        let counter = match verdict {
            Verdict::Granted(granted) => self.granted.get(granted as usize),
            Verdict::Refused(refused) => self.refused.get(refused as usize),
            Verdict::Rests(_) => None,
        };
        if let Some(counter) = counter {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn reset(&self) {
        self.granted.iter().chain(&self.refused).for_each(|counter| counter.store(0, Ordering::Relaxed));
    }

    pub fn granted(&self) -> GrantedView {
        let [next, unsent, replaced, retry_after, held, orphan] = self.granted.each_ref().map(read);
        GrantedView { next, unsent, replaced, retry_after, held, orphan }
    }

    pub fn refused(&self) -> RefusedView {
        let [off, sent, unbuffered, timeout, tries, same, broke, later, budget] =
            self.refused.each_ref().map(read);
        RefusedView { off, sent, unbuffered, timeout, tries, same, broke, later, budget }
    }
}

fn read(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}
