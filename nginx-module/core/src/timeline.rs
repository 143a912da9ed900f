//! The last deploys, put together from the events.
//!
//! Nobody says that a deploy begins or ends: `pm2 reload` is a word that only PM2 hears. What nginx sees is that peers leave
//! `up` and come back. So a deploy is a stretch of time: it begins with a peer that leaves `up`, goes on for as long as one of
//! its peers is away or another one follows soon, and ends when the last one is back. An operator's drain and a worker that
//! died are told in the same way; their owners and reasons say what it was.

use crate::control::Moment;
use crate::table::Table;
use handoff_wire::{Deploy, Event, EventKind, Events, Owner, OwnerKind, State, Step, Timeline, Track};

/// Whoever leaves so soon after another one came back, in milliseconds, belongs to the same deploy.
const SOON: u64 = 5_000;

pub fn timeline(table: &Table<'_>, now: Moment) -> Timeline {
    let Events { instance, events, .. } = table.recall(0);
    Timeline { instance, generation: table.header.generation(), now: now.unix, deploys: deploys(events) }
}

/// Of events in their order.
pub fn deploys(events: Vec<Event>) -> Vec<Deploy> {
    let mut deploys = Vec::new();
    for event in events {
        match event.kind {
            // A peer that is new is no deploy, and nobody waits for one that is gone.
            EventKind::Add => continue,
            EventKind::Remove => {
                leave(&mut deploys, &event);
                continue;
            }
            _ => {}
        }
        // A pause is about no peer.
        let Some(to) = event.to.filter(|_| !event.peer.is_empty()) else { continue };
        match home(&mut deploys, &event) {
            Some(deploy) => take(deploy, event, to),
            // What it came back from is forgotten.
            None if to == State::Up => {}
            None => deploys.push(begin(event, to)),
        }
    }
    deploys
}

/// The deploys of the upstream go on without a peer that was removed while it was away.
fn leave(deploys: &mut Vec<Deploy>, event: &Event) {
    for deploy in deploys.iter_mut().filter(|deploy| deploy.upstream == event.upstream) {
        deploy.peers.retain(|track| track.peer != event.peer || track.state() == State::Up);
        let is_over = deploy.peers.iter().all(|track| track.state() == State::Up);
        if is_over && deploy.ended.is_none() {
            deploy.ended = Some(event.at);
        }
    }
    deploys.retain(|deploy| !deploy.peers.is_empty());
}

/// Where the event belongs.
fn home<'a>(deploys: &'a mut [Deploy], event: &Event) -> Option<&'a mut Deploy> {
    let is_its = |deploy: &Deploy| deploy.upstream == event.upstream;
    let is_away = |deploy: &Deploy| {
        deploy.peers.iter().any(|track| track.peer == event.peer && track.state() != State::Up)
    };
    let of_peer = deploys.iter().rposition(|deploy| is_its(deploy) && is_away(deploy));
    let newest = || deploys.iter().rposition(is_its);
    let place = of_peer.or_else(newest)?;
    let deploy = deploys.get_mut(place)?;
    (of_peer.is_some() || follows(deploy, event)).then_some(deploy)
}

/// Whether a peer that was not away yet leaves in the course of this deploy.
fn follows(deploy: &Deploy, event: &Event) -> bool {
    let last = deploy.peers.iter().filter_map(|track| track.steps.last()).map(|step| step.at).max();
    event.to != Some(State::Up)
        && event.at <= last.unwrap_or(deploy.began).saturating_add(SOON)
        && (deploy.ended.is_none() || !is_another_rollout(deploy, &event.owner))
}

/// Each roll-out has an id, and whoever begins one means a deploy of its own.
fn is_another_rollout(deploy: &Deploy, owner: &Owner) -> bool {
    let is_rollout = |owner: &&Owner| owner.kind() == OwnerKind::Rollout;
    is_rollout(&owner) && deploy.owners.iter().filter(is_rollout).any(|known| known != owner)
}

fn begin(event: Event, to: State) -> Deploy {
    let mut deploy = Deploy {
        upstream: event.upstream.clone(),
        began: event.at,
        ended: None,
        owners: Vec::new(),
        peers: Vec::new(),
    };
    take(&mut deploy, event, to);
    deploy
}

fn take(deploy: &mut Deploy, event: Event, to: State) {
    let Event { at, kind, peer, owner, in_flight, reason, .. } = event;
    if !deploy.owners.contains(&owner) {
        deploy.owners.push(owner);
    }
    let place = deploy.peers.iter().position(|track| track.peer == peer).unwrap_or(deploy.peers.len());
    if place == deploy.peers.len() {
        deploy.peers.push(Track { peer, reason: String::new(), in_flight, lapsed: 0, steps: Vec::new() });
    }
    if let Some(track) = deploy.peers.get_mut(place) {
        track.lapsed = track.lapsed.saturating_add((kind == EventKind::Lapse).into());
        if track.reason.is_empty() && kind == EventKind::Mark {
            track.reason = reason;
        }
        if track.steps.last().is_none_or(|step| step.state != to) {
            track.steps.push(Step { at, state: to });
        }
    }
    let is_over = deploy.peers.iter().all(|track| track.state() == State::Up);
    deploy.ended = is_over.then_some(at);
}
