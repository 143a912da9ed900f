//! What nginx's processes share: core's own table, and what core's own control path makes of a command.
//!
//! A state of the model holds a number for it. Behind the number are the commands that led there: to go on, they are carried
//! out once more on a table that is new. Two zones with the same marks and gates are one, however they came about.

use crate::{
    common::{self, APP, Stage},
    known::Known,
};
use handoff_core::hold::{Outlook, Queue};
use handoff_wire::{Code, Expect, MarkRequest, MarkSet, Refusal, Renew, RenewMark, State};
use std::{
    collections::HashMap,
    sync::{LazyLock, Mutex},
};

/// A worker's peer, and the worker.
pub type Peer = usize;
pub const PEERS: usize = 2;
pub const ADDRESSES: [&str; PEERS] = [common::A, common::B];

/// Who has marks there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Owner {
    Sidecar,
    Rollout,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Zone(u16);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Command {
    Mark {
        owner: Owner,
        marks: Vec<(Peer, State, Expect)>,
        force: bool,
    },
    /// Refused if it is not this very mark any more.
    Renew {
        owner: Owner,
        peer: Peer,
        epoch: u64,
    },
    /// A request was refused there.
    Misses(Peer),
    Answers(Peer),
    /// So many milliseconds pass, in which those owners renew nothing.
    Silence {
        of: [bool; 2],
        millis: u64,
    },
}

/// All that can be seen of it.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    pub gates: [State; PEERS],
    pub outlook: Outlook,
    /// By owner.
    pub marks: [[Option<Mark>; 2]; PEERS],
    /// Nobody was there, and the owners of these marks have said nothing since.
    pub missed: [[[bool; 2]; PEERS]; PEERS],
}

#[derive(Clone, Copy, Debug)]
pub struct Mark {
    pub state: State,
    pub expect: Expect,
    pub epoch: u64,
    /// Milliseconds that are left of its lease, in whole seconds: of less nothing hangs.
    pub left: u64,
}

/// What a command changed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Change {
    /// Of any mark.
    pub is_news: bool,
    /// Connections that were there are not used again.
    pub retires: [bool; PEERS],
}

struct Told {
    peers: usize,
    commands: Vec<Command>,
    seen: Seen,
    counts: Counts,
}

/// What only grows.
#[derive(Clone, Copy, Debug)]
struct Counts {
    generation: u64,
    retired_before: [u64; PEERS],
}

static TOLD: LazyLock<Known<Told>> = LazyLock::new(Known::default);
type Answer = Result<(Zone, Change), Code>;
type Answers = HashMap<(Zone, Command), Answer>;
static ANSWERS: LazyLock<Mutex<Answers>> = LazyLock::new(Mutex::default);

// === impl Owner ===

impl Owner {
    pub const ALL: [Self; 2] = [Self::Sidecar, Self::Rollout];

    pub fn name(self) -> &'static str {
        match self {
            Self::Sidecar => "pm2:1",
            Self::Rollout => "rollout:1",
        }
    }
}

// === impl Zone ===

impl Zone {
    /// Of an nginx that has just started.
    pub fn new(peers: usize) -> Self {
        Self::after(peers, Vec::new()).unwrap().0
    }

    pub fn seen(self) -> Seen {
        TOLD.get(self.0).seen
    }

    pub fn tell(self, command: Command) -> Answer {
        let question = (self, command);
        if let Some(answer) = ANSWERS.lock().unwrap().get(&question) {
            return *answer;
        }
        let told = TOLD.get(self.0);
        let commands = told.commands.iter().cloned().chain([question.1.clone()]).collect();
        let answer = Self::after(told.peers, commands).map(|(zone, counts)| {
            let is_retired = |peer: Peer| counts.retired_before[peer] > told.counts.retired_before[peer];
            let is_news = counts.generation > told.counts.generation;
            (zone, Change { is_news, retires: std::array::from_fn(is_retired) })
        });
        ANSWERS.lock().unwrap().insert(question, answer);
        answer
    }

    fn after(peers: usize, commands: Vec<Command>) -> Result<(Self, Counts), Code> {
        let named: Vec<_> = ADDRESSES.iter().take(peers).map(|&address| (APP, address)).collect();
        let mut stage = Stage::of(&named);
        stage.world.queue = Some(Queue::default());
        let mut last = Ok(());
        for command in &commands {
            // Every connection that is there is older than what follows.
            stage.world.connections = stage.table().header.generation() + 1;
            // What is said after a peer was missed is newer.
            let is_missed = |address| stage.slot(address).missed().is_some();
            stage.now += u64::from(ADDRESSES.into_iter().take(peers).any(is_missed));
            last = command.carry_out(&mut stage);
        }
        last.map_err(|refusal| refusal.code)?;
        let (seen, counts) = (Seen::of(&stage, peers), Counts::of(&stage, peers));
        let looks = format!("{peers} {seen:?}");
        Ok((Self(TOLD.number(looks, || Told { peers, commands, seen, counts })), counts))
    }
}

// === impl Counts ===

impl Counts {
    fn of(stage: &Stage, peers: usize) -> Self {
        let mut retired_before = [0; PEERS];
        for (retired, address) in retired_before.iter_mut().zip(ADDRESSES).take(peers) {
            *retired = stage.slot(address).retired_before();
        }
        Self { generation: stage.table().header.generation(), retired_before }
    }
}

// === impl Command ===

impl Command {
    fn carry_out(&self, stage: &mut Stage) -> Result<(), Refusal> {
        match self {
            Self::Mark { owner, marks, force } => {
                let request = |&(peer, state, expect): &(Peer, State, Expect)| MarkRequest {
                    expect: if state == State::Up { Expect::Gone } else { expect },
                    ..common::request(ADDRESSES[peer], state)
                };
                let owner = common::of(owner.name());
                let marks = marks.iter().map(request).collect();
                stage.put(&MarkSet { owner, lease: None, force: *force, marks }).map(drop)
            }
            Self::Renew { owner, peer, epoch } => {
                let mark = RenewMark { upstream: APP.into(), peer: ADDRESSES[*peer].into(), epoch: *epoch };
                let renew = Renew { owner: common::of(owner.name()), lease: None, marks: Some(vec![mark]) };
                stage.control().renew(&renew).map(drop)
            }
            Self::Misses(peer) => {
                stage.slot(ADDRESSES[*peer]).miss(stage.now);
                Ok(())
            }
            Self::Answers(peer) => {
                stage.slot(ADDRESSES[*peer]).answers.count(200);
                Ok(())
            }
            Self::Silence { of, millis } => {
                stage.now += millis;
                for owner in Owner::ALL.into_iter().filter(|&owner| !of[owner as usize]) {
                    stage.renew(owner.name());
                }
                stage.sweep_after(0);
                Ok(())
            }
        }
    }
}

// === impl Seen ===

impl Seen {
    fn of(stage: &Stage, peers: usize) -> Self {
        let mut seen = Self {
            gates: [State::Down; PEERS],
            outlook: stage.outlook(),
            marks: [[None; 2]; PEERS],
            missed: [[[false; 2]; PEERS]; PEERS],
        };
        let missed = ADDRESSES
            .map(|address| stage.table().find(APP, address).and_then(|_| stage.slot(address).missed()));
        for (peer, address) in ADDRESSES.into_iter().enumerate().take(peers) {
            seen.gates[peer] = stage.state(address);
            for mark in stage.slot(address).marks() {
                let lease = mark.lease().map_or(0, |lease| lease.as_millis());
                let Some(mark) = mark.view(common::moment(stage.now)) else { continue };
                let owner = Owner::ALL.into_iter().find(|owner| owner.name() == mark.owner.as_str()).unwrap();
                // Only the roll-out asks for one by its epoch.
                let epoch = if owner == Owner::Rollout { mark.epoch } else { 0 };
                let left = mark.lease.map_or(0, |left| left.as_millis());
                let heard = stage.now + left - lease;
                for (since, at) in seen.missed.iter_mut().zip(missed) {
                    since[peer][owner as usize] = at.is_some_and(|at| at >= heard);
                }
                let left = left.next_multiple_of(1000);
                seen.marks[peer][owner as usize] =
                    Some(Mark { state: mark.state, expect: mark.expect, epoch, left });
            }
        }
        seen
    }

    pub fn serves(&self, peer: Peer) -> bool {
        self.gates[peer].serves()
    }

    /// Somebody may take it for one where nobody is.
    pub fn is_missed(&self, peer: Peer) -> bool {
        self.missed[peer].as_flattened().contains(&true)
    }

    pub fn mark(&self, peer: Peer, owner: Owner) -> Option<Mark> {
        self.marks[peer][owner as usize]
    }

    /// One of these owners has a mark.
    pub fn has_marks_of(&self, of: [bool; 2]) -> bool {
        self.marks.iter().any(|marks| marks.iter().zip(of).any(|(mark, is_of)| is_of && mark.is_some()))
    }
}
