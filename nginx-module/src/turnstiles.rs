//! From the address that a balancer chose to the turnstile of its peer.
//!
//! Where nginx's lists keep the address of a peer it stays for as long as the cycle does, so a pointer tells who it is: one
//! multiplication and, mostly, one comparison. A map for any key needs three times as many instructions.

use handoff_core::Turnstile;
use handoff_core::table::SlotId;
use rustc_hash::FxHashMap;
use std::ptr;

/// Those of one upstream, in one process.
pub(crate) struct Turnstiles {
    /// A power of two of them, twice as many as there are peers at least. Whoever finds a place taken has the next one.
    places: Box<[Place]>,
    mask: usize,
    /// All of the upstream's, for the peers that nginx keeps elsewhere.
    all: FxHashMap<SlotId, Turnstile<'static>>,
}

/// A vacant one is nobody's: no peer is at null.
struct Place {
    at: *const libc::sockaddr,
    turnstile: Option<Turnstile<'static>>,
}

/// Its upper bits depend on all bits of what it is multiplied with.
const SPREAD: usize = 0x9e37_79b9_7f4a_7c15;

// === impl Turnstiles ===

impl Turnstiles {
    pub(crate) fn new(
        listed: &[(*const libc::sockaddr, Turnstile<'static>)],
        all: impl Iterator<Item = Turnstile<'static>>,
    ) -> Self {
        let count = listed.len().saturating_mul(2).max(2).next_power_of_two();
        let places = (0..count).map(|_| Place { at: ptr::null(), turnstile: None });
        let mut turnstiles = Self {
            places: places.collect(),
            mask: count.wrapping_sub(1),
            all: all.map(|turnstile| (turnstile.id, turnstile)).collect(),
        };
        for &(at, turnstile) in listed {
            let place = turnstiles.seek(at);
            if let Some(place) = turnstiles.places.get_mut(place) {
                *place = Place { at, turnstile: Some(turnstile) };
            }
        }
        turnstiles
    }

    #[inline]
    pub(crate) fn at(&self, at: *const libc::sockaddr) -> Option<&Turnstile<'static>> {
        let place = self.places.get(self.home(at))?;
        let place = if place.at == at { place } else { self.neighbour(at)? };
        place.turnstile.as_ref()
    }

    #[cold]
    fn neighbour(&self, at: *const libc::sockaddr) -> Option<&Place> {
        self.places.get(self.seek(at)).filter(|place| place.at == at)
    }

    #[cold]
    pub(crate) fn of(&self, id: SlotId) -> Option<&Turnstile<'static>> {
        self.all.get(&id)
    }

    /// The place of this address, or the vacant one that would be its. Half of them are vacant.
    fn seek(&self, at: *const libc::sockaddr) -> usize {
        let mut number = self.home(at);
        while self.places.get(number).is_some_and(|place| place.at != at && !place.at.is_null()) {
            number = number.wrapping_add(1) & self.mask;
        }
        number
    }

    #[inline]
    fn home(&self, at: *const libc::sockaddr) -> usize {
        (at as usize).wrapping_mul(SPREAD) >> (usize::BITS / 2) & self.mask
    }
}
