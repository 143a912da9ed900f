//! The scenarios, one row each, and the setups that they are played with.

use crate::app::Behaviour;
use anyhow::{Context, Result};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use std::{fmt, time::Duration};

/// What is deployed, and what happens to it under load.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    pub name: &'static str,
    pub says: &'static str,
    pub behaviour: Behaviour,
    pub workers: u16,
    /// Visits a second.
    pub rate: u32,
    pub action: Action,
    /// What happens in the middle of each action.
    pub trouble: Option<Trouble>,
    pub pace: Pace,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// `pm2 reload`
    Reload,
    /// `kill -9` of one worker.
    Kill,
    /// For a while, one worker throws 200 ms after it listens, again and again.
    Crash,
}

/// What may happen to Handoff and to those it works between, as soon as the first worker drains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The sidecar is killed, and started again at once, as a service manager does.
    SidecarRestarts,
    /// The sidecar is killed, and nobody starts it again.
    SidecarDies,
    /// The sidecar is stopped for half a second.
    SidecarFreezes,
    /// `nginx -s reload`
    NginxReloads,
    /// PM2's sockets are out of reach for half a second, and the sidecar has to connect anew.
    Pm2Vanishes,
}

/// When things happen, counted from the first visit.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    pub actions: &'static [Duration],
    /// From the end of one action to the next, if the first took longer than was planned for it.
    pub gap: Duration,
    pub at_least: Duration,
    /// After the last action, and after the last worker was ready.
    pub after: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Setup {
    /// nginx with the article's block.
    Stock,
    /// The same with `zone`, `max_fails=0` and every try.
    Tuned,
    /// The article's block with Handoff.
    Handoff,
}

/// How much of Handoff the user takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
pub enum Level {
    /// Adds Handoff, and types what they always typed.
    #[value(name = "L0")]
    L0,
}

pub const SETTLING: Duration = Duration::from_millis(2_500);

const TWICE: Pace = Pace {
    actions: &[Duration::from_secs(8), Duration::from_secs(16)],
    gap: Duration::from_millis(1_500),
    at_least: Duration::from_secs(25),
    after: SETTLING,
};

pub const S4: Scenario = Scenario {
    name: "S4",
    says: "pm2 reload of four workers in fork mode",
    behaviour: Behaviour::Graceful,
    workers: 4,
    rate: 200,
    action: Action::Reload,
    trouble: None,
    pace: TWICE,
};

pub const S4N: Scenario = Scenario {
    name: "S4n",
    says: "pm2 reload of four workers that handle no signal",
    behaviour: Behaviour::Naive,
    ..S4
};

pub const S6B: Scenario =
    Scenario { name: "S6b", says: "kill -9 of one of four workers", action: Action::Kill, ..S4 };

pub const S6C: Scenario = Scenario {
    name: "S6c",
    says: "one of four workers throws 200 ms after it listens, in a loop",
    behaviour: Behaviour::Throws,
    action: Action::Crash,
    pace: Pace { actions: &[Duration::from_secs(8)], ..TWICE },
    ..S4
};

pub const ALL: [Scenario; 4] = [S4, S4N, S6B, S6C];

impl Scenario {
    pub fn find(name: &str) -> Result<Self> {
        ALL.into_iter().find(|scenario| scenario.name.eq_ignore_ascii_case(name)).with_context(|| {
            let names: Vec<&str> = ALL.iter().map(|scenario| scenario.name).collect();
            format!("no scenario {name}: there are {}", names.join(", "))
        })
    }
}

impl Setup {
    pub fn level(self) -> Option<Level> {
        (self == Self::Handoff).then_some(Level::L0)
    }

    pub fn title(self) -> &'static str {
        match self {
            Self::Stock => "stock nginx",
            Self::Tuned => "tuned nginx",
            Self::Handoff => "Handoff",
        }
    }
}

impl fmt::Display for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Stock => "stock",
            Self::Tuned => "tuned",
            Self::Handoff => "handoff",
        })
    }
}

impl Action {
    /// In an operator's words.
    pub fn says(self) -> &'static str {
        match self {
            Self::Reload => "pm2 reload",
            Self::Kill => "kill -9",
            Self::Crash => "crash loop",
        }
    }
}
