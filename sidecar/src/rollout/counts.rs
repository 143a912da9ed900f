//! What nginx has counted of some peers, and what of it the end of a process cost.

use handoff_wire::PeerView;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub in_flight: u64,
    cut: u64,
    /// WebSockets that are closed.
    upgraded: u64,
}

// === impl Counts ===

impl Counts {
    pub fn of(peers: &[PeerView]) -> Self {
        let sum = |count: fn(&PeerView) -> u64| peers.iter().map(count).sum();
        Self {
            in_flight: sum(|peer| peer.in_flight),
            cut: sum(|peer| peer.cut),
            upgraded: sum(|peer| peer.responses.informational),
        }
    }

    /// Requests that broke off.
    pub fn cut_since(self, before: Self) -> u64 {
        self.cut.saturating_sub(before.cut)
    }

    /// WebSockets that were closed, by whomever.
    pub fn closed_since(self, before: Self) -> u64 {
        self.upgraded.saturating_sub(before.upgraded)
    }
}
