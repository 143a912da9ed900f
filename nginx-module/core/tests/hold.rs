//! What those may expect who wait for an upstream.

mod common;

use common::*;
use handoff_core::hold::{Outlook, Queue};
use handoff_wire::Expect;
use handoff_wire::State::*;

#[test]
fn those_who_are_up_serve() {
    let mut stage = Stage::new();
    assert_eq!(stage.outlook(), Outlook::Serving(3));
    stage.expects("pm2:1", A, Draining, Expect::Back);
    stage.expects("pm2:1", B, Changing, Expect::Back);
    assert_eq!(stage.outlook(), Outlook::Serving(2));
    stage.regard(B, |peer| peer.available = false);
    stage.regard(C, |peer| peer.full = true);
    assert_eq!(stage.outlook(), Outlook::Full);
}

#[test]
fn somebody_is_expected_if_all_who_keep_requests_away_expect_it() {
    let stage = Stage::new();
    stage.all_are("pm2:1", Down, Expect::Gone);
    assert_eq!(stage.outlook(), Outlook::Nobody);
    stage.expects("pm2:1", B, Checking, Expect::Back);
    assert_eq!(stage.outlook(), Outlook::Expected);
    stage.expects("operator", B, Draining, Expect::Gone);
    assert_eq!(stage.outlook(), Outlook::Nobody, "a person keeps it out");
    stage.expects("operator", B, Changing, Expect::Gone);
    assert_eq!(stage.outlook(), Outlook::Expected, "a changing peer serves");
}

#[test]
fn a_worker_on_trial_is_expected_to_pass() {
    let stage = Stage::new();
    stage.all_are("pm2:1", Down, Expect::Gone);
    stage.expects("pm2:1", A, Trial, Expect::Back);
    assert_eq!(stage.outlook(), Outlook::Expected);
}

#[test]
fn whom_the_configuration_takes_out_is_not_expected() {
    let mut stage = Stage::new();
    stage.all_are("pm2:1", Draining, Expect::Back);
    for peer in [A, B, C] {
        stage.regard(peer, |peer| peer.available = false);
    }
    assert_eq!(stage.outlook(), Outlook::Nobody);
    stage.regard(A, |peer| peer.unavail = true);
    assert_eq!(stage.outlook(), Outlook::Expected, "its failures are forgotten when it comes back");
}

#[test]
fn whom_nginx_leaves_out_for_its_failures_nobody_has_promised() {
    let mut stage = Stage::new();
    for peer in [A, B, C] {
        stage.regard(peer, |peer| (peer.available, peer.unavail) = (false, true));
    }
    assert_eq!(stage.outlook(), Outlook::Nobody);
}

/// The sweep comes within a second and opens the gate; until then those who wait still have something to expect.
#[test]
fn whose_owner_is_silent_is_expected_until_the_sweep_must_have_come() {
    let mut stage = Stage::new();
    stage.all_are("pm2:1", Draining, Expect::Back);
    for (millis, outlook) in [(3_999, Outlook::Expected), (4_000, Outlook::Nobody)] {
        stage.now = 1_000_000 + millis;
        assert_eq!(stage.outlook(), outlook, "{millis} ms, and nobody swept");
    }
    stage.now = 1_003_000;
    assert_eq!(stage.sweep_after(0).len(), 3);
    assert_eq!(stage.outlook(), Outlook::Serving(3));
}

/// A request that found nobody there waits for the owner's next word, or until it is clear that there will be none.
#[test]
fn who_is_up_and_was_missed_since_the_last_word_serves_nobody() {
    let mut stage = Stage::of(&[(APP, A), (APP, B), (APP, C)]);
    stage.expects("pm2:1", A, Draining, Expect::Back);
    stage.now += 100;
    stage.slot(B).miss(stage.now);
    assert_eq!(stage.outlook(), Outlook::Serving(1), "nobody was missed behind the other");
    stage.slot(C).miss(stage.now);
    assert_eq!(stage.outlook(), Outlook::Expected);
    stage.slot(C).answers.count(200);
    assert_eq!(stage.outlook(), Outlook::Serving(1), "somebody is there after all");
    stage.slot(C).miss(stage.now);
    stage.now += 1;
    stage.renew("pm2:1");
    assert_eq!(stage.outlook(), Outlook::Serving(2), "its owner lives, and says nothing of them");
    stage.slot(B).miss(stage.now);
    stage.slot(C).miss(stage.now);
    assert_eq!(stage.outlook(), Outlook::Expected, "missed in the same millisecond, and perhaps after it");
    stage.expects("pm2:2", A, Draining, Expect::Gone);
    assert_eq!(stage.outlook(), Outlook::Serving(2), "nobody is expected");
    stage.put(&set("pm2:2", &[(A, Up)])).unwrap();
    stage.expects("operator", A, Draining, Expect::Back);
    assert_eq!(stage.outlook(), Outlook::Serving(2), "a person says no more, however long one waits");
    stage.put(&set("operator", &[(A, Up)])).unwrap();
    assert_eq!(stage.outlook(), Outlook::Expected);
    assert_eq!(stage.sweep_after(3_000).len(), 1);
    assert_eq!(stage.outlook(), Outlook::Serving(3));
}

/// Somebody was up, so that the marks of a silent owner were left as they are.
#[test]
fn who_is_missed_long_after_the_last_word_lets_those_wait_who_miss_it_until_the_sweep() {
    let mut stage = Stage::of(&[(APP, A), (APP, B)]);
    stage.expects("pm2:1", A, Down, Expect::Back);
    assert_eq!(stage.sweep_after(9_000), []);
    assert_eq!(stage.outlook(), Outlook::Serving(1));
    stage.slot(B).miss(stage.now);
    assert_eq!(stage.outlook(), Outlook::Expected);
    assert_eq!(stage.sweep_after(0).len(), 1);
    assert_eq!(stage.outlook(), Outlook::Serving(2));
    stage.expects("pm2:1", A, Down, Expect::Back);
    stage.slot(B).miss(stage.now);
    for (millis, outlook) in [(10_999, Outlook::Expected), (1, Outlook::Serving(1))] {
        stage.now += millis;
        assert_eq!(stage.outlook(), outlook, "nobody swept");
    }
}

#[test]
fn a_person_who_expects_somebody_is_never_silent() {
    let mut stage = Stage::new();
    stage.all_are("operator", Draining, Expect::Back);
    stage.now += 86_400_000;
    stage.sweep_after(0);
    assert_eq!(stage.outlook(), Outlook::Expected);
}

/// A writer has taken the marks away, and the gates are about to follow.
#[test]
fn a_gate_that_nobody_keeps_shut_is_worth_waiting_for() {
    let stage = Stage::new();
    for peer in [A, B, C] {
        stage.slot(peer).gate.set(Down);
    }
    assert_eq!(stage.outlook(), Outlook::Expected);
}

#[test]
fn an_upstream_keeps_its_room_through_reloads_until_nobody_knows_it() {
    let mut stage = Stage::new();
    let queue = Queue { requests: 1, ..Queue::default() };
    let table = stage.zone.table();
    let alive = |_| true;
    let room = table.open_room("app", 1, alive).unwrap();
    let row = stage.row;
    assert_eq!(table.open_room("app", 2, alive), Some(room));
    for name in ["b", "c", "d"] {
        assert!(table.open_room(name, 2, alive).is_some_and(|other| other != room));
    }
    assert_eq!(table.open_room("e", 2, alive), None, "the zone is full");
    table.room(room).unwrap().enter(row, 7, &queue).unwrap();
    assert_eq!(table.room_of("app").unwrap().requests(), 1);
    // A configuration without it, and the last process of an older one gone.
    let table = stage.zone.table();
    table.header.commit(3, moment(1));
    stage.world.alive.clear();
    let taken = table.open_room("e", 3, |_| false).unwrap();
    assert_eq!(taken, room);
    assert!(table.room_of("app").is_none());
    assert_eq!(table.room_of("e").unwrap().requests(), 0, "nothing is left of the other");
}

#[test]
fn what_a_dead_process_held_is_gone_with_the_next_sweep() {
    let mut stage = Stage::new();
    let table = stage.zone.table();
    let room = table.open_room(APP, 1, |_| true).unwrap();
    let room = table.room(room).unwrap();
    room.enter(stage.row, 7, &Queue::default()).unwrap();
    stage.control().sweep();
    assert_eq!((room.requests(), room.bytes()), (1, 7));
    stage.world.alive.clear();
    stage.control().sweep();
    assert_eq!((room.requests(), room.bytes()), (0, 0));
}
