//! The host: PM2, the sidecar, `handoff reload`, the workers and their requests, as they are between two steps.

mod next;
mod take;

use crate::{
    By, Scene,
    request::{At, Request},
    sidecar::{self, Fact, Knows, Listed, View},
    zone::{Command, Owner, PEERS, Peer, Zone},
};
use handoff_wire::{Expect, State as Says};

/// The how many-th process of a worker it is.
pub type Life = u8;
pub const REQUESTS: usize = 3;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    pub zone: Zone,
    /// Which nginx it is.
    instance: u8,
    pub workers: [Worker; PEERS],
    /// The first nginx worker has an idle connection to the first process of the first worker, and whether that is not to be used
    /// any more.
    pub pooled: Option<bool>,
    pub requests: [Request; REQUESTS],
    pm2: Pm2,
    sidecar: Sidecar,
    rollout: Rollout,
    faults: u8,
    /// A request was let in where that was acknowledged to be over.
    pub began_late: bool,
    /// A worker was stopped that nginx might use.
    pub stopped_in_use: bool,
    /// No step is left.
    pub is_over: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Worker {
    pub life: Life,
    pub state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    Booting,
    Listening,
    /// It was told to go: its port is closed, and it ends when it has finished.
    Closing,
    Dead,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Pm2 {
    /// What it is doing.
    job: Option<(Peer, Phase)>,
    /// How many workers are new.
    done: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Phase {
    /// `Stopping app:` is on the bus.
    Announced,
    Signalled,
    Ended,
    Started,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Sidecar {
    fate: Fate,
    knows: [Knows; PEERS],
    view: View,
    /// What PM2 has said and it has not heard.
    bus: Vec<(Peer, Fact)>,
    deaths: [Option<Life>; PEERS],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Rollout {
    fate: Fate,
    turn: Peer,
    stage: Stage,
    /// Its mark has been sent, and was not waited for: only where that is tried.
    is_sending: Option<Peer>,
}

/// As in `handoff reload`'s turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Stage {
    Begins,
    Drained { epoch: u64, instance: u8 },
    Fenced,
    Stopping,
    Starting,
    Lifted,
    Over,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Fate {
    Runs,
    /// SIGSTOP; it goes on some time.
    Frozen,
    /// It is restarted some time.
    Away,
    /// For good.
    Dead,
}

// === impl World ===

impl World {
    pub fn new(scene: &Scene) -> Self {
        let zone = Zone::new(scene.workers);
        let seen = zone.seen();
        let knows = std::array::from_fn(|peer| {
            Knows::nothing().hears(peer, Fact::Look { life: Some(0), status: Listed::Online, listens: true })
        });
        let runs = |does| if does { Fate::Runs } else { Fate::Dead };
        let request = |at| Request::new(if at < scene.requests.len() { At::Coming } else { At::Never });
        let begins = scene.by == By::HandoffReload;
        Self {
            zone,
            instance: 1,
            workers: [Worker { life: 0, state: State::Listening }; PEERS],
            // Where somebody dies, others do not add to it.
            pooled: scene.faults.is_empty().then_some(false),
            requests: std::array::from_fn(request),
            pm2: Pm2::default(),
            sidecar: Sidecar {
                fate: runs(scene.sidecar),
                knows,
                view: sidecar::view(&seen),
                bus: Vec::new(),
                deaths: [None; PEERS],
            },
            rollout: Rollout {
                fate: runs(begins),
                turn: 0,
                stage: if begins { Stage::Begins } else { Stage::Over },
                is_sending: None,
            },
            faults: 0,
            began_late: false,
            stopped_in_use: false,
            is_over: false,
        }
    }

    fn is_at_work(&self, peer: Peer) -> bool {
        self.requests.iter().any(|request| matches!(request.at, At::Taken(at, _) if at == peer))
    }

    /// Somebody serves, and a mark that nobody renews keeps requests away from there.
    pub fn is_held_back(&self) -> bool {
        let zone = self.zone.seen();
        let listens = |peer: &Peer| self.workers[*peer].state == State::Listening && !zone.serves(*peer);
        let is_marked = |peer: Peer| zone.mark(peer, Owner::Sidecar).is_some();
        self.sidecar.fate != Fate::Runs && (0..PEERS).filter(listens).any(is_marked)
    }

    pub fn in_flight(&self, peer: Peer) -> usize {
        self.requests.iter().filter(|request| request.is_counted_at(peer)).count()
    }

    /// Every worker is new and serves, nobody waits, and nginx has no mark that keeps anybody away.
    pub fn is_settled(&self, scene: &Scene) -> bool {
        let zone = self.zone.seen();
        let is_deployed = match scene.by {
            By::Pm2Reload => self.pm2.done == scene.workers,
            By::HandoffReload => self.rollout.stage == Stage::Over || self.rollout.fate == Fate::Dead,
        };
        let serves = |peer| zone.serves(peer) && self.workers[peer].state == State::Listening;
        is_deployed
            && self.pm2.job.is_none()
            && (0..scene.workers).all(serves)
            && !self.requests.iter().any(Request::is_under_way)
    }
}

/// Nobody else serves where there is one worker: whoever comes waits.
fn drain(peer: Peer, scene: &Scene) -> Command {
    let marks = vec![(peer, Says::Draining, Expect::Back)];
    Command::Mark { owner: Owner::Rollout, marks, force: scene.workers == 1 }
}
