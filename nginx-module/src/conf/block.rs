//! An upstream block, as nginx has read it.

use crate::nginx::{array, text};
use crate::seat::is_seat;
use nginx_sys::{
    NGX_HTTP_UPSTREAM_CREATE, ngx_http_upstream_server_t, ngx_http_upstream_srv_conf_t, ngx_uint_t,
};
use std::ffi::CStr;

/// Whether it is one. nginx makes an upstream without a block for each address or host that a location passes to.
pub(super) fn is_block(us: &ngx_http_upstream_srv_conf_t) -> bool {
    us.flags & NGX_HTTP_UPSTREAM_CREATE as ngx_uint_t != 0
}

pub(super) fn servers(us: &ngx_http_upstream_srv_conf_t) -> &[ngx_http_upstream_server_t] {
    // SAFETY: null or an array of these, complete in postconfiguration.
    unsafe { array(us.servers) }
}

/// Those of a server; the seats that `handoff_slots` puts among them are none.
pub(super) fn addresses(
    server: &ngx_http_upstream_server_t,
) -> impl Iterator<Item = (String, *const libc::sockaddr)> {
    let addrs = if server.addrs.is_null() {
        &[]
    } else {
        // SAFETY: the server line's addresses, resolved when the configuration was read.
        unsafe { std::slice::from_raw_parts(server.addrs, server.naddrs) }
    };
    let addrs = addrs.iter().filter(|addr| !is_seat(addr.sockaddr.cast_const().cast()));
    addrs.map(|addr| (text(&addr.name).into_owned(), addr.sockaddr.cast_const().cast()))
}

/// Whether its addresses come and go with what a resolver says.
#[cfg(nginx1_27_3)]
pub(super) fn is_resolved(server: &ngx_http_upstream_server_t) -> bool {
    server.host.len > 0
}

#[cfg(not(nginx1_27_3))]
pub(super) fn is_resolved(_: &ngx_http_upstream_server_t) -> bool {
    false
}

/// "file:line" of an upstream; without a block, of what passes to it.
pub(super) fn place_of(us: &ngx_http_upstream_srv_conf_t) -> String {
    if us.file_name.is_null() {
        return String::new();
    }
    // SAFETY: the name of a configuration file, ended by a zero.
    let file = unsafe { CStr::from_ptr(us.file_name.cast()) };
    format!("{}:{}", file.to_string_lossy(), us.line)
}
