//! The protocol of the store, every interleaving of it: one app host with one worker, two nginx, and a store between them
//! that delivers late, loses leases, and is the only thing that they have in common. One nginx's configuration
//! names the worker's peer. The other one gets it while all of this goes on, and loses it when it restarts.
//!
//! The promise: **a worker is stopped only when no nginx that is registered may begin a request on it or has one with it.**
//! What the host decides by is the code that decides ([`Edges`]); around it the steps of `docs/decisions/store.md`, one by
//! one. Each step that the protocol has is left out in turn, and must be missed.

// A test all of it: what cannot be is a panic.
#![allow(clippy::indexing_slicing, clippy::unwrap_used, clippy::panic)]

use handoff::{
    peer::Peer,
    store::edges::{Edges, Tenure},
};
use handoff_wire::{
    Owner, PeerState, Responses, State,
    store::{AckMark, AckPeer, AckUpstream, AckValue, Name},
};
use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    hash::{BuildHasher as _, RandomState},
};

/// What is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Without {
    Nothing,
    /// Stops when all have drained, and does not ask again.
    Fence,
    /// Asks again, and does not look whether it is still the mark that was set.
    Tenure,
    /// Takes any acknowledgement for the one that it waits for.
    Revision,
    /// Does not ask who is registered, after all whom it knew have answered.
    SecondLook,
    /// Registers, and then puts what it has read into nginx.
    LoadBefore,
    /// Registers, whatever was said since it read.
    NothingNew,
    /// Adds the peer whatever is said of it, and puts its marks then.
    Unmarked,
}

const EDGES: usize = 2;
/// Whose nginx.conf names the peer.
const NAMES: usize = 0;

/// How far it goes.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    /// Of all kinds together.
    faults: u8,
    /// So often the host begins.
    tries: u8,
}

const NARROW: Bounds = Bounds { faults: 1, tries: 1 };
const WIDE: Bounds = Bounds { faults: 1, tries: 2 };

#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
struct World {
    store: Store,
    host: Host,
    edges: [Edge; EDGES],
    faults: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
struct Store {
    revision: u8,
    leases: u8,
    /// What the host said: at which revision, and whether that was a drain.
    said: Vec<(u8, bool)>,
    registered: [Option<u8>; EDGES],
    acks: [Option<Ack>; EDGES],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Ack {
    lease: u8,
    revision: u8,
    /// It has the peer; without it nothing else here is so.
    has: bool,
    closed: bool,
    epoch: u8,
    in_flight: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
struct Host {
    phase: Phase,
    tries: u8,
    /// Its lease is over: nothing that it writes counts.
    is_cut_off: bool,
    /// What it has heard of edges, some time ago.
    registered: [Option<u8>; EDGES],
    acks: [Option<Ack>; EDGES],
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
enum Phase {
    #[default]
    Idle,
    /// It said so at this revision.
    Draining(u8),
    /// All have it, and this is how.
    Drained([Option<(u8, u8)>; EDGES]),
    Fencing(u8, [Option<(u8, u8)>; EDGES]),
    Stopped,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
struct Edge {
    sidecar: Sidecar,
    lease: u8,
    /// All up to here was heard; 0: nothing.
    heard: u8,
    /// All up to here is in nginx.
    put: u8,
    /// nginx has the peer.
    has: bool,
    closed: bool,
    epoch: u8,
    in_flight: bool,
    /// nginx has restarted after it was asked for the last time.
    is_fresh: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
enum Sidecar {
    #[default]
    Down,
    Read,
    Registered,
}

fn peer() -> Peer {
    Peer::new("shop", "10.0.0.5:3000")
}

fn owner() -> Owner {
    "rollout:app1/1".parse().unwrap()
}

fn name(edge: usize) -> Name {
    format!("edge{edge}").parse().unwrap()
}

// === impl Store ===

impl Store {
    fn say(&mut self, drains: bool) -> u8 {
        self.revision += 1;
        self.said.push((self.revision, drains));
        self.revision
    }

    fn drains_at(&self, revision: u8) -> bool {
        self.said.iter().rev().find(|(at, _)| *at <= revision).is_some_and(|(_, drains)| *drains)
    }

    fn last_said(&self) -> u8 {
        self.said.last().map_or(0, |(at, _)| *at)
    }

    /// The first that was said after this.
    fn next_said(&self, after: u8) -> Option<u8> {
        self.said.iter().map(|(at, _)| *at).find(|at| *at > after)
    }
}

// === impl Host ===

impl Host {
    /// As the code sees it.
    fn knows(&self, registered: [Option<u8>; EDGES]) -> Edges {
        let mut edges = Edges::default();
        for (edge, lease) in registered.iter().enumerate() {
            edges.hear_edge(name(edge), lease.map(i64::from));
        }
        for (edge, ack) in self.acks.iter().enumerate() {
            edges.hear_ack(name(edge), ack.map(|ack| (i64::from(ack.lease), value(ack))));
        }
        edges
    }

    /// None: not yet. The code is asked once for each thing that it can be asked.
    fn judge(
        &self,
        revision: u8,
        now: [Option<u8>; EDGES],
        without: Without,
        judged: &mut Judged,
    ) -> Option<Answer> {
        let question = (revision, now, self.registered, self.acks);
        *judged.entry(question).or_insert_with(|| {
            let edges = self.is_everywhere(revision, now, without)?;
            let revision = if without == Without::Revision { 0 } else { i64::from(revision) };
            let state = edges.state(&peer(), State::Draining, revision);
            let tenures = tenures(self, &edges);
            Some(Answer {
                is_drained: state == PeerState::Draining && edges.in_flight(&peer()) == 0,
                has_all: edges.of(&peer()).count() == tenures.iter().flatten().count(),
                tenures,
            })
        })
    }

    fn is_everywhere(&self, revision: u8, now: [Option<u8>; EDGES], without: Without) -> Option<Edges> {
        let revision = if without == Without::Revision { 0 } else { i64::from(revision) };
        let is_so = |edges: &Edges| !edges.is_empty() && edges.behind(revision).is_empty();
        let known = self.knows(self.registered);
        let edges = match without {
            Without::SecondLook => known,
            _ if is_so(&known) => self.knows(now),
            _ => return None,
        };
        is_so(&edges).then_some(edges)
    }
}

/// What the code says to what the host knows.
#[derive(Clone, Copy, Debug)]
struct Answer {
    is_drained: bool,
    tenures: [Option<(u8, u8)>; EDGES],
    /// Every nginx that has the peer has the mark.
    has_all: bool,
}

type Registered = [Option<u8>; EDGES];
type Judged = HashMap<(u8, Registered, Registered, [Option<Ack>; EDGES]), Option<Answer>>;

fn value(ack: Ack) -> AckValue {
    let state = if ack.closed { PeerState::Draining } else { PeerState::Up };
    let mark = AckMark { owner: owner(), state: State::Draining, epoch: ack.epoch.into() };
    let peer = AckPeer {
        address: peer().address,
        state,
        marks: if ack.closed { vec![mark] } else { Vec::new() },
        in_flight: ack.in_flight.into(),
        requests: 0,
        responses: Responses::default(),
        fails: 0,
        cut: 0,
        weight: 1,
        backup: false,
    };
    let peers = if ack.has { vec![peer] } else { Vec::new() };
    let upstream = AckUpstream { name: "shop".into(), peers, elsewhere: None, queue: None };
    AckValue {
        revision: ack.revision.into(),
        instance: "1".into(),
        upstreams: vec![upstream],
        refused: Vec::new(),
        uncovered: Vec::new(),
        amiss: Vec::new(),
    }
}

/// Of each edge: its lease, and the epoch of the mark there.
fn tenures(host: &Host, edges: &Edges) -> [Option<(u8, u8)>; EDGES] {
    let known: BTreeMap<Name, Tenure> = edges.tenures(&peer(), &owner());
    std::array::from_fn(|edge| known.get(&name(edge)).and(host.acks[edge]).map(|ack| (ack.lease, ack.epoch)))
}

// === impl World ===

impl World {
    fn start() -> Self {
        let mut world = Self::default();
        // One is there from the beginning, and the host knows it.
        world.store.revision = 1;
        world.store.leases = 1;
        world.store.registered[0] = Some(1);
        let has = true;
        world.edges[NAMES] =
            Edge { sidecar: Sidecar::Registered, lease: 1, heard: 1, put: 1, has, ..Edge::default() };
        world.host.registered = world.store.registered;
        world
    }

    /// `stops`: this very step stops the worker. An nginx that restarts between its last answer and the stop has forgotten
    /// it: that is told within a second, and until then it meets a worker that is gone as any nginx does.
    fn is_broken(&self, stops: bool) -> bool {
        let counted = (0..EDGES).filter(|&edge| self.store.registered[edge].is_some());
        let mut counted = counted.map(|edge| &self.edges[edge]).filter(|edge| !edge.is_fresh);
        self.host.phase == Phase::Stopped
            && counted.any(|edge| edge.has && (!edge.closed || (stops && edge.in_flight)))
    }

    fn next(&self, without: Without, bounds: Bounds, judged: &mut Judged) -> Vec<(&'static str, Self)> {
        let mut next = Vec::new();
        self.host_steps(without, bounds.tries, judged, &mut next);
        for edge in 0..EDGES {
            self.edge_steps(edge, without, &mut next);
        }
        if self.faults < bounds.faults {
            let before = next.len();
            self.fault_steps(&mut next);
            next[before..].iter_mut().for_each(|(_, world)| world.faults += 1);
        }
        next
    }

    fn host_steps(
        &self,
        without: Without,
        tries: u8,
        judged: &mut Judged,
        next: &mut Vec<(&'static str, Self)>,
    ) {
        let mut step = |what, change: &dyn Fn(&mut Self)| {
            let mut world = self.clone();
            change(&mut world);
            next.push((what, world));
        };
        for edge in 0..EDGES {
            let (registered, ack) = (self.store.registered[edge], self.store.acks[edge]);
            if self.host.registered[edge] != registered || self.host.acks[edge] != ack {
                step("the host hears of an edge", &|world| {
                    world.host.registered[edge] = registered;
                    world.host.acks[edge] = ack;
                });
            }
        }
        if self.host.is_cut_off {
            step("the host is there again", &|world| {
                world.host.is_cut_off = false;
                world.host.phase = Phase::Idle;
            });
            return;
        }
        let now = self.store.registered;
        match &self.host.phase {
            Phase::Idle if self.host.tries < tries => step("the host drains", &|world| {
                world.host.tries += 1;
                world.edges.iter_mut().for_each(|edge| edge.is_fresh = false);
                world.host.phase = Phase::Draining(world.store.say(true));
            }),
            Phase::Draining(revision) => {
                let Some(answer) = self.host.judge(*revision, now, without, judged) else { return };
                if answer.is_drained || without == Without::Revision {
                    let phase = if without == Without::Fence {
                        Phase::Stopped
                    } else {
                        Phase::Drained(answer.tenures)
                    };
                    step("all have drained", &|world| world.host.phase = phase.clone());
                }
            }
            Phase::Drained(tenures) => step("the host asks again", &|world| {
                world.host.phase = Phase::Fencing(world.store.say(true), *tenures);
            }),
            Phase::Fencing(revision, then) => {
                let Some(answer) = self.host.judge(*revision, now, without, judged) else { return };
                let now = answer.tenures;
                let is_unbroken = (0..EDGES).all(|edge| now[edge].is_none() || now[edge] == then[edge]);
                let is_blind = matches!(without, Without::Tenure | Without::Revision);
                let phase =
                    if (is_unbroken && answer.has_all) || is_blind { Phase::Stopped } else { Phase::Idle };
                step("all have answered again", &|world| world.host.phase = phase.clone());
            }
            Phase::Idle | Phase::Stopped => {}
        }
    }

    fn edge_steps(&self, at: usize, without: Without, next: &mut Vec<(&'static str, Self)>) {
        let edge = &self.edges[at];
        let mut step = |what, change: &dyn Fn(&mut Self)| {
            let mut world = self.clone();
            change(&mut world);
            next.push((what, world));
        };
        // nginx, as ever.
        if edge.in_flight {
            step("a request ends", &|world| world.edges[at].in_flight = false);
        } else if edge.has && !edge.closed {
            step("a request begins", &|world| world.edges[at].in_flight = true);
        }
        if edge.sidecar != Sidecar::Down && edge.put < edge.heard {
            let drains = self.store.drains_at(edge.heard);
            step("nginx is told", &|world| {
                let edge = &mut world.edges[at];
                if edge.has {
                    if drains && !edge.closed {
                        edge.epoch += 1;
                    }
                    edge.closed = drains;
                }
                edge.put = edge.heard;
            });
        }
        // When there is room for it, or after a restart.
        let may_add = without == Without::Unmarked || !self.store.drains_at(edge.heard);
        if edge.sidecar != Sidecar::Down && !edge.has && may_add {
            step("the peer is added", &|world| {
                let edge = &mut world.edges[at];
                (edge.has, edge.closed) = (true, false);
                // Its marks are put after it.
                if world.store.drains_at(edge.heard) {
                    edge.put = 0;
                }
            });
        }
        match edge.sidecar {
            Sidecar::Down => step("an edge reads", &|world| {
                let edge = &mut world.edges[at];
                (edge.sidecar, edge.heard, edge.put) = (Sidecar::Read, world.store.revision, 0);
            }),
            Sidecar::Read => {
                let has_put = edge.put == edge.heard || without == Without::LoadBefore;
                let nothing_new = self.store.last_said() <= edge.heard || without == Without::NothingNew;
                if has_put && nothing_new {
                    step("an edge registers", &|world| {
                        world.store.leases += 1;
                        world.store.revision += 1;
                        let lease = world.store.leases;
                        world.store.registered[at] = Some(lease);
                        world.store.acks[at] = None;
                        (world.edges[at].sidecar, world.edges[at].lease) = (Sidecar::Registered, lease);
                    });
                }
            }
            Sidecar::Registered => {
                let ack = Ack {
                    lease: edge.lease,
                    revision: edge.put,
                    has: edge.has,
                    closed: edge.closed,
                    epoch: edge.epoch,
                    in_flight: edge.in_flight,
                };
                let is_ours = self.store.registered[at] == Some(edge.lease);
                if !is_ours {
                    step("an edge learns that its lease is over", &|world| {
                        world.edges[at].sidecar = Sidecar::Down
                    });
                } else if edge.put == edge.heard && self.store.acks[at] != Some(ack) {
                    step("an edge acknowledges", &|world| world.store.acks[at] = Some(ack));
                }
            }
        }
        if let Some(heard) = self.store.next_said(edge.heard).filter(|_| edge.sidecar != Sidecar::Down) {
            step("an edge hears", &|world| world.edges[at].heard = heard);
        }
    }

    fn fault_steps(&self, next: &mut Vec<(&'static str, Self)>) {
        let mut step = |what, change: &dyn Fn(&mut Self)| {
            let mut world = self.clone();
            change(&mut world);
            next.push((what, world));
        };
        if !self.host.is_cut_off && self.host.phase != Phase::Stopped {
            step("the lease of the host is over", &|world| {
                world.host.is_cut_off = true;
                world.store.say(false);
            });
        }
        for at in 0..EDGES {
            if self.store.registered[at].is_some() {
                step("the lease of an edge is over", &|world| {
                    world.store.registered[at] = None;
                    world.store.acks[at] = None;
                    world.store.revision += 1;
                });
            }
            let edge = &self.edges[at];
            if edge.sidecar != Sidecar::Down {
                step("the sidecar of an edge dies", &|world| world.edges[at].sidecar = Sidecar::Down);
            }
            // A mark in nginx outlives the lease of its edge: that is how long they are.
            if edge.closed && edge.sidecar == Sidecar::Down && self.store.registered[at].is_none() {
                step("a mark lapses in nginx", &|world| world.edges[at].closed = false);
            }
            // Afterwards it is a new nginx that meets a worker that is gone, as anywhere.
            if edge.has && edge.closed && self.host.phase != Phase::Stopped {
                step("nginx restarts", &|world| {
                    let asked = match world.host.phase {
                        Phase::Fencing(revision, _) => revision,
                        _ => u8::MAX,
                    };
                    let edge = &mut world.edges[at];
                    edge.is_fresh = edge.put >= asked;
                    (edge.has, edge.closed, edge.in_flight, edge.put) = (at == NAMES, false, false, 0);
                });
            }
        }
    }
}

/// Everything that can happen. Err: how the promise is broken.
fn explore(without: Without, bounds: Bounds) -> Result<usize, Vec<&'static str>> {
    let start = World::start();
    let (hashes, mut judged) = (RandomState::new(), Judged::new());
    let mut seen = HashSet::from([hashes.hash_one(&start)]);
    // Every world with where it came from.
    let mut worlds = vec![(start, usize::MAX, "")];
    let mut waiting = VecDeque::from([0]);
    while let Some(index) = waiting.pop_front() {
        let stops = worlds[index].0.host.phase != Phase::Stopped;
        for (what, world) in worlds[index].0.next(without, bounds, &mut judged) {
            // The step is what breaks it: another one may lead to the same world, and break nothing.
            let is_broken = world.is_broken(stops);
            if !seen.insert(hashes.hash_one(&world)) && !is_broken {
                continue;
            }
            worlds.push((world, index, what));
            if is_broken {
                return Err(way(&worlds));
            }
            waiting.push_back(worlds.len() - 1);
        }
    }
    Ok(worlds.len())
}

fn way(worlds: &[(World, usize, &'static str)]) -> Vec<&'static str> {
    let mut way = Vec::new();
    let mut at = worlds.len() - 1;
    while at != usize::MAX {
        let (_, from, what) = &worlds[at];
        way.push(*what);
        at = *from;
    }
    way.reverse();
    way
}

#[test]
fn no_worker_stops_while_a_registered_nginx_may_use_it() {
    holds(NARROW);
}

#[test]
#[ignore = "minutes: make store"]
fn nor_when_the_host_begins_again() {
    holds(WIDE);
}

fn holds(bounds: Bounds) {
    match explore(Without::Nothing, bounds) {
        Ok(worlds) => {
            println!("{worlds} worlds");
            assert!(worlds > 10_000, "only {worlds}");
        }
        Err(way) => panic!("broken by {way:#?}"),
    }
}

#[test]
fn every_step_is_needed() {
    for without in [
        Without::Fence,
        Without::Tenure,
        Without::Revision,
        Without::SecondLook,
        Without::LoadBefore,
        Without::NothingNew,
        Without::Unmarked,
    ] {
        match explore(without, NARROW) {
            Ok(worlds) => panic!("{without:?} is missed by nobody in {worlds} worlds"),
            Err(way) => println!("without {without:?}, in {} steps: {way:?}", way.len() - 1),
        }
    }
}
