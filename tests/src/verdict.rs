//! What a worker's death may cost: the orders that it was executing, and nothing else.

use crate::{load::Visit, runner::Run};
use handoff_wire::State;
use std::time::Duration;

/// Failed visits that no worker's death explains: anything but an order that was executing in a process that was killed.
pub fn unexplained(run: &Run) -> Vec<&Visit> {
    let killed: Vec<u32> = run.done.iter().filter_map(|done| done.victim).collect();
    let died_executing = |visit: &Visit| {
        visit.order().is_some_and(|order| {
            let executions = run.orders.executions(&order);
            executions.iter().any(|execution| execution.done.is_none() && killed.contains(&execution.worker))
        })
    };
    run.failed().filter(|visit| !died_executing(visit)).collect()
}

/// From the death of each killed worker until nginx held its peer for down.
pub fn death_to_down(run: &Run) -> Vec<Option<Duration>> {
    let victims = run.done.iter().filter_map(|done| done.victim);
    victims
        .map(|victim| {
            let life = run.lives.iter().find(|life| life.worker == victim)?;
            let died = life.died?;
            // nginx tells times in whole milliseconds.
            let from = died - Duration::from_millis(1);
            let mut after =
                run.changes.iter().filter(|change| change.peer.port() == life.port && change.at >= from);
            Some(after.find(|change| change.to == State::Down)?.at.since(died))
        })
        .collect()
}
