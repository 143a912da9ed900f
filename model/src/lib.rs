//! One host, every order of its steps: PM2's daemon and its bus, the sidecar, `handoff reload`, the zone, two nginx workers
//! with their requests, and the processes that are replaced. Held against what DESIGN promises:
//!
//! - no request fails because of a deploy;
//! - nothing that may have run is run twice;
//! - where nginx has acknowledged a drain nobody begins, and no worker is stopped that nginx might use;
//! - whatever happens, all settles: no mark stays, nobody waits for ever, every worker serves.
//!
//! What decides is the code that decides: core's control path ([`zone`]), core's verdicts on requests ([`request`]), the
//! sidecar's worker and plan ([`sidecar`]). What carries (PM2, a process, the order of `handoff reload`) stands in [`world`].
//! Each step that the protocol has can be left [out](Without), and must be missed. What all this assumes, and what was found:
//! `docs/decisions/drain-model.md`.

// All of it is a test: what cannot be is a panic.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test says so by failing")]

#[path = "../../nginx-module/core/tests/common/mod.rs"]
mod common;
mod known;
pub mod request;
pub mod sidecar;
pub mod step;
pub mod world;
pub mod zone;

use request::{At, Why};
use stateright::{Model, Property};
use std::fmt;
use step::Step;
use world::World;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// L0
    Pm2Reload,
    /// L1
    HandoffReload,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    Get,
    /// Whoever repeats it may do it twice.
    Post,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// For good.
    SidecarDies,
    SidecarIsRestarted,
    SidecarFreezes,
    /// PM2 signals before the sidecar was heard.
    NoticeIsLate,
    /// It has not finished within PM2's kill_timeout.
    WorkerIsKilled,
    RolloutDies,
    RolloutFreezes,
    NginxRestarts,
    NginxWorkerDies,
}

/// Which requests may fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promise {
    None,
    /// Those that stock nginx would fail: what must not be repeated broke with its worker; it broke with as many workers as
    /// the location allows for; or nobody listened anywhere.
    AsStock,
    /// And those two that are known to be worse (`docs/decisions/drain-model.md`).
    AsKnown,
}

/// What is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Without {
    /// PM2 signals at once.
    Lead,
    /// A request looks at the gate, and then is counted.
    Claim,
    /// Connections that were there before are used.
    Retire,
    /// `handoff_queue off`
    Hold,
    /// A mark does not say that somebody comes back.
    Expect,
    /// A worker is up when it is started.
    Listens,
    /// The roll-out does not wait for nginx's answer.
    Ack,
    /// Nor until nothing is in flight.
    Idle,
    /// Nor does it ask whether its mark still holds.
    Fence,
    /// What a dead nginx worker had counts on.
    Rows,
    /// Marks have no leases.
    Lapse,
    /// The sidecar only hears what PM2 says, and never looks.
    Looks,
    /// A peer where nobody was is one that serves, whatever its neighbour's owner says no more.
    Absence,
    /// `proxy_next_upstream off`
    Next,
    /// What was sent is repeated whatever it is.
    Unsent,
}

/// What is tried.
#[derive(Clone, Debug)]
pub struct Scene {
    pub by: By,
    pub workers: usize,
    pub sidecar: bool,
    pub requests: &'static [Method],
    pub faults: &'static [Fault],
    pub most_faults: u8,
    /// What PM2 says may be heard only when the next process serves already.
    pub slow_bus: bool,
    /// What may fail.
    pub fails: Promise,
    pub without: Option<Without>,
}

// === impl Scene ===

impl Scene {
    pub fn is_without(&self, without: Without) -> bool {
        self.without == Some(without)
    }

    fn may_fail(&self, why: Why) -> bool {
        match self.fails {
            Promise::None => false,
            Promise::AsKnown if matches!(why, Why::BrokeAndHeldBack | Why::Overlooked) => true,
            Promise::AsStock | Promise::AsKnown => matches!(why, Why::Sent | Why::Tries) || self.workers == 1,
        }
    }
}

pub const NOTHING_FAILS: &str = "no request fails because of a deploy";
pub const NOTHING_TWICE: &str = "nothing runs twice";
pub const NOBODY_BEGINS: &str = "nobody begins after the acknowledgement";
pub const NOBODY_STOPPED: &str = "no worker is stopped that nginx might use";
pub const ALL_SETTLES: &str = "all settles";

impl Model for Scene {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        vec![World::new(self)]
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        world.steps(self, steps);
    }

    fn next_state(&self, world: &World, step: Step) -> Option<World> {
        let mut world = world.clone();
        world.take(self, step);
        Some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(NOTHING_FAILS, |scene: &Self, world: &World| {
                let may_be = |at| !matches!(at, At::Failed(why) if !scene.may_fail(why));
                world.requests.iter().all(|request| may_be(request.at))
            }),
            Property::always(NOTHING_TWICE, |_, world: &World| {
                world.requests.iter().all(|request| request.executed <= 1)
            }),
            Property::always(NOBODY_BEGINS, |_, world: &World| !world.began_late),
            Property::always(NOBODY_STOPPED, |_, world: &World| !world.stopped_in_use),
            Property::always(ALL_SETTLES, |scene: &Self, world: &World| {
                !world.is_over || world.is_settled(scene)
            }),
        ]
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SidecarDies => "the sidecar is killed, for good",
            Self::SidecarIsRestarted => "the sidecar is killed",
            Self::SidecarFreezes => "the sidecar is frozen",
            Self::NoticeIsLate => {
                "PM2 signals the worker before nginx is told, and the worker closes its port"
            }
            Self::WorkerIsKilled => "PM2 kills the worker, which had not finished",
            Self::RolloutDies => "the roll-out is killed",
            Self::RolloutFreezes => "the roll-out is frozen",
            Self::NginxRestarts => "nginx is restarted, and forgets all",
            Self::NginxWorkerDies => "the first nginx worker dies",
        })
    }
}
