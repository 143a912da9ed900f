//! A zone on the heap, and a world that does as it is told.

#![allow(dead_code, unreachable_pub, reason = "every file of tests uses its share of this")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test says so by failing"
)]

pub mod dice;

use handoff_core::Turnstile;
use handoff_core::control::Control;
use handoff_core::event::Entry;
use handoff_core::hold::{Outlook, Queue};
use handoff_core::plus::Server;
use handoff_core::retry::Budget;
use handoff_core::room::Room;
use handoff_core::slot::Slot;
use handoff_core::table::{Header, PROCESSES, Row, RowId, SlotId};
use handoff_core::{Admission, Applied, InFlight, Moment, Process, Slots, Standing, Table, World};
use handoff_wire::*;
use std::collections::{BTreeMap, HashSet};

pub const APP: &str = "app";
pub const A: &str = "10.0.0.1:3000";
pub const B: &str = "10.0.0.2:3000";
pub const C: &str = "10.0.0.3:3000";

/// The memory that nginx would share.
pub struct Zone {
    header: Header,
    slots: Vec<Slot>,
    rooms: Vec<Room>,
    rows: Vec<Row>,
    in_flight: Vec<InFlight>,
    events: Vec<Entry>,
}

/// What the shell would know.
#[derive(Default)]
pub struct Script {
    pub alive: HashSet<Process>,
    pub upstreams: BTreeMap<String, Vec<Standing>>,
    pub connections: u64,
    pub queue: Option<Queue>,
    pub retry: Option<Budget>,
    pub slow_start: Option<Span>,
    /// Of `app`, for peers that are added.
    pub slots: Option<Slots>,
}

/// One configuration, one nginx process, and a clock.
pub struct Stage {
    pub zone: Zone,
    pub world: Script,
    pub now: u64,
    pub row: RowId,
}

// === impl Zone ===

impl Zone {
    pub fn with(slots: usize, events: usize) -> Self {
        fn zeroed<T: Default>(len: usize) -> Vec<T> {
            std::iter::repeat_with(T::default).take(len).collect()
        }
        let zone = Self {
            header: Header::default(),
            slots: zeroed(slots),
            rooms: zeroed(4),
            rows: zeroed(PROCESSES),
            in_flight: zeroed(PROCESSES * slots),
            events: zeroed(events),
        };
        zone.header.found(0xc0ffee, Moment { mono: 0, unix: 0 });
        zone
    }

    pub fn table(&self) -> Table<'_> {
        Table {
            header: &self.header,
            slots: &self.slots,
            rooms: &self.rooms,
            rows: &self.rows,
            in_flight: &self.in_flight,
            events: &self.events,
        }
    }
}

// === impl Script ===

impl World for Script {
    fn alive(&self, process: Process) -> bool {
        self.alive.contains(&process)
    }

    fn peers(&self, upstream: &str) -> Vec<Standing> {
        self.upstreams.get(upstream).cloned().unwrap_or_default()
    }

    fn upstreams(&self) -> Vec<String> {
        self.upstreams.keys().cloned().collect()
    }

    fn connections(&self) -> u64 {
        self.connections
    }

    fn queue(&self, _upstream: &str) -> Option<Queue> {
        self.queue
    }

    fn retry(&self, _upstream: &str) -> Option<Budget> {
        self.retry
    }

    fn slow_start(&self, _upstream: &str) -> Option<Span> {
        self.slow_start
    }

    fn slots(&self, upstream: &str) -> Option<Slots> {
        self.slots.clone().filter(|_| upstream == APP)
    }
}

// === impl Stage ===

impl Stage {
    /// The upstream `app` with three peers.
    pub fn new() -> Self {
        Self::of(&[(APP, A), (APP, B), (APP, C)])
    }

    pub fn of(peers: &[(&str, &str)]) -> Self {
        let zone = Zone::with(8, 16);
        let mut world = Script { connections: 100, ..Script::default() };
        let nginx = process(1);
        world.alive.insert(nginx);
        let table = zone.table();
        let configuration = table.header.next_configuration();
        for (upstream, peer) in peers {
            let slot = table.register(upstream, peer, configuration, |_| false).unwrap();
            world.upstreams.entry((*upstream).to_owned()).or_default().push(serving(slot));
        }
        table.header.commit(configuration, moment(0));
        let row = table.join(nginx, configuration, |process| world.alive(process));
        Self { zone, world, now: 1_000_000, row }
    }

    pub fn table(&self) -> Table<'_> {
        self.zone.table()
    }

    pub fn control(&self) -> Control<'_, Script> {
        Control::begin(self.zone.table(), &self.world, moment(self.now))
    }

    pub fn put(&self, set: &MarkSet) -> Result<Applied, Refusal> {
        Control::begin(self.zone.table(), &self.world, moment(self.now)).mark(set)
    }

    /// Sets one mark, and expects that it can be; answers its epoch.
    pub fn mark(&self, owner: &str, peer: &str, state: State) -> u64 {
        let set = MarkSet { force: true, ..set(owner, &[(peer, state)]) };
        self.put(&set).expect("a forced mark").ack.marks[0].epoch
    }

    pub fn renew(&self, owner: &str) -> Applied {
        self.control().renew(&Renew { owner: of(owner), lease: None, marks: None }).expect("a plain renewal")
    }

    /// Renews if the marks are still those of these epochs.
    pub fn fence(&self, owner: &str, marks: &[(&str, u64)]) -> Result<Applied, Refusal> {
        let mark =
            |&(peer, epoch): &(&str, u64)| RenewMark { upstream: APP.into(), peer: peer.into(), epoch };
        let marks = Some(marks.iter().map(mark).collect());
        self.control().renew(&Renew { owner: of(owner), lease: None, marks })
    }

    pub fn sweep_after(&mut self, millis: u64) -> Vec<Event> {
        self.now += millis;
        self.control().sweep()
    }

    pub fn id(&self, peer: &str) -> SlotId {
        self.table().find(APP, peer).unwrap()
    }

    pub fn slot(&self, peer: &str) -> &Slot {
        self.table().slot(self.id(peer)).unwrap()
    }

    pub fn state(&self, peer: &str) -> State {
        self.slot(peer).gate.state()
    }

    fn turnstile(&self, peer: &str) -> Turnstile<'_> {
        self.table().turnstile(self.row, self.id(peer)).unwrap()
    }

    /// Claims for a request that is fit for no trial.
    pub fn claim(&self, peer: &str) -> Admission {
        self.turnstile(peer).claim(|| self.is_paused(), || false)
    }

    /// Claims for a request that is fit for a trial.
    pub fn claim_fit(&self, peer: &str) -> Admission {
        self.turnstile(peer).claim(|| self.is_paused(), || true)
    }

    pub fn room(&self) -> Option<&Room> {
        self.table().room_of(APP)
    }

    pub fn is_paused(&self) -> bool {
        self.room().is_some_and(|room| room.pause.holds(|| self.now))
    }

    pub fn release(&self, peer: &str) {
        self.turnstile(peer).release();
    }

    /// The marks of a peer, as the API shows them.
    pub fn marks(&self, peer: &str) -> Vec<MarkView> {
        self.slot(peer).marks().iter().filter_map(|mark| mark.view(moment(self.now))).collect()
    }

    pub fn owners(&self, peer: &str) -> Vec<String> {
        self.marks(peer).iter().map(|mark| mark.owner.to_string()).collect()
    }

    pub fn lease(&self, peer: &str) -> Option<Span> {
        self.marks(peer)[0].lease
    }

    /// What those may expect who wait for `app`.
    pub fn outlook(&self) -> Outlook {
        let peers = self.world.upstreams[APP].iter();
        Outlook::of(peers.map(|&peer| (peer, self.table().slot(peer.slot).unwrap())), moment(self.now))
    }

    /// Sets marks on all peers of `app`, and says what is to be expected.
    pub fn all_are(&self, owner: &str, state: State, expect: Expect) {
        [A, B, C].iter().for_each(|peer| self.expects(owner, peer, state, expect));
    }

    pub fn expects(&self, owner: &str, peer: &str, state: State, expect: Expect) {
        let marks = vec![MarkRequest { expect, ..request(peer, state) }];
        self.put(&MarkSet { marks, force: true, ..set(owner, &[]) }).expect("a forced mark");
    }

    /// How nginx itself regards a peer from now on.
    pub fn regard(&mut self, peer: &str, change: impl Fn(&mut Standing)) {
        let id = self.id(peer);
        let peers = self.world.upstreams.get_mut(APP).unwrap();
        change(peers.iter_mut().find(|standing| standing.slot == id).unwrap());
    }
}

pub fn process(pid: u32) -> Process {
    Process { pid, start: 7 }
}

pub fn serving(slot: SlotId) -> Standing {
    Standing { slot, backup: false, weight: 1, available: true, unavail: false, full: false }
}

/// As nginx would have a server that its configuration only names.
pub fn plus_server(id: u32, address: &str) -> Server {
    Server {
        id,
        address: address.to_owned(),
        name: address.to_owned(),
        weight: 1,
        max_conns: 0,
        max_fails: 1,
        fail_timeout: Span::from_secs(10),
        slow_start: Span::default(),
        backup: false,
        down: false,
    }
}

pub fn moment(mono: u64) -> Moment {
    Moment { mono, unix: mono + 1_700_000_000_000 }
}

pub fn of(owner: &str) -> Owner {
    owner.parse().unwrap()
}

/// A command for peers of `app`.
pub fn set(owner: &str, marks: &[(&str, State)]) -> MarkSet {
    let marks = marks.iter().map(|&(peer, state)| request(peer, state)).collect();
    MarkSet { owner: of(owner), lease: None, force: false, marks }
}

pub fn request(peer: &str, state: State) -> MarkRequest {
    MarkRequest {
        upstream: Some(APP.into()),
        peer: peer.into(),
        state,
        expect: Expect::Gone,
        reason: String::new(),
        all: false,
    }
}

/// `up` for every owner's mark.
pub fn all_ready(owner: &str, peer: &str) -> MarkSet {
    MarkSet { marks: vec![MarkRequest { all: true, ..request(peer, State::Up) }], ..set(owner, &[]) }
}
