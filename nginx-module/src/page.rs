//! The dashboard: one page that asks the API by itself, from wherever its location is.

use crate::reply::{answer, fixed, header};
use nginx_sys::{ngx_http_request_t, ngx_int_t};

const PAGE: &str = include_str!("page/index.html");

/// Nothing from anywhere else, no script and no style but the page's own, and in no frame: it shows names and reasons that
/// others chose. The hashes are made by build.rs.
const POLICY: &str = concat!(
    "default-src 'none'; script-src '",
    env!("HANDOFF_SCRIPT_HASH"),
    "'; style-src '",
    env!("HANDOFF_STYLE_HASH"),
    "'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
);

pub(crate) fn serve(r: &mut ngx_http_request_t) -> ngx_int_t {
    header(r, ngx::ngx_string!("Content-Security-Policy"), fixed(POLICY));
    header(r, ngx::ngx_string!("X-Content-Type-Options"), fixed("nosniff"));
    header(r, ngx::ngx_string!("Referrer-Policy"), fixed("no-referrer"));
    // After an upgrade the old page would ask for what there is no longer.
    header(r, ngx::ngx_string!("Cache-Control"), fixed("no-cache"));
    answer(r, 200, "text/html; charset=utf-8", Some(PAGE))
}
