//! What nginx counts, summed up for the old release and for the new one.
//!
//! A peer is the old release's until its worker is replaced, and the new one's from then on. Where all workers share a peer
//! (cluster mode), it is the new one's as soon as the first new process comes: until the last old one is gone, the old
//! release's answers are in that sum too, and a difference shows less than it is. In the end it is counted anew.

use super::traffic::Sample;
use crate::peer::Peer;
use handoff_wire::Upstreams;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Debug, Default)]
pub struct Tally {
    instance: String,
    peers: BTreeMap<Peer, Counted>,
    pub old: Sample,
    pub new: Sample,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counted {
    is_new: bool,
    last: Option<Sample>,
}

// === impl Tally ===

impl Tally {
    pub fn of(peers: impl IntoIterator<Item = Peer>) -> Self {
        let peers = peers.into_iter().map(|peer| (peer, Counted::default())).collect();
        Self { peers, ..Self::default() }
    }

    /// What was answered since the last time belongs to whoever was there then.
    pub fn read(&mut self, upstreams: &Upstreams) {
        // Another nginx counts from the beginning.
        let is_other = !self.instance.is_empty() && self.instance != upstreams.instance;
        self.instance.clone_from(&upstreams.instance);
        for upstream in &upstreams.upstreams {
            for view in &upstream.peers {
                let Some(counted) = self.peers.get_mut(&Peer::new(&upstream.name, &view.address)) else {
                    continue;
                };
                let now = Sample::of(view);
                let last = if is_other { Sample::default() } else { counted.last.unwrap_or(now) };
                let sum = if counted.is_new { &mut self.new } else { &mut self.old };
                sum.add(&now.since(&last));
                counted.last = Some(now);
            }
        }
    }

    /// From now on somebody else serves there. A peer that is new to us is new altogether.
    pub fn are_new(&mut self, peers: &BTreeSet<Peer>) {
        for peer in peers {
            self.peers.entry(peer.clone()).or_default().is_new = true;
        }
    }

    /// All that comes is the new release's, and what came until now says little.
    pub fn begin_anew(&mut self) {
        self.new = Sample::default();
        self.peers.values_mut().for_each(|counted| counted.is_new = true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn upstreams(instance: &str, counts: &[(u64, u64)]) -> Upstreams {
        let peer = |(port, &(good, bad)): (usize, &(u64, u64))| {
            json!({"address": format!("127.0.0.1:{}", port + 1), "state": "up", "marks": [], "in_flight": 0, "requests": 0,
                   "responses": {"1xx": 0, "2xx": good, "3xx": 0, "4xx": 0, "5xx": bad},
                   "fails": 0, "refused": 0, "retired_before": 0, "configured": true, "weight": 1, "backup": false})
        };
        let peers: Vec<_> = counts.iter().enumerate().map(peer).collect();
        let all =
            json!({"instance": instance, "generation": 1, "upstreams": [{"name": "app", "peers": peers}]});
        serde_json::from_value(all).unwrap()
    }

    fn peer(port: u16) -> Peer {
        Peer::new("app", format!("127.0.0.1:{port}"))
    }

    fn sums(tally: &Tally) -> [(u64, u64); 2] {
        [tally.old, tally.new].map(|sample| (sample.answers.errors, sample.answers.all))
    }

    #[test]
    fn each_answer_is_that_of_the_release_that_was_there() {
        let mut tally = Tally::of([peer(1), peer(2)]);
        tally.read(&upstreams("a", &[(100, 7), (100, 0)]));
        assert_eq!(sums(&tally), [(0, 0), (0, 0)], "what was before is nobody's");
        tally.read(&upstreams("a", &[(110, 8), (105, 0)]));
        tally.are_new(&[peer(1)].into());
        tally.read(&upstreams("a", &[(110, 10), (106, 0)]));
        assert_eq!(sums(&tally), [(1, 17), (2, 2)]);
        tally.begin_anew();
        tally.read(&upstreams("a", &[(111, 10), (107, 0)]));
        assert_eq!(sums(&tally), [(1, 17), (0, 2)]);
    }

    #[test]
    fn an_nginx_that_is_new_counts_from_the_beginning() {
        let mut tally = Tally::of([peer(1)]);
        tally.read(&upstreams("a", &[(100, 0)]));
        tally.read(&upstreams("b", &[(5, 1)]));
        assert_eq!(sums(&tally), [(1, 6), (0, 0)]);
    }

    #[test]
    fn a_peer_that_comes_in_between_is_new() {
        let mut tally = Tally::of([peer(1)]);
        tally.read(&upstreams("a", &[(0, 0), (3, 0)]));
        tally.are_new(&[peer(2)].into());
        tally.read(&upstreams("a", &[(1, 0), (3, 0)]));
        tally.read(&upstreams("a", &[(1, 0), (7, 0)]));
        assert_eq!(sums(&tally), [(0, 1), (0, 4)]);
    }
}
