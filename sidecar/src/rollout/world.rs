//! The app while it is replaced: looked at again and again, and listened to on PM2's bus.
//!
//! What a step waits for is read from the last look, never from an event: an event only makes the next look come sooner,
//! or says that somebody else stops a worker of this app. Then the brake is pulled.

use super::{
    Site,
    brake::{Brake, Halt},
};
use crate::{
    config::Override,
    host::{Proc, Process, Processes},
    look::{self, Look},
    manager::{Manager, ManagerError},
    mapping::Behind,
    orphans::Cast,
    peer::Peer,
    pm2::{
        PmId,
        bus::{self, Item, Notice, Notices},
        event::{Event, Thrown},
        home::Home,
        monitor::Listed,
        trust::Daemon,
    },
    roster::Roster,
    scout,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio::{sync::watch, task::JoinSet, time};

/// How the workers of one app were found at one moment.
#[derive(Clone, Debug)]
pub struct World {
    pub began: Instant,
    pub daemon: Daemon,
    pub workers: BTreeMap<PmId, Seen>,
    /// All workers of the daemon, of every app.
    pub listed: Vec<Listed>,
    /// Processes in cluster mode that PM2 has replaced, and that have not ended yet.
    pub leavers: BTreeSet<Process>,
    /// Who is behind each peer of nginx.
    pub behind: BTreeMap<Peer, Behind>,
    /// Who has the connections that the daemon accepts.
    pub cast: Cast,
}

#[derive(Clone, Debug)]
pub struct Seen {
    pub listed: Listed,
    pub process: Option<Process>,
    /// The peers on which it listens.
    pub open: BTreeSet<Peer>,
    /// Where it listens, as an operator would write it.
    pub listens: Vec<String>,
    /// Why its processes could not be examined.
    pub unknown: Option<String>,
    /// When it said `ready` last.
    pub ready: Option<Instant>,
    /// What it threw last.
    pub threw: Option<(Instant, Thrown)>,
    /// When the look at it began.
    pub looked: Instant,
}

/// The workers that this roll-out has in hand, so that it knows its own deeds when it hears of them.
#[derive(Clone, Debug, Default)]
pub struct Hands(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    hands: BTreeMap<PmId, Hand>,
    /// PM2 was asked for one more worker, and it was not seen yet.
    one_more: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Hand {
    /// Stops that we asked for and did not hear of yet.
    stops: u32,
    /// Its process changes any moment.
    is_moving: bool,
    /// PM2 was asked to forget it.
    goes: bool,
}

/// A worker that is in hand, until this is dropped.
#[derive(Debug)]
pub struct InHand {
    hands: Hands,
    id: PmId,
}

pub type Worlds = watch::Receiver<Option<Arc<World>>>;

#[derive(Debug)]
pub struct Observer {
    home: Home,
    overrides: Vec<Override>,
    app: String,
    peers: BTreeSet<Peer>,
    manager: Arc<dyn Manager>,
    notices: Notices,
    hands: Hands,
    brake: Brake,
    worlds: watch::Sender<Option<Arc<World>>>,
    ready: BTreeMap<PmId, Instant>,
    threw: BTreeMap<PmId, (Instant, Thrown)>,
    /// The bus was interrupted: what was said meanwhile is not known.
    missed: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum WorldError {
    #[error(transparent)]
    Manager(#[from] ManagerError),
    #[error("PM2's bus in {0} does not answer: is its daemon stopped or overloaded?")]
    Deaf(Home),
    #[error("cannot look at this host's sockets in /proc: {0}")]
    Host(std::io::Error),
}

/// PM2 answers at once; a daemon that needs longer is stuck.
const PATIENCE: Duration = Duration::from_secs(5);
/// While a worker is being replaced, and while none is.
const EAGER: Duration = Duration::from_millis(25);
const CALM: Duration = Duration::from_millis(300);

// === impl Observer ===

impl Observer {
    /// Observes for as long as `tasks` lives. The first look is done when this comes back.
    pub async fn start(
        site: &Site,
        app: &str,
        peers: BTreeSet<Peer>,
        (hands, brake): (Hands, Brake),
        tasks: &mut JoinSet<()>,
    ) -> Result<Worlds, WorldError> {
        let (bus, mut notices) = bus::channel();
        tasks.spawn(site.manager.hear(bus));
        if site.manager.tells() {
            // What is said from here on is heard; what was before, is looked at.
            let connected = time::timeout(PATIENCE, notices.next()).await;
            connected.map_err(|_| WorldError::Deaf(site.home.clone()))?;
        }
        let (worlds, receiver) = watch::channel(None);
        let mut observer = Self {
            home: site.home.clone(),
            overrides: site.overrides.clone(),
            app: app.to_owned(),
            peers,
            manager: site.manager.clone(),
            notices,
            hands,
            brake,
            worlds,
            ready: BTreeMap::new(),
            threw: BTreeMap::new(),
            missed: false,
        };
        observer.look().await?;
        tasks.spawn(observer.run());
        Ok(receiver)
    }

    async fn run(mut self) {
        let mut next = time::Instant::now();
        loop {
            tokio::select! {
                item = self.notices.next() => match item {
                    Some(item) => {
                        self.hear(&item);
                        next = next.min(time::Instant::now() + Duration::from_millis(1));
                    }
                    None => return,
                },
                () = time::sleep_until(next) => {
                    let began = Instant::now();
                    if let Err(error) = self.look().await {
                        return self.brake.pull(Halt::Pm2(error.to_string()));
                    }
                    let pace = if self.hands.are_moving() { EAGER } else { CALM };
                    next = (began + pace).max(Instant::now() + scout::rest(began.elapsed())).into();
                }
            }
        }
    }

    fn hear(&mut self, item: &Item) {
        let event = match item {
            Item::Resync => return self.missed = true,
            Item::Notice(Notice { event, .. }) => event,
        };
        match *event {
            Event::Threw(id, ref thrown) => {
                self.threw.insert(id, (Instant::now(), thrown.clone()));
            }
            Event::Ready(id) => _ = self.ready.insert(id, Instant::now()),
            Event::Stopping(id) | Event::StoppingOld(id) => self.is_stopped(id),
            _ => {}
        }
    }

    fn is_stopped(&self, id: PmId) {
        if self.is_ours(id) && !self.hands.claim_stop(id) {
            self.brake.pull(Halt::Foreign(format!("PM2 stops {}, and not for this roll-out", self.name(id))));
        }
    }

    fn is_ours(&self, id: PmId) -> bool {
        self.worlds.borrow().as_ref().is_some_and(|world| world.workers.contains_key(&id))
    }

    async fn look(&mut self) -> Result<(), WorldError> {
        let world = self.take().await?;
        let last = self.worlds.borrow().clone();
        if let Some(change) = last.and_then(|last| self.foreign_change(&last, &world)) {
            self.brake.pull(Halt::Foreign(change));
        }
        self.missed = false;
        self.worlds.send_replace(Some(Arc::new(world)));
        Ok(())
    }

    async fn take(&mut self) -> Result<World, WorldError> {
        let began = Instant::now();
        let (daemon, listed) = self.manager.list().await?;
        let look = tokio::task::spawn_blocking(move || {
            let proc = Proc::default();
            let roots = look::roots(&proc, &listed);
            let look = Look::take(&proc, began, Some(daemon), &Processes::read(&proc), &roots)?;
            Ok(Look { listed: Some(listed), ..look })
        });
        let look = look.await.unwrap_or_else(|error| Err(std::io::Error::other(error)));
        Ok(self.see(daemon, &look.map_err(WorldError::Host)?))
    }

    fn see(&self, daemon: Daemon, look: &Look) -> World {
        let mut roster = Roster::new(self.overrides.clone());
        roster.set_peers(self.peers.clone());
        roster.look(look, Instant::now());
        let known: BTreeMap<PmId, _> = roster.workers().collect();
        // In cluster mode the daemon listens for the workers, beside its own sockets in its home.
        let own = format!("unix:{}/", self.home.path().display());
        let mut shared = look.listeners.describe(|inode| look.daemons.contains(&inode));
        shared.retain(|listens| !listens.starts_with(&own));
        let clusters = || look.listed.iter().flatten().filter(|listed| listed.settings.cluster);
        let of_this_app = look.listed.iter().flatten().filter(|listed| listed.app == self.app);
        let seen = |listed: &Listed| {
            let worker = known.get(&listed.id);
            let held = look.examined.get(&listed.id).and_then(|examined| examined.held.as_ref().ok());
            let holds = |inode: u64| held.is_some_and(|held| held.sockets.contains_key(&inode));
            let listens = if listed.settings.cluster {
                let ports = clusters().filter_map(|listed| listed.settings.port);
                of_the_app(&shared, listed.settings.port, &ports.collect())
            } else {
                look.listeners.describe(holds)
            };
            Seen {
                process: worker.and_then(|worker| worker.process()),
                open: worker.map(|worker| worker.open().clone()).unwrap_or_default(),
                listens,
                unknown: worker.and_then(|worker| worker.unknown()).map(ToString::to_string),
                ready: self.ready.get(&listed.id).copied(),
                threw: self.threw.get(&listed.id).cloned(),
                looked: look.began,
                listed: listed.clone(),
            }
        };
        World {
            began: look.began,
            daemon,
            listed: look.listed.clone().unwrap_or_default(),
            leavers: look.leavers.clone(),
            workers: of_this_app.map(|listed| (listed.id, seen(listed))).collect(),
            behind: roster.all_behind().map(|(peer, behind)| (peer.clone(), behind.clone())).collect(),
            cast: roster.cast(look),
        }
    }

    fn name(&self, id: PmId) -> String {
        self.manager.name(&self.app, id)
    }

    /// What others did between two looks. A worker that died by itself is no command of anybody's; but what happened
    /// while the bus was silent is taken for one.
    fn foreign_change(&self, last: &World, now: &World) -> Option<String> {
        if last.daemon.pid != now.daemon.pid {
            return Some("PM2's daemon was replaced".to_owned());
        }
        let is_gone = |id: &&PmId| !now.workers.contains_key(id) && !self.hands.let_go(**id);
        if let Some(gone) = last.workers.keys().find(is_gone) {
            return Some(format!("{} was deleted", self.name(*gone)));
        }
        let is_new = |id: &&PmId| !last.workers.contains_key(id) && !self.hands.claim_one_more();
        if let Some(new) = now.workers.keys().find(is_new) {
            return Some(format!("{} was added", self.name(*new)));
        }
        let is_other = |(id, seen): &(&PmId, &Seen)| {
            let Some(before) = last.workers.get(id) else { return false };
            // Of one that tells nothing: a process that it replaced by itself is counted.
            let is_silent = || {
                let counts = [before, seen].map(|seen| seen.listed.settings.restarts);
                !self.manager.tells() && counts[0] >= counts[1] && seen.process.is_some()
            };
            (self.missed || is_silent()) && !self.hands.have(**id) && before.process != seen.process
        };
        now.workers.iter().find(is_other).map(|(id, _)| format!("{} was restarted", self.name(*id)))
    }
}

/// Which of the daemon's listeners may be those of an app with this PORT: the ones that have it, else all that are no other
/// app's.
fn of_the_app(shared: &[String], port: Option<u16>, taken: &BTreeSet<u16>) -> Vec<String> {
    let port_of = |listens: &&String| Some(listens.parse::<SocketAddr>().ok()?.port());
    let has = |listens: &&String| port.is_some() && port_of(listens) == port;
    let is_free = |listens: &&String| port_of(listens).is_none_or(|port| !taken.contains(&port));
    let is_its =
        |listens: &&String| if shared.iter().any(|one| has(&one)) { has(listens) } else { is_free(listens) };
    shared.iter().filter(is_its).cloned().collect()
}

// === impl Hands ===

impl Hands {
    pub fn take(&self, id: PmId) -> InHand {
        self.inner().hands.insert(id, Hand::default());
        InHand { hands: self.clone(), id }
    }

    /// PM2 is about to be asked for one more worker.
    pub fn expect_one_more(&self) {
        self.inner().one_more = true;
    }

    fn have(&self, id: PmId) -> bool {
        self.inner().hands.contains_key(&id)
    }

    fn are_moving(&self) -> bool {
        let inner = self.inner();
        inner.one_more || inner.hands.values().any(|hand| hand.is_moving)
    }

    /// Whether we asked for this stop; each one is heard of once.
    fn claim_stop(&self, id: PmId) -> bool {
        match self.inner().hands.get_mut(&id) {
            Some(Hand { stops: stops @ 1.., .. }) => {
                *stops -= 1;
                true
            }
            _ => false,
        }
    }

    /// Whether we asked for a new worker; it comes once.
    fn claim_one_more(&self) -> bool {
        std::mem::take(&mut self.inner().one_more)
    }

    /// Whether we asked for its end.
    fn let_go(&self, id: PmId) -> bool {
        self.inner().hands.get(&id).is_some_and(|hand| hand.goes)
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl InHand ===

impl InHand {
    /// PM2 is about to be asked to stop it.
    pub fn expect_stop(&self) {
        self.with(|hand| hand.stops += 1);
    }

    /// PM2 is about to be asked to forget it.
    pub fn expect_end(&self) {
        self.with(|hand| hand.goes = true);
    }

    /// From now on it is looked at often, or no longer.
    pub fn is_moving(&self, is_moving: bool) {
        self.with(|hand| hand.is_moving = is_moving);
    }

    fn with(&self, change: impl FnOnce(&mut Hand)) {
        self.hands.inner().hands.get_mut(&self.id).map(change);
    }
}

impl Drop for InHand {
    fn drop(&mut self) {
        self.hands.inner().hands.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_stop_is_known_once() {
        let hands = Hands::default();
        assert!(!hands.claim_stop(PmId(1)));
        let one = hands.take(PmId(1));
        assert!(!hands.claim_stop(PmId(1)));
        one.expect_stop();
        assert!(hands.claim_stop(PmId(1)));
        assert!(!hands.claim_stop(PmId(1)));
        one.is_moving(true);
        assert!(hands.are_moving());
        drop(one);
        assert!(!hands.are_moving() && !hands.have(PmId(1)));
    }

    #[test]
    fn our_own_new_worker_comes_once_and_goes_when_we_ask() {
        let hands = Hands::default();
        assert!(!hands.claim_one_more());
        hands.expect_one_more();
        assert!(hands.are_moving() && hands.claim_one_more() && !hands.claim_one_more());
        let one = hands.take(PmId(4));
        assert!(!hands.let_go(PmId(4)));
        one.expect_end();
        assert!(hands.let_go(PmId(4)) && !hands.let_go(PmId(3)));
    }
}
