//! Ports to spare: peers beside those of workers on which nobody has listened for a while. While such a peer seems to be up
//! nobody would wait for a worker that comes back.

use crate::{mapping::Behind, peer::Peer, reconcile::NOBODY, worker::Wish};
use handoff_wire::{Expect, State};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

#[derive(Debug, Default)]
pub struct Spares {
    /// Since when a connection is refused there, as far as full looks knew.
    deserted: BTreeMap<Peer, Instant>,
    spares: BTreeSet<Peer>,
}

/// Whoever listened there may only be replaced, by somebody whom we do not know.
const DESERTED: Duration = Duration::from_secs(10);

impl Spares {
    pub fn look(&mut self, behind: &BTreeMap<Peer, Behind>, now: Instant) {
        let is_deserted = |peer: &Peer| behind.get(peer) == Some(&Behind::Refused);
        self.deserted.retain(|peer, _| is_deserted(peer));
        for peer in behind.keys().filter(|peer| is_deserted(peer)) {
            self.deserted.entry(peer.clone()).or_insert(now);
        }
    }

    /// `doubtful`: those that may be to spare.
    pub fn tick(&mut self, doubtful: BTreeSet<Peer>, now: Instant) {
        let is_old = |since: &Instant| now.saturating_duration_since(*since) >= DESERTED;
        self.spares = doubtful;
        self.spares.retain(|peer| self.deserted.get(peer).is_some_and(is_old));
    }

    /// What each of them should be.
    pub fn wishes(&self) -> impl Iterator<Item = (Peer, Wish)> {
        let wish =
            || Wish { state: State::Down, expect: Expect::Gone, reason: NOBODY.to_owned(), is_able: false };
        self.spares.iter().map(move |peer| (peer.clone(), wish()))
    }
}
