//! What must not be, looked for in everything that was seen of a run.

use crate::{
    lives::Life,
    load::{Kind, Visit},
    reload::Reload,
    runner::Run,
    streams::{Ending, Stream},
    timeline,
};
use handoff_wire::State;
use std::{ops::RangeInclusive, time::Duration};

/// nginx tells times in milliseconds, as of when it last looked at the clock.
const CLOCK: Duration = Duration::from_millis(10);

/// How long before its death a worker's last requests were counted.
const LAST_LOOK: Duration = Duration::from_millis(250);

/// What was promised of `handoff reload`, and did not hold.
pub fn broken_promises(run: &Run) -> Vec<String> {
    let scenario = &run.scenario;
    let mut broken = Vec::new();
    let mut none = |count: usize, what: &str| {
        if count > 0 {
            broken.push(format!("{count} {what}"));
        }
    };
    none(run.failed().count(), "visits failed");
    none(run.orders.executed_twice(), "orders ran twice");
    none(run.refused().count(), "streams were refused");
    if scenario.exit == 0 {
        none(run.cut().count(), "streams were cut");
    }
    for Reload { exit, text, .. } in run.reloads.iter().filter(|reload| reload.exit != scenario.exit) {
        broken.push(format!("exit code {exit} instead of {}: {text}", scenario.exit));
    }
    let (said, seen) = (run.said_cut(), cut(run));
    if !seen.contains(&said) {
        broken.push(format!("it says that it cut {said}, and {seen:?} were"));
    }
    if let Some(within) = scenario.within {
        let slow = run.deploys().filter(|&seconds| seconds > within.as_secs_f64());
        broken.extend(slow.map(|seconds| format!("a deploy took {seconds} s instead of {within:?} at most")));
    }
    broken
}

/// How many streams were cut. One that ended by itself in its worker's last moment may have been counted before.
fn cut(run: &Run) -> RangeInclusive<usize> {
    let last_moment = |stream: &Stream| {
        let life = run.lives.iter().find(|life| Some(life.worker) == stream.worker)?;
        let died = life.died?;
        (died - LAST_LOOK..=died + CLOCK).contains(&stream.ended).then_some(())
    };
    let whole = run.streams.iter().filter(|stream| stream.ending == Ending::Complete);
    let seen = run.cut().count();
    seen..=seen + whole.filter_map(last_moment).count()
}

/// Visits that nginx tried at a worker which it held for draining, down, checking or unhealthy all the while.
pub fn sent_where_none_should_be(run: &Run) -> Vec<(&Visit, State)> {
    let lanes = timeline::lanes(run);
    let closed = lanes.iter().flat_map(|lane| lane.states.iter().map(move |stretch| (lane.port, stretch)));
    closed
        .flat_map(|(port, stretch)| {
            run.visits.iter().filter_map(move |visit| {
                let due = visit.due.since(run.began);
                let inside = due > stretch.from + CLOCK && due + visit.latency < stretch.to;
                let tried = || run.log.tried(visit.number).iter().any(|address| address.port() == port);
                (inside && tried()).then_some((visit, stretch.is))
            })
        })
        .collect()
}

/// Failed visits that no worker's death explains: anything but an order that was with a killed worker when it died.
///
/// Whether the worker had begun with it, nobody outside can know: it may not be repeated either way.
pub fn unexplained(run: &Run) -> Vec<&Visit> {
    let died_with_it = |visit: &Visit, life: &Life| {
        let was_there = run.log.tried(visit.number).last().is_some_and(|address| address.port() == life.port);
        let lasted = visit.due..=visit.due + visit.latency + CLOCK;
        visit.kind == Kind::Order && was_there && life.died.is_some_and(|died| lasted.contains(&died))
    };
    run.failed().filter(|visit| !victims(run).any(|life| died_with_it(visit, life))).collect()
}

/// From the death of each killed worker until nginx held its peer for down.
pub fn death_to_down(run: &Run) -> Vec<Option<Duration>> {
    victims(run)
        .map(|life| {
            let died = life.died?;
            let from = died - CLOCK;
            let mut after =
                run.changes.iter().filter(|change| change.peer.port() == life.port && change.at >= from);
            Some(after.find(|change| change.to == State::Down)?.at.since(died))
        })
        .collect()
}

fn victims(run: &Run) -> impl Iterator<Item = &Life> {
    let killed = run.done.iter().filter_map(|done| done.victim);
    killed.filter_map(|victim| run.lives.iter().find(|life| life.worker == victim))
}
