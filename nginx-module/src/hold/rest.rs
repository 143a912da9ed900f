//! A request that a peer failed, and that waits a moment before it is tried again: until somebody says what became of the
//! worker, or for as long as the worker itself said.
//!
//! It has the same place in the room and the same connection as those that wait for somebody to be up, but stands in no line.
//! Each turn looks at those that rest; their connection breaks, and nginx then either asks for a peer or ends the request as it
//! would have ended it at once.

use super::held::{Held, Phase, finalize};
use super::{Hold, now, request, start_timer};
use crate::nginx::{PeerConnection, rc};
use crate::peer::PeerData;
use crate::retry::Next;
use handoff_core::hold::BATCH;
use handoff_core::line::End;
use handoff_core::retry::{Look, Rest};
use nginx_sys::ngx_int_t;
use std::ptr::NonNull;

// === impl Hold ===

impl Hold {
    pub(super) fn look_at_resting(&self) {
        for _ in 0..BATCH {
            // nginx runs in between, and may change who rests as it likes: nothing of it is held on to.
            let found = self.resting.borrow().find(|held, _| is_done(held));
            let Some(at) = found else { return };
            rise(at);
            // Another process was quicker at the last place of the budget.
            if self.resting.borrow().find(|held, _| held == at).is_some() {
                return;
            }
        }
    }
}

fn is_done(held: NonNull<Held>) -> bool {
    // SAFETY: who rests lives: `free` takes it out.
    let data = unsafe { held.as_ref() }.data();
    // SAFETY: in the pool of the request that rests.
    data.is_some_and(|data| unsafe { data.as_ref() }.is_done())
}

/// It goes on, or ends, unless it has to rest on. It may be gone after this.
fn rise(mut at: NonNull<Held>) {
    // SAFETY: who rests lives: `free` takes it out.
    let held = unsafe { at.as_mut() };
    let (Phase::Rests(ticket), Some(mut data)) = (held.phase, held.data()) else { return };
    // SAFETY: in the pool of the request that rests, and nobody else holds a reference between two calls of nginx.
    let Some(goes) = unsafe { data.as_mut() }.rises() else { return };
    // nginx has set it when it was told of the connection.
    let handler = held.read.handler.filter(|_| held.lets_nginx_go_on());
    let Some(handler) = handler else { return finalize(held.request(), rc::ERROR) };
    held.phase = Phase::Rises(ticket, goes);
    // SAFETY: called as nginx would call it for an event of this connection.
    unsafe { handler(&raw mut held.read) };
}

// === impl PeerData ===

impl PeerData {
    /// Whether there is room for it to wait a moment, at a glance.
    #[cold]
    pub(crate) fn may_rest(&self) -> bool {
        let hold = &self.upstream.hold;
        let (Some(queue), Some(room)) = (hold.queue, hold.room()) else { return false };
        // SAFETY: the request lives while its upstream calls us.
        let r = unsafe { self.request.as_ref() };
        room.has_room(request::bytes(r), &queue)
            && request::spares_a_connection()
            && !request::is_background(r)
            && !request::has_stale(r)
    }

    /// nginx asks for a peer, and is given one that is not there yet.
    #[cold]
    pub(crate) fn rest(&mut self, pc: PeerConnection, rest: Rest) -> ngx_int_t {
        if self.lies_down(pc, rest) {
            return rc::AGAIN;
        }
        self.give_back_place();
        pc.forget(self.upstream.host());
        rc::BUSY
    }

    /// False: there is no room, or no memory.
    fn lies_down(&mut self, pc: PeerConnection, rest: Rest) -> bool {
        let (hold, place, host) = (&self.upstream.hold, self.place, self.upstream.host());
        let (Some(queue), Some(room)) = (hold.queue, hold.room()) else { return false };
        // SAFETY: the request lives while its upstream calls us.
        let bytes = request::bytes(unsafe { self.request.as_ref() });
        if room.enter(place.row, bytes, &queue).is_err() {
            return false;
        }
        let since = now().mono;
        let lies = self.retrying().is_some()
            && self.have().is_some_and(|held| {
                let ticket = hold.resting.borrow_mut().enter(NonNull::from(&mut *held), 0, End::Back);
                let Some(ticket) = ticket else { return false };
                (held.bytes, held.since, held.phase) = (bytes, since, Phase::Rests(ticket));
                pc.forget(host);
                held.give(pc);
                true
            });
        if let Some(retry) = self.retry_mut().filter(|_| lies) {
            retry.resting = Some((rest, since.saturating_add(rest.length())));
            start_timer();
        } else {
            room.leave(place.row, bytes);
        }
        lies
    }

    /// nginx gives the connection back: it goes on, or ends, or its client left.
    pub(super) fn free_rested(&mut self, pc: PeerConnection) -> bool {
        let (hold, place) = (&self.upstream.hold, self.place);
        let Some(held) = self.held() else { return false };
        let (ticket, goes) = match held.phase {
            Phase::Rests(ticket) => (ticket, None),
            Phase::Rises(ticket, goes) => (ticket, Some(goes)),
            _ => return false,
        };
        held.waited = held.waited();
        held.phase = Phase::Away;
        hold.resting.borrow_mut().leave(ticket);
        if let Some(room) = hold.room() {
            room.leave(place.row, held.bytes);
        }
        if let Some(goes) = goes {
            held.let_nginx_ask_for(pc, goes.into());
        }
        held.take_back(pc);
        if let Some(retry) = self.retry_mut() {
            retry.resting = None;
            retry.next = (goes == Some(true)).then_some(Next { begins_anew: true, ..Next::default() });
        }
        if goes != Some(true) {
            self.give_back_place();
        }
        true
    }

    fn look(&self, has_place: impl FnOnce() -> bool) -> Look {
        let Some((rest, until)) = self.retry().and_then(|retry| retry.resting) else { return Look::Stays };
        rest.look(now().mono >= until, || self.around(false, false), has_place)
    }

    fn is_done(&self) -> bool {
        self.look(|| self.has_a_place_left()) != Look::Stays
    }

    /// Whether it goes on or ends. `None`: it rests on.
    fn rises(&mut self) -> Option<bool> {
        match self.look(|| self.takes_place()) {
            Look::Ends(verdict) => Some(self.settles(verdict)),
            Look::Stays => None,
        }
    }
}
