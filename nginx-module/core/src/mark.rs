//! What one owner says of one peer.

use crate::admission::{decode, encode};
use crate::control::Moment;
use crate::sync::{AtomicU32, AtomicU64, Ordering};
use crate::text::Text;
use handoff_wire::{Expect, MarkView, Owner, Span, State};

/// The longest reason that a mark holds, in bytes.
pub const MAX_REASON: usize = 128;

/// A place for one mark. It holds one while `state` is not zero, so that is written last and cleared first: a writer that
/// dies halfway leaves no mark, the old one or the new one; at worst an old state with a new reason.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Mark {
    state: AtomicU32,
    back: AtomicU32,
    planned: AtomicU32,
    epoch: AtomicU64,
    /// Milliseconds; 0 is a mark without a lease.
    lease: AtomicU64,
    renewed_at: AtomicU64,
    set_at: AtomicU64,
    owner: Text<64>,
    reason: Text<MAX_REASON>,
}

/// A mark about to be set.
#[derive(Clone, Copy, Debug)]
pub struct Claim<'a> {
    pub owner: &'a Owner,
    pub state: State,
    pub expect: Expect,
    pub reason: &'a str,
    pub lease: Option<Span>,
}

/// Whether an upstream has anybody who serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    Somebody,
    /// Whoever is up was missed by a request then or later, and has not answered since.
    Missed(u64),
    Nobody,
}

/// A mark that lapsed goes with the next sweep, and its gate opens. For so long those who wait have still something to expect.
const SWEPT_WITHIN: Span = Span::from_secs(1);

/// An owner that has not been heard of for so long loses its leased marks where nobody serves.
pub const SILENCE: Span = Span::from_secs(3);

impl Mark {
    pub fn state(&self) -> Option<State> {
        decode(self.state.load(Ordering::Acquire)).filter(|&state| state != State::Up)
    }

    pub fn is_of(&self, owner: &Owner) -> bool {
        self.state().is_some() && self.owner.is(owner.as_str())
    }

    pub fn owner(&self) -> Option<Owner> {
        self.state()?;
        self.owner.get().parse().ok()
    }

    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Relaxed)
    }

    /// Whether this mark began as a replacement that somebody ordered, and not as a death that nobody did.
    pub fn planned(&self) -> bool {
        self.planned.load(Ordering::Relaxed) != 0
    }

    /// Begins a mark in a free place.
    pub(crate) fn begin(&self, claim: &Claim<'_>, epoch: u64, now: Moment) {
        self.owner.set(claim.owner.as_str());
        self.epoch.store(epoch, Ordering::Relaxed);
        let planned = claim.owner.kind().is_choice() || claim.state == State::Draining;
        self.planned.store(u32::from(planned), Ordering::Relaxed);
        self.set_at.store(now.mono, Ordering::Relaxed);
        self.change(claim, now);
    }

    /// Changes what the mark says; its epoch and its beginning stay.
    pub(crate) fn change(&self, claim: &Claim<'_>, now: Moment) {
        self.back.store(u32::from(claim.expect == Expect::Back), Ordering::Relaxed);
        self.reason.set(claim.reason);
        self.renew(claim.lease, now);
        self.state.store(encode(claim.state), Ordering::Release);
    }

    pub(crate) fn renew(&self, lease: Option<Span>, now: Moment) {
        self.lease.store(lease.map_or(0, Span::as_millis), Ordering::Relaxed);
        self.renewed_at.store(now.mono, Ordering::Relaxed);
    }

    pub(crate) fn remove(&self) {
        self.state.store(0, Ordering::Release);
    }

    pub fn lease(&self) -> Option<Span> {
        match self.lease.load(Ordering::Relaxed) {
            0 => None,
            ms => Some(Span::from_millis(ms)),
        }
    }

    /// When its owner last said anything; `None` is a mark that stays though its owner says no more.
    fn heard(&self) -> Option<u64> {
        self.lease().map(|_| self.renewed_at.load(Ordering::Relaxed))
    }

    /// Whether the mark has outlived its lease. Where nobody has served since its owner fell silent, silence alone is enough.
    pub fn has_lapsed(&self, now: Moment, service: Service) -> bool {
        let Some((lease, heard)) = self.lease().zip(self.heard()) else { return false };
        let nobody_serves = match service {
            Service::Somebody => false,
            Service::Missed(since) => since >= heard,
            Service::Nobody => true,
        };
        let silent = now.mono.saturating_sub(heard);
        silent >= lease.as_millis() || (nobody_serves && silent >= SILENCE.as_millis())
    }

    /// Whether its owner, who is still there, expects somebody back.
    pub fn expects(&self, now: Moment) -> bool {
        self.expects_with(now, Service::Nobody)
    }

    /// When its owner last said anything, if it expects somebody back and the mark lapses soon after a request finds that nobody
    /// has served since.
    pub(crate) fn last_word(&self, now: Moment) -> Option<u64> {
        self.heard().filter(|_| self.expects_with(now, Service::Somebody))
    }

    fn expects_with(&self, now: Moment, service: Service) -> bool {
        let before = Moment { mono: now.mono.saturating_sub(SWEPT_WITHIN.as_millis()), ..now };
        self.back.load(Ordering::Relaxed) != 0 && !self.has_lapsed(before, service)
    }

    pub fn view(&self, now: Moment) -> Option<MarkView> {
        let state = self.state()?;
        let silent = now.mono.saturating_sub(self.renewed_at.load(Ordering::Relaxed));
        Some(MarkView {
            owner: self.owner()?,
            state,
            expect: if self.back.load(Ordering::Relaxed) == 0 { Expect::Gone } else { Expect::Back },
            reason: self.reason.get(),
            epoch: self.epoch(),
            lease: self.lease().map(|lease| Span::from_millis(lease.as_millis().saturating_sub(silent))),
            age: Span::from_millis(now.mono.saturating_sub(self.set_at.load(Ordering::Relaxed))),
        })
    }
}
