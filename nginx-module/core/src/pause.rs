//! A pause: nobody begins a request on any peer of an upstream, whatever the marks say. Who comes waits in the hold.
//!
//! It is a moment in the zone, and each process compares it with its clock: nobody needs to live for a pause to end. Claim,
//! then look, as with a gate ([`admission`](crate::admission)): the request counts itself before it looks at the moment, the
//! pause is written before the ledger is read.

use crate::control::Moment;
use crate::mark::MAX_REASON;
use crate::sync::{AtomicU32, AtomicU64, Ordering};
use crate::text::Text;
use handoff_wire::{Owner, PauseView, Span};

/// Until when, by the clock of all processes; 0 is no pause.
#[derive(Debug, Default)]
pub struct Until(AtomicU64);

/// The pause of one upstream. `until` is written last and cleared first.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Pause {
    until: Until,
    since: AtomicU64,
    /// Whether its end was told, if nobody ended it.
    told: AtomicU32,
    owner: Text<64>,
    reason: Text<MAX_REASON>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    None,
    /// For so many milliseconds more.
    Holds(u64),
    /// It ended by itself, and nobody has asked since.
    Over,
}

// === impl Until ===

impl Until {
    #[inline]
    pub fn holds(&self, now: impl FnOnce() -> u64) -> bool {
        let until = self.get();
        until != 0 && now() < until
    }

    #[inline]
    fn get(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    /// Whoever claims after the ledger was read, which comes next, sees it.
    pub fn set(&self, until: u64) {
        self.0.store(until, Ordering::Release);
    }
}

// === impl Pause ===

impl Pause {
    #[inline]
    pub fn holds(&self, now: impl FnOnce() -> u64) -> bool {
        self.until.holds(now)
    }

    /// Whether there is one, or was one that nobody has ended.
    pub fn is_there(&self) -> bool {
        self.until.get() != 0
    }

    pub fn standing(&self, now: Moment) -> Standing {
        match self.until.get() {
            0 => Standing::None,
            until if now.mono < until => Standing::Holds(until.saturating_sub(now.mono)),
            _ => Standing::Over,
        }
    }

    pub fn owner(&self) -> Option<Owner> {
        self.owner.get().parse().ok()
    }

    pub fn reason(&self) -> String {
        self.reason.get()
    }

    /// Begins, or changes its end and its reason. Whether anything is new.
    pub(crate) fn begin(&self, owner: &Owner, reason: &str, max: Span, now: Moment) -> bool {
        let before = self.until.get();
        if !self.until.holds(|| now.mono) {
            self.until.set(0);
            self.since.store(now.mono, Ordering::Relaxed);
            self.told.store(0, Ordering::Relaxed);
            self.owner.set(owner.as_str());
        }
        self.reason.set(reason);
        let until = self.since.load(Ordering::Relaxed).saturating_add(max.as_millis());
        self.until.set(until);
        until != before
    }

    pub(crate) fn end(&self) {
        self.until.set(0);
    }

    /// Whether it ended by itself, and whoever asks is the first to say so.
    pub(crate) fn is_to_be_told(&self, now: Moment) -> bool {
        self.standing(now) == Standing::Over && self.told.swap(1, Ordering::Relaxed) == 0
    }

    pub fn view(&self, now: Moment) -> Option<PauseView> {
        let Standing::Holds(left) = self.standing(now) else { return None };
        let age = now.mono.saturating_sub(self.since.load(Ordering::Relaxed));
        Some(PauseView {
            owner: self.owner()?,
            reason: self.reason(),
            left: Span::from_millis(left),
            age: Span::from_millis(age),
        })
    }
}
