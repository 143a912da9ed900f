//! `$handoff_state`, `$handoff_tries`, `$handoff_retry`, `$handoff_held` and `$handoff_worker`, for access logs. Not found where
//! the request met no upstream of ours.

use crate::nginx::rc;
use crate::peer::PeerData;
use handoff_core::retry::Verdict;
use handoff_wire::State;
use nginx_sys::{
    NGX_HTTP_VAR_NOCACHEABLE, ngx_conf_t, ngx_http_add_variable, ngx_http_request_t, ngx_http_variable_t,
    ngx_http_variable_value_t, ngx_int_t, ngx_palloc, ngx_str_t, ngx_uint_t, u_char,
};
use ngx::core::Status;
use std::ptr;

type Getter =
    unsafe extern "C" fn(*mut ngx_http_request_t, *mut ngx_http_variable_value_t, usize) -> ngx_int_t;

pub(crate) fn add(cf: *mut ngx_conf_t) -> Status {
    let variables: [(ngx_str_t, Getter); 5] = [
        (ngx::ngx_string!("handoff_state"), state),
        (ngx::ngx_string!("handoff_tries"), tries),
        (ngx::ngx_string!("handoff_retry"), retry),
        (ngx::ngx_string!("handoff_held"), held),
        (ngx::ngx_string!("handoff_worker"), worker),
    ];
    for (mut name, getter) in variables {
        // SAFETY: the name is static; nginx copies it.
        let variable: *mut ngx_http_variable_t =
            unsafe { ngx_http_add_variable(cf, &raw mut name, NGX_HTTP_VAR_NOCACHEABLE as ngx_uint_t) };
        // SAFETY: null or a variable that was just made.
        let Some(variable) = (unsafe { variable.as_mut() }) else { return Status::NGX_ERROR };
        variable.get_handler = Some(getter);
    }
    Status::NGX_OK
}

/// What the peer that the request was last passed to is now.
unsafe extern "C" fn state(
    r: *mut ngx_http_request_t,
    v: *mut ngx_http_variable_value_t,
    _: usize,
) -> ngx_int_t {
    // SAFETY: nginx passes a valid request.
    let state = PeerData::of(unsafe { &*r }).and_then(PeerData::state);
    give(v, state.map(State::as_str))
}

/// How many times the request was passed to a peer.
unsafe extern "C" fn tries(
    r: *mut ngx_http_request_t,
    v: *mut ngx_http_variable_value_t,
    _: usize,
) -> ngx_int_t {
    // SAFETY: nginx passes a valid request.
    let r = unsafe { &*r };
    write(r, v, PeerData::of(r).map(|data| data.tries().to_string()))
}

/// Why the request was given to a peer again, or not, when it last failed.
unsafe extern "C" fn retry(
    r: *mut ngx_http_request_t,
    v: *mut ngx_http_variable_value_t,
    _: usize,
) -> ngx_int_t {
    // SAFETY: nginx passes a valid request.
    let verdict = PeerData::of(unsafe { &*r }).and_then(PeerData::verdict);
    give(v, verdict.and_then(Verdict::as_str))
}

/// How long the request waited for a peer, in seconds.
unsafe extern "C" fn held(
    r: *mut ngx_http_request_t,
    v: *mut ngx_http_variable_value_t,
    _: usize,
) -> ngx_int_t {
    // SAFETY: nginx passes a valid request.
    let r = unsafe { &*r };
    let waited = PeerData::of(r).map(PeerData::waited);
    write(r, v, waited.map(|waited| format!("{}.{:03}", waited / 1000, waited % 1000)))
}

fn write(r: &ngx_http_request_t, v: *mut ngx_http_variable_value_t, text: Option<String>) -> ngx_int_t {
    let Some(text) = text else { return give(v, None) };
    // SAFETY: the pool of the request; null when there is no memory.
    let memory = unsafe { ngx_palloc(r.pool, text.len()) }.cast::<u8>();
    if memory.is_null() {
        return rc::ERROR;
    }
    // SAFETY: fresh memory of this length.
    unsafe { ptr::copy_nonoverlapping(text.as_ptr(), memory, text.len()) };
    set(v, memory, text.len())
}

/// Who gave the answer, in its own words: they live in the request's pool.
unsafe extern "C" fn worker(
    r: *mut ngx_http_request_t,
    v: *mut ngx_http_variable_value_t,
    _: usize,
) -> ngx_int_t {
    // SAFETY: nginx passes a valid request.
    let name = PeerData::of(unsafe { &*r }).and_then(PeerData::name);
    name.map_or_else(|| give(v, None), |name| set(v, name.data, name.len))
}

fn give(v: *mut ngx_http_variable_value_t, text: Option<&'static str>) -> ngx_int_t {
    if let Some(text) = text {
        return set(v, text.as_ptr().cast_mut(), text.len());
    }
    // SAFETY: nginx passes the value to be filled in.
    unsafe { (*v).set_not_found(1) };
    rc::OK
}

fn set(v: *mut ngx_http_variable_value_t, data: *mut u_char, len: usize) -> ngx_int_t {
    // SAFETY: nginx passes the value to be filled in.
    let v = unsafe { &mut *v };
    v.set_len(u32::try_from(len).unwrap_or_default());
    v.set_valid(1);
    v.set_no_cacheable(0);
    v.set_not_found(0);
    v.data = data;
    rc::OK
}
