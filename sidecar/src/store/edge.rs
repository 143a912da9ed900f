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

mod answers;
mod counts;
mod marks;
mod seating;
mod silence;

use super::{
    Settings, StoreError,
    mirror::Mirror,
    report::{EdgeReport, HostLine},
    said::Said,
    seats::Seats,
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
    Owner, Refusal,
    store::{AckValue, EdgeValue, HostValue, Keys, Name, WorkerMark},
};
use silence::Silence;
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

const BEAT: Duration = Duration::from_secs(1);
/// How often nginx is asked while somebody waits for its requests to end.
const PACE: Duration = Duration::from_millis(50);
/// How often a host is told of counts alone.
const COUNTS: Duration = Duration::from_millis(500);
/// A reload of nginx may keep the socket away for a moment.
const ABSENT: Duration = Duration::from_secs(1);
/// So many messages are heard before any of them is answered.
const MESSAGES: usize = 256;
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

    // --- nginx

    /// Somebody waits for what nginx has.
    fn is_busy(&self) -> bool {
        !self.stale.is_empty()
            || !self.watched.is_empty()
            || self.seats.is_behind()
            || !self.later.is_empty()
            || self.told.keys().any(|(peer, _)| self.mirror.in_flight(peer) > 0)
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
