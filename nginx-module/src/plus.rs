//! `/api`: takes a request of an NGINX Plus client apart, asks core, answers.

use crate::conf::{self, MainConf};
use crate::control::{Denied, authorize, below_location, is_running, lock, place};
use crate::nginx::{global, local_address, log_of, moment, rc, text, variable};
use crate::{body, log, reply};
use handoff_core::plus::path::Method;
use handoff_core::plus::{About, Call, Code, Error, Fields, Nginx, Path, Server, Sight, Visitors};
use handoff_wire::path;
use nginx_sys::{
    NGX_HTTP_DELETE, NGX_HTTP_GET, NGX_HTTP_HEAD, NGX_HTTP_PATCH, NGX_HTTP_POST, NGX_HTTP_SPECIAL_RESPONSE,
    ngx_http_discard_request_body, ngx_http_finalize_request, ngx_http_read_client_request_body,
    ngx_http_request_t, ngx_int_t,
};

/// An error, and the methods that would have been right.
struct Rejected {
    error: Error,
    allow: Option<&'static str>,
}

impl<E: Into<Error>> From<E> for Rejected {
    fn from(error: E) -> Self {
        Self { error: error.into(), allow: None }
    }
}

/// nginx as the process sees it that answers this request.
struct Here<'a> {
    request: &'a ngx_http_request_t,
    conf: &'a MainConf,
}

/// None: it is not for us.
pub(crate) fn handle(r: &mut ngx_http_request_t) -> Option<ngx_int_t> {
    let (path, query) = asked(r)?;
    let call = called(r, &path);
    let writes = matches!(call, Ok(Call::Patch { .. } | Call::Post { .. } | Call::Delete { .. }));
    if writes && let Err(rejected) = check(r) {
        return Some(without_body(r, |r| reject(r, rejected)));
    }
    Some(match call {
        Ok(Call::Patch { .. } | Call::Post { .. } | Call::Delete { .. }) => {
            // SAFETY: nginx calls apply() once the body is there.
            let status = unsafe { ngx_http_read_client_request_body(r, Some(apply)) };
            if status >= NGX_HTTP_SPECIAL_RESPONSE as ngx_int_t { status } else { rc::DONE }
        }
        Ok(Call::Read(path)) => without_body(r, |r| match read(r, &path, &Fields::of(&query)) {
            Ok(body) => send(r, 200, body),
            Err(rejected) => reject(r, rejected),
        }),
        Err(rejected) => without_body(r, |r| reject(r, rejected)),
    })
}

/// The path below our location, and the query. An operator may have called the location itself `/api`, as NGINX Plus users do.
fn asked(r: &ngx_http_request_t) -> Option<(String, String)> {
    let uri = text(&r.unparsed_uri);
    let (full, query) = uri.split_once('?').unwrap_or((&uri, ""));
    let below = below_location(r, full);
    // There, too, the rest of ours stays ours, but for the dashboard: `/api` itself is what these clients ask first.
    let is_its_own = path::Path::parse(below).is_some_and(|path| path != path::Path::Page);
    let path = if is_its_own || Path::is_below(below) { below } else { full };
    Path::is_below(path).then(|| (path.to_owned(), query.to_owned()))
}

fn without_body(
    r: &mut ngx_http_request_t,
    answer: impl FnOnce(&mut ngx_http_request_t) -> ngx_int_t,
) -> ngx_int_t {
    // SAFETY: a request whose body nobody reads.
    let status = unsafe { ngx_http_discard_request_body(r) };
    if status == rc::OK { answer(r) } else { status }
}

fn called(r: &ngx_http_request_t, path: &str) -> Result<Call, Rejected> {
    let path = Path::parse(path)?;
    let method = match r.method as u32 {
        NGX_HTTP_GET | NGX_HTTP_HEAD => Method::Read,
        NGX_HTTP_PATCH => Method::Patch,
        NGX_HTTP_POST => Method::Post,
        NGX_HTTP_DELETE => Method::Delete,
        _ => Method::Other,
    };
    let allow = Some(path.allows());
    path.with(method).map_err(|error| Rejected { error, allow })
}

/// What can be said of a write before its body is read. A location that is not for writes has, for these clients, no such
/// method.
fn check(r: &mut ngx_http_request_t) -> Result<(), Rejected> {
    match authorize(r) {
        Ok(()) => {}
        Err(Denied::ReadOnly(_)) => {
            let error = Code::MethodDisabled.says("method disabled: the location has no \"write=on\"");
            return Err(Rejected { error, allow: Some("GET, HEAD") });
        }
        Err(Denied::Caller(refusal)) => return Err(refusal.into()),
    }
    if body::is_too_large(r) { Err(body::too_large().into()) } else { Ok(()) }
}

fn read(r: &ngx_http_request_t, path: &Path, fields: &Fields) -> Result<Option<Vec<u8>>, Rejected> {
    let (conf, zone) = place(r)?;
    let _locked = lock(zone)?;
    let here = Here { request: r, conf };
    let sight = Sight { table: zone.table, world: conf, nginx: &here, now: moment() };
    Ok(sight.answer(path, fields)?)
}

/// nginx calls this when the body of a write is there.
unsafe extern "C" fn apply(r: *mut ngx_http_request_t) {
    // SAFETY: nginx passes the request that it read the body for.
    let request = unsafe { &mut *r };
    let status = match write(request) {
        Ok((status, body)) => send(request, status, body),
        Err(rejected) => reject(request, rejected),
    };
    // SAFETY: the count that reading the body added is given back here.
    unsafe { ngx_http_finalize_request(r, status) };
}

fn write(r: &ngx_http_request_t) -> Result<(u16, Option<Vec<u8>>), Rejected> {
    let (path, _) = asked(r).unwrap_or_default();
    let call = called(r, &path)?;
    let bytes = body::take(r)?;
    let (conf, zone) = place(r)?;
    let here = Here { request: r, conf };
    let sight = Sight { table: zone.table, world: conf, nginx: &here, now: moment() };
    let changed = match &call {
        Call::Patch { upstream, id } => {
            let _locked = lock(zone)?;
            sight.patch(upstream, id, &bytes)?
        }
        Call::Delete { upstream, id } => {
            let _locked = lock(zone)?;
            is_running(conf, zone)?;
            sight.delete(upstream, id)?
        }
        Call::Post { upstream } => {
            let added = {
                let _locked = lock(zone)?;
                is_running(conf, zone)?;
                sight.post(upstream, &bytes).map_err(read_only)?
            };
            conf.weigh(zone);
            log::tell(log_of(r), &added.events);
            let _locked = lock(zone)?;
            return Ok((201, sight.server(upstream, &added.peer)));
        }
        Call::Read(_) => return Err(Code::MethodDisabled.says("method disabled").into()),
    };
    conf.weigh(zone);
    log::tell(log_of(r), &changed.events);
    Ok((200, changed.body))
}

/// An upstream whose servers nginx.conf alone names.
fn read_only(error: Error) -> Rejected {
    let allow = (error.code == Code::MethodDisabled).then_some("GET, HEAD");
    Rejected { error, allow }
}

fn send(r: &mut ngx_http_request_t, status: u16, mut body: Option<Vec<u8>>) -> ngx_int_t {
    if let Some(body) = &mut body {
        body.push(b'\n');
    }
    reply::send(r, status, body)
}

fn reject(r: &mut ngx_http_request_t, rejected: Rejected) -> ngx_int_t {
    if let Some(methods) = rejected.allow {
        reply::allow(r, methods);
    }
    let id = variable(r, "request_id").unwrap_or_default();
    reply::send(r, rejected.error.status, reply::json(&rejected.error.body(&id)))
}

// === impl Here ===

impl Nginx for Here<'_> {
    fn about(&self) -> About {
        About {
            version: crate::nginx::version(),
            address: local_address(self.request).unwrap_or_default(),
            pid: std::process::id(),
            ppid: u32::try_from(global!(ngx_parent)).unwrap_or_default(),
        }
    }

    fn visitors(&self) -> Option<Visitors> {
        crate::nginx::visitors()
    }

    fn servers(&self, upstream: &str) -> Vec<Server> {
        let upstream = self.conf.upstream(upstream).zip(self.conf.zone());
        let servers = upstream.map(|(upstream, zone)| {
            // Whoever was added a moment ago is in nginx's list.
            upstream.refresh(zone);
            upstream.servers(zone)
        });
        servers.unwrap_or_default()
    }

    fn zone(&self, upstream: &str) -> String {
        self.conf.upstream(upstream).map(|upstream| upstream.zone_name()).unwrap_or_default()
    }

    fn has_block(&self, upstream: &str) -> bool {
        conf::has_block(self.request, upstream)
    }
}
