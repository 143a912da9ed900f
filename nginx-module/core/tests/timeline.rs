//! Events become deploys, as a person would group them.

#![allow(clippy::indexing_slicing, clippy::unwrap_used, reason = "a test says so by failing")]

use handoff_core::timeline::deploys;
use handoff_wire::State::*;
use handoff_wire::{Deploy, Event, EventKind, State};

const PM2: &str = "pm2:/home/shop/.pm2";

fn event(at: u64, peer: &str, owner: &str, to: State) -> Event {
    Event {
        seq: at,
        at,
        kind: if to == Up { EventKind::Ready } else { EventKind::Mark },
        upstream: "app".into(),
        peer: peer.into(),
        owner: owner.parse().unwrap(),
        from: Some(Up),
        to: Some(to),
        in_flight: at % 10,
        reason: format!("{peer} {to}"),
    }
}

/// Of each deploy: from when to when, and its peers with what they were.
type Told = (u64, Option<u64>, Vec<(String, Vec<(u64, State)>)>);

fn told(deploys: &[Deploy]) -> Vec<Told> {
    let track = |track: &handoff_wire::Track| {
        (track.peer.clone(), track.steps.iter().map(|step| (step.at, step.state)).collect())
    };
    let all = deploys.iter();
    all.map(|deploy| (deploy.began, deploy.ended, deploy.peers.iter().map(track).collect())).collect()
}

#[test]
fn workers_that_are_replaced_one_after_the_other_are_one_deploy() {
    let events = vec![
        event(1001, "a", PM2, Draining),
        event(1500, "a", PM2, Down),
        event(2000, "a", PM2, Checking),
        event(2500, "a", PM2, Up),
        event(3003, "b", PM2, Draining),
        event(3500, "b", PM2, Up),
    ];
    let deploys = deploys(events);
    let a = vec![(1001, Draining), (1500, Down), (2000, Checking), (2500, Up)];
    let b = vec![(3003, Draining), (3500, Up)];
    assert_eq!(told(&deploys), [(1001, Some(3500), vec![("a".into(), a), ("b".into(), b)])]);
    let first: Vec<_> =
        deploys[0].peers.iter().map(|track| (track.reason.as_str(), track.in_flight)).collect();
    assert_eq!(first, [("a draining", 1), ("b draining", 3)], "of the first mark, not of the last");
}

#[test]
fn what_begins_later_is_another_deploy_and_so_is_another_upstream() {
    let mut other = event(2500, "x", PM2, Down);
    other.upstream = "other".into();
    let events = vec![
        event(1000, "a", PM2, Down),
        event(2000, "a", PM2, Up),
        other,
        event(7000, "b", PM2, Down),
        event(8000, "b", PM2, Up),
        event(13_001, "a", PM2, Down),
    ];
    let began: Vec<_> = deploys(events).into_iter().map(|it| (it.upstream, it.began, it.ended)).collect();
    let app = |began, ended| ("app".to_owned(), began, ended);
    assert_eq!(began, [app(1000, Some(8000)), ("other".into(), 2500, None), app(13_001, None)]);
}

#[test]
fn a_second_roll_out_is_a_deploy_of_its_own_however_soon_it_comes() {
    let events = vec![
        event(1000, "a", "rollout:1", Draining),
        event(1100, "a", PM2, Down),
        event(2000, "a", "rollout:1", Up),
        event(2100, "a", "rollout:2", Draining),
        event(2200, "a", "rollout:2", Up),
        event(2300, "a", PM2, Draining),
    ];
    let deploys = deploys(events);
    let owners: Vec<Vec<&str>> =
        deploys.iter().map(|it| it.owners.iter().map(handoff_wire::Owner::as_str).collect()).collect();
    assert_eq!(owners, [vec!["rollout:1", PM2], vec!["rollout:2", PM2]]);
    assert_eq!(told(&deploys)[0].1, Some(2000));
}

#[test]
fn a_peer_that_is_away_for_long_takes_no_later_deploy_with_it() {
    let events = vec![
        event(1000, "a", "operator", Draining),
        event(90_000, "b", PM2, Down),
        event(91_000, "b", PM2, Up),
        event(200_000, "a", "operator", Up),
    ];
    let spans: Vec<_> = told(&deploys(events)).into_iter().map(|(began, ended, _)| (began, ended)).collect();
    assert_eq!(spans, [(1000, Some(200_000)), (90_000, Some(91_000))]);
}

#[test]
fn a_silent_owner_is_told() {
    let mut lapse = event(11_000, "a", PM2, Up);
    lapse.kind = EventKind::Lapse;
    let deploys = deploys(vec![event(1000, "a", PM2, Draining), lapse]);
    assert_eq!((deploys[0].peers[0].lapsed, deploys[0].ended), (1, Some(11_000)));
}

#[test]
fn what_is_forgotten_is_not_made_up() {
    let mut pause = event(500, "", "operator", Down);
    (pause.to, pause.kind) = (None, EventKind::Pause);
    assert_eq!(deploys(vec![event(400, "a", PM2, Up), pause]), []);
    // Marks of two owners: the peer is what the worse of them says.
    let twice =
        vec![event(1000, "a", PM2, Down), event(1001, "a", "operator", Down), event(1002, "a", PM2, Down)];
    assert_eq!(told(&deploys(twice)), [(1000, None, vec![("a".into(), vec![(1000, Down)])])]);
}
