//! An nginx host's end: puts what app hosts say into its nginx, and tells them what nginx has.
//!
//! 1. It reads all that hosts have said, and puts it into nginx.
//! 2. It registers, if nothing was said since; else it hears that first. From here on hosts wait for it.
//! 3. Whatever is said next goes into nginx and is acknowledged with its revision, for each host with one key.
//! 4. If nginx ends it takes its name away: nobody need wait for an nginx that passes nothing on.
//! 5. Peers that hosts bring are [added](super::seats) before their marks are put, and go when nobody brings them any more. A
//!    host that is silent for longer than its grace brings nothing more: an edge says so in its place.
//!
//! While the store is out of reach the marks are kept until our own lease is over: hosts wait for us no longer then, and
//! from there on nginx serves as without us. When the store is back everything is read anew.

use super::{
    Settings, StoreError,
    mirror::Mirror,
    report::{EdgeReport, HostLine},
    said::{Said, Wanted},
    seats::{Seats, Step},
    session::{Backoff, Claim, LEASE, Session, by_chance, dice, holder, timely},
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
    seats: Seats,
    /// Since when hosts that bring peers have been silent, as far as we have heard all the time; and how long they may be.
    silent: BTreeMap<Name, Silence>,
    /// Until when what was heard holds without the store. None: nothing was heard yet.
    until: Option<Instant>,
    /// What nginx was told and has.
    told: BTreeMap<(Peer, Owner), WorkerMark>,
    refused: BTreeMap<(Peer, Owner), (WorkerMark, Refusal)>,
    /// Until when a roll-out of a host wants to see how it is answered.
    watched: BTreeMap<Name, Instant>,
    /// What each host was told last, and when.
    acked: BTreeMap<Name, (AckValue, Instant)>,
    /// Hosts that have to be told.
    due: BTreeSet<Name>,
    /// Hosts that have to be told some time: nobody waits there.
    later: BTreeSet<Name>,
    /// When some of them were.
    spread: Instant,
    /// Hosts whose counts have changed: they are told now and then.
    stale: BTreeSet<Name>,
    nginx: Nginx,
    beat: Instant,
    /// When counts were looked at.
    looked: Instant,
    log: Changes,
    nginx_log: Changes,
    bury_log: Changes,
    seats_log: BTreeMap<Peer, String>,
    shown: Arc<Shown>,
    /// What is shown is of this revision and this picture of nginx.
    shown_of: (i64, u64),
}

#[derive(Clone, Copy, Debug)]
struct Silence {
    since: Instant,
    /// Ours: of many edges one is the first.
    until: Instant,
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
/// So many hosts are told in this time of what they do not wait for: with an edge that comes, others come.
const SPREAD: Duration = Duration::from_millis(200);
/// Of peers that are not as they should be, so many are named at a time.
const NAMED: usize = 5;
/// The first edge to say that a host is gone is so much later at most.
const TURN: Duration = Duration::from_secs(30);
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
            seats: Seats::default(),
            silent: BTreeMap::new(),
            until: None,
            told: BTreeMap::new(),
            refused: BTreeMap::new(),
            watched: BTreeMap::new(),
            acked: BTreeMap::new(),
            due: BTreeSet::new(),
            later: BTreeSet::new(),
            spread: Instant::now(),
            stale: BTreeSet::new(),
            nginx: Nginx::Silent,
            beat: Instant::now(),
            looked: Instant::now(),
            log: Changes::default(),
            nginx_log: Changes::default(),
            bury_log: Changes::default(),
            seats_log: BTreeMap::new(),
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
            self.until = Some(Instant::now() + LEASE);
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
                self.bury(session).await?;
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
                () = time::sleep(pace) => {
                    if self.seats.is_due(false) {
                        self.put().await;
                    }
                    self.look().await;
                }
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
        // Nobody knows what was in between.
        self.silent.clear();
        self.hear_of_silence();
        self.seats.bring(self.said.brought());
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
        let mut is_membership = false;
        for event in message.events() {
            let Some(kv) = event.kv() else { continue };
            let value = (event.event_type() == EventType::Put).then(|| kv.value());
            match self.said.hear(&self.keys, kv.key(), value, kv.mod_revision()) {
                Ok(Some(host)) => {
                    is_membership |= self.keys.is_membership(kv.key());
                    self.due.insert(host);
                }
                Ok(None) => {}
                Err(wrong) => self.log.warn(wrong),
            }
        }
        if is_membership {
            self.hear_of_silence();
            self.seats.bring(self.said.brought());
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
                self.acked.clear();
                self.tell_all();
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
        self.spread_some(now);
        let is_time =
            |host: &Name| self.acked.get(host).is_none_or(|(_, at)| now.duration_since(*at) >= COUNTS);
        let due: BTreeSet<Name> =
            self.due.iter().chain(self.stale.iter().filter(|host| is_time(host))).cloned().collect();
        let mut new = Vec::new();
        for host in due {
            // What it says is in nginx when its peers are, too.
            if self.seats.is_behind_for(&host) {
                continue;
            }
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
            amiss: self.seats.amiss_of(host),
        }
    }

    /// Every host is to be told. Those who wait for it first; the others come by and by, and in no order.
    fn tell_all(&mut self) {
        for (name, _) in self.said.hosts() {
            let hosts = if self.said.is_under_way(name) { &mut self.due } else { &mut self.later };
            hosts.insert(name.clone());
        }
    }

    fn spread_some(&mut self, now: Instant) {
        self.later.retain(|host| !self.due.contains(host));
        if self.later.is_empty() || now.duration_since(self.spread) < SPREAD {
            return;
        }
        self.spread = now;
        let some = self.later.iter().skip(dice() % self.later.len()).chain(&self.later).take(AT_ONCE);
        let some: BTreeSet<Name> = some.cloned().collect();
        self.later.retain(|host| !some.contains(host));
        self.due.extend(some);
    }

    fn hear_of_silence(&mut self) {
        let silent: BTreeMap<Name, Span> =
            self.said.silent().map(|(host, _, grace)| (host.clone(), grace)).collect();
        self.silent.retain(|host, _| silent.contains_key(host));
        let since = Instant::now();
        for (host, grace) in silent {
            let grace = grace.duration();
            let turn = by_chance((grace / 10).min(TURN));
            self.silent.entry(host.clone()).or_insert_with(|| {
                tracing::warn!(%host, "silent: the peers that it brings stay for {grace:?}");
                Silence { since, until: since.checked_add(grace + turn).unwrap_or(since + FAR) }
            });
        }
    }

    /// Says in the place of a host that has been silent for too long that it brings nothing any more: once for all edges.
    async fn bury(&mut self, session: &mut Session) -> Result<(), StoreError> {
        let now = Instant::now();
        let over =
            self.said.silent().filter(|(host, ..)| self.silent.get(host).is_some_and(|it| it.until <= now));
        let over: Vec<(Name, i64)> = over.map(|(host, revision, _)| (host.clone(), revision)).collect();
        for (host, revision) in over {
            if let Some((upstream, here, all)) = self.said.outnumbered(&host) {
                self.bury_log.warn(format!(
                    "{host} is silent, and what it brings stays: only {here} of the {all} hosts that bring peers to {upstream} \
                     are there. If it is gone for good, delete {} from the store",
                    self.keys.members(&host)
                ));
                continue;
            }
            let key = self.keys.members(&host);
            let is_silent = Compare::create_revision(self.keys.host(&host), CompareOp::Equal, 0);
            let is_as_heard = Compare::mod_revision(&*key, CompareOp::Equal, revision);
            let us = session.holds(&self.keys.edge(&self.settings.name));
            let txn = Txn::new().when([us, is_silent, is_as_heard]).and_then([TxnOp::delete(&*key, None)]);
            match timely(session.client.txn(txn)).await {
                Ok(done) if done.succeeded() => {
                    let long = self.silent.get(&host).map_or(0, |silence| silence.since.elapsed().as_secs());
                    tracing::warn!(%host, "silent for {long} s: it brings nothing any more");
                }
                // Somebody was first, or it is there again: that is heard.
                Ok(_) => {}
                Err(error) => {
                    self.bury_log
                        .warn(format!("what {host} brings cannot be taken out of the store: {error}"));
                }
            }
            // Not again at once, whatever came of it.
            if let Some(silence) = self.silent.get_mut(&host) {
                silence.until = now + TURN;
            }
        }
        Ok(())
    }

    // --- nginx

    /// Somebody waits for what nginx has.
    fn is_busy(&self) -> bool {
        !self.stale.is_empty()
            || !self.watched.is_empty()
            || self.seats.is_behind()
            || !self.later.is_empty()
            || self.told.keys().any(|(peer, _)| self.mirror.in_flight(peer) > 0)
    }

    /// Puts into nginx what it does not have of what was said.
    async fn put(&mut self) {
        if self.nginx == Nginx::Answers {
            let result = async {
                self.seat(false).await?;
                self.put_all(self.said.wanted(), false).await
            };
            let result = result.await;
            self.met(result);
        }
    }

    /// Adds peers that hosts bring, and takes away those that nobody brings any more.
    async fn seat(&mut self, is_beat: bool) -> Result<(), ControlError> {
        if !self.seats.is_due(is_beat) {
            return Ok(());
        }
        let wanted = self.said.wanted();
        let against: BTreeSet<&Peer> =
            wanted.iter().filter(|(_, mark)| !mark.state.serves()).map(|((peer, _), _)| peer).collect();
        let steps = self.seats.steps(&self.mirror, |peer| !against.contains(peer));
        let mut changed = BTreeSet::new();
        for step in &steps {
            let Peer { upstream, address } = step.peer();
            let answer = match step {
                Step::Add { add, .. } => self.control.add(upstream, add).await,
                Step::Remove { remove, .. } => {
                    self.control.remove(upstream, address, remove, Span::default()).await
                }
            };
            match answer {
                Ok(ack) => {
                    self.seats.done(step);
                    if ack.changed {
                        let (what, why) = match step {
                            Step::Add { add, .. } => ("added to nginx", &add.reason),
                            Step::Remove { remove, .. } => ("taken out of nginx", &remove.reason),
                        };
                        tracing::info!(
                            upstream,
                            peer = address,
                            in_flight = ack.in_flight,
                            reason = why,
                            "{what}"
                        );
                        changed.insert(upstream.clone());
                    }
                }
                Err(ControlError::Refused(refusal)) => {
                    self.seats.refused(step, &refusal);
                    changed.insert(upstream.clone());
                }
                Err(error) => {
                    self.seats.look_again();
                    return Err(error);
                }
            }
            self.due.extend(step.host().cloned());
        }
        for upstream in &changed {
            self.mirror.look_into(&mut self.control, upstream).await?;
        }
        self.told.retain(|(peer, _), _| self.mirror.has(peer));
        self.say_what_is_amiss();
        Ok(())
    }

    /// Once for each peer and reason, and never all at once.
    fn say_what_is_amiss(&mut self) {
        let now: BTreeMap<Peer, String> =
            self.seats.amiss().map(|(peer, text, _)| (peer.clone(), text.to_owned())).collect();
        if now == self.seats_log {
            return;
        }
        let is_new = |peer: &Peer, text: &str| self.seats_log.get(peer).is_none_or(|said| said != text);
        let new: Vec<_> = self.seats.amiss().filter(|(peer, text, _)| is_new(peer, text)).collect();
        for (_, text, is_wrong) in new.iter().take(NAMED) {
            if *is_wrong {
                tracing::warn!("{text}");
            } else {
                tracing::info!("{text}");
            }
        }
        if let Some(more) = new.len().checked_sub(NAMED).filter(|more| *more > 0) {
            tracing::warn!("so it is with {more} more peers that hosts bring");
        }
        // Who brings them sees it in its status.
        let others = self.seats_log.keys().chain(now.keys());
        let hosts: BTreeSet<Name> = others.flat_map(|peer| self.mirror.hosts(peer, &self.said)).collect();
        self.due.extend(hosts);
        self.seats_log = now;
    }

    /// The same, to an nginx of which nothing is known. What was said before was decided before, floor and all.
    async fn put_again(&mut self) {
        let result = async {
            self.mirror.look(&mut self.control).await?;
            // What is there and wanted no more goes.
            self.told = self.mirror.marks_of_hosts();
            self.seats.forget();
            self.seat(false).await?;
            self.put_all(self.said.wanted(), true).await
        };
        let result = result.await;
        self.met(result);
        self.tell_all();
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
        // What was heard holds no longer, or nothing was heard yet: marks end by themselves.
        if self.until.is_none_or(|until| until <= Instant::now()) {
            return Ok(());
        }
        if self.mirror.instance() != was || self.nginx != Nginx::Answers {
            self.mirror.look(&mut self.control).await?;
            // What is there and wanted no more goes.
            self.told = self.mirror.marks_of_hosts();
            self.seats.forget();
            self.seat(false).await?;
            self.put_all(self.said.wanted(), true).await?;
            self.tell_all();
            return Ok(());
        }
        if is_new {
            let changed = self.mirror.look(&mut self.control).await?;
            self.seats.look_again();
            if changed {
                self.tell_all();
            }
        }
        self.seat(true).await?;
        let owners: BTreeSet<Owner> = self.told.keys().map(|(_, owner)| owner.clone()).collect();
        for owner in owners {
            let ack = self.control.renew(&Renew { owner: owner.clone(), lease: None, marks: None }).await?;
            self.mirror.keep(&owner, &ack);
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

/// As good as for ever.
const FAR: Duration = Duration::from_secs(365 * 86_400);
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
