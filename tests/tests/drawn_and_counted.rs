//! A run that was made up by hand is counted and drawn as a person would do it.

use anyhow::Result;
use e2e::{
    access_log::AccessLog,
    clock::Moment,
    lives::Life,
    load::{Answer, Kind, Visit},
    orders::Orders,
    peers::Change,
    picture, ports,
    report::Tally,
    runner::{Done, Run},
    scenario::{Action, S4, Setup},
    timeline,
};
use handoff_wire::State;
use hyper::StatusCode;
use std::time::Duration;

fn at(seconds: f64) -> Moment {
    Moment::from_nanos(0) + Duration::from_secs_f64(100.0 + seconds)
}

fn visit(number: u64, due: f64, millis: u64, code: StatusCode) -> Visit {
    let answer = Answer::Status { code, worker: None };
    let (target, latency) = (ports::address(80), Duration::from_millis(millis));
    Visit { number, target, kind: Kind::Order, due: at(due), latency, answer }
}

/// Twelve seconds. The worker on port 3000 is replaced by a deploy from 4 s to 8 s, and two orders come to grief.
fn run() -> Result<Run> {
    let life = |worker, port, booted, died: Option<f64>| Life {
        worker,
        port,
        instance: 0,
        booted: at(booted),
        listened: Some(at(booted + 1.0)),
        closed: died.map(|died| at(died - 1.0)),
        died: died.map(at),
    };
    let change =
        |seconds, to| Change { at: at(seconds), peer: ports::address(3000), to, reason: String::new() };
    Ok(Run {
        scenario: S4,
        setup: Setup::Handoff,
        pm2: "7.0.4".to_owned(),
        began: at(0.0),
        ended: at(12.0),
        visits: vec![
            visit(0, 1.0, 10, StatusCode::CREATED),
            visit(1, 5.0, 20, StatusCode::BAD_GATEWAY),
            visit(2, 6.0, 30, StatusCode::SERVICE_UNAVAILABLE),
            visit(3, 7.0, 40, StatusCode::CREATED),
        ],
        streams: Vec::new(),
        orders: Orders::parse(
            "start order-1 10 1\nstart order-3 10 2\nstart order-3 11 3\ndone order-3 11 4\n",
        )?,
        log: AccessLog::parse("1|127.0.0.1:3000|502\n3|127.0.0.1:3000, 127.0.0.1:3001|502, 201\n"),
        lives: vec![life(10, 3000, -2.0, Some(6.0)), life(11, 3000, 7.0, None), life(12, 3001, -2.0, None)],
        changes: vec![change(4.0, State::Draining), change(6.0, State::Down), change(8.0, State::Up)],
        done: vec![Done {
            action: Action::Reload,
            began: at(4.0),
            ended: at(7.5),
            settled: at(8.0),
            victim: None,
        }],
        reloads: Vec::new(),
        control: None,
    })
}

#[test]
fn every_visit_and_every_order_is_counted() {
    let run = run().unwrap();
    let tally = Tally::of(Setup::Handoff, &[&run]);
    assert_eq!((tally.requests, tally.failed, tally.by_handoff_503), (4, 2, 1));
    assert_eq!(
        tally.failed_by.into_iter().collect::<Vec<_>>(),
        [("502".to_owned(), 1), ("503".to_owned(), 1)]
    );
    assert_eq!((tally.executed_twice, tally.failed_though_executed, tally.retried), (1, 1, Some(1)));
    assert_eq!((tally.deploys, tally.deploy_seconds), (1, vec![3.5]));
    assert_eq!((tally.ms.calm.max, tally.ms.deploying.max), (Some(10.0), Some(40.0)));
}

#[test]
fn a_deploy_is_drawn_for_a_terminal() {
    let expected = "\
Handoff: 2 of 4 visits failed
     seconds  0                                                                               10
     deploys                                  ────────────────────────────────
    worker 1  ████████████████████████████████████████▒▒▒▒▒▒▒▒········░░░░░░░░████████████████████████████████
       nginx                                  ddddddddddddddddDDDDDDDDDDDDDDDD
    worker 2  ████████████████████████████████████████████████████████████████████████████████████████████████
      failed                                          ✗       ✗

█ serving   ▒ closing   ░ starting   · nobody there   ✗ visits failed
nginx: d draining   D down   c checking   t trial   u unhealthy   w worker changing
";
    assert_eq!(timeline::text(&[&run().unwrap()]), expected);
}

#[test]
fn a_picture_shows_each_setup_and_its_failures() {
    let run = run().unwrap();
    let svg = picture::draw(&[&run, &Run { setup: Setup::Tuned, ..run.clone() }]);
    for shown in
        [">Handoff<", ">tuned nginx<", ">2 failed<", ">pm2 reload · 4.0 s<", "nginx: draining, 2.00 s"]
    {
        assert!(svg.contains(shown), "no {shown} in {svg}");
    }
    assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
    assert!(svg.ends_with("</svg>\n"));
}
