//! How nginx's requests stand: looked at for those who wait for their end, and for roll-outs that watch how users are answered.

use super::{COUNTS, Edge, Nginx};
use crate::{control::ControlError, peer::Peer};
use handoff_wire::OwnerKind;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

/// So long after its last mark a roll-out still looks at the answers.
const WATCHED: Duration = Duration::from_secs(5);

impl Edge {
    /// Looks at the peers for which somebody waits.
    pub(super) async fn look(&mut self) {
        let result = self.look_at_peers().await;
        self.met(result);
    }

    async fn look_at_peers(&mut self) -> Result<(), ControlError> {
        if self.nginx != Nginx::Answers {
            return Ok(());
        }
        let now = Instant::now();
        self.watched.retain(|_, until| *until > now);
        let rollouts = self.told.keys().filter(|(_, owner)| owner.kind() == OwnerKind::Rollout);
        let marked: BTreeSet<&Peer> = rollouts.map(|(peer, _)| peer).collect();
        let mut is_due = now.duration_since(self.looked) >= COUNTS;
        for peer in &marked {
            for host in self.mirror.hosts(peer, &self.said) {
                is_due |= self.watched.insert(host, now + WATCHED).is_none();
            }
        }
        let waited: Vec<Peer> = self.told.keys().map(|(peer, _)| peer.clone()).collect();
        let waited = waited.into_iter().filter(|peer| self.mirror.in_flight(peer) > 0);
        let mut peers: BTreeSet<Peer> = waited.collect();
        if is_due {
            self.looked = now;
            for host in self.watched.keys() {
                peers.extend(self.mirror.peers(self.said.addresses(host)));
            }
        }
        let upstreams: BTreeSet<String> = match is_due && !self.watched.is_empty() {
            false => BTreeSet::new(),
            true => peers.iter().map(|peer| peer.upstream.clone()).collect(),
        };
        let before: BTreeMap<&Peer, u64> =
            peers.iter().map(|peer| (peer, self.mirror.in_flight(peer))).collect();
        let changed = self.mirror.look_at(&mut self.control, &peers).await?;
        for (peer, was) in before {
            let is_other = changed.contains(peer);
            let has_ended = was > 0 && self.mirror.in_flight(peer) == 0;
            let hosts = self.mirror.hosts(peer, &self.said);
            if has_ended {
                self.due.extend(hosts);
            } else if is_other {
                self.stale.extend(hosts);
            }
        }
        for upstream in &upstreams {
            self.mirror.look_elsewhere(&mut self.control, upstream).await?;
        }
        Ok(())
    }
}
