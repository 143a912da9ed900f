//! A peer holds one mark per owner, and is what the most severe of them says.

mod common;

use common::*;
use handoff_core::Admission;
use handoff_wire::State::{self, *};

#[test]
fn the_most_severe_mark_decides() {
    for (marks, effective) in [
        (&[][..], Up),
        (&[Changing], Changing),
        (&[Changing, Trial], Trial),
        (&[Trial, Checking], Checking),
        (&[Checking, Unhealthy], Unhealthy),
        (&[Draining, Unhealthy], Draining),
        (&[Checking, Down, Draining], Down),
    ] {
        let stage = Stage::new();
        for (&state, owner) in marks.iter().zip(["pm2:1", "health", "operator"]) {
            stage.mark(owner, A, state);
        }
        assert_eq!(stage.state(A), effective, "{marks:?}");
        assert_eq!(stage.state(B), Up, "its neighbour is not concerned");
    }
}

#[test]
fn only_an_open_gate_admits() {
    let stage = Stage::new();
    for state in State::ALL {
        stage.mark("operator", A, state);
        let expected = if state.serves() { Admission::Admitted } else { Admission::Refused(state) };
        assert_eq!(stage.claim(A), expected);
    }
}

#[test]
fn a_peer_on_trial_admits_what_is_fit_for_it() {
    let stage = Stage::new();
    for state in State::ALL {
        stage.mark("rollout:1", A, state);
        let expected = match state {
            Up | Changing => Admission::Admitted,
            Trial => Admission::OnTrial,
            _ => Admission::Refused(state),
        };
        assert_eq!(stage.claim_fit(A), expected);
    }
}

#[test]
fn an_owner_has_one_mark_and_may_change_it() {
    let stage = Stage::new();
    for state in [Draining, Down, Checking] {
        stage.mark("pm2:1", A, state);
        assert_eq!(stage.state(A), state, "a milder state too");
    }
    assert_eq!(stage.owners(A), ["pm2:1"]);
}

#[test]
fn up_takes_away_the_mark_of_the_caller_and_no_other() {
    let stage = Stage::new();
    stage.mark("operator", A, Down);
    stage.mark("pm2:1", A, Draining);
    stage.mark("pm2:2", A, Checking);
    stage.mark("operator", A, Up);
    assert_eq!((stage.state(A), stage.owners(A).len()), (Draining, 2));
    stage.mark("pm2:1", A, Up);
    assert_eq!((stage.state(A), stage.owners(A)), (Checking, vec!["pm2:2".into()]));
}

#[test]
fn up_without_a_mark_changes_nothing() {
    let stage = Stage::new();
    stage.mark("operator", A, Down);
    let before = stage.table().header.generation();
    let applied = stage.put(&set("pm2:1", &[(A, Up)])).unwrap();
    assert_eq!((applied.ack.marks[0].state, applied.ack.marks[0].epoch), (Down, 0));
    assert_eq!((applied.events.len(), applied.ack.generation), (0, before));
}

/// Processes look at the gates when the number is another one.
#[test]
fn a_gate_that_turns_is_a_change_and_a_mark_that_turns_none_is_not() {
    let stage = Stage::new();
    let changes = || stage.table().header.changes();
    let mut before = changes();
    for state in [Draining, Down, Checking, Up] {
        stage.mark("operator", A, state);
        assert!(changes() > before, "{state}");
        before = changes();
    }
    stage.put(&set("operator", &[(A, Up)])).unwrap();
    assert_eq!(changes(), before);
}

#[test]
fn all_takes_away_every_mark_and_tells_of_each() {
    let stage = Stage::new();
    for owner in ["operator", "pm2:1", "health"] {
        stage.mark(owner, A, Draining);
        stage.mark(owner, B, Draining);
    }
    let applied = stage.put(&all_ready("operator", A)).unwrap();
    assert_eq!((stage.state(A), stage.marks(A).len(), stage.marks(B).len()), (Up, 0, 3));
    let told: Vec<_> = applied.events.iter().map(|event| event.owner.as_str()).collect();
    assert_eq!(told, ["operator", "pm2:1", "health"]);
}

#[test]
fn a_command_without_an_upstream_means_every_upstream_with_the_peer() {
    let stage = Stage::of(&[(APP, A), ("other", A), ("other", B)]);
    let mut command = set("pm2:1", &[(A, Draining)]);
    command.marks[0].upstream = None;
    let acknowledged = stage.put(&command).unwrap().ack.marks;
    let upstreams: Vec<_> = acknowledged.iter().map(|mark| mark.upstream.as_str()).collect();
    assert_eq!(upstreams, [APP, "other"]);
}

#[test]
fn saying_the_same_again_is_no_change() {
    let mut stage = Stage::new();
    let epoch = stage.mark("pm2:1", A, Draining);
    let before = stage.table().header.generation();
    stage.now += 400;
    let applied = stage.put(&set("pm2:1", &[(A, Draining)])).unwrap();
    assert_eq!((applied.events.len(), applied.ack.generation), (0, before));
    assert_eq!(applied.ack.marks[0].epoch, epoch);
    assert_eq!(stage.marks(A)[0].age.as_millis(), 400, "a mark is as old as its beginning");
}
