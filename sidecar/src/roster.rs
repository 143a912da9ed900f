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
        monitor::{LISTEN_TIMEOUT, Listed, Status},
    },
    preload::{
        Answer, Preloads, What,
        workers::{Farewell, kill_timeout, patience},
    },
    reconcile::Observed,
    shared::Shared,
    spares::Spares,
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
    /// PM2's daemon gives its place to a newer one.
    updating: bool,
    /// The peers that nginx has.
    peers: BTreeSet<Peer>,
    /// What was behind each of them at the last full look.
    behind: BTreeMap<Peer, Behind>,
    spares: Spares,
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
    /// Peers beside those of workers on which nobody seems to listen: whether a connection is refused there.
    pub doubtful: BTreeSet<Peer>,
    /// How often to ask PM2 for a new process.
    pub ask: Option<Duration>,
}

/// How often PM2 is asked for a worker's new process, by how long it is missing.
const ASK: [(Duration, Duration); 2] = [
    (Duration::from_secs(15), Duration::from_millis(25)),
    (Duration::from_secs(120), Duration::from_millis(250)),
];
/// How much longer than PM2 waits for a new worker to listen, and for the old one to end.
const FORGOTTEN: Duration = Duration::from_secs(15);
/// How often it is asked while `pm2 update` is at work.
const UPDATE: Duration = Duration::from_millis(100);

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

    /// Workers in cluster mode that PM2 lists no longer, and has not ended though it had the time: when a worker dies while
    /// it is being replaced, PM2 starts it again and forgets it.
    pub fn forgotten(&self, now: Instant) -> Vec<Process> {
        let clusters = self.workers.values().map(Worker::settings).filter(|settings| settings.cluster);
        let times = clusters
            .map(|settings| settings.listen_timeout.unwrap_or(LISTEN_TIMEOUT) + kill_timeout(settings));
        self.clusters.forgotten(times.max().unwrap_or_default() + FORGOTTEN, now).collect()
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
        self.updating = look.updating.unwrap_or(self.updating);
        self.preloads.meet(look);
        self.part(now);
        let (holders, nothing) = (look.holders(), BTreeSet::new());
        // For an app in fork mode the daemon listens nowhere.
        let is_cluster = self.workers.values().any(|worker| worker.settings().cluster);
        let Look { listeners, locals, .. } = look;
        let daemons = if is_cluster { &look.daemons } else { &nothing };
        let scene = Scene { listeners, locals, holders: &holders, daemons };
        let behind: BTreeMap<Peer, Behind> =
            self.peers.iter().map(|peer| (peer.clone(), look.behind(&scene, peer))).collect();
        match &look.listed {
            Some(listed) => {
                self.forget_missing(listed, now);
                self.clusters.left(&look.leavers, now);
                for worker in listed {
                    self.see_listed(worker, look, &behind, now);
                }
                self.behind = behind;
                self.spares.look(&self.behind, now);
                self.drop_lost_claims();
            }
            None => {
                for (&id, examined) in &look.examined {
                    self.see_examined(id, examined, look.began, &behind, now);
                }
                if look.is_orphaned {
                    self.workers.values_mut().for_each(|worker| worker.orphaned(now));
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
        self.spares.tick(self.doubtful(), now);
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
        wishes.extend(self.spares.wishes());
        let mut behind_many = BTreeMap::<&Peer, Shared>::new();
        for (id, worker) in clusters {
            for peer in worker.claims() {
                let shared = behind_many.entry(peer).or_default();
                shared.meet(peer, worker, self.needed.contains_key(&id));
                if self.clusters.is_leaving(worker.app()) {
                    shared.leaves(self.clusters.is_served_by_leavers(worker.app()));
                }
            }
        }
        for (peer, shared) in behind_many {
            wishes.entry(peer.clone()).or_insert_with(|| shared.wish());
        }
        for wish in wishes.values_mut().filter(|wish| self.updating && wish.expect == Expect::Gone) {
            wish.expect = Expect::Back;
            wish.reason.push_str(", and pm2 update is at work");
        }
        wishes
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
            doubtful: self.doubtful(),
            ask: self
                .workers
                .values()
                .filter_map(Worker::missing_since)
                .filter_map(ask)
                .chain(self.clusters.pace())
                .chain(self.updating.then_some(UPDATE))
                .min(),
        }
    }

    /// Peers of upstreams where workers of ours are, that are no worker's, and on which nobody seems to listen.
    fn doubtful(&self) -> BTreeSet<Peer> {
        let claims: BTreeSet<&Peer> = self.workers.values().flat_map(Worker::claims).collect();
        let ours: BTreeSet<&str> = claims.iter().map(|peer| peer.upstream.as_str()).collect();
        let is_doubtful = |peer: &&Peer| ours.contains(peer.upstream.as_str()) && !claims.contains(peer);
        // Where a connection was taken, it may be refused the next time.
        let seems_free = |(_, found): &(&Peer, &Behind)| found.is_nobody() || **found == Behind::Unclear;
        self.behind.iter().filter(seems_free).map(|(peer, _)| peer).filter(is_doubtful).cloned().collect()
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
            let may_stay = |process| self.preloads.may_stay(id, process);
            let is_needed = until > now
                && worker.process().is_some_and(may_stay)
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
                Behind::Nobody | Behind::Refused => false,
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
        let taken = |peer: &&Peer| self.behind.get(*peer).is_some_and(|found| !found.is_nobody());
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        host::{Listeners, Locals, tree::Held},
        pm2::monitor::Settings,
    };

    fn peer(port: u16) -> Peer {
        Peer::new("app", format!("127.0.0.1:{port}"))
    }

    /// Of a worker that listens on port 1; on port 2 somebody else may.
    fn look(began: Instant, is_refused: bool) -> Look {
        let process = Process { pid: 7, start: 1 };
        let listed = Listed {
            id: PmId(0),
            app: "shop".into(),
            pid: Some(7),
            status: Status::Online,
            settings: Settings::default(),
        };
        let tcp: &[(&str, u64)] = &[("127.0.0.1:1", 70), ("127.0.0.1:2", 80)];
        let (tcp, refused) =
            if is_refused { (&tcp[..1], [(peer(2), true)].into()) } else { (tcp, BTreeMap::new()) };
        Look {
            began,
            listed: Some(vec![listed]),
            examined: [(PmId(0), Examined { process, held: Ok(Held { sockets: [(70, process)].into() }) })]
                .into(),
            daemon: 0,
            daemons: BTreeSet::new(),
            leavers: BTreeSet::new(),
            is_orphaned: false,
            updating: None,
            listeners: Listeners::of(tcp, &[]),
            locals: Locals::of(&[]),
            refused,
        }
    }

    #[test]
    fn a_port_beside_a_worker_that_refuses_for_long_is_to_spare() {
        let began = Instant::now();
        let mut roster = Roster::default();
        roster.set_peers([peer(1), peer(2), Peer::new("other", "127.0.0.1:2")].into());
        let mut wish = |after: u64, is_refused| {
            let now = began + Duration::from_secs(after);
            roster.look(&look(now, is_refused), now);
            roster.tick(now);
            let wishes = roster.wishes();
            assert_eq!(wishes.get(&peer(1)).map(|wish| wish.state), Some(State::Up));
            assert!(!wishes.keys().any(|peer| peer.upstream == "other"), "it has no worker of ours");
            wishes.get(&peer(2)).map(|wish| (wish.state, wish.expect))
        };
        assert_eq!(wish(0, true), None);
        assert_eq!(wish(9, true), None, "somebody may be replaced");
        assert_eq!(wish(10, true), Some((State::Down, Expect::Gone)));
        assert_eq!(wish(11, false), None);
        assert_eq!(wish(12, true), None);
    }
}
