//! What nginx's processes share: core's own table, and what core's own control path makes of a command.
//!
//! A state of the model holds a number for it. Behind the number are the commands that led there: to go on, they are carried
//! out once more on a table that is new. Two zones in which all is the same that anybody can see are one.

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
    Mark { owner: Owner, marks: Vec<(Peer, State, Expect)>, force: bool },
    /// Refused if it is not this very mark any more.
    Renew { owner: Owner, peer: Peer, epoch: u64 },
    /// So many milliseconds pass, in which those owners renew nothing.
    Silence { of: [bool; 2], millis: u64 },
}

/// All that can be seen of it.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    pub generation: u64,
    pub gates: [State; PEERS],
    pub outlook: Outlook,
    /// Connections that were opened in an earlier generation are not used again.
    pub retired_before: [u64; PEERS],
    /// By owner.
    pub marks: [[Option<Mark>; 2]; PEERS],
}

#[derive(Clone, Copy, Debug)]
pub struct Mark {
    pub state: State,
    pub expect: Expect,
    pub epoch: u64,
    /// Milliseconds that are left of its lease.
    pub left: u64,
}

struct Told {
    peers: usize,
    commands: Vec<Command>,
    seen: Seen,
}

static TOLD: LazyLock<Known<Told>> = LazyLock::new(Known::default);
type Answers = HashMap<(Zone, Command), Result<Zone, Code>>;
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
        Self::after(peers, Vec::new()).unwrap()
    }

    pub fn seen(self) -> Seen {
        TOLD.get(self.0).seen
    }

    pub fn tell(self, command: Command) -> Result<Self, Code> {
        let question = (self, command);
        if let Some(answer) = ANSWERS.lock().unwrap().get(&question) {
            return *answer;
        }
        let told = TOLD.get(self.0);
        let commands = told.commands.iter().cloned().chain([question.1.clone()]).collect();
        let answer = Self::after(told.peers, commands);
        ANSWERS.lock().unwrap().insert(question, answer);
        answer
    }

    fn after(peers: usize, commands: Vec<Command>) -> Result<Self, Code> {
        let named: Vec<_> = ADDRESSES.iter().take(peers).map(|&address| (APP, address)).collect();
        let mut stage = Stage::of(&named);
        stage.world.queue = Some(Queue::default());
        let mut last = Ok(());
        for command in &commands {
            // Every connection that is there is older than what follows.
            stage.world.connections = stage.table().header.generation() + 1;
            last = command.carry_out(&mut stage);
        }
        last.map_err(|refusal| refusal.code)?;
        let seen = Seen::of(&stage, peers);
        let name = format!("{peers} {seen:?}");
        Ok(Self(TOLD.number(name, || Told { peers, commands, seen })))
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
        let is_there = |peer: &Peer| *peer < peers;
        let each = |of: &dyn Fn(&str) -> u64| {
            std::array::from_fn(|peer| Some(peer).filter(is_there).map_or(0, |peer| of(ADDRESSES[peer])))
        };
        let mark = |peer: Peer, owner: Owner| {
            let marks = Some(peer).filter(is_there).map(|peer| stage.marks(ADDRESSES[peer]))?;
            let mark = marks.into_iter().find(|mark| mark.owner.as_str() == owner.name())?;
            let left = mark.lease.map_or(0, |left| left.as_millis());
            Some(Mark { state: mark.state, expect: mark.expect, epoch: mark.epoch, left })
        };
        Self {
            generation: stage.table().header.generation(),
            gates: std::array::from_fn(|peer| {
                Some(peer).filter(is_there).map_or(State::Down, |peer| stage.state(ADDRESSES[peer]))
            }),
            outlook: stage.outlook(),
            retired_before: each(&|address| stage.slot(address).retired_before()),
            marks: std::array::from_fn(|peer| Owner::ALL.map(|owner| mark(peer, owner))),
        }
    }

    pub fn serves(&self, peer: Peer) -> bool {
        self.gates[peer].serves()
    }

    pub fn mark(&self, peer: Peer, owner: Owner) -> Option<Mark> {
        self.marks[peer][owner as usize]
    }

    /// One of these owners has a mark.
    pub fn has_marks_of(&self, of: [bool; 2]) -> bool {
        self.marks.iter().any(|marks| marks.iter().zip(of).any(|(mark, is_of)| is_of && mark.is_some()))
    }
}
