//! What must not be, looked for in everything that was seen of a run.

use crate::{
    lives::Life,
    load::{Kind, Visit},
    runner::Run,
    timeline,
};
use handoff_wire::State;
use std::time::Duration;

/// nginx tells times in milliseconds, as of when it last looked at the clock.
const CLOCK: Duration = Duration::from_millis(10);

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
