//! An attempt on trial: what the peer answers with an error is tried elsewhere, and is not held against it.
//!
//! For such an attempt the request gets hooks more, between ours and the balancer's, and a configuration of its own: a copy
//! of the location's that names every error as a reason to try the next peer. nginx reads those reasons after it has freed
//! the peer, so the location's own configuration comes back with the next attempt and not before; after the last attempt
//! nobody asks any more. Whoever never meets a peer on trial has none of this.

use crate::hooks::{Hooks, layer};
use crate::nginx::PeerConnection;
use nginx_sys::{
    NGX_CONF_BITMASK_SET, NGX_HTTP_UPSTREAM_FT_ERROR, NGX_HTTP_UPSTREAM_FT_HTTP_500,
    NGX_HTTP_UPSTREAM_FT_HTTP_502, NGX_HTTP_UPSTREAM_FT_HTTP_503, NGX_HTTP_UPSTREAM_FT_HTTP_504,
    NGX_HTTP_UPSTREAM_FT_INVALID_HEADER, NGX_HTTP_UPSTREAM_FT_OFF, NGX_HTTP_UPSTREAM_FT_TIMEOUT,
    NGX_PEER_FAILED, NGX_PEER_NEXT, ngx_http_request_t, ngx_http_upstream_conf_t, ngx_http_upstream_t,
    ngx_int_t, ngx_palloc, ngx_uint_t,
};
use std::mem;
use std::ptr::{self, NonNull};

/// The reasons for which nginx leaves a peer on trial for the next one, beside the user's.
const REASONS: u32 = NGX_HTTP_UPSTREAM_FT_ERROR
    | NGX_HTTP_UPSTREAM_FT_TIMEOUT
    | NGX_HTTP_UPSTREAM_FT_INVALID_HEADER
    | NGX_HTTP_UPSTREAM_FT_HTTP_500
    | NGX_HTTP_UPSTREAM_FT_HTTP_502
    | NGX_HTTP_UPSTREAM_FT_HTTP_503
    | NGX_HTTP_UPSTREAM_FT_HTTP_504;

/// The trials of one request, in its pool.
pub(crate) struct Trial {
    inner: Hooks,
    upstream: NonNull<ngx_http_upstream_t>,
    /// The location's own.
    own: *mut ngx_http_upstream_conf_t,
    copy: ngx_http_upstream_conf_t,
    /// Whether the attempt that nginx makes now is on trial.
    is_on: bool,
}

layer!(Trial);

/// Whether the configuration lets nginx try another peer at all.
pub(crate) fn may_go_on(conf: &ngx_http_upstream_conf_t) -> bool {
    let off = conf.next_upstream & NGX_HTTP_UPSTREAM_FT_OFF as ngx_uint_t != 0;
    !off && conf.next_upstream & !(NGX_CONF_BITMASK_SET as ngx_uint_t) != 0
}

/// Puts the attempt for which a peer was just chosen on trial; false if there is no memory.
pub(crate) fn begin(r: &ngx_http_request_t, hooks: &mut Hooks) -> bool {
    let earlier = behind(hooks.get, hooks.data);
    let Some(mut trial) = earlier.or_else(|| stand_before(r, hooks)) else { return false };
    // SAFETY: in the pool of the request, and nobody else holds a reference between two calls of nginx.
    unsafe { trial.as_mut() }.begin();
    true
}

fn stand_before(r: &ngx_http_request_t, hooks: &mut Hooks) -> Option<NonNull<Trial>> {
    let upstream = NonNull::new(r.upstream)?;
    // SAFETY: the upstream of a request that is being passed.
    let own = unsafe { upstream.as_ref() }.conf;
    // SAFETY: the configuration of the location, or null.
    let copy = unsafe { own.as_ref() }.copied()?;
    // SAFETY: the pool of the request; null when there is no memory.
    let memory = NonNull::new(unsafe { ngx_palloc(r.pool, size_of::<Trial>()) })?.cast::<Trial>();
    let outer = before(hooks, memory);
    let inner = mem::replace(hooks, outer);
    // SAFETY: fresh memory of this size; pools align for any type.
    unsafe { memory.write(Trial { inner, upstream, own, copy, is_on: false }) };
    Some(memory)
}

/// nginx's own word for an answer that is tried elsewhere and is no failure of the peer. With this word the keepalive cache
/// would take the connection, an unread answer and all: the gate, or its having opened since, has kept it from that.
pub(crate) fn spared(state: ngx_uint_t) -> ngx_uint_t {
    let failed = NGX_PEER_FAILED as ngx_uint_t;
    if state & failed == 0 { state } else { state & !failed | NGX_PEER_NEXT as ngx_uint_t }
}

// === impl Trial ===

impl Trial {
    fn begin(&mut self) {
        self.copy.next_upstream |= REASONS as ngx_uint_t;
        let copy = &raw mut self.copy;
        self.upstream().conf = copy;
        self.is_on = true;
    }

    /// The next attempt is again as the user wants it.
    fn get(&mut self, pc: PeerConnection) -> ngx_int_t {
        let (own, copy) = (self.own, &raw mut self.copy);
        let upstream = self.upstream();
        if ptr::eq(upstream.conf, copy) {
            upstream.conf = own;
        }
        self.inner.get(pc)
    }

    fn free(&mut self, pc: PeerConnection, state: ngx_uint_t) {
        let state = if mem::take(&mut self.is_on) { spared(state) } else { state };
        self.inner.free(pc, state);
    }

    fn upstream(&mut self) -> &mut ngx_http_upstream_t {
        // SAFETY: the upstream of the request, which lives while it calls these hooks.
        unsafe { self.upstream.as_mut() }
    }
}
