//! What must not be, looked for in everything that was seen of a run.

use crate::{
    lives::Life,
    load::{Kind, Visit},
    reload::Reload,
    runner::Run,
    streams::{self, Ending, Stream},
    timeline,
};
use handoff_wire::State;
use std::{ops::RangeInclusive, time::Duration};

/// nginx tells times in milliseconds, as of when it last looked at the clock.
const CLOCK: Duration = Duration::from_millis(10);

/// How long before its death a worker's last WebSockets were counted.
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

/// How many streams were cut. A WebSocket that was closed in its worker's last moment may have been counted before.
fn cut(run: &Run) -> RangeInclusive<usize> {
    let last_moment = |stream: &Stream| {
        let life = run.lives.iter().find(|life| Some(life.worker) == stream.worker)?;
        let died = life.died?;
        (died - LAST_LOOK..=died + CLOCK).contains(&stream.ended).then_some(())
    };
    let closed = run
        .streams
        .iter()
        .filter(|stream| stream.kind == streams::Kind::Echo && stream.ending == Ending::Complete);
    let seen = run.cut().count();
    seen..=seen + closed.filter_map(last_moment).count()
}

/// Visits that nginx tried at a worker which it held for draining, down, checking or unhealthy all the while; on trial it
/// may be given anything but an order.
pub fn sent_where_none_should_be(run: &Run) -> Vec<(&Visit, State)> {
    let lanes = timeline::lanes(run);
    let closed = lanes.iter().flat_map(|lane| lane.states.iter().map(move |stretch| (lane.port, stretch)));
    closed
        .flat_map(|(port, stretch)| {
            run.visits.iter().filter_map(move |visit| {
                let due = visit.due.since(run.began);
                let inside = due > stretch.from + CLOCK && due + visit.latency < stretch.to;
                let is_tried = stretch.is.begins_requests() && visit.kind != Kind::Order;
                let open = stretch.is.serves() || is_tried;
                let tried = || run.log.tried(visit.number).iter().any(|address| address.port() == port);
                (inside && !open && tried()).then_some((visit, stretch.is))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        access_log::AccessLog,
        clock::Moment,
        orders::Orders,
        scenario::{S8B, S8B_CUT, Setup},
        streams::Kind::{self, Echo, Events},
    };

    const WORKER: u32 = 7;

    fn at(seconds: f64) -> Moment {
        Moment::from_nanos(0) + Duration::from_secs_f64(seconds)
    }

    fn stream(kind: Kind, ended: f64, ending: Ending) -> Stream {
        Stream { kind, began: at(1.0), ended: at(ended), worker: Some(WORKER), pulses: 1, ending }
    }

    /// One worker is replaced; it dies at 10 s with one stream, a moment after another one of this kind has ended.
    fn deploy(kind: Kind, said_cut: usize, exit: i32) -> Run {
        let died = Some(at(10.0));
        let life = Life {
            worker: WORKER,
            port: 3000,
            instance: 0,
            booted: at(0.0),
            listened: Some(at(0.5)),
            closed: None,
            died,
        };
        let long_before = stream(kind, 5.0, Ending::Complete);
        let just_before = stream(kind, 9.9, Ending::Complete);
        Run {
            scenario: S8B_CUT,
            setup: Setup::Handoff,
            pm2: String::new(),
            began: at(0.0),
            ended: at(12.0),
            visits: Vec::new(),
            streams: vec![long_before, just_before, stream(kind, 10.1, Ending::Cut)],
            orders: Orders::default(),
            log: AccessLog::default(),
            lives: vec![life],
            changes: Vec::new(),
            done: Vec::new(),
            reloads: vec![Reload { exit, cut: said_cut, text: String::new() }],
            control: None,
        }
    }

    #[test]
    fn a_count_of_what_was_cut_must_be_right() {
        let right = |kind, said| broken_promises(&deploy(kind, said, 4)).is_empty();
        assert_eq!([0, 1, 2, 3].map(|said| right(Events, said)), [false, true, false, false]);
        assert_eq!([0, 1, 2, 3].map(|said| right(Echo, said)), [false, true, true, false]);
    }

    #[test]
    fn another_exit_code_is_a_broken_promise() {
        assert_eq!(broken_promises(&deploy(Events, 1, 0)), ["exit code 0 instead of 4: "]);
    }

    #[test]
    fn a_stream_may_be_cut_only_where_that_was_asked_for() {
        let run = Run { scenario: S8B, ..deploy(Events, 1, 0) };
        assert_eq!(broken_promises(&run), ["1 streams were cut"]);
    }
}
