//! A dead sidecar must not be an outage: where nobody is up, three seconds of silence are enough.

mod common;

use common::*;
use handoff_wire::State::*;

#[test]
fn where_nobody_is_up_a_silent_owner_loses_its_leased_marks_after_three_seconds() {
    let mut stage = Stage::new();
    for peer in [A, B, C] {
        stage.mark("pm2:1", peer, Draining);
    }
    assert_eq!(stage.sweep_after(2_999), []);
    let lapses = stage.sweep_after(1);
    assert_eq!(lapses.len(), 3);
    assert!(lapses.iter().all(|lapse| lapse.reason == "its owner is silent and nobody is up"));
    assert_eq!([A, B, C].map(|peer| stage.state(peer)), [Up; 3]);
}

#[test]
fn a_peer_on_trial_is_not_up() {
    let mut stage = Stage::new();
    for peer in [A, B] {
        stage.mark("pm2:1", peer, Draining);
    }
    stage.mark("rollout:1", C, Trial);
    assert_eq!(stage.sweep_after(2_999), []);
    assert_eq!(stage.sweep_after(1).len(), 3);
}

#[test]
fn while_somebody_is_up_the_whole_lease_counts() {
    let mut stage = Stage::new();
    stage.mark("pm2:1", A, Draining);
    stage.mark("pm2:1", B, Draining);
    assert_eq!(stage.sweep_after(9_999), []);
    assert_eq!(stage.sweep_after(1).len(), 2);
}

#[test]
fn the_marks_of_owners_that_renew_and_of_people_stay() {
    let mut stage = Stage::new();
    stage.mark("pm2:1", A, Draining);
    stage.mark("pm2:2", B, Draining);
    stage.mark("operator", C, Down);
    stage.now += 2_000;
    stage.renew("pm2:2");
    let lapsed: Vec<_> = stage.sweep_after(1_000).into_iter().map(|event| event.peer).collect();
    assert_eq!(lapsed, [A]);
    stage.sweep_after(6_999);
    assert_eq!((stage.state(B), stage.state(C)), (Draining, Down), "somebody is up again");
}

#[test]
fn an_upstream_that_is_served_is_not_concerned_by_one_that_is_not() {
    let mut stage = Stage::of(&[(APP, A), ("other", A), ("other", B)]);
    let mut both = set("pm2:1", &[(A, Draining)]);
    both.marks[0].upstream = None;
    stage.put(&both).unwrap();
    let lapses = stage.sweep_after(3_000);
    assert_eq!(lapses.iter().map(|event| event.upstream.as_str()).collect::<Vec<_>>(), [APP]);
}

#[test]
fn who_could_not_serve_anyhow_is_not_up() {
    let mut stage = Stage::new();
    stage.mark("pm2:1", A, Draining);
    stage.regard(B, |peer| peer.available = false);
    stage.regard(C, |peer| (peer.available, peer.unavail) = (false, true));
    assert_eq!(stage.sweep_after(3_000).len(), 1);
}

#[test]
fn a_backup_that_serves_is_somebody() {
    let mut stage = Stage::of(&[(APP, A), (APP, B)]);
    stage.regard(B, |peer| peer.backup = true);
    stage.mark("pm2:1", A, Draining);
    assert_eq!(stage.sweep_after(3_000), []);
}

#[test]
fn a_peer_that_the_configuration_dropped_has_its_whole_lease() {
    let mut stage = Stage::new();
    stage.mark("pm2:1", A, Draining);
    stage.world.upstreams.clear();
    assert_eq!(stage.sweep_after(9_999), []);
    assert_eq!(stage.sweep_after(1).len(), 1);
}

/// Of two workers one was being replaced when the sidecar died, and nobody says what became of it. Then the other one goes.
#[test]
fn who_is_up_and_was_missed_since_the_owner_fell_silent_is_nobody() {
    let mut stage = Stage::of(&[(APP, A), (APP, B)]);
    stage.mark("pm2:1", A, Draining);
    stage.now += 1_000;
    stage.slot(B).miss(stage.now);
    assert_eq!(stage.sweep_after(1_999), []);
    let [lapse] = &stage.sweep_after(1)[..] else { panic!("one mark lapses") };
    assert_eq!(lapse.reason, "its owner is silent and nobody is behind those that are up");
    assert_eq!(stage.state(A), Up);
}

#[test]
fn an_owner_that_speaks_is_not_overruled() {
    let mut stage = Stage::of(&[(APP, A), (APP, B)]);
    stage.mark("pm2:1", A, Draining);
    for _ in 0..100 {
        stage.slot(B).miss(stage.now + 500);
        stage.now += 1_000;
        stage.renew("pm2:1");
        assert_eq!(stage.control().sweep(), []);
    }
    assert_eq!(
        stage.sweep_after(9_999),
        [],
        "it was missed before the last word, and nobody has asked since"
    );
}

#[test]
fn one_who_answers_is_somebody() {
    for (what, change) in [
        ("answered since", (|stage: &Stage| stage.slot(B).answers.count(500)) as fn(&Stage)),
        ("another worker is behind it", |stage| {
            stage.mark("pm2:2", B, Checking);
            stage.put(&set("pm2:2", &[(B, Up)])).unwrap();
        }),
        ("nobody was missed there", |_| ()),
    ] {
        let mut stage = Stage::new();
        stage.mark("pm2:1", A, Draining);
        stage.now += 1_000;
        stage.slot(C).miss(stage.now);
        if what != "nobody was missed there" {
            stage.slot(B).miss(stage.now);
        }
        change(&stage);
        assert_eq!(stage.sweep_after(8_999), [], "{what}");
        assert_eq!(stage.sweep_after(1).len(), 1, "{what}: its lease ran out");
    }
}

#[test]
fn a_person_is_not_overruled_because_nobody_else_is_there() {
    let mut stage = Stage::of(&[(APP, A), (APP, B)]);
    stage.mark("operator", A, Draining);
    stage.now += 1_000;
    stage.slot(B).miss(stage.now);
    assert_eq!(stage.sweep_after(86_400_000), []);
}
