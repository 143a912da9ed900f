//! Whose share grows little by little, and from when on.

mod common;

use common::*;
use handoff_core::{outage, view};
use handoff_wire::{SlowStartView, Span, State::*};

const LENGTH: Span = Span::from_secs(10);

fn stage() -> Stage {
    let mut stage = Stage::new();
    stage.world.slow_start = Some(LENGTH);
    stage
}

/// As the API shows it.
fn ramp(stage: &Stage, peer: &str) -> Option<SlowStartView> {
    let view = view::upstream(&stage.table(), &stage.world, moment(stage.now), APP);
    assert_eq!(view.slow_start, stage.world.slow_start);
    view.peers.into_iter().find(|view| view.address == peer)?.slow_start
}

fn share(stage: &Stage, peer: &str) -> u32 {
    ramp(stage, peer).map_or(100, |ramp| ramp.share)
}

#[test]
fn a_worker_that_somebody_else_follows_begins_with_the_smallest_share() {
    for states in [&[Draining, Down, Checking][..], &[Checking], &[Down], &[Unhealthy], &[Changing, Checking]]
    {
        let mut stage = stage();
        for &state in states {
            stage.mark("pm2:1", A, state);
        }
        assert_eq!(ramp(&stage, A), Some(SlowStartView { share: 1, left: LENGTH }), "{states:?}");
        stage.now += 60_000;
        stage.mark("pm2:1", A, Up);
        stage.now += 4000;
        assert_eq!(
            ramp(&stage, A),
            Some(SlowStartView { share: 40, left: Span::from_secs(6) }),
            "{states:?}"
        );
        stage.now += 6000;
        assert_eq!(ramp(&stage, A), None);
        assert_eq!(share(&stage, B), 100);
    }
}

#[test]
fn the_same_worker_has_its_whole_share_at_once() {
    for (owner, states) in [
        ("pm2:1", &[Draining][..]),
        ("rollout:1", &[Draining]),
        ("pm2:1", &[Changing]),
        ("operator", &[Draining, Down]),
        ("plus", &[Down]),
    ] {
        let stage = stage();
        for &state in states.iter().chain(&[Up]) {
            stage.mark(owner, A, state);
        }
        assert_eq!(ramp(&stage, A), None, "{owner} said {states:?}");
    }
}

#[test]
fn a_person_who_lets_in_a_worker_that_was_replaced_meanwhile_begins_its_ramp() {
    let mut stage = stage();
    stage.mark("operator", A, Draining);
    stage.mark("pm2:1", A, Checking);
    stage.mark("pm2:1", A, Up);
    stage.now += 60_000;
    assert_eq!(share(&stage, A), 1);
    stage.mark("operator", A, Up);
    stage.now += 5000;
    assert_eq!(share(&stage, A), 50);
}

#[test]
fn a_trial_is_its_beginning_and_the_end_of_the_trial_does_not_begin_it_anew() {
    let mut stage = stage();
    let ramps: Vec<u32> = [Checking, Trial, Up, Up]
        .iter()
        .map(|&state| {
            stage.mark("rollout:1", A, state);
            stage.now += 3000;
            share(&stage, A)
        })
        .collect();
    assert_eq!(ramps, [1, 30, 60, 90]);
}

#[test]
fn a_mark_that_lapses_lets_its_worker_begin_like_any_other() {
    let mut stage = stage();
    stage.mark("pm2:1", A, Checking);
    stage.sweep_after(10_000);
    stage.now += 5000;
    assert_eq!((stage.state(A), share(&stage, A)), (Up, 50));
}

#[test]
fn whom_nginx_left_out_begins_anew_when_it_is_taken_back() {
    let mut stage = stage();
    let watch = |stage: &mut Stage, unavail: bool| {
        stage.now += 250;
        stage.regard(A, |peer| (peer.available, peer.unavail) = (!unavail, unavail));
        outage::watch(&stage.table(), &stage.world, moment(stage.now));
        share(stage, A)
    };
    assert_eq!(watch(&mut stage, false), 100);
    assert_eq!([watch(&mut stage, true), watch(&mut stage, true)], [1, 1]);
    assert_eq!([watch(&mut stage, false), watch(&mut stage, false), watch(&mut stage, false)], [1, 2, 5]);
    assert_eq!(watch(&mut stage, true), 1);
}

#[test]
fn without_a_slow_start_nothing_is_shown() {
    let stage = Stage::new();
    stage.mark("pm2:1", A, Checking);
    stage.mark("pm2:1", A, Up);
    assert_eq!(ramp(&stage, A), None);
}
