//! No choice leaves an upstream without anybody to serve; facts are so whether we like it or not.

mod common;

use common::*;
use handoff_core::hold::Queue;
use handoff_wire::State::*;
use handoff_wire::{Code, Expect, MarkSet, Span};
use std::time::Duration;

/// Three peers, of which two are gone: the last one is C.
fn one_left() -> Stage {
    let stage = Stage::new();
    stage.mark("pm2:1", A, Down);
    stage.mark("pm2:1", B, Down);
    stage
}

#[test]
fn a_choice_that_would_leave_nobody_is_refused() {
    for owner in ["operator", "plus", "rollout:1", "health"] {
        for state in [Trial, Checking, Unhealthy, Draining, Down] {
            let stage = one_left();
            let refusal = stage.put(&set(owner, &[(C, state)])).unwrap_err();
            assert_eq!((refusal.code, refusal.status), (Code::Floor, 409), "{owner} {state}");
            assert!(refusal.text.contains("nobody would be left to serve the upstream \"app\""), "{refusal}");
            assert_eq!(stage.state(C), Up);
        }
    }
}

#[test]
fn a_fact_is_not_bound() {
    for owner in ["pm2:1", "worker:9"] {
        let stage = one_left();
        stage.put(&set(owner, &[(C, Draining)])).unwrap();
        assert_eq!(stage.state(C), Draining);
    }
}

#[test]
fn a_choice_can_be_forced() {
    let stage = one_left();
    stage.put(&MarkSet { force: true, ..set("operator", &[(C, Down)]) }).unwrap();
    assert_eq!(stage.state(C), Down);
}

#[test]
fn marks_of_one_command_count_together() {
    let stage = Stage::new();
    let all = [(A, Draining), (B, Draining), (C, Draining)];
    assert_eq!(stage.put(&set("operator", &all)).unwrap_err().code, Code::Floor);
    assert_eq!(stage.marks(A), [], "nothing of it was done");
    stage.put(&set("operator", &all[..2])).unwrap();
}

#[test]
fn a_peer_that_only_comes_back_by_the_same_command_does_not_serve_now() {
    let stage = Stage::of(&[(APP, A), (APP, B)]);
    stage.mark("operator", A, Draining);
    let swap = set("operator", &[(A, Up), (B, Draining)]);
    assert_eq!(stage.put(&swap).unwrap_err().code, Code::Floor);
    assert_eq!((stage.state(A), stage.state(B)), (Draining, Up));
}

#[test]
fn who_could_not_serve_now_does_not_count() {
    for (name, unavail) in [("down in the configuration", false), ("unavail", true)] {
        let mut stage = Stage::new();
        for peer in [A, B] {
            stage.regard(peer, |peer| (peer.available, peer.unavail) = (false, unavail));
        }
        assert_eq!(stage.put(&set("operator", &[(C, Down)])).unwrap_err().code, Code::Floor, "{name}");
        stage.put(&set("operator", &[(A, Down)])).unwrap();
    }
}

#[test]
fn a_peer_on_trial_counts_as_nobody() {
    let stage = Stage::of(&[(APP, A), (APP, B)]);
    stage.mark("rollout:1", A, Trial);
    assert_eq!(stage.put(&set("operator", &[(B, Draining)])).unwrap_err().code, Code::Floor);
    stage.put(&set("operator", &[(A, Draining)])).unwrap();
}

#[test]
fn whoever_was_away_may_stand_trial_though_nobody_else_serves() {
    let stage = one_left();
    stage.mark("rollout:1", C, Draining);
    stage.put(&set("rollout:1", &[(C, Trial)])).unwrap();
    assert_eq!(stage.state(C), Trial);
}

#[test]
fn backups_are_apart() {
    let mut stage = Stage::of(&[(APP, A), (APP, B)]);
    stage.regard(B, |peer| peer.backup = true);
    assert_eq!(stage.put(&set("operator", &[(A, Down)])).unwrap_err().code, Code::Floor);
    stage.put(&set("operator", &[(B, Down)])).unwrap();
}

#[test]
fn an_upstream_that_nobody_serves_cannot_lose_anybody() {
    let stage = one_left();
    stage.mark("pm2:1", C, Draining);
    stage.put(&set("operator", &[(A, Down), (B, Down), (C, Down)])).unwrap();
}

#[test]
fn every_upstream_of_the_peer_has_its_floor() {
    let stage = Stage::of(&[(APP, A), (APP, B), ("other", A)]);
    let mut everywhere = set("operator", &[(A, Draining)]);
    everywhere.marks[0].upstream = None;
    let refusal = stage.put(&everywhere).unwrap_err();
    assert!(refusal.text.contains("the upstream \"other\""), "{refusal}");
    stage.put(&set("operator", &[(A, Draining)])).unwrap();
}

#[test]
fn who_is_back_before_those_who_wait_give_up_leaves_nobody_alone() {
    let seconds = |seconds| Some(Span::from(Duration::from_secs(seconds)));
    let asked = |owner, expect, lease| {
        let mut set = set(owner, &[(C, Draining)]);
        set.marks[0].expect = expect;
        MarkSet { lease, ..set }
    };
    for (wait, owner, expect, lease, may) in [
        (true, "operator", Expect::Back, seconds(30), true),
        (true, "plus", Expect::Back, seconds(10), true),
        (true, "operator", Expect::Back, seconds(31), false),
        (true, "operator", Expect::Back, None, false),
        (true, "operator", Expect::Gone, seconds(10), false),
        (true, "rollout:1", Expect::Back, seconds(10), false),
        (true, "health", Expect::Back, seconds(10), false),
        (false, "operator", Expect::Back, seconds(10), false),
    ] {
        let mut stage = one_left();
        stage.world.queue = wait.then_some(Queue { requests: 1, bytes: 1, timeout: 30_000 });
        let put = stage.put(&asked(owner, expect, lease)).map_err(|refusal| refusal.code);
        assert_eq!(put.err(), (!may).then_some(Code::Floor), "{wait} {owner} {expect:?} {lease:?}");
    }
}
