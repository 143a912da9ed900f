//! A peer keeps its slot for as long as any living process may know it: through reloads, failed ones too.

mod common;

use common::*;
use handoff_core::Process;
use handoff_core::table::SlotId;
use handoff_core::timing::Attempt;
use handoff_wire::State::*;
use handoff_wire::TimingView;

/// nginx's master, with room for two peers.
struct Master {
    zone: Zone,
    alive: Vec<Process>,
}

impl Master {
    fn new() -> Self {
        Self { zone: Zone::with(2, 1), alive: Vec::new() }
    }

    fn alive(&self, process: Process) -> bool {
        self.alive.contains(&process)
    }

    /// Reads a configuration with these peers; it may yet fail.
    fn read(&self, peers: &[&str]) -> (u64, Vec<Option<SlotId>>) {
        let table = self.zone.table();
        let configuration = table.header.next_configuration();
        let register = |peer: &&str| table.register(APP, peer, configuration, |process| self.alive(process));
        (configuration, peers.iter().map(register).collect())
    }

    /// Reads a configuration, runs it, and starts a worker for it.
    fn reload(&mut self, pid: u32, peers: &[&str]) -> Vec<Option<SlotId>> {
        let (configuration, slots) = self.read(peers);
        self.zone.table().header.commit(configuration);
        self.alive.push(process(pid));
        self.zone.table().join(process(pid), configuration, |process| self.alive(process));
        slots
    }

    fn knows(&self, peer: &str) -> bool {
        self.zone.table().find(APP, peer).is_some()
    }
}

#[test]
fn a_peer_keeps_its_slot_and_its_marks_through_a_reload() {
    let mut master = Master::new();
    let slots = master.reload(1, &[A, B]);
    let world = Script::default();
    let control = handoff_core::control::Control::begin(master.zone.table(), &world, moment(1));
    control.mark(&set("pm2:1", &[(A, Draining)])).unwrap();
    assert_eq!(master.reload(2, &[B, A]), [slots[1], slots[0]]);
    let slot = master.zone.table().slot(slots[0].unwrap()).unwrap();
    assert_eq!((slot.gate.state(), slot.has_marks()), (Draining, true));
}

#[test]
fn the_same_address_in_two_upstreams_is_two_peers() {
    let zone = Zone::with(2, 1);
    let register = |upstream| zone.table().register(upstream, A, 1, |_| false);
    assert_ne!(register(APP), register("other"));
    assert_eq!(zone.table().find("other", A), register("other"));
    assert_eq!(zone.table().find("other", B), None);
}

#[test]
fn a_full_zone_has_no_room_while_somebody_serves_the_old_configuration() {
    let mut master = Master::new();
    master.reload(1, &[A, B]);
    assert_eq!(master.reload(2, &[B, C])[1], None, "A runs");
    master.alive.retain(|worker| *worker != process(2));
    assert_eq!(master.reload(3, &[B, C])[1], None, "an old worker still knows A");
    assert!(master.knows(A));
    master.alive.retain(|worker| *worker != process(1));
    assert!(master.reload(4, &[B, C])[1].is_some());
    assert!(master.knows(C) && !master.knows(A));
}

#[test]
fn a_reload_that_fails_frees_nothing() {
    let mut master = Master::new();
    master.reload(1, &[A, B]);
    for _ in 0..3 {
        assert_eq!(master.read(&[B, C]).1[1], None);
    }
    assert!(master.knows(A) && master.knows(B));
}

#[test]
fn what_only_a_failed_reload_named_makes_room_after_the_next_good_one() {
    let mut master = Master::new();
    master.reload(1, &[A]);
    master.read(&[A, B]);
    assert!(master.knows(B));
    assert_eq!(master.reload(2, &[A, C])[1], None);
    master.alive.retain(|worker| *worker != process(1));
    assert!(master.reload(3, &[A, C])[1].is_some());
}

#[test]
fn a_slot_that_changes_hands_keeps_nothing() {
    let mut master = Master::new();
    let slots = master.reload(1, &[A, B]);
    let (table, world) = (master.zone.table(), Script { connections: 9, ..Script::default() });
    let slot = table.slot(slots[0].unwrap()).unwrap();
    for state in [Draining, Up, Down] {
        let control = handoff_core::control::Control::begin(table, &world, moment(1));
        control.mark(&handoff_wire::MarkSet { force: true, ..set("operator", &[(A, state)]) }).unwrap();
    }
    slot.count_request(7);
    slot.count_fail();
    slot.count_broken();
    slot.count_refused();
    slot.answers.count(500);
    slot.timing.count(&Attempt { sent: 1, received: 1, answer: None });
    assert!(slot.readied() > 0 && slot.retired_before() == 9);

    master.alive.clear();
    master.reload(2, &[B]);
    assert_eq!(master.read(&[B, C]).1[1], slots[0]);
    let slot = master.zone.table().slot(slots[0].unwrap()).unwrap();
    assert_eq!((slot.address().as_str(), slot.gate.state(), slot.has_marks()), (C, Up, false));
    let counts =
        [slot.requests(), slot.fails(), slot.cut(), slot.refused(), slot.readied(), slot.retired_before()];
    assert_eq!((counts, slot.answers.view().total()), ([0; 6], 0));
    assert_eq!(slot.timing.view(), TimingView::default());
}

#[test]
fn a_process_without_a_row_of_its_own_is_remembered_too() {
    let mut master = Master::new();
    master.reload(1, &[A, B]);
    // The rows are taken by others, so the second worker shares the last one.
    let join = |pid| master.zone.table().join(process(pid), 1, |_| true);
    let shared = (2..400).map(join).last().unwrap();
    assert_eq!(master.zone.table().row_process(shared), None);
    master.alive.clear();
    assert_eq!(master.reload(500, &[B])[0], master.zone.table().find(APP, B));
    assert_eq!(master.read(&[B, C]).1[1], None, "nobody can tell whether it still serves A");
}
