//! A request that waits, and what nginx takes for its connection to a peer.

use super::{Hold, now, request};
use crate::nginx::{PeerConnection, log_of, rc};
use crate::peer::PeerData;
use crate::reply;
use crate::upstream::{Place, Upstream};
use handoff_core::hold::RETRY_AFTER;
use handoff_core::line::Ticket;
use handoff_core::room::Ending;
use nginx_sys::{
    NGX_HTTP_SERVICE_UNAVAILABLE, NGX_HTTP_UPSTREAM_FT_ERROR, ngx_connection_t, ngx_del_timer,
    ngx_delete_posted_event, ngx_event_t, ngx_http_finalize_request, ngx_http_request_t,
    ngx_http_run_posted_requests, ngx_http_upstream_conf_t, ngx_http_upstream_t, ngx_int_t, ngx_msec_t,
    ngx_palloc, ngx_pcalloc, ngx_post_event, ngx_uint_t, sockaddr, u_char,
};
use std::mem;
use std::ptr::{self, NonNull};

/// A request that waits, or has waited, in its pool. The connection comes first: nginx's events lead to nothing else.
#[repr(C)]
pub(crate) struct Held {
    /// What nginx takes for a connection to a peer that is not there yet.
    connection: ngx_connection_t,
    pub(super) read: ngx_event_t,
    write: ngx_event_t,
    settling: ngx_event_t,
    /// nginx calls `free` only for a peer that has an address.
    address: sockaddr,
    request: NonNull<ngx_http_request_t>,
    upstream: &'static Upstream,
    pub(super) place: &'static Place,
    pub(super) phase: Phase,
    /// What it takes of the room.
    pub(super) bytes: u64,
    pub(super) since: u64,
    /// Since it last got its place in the line.
    pub(super) stood: u64,
    pub(super) until: u64,
    /// How long it waited before.
    pub(super) waited: u64,
    /// The location's own configuration, while nginx reads another.
    own: *mut ngx_http_upstream_conf_t,
}

#[derive(Clone, Copy)]
pub(super) enum Phase {
    Away,
    Waits(Ticket),
    /// To be answered 503 in this turn of the event loop.
    TurnedAway,
    /// nginx is about to find that its connection broke.
    Wakes(Ticket),
    /// nginx is about to ask for a peer.
    SentOn,
    /// It is being answered.
    Ends,
    /// It failed, and waits a moment.
    Rests(Ticket),
    /// nginx is about to find that its connection broke: it goes on, or does not.
    Rises(Ticket, bool),
}

// === impl Held ===

impl Held {
    pub(super) fn new(
        request: NonNull<ngx_http_request_t>,
        upstream: &'static Upstream,
        place: &'static Place,
    ) -> Option<NonNull<Self>> {
        // SAFETY: the request lives while its upstream calls us.
        let pool = unsafe { request.as_ref() }.pool;
        // SAFETY: the pool of the request; null when there is no memory.
        let memory = NonNull::new(unsafe { ngx_pcalloc(pool, size_of::<Self>()) })?.cast::<Self>();
        // SAFETY: all of their fields may be zero; nginx makes its own with ngx_pcalloc.
        let connection: ngx_connection_t = unsafe { mem::zeroed() };
        // SAFETY: as above.
        let event: ngx_event_t = unsafe { mem::zeroed() };
        // SAFETY: as above.
        let address: sockaddr = unsafe { mem::zeroed() };
        let held = Self {
            connection,
            read: event,
            write: event,
            settling: event,
            address,
            request,
            upstream,
            place,
            phase: Phase::Away,
            bytes: 0,
            since: 0,
            stood: 0,
            until: 0,
            waited: 0,
            own: ptr::null_mut(),
        };
        // SAFETY: fresh memory of this size; pools align for any type.
        unsafe { memory.write(held) };
        Some(memory)
    }

    /// Gives nginx our connection.
    pub(super) fn give(&mut self, pc: PeerConnection) {
        // SAFETY: the request lives while its upstream calls us.
        let r = unsafe { self.request.as_ref() };
        let at = &raw mut self.connection;
        let log = log_of(r);
        for event in [&mut self.read, &mut self.write, &mut self.settling] {
            event.data = at.cast();
            event.log = log;
        }
        self.write.set_write(1);
        self.settling.handler = Some(settle);
        let connection = &mut self.connection;
        connection.fd = -1;
        connection.data = self.request.as_ptr().cast();
        connection.read = &raw mut self.read;
        connection.write = &raw mut self.write;
        // Or nginx would make it one.
        connection.pool = r.pool;
        connection.recv = Some(broken);
        connection.log = log;
        pc.give(at, &raw mut self.address);
        let queue = &raw mut nginx_sys::ngx_posted_events;
        // SAFETY: this process's own queue; `take_back` takes the event from it before the event goes.
        unsafe { ngx_post_event(&raw mut self.settling, queue) };
    }

    pub(super) fn take_back(&mut self, pc: PeerConnection) {
        self.stop_timers();
        if self.settling.posted() != 0 {
            // SAFETY: it is in the queue of posted events.
            unsafe { ngx_delete_posted_event(&raw mut self.settling) };
        }
        pc.give(ptr::null_mut(), ptr::null_mut());
    }

    fn stop_timers(&mut self) {
        for event in [&mut self.read, &mut self.write] {
            if event.timer_set() != 0 {
                // SAFETY: the timer is set.
                unsafe { ngx_del_timer(event) };
            }
        }
    }

    pub(super) fn waited(&self) -> u64 {
        match self.phase {
            Phase::Away | Phase::TurnedAway => self.waited,
            _ => self.waited.saturating_add(now().mono.saturating_sub(self.since)),
        }
    }

    pub(super) fn leave_room(&mut self, hold: &Hold, place: &Place, ending: Ending) {
        self.waited = self.waited.saturating_add(now().mono.saturating_sub(self.since));
        if let Some(room) = hold.room() {
            room.leave(place.row, self.bytes);
            hold.count(room, ending, self.waited);
        }
    }

    fn upstream_of_request(&self) -> *mut ngx_http_upstream_t {
        // SAFETY: the request lives for as long as it is held.
        unsafe { (*self.request.as_ptr()).upstream }
    }

    pub(super) fn request(&self) -> NonNull<ngx_http_request_t> {
        self.request
    }

    pub(super) fn data(&self) -> Option<NonNull<PeerData>> {
        // SAFETY: the request lives for as long as it is held.
        PeerData::at(unsafe { self.request.as_ref() })
    }

    pub(super) fn is_forsaken(&self) -> bool {
        // SAFETY: the request lives for as long as it is held.
        request::is_forsaken(unsafe { self.request.as_ref() })
    }

    /// nginx tries again only after what the configuration names as a reason. That nobody was up is none of these. False: there is
    /// no memory.
    pub(super) fn lets_nginx_go_on(&mut self) -> bool {
        // SAFETY: the upstream of the request, which waits in it.
        let Some(u) = (unsafe { self.upstream_of_request().as_mut() }) else { return false };
        // SAFETY: the configuration of the location.
        let Some(conf) = (unsafe { u.conf.as_ref() }) else { return false };
        let error = NGX_HTTP_UPSTREAM_FT_ERROR as ngx_uint_t;
        if conf.next_upstream & error == 0 {
            // SAFETY: the request lives for as long as it is held.
            let pool = unsafe { self.request.as_ref() }.pool;
            // SAFETY: the pool of the request; null when there is no memory.
            let memory = unsafe { ngx_palloc(pool, size_of::<ngx_http_upstream_conf_t>()) };
            let Some(copy) = NonNull::new(memory.cast::<ngx_http_upstream_conf_t>()) else { return false };
            // SAFETY: fresh memory of this size; pools align for any type.
            unsafe {
                copy.write(ngx_http_upstream_conf_t { next_upstream: conf.next_upstream | error, ..*conf })
            };
            self.own = mem::replace(&mut u.conf, copy.as_ptr());
        }
        // Or nginx would ask the descriptor, which there is none of, whether it is connected.
        u.set_request_sent(1);
        true
    }

    pub(super) fn give_back_configuration(&mut self) {
        let own = mem::replace(&mut self.own, ptr::null_mut());
        // SAFETY: the upstream of the request.
        if let Some(u) = unsafe { self.upstream_of_request().as_mut() }
            && !own.is_null()
        {
            u.conf = own;
        }
    }

    /// nginx looks whether it may try again: nothing was sent, and the time for tries has not gone on.
    pub(super) fn let_nginx_ask(&mut self, pc: PeerConnection) {
        self.let_nginx_ask_for(pc, 1);
        let waited = now().mono.saturating_sub(self.stood);
        pc.set_started(pc.started().wrapping_add(waited as ngx_msec_t));
    }

    /// nginx looks whether it may try again, so often.
    pub(super) fn let_nginx_ask_for(&mut self, pc: PeerConnection, tries: usize) {
        // SAFETY: the request lives for as long as it is held.
        let r = unsafe { self.request.as_ref() };
        // SAFETY: the upstream of the request.
        if let Some(u) = unsafe { r.upstream.as_mut() } {
            u.set_request_sent(0);
        }
        // SAFETY: nginx has added an entry for the attempt that this was; the next one gets its place.
        if let Some(states) = unsafe { r.upstream_states.as_mut() } {
            states.nelts = states.nelts.saturating_sub(1);
        }
        pc.set_tries(tries);
    }
}

/// Ends a request that is held, with a status. It may be gone after this.
pub(super) fn end(mut at: NonNull<Held>, status: ngx_int_t, ending: Ending) {
    // SAFETY: who is held lives; nobody else holds a reference now.
    let held = unsafe { at.as_mut() };
    if let Phase::Waits(ticket) = held.phase {
        let (hold, place) = (&held.upstream.hold, held.place);
        hold.line.borrow_mut().leave(ticket);
        held.leave_room(hold, place, ending);
    }
    held.phase = Phase::Ends;
    finalize(held.request, status);
}

/// nginx calls this in the turn of the event loop in which it was given our connection.
unsafe extern "C" fn settle(event: *mut ngx_event_t) {
    // SAFETY: nginx passes our event, whose data is our connection.
    let connection = unsafe { (*event).data };
    // The connection is the first field of what is held.
    let Some(mut at) = NonNull::new(connection.cast::<Held>()) else { return };
    // SAFETY: it lives: `take_back` takes the event away.
    let held = unsafe { at.as_mut() };
    held.stop_timers();
    if let Phase::TurnedAway = held.phase {
        end(at, NGX_HTTP_SERVICE_UNAVAILABLE as ngx_int_t, Ending::Left);
    }
}

/// What nginx reads from our connection.
unsafe extern "C" fn broken(_: *mut ngx_connection_t, _: *mut u_char, _: usize) -> isize {
    rc::ERROR
}

/// As nginx itself ends what is passed to an upstream when something else is to become of it.
pub(super) fn finalize(mut request: NonNull<ngx_http_request_t>, status: ngx_int_t) {
    // SAFETY: the request lives: it is being held.
    let r = unsafe { request.as_mut() };
    let connection = r.connection;
    // SAFETY: the upstream of the request.
    let Some(u) = (unsafe { r.upstream.as_mut() }) else { return };
    if status == NGX_HTTP_SERVICE_UNAVAILABLE as ngx_int_t {
        reply::retry_after(r, RETRY_AFTER);
        // SAFETY: the entry for this attempt, for the access log.
        if let Some(state) = unsafe { u.state.as_mut() } {
            state.status = NGX_HTTP_SERVICE_UNAVAILABLE as ngx_uint_t;
        }
    }
    // SAFETY: a request belongs to a main request.
    let main = unsafe { &mut *r.main };
    main.set_count(main.count().wrapping_add(1));
    // SAFETY: null, or the place of the handler that ends the upstream.
    if let Some(cleanup) = unsafe { u.cleanup.as_ref() }.copied().flatten() {
        // SAFETY: called as nginx would call it; it gives back one count of the request.
        unsafe { cleanup(request.as_ptr().cast()) };
    }
    // SAFETY: the count that was added above kept the request; it may be gone after this.
    unsafe { ngx_http_finalize_request(request.as_ptr(), status) };
    // SAFETY: a connection outlives its requests until the event that closed it is over.
    unsafe { ngx_http_run_posted_requests(connection) };
}
