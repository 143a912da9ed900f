//! A writer may die between any two stores: marks are whole, and the next writer lets the gates follow them.

mod common;

use common::*;
use handoff_wire::EventKind;
use handoff_wire::State::{self, *};
use std::mem;

impl Stage {
    /// As if the writer had died after it changed the marks of a peer and before the gate followed.
    fn die_before_gate(&self, peer: &str, gate: State) {
        mem::forget(self.control());
        self.slot(peer).gate.set(gate);
    }
}

#[test]
fn the_next_writer_closes_a_gate_that_was_left_open() {
    let mut stage = Stage::new();
    stage.mark("operator", A, Down);
    stage.die_before_gate(A, Up);
    assert_eq!(stage.state(A), Up);
    stage.sweep_after(0);
    assert_eq!(stage.state(A), Down);
}

#[test]
fn the_next_writer_opens_a_gate_that_was_left_closed_and_retires_what_was_opened_before() {
    let mut stage = Stage::new();
    stage.mark("pm2:1", A, Draining);
    stage.world.connections = 200;
    stage.mark("pm2:1", A, Up);
    stage.die_before_gate(A, Draining);
    // While the gate was closed, connections went on being opened elsewhere and by requests admitted before.
    stage.world.connections = 300;
    let (generation, changes) = (stage.table().header.generation(), stage.table().header.changes());
    stage.put(&set("operator", &[(B, Up)])).unwrap();
    assert_eq!((stage.state(A), stage.slot(A).retired_before()), (Up, 300));
    assert!(stage.table().header.generation() > generation, "somebody may wait for a change");
    assert!(stage.table().header.changes() > changes, "processes took the gate for closed");
}

#[test]
fn a_trial_that_a_writer_left_half_begun_retires_too() {
    let mut stage = Stage::new();
    stage.mark("rollout:1", A, Draining);
    stage.mark("rollout:1", A, Trial);
    stage.die_before_gate(A, Draining);
    stage.world.connections = 300;
    stage.sweep_after(0);
    assert_eq!((stage.state(A), stage.slot(A).retired_before()), (Trial, 300));
}

#[test]
fn a_peer_that_was_not_being_changed_is_left_alone() {
    let mut stage = Stage::new();
    stage.mark("operator", A, Down);
    let before = [A, B].map(|peer| stage.slot(peer).retired_before());
    stage.die_before_gate(C, Down);
    stage.world.connections = 300;
    stage.sweep_after(0);
    assert_eq!([A, B].map(|peer| stage.slot(peer).retired_before()), before);
    assert_eq!([A, B, C].map(|peer| stage.state(peer)), [Down, Up, Up]);
}

#[test]
fn even_a_writer_that_is_refused_mends_first() {
    let stage = Stage::new();
    stage.mark("operator", A, Down);
    stage.die_before_gate(A, Up);
    stage.put(&set("operator", &[])).unwrap_err();
    assert_eq!(stage.state(A), Down);
}

#[test]
fn a_writer_that_finished_leaves_nothing_to_mend() {
    let mut stage = Stage::new();
    stage.sweep_after(0);
    stage.slot(A).gate.set(Down);
    stage.sweep_after(0);
    assert_eq!(stage.state(A), Down, "gates are derived when marks change, not each time");
}

#[test]
fn a_mark_whose_writer_died_lapses_like_any_other() {
    let mut stage = Stage::new();
    stage.mark("pm2:1", A, Draining);
    stage.die_before_gate(A, Up);
    let lapses = stage.sweep_after(10_000);
    assert_eq!((lapses.len(), lapses[0].kind), (1, EventKind::Lapse));
    assert_eq!((stage.state(A), stage.marks(A)), (Up, vec![]));
}
