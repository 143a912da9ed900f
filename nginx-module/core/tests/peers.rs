//! Peers that are added and removed while nginx runs: who gets a slot, when it is free again, and what a reload makes of it.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test says so by failing")]

mod common;

use common::*;
use handoff_core::control::Control;
use handoff_core::tenancy::Tenure;
use handoff_core::{Admission, Applied, Process, Slots};
use handoff_wire::State::*;
use handoff_wire::*;

const D: &str = "10.0.0.4:3000";
const E: &str = "10.0.0.5:3000";

/// `app` with the peer A and so many slots, in one nginx process.
struct Room {
    stage: Stage,
    alive: Vec<Process>,
    configuration: u64,
}

impl Room {
    fn with(slots: usize) -> Self {
        let stage = Stage::of(&[(APP, A)]);
        let mut room = Self { stage, alive: vec![process(1)], configuration: 1 };
        let ids = room.table().reserve(APP, slots, 1, |_| true).unwrap();
        room.stage.world.slots = Some(Slots { ids, weighs: true });
        room
    }

    fn table(&self) -> handoff_core::Table<'_> {
        self.stage.table()
    }

    fn add(&mut self, peer: &str) -> Result<Applied<PeerAck>, Refusal> {
        self.adds(&PeerAdd::new(Owner::operator(), peer))
    }

    fn adds(&mut self, add: &PeerAdd) -> Result<Applied<PeerAck>, Refusal> {
        let added = self.stage.control().add(APP, add);
        self.look();
        added
    }

    fn remove(&mut self, peer: &str) -> Result<Applied<PeerAck>, Refusal> {
        let removed = self.removes("operator", peer, true);
        self.look();
        removed
    }

    fn removes(&self, owner: &str, peer: &str, force: bool) -> Result<Applied<PeerAck>, Refusal> {
        let remove = PeerRemove { owner: of(owner), reason: String::new(), force };
        self.stage.control().remove_peer(APP, peer, &remove)
    }

    /// The shell shows core the peers that nginx has now.
    fn look(&mut self) {
        let table = self.stage.zone.table();
        let slots = self.stage.world.slots.clone().unwrap().ids;
        let is_here =
            |&id: &handoff_core::table::SlotId| table.slot(id).unwrap().tenancy.tenure() == Tenure::Taken;
        let named = table.find(APP, A).into_iter();
        let all = named.chain(slots.into_iter().filter(is_here)).map(serving).collect();
        self.stage.world.upstreams.insert(APP.to_owned(), all);
    }

    /// Reads a configuration with these servers and so many slots.
    fn read(&mut self, named: &[&str], slots: usize) -> Result<u64, usize> {
        let table = self.stage.zone.table();
        let configuration = table.header.next_configuration();
        let alive = |process: Process| self.alive.contains(&process);
        for peer in named {
            table.register(APP, peer, configuration, alive).unwrap();
        }
        let ids = table.reserve(APP, slots, configuration, alive)?;
        self.stage.world.slots = Some(Slots { ids, weighs: true });
        Ok(configuration)
    }

    fn reload(&mut self, named: &[&str], slots: usize) -> Result<usize, usize> {
        self.configuration = self.read(named, slots)?;
        Ok(self.table().commit(self.configuration, moment(2)))
    }

    fn tenure(&self, peer: &str) -> Tenure {
        self.stage.slot(peer).tenancy.tenure()
    }

    fn shown(&self) -> SlotsView {
        let view = handoff_core::view::upstream(&self.table(), &self.stage.world, moment(3), APP);
        view.slots.unwrap()
    }
}

fn code<A: std::fmt::Debug>(refused: Result<A, Refusal>) -> Code {
    refused.unwrap_err().code
}

#[test]
fn a_peer_that_is_added_serves_at_once_and_is_told_of() {
    let mut room = Room::with(2);
    let before = room.table().header.readied();
    let applied = room.add(B).unwrap();
    assert_eq!((applied.ack.changed, applied.ack.state, applied.ack.in_flight), (true, Up, 0));
    assert_eq!(
        (applied.events[0].kind, applied.events[0].from, applied.events[0].to),
        (EventKind::Add, Some(Down), Some(Up))
    );
    assert_eq!(room.stage.claim(B), Admission::Admitted);
    assert!(room.table().header.readied() > before, "every process is to look");
    assert_eq!(room.stage.slot(B).tenancy.inet(), Some(B.parse().unwrap()));
    assert_eq!(room.shown(), SlotsView { max: 2, taken: 1, leaving: 0, refused: 0 });
}

#[test]
fn the_same_again_is_the_same_and_other_terms_are_a_change() {
    let mut room = Room::with(1);
    room.add(B).unwrap();
    let id = room.stage.id(B);
    let again = room.add(B).unwrap();
    assert!(!again.ack.changed && again.events.is_empty());
    let heavy = PeerAdd { weight: 5, ..PeerAdd::new(Owner::operator(), B) };
    assert!(room.adds(&heavy).unwrap().ack.changed);
    assert_eq!((room.stage.id(B), room.stage.slot(B).tenancy.terms().weight), (id, 5));
    // However it is written.
    assert!(room.add("[::ffff:0:0:1]:80").is_err(), "the slot is taken");
    room.remove(B).unwrap();
    room.add("[2001:db8::1:1:1:1:1]:80").unwrap();
    assert!(!room.add("[2001:db8:0:1:1:1:1:1]:80").unwrap().ack.changed);
}

#[test]
fn a_removal_is_a_barrier_and_the_slot_is_kept_until_the_last_request_is_over() {
    let mut room = Room::with(1);
    room.add(B).unwrap();
    assert_eq!(room.stage.claim(B), Admission::Admitted);
    let gone = room.remove(B).unwrap();
    assert_eq!((gone.ack.state, gone.ack.in_flight), (Down, 1));
    assert_eq!(room.stage.claim(B), Admission::Refused(Down), "nobody any more");
    assert!(!room.remove(B).unwrap().ack.changed);
    assert_eq!(room.shown(), SlotsView { max: 1, taken: 0, leaving: 1, refused: 0 });
    assert_eq!(code(room.add(C)), Code::SlotsFull, "it has a request");
    assert_eq!(room.stage.slot(B).tenancy.inet(), Some(B.parse().unwrap()), "which reads where it went");
    room.stage.release(B);
    assert_eq!(room.shown(), SlotsView { max: 1, taken: 0, leaving: 0, refused: 1 - 1 });
    room.add(C).unwrap();
    assert!(room.table().find(APP, B).is_none());
    assert_eq!(room.stage.claim(C), Admission::Admitted);
}

#[test]
fn who_comes_back_before_its_last_request_is_over_has_its_slot_still() {
    let mut room = Room::with(2);
    room.add(B).unwrap();
    let id = room.stage.id(B);
    room.stage.claim(B);
    room.remove(B).unwrap();
    assert_eq!(room.add(B).unwrap().ack.in_flight, 1);
    assert_eq!((room.stage.id(B), room.stage.claim(B)), (id, Admission::Admitted));
}

#[test]
fn what_a_process_that_died_had_in_flight_keeps_no_slot() {
    let mut room = Room::with(1);
    room.add(B).unwrap();
    room.stage.claim(B);
    room.remove(B).unwrap();
    assert_eq!(code(room.add(C)), Code::SlotsFull);
    room.stage.world.alive.clear();
    room.add(C).unwrap();
}

#[test]
fn nothing_of_a_peer_is_left_for_the_next() {
    let mut room = Room::with(1);
    room.add(B).unwrap();
    room.stage.mark("operator", B, Draining);
    let id = room.stage.id(B);
    for _ in 0..3 {
        room.stage.slot(B).count_request(7);
        room.stage.slot(B).count_fail();
    }
    room.remove(B).unwrap();
    assert!(!room.stage.slot(B).has_marks(), "its marks go with it");
    room.stage.world.connections = 900;
    room.add(C).unwrap();
    let slot = room.stage.slot(C);
    assert_eq!((room.stage.id(C), slot.requests(), slot.fails(), slot.gate.state()), (id, 0, 0, Up));
    assert!(!slot.may_reuse(899) && slot.may_reuse(900), "connections of the one before");
    assert_eq!(room.stage.owners(C), [""; 0]);
}

#[test]
fn what_nginx_conf_names_is_neither_added_nor_removed() {
    let mut room = Room::with(1);
    assert_eq!(code(room.add(A)), Code::Configured);
    assert_eq!(code(room.remove(A)), Code::Configured);
    assert_eq!(code(room.remove(B)), Code::PeerNotFound);
    assert_eq!(code(room.remove("")), Code::PeerNotFound, "a vacant slot has no name");
    let nowhere = room.stage.control().add("nowhere", &PeerAdd::new(Owner::operator(), B));
    assert_eq!(code(nowhere), Code::UpstreamNotFound);
    room.stage.world.slots = None;
    let none = room.stage.control().add(APP, &PeerAdd::new(Owner::operator(), B));
    assert_eq!(code(none), Code::NoSlots);
}

#[test]
fn a_weight_that_no_balancer_minds_is_refused() {
    let mut room = Room::with(1);
    room.stage.world.slots.as_mut().unwrap().weighs = false;
    let heavy = PeerAdd { weight: 2, ..PeerAdd::new(Owner::operator(), B) };
    let text = room.adds(&heavy).unwrap_err().text;
    assert!(text.contains("before nginx 1.27.3"), "{text}");
    room.add(B).unwrap();
}

#[test]
fn a_choice_leaves_somebody_and_a_fact_is_a_fact() {
    let mut room = Room::with(1);
    room.add(B).unwrap();
    room.stage.mark("pm2:1", A, Down);
    assert_eq!(code(room.removes("operator", B, false)), Code::Floor);
    assert_eq!(room.stage.claim(B), Admission::Admitted, "nothing has changed");
    room.removes("worker:7", B, false).unwrap();
    assert_eq!(room.stage.claim(B), Admission::Refused(Down));
}

#[test]
fn a_reload_keeps_who_is_there_whatever_the_number_of_slots() {
    let mut room = Room::with(3);
    for peer in [B, C] {
        room.add(peer).unwrap();
    }
    let ids = [room.stage.id(B), room.stage.id(C)];
    assert_eq!(room.reload(&[A], 2), Ok(0));
    assert_eq!(room.stage.world.slots.as_ref().unwrap().ids, ids, "those that are taken first");
    assert_eq!(room.reload(&[A], 1), Err(2));
    assert_eq!(room.reload(&[A], 0), Err(2));
    assert_eq!(room.reload(&[A], 4), Ok(0));
    assert_eq!([room.stage.id(B), room.stage.id(C)], ids);
    room.look();
    room.remove(B).unwrap();
    assert_eq!(room.reload(&[A], 1), Ok(0), "whoever is leaving needs none");
    assert_eq!(room.tenure(C), Tenure::Taken);
}

#[test]
fn who_is_named_by_a_reload_is_the_configurations_from_its_commit_on() {
    let mut room = Room::with(2);
    for peer in [B, C] {
        room.add(peer).unwrap();
    }
    room.stage.mark("operator", B, Draining);
    let id = room.stage.id(B);
    // It is read, and fails.
    room.read(&[A, B], 2).unwrap();
    assert_eq!(room.tenure(B), Tenure::Taken);
    assert_eq!(room.reload(&[A, B], 1), Ok(1));
    assert_eq!((room.tenure(B), room.stage.id(B), room.stage.state(B)), (Tenure::Configured, id, Draining));
    assert_eq!(room.shown(), SlotsView { max: 1, taken: 1, leaving: 0, refused: 0 });
    // Whoever was leaving is back, if it is named.
    room.look();
    room.remove(C).unwrap();
    assert_eq!(room.reload(&[A, B, C], 1), Ok(1));
    assert_eq!((room.tenure(C), room.stage.claim(C)), (Tenure::Configured, Admission::Admitted));
}

#[test]
fn a_writer_that_dies_halfway_leaves_a_slot_vacant_and_its_gate_closed() {
    let mut room = Room::with(1);
    room.add(B).unwrap();
    let id = room.stage.id(B);
    room.remove(B).unwrap();
    // The lock was held when it died; whoever comes next makes good.
    std::mem::forget(room.stage.control());
    Control::begin(room.table(), &room.stage.world, moment(9)).sweep();
    let slot = room.table().slot(id).unwrap();
    assert_eq!(slot.gate.state(), Down, "nobody is there, whatever the marks say");
    room.add(D).unwrap();
    std::mem::forget(room.stage.control());
    drop(room.stage.control());
    assert_eq!(room.stage.state(D), Up);
    assert_eq!(code(room.add(E)), Code::SlotsFull);
}

#[test]
fn a_peer_that_is_removed_keeps_no_deploy_open() {
    let mut room = Room::with(1);
    room.add(B).unwrap();
    room.stage.mark("operator", B, Draining);
    room.stage.mark("operator", A, Draining);
    room.remove(B).unwrap();
    let timeline = handoff_core::timeline::timeline(&room.table(), moment(9));
    assert_eq!(timeline.deploys.len(), 1);
    assert_eq!(timeline.deploys[0].peers.iter().map(|track| track.peer.as_str()).collect::<Vec<_>>(), [A]);
    let counts = room.table().header.told();
    assert_eq!((counts.add, counts.remove), (1, 1));
}

#[test]
fn whoever_added_a_peer_is_known_and_whoever_says_otherwise_of_it_after_him() {
    let mut room = Room::with(1);
    let by = |room: &Room| {
        let view = handoff_core::view::upstream(&room.table(), &room.stage.world, moment(3), APP);
        view.peers.into_iter().find(|peer| peer.address == B).and_then(|peer| peer.added_by)
    };
    let store = PeerAdd::new(of("rollout:app1/store"), B);
    room.adds(&store).unwrap();
    assert_eq!(by(&room), Some(store.owner.clone()));
    // The same terms are no news, whoever names them.
    assert!(!room.add(B).unwrap().ack.changed);
    assert_eq!(by(&room), Some(store.owner.clone()));
    room.adds(&PeerAdd { weight: 2, ..PeerAdd::new(Owner::operator(), B) }).unwrap();
    assert_eq!(by(&room), Some(Owner::operator()));
    // Whoever comes back before the last request is over is as if he had come anew.
    assert_eq!(room.stage.claim(B), Admission::Admitted);
    room.remove(B).unwrap();
    room.adds(&store).unwrap();
    assert_eq!(by(&room), Some(store.owner));
    // A peer that nginx.conf names was added by nobody.
    room.reload(&[A, B], 0).unwrap();
    assert_eq!(by(&room), None);
}
