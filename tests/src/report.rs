//! What the runs of a scenario come to. The demo, the tests and the soak write the same shape.

use crate::{
    lives::Life,
    load::{Answer, Visit},
    runner::Run,
    scenario::{Level, Setup},
    spread::Spread,
    streams::{Ending, Kind, Stream},
};
use anyhow::{Context, Result};
use hyper::StatusCode;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fs, path::Path, time::Duration};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub scenario: String,
    pub versions: BTreeMap<String, String>,
    pub results: Vec<Tally>,
}

/// All runs with one setup.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tally {
    pub setup: Setup,
    pub level: Option<Level>,
    pub runs: usize,
    pub deploys: usize,
    pub requests: usize,
    pub failed: usize,
    /// By status, or by how the connection ended.
    pub failed_by: BTreeMap<String, usize>,
    pub hung: usize,
    pub executed_twice: usize,
    /// The visitor saw a failure, and the order was executed.
    pub failed_though_executed: usize,
    /// Visits that nginx tried more than once; without nginx, nobody tells.
    pub retried: Option<usize>,
    pub held: usize,
    pub held_ms: Spread,
    /// From the end of the only worker until the next one listened.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gap_seconds: Vec<f64>,
    pub by_handoff_503: usize,
    pub deploy_seconds: Vec<f64>,
    /// Of each `handoff reload`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exits: Vec<i32>,
    /// Where there were any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub streams: Option<Streams>,
    pub ms: Latency,
}

/// The streams that were always open besides the visits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Streams {
    pub events: Outcomes,
    pub websockets: Outcomes,
    /// How many requests `handoff reload` says that it cut.
    pub said_cut: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcomes {
    pub complete: usize,
    pub cut: usize,
    pub refused: usize,
}

/// The percentiles are the medians of the runs; `max` is the worst of all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    pub calm: Spread,
    pub deploying: Spread,
    pub control: Spread,
}

impl Report {
    pub fn new(scenario: &str, versions: BTreeMap<String, String>, setups: &[Setup], runs: &[Run]) -> Self {
        let tally = |&setup: &Setup| {
            let runs: Vec<&Run> = runs.iter().filter(|run| run.setup == setup).collect();
            Tally::of(setup, &runs)
        };
        Self { scenario: scenario.to_owned(), versions, results: setups.iter().map(tally).collect() }
    }

    pub fn write(&self, path: &Path) -> Result<()> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(path, serde_json::to_string_pretty(self)? + "\n")
            .with_context(|| path.display().to_string())
    }
}

impl Tally {
    pub fn of(setup: Setup, runs: &[&Run]) -> Self {
        let sum = |count: fn(&Run) -> usize| runs.iter().map(|run| count(run)).sum();
        let failed: Vec<&Visit> = runs.iter().flat_map(|run| run.failed()).collect();
        let median =
            |of: fn(&Run) -> Spread| Spread::median(&runs.iter().map(|run| of(run)).collect::<Vec<_>>());
        let mut failed_by = BTreeMap::new();
        for visit in &failed {
            *failed_by.entry(visit.answer.to_string()).or_default() += 1;
        }
        Self {
            setup,
            // Who plays nothing shows the least.
            level: (setup == Setup::Handoff)
                .then(|| runs.first().map_or(Level::L0, |run| run.scenario.level)),
            runs: runs.len(),
            deploys: sum(|run| run.deploys().count()),
            requests: sum(|run| run.visits.len()),
            failed: failed.len(),
            failed_by,
            hung: failed.iter().filter(|visit| visit.answer == Answer::Hung).count(),
            executed_twice: sum(|run| run.orders.executed_twice()),
            failed_though_executed: sum(|run| run.failed_though_executed().count()),
            retried: (!matches!(setup, Setup::Haproxy | Setup::Caddy)).then(|| sum(|run| run.log.retried())),
            held: sum(|run| run.log.held().count()),
            held_ms: median(|run| Spread::of(run.log.held())),
            by_handoff_503: if setup == Setup::Handoff {
                failed.iter().filter(|visit| is_503(visit)).count()
            } else {
                0
            },
            gap_seconds: runs.iter().flat_map(|run| run.gaps()).map(|gap| gap.as_secs_f64()).collect(),
            deploy_seconds: runs.iter().flat_map(|run| run.deploys()).collect(),
            exits: runs.iter().flat_map(|run| &run.reloads).map(|reload| reload.exit).collect(),
            streams: Streams::of(runs),
            ms: Latency {
                calm: median(Run::calm),
                deploying: median(Run::deploying),
                control: median(Run::controlled),
            },
        }
    }
}

impl Streams {
    fn of(runs: &[&Run]) -> Option<Self> {
        let of = |kind| {
            let streams =
                || runs.iter().flat_map(|run| &run.streams).filter(move |stream| stream.kind == kind);
            let count = |ending| streams().filter(|stream: &&Stream| stream.ending == ending).count();
            Outcomes {
                complete: count(Ending::Complete),
                cut: count(Ending::Cut),
                refused: count(Ending::Refused),
            }
        };
        runs.iter().any(|run| run.scenario.streaming.is_some()).then(|| Self {
            events: of(Kind::Events),
            websockets: of(Kind::Echo),
            said_cut: runs.iter().map(|run| run.said_cut()).sum(),
        })
    }
}

fn is_503(visit: &Visit) -> bool {
    matches!(visit.answer, Answer::Status { code: StatusCode::SERVICE_UNAVAILABLE, .. })
}

// === what a run tells ===

impl Run {
    pub fn failed(&self) -> impl Iterator<Item = &Visit> {
        self.visits.iter().filter(|visit| visit.failed())
    }

    pub fn failed_though_executed(&self) -> impl Iterator<Item = &Visit> {
        self.failed()
            .filter(|visit| visit.order().is_some_and(|order| !self.orders.executions(&order).is_empty()))
    }

    pub fn cut(&self) -> impl Iterator<Item = &Stream> {
        self.streams.iter().filter(|stream| stream.ending == Ending::Cut)
    }

    pub fn refused(&self) -> impl Iterator<Item = &Stream> {
        self.streams.iter().filter(|stream| stream.ending == Ending::Refused)
    }

    /// How many requests `handoff reload` says that it cut.
    pub fn said_cut(&self) -> usize {
        self.reloads.iter().map(|reload| reload.cut).sum()
    }

    /// How long each deploy took, in seconds.
    pub fn deploys(&self) -> impl Iterator<Item = f64> {
        let deploys = self.done.iter().filter(|done| done.action.is_deploy());
        deploys.map(|done| (done.ended.since(done.began).as_secs_f64() * 100.0).round() / 100.0)
    }

    /// Where there is one worker only: how long there was none, each time that it was replaced.
    pub fn gaps(&self) -> Vec<Duration> {
        if self.scenario.workers > 1 {
            return Vec::new();
        }
        let mut lives: Vec<&Life> = self.lives.iter().collect();
        lives.sort_by_key(|life| life.booted);
        let gap = |pair: &[&Life]| {
            let [old, new] = pair else { return None };
            let ended = old.closed.or(old.died)?;
            new.listened.filter(|&listened| listened > ended).map(|listened| listened.since(ended))
        };
        lives.windows(2).filter_map(gap).collect()
    }

    pub fn calm(&self) -> Spread {
        self.latency(|visit| !self.is_deploying(visit) && !self.is_control(visit))
    }

    pub fn deploying(&self) -> Spread {
        self.latency(|visit| self.is_deploying(visit))
    }

    pub fn controlled(&self) -> Spread {
        self.latency(|visit| self.is_control(visit))
    }

    fn is_deploying(&self, visit: &Visit) -> bool {
        self.done.iter().any(|done| done.touches(visit))
    }

    fn is_control(&self, visit: &Visit) -> bool {
        self.control.is_some_and(|(began, _)| visit.due >= began)
    }

    /// Of the visits that were answered.
    fn latency(&self, of: impl Fn(&Visit) -> bool) -> Spread {
        let answered = self.visits.iter().filter(|visit| !visit.failed() && of(visit));
        Spread::of(answered.map(|visit| visit.latency))
    }
}
