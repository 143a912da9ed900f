//! An nginx host's end: puts what app hosts say into its nginx, and tells them what nginx has.
//!
//! 1. It reads all that hosts have said, and puts it into nginx.
//! 2. It registers, if nothing was said since; else it hears that first. From here on hosts wait for it.
//! 3. Whatever is said next goes into nginx and is acknowledged with its revision, for each host with one key.
//! 4. If nginx ends it takes its name away: nobody need wait for an nginx that passes nothing on.
//!
//! While the store is out of reach the marks are kept until our own lease is over: hosts wait for us no longer then, and
//! from there on nginx serves as without us. When the store is back everything is read anew.

use super::{
    Settings, StoreError,
    mirror::Mirror,
    report::{EdgeReport, HostLine},
    said::{Said, Wanted},
    session::{Backoff, Claim, LEASE, Session, holder, timely},
    standing::Standing,
};
use crate::{
    control::{Address, Control, ControlError},
    peer::Peer,
    telemetry::Changes,
};
use etcd_client::{
    Compare, CompareOp, EventType, GetOptions, Txn, TxnOp, WatchOptions, WatchResponse, WatchStream,
};
use handoff_wire::{
    Code, Expect, MarkRequest, MarkSet, Owner, OwnerKind, Refusal, Renew, Span, State,
    store::{AckRefused, AckValue, EdgeValue, HostValue, Keys, Name, WorkerMark},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::time;

#[derive(Debug)]
pub struct Edge {
    settings: Settings,
    keys: Keys,
    control: Control,
    said: Said,
    mirror: Mirror,
    /// What nginx was told and has.
    told: BTreeMap<(Peer, Owner), WorkerMark>,
    refused: BTreeMap<(Peer, Owner), (WorkerMark, Refusal)>,
    /// Until when a roll-out of a host wants to see how it is answered.
    watched: BTreeMap<Name, Instant>,
    /// What each host was told last, and when.
    acked: BTreeMap<Name, (AckValue, Instant)>,
    /// Hosts that have to be told.
    due: BTreeSet<Name>,
    /// Hosts whose counts have changed: they are told now and then.
    stale: BTreeSet<Name>,
    nginx: Nginx,
    beat: Instant,
    /// When counts were looked at.
    looked: Instant,
    log: Changes,
    nginx_log: Changes,
    shown: Arc<Shown>,
    /// What is shown is of this revision and this picture of nginx.
    shown_of: (i64, u64),
}

/// What others may look at meanwhile.
#[derive(Debug, Default)]
pub struct Shown {
    standing: Arc<Standing>,
    hosts: Mutex<Vec<HostLine>>,
}

/// How nginx is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Nginx {
    Answers,
    /// It may serve, and cannot be told anything.
    Silent,
    /// Nobody listens any more.
    Absent(Instant),
}

/// Longer than the lease in the store and a second between two renewals: as long as a host waits for us because we died a
/// moment ago, nginx still does what we last told it.
const MARK_LEASE: Span = Span::from_secs(15);
const BEAT: Duration = Duration::from_secs(1);
/// How often nginx is asked while somebody waits for its requests to end.
const PACE: Duration = Duration::from_millis(50);
/// How often a host is told of counts alone.
const COUNTS: Duration = Duration::from_millis(500);
/// So long after its last mark a roll-out still looks at the answers.
const WATCHED: Duration = Duration::from_secs(5);
/// A reload of nginx may keep the socket away for a moment.
const ABSENT: Duration = Duration::from_secs(1);
const MAX_MARKS: usize = 256;
/// So many messages are heard before any of them is answered.
const MESSAGES: usize = 256;
/// In one transaction.
const AT_ONCE: usize = 50;
/// The answer with everything in it.
const MAX_ANSWER: usize = 256 << 20;

impl Edge {
    pub fn new(settings: Settings, control: Address) -> Self {
        Self {
            keys: Keys::new(&settings.cluster),
            settings,
            control: Control::new(control),
            said: Said::default(),
            mirror: Mirror::default(),
            told: BTreeMap::new(),
            refused: BTreeMap::new(),
            watched: BTreeMap::new(),
            acked: BTreeMap::new(),
            due: BTreeSet::new(),
            stale: BTreeSet::new(),
            nginx: Nginx::Silent,
            beat: Instant::now(),
            looked: Instant::now(),
            log: Changes::default(),
            nginx_log: Changes::default(),
            shown: Arc::default(),
            shown_of: (0, 0),
        }
    }

    pub fn shown(&self) -> Arc<Shown> {
        self.shown.clone()
    }

    /// Works for ever.
    pub async fn run(mut self) {
        let mut backoff = Backoff::default();
        loop {
            let (settings, standing) = (self.settings.clone(), self.shown.standing.clone());
            let opening = Session::open(&settings, &standing);
            tokio::pin!(opening);
            let opened = loop {
                tokio::select! {
                    opened = &mut opening => break opened,
                    () = self.next_beat() => self.keep_marks().await,
                }
            };
            let ended = match opened {
                Ok(mut session) => self.session(&mut session, &mut backoff).await,
                Err(error) => Err(error),
            };
            if let Err(error) = ended {
                standing.leaves(&error);
                self.log.warn(format!(
                    "the store is out of reach, so that app hosts cannot hand over to this nginx: {error}"
                ));
            }
            let pausing = async {
                backoff.pause().await;
                backoff
            };
            tokio::pin!(pausing);
            backoff = loop {
                tokio::select! {
                    rested = &mut pausing => break rested,
                    () = self.next_beat() => self.keep_marks().await,
                }
            };
        }
    }

    /// From the first look to the end of the lease, or of the watch.
    async fn session(&mut self, session: &mut Session, backoff: &mut Backoff) -> Result<(), StoreError> {
        let mut stream = self.load(session).await?;
        let mut is_registered = false;
        self.acked.clear();
        self.shown.standing.enters();
        backoff.reset();
        loop {
            if !session.is_ours() {
                return Err(StoreError::Lost);
            }
            match (self.nginx, is_registered) {
                (Nginx::Answers, false) => is_registered = self.register(session).await?,
                (Nginx::Absent(since), true) if since.elapsed() >= ABSENT => {
                    self.unregister(session).await?;
                    is_registered = false;
                }
                _ => {}
            }
            // What nginx may not have is not acknowledged.
            if is_registered && self.nginx == Nginx::Answers {
                self.tell(session).await?;
            }
            let pace = if self.is_busy() { PACE } else { BEAT };
            tokio::select! {
                biased;
                () = session.lost() => return Err(StoreError::Lost),
                message = stream.message() => {
                    self.hear(message?)?;
                    // All that is there is answered together: a write of each would wait for a disk.
                    for _ in 0..MESSAGES {
                        let Ok(message) = time::timeout(Duration::ZERO, stream.message()).await else { break };
                        self.hear(message?)?;
                    }
                    self.put().await;
                    // Before a host is answered: what its roll-out counts from.
                    self.look().await;
                }
                () = time::sleep(pace) => self.look().await,
                () = self.next_beat() => self.keep_marks().await,
            }
            if self.beat <= Instant::now() {
                self.keep_marks().await;
            }
        }
    }

    async fn next_beat(&self) {
        time::sleep_until(self.beat.into()).await;
    }

    // --- the store

    /// Reads all of it at one revision, puts it into nginx, and begins to hear what comes after.
    async fn load(&mut self, session: &mut Session) -> Result<WatchStream, StoreError> {
        let (first, end) = self.keys.said();
        let mut kv = session.client.kv_client().max_decoding_message_size(MAX_ANSWER);
        let all = GetOptions::new().with_range(end.clone());
        let found = time::timeout(LEASE / 2, kv.get(first.clone(), Some(all))).await;
        let found = found.map_err(|_| StoreError::Silent)??;
        let revision = found.header().map_or(0, |header| header.revision());
        let mut said = Said::default();
        said.reach(revision);
        for kv in found.kvs() {
            if let Err(wrong) = said.hear(&self.keys, kv.key(), Some(kv.value()), kv.mod_revision()) {
                self.log.warn(wrong);
            }
        }
        self.said = said;
        self.refused.clear();
        self.put_again().await;
        let options = WatchOptions::new().with_range(end).with_start_revision(revision + 1);
        let mut watch = session.client.watch_client().max_decoding_message_size(MAX_ANSWER);
        timely(watch.watch(first, Some(options))).await
    }

    /// Err: begin anew.
    fn hear(&mut self, message: Option<WatchResponse>) -> Result<(), StoreError> {
        let message = message.ok_or_else(|| StoreError::Failed("it ended our watch".to_owned()))?;
        if message.canceled() {
            let why = match message.compact_revision() {
                0 => message.cancel_reason().to_owned(),
                to => format!("it forgot what was said up to revision {to}"),
            };
            return Err(StoreError::Failed(why));
        }
        for event in message.events() {
            let Some(kv) = event.kv() else { continue };
            let value = (event.event_type() == EventType::Put).then(|| kv.value());
            match self.said.hear(&self.keys, kv.key(), value, kv.mod_revision()) {
                Ok(Some(host)) => _ = self.due.insert(host),
                Ok(None) => {}
                Err(wrong) => self.log.warn(wrong),
            }
        }
        Ok(())
    }

    /// False: something was said meanwhile; it is heard first.
    async fn register(&mut self, session: &mut Session) -> Result<bool, StoreError> {
        let value = EdgeValue {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            nginx: self.mirror.nginx().to_owned(),
            holder: holder(),
            loaded: self.said.revision(),
        };
        let (first, end) = self.keys.said();
        let nothing_new =
            Compare::mod_revision(first, CompareOp::Less, self.said.revision() + 1).with_range(end);
        let key = self.keys.edge(&self.settings.name);
        match session.claim(&key, &value, |value| &value.holder, &[nothing_new]).await? {
            Claim::Ours(_) => {
                self.log
                    .info(format!("{} is in the store: app hosts wait for its nginx", self.settings.name));
                self.due = self.said.hosts().map(|(name, _)| name.clone()).collect();
                self.acked.clear();
                Ok(true)
            }
            Claim::Overtaken => Ok(false),
            Claim::Taken(holder) => Err(StoreError::Failed(format!(
                "another process (pid {} of its machine) is {:?} there: give this one its own --store-name, or wait {} s \
                 after the end of the other",
                holder.pid,
                self.settings.name.as_str(),
                LEASE.as_secs()
            ))),
        }
    }

    async fn unregister(&mut self, session: &mut Session) -> Result<(), StoreError> {
        let key = self.keys.edge(&self.settings.name);
        let txn = Txn::new().when([session.holds(&key)]).and_then([TxnOp::delete(key, None)]);
        timely(session.client.txn(txn)).await?;
        self.log.warn(format!("{} left the store: its nginx does not run", self.settings.name));
        Ok(())
    }

    /// Says to each host what nginx has of its peers, if that is something else than before.
    async fn tell(&mut self, session: &mut Session) -> Result<(), StoreError> {
        let now = Instant::now();
        let is_time =
            |host: &Name| self.acked.get(host).is_none_or(|(_, at)| now.duration_since(*at) >= COUNTS);
        let due: BTreeSet<Name> =
            self.due.iter().chain(self.stale.iter().filter(|host| is_time(host))).cloned().collect();
        let mut new = Vec::new();
        for host in due {
            self.due.remove(&host);
            self.stale.remove(&host);
            if !self.said.has(&host) {
                self.acked.remove(&host);
                continue;
            }
            let ack = self.ack(&host);
            if self.acked.get(&host).is_none_or(|(last, _)| *last != ack) {
                new.push((host, ack));
            }
        }
        let edge = self.keys.edge(&self.settings.name);
        for some in new.chunks(AT_ONCE) {
            let put =
                |(host, ack): &(Name, AckValue)| session.put(&self.keys.ack(host, &self.settings.name), ack);
            let puts = some.iter().map(put).collect::<Result<Vec<_>, _>>()?;
            let done =
                timely(session.client.txn(Txn::new().when([session.holds(&edge)]).and_then(puts))).await?;
            if !done.succeeded() {
                return Err(StoreError::Lost);
            }
            for (host, ack) in some {
                self.acked.insert(host.clone(), (ack.clone(), now));
            }
        }
        Ok(())
    }

    fn ack(&self, host: &Name) -> AckValue {
        let refused = self.refused.iter().filter(|(key, _)| self.said.wanted_by(host).contains_key(key));
        let refused = refused.map(|((peer, owner), (_, refusal))| AckRefused {
            upstream: peer.upstream.clone(),
            address: peer.address.clone(),
            owner: owner.clone(),
            refusal: refusal.clone(),
        });
        let addresses = self.said.addresses(host);
        AckValue {
            revision: self.said.revision(),
            instance: self.mirror.instance().to_owned(),
            upstreams: self.mirror.of(addresses, self.watched.contains_key(host)),
            refused: refused.collect(),
            uncovered: self.mirror.uncovered(addresses),
        }
    }

    // --- nginx

    /// Somebody waits for what nginx has.
    fn is_busy(&self) -> bool {
        !self.stale.is_empty()
            || !self.watched.is_empty()
            || self.told.keys().any(|(peer, _)| self.mirror.in_flight(peer) > 0)
    }

    /// Puts into nginx what it does not have of what was said.
    async fn put(&mut self) {
        if self.nginx == Nginx::Answers {
            let wanted = self.said.wanted();
            let result = self.put_all(wanted, false).await;
            self.met(result);
        }
    }

    /// The same, to an nginx of which nothing is known. What was said before was decided before, floor and all.
    async fn put_again(&mut self) {
        let result = async {
            self.mirror.look(&mut self.control).await?;
            // What is there and wanted no more goes.
            self.told = self.mirror.marks_of_hosts();
            self.put_all(self.said.wanted(), true).await
        };
        let result = result.await;
        self.met(result);
        self.due.extend(self.said.hosts().map(|(name, _)| name.clone()));
    }

    async fn put_all(&mut self, wanted: Wanted, force: bool) -> Result<(), ControlError> {
        self.refused.retain(|key, (mark, _)| wanted.get(key) == Some(mark));
        let gone: Vec<(Peer, Owner)> =
            self.told.keys().filter(|key| !wanted.contains_key(*key)).cloned().collect();
        let new = wanted.iter().filter(|(key, mark)| {
            let is_told = self.told.get(*key).is_some_and(|told| says_the_same(told, mark));
            self.mirror.has(&key.0) && !is_told && !self.refused.contains_key(*key)
        });
        // By owner: a command is one owner's, and is done whole or not at all.
        let mut sets = BTreeMap::<(Owner, bool), Vec<(Peer, WorkerMark)>>::new();
        for ((peer, owner), mark) in new {
            let set = sets.entry((owner.clone(), mark.force || force)).or_default();
            set.push((peer.clone(), mark.clone()));
        }
        for (peer, owner) in gone {
            let up = WorkerMark {
                owner: owner.clone(),
                state: State::Up,
                expect: Expect::Gone,
                reason: String::new(),
                force: false,
            };
            sets.entry((owner, false)).or_default().push((peer, up));
        }
        for ((owner, force), mut marks) in sets {
            // Who comes back serves before another one goes.
            marks.sort_by_key(|(_, mark)| mark.state != State::Up);
            for some in marks.chunks(MAX_MARKS) {
                self.put_some(&owner, force, some).await?;
            }
        }
        Ok(())
    }

    async fn put_some(
        &mut self,
        owner: &Owner,
        force: bool,
        marks: &[(Peer, WorkerMark)],
    ) -> Result<(), ControlError> {
        let request = |(peer, mark): &(Peer, WorkerMark)| MarkRequest {
            upstream: Some(peer.upstream.clone()),
            peer: peer.address.clone(),
            state: mark.state,
            expect: mark.expect,
            reason: mark.reason.clone(),
            all: false,
        };
        let requests = marks.iter().map(request).collect();
        let set = MarkSet { owner: owner.clone(), lease: Some(MARK_LEASE), force, marks: requests };
        match self.control.mark(&set).await {
            Ok(ack) => {
                self.mirror.acknowledge(owner, &ack);
                for (peer, mark) in marks {
                    let key = (peer.clone(), owner.clone());
                    tracing::info!(upstream = peer.upstream, peer = peer.address, state = %mark.state, %owner, reason = mark.reason, "told nginx");
                    match mark.state {
                        State::Up => _ = self.told.remove(&key),
                        _ => _ = self.told.insert(key, mark.clone()),
                    }
                }
                Ok(())
            }
            Err(ControlError::Refused(refusal)) if marks.len() > 1 && refusal.code != Code::Floor => {
                // One of them is the reason, and no reason for the others.
                for one in marks {
                    Box::pin(self.put_some(owner, force, std::slice::from_ref(one))).await?;
                }
                Ok(())
            }
            Err(ControlError::Refused(refusal)) => {
                for (peer, mark) in marks {
                    let key = (peer.clone(), owner.clone());
                    self.told.remove(&key);
                    match refusal.code {
                        // Nothing is passed on to a peer that nginx does not have.
                        Code::PeerNotFound | Code::UpstreamNotFound => {}
                        _ => _ = self.refused.insert(key, (mark.clone(), refusal.clone())),
                    }
                }
                self.nginx_log.warn(format!("nginx was not told: {}", refusal.text));
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Each second: what nginx was told stays alive, and an nginx that has forgotten it is told again.
    async fn keep_marks(&mut self) {
        self.beat = Instant::now() + BEAT;
        let result = self.keep().await;
        self.met(result);
        self.show();
    }

    fn show(&mut self) {
        let of = (self.said.revision(), self.mirror.generation());
        if self.shown_of == of {
            return;
        }
        self.shown_of = of;
        self.shown.standing.reaches(of.0);
        let host = |(name, value): (&Name, &HostValue)| HostLine {
            name: name.clone(),
            addresses: value.addresses.clone(),
            peers: self.mirror.peers(&value.addresses).count(),
        };
        let hosts = self.said.hosts().map(host).collect();
        *self.shown.hosts.lock().unwrap_or_else(PoisonError::into_inner) = hosts;
    }

    async fn keep(&mut self) -> Result<(), ControlError> {
        let was = self.mirror.instance().to_owned();
        let is_new = self.mirror.meet(&mut self.control).await?;
        if self.mirror.instance() != was || self.nginx != Nginx::Answers {
            self.mirror.look(&mut self.control).await?;
            // What is there and wanted no more goes.
            self.told = self.mirror.marks_of_hosts();
            self.put_all(self.said.wanted(), true).await?;
            self.due.extend(self.said.hosts().map(|(name, _)| name.clone()));
            return Ok(());
        }
        if is_new {
            let changed = self.mirror.look(&mut self.control).await?;
            if changed {
                self.put_all(self.said.wanted(), true).await?;
                self.due.extend(self.said.hosts().map(|(name, _)| name.clone()));
            }
        }
        let owners: BTreeSet<Owner> = self.told.keys().map(|(_, owner)| owner.clone()).collect();
        for owner in owners {
            let ack = self.control.renew(&Renew { owner: owner.clone(), lease: None, marks: None }).await?;
            self.mirror.acknowledge(&owner, &ack);
            let held: BTreeSet<Peer> =
                ack.marks.iter().map(|mark| Peer::new(&mark.upstream, &mark.peer)).collect();
            // A lapse, a hand: whatever it was, the host is told of another epoch.
            let lost: Vec<Peer> = self
                .told
                .keys()
                .filter(|(peer, of)| *of == owner && !held.contains(peer))
                .map(|(peer, _)| peer.clone())
                .collect();
            for peer in lost {
                self.told.remove(&(peer, owner.clone()));
            }
        }
        self.put_all(self.said.wanted(), true).await
    }

    /// Looks at the peers for which somebody waits.
    async fn look(&mut self) {
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
        for peer in &peers {
            let was = self.mirror.in_flight(peer);
            let is_other = self.mirror.look_at(&mut self.control, peer).await?;
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

    fn met(&mut self, result: Result<(), ControlError>) {
        self.nginx = match result {
            Ok(()) => {
                self.nginx_log.info(format!(
                    "nginx answers on {} (instance {})",
                    self.control.address(),
                    self.mirror.instance()
                ));
                Nginx::Answers
            }
            Err(error) => {
                self.nginx_log.warn(error.to_string());
                match (&error, self.nginx) {
                    (ControlError::Absent(_) | ControlError::Dead(_), Nginx::Absent(since)) => {
                        Nginx::Absent(since)
                    }
                    (ControlError::Absent(_) | ControlError::Dead(_), _) => Nginx::Absent(Instant::now()),
                    _ => Nginx::Silent,
                }
            }
        };
    }
}

// === impl Shown ===

impl Shown {
    pub fn report(&self) -> EdgeReport {
        let hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner).clone();
        EdgeReport { stand: self.standing.stand(), hosts }
    }
}

/// nginx knows the owner by another name, and nothing of force.
fn says_the_same(one: &WorkerMark, other: &WorkerMark) -> bool {
    (one.state, one.expect, &one.reason) == (other.state, other.expect, &other.reason)
}
