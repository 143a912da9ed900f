//! The rules, as simply as they can be said: maps and loops, nothing shared, nothing atomic.

use crate::run::QUEUE;
use handoff_core::mark::MAX_REASON;
use handoff_core::slot::MARKS;
use handoff_wire::State::Up;
use handoff_wire::{Code, Expect, MarkRequest, MarkSet, Renew, State};
use std::collections::{BTreeMap, BTreeSet};

/// Upstream and address.
pub type Key = (String, String);

#[derive(Clone, Debug, PartialEq)]
pub struct Mark {
    pub state: State,
    pub expect: Expect,
    pub reason: String,
    /// 0: just begun, and to be learnt.
    pub epoch: u64,
    /// Milliseconds.
    pub lease: Option<u64>,
    pub renewed: u64,
    pub begun: u64,
    pub planned: bool,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Peer {
    pub marks: BTreeMap<String, Mark>,
    pub retired_before: u64,
    pub readied: u64,
    /// When a request found nobody there, until one is answered or somebody else is behind it.
    pub missed: Option<u64>,
}

#[derive(Clone, Copy, Debug)]
pub struct Standing {
    pub backup: bool,
    pub available: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Pause {
    pub owner: String,
    pub reason: String,
    pub begun: u64,
    pub until: u64,
    /// Its end, if it ended by itself.
    pub told: bool,
}

#[derive(Clone, Debug, Default)]
pub struct Model {
    pub peers: BTreeMap<Key, Peer>,
    /// By upstream; those that ended by themselves until somebody resumes them.
    pub pauses: BTreeMap<String, Pause>,
    /// The running configuration.
    pub standings: BTreeMap<Key, Standing>,
    pub epochs: u64,
}

/// A gate that may have turned, and how many marks changed for it.
#[derive(Clone, Debug)]
pub struct Turn {
    pub key: Key,
    pub from: State,
    pub to: State,
    pub changes: usize,
    pub forgives: bool,
}

impl Turn {
    /// Whether it lets somebody in who was refused before.
    pub fn opens(&self) -> bool {
        self.to < self.from && matches!(self.to, Up | State::Changing | State::Trial)
    }

    /// Whether connections that were opened before are not used again.
    pub fn retires(&self) -> bool {
        self.opens() || (self.from == Up && self.to != Up)
    }
}

impl Peer {
    pub fn state(&self) -> State {
        self.marks.values().map(|mark| mark.state).max().unwrap_or(Up)
    }
}

impl Model {
    pub fn upstreams(&self) -> BTreeSet<&str> {
        self.standings.keys().map(|(upstream, _)| upstream.as_str()).collect()
    }

    /// The peers of an upstream that could serve now.
    pub fn serving(&self, upstream: &str, backups: bool) -> BTreeSet<&Key> {
        let could = |(key, standing): &(&Key, &Standing)| {
            key.0 == upstream
                && standing.available
                && (backups || !standing.backup)
                && matches!(self.peers[*key].state(), Up | State::Changing)
        };
        self.standings.iter().filter(could).map(|(key, _)| key).collect()
    }

    pub fn resolve(&self, request: &MarkRequest) -> Result<Vec<Key>, Code> {
        let is_it = |key: &&Key| {
            key.1 == request.peer && request.upstream.as_ref().is_none_or(|upstream| *upstream == key.0)
        };
        let keys: Vec<Key> = self.peers.keys().filter(is_it).cloned().collect();
        match &request.upstream {
            Some(upstream) if !self.peers.keys().any(|key| key.0 == *upstream) => Err(Code::UpstreamNotFound),
            _ if keys.is_empty() => Err(Code::PeerNotFound),
            _ => Ok(keys),
        }
    }

    /// Everything that is wrong with a command. It must be refused for one of these, or done.
    pub fn wrongs(&self, set: &MarkSet) -> Vec<Code> {
        let mut wrongs = Vec::new();
        if !is_lease(set.lease) || set.marks.is_empty() || set.marks.len() > 256 {
            wrongs.push(Code::BadRequest);
        }
        let mut named = Vec::new();
        let (mut leaving, mut returning) = (BTreeSet::new(), BTreeSet::new());
        for request in &set.marks {
            let odd = request.reason.len() > MAX_REASON
                || request.reason.contains('\n')
                || (request.all && request.state != Up)
                || (request.expect == Expect::Back && request.state == Up);
            if odd {
                wrongs.push(Code::BadRequest);
            }
            match self.resolve(request) {
                Err(code) => wrongs.push(code),
                Ok(keys) => {
                    for key in keys {
                        let marks = &self.peers[&key].marks;
                        if !matches!(request.state, Up | State::Changing) {
                            leaving.insert(key.clone());
                            if request.expect == Expect::Back {
                                returning.insert(key.clone());
                            }
                        }
                        let is_full = marks.len() == MARKS && !marks.contains_key(set.owner.as_str());
                        if request.state != Up && is_full {
                            wrongs.push(Code::MarksFull);
                        }
                        if named.contains(&key) {
                            wrongs.push(Code::BadRequest);
                        }
                        named.push(key);
                    }
                }
            }
        }
        let bound = set.owner.kind().is_choice() && !set.force;
        // Requests wait for so long, and a person's mark is gone by then.
        let may_wait = matches!(set.owner.as_str(), "operator" | "plus")
            && set.lease.is_some_and(|lease| lease.as_millis() <= QUEUE.timeout);
        let darkened = |upstream: &&str| {
            let serving = self.serving(upstream, false);
            !serving.is_empty()
                && serving.iter().all(|key| leaving.contains(*key))
                && !(may_wait && serving.iter().all(|key| returning.contains(*key)))
        };
        if bound && self.upstreams().iter().any(darkened) {
            wrongs.push(Code::Floor);
        }
        wrongs
    }

    /// Does a command that is not wrong.
    pub fn mark(&mut self, set: &MarkSet, now: u64) -> Vec<Turn> {
        let owner = set.owner.as_str();
        let is_person = matches!(owner, "operator" | "plus");
        let is_choice = is_person || owner == "health" || owner.starts_with("rollout:");
        let lease = set.lease.map(|lease| lease.as_millis()).or((!is_person).then_some(10_000));
        let mut turns = Vec::new();
        for request in &set.marks {
            for key in self.resolve(request).unwrap() {
                let is_alone =
                    request.state == Up && self.serving(&key.0, false).iter().all(|other| **other == key);
                let peer = self.peers.get_mut(&key).unwrap();
                let (from, before) = (peer.state(), peer.marks.clone());
                if request.state == Up {
                    peer.marks.retain(|name, _| name != owner && !request.all);
                } else {
                    let planned = is_choice || request.state == State::Draining;
                    let mark = peer.marks.entry(owner.into()).or_insert(Mark {
                        state: Up,
                        expect: request.expect,
                        reason: String::new(),
                        epoch: 0,
                        lease,
                        renewed: now,
                        begun: now,
                        planned,
                    });
                    mark.state = request.state;
                    mark.expect = request.expect;
                    mark.reason.clone_from(&request.reason);
                    (mark.lease, mark.renewed) = (lease, now);
                }
                let gone = before.iter().filter(|(name, _)| !peer.marks.contains_key(*name));
                let milder = peer
                    .marks
                    .get(owner)
                    .filter(|mark| before.get(owner).is_some_and(|before| before.state > mark.state));
                let forgives = is_alone
                    || gone.clone().any(|(_, mark)| mark.planned)
                    || milder.is_some_and(|mark| mark.planned);
                let set = peer
                    .marks
                    .iter()
                    .filter(|(name, mark)| before.get(*name).is_none_or(|before| before.state != mark.state));
                let changes = gone.count() + set.count();
                turns.push(Turn { key, from, to: peer.state(), changes, forgives });
            }
        }
        turns
    }

    pub fn is_paused(&self, upstream: &str, now: u64) -> bool {
        self.pauses.get(upstream).is_some_and(|pause| now < pause.until)
    }

    /// Whether a command of this owner for these upstreams is to be refused.
    pub fn is_foreign(&self, owner: &str, upstreams: &[String], now: u64) -> bool {
        let is_others = |name: &String| self.is_paused(name, now) && self.pauses[name].owner != owner;
        upstreams.iter().any(is_others)
    }

    /// Whether this begins it or moves its end.
    pub fn pause(&mut self, owner: &str, upstream: &str, max: u64, reason: &str, now: u64) -> bool {
        if !self.is_paused(upstream, now) {
            self.pauses.remove(upstream);
        }
        let new = Pause { owner: owner.into(), reason: String::new(), begun: now, until: 0, told: false };
        let pause = self.pauses.entry(upstream.into()).or_insert(new);
        let before = pause.until;
        pause.reason = reason.into();
        pause.until = pause.begun + max;
        before != pause.until
    }

    /// How many ended by themselves, of these or of all, and were not told yet.
    pub fn over(&mut self, of: impl Fn(&str) -> bool, now: u64) -> usize {
        let over = self.pauses.iter_mut().filter(|(name, pause)| of(name) && now >= pause.until);
        over.filter_map(|(_, pause)| (!std::mem::replace(&mut pause.told, true)).then_some(())).count()
    }

    /// The marks that a renewal is about; `None` if it must be refused.
    pub fn renewed(&self, renew: &Renew) -> Option<Vec<Key>> {
        let owner = renew.owner.as_str();
        if !is_lease(renew.lease) {
            return None;
        }
        let Some(marks) = &renew.marks else {
            let held = self.peers.iter().filter(|(_, peer)| peer.marks.contains_key(owner));
            return Some(held.map(|(key, _)| key.clone()).collect());
        };
        let held = marks.iter().map(|mark| {
            let key = (mark.upstream.clone(), mark.peer.clone());
            let held = self.peers.get(&key)?.marks.get(owner)?.epoch == mark.epoch;
            held.then_some(key)
        });
        held.collect()
    }

    pub fn renew(&mut self, renew: &Renew, keys: &[Key], now: u64) {
        for key in keys {
            let mark = self.peers.get_mut(key).unwrap().marks.get_mut(renew.owner.as_str()).unwrap();
            mark.renewed = now;
            mark.lease = renew.lease.map(|lease| lease.as_millis()).or(mark.lease);
        }
    }

    /// The marks that a sweep must take away, with their owners.
    pub fn lapsed(&self, now: u64) -> BTreeSet<(Key, String)> {
        let mut lapsed = BTreeSet::new();
        for (key, peer) in &self.peers {
            for (owner, mark) in &peer.marks {
                let Some(lease) = mark.lease else { continue };
                let is_named = self.upstreams().contains(key.0.as_str());
                let missed = |key: &Key| self.peers[key].missed.is_some_and(|at| at >= mark.renewed);
                let nobody_serves = is_named && self.serving(&key.0, true).into_iter().all(missed);
                let patience = if nobody_serves { lease.min(3_000) } else { lease };
                if now >= mark.renewed + patience {
                    lapsed.insert((key.clone(), owner.clone()));
                }
            }
        }
        lapsed
    }

    pub fn lapse(&mut self, lapsed: &BTreeSet<(Key, String)>) -> Vec<Turn> {
        let mut turns: BTreeMap<Key, Turn> = BTreeMap::new();
        for (key, owner) in lapsed {
            let peer = self.peers.get_mut(key).unwrap();
            let (key, from) = (key.clone(), peer.state());
            peer.marks.remove(owner);
            let turn =
                turns.entry(key.clone()).or_insert(Turn { key, from, to: Up, changes: 0, forgives: false });
            turn.to = peer.state();
            turn.changes += 1;
        }
        turns.into_values().collect()
    }
}

fn is_lease(lease: Option<handoff_wire::Span>) -> bool {
    lease.is_none_or(|lease| (1_000..=600_000).contains(&lease.as_millis()))
}
