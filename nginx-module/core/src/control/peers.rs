//! Peers that come and go while nginx runs.
//!
//! A peer that is added gets one of the slots that `handoff_slots` reserved for its upstream, and is a peer like any other from
//! then on. One that is removed begins no request any more once that is acknowledged; its slot is free when its last request is
//! over.

use super::{Applied, Control, Slots, World, check_reason, find, unknown_upstream};
use crate::endpoint::Endpoint;
use crate::floor::{self, Leaver};
use crate::slot::Slot;
use crate::table::SlotId;
use crate::tenancy::{Tenure, Terms};
use handoff_wire::{Code, EventKind, PeerAck, PeerAdd, PeerRemove, Refusal};

/// The heaviest peer: a balancer that hashes makes 160 points of each unit.
const MAX_WEIGHT: u32 = 1000;

impl<'a, W: World> Control<'a, W> {
    /// `POST /v1/upstreams/{upstream}/peers`
    pub fn add(mut self, upstream: &str, add: &PeerAdd) -> Result<Applied<PeerAck>, Refusal> {
        let at = Endpoint::parse(&add.peer)
            .map_err(|invalid| Code::BadRequest.says(format!("the peer {:?}: {invalid}", add.peer)))?;
        let terms = terms(add)?;
        check_reason(&add.reason, &format!("{:?}", add.peer))?;
        let slots = self.slots_of(upstream)?;
        if !slots.weighs && terms.weight != 1 {
            return Err(Code::BadRequest.says(format!(
                "the weight {} of {:?}: before nginx 1.27.3 \"random\" and \"hash … consistent\" know the weights of the \
                 configuration only; leave it out",
                terms.weight, add.peer
            )));
        }
        let slots = slots.ids;
        let known = self.known(upstream, &at);
        if let Some((id, slot)) = known {
            if !slots.contains(&id) {
                return Err(Code::Configured.says(format!(
                    "nginx.conf names the peer {at} in the upstream {upstream:?}: it is there already"
                )));
            }
            let was = (slot.tenancy.tenure(), slot.tenancy.terms());
            if was == (Tenure::Taken, terms) {
                return Ok(self.answer(upstream, id, slot, false));
            }
            slot.keep(&terms, &add.owner);
            return Ok(self.added(upstream, id, slot, add));
        }
        let Some((id, slot)) = self.vacancy(&slots) else { return Err(self.full(upstream, &slots)) };
        slot.let_to(&at, &terms, &add.owner, self.world.connections());
        Ok(self.added(upstream, id, slot, add))
    }

    /// `DELETE /v1/upstreams/{upstream}/peers/{peer}`
    pub fn remove_peer(
        mut self,
        upstream: &str,
        peer: &str,
        remove: &PeerRemove,
    ) -> Result<Applied<PeerAck>, Refusal> {
        check_reason(&remove.reason, &format!("{peer:?}"))?;
        let known = Endpoint::parse(peer).ok().and_then(|at| self.known(upstream, &at));
        let (id, slot) = match known {
            Some(known) => known,
            None => {
                let id = find(&self.table, upstream, peer)?;
                let gone =
                    || Code::PeerNotFound.says(format!("the upstream {upstream:?} has no peer {peer:?}"));
                (id, self.table.slot(id).ok_or_else(gone)?)
            }
        };
        match slot.tenancy.tenure() {
            Tenure::Taken => {}
            Tenure::Leaving => return Ok(self.answer(upstream, id, slot, false)),
            Tenure::Vacant | Tenure::Configured => {
                return Err(Code::Configured.says(format!(
                    "nginx.conf names the peer {peer} in the upstream {upstream:?}: take its server out there, and reload \
                     nginx; or drain it"
                )));
            }
        }
        if remove.owner.kind().is_choice() && !remove.force {
            floor::check(&self.table, self.world, &[Leaver { slot: id, back_within: None }])?;
        }
        slot.tenancy.leave();
        self.follow(id, slot, EventKind::Remove, remove.owner.clone(), &remove.reason, false);
        slot.forget_marks();
        self.announce();
        Ok(self.answer(upstream, id, slot, true))
    }

    fn added(&mut self, upstream: &str, id: SlotId, slot: &Slot, add: &PeerAdd) -> Applied<PeerAck> {
        // Nobody is punished for what was before: not for another peer's failures either.
        self.follow(id, slot, EventKind::Add, add.owner.clone(), &add.reason, true);
        self.announce();
        self.answer(upstream, id, slot, true)
    }

    /// Every process brings nginx's lists up to date at its next request.
    fn announce(&self) {
        let header = self.table.header;
        header.ready(header.bump());
    }

    fn slots_of(&self, upstream: &str) -> Result<Slots, Refusal> {
        if let Some(slots) = self.world.slots(upstream) {
            return Ok(slots);
        }
        if !self.world.upstreams().iter().any(|name| name == upstream) {
            return Err(unknown_upstream(upstream));
        }
        Err(Code::NoSlots.says(format!(
            "the upstream {upstream:?} has no room for peers that are added: say \"handoff_slots 8;\" in it, and reload nginx"
        )))
    }

    /// The slot of a peer that is there, or was and has requests still.
    fn known(&self, upstream: &str, at: &Endpoint) -> Option<(SlotId, &'a Slot)> {
        let slots = self.table.ids().filter_map(|id| Some((id, self.table.slot(id)?)));
        let mut its = slots.filter(|(_, slot)| slot.is_of(upstream));
        its.find(|(id, slot)| self.is_there(*id, slot) && Endpoint::parse(&slot.address()).as_ref() == Ok(at))
    }

    fn is_there(&self, id: SlotId, slot: &Slot) -> bool {
        match slot.tenancy.tenure() {
            Tenure::Configured => self.world.peers(&slot.upstream()).iter().any(|peer| peer.slot == id),
            Tenure::Taken => true,
            Tenure::Leaving => self.table.settle(id, &self.living) > 0,
            Tenure::Vacant => false,
        }
    }

    /// A slot that nobody has, of a peer whose last request is over.
    fn vacancy(&self, slots: &[SlotId]) -> Option<(SlotId, &'a Slot)> {
        let mut slots = slots.iter().filter_map(|&id| Some((id, self.table.slot(id)?)));
        slots.find(|(id, slot)| {
            matches!(slot.tenancy.tenure(), Tenure::Vacant | Tenure::Leaving)
                && self.table.settle(*id, &self.living) == 0
        })
    }

    fn full(&self, upstream: &str, slots: &[SlotId]) -> Refusal {
        if let Some(room) = self.table.room_of(upstream) {
            room.count_without_slot();
        }
        let tenure = |id: &&SlotId| self.table.slot(**id).map(|slot| slot.tenancy.tenure());
        let leaving = slots.iter().filter(|id| tenure(id) == Some(Tenure::Leaving)).count();
        let still = match leaving {
            0 => String::new(),
            leaving => format!("; {leaving} of them by peers that were removed and have requests still"),
        };
        Code::SlotsFull.says(format!(
            "all {} slots of the upstream {upstream:?} are taken{still}: remove a peer, or say more in \"handoff_slots\" and \
             reload nginx",
            slots.len()
        ))
    }

    fn answer(&mut self, upstream: &str, id: SlotId, slot: &Slot, changed: bool) -> Applied<PeerAck> {
        let header = self.table.header;
        let ack = PeerAck {
            instance: header.instance(),
            generation: header.generation(),
            upstream: upstream.to_owned(),
            peer: slot.address(),
            changed,
            state: slot.gate.state(),
            in_flight: self.table.settle(id, &self.living),
        };
        Applied { ack, events: std::mem::take(&mut self.events) }
    }
}

fn terms(add: &PeerAdd) -> Result<Terms, Refusal> {
    let PeerAdd { peer, weight, max_fails, fail_timeout, max_conns, .. } = add;
    if !(1..=MAX_WEIGHT).contains(weight) {
        return Err(Code::BadRequest
            .says(format!("the weight {weight} of {peer:?} is not between 1 and {MAX_WEIGHT}")));
    }
    let millis = fail_timeout.as_millis();
    if !millis.is_multiple_of(1000) {
        return Err(Code::BadRequest.says(format!(
            "the fail_timeout {fail_timeout} of {peer:?} is not one of whole seconds, in which nginx counts"
        )));
    }
    Ok(Terms {
        weight: *weight,
        max_fails: *max_fails,
        max_conns: *max_conns,
        fail_timeout: millis.checked_div(1000).unwrap_or_default(),
    })
}
