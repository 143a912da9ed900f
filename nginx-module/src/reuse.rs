//! When this process's connections to peers were last used. The keepalive cache knows it, but does not tell.

use crate::nginx::{PeerConnection, global};
use handoff_core::reuse::Uses;
use nginx_sys::{ngx_connection_t, ngx_cycle_t, ngx_msec_t};
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

/// nginx keeps the connections of a process in one array, made before any module begins and never moved.
struct Connections {
    first: *const ngx_connection_t,
    uses: Uses,
}

/// Null in a worker that had no memory for it: what it knows nothing of is not used again.
static CONNECTIONS: AtomicPtr<Connections> = AtomicPtr::new(ptr::null_mut());

/// A connection, as it can be told from others when it is no longer ours to look at.
#[derive(Clone, Copy)]
pub(crate) struct Ridden {
    at: *const ngx_connection_t,
    pub(crate) number: u64,
}

/// Once in each process: nginx without a master does not begin again with a new configuration.
pub(crate) fn begin(cycle: *mut ngx_cycle_t) {
    // SAFETY: nginx passes the cycle of this process.
    let cycle = unsafe { &*cycle };
    if let Some(uses) = Uses::of(cycle.connection_n) {
        let connections = Connections { first: cycle.connections, uses };
        CONNECTIONS.store(Box::into_raw(Box::new(connections)), Ordering::Relaxed);
    }
}

/// How long the connection that the keepalive cache gave us was idle, if anybody knows.
#[cold]
pub(crate) fn idle(pc: PeerConnection) -> Option<u64> {
    let Ridden { at, number } = Ridden::of(pc)?;
    let connections = connections()?;
    connections.uses.idle(connections.place(at)?, number, global!(ngx_current_msec) as u64)
}

fn connections() -> Option<&'static Connections> {
    // SAFETY: null, or made by `begin` and never freed.
    unsafe { CONNECTIONS.load(Ordering::Relaxed).as_ref() }
}

// === impl Connections ===

impl Connections {
    fn place(&self, at: *const ngx_connection_t) -> Option<usize> {
        let distance = (at as usize).checked_sub(self.first as usize)?;
        Some(distance / size_of::<ngx_connection_t>())
    }
}

// === impl Ridden ===

impl Ridden {
    #[inline]
    pub(crate) fn of(pc: PeerConnection) -> Option<Self> {
        pc.connection().map(|c| Self { at: c, number: c.number })
    }

    pub(crate) fn note(self, when: ngx_msec_t) {
        if let Some(connections) = connections()
            && let Some(place) = connections.place(self.at)
        {
            connections.uses.note(place, self.number, when as u64);
        }
    }
}
