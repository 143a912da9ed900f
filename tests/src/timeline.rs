//! A run as lanes over time: what each worker was doing, what nginx held of it, and where visitors were failed.

use crate::{clock::Moment, lives::Life, runner::Run};
use handoff_wire::State;
use std::{collections::BTreeSet, fmt::Write as _, time::Duration};

/// A worker of PM2's, and all the processes that it had one after another.
#[derive(Clone, Debug)]
pub struct Lane {
    pub port: u16,
    pub phases: Vec<Stretch<Phase>>,
    /// What nginx held of it, where that was not `up`.
    pub states: Vec<Stretch<State>>,
    /// When visits failed that nginx had last tried here.
    pub failures: Vec<Duration>,
}

/// The gravest last: of all that falls into one column of a terminal, that is what is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    Serving,
    /// Asked to go, and finishing what it has.
    Closing,
    Starting,
    /// Nobody is there.
    Gone,
}

/// From the first visit on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch<T> {
    pub from: Duration,
    pub to: Duration,
    pub is: T,
}

/// One for each worker, in the order of their addresses.
pub fn lanes(run: &Run) -> Vec<Lane> {
    let workers: BTreeSet<(u16, u32)> = run.lives.iter().map(|life| (life.port, life.instance)).collect();
    workers.into_iter().map(|(port, instance)| lane(run, port, instance)).collect()
}

fn lane(run: &Run, port: u16, instance: u32) -> Lane {
    let lives = run.lives.iter().filter(|life| (life.port, life.instance) == (port, instance));
    let phases = lives.flat_map(phases).collect();
    let changes = run.changes.iter().filter(|change| change.peer.port() == port);
    let failed = run
        .failed()
        .filter(|visit| run.log.tried(visit.number).last().is_some_and(|address| address.port() == port));
    Lane {
        port,
        phases: stretches(run, phases, Some(Phase::Gone)),
        states: stretches(run, changes.map(|change| (change.at, change.to)).collect(), None)
            .into_iter()
            .filter(|stretch| stretch.is != State::Up)
            .collect(),
        failures: failed.map(|visit| visit.due.since(run.began)).collect(),
    }
}

fn phases(life: &Life) -> impl Iterator<Item = (Moment, Phase)> {
    let steps = [
        (Some(life.booted), Phase::Starting),
        (life.listened, Phase::Serving),
        (life.closed, Phase::Closing),
        (life.died, Phase::Gone),
    ];
    steps.into_iter().filter_map(|(at, phase)| Some((at?, phase)))
}

/// From steps to the stretches between them, within the run.
fn stretches<T: Copy + PartialEq>(
    run: &Run,
    mut steps: Vec<(Moment, T)>,
    first: Option<T>,
) -> Vec<Stretch<T>> {
    steps.sort_by_key(|&(at, _)| at);
    let end = run.ended.since(run.began);
    let mut stretches: Vec<Stretch<T>> = Vec::new();
    let mut current = first.map(|is| (Duration::ZERO, is));
    let steps = steps.into_iter().map(|(at, is)| (at.since(run.began), Some(is)));
    for (at, next) in steps.chain([(end, None)]) {
        if let Some((from, is)) = current
            && from < at
        {
            stretches.push(Stretch { from, to: at.min(end), is });
        }
        current = next.map(|is| (at, is));
    }
    stretches
}

// === for a terminal ===

const COLUMNS: u32 = 96;
const LABEL: usize = 12;

/// All runs on one scale.
pub fn text(runs: &[&Run]) -> String {
    let Some(longest) = runs.iter().map(|run| run.ended.since(run.began)).max() else { return String::new() };
    let column = longest / COLUMNS;
    let mut text = runs.iter().map(|run| panel(run, column)).collect::<Vec<_>>().join("\n");
    text.push_str("\n█ serving   ▒ closing   ░ starting   · nobody there   ✗ visits failed\n");
    if runs.iter().any(|run| !run.changes.is_empty()) {
        text.push_str(
            "nginx: d draining   D down   c checking   t trial   u unhealthy   w worker changing\n",
        );
    }
    text
}

fn panel(run: &Run, column: Duration) -> String {
    let end = run.ended.since(run.began);
    let columns = (0..COLUMNS).map(|number| (column * number, column * (number + 1)));
    let columns: Vec<_> = columns.take_while(|&(from, _)| from < end).collect();
    let draw = |glyph: &dyn Fn(Duration, Duration) -> char| -> String {
        columns.iter().map(|&(from, to)| glyph(from, to)).collect()
    };
    let failed: Vec<Duration> = run.failed().map(|visit| visit.due.since(run.began)).collect();
    let mut text = format!("{}: {} of {} visits failed\n", run.setup.title(), failed.len(), run.visits.len());
    let mut row = |label: &str, glyphs: String| {
        // Writing to a String cannot fail.
        _ = writeln!(text, "{}", format!("{label:>LABEL$}  {glyphs}").trim_end());
    };
    row("seconds", scale(column, columns.len()));
    row("deploys", draw(&|from, to| deploy_glyph(run, from, to)));
    for (number, lane) in (1..).zip(lanes(run)) {
        let phases = draw(&|from, to| {
            within(&lane.phases, from, to).max().map_or(' ', |phase| match phase {
                Phase::Serving => '█',
                Phase::Closing => '▒',
                Phase::Starting => '░',
                Phase::Gone => '·',
            })
        });
        row(&format!("worker {number}"), phases);
        if !lane.states.is_empty() {
            let states = draw(&|from, to| {
                within(&lane.states, from, to).max().map_or(' ', |state| match state {
                    State::Up => ' ',
                    State::Changing => 'w',
                    State::Trial => 't',
                    State::Checking => 'c',
                    State::Unhealthy => 'u',
                    State::Draining => 'd',
                    State::Down => 'D',
                })
            });
            row("nginx", states);
        }
    }
    let failures = draw(&|from, to| {
        if failed.iter().any(|failure| (from..to).contains(failure)) { '✗' } else { ' ' }
    });
    row("failed", failures);
    text
}

fn within<T: Copy>(stretches: &[Stretch<T>], from: Duration, to: Duration) -> impl Iterator<Item = T> {
    stretches.iter().filter(move |stretch| stretch.from < to && stretch.to > from).map(|stretch| stretch.is)
}

fn deploy_glyph(run: &Run, from: Duration, to: Duration) -> char {
    let during =
        run.done.iter().any(|done| done.began.since(run.began) < to && done.settled.since(run.began) > from);
    if during { '─' } else { ' ' }
}

/// A number every ten seconds, where there is room for it.
fn scale(column: Duration, columns: usize) -> String {
    let mut text = String::new();
    for second in (0..).step_by(10) {
        let at = Duration::from_secs(second).as_secs_f64() / column.as_secs_f64();
        let room = at as usize;
        if room >= columns {
            break;
        }
        text.push_str(&" ".repeat(room.saturating_sub(text.len())));
        text.push_str(&second.to_string());
    }
    text
}
