//! From what peers should be, and what nginx says they are, to what is to be asked of nginx.
//!
//! Nothing here remembers an event: the same wishes and the same view give the same requests, however they came about.

use crate::{mapping::Behind, peer::Peer, worker::Wish};
use handoff_wire::{Ack, Expect, MarkRequest, Owner, PeerState, State, Upstreams};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

/// What nginx has, as far as we know.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    pub instance: String,
    pub generation: u64,
    peers: BTreeMap<Peer, ObservedPeer>,
}

#[derive(Clone, Debug)]
struct ObservedPeer {
    state: PeerState,
    own: Option<OwnMark>,
    is_backup: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct OwnMark {
    state: State,
    expect: Expect,
    reason: String,
    since: Instant,
}

/// A mark of ours that nobody wishes and nobody refutes (we were restarted, and its worker is not there yet) promises a
/// return for so long.
const PATIENCE: Duration = Duration::from_secs(10);
pub const NOBODY: &str = "nobody listens there";
/// In bytes; a longer one is refused.
const MAX_REASON: usize = 128;

impl Observed {
    pub fn new(view: &Upstreams, owner: &Owner, now: Instant) -> Self {
        let mut peers = BTreeMap::new();
        for upstream in &view.upstreams {
            for peer in &upstream.peers {
                let own = peer.marks.iter().find(|mark| mark.owner == *owner).map(|mark| OwnMark {
                    state: mark.state,
                    expect: mark.expect,
                    reason: mark.reason.clone(),
                    since: now.checked_sub(mark.age.duration()).unwrap_or(now),
                });
                // A removed peer matters only as long as it has a mark of ours.
                if peer.configured || own.is_some() {
                    let seen = ObservedPeer { state: peer.state, own, is_backup: peer.backup };
                    peers.insert(Peer::new(&upstream.name, &peer.address), seen);
                }
            }
        }
        Self { instance: view.instance.clone(), generation: view.generation, peers }
    }

    pub fn peers(&self) -> impl Iterator<Item = &Peer> {
        self.peers.keys()
    }

    /// nginx has confirmed that it is so by our own mark.
    pub fn has(&self, peer: &Peer, state: State) -> bool {
        // Many nginx, which are told through a store, have it when the last of them does.
        let keeps = |seen: &ObservedPeer| state.serves() || !seen.state.serves();
        let owns = |seen: &ObservedPeer| seen.own.as_ref().is_some_and(|own| own.state == state);
        self.peers.get(peer).is_some_and(|seen| owns(seen) && keeps(seen))
    }

    /// Whether this mark takes a peer out of service, or puts it back: one may not wait without the other, or for a
    /// moment nobody serves.
    pub fn is_urgent(&self, mark: &MarkRequest) -> bool {
        let peer = Peer::new(mark.upstream.as_deref().unwrap_or_default(), &mark.peer);
        let serves = |seen: &ObservedPeer| seen.own.as_ref().is_none_or(|own| own.state.serves());
        mark.state.serves() || self.peers.get(&peer).is_some_and(serves)
    }

    /// nginx did what it was asked.
    pub fn acknowledge(&mut self, asked: &[MarkRequest], ack: &Ack, now: Instant) {
        self.generation = self.generation.max(ack.generation);
        for request in asked {
            let Some(upstream) = &request.upstream else { continue };
            if let Some(peer) = self.peers.get_mut(&Peer::new(upstream, &request.peer)) {
                let since = peer.own.as_ref().map_or(now, |own| own.since);
                let (state, expect, reason) = (request.state, request.expect, request.reason.clone());
                peer.own = (state != State::Up).then_some(OwnMark { state, expect, reason, since });
            }
        }
        for acked in &ack.marks {
            if let Some(peer) = self.peers.get_mut(&Peer::new(&acked.upstream, &acked.peer)) {
                peer.state = acked.state.into();
            }
        }
    }
}

/// What nginx is to be asked so that every peer is what it should be. Empty: it is.
pub fn plan<'a>(
    wishes: &BTreeMap<Peer, Wish>,
    observed: &Observed,
    behind: impl Fn(&Peer) -> Option<&'a Behind>,
    now: Instant,
) -> Vec<MarkRequest> {
    let trusted = let_serve(wishes, observed);
    let wished = wishes.iter().filter_map(|(peer, wish)| {
        let own = &observed.peers.get(peer)?.own;
        let state = if trusted.contains(peer) { State::Up } else { wish.state };
        let request = request(peer, state, wish.expect, &wish.reason);
        let is_so = match own {
            None => state == State::Up,
            Some(own) => own.is(&request),
        };
        (!is_so).then_some(request)
    });
    let orphans = observed.peers.iter().filter(|(peer, _)| !wishes.contains_key(*peer));
    let orphans = orphans.filter_map(|(peer, seen)| orphan(peer, seen.own.as_ref()?, behind(peer)?, now));
    let mut marks: Vec<MarkRequest> = wished.chain(orphans).collect();
    // nginx does them in this order: who comes back serves before another one goes.
    marks.sort_by_key(|mark| mark.state != State::Up);
    marks
}

/// The workers that are not trusted yet and serve all the same: those that do already, and those without whom nobody
/// would.
fn let_serve<'a>(wishes: &'a BTreeMap<Peer, Wish>, observed: &Observed) -> BTreeSet<&'a Peer> {
    let served: BTreeSet<&str> = observed
        .peers
        .iter()
        .filter(|(peer, seen)| {
            let is_meant_to = wishes.get(*peer).is_none_or(|wish| wish.state.serves());
            is_meant_to && seen.state.serves() && !seen.is_backup
        })
        .map(|(peer, _)| peer.upstream.as_str())
        .collect();
    wishes
        .iter()
        .filter(|(peer, wish)| {
            let serves_already = || observed.peers.get(*peer).is_some_and(|seen| seen.own.is_none());
            wish.is_able && (serves_already() || !served.contains(peer.upstream.as_str()))
        })
        .map(|(peer, _)| peer)
        .collect()
}

/// A mark of ours on a peer of which we know nothing any more.
fn orphan(peer: &Peer, own: &OwnMark, behind: &Behind, now: Instant) -> Option<MarkRequest> {
    match behind {
        Behind::Nobody | Behind::Refused => {
            let is_old = now.saturating_duration_since(own.since) >= PATIENCE;
            let is_told = (own.state, own.expect) == (State::Down, Expect::Gone);
            (is_old && !is_told).then(|| request(peer, State::Down, Expect::Gone, NOBODY))
        }
        Behind::Unclear
        | Behind::Foreign
        | Behind::Worker(_)
        | Behind::Daemon
        | Behind::Several(_)
        | Behind::Stranger => Some(let_go(peer)),
    }
}

impl OwnMark {
    fn is(&self, request: &MarkRequest) -> bool {
        (self.state, self.expect, &self.reason) == (request.state, request.expect, &request.reason)
    }
}

/// Takes our own mark away.
pub fn let_go(peer: &Peer) -> MarkRequest {
    request(peer, State::Up, Expect::Gone, "")
}

fn request(peer: &Peer, state: State, expect: Expect, reason: &str) -> MarkRequest {
    let is_mark = state != State::Up;
    MarkRequest {
        upstream: Some(peer.upstream.clone()),
        peer: peer.address.clone(),
        state,
        // Where no mark is left, there is nothing to expect and nothing to explain.
        expect: if is_mark { expect } else { Expect::Gone },
        reason: if is_mark { one_line(reason) } else { String::new() },
        all: false,
    }
}

/// A reason is one line of bounded length; an app's name may be anything.
fn one_line(reason: &str) -> String {
    let mut line: String = reason.chars().filter(|c| !c.is_control()).collect();
    while line.len() > MAX_REASON {
        line.pop();
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn wish(state: State, is_able: bool) -> Wish {
        Wish { state, expect: Expect::Back, reason: "test".to_owned(), is_able }
    }

    fn asked(wishes: [(&str, Wish); 2]) -> Vec<(String, State)> {
        let owner: Owner = "pm2:test".parse().unwrap();
        let mark = json!({"owner": "pm2:test", "state": "checking", "expect": "back", "reason": "test",
                          "epoch": 1, "age": "1s"});
        let peer = |address: &str, state: &str, marks: &[serde_json::Value]| {
            json!({"address": address, "state": state, "marks": marks, "in_flight": 0, "requests": 0, "fails": 0,
                   "refused": 0, "retired_before": 0, "configured": true, "weight": 1, "backup": false})
        };
        let peers = [peer("old:1", "up", &[]), peer("young:1", "checking", &[mark])];
        let view = json!({"instance": "1", "generation": 1, "upstreams": [{"name": "app", "peers": peers}]});
        let observed = Observed::new(&serde_json::from_value(view).unwrap(), &owner, Instant::now());
        let wishes = wishes.map(|(address, wish)| (Peer::new("app", address), wish)).into();
        let marks = plan(&wishes, &observed, |_| None, Instant::now());
        marks.into_iter().map(|mark| (mark.peer, mark.state)).collect()
    }

    #[test]
    fn who_says_that_it_can_serve_is_believed_before_the_last_one_goes() {
        let asked =
            asked([("old:1", wish(State::Draining, false)), ("young:1", wish(State::Checking, true))]);
        assert_eq!(asked, [("young:1".to_owned(), State::Up), ("old:1".to_owned(), State::Draining)]);
    }

    #[test]
    fn it_waits_to_be_seen_while_somebody_else_serves() {
        let asked = asked([("old:1", wish(State::Up, false)), ("young:1", wish(State::Checking, true))]);
        assert_eq!(asked, []);
    }
}
