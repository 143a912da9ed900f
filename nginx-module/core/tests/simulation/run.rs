//! One run: nginx and its owners do whatever the dice say, and after each step the table is what the model says.

use crate::common::dice::Dice;
use crate::common::{Script, Zone, moment, of, process, serving};
use crate::model::{Key, Model, Peer, Standing, Turn};
use handoff_core::control::Control;
use handoff_core::hold::Queue;
use handoff_core::table::{PROCESSES, RowId, SlotId};
use handoff_core::{Admission, Process, Table, World as _};
use handoff_wire::State::Up;
use handoff_wire::{
    Event, EventKind, Expect, MarkRequest, MarkSet, Pause, Renew, RenewMark, Resume, Span, State, Was,
};
use std::collections::{BTreeMap, BTreeSet};
use std::{fmt, mem};

/// Fewer than there are peers to name, so that slots change hands.
const SLOTS: usize = 6;
const EVENTS: usize = 4;
const UPSTREAMS: [&str; 2] = ["blue", "green"];
const PEERS: [&str; 4] = ["10.0.0.1:80", "10.0.0.2:80", "[::1]:80", "unix:/run/app.sock"];
/// More than a peer has places for marks.
const OWNERS: [&str; 10] = [
    "operator",
    "plus",
    "health",
    "rollout:1",
    "pm2:1",
    "pm2:2",
    "worker:1",
    "worker:2",
    "worker:3",
    "worker:4",
];

pub const QUEUE: Queue = Queue { requests: 8, bytes: 80, timeout: 30_000 };

type Configuration = BTreeMap<Key, SlotId>;

/// A connection to a peer, with a request or without one.
#[derive(Clone)]
struct Served {
    key: Key,
    connection: u64,
    /// The step in which it was opened.
    opened: usize,
}

struct Nginx {
    process: Process,
    row: RowId,
    has_row: bool,
    knows: Configuration,
    serves: Vec<Served>,
    /// What its keepalive cache holds, the last one on top.
    kept: Vec<Served>,
    /// What it last read from the clock.
    clock: u64,
}

pub struct Run {
    pub dice: Dice,
    pub zone: Zone,
    pub world: Script,
    pub model: Model,
    /// Whether to tell each step.
    pub tells: bool,
    pub now: u64,
    nginx: Vec<Nginx>,
    pids: u32,
    running: (u64, Configuration),
    /// What processes know that share the last row: nobody can tell when they are gone.
    shared: Vec<Configuration>,
    /// What processes left there when they died.
    leaked: Vec<Key>,
    /// Epochs that were ever given, to try old ones.
    epochs: Vec<(String, Key, u64)>,
    silent: BTreeSet<&'static str>,
    generation: u64,
    events: u64,
    steps: usize,
    /// The last step in which a peer was anything but `up`.
    disturbed: BTreeMap<Key, usize>,
}

impl Run {
    pub fn from_seed(seed: u64, tells: bool) -> Self {
        let mut run = Self {
            dice: Dice::from_seed(seed),
            zone: Zone::with(SLOTS, EVENTS),
            world: Script { connections: 1, queue: Some(QUEUE), ..Script::default() },
            model: Model::default(),
            tells,
            now: 1_000_000,
            nginx: Vec::new(),
            pids: 0,
            running: (0, Configuration::new()),
            shared: Vec::new(),
            leaked: Vec::new(),
            epochs: Vec::new(),
            silent: BTreeSet::new(),
            generation: 0,
            events: 0,
            steps: 0,
            disturbed: BTreeMap::new(),
        };
        if run.dice.percent(4) {
            run.crowd();
        }
        run.reload(false);
        run
    }

    /// Leaves one free row.
    fn crowd(&mut self) {
        for pid in 1_000_000..1_000_000 + PROCESSES as u32 - 2 {
            self.world.alive.insert(process(pid));
            // Of a configuration that nobody will run for long: these know no peer.
            self.zone.table().join(process(pid), u64::MAX, |process| self.world.alive.contains(&process));
        }
    }

    fn table(&self) -> Table<'_> {
        self.zone.table()
    }

    pub fn step(&mut self) {
        self.steps += 1;
        self.pass_time();
        match self.dice.below(100) {
            0..27 => self.mark(),
            27..30 => self.pause_or_resume(),
            30..40 => self.renew_some(),
            40..46 => self.renew_fenced(),
            46..55 => self.sweep(),
            55..57 => self.miss_or_answer(),
            57..74 => self.claim(),
            74..84 => self.release(),
            84..87 => self.regard(),
            87..90 => self.start(),
            90..92 => self.crash(),
            92..94 => self.leave(),
            94..97 => self.fall_silent(),
            97..98 => self.die_writing(),
            _ => {
                let fails = self.dice.percent(30);
                self.reload(fails);
            }
        }
        self.disturb();
        self.check();
    }

    fn disturb(&mut self) {
        for (key, _) in self.model.peers.iter().filter(|(_, peer)| peer.state() != Up) {
            self.disturbed.insert(key.clone(), self.steps);
        }
    }

    /// Every owner falls silent for good: what any of them said is over.
    pub fn end(&mut self) {
        self.now += 600_000;
        self.nginx.iter_mut().for_each(|nginx| nginx.clock = self.now);
        self.sweep();
        self.check();
        assert!(
            UPSTREAMS.iter().all(|name| !self.model.is_paused(name, self.now)),
            "somebody waits for ever"
        );
        let leased = self.model.peers.values().flat_map(|peer| peer.marks.values());
        assert!(leased.into_iter().all(|mark| mark.lease.is_none()), "a window is left open");
    }

    fn note(&self, step: fmt::Arguments<'_>) {
        if self.tells {
            eprintln!("{step}");
        }
    }

    fn pass_time(&mut self) {
        self.now += match self.dice.below(40) {
            0 => self.dice.within(1_000..20_000),
            1 => self.dice.within(20_000..4_000_000),
            _ => self.dice.within(0..400),
        };
        let exact = self.dice.percent(5);
        if exact {
            // The very millisecond in which the next lease ends, or the one before.
            let marks = self.model.peers.values().flat_map(|peer| peer.marks.values());
            let ends = marks.filter_map(|mark| Some(mark.renewed + mark.lease?));
            if let Some(end) = ends.filter(|&end| end > self.now).min() {
                self.now = end - self.dice.within(0..2);
            }
        }
        for nginx in &mut self.nginx {
            if exact || self.dice.percent(70) {
                nginx.clock = self.now;
            }
        }
        if exact {
            self.sweep();
        }
    }

    /// The clock of whoever handles a call.
    fn clock(&mut self) -> u64 {
        if self.nginx.is_empty() {
            self.start();
        }
        self.dice.pick(&self.nginx).clock
    }

    // The control path.

    fn any_mark(&mut self) -> MarkRequest {
        let dice = &mut self.dice;
        let upstream = match dice.below(20) {
            0 => Some("nowhere"),
            1..4 => None,
            _ => Some(*dice.pick(&UPSTREAMS)),
        };
        let peer = if dice.percent(3) { "10.9.9.9:80" } else { *dice.pick(&PEERS) };
        let state = if dice.percent(40) { Up } else { *dice.pick(&State::ALL[1..]) };
        let all = dice.percent(if state == Up { 20 } else { 1 });
        let back = dice.percent(if state == Up { 1 } else { 40 });
        let reason = match dice.below(40) {
            0 => "x".repeat(129),
            1 => "two\nlines".into(),
            n => format!("reason {n}"),
        };
        MarkRequest {
            upstream: upstream.map(Into::into),
            peer: peer.into(),
            state,
            expect: if back { Expect::Back } else { Expect::Gone },
            reason,
            all,
        }
    }

    fn any_lease(&mut self) -> Option<Span> {
        match self.dice.below(40) {
            0 => Some(Span::from_millis(999)),
            1 => Some(Span::from_millis(600_001)),
            2..12 => Some(Span::from_millis(self.dice.within(1_000..30_000))),
            _ => None,
        }
    }

    fn mark(&mut self) {
        let owner = *self.dice.pick(&OWNERS);
        let lease = self.any_lease();
        let force = self.dice.percent(30);
        let marks = (0..self.dice.below(24).div_ceil(8)).map(|_| self.any_mark()).collect();
        self.command(&MarkSet { owner: of(owner), lease, force, marks });
    }

    /// Gives a command and answers how the gates turned, or nothing if it was refused.
    fn command(&mut self, set: &MarkSet) -> Vec<Turn> {
        let now = self.clock();
        self.note(format_args!("{now}: {set:?}"));
        let wrongs = self.model.wrongs(set);
        let applied = Control::begin(self.zone.table(), &self.world, moment(now)).mark(set);
        let applied = match applied {
            Err(refusal) => {
                assert!(wrongs.contains(&refusal.code), "refused: {refusal}; wrong: {wrongs:?}");
                return Vec::new();
            }
            Ok(applied) => applied,
        };
        assert_eq!(wrongs, [], "it was done");
        let before = self.model.clone();
        let turns = self.model.mark(set, now);
        let may_wait = set.lease.is_some_and(|lease| lease.as_millis() <= QUEUE.timeout)
            && set.marks.iter().any(|mark| mark.expect == Expect::Back);
        if set.owner.kind().is_choice() && !set.force && !may_wait {
            for upstream in before.upstreams() {
                let (then, now) = (before.serving(upstream, false), self.model.serving(upstream, false));
                assert!(then.is_empty() || !now.is_empty(), "nobody is left in {upstream}");
            }
        }
        assert_eq!(applied.ack.marks.len(), turns.len());
        for told in &applied.ack.marks {
            let key = (told.upstream.clone(), told.peer.clone());
            let turn = turns.iter().find(|turn| turn.key == key).expect("a peer that was named");
            assert_eq!((told.state, told.in_flight), (turn.to, self.in_flight(&key)));
            self.learn_epoch(set.owner.as_str(), &key, told.epoch);
        }
        self.turned(&turns, &applied.events);
        self.grows(applied.events.len());
        turns
    }

    fn learn_epoch(&mut self, owner: &str, key: &Key, told: u64) {
        let mark = self.model.peers.get_mut(key).unwrap().marks.get_mut(owner);
        match mark {
            Some(mark) if mark.epoch == 0 => {
                assert!(told > self.model.epochs, "an epoch comes once");
                (mark.epoch, self.model.epochs) = (told, told);
                self.epochs.push((owner.into(), key.clone(), told));
            }
            mark => assert_eq!(told, mark.map_or(0, |mark| mark.epoch), "the epoch stays"),
        }
    }

    /// Compares what turned with what is told, and takes over what cannot be foretold.
    fn turned(&mut self, turns: &[Turn], events: &[Event]) {
        let changes: usize = turns.iter().map(|turn| turn.changes).sum();
        assert_eq!(events.len(), changes, "one event for each change of a mark");
        let seqs: Vec<u64> = events.iter().map(|event| event.seq).collect();
        let expected: Vec<u64> = (1..=changes as u64).map(|n| self.events + n).collect();
        assert_eq!(seqs, expected);
        let kept = &events[events.len().saturating_sub(EVENTS)..];
        assert_eq!(self.table().recall(self.events).events, kept);
        self.events += changes as u64;
        let latest = self.readied();
        for turn in turns {
            let ready = turn.opens() && turn.forgives;
            let readied = self.slot(&turn.key).readied();
            let peer = self.model.peers.get_mut(&turn.key).unwrap();
            assert_eq!(readied != peer.readied, ready, "{turn:?}");
            assert!(!ready || readied > latest);
            peer.readied = readied;
            if turn.retires() {
                peer.retired_before = self.world.connections;
            }
            if turn.opens() {
                peer.missed = None;
            }
        }
    }

    /// Requests find nobody at a peer, or are answered there.
    fn miss_or_answer(&mut self) {
        let now = self.clock();
        for key in self.model.peers.keys().cloned().collect::<Vec<_>>() {
            // Where a writer died, whoever mends it lets somebody else in.
            if self.slot(&key).gate.state() != self.model.peers[&key].state() {
                continue;
            }
            let answers = self.dice.percent(25);
            self.note(format_args!("{now}: {key:?} {}", if answers { "answers" } else { "is missed" }));
            let missed = (!answers).then_some(now);
            if answers {
                self.slot(&key).answers.count(200);
            } else {
                self.slot(&key).miss(now);
            }
            self.model.peers.get_mut(&key).unwrap().missed = missed;
        }
    }

    fn renew_some(&mut self) {
        for owner in OWNERS.into_iter().filter(|owner| !self.silent.contains(owner)).collect::<Vec<_>>() {
            let lease = if self.dice.percent(10) { self.any_lease() } else { None };
            self.renew(&Renew { owner: of(owner), lease, marks: None });
        }
    }

    fn renew_fenced(&mut self) {
        if self.epochs.is_empty() {
            return;
        }
        let (owner, ..) = self.dice.pick(&self.epochs).clone();
        let held: Vec<_> = self.epochs.iter().rev().filter(|(name, ..)| *name == owner).take(4).collect();
        let marks = (0..self.dice.below(3)).map(|_| {
            let (_, (upstream, peer), epoch) = self.dice.pick(&held);
            RenewMark { upstream: upstream.clone(), peer: peer.clone(), epoch: *epoch }
        });
        let marks = Some(marks.collect());
        self.renew(&Renew { owner: of(&owner), lease: None, marks });
    }

    fn renew(&mut self, renew: &Renew) {
        let now = self.clock();
        self.note(format_args!("{now}: {renew:?}"));
        let renewed = self.model.renewed(renew);
        let applied = Control::begin(self.zone.table(), &self.world, moment(now)).renew(renew);
        assert_eq!(applied.is_ok(), renewed.is_some(), "{applied:?}");
        if let (Some(keys), Ok(applied)) = (renewed, applied) {
            assert_eq!(applied.ack.marks.len(), keys.len());
            self.model.renew(renew, &keys, now);
        }
    }

    fn sweep(&mut self) {
        let now = self.clock();
        self.note(format_args!("{now}: sweep"));
        let lapsed = self.model.lapsed(now);
        let events = Control::begin(self.zone.table(), &self.world, moment(now)).sweep();
        let over = self.model.over(|_| true, now);
        let (events, of_upstreams) = (&events[over..], &events[..over]);
        self.told(&vec![EventKind::Lapse; over], of_upstreams);
        let told = events
            .iter()
            .map(|event| ((event.upstream.clone(), event.peer.clone()), event.owner.as_str().to_owned()));
        assert_eq!(told.collect::<BTreeSet<_>>(), lapsed, "what outlived its lease, and nothing else");
        let turns = self.model.lapse(&lapsed);
        self.turned(&turns, events);
        self.grows(over + events.len());
        let outlived = self.model.peers.values().flat_map(|peer| peer.marks.values());
        assert!(outlived.filter_map(|mark| Some(mark.renewed + mark.lease?)).all(|end| end > now));
    }

    fn pause_or_resume(&mut self) {
        let owner = *self.dice.pick(&["operator", "rollout:1"]);
        let both = UPSTREAMS.map(String::from);
        let upstreams: Vec<String> = match self.dice.below(3) {
            0 => both.to_vec(),
            one => vec![both[one - 1].clone()],
        };
        let is_unknown = !upstreams.iter().all(|name| self.model.upstreams().contains(name.as_str()));
        if self.dice.percent(60) {
            self.pause(owner, upstreams, is_unknown);
        } else {
            self.resume(owner, upstreams, is_unknown);
        }
    }

    fn pause(&mut self, owner: &str, upstreams: Vec<String>, is_unknown: bool) {
        let now = self.clock();
        let (max, force) = (self.dice.within(900..40_000), self.dice.percent(20));
        let reason = format!("reason {max}");
        let set = Pause { owner: of(owner), upstreams, max: Span::from_millis(max), reason, force };
        self.note(format_args!("{now}: {set:?}"));
        let is_wrong = max < 1_000
            || is_unknown
            || (max > QUEUE.timeout && !force)
            || self.model.is_foreign(owner, &set.upstreams, now);
        let applied = Control::begin(self.zone.table(), &self.world, moment(now)).pause(&set);
        assert_eq!(applied.is_err(), is_wrong, "{applied:?}");
        let Ok(applied) = applied else { return };
        let mut kinds = Vec::new();
        for name in &set.upstreams {
            kinds.extend(vec![EventKind::Lapse; self.model.over(|other| other == name, now)]);
            let is_new = self.model.pause(owner, name, max, &set.reason, now);
            kinds.extend(is_new.then_some(EventKind::Pause));
        }
        for told in &applied.ack.upstreams {
            let left = self.model.pauses[&told.upstream].until.saturating_sub(now);
            assert_eq!((told.left.as_millis(), told.in_flight), (left, self.all_in_flight(&told.upstream)));
        }
        self.told(&kinds, &applied.events);
        self.grows(kinds.len());
    }

    fn resume(&mut self, owner: &str, upstreams: Vec<String>, is_unknown: bool) {
        let now = self.clock();
        let set = Resume { owner: of(owner), upstreams, force: self.dice.percent(30) };
        self.note(format_args!("{now}: {set:?}"));
        let is_wrong = is_unknown || (!set.force && self.model.is_foreign(owner, &set.upstreams, now));
        let applied = Control::begin(self.zone.table(), &self.world, moment(now)).resume(&set);
        assert_eq!(applied.is_err(), is_wrong, "{applied:?}");
        let Ok(applied) = applied else { return };
        let mut kinds = Vec::new();
        for (name, told) in set.upstreams.iter().zip(&applied.ack.upstreams) {
            kinds.extend(vec![EventKind::Lapse; self.model.over(|other| other == name, now)]);
            let was = match self.model.pauses.remove(name) {
                None => Was::Running,
                Some(pause) if now < pause.until => Was::Paused,
                Some(_) => Was::Lapsed,
            };
            kinds.extend((was == Was::Paused).then_some(EventKind::Resume));
            assert_eq!((&told.upstream, told.was), (name, was));
        }
        self.told(&kinds, &applied.events);
        self.grows(kinds.len());
    }

    /// What is told of upstreams.
    fn told(&mut self, kinds: &[EventKind], events: &[Event]) {
        assert_eq!(events.iter().map(|event| event.kind).collect::<Vec<_>>(), kinds);
        assert!(events.iter().all(|event| event.peer.is_empty() && event.from.is_none()));
        self.events += kinds.len() as u64;
    }

    /// By each change, and by nothing else.
    fn grows(&mut self, changes: usize) {
        assert_eq!(self.table().header.generation() > self.generation, changes > 0);
        self.generation = self.table().header.generation();
    }

    fn fall_silent(&mut self) {
        let owner = *self.dice.pick(&OWNERS);
        if !self.silent.remove(owner) {
            self.silent.insert(owner);
        }
    }

    /// A writer dies after it changed the marks, before some of the gates followed; the next one mends.
    fn die_writing(&mut self) {
        let marks = (0..2).map(|_| self.any_mark()).collect();
        let turns = self.command(&MarkSet { owner: of("pm2:1"), lease: None, force: true, marks });
        self.note(format_args!("the writer dies"));
        mem::forget(Control::begin(self.zone.table(), &self.world, moment(self.now)));
        self.world.connections += 1;
        for turn in turns {
            if self.dice.percent(50) {
                self.slot(&turn.key).gate.set(turn.from);
                if turn.retires() {
                    self.model.peers.get_mut(&turn.key).unwrap().retired_before = self.world.connections;
                }
            }
        }
        let next = Control::begin(self.zone.table(), &self.world, moment(self.now));
        drop(next);
        self.generation = self.table().header.generation();
    }

    // The request path.

    fn claim(&mut self) {
        self.world.connections += 1;
        if self.nginx.is_empty() {
            return;
        }
        let at = self.dice.below(self.nginx.len());
        let nginx = &self.nginx[at];
        let known: Vec<_> = nginx.knows.iter().collect();
        let (key, id) = *self.dice.pick(&known);
        self.note(format_args!("{:?} claims {key:?}", nginx.process));
        let is_fit = self.dice.percent(50);
        let room = self.zone.table().room_of(&key.0).unwrap();
        let is_paused = self.model.is_paused(&key.0, nginx.clock);
        let turnstile = self.zone.table().turnstile(nginx.row, *id).unwrap();
        let admission = turnstile.claim(|| room.pause.holds(|| nginx.clock), || is_fit);
        let expected = match self.model.peers[key].state() {
            _ if is_paused => Admission::Paused,
            Up | State::Changing => Admission::Admitted,
            State::Trial if is_fit => Admission::OnTrial,
            state => Admission::Refused(state),
        };
        assert_eq!(admission, expected);
        if matches!(admission, Admission::Admitted | Admission::OnTrial) {
            let key = key.clone();
            self.connect(at, key);
        }
    }

    /// Over a connection that was kept, if one may be used, or over a fresh one.
    fn connect(&mut self, at: usize, key: Key) {
        // The counter has gone on since.
        let connection = self.world.connections - 1;
        let fresh = Served { key: key.clone(), connection, opened: self.steps };
        let kept = self.nginx[at].kept.iter().rposition(|kept| kept.key == key);
        let kept = kept.map(|kept| self.nginx[at].kept.remove(kept));
        let served = kept.filter(|kept| self.slot(&key).may_reuse(kept.connection)).unwrap_or(fresh);
        let disturbed = self.disturbed.get(&key).copied().unwrap_or(0);
        assert!(served.opened > disturbed || served.opened == self.steps, "reused across a change: {key:?}");
        self.nginx[at].serves.push(served);
    }

    fn release(&mut self) {
        let serving = self.nginx.iter_mut().filter(|nginx| !nginx.serves.is_empty());
        for nginx in serving {
            let at = self.dice.below(nginx.serves.len());
            let served = nginx.serves.swap_remove(at);
            let (table, id) = (self.zone.table(), nginx.knows[&served.key]);
            table.turnstile(nginx.row, id).unwrap().release();
            if table.slot(id).unwrap().may_keep(served.connection) {
                nginx.kept.push(served);
            }
        }
    }

    // nginx.

    fn start(&mut self) {
        self.pids += 1;
        // Pids come again, with another start.
        let process = Process { pid: 1 + self.pids % 7, start: u64::from(self.pids) };
        self.note(format_args!("{process:?} starts"));
        self.world.alive.insert(process);
        let (configuration, knows) = self.running.clone();
        let row =
            self.zone.table().join(process, configuration, |process| self.world.alive.contains(&process));
        let has_row = self.zone.table().row_process(row) == Some(process);
        if !has_row {
            self.shared.push(knows.clone());
        }
        let (serves, kept, clock) = (Vec::new(), Vec::new(), self.now);
        self.nginx.push(Nginx { process, row, has_row, knows, serves, kept, clock });
    }

    fn crash(&mut self) {
        if self.nginx.is_empty() {
            return;
        }
        let at = self.dice.below(self.nginx.len());
        let nginx = self.nginx.swap_remove(at);
        self.note(format_args!("{:?} dies", nginx.process));
        self.world.alive.remove(&nginx.process);
        if !nginx.has_row {
            self.leaked.extend(nginx.serves.into_iter().map(|served| served.key));
        }
    }

    fn leave(&mut self) {
        let Some(at) = self.nginx.iter().position(|nginx| nginx.serves.is_empty()) else { return };
        let nginx = self.nginx.swap_remove(at);
        self.note(format_args!("{:?} leaves", nginx.process));
        self.world.alive.remove(&nginx.process);
        self.zone.table().leave(nginx.row);
    }

    /// nginx changes its own mind about a peer.
    fn regard(&mut self) {
        let keys: Vec<Key> = self.model.standings.keys().cloned().collect();
        let key = self.dice.pick(&keys);
        let standing = self.model.standings.get_mut(key).unwrap();
        standing.available = !standing.available;
        self.tell_world();
    }

    fn tell_world(&mut self) {
        self.world.upstreams.clear();
        for (key, standing) in &self.model.standings {
            let Standing { backup, available } = *standing;
            let peer = handoff_core::Standing { backup, available, ..serving(self.running.1[key]) };
            self.world.upstreams.entry(key.0.clone()).or_default().push(peer);
        }
    }

    fn reload(&mut self, fails: bool) {
        self.note(format_args!("reload, fails: {fails}"));
        let configuration = self.table().header.next_configuration();
        let mut slots = Configuration::new();
        for upstream in UPSTREAMS {
            self.table().open_room(upstream, configuration, |_| true).expect("a room for each");
            for peer in PEERS {
                if self.dice.percent(50) || (peer == PEERS[0] && upstream == UPSTREAMS[0]) {
                    self.register((upstream.into(), peer.into()), configuration, &mut slots);
                }
            }
        }
        if fails || slots.is_empty() {
            return;
        }
        self.table().header.commit(configuration, moment(self.now));
        self.generation = self.table().header.generation();
        let standing = |key: &Key| (key.clone(), Standing { backup: key.1 == PEERS[3], available: true });
        self.model.standings = slots.keys().map(standing).collect();
        self.running = (configuration, slots);
        self.tell_world();
        self.start();
    }

    fn register(&mut self, key: Key, configuration: u64, slots: &mut Configuration) {
        let alive = |process| self.world.alive.contains(&process);
        let Some(id) = self.zone.table().register(&key.0, &key.1, configuration, alive) else {
            assert_eq!(self.model.peers.len(), SLOTS, "there is room");
            assert!(!self.model.peers.contains_key(&key));
            return;
        };
        let table = self.zone.table();
        self.model.peers.retain(|(upstream, peer), _| table.find(upstream, peer).is_some());
        self.model.peers.entry(key.clone()).or_default();
        slots.insert(key, id);
        self.nobody_lost_a_peer(slots);
    }

    // What must hold.

    fn nobody_lost_a_peer(&self, reading: &Configuration) {
        let living = self.nginx.iter().map(|nginx| &nginx.knows);
        for (key, &id) in living.chain(&self.shared).chain([&self.running.1, reading]).flatten() {
            assert!(self.table().slot(id).unwrap().is(&key.0, &key.1), "{key:?} lost its slot");
        }
    }

    fn slot(&self, key: &Key) -> &handoff_core::slot::Slot {
        let id = self.table().find(&key.0, &key.1).unwrap();
        self.table().slot(id).unwrap()
    }

    /// The latest return of a peer that nginx is not to punish.
    fn readied(&self) -> u64 {
        self.model.peers.values().map(|peer| peer.readied).max().unwrap_or(0)
    }

    fn in_flight(&self, key: &Key) -> u64 {
        let living = self.nginx.iter().flat_map(|nginx| &nginx.serves).map(|served| &served.key);
        living.chain(&self.leaked).filter(|served| *served == key).count() as u64
    }

    fn all_in_flight(&self, upstream: &str) -> u64 {
        let keys = self.model.peers.keys().filter(|key| key.0 == upstream);
        keys.map(|key| self.in_flight(key)).sum()
    }

    pub fn check(&self) {
        let table = self.table();
        for name in UPSTREAMS {
            let view = table.room_of(name).and_then(|room| room.pause.view(moment(self.now)));
            let pause = self.model.pauses.get(name).filter(|pause| self.now < pause.until);
            let shown =
                pause.map(|pause| (pause.owner.clone(), pause.reason.clone(), pause.until - self.now));
            assert_eq!(view.map(|view| (view.owner.to_string(), view.reason, view.left.as_millis())), shown);
        }
        let living = table.living(|process| self.world.alive(process));
        for (key, peer) in &self.model.peers {
            let id = table.find(&key.0, &key.1).expect("a peer keeps its slot");
            let slot = table.slot(id).unwrap();
            assert_eq!(slot.gate.state(), peer.state(), "the gate of {key:?}");
            assert_eq!(slot.retired_before(), peer.retired_before, "{key:?}");
            assert_eq!(slot.readied(), peer.readied, "{key:?}");
            assert_eq!(table.settle(id, &living), self.in_flight(key), "the ledger of {key:?}");
            self.check_marks(key, slot, peer);
        }
        assert_eq!(
            table.ids().filter(|&id| table.slot(id).is_some_and(|slot| slot.seen() != 0)).count(),
            self.model.peers.len()
        );
        let header = table.header;
        assert_eq!(header.generation(), self.generation, "nothing changes unseen");
        assert_eq!(table.recall(0).next, self.events);
        assert!(header.readied() >= self.readied());
    }

    fn check_marks(&self, key: &Key, slot: &handoff_core::slot::Slot, peer: &Peer) {
        let now = moment(self.now);
        let views: Vec<_> = slot.marks().iter().filter_map(|mark| mark.view(now)).collect();
        assert_eq!(views.len(), peer.marks.len(), "the marks of {key:?}: {views:?}");
        for view in views {
            let mark = peer.marks.get(view.owner.as_str()).expect("an owner that set it");
            assert_eq!((view.state, view.expect, view.epoch), (mark.state, mark.expect, mark.epoch));
            assert_eq!(view.reason, mark.reason);
            let left = |lease: u64| Span::from_millis((mark.renewed + lease).saturating_sub(self.now));
            assert_eq!(view.lease, mark.lease.map(left));
            assert_eq!(view.age.as_millis(), self.now - mark.begun);
        }
    }
}
