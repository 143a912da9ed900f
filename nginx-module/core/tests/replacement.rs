//! What a peer's return means for those who were there before: old connections are retired, and nginx's passive failures
//! are forgotten only if the replacement was planned, or if nobody else could serve.

mod common;

use common::*;
use handoff_wire::State::*;

/// Whether the peer was announced as replaced since the beginning.
fn readied(stage: &Stage) -> bool {
    let (header, slot) = (stage.table().header.readied(), stage.slot(A).readied());
    assert_eq!(header, slot, "the request path finds the peer by the header");
    slot != 0
}

#[test]
fn only_a_planned_replacement_clears_the_failures() {
    for (owner, states, planned) in [
        ("pm2:1", &[Draining][..], true),
        ("pm2:1", &[Draining, Down, Checking], true),
        ("pm2:1", &[Down], false),
        ("pm2:1", &[Checking], false),
        ("pm2:1", &[Down, Draining], false),
        ("worker:1", &[Draining], true),
        ("operator", &[Down], true),
        ("rollout:1", &[Checking], true),
        ("health", &[Unhealthy], true),
    ] {
        let stage = Stage::new();
        for &state in states {
            stage.mark(owner, A, state);
            assert!(!readied(&stage), "not before it is back");
        }
        stage.mark(owner, A, Up);
        assert_eq!(readied(&stage), planned, "{owner} {states:?}");
    }
}

#[test]
fn after_an_unplanned_death_the_failures_are_cleared_where_nobody_else_could_serve() {
    for (others, cleared) in [(Down, true), (Draining, true), (Up, false)] {
        let stage = Stage::new();
        stage.mark("pm2:1", A, Down);
        for peer in [B, C] {
            stage.mark("pm2:1", peer, others);
        }
        stage.mark("pm2:1", A, Up);
        assert_eq!(readied(&stage), cleared, "{others}");
    }
    let mut stage = Stage::new();
    for standing in stage.world.upstreams.values_mut().flatten() {
        standing.available = false;
    }
    stage.mark("pm2:1", A, Down);
    stage.mark("pm2:1", A, Up);
    assert!(readied(&stage), "nginx leaves the others out");
}

#[test]
fn a_trial_after_a_planned_tenure_clears_the_failures_and_so_does_its_end() {
    for (owner, states, planned) in [
        ("rollout:1", &[Draining, Checking][..], true),
        ("pm2:1", &[Draining], true),
        ("pm2:1", &[Down], false),
    ] {
        let stage = Stage::new();
        for &state in states {
            stage.mark(owner, A, state);
        }
        stage.mark(owner, A, Trial);
        assert_eq!(readied(&stage), planned, "{owner} {states:?}");
        let on_trial = stage.slot(A).readied();
        stage.mark(owner, A, Up);
        assert_eq!(stage.slot(A).readied() > on_trial, planned, "{owner} {states:?}");
    }
}

#[test]
fn who_goes_on_trial_from_up_or_stays_away_is_not_back() {
    let stage = Stage::new();
    stage.mark("rollout:1", A, Trial);
    stage.mark("operator", A, Draining);
    stage.mark("rollout:1", A, Checking);
    stage.mark("rollout:1", A, Trial);
    assert!(!readied(&stage), "the operator still wants it drained");
    stage.mark("operator", A, Up);
    assert!(readied(&stage));
}

#[test]
fn a_lapse_says_nothing_of_the_worker() {
    let mut stage = Stage::new();
    stage.mark("pm2:1", A, Draining);
    stage.sweep_after(10_000);
    assert_eq!((stage.state(A), readied(&stage)), (Up, false));
}

#[test]
fn a_peer_is_back_only_when_the_last_mark_is_gone() {
    let stage = Stage::new();
    stage.mark("pm2:1", A, Draining);
    stage.mark("operator", A, Draining);
    stage.mark("pm2:1", A, Up);
    assert!(!readied(&stage));
    stage.mark("operator", A, Up);
    assert!(readied(&stage));
}

#[test]
fn all_is_planned_if_any_of_the_marks_was_in_whatever_order_they_came() {
    for marks in [[("operator", Down), ("pm2:1", Down)], [("pm2:1", Down), ("operator", Down)]] {
        let stage = Stage::new();
        for (owner, state) in marks {
            stage.mark(owner, A, state);
        }
        stage.put(&all_ready("plus", A)).unwrap();
        assert!(readied(&stage), "{marks:?}");
    }
}

#[test]
fn each_return_is_announced_anew() {
    let stage = Stage::new();
    let mut last = 0;
    for peer in [A, B, A] {
        stage.mark("pm2:1", peer, Draining);
        stage.mark("pm2:1", peer, Up);
        let change = stage.slot(peer).readied();
        assert!(change > last && change == stage.table().header.readied());
        last = change;
    }
}

#[test]
fn connections_are_retired_when_the_gate_closes_and_again_when_it_opens() {
    let mut stage = Stage::new();
    assert_eq!(stage.slot(A).retired_before(), 0);
    for (connections, owner, state, retired_before) in [
        (110, "pm2:1", Draining, 110),
        (120, "pm2:1", Down, 110),
        (130, "operator", Down, 110),
        (140, "pm2:1", Up, 110),
        (150, "operator", Checking, 110),
        (160, "operator", Trial, 160),
        (170, "operator", Up, 170),
        (180, "operator", Up, 170),
        (190, "operator", Trial, 190),
        (200, "operator", Draining, 190),
    ] {
        stage.world.connections = connections;
        stage.mark(owner, A, state);
        assert_eq!(stage.slot(A).retired_before(), retired_before, "at {connections}: {owner} {state}");
    }
    assert_eq!(stage.slot(B).retired_before(), 0);
}

#[test]
fn a_lapse_retires_connections_too() {
    let mut stage = Stage::new();
    stage.mark("pm2:1", A, Draining);
    stage.world.connections = 170;
    stage.sweep_after(10_000);
    assert_eq!(stage.slot(A).retired_before(), 170);
}
