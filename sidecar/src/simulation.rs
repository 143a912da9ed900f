//! A PM2 that does anything, a bus that loses and delays anything, looks that come late, workers that say goodbye and stay,
//! and an nginx that forgets: whatever happened, once the world is calm nginx has what is true. And no worker that said
//! goodbye was ever told that nginx knows when it did not.

use crate::{
    host::{Listeners, Locals, Process, tree::Held},
    look::{Examined, Look},
    peer::Peer,
    pm2::{
        PmId,
        event::Event,
        monitor::{Listed, Settings, Status},
    },
    preload::{Answer, Line, What},
    reconcile::{self, Observed},
    roster::Roster,
};
use handoff_wire::{Ack, MarkRequest, Owner, State, Upstreams};
use serde_json::json;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

/// Repeatable chance.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    fn one_in(&mut self, bound: u64) -> bool {
        self.below(bound) == 0
    }
}

/// One worker as it really is.
#[derive(Clone)]
struct Real {
    process: Option<Process>,
    status: Status,
    listens: bool,
}

enum Message {
    Event(Event),
    Preload(Process, What),
    Death(Process),
    Look(Box<Look>),
}

struct World {
    chance: Chance,
    now: Instant,
    next_pid: u32,
    workers: BTreeMap<PmId, Real>,
    wait_ready: bool,
    /// On their way to the sidecar, with the time of arrival.
    messages: Vec<(Instant, Message)>,
    roster: Roster,
    marks: BTreeMap<Peer, MarkRequest>,
    observed: Option<Observed>,
    is_calm: bool,
}

fn peer(id: PmId) -> Peer {
    Peer::new("app", format!("127.0.0.1:{}", 3000 + id.0))
}

/// Every other one.
fn has_preload(id: PmId) -> bool {
    id.0.is_multiple_of(2)
}

fn inode(id: PmId) -> u64 {
    u64::from(id.0) + 100
}

impl World {
    fn new(seed: u64) -> Self {
        let mut chance = Chance(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let wait_ready = chance.one_in(2);
        let mut world = Self {
            chance,
            now: Instant::now(),
            next_pid: 100,
            workers: BTreeMap::new(),
            wait_ready,
            messages: Vec::new(),
            roster: Roster::default(),
            marks: BTreeMap::new(),
            observed: None,
            is_calm: false,
        };
        for id in (0..4).map(PmId) {
            world.workers.insert(id, Real { process: None, status: Status::Stopped, listens: false });
            world.start(id);
        }
        world.roster.set_peers((0..4).map(PmId).map(peer).collect());
        world
    }

    fn tell(&mut self, message: Message) {
        if !self.is_calm && self.chance.one_in(5) {
            return;
        }
        let delay = if self.is_calm { 1 } else { self.chance.below(300) };
        self.messages.push((self.now + Duration::from_millis(delay), message));
    }

    fn start(&mut self, id: PmId) {
        self.tell(Message::Event(Event::Starting(id)));
        self.next_pid += 1;
        let pid = self.next_pid;
        self.workers.insert(
            id,
            Real { process: Some(Process { pid, start: 1 }), status: Status::Launching, listens: false },
        );
    }

    fn end(&mut self, id: PmId, status: Status) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        worker.status = status;
        worker.listens = false;
        if let Some(process) = worker.process.take() {
            self.messages.push((self.now, Message::Preload(process, What::Left)));
            // A death is the one message that cannot be lost.
            let at = self.now + Duration::from_millis(self.chance.below(20));
            self.messages.push((at, Message::Death(process)));
            self.tell(Message::Event(Event::Exited(id)));
        }
    }

    /// Something happens to somebody.
    fn act(&mut self) {
        let id = PmId(u32::try_from(self.chance.below(4)).unwrap());
        let Some(worker) = self.workers.get(&id).cloned() else { return };
        match (worker.process, worker.status, self.chance.below(9)) {
            (None, Status::Errored | Status::Stopped, 0 | 1) => self.start(id),
            (None, Status::Launching, _) => self.start(id),
            (None, ..) => {}
            (Some(_), Status::Stopping, 0 | 1) => {
                self.end(id, Status::Stopped);
                self.tell(Message::Event(Event::Ended(id)));
            }
            (Some(_), Status::Stopping, _) => {
                self.end(id, Status::Stopped);
                self.start(id);
            }
            (Some(_), _, 0) => self.end(id, Status::Launching),
            (Some(_), _, 1) => self.end(id, Status::Errored),
            (Some(_), _, 2) => {
                self.tell(Message::Event(Event::Stopping(id)));
                self.workers.get_mut(&id).unwrap().status = Status::Stopping;
            }
            (Some(process), _, 3) if has_preload(id) => self.says(process, What::Stopping),
            (Some(_), ..) => self.serve(id),
        }
    }

    /// What a process says of itself is not lost, and comes in order.
    fn says(&mut self, process: Process, what: What) {
        self.messages.push((self.now, Message::Preload(process, what)));
    }

    fn calls(&mut self, process: Process, listens: bool) {
        self.says(process, What::Came(Line::dead()));
        self.says(process, What::Listens(usize::from(listens)));
    }

    fn serve(&mut self, id: PmId) {
        let worker = self.workers.get_mut(&id).unwrap();
        if worker.listens && worker.status == Status::Launching {
            worker.status = Status::Online;
            self.tell(Message::Event(Event::Ready(id)));
        } else {
            worker.listens = true;
            if let Some(process) = worker.process.filter(|_| has_preload(id)) {
                self.calls(process, true);
            }
        }
    }

    fn look(&mut self) {
        let asks_pm2 = self.is_calm || !self.chance.one_in(3);
        let mut tcp = Vec::new();
        let mut examined = BTreeMap::new();
        for (&id, worker) in &self.workers {
            let address = format!("127.0.0.1:{}", 3000 + id.0);
            let Some(process) = worker.process else { continue };
            let sockets = if worker.listens { [(inode(id), process)].into() } else { BTreeMap::new() };
            examined.insert(id, Examined { process, held: Ok(Held { sockets }) });
            tcp.extend(worker.listens.then_some((address, inode(id))));
        }
        let tcp: Vec<(&str, u64)> = tcp.iter().map(|(address, inode)| (address.as_str(), *inode)).collect();
        let settings = Settings { treekill: true, wait_ready: self.wait_ready, ..Settings::default() };
        let listed = self.workers.iter().map(|(&id, worker)| Listed {
            id,
            app: "app".into(),
            pid: worker.process.map(|process| process.pid),
            status: worker.status,
            settings: settings.clone(),
        });
        let look = Look {
            began: self.now,
            listed: asks_pm2.then(|| listed.collect()),
            examined,
            daemon: 0,
            daemons: BTreeSet::new(),
            leavers: BTreeSet::new(),
            is_orphaned: false,
            updating: None,
            listeners: Listeners::of(&tcp, &[]),
            locals: Locals::of(&[]),
            refused: BTreeMap::new(),
        };
        self.tell(Message::Look(Box::new(look)));
    }

    /// What the sidecar hears until now, in the order in which it comes.
    fn deliver(&mut self) {
        self.messages.sort_by_key(|(at, _)| *at);
        let due = self.messages.partition_point(|(at, _)| *at <= self.now);
        for (_, message) in self.messages.drain(..due).collect::<Vec<_>>() {
            match message {
                Message::Event(event) => self.roster.notice(&event, self.now),
                Message::Death(process) => _ = self.roster.died(process, self.now),
                Message::Look(look) => self.roster.look(&look, self.now),
                Message::Preload(process, what) => self.roster.preload(process, &what, self.now),
            }
            self.roster.tick(self.now);
            self.reconcile();
        }
    }

    fn reconcile(&mut self) {
        let owner: Owner = "pm2:sim".parse().unwrap();
        let observed = self.observed.take().unwrap_or_else(|| Observed::new(&self.view(), &owner, self.now));
        let observed = self.observed.insert(observed);
        let behind = |peer: &Peer| self.roster.behind(peer);
        let asked = reconcile::plan(&self.roster.wishes(), observed, behind, self.now);
        for mark in &asked {
            let key = Peer::new(mark.upstream.clone().unwrap(), &mark.peer);
            if mark.state == State::Up {
                self.marks.remove(&key);
            } else {
                self.marks.insert(key, mark.clone());
            }
        }
        let ack = Ack { instance: "a".into(), generation: 1, marks: Vec::new() };
        observed.acknowledge(&asked, &ack, self.now);
        let again = reconcile::plan(&self.roster.wishes(), observed, behind, self.now);
        assert_eq!(again, [], "a plan that was carried out leaves nothing to be done");
        for (process, answer) in self.roster.answers(observed, self.now) {
            let its = |worker: &Real| worker.process == Some(process);
            let Some((&id, _)) = self.workers.iter().find(|(_, worker)| its(worker)) else { continue };
            let state = self.marks.get(&peer(id)).map(|mark| mark.state);
            let is_told = answer != Answer::Ack || state.is_some_and(|state| !state.serves());
            assert!(is_told, "{id} was told {answer:?}, and nginx has {state:?}");
        }
    }

    fn view(&self) -> Upstreams {
        let peers = self.workers.keys().map(|&id| {
            let marks = self.marks.get(&peer(id)).map(|mark| {
                json!({"owner": "pm2:sim", "state": mark.state, "expect": mark.expect, "reason": mark.reason,
                       "epoch": 1, "age": "0s"})
            });
            let marks: Vec<_> = marks.into_iter().collect();
            let state = marks.first().map_or(json!("up"), |mark| mark["state"].clone());
            json!({"address": peer(id).address, "state": state, "marks": marks, "in_flight": 0, "requests": 0,
                   "fails": 0, "refused": 0, "retired_before": 0, "configured": true, "weight": 1, "backup": false})
        });
        let peers: Vec<_> = peers.collect();
        serde_json::from_value(
            json!({"instance": "a", "generation": 1, "upstreams": [{"name": "app", "peers": peers}]}),
        )
        .unwrap()
    }

    fn step(&mut self) {
        self.now += Duration::from_millis(self.chance.below(60));
        match self.chance.below(40) {
            0 => {
                // nginx is restarted.
                self.marks.clear();
                self.observed = None;
            }
            1 => {
                // The sidecar is.
                self.roster = Roster::default();
                self.roster.set_peers((0..4).map(PmId).map(peer).collect());
                self.messages.clear();
                self.observed = None;
                for (id, worker) in self.workers.clone() {
                    if let Some(process) = worker.process.filter(|_| has_preload(id) && worker.listens) {
                        self.calls(process, true);
                    }
                }
            }
            2..=20 => self.act(),
            _ => self.look(),
        }
        self.deliver();
    }

    /// Everybody ends what he began, nothing is lost any more, and time passes.
    fn calm_down(&mut self) {
        self.is_calm = true;
        for id in (0..4).map(PmId) {
            let worker = self.workers[&id].clone();
            match (worker.process, worker.status) {
                (Some(_), Status::Stopping) => self.end(id, Status::Stopped),
                (None, Status::Launching) => self.start(id),
                _ => {}
            }
            if self.workers[&id].process.is_some() {
                for _ in 0..2 {
                    self.serve(id);
                }
            }
        }
        for _ in 0..30 {
            self.now += Duration::from_secs(3);
            self.look();
            self.now += Duration::from_millis(5);
            self.deliver();
        }
    }

    fn assert_truth(&self, seed: u64) {
        for (&id, worker) in &self.workers {
            let mark = self.marks.get(&peer(id)).map(|mark| mark.state);
            let wanted = if worker.process.is_some() { None } else { Some(State::Down) };
            // A worker that we never met, and whose peer has no mark, is none of our business.
            let is_known =
                self.roster.workers().any(|(known, worker)| known == id && !worker.claims().is_empty());
            assert!(
                mark == wanted || (!is_known && mark.is_none()),
                "seed {seed}, worker {id}: {mark:?}, wanted {wanted:?}\n{:#?}",
                self.roster.workers().find(|(known, _)| *known == id)
            );
        }
    }
}

#[test]
fn once_the_world_is_calm_nginx_has_what_is_true() {
    for seed in 1..=2000 {
        let mut world = World::new(seed);
        for _ in 0..150 {
            world.step();
        }
        world.calm_down();
        world.assert_truth(seed);
    }
}
