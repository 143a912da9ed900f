//! While one of the workers that share an address is replaced, the peer serves on, and each request has a connection of its
//! own.

mod common;

use common::*;
use handoff_core::Admission;
use handoff_wire::State::*;

/// Connections with these numbers may be kept, and may be used.
fn connections(stage: &Stage, numbers: [u64; 3]) -> [(bool, bool); 3] {
    numbers.map(|number| (stage.slot(A).may_keep(number), stage.slot(A).may_reuse(number)))
}

#[test]
fn it_serves_and_keeps_no_connection() {
    let mut stage = Stage::new();
    stage.world.connections = 100;
    stage.mark("pm2:1", A, Changing);
    assert_eq!(stage.claim(A), Admission::Admitted);
    assert_eq!(connections(&stage, [99, 100, 101]), [(false, false), (false, true), (false, true)]);
}

#[test]
fn what_was_connected_meanwhile_is_not_used_afterwards() {
    let mut stage = Stage::new();
    stage.world.connections = 100;
    stage.mark("pm2:1", A, Changing);
    stage.world.connections = 200;
    stage.mark("pm2:1", A, Up);
    assert_eq!(connections(&stage, [150, 199, 200]), [(false, false), (false, false), (true, true)]);
}

#[test]
fn it_ends_with_the_last_of_those_who_said_so() {
    let mut stage = Stage::new();
    stage.mark("pm2:1", A, Changing);
    stage.mark("pm2:2", A, Changing);
    stage.world.connections = 100;
    stage.mark("pm2:1", A, Up);
    assert_eq!((stage.state(A), stage.slot(A).may_keep(100)), (Changing, false));
    stage.mark("pm2:2", A, Up);
    assert_eq!((stage.state(A), stage.slot(A).may_keep(100)), (Up, true));
}

#[test]
fn it_ends_with_its_lease() {
    let mut stage = Stage::new();
    stage.mark("pm2:1", A, Changing);
    assert_eq!(stage.sweep_after(9_999).len(), 0, "it serves, so that silence alone ends nothing");
    assert_eq!((stage.sweep_after(1).len(), stage.state(A)), (1, Up));
}

#[test]
fn who_is_changing_serves_for_the_floor_and_may_change_without_asking_it() {
    let stage = Stage::new();
    for peer in [A, B, C] {
        stage.put(&set("rollout:1", &[(peer, Changing)])).unwrap();
    }
    stage.put(&set("operator", &[(A, Draining), (B, Draining)])).unwrap();
    stage.put(&set("operator", &[(C, Draining)])).unwrap_err();
}

#[test]
fn a_worse_state_decides_and_after_it_nothing_older_is_used() {
    let mut stage = Stage::new();
    stage.mark("pm2:1", A, Changing);
    stage.mark("operator", A, Draining);
    assert_eq!(stage.claim(A), Admission::Refused(Draining));
    stage.world.connections = 300;
    stage.mark("operator", A, Up);
    assert_eq!((stage.state(A), stage.slot(A).retired_before()), (Changing, 300));
}
