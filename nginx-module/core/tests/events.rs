//! The zone remembers the recent past, in order; a stage's ring has 16 places.

mod common;

use common::*;
use handoff_wire::State::*;
use handoff_wire::{EventKind, MarkRequest, MarkSet};

#[test]
fn an_event_tells_who_did_what_and_why() {
    let stage = Stage::new();
    stage.claim(A);
    let marks = vec![MarkRequest { reason: "pm2 is stopping it".into(), ..request(A, Draining) }];
    let told = stage.put(&MarkSet { marks, ..set("pm2:1", &[]) }).unwrap().events;
    assert_eq!(stage.table().recall(0).events, told, "what is logged is what is remembered");
    let [event] = &told[..] else { panic!("one event") };
    assert_eq!((event.seq, event.at), (1, moment(stage.now).unix));
    assert_eq!(
        (event.kind, event.from, event.to, event.in_flight),
        (EventKind::Mark, Some(Up), Some(Draining), 1)
    );
    assert_eq!((event.upstream.as_str(), event.peer.as_str(), event.owner.as_str()), (APP, A, "pm2:1"));
    assert_eq!(event.reason, "pm2 is stopping it");
}

#[test]
fn every_kind_of_event_is_remembered_as_it_was() {
    let mut stage = Stage::new();
    stage.mark("pm2:1", A, Draining);
    stage.mark("pm2:1", A, Up);
    stage.mark("pm2:1", B, Down);
    stage.sweep_after(10_000);
    let events = stage.table().recall(0).events;
    let told: Vec<_> = events.iter().map(|event| (event.kind, event.from, event.to)).collect();
    assert_eq!(
        told,
        [
            (EventKind::Mark, Some(Up), Some(Draining)),
            (EventKind::Ready, Some(Draining), Some(Up)),
            (EventKind::Mark, Some(Up), Some(Down)),
            (EventKind::Lapse, Some(Down), Some(Up)),
        ]
    );
    let counts = stage.table().header.told();
    assert_eq!((counts.mark, counts.ready, counts.lapse, counts.pause, counts.resume), (2, 1, 1, 0, 0));
}

#[test]
fn new_events_take_the_place_of_the_oldest_and_stay_in_order() {
    let stage = Stage::new();
    for round in 0..40 {
        stage.mark("pm2:1", A, if round % 2 == 0 { Draining } else { Up });
    }
    let recalled = stage.table().recall(0);
    let seqs: Vec<_> = recalled.events.iter().map(|event| event.seq).collect();
    assert_eq!((seqs, recalled.next), ((25..=40).collect(), 40));
}

#[test]
fn a_reader_goes_on_where_it_stopped() {
    let stage = Stage::new();
    assert_eq!(stage.table().recall(0).next, 0);
    for (state, after) in [(Draining, 0), (Down, 1), (Up, 2)] {
        stage.mark("pm2:1", A, state);
        let recalled = stage.table().recall(after);
        assert_eq!((recalled.events.len(), recalled.next), (1, after + 1));
    }
    assert_eq!(stage.table().recall(3).next, 3, "nothing new, nothing missed");
}
