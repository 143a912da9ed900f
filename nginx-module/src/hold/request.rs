//! What is to be known of a request that would wait.

use crate::nginx::{global, is_broken};
use handoff_core::hold::Queue;
use nginx_sys::{ngx_http_request_t, ngx_uint_t};
use std::ptr;

/// Whether this process has connections enough for others.
pub(super) fn spares_a_connection() -> bool {
    let cycle = global!(ngx_cycle);
    // SAFETY: the cycle of this process, which lives as long as the process.
    let Some(cycle) = (unsafe { cycle.as_ref() }) else { return false };
    // Those that only wait for a next request nginx closes when it needs them.
    let free = cycle.free_connection_n.saturating_add(cycle.reusable_connections_n);
    Queue::spares(free, cycle.connection_n)
}

/// Whether it is a request that no other one waits for, though its client's next one does. nginx keeps the others in a list of
/// the request that they are part of. Not by the bit: see `is_unread` in peer.rs.
pub(super) fn is_background(r: &ngx_http_request_t) -> bool {
    // SAFETY: null, or the request that this one is part of.
    let Some(parent) = (unsafe { r.parent.as_ref() }) else { return false };
    // SAFETY: null, or a list in the pool of the main request.
    let first = unsafe { parent.postponed.as_ref() };
    // SAFETY: as above.
    let mut parts = std::iter::successors(first, |part| unsafe { part.next.as_ref() });
    !parts.any(|part| ptr::eq(part.request, r))
}

/// Whether nginx goes on for a client that is gone.
fn is_patient(r: &ngx_http_request_t) -> bool {
    // SAFETY: null, or the upstream of the request.
    let u = unsafe { r.upstream.as_ref() };
    // SAFETY: null, or the configuration of the location.
    u.and_then(|u| unsafe { u.conf.as_ref() }).is_some_and(|conf| conf.ignore_client_abort != 0)
}

#[cfg(ngx_feature = "http_cache")]
pub(super) fn has_stale(r: &ngx_http_request_t) -> bool {
    // SAFETY: null, or the upstream of the request.
    let Some(u) = (unsafe { r.upstream.as_ref() }) else { return false };
    // SAFETY: null, or the configuration of the location.
    let Some(conf) = (unsafe { u.conf.as_ref() }) else { return false };
    // SAFETY: null, or what nginx's cache has for the request.
    let may_be_told = unsafe { r.cache.as_ref() }.is_some_and(|cache| cache.stale_error() != 0);
    let nobody = nginx_sys::NGX_HTTP_UPSTREAM_FT_NOLIVE as ngx_uint_t;
    u.cache_status() == nginx_sys::NGX_HTTP_CACHE_EXPIRED
        && (may_be_told || conf.cache_use_stale & nobody != 0)
}

#[cfg(not(ngx_feature = "http_cache"))]
pub(super) fn has_stale(_: &ngx_http_request_t) -> bool {
    false
}

/// Nobody is there any more to whom it could be answered. nginx ends most of these by itself, but not those whose answer it
/// would put into its cache.
pub(super) fn is_forsaken(r: &ngx_http_request_t) -> bool {
    is_broken(r) && !is_patient(r)
}

/// What the client sent, as far as it has come. A request that is part of another holds nothing of its own.
pub(super) fn bytes(r: &ngx_http_request_t) -> u64 {
    if ptr::eq(r.main, r) { u64::try_from(r.request_length).unwrap_or_default() } else { 0 }
}
