//! What the API shows is what the table holds.

mod common;

use common::*;
use handoff_core::{outage, view};
use handoff_wire::State::*;
use handoff_wire::{OutageView, PeerState, Responses, Span, UncoveredView};

impl Stage {
    fn view(&self) -> Vec<(String, PeerState, bool)> {
        let peers = view::upstream(&self.table(), &self.world, moment(self.now), APP).peers;
        peers.into_iter().map(|peer| (peer.address, peer.state, peer.configured)).collect()
    }
}

#[test]
fn a_mark_goes_before_nginxs_own_verdict() {
    for (available, unavail, marked, shown) in [
        (true, false, Up, PeerState::Up),
        (false, true, Up, PeerState::Unavail),
        (false, false, Up, PeerState::Down),
        (false, true, Draining, PeerState::Draining),
        (false, false, Checking, PeerState::Checking),
        (false, true, Trial, PeerState::Trial),
        (true, false, Changing, PeerState::Changing),
        (false, true, Changing, PeerState::Unavail),
    ] {
        let mut stage = Stage::new();
        stage.regard(A, |peer| (peer.available, peer.unavail) = (available, unavail));
        stage.mark("pm2:1", A, marked);
        assert_eq!(stage.view()[0].1, shown, "available {available}, unavail {unavail}, marked {marked}");
    }
}

#[test]
fn a_peer_that_was_removed_is_shown_for_as_long_as_it_matters() {
    let mut stage = Stage::of(&[(APP, A), (APP, B)]);
    stage.claim(A);
    stage.mark("operator", A, Draining);
    let a = stage.id(A);
    stage.world.upstreams.get_mut(APP).unwrap().retain(|standing| standing.slot != a);
    let shown = |state| vec![(A.to_owned(), state, false), (B.to_owned(), PeerState::Up, true)];
    assert_eq!(stage.view(), shown(PeerState::Draining));
    stage.mark("operator", A, Up);
    assert_eq!(stage.view(), shown(PeerState::Up), "it still has a request");
    stage.release(A);
    assert_eq!(stage.view(), shown(PeerState::Up)[1..]);
}

#[test]
fn a_peer_is_drained_when_its_gate_is_closed_and_nobody_is_in_flight() {
    let stage = Stage::new();
    let drained = || view::drained(&stage.table(), &stage.world, stage.id(A));
    assert!(!drained().drained, "an idle peer may get a request at any moment");
    stage.claim(A);
    stage.mark("pm2:1", A, Draining);
    assert_eq!((drained().drained, drained().in_flight, drained().state), (false, 1, Draining));
    stage.release(A);
    assert!(drained().drained);
}

#[test]
fn an_idle_peer_on_trial_is_not_drained() {
    let stage = Stage::new();
    stage.mark("rollout:1", A, Trial);
    let drained = view::drained(&stage.table(), &stage.world, stage.id(A));
    assert_eq!((drained.drained, drained.in_flight, drained.state), (false, 0, Trial));
}

#[test]
fn the_death_of_a_process_completes_a_drain() {
    let mut stage = Stage::new();
    stage.claim(A);
    stage.mark("pm2:1", A, Draining);
    stage.world.alive.clear();
    assert!(view::drained(&stage.table(), &stage.world, stage.id(A)).drained);
}

#[test]
fn processes_are_shown_with_what_they_have_in_flight() {
    let stage = Stage::new();
    stage.claim(A);
    stage.claim(B);
    let shown: Vec<_> = view::processes(&stage.table(), &stage.world)
        .into_iter()
        .map(|process| (process.pid, process.in_flight))
        .collect();
    assert_eq!(shown, [(1, 2)], "the shared row only when it is used");
}

#[test]
fn answers_are_shown_at_the_peer_that_gave_them() {
    let stage = Stage::new();
    for status in [200, 200, 404, 502] {
        stage.slot(A).answers.count(status);
    }
    let peers = view::upstream(&stage.table(), &stage.world, moment(stage.now), APP).peers;
    let given = Responses { success: 2, client_error: 1, server_error: 1, ..Responses::default() };
    let shown: Vec<_> = peers.iter().map(|peer| peer.responses).collect();
    assert_eq!(shown, [given, Responses::default(), Responses::default()]);
}

#[test]
fn of_the_ways_around_a_peers_marks_one_is_named_and_the_others_are_counted() {
    let way = |peer: &str, by: &str| (peer.to_owned(), by.to_owned());
    let view = |peer: &str, by: &str, more| UncoveredView { peer: peer.into(), by: by.into(), more };
    let ways = [way(B, "one"), way(A, "one"), way(B, "two"), way(B, "three")];
    assert_eq!(view::uncovered(ways), [view(A, "one", 0), view(B, "one", 2)]);
    assert_eq!(view::uncovered([]), []);
}

#[test]
fn an_outage_is_shown_at_the_peer_that_nginx_left_out_or_whose_worker_is_not_there() {
    let mut stage = Stage::new();
    let began = moment(stage.now).unix;
    let watch = |stage: &mut Stage, after| {
        stage.now += after;
        outage::watch(&stage.table(), &stage.world, moment(stage.now));
        let peers = view::upstream(&stage.table(), &stage.world, moment(stage.now), APP).peers;
        peers.into_iter().map(|peer| peer.outage).collect::<Vec<_>>()
    };
    let none = OutageView::default();
    stage.regard(A, |peer| (peer.available, peer.unavail) = (false, true));
    stage.mark("pm2:1", B, Checking);
    stage.mark("operator", C, Draining);
    watch(&mut stage, 0);
    let out = |unavail| OutageView { unavail, downtime: Span::from_millis(250), downstart: Some(began) };
    assert_eq!(watch(&mut stage, 250), [out(1), out(0), none]);
    stage.regard(A, |peer| (peer.available, peer.unavail) = (true, false));
    stage.mark("pm2:1", B, Up);
    watch(&mut stage, 250);
    let over = |unavail| OutageView { unavail, downtime: Span::from_millis(500), downstart: None };
    assert_eq!(watch(&mut stage, 250), [over(1), over(0), none]);

    // Whoever is no longer in the configuration is not out: nobody is looking for it.
    stage.mark("pm2:1", A, Checking);
    watch(&mut stage, 250);
    stage.world.upstreams.get_mut(APP).unwrap().remove(0);
    assert_eq!(watch(&mut stage, 250)[0].downstart, None);
}
