//! Connections that lead to nobody.
//!
//! In cluster mode PM2's daemon accepts each connection and hands it to a worker. A worker that is killed at this moment
//! never takes it, the daemon never asks another one, and the client waits until it gives up: the daemon alone has the
//! connection, and what was sent on it lies there unread. Node does not notice; somebody who looks at the open files of
//! all of them does, and tells nginx.
//!
//! One that a busy worker has yet to take looks the same. But a worker is handed one connection at a time, in the order in
//! which they came: who has taken a younger one has no older one still to take. A connection is an orphan when that is so
//! for every worker that lives.
//!
//! A worker that has closed its server gives back what it is handed, and it is then handed to another one, after younger
//! ones. So nothing counts that was seen while such a worker lived: with each end it begins anew. And what it said last may
//! not have been read yet: only when somebody has taken a connection that came after its end has the daemon read that, too,
//! and what is younger than this is behind the one that was given back.
//!
//! nginx may have all the connections that it needs, with one worker, and open no more: nobody ever takes a younger one. So
//! where somebody waits for long the sidecar knocks: it opens some itself, and closes them when it has seen who took them.

use crate::{
    control::Control,
    host::{Proc, Process, connections, tree},
    peer::{Peer, Place},
    telemetry::Changes,
};
use handoff_wire::{OrphanRequest, OrphanSet, Owner};
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    net::TcpStream,
    sync::{Notify, watch},
    task, time,
};

/// The end at which the daemon listens, and the client's.
type Ends = (SocketAddr, SocketAddr);

/// Whose connections they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cast {
    /// Whoever PM2 had started by then is in it.
    pub began: Option<Instant>,
    pub daemon: u32,
    /// Everybody to whom the daemon may have handed one.
    pub workers: BTreeSet<Process>,
    /// The addresses that these workers share.
    pub peers: BTreeSet<Peer>,
}

/// The connections at one moment.
#[derive(Clone, Debug, Default)]
struct Glance {
    /// That of its cast.
    began: Option<Instant>,
    /// Those too that nobody has accepted yet.
    all: BTreeSet<Ends>,
    /// Those that the daemon has and no worker, each with its inode.
    waiting: BTreeSet<(Ends, u64)>,
    /// Those of each worker that lives.
    taken: BTreeMap<Process, BTreeSet<Ends>>,
}

/// What was seen of those that wait.
#[derive(Debug, Default)]
struct Suspects {
    looks: u64,
    first_seen: BTreeMap<Ends, u64>,
    living: BTreeSet<Process>,
    suspects: BTreeMap<(Ends, u64), Suspect>,
}

#[derive(Debug)]
struct Suspect {
    /// At which look it was found waiting.
    found: u64,
    /// What was first seen later than this is younger.
    since: u64,
    /// When somebody took a younger one after the last end of a worker, so that the daemon has read its last words.
    settled: Option<Instant>,
    /// Workers that have taken one that is younger still.
    cleared: BTreeSet<Process>,
}

/// Looks for them after a worker ended, and tells nginx.
#[derive(Debug)]
pub struct Search {
    pub owner: Owner,
    pub control: Control,
    pub cast: watch::Receiver<Cast>,
    pub death: Arc<Notify>,
    /// Asks for a new cast.
    pub look: Arc<Notify>,
}

const PACE: Duration = Duration::from_millis(150);
/// So long after a death, and for as long as somebody waits.
pub const LASTS: Duration = Duration::from_secs(3);
/// A worker that is only busy has taken what it was handed after so many looks, most of the time.
const LONG: u64 = 5;
/// nginx takes so many at once.
const MAX_ORPHANS: usize = 64;

// === impl Search ===

impl Search {
    pub async fn run(mut self) {
        let mut log = Changes::default();
        loop {
            self.death.notified().await;
            if let Err(error) = self.search(&mut log).await {
                log.warn(format!("cannot look for connections that a dead worker left: {error}"));
            }
        }
    }

    async fn search(&mut self, log: &mut Changes) -> io::Result<()> {
        let (until, mut suspects) = (Instant::now() + LASTS, Suspects::default());
        let (mut peers, mut knocks) = (BTreeSet::new(), Vec::new());
        while Instant::now() < until || !suspects.suspects.is_empty() {
            let mut cast = self.cast.borrow().clone();
            // When all workers have ended the daemon listens there no longer, and still has what it accepted.
            peers.append(&mut cast.peers);
            cast.peers.clone_from(&peers);
            let workers = cast.workers.len();
            let glance = task::spawn_blocking(move || Glance::of(&Proc::default(), &cast));
            let orphans = suspects.look(&glance.await.map_err(io::Error::other)??, Instant::now());
            if suspects.await_a_look() {
                self.look.notify_one();
            }
            for some in orphans.chunks(MAX_ORPHANS) {
                tracing::info!(count = some.len(), "connections lead to nobody");
                if let Err(error) = self.control.orphans(&self.set(some, &peers)).await {
                    log.warn(format!("nginx was not told of connections that lead to nobody: {error}"));
                }
            }
            // Who took the last ones was seen.
            knocks.clear();
            for place in suspects.wait_long_at() {
                knocks.extend(knock(place, workers).await);
            }
            time::sleep(PACE).await;
        }
        Ok(())
    }

    fn set(&self, orphans: &[Ends], peers: &BTreeSet<Peer>) -> OrphanSet {
        let named = |ours: SocketAddr| peers.iter().find(|peer| peer.place() == Some(Place::Tcp(ours)));
        let request = |&(ours, client): &Ends| {
            Some(OrphanRequest { peer: named(ours)?.address.clone(), port: client.port() })
        };
        OrphanSet { owner: self.owner.clone(), connections: orphans.iter().filter_map(request).collect() }
    }
}

/// As many connections as there are workers: the daemon hands them out by turns.
async fn knock(place: SocketAddr, workers: usize) -> Vec<TcpStream> {
    let mut knocks = Vec::new();
    while knocks.len() < workers
        && let Ok(Ok(knock)) = time::timeout(PACE, TcpStream::connect(place)).await
    {
        knocks.push(knock);
    }
    knocks
}

// === impl Glance ===

impl Glance {
    fn of(proc: &Proc, cast: &Cast) -> io::Result<Self> {
        let places = cast.peers.iter().filter_map(|peer| match peer.place() {
            Some(Place::Tcp(address)) => Some(address),
            _ => None,
        });
        let places: BTreeSet<SocketAddr> = places.collect();
        let mut found = BTreeMap::new();
        for place in &places {
            let here = connections::at(*place)?.into_iter();
            found.extend(here.map(|connection| ((connection.local, connection.remote), connection.inode)));
        }
        // First the daemon, then the workers: what is handed over in between is seen on one side at least.
        let daemons = tree::sockets(proc, cast.daemon)?;
        let mut taken = BTreeMap::new();
        for &worker in cast.workers.iter().filter(|worker| worker.is_alive(proc)) {
            let sockets = tree::sockets(proc, worker.pid).unwrap_or_default();
            let own = found.iter().filter(|(_, inode)| sockets.contains(inode)).map(|(&ends, _)| ends);
            taken.insert(worker, own.collect::<BTreeSet<Ends>>());
        }
        let is_taken = |ends: &Ends| taken.values().any(|own| own.contains(ends));
        let waiting = found.iter().filter(|(ends, inode)| daemons.contains(inode) && !is_taken(ends));
        let waiting = waiting.map(|(&ends, &inode)| (ends, inode)).collect();
        Ok(Self { began: cast.began, all: found.into_keys().collect(), waiting, taken })
    }
}

// === impl Suspects ===

impl Suspects {
    /// Of some of them it would be certain if all workers were known.
    fn await_a_look(&self) -> bool {
        self.suspects.values().any(|suspect| !suspect.cleared.is_empty())
    }

    /// Where somebody waits for longer than for a busy worker.
    fn wait_long_at(&self) -> BTreeSet<SocketAddr> {
        let waits_long = |(_, suspect): &(_, &Suspect)| self.looks - suspect.found >= LONG;
        self.suspects.iter().filter(waits_long).map(|(&((here, _), _), _)| here).collect()
    }

    /// Those that lead to nobody, for certain.
    fn look(&mut self, glance: &Glance, at: Instant) -> Vec<Ends> {
        self.looks += 1;
        let now = self.looks;
        self.first_seen.retain(|ends, _| glance.all.contains(ends));
        for &ends in &glance.all {
            self.first_seen.entry(ends).or_insert(now);
        }
        self.suspects.retain(|waiting, _| glance.waiting.contains(waiting));
        let living: BTreeSet<Process> = glance.taken.keys().copied().collect();
        if !self.living.is_subset(&living) {
            self.suspects.clear();
        }
        self.living = living;
        for &waiting in &glance.waiting {
            self.suspects.entry(waiting).or_insert_with(|| Suspect::at(now));
        }
        let first_seen = &self.first_seen;
        for suspect in self.suspects.values_mut() {
            // The kernel's list is not of one moment: what was missing in two of them is younger.
            let is_younger = |ends: &Ends| first_seen.get(ends).is_some_and(|&seen| seen > suspect.since + 1);
            let cleared = glance.taken.iter().filter(|(_, taken)| taken.iter().any(is_younger));
            let cleared: Vec<Process> = cleared.map(|(&worker, _)| worker).collect();
            if suspect.settled.is_some() {
                suspect.cleared.extend(cleared);
            } else if !cleared.is_empty() {
                *suspect = Suspect { found: suspect.found, settled: Some(at), ..Suspect::at(now) };
            }
        }
        // One that was started meanwhile may have it, too: all are known who were there when it was given back.
        let is_orphan = |suspect: &Suspect| {
            let knows_all = suspect.settled.is_some() && glance.began > suspect.settled;
            knows_all
                && !glance.taken.is_empty()
                && glance.taken.keys().all(|worker| suspect.cleared.contains(worker))
        };
        self.suspects.iter().filter(|(_, suspect)| is_orphan(suspect)).map(|(&(ends, _), _)| ends).collect()
    }
}

impl Suspect {
    fn at(now: u64) -> Self {
        Self { found: now, since: now, settled: None, cleared: BTreeSet::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Process = Process { pid: 7, start: 1 };
    const TWO: Process = Process { pid: 8, start: 1 };

    fn ends(port: u16) -> Ends {
        ("127.0.0.1:3000".parse().unwrap(), SocketAddr::new([127, 0, 0, 1].into(), port))
    }

    /// The daemon has these, the workers those.
    fn glance(waiting: &[u16], taken: &[(Process, &[u16])]) -> Glance {
        let waiting: BTreeSet<(Ends, u64)> = waiting.iter().map(|&port| (ends(port), port.into())).collect();
        let taken: BTreeMap<Process, BTreeSet<Ends>> = taken
            .iter()
            .map(|(worker, ports)| (*worker, ports.iter().copied().map(ends).collect()))
            .collect();
        let all = waiting.iter().map(|(ends, _)| *ends).chain(taken.values().flatten().copied()).collect();
        Glance { began: None, all, waiting, taken }
    }

    /// What is an orphan at last, if the cast is always new.
    fn orphans(glances: &[Glance]) -> Vec<Ends> {
        let mut suspects = Suspects::default();
        let look = |glance: &Glance| {
            let (began, at) = moments();
            suspects.look(&Glance { began: Some(began), ..glance.clone() }, at)
        };
        glances.iter().map(look).last().unwrap_or_default()
    }

    /// One after the other.
    fn moments() -> (Instant, Instant) {
        let tick = || {
            std::thread::sleep(Duration::from_micros(10));
            Instant::now()
        };
        (tick(), tick())
    }

    #[test]
    fn one_that_every_worker_has_passed_over_is_an_orphan() {
        let idle = || glance(&[1], &[(ONE, &[]), (TWO, &[])]);
        let looks = [
            idle(),
            idle(),
            glance(&[1], &[(ONE, &[2]), (TWO, &[])]),
            idle(),
            glance(&[1], &[(ONE, &[3]), (TWO, &[])]),
            glance(&[1], &[(ONE, &[]), (TWO, &[4])]),
        ];
        assert_eq!(orphans(&looks[..5]), [], "the other worker may have it yet to take");
        assert_eq!(orphans(&looks), [ends(1)]);
    }

    #[test]
    fn what_was_seen_before_a_worker_ended_proves_nothing() {
        let alive = |port| glance(&[1], &[(ONE, &[port]), (TWO, &[])]);
        let alone = |port| glance(&[1], &[(ONE, &[port])]);
        // The second worker gives the connection back as it ends, and the first one has it yet to take.
        let looks =
            [alive(2), alive(3), alive(4), alive(5), alive(6), alive(7), alone(8), alone(9), alone(10)];
        assert_eq!(orphans(&looks), []);
        assert_eq!(
            orphans(&[looks.as_slice(), &[alone(11)]].concat()),
            [],
            "the daemon has read that it does"
        );
        let more = [alone(11), alone(12), alone(13)];
        assert_eq!(orphans(&[looks.as_slice(), &more].concat()), [ends(1)]);
    }

    #[test]
    fn while_it_is_not_known_who_was_started_meanwhile_nothing_is_certain() {
        let mut suspects = Suspects::default();
        let old = Some(Instant::now());
        for port in 2..20 {
            let (_, at) = moments();
            let glance = Glance { began: old, ..glance(&[1], &[(ONE, &[port])]) };
            assert_eq!(suspects.look(&glance, at), []);
        }
        assert!(suspects.await_a_look());
        let glance = Glance { began: Some(Instant::now()), ..glance(&[1], &[(ONE, &[20])]) };
        assert_eq!(suspects.look(&glance, Instant::now()), [ends(1)]);
    }

    #[test]
    fn a_worker_that_is_busy_may_take_it_yet() {
        let busy = |port| glance(&[1], &[(ONE, &[port]), (TWO, &[99])]);
        assert_eq!(orphans(&(2..20).map(busy).collect::<Vec<_>>()), []);
    }

    #[test]
    fn who_waits_for_long_is_knocked_for() {
        let mut suspects = Suspects::default();
        let mut place = |glance| {
            suspects.look(&glance, Instant::now());
            suspects.wait_long_at().into_iter().next()
        };
        let waits = |port| glance(&[1], &[(ONE, &[port])]);
        let places: Vec<_> = (2..9).map(|port| place(waits(port))).collect();
        let (here, _) = ends(1);
        assert_eq!(places, [None, None, None, None, None, Some(here), Some(here)]);
        assert_eq!(place(glance(&[], &[(ONE, &[1])])), None, "it was taken");
    }

    #[test]
    fn whoever_came_later_may_have_it_yet_to_take() {
        let alone = |port| glance(&[1], &[(ONE, &[port])]);
        let both = |port| glance(&[1], &[(ONE, &[port]), (TWO, &[])]);
        let looks: Vec<Glance> = (2..5).map(alone).chain((5..20).map(both)).collect();
        assert_eq!(orphans(&looks), []);
    }

    #[test]
    fn while_nobody_lives_all_wait_for_the_next_worker() {
        assert_eq!(orphans(&[glance(&[1], &[]), glance(&[1], &[]), glance(&[1, 2], &[])]), []);
    }

    #[test]
    fn a_connection_of_the_same_moment_proves_nothing() {
        let first = glance(&[1], &[(ONE, &[])]);
        let looks = [&[first][..], &vec![glance(&[1], &[(ONE, &[2])]); 10]].concat();
        assert_eq!(orphans(&looks), []);
    }

    #[test]
    fn another_connection_with_the_same_ends_is_suspected_anew() {
        let mut suspects = Suspects::default();
        suspects.look(&glance(&[1], &[(ONE, &[])]), Instant::now());
        suspects.look(&glance(&[1], &[(ONE, &[])]), Instant::now());
        let mut other = glance(&[1], &[(ONE, &[2])]);
        other.waiting = [(ends(1), 99)].into();
        assert_eq!(suspects.look(&other, Instant::now()), []);
    }
}
