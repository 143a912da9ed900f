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
