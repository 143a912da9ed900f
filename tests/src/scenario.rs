//! The scenarios, one row each, and the setups that they are played with.

use crate::app::{Behaviour, Mode};
use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use std::{fmt, time::Duration};

/// What is deployed, and what happens to it under load.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    pub name: &'static str,
    pub says: &'static str,
    pub behaviour: Behaviour,
    pub mode: Mode,
    pub workers: u16,
    /// With `handoff reload`: ports that the upstream has beside theirs.
    pub spares: u16,
    /// How long PM2 waits for `ready`, if it does.
    pub wait_ready: Option<Duration>,
    /// Without Handoff, nginx may send a POST again, whatever became of it.
    pub non_idempotent: bool,
    /// Visits a second.
    pub rate: u32,
    pub action: Action,
    /// What happens in the middle of each action.
    pub trouble: Option<Trouble>,
    /// What is always open besides the visits.
    pub streaming: Option<Streaming>,
    pub pace: Pace,
    pub level: Level,
    /// What else is said to `handoff reload`.
    pub options: &'static [&'static str],
    /// How `handoff reload` must end.
    pub exit: i32,
    /// How long it may take.
    pub within: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// `pm2 reload`
    Reload,
    /// `pm2 restart`
    Restart,
    /// `pm2 restart --parallel`, all of them at once
    RestartAtOnce,
    /// `handoff reload`
    SafeReload,
    /// A script that drains a worker in HAProxy before it restarts it.
    DrainScript,
    /// `pm2 stop` of one worker, and `pm2 start` of it.
    StopAndStart,
    /// `pm2 scale` to one worker less, and back.
    Scale,
    /// `kill -INT` of one worker, by hand.
    Interrupt,
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

/// So many event streams and so many WebSockets, a new one as each ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Streaming {
    pub each: u16,
    /// Of one stream, five a second.
    pub pulses: u32,
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
    /// HAProxy in the place of nginx, and a script that drains.
    Haproxy,
    /// Caddy in the place of nginx, which tries again until a worker listens.
    Caddy,
    /// The article's block with Handoff.
    Handoff,
}

/// How much of Handoff the user takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
pub enum Level {
    /// Adds Handoff, and types what they always typed.
    #[value(name = "L0")]
    L0,
    /// Types `handoff reload` instead of `pm2 reload`.
    #[value(name = "L1")]
    L1,
    /// Loads the preload into every worker, and types what they always typed.
    #[value(name = "L2")]
    L2,
}

pub const SETTLING: Duration = Duration::from_millis(2_500);

const TWICE: Pace = Pace {
    actions: &[Duration::from_secs(8), Duration::from_secs(16)],
    gap: Duration::from_millis(1_500),
    at_least: Duration::from_secs(25),
    after: SETTLING,
};

/// Two deploys with as much calm around them as it takes to tell them apart. The whole pace is `make scenario`'s.
pub const BRISK: Pace = Pace {
    actions: &[Duration::from_secs(2); 2],
    gap: Duration::from_secs(3),
    at_least: Duration::ZERO,
    after: SETTLING,
};

pub const S1: Scenario = Scenario {
    name: "S1",
    says: "a reload of four workers in cluster mode",
    mode: Mode::Cluster,
    within: Some(Duration::from_secs(7)),
    ..S4
};

pub const S2: Scenario =
    Scenario { name: "S2", says: "a restart of four workers in cluster mode", action: Action::Restart, ..S1 };

pub const S3: Scenario = Scenario {
    name: "S3",
    says: "a reload of four workers in cluster mode that handle no signal and say nothing",
    behaviour: Behaviour::Naive,
    wait_ready: Some(Duration::from_secs(3)),
    within: None,
    ..S1
};

pub const S3B: Scenario =
    Scenario { name: "S3b", says: "the same, and PM2 does not wait for their word", wait_ready: None, ..S3 };

pub const S3_RESTART: Scenario = Scenario {
    name: "S3-restart",
    says: "a restart of four workers in cluster mode that handle no signal",
    action: Action::Restart,
    ..S3B
};

pub const S3_STOP: Scenario = Scenario {
    name: "S3-stop",
    says: "one of four workers in cluster mode that handle no signal is stopped and started",
    action: Action::StopAndStart,
    ..S3B
};

pub const S3_SCALE: Scenario = Scenario {
    name: "S3-scale",
    says: "four workers in cluster mode that handle no signal become three, and four again",
    action: Action::Scale,
    ..S3B
};

pub const S3_INT: Scenario = Scenario {
    name: "S3-int",
    says: "kill -INT of one of four workers in cluster mode that handle no signal",
    action: Action::Interrupt,
    ..S3B
};

pub const S4: Scenario = Scenario {
    name: "S4",
    says: "a reload of four workers in fork mode",
    behaviour: Behaviour::Graceful,
    mode: Mode::Fork,
    workers: 4,
    spares: 0,
    wait_ready: Some(Duration::from_secs(10)),
    non_idempotent: false,
    rate: 200,
    action: Action::Reload,
    trouble: None,
    streaming: None,
    pace: TWICE,
    level: Level::L0,
    options: &[],
    exit: 0,
    within: None,
};

pub const S4N: Scenario = Scenario {
    name: "S4n",
    says: "a reload of four workers that handle no signal",
    behaviour: Behaviour::Naive,
    wait_ready: None,
    within: Some(Duration::from_secs(7)),
    ..S4
};

pub const S4_PARALLEL: Scenario = Scenario {
    name: "S4-parallel",
    says: "a restart of four workers at once, in fork mode",
    action: Action::RestartAtOnce,
    ..S4
};

pub const S4N_PARALLEL: Scenario = Scenario {
    name: "S4n-parallel",
    says: "a restart of four workers at once that handle no signal",
    action: Action::RestartAtOnce,
    ..S4N
};

pub const S5: Scenario = Scenario {
    name: "S5",
    says: "a reload of the only worker, in fork mode",
    workers: 1,
    spares: 1,
    within: Some(Duration::from_secs(7)),
    ..S4
};

pub const S5_RESTART: Scenario = Scenario {
    name: "S5-restart",
    says: "a restart of the only worker, in fork mode",
    action: Action::Restart,
    ..S5
};

pub const S5N: Scenario = Scenario {
    name: "S5n",
    says: "a reload of the only worker, which handles no signal",
    behaviour: Behaviour::Naive,
    wait_ready: None,
    ..S5
};

pub const S6: Scenario = Scenario {
    name: "S6",
    says: "kill -9 of one of four workers in cluster mode",
    action: Action::Kill,
    within: None,
    ..S1
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

pub const S7: Scenario = Scenario {
    name: "S7",
    says: "a reload of four workers in cluster mode, and nginx may send POSTs again",
    non_idempotent: true,
    ..S1
};

pub const S8: Scenario = Scenario {
    name: "S8",
    says: "a reload in cluster mode under streams of ten seconds, which are waited for",
    mode: Mode::Cluster,
    ..S8B
};

pub const S8B: Scenario = Scenario {
    name: "S8b",
    says: "a reload under streams of ten seconds, which are waited for",
    streaming: Some(Streaming { each: 10, pulses: 50 }),
    // Long enough for whoever cuts streams to be seen doing it to many.
    pace: Pace { at_least: Duration::from_secs(60), ..TWICE },
    options: &["--drain-timeout", "30s", "--on-deadline", "stop"],
    ..S4
};

/// Workers that handle no signal, so that what is cut is cut at once.
pub const S8B_CUT: Scenario = Scenario {
    name: "S8b-cut",
    says: "a reload under streams of ten seconds, which are cut after two",
    behaviour: Behaviour::Naive,
    wait_ready: None,
    options: &["--drain-timeout", "2s", "--on-deadline", "cut"],
    exit: 4,
    ..S8B
};

pub const ALL: [Scenario; 22] = [
    S1,
    S2,
    S3,
    S3B,
    S3_RESTART,
    S3_STOP,
    S3_SCALE,
    S3_INT,
    S4,
    S4N,
    S4_PARALLEL,
    S4N_PARALLEL,
    S5,
    S5_RESTART,
    S5N,
    S6,
    S6B,
    S6C,
    S7,
    S8,
    S8B,
    S8B_CUT,
];

impl Scenario {
    pub fn find(name: &str) -> Result<Self> {
        ALL.into_iter().find(|scenario| scenario.name.eq_ignore_ascii_case(name)).with_context(|| {
            let names: Vec<&str> = ALL.iter().map(|scenario| scenario.name).collect();
            format!("no scenario {name}: there are {}", names.join(", "))
        })
    }

    /// The same with as much of Handoff.
    pub fn at(self, level: Level) -> Result<Self> {
        let Self { name, action, mode, .. } = self;
        let has_one = action == Action::Reload && mode == Mode::Fork;
        ensure!(level != Level::L1 || has_one, "{name} has no `handoff reload`: play it at L0 or L2");
        Ok(Self { level, ..self })
    }

    /// Handoff, and what it is to be compared with.
    pub fn setups(&self) -> &'static [Setup] {
        match self.level {
            Level::L0 | Level::L2 => &[Setup::Stock, Setup::Tuned, Setup::Handoff],
            // Where there is only one worker to drain, HAProxy has nobody to send to.
            Level::L1 if self.workers == 1 => &[Setup::Stock, Setup::Caddy, Setup::Handoff],
            Level::L1 => &[Setup::Tuned, Setup::Haproxy, Setup::Handoff],
        }
    }

    /// What happens to it with this setup.
    pub fn action_with(&self, setup: Setup) -> Action {
        match (self.action, setup, self.level) {
            (Action::Reload, Setup::Haproxy, _) => Action::DrainScript,
            (Action::Reload, Setup::Handoff, Level::L1) => Action::SafeReload,
            // Streams last longer than PM2 waits for anybody.
            (Action::Reload, Setup::Handoff, Level::L2) if self.streaming.is_some() => Action::SafeReload,
            (action, ..) => action,
        }
    }
}

impl Setup {
    pub fn title(self) -> &'static str {
        match self {
            Self::Stock => "stock nginx",
            Self::Tuned => "tuned nginx",
            Self::Haproxy => "HAProxy and a drain script",
            Self::Caddy => "Caddy and its retries",
            Self::Handoff => "Handoff",
        }
    }
}

impl fmt::Display for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Stock => "stock",
            Self::Tuned => "tuned",
            Self::Haproxy => "haproxy",
            Self::Caddy => "caddy",
            Self::Handoff => "handoff",
        })
    }
}

impl Action {
    pub fn is_deploy(self) -> bool {
        matches!(
            self,
            Self::Reload
                | Self::Restart
                | Self::RestartAtOnce
                | Self::SafeReload
                | Self::DrainScript
                | Self::StopAndStart
                | Self::Scale
                | Self::Interrupt
        )
    }

    /// In an operator's words.
    pub fn says(self) -> &'static str {
        match self {
            Self::Reload => "pm2 reload",
            Self::Restart => "pm2 restart",
            Self::RestartAtOnce => "pm2 restart --parallel",
            Self::SafeReload => "handoff reload",
            Self::DrainScript => "drain script",
            Self::StopAndStart => "pm2 stop; pm2 start",
            Self::Scale => "pm2 scale",
            Self::Interrupt => "kill -INT",
            Self::Kill => "kill -9",
            Self::Crash => "crash loop",
        }
    }
}
