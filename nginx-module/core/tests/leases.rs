//! A lease is a promise to come back: a mark that is not renewed within it goes, and no other.

mod common;

use common::*;
use handoff_wire::State::*;
use handoff_wire::{Code, EventKind, MarkSet, Renew, Span};

const NONE: Option<Span> = None;

fn secs(secs: u64) -> Option<Span> {
    Some(Span::from_secs(secs))
}

#[test]
fn people_have_no_lease_unless_they_ask_and_programs_have_ten_seconds() {
    for (owner, asked, lease) in [
        ("operator", NONE, NONE),
        ("plus", NONE, NONE),
        ("operator", secs(60), secs(60)),
        ("pm2:1", NONE, secs(10)),
        ("worker:1", NONE, secs(10)),
        ("rollout:1", NONE, secs(10)),
        ("health", NONE, secs(10)),
        ("pm2:1", secs(1), secs(1)),
        ("pm2:1", secs(600), secs(600)),
    ] {
        let stage = Stage::new();
        stage.put(&MarkSet { lease: asked, ..set(owner, &[(A, Draining)]) }).unwrap();
        assert_eq!(stage.lease(A), lease, "{owner} asks for {asked:?}");
    }
}

#[test]
fn a_lease_out_of_bounds_is_refused() {
    let stage = Stage::new();
    for lease in
        [Span::default(), Span::from_millis(999), Span::from_millis(600_001), Span::from_secs(u64::MAX)]
    {
        let lease = Some(lease);
        let mark = stage.put(&MarkSet { lease, ..set("pm2:1", &[(A, Draining)]) }).unwrap_err();
        let renewal = stage.control().renew(&Renew { owner: of("pm2:1"), lease, marks: None }).unwrap_err();
        for refusal in [mark, renewal] {
            assert_eq!(refusal.code, Code::BadRequest);
            assert!(refusal.text.ends_with("is not between 1s and 600s"), "{}", refusal.text);
        }
    }
}

#[test]
fn a_mark_lapses_at_the_end_of_its_lease_and_alone() {
    let mut stage = Stage::new();
    stage.mark("operator", A, Checking);
    stage.mark("pm2:1", A, Draining);
    stage.mark("pm2:2", B, Draining);
    stage.now += 5_000;
    stage.renew("pm2:2");
    assert_eq!(stage.sweep_after(4_999), []);
    let [lapse] = &stage.sweep_after(1)[..] else { panic!("one mark lapses") };
    assert_eq!((lapse.kind, lapse.owner.as_str(), lapse.peer.as_str()), (EventKind::Lapse, "pm2:1", A));
    assert_eq!(
        (lapse.from, lapse.to, lapse.reason.as_str()),
        (Some(Draining), Some(Checking), "its lease ran out")
    );
    assert_eq!((stage.state(A), stage.state(B)), (Checking, Draining));
}

#[test]
fn a_mark_without_a_lease_outlives_everything() {
    let mut stage = Stage::new();
    stage.mark("operator", A, Down);
    stage.mark("plus", B, Down);
    assert_eq!(stage.sweep_after(u64::MAX / 2), []);
}

#[test]
fn a_renewal_keeps_the_lease_that_was_asked_for() {
    for (owner, asked) in [("pm2:1", secs(30)), ("operator", secs(30)), ("operator", NONE)] {
        let mut stage = Stage::new();
        stage.put(&MarkSet { lease: asked, ..set(owner, &[(A, Draining)]) }).unwrap();
        stage.now += 5_000;
        stage.renew(owner);
        assert_eq!(stage.lease(A), asked, "{owner}");
    }
}

#[test]
fn a_renewal_may_ask_for_another_lease() {
    let stage = Stage::new();
    stage.mark("pm2:1", A, Draining);
    stage.control().renew(&Renew { owner: of("pm2:1"), lease: secs(60), marks: None }).unwrap();
    assert_eq!(stage.lease(A), secs(60));
}

#[test]
fn a_clock_that_lags_neither_lapses_a_mark_nor_ages_it_below_zero() {
    let mut stage = Stage::new();
    stage.mark("pm2:1", A, Draining);
    stage.now -= 500;
    assert_eq!(stage.control().sweep(), []);
    assert_eq!((stage.lease(A), stage.marks(A)[0].age), (secs(10), Span::default()));
}

#[test]
fn one_process_sweeps_in_each_interval_even_if_clocks_lag() {
    let stage = Stage::new();
    for (now, due) in
        [(1_000, true), (1_000, false), (990, false), (1_249, false), (1_250, true), (1_240, false)]
    {
        assert_eq!(stage.table().header.due(now, 250), due, "at {now}");
    }
}
