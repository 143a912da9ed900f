//! Between a request and the balancer.
//!
//! Every attempt goes through [`PeerData::get`]: the balancer chooses, we claim a place and look at the peer's gate. A
//! refused choice is handed back as if it had not been made, and the balancer chooses again; its own record of what this
//! request has tried keeps it from choosing the same peer twice. Every attempt ends in [`PeerData::free`], once.

use crate::nginx::{PeerConnection, rc};
use crate::upstream::{Place, Upstream};
use handoff_core::Admission;
use handoff_core::slot::Slot;
use handoff_core::table::SlotId;
use handoff_wire::State;
use nginx_sys::{
    NGX_PEER_FAILED, ngx_event_free_peer_pt, ngx_event_get_peer_pt, ngx_event_notify_peer_pt,
    ngx_event_save_peer_session_pt, ngx_event_set_peer_session_pt, ngx_http_request_t, ngx_http_upstream_t,
    ngx_int_t, ngx_msec_t, ngx_palloc, ngx_peer_connection_t, ngx_uint_t,
};
use std::ffi::c_void;
use std::ptr::NonNull;

/// What we keep for one request, in its pool.
pub(crate) struct PeerData {
    upstream: &'static Upstream,
    place: Place,
    request: NonNull<ngx_http_request_t>,
    inner: Inner,
    claimed: Option<SlotId>,
    last: Option<SlotId>,
    tries: u32,
}

/// The balancer's hooks that ours stand before.
struct Inner {
    data: *mut c_void,
    get: ngx_event_get_peer_pt,
    free: ngx_event_free_peer_pt,
    notify: ngx_event_notify_peer_pt,
    set_session: ngx_event_set_peer_session_pt,
    save_session: ngx_event_save_peer_session_pt,
}

/// Stands before the hooks that the balancer has just set for a request.
pub(crate) fn wrap(r: *mut ngx_http_request_t, upstream: &'static Upstream) -> ngx_int_t {
    // A worker that could not take its place serves as nginx alone would.
    let (Some(place), Some(request)) = (upstream.place(), NonNull::new(r)) else { return rc::OK };
    // SAFETY: nginx passes a valid request.
    let r = unsafe { request.as_ref() };
    // SAFETY: the pool of the request; null when there is no memory.
    let memory = unsafe { ngx_palloc(r.pool, size_of::<PeerData>()) }.cast::<PeerData>();
    let Some(memory) = NonNull::new(memory) else { return rc::ERROR };
    // SAFETY: a request that is to be passed has an upstream, which nobody else uses now.
    let pc = unsafe { &mut (*r.upstream).peer };
    let inner = Inner {
        data: pc.data,
        get: pc.get.replace(get),
        free: pc.free.replace(free),
        notify: pc.notify,
        set_session: pc.set_session,
        save_session: pc.save_session,
    };
    // Only what was there is wrapped: nginx asks whether it is.
    pc.notify = inner.notify.and(Some(notify));
    pc.set_session = inner.set_session.and(Some(set_session));
    pc.save_session = inner.save_session.and(Some(save_session));
    pc.data = memory.as_ptr().cast();
    let data = PeerData { upstream, place, request, inner, claimed: None, last: None, tries: 0 };
    // SAFETY: fresh memory of this size; pools align for any type.
    unsafe { memory.write(data) };
    rc::OK
}

// === impl PeerData ===

impl PeerData {
    /// What we keep for a request, if it was passed to an upstream that takes part.
    pub(crate) fn of(r: &ngx_http_request_t) -> Option<&Self> {
        // SAFETY: null or the upstream of the request.
        let pc = &unsafe { r.upstream.as_ref() }?.peer;
        let ours = pc.get.is_some_and(|hook| hook as usize == get as *const () as usize);
        // SAFETY: with our hook goes our data.
        if ours { unsafe { pc.data.cast::<Self>().as_ref() } } else { None }
    }

    /// How many times a peer was given to this request.
    pub(crate) fn tries(&self) -> u32 {
        self.tries
    }

    /// What the last peer of this request is now.
    pub(crate) fn state(&self) -> Option<State> {
        self.slot(self.last?).map(|slot| slot.gate.state())
    }

    fn slot(&self, id: SlotId) -> Option<&'static Slot> {
        self.place.zone.table.slot(id)
    }

    fn get(&mut self, pc: PeerConnection) -> ngx_int_t {
        self.upstream.refresh(&self.place.zone);
        // Each refusal uses up one of the balancer's choices. More than there are peers means that it does not remember.
        for _ in 0..=self.upstream.addresses.len() {
            let status = self.choose(pc);
            if status != rc::OK && status != rc::DONE {
                return status;
            }
            let chosen = self.upstream.addresses.slot(pc.sockaddr().cast());
            if chosen.is_none_or(|id| self.admit(id)) {
                self.last = chosen;
                self.tries = self.tries.saturating_add(1);
                return self.connection(pc, status);
            }
            self.hand_back(pc, status);
        }
        rc::BUSY
    }

    fn choose(&self, pc: PeerConnection) -> ngx_int_t {
        let Some(get) = self.inner.get else { return rc::ERROR };
        // SAFETY: called as nginx would call it, with the data that belongs to it.
        let status = unsafe { get(pc.0, self.inner.data) };
        if status == rc::BUSY {
            pc.forget(self.upstream.host());
        }
        status
    }

    fn admit(&mut self, id: SlotId) -> bool {
        let Some(slot) = self.slot(id) else { return true };
        match self.place.zone.table.claim(self.place.row, id) {
            Admission::Admitted => {
                slot.count_request();
                self.claimed = Some(id);
                true
            }
            Admission::Refused(_) => {
                slot.count_refused();
                false
            }
        }
    }

    /// A connection that was opened to an earlier worker is not used for this one.
    fn connection(&self, pc: PeerConnection, status: ngx_int_t) -> ngx_int_t {
        if status == rc::DONE && self.is_retired(pc) {
            pc.close_cached();
            return rc::OK;
        }
        status
    }

    fn is_retired(&self, pc: PeerConnection) -> bool {
        let slot = self.claimed.and_then(|id| self.slot(id));
        slot.zip(pc.number()).is_some_and(|(slot, number)| number < slot.retired_before())
    }

    /// Undoes a choice: nothing was tried, so nothing is counted as tried.
    fn hand_back(&self, pc: PeerConnection, status: ngx_int_t) {
        if status == rc::DONE {
            pc.close_cached();
        }
        let tries = pc.tries();
        self.inner_free(pc, 0);
        pc.set_tries(tries);
        pc.forget(self.upstream.host());
    }

    fn inner_free(&self, pc: PeerConnection, state: ngx_uint_t) {
        if let Some(free) = self.inner.free {
            // SAFETY: called as nginx would call it, with the data that belongs to it.
            unsafe { free(pc.0, self.inner.data, state) };
        }
    }

    fn free(&mut self, pc: PeerConnection, state: ngx_uint_t) {
        let slot = self.claimed.and_then(|id| self.slot(id));
        if let Some(slot) = slot {
            if state & NGX_PEER_FAILED as ngx_uint_t != 0 {
                slot.count_fail();
            }
            if let Some(status) = self.answer() {
                slot.answers.count(status);
            }
            if slot.gate.state() != State::Up || self.is_retired(pc) {
                self.do_not_pool();
            }
        }
        self.inner_free(pc, state);
        if let Some(id) = self.claimed.take() {
            self.place.zone.table.release(self.place.row, id);
        }
    }

    /// The status of this attempt's answer, if its whole header was read. nginx has a status before that, from the first line
    /// of a header that never ends or is no good; its own status for an attempt that failed it writes there afterwards.
    fn answer(&self) -> Option<ngx_uint_t> {
        // SAFETY: the upstream of a request, which lives while it calls us; null or not.
        let u = unsafe { self.upstream().as_ref() }?;
        // SAFETY: null, or this attempt's place in an array of the request.
        let state = unsafe { u.state.as_ref() }?;
        (state.header_time != ngx_msec_t::MAX).then_some(state.status)
    }

    /// The keepalive cache keeps a connection only if nginx says so.
    fn do_not_pool(&self) {
        // SAFETY: as above.
        if let Some(u) = unsafe { self.upstream().as_mut() } {
            u.set_keepalive(0);
        }
    }

    fn upstream(&self) -> *mut ngx_http_upstream_t {
        // SAFETY: the request lives while its upstream calls us.
        unsafe { (*self.request.as_ptr()).upstream }
    }
}

/// Takes the data that nginx passes back for what it is.
fn ours<'a>(data: *mut c_void) -> &'a mut PeerData {
    // SAFETY: nginx passes the data that wrap() stored beside these hooks, one call at a time.
    unsafe { &mut *data.cast() }
}

unsafe extern "C" fn get(pc: *mut ngx_peer_connection_t, data: *mut c_void) -> ngx_int_t {
    ours(data).get(PeerConnection(pc))
}

unsafe extern "C" fn free(pc: *mut ngx_peer_connection_t, data: *mut c_void, state: ngx_uint_t) {
    ours(data).free(PeerConnection(pc), state);
}

unsafe extern "C" fn notify(pc: *mut ngx_peer_connection_t, data: *mut c_void, kind: ngx_uint_t) {
    let inner = &ours(data).inner;
    if let Some(notify) = inner.notify {
        // SAFETY: called as nginx would call it, with the data that belongs to it.
        unsafe { notify(pc, inner.data, kind) };
    }
}

unsafe extern "C" fn set_session(pc: *mut ngx_peer_connection_t, data: *mut c_void) -> ngx_int_t {
    let inner = &ours(data).inner;
    // SAFETY: called as nginx would call it, with the data that belongs to it.
    inner.set_session.map_or(rc::OK, |set_session| unsafe { set_session(pc, inner.data) })
}

unsafe extern "C" fn save_session(pc: *mut ngx_peer_connection_t, data: *mut c_void) {
    let inner = &ours(data).inner;
    if let Some(save_session) = inner.save_session {
        // SAFETY: called as nginx would call it, with the data that belongs to it.
        unsafe { save_session(pc, inner.data) };
    }
}
