//! `X-Handoff-Worker`: the name that a worker gives itself in its answer. It is kept for `$handoff_worker`, and no visitor
//! sees it.
//!
//! nginx has a table of the headers that mean something to it in an answer. It looks up every header that a peer sends,
//! whatever the protocol, and every header of an answer that it takes from its cache. Ours becomes one of them: an answer
//! without it costs nothing, and an answer of somebody else's peer passes as it did.

use crate::Handoff;
use crate::conf::{Refused, upstream_of};
use crate::nginx::{global, rc, text};
use crate::peer::PeerData;
use nginx_sys::{
    ngx_conf_t, ngx_hash_elt_t, ngx_hash_init, ngx_hash_init_t, ngx_hash_key, ngx_hash_key_t, ngx_hash_t,
    ngx_http_request_t, ngx_http_upstream_header_t, ngx_http_upstream_resolved_t, ngx_http_upstream_t,
    ngx_int_t, ngx_list_push, ngx_str_t, ngx_table_elt_t, ngx_uint_t,
};
use ngx::http::{HttpModuleMainConf, NgxHttpUpstreamModule};
use std::mem::offset_of;
use std::ptr::{self, NonNull};
use std::{iter, slice};

static mut HEADER: ngx_http_upstream_header_t = ngx_http_upstream_header_t {
    name: ngx::ngx_string!("X-Handoff-Worker"),
    handler: Some(read),
    offset: 0,
    copy_handler: Some(pass_on),
    conf: 0,
    redirect: 0,
};

/// The same, as nginx looks it up.
const KEY: ngx_str_t = ngx::ngx_string!("x-handoff-worker");

/// Puts our header into nginx's table: a new one, for such a table cannot grow.
pub(crate) fn learn(cf: &ngx_conf_t) -> Result<(), Refused> {
    let main = NgxHttpUpstreamModule::main_conf_mut(cf).ok_or(Refused)?;
    let mut keys: Vec<_> = entries(&main.headers_in_hash).map(key).collect();
    keys.push(hashed(KEY, (&raw mut HEADER).cast()));
    // Sizes as nginx has them.
    let mut table = ngx_hash_init_t {
        hash: &raw mut main.headers_in_hash,
        key: Some(ngx_hash_key),
        max_size: 512,
        bucket_size: 64_usize.next_multiple_of(global!(ngx_cacheline_size)),
        name: c"upstream_headers_in_hash".as_ptr().cast_mut(),
        pool: cf.pool,
        temp_pool: ptr::null_mut(),
    };
    // SAFETY: copies the keys, and replaces the table if that was possible; the old one stays where it is.
    let status = unsafe { ngx_hash_init(&raw mut table, keys.as_mut_ptr(), keys.len()) };
    if status == rc::OK { Ok(()) } else { Err(Refused) }
}

/// What is in a table.
fn entries(table: &ngx_hash_t) -> impl Iterator<Item = NonNull<ngx_hash_elt_t>> {
    // SAFETY: nginx has made it by now, with so many places; each is null or the first of a row.
    let rows = unsafe { slice::from_raw_parts(table.buckets, table.size) };
    rows.iter().flat_map(|&first| iter::successors(entry(first), |&at| entry(behind(at))))
}

/// A row ends with an entry of which only the value is there, and null.
fn entry(at: *mut ngx_hash_elt_t) -> Option<NonNull<ngx_hash_elt_t>> {
    let at = NonNull::new(at)?;
    // SAFETY: an entry of a row, or its end.
    let value = unsafe { (*at.as_ptr()).value };
    (!value.is_null()).then_some(at)
}

/// The next one of a row stands behind the name, where a pointer may stand.
fn behind(at: NonNull<ngx_hash_elt_t>) -> *mut ngx_hash_elt_t {
    let size = offset_of!(ngx_hash_elt_t, name) + name(at).len;
    // SAFETY: within the row.
    unsafe { at.byte_add(size.next_multiple_of(align_of::<ngx_hash_elt_t>())) }.as_ptr()
}

fn name(at: NonNull<ngx_hash_elt_t>) -> ngx_str_t {
    // SAFETY: an entry with a value has a name.
    let len = unsafe { (*at.as_ptr()).len }.into();
    // SAFETY: the place of its first byte.
    let data = unsafe { &raw mut (*at.as_ptr()).name }.cast();
    ngx_str_t { len, data }
}

fn key(at: NonNull<ngx_hash_elt_t>) -> ngx_hash_key_t {
    // SAFETY: an entry has a value.
    hashed(name(at), unsafe { (*at.as_ptr()).value })
}

fn hashed(key: ngx_str_t, value: *mut std::ffi::c_void) -> ngx_hash_key_t {
    // SAFETY: reads the name.
    let key_hash = unsafe { ngx_hash_key(key.data, key.len) };
    ngx_hash_key_t { key, key_hash, value }
}

/// nginx has read a header of this name, sent by a peer or kept in the cache.
unsafe extern "C" fn read(r: *mut ngx_http_request_t, h: *mut ngx_table_elt_t, _: ngx_uint_t) -> ngx_int_t {
    // SAFETY: nginx passes a valid request.
    let r = unsafe { &*r };
    // SAFETY: null, or the upstream of the request.
    let Some(u) = (unsafe { r.upstream.as_ref() }) else { return rc::OK };
    if !takes_part(r, u) {
        return rc::OK;
    }
    // SAFETY: nginx passes the header that it has just read, and uses it again when we are done.
    let h = unsafe { &mut *h };
    if let Some(data) = PeerData::of(r)
        && !is_from_cache(u)
    {
        data.call(h.value);
    }
    // A header without a hash is one that nginx does not see.
    h.hash = 0;
    rc::OK
}

/// The rest of the answer is for the visitor: this is how nginx copies a header that means nothing to it.
unsafe extern "C" fn pass_on(
    r: *mut ngx_http_request_t,
    h: *mut ngx_table_elt_t,
    _: ngx_uint_t,
) -> ngx_int_t {
    // SAFETY: nginx passes a valid request.
    let headers = unsafe { &raw mut (*r).headers_out.headers };
    // SAFETY: the list of that request; null when there is no memory.
    let Some(out) = NonNull::new(unsafe { ngx_list_push(headers) }) else { return rc::ERROR };
    // SAFETY: nginx passes a valid header.
    let header = unsafe { *h };
    // SAFETY: a new place in a list of headers.
    unsafe { out.cast::<ngx_table_elt_t>().write(header) };
    rc::OK
}

/// Whether the upstream of this request takes part. nginx looks for it only when the cache has no answer.
fn takes_part(r: &ngx_http_request_t, u: &ngx_http_upstream_t) -> bool {
    // SAFETY: null, or the place to which a variable has led.
    if let Some(resolved) = unsafe { u.resolved.as_ref() }
        && u.upstream.is_null()
    {
        return is_named(r, resolved);
    }
    // SAFETY: null, or the configuration of the location.
    let of_location = unsafe { u.conf.as_ref() }.map(|conf| conf.upstream);
    let block = NonNull::new(u.upstream).or_else(|| NonNull::new(of_location?));
    // SAFETY: a block lives as long as its cycle.
    block.is_some_and(|block| upstream_of(unsafe { block.as_ref() }).is_some())
}

/// As nginx compares them. Ours have no port.
fn is_named(r: &ngx_http_request_t, to: &ngx_http_upstream_resolved_t) -> bool {
    let host = text(&to.host);
    let has_no_port = to.no_port != 0 || to.port == 0;
    let Some(main) = Handoff::main_conf(r).filter(|_| has_no_port) else { return false };
    main.upstreams().any(|upstream| upstream.name.eq_ignore_ascii_case(&host))
}

/// Whether the visitor gets what the cache holds, whatever a peer may have said to this request.
#[cfg(ngx_feature = "http_cache")]
pub(crate) fn is_from_cache(u: &ngx_http_upstream_t) -> bool {
    use nginx_sys::{
        NGX_HTTP_CACHE_HIT, NGX_HTTP_CACHE_REVALIDATED, NGX_HTTP_CACHE_STALE, NGX_HTTP_CACHE_UPDATING,
    };
    let kept =
        [NGX_HTTP_CACHE_HIT, NGX_HTTP_CACHE_REVALIDATED, NGX_HTTP_CACHE_STALE, NGX_HTTP_CACHE_UPDATING];
    kept.contains(&u.cache_status())
}

#[cfg(not(ngx_feature = "http_cache"))]
pub(crate) fn is_from_cache(_: &ngx_http_upstream_t) -> bool {
    false
}
