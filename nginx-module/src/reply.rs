//! An answer: a status, JSON or a text, and nothing that depends on the client.

use crate::nginx::rc;
use handoff_wire::{ErrorBody, Refusal};
use nginx_sys::{
    NGX_HTTP_HEAD, NGX_HTTP_INTERNAL_SERVER_ERROR, ngx_chain_t, ngx_create_temp_buf, ngx_http_output_filter,
    ngx_http_request_t, ngx_http_send_header, ngx_int_t, ngx_list_push, ngx_str_t, ngx_table_elt_t,
    ngx_uint_t,
};
use serde::Serialize;
use std::ptr;

const FAILED: ngx_int_t = NGX_HTTP_INTERNAL_SERVER_ERROR as ngx_int_t;

/// `None` never comes: everything that the wire can say has a JSON form.
pub(crate) fn json(view: &impl Serialize) -> Option<Vec<u8>> {
    let mut text = serde_json::to_vec(view).ok()?;
    text.push(b'\n');
    Some(text)
}

pub(crate) fn refusal(r: &mut ngx_http_request_t, refusal: Refusal) -> ngx_int_t {
    send(r, refusal.status, json(&ErrorBody { error: refusal }))
}

/// The methods that a path takes, for a 405.
pub(crate) fn allow(r: &mut ngx_http_request_t, methods: &'static str) {
    header(r, ngx::ngx_string!("Allow"), fixed(methods));
}

/// When a client may come again, for a 503.
pub(crate) fn retry_after(r: &mut ngx_http_request_t, seconds: &'static str) {
    header(r, ngx::ngx_string!("Retry-After"), fixed(seconds));
}

pub(crate) fn header(r: &mut ngx_http_request_t, key: ngx_str_t, value: ngx_str_t) {
    // SAFETY: the headers of a request that has not been answered.
    let header = unsafe { ngx_list_push(&raw mut r.headers_out.headers) }.cast::<ngx_table_elt_t>();
    if header.is_null() {
        return;
    }
    let element = ngx_table_elt_t { hash: 1, key, value, ..element() };
    // SAFETY: fresh memory for one element.
    unsafe { header.write(element) };
}

fn element() -> ngx_table_elt_t {
    // SAFETY: all of its fields may be zero; which there are depends on the version of nginx.
    unsafe { std::mem::zeroed() }
}

pub(crate) fn fixed(text: &'static str) -> ngx_str_t {
    ngx_str_t { len: text.len(), data: text.as_ptr().cast_mut() }
}

pub(crate) fn send(r: &mut ngx_http_request_t, status: u16, text: Option<Vec<u8>>) -> ngx_int_t {
    answer(r, status, "application/json", text)
}

pub(crate) fn answer(
    r: &mut ngx_http_request_t,
    status: u16,
    content_type: &'static str,
    text: Option<impl AsRef<[u8]>>,
) -> ngx_int_t {
    let Some(text) = text else { return FAILED };
    let text = text.as_ref();
    r.headers_out.status = ngx_uint_t::from(status);
    r.headers_out.content_type = fixed(content_type);
    r.headers_out.content_type_len = r.headers_out.content_type.len;
    r.headers_out.content_length_n = i64::try_from(text.len()).unwrap_or_default();
    // SAFETY: a request that has not been answered.
    let status = unsafe { ngx_http_send_header(r) };
    // Not by `header_only`: that bit is misplaced, see `is_unread` in peer.rs.
    let is_all = r.method == NGX_HTTP_HEAD as ngx_uint_t;
    if status == rc::ERROR || status > rc::OK || is_all {
        return status;
    }
    body(r, text)
}

fn body(r: &mut ngx_http_request_t, text: &[u8]) -> ngx_int_t {
    // SAFETY: the pool of the request; null when there is no memory.
    let buf = unsafe { ngx_create_temp_buf(r.pool, text.len()) };
    // SAFETY: null or fresh.
    let Some(buf) = (unsafe { buf.as_mut() }) else { return FAILED };
    // SAFETY: the buffer has room for all of it.
    unsafe { ptr::copy_nonoverlapping(text.as_ptr(), buf.pos, text.len()) };
    // SAFETY: within the buffer.
    buf.last = unsafe { buf.pos.add(text.len()) };
    buf.set_last_buf(1);
    buf.set_last_in_chain(1);
    let mut link = ngx_chain_t { buf, next: ptr::null_mut() };
    // SAFETY: nginx copies the link; the buffer lives in the pool.
    unsafe { ngx_http_output_filter(r, &raw mut link) }
}
