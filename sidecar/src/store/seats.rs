//! Which peers an nginx shall have because app hosts bring them, and what is to be done for it. Nothing here speaks to anybody.
//!
//! A peer is added when nothing is said against it: one that is being drained would serve for the moment until its mark is
//! there, and its host, which was answered before nginx had it, may stop it in that moment. What was added for a host is taken
//! away when nobody brings it any more, and nothing else ever is: nginx knows who added what.

use super::{
    mirror::{Mirror, Seat},
    said::Brought,
};
use crate::peer::Peer;
use handoff_wire::{
    Code, Owner, PeerAdd, PeerRemove, Refusal,
    store::{Amiss, Member, Name, bringer},
};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug, Default)]
pub struct Seats {
    brought: BTreeMap<Peer, Brought>,
    /// With which terms nginx was told of a peer.
    told: BTreeMap<Peer, Member>,
    amiss: BTreeMap<Peer, Problem>,
    /// Hosts whose peers are not all as they should be yet.
    behind: BTreeSet<Name>,
    is_due: bool,
    has_waiting: bool,
}

/// One command to nginx.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    Add { peer: Peer, host: Name, add: PeerAdd },
    Remove { peer: Peer, host: Option<Name>, remove: PeerRemove },
}

/// Why a peer is not as its host would have it. What it says is for an operator.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Problem {
    host: Option<Name>,
    text: String,
    /// Nobody need do anything about it.
    is_fine: bool,
}

/// So many commands at a time: others wait for nginx, and for us.
const AT_ONCE: usize = 64;

// === impl Seats ===

impl Seats {
    /// Other peers are brought than before, or what nginx has may be something else.
    pub fn bring(&mut self, brought: BTreeMap<Peer, Brought>) {
        self.brought = brought;
        self.is_due = true;
    }

    pub fn look_again(&mut self) {
        self.is_due = true;
    }

    /// It is another nginx, or we are new: what it was told is not known.
    pub fn forget(&mut self) {
        self.told.clear();
        self.is_due = true;
    }

    /// Whether there is something to be done now. `is_beat`: what did not go well is tried again.
    pub fn is_due(&self, is_beat: bool) -> bool {
        self.is_due || self.has_waiting || (is_beat && !self.amiss.is_empty())
    }

    pub fn is_behind(&self) -> bool {
        !self.behind.is_empty()
    }

    /// Its peers are not all there yet, or not all gone.
    pub fn is_behind_for(&self, host: &Name) -> bool {
        self.behind.contains(host)
    }

    /// What is to be done next. `may_serve`: nothing is said against it.
    pub fn steps(&mut self, mirror: &Mirror, may_serve: impl Fn(&Peer) -> bool) -> Vec<Step> {
        (self.is_due, self.has_waiting) = (false, false);
        let before = std::mem::take(&mut self.amiss);
        let (mut steps, mut leaving) = (Vec::new(), BTreeMap::<String, u32>::new());
        for (peer, owner) in mirror.seated() {
            if !self.brought.contains_key(&peer) {
                let host = host_of(owner);
                let by = host.as_ref().map_or_else(|| owner.to_string(), Name::to_string);
                let remove = PeerRemove {
                    owner: owner.clone(),
                    reason: format!("{by} brings it no longer"),
                    force: false,
                };
                *leaving.entry(peer.upstream.clone()).or_default() += 1;
                steps.push(Step::Remove { peer, host, remove });
            }
        }
        self.told.retain(|peer, _| self.brought.contains_key(peer));
        let mut free = BTreeMap::<&str, u32>::new();
        for (peer, brought) in &self.brought {
            let Brought { host, member, also } = brought;
            let Some(owner) = bringer(host) else { continue };
            let add = |owner| Step::Add {
                peer: peer.clone(),
                host: host.clone(),
                add: member.add(owner, format!("{host} brings it")),
            };
            let problem = match mirror.seat(peer) {
                Seat::Ours(_) if self.told.get(peer) == Some(member) => None,
                Seat::Ours(_) => {
                    steps.push(add(owner));
                    None
                }
                Seat::Free(slots) => {
                    let leaving = leaving.get(&peer.upstream).copied().unwrap_or_default();
                    let room = (slots.max + leaving).saturating_sub(slots.taken + slots.leaving);
                    let free = free.entry(&peer.upstream).or_insert(room);
                    if !may_serve(peer) {
                        self.has_waiting = true;
                        None
                    } else if *free == 0 {
                        Some(Problem::of(host, full(peer, host, slots.max)))
                    } else {
                        *free -= 1;
                        steps.push(add(owner));
                        None
                    }
                }
                Seat::NoSlots => Some(Problem::of(host, no_slots(peer, host))),
                Seat::NoUpstream => Some(Problem::fine(
                    host,
                    format!("nginx has no upstream {:?} for {}", peer.upstream, peer.address),
                )),
                Seat::Configured => Some(Problem::fine(
                    host,
                    format!(
                        "nginx.conf names {peer}: it is not added for {host}, and stays when {host} leaves"
                    ),
                )),
                Seat::Foreign(by) => Some(Problem::of(host, foreign(peer, host, by))),
            };
            let claims = (!also.is_empty()).then(|| Problem::of(host, claimed(peer, host, also)));
            if let Some(problem) = problem.or(claims) {
                self.amiss.insert(peer.clone(), problem);
            }
        }
        // What nginx refused is refused until it says otherwise, now that it is asked again.
        for step in &steps {
            if let Some(problem) = before.get(step.peer()) {
                self.amiss.insert(step.peer().clone(), problem.clone());
            }
        }
        self.behind = steps.iter().skip(AT_ONCE).filter_map(|step| step.host().cloned()).collect();
        self.is_due = self.is_behind();
        steps.truncate(AT_ONCE);
        steps
    }

    /// nginx did it.
    pub fn done(&mut self, step: &Step) {
        self.amiss.remove(step.peer());
        match step {
            Step::Add { peer, .. } => {
                let Some(Brought { host, member, also }) = self.brought.get(peer) else { return };
                self.told.insert(peer.clone(), member.clone());
                if !also.is_empty() {
                    self.amiss.insert(peer.clone(), Problem::of(host, claimed(peer, host, also)));
                }
            }
            Step::Remove { peer, .. } => _ = self.told.remove(peer),
        }
    }

    /// nginx did not: it is asked again, each second.
    pub fn refused(&mut self, step: &Step, refusal: &Refusal) {
        let peer = step.peer();
        let text = match (step, refusal.code) {
            // It is gone, as it should be.
            (Step::Remove { .. }, Code::PeerNotFound | Code::UpstreamNotFound | Code::Configured) => {
                return self.done(step);
            }
            (Step::Remove { remove, .. }, Code::Floor) => {
                format!("{peer} stays, though {}: nobody would be left", remove.reason)
            }
            (Step::Remove { .. }, _) => format!("{peer} was not taken away: {}", refusal.text),
            (Step::Add { host, .. }, _) => format!("{peer} was not added for {host}: {}", refusal.text),
        };
        self.amiss.insert(peer.clone(), Problem { host: step.host().cloned(), text, is_fine: false });
    }

    /// What is not as a host would have it.
    pub fn amiss_of(&self, host: &Name) -> Vec<Amiss> {
        let its = self.amiss.iter().filter(|(peer, problem)| {
            let claims = || self.brought.get(peer).is_some_and(|brought| brought.also.contains(host));
            problem.host.as_ref() == Some(host) || claims()
        });
        let amiss = its.map(|(peer, problem)| Amiss {
            upstream: peer.upstream.clone(),
            address: peer.address.clone(),
            text: problem.text.clone(),
        });
        amiss.collect()
    }

    /// Everything that somebody should do something about (true), or know.
    pub fn amiss(&self) -> impl Iterator<Item = (&Peer, &str, bool)> {
        self.amiss.iter().map(|(peer, problem)| (peer, problem.text.as_str(), !problem.is_fine))
    }
}

// === impl Step ===

impl Step {
    pub fn peer(&self) -> &Peer {
        match self {
            Self::Add { peer, .. } | Self::Remove { peer, .. } => peer,
        }
    }

    pub fn host(&self) -> Option<&Name> {
        match self {
            Self::Add { host, .. } => Some(host),
            Self::Remove { host, .. } => host.as_ref(),
        }
    }
}

// === impl Problem ===

impl Problem {
    fn of(host: &Name, text: String) -> Self {
        Self { host: Some(host.clone()), text, is_fine: false }
    }

    fn fine(host: &Name, text: String) -> Self {
        Self { is_fine: true, ..Self::of(host, text) }
    }
}

fn host_of(owner: &Owner) -> Option<Name> {
    let (_, name) = owner.as_str().split_once(':')?;
    name.split_once('/')?.0.parse().ok()
}

fn full(peer: &Peer, host: &Name, max: u32) -> String {
    format!(
        "{peer} was not added for {host}: all {max} slots are taken. Say more in \"handoff_slots\" and reload nginx"
    )
}

fn no_slots(peer: &Peer, host: &Name) -> String {
    format!(
        "{peer} was not added for {host}: the upstream has no slots. Say \"handoff_slots 8;\" in it and reload nginx, or name \
         the peer there"
    )
}

fn foreign(peer: &Peer, host: &Name, by: Option<&Owner>) -> String {
    let by = by.map_or_else(|| "somebody".to_owned(), Owner::to_string);
    format!("{peer} was added by {by}, not for {host}: it stays when {host} leaves")
}

fn claimed(peer: &Peer, host: &Name, also: &[Name]) -> String {
    let also: Vec<&str> = also.iter().map(Name::as_str).collect();
    format!(
        "{peer} is brought by {host} and by {}: whose is it? It stays until all of them let go of it",
        also.join(" and ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    fn peer(port: u16) -> Peer {
        Peer::new("shop", format!("10.0.0.5:{port}"))
    }

    fn brought(ports: &[u16]) -> BTreeMap<Peer, Brought> {
        let brought = ports.iter().map(|port| {
            let member = json!({"upstream": "shop", "address": peer(*port).address});
            let member = serde_json::from_value(member).unwrap();
            (peer(*port), Brought { host: name("app1"), member, also: Vec::new() })
        });
        brought.collect()
    }

    /// Who added each; an empty word: nginx.conf names it.
    fn mirror(slots: u32, peers: &[(u16, &str)]) -> Mirror {
        let views = peers.iter().map(|(port, by)| {
            let mut view = json!({"address": peer(*port).address, "state": "up", "marks": [], "in_flight": 0, "requests": 0,
                "fails": 0, "refused": 0, "retired_before": 0, "configured": true, "weight": 1, "backup": false});
            if !by.is_empty() {
                view["dynamic"] = true.into();
                view["added_by"] = (*by).into();
            }
            view
        });
        let taken = peers.iter().filter(|(_, by)| !by.is_empty()).count();
        let slots = json!({"max": slots, "taken": taken, "leaving": 0, "refused": 0});
        Mirror::of_views(json!([{"name": "shop", "peers": views.collect::<Vec<_>>(), "slots": slots}]))
    }

    fn what(steps: &[Step]) -> Vec<String> {
        let word = |step: &Step| match step {
            Step::Add { peer, add, .. } => format!("add {} by {}", peer.address, add.owner),
            Step::Remove { peer, .. } => format!("remove {}", peer.address),
        };
        steps.iter().map(word).collect()
    }

    fn steps(seats: &mut Seats, mirror: &Mirror) -> Vec<Step> {
        seats.steps(mirror, |_| true)
    }

    fn amiss(seats: &Seats) -> Vec<String> {
        seats.amiss_of(&name("app1")).into_iter().map(|amiss| amiss.text).collect()
    }

    #[test]
    fn what_is_brought_is_added_once_and_taken_away_when_nobody_brings_it() {
        let mut seats = Seats::default();
        seats.bring(brought(&[1, 2]));
        let all = steps(&mut seats, &mirror(8, &[]));
        assert_eq!(
            what(&all),
            ["add 10.0.0.5:1 by rollout:app1/store", "add 10.0.0.5:2 by rollout:app1/store"]
        );
        all.iter().for_each(|step| seats.done(step));
        let there = mirror(8, &[(1, "rollout:app1/store"), (2, "rollout:app1/store"), (9, "operator")]);
        seats.look_again();
        assert!(steps(&mut seats, &there).is_empty() && !seats.is_due(true));
        seats.bring(brought(&[2]));
        assert_eq!(what(&steps(&mut seats, &there)), ["remove 10.0.0.5:1"]);
        // Another process, to which nothing was told: nginx knows whose they are.
        let mut anew = Seats::default();
        anew.bring(brought(&[2]));
        assert_eq!(
            what(&steps(&mut anew, &there)),
            ["remove 10.0.0.5:1", "add 10.0.0.5:2 by rollout:app1/store"]
        );
    }

    #[test]
    fn other_terms_are_told() {
        let mut seats = Seats::default();
        seats.bring(brought(&[1]));
        steps(&mut seats, &mirror(8, &[])).iter().for_each(|step| seats.done(step));
        let there = mirror(8, &[(1, "rollout:app1/store")]);
        let mut heavy = brought(&[1]);
        heavy.values_mut().for_each(|brought| brought.member.weight = 3);
        seats.bring(heavy);
        let all = steps(&mut seats, &there);
        assert!(matches!(&all[..], [Step::Add { add, .. }] if add.weight == 3), "{all:?}");
    }

    #[test]
    fn nothing_is_added_against_which_something_is_said() {
        let mut seats = Seats::default();
        seats.bring(brought(&[1, 2]));
        let all = seats.steps(&mirror(8, &[]), |marked| *marked != peer(1));
        assert_eq!(what(&all), ["add 10.0.0.5:2 by rollout:app1/store"]);
        assert!(seats.is_due(false), "it is looked at again at once");
        // One that is there stays, whatever is said.
        let all = seats.steps(&mirror(8, &[(1, "rollout:app1/store")]), |_| false);
        assert_eq!(what(&all), ["add 10.0.0.5:1 by rollout:app1/store"]);
    }

    #[test]
    fn nobody_touches_what_others_added_or_nginx_conf_names() {
        let mut seats = Seats::default();
        seats.bring(brought(&[1, 2]));
        let there = mirror(8, &[(1, ""), (2, "operator"), (3, "operator"), (4, "")]);
        assert!(steps(&mut seats, &there).is_empty());
        let said = amiss(&seats);
        assert!(
            said[0].contains("nginx.conf names") && said[1].contains("was added by operator"),
            "{said:?}"
        );
        let wrong: Vec<bool> = seats.amiss().map(|(.., is_wrong)| is_wrong).collect();
        assert_eq!(wrong, [false, true]);
        seats.bring(BTreeMap::new());
        assert!(steps(&mut seats, &there).is_empty());
    }

    #[test]
    fn no_more_is_asked_for_than_there_are_slots() {
        let mut seats = Seats::default();
        seats.bring(brought(&[1, 2, 3]));
        let all = steps(&mut seats, &mirror(2, &[(9, "operator")]));
        assert_eq!(what(&all), ["add 10.0.0.5:1 by rollout:app1/store"]);
        assert_eq!(amiss(&seats).iter().filter(|text| text.contains("all 2 slots are taken")).count(), 2);
        assert!(seats.is_due(true) && !seats.is_due(false), "it is tried again, each second");
        // Whoever goes makes room.
        let all = steps(&mut seats, &mirror(2, &[(9, "operator"), (8, "rollout:app2/store")]));
        assert_eq!(what(&all), ["remove 10.0.0.5:8", "add 10.0.0.5:1 by rollout:app1/store"]);
    }

    #[test]
    fn what_nginx_refuses_is_said_and_tried_again() {
        let mut seats = Seats::default();
        seats.bring(BTreeMap::new());
        let there = mirror(8, &[(1, "rollout:app1/store")]);
        let all = steps(&mut seats, &there);
        seats.refused(&all[0], &Code::Floor.says("nobody would be left"));
        assert_eq!(
            amiss(&seats),
            ["10.0.0.5:1 in shop stays, though app1 brings it no longer: nobody would be left"]
        );
        let again = steps(&mut seats, &there);
        assert_eq!((again.len(), amiss(&seats).len()), (1, 1), "it is so until nginx says otherwise");
        seats.done(&again[0]);
        assert!(amiss(&seats).is_empty());
        // Somebody was first.
        seats.refused(&all[0], &Code::PeerNotFound.says("no such peer"));
        assert!(amiss(&seats).is_empty());
    }

    #[test]
    fn many_come_by_and_by_and_their_hosts_wait() {
        let mut seats = Seats::default();
        let ports: Vec<u16> = (1..=100).collect();
        seats.bring(brought(&ports));
        assert_eq!(steps(&mut seats, &mirror(512, &[])).len(), AT_ONCE);
        assert!(seats.is_behind_for(&name("app1")) && seats.is_due(false));
        let there: Vec<(u16, &str)> = ports.iter().map(|port| (*port, "rollout:app1/store")).collect();
        ports.iter().for_each(|port| {
            _ = seats.told.insert(peer(*port), brought(&[*port])[&peer(*port)].member.clone())
        });
        assert!(steps(&mut seats, &mirror(512, &there)).is_empty() && !seats.is_behind());
    }

    #[test]
    fn a_peer_of_two_hosts_is_added_and_said() {
        let mut seats = Seats::default();
        let mut two = brought(&[1]);
        two.values_mut().for_each(|brought| brought.also.push(name("app2")));
        seats.bring(two);
        let all = steps(&mut seats, &mirror(8, &[]));
        assert_eq!(what(&all), ["add 10.0.0.5:1 by rollout:app1/store"]);
        seats.done(&all[0]);
        for host in ["app1", "app2"] {
            let said = seats.amiss_of(&name(host));
            assert!(said[0].text.contains("is brought by app1 and by app2"), "{said:?}");
        }
    }
}
