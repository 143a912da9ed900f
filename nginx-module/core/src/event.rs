//! The recent past, in a ring: old events make room for new ones.

use crate::admission::{decode, encode};
use crate::sync::{AtomicU32, AtomicU64, Ordering};
use crate::text::Text;
use handoff_wire::{Event, EventKind};

/// How many events the zone remembers.
pub const EVENTS: usize = 256;

#[derive(Debug, Default)]
#[repr(C)]
pub struct Entry {
    /// 0 while the entry is empty or being written.
    seq: AtomicU64,
    at: AtomicU64,
    in_flight: AtomicU64,
    kind: AtomicU32,
    from: AtomicU32,
    to: AtomicU32,
    upstream: Text<{ crate::slot::MAX_NAME }>,
    peer: Text<{ crate::slot::MAX_NAME }>,
    owner: Text<64>,
    reason: Text<{ crate::mark::MAX_REASON }>,
}

/// In the order of `EventCounts`.
pub(crate) const KINDS: [EventKind; 7] = [
    EventKind::Mark,
    EventKind::Ready,
    EventKind::Lapse,
    EventKind::Pause,
    EventKind::Resume,
    EventKind::Add,
    EventKind::Remove,
];

/// No state.
const NONE: u32 = u32::MAX;

impl Entry {
    pub(crate) fn write(&self, event: &Event) {
        self.seq.store(0, Ordering::Release);
        self.at.store(event.at, Ordering::Relaxed);
        self.in_flight.store(event.in_flight, Ordering::Relaxed);
        let kind = KINDS.iter().position(|&kind| kind == event.kind).unwrap_or_default();
        self.kind.store(u32::try_from(kind).unwrap_or_default(), Ordering::Relaxed);
        self.from.store(event.from.map_or(NONE, encode), Ordering::Relaxed);
        self.to.store(event.to.map_or(NONE, encode), Ordering::Relaxed);
        self.upstream.set(&event.upstream);
        self.peer.set(&event.peer);
        self.owner.set(event.owner.as_str());
        self.reason.set(&event.reason);
        self.seq.store(event.seq, Ordering::Release);
    }

    pub(crate) fn read(&self) -> Option<Event> {
        let seq = self.seq.load(Ordering::Acquire);
        Some(Event {
            seq: Some(seq).filter(|&seq| seq != 0)?,
            at: self.at.load(Ordering::Relaxed),
            kind: *KINDS.get(self.kind.load(Ordering::Relaxed) as usize)?,
            upstream: self.upstream.get(),
            peer: self.peer.get(),
            owner: self.owner.get().parse().ok()?,
            from: decode(self.from.load(Ordering::Relaxed)),
            to: decode(self.to.load(Ordering::Relaxed)),
            in_flight: self.in_flight.load(Ordering::Relaxed),
            reason: self.reason.get(),
        })
    }
}
