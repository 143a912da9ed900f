//! What the owners on this host hold of its peers: the marks that go into the store. Nothing here speaks to anybody.
//!
//! It keeps the rules that nginx keeps for marks of its own: one mark an owner and peer, an epoch for each unbroken tenure, a
//! lease that ends with silence.

use super::edges::Tenure;
use crate::peer::Peer;
use handoff_wire::{
    Code, DEFAULT_LEASE, Expect, MAX_LEASE, MIN_LEASE, MarkRequest, MarkSet, MarkView, Owner, Refusal, Renew,
    Span, State,
    store::{MAX_MARKS, Name, WorkerMark, WorkerValue},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

#[derive(Debug, Default)]
pub struct Ledger {
    peers: BTreeMap<Peer, Entry>,
    last_epoch: u64,
}

#[derive(Debug, Default)]
struct Entry {
    marks: BTreeMap<Owner, Mark>,
    said: u64,
    /// What stands in the store, since this revision. None: it has still to be written.
    written: Option<i64>,
}

#[derive(Clone, Debug)]
struct Mark {
    state: State,
    expect: Expect,
    reason: String,
    force: bool,
    lease: Option<Span>,
    renewed: Instant,
    since: Instant,
    epoch: u64,
    /// How every edge had it when all of them had.
    tenures: BTreeMap<Name, Tenure>,
}

/// Marks as they were, to be put back.
#[derive(Debug)]
pub struct Before(Vec<(Peer, Owner, Option<Mark>)>);

const MAX_REASON: usize = 128;
const MOST: usize = 256;

// === impl Ledger ===

impl Ledger {
    /// Does what is asked, in here. `known`: the peers there are.
    pub fn mark(
        &mut self,
        set: &MarkSet,
        known: &BTreeSet<Peer>,
        now: Instant,
    ) -> Result<(Vec<Peer>, Before), Refusal> {
        let targets = self.resolve(set, known)?;
        let lease = set.lease.or_else(|| set.owner.kind().is_leased().then_some(DEFAULT_LEASE));
        let mut before = Vec::new();
        for (peer, request) in &targets {
            let leaving = match (request.state, request.all) {
                (State::Up, true) => self.owners(peer),
                _ => vec![set.owner.clone()],
            };
            for owner in leaving {
                before.push((peer.clone(), owner.clone(), self.find(peer, &owner).cloned()));
                match request.state {
                    State::Up => self.remove(peer, &owner),
                    _ => self.set(peer, set, request, lease, now),
                }
            }
        }
        Ok((targets.into_iter().map(|(peer, _)| peer).collect(), Before(before)))
    }

    /// As if it had not been asked for. What was asked for twice was not there before the first time.
    pub fn restore(&mut self, before: Before) {
        for (peer, owner, mark) in before.0 {
            let entry = self.peers.entry(peer).or_default();
            let is = entry.marks.get(&owner);
            match mark.filter(|was| is.is_none_or(|is| !is.says_the_same(was))) {
                Some(mark) => _ = entry.marks.insert(owner, mark),
                None => _ = entry.marks.remove(&owner),
            }
            entry.change();
        }
    }

    /// The peers on which the owner has a mark; with a fence, those that it names, if each is the mark that was set.
    pub fn renew(&mut self, renew: &Renew, now: Instant) -> Result<Vec<Peer>, Refusal> {
        check_lease(renew.lease)?;
        let peers: Vec<Peer> = match &renew.marks {
            None => self.held(&renew.owner),
            Some(marks) => {
                for mark in marks {
                    let peer = Peer::new(&mark.upstream, &mark.peer);
                    if self.find(&peer, &renew.owner).is_none_or(|held| held.epoch != mark.epoch) {
                        return Err(lapsed(&renew.owner, &peer));
                    }
                }
                marks.iter().map(|mark| Peer::new(&mark.upstream, &mark.peer)).collect()
            }
        };
        for peer in &peers {
            let Some(entry) = self.peers.get_mut(peer) else { continue };
            let Some(mark) = entry.marks.get_mut(&renew.owner) else { continue };
            mark.renewed = now;
            mark.lease = renew.lease.or(mark.lease);
            if renew.marks.is_some() {
                // To say it again makes every edge look again.
                entry.change();
            }
        }
        Ok(peers)
    }

    /// Takes away the marks whose owners fell silent.
    pub fn sweep(&mut self, now: Instant) -> Vec<(Peer, Owner)> {
        let has_lapsed = |mark: &Mark| {
            mark.lease.is_some_and(|lease| now.saturating_duration_since(mark.renewed) >= lease.duration())
        };
        let mut lapsed = Vec::new();
        for (peer, entry) in &mut self.peers {
            let owners: Vec<Owner> = entry
                .marks
                .iter()
                .filter(|(_, mark)| has_lapsed(mark))
                .map(|(owner, _)| owner.clone())
                .collect();
            for owner in owners {
                entry.marks.remove(&owner);
                entry.change();
                lapsed.push((peer.clone(), owner));
            }
        }
        lapsed
    }

    /// What has still to be written. None: its key is to go.
    pub fn unwritten(&self) -> Vec<(Peer, u64, Option<WorkerValue>)> {
        let unwritten = self.peers.iter().filter(|(_, entry)| entry.written.is_none());
        unwritten.map(|(peer, entry)| (peer.clone(), entry.said, entry.value())).collect()
    }

    /// It stands in the store as it was when it had been said so often.
    pub fn wrote(&mut self, peer: &Peer, said: u64, revision: i64) {
        let Some(entry) = self.peers.get_mut(peer).filter(|entry| entry.said == said) else { return };
        entry.written = Some(revision);
    }

    /// The store may have lost all of it.
    pub fn forget_written(&mut self) {
        self.peers.values_mut().for_each(|entry| entry.written = None);
    }

    /// Since which revision the store has what is said of a peer. None: it has not, yet.
    pub fn written(&self, peer: &Peer) -> Option<i64> {
        self.peers.get(peer).map_or(Some(0), |entry| entry.written)
    }

    /// The revision of the last that was written.
    pub fn last_written(&self) -> i64 {
        self.peers.values().filter_map(|entry| entry.written).max().unwrap_or(0)
    }

    pub fn effective(&self, peer: &Peer) -> State {
        self.peers.get(peer).map_or(State::Up, Entry::state)
    }

    pub fn epoch(&self, peer: &Peer, owner: &Owner) -> u64 {
        self.find(peer, owner).map_or(0, |mark| mark.epoch)
    }

    pub fn tenures(&self, peer: &Peer, owner: &Owner) -> Option<&BTreeMap<Name, Tenure>> {
        self.find(peer, owner).map(|mark| &mark.tenures)
    }

    pub fn keep_tenures(&mut self, peer: &Peer, owner: &Owner, tenures: BTreeMap<Name, Tenure>) {
        let mark = self.peers.get_mut(peer).and_then(|entry| entry.marks.get_mut(owner));
        if let Some(mark) = mark {
            mark.tenures = tenures;
        }
    }

    pub fn views(&self, peer: &Peer, now: Instant) -> Vec<MarkView> {
        let marks = self.peers.get(peer).into_iter().flat_map(|entry| &entry.marks);
        let since = |then: Instant| now.saturating_duration_since(then);
        let view = |(owner, mark): (&Owner, &Mark)| MarkView {
            owner: owner.clone(),
            state: mark.state,
            expect: mark.expect,
            reason: mark.reason.clone(),
            epoch: mark.epoch,
            lease: mark.lease.map(|lease| whole(lease.duration().saturating_sub(since(mark.renewed)))),
            age: whole(since(mark.since)),
        };
        marks.map(view).collect()
    }

    pub fn owners(&self, peer: &Peer) -> Vec<Owner> {
        self.peers.get(peer).into_iter().flat_map(|entry| entry.marks.keys().cloned()).collect()
    }

    fn held(&self, owner: &Owner) -> Vec<Peer> {
        let has = |entry: &Entry| entry.marks.contains_key(owner);
        self.peers.iter().filter(|(_, entry)| has(entry)).map(|(peer, _)| peer.clone()).collect()
    }

    fn find(&self, peer: &Peer, owner: &Owner) -> Option<&Mark> {
        self.peers.get(peer)?.marks.get(owner)
    }

    fn remove(&mut self, peer: &Peer, owner: &Owner) {
        let Some(entry) = self.peers.get_mut(peer) else { return };
        if entry.marks.remove(owner).is_some() {
            entry.change();
        }
    }

    fn set(&mut self, peer: &Peer, set: &MarkSet, request: &MarkRequest, lease: Option<Span>, now: Instant) {
        let entry = self.peers.entry(peer.clone()).or_default();
        let was = entry.marks.get(&set.owner);
        let (since, epoch) = match was {
            Some(was) => (was.since, was.epoch),
            None => (now, epoch(self.last_epoch)),
        };
        self.last_epoch = self.last_epoch.max(epoch);
        let tenures = was.map(|was| was.tenures.clone()).unwrap_or_default();
        let mark = Mark {
            state: request.state,
            expect: request.expect,
            reason: request.reason.clone(),
            force: set.force,
            lease,
            renewed: now,
            since,
            epoch,
            tenures,
        };
        let is_said = was.is_some_and(|was| was.says_the_same(&mark));
        entry.marks.insert(set.owner.clone(), mark);
        if !is_said {
            entry.change();
        }
    }

    fn resolve<'a>(
        &self,
        set: &'a MarkSet,
        known: &BTreeSet<Peer>,
    ) -> Result<Vec<(Peer, &'a MarkRequest)>, Refusal> {
        check_lease(set.lease)?;
        if set.marks.is_empty() || set.marks.len() > MOST {
            return Err(Code::BadRequest.says(format!("\"marks\" must name 1 to {MOST} peers")));
        }
        let mut targets: Vec<(Peer, &MarkRequest)> = Vec::new();
        for request in &set.marks {
            check(request)?;
            let is_meant = |peer: &&Peer| {
                peer.address == request.peer
                    && request.upstream.as_ref().is_none_or(|name| *name == peer.upstream)
            };
            let mut peers: Vec<Peer> = known.iter().filter(is_meant).cloned().collect();
            // One that no nginx has any more can still be let go.
            if let (Some(upstream), State::Up, true) = (&request.upstream, request.state, peers.is_empty()) {
                peers.push(Peer::new(upstream, &request.peer));
            }
            if peers.is_empty() {
                let text = format!("no nginx that is there has the peer {:?} of this host", request.peer);
                return Err(Code::PeerNotFound.says(text));
            }
            for peer in peers {
                if targets.iter().any(|(target, _)| *target == peer) {
                    let text = format!("\"marks\" names the peer {} twice", request.peer);
                    return Err(Code::BadRequest.says(text));
                }
                let is_new = request.state != State::Up && self.find(&peer, &set.owner).is_none();
                if is_new && self.owners(&peer).len() >= MAX_MARKS {
                    let text = format!("{MAX_MARKS} owners have a mark on the peer {} already", request.peer);
                    return Err(Code::MarksFull.says(text));
                }
                targets.push((peer, request));
            }
        }
        Ok(targets)
    }
}

// === impl Entry ===

impl Entry {
    fn change(&mut self) {
        self.said += 1;
        self.written = None;
    }

    fn state(&self) -> State {
        self.marks.values().map(|mark| mark.state).max().unwrap_or(State::Up)
    }

    fn value(&self) -> Option<WorkerValue> {
        let mark = |(owner, mark): (&Owner, &Mark)| WorkerMark {
            owner: owner.clone(),
            state: mark.state,
            expect: mark.expect,
            reason: mark.reason.clone(),
            force: mark.force,
        };
        let marks: Vec<WorkerMark> = self.marks.iter().map(mark).collect();
        (!marks.is_empty()).then(|| WorkerValue { state: self.state(), said: self.said, marks })
    }
}

// === impl Mark ===

impl Mark {
    fn says_the_same(&self, other: &Self) -> bool {
        (self.state, self.expect, &self.reason, self.force)
            == (other.state, other.expect, &other.reason, other.force)
    }
}

/// Grows, also from one life of this process to the next.
fn epoch(last: u64) -> u64 {
    let since = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX).max(last.saturating_add(1))
}

fn whole(long: Duration) -> Span {
    Span::from_millis(u64::try_from(long.as_millis()).unwrap_or(u64::MAX))
}

fn check(request: &MarkRequest) -> Result<(), Refusal> {
    let peer = &request.peer;
    if request.reason.len() > MAX_REASON || request.reason.chars().any(char::is_control) {
        let text = format!("the reason for {peer:?} must be one line of at most {MAX_REASON} bytes");
        return Err(Code::BadRequest.says(text));
    }
    if request.all && request.state != State::Up {
        return Err(Code::BadRequest.says(format!("\"all\" for {peer:?} goes with \"state\":\"up\" only")));
    }
    if request.state == State::Up && request.expect == Expect::Back {
        let text = format!("\"expect\" for {peer:?} does not go with \"state\":\"up\"");
        return Err(Code::BadRequest.says(text));
    }
    Ok(())
}

fn check_lease(asked: Option<Span>) -> Result<(), Refusal> {
    match asked {
        Some(lease) if !(MIN_LEASE..=MAX_LEASE).contains(&lease) => {
            let text = format!("the lease {lease} is not between {MIN_LEASE} and {MAX_LEASE}");
            Err(Code::BadRequest.says(text))
        }
        _ => Ok(()),
    }
}

pub fn lapsed(owner: &Owner, peer: &Peer) -> Refusal {
    Code::Lapsed.says(format!(
        "the mark of {owner} on {peer} is not at every nginx the one that was set: drain it again before you stop its \
         worker"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn peer() -> Peer {
        Peer::new("shop", "10.0.0.5:3000")
    }

    fn set(owner: &str, state: &str) -> MarkSet {
        serde_json::from_value(json!({"owner": owner, "marks": [{"peer": "10.0.0.5:3000", "state": state}]}))
            .unwrap()
    }

    fn mark(ledger: &mut Ledger, set: &MarkSet, now: Instant) -> Before {
        ledger.mark(set, &[peer()].into(), now).unwrap().1
    }

    #[test]
    fn what_is_said_again_is_not_written_again() {
        let (mut ledger, now) = (Ledger::default(), Instant::now());
        mark(&mut ledger, &set("pm2:/a", "draining"), now);
        let (_, said, value) = ledger.unwritten().pop().unwrap();
        assert_eq!(value.unwrap().state, State::Draining);
        ledger.wrote(&peer(), said, 7);
        mark(&mut ledger, &set("pm2:/a", "draining"), now);
        assert!(ledger.unwritten().is_empty());
        assert_eq!(ledger.written(&peer()), Some(7));
        mark(&mut ledger, &set("pm2:/a", "down"), now);
        // The answer to the write before comes late.
        ledger.wrote(&peer(), said, 7);
        assert_eq!(ledger.written(&peer()), None);
    }

    #[test]
    fn a_fence_holds_for_the_mark_that_was_set_and_is_said_again() {
        let (mut ledger, now) = (Ledger::default(), Instant::now());
        mark(&mut ledger, &set("rollout:1", "draining"), now);
        let owner: Owner = "rollout:1".parse().unwrap();
        let (_, said, _) = ledger.unwritten().pop().unwrap();
        ledger.wrote(&peer(), said, 7);
        let epoch = ledger.epoch(&peer(), &owner);
        let fence = |epoch: u64| -> Renew {
            let mark = json!({"upstream": "shop", "peer": "10.0.0.5:3000", "epoch": epoch});
            serde_json::from_value(json!({"owner": "rollout:1", "marks": [mark]})).unwrap()
        };
        assert_eq!(ledger.renew(&fence(epoch), now).unwrap(), [peer()]);
        assert_eq!(ledger.unwritten().len(), 1);
        mark(&mut ledger, &set("rollout:1", "up"), now);
        mark(&mut ledger, &set("rollout:1", "draining"), now);
        assert_eq!(ledger.renew(&fence(epoch), now).unwrap_err().code, Code::Lapsed);
        assert!(ledger.epoch(&peer(), &owner) > epoch);
    }

    #[test]
    fn silence_ends_a_mark_and_a_person_has_no_lease() {
        let (mut ledger, now) = (Ledger::default(), Instant::now());
        mark(&mut ledger, &set("rollout:1", "draining"), now);
        mark(&mut ledger, &set("operator", "down"), now);
        assert!(ledger.sweep(now + Duration::from_secs(9)).is_empty());
        let lapsed = ledger.sweep(now + Duration::from_secs(10));
        assert_eq!(lapsed, [(peer(), "rollout:1".parse().unwrap())]);
        assert_eq!(ledger.effective(&peer()), State::Down);
    }

    #[test]
    fn what_is_refused_is_as_if_it_had_not_been_asked_for() {
        let (mut ledger, now) = (Ledger::default(), Instant::now());
        mark(&mut ledger, &set("pm2:/a", "checking"), now);
        let before = mark(&mut ledger, &set("rollout:1", "down"), now);
        assert_eq!(ledger.effective(&peer()), State::Down);
        ledger.restore(before);
        assert_eq!((ledger.effective(&peer()), ledger.owners(&peer()).len()), (State::Checking, 1));
        let before = mark(&mut ledger, &set("pm2:/a", "up"), now);
        ledger.restore(before);
        assert_eq!(ledger.effective(&peer()), State::Checking);
    }

    #[test]
    fn what_nginx_would_refuse_is_refused() {
        let mut ledger = Ledger::default();
        let known = [peer()].into();
        for (wrong, code) in [
            (json!({"owner": "operator", "marks": []}), Code::BadRequest),
            (
                json!({"owner": "operator", "marks": [{"peer": "10.0.0.6:1", "state": "down"}]}),
                Code::PeerNotFound,
            ),
            (
                json!({"owner": "operator", "lease": "1h", "marks": [{"peer": "10.0.0.5:3000", "state": "down"}]}),
                Code::BadRequest,
            ),
            (
                json!({"owner": "operator", "marks": [{"peer": "10.0.0.5:3000", "state": "down", "reason": "a\nb"}]}),
                Code::BadRequest,
            ),
        ] {
            let set: MarkSet = serde_json::from_value(wrong).unwrap();
            assert_eq!(ledger.mark(&set, &known, Instant::now()).unwrap_err().code, code);
        }
    }
}
