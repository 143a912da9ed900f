//! The hooks of a balancer, and how one stands before another's.

use crate::nginx::{PeerConnection, rc};
use nginx_sys::{
    ngx_event_free_peer_pt, ngx_event_get_peer_pt, ngx_event_notify_peer_pt, ngx_event_save_peer_session_pt,
    ngx_event_set_peer_session_pt, ngx_int_t, ngx_peer_connection_t, ngx_uint_t,
};
use std::ffi::c_void;

/// What nginx calls for each attempt of a request, and the data that belongs to it.
pub(crate) struct Hooks {
    pub(crate) data: *mut c_void,
    pub(crate) get: ngx_event_get_peer_pt,
    pub(crate) free: ngx_event_free_peer_pt,
    pub(crate) notify: ngx_event_notify_peer_pt,
    pub(crate) set_session: ngx_event_set_peer_session_pt,
    pub(crate) save_session: ngx_event_save_peer_session_pt,
}

/// Makes a type the data of hooks that stand before others: it has those as `inner`, and a `get` and a `free` of its own; the
/// rest is passed on. `before` makes the hooks, `behind` finds the data again.
macro_rules! layer {
    ($type:ty) => {
        /// Hooks for this data. nginx asks whether there is a `notify`, and of none of the others.
        fn before(inner: &$crate::hooks::Hooks, data: std::ptr::NonNull<$type>) -> $crate::hooks::Hooks {
            $crate::hooks::Hooks {
                data: data.as_ptr().cast(),
                get: Some(get),
                free: Some(free),
                notify: inner.notify.and(Some(notify)),
                set_session: Some(set_session),
                save_session: Some(save_session),
            }
        }

        /// The data of these hooks, if it is these that stand there.
        fn behind(
            hook: nginx_sys::ngx_event_get_peer_pt,
            data: *mut std::ffi::c_void,
        ) -> Option<std::ptr::NonNull<$type>> {
            let is_ours = hook.is_some_and(|hook| hook as usize == get as *const () as usize);
            std::ptr::NonNull::new(data.cast()).filter(|_| is_ours)
        }

        /// Takes the data that nginx passes back for what it is.
        fn ours<'a>(data: *mut std::ffi::c_void) -> &'a mut $type {
            // SAFETY: nginx passes the data that stands beside these hooks, one call at a time.
            unsafe { &mut *data.cast() }
        }

        unsafe extern "C" fn get(
            pc: *mut nginx_sys::ngx_peer_connection_t,
            data: *mut std::ffi::c_void,
        ) -> nginx_sys::ngx_int_t {
            ours(data).get($crate::nginx::PeerConnection(pc))
        }

        unsafe extern "C" fn free(
            pc: *mut nginx_sys::ngx_peer_connection_t,
            data: *mut std::ffi::c_void,
            state: nginx_sys::ngx_uint_t,
        ) {
            ours(data).free($crate::nginx::PeerConnection(pc), state);
        }

        unsafe extern "C" fn notify(
            pc: *mut nginx_sys::ngx_peer_connection_t,
            data: *mut std::ffi::c_void,
            kind: nginx_sys::ngx_uint_t,
        ) {
            ours(data).inner.notify($crate::nginx::PeerConnection(pc), kind);
        }

        unsafe extern "C" fn set_session(
            pc: *mut nginx_sys::ngx_peer_connection_t,
            data: *mut std::ffi::c_void,
        ) -> nginx_sys::ngx_int_t {
            ours(data).inner.set_session($crate::nginx::PeerConnection(pc))
        }

        unsafe extern "C" fn save_session(
            pc: *mut nginx_sys::ngx_peer_connection_t,
            data: *mut std::ffi::c_void,
        ) {
            ours(data).inner.save_session($crate::nginx::PeerConnection(pc));
        }
    };
}
pub(crate) use layer;

// === impl Hooks ===

impl Hooks {
    pub(crate) fn of(pc: &ngx_peer_connection_t) -> Self {
        Self {
            data: pc.data,
            get: pc.get,
            free: pc.free,
            notify: pc.notify,
            set_session: pc.set_session,
            save_session: pc.save_session,
        }
    }

    pub(crate) fn put(self, pc: &mut ngx_peer_connection_t) {
        let Self { data, get, free, notify, set_session, save_session } = self;
        pc.data = data;
        pc.get = get;
        pc.free = free;
        pc.notify = notify;
        pc.set_session = set_session;
        pc.save_session = save_session;
    }

    pub(crate) fn get(&self, pc: PeerConnection) -> ngx_int_t {
        let Some(get) = self.get else { return rc::ERROR };
        // SAFETY: called as nginx would call it, with the data that belongs to it.
        unsafe { get(pc.0, self.data) }
    }

    pub(crate) fn free(&self, pc: PeerConnection, state: ngx_uint_t) {
        if let Some(free) = self.free {
            // SAFETY: called as nginx would call it, with the data that belongs to it.
            unsafe { free(pc.0, self.data, state) };
        }
    }

    pub(crate) fn notify(&self, pc: PeerConnection, kind: ngx_uint_t) {
        if let Some(notify) = self.notify {
            // SAFETY: called as nginx would call it, with the data that belongs to it.
            unsafe { notify(pc.0, self.data, kind) };
        }
    }

    pub(crate) fn set_session(&self, pc: PeerConnection) -> ngx_int_t {
        // SAFETY: called as nginx would call it, with the data that belongs to it.
        self.set_session.map_or(rc::OK, |set_session| unsafe { set_session(pc.0, self.data) })
    }

    pub(crate) fn save_session(&self, pc: PeerConnection) {
        if let Some(save_session) = self.save_session {
            // SAFETY: called as nginx would call it, with the data that belongs to it.
            unsafe { save_session(pc.0, self.data) };
        }
    }
}
