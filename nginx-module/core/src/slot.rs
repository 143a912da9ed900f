//! A peer of an upstream, as the zone knows it.

use crate::absence::Absence;
use crate::admission::Gate;
use crate::answers::Answers;
use crate::control::Moment;
use crate::endpoint::Endpoint;
use crate::mark::Mark;
use crate::outage::Outage;
use crate::slow_start::Ramp;
use crate::sync::{AtomicU64, Ordering};
use crate::tenancy::{Tenancy, Tenure, Terms};
use crate::text::Text;
use crate::timing::Timing;
use handoff_wire::{Owner, State};

/// How many owners can have a mark on one peer at the same time.
pub const MARKS: usize = 8;

/// The longest name of an upstream and of a peer, in bytes. The longest path of a unix socket fits.
pub const MAX_NAME: usize = 128;

#[derive(Debug, Default)]
#[repr(C)]
pub struct Slot {
    /// First, and together with what every request counts.
    pub gate: Gate,
    retired_before: AtomicU64,
    requests: AtomicU64,
    pub answers: Answers,
    pub timing: Timing,
    fails: AtomicU64,
    broken: AtomicU64,
    /// Those of the broken that went on elsewhere.
    resumed: AtomicU64,
    refused: AtomicU64,
    pub(crate) absence: Absence,
    pub outage: Outage,
    pub ramp: Ramp,
    /// The change that last brought the peer back from a planned replacement.
    readied: AtomicU64,
    /// The last of these after which nginx's passive failures were cleared.
    forgiven: AtomicU64,
    /// The newest configuration that names the peer; 0 is a free slot.
    seen: AtomicU64,
    upstream: Text<MAX_NAME>,
    address: Text<MAX_NAME>,
    pub tenancy: Tenancy,
    /// Who added the peer that has the slot, or last said otherwise of it.
    added_by: Text<64>,
    marks: [Mark; MARKS],
}

impl Slot {
    pub fn is(&self, upstream: &str, address: &str) -> bool {
        self.is_of(upstream) && self.is_at(address)
    }

    /// Nobody is in a vacant slot, whatever stood there.
    pub fn is_at(&self, address: &str) -> bool {
        self.seen() != 0 && self.tenancy.tenure() != Tenure::Vacant && self.address.is(address)
    }

    pub fn is_of(&self, upstream: &str) -> bool {
        self.seen() != 0 && self.upstream.is(upstream)
    }

    pub fn upstream(&self) -> String {
        self.upstream.get()
    }

    pub fn address(&self) -> String {
        self.address.get()
    }

    /// The same, for whoever must not ask for memory: how many bytes of `room` it takes.
    #[inline]
    pub fn copy_address(&self, room: &mut [u8]) -> usize {
        self.address.copy_to(room)
    }

    /// Who added the peer at run time.
    pub fn added_by(&self) -> Option<Owner> {
        if !self.tenancy.is_dynamic() {
            return None;
        }
        self.added_by.get().parse().ok()
    }

    pub fn seen(&self) -> u64 {
        self.seen.load(Ordering::Acquire)
    }

    pub fn marks(&self) -> &[Mark; MARKS] {
        &self.marks
    }

    pub fn mark_of(&self, owner: &Owner) -> Option<&Mark> {
        self.marks.iter().find(|mark| mark.is_of(owner))
    }

    pub fn free_mark(&self) -> Option<&Mark> {
        self.marks.iter().find(|mark| mark.state().is_none())
    }

    pub fn has_marks(&self) -> bool {
        self.marks.iter().any(|mark| mark.state().is_some())
    }

    /// The most severe of all marks. Nobody serves in a slot that has no peer.
    pub fn effective(&self) -> State {
        if !self.tenancy.is_here() {
            return State::Down;
        }
        self.marks.iter().filter_map(Mark::state).max().unwrap_or(State::Up)
    }

    /// Whether all who keep requests away expect somebody back. Where nobody does any more the gate is about to follow.
    pub fn is_expected(&self, now: Moment) -> bool {
        self.marks.iter().filter(Self::keeps_away).all(|mark| mark.expects(now))
    }

    /// The [last word](Mark::last_word) of all who keep requests away. `None` if one of them says no such word, or nobody does.
    pub(crate) fn last_word(&self, now: Moment) -> Option<u64> {
        let mut last = None;
        for mark in self.marks.iter().filter(Self::keeps_away) {
            last = last.max(Some(mark.last_word(now)?));
        }
        last
    }

    fn keeps_away(mark: &&Mark) -> bool {
        mark.state().is_some_and(|state| !state.serves())
    }

    /// A request found nobody behind it: its connection was refused. `now` is read anew, from the clock that never goes back.
    #[cold]
    pub fn miss(&self, now: u64) {
        self.absence.note(self.answers.view().total(), now);
    }

    /// When a request last found nobody there, if nobody has answered since.
    pub fn missed(&self) -> Option<u64> {
        self.absence.last(|| self.answers.view().total())
    }

    /// Connections with a smaller number were opened before the peer last changed hands, and are not used again.
    #[inline]
    pub fn retired_before(&self) -> u64 {
        self.retired_before.load(Ordering::Relaxed)
    }

    /// Whether a connection that was kept may carry a request.
    #[inline]
    pub fn may_reuse(&self, connection: u64) -> bool {
        connection >= self.retired_before()
    }

    /// Whether a connection whose request ends may be kept for another one.
    #[inline]
    pub fn may_keep(&self, connection: u64) -> bool {
        self.gate.state() == State::Up && self.may_reuse(connection)
    }

    pub(crate) fn retire(&self, connections: u64) {
        self.retired_before.store(connections, Ordering::Release);
    }

    pub fn readied(&self) -> u64 {
        self.readied.load(Ordering::Acquire)
    }

    pub(crate) fn ready(&self, change: u64) {
        self.readied.store(change, Ordering::Release);
    }

    /// Whether whoever asks is the first to clear nginx's passive failures after the peer came back. The others must not:
    /// what they would clear may have happened since.
    pub fn forgive(&self) -> bool {
        let readied = self.readied();
        self.forgiven.fetch_max(readied, Ordering::AcqRel) < readied
    }

    /// `now` is in milliseconds since 1970.
    #[inline]
    pub fn count_request(&self, now: u64) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.timing.select(now);
    }

    #[inline]
    pub fn count_fail(&self) {
        self.fails.fetch_add(1, Ordering::Relaxed);
    }

    #[cold]
    pub fn count_broken(&self) {
        self.broken.fetch_add(1, Ordering::Relaxed);
    }

    /// Another peer was asked after all, or this one again.
    #[cold]
    pub fn count_resumed(&self) {
        self.resumed.fetch_add(1, Ordering::Relaxed);
    }

    #[inline]
    pub fn count_refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    pub fn fails(&self) -> u64 {
        self.fails.load(Ordering::Relaxed)
    }

    /// Requests that ended with the peer before their answer did.
    pub fn cut(&self) -> u64 {
        let resumed = self.resumed.load(Ordering::Relaxed);
        self.broken.load(Ordering::Relaxed).saturating_sub(resumed)
    }

    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    pub(crate) fn see(&self, configuration: u64) {
        self.seen.store(configuration, Ordering::Release);
    }

    /// Gives the slot to a peer that has none. `seen` is written last: until then nobody finds it.
    pub(crate) fn take(&self, upstream: &str, address: &str, configuration: u64) {
        self.seen.store(0, Ordering::Release);
        self.forget();
        self.tenancy.configure();
        self.gate.set(State::Up);
        self.upstream.set(upstream);
        self.address.set(address);
        self.see(configuration);
    }

    /// Makes it a slot of the upstream that nobody has yet.
    pub(crate) fn reserve(&self, upstream: &str, configuration: u64) {
        self.seen.store(0, Ordering::Release);
        self.forget();
        self.tenancy.vacate();
        self.gate.set(State::Down);
        self.upstream.set(upstream);
        self.see(configuration);
    }

    /// Lets a peer have a reserved slot that nobody has. The gate stays closed: it follows.
    pub(crate) fn let_to(&self, at: &Endpoint, terms: &Terms, owner: &Owner, connections: u64) {
        self.tenancy.vacate();
        self.forget();
        // nginx keeps connections by the address of the slot's place in its list: those of the peer that was there before.
        self.retire(connections);
        self.address.set(&at.to_string());
        self.ramp.replaced();
        self.added_by.set(owner.as_str());
        self.tenancy.take(at, terms);
    }

    /// The peer that was added stays, or comes back before its last request is over.
    pub(crate) fn keep(&self, terms: &Terms, owner: &Owner) {
        self.added_by.set(owner.as_str());
        self.tenancy.stay(terms);
    }

    /// Of a peer that is gone.
    pub(crate) fn forget_marks(&self) {
        self.marks.iter().for_each(Mark::remove);
    }

    fn forget(&self) {
        self.forget_marks();
        for counter in [
            &self.retired_before,
            &self.requests,
            &self.fails,
            &self.broken,
            &self.resumed,
            &self.refused,
            &self.readied,
            &self.forgiven,
        ] {
            counter.store(0, Ordering::Relaxed);
        }
        self.answers.reset();
        self.timing.reset();
        self.absence.reset();
        self.outage.reset();
        self.ramp.reset();
    }
}
