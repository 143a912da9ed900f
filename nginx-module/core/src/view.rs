//! What the API shows of the table.

use crate::control::{Moment, Standing, World};
use crate::mark::Mark;
use crate::room::Room;
use crate::slot::Slot;
use crate::table::{RowId, SlotId, Table};
use crate::tenancy::Tenure;
use handoff_wire::{
    Drained, PeerState, PeerView, ProcessView, Quiet, SlotsView, Span, State, UncoveredView, UpstreamView,
    Upstreams,
};
use std::collections::{BTreeMap, HashMap};

/// Every upstream that takes part. A peer which the configuration no longer names stays for as long as it matters.
pub fn upstreams<W: World>(table: &Table<'_>, world: &W, now: Moment) -> Upstreams {
    let living = table.living(|process| world.alive(process));
    let mut slots = HashMap::<String, Vec<SlotId>>::new();
    for (id, slot) in table.ids().filter_map(|id| Some((id, table.slot(id)?))) {
        if slot.seen() != 0 {
            slots.entry(slot.upstream()).or_default().push(id);
        }
    }
    let views = world.upstreams().into_iter().map(|name| {
        let slots = slots.remove(&name).unwrap_or_default();
        one(table, world, now, name, slots, &living)
    });
    let upstreams = views.collect();
    Upstreams { instance: table.header.instance(), generation: table.header.generation(), upstreams }
}

pub fn upstream<W: World>(table: &Table<'_>, world: &W, now: Moment, name: &str) -> UpstreamView {
    let living = table.living(|process| world.alive(process));
    let slots = table.ids().filter(|&id| table.slot(id).is_some_and(|slot| slot.is_of(name))).collect();
    one(table, world, now, name.to_owned(), slots, &living)
}

/// With these slots, in their order.
fn one<W: World>(
    table: &Table<'_>,
    world: &W,
    now: Moment,
    name: String,
    slots: Vec<SlotId>,
    living: &[RowId],
) -> UpstreamView {
    let slow_start = world.slow_start(&name);
    let mut standings = HashMap::new();
    for standing in world.peers(&name) {
        standings.entry(standing.slot).or_insert(standing);
    }
    let peers = slots.into_iter().filter_map(|id| {
        let (slot, standing) = (table.slot(id)?, standings.get(&id));
        let in_flight = table.settle(id, living);
        let matters = standing.is_some() || slot.has_marks() || in_flight > 0;
        matters.then(|| peer(slot, standing, in_flight, slow_start, now))
    });
    let peers: Vec<PeerView> = peers.collect();
    let active = peers.iter().map(|peer| peer.in_flight).sum();
    let room = table.room_of(&name);
    let holds = world.queue(&name).and_then(|queue| Some((room?, queue)));
    let pause = holds.and_then(|(room, _)| room.pause.view(now));
    let queue = holds.map(|(room, queue)| room.view(&queue));
    let retry = room.map(|room| room.retry_view(world.retry(&name), active));
    let slots = slots_view(table, world, &name, room.map_or(0, Room::without_slot), living);
    UpstreamView { name, peers, queue, pause, retry, slow_start, slots }
}

fn slots_view<W: World>(
    table: &Table<'_>,
    world: &W,
    name: &str,
    refused: u64,
    living: &[RowId],
) -> Option<SlotsView> {
    let slots = world.slots(name)?.ids;
    let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    let tenure = move |id: SlotId| table.slot(id).map(|slot| slot.tenancy.tenure());
    let count = |is: Tenure| slots.iter().filter(move |&&id| tenure(id) == Some(is));
    let leaving = count(Tenure::Leaving).filter(|&&id| table.settle(id, living) > 0);
    Some(SlotsView {
        max: number(slots.len()),
        taken: number(count(Tenure::Taken).count()),
        leaving: number(leaving.count()),
        refused,
    })
}

/// What a peer is, by its marks and by nginx's own verdict.
pub(crate) fn state(slot: &Slot, standing: Option<&Standing>) -> PeerState {
    match slot.gate.state() {
        state if state.serves() && standing.is_some_and(|standing| standing.unavail) => PeerState::Unavail,
        state if state.serves() && standing.is_some_and(|standing| !standing.available) => PeerState::Down,
        state => state.into(),
    }
}

fn peer(
    slot: &Slot,
    standing: Option<&Standing>,
    in_flight: u64,
    slow_start: Option<Span>,
    now: Moment,
) -> PeerView {
    PeerView {
        address: slot.address(),
        state: state(slot, standing),
        marks: slot.marks().iter().filter_map(|mark: &Mark| mark.view(now)).collect(),
        in_flight,
        requests: slot.requests(),
        responses: slot.answers.view(),
        timing: slot.timing.view(),
        fails: slot.fails(),
        cut: slot.cut(),
        refused: slot.refused(),
        outage: slot.outage.view(now),
        retired_before: slot.retired_before(),
        configured: standing.is_some(),
        dynamic: slot.tenancy.is_dynamic(),
        added_by: slot.added_by(),
        weight: standing.map_or(0, |standing| standing.weight),
        backup: standing.is_some_and(|standing| standing.backup),
        slow_start: slow_start.and_then(|length| slot.ramp.view(length, now)),
    }
}

pub fn drained<W: World>(table: &Table<'_>, world: &W, id: SlotId) -> Drained {
    let state = table.slot(id).map_or(State::Up, |slot| slot.gate.state());
    let in_flight = table.settle(id, &table.living(|process| world.alive(process)));
    Drained { drained: !state.begins_requests() && in_flight == 0, state, in_flight }
}

/// Whether an upstream is paused, and nothing is in flight there any more.
pub fn quiet<W: World>(table: &Table<'_>, world: &W, now: Moment, name: &str) -> Quiet {
    let room = world.queue(name).and_then(|_| table.room_of(name));
    let left = room.and_then(|room| room.pause.view(now)).map(|pause| pause.left);
    let in_flight = table.settle_all(name, &table.living(|process| world.alive(process)));
    Quiet { quiet: left.is_some() && in_flight == 0, in_flight, left }
}

pub fn processes<W: World>(table: &Table<'_>, world: &W) -> Vec<ProcessView> {
    let living = table.living(|process| world.alive(process));
    let views = living.into_iter().map(|row| ProcessView {
        pid: table.row_process(row).map_or(0, |process| process.pid),
        in_flight: table.row_in_flight(row),
    });
    // The shared row is shown only when it is used.
    views.filter(|view| view.pid != 0 || view.in_flight > 0).collect()
}

/// Of all the ways around a peer's marks one is named: a list that is no longer than that of the peers. Each way is a peer
/// and who passes to it.
pub fn uncovered(ways: impl IntoIterator<Item = (String, String)>) -> Vec<UncoveredView> {
    let mut views = BTreeMap::<String, UncoveredView>::new();
    for (peer, by) in ways {
        match views.get_mut(&peer) {
            Some(view) => view.more = view.more.saturating_add(1),
            None => _ = views.insert(peer.clone(), UncoveredView { peer, by, more: 0 }),
        }
    }
    views.into_values().collect()
}
