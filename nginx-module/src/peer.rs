//! Between a request and the balancer.
//!
//! Every attempt goes through [`PeerData::get`]: the balancer chooses, we claim a place and look at the peer's gate. A
//! refused choice is handed back as if it had not been made, and the balancer chooses again; its own record of what this
//! request has tried keeps it from choosing the same peer twice. Every attempt ends in [`PeerData::free`], once.

use crate::ending;
use crate::hold::Held;
use crate::hooks::{Hooks, layer};
use crate::name;
use crate::nginx::{PeerConnection, global, rc, unix};
use crate::orphan;
use crate::retry::{Next, Retry, TEMPORARY};
use crate::reuse::{self, Ridden};
use crate::seat::{self, Occupant};
use crate::trial;
use crate::upstream::{Place, Upstream};
use handoff_core::reuse::{Reuse, Rider};
use handoff_core::room::Ending;
use handoff_core::table::SlotId;
use handoff_core::timing::{Attempt, Times};
use handoff_core::trial::Candidate;
use handoff_core::{Admission, Turnstile};
use handoff_wire::State;
use nginx_sys::{
    NGX_HTTP_GET, NGX_HTTP_HEAD, NGX_HTTP_LOCK, NGX_HTTP_PATCH, NGX_HTTP_POST, NGX_HTTP_UPSTREAM_FT_ERROR,
    NGX_PEER_FAILED, ngx_http_request_t, ngx_http_upstream_conf_t, ngx_http_upstream_state_t,
    ngx_http_upstream_t, ngx_int_t, ngx_msec_t, ngx_palloc, ngx_str_t, ngx_uint_t,
};
use std::cell::Cell;
use std::ptr::{self, NonNull};

/// How often a request begins at one attempt, because peers came or went.
const BEGINNINGS: usize = 4;

/// What we keep for one request, in its pool.
pub(crate) struct PeerData {
    pub(crate) upstream: &'static Upstream,
    pub(crate) place: &'static Place,
    pub(crate) request: NonNull<ngx_http_request_t>,
    inner: Hooks,
    /// The peer that it last went to, if it is one of ours.
    last: Option<&'static Turnstile<'static>>,
    /// The peer of this attempt, if it was added.
    seated: Option<NonNull<Occupant>>,
    /// Of nginx's list, when the balancer began.
    version: ngx_uint_t,
    pub(crate) tries: u32,
    /// It is with the last peer now, and counted there.
    is_claimed: bool,
    /// Its body goes to the peer as it comes.
    pub(crate) is_unbuffered: bool,
    /// Marks have kept it from a peer since its balancer began, when this process knew of these changes.
    pub(crate) was_refused: bool,
    pub(crate) changes: u64,
    /// Who answers this attempt, in its own words; of no length: it did not say.
    name: Cell<ngx_str_t>,
    /// Where it waits, or has waited.
    pub(crate) held: Option<NonNull<Held>>,
    /// If a peer has failed it, or its answer may be taken for that.
    pub(crate) retry: Option<NonNull<Retry>>,
}

/// Of a peer that says nothing.
const NAMELESS: ngx_str_t = ngx_str_t { len: 0, data: ptr::null_mut() };

layer!(PeerData);

/// Stands before the hooks that the balancer has just set for a request.
pub(crate) fn wrap(
    r: &ngx_http_request_t,
    upstream: &'static Upstream,
    place: &'static Place,
    version: ngx_uint_t,
) -> ngx_int_t {
    // SAFETY: the pool of the request; null when there is no memory.
    let memory = unsafe { ngx_palloc(r.pool, size_of::<PeerData>()) }.cast::<PeerData>();
    let Some(memory) = NonNull::new(memory) else { return rc::ERROR };
    // SAFETY: a request that is to be passed has an upstream, which nobody else uses now.
    let pc = unsafe { &mut (*r.upstream).peer };
    let inner = Hooks::of(pc);
    before(&inner, memory).put(pc);
    let data = PeerData {
        upstream,
        place,
        request: NonNull::from(r),
        inner,
        last: None,
        seated: None,
        version,
        tries: 0,
        is_claimed: false,
        is_unbuffered: is_unread(r),
        was_refused: false,
        changes: 0,
        name: Cell::new(NAMELESS),
        held: None,
        retry: None,
    };
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
        // SAFETY: with our hook goes our data, which lives as long as the request.
        behind(pc.get, pc.data).map(|data| unsafe { data.as_ref() })
    }

    /// The same, to be changed between two calls of nginx's.
    pub(crate) fn at(r: &ngx_http_request_t) -> Option<NonNull<Self>> {
        // SAFETY: null or the upstream of the request.
        let pc = &unsafe { r.upstream.as_ref() }?.peer;
        behind(pc.get, pc.data)
    }

    /// How many times a peer was given to this request.
    pub(crate) fn tries(&self) -> u32 {
        self.tries
    }

    /// What the last peer of this request is now.
    pub(crate) fn state(&self) -> Option<State> {
        self.last.map(|last| last.slot.gate.state())
    }

    /// The peer says its name. The first word counts.
    pub(crate) fn call(&self, name: ngx_str_t) {
        if self.name.get().len == 0 {
            self.name.set(name);
        }
    }

    /// The name of who gave this request its answer: the last attempt, if it was answered in full and nothing else was sent.
    pub(crate) fn name(&self) -> Option<ngx_str_t> {
        self.answer()?;
        // SAFETY: the upstream of a request, which had an attempt; null or not.
        let u = unsafe { self.upstream().as_ref() }?;
        Some(self.name.get()).filter(|name| name.len > 0 && !name::is_from_cache(u))
    }

    /// The last peer of this request.
    pub(crate) fn last(&self) -> Option<&'static Turnstile<'static>> {
        self.last
    }

    fn claimed(&self) -> Option<&'static Turnstile<'static>> {
        self.last.filter(|_| self.is_claimed)
    }

    /// Nothing has befallen the request or its upstream: nearly all there is to say of nearly all requests. What follows for the
    /// others is more, and never anything else.
    #[inline]
    fn is_plain(&self) -> bool {
        let held = self.held.map_or(0, |at| at.addr().get());
        let retry = self.retry.map_or(0, |at| at.addr().get());
        let seated = self.seated.map_or(0, |at| at.addr().get());
        held | retry | seated == 0
    }

    #[inline]
    fn get(&mut self, pc: PeerConnection) -> ngx_int_t {
        let upstream = self.upstream;
        upstream.refresh(&self.place.zone);
        if !self.is_plain() || !upstream.is_plain() {
            return self.get_after_all(pc);
        }
        let status = self.inner.get(pc);
        if status != rc::OK && status != rc::DONE {
            return self.has_none(pc, status);
        }
        let chosen = upstream.turnstile(self.place, pc.sockaddr().cast());
        if chosen.is_none_or(|chosen| self.admit(pc, chosen)) {
            return self.goes_to(pc, status, chosen);
        }
        self.hand_back(pc, status);
        self.get_after_all(pc)
    }

    #[cold]
    fn has_none(&mut self, pc: PeerConnection, status: ngx_int_t) -> ngx_int_t {
        if status != rc::BUSY {
            return status;
        }
        pc.forget(self.upstream.host());
        self.wait(pc, false)
    }

    /// Whatever has befallen it.
    #[cold]
    #[inline(never)]
    fn get_after_all(&mut self, pc: PeerConnection) -> ngx_int_t {
        self.name.set(NAMELESS);
        let mut was_sent_on = false;
        if self.held.is_some() || self.retry.is_some() || self.upstream.hold.flows() {
            match self.prepare(pc) {
                Ok(sent_on) => was_sent_on = sent_on,
                Err(status) => return status,
            }
        }
        match self.attempt_with_all(pc) {
            rc::BUSY => {
                self.give_back_place();
                self.wait(pc, was_sent_on)
            }
            status => {
                if was_sent_on {
                    self.goes(Ending::Resumed);
                }
                status
            }
        }
    }

    /// Who has waited or failed, or comes while others are on their way. `Ok`: it goes to a peer now, and whether it was sent on
    /// from where it waited.
    #[cold]
    fn prepare(&mut self, pc: PeerConnection) -> Result<bool, ngx_int_t> {
        let was_sent_on = self.was_sent_on();
        let next = self.retry_mut().and_then(|retry| retry.next.take()).unwrap_or_default();
        if next.rewinds {
            self.set_request_sent(true);
        }
        if let Some(rest) = next.rests {
            return Err(self.rest(pc, rest));
        }
        if (was_sent_on || next.begins_anew) && self.begin_anew(pc) != rc::OK {
            if was_sent_on {
                self.goes(Ending::Released);
            }
            return Err(rc::ERROR);
        }
        if !was_sent_on && self.upstream.hold.flows() && self.joins(pc) {
            return Err(rc::AGAIN);
        }
        Ok(was_sent_on)
    }

    /// nginx gives nobody to a request whose balancer began before peers came or went. It begins once more with those that are
    /// there now; not with the peer that failed it last.
    fn attempt_with_all(&mut self, pc: PeerConnection) -> ngx_int_t {
        let mut failed = None;
        for _ in 0..BEGINNINGS {
            let status = self.attempt(pc, failed);
            if status != rc::BUSY || self.version == self.upstream.seats.version() {
                return status;
            }
            if self.begin_anew(pc) != rc::OK {
                return rc::ERROR;
            }
            failed = self.last.map(|last| last.id);
        }
        rc::BUSY
    }

    fn attempt(&mut self, pc: PeerConnection, failed: Option<SlotId>) -> ngx_int_t {
        let mut refused = 0_usize;
        loop {
            if self.upstream.is_paused() {
                pc.forget(self.upstream.host());
                return rc::BUSY;
            }
            let status = self.choose(pc);
            if status != rc::OK && status != rc::DONE {
                return status;
            }
            let chosen = self.upstream.turnstile(self.place, pc.sockaddr().cast());
            let has_failed = failed.is_some_and(|failed| chosen.is_some_and(|chosen| chosen.id == failed));
            if !has_failed && chosen.is_none_or(|chosen| self.admit(pc, chosen)) {
                self.last = chosen;
                if self.upstream.seats.count > 0 && self.sit(pc).is_none() {
                    return rc::ERROR;
                }
                return self.goes_to(pc, status, chosen);
            }
            self.hand_back(pc, status);
            // Each refusal uses up one of the balancer's choices. More than there are peers means that it does not remember.
            refused = refused.saturating_add(1);
            if refused > self.upstream.addresses.len().saturating_add(self.upstream.seats.count) {
                return rc::BUSY;
            }
        }
    }

    /// The request goes to this peer, or to one that is none of ours.
    #[inline(always)]
    fn goes_to(
        &mut self,
        pc: PeerConnection,
        status: ngx_int_t,
        chosen: Option<&'static Turnstile<'static>>,
    ) -> ngx_int_t {
        self.last = chosen;
        let reasons = self.location().map_or(0, |conf| conf.next_upstream);
        if self.tries != 0 || reasons & TEMPORARY as ngx_uint_t != 0 {
            self.goes_on();
        }
        // No more of them than nginx counts itself.
        self.tries = self.tries.wrapping_add(1);
        self.connection(pc, status, chosen, reasons)
    }

    #[cold]
    fn goes_on(&mut self) {
        self.name.set(NAMELESS);
        if self.tries == 0 { self.watch_answers() } else { self.resume() }
    }

    /// Puts the peer that was added in the place of the seat that the balancer chose. `None`: there is no memory.
    #[inline(never)]
    fn sit(&mut self, pc: PeerConnection) -> Option<()> {
        if !seat::is_seat(pc.sockaddr().cast()) {
            return Some(());
        }
        let slot = self.claimed()?.slot;
        // SAFETY: the request lives while its upstream calls us.
        let pool = unsafe { self.request.as_ref() }.pool;
        let occupant = Occupant::read(slot, pc.address(), pool)?;
        pc.seat(occupant);
        self.seated = Some(occupant);
        Some(())
    }

    /// The balancer forgets whom it has tried for this request, and what it knew of the peers when that began to wait.
    #[cold]
    fn begin_anew(&mut self, pc: PeerConnection) -> ngx_int_t {
        let ours = NonNull::from(&mut *self);
        self.was_refused = false;
        pc.set_data(ptr::null_mut());
        self.version = self.upstream.seats.version();
        let status = self.upstream.begin(self.request.as_ptr());
        if status == rc::OK {
            self.inner = pc.hooks();
            pc.set_tries(self.tries_left(pc.tries()));
        }
        pc.set_hooks(before(&self.inner, ours));
        status
    }

    /// Of so many, if the configuration bounds them.
    fn tries_left(&self, tries: usize) -> usize {
        let most = self.location().map_or(0, |conf| conf.next_upstream_tries);
        if most == 0 { tries } else { tries.min(most.saturating_sub(self.spent())) }
    }

    fn choose(&mut self, pc: PeerConnection) -> ngx_int_t {
        let is_any_closed = self.upstream.closed.is_any();
        let status = if is_any_closed { self.choose_among_the_open(pc) } else { self.inner.get(pc) };
        if status == rc::BUSY {
            pc.forget(self.upstream.host());
        }
        status
    }

    /// Marks keep requests away from some of many peers, of which the balancer is told.
    #[cold]
    fn choose_among_the_open(&mut self, pc: PeerConnection) -> ngx_int_t {
        let upstream = self.upstream;
        // SAFETY: the request lives while its upstream calls us.
        let told = upstream.closed.tell(unsafe { self.request.as_ref() }, &self.inner);
        let status = self.inner.get(pc);
        let Some(told) = told else { return status };
        told.end();
        if status != rc::BUSY {
            return status;
        }
        self.note_refusal();
        upstream.closed.look(&self.place.zone.table);
        if told.was_wrong() { self.inner.get(pc) } else { status }
    }

    /// Marks have kept it from a peer, whatever they say now.
    fn note_refusal(&mut self) {
        if !self.was_refused {
            self.was_refused = true;
            self.changes = self.upstream.changes();
        }
    }

    #[inline]
    fn admit(&mut self, pc: PeerConnection, chosen: &Turnstile<'static>) -> bool {
        let upstream = self.upstream;
        match chosen.claim(|| upstream.is_paused(), || self.try_trial(pc, chosen.id)) {
            Admission::Admitted | Admission::OnTrial => {
                chosen.slot.count_request(unix());
                self.is_claimed = true;
                true
            }
            Admission::Refused(_) => {
                chosen.slot.count_refused();
                self.note_refusal();
                false
            }
            Admission::Paused => false,
        }
    }

    /// Puts the attempt on trial, if the request is fit for one.
    #[cold]
    fn try_trial(&mut self, pc: PeerConnection, id: SlotId) -> bool {
        // SAFETY: the request lives while its upstream calls us.
        let r = unsafe { self.request.as_ref() };
        self.candidate(r, pc, id).is_some_and(|candidate| candidate.is_fit())
            && trial::begin(r, &mut self.inner)
    }

    fn candidate(&self, r: &ngx_http_request_t, pc: PeerConnection, id: SlotId) -> Option<Candidate> {
        // No earlier attempt's: the balancer was asked since.
        let conf = self.location()?;
        let timeout = conf.next_upstream_timeout;
        let passed = global!(ngx_current_msec).wrapping_sub(pc.started());
        Some(Candidate {
            is_safe: r.method & (NGX_HTTP_GET | NGX_HTTP_HEAD) as ngx_uint_t != 0,
            upgrades: !r.headers_in.upgrade.is_null(),
            is_unbuffered: is_unread(r),
            may_go_on: trial::may_go_on(conf) && (timeout == 0 || passed < timeout),
            tries: pc.tries(),
            tried: self.tries as usize,
            others: self.upstream.serving_beside(&self.place.zone, id),
        })
    }

    /// A connection that was opened to an earlier worker is not used for this one; nor is one that the peer may be closing, if
    /// nginx could not try again. Then nginx opens another.
    /// `reasons`: those of `proxy_next_upstream`.
    #[inline]
    fn connection(
        &self,
        pc: PeerConnection,
        status: ngx_int_t,
        chosen: Option<&Turnstile<'_>>,
        reasons: ngx_uint_t,
    ) -> ngx_int_t {
        if status != rc::DONE {
            return status;
        }
        let is_retired =
            chosen.zip(pc.number()).is_some_and(|(chosen, number)| !chosen.slot.may_reuse(number));
        if is_retired || !self.may_ride(pc, reasons) {
            pc.close_cached();
            return rc::OK;
        }
        status
    }

    #[inline]
    fn may_ride(&self, pc: PeerConnection, reasons: ngx_uint_t) -> bool {
        // SAFETY: the request lives while its upstream calls us.
        let r = unsafe { self.request.as_ref() };
        let rider = Rider {
            may_change: r.method & (NGX_HTTP_POST | NGX_HTTP_LOCK | NGX_HTTP_PATCH) as ngx_uint_t != 0,
            is_unbuffered: self.is_unbuffered,
            may_go_on: reasons & NGX_HTTP_UPSTREAM_FT_ERROR as ngx_uint_t != 0,
        };
        self.upstream.reuse.allows(rider, || reuse::idle(pc))
    }

    /// What broke off goes on here.
    #[cold]
    fn resume(&mut self) {
        if let Some(slot) = self.retry_mut().and_then(|retry| retry.broken.take()) {
            slot.count_resumed();
        }
    }

    /// Undoes a choice: nothing was tried, so nothing is counted as tried.
    #[cold]
    fn hand_back(&self, pc: PeerConnection, status: ngx_int_t) {
        if status == rc::DONE {
            pc.close_cached();
        }
        let tries = pc.tries();
        self.inner.free(pc, 0);
        pc.set_tries(tries);
        pc.forget(self.upstream.host());
    }

    #[inline]
    fn free(&mut self, pc: PeerConnection, state: ngx_uint_t) {
        if state != 0 || !self.is_plain() || orphan::is_any() || self.ends(pc).is_none() {
            self.free_after_all(pc, state);
        }
    }

    /// An attempt that was answered, and over a connection that is still open. `None`: it was not, and nothing was done.
    #[inline]
    fn ends(&mut self, pc: PeerConnection) -> Option<()> {
        let claimed = self.claimed()?;
        // SAFETY: the upstream of a request, which lives while it calls us; null or not.
        let u = unsafe { self.upstream().as_ref() }?;
        // SAFETY: null, or this attempt's place in an array of the request.
        let state = unsafe { u.state.as_ref() }?;
        let ridden = Ridden::of(pc).filter(|_| ending::closed(pc).is_none())?;
        let ((status, began), attempt) = (answer(u, state)?, attempted(u, state));
        let slot = claimed.slot;
        slot.answers.count(status);
        slot.timing.count(&attempt);
        if !slot.may_keep(ridden.number) {
            self.do_not_pool();
        }
        self.note(ridden, began);
        self.inner.free(pc, 0);
        self.is_claimed = false;
        claimed.release();
        Some(())
    }

    /// If the cache keeps the connection: it is idle since its last answer began. The peer may have ended that long before a slow
    /// client has it all.
    #[inline]
    fn note(&self, ridden: Ridden, began: ngx_msec_t) {
        if self.upstream.reuse != Reuse::Always {
            ridden.note(began);
        }
    }

    /// However it ended.
    #[cold]
    #[inline(never)]
    fn free_after_all(&mut self, pc: PeerConnection, state: ngx_uint_t) {
        if self.held.is_some() && self.free_held(pc) {
            return;
        }
        let state_of_nginx = state;
        let has_failed = state & NGX_PEER_FAILED as ngx_uint_t != 0;
        if has_failed && pc.connection().is_some_and(|connection| connection.sent > 0) {
            self.breaks(pc);
        }
        let (answer, attempt, ridden) = (self.answer(), self.attempted(), Ridden::of(pc));
        let is_orphan = ridden.is_some_and(|ridden| orphan::take(ridden.number));
        let state = if is_orphan { trial::spared(state) } else { state };
        if let Some(&Turnstile { slot, .. }) = self.claimed() {
            let failed = state & NGX_PEER_FAILED as ngx_uint_t != 0;
            if failed {
                slot.count_fail();
            }
            if let Some((status, _)) = answer {
                slot.answers.count(status);
            }
            if let Some(attempt) = attempt {
                slot.timing.count(&attempt);
            }
            if (failed || ending::closed(pc).is_some()) && self.is_broken(pc, failed, answer.is_some()) {
                slot.count_broken();
                if let Some(retry) = self.retrying().filter(|_| answer.is_none()) {
                    retry.broken = Some(slot);
                }
            }
            if is_orphan || ridden.is_some_and(|ridden| !slot.may_keep(ridden.number)) {
                self.do_not_pool();
            }
        }
        if let Some((ridden, (_, began))) = ridden.zip(answer) {
            self.note(ridden, began);
        }
        // The cache keeps a connection by the address that the balancer will choose again.
        if let Some(occupant) = self.seated.take() {
            pc.unseat(occupant);
        }
        self.inner.free(pc, state);
        if is_orphan {
            self.go_on(pc);
        }
        if state_of_nginx != 0 {
            self.decide(pc, is_orphan);
        } else {
            self.give_back_place();
        }
        if let Some(claimed) = self.claimed() {
            self.is_claimed = false;
            claimed.release();
        }
    }

    fn is_broken(&self, pc: PeerConnection, failed: bool, is_read: bool) -> bool {
        // SAFETY: the upstream of a request, which lives while it calls us; null or not.
        let u = unsafe { self.upstream().as_ref() };
        u.is_some_and(|u| ending::of(u, pc, failed, is_read).is_broken())
    }

    /// Nobody read anything of the request: it is as if it had not been sent, and has an attempt more. A body that was not
    /// kept cannot be sent again. nginx asks twice whether it was sent: now, whether it may be repeated, and after the next
    /// `get`, whether its buffers are to be rewound.
    #[cold]
    fn go_on(&mut self, pc: PeerConnection) {
        if self.location().is_some_and(|conf| conf.request_buffering != 0)
            && let Some(retry) = self.retrying()
        {
            retry.next = Some(Next { rewinds: true, ..Next::default() });
            self.set_request_sent(false);
        }
        pc.set_tries(pc.tries().saturating_add(1));
    }

    pub(crate) fn set_request_sent(&self, is_sent: bool) {
        // SAFETY: as above.
        if let Some(u) = unsafe { self.upstream().as_mut() } {
            u.set_request_sent(is_sent.into());
        }
    }

    /// The status of this attempt's answer, and when it began.
    pub(crate) fn answer(&self) -> Option<(ngx_uint_t, ngx_msec_t)> {
        // SAFETY: the upstream of a request, which lives while it calls us; null or not.
        let u = unsafe { self.upstream().as_ref() }?;
        // SAFETY: null, or this attempt's place in an array of the request.
        answer(u, unsafe { u.state.as_ref() }?)
    }

    /// What nginx measured of this attempt, which is over.
    fn attempted(&self) -> Option<Attempt> {
        // SAFETY: the upstream of a request, which lives while it calls us; null or not.
        let u = unsafe { self.upstream().as_ref() }?;
        // SAFETY: null, or this attempt's place in an array of the request.
        Some(attempted(u, unsafe { u.state.as_ref() }?))
    }

    /// The keepalive cache keeps a connection only if nginx says so.
    fn do_not_pool(&self) {
        // SAFETY: as above.
        if let Some(u) = unsafe { self.upstream().as_mut() } {
            u.set_keepalive(0);
        }
    }

    /// The configuration of the location, or of an attempt on trial: as nginx sees it.
    #[inline]
    pub(crate) fn location(&self) -> Option<&ngx_http_upstream_conf_t> {
        // SAFETY: the upstream of a request, which lives while it calls us; null or not.
        let u = unsafe { self.upstream().as_ref() }?;
        // SAFETY: null, or a configuration that lives as long as the request.
        unsafe { u.conf.as_ref() }
    }

    pub(crate) fn upstream(&self) -> *mut ngx_http_upstream_t {
        // SAFETY: the request lives while its upstream calls us.
        unsafe { (*self.request.as_ptr()).upstream }
    }
}

/// The status of an answer, and when it began, if its whole header was read. nginx has a status before that, from the first line
/// of a header that never ends or is no good; its own status for an attempt that failed it writes there afterwards.
#[inline]
fn answer(u: &ngx_http_upstream_t, state: &ngx_http_upstream_state_t) -> Option<(ngx_uint_t, ngx_msec_t)> {
    let is_read = state.header_time != ngx_msec_t::MAX;
    is_read.then(|| (state.status, u.start_time.wrapping_add(state.header_time)))
}

#[inline]
fn attempted(u: &ngx_http_upstream_t, state: &ngx_http_upstream_state_t) -> Attempt {
    // nginx notes it before it frees the peer, but for an attempt that it goes on from.
    let response = match state.response_time {
        ngx_msec_t::MAX => global!(ngx_current_msec).wrapping_sub(u.start_time),
        response => response,
    };
    let is_read = state.header_time != ngx_msec_t::MAX;
    let times = Times { header: state.header_time as u64, response: response as u64 };
    Attempt {
        // They are counted from 0.
        sent: state.bytes_sent as u64,
        received: state.bytes_received as u64,
        answer: is_read.then_some(times),
    }
}

/// Whether the request is passed on while its body still comes. Not by `request_body_no_buffering`: in an nginx since 1.29.3
/// the bits of a request follow a field of 16 bits, and the bindings misplace them.
fn is_unread(r: &ngx_http_request_t) -> bool {
    // SAFETY: null, or what is known of the body of this request.
    unsafe { r.request_body.as_ref() }.is_some_and(|body| body.rest > 0)
}
