//! All workers of one PM2 daemon, and the peers that are theirs.

use crate::{
    cluster::Clusters,
    config::Override,
    host::{Process, Unknown},
    look::{Examined, Look},
    mapping::{Behind, Scene},
    orphans::Cast,
    peer::{Peer, Place},
    pm2::{
        PmId,
        event::Event,
        monitor::{Listed, Status},
    },
    preload::{
        Answer, Preloads, What,
        workers::{Farewell, patience},
    },
    reconcile::{NOBODY, Observed},
    worker::{Phase, Seen, Wish, Worker},
};
use handoff_wire::{Expect, State};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

#[derive(Debug, Default)]
pub struct Roster {
    workers: BTreeMap<PmId, Worker>,
    clusters: Clusters,
    preloads: Preloads,
    /// Those who have their order to go and stay as long as nobody else serves, and until when at the latest.
    needed: BTreeMap<PmId, Instant>,
    overrides: Vec<Override>,
    /// Workers whose peers are given by configuration.
    configured: BTreeMap<PmId, Vec<String>>,
    /// The peers that nginx has.
    peers: BTreeSet<Peer>,
    /// What was behind each of them at the last full look.
    behind: BTreeMap<Peer, Behind>,
    /// Since when nobody listens there, as far as full looks knew.
    deserted: BTreeMap<Peer, Instant>,
    /// Those of them that are no worker's, in upstreams where workers of ours are.
    spares: BTreeSet<Peer>,
    notices: Notices,
}

/// How PM2's notices came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Notices {
    /// While the worker still lived.
    pub in_time: u64,
    /// After its death: PM2 gives no notice worth the name here.
    pub late: u64,
}

/// Where to look, and how often.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attention {
    /// Every living process.
    pub known: Vec<(PmId, Process)>,
    /// Those that may begin to listen any moment, and how often to look at them.
    pub starting: Vec<(PmId, Process)>,
    pub pace: Option<Duration>,
    /// How often to ask PM2 for a new process.
    pub ask: Option<Duration>,
}

/// Whoever listened there may only be replaced, by somebody whom we do not know.
const DESERTED: Duration = Duration::from_secs(10);
/// How often PM2 is asked for a worker's new process, by how long it is missing.
const ASK: [(Duration, Duration); 2] = [
    (Duration::from_secs(15), Duration::from_millis(25)),
    (Duration::from_secs(120), Duration::from_millis(250)),
];

// === impl Roster ===

impl Roster {
    pub fn new(overrides: Vec<Override>) -> Self {
        Self { overrides, ..Self::default() }
    }

    pub fn workers(&self) -> impl Iterator<Item = (PmId, &Worker)> {
        self.workers.iter().map(|(&id, worker)| (id, worker))
    }

    pub fn notices(&self) -> Notices {
        self.notices
    }

    pub fn behind(&self, peer: &Peer) -> Option<&Behind> {
        self.behind.get(peer)
    }

    pub fn all_behind(&self) -> impl Iterator<Item = (&Peer, &Behind)> {
        self.behind.iter()
    }

    /// True: they are others than before, so that a look is due.
    pub fn set_peers(&mut self, peers: BTreeSet<Peer>) -> bool {
        let is_new = self.peers != peers;
        self.peers = peers;
        is_new
    }

    pub fn notice(&mut self, event: &Event, now: Instant) {
        if let Event::Stopping(id) | Event::Starting(id) | Event::StoppingOld(id) = *event
            && let Some(worker) = self.workers.get(&id).filter(|worker| worker.settings().cluster)
        {
            self.clusters.hear(worker.app(), now);
        }
        match *event {
            Event::Stopping(id) => self.stopping(id, now),
            Event::Starting(id) => self.with(id, |worker| worker.starting(now)),
            Event::Ready(id) => self.with(id, |worker| worker.says_ready(now)),
            Event::Ended(id) => self.with(id, |worker| worker.ended(now)),
            Event::StoppingOld(_) | Event::Exited(_) | Event::Threw(..) | Event::Changed => {}
        }
    }

    /// A process says this of itself, through its preload.
    pub fn preload(&mut self, process: Process, what: &What, now: Instant) {
        match what {
            What::Came(_) => {
                let its = |worker: &Worker| worker.process() == Some(process);
                let worker = self.workers().find(|(_, worker)| its(worker)).map(|(id, _)| id);
                self.preloads.came(process, worker);
            }
            What::Listens(places) => self.preloads.listens(process, *places > 0),
            What::Stopping => self.preloads.goodbye(process),
            What::Left => self.preloads.left(process),
        }
        self.part(now);
    }

    /// What those are told who have said goodbye. `nginx`: what it was told and has confirmed.
    pub fn answers(&mut self, nginx: &Observed, now: Instant) -> Vec<(Process, Answer)> {
        let wishes = self.wishes();
        let farewell = |id: PmId, process: Process| {
            let Some(worker) = self.workers.get(&id) else { return Farewell::Unknown };
            let is_current = worker.process() == Some(process);
            if let Some(until) = self.needed.get(&id).filter(|_| is_current) {
                return Farewell::Needed(until.saturating_duration_since(now));
            }
            let mut peers =
                worker.claims().iter().filter_map(|peer| Some((peer, wishes.get(peer)?))).peekable();
            if peers.peek().is_none() {
                return Farewell::Unknown;
            }
            let is_told =
                |(peer, wish): (&Peer, &Wish)| wish.state != State::Up && nginx.has(peer, wish.state);
            if peers.all(is_told) { Farewell::Told } else { Farewell::Untold }
        };
        let mut preloads = std::mem::take(&mut self.preloads);
        let answers = preloads.answers(farewell);
        self.preloads = preloads;
        answers
    }

    /// What PM2 calls those who do not know it yet.
    pub fn names(&mut self) -> Vec<(Process, String)> {
        let name = |id: PmId| self.workers.get(&id).map(|worker| format!("{}:{id}", worker.app()));
        self.preloads.names(name)
    }

    /// Its process has the preload.
    pub fn has_preload(&self, id: PmId, worker: &Worker) -> bool {
        worker.process().is_some_and(|process| self.preloads.has(id, process))
    }

    /// True: the daemon may have handed it connections.
    pub fn died(&mut self, process: Process, now: Instant) -> bool {
        for worker in self.workers.values_mut() {
            worker.died(process, now);
        }
        self.clusters.died(process)
    }

    /// Who has the connections that the daemon accepts, as far as the last full look knew.
    pub fn cast(&self, look: &Look) -> Cast {
        let is_shared = |(_, found): &(&Peer, &Behind)| **found == Behind::Daemon;
        let peers = self.behind.iter().filter(is_shared).map(|(peer, _)| peer.clone()).collect();
        let examined = look.examined.values().map(|examined| examined.process);
        let workers = examined.chain(look.leavers.iter().copied()).collect();
        Cast { began: look.listed.as_ref().map(|_| look.began), daemon: look.daemon, workers, peers }
    }

    pub fn look(&mut self, look: &Look, now: Instant) {
        for worker in look.listed.iter().flatten() {
            self.describe(worker, now);
        }
        self.preloads.meet(look);
        self.part(now);
        let (holders, nothing) = (look.holders(), BTreeSet::new());
        // For an app in fork mode the daemon listens nowhere.
        let is_cluster = self.workers.values().any(|worker| worker.settings().cluster);
        let Look { listeners, locals, .. } = look;
        let daemons = if is_cluster { &look.daemons } else { &nothing };
        let scene = Scene { listeners, locals, holders: &holders, daemons };
        let behind: BTreeMap<Peer, Behind> =
            self.peers.iter().map(|peer| (peer.clone(), scene.behind(peer))).collect();
        match &look.listed {
            Some(listed) => {
                self.forget_missing(listed, now);
                self.clusters.left(&look.leavers);
                for worker in listed {
                    self.see_listed(worker, look, &behind, now);
                }
                self.behind = behind;
                self.desert(now);
                self.drop_lost_claims();
            }
            None => {
                for (&id, examined) in &look.examined {
                    self.see_examined(id, examined, look.began, &behind, now);
                }
            }
        }
        self.give_to_the_one_that_listens();
    }

    pub fn tick(&mut self, now: Instant) {
        self.clusters.tick(now);
        for worker in self.workers.values_mut() {
            worker.tick(now);
        }
        self.needed = self.needed(now);
        self.spares = self.spares(now);
    }

    /// When time alone changes something.
    pub fn next_tick(&self) -> Option<Instant> {
        let until = |worker: &Worker| match worker.phase() {
            Phase::Settling { until } => Some(until),
            _ => None,
        };
        let needed = self.needed.values().copied();
        self.workers.values().filter_map(until).chain(self.clusters.next_tick()).chain(needed).min()
    }

    /// What each peer of ours should be. A peer on which two workers listen is nobody's, but in cluster mode.
    pub fn wishes(&self) -> BTreeMap<Peer, Wish> {
        let mut wishes = BTreeMap::new();
        let mut shared = BTreeSet::new();
        let (clusters, forks): (Vec<_>, Vec<_>) =
            self.workers().partition(|(_, worker)| worker.settings().cluster);
        for (id, worker) in forks {
            for peer in worker.claims() {
                let mut wish = worker.wish(peer);
                if self.needed.contains_key(&id) {
                    wish.state = State::Up;
                }
                wish.reason = format!("{}:{id}: {}", worker.app(), wish.reason);
                if wishes.insert(peer.clone(), wish).is_some() {
                    shared.insert(peer);
                }
            }
        }
        wishes.retain(|peer, _| !shared.contains(peer));
        wishes.extend(self.spares.iter().map(|peer| (peer.clone(), deserted())));
        for (_, worker) in clusters {
            for peer in worker.claims() {
                let is_changing = worker.is_changing() || self.clusters.is_leaving(worker.app());
                let wish = wishes.entry(peer.clone()).or_insert_with(|| shared_wish(worker.app()));
                if is_changing && wish.state == State::Up {
                    wish.state = State::Changing;
                }
            }
        }
        wishes
    }

    /// Ports to spare: a connection there would be refused, and nobody would wait for a worker that comes back, because they
    /// seem to be up.
    fn spares(&self, now: Instant) -> BTreeSet<Peer> {
        let claims = || self.workers.values().flat_map(Worker::claims);
        let ours: BTreeSet<&str> = claims().map(|peer| peer.upstream.as_str()).collect();
        let deserted =
            self.deserted.iter().filter(|(_, since)| now.saturating_duration_since(**since) >= DESERTED);
        let spares = deserted.map(|(peer, _)| peer).filter(|peer| ours.contains(peer.upstream.as_str()));
        spares.filter(|peer| !claims().any(|claim| claim == *peer)).cloned().collect()
    }

    fn desert(&mut self, now: Instant) {
        let Self { behind, deserted, .. } = self;
        let is_deserted = |peer: &Peer| behind.get(peer) == Some(&Behind::Nobody);
        deserted.retain(|peer, _| is_deserted(peer));
        for peer in behind.keys().filter(|peer| is_deserted(peer)) {
            deserted.entry(peer.clone()).or_insert(now);
        }
    }

    pub fn attention(&self, now: Instant) -> Attention {
        let living = || self.workers().filter_map(|(id, worker)| Some((id, worker, worker.process()?)));
        let eager = |worker: &Worker| worker.eagerness(now);
        let ask = |since: Instant| {
            let missing = now.saturating_duration_since(since);
            ASK.iter().find(|(until, _)| missing < *until).map(|&(_, pace)| pace)
        };
        Attention {
            known: living().map(|(id, _, process)| (id, process)).collect(),
            starting: living()
                .filter(|(_, worker, _)| eager(worker).is_some())
                .map(|(id, _, process)| (id, process))
                .collect(),
            pace: self.workers.values().filter_map(eager).min(),
            ask: self
                .workers
                .values()
                .filter_map(Worker::missing_since)
                .filter_map(ask)
                .chain(self.clusters.pace())
                .min(),
        }
    }

    /// Those whose goodbye is new go from now on.
    fn part(&mut self, now: Instant) {
        for (id, process) in self.preloads.parting() {
            let Some(worker) = self.workers.get_mut(&id) else { continue };
            if worker.settings().cluster {
                self.clusters.hear(worker.app(), now);
            }
            // One that PM2 has replaced is no longer the worker.
            if worker.process() == Some(process) {
                worker.parts(now);
            }
        }
    }

    /// PM2 stops one worker after the other, and without `ready` does not wait until the one before serves again. Who has the
    /// preload does, if somebody is about to.
    fn needed(&self, now: Instant) -> BTreeMap<PmId, Instant> {
        let needed = self.workers().filter_map(|(id, worker)| {
            let until = worker.stopping_since()? + patience(worker.settings());
            let of_app = || self.workers().filter(|(other, of)| *other != id && of.app() == worker.app());
            let is_needed = until > now
                && self.has_preload(id, worker)
                && !of_app().any(|(id, other)| self.serves(id, other))
                && of_app().any(|(_, other)| other.is_expected());
            is_needed.then_some((id, until))
        });
        needed.collect()
    }

    /// In cluster mode somebody listens all the time; who has the preload says itself whether it is this one.
    fn serves(&self, id: PmId, worker: &Worker) -> bool {
        let says = |process| self.preloads.listen(id, process);
        worker.is_serving() && (!worker.settings().cluster || worker.process().is_some_and(says))
    }

    fn with(&mut self, id: PmId, tell: impl FnOnce(&mut Worker)) {
        if let Some(worker) = self.workers.get_mut(&id) {
            tell(worker);
        }
    }

    fn stopping(&mut self, id: PmId, now: Instant) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        if worker.stopping(now) {
            self.notices.in_time += 1;
        } else {
            self.notices.late += 1;
        }
    }

    fn describe(&mut self, listed: &Listed, now: Instant) {
        let addresses = self.overrides.iter().find(|over| over.is_for(listed)).map(|over| over.peers.clone());
        self.configured.remove(&listed.id);
        self.configured.extend(addresses.map(|addresses| (listed.id, addresses)));
        let worker = self.workers.entry(listed.id).or_insert_with(|| Worker::new(now));
        worker.describe(&listed.app, &listed.settings);
    }

    fn see_listed(&mut self, listed: &Listed, look: &Look, behind: &BTreeMap<Peer, Behind>, now: Instant) {
        let examined = look.examined.get(&listed.id);
        if let Some(examined) = examined.filter(|_| listed.settings.cluster) {
            self.clusters.meet(&listed.app, examined.process);
        }
        let seen = Seen {
            began: look.began,
            process: examined.map(|examined| examined.process),
            status: Some(listed.status),
            open: self.open(listed.id, examined, Some(listed.status), behind),
        };
        self.with(listed.id, |worker| worker.look(&seen, now));
    }

    fn see_examined(
        &mut self,
        id: PmId,
        examined: &Examined,
        began: Instant,
        behind: &BTreeMap<Peer, Behind>,
        now: Instant,
    ) {
        let open = self.open(id, Some(examined), None, behind);
        let seen = Seen { began, process: Some(examined.process), status: None, open };
        // Only PM2's list makes a worker.
        self.with(id, |worker| worker.look(&seen, now));
    }

    /// The peers on which a worker listens.
    fn open(
        &self,
        id: PmId,
        examined: Option<&Examined>,
        status: Option<Status>,
        behind: &BTreeMap<Peer, Behind>,
    ) -> Result<BTreeSet<Peer>, Unknown> {
        let is_open = |peer: &Peer, found: &Behind| match self.configured.get(&id) {
            None if *found == Behind::Daemon => self.is_shared_by(id, peer, behind),
            None => *found == Behind::Worker(id),
            Some(addresses) if !addresses.contains(&peer.address) => false,
            Some(_) => match found {
                Behind::Nobody => false,
                // Out of our sight: PM2's word is all there is.
                Behind::Foreign | Behind::Unclear => status.map_or_else(
                    || self.workers.get(&id).is_some_and(|worker| worker.open().contains(peer)),
                    |status| status == Status::Online,
                ),
                Behind::Worker(_) | Behind::Daemon | Behind::Several(_) | Behind::Stranger => true,
            },
        };
        if let Some(Err(unknown)) = examined.map(|examined| &examined.held)
            && !self.configured.contains_key(&id)
        {
            return Err(unknown.clone());
        }
        Ok(behind.iter().filter(|(peer, found)| is_open(peer, found)).map(|(peer, _)| peer.clone()).collect())
    }

    /// Whether the daemon listens there for this worker's app. It does not say for whom: the app's PORT does, or else it may
    /// be any app whose PORT says nothing. A mistake costs connections that carry one request, and no request.
    fn is_shared_by(&self, id: PmId, peer: &Peer, behind: &BTreeMap<Peer, Behind>) -> bool {
        let Some(worker) = self.workers.get(&id).filter(|worker| worker.settings().cluster) else {
            return false;
        };
        let has = |worker: &Worker, port: Option<u16>| port.is_some() && worker.settings().port == port;
        let mut clusters = self.workers.values().filter(|worker| worker.settings().cluster);
        if clusters.any(|worker| has(worker, port(peer))) {
            return has(worker, port(peer));
        }
        let mut shared = behind.iter().filter(|(_, found)| **found == Behind::Daemon);
        !shared.any(|(peer, _)| has(worker, port(peer)))
    }

    fn forget_missing(&mut self, listed: &[Listed], now: Instant) {
        let ids: BTreeSet<PmId> = listed.iter().map(|worker| worker.id).collect();
        self.workers.retain(|id, worker| ids.contains(id) || !worker.vanished(now));
    }

    /// A worker that is gone for good has no say any more where somebody else listens.
    fn drop_lost_claims(&mut self) {
        let taken = |peer: &&Peer| matches!(self.behind.get(*peer), Some(found) if *found != Behind::Nobody);
        for worker in self.workers.values_mut().filter(|worker| worker.phase() == Phase::Gone) {
            let lost: Vec<Peer> = worker.claims().iter().filter(taken).cloned().collect();
            lost.iter().for_each(|peer| worker.disclaim(peer));
        }
    }

    /// Where one worker listens now, no other one has a claim from the past.
    fn give_to_the_one_that_listens(&mut self) {
        let open: Vec<(PmId, Peer)> = self
            .workers()
            .filter(|(_, worker)| !worker.settings().cluster)
            .flat_map(|(id, worker)| worker.open().iter().map(move |peer| (id, peer.clone())))
            .collect();
        for (owner, peer) in open {
            for (_, worker) in self.workers.iter_mut().filter(|(id, _)| **id != owner) {
                worker.disclaim(&peer);
            }
        }
    }
}

fn port(peer: &Peer) -> Option<u16> {
    match peer.place() {
        Some(Place::Tcp(address)) => Some(address.port()),
        _ => None,
    }
}

/// What a port to spare should be.
fn deserted() -> Wish {
    Wish { state: State::Down, expect: Expect::Gone, reason: NOBODY.to_owned(), is_able: false }
}

/// What the peer of an app in cluster mode should be while all is calm.
fn shared_wish(app: &str) -> Wish {
    let reason = format!("{app}: a worker is being replaced");
    Wish { state: State::Up, expect: Expect::Back, reason, is_able: false }
}
