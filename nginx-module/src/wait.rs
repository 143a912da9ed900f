//! A call that waits: "tell me when it is drained", or quiet, or gone.
//!
//! It polls the ledger every few milliseconds, answers when nothing is in flight, when its time is over, or when the
//! worker is asked to go; a client that hangs up ends it at once.

use crate::conf::MainConf;
use crate::nginx::{is_exiting, moment, rc};
use crate::reply;
use handoff_core::control::{find, unknown_upstream};
use handoff_core::{Table, view};
use handoff_wire::{Drained, PeerAck, Quiet, Refusal, Span};
use nginx_sys::{
    NGX_HTTP_INTERNAL_SERVER_ERROR, ngx_add_timer, ngx_del_timer, ngx_event_t, ngx_http_cleanup_add,
    ngx_http_finalize_request, ngx_http_request_t, ngx_http_run_posted_requests, ngx_http_test_reading,
    ngx_int_t, ngx_msec_t, ngx_pcalloc,
};
use std::ffi::c_void;
use std::ptr::NonNull;

/// How often a waiting call looks. It costs a few reads of shared memory.
const POLL_MS: ngx_msec_t = 5;

pub(crate) struct Wait {
    pub(crate) conf: &'static MainConf,
    pub(crate) table: Table<'static>,
    pub(crate) awaited: Awaited,
    pub(crate) timeout: Span,
}

/// What is looked up by its name each time: a slot may be given to another peer while we wait.
pub(crate) enum Awaited {
    Drained {
        upstream: String,
        peer: String,
    },
    Quiet {
        upstream: String,
    },
    /// A peer that was removed, until its last request is over.
    Gone(PeerAck),
}

enum Seen {
    Gone(PeerAck),
    Drained(Drained),
    Quiet(Quiet),
}

/// A waiting call, in the pool of its request. The event comes first: nginx hands us nothing else.
#[repr(C)]
struct Waiter {
    event: ngx_event_t,
    request: NonNull<ngx_http_request_t>,
    wait: Wait,
    until: u64,
}

/// Answers at once if there is nothing to wait for.
pub(crate) fn begin(r: &mut ngx_http_request_t, wait: Wait) -> ngx_int_t {
    let now = moment().mono;
    let until = now.saturating_add(wait.timeout.as_millis());
    let seen = look(&wait);
    if is_over(&seen, now, until) {
        return answer(r, seen);
    }
    park(r, wait, until).unwrap_or(NGX_HTTP_INTERNAL_SERVER_ERROR as ngx_int_t)
}

fn look(wait: &Wait) -> Result<Seen, Refusal> {
    let Wait { conf, table, awaited, .. } = wait;
    match awaited {
        Awaited::Drained { upstream, peer } => {
            let slot = find(table, upstream, peer)?;
            Ok(Seen::Drained(view::drained(table, *conf, slot)))
        }
        Awaited::Gone(ack) => {
            // Nobody, or somebody else, has its slot by now.
            let drained = find(table, &ack.upstream, &ack.peer).map(|slot| view::drained(table, *conf, slot));
            let in_flight = drained.map_or(0, |drained| drained.in_flight);
            Ok(Seen::Gone(PeerAck { in_flight, ..ack.clone() }))
        }
        Awaited::Quiet { upstream } if conf.upstream(upstream).is_none() => Err(unknown_upstream(upstream)),
        Awaited::Quiet { upstream } => Ok(Seen::Quiet(view::quiet(table, *conf, moment(), upstream))),
    }
}

fn is_over(seen: &Result<Seen, Refusal>, now: u64, until: u64) -> bool {
    let has_come = match seen {
        Ok(Seen::Gone(ack)) => ack.in_flight == 0,
        Ok(Seen::Drained(drained)) => drained.drained,
        // Without a pause it will not come.
        Ok(Seen::Quiet(quiet)) => quiet.quiet || quiet.left.is_none(),
        Err(_) => true,
    };
    has_come || now >= until || is_exiting()
}

fn answer(r: &mut ngx_http_request_t, seen: Result<Seen, Refusal>) -> ngx_int_t {
    match seen {
        Ok(Seen::Gone(ack)) => reply::send(r, 200, reply::json(&ack)),
        Ok(Seen::Drained(drained)) => reply::send(r, 200, reply::json(&drained)),
        Ok(Seen::Quiet(quiet)) => reply::send(r, 200, reply::json(&quiet)),
        Err(refusal) => reply::refusal(r, refusal),
    }
}

/// `None`: there is no memory.
fn park(r: &mut ngx_http_request_t, wait: Wait, until: u64) -> Option<ngx_int_t> {
    // SAFETY: the pool of the request; null when there is no memory.
    let memory = NonNull::new(unsafe { ngx_pcalloc(r.pool, size_of::<Waiter>()) })?.cast::<Waiter>();
    // SAFETY: a request that has not been answered.
    let cleanup = unsafe { ngx_http_cleanup_add(r, 0) };
    // SAFETY: null when there is no memory.
    let cleanup = unsafe { cleanup.as_mut() }?;
    let request = NonNull::from(&mut *r);
    // SAFETY: all fields of an event may be zero.
    let event: ngx_event_t = unsafe { std::mem::zeroed() };
    // SAFETY: fresh memory of this size; pools align for any type.
    unsafe { memory.write(Waiter { event, request, wait, until }) };
    // SAFETY: written above, and nobody else knows of it.
    let waiter = unsafe { &mut *memory.as_ptr() };
    waiter.event.handler = Some(look_again);
    waiter.event.data = r.connection.cast();
    // SAFETY: a request has a connection.
    waiter.event.log = unsafe { (*r.connection).log };
    cleanup.handler = Some(forget);
    cleanup.data = memory.as_ptr().cast();
    // SAFETY: the event lives as long as the request, whose cleanup takes the timer away.
    unsafe { ngx_add_timer(&raw mut waiter.event, POLL_MS) };
    r.read_event_handler = Some(ngx_http_test_reading);
    // SAFETY: a request belongs to a main request.
    let main = unsafe { &mut *r.main };
    main.set_count(main.count().wrapping_add(1));
    Some(rc::DONE)
}

unsafe extern "C" fn look_again(event: *mut ngx_event_t) {
    // SAFETY: the event is the first field of a waiter, whose request still lives: its cleanup takes the timer away.
    let waiter = unsafe { &mut *event.cast::<Waiter>() };
    let seen = look(&waiter.wait);
    if !is_over(&seen, moment().mono, waiter.until) {
        // SAFETY: as in park().
        return unsafe { ngx_add_timer(event, POLL_MS) };
    }
    let r = waiter.request.as_ptr();
    // SAFETY: the request lives, see above.
    let request = unsafe { &mut *r };
    let connection = request.connection;
    let status = answer(request, seen);
    // SAFETY: gives back the count that park() added; the request may be gone after this.
    unsafe { ngx_http_finalize_request(r, status) };
    // SAFETY: a connection outlives its requests until the event that closed it is over.
    unsafe { ngx_http_run_posted_requests(connection) };
}

unsafe extern "C" fn forget(data: *mut c_void) {
    let waiter = data.cast::<Waiter>();
    // SAFETY: the waiter of a request that is about to be freed.
    let event = unsafe { &mut (*waiter).event };
    if event.timer_set() != 0 {
        // SAFETY: the timer is set.
        unsafe { ngx_del_timer(event) };
    }
    // SAFETY: nginx calls a cleanup once, and the pool would not drop what the waiter owns.
    unsafe { waiter.drop_in_place() };
}
