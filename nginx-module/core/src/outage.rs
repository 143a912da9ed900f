//! When a peer could not be given requests though nobody had taken it out: nginx left it out for its failures, its worker was
//! starting, or its health check failed. In the NGINX Plus API this is its downtime.
//!
//! Nothing on the request path counts it: a watch looks at every peer, as often as at the leases. nginx leaves a peer out for
//! a second at least, so none of these is missed; the ends of each are as exact as the watch is frequent.

use crate::control::{Moment, Standing, World};
use crate::sync::{AtomicU64, Ordering};
use crate::table::{SlotId, Table};
use crate::view;
use handoff_wire::{OutageView, PeerState, Span};
use std::collections::HashMap;

/// Written under the control lock.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Outage {
    /// How often nginx left it out.
    unavail: AtomicU64,
    is_unavail: AtomicU64,
    /// Milliseconds of those that are over.
    downtime: AtomicU64,
    /// The beginning of the one that is not, by both clocks. 0: there is none.
    since: AtomicU64,
    downstart: AtomicU64,
}

/// Looks at every peer; one that nginx left out gets its share [little by little](crate::slow_start) when it is taken back. Only a process that serves the running configuration knows how nginx regards them.
pub fn watch<W: World>(table: &Table<'_>, world: &W, now: Moment) {
    let mut standings: HashMap<SlotId, Standing> = HashMap::new();
    for standing in world.upstreams().iter().flat_map(|upstream| world.peers(upstream)) {
        standings.entry(standing.slot).or_insert(standing);
    }
    for (id, slot) in table.ids().filter_map(|id| Some((id, table.slot(id)?))) {
        // One that the configuration does not name gets no requests anyway.
        let state = standings.get(&id).map_or(PeerState::Down, |standing| view::state(slot, Some(standing)));
        slot.outage.look(state, now);
        match state {
            PeerState::Unavail => slot.ramp.replaced(),
            PeerState::Up | PeerState::Changing | PeerState::Trial => slot.ramp.begin(now),
            _ => {}
        }
    }
}

// === impl Outage ===

impl Outage {
    fn look(&self, state: PeerState, now: Moment) {
        let is_unavail = state == PeerState::Unavail;
        if self.is_unavail.swap(is_unavail.into(), Ordering::Relaxed) == 0 && is_unavail {
            self.unavail.fetch_add(1, Ordering::Relaxed);
        }
        let is_out = matches!(state, PeerState::Unavail | PeerState::Checking | PeerState::Unhealthy);
        match (self.since(), is_out) {
            (None, true) => {
                self.downstart.store(now.unix, Ordering::Relaxed);
                self.since.store(now.mono.max(1), Ordering::Relaxed);
            }
            (Some(since), false) => {
                self.since.store(0, Ordering::Relaxed);
                self.downtime.fetch_add(now.mono.saturating_sub(since), Ordering::Relaxed);
            }
            (Some(_), true) | (None, false) => {}
        }
    }

    fn since(&self) -> Option<u64> {
        Some(self.since.load(Ordering::Relaxed)).filter(|&since| since != 0)
    }

    pub fn view(&self, now: Moment) -> OutageView {
        let since = self.since();
        let lasts = since.map_or(0, |since| now.mono.saturating_sub(since));
        OutageView {
            unavail: self.unavail.load(Ordering::Relaxed),
            downtime: Span::from_millis(self.downtime.load(Ordering::Relaxed).saturating_add(lasts)),
            downstart: since.map(|_| self.downstart.load(Ordering::Relaxed)),
        }
    }

    pub(crate) fn reset(&self) {
        for counter in [&self.unavail, &self.is_unavail, &self.downtime, &self.since, &self.downstart] {
            counter.store(0, Ordering::Relaxed);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use handoff_wire::PeerState::*;

    fn at(mono: u64) -> Moment {
        Moment { mono, unix: mono + 5_000_000 }
    }

    #[test]
    fn it_lasts_from_the_first_state_that_keeps_requests_away_unwanted_to_the_next_that_does_not() {
        let outage = Outage::default();
        let looks = [
            (Up, 1000, 0, 0, None),
            (Unavail, 1250, 1, 0, Some(5_001_250)),
            (Unavail, 1500, 1, 250, Some(5_001_250)),
            (Checking, 2000, 1, 750, Some(5_001_250)),
            (Unhealthy, 2250, 1, 1000, Some(5_001_250)),
            (Unavail, 3000, 2, 1750, Some(5_001_250)),
            (Up, 3250, 2, 2000, None),
            (Draining, 9000, 2, 2000, None),
            (Down, 9250, 2, 2000, None),
            (Checking, 9500, 2, 2000, Some(5_009_500)),
            (Trial, 10_000, 2, 2500, None),
            (Changing, 11_000, 2, 2500, None),
        ];
        for (state, now, unavail, downtime, downstart) in looks {
            outage.look(state, at(now));
            let downtime = Span::from_millis(downtime);
            assert_eq!(outage.view(at(now)), OutageView { unavail, downtime, downstart }, "{state} at {now}");
        }
        outage.look(Unavail, at(12_000));
        assert_eq!(outage.view(at(13_000)).downtime, Span::from_millis(3500), "it goes on between two looks");
        outage.reset();
        assert_eq!(outage.view(at(14_000)), OutageView::default());
    }
}
