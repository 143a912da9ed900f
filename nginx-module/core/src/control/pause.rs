//! The commands for a pause, and what is told of it.

use super::{Applied, Control, MAX_MARKS, World, check_reason, unknown_upstream};
use crate::pause::Standing;
use crate::room::Room;
use handoff_wire::{
    Code, Event, EventKind, MAX_LEASE, MIN_LEASE, Owner, Pause, PauseAck, PausedUpstream, Refusal, Resume,
    ResumeAck, ResumedUpstream, Span, Was,
};

impl<'a, W: World> Control<'a, W> {
    /// `PUT /v1/pause`
    pub fn pause(mut self, set: &Pause) -> Result<Applied<PauseAck>, Refusal> {
        check_reason(&set.reason, "the pause")?;
        if !(MIN_LEASE..=MAX_LEASE).contains(&set.max) {
            return Err(Code::BadRequest
                .says(format!("\"max\" is {}, which is not between {MIN_LEASE} and {MAX_LEASE}", set.max)));
        }
        let rooms = self.rooms(&set.upstreams)?;
        for (name, room) in &rooms {
            let room = pausable(self.world, name, *room, set)?;
            self.check_owner(name, room, &set.owner)?;
        }
        for (name, room) in rooms.iter().filter_map(|(name, room)| Some((*name, (*room)?))) {
            self.tell_lapse(room);
            if room.pause.begin(&set.owner, &set.reason, set.max, self.now) {
                self.tell_of(name, EventKind::Pause, set.owner.clone(), &set.reason);
            }
        }
        let paused = rooms.iter().filter_map(|(name, room)| {
            let left = match room.as_ref()?.pause.standing(self.now) {
                Standing::Holds(left) => Span::from_millis(left),
                Standing::None | Standing::Over => Span::default(),
            };
            let in_flight = self.table.settle_all(name, &self.living);
            Some(PausedUpstream { upstream: (*name).to_owned(), left, in_flight })
        });
        let upstreams = paused.collect();
        let header = self.table.header;
        let ack = PauseAck { instance: header.instance(), generation: header.generation(), upstreams };
        Ok(Applied { ack, events: self.finish() })
    }

    /// `POST /v1/resume`
    pub fn resume(mut self, set: &Resume) -> Result<Applied<ResumeAck>, Refusal> {
        let rooms = self.rooms(&set.upstreams)?;
        for (name, room) in rooms.iter().filter_map(|(name, room)| Some((*name, (*room)?))) {
            if !set.force {
                self.check_owner(name, room, &set.owner)?;
            }
        }
        let mut upstreams = Vec::new();
        for (name, room) in rooms {
            let was = room.map_or(Was::Running, |room| self.unpause(name, room, &set.owner));
            let held = room.map_or(0, Room::requests);
            upstreams.push(ResumedUpstream { upstream: name.to_owned(), was, held });
        }
        let header = self.table.header;
        let ack = ResumeAck { instance: header.instance(), generation: header.generation(), upstreams };
        Ok(Applied { ack, events: self.finish() })
    }

    fn unpause(&mut self, name: &str, room: &Room, owner: &Owner) -> Was {
        self.tell_lapse(room);
        let standing = room.pause.standing(self.now);
        room.pause.end();
        match standing {
            Standing::None => Was::Running,
            Standing::Over => Was::Lapsed,
            Standing::Holds(_) => {
                self.tell_of(name, EventKind::Resume, owner.clone(), "");
                Was::Paused
            }
        }
    }

    /// The upstreams of a command, and where those wait who come. None of them is named twice, or unknown.
    fn rooms<'n>(&self, names: &'n [String]) -> Result<Vec<(&'n str, Option<&'a Room>)>, Refusal> {
        if names.is_empty() || names.len() > MAX_MARKS {
            return Err(Code::BadRequest.says(format!("\"upstreams\" must name 1 to {MAX_MARKS} of them")));
        }
        let known = self.world.upstreams();
        let mut rooms: Vec<(&str, Option<&Room>)> = Vec::new();
        for name in names {
            if !known.contains(name) {
                return Err(unknown_upstream(name));
            }
            if rooms.iter().any(|(other, _)| other == name) {
                return Err(Code::BadRequest.says(format!("\"upstreams\" names {name:?} twice")));
            }
            rooms.push((name, self.table.room_of(name)));
        }
        Ok(rooms)
    }

    fn check_owner(&self, name: &str, room: &Room, owner: &Owner) -> Result<(), Refusal> {
        match room.pause.view(self.now) {
            Some(pause) if pause.owner != *owner => Err(Code::Paused.says(format!(
                "the upstream {name:?} is paused by {} ({}), for {} at most: wait until that is over, or resume it with \
                 \"force\":true",
                pause.owner, pause.reason, pause.left
            ))),
            _ => Ok(()),
        }
    }

    /// A pause that ended by itself.
    pub(super) fn tell_lapse(&mut self, room: &Room) {
        if room.pause.is_to_be_told(self.now)
            && let Some(owner) = room.pause.owner()
        {
            self.tell_of(&room.upstream(), EventKind::Lapse, owner, "its pause was over");
        }
    }

    /// Something happened to a whole upstream.
    fn tell_of(&mut self, upstream: &str, kind: EventKind, owner: Owner, reason: &str) {
        self.table.header.bump();
        self.table.header.changed();
        let event = Event {
            seq: 0,
            at: self.now.unix,
            kind,
            upstream: upstream.to_owned(),
            peer: String::new(),
            owner,
            from: None,
            to: None,
            in_flight: self.table.settle_all(upstream, &self.living),
            reason: reason.to_owned(),
        };
        self.events.push(self.table.remember(event));
    }
}

/// Where those wait who come during a pause, if they can, and for long enough.
fn pausable<'a, W: World>(
    world: &W,
    name: &str,
    room: Option<&'a Room>,
    set: &Pause,
) -> Result<&'a Room, Refusal> {
    let Some(queue) = world.queue(name) else {
        return Err(Code::NoQueue.says(format!(
            "nobody can wait for the upstream {name:?}: its block says \"handoff_queue off\". Let it have a queue, or take \
             its peers out with a drain"
        )));
    };
    let Some(room) = room else {
        return Err(Code::NoQueue.says(format!(
            "nobody can wait for the upstream {name:?}: handoff_zone has no room for those who would. Make it larger and \
             restart nginx"
        )));
    };
    let patience = Span::from_millis(queue.timeout);
    if set.max > patience && !set.force {
        return Err(Code::TooLong.says(format!(
            "a pause of {} is longer than requests wait for the upstream {name:?}: who comes first would be answered 503 after \
             {patience}. Ask for at most that, raise \"timeout\" of its handoff_queue, or say \"force\":true",
            set.max
        )));
    }
    Ok(room)
}
