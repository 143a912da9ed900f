//! How a request comes to wait, and goes.

use super::held::{Held, Phase};
use super::{now, request, start_timer};
use crate::nginx::{PeerConnection, log_of, rc};
use crate::peer::PeerData;
use handoff_core::hold::{Full, Verdict, Visitor};
use handoff_core::line::End;
use handoff_core::room::Ending;
use nginx_sys::ngx_int_t;
use std::ptr::NonNull;

// === impl PeerData ===

impl PeerData {
    /// How long the request has waited, in milliseconds.
    pub(crate) fn waited(&self) -> u64 {
        // SAFETY: in the pool of the request, and nobody changes it now.
        self.held.map_or(0, |held| unsafe { held.as_ref() }.waited())
    }

    pub(super) fn held(&mut self) -> Option<&mut Held> {
        // SAFETY: in the pool of the request; nobody else holds a reference between two calls of nginx.
        self.held.map(|mut held| unsafe { held.as_mut() })
    }

    /// Whether the request was sent on from where it waited, and nginx asks for a peer now. Its balancer is to begin anew.
    #[cold]
    pub(crate) fn was_sent_on(&mut self) -> bool {
        let hold = &self.upstream.hold;
        let Some(held) = self.held() else { return false };
        held.give_back_configuration();
        if !matches!(held.phase, Phase::SentOn) {
            return false;
        }
        hold.is_sending.set(false);
        true
    }

    /// A request that comes while others are on their way goes behind them.
    #[cold]
    pub(crate) fn joins(&mut self, pc: PeerConnection) -> bool {
        self.visitor(false).joins() && self.enter(pc, End::Back).is_ok()
    }

    /// The balancer has nobody.
    #[cold]
    pub(crate) fn wait(&mut self, pc: PeerConnection, was_sent_on: bool) -> ngx_int_t {
        let visitor = self.visitor(was_sent_on);
        let outlook = self.upstream.outlook(&self.place.zone, now());
        let waits = visitor.verdict(outlook) == Verdict::Wait;
        if was_sent_on {
            return self.wait_on(pc, waits);
        }
        if !waits || self.upstream.hold.queue.is_none() {
            return rc::BUSY;
        }
        match self.enter(pc, End::Back) {
            Ok(()) => rc::AGAIN,
            Err(Some(full)) => self.turn_away(pc, full),
            Err(None) => rc::BUSY,
        }
    }

    /// It was sent on, and found nobody. It keeps its place.
    fn wait_on(&mut self, pc: PeerConnection, waits: bool) -> ngx_int_t {
        if waits && self.stand(pc, End::Front) {
            return rc::AGAIN;
        }
        self.goes(Ending::Released);
        rc::BUSY
    }

    /// It waits no more.
    #[cold]
    pub(crate) fn goes(&mut self, ending: Ending) {
        let (hold, place) = (&self.upstream.hold, self.place);
        let Some(held) = self.held() else { return };
        held.phase = Phase::Away;
        held.leave_room(hold, place, ending);
    }

    /// A peer failed the request. Whether it would wait for another, if nginx asked for one more. A pause is no reason to try
    /// more often.
    #[cold]
    pub(crate) fn would_wait(&self) -> bool {
        self.upstream.hold.queue.is_some()
            && self.visitor(false).verdict(self.upstream.outlook_of_peers(&self.place.zone, now()))
                == Verdict::Wait
    }

    fn visitor(&self, was_sent_on: bool) -> Visitor {
        // SAFETY: the request lives while its upstream calls us.
        let r = unsafe { self.request.as_ref() };
        Visitor {
            was_sent_on,
            was_refused: self.was_refused,
            has_news: self.changes != self.place.zone.table.header.changes(),
            tried: self.tries,
            broke: self.retry().map_or(0, |retry| retry.broke),
            is_background: request::is_background(r),
            has_stale: request::has_stale(r),
        }
    }

    /// Takes a place in the room and in the line. `Err(None)`: there is no memory.
    fn enter(&mut self, pc: PeerConnection, end: End) -> Result<(), Option<Full>> {
        let (hold, place) = (&self.upstream.hold, self.place);
        let (Some(queue), Some(room)) = (hold.queue, hold.room()) else { return Err(None) };
        if !request::spares_a_connection() {
            return Err(Some(Full::Connections));
        }
        // SAFETY: the request lives while its upstream calls us.
        let bytes = request::bytes(unsafe { self.request.as_ref() });
        room.enter(place.row, bytes, &queue).map_err(Some)?;
        let held = self.have();
        let is_there = held.is_some();
        if let Some(held) = held {
            held.bytes = bytes;
            held.since = now().mono;
            held.until = held.since.saturating_add(queue.timeout.saturating_sub(held.waited));
        }
        if !is_there || !self.stand(pc, end) {
            room.leave(place.row, bytes);
            return Err(None);
        }
        hold.burst.begins(now().mono);
        Ok(())
    }

    /// Stands in the line. False: there is no memory.
    fn stand(&mut self, pc: PeerConnection, end: End) -> bool {
        let (hold, host) = (&self.upstream.hold, self.upstream.host());
        let Some(held) = self.held() else { return false };
        let at = NonNull::from(&mut *held);
        let Some(ticket) = hold.line.borrow_mut().enter(at, held.until, end) else { return false };
        held.phase = Phase::Waits(ticket);
        held.stood = now().mono;
        pc.forget(host);
        held.give(pc);
        start_timer();
        true
    }

    fn turn_away(&mut self, pc: PeerConnection, why: Full) -> ngx_int_t {
        let upstream = self.upstream;
        // SAFETY: the request lives while its upstream calls us.
        let log = log_of(unsafe { self.request.as_ref() });
        if let Some(room) = upstream.hold.room() {
            upstream.hold.turn_away(&upstream.name, room, why, log);
        }
        let Some(held) = self.have() else { return rc::BUSY };
        held.phase = Phase::TurnedAway;
        pc.forget(upstream.host());
        held.give(pc);
        rc::AGAIN
    }

    pub(super) fn have(&mut self) -> Option<&mut Held> {
        if self.held.is_none() {
            self.held = Held::new(self.request, self.upstream, self.place);
        }
        self.held()
    }

    /// Nginx gives the connection back that it was given; true if it was one of ours.
    #[cold]
    pub(crate) fn free_held(&mut self, pc: PeerConnection) -> bool {
        let (hold, place) = (&self.upstream.hold, self.place);
        let Some(held) = self.held() else { return false };
        match held.phase {
            Phase::Away | Phase::SentOn => return false,
            Phase::Wakes(ticket) => {
                hold.line.borrow_mut().leave(ticket);
                held.phase = Phase::SentOn;
                held.let_nginx_ask(pc);
            }
            Phase::Waits(ticket) => {
                hold.line.borrow_mut().leave(ticket);
                held.leave_room(hold, place, Ending::Left);
                held.phase = Phase::Away;
            }
            Phase::TurnedAway | Phase::Ends => held.phase = Phase::Away,
            Phase::Rests(_) | Phase::Rises(..) => return self.free_rested(pc),
        }
        held.take_back(pc);
        true
    }
}
