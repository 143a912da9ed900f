//! What nginx says in C, said once in Rust.

use crate::Handoff;
use crate::conf::MainConf;
use crate::hooks::Hooks;
use crate::seat::Occupant;
use handoff_core::Moment;
use handoff_core::plus::Visitors;
use nginx_sys::{
    nginx_version, ngx_array_t, ngx_conf_t, ngx_connection_local_sockaddr, ngx_connection_t, ngx_cycle_t,
    ngx_hash_key, ngx_http_get_variable, ngx_http_request_t, ngx_http_upstream_srv_conf_t, ngx_int_t,
    ngx_log_t, ngx_msec_t, ngx_peer_connection_t, ngx_str_t, ngx_uint_t, sockaddr, socklen_t,
};
use ngx::http::HttpModuleMainConf;
use std::borrow::Cow;
use std::ffi::{CStr, c_void};
use std::ptr::{self, NonNull};

/// Reads one of nginx's global variables, which Rust sees as mutable statics.
macro_rules! global {
    ($name:ident) => {{
        let at = &raw const nginx_sys::$name;
        // SAFETY: a static of this process. nginx writes it between events or in a signal handler, a whole word each time.
        unsafe { at.read_volatile() }
    }};
}
pub(crate) use global;

/// The words of an `ngx_str_t`.
pub(crate) fn text(string: &ngx_str_t) -> Cow<'_, str> {
    String::from_utf8_lossy(string.as_bytes())
}

/// The elements of an `ngx_array_t`; empty if there is none.
///
/// # Safety
///
/// `array` is null or an array of `T`, and nobody changes it while the slice lives.
pub(crate) unsafe fn array<'a, T>(array: *const ngx_array_t) -> &'a [T] {
    // SAFETY: null or valid, says the caller.
    let Some(array) = (unsafe { array.as_ref() }) else { return &[] };
    if array.nelts == 0 {
        return &[];
    }
    // SAFETY: nginx keeps nelts initialized elements there.
    unsafe { std::slice::from_raw_parts(array.elts.cast(), array.nelts) }
}

/// Now. nginx's own clocks, read anew: what ran before us in this turn of the event loop may have taken long, and a lease must
/// not be stamped with the past.
pub(crate) fn moment() -> Moment {
    // SAFETY: only sets nginx's cached times.
    unsafe { nginx_sys::ngx_time_update() };
    Moment { mono: global!(ngx_current_msec) as u64, unix: unix() }
}

/// Milliseconds since 1970, as of the beginning of this turn of the event loop.
#[inline]
pub(crate) fn unix() -> u64 {
    let now = global!(ngx_cached_time);
    // SAFETY: points to one of nginx's static time slots from the first ngx_time_init() on.
    let now = unsafe { &*now };
    (now.sec as u64).wrapping_mul(1000).wrapping_add(now.msec as u64)
}

/// The version of nginx that this was built for, which is the one that loads it.
pub(crate) fn version() -> String {
    format!("{}.{}.{}", nginx_version / 1_000_000, nginx_version / 1_000 % 1_000, nginx_version % 1_000)
}

/// What `stub_status` would show.
#[cfg(nginx_stat_stub)]
pub(crate) fn visitors() -> Option<Visitors> {
    let count = |counter: *mut nginx_sys::ngx_atomic_t| {
        // SAFETY: a word of nginx's shared memory from the first cycle on, read like nginx reads it.
        unsafe { counter.read_volatile() }
    };
    Some(Visitors {
        accepted: count(global!(ngx_stat_accepted)),
        handled: count(global!(ngx_stat_handled)),
        requests: count(global!(ngx_stat_requests)),
        active: count(global!(ngx_stat_active)),
        reading: count(global!(ngx_stat_reading)),
        writing: count(global!(ngx_stat_writing)),
        waiting: count(global!(ngx_stat_waiting)),
    })
}

#[cfg(not(nginx_stat_stub))]
pub(crate) fn visitors() -> Option<Visitors> {
    None
}

/// The value of a variable for a request.
pub(crate) fn variable(r: &mut ngx_http_request_t, name: &str) -> Option<String> {
    let mut name = ngx_str_t { len: name.len(), data: name.as_ptr().cast_mut() };
    // SAFETY: reads the name.
    let key = unsafe { ngx_hash_key(name.data, name.len) };
    // SAFETY: a valid request; null when there is no memory.
    let value = unsafe { ngx_http_get_variable(r, &raw mut name, key) };
    // SAFETY: null, or a value in the pool of the request.
    let value = unsafe { value.as_ref() }?;
    let len = value.len() as usize;
    if value.not_found() != 0 || len == 0 {
        return None;
    }
    // SAFETY: a value that was found has so many bytes, in the pool of the request.
    Some(text(&ngx_str_t { len, data: value.data }).into_owned())
}

/// The address, without a port, at which a request came in.
pub(crate) fn local_address(r: &ngx_http_request_t) -> Option<String> {
    let mut room = [0u8; NGX_SOCKADDR_STRLEN];
    let mut address = ngx_str_t { len: room.len(), data: room.as_mut_ptr() };
    // SAFETY: a request has a connection, and there is room for any address.
    let status = unsafe { ngx_connection_local_sockaddr(r.connection, &raw mut address, 0) };
    (status == rc::OK).then(|| text(&address).into_owned())
}

/// As long as nginx's own room for one: the longest path of a unix socket, and its prefix.
const NGX_SOCKADDR_STRLEN: usize = "unix:".len() + 108;

/// The number that the next connection gets; one counter for all nginx processes.
pub(crate) fn connections() -> u64 {
    let counter = global!(ngx_connection_counter);
    if counter.is_null() {
        return 0;
    }
    // SAFETY: a word of nginx's shared memory, which other processes add to at any time; read like nginx reads it.
    unsafe { counter.read_volatile() }
}

/// Whether this worker is on its way out.
pub(crate) fn is_exiting() -> bool {
    global!(ngx_exiting) != 0 || global!(ngx_quit) != 0 || global!(ngx_terminate) != 0
}

/// Our configuration in a cycle that has an http block.
pub(crate) fn main_conf(cycle: *mut ngx_cycle_t) -> Option<&'static MainConf> {
    // SAFETY: nginx passes a cycle whose configuration has been read.
    let cycle = unsafe { cycle.as_ref() }?;
    Handoff::main_conf(cycle)
}

/// What a module that this nginx may not have keeps of an upstream; null without it.
pub(crate) fn conf_of(cf: &ngx_conf_t, us: &ngx_http_upstream_srv_conf_t, name: &CStr) -> *const c_void {
    // SAFETY: a configuration belongs to a cycle.
    let mut at = unsafe { (*cf.cycle).modules };
    loop {
        // SAFETY: within the modules of a cycle, or the null after the last.
        let module = unsafe { at.read() };
        // SAFETY: null, or a module.
        let Some(module) = (unsafe { module.as_ref() }) else { return ptr::null() };
        // SAFETY: every module has a name.
        if unsafe { CStr::from_ptr(module.name) } == name {
            // SAFETY: an upstream has a place for the configuration of each http module.
            let conf = unsafe { us.srv_conf.add(module.ctx_index) };
            // SAFETY: as above.
            return unsafe { conf.read() }.cast();
        }
        // SAFETY: this was not the last one.
        at = unsafe { at.add(1) };
    }
}

/// The log of a request.
pub(crate) fn log_of(r: &ngx_http_request_t) -> *mut ngx_log_t {
    // SAFETY: a request has a connection for as long as it lives.
    unsafe { (*r.connection).log }
}

/// Whether nginx knows that the client is gone.
pub(crate) fn is_broken(r: &ngx_http_request_t) -> bool {
    // SAFETY: as above.
    unsafe { (*r.connection).error() != 0 }
}

/// What a balancer and nginx tell each other about one attempt. nginx owns it; we only pass by.
#[derive(Clone, Copy)]
pub(crate) struct PeerConnection(pub(crate) *mut ngx_peer_connection_t);

impl PeerConnection {
    fn get<'a>(self) -> &'a mut ngx_peer_connection_t {
        // SAFETY: nginx passes a valid pointer to each hook; every reference is gone before anybody else is called.
        unsafe { &mut *self.0 }
    }

    pub(crate) fn sockaddr(self) -> *const sockaddr {
        self.get().sockaddr
    }

    pub(crate) fn tries(self) -> ngx_uint_t {
        self.get().tries
    }

    pub(crate) fn set_tries(self, tries: ngx_uint_t) {
        self.get().tries = tries;
    }

    /// When the first attempt began, by `ngx_current_msec`.
    pub(crate) fn started(self) -> ngx_msec_t {
        self.get().start_time
    }

    pub(crate) fn connection<'a>(self) -> Option<&'a ngx_connection_t> {
        // SAFETY: null, or the connection of this attempt; the reference is gone before anybody else is called.
        unsafe { self.get().connection.as_ref() }
    }

    /// For the time that tries may take.
    pub(crate) fn set_started(self, started: ngx_msec_t) {
        self.get().start_time = started;
    }

    pub(crate) fn set_data(self, data: *mut c_void) {
        self.get().data = data;
    }

    pub(crate) fn hooks(self) -> Hooks {
        Hooks::of(self.get())
    }

    pub(crate) fn set_hooks(self, hooks: Hooks) {
        hooks.put(self.get());
    }

    /// What nginx takes for the connection of this attempt, and for the address of its peer.
    pub(crate) fn give(self, connection: *mut ngx_connection_t, address: *mut sockaddr) {
        let pc = self.get();
        pc.connection = connection;
        pc.sockaddr = address;
        pc.set_cached(0);
    }

    /// Where the attempt goes.
    pub(crate) fn address(self) -> (*mut sockaddr, socklen_t) {
        let pc = self.get();
        (pc.sockaddr, pc.socklen)
    }

    /// Sends the attempt to a peer that was added.
    pub(crate) fn seat(self, occupant: NonNull<Occupant>) {
        let at = occupant.as_ptr();
        let pc = self.get();
        // SAFETY: made for this attempt, in the pool of its request.
        pc.socklen = unsafe { (*at).len };
        // SAFETY: as above; it lives as long as the request.
        pc.sockaddr = unsafe { &raw mut (*at).address }.cast();
        // SAFETY: as above.
        pc.name = unsafe { &raw mut (*at).name };
    }

    /// Gives the balancer back where it wanted the attempt to go. Its name stays that of the peer: it is logged later.
    pub(crate) fn unseat(self, occupant: NonNull<Occupant>) {
        let pc = self.get();
        // SAFETY: as above.
        (pc.sockaddr, pc.socklen) = unsafe { occupant.as_ref() }.seat;
    }

    /// Whether the keepalive cache gave the connection.
    pub(crate) fn is_cached(self) -> bool {
        self.get().cached() != 0
    }

    /// The number of the connection, if there is one.
    pub(crate) fn number(self) -> Option<u64> {
        self.connection().map(|c| c.number)
    }

    /// Takes the choice of the balancer back; nginx needs a name to log.
    pub(crate) fn forget(self, name: *mut ngx_str_t) {
        let pc = self.get();
        pc.sockaddr = ptr::null_mut();
        pc.name = name;
    }

    /// Closes a connection that the keepalive cache gave us, as that cache would close it.
    #[cold]
    pub(crate) fn close_cached(self) {
        let pc = self.get();
        let connection = std::mem::replace(&mut pc.connection, ptr::null_mut());
        pc.set_cached(0);
        if !connection.is_null() {
            close(connection);
        }
    }
}

fn close(connection: *mut ngx_connection_t) {
    #[cfg(ngx_feature = "ssl")]
    shut_tls(connection);
    // SAFETY: the connection is open.
    let pool = unsafe { (*connection).pool };
    // SAFETY: a cached connection has a pool of its own, which nobody else uses any more.
    unsafe { nginx_sys::ngx_destroy_pool(pool) };
    // SAFETY: it was ours since the cache gave it away.
    unsafe { nginx_sys::ngx_close_connection(connection) };
}

/// Both flags make the shutdown quiet, so that it is complete at once and never waits for the peer.
#[cfg(ngx_feature = "ssl")]
fn shut_tls(connection: *mut ngx_connection_t) {
    // SAFETY: the connection is open.
    let ssl = unsafe { (*connection).ssl };
    // SAFETY: null without TLS, else the TLS part of an open connection.
    if let Some(ssl) = unsafe { ssl.as_mut() } {
        ssl.set_no_wait_shutdown(1);
        ssl.set_no_send_shutdown(1);
        // SAFETY: the connection is open and has a TLS part.
        unsafe { nginx_sys::ngx_ssl_shutdown(connection) };
    }
}

/// nginx's numbers, in the type that its hooks return.
pub(crate) mod rc {
    use super::ngx_int_t;

    pub(crate) const OK: ngx_int_t = nginx_sys::NGX_OK as ngx_int_t;
    pub(crate) const ERROR: ngx_int_t = nginx_sys::NGX_ERROR as ngx_int_t;
    pub(crate) const BUSY: ngx_int_t = nginx_sys::NGX_BUSY as ngx_int_t;
    pub(crate) const AGAIN: ngx_int_t = nginx_sys::NGX_AGAIN as ngx_int_t;
    pub(crate) const DONE: ngx_int_t = nginx_sys::NGX_DONE as ngx_int_t;
}
