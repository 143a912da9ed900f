//! The control path: an owner sets a mark, renews it, takes it away, or falls silent. Or it pauses an upstream.
//!
//! Everything here runs under the shell's control lock, one writer at a time. A command is checked whole before any of it
//! is done; then marks change, gates follow, and only then is the ledger read for the acknowledgement.

mod pause;
mod peers;

use crate::floor::{self, Leaver};
use crate::hold::Queue;
use crate::mark::{Claim, MAX_REASON, Mark, Service};
use crate::orphan::{ORPHANS, Orphan};
use crate::retry::Budget;
use crate::slot::Slot;
use crate::slow_start;
use crate::table::{Process, RowId, SlotId, Table};
use handoff_wire::{
    Ack, AckedMark, Code, DEFAULT_LEASE, Event, EventKind, Expect, MAX_LEASE, MIN_LEASE, MarkRequest,
    MarkSet, OrphanSet, Owner, OwnerKind, Refusal, Renew, Span, State,
};
use std::collections::HashMap;

/// Both clocks, in milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// Never goes back, and is the same for all processes of the machine.
    pub mono: u64,
    /// Since 1970.
    pub unix: u64,
}

/// What only the shell can know.
pub trait World {
    fn alive(&self, process: Process) -> bool;
    /// The peers that the running configuration names in an upstream.
    fn peers(&self, upstream: &str) -> Vec<Standing>;
    /// The upstreams of the running configuration.
    fn upstreams(&self) -> Vec<String>;
    /// nginx's connection counter: the number of the next connection.
    fn connections(&self) -> u64;
    /// How requests for an upstream of the running configuration wait, if they do.
    fn queue(&self, upstream: &str) -> Option<Queue>;
    /// The slots that the running configuration has in an upstream for peers that are added; `None` without `handoff_slots`.
    fn slots(&self, upstream: &str) -> Option<Slots>;
    /// How many requests for it are repeated at most, if any are that nginx alone would not repeat.
    fn retry(&self, upstream: &str) -> Option<Budget>;
    /// How long a new worker of it takes to get its whole share, if that takes any time.
    fn slow_start(&self, upstream: &str) -> Option<Span>;
}

/// What an upstream has for peers that are added.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slots {
    pub ids: Vec<SlotId>,
    /// Whether its balancer minds the weights of such peers.
    pub weighs: bool,
}

/// How nginx itself regards a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    pub slot: SlotId,
    pub backup: bool,
    pub weight: u32,
    /// Not `down` in the configuration and not left out for its failures.
    pub available: bool,
    /// Left out for its failures.
    pub unavail: bool,
    /// Has as many connections as it may have.
    pub full: bool,
}

// === impl Standing ===

impl Standing {
    /// Whether the configuration says `down`. Such a peer has no failures.
    pub fn is_taken_out(&self) -> bool {
        !self.available && !self.unavail
    }
}

/// What a command did: the answer, and what is to be logged.
#[derive(Clone, Debug)]
pub struct Applied<A = Ack> {
    pub ack: A,
    pub events: Vec<Event>,
}

/// How many marks one command may name.
pub const MAX_MARKS: usize = 256;

/// One command, or one sweep, at one moment.
pub struct Control<'a, W> {
    table: Table<'a>,
    world: &'a W,
    now: Moment,
    living: Vec<RowId>,
    events: Vec<Event>,
}

/// One mark of a command, resolved.
struct Target<'a> {
    id: SlotId,
    slot: &'a Slot,
    request: &'a MarkRequest,
}

/// Why a mark is taken away.
#[derive(Clone, Copy)]
struct Removal<'a> {
    kind: EventKind,
    reason: &'a str,
    /// Whether nginx's passive failures are to be forgotten: it completes a replacement that was planned, or nobody else
    /// could serve.
    forgives: bool,
}

impl<'a, W: World> Control<'a, W> {
    /// Begins a change. The caller holds the control lock for as long as this lives.
    pub fn begin(table: Table<'a>, world: &'a W, now: Moment) -> Self {
        let living = table.living(|process| world.alive(process));
        let control = Self { table, world, now, living, events: Vec::new() };
        if table.header.begin() {
            control.recover();
        }
        control
    }

    /// `PUT /v1/marks`
    pub fn mark(mut self, set: &'a MarkSet) -> Result<Applied, Refusal> {
        check_lease(set.lease)?;
        let lease = set.lease.or_else(|| set.owner.kind().is_leased().then_some(DEFAULT_LEASE));
        let targets = self.resolve(set)?;
        if set.owner.kind().is_choice() && !set.force {
            let leaving = targets.iter().filter(|target| !target.request.state.serves());
            // Who renews its marks may stay away for ever: a roll-out waits until somebody else serves, and where all are
            // unhealthy, it is better to serve.
            let is_renewed = matches!(set.owner.kind(), OwnerKind::Rollout | OwnerKind::Health);
            let leaving = leaving.map(|target| Leaver {
                slot: target.id,
                back_within: lease.filter(|_| !is_renewed && target.request.expect == Expect::Back),
            });
            floor::check(&self.table, self.world, &leaving.collect::<Vec<_>>())?;
        }
        for target in &targets {
            self.apply(&set.owner, lease, target);
        }
        Ok(self.acknowledge(&set.owner, targets.iter().map(|target| target.id)))
    }

    /// `POST /v1/renew`
    pub fn renew(self, renew: &Renew) -> Result<Applied, Refusal> {
        check_lease(renew.lease)?;
        let held = match &renew.marks {
            None => self.table.ids().filter(|&id| self.mark_of(id, &renew.owner).is_some()).collect(),
            Some(marks) => {
                let fenced = marks.iter().map(|mark| {
                    let id = self.find(&mark.upstream, &mark.peer)?;
                    let held = self.mark_of(id, &renew.owner).is_some_and(|held| held.epoch() == mark.epoch);
                    if held { Ok(id) } else { Err(lapsed(&renew.owner, &mark.upstream, &mark.peer)) }
                });
                fenced.collect::<Result<Vec<_>, _>>()?
            }
        };
        for mark in held.iter().filter_map(|&id| self.mark_of(id, &renew.owner)) {
            // A renewal says that the owner is alive. It changes the lease only if it says so.
            mark.renew(renew.lease.or(mark.lease()), self.now);
        }
        Ok(self.acknowledge(&renew.owner, held.into_iter()))
    }

    /// `POST /v1/orphans`
    pub fn orphans(self, set: &OrphanSet) -> Result<Applied, Refusal> {
        if set.connections.is_empty() || set.connections.len() > ORPHANS {
            return Err(Code::BadRequest.says(format!("\"connections\" must name 1 to {ORPHANS} of them")));
        }
        let named = set.connections.iter().map(|connection| {
            let ids = everywhere(&self.table, &connection.peer)?;
            Ok(ids.into_iter().map(|peer| Orphan { peer, port: connection.port }))
        });
        let named: Vec<_> = named.collect::<Result<_, Refusal>>()?;
        named.into_iter().flatten().for_each(|orphan| self.table.header.orphans.tell(orphan));
        Ok(self.acknowledge(&set.owner, std::iter::empty()))
    }

    /// Takes away the marks whose owners fell silent, and tells of pauses that are over.
    pub fn sweep(mut self) -> Vec<Event> {
        let now = self.now;
        self.table.vacate_dead(&self.living);
        let table = self.table;
        table.used_rooms().for_each(|room| self.tell_lapse(room));
        let is_marked = |id| self.table.slot(id).is_some_and(Slot::has_marks);
        if !self.table.ids().any(is_marked) {
            return self.finish();
        }
        let services: HashMap<String, Service> =
            self.world.upstreams().into_iter().map(|name| (name.clone(), self.service(&name))).collect();
        for id in self.table.ids() {
            let Some(slot) = self.table.slot(id).filter(|slot| slot.has_marks()) else { continue };
            let service = services.get(&slot.upstream()).copied().unwrap_or(Service::Somebody);
            for mark in slot.marks().iter().filter(|mark| mark.has_lapsed(now, service)) {
                let reason = match service {
                    _ if mark.has_lapsed(now, Service::Somebody) => "its lease ran out",
                    Service::Missed(_) => "its owner is silent and nobody is behind those that are up",
                    _ => "its owner is silent and nobody is up",
                };
                // It says nothing of the worker: only an owner can say that a replacement is complete.
                self.remove(id, slot, mark, Removal { kind: EventKind::Lapse, reason, forgives: false });
            }
        }
        self.finish()
    }

    /// A writer died halfway: marks are whole, gates may not have followed.
    fn recover(&self) {
        for slot in self.table.ids().filter_map(|id| self.table.slot(id)) {
            self.turn(slot, slot.effective());
        }
        // Nor may nginx's lists.
        self.table.header.ready(self.table.header.bump());
    }

    fn service(&self, upstream: &str) -> Service {
        let up = self.world.peers(upstream).into_iter().filter(|peer| peer.available);
        let slots = up.filter_map(|peer| self.table.slot(peer.slot));
        slots.filter(|slot| slot.gate.state().serves()).fold(Service::Nobody, |service, slot| {
            match (service, slot.missed()) {
                (Service::Somebody, _) | (_, None) => Service::Somebody,
                (Service::Missed(since), Some(at)) => Service::Missed(since.min(at)),
                (Service::Nobody, Some(at)) => Service::Missed(at),
            }
        })
    }

    fn mark_of(&self, id: SlotId, owner: &Owner) -> Option<&'a Mark> {
        self.table.slot(id)?.mark_of(owner)
    }

    fn find(&self, upstream: &str, peer: &str) -> Result<SlotId, Refusal> {
        find(&self.table, upstream, peer)
    }

    fn resolve(&self, set: &'a MarkSet) -> Result<Vec<Target<'a>>, Refusal> {
        if set.marks.is_empty() || set.marks.len() > MAX_MARKS {
            return Err(Code::BadRequest.says(format!("\"marks\" must name 1 to {MAX_MARKS} peers")));
        }
        let mut targets: Vec<Target<'a>> = Vec::new();
        for request in &set.marks {
            check(request)?;
            let ids = match &request.upstream {
                Some(upstream) => vec![self.find(upstream, &request.peer)?],
                None => everywhere(&self.table, &request.peer)?,
            };
            for id in ids {
                let Some(slot) = self.table.slot(id) else { continue };
                if targets.iter().any(|target| target.id == id) {
                    return Err(
                        Code::BadRequest.says(format!("\"marks\" names the peer {} twice", request.peer))
                    );
                }
                let needs_room = request.state != State::Up && slot.mark_of(&set.owner).is_none();
                if needs_room && slot.free_mark().is_none() {
                    return Err(Code::MarksFull.says(format!(
                        "{} owners have a mark on the peer {} already: remove one with `handoff ready --all`",
                        slot.marks().len(),
                        request.peer
                    )));
                }
                targets.push(Target { id, slot, request });
            }
        }
        Ok(targets)
    }

    fn apply(&mut self, owner: &Owner, lease: Option<Span>, target: &Target<'a>) {
        let Target { id, slot, request } = *target;
        if request.state != State::Up {
            let claim =
                Claim { owner, state: request.state, expect: request.expect, reason: &request.reason, lease };
            return self.set(id, slot, &claim);
        }
        let is_leaving = |mark: &&Mark| mark.is_of(owner) || (request.all && mark.state().is_some());
        let leaving = || slot.marks().iter().filter(is_leaving);
        let forgives = leaving().any(Mark::planned) || self.is_alone(id, slot);
        let removal = Removal { kind: EventKind::Ready, reason: &request.reason, forgives };
        for mark in leaving() {
            self.remove(id, slot, mark, removal);
        }
    }

    fn set(&mut self, id: SlotId, slot: &Slot, claim: &Claim<'_>) {
        if slow_start::replaces(claim.owner.kind(), claim.state) {
            slot.ramp.replaced();
        }
        match slot.mark_of(claim.owner) {
            Some(mark) if mark.state() == Some(claim.state) => mark.change(claim, self.now),
            Some(mark) => {
                mark.change(claim, self.now);
                let forgives = mark.planned();
                self.follow(id, slot, EventKind::Mark, claim.owner.clone(), claim.reason, forgives);
            }
            None => {
                let Some(mark) = slot.free_mark() else { return };
                mark.begin(claim, self.table.header.next_epoch(), self.now);
                self.follow(id, slot, EventKind::Mark, claim.owner.clone(), claim.reason, false);
            }
        }
    }

    fn remove(&mut self, id: SlotId, slot: &Slot, mark: &Mark, removal: Removal<'_>) {
        let owner = mark.owner();
        mark.remove();
        if let Some(owner) = owner {
            self.follow(id, slot, removal.kind, owner, removal.reason, removal.forgives);
        }
    }

    /// Whether no other primary peer of its upstream could serve now.
    fn is_alone(&self, id: SlotId, slot: &Slot) -> bool {
        let is_open = |id| self.table.slot(id).is_some_and(|slot| slot.gate.state().serves());
        let serves =
            |peer: &Standing| peer.slot != id && !peer.backup && peer.available && is_open(peer.slot);
        !self.world.peers(&slot.upstream()).iter().any(serves)
    }

    /// Lets the gate follow the marks.
    fn follow(
        &mut self,
        id: SlotId,
        slot: &Slot,
        kind: EventKind,
        owner: Owner,
        reason: &str,
        forgives: bool,
    ) {
        let change = self.table.header.bump();
        let to = slot.effective();
        if forgives && opens(slot.gate.state(), to) {
            slot.ready(change);
            self.table.header.ready(change);
        }
        let from = self.turn(slot, to);
        let event = Event {
            seq: 0,
            at: self.now.unix,
            kind,
            upstream: slot.upstream(),
            peer: slot.address(),
            owner,
            from: Some(from),
            to: Some(to),
            in_flight: self.table.settle(id, &self.living),
            reason: reason.to_owned(),
        };
        self.events.push(self.table.remember(event));
    }

    /// Opens or closes the gate, and answers what it was.
    fn turn(&self, slot: &Slot, to: State) -> State {
        let from = slot.gate.state();
        if opens(from, to) {
            // Before anybody is let in: what was opened to the old worker is not used for the new one.
            slot.retire(self.world.connections());
            slot.ramp.begin(self.now);
            slot.absence.reset();
        }
        slot.gate.set(to);
        self.table.header.changed();
        if from == State::Up && to != State::Up {
            slot.retire(self.world.connections());
        }
        from
    }

    fn acknowledge(self, owner: &Owner, ids: impl Iterator<Item = SlotId>) -> Applied {
        let header = self.table.header;
        let marks = ids.filter_map(|id| {
            let slot = self.table.slot(id)?;
            Some(AckedMark {
                upstream: slot.upstream(),
                peer: slot.address(),
                state: slot.gate.state(),
                epoch: slot.mark_of(owner).map_or(0, Mark::epoch),
                in_flight: self.table.settle(id, &self.living),
            })
        });
        let marks = marks.collect();
        let ack = Ack { instance: header.instance(), generation: header.generation(), marks };
        Applied { ack, events: self.finish() }
    }

    fn finish(mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }
}

impl<W> Drop for Control<'_, W> {
    fn drop(&mut self) {
        self.table.header.end();
    }
}

/// Whether a gate that turns so lets somebody in who was refused before.
fn opens(from: State, to: State) -> bool {
    to < from && to.begins_requests()
}

/// The slot of a peer, or what to say to whoever asked for it.
pub fn find(table: &Table<'_>, upstream: &str, peer: &str) -> Result<SlotId, Refusal> {
    table.find(upstream, peer).ok_or_else(|| {
        if table.ids().filter_map(|id| table.slot(id)).any(|slot| slot.is_of(upstream)) {
            Code::PeerNotFound.says(format!("the upstream {upstream:?} has no peer {peer:?}"))
        } else {
            unknown_upstream(upstream)
        }
    })
}

pub fn unknown_upstream(name: &str) -> Refusal {
    Code::UpstreamNotFound.says(format!(
        "there is no upstream {name:?} with the directive \"handoff\" in nginx's configuration"
    ))
}

fn everywhere(table: &Table<'_>, peer: &str) -> Result<Vec<SlotId>, Refusal> {
    let is_it = |&id: &SlotId| table.slot(id).is_some_and(|slot| slot.is_at(peer));
    let ids: Vec<SlotId> = table.ids().filter(is_it).collect();
    if ids.is_empty() {
        return Err(Code::PeerNotFound
            .says(format!("no upstream with the directive \"handoff\" has a peer {peer:?}")));
    }
    Ok(ids)
}

fn check(request: &MarkRequest) -> Result<(), Refusal> {
    let peer = &request.peer;
    check_reason(&request.reason, &format!("{peer:?}"))?;
    if request.all && request.state != State::Up {
        return Err(Code::BadRequest.says(format!("\"all\" for {peer:?} goes with \"state\":\"up\" only")));
    }
    if request.state == State::Up && request.expect == Expect::Back {
        return Err(
            Code::BadRequest.says(format!("\"expect\" for {peer:?} does not go with \"state\":\"up\""))
        );
    }
    Ok(())
}

fn check_reason(reason: &str, of: &str) -> Result<(), Refusal> {
    if reason.len() > MAX_REASON || reason.chars().any(char::is_control) {
        return Err(Code::BadRequest
            .says(format!("the reason for {of} must be one line of at most {MAX_REASON} bytes")));
    }
    Ok(())
}

fn check_lease(asked: Option<Span>) -> Result<(), Refusal> {
    match asked {
        Some(lease) if !(MIN_LEASE..=MAX_LEASE).contains(&lease) => {
            Err(Code::BadRequest
                .says(format!("the lease {lease} is not between {MIN_LEASE} and {MAX_LEASE}")))
        }
        _ => Ok(()),
    }
}

fn lapsed(owner: &Owner, upstream: &str, peer: &str) -> Refusal {
    Code::Lapsed.says(format!(
        "the mark of {owner} on {peer} in upstream {upstream} is not the one it set: it lapsed or was removed, and nginx \
         may have used the peer since; drain it again before you stop its worker"
    ))
}
