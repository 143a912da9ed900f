//! Connections of this process that lead to nobody: nginx is made to notice.
//!
//! Whoever told of them has seen that nobody reads what was sent there (`handoff_core::orphan`). The connection is shut
//! down; nginx then finds it closed before an answer, and [`crate::peer`] makes of that an attempt that was never made.

use crate::conf::MainConf;
use crate::nginx::global;
use crate::zone::Zone;
use handoff_core::orphan::{ORPHANS, Orphan};
use nginx_sys::{ngx_atomic_uint_t, ngx_connection_t, ngx_msec_t};
use std::mem;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// A younger connection is another one, that got the same port.
const AGE_MS: ngx_msec_t = 500;

/// How many of the zone's orphans this process has looked for.
static SEEN: AtomicU64 = AtomicU64::new(0);
/// The numbers of the connections that were shut down here; 0 is a free place.
static LEFT: [AtomicU64; ORPHANS] = [const { AtomicU64::new(0) }; ORPHANS];
/// How many there are, so that nobody looks who need not.
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// What was told before this process began is not about its connections.
pub(crate) fn begin(zone: &Zone) {
    SEEN.store(zone.table.header.orphans.told(), Ordering::Relaxed);
}

pub(crate) fn leave_those_that_are_new(conf: &MainConf, zone: &Zone) {
    let orphans = &zone.table.header.orphans;
    let told = orphans.told();
    let seen = SEEN.swap(told, Ordering::Relaxed);
    if seen == told {
        return;
    }
    for orphan in orphans.since(seen) {
        let ours = connections().iter().find(|connection| is(connection, orphan, conf));
        if let Some(connection) = ours {
            leave(connection);
        }
    }
}

/// Whether this process has left any.
#[inline]
pub(crate) fn is_any() -> bool {
    COUNT.load(Ordering::Relaxed) > 0
}

/// Whether this connection was left as an orphan. Once: its request ends with it.
#[inline]
pub(crate) fn take(number: ngx_atomic_uint_t) -> bool {
    is_any() && find_and_take(number)
}

#[cold]
fn find_and_take(number: ngx_atomic_uint_t) -> bool {
    let place = LEFT.iter().find(|place| place.load(Ordering::Relaxed) == number);
    let was_there = place.is_some_and(|place| place.swap(0, Ordering::Relaxed) != 0);
    if was_there {
        COUNT.fetch_sub(1, Ordering::Relaxed);
    }
    was_there
}

fn leave(connection: &ngx_connection_t) {
    let find = |number| LEFT.iter().find(|place| place.load(Ordering::Relaxed) == number);
    if find(connection.number).is_some() {
        return;
    }
    // Who reports them does so until they are gone: one that finds no place is left the next time.
    let Some(place) = find(0) else { return };
    place.store(connection.number, Ordering::Relaxed);
    COUNT.fetch_add(1, Ordering::Relaxed);
    // SAFETY: an open socket of this process. Its descriptor stays open until nginx closes it.
    unsafe { libc::shutdown(connection.fd, libc::SHUT_RDWR) };
}

/// Every place for a connection that this process has.
fn connections() -> &'static [ngx_connection_t] {
    let cycle = global!(ngx_cycle);
    // SAFETY: the cycle of this process, which lives as long as the process.
    let Some(cycle) = (unsafe { cycle.as_ref() }) else { return &[] };
    let (first, len) = (cycle.connections, cycle.connection_n);
    if first.is_null() {
        return &[];
    }
    // SAFETY: nginx allocates so many at once when a process begins, and never moves them; nobody changes one while we look.
    unsafe { std::slice::from_raw_parts(first, len) }
}

fn is(connection: &ngx_connection_t, orphan: Orphan, conf: &MainConf) -> bool {
    let age = global!(ngx_current_msec).wrapping_sub(connection.start_time);
    if connection.fd < 0 || age < AGE_MS {
        return false;
    }
    let is_there = |address: &libc::sockaddr_storage| {
        let at = std::ptr::from_ref(address).cast();
        let leads_there =
            |zone: &Zone| conf.upstreams().any(|upstream| upstream.leads_to(&zone.table, at, orphan.peer));
        conf.zone().is_some_and(leads_there)
    };
    name(connection, libc::getsockname).and_then(|own| port(&own)) == Some(orphan.port)
        && name(connection, libc::getpeername).is_some_and(|peer| is_there(&peer))
}

type Name = unsafe extern "C" fn(libc::c_int, *mut libc::sockaddr, *mut libc::socklen_t) -> libc::c_int;

/// The address of one of the two ends.
fn name(connection: &ngx_connection_t, which: Name) -> Option<libc::sockaddr_storage> {
    // SAFETY: bytes, for which zero is valid.
    let mut address: libc::sockaddr_storage = unsafe { mem::zeroed() };
    let mut len = libc::socklen_t::try_from(size_of_val(&address)).ok()?;
    // SAFETY: writes at most `len` bytes there.
    let named = unsafe { which(connection.fd, (&raw mut address).cast(), &raw mut len) };
    (named == 0).then_some(address)
}

fn port(address: &libc::sockaddr_storage) -> Option<u16> {
    let at = std::ptr::from_ref(address);
    match libc::c_int::from(address.ss_family) {
        // SAFETY: an address of this family is of this size.
        libc::AF_INET => Some(u16::from_be(unsafe { (*at.cast::<libc::sockaddr_in>()).sin_port })),
        // SAFETY: as above.
        libc::AF_INET6 => Some(u16::from_be(unsafe { (*at.cast::<libc::sockaddr_in6>()).sin6_port })),
        _ => None,
    }
}
