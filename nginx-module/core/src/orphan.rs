//! Connections that lead to nobody, in a ring that every nginx process reads.
//!
//! In cluster mode PM2's daemon accepts a connection and gives it to a worker. If that one dies at this moment, the daemon
//! keeps the connection, unread and unanswered, for as long as the client does. Only somebody who looks at both ends can
//! tell it from a slow one.

use crate::sync::{AtomicU64, Ordering};
use crate::table::SlotId;

/// How many are remembered; who reports them does so until they are gone.
pub const ORPHANS: usize = 64;

#[derive(Debug)]
#[repr(C)]
pub struct Orphans {
    told: AtomicU64,
    ring: [AtomicU64; ORPHANS],
}

/// One connection of nginx's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Orphan {
    pub peer: SlotId,
    /// nginx's own end.
    pub port: u16,
}

impl Default for Orphans {
    fn default() -> Self {
        Self { told: AtomicU64::default(), ring: std::array::from_fn(|_| AtomicU64::default()) }
    }
}

// === impl Orphans ===

impl Orphans {
    pub(crate) fn tell(&self, orphan: Orphan) {
        let told = self.told.load(Ordering::Relaxed);
        if let Some(place) = self.place(told) {
            place.store(orphan.encode(), Ordering::Relaxed);
        }
        // After the entry: whoever sees the number sees that too.
        self.told.store(told.wrapping_add(1), Ordering::Release);
    }

    /// How many were told of so far.
    pub fn told(&self) -> u64 {
        self.told.load(Ordering::Acquire)
    }

    /// Those that were told of after the first `seen`, as far as they are remembered.
    pub fn since(&self, seen: u64) -> impl Iterator<Item = Orphan> {
        let told = self.told();
        let oldest = told.saturating_sub(ORPHANS as u64);
        let places = (seen.max(oldest)..told).filter_map(|number| self.place(number));
        places.map(|place| Orphan::decode(place.load(Ordering::Relaxed)))
    }

    fn place(&self, number: u64) -> Option<&AtomicU64> {
        self.ring.get(usize::try_from(number).ok()? % ORPHANS)
    }
}

// === impl Orphan ===

impl Orphan {
    fn encode(self) -> u64 {
        u64::from(self.peer.number()) << 16 | u64::from(self.port)
    }

    fn decode(code: u64) -> Self {
        let [.., high, low] = code.to_be_bytes();
        let peer = SlotId::of(u32::try_from(code >> 16).unwrap_or(u32::MAX));
        Self { peer, port: u16::from_be_bytes([high, low]) }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn orphan(port: u16) -> Orphan {
        Orphan { peer: SlotId::of(u32::from(port) + 70_000), port }
    }

    #[test]
    fn whoever_looks_sees_what_is_new_to_him() {
        let orphans = Orphans::default();
        assert_eq!((orphans.told(), orphans.since(0).count()), (0, 0));
        orphans.tell(orphan(1));
        orphans.tell(orphan(65_535));
        assert_eq!(orphans.since(0).collect::<Vec<_>>(), [orphan(1), orphan(65_535)]);
        assert_eq!(orphans.since(1).collect::<Vec<_>>(), [orphan(65_535)]);
        assert_eq!(orphans.since(orphans.told()).count(), 0);
    }

    #[test]
    fn the_oldest_make_room() {
        let orphans = Orphans::default();
        (1..=100).for_each(|port| orphans.tell(orphan(port)));
        let seen: Vec<Orphan> = orphans.since(0).collect();
        assert_eq!((seen.len(), seen.first(), seen.last()), (ORPHANS, Some(&orphan(37)), Some(&orphan(100))));
    }
}
