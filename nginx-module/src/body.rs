//! A request body, in memory and bounded.

use handoff_wire::{Code, MAX_BODY, Refusal};
use nginx_sys::{ngx_chain_t, ngx_http_request_t};

/// Whether the client announces more than we take. Nothing has been read yet.
pub(crate) fn is_too_large(r: &ngx_http_request_t) -> bool {
    usize::try_from(r.headers_in.content_length_n).is_ok_and(|len| len > MAX_BODY)
}

/// What nginx has read.
pub(crate) fn take(r: &ngx_http_request_t) -> Result<Vec<u8>, Refusal> {
    // SAFETY: null, or the body that nginx has read for this request.
    let body = unsafe { r.request_body.as_ref() };
    let mut bytes = Vec::new();
    let mut next = body.map_or(std::ptr::null_mut(), |body| body.bufs);
    // SAFETY: null or a link of the body's chain.
    while let Some(link) = unsafe { next.as_ref() } {
        bytes.extend_from_slice(buffer(link)?);
        if bytes.len() > MAX_BODY {
            return Err(too_large());
        }
        next = link.next;
    }
    Ok(bytes)
}

fn buffer(link: &ngx_chain_t) -> Result<&[u8], Refusal> {
    // SAFETY: each link of a chain has its buffer.
    let buf = unsafe { &*link.buf };
    if buf.in_file() != 0 {
        // It outgrew the buffer, which holds all that we take.
        return Err(too_large());
    }
    let len = (buf.last as usize).saturating_sub(buf.pos as usize);
    if len == 0 {
        return Ok(&[]);
    }
    // SAFETY: the bytes between pos and last are those that were read.
    Ok(unsafe { std::slice::from_raw_parts(buf.pos, len) })
}

pub(crate) fn too_large() -> Refusal {
    Code::TooLarge.says(format!("the body is larger than {MAX_BODY} bytes: send fewer marks at a time"))
}
