//! A command is done whole or not at all, and whoever is refused reads why.

mod common;

use common::*;
use handoff_core::control::MAX_MARKS;
use handoff_core::mark::MAX_REASON;
use handoff_core::slot::MARKS;
use handoff_wire::State::*;
use handoff_wire::{Code, Expect, MarkRequest, MarkSet};

fn reason(reason: String) -> MarkRequest {
    MarkRequest { reason, ..request(A, Draining) }
}

#[test]
fn every_refusal_says_what_is_wrong() {
    let elsewhere = Some("elsewhere".to_owned());
    let cases: [(Vec<MarkRequest>, Code, &str); 12] = [
        (vec![], Code::BadRequest, "must name 1 to 256 peers"),
        (vec![request(A, Draining); MAX_MARKS + 1], Code::BadRequest, "must name 1 to 256 peers"),
        (vec![request(A, Draining), request(A, Up)], Code::BadRequest, "names the peer 10.0.0.1:3000 twice"),
        (
            vec![request(A, Draining), MarkRequest { upstream: None, ..request(A, Draining) }],
            Code::BadRequest,
            "names the peer 10.0.0.1:3000 twice",
        ),
        (vec![reason("x".repeat(MAX_REASON + 1))], Code::BadRequest, "one line of at most 128 bytes"),
        (vec![reason("two\nlines".into())], Code::BadRequest, "one line of at most 128 bytes"),
        (
            vec![MarkRequest { all: true, ..request(A, Down) }],
            Code::BadRequest,
            "\"all\" for \"10.0.0.1:3000\" goes with \"state\":\"up\" only",
        ),
        (
            vec![MarkRequest { expect: Expect::Back, ..request(A, Up) }],
            Code::BadRequest,
            "does not go with \"state\":\"up\"",
        ),
        (
            vec![request("10.9.9.9:1", Draining)],
            Code::PeerNotFound,
            "the upstream \"app\" has no peer \"10.9.9.9:1\"",
        ),
        (
            vec![MarkRequest { upstream: None, ..request("10.9.9.9:1", Draining) }],
            Code::PeerNotFound,
            "no upstream with the directive \"handoff\" has a peer \"10.9.9.9:1\"",
        ),
        (
            vec![MarkRequest { upstream: elsewhere, ..request(A, Draining) }],
            Code::UpstreamNotFound,
            "there is no upstream \"elsewhere\" with the directive \"handoff\"",
        ),
        (vec![request("", Draining)], Code::PeerNotFound, "has no peer \"\""),
    ];
    for (marks, code, says) in cases {
        let stage = Stage::new();
        // First something that could be done: it must not be.
        let mut marks = marks;
        if (1..MAX_MARKS).contains(&marks.len()) {
            marks.insert(0, request(B, Draining));
        }
        let generation = stage.table().header.generation();
        let refusal = stage.put(&MarkSet { marks, ..set("pm2:1", &[]) }).expect_err(says);
        assert!(refusal.code == code && refusal.text.contains(says), "{refusal}");
        assert_eq!((stage.marks(B), stage.table().header.generation()), (vec![], generation), "{says}");
    }
}

#[test]
fn the_limits_themselves_are_allowed() {
    let stage = Stage::new();
    let marks = vec![reason("x".repeat(MAX_REASON))];
    stage.put(&MarkSet { marks, ..set("pm2:1", &[]) }).unwrap();
    assert_eq!(stage.marks(A)[0].reason.len(), MAX_REASON);

    let peers: Vec<String> = (0..MAX_MARKS).map(|port| format!("10.0.0.1:{port}")).collect();
    let zone = Zone::with(MAX_MARKS, 1);
    for peer in &peers {
        zone.table().register(APP, peer, 1, |_| false).unwrap();
    }
    let marks: Vec<_> = peers.iter().map(|peer| (peer.as_str(), Draining)).collect();
    let world = Script::default();
    let control = handoff_core::control::Control::begin(zone.table(), &world, moment(1));
    assert_eq!(control.mark(&set("pm2:1", &marks)).unwrap().ack.marks.len(), MAX_MARKS);
}

#[test]
fn a_peer_full_of_marks_takes_no_other_owner_but_lets_its_owners_go_on() {
    let stage = Stage::new();
    for owner in 0..MARKS {
        stage.mark(&format!("pm2:{owner}"), A, Draining);
    }
    let refusal = stage.put(&set("operator", &[(B, Down), (A, Down)])).unwrap_err();
    assert_eq!((refusal.code, refusal.status), (Code::MarksFull, 507));
    assert!(refusal.text.contains("8 owners have a mark on the peer 10.0.0.1:3000 already"), "{refusal}");
    assert_eq!(stage.marks(B), []);

    stage.put(&set("operator", &[(A, Up)])).unwrap();
    stage.mark("pm2:3", A, Down);
    stage.mark("pm2:3", A, Up);
    stage.mark("operator", A, Down);
    assert_eq!(stage.marks(A).len(), MARKS);
}

#[test]
fn a_renewal_of_an_unknown_peer_is_refused_and_of_nothing_is_not() {
    let stage = Stage::new();
    assert_eq!(stage.fence("pm2:1", &[("10.9.9.9:1", 1)]).unwrap_err().code, Code::PeerNotFound);
    assert_eq!(stage.renew("pm2:1").ack.marks, []);
    assert_eq!(stage.fence("pm2:1", &[]).unwrap().ack.marks, []);
}
