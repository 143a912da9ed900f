//! What becomes of a request that a peer failed. Core decides ([`handoff_core::retry`]).
//!
//! It is asked at two moments. Where nginx frees a peer that failed: nginx has not yet looked whether it may try again, and will
//! find as many tries as we leave there. And where the header of an answer was read that `proxy_next_upstream` takes for a
//! failure: nginx goes on from there only if it has a try left *before* it frees the peer, and else passes the answer on; so who
//! decides later would have to throw the answer away first. For those who name such a status in their configuration the
//! function that reads the header of an answer is therefore one of ours, around nginx's own.

use crate::ending;
use crate::hold::now;
use crate::name;
use crate::nginx::{PeerConnection, connections, global, is_broken, moment, rc, text};
use crate::peer::PeerData;
use handoff_core::Turnstile;
use handoff_core::retry::{Around, Cause, Failure, Granted, NEWS, Rest, RetryAfter, Sent, Verdict};
use handoff_core::slot::Slot;
use handoff_core::table::SlotId;
use handoff_wire::State;
use nginx_sys::{
    NGX_HTTP_LOCK, NGX_HTTP_PATCH, NGX_HTTP_POST, NGX_HTTP_UPSTREAM_FT_ERROR, NGX_HTTP_UPSTREAM_FT_HTTP_403,
    NGX_HTTP_UPSTREAM_FT_HTTP_404, NGX_HTTP_UPSTREAM_FT_HTTP_429, NGX_HTTP_UPSTREAM_FT_HTTP_500,
    NGX_HTTP_UPSTREAM_FT_HTTP_502, NGX_HTTP_UPSTREAM_FT_HTTP_503, NGX_HTTP_UPSTREAM_FT_HTTP_504,
    NGX_HTTP_UPSTREAM_FT_INVALID_HEADER, NGX_HTTP_UPSTREAM_FT_NON_IDEMPOTENT, NGX_HTTP_UPSTREAM_FT_TIMEOUT,
    ngx_http_request_t, ngx_http_upstream_t, ngx_int_t, ngx_list_part_t, ngx_palloc, ngx_pool_cleanup_add,
    ngx_table_elt_t, ngx_uint_t,
};
use std::cell::Cell;
use std::ffi::c_void;
use std::ptr::NonNull;
use std::{iter, ptr, slice};

/// What nginx takes for a failure, if the configuration says so, and another worker would perhaps answer.
pub(crate) const TEMPORARY: u32 = NGX_HTTP_UPSTREAM_FT_HTTP_429
    | NGX_HTTP_UPSTREAM_FT_HTTP_502
    | NGX_HTTP_UPSTREAM_FT_HTTP_503
    | NGX_HTTP_UPSTREAM_FT_HTTP_504;

/// What is kept of a request that a peer has failed, or whose answer may be taken for that; in its pool.
#[derive(Default)]
pub(crate) struct Retry {
    /// How many attempts failed with some of the request sent.
    pub(crate) broke: u32,
    /// Where the last attempt broke off, until another one begins.
    pub(crate) broken: Option<&'static Slot>,
    /// The request has been given what nginx alone would not have given it, and counts for the budget.
    has_place: Cell<bool>,
    /// The place is given back whatever becomes of the request.
    is_guarded: Cell<bool>,
    added: u32,
    /// A connection with a smaller number was there when an attempt last broke.
    broken_before: u64,
    /// Whose death was last counted, and when it was.
    broken_at: Option<(SlotId, u64)>,
    /// How many attempts broke over a connection of the keepalive cache. nginx does not count these.
    stale: u32,
    /// A connection with a smaller number was there before the last attempt that failed.
    number: u64,
    watched: Option<Watched>,
    /// Of an answer that nginx is about to take for a failure.
    judged: Option<Verdict>,
    /// The last one, for the access log.
    verdict: Option<Verdict>,
    pub(crate) next: Option<Next>,
    /// Why it rests now, and until when.
    pub(crate) resting: Option<(Rest, u64)>,
}

/// What is to be done when nginx asks for the next peer.
#[derive(Clone, Copy, Default)]
pub(crate) struct Next {
    /// What was sent is to be sent again, though nginx takes it for not sent.
    pub(crate) rewinds: bool,
    /// The balancer is to forget whom it has tried.
    pub(crate) begins_anew: bool,
    /// It waits a moment first.
    pub(crate) rests: Option<Rest>,
}

type Function = unsafe extern "C" fn(*mut ngx_http_request_t) -> ngx_int_t;

/// The functions of nginx's around which ours stand.
#[derive(Clone, Copy)]
struct Watched {
    process_header: Function,
    reinit_request: Function,
}

// === impl PeerData ===

impl PeerData {
    pub(crate) fn retry(&self) -> Option<&Retry> {
        // SAFETY: in the pool of the request, and nobody changes it now.
        self.retry.map(|retry| unsafe { retry.as_ref() })
    }

    pub(crate) fn retry_mut(&mut self) -> Option<&mut Retry> {
        // SAFETY: in the pool of the request, and ours alone while nginx is in one of our functions.
        self.retry.map(|mut retry| unsafe { retry.as_mut() })
    }

    /// The same, and there is one from now on. `None`: there is no memory, and nothing is added to what nginx does.
    #[cold]
    pub(crate) fn retrying(&mut self) -> Option<&mut Retry> {
        if self.retry.is_none() {
            // SAFETY: the request lives while its upstream calls us.
            let pool = unsafe { self.request.as_ref() }.pool;
            // SAFETY: the pool of the request; null when there is no memory.
            let memory = NonNull::new(unsafe { ngx_palloc(pool, size_of::<Retry>()) })?.cast::<Retry>();
            // SAFETY: fresh memory of this size; pools align for any type.
            unsafe { memory.write(Retry::default()) };
            self.retry = Some(memory);
        }
        self.retry_mut()
    }

    /// What was decided about the last attempt that failed.
    pub(crate) fn verdict(&self) -> Option<Verdict> {
        self.retry()?.verdict
    }

    /// An attempt failed with some of the request sent. When a worker dies, other connections to it may still be in the cache: one
    /// that was there at the last time tells nothing of another worker. Nor does one to the same worker that it has let in while
    /// its process was going.
    #[cold]
    pub(crate) fn breaks(&mut self, pc: PeerConnection) {
        let (at, last, is_another) = (now().mono, self.last().map(|last| last.id), self.is_to_another(pc));
        let Some(retry) = self.retrying() else { return };
        let is_old = pc.is_cached() && pc.number().is_some_and(|number| number < retry.broken_before);
        let is_going = retry.broken_at.is_some_and(|(peer, since)| {
            last == Some(peer) && at.saturating_sub(since) < NEWS && !is_another
        });
        if !(is_old || is_going) {
            retry.broke = retry.broke.saturating_add(1);
            retry.broken_at = last.map(|last| (last, at));
        }
        retry.broken_before = connections();
    }

    /// This connection was opened when nginx had been told that the worker of the one before had gone, or others share its address.
    fn is_to_another(&self, pc: PeerConnection) -> bool {
        self.last().is_some_and(|Turnstile { slot, .. }| {
            let is_shared = slot.gate.state() == State::Changing;
            is_shared || (self.is_replaced() && slot.may_reuse(number(pc)))
        })
    }

    /// Another worker is behind the address of the last attempt that failed, or others share it.
    fn is_replaced(&self) -> bool {
        let number = self.retry().map_or(0, |retry| retry.number);
        self.last().is_some_and(|Turnstile { slot, .. }| {
            slot.gate.state() == State::Changing || !slot.may_reuse(number)
        })
    }

    /// nginx has freed a peer that failed. It goes on if it finds a try.
    #[cold]
    pub(crate) fn decide(&mut self, pc: PeerConnection, is_orphan: bool) {
        let Some(retry) = self.retrying() else { return };
        let judged = retry.judged.take();
        // SAFETY: the request lives while its upstream calls us.
        let is_left = is_broken(unsafe { self.request.as_ref() });
        let verdict = if is_left { None } else { judged.or_else(|| self.judge_failure(pc)) };
        let Some(verdict) = verdict else { return self.give_back_place() };
        let verdict = match verdict {
            Verdict::Granted(Granted::Next) if is_orphan => Verdict::Granted(Granted::Orphan),
            verdict => verdict,
        };
        self.remember(verdict);
        self.follow(pc, verdict);
    }

    fn follow(&mut self, pc: PeerConnection, verdict: Verdict) {
        let next = match verdict {
            Verdict::Granted(Granted::Unsent | Granted::Held) => Next::default(),
            Verdict::Granted(Granted::Replaced) => {
                self.adds();
                Next { begins_anew: true, ..Next::default() }
            }
            Verdict::Rests(rest) => Next { rests: Some(rest), ..Next::default() },
            // nginx does what it would do anyhow.
            Verdict::Refused(_) | Verdict::Granted(_) => return self.give_back_place(),
        };
        if verdict != Verdict::Granted(Granted::Unsent) {
            pc.set_tries(1);
        }
        // nginx asks twice whether it was sent: now, whether it may be repeated, and then, whether its buffers are to be rewound.
        let is_sent = self.is_sent();
        let Some(retry) = self.retry_mut() else { return };
        let rewinds = is_sent || retry.next.is_some_and(|next| next.rewinds);
        retry.next = Some(Next { rewinds, ..next });
        self.set_request_sent(false);
    }

    fn adds(&mut self) {
        if let Some(retry) = self.retry_mut() {
            retry.added = retry.added.saturating_add(1);
        }
    }

    /// One that rested goes on, or does not.
    pub(crate) fn settles(&mut self, verdict: Verdict) -> bool {
        self.remember(verdict);
        if matches!(verdict, Verdict::Granted(Granted::Replaced | Granted::RetryAfter)) {
            self.adds();
        }
        matches!(verdict, Verdict::Granted(_))
    }

    fn remember(&mut self, verdict: Verdict) {
        if let Some(retry) = self.retry_mut() {
            retry.verdict = Some(verdict);
        }
        if let Some(room) = self.upstream.hold.room() {
            room.retries.count(verdict);
        }
    }

    fn judge_failure(&mut self, pc: PeerConnection) -> Option<Verdict> {
        // SAFETY: the upstream of a request, which lives while it calls us; null or not.
        let u = unsafe { self.upstream().as_ref() }?;
        let (cause, reason) = self.cause(u, pc);
        // nginx adds one itself, later.
        let is_stale = pc.is_cached() && cause == Cause::Connection;
        let retry = self.retry_mut()?;
        retry.number = number(pc);
        retry.stale = retry.stale.saturating_add(is_stale.into());
        let tries_left =
            if self.is_at_the_only_one() { 0 } else { pc.tries().saturating_add(is_stale.into()) };
        let failure = self.failure(u, pc, cause, reason, tries_left)?;
        if let Some(last) = self.last().filter(|_| failure.met_nobody()) {
            last.slot.miss(moment().mono);
        }
        Some(self.judge(&failure, false))
    }

    /// The header of an answer was read.
    fn judge_answer(&mut self) {
        // SAFETY: the upstream of a request, which lives while it calls us; null or not.
        let Some(u) = (unsafe { self.upstream().as_mut() }) else { return };
        let reason = status_reason(u.headers_in.status_n);
        // Nobody is with a peer any more where nginx reads what its cache has.
        if reason & TEMPORARY == 0 || name::is_from_cache(u) || u.peer.sockaddr.is_null() {
            return;
        }
        let pc = PeerConnection(&raw mut u.peer);
        let Some(retry) = self.retry_mut() else { return };
        retry.number = number(pc);
        let is_at_the_only_one = self.is_at_the_only_one();
        let tries_left = if is_at_the_only_one { 0 } else { pc.tries().saturating_sub(1) };
        let Some(failure) = self.failure(u, pc, Cause::Status, reason, tries_left) else { return };
        if !failure.is_reason {
            return;
        }
        match self.judge(&failure, true) {
            // It is asked again when the peer is freed.
            Verdict::Granted(Granted::Next) => {}
            verdict @ Verdict::Refused(_) => {
                self.remember(verdict);
                if is_at_the_only_one {
                    pc.set_tries(1);
                }
            }
            verdict => {
                if let Some(retry) = self.retry_mut() {
                    retry.judged = Some(verdict);
                }
                pc.set_tries(pc.tries().max(2));
            }
        }
    }

    /// nginx would find nobody else, however many tries it has.
    fn is_at_the_only_one(&self) -> bool {
        self.last().is_some_and(|last| self.upstream.others_are_closed(&self.place.zone, last.id))
    }

    fn judge(&self, failure: &Failure, is_to_fail: bool) -> Verdict {
        let has_room = self.upstream.hold.room().is_some();
        let has_budget = self.upstream.retry.is_some() && has_room;
        failure.verdict(has_budget, || self.around(is_to_fail, self.may_rest()), || self.takes_place())
    }

    fn failure(
        &self,
        u: &ngx_http_upstream_t,
        pc: PeerConnection,
        cause: Cause,
        reason: u32,
        tries_left: usize,
    ) -> Option<Failure> {
        // SAFETY: the request lives while its upstream calls us.
        let r = unsafe { self.request.as_ref() };
        // SAFETY: null, or the configuration of the location, or of an attempt on trial: as nginx sees it.
        let conf = unsafe { u.conf.as_ref() }?;
        let names = |reason: u32| conf.next_upstream & reason as ngx_uint_t != 0;
        let passed = global!(ngx_current_msec).wrapping_sub(pc.started());
        let timeout = conf.next_upstream_timeout;
        let sent = match (u.request_sent() != 0, pc.connection().map_or(0, |connection| connection.sent)) {
            (false, _) => Sent::Nothing,
            (true, 0) if cause != Cause::Status => Sent::NoByte,
            _ => Sent::Something,
        };
        Some(Failure {
            cause,
            sent,
            may_change: r.method & (NGX_HTTP_POST | NGX_HTTP_LOCK | NGX_HTTP_PATCH) as ngx_uint_t != 0,
            is_unbuffered: self.is_unbuffered,
            is_reason: names(reason),
            may_repeat_changes: names(NGX_HTTP_UPSTREAM_FT_NON_IDEMPOTENT),
            time_left: (timeout > 0).then(|| timeout.saturating_sub(passed) as u64),
            tries_left,
            may_try: conf.next_upstream_tries == 0 || self.spent() < conf.next_upstream_tries,
            broke: self.retry().map_or(0, |retry| retry.broke),
            added: self.retry().map_or(0, |retry| retry.added),
            retry_after: if cause == Cause::Status { retry_after(u) } else { None },
        })
    }

    /// How many of the tries that the configuration allows for were made.
    pub(crate) fn spent(&self) -> usize {
        self.tries.saturating_sub(self.retry().map_or(0, |retry| retry.stale)) as usize
    }

    /// nginx knows why it goes on, and does not say so when it frees the peer.
    fn cause(&self, u: &ngx_http_upstream_t, pc: PeerConnection) -> (Cause, u32) {
        if self.answer().is_some() {
            return (Cause::Status, status_reason(u.headers_in.status_n));
        }
        if ending::is_late(pc) {
            return (Cause::Answerless, NGX_HTTP_UPSTREAM_FT_TIMEOUT);
        }
        // SAFETY: null, or this attempt's place in an array of the request.
        let has_come = unsafe { u.state.as_ref() }.is_some_and(|state| state.bytes_received > 0);
        if has_come && ending::closed(pc).is_none() {
            return (Cause::Answerless, NGX_HTTP_UPSTREAM_FT_INVALID_HEADER);
        }
        (Cause::Connection, NGX_HTTP_UPSTREAM_FT_ERROR)
    }

    /// `is_to_fail`: nginx has not yet counted that the peer failed.
    #[cold]
    pub(crate) fn around(&self, is_to_fail: bool, may_rest: bool) -> Around {
        let zone = &self.place.zone;
        Around {
            would_wait: self.would_wait(),
            is_alone: self.last().is_some_and(|last| self.upstream.is_alone(zone, last.id, is_to_fail)),
            is_replaced: self.is_replaced(),
            may_rest,
        }
    }

    // === the budget ===

    /// Takes a place, and keeps it until what it was taken for is over.
    pub(crate) fn takes_place(&self) -> bool {
        let Some(retry) = self.retry() else { return false };
        if retry.has_place.get() {
            return true;
        }
        let (zone, row) = (&self.place.zone, self.place.row);
        let (Some(budget), Some(room)) = (self.upstream.retry, self.upstream.hold.room()) else {
            return false;
        };
        let has_place = self.is_guarded(retry) && room.repeat(row, &budget, self.upstream.active(zone));
        retry.has_place.set(has_place);
        has_place
    }

    /// At a glance.
    pub(crate) fn has_a_place_left(&self) -> bool {
        let zone = &self.place.zone;
        let (Some(budget), Some(room)) = (self.upstream.retry, self.upstream.hold.room()) else {
            return false;
        };
        self.has_place() || room.repeats() < budget.allowed(self.upstream.active(zone))
    }

    fn has_place(&self) -> bool {
        self.retry().is_some_and(|retry| retry.has_place.get())
    }

    #[inline]
    pub(crate) fn give_back_place(&self) {
        if self.retry.is_some() {
            self.leave_place();
        }
    }

    #[cold]
    fn leave_place(&self) {
        let had_place = self.retry().is_some_and(|retry| retry.has_place.replace(false));
        if let Some(room) = self.upstream.hold.room().filter(|_| had_place) {
            room.done(self.place.row);
        }
    }

    /// Whatever becomes of the request, its place is given back. False: there is no memory.
    fn is_guarded(&self, retry: &Retry) -> bool {
        if !retry.is_guarded.get() {
            // SAFETY: the request lives while its upstream calls us.
            let pool = unsafe { self.request.as_ref() }.pool;
            // SAFETY: the pool of the request; null when there is no memory.
            let cleanup = unsafe { ngx_pool_cleanup_add(pool, 0) };
            // SAFETY: as above.
            let Some(cleanup) = (unsafe { cleanup.as_mut() }) else { return false };
            cleanup.handler = Some(forget);
            cleanup.data = ptr::from_ref(self).cast_mut().cast();
            retry.is_guarded.set(true);
        }
        true
    }

    // === the header of an answer ===

    /// Puts our functions around nginx's, for a request whose configuration takes an answer for a failure.
    #[inline(never)]
    pub(crate) fn watch_answers(&mut self) {
        if self.upstream.retry.is_none() {
            return;
        }
        // SAFETY: the request lives while its upstream calls us.
        let ours = PeerData::at(unsafe { self.request.as_ref() });
        // SAFETY: the upstream of a request, which lives while it calls us; null or not.
        let Some(u) = (unsafe { self.upstream().as_mut() }) else { return };
        // Our functions find us by our hooks: not if somebody else stands before these.
        if let (Some(_), Some(process_header), Some(reinit_request)) =
            (ours, u.process_header, u.reinit_request)
        {
            let Some(retry) = self.retrying() else { return };
            retry.watched = Some(Watched { process_header, reinit_request });
            u.process_header = Some(read_header);
            u.reinit_request = Some(begin_again);
        }
    }

    /// nginx's functions put others in their place as they like.
    fn watch_again(&mut self) {
        // SAFETY: the upstream of a request, which lives while it calls us; null or not.
        let Some(u) = (unsafe { self.upstream().as_mut() }) else { return };
        let is_ours = |function: Function| function as usize == read_header as *const () as usize;
        if let Some(watched) = self.retry_mut().and_then(|retry| retry.watched.as_mut())
            && let Some(process_header) = u.process_header.filter(|&function| !is_ours(function))
        {
            watched.process_header = process_header;
            u.process_header = Some(read_header);
        }
    }

    fn is_sent(&self) -> bool {
        // SAFETY: the upstream of a request, which lives while it calls us; null or not.
        unsafe { self.upstream().as_ref() }.is_some_and(|u| u.request_sent() != 0)
    }
}

/// nginx frees the request's memory.
unsafe extern "C" fn forget(data: *mut c_void) {
    // SAFETY: what the cleanup was given, which lives in that memory.
    if let Some(data) = unsafe { data.cast::<PeerData>().as_ref() } {
        data.give_back_place();
    }
}

/// Around the function that reads the header of an answer.
unsafe extern "C" fn read_header(r: *mut ngx_http_request_t) -> ngx_int_t {
    let status = call(r, |watched| watched.process_header);
    if status == rc::OK {
        change(r, PeerData::judge_answer);
    }
    status
}

/// Around the function that prepares a request for its next attempt.
unsafe extern "C" fn begin_again(r: *mut ngx_http_request_t) -> ngx_int_t {
    call(r, |watched| watched.reinit_request)
}

fn call(r: *mut ngx_http_request_t, which: impl FnOnce(&Watched) -> Function) -> ngx_int_t {
    // SAFETY: nginx passes a valid request.
    let data = PeerData::of(unsafe { &*r });
    let watched = data.and_then(|data| data.retry()?.watched.as_ref());
    let Some(function) = watched.map(which) else {
        return rc::ERROR;
    };
    // SAFETY: called as nginx would call it.
    let status = unsafe { function(r) };
    change(r, PeerData::watch_again);
    status
}

fn change(r: *mut ngx_http_request_t, change: impl FnOnce(&mut PeerData)) {
    // SAFETY: nginx passes a valid request.
    if let Some(mut data) = PeerData::at(unsafe { &*r }) {
        // SAFETY: in the pool of the request, and nobody else holds a reference between two calls of nginx.
        change(unsafe { data.as_mut() });
    }
}

/// That of the attempt's connection; if it is gone already, that of the youngest, than which it was no younger.
fn number(pc: PeerConnection) -> u64 {
    pc.number().unwrap_or_else(|| connections().saturating_sub(1))
}

/// The word of `proxy_next_upstream` for an answer; 0: there is none.
fn status_reason(status: ngx_uint_t) -> u32 {
    match status {
        403 => NGX_HTTP_UPSTREAM_FT_HTTP_403,
        404 => NGX_HTTP_UPSTREAM_FT_HTTP_404,
        429 => NGX_HTTP_UPSTREAM_FT_HTTP_429,
        500 => NGX_HTTP_UPSTREAM_FT_HTTP_500,
        502 => NGX_HTTP_UPSTREAM_FT_HTTP_502,
        503 => NGX_HTTP_UPSTREAM_FT_HTTP_503,
        504 => NGX_HTTP_UPSTREAM_FT_HTTP_504,
        _ => 0,
    }
}

/// When the worker says that the request may come again.
fn retry_after(u: &ngx_http_upstream_t) -> Option<RetryAfter> {
    let header = headers(u).find(|header| header.key.as_bytes().eq_ignore_ascii_case(b"retry-after"))?;
    let seconds = text(&header.value).trim().parse();
    Some(seconds.map_or(RetryAfter::Unknown, RetryAfter::Seconds))
}

fn headers(u: &ngx_http_upstream_t) -> impl Iterator<Item = &ngx_table_elt_t> {
    let first = Some(&u.headers_in.headers.part);
    // SAFETY: null, or the next part of the list.
    let parts = iter::successors(first, |part: &&ngx_list_part_t| unsafe { part.next.as_ref() });
    parts.filter(|part| part.nelts > 0).flat_map(|part| {
        // SAFETY: a part holds so many headers.
        unsafe { slice::from_raw_parts(part.elts.cast::<ngx_table_elt_t>(), part.nelts) }
    })
}
