//! What every nginx has of this host's peers, as an app host knows it, and what follows from all of them together. Nothing
//! here speaks to anybody.

use crate::peer::Peer;
use handoff_wire::{
    PeerState, PeerView, Responses, State, UncoveredView, UpstreamView,
    store::{AckPeer, AckValue, Amiss, AmissView, Name},
};
use std::collections::BTreeMap;

/// The edges that are there, and their last words.
#[derive(Clone, Debug, Default)]
pub struct Edges {
    live: BTreeMap<Name, i64>,
    acks: BTreeMap<Name, Ack>,
}

/// Said under a lease: that of another session of the same edge says nothing of this one.
#[derive(Clone, Debug)]
struct Ack {
    lease: i64,
    value: AckValue,
}

/// The unbroken life of a mark in the nginx of one edge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tenure {
    lease: i64,
    instance: String,
    epoch: u64,
}

/// In place of all peers of an upstream that are on other hosts.
pub const ELSEWHERE: &str = "elsewhere";

// === impl Edges ===

impl Edges {
    /// An edge registered, or is gone.
    pub fn hear_edge(&mut self, edge: Name, lease: Option<i64>) {
        match lease {
            Some(lease) => _ = self.live.insert(edge, lease),
            None => _ = self.live.remove(&edge),
        }
    }

    pub fn hear_ack(&mut self, edge: Name, ack: Option<(i64, AckValue)>) {
        match ack {
            Some((lease, value)) => _ = self.acks.insert(edge, Ack { lease, value }),
            None => _ = self.acks.remove(&edge),
        }
    }

    /// What stands in the store now, of all of them.
    pub fn set_live(&mut self, live: BTreeMap<Name, i64>) {
        self.live = live;
    }

    pub fn names(&self) -> impl Iterator<Item = &Name> {
        self.live.keys()
    }

    pub fn is_empty(&self) -> bool {
        self.live.is_empty()
    }

    /// Those that may not have yet what was said at this revision.
    pub fn behind(&self, revision: i64) -> Vec<&Name> {
        let has = |edge: &Name| self.ack(edge).is_some_and(|ack| ack.revision >= revision);
        self.live.keys().filter(|edge| !has(edge)).collect()
    }

    /// What an edge that is there has said in this life.
    pub fn ack(&self, edge: &Name) -> Option<&AckValue> {
        let lease = self.live.get(edge)?;
        self.acks.get(edge).filter(|ack| ack.lease == *lease).map(|ack| &ack.value)
    }

    /// Whether any of those that are there has said something in this life.
    pub fn has_spoken(&self) -> bool {
        self.all().next().is_some()
    }

    fn all(&self) -> impl Iterator<Item = (&Name, &AckValue)> {
        self.live.keys().filter_map(|edge| Some((edge, self.ack(edge)?)))
    }

    /// What edges say of a peer that is not as this host would have it.
    pub fn amiss(&self, peer: &Peer) -> Vec<AmissView> {
        let is_it = |amiss: &&Amiss| (&amiss.upstream, &amiss.address) == (&peer.upstream, &peer.address);
        let amiss =
            self.all().flat_map(|(edge, ack)| ack.amiss.iter().filter(is_it).map(move |it| (edge, it)));
        amiss.map(|(edge, it)| AmissView { edge: edge.clone(), text: it.text.clone() }).collect()
    }

    pub fn uncovered(&self) -> Vec<UncoveredView> {
        self.all().flat_map(|(_, ack)| ack.uncovered.iter().cloned()).collect()
    }

    /// Every edge's view of a peer.
    pub fn of<'a>(&'a self, peer: &'a Peer) -> impl Iterator<Item = (&'a Name, &'a AckValue, &'a AckPeer)> {
        self.all().filter_map(move |(edge, ack)| Some((edge, ack, find(ack, peer)?)))
    }

    pub fn has(&self, peer: &Peer) -> bool {
        self.of(peer).next().is_some()
    }

    pub fn in_flight(&self, peer: &Peer) -> u64 {
        self.of(peer).map(|(_, _, seen)| seen.in_flight).sum()
    }

    /// What a peer is everywhere. `said`: what this host says of it, since this revision. Nobody else begins a request
    /// there only if that is so at every edge; it serves only if it does at every edge.
    pub fn state(&self, peer: &Peer, said: State, revision: i64) -> PeerState {
        let states = self.of(peer).map(|(_, _, seen)| seen.state);
        if said == State::Up {
            states.max_by_key(|state| severity(*state)).unwrap_or(PeerState::Up)
        } else if self.is_empty() || !self.behind(revision).is_empty() {
            PeerState::Up
        } else {
            states.min_by_key(|state| severity(*state)).unwrap_or(said.into())
        }
    }

    /// The life of a mark at every edge that has it.
    pub fn tenures(&self, peer: &Peer, owner: &handoff_wire::Owner) -> BTreeMap<Name, Tenure> {
        let tenures = self.of(peer).filter_map(|(edge, ack, seen)| {
            let mark = seen.marks.iter().find(|mark| mark.owner == *owner)?;
            let lease = *self.live.get(edge)?;
            Some((edge.clone(), Tenure { lease, instance: ack.instance.clone(), epoch: mark.epoch }))
        });
        tenures.collect()
    }

    /// The upstreams with peers of this host, each with the sum of what the edges have. Without marks.
    pub fn upstreams(&self, mut state: impl FnMut(&Peer) -> PeerState) -> Vec<UpstreamView> {
        let mut upstreams = BTreeMap::<&str, UpstreamView>::new();
        for upstream in self.all().flat_map(|(_, ack)| &ack.upstreams) {
            let view = upstreams.entry(&upstream.name).or_insert_with(|| UpstreamView {
                name: upstream.name.clone(),
                peers: Vec::new(),
                queue: upstream.queue.clone(),
                pause: None,
                retry: None,
                slow_start: None,
                slots: None,
            });
            // Who waits, waits at one of them; how long, the least patient says.
            view.queue = match (view.queue.take(), &upstream.queue) {
                (Some(mine), Some(theirs)) if theirs.timeout < mine.timeout => Some(theirs.clone()),
                (Some(mine), Some(_)) => Some(mine),
                _ => None,
            };
            for seen in &upstream.peers {
                let peer = Peer::new(&upstream.name, &seen.address);
                match view.peers.iter_mut().find(|view| view.address == seen.address) {
                    Some(view) => add(view, seen),
                    None => view.peers.push(first(seen, state(&peer))),
                }
            }
            if let Some(elsewhere) = &upstream.elsewhere {
                let state = if elsewhere.serves { PeerState::Up } else { PeerState::Down };
                let seen = AckPeer {
                    address: ELSEWHERE.to_owned(),
                    state,
                    marks: Vec::new(),
                    in_flight: 0,
                    requests: elsewhere.responses.total(),
                    responses: elsewhere.responses,
                    fails: elsewhere.fails,
                    cut: 0,
                    weight: 1,
                    backup: false,
                };
                match view.peers.iter_mut().find(|view| view.address == ELSEWHERE) {
                    Some(view) => {
                        add(view, &seen);
                        // Nobody may be without somebody who serves at any edge.
                        if state == PeerState::Down {
                            view.state = state;
                        }
                    }
                    None => view.peers.push(first(&seen, state)),
                }
            }
        }
        upstreams.into_values().collect()
    }
}

fn find<'a>(ack: &'a AckValue, peer: &Peer) -> Option<&'a AckPeer> {
    let upstream = ack.upstreams.iter().find(|upstream| upstream.name == peer.upstream)?;
    upstream.peers.iter().find(|seen| seen.address == peer.address)
}

fn first(seen: &AckPeer, state: PeerState) -> PeerView {
    PeerView {
        address: seen.address.clone(),
        state,
        marks: Vec::new(),
        in_flight: seen.in_flight,
        requests: seen.requests,
        responses: seen.responses,
        timing: handoff_wire::TimingView::default(),
        fails: seen.fails,
        cut: seen.cut,
        refused: 0,
        outage: handoff_wire::OutageView::default(),
        retired_before: 0,
        configured: true,
        dynamic: false,
        added_by: None,
        weight: seen.weight,
        backup: seen.backup,
        slow_start: None,
    }
}

fn add(view: &mut PeerView, seen: &AckPeer) {
    view.in_flight += seen.in_flight;
    view.requests += seen.requests;
    view.fails += seen.fails;
    view.cut += seen.cut;
    view.backup &= seen.backup;
    let (mine, theirs) = (view.responses, seen.responses);
    view.responses = Responses {
        informational: mine.informational + theirs.informational,
        success: mine.success + theirs.success,
        redirection: mine.redirection + theirs.redirection,
        client_error: mine.client_error + theirs.client_error,
        server_error: mine.server_error + theirs.server_error,
    };
}

/// As marks have it; nginx's own verdict is no mark, and lasts a while.
fn severity(state: PeerState) -> u8 {
    match state {
        PeerState::Up => 0,
        PeerState::Changing => 1,
        PeerState::Trial => 2,
        PeerState::Unavail => 3,
        PeerState::Checking => 4,
        PeerState::Unhealthy => 5,
        PeerState::Draining => 6,
        PeerState::Down => 7,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use handoff_wire::store::{AckMark, AckUpstream, Elsewhere};

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    fn peer() -> Peer {
        Peer::new("shop", "10.0.0.5:3000")
    }

    fn ack(revision: i64, state: PeerState, in_flight: u64) -> AckValue {
        let mark = AckMark { owner: "pm2:app1//a".parse().unwrap(), state: State::Draining, epoch: 7 };
        let peer = AckPeer {
            address: peer().address,
            state,
            marks: vec![mark],
            in_flight,
            requests: 10,
            responses: Responses { success: 9, server_error: 1, ..Responses::default() },
            fails: 1,
            cut: 0,
            weight: 1,
            backup: false,
        };
        let elsewhere = Some(Elsewhere { serves: true, responses: Responses::default(), fails: 0 });
        let upstream = AckUpstream { name: "shop".into(), peers: vec![peer], elsewhere, queue: None };
        AckValue {
            revision,
            instance: "a".into(),
            upstreams: vec![upstream],
            refused: Vec::new(),
            uncovered: Vec::new(),
            amiss: Vec::new(),
        }
    }

    fn two(one: AckValue, other: AckValue) -> Edges {
        let mut edges = Edges::default();
        for (edge, lease, ack) in [("e1", 1, one), ("e2", 2, other)] {
            edges.hear_edge(name(edge), Some(lease));
            edges.hear_ack(name(edge), Some((lease, ack)));
        }
        edges
    }

    #[test]
    fn it_is_drained_when_every_edge_says_so() {
        let mut edges = two(ack(5, PeerState::Draining, 1), ack(4, PeerState::Up, 2));
        assert_eq!(edges.behind(5), [&name("e2")]);
        assert_eq!(edges.state(&peer(), State::Draining, 5), PeerState::Up);
        edges.hear_ack(name("e2"), Some((2, ack(6, PeerState::Draining, 2))));
        assert_eq!(edges.behind(5), Vec::<&Name>::new());
        assert_eq!(edges.state(&peer(), State::Draining, 5), PeerState::Draining);
        assert_eq!(edges.in_flight(&peer()), 3);
    }

    #[test]
    fn nobody_at_all_is_not_everybody() {
        assert_eq!(Edges::default().state(&peer(), State::Draining, 5), PeerState::Up);
    }

    #[test]
    fn it_serves_when_it_does_at_every_edge() {
        let edges = two(ack(5, PeerState::Draining, 0), ack(5, PeerState::Up, 0));
        assert_eq!(edges.state(&peer(), State::Up, 5), PeerState::Draining);
    }

    #[test]
    fn an_edge_that_is_gone_is_not_waited_for() {
        let mut edges = two(ack(5, PeerState::Draining, 0), ack(4, PeerState::Up, 2));
        edges.hear_edge(name("e2"), None);
        assert_eq!(edges.behind(5), Vec::<&Name>::new());
        assert_eq!(edges.in_flight(&peer()), 0);
    }

    #[test]
    fn what_an_edge_said_in_an_earlier_life_does_not_count() {
        let mut edges = two(ack(5, PeerState::Draining, 0), ack(5, PeerState::Draining, 0));
        let owner = "pm2:app1//a".parse().unwrap();
        let before = edges.tenures(&peer(), &owner);
        assert_eq!(before.len(), 2);
        edges.hear_edge(name("e2"), Some(3));
        assert_eq!(edges.behind(5), [&name("e2")]);
        edges.hear_ack(name("e2"), Some((3, ack(5, PeerState::Draining, 0))));
        assert_ne!(edges.tenures(&peer(), &owner), before);
    }

    #[test]
    fn a_view_is_the_sum_of_all() {
        let mut edges = two(ack(5, PeerState::Draining, 1), ack(5, PeerState::Draining, 2));
        let mut view = edges.upstreams(|_| PeerState::Draining);
        let shop = view.pop().unwrap();
        let sums: Vec<_> =
            shop.peers.iter().map(|peer| (&*peer.address, peer.in_flight, peer.requests)).collect();
        assert_eq!(sums, [("10.0.0.5:3000", 3, 20), (ELSEWHERE, 0, 0)]);
        assert_eq!(shop.peers[1].state, PeerState::Up);
        let mut none = ack(6, PeerState::Draining, 0);
        none.upstreams[0].elsewhere.as_mut().unwrap().serves = false;
        edges.hear_ack(name("e1"), Some((1, none)));
        assert_eq!(edges.upstreams(|_| PeerState::Draining)[0].peers[1].state, PeerState::Down);
    }
}
