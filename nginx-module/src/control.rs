//! The API: takes a request apart, asks core, answers.

use crate::conf::{LocationConf, MainConf};
use crate::nginx::{log_of, moment, rc, text, variable, version};
use crate::reply::{self, json};
use crate::upgrade;
use crate::wait::{self, Awaited, Wait};
use crate::zone::{Locked, Zone};
use crate::{Handoff, body, log, page, plus};
use handoff_core::access::{Caller, is_foreign};
use handoff_core::control::{Applied, Control, find, unknown_upstream};
use handoff_core::{Table, metrics, timeline, view};
use handoff_wire::path::Path;
use handoff_wire::{
    API_VERSION, Code, Event, MAX_WAIT, MarkSet, OrphanSet, Overview, Owner, Pause, PeerAdd, PeerRemove,
    Refusal, Renew, Resume, Span, ZoneView,
};
use nginx_sys::{
    NGX_HTTP_DELETE, NGX_HTTP_GET, NGX_HTTP_HEAD, NGX_HTTP_POST, NGX_HTTP_PUT, NGX_HTTP_SPECIAL_RESPONSE,
    NGX_LOG_WARN, ngx_connection_t, ngx_http_discard_request_body, ngx_http_finalize_request,
    ngx_http_read_client_request_body, ngx_http_request_t, ngx_int_t, ngx_uint_t,
};
use ngx::http::{HttpModuleLocationConf, HttpModuleMainConf, NgxHttpCoreModule};
use ngx::ngx_log_error;
use serde::{Serialize, de::DeserializeOwned};
use std::slice;

/// What a request wants.
enum Call {
    Read(Read),
    Write(Write),
}

enum Read {
    Page,
    Metrics,
    Overview,
    Upstreams,
    Upstream(String),
    Peer { upstream: String, peer: String },
    Events { after: u64 },
    Timeline,
    Wait { awaited: Awaited, timeout: Span },
}

enum Write {
    Marks,
    Renew,
    Orphans,
    Pause,
    Resume,
    Add { upstream: String },
    Remove { upstream: String, peer: String, timeout: Span },
}

/// What a write did: the answer, what is to be logged, and what is waited for before the answer goes.
struct Written {
    ack: Option<Vec<u8>>,
    events: Vec<Event>,
    wait: Option<Wait>,
}

impl<A: Serialize> From<Applied<A>> for Written {
    fn from(applied: Applied<A>) -> Self {
        Self { ack: json(&applied.ack), events: applied.events, wait: None }
    }
}

/// Why somebody may not write.
pub(crate) enum Denied {
    /// Nobody may, here.
    ReadOnly(Refusal),
    Caller(Refusal),
}

/// A refusal, and the methods that would have been right.
struct Rejected {
    refusal: Refusal,
    allow: Option<&'static str>,
}

impl From<Denied> for Rejected {
    fn from((Denied::ReadOnly(refusal) | Denied::Caller(refusal)): Denied) -> Self {
        refusal.into()
    }
}

impl From<Refusal> for Rejected {
    fn from(refusal: Refusal) -> Self {
        Self { refusal, allow: None }
    }
}

/// The content handler of a location with `handoff_api`.
pub(crate) unsafe extern "C" fn handle(r: *mut ngx_http_request_t) -> ngx_int_t {
    // SAFETY: nginx passes a valid request, which is ours until we return.
    let request = unsafe { &mut *r };
    if let Some(status) = plus::handle(request) {
        return status;
    }
    match begin(request) {
        Ok(Call::Read(read)) => {
            // SAFETY: a request whose body nobody reads.
            let status = unsafe { ngx_http_discard_request_body(r) };
            if status != rc::OK { status } else { serve(request, read) }
        }
        Ok(Call::Write(_)) => {
            // SAFETY: nginx calls apply() once the body is there.
            let status = unsafe { ngx_http_read_client_request_body(r, Some(apply)) };
            if status >= NGX_HTTP_SPECIAL_RESPONSE as ngx_int_t { status } else { rc::DONE }
        }
        Err(rejected) => {
            // SAFETY: as above.
            let status = unsafe { ngx_http_discard_request_body(r) };
            if status != rc::OK { status } else { reject(request, rejected) }
        }
    }
}

fn reject(r: &mut ngx_http_request_t, rejected: Rejected) -> ngx_int_t {
    if let Some(methods) = rejected.allow {
        reply::allow(r, methods);
    }
    reply::refusal(r, rejected.refusal)
}

/// Everything that can be said before the body is read.
fn begin(r: &mut ngx_http_request_t) -> Result<Call, Rejected> {
    let call = parse(r)?;
    if let Call::Write(_) = call {
        authorize(r)?;
        if body::is_too_large(r) {
            return Err(body::too_large().into());
        }
    }
    Ok(call)
}

fn parse(r: &ngx_http_request_t) -> Result<Call, Rejected> {
    let uri = text(&r.unparsed_uri);
    let (full, query) = uri.split_once('?').unwrap_or((&uri, ""));
    let unknown = || {
        let text = format!("there is nothing at {full}: begin at /v{API_VERSION}");
        Rejected::from(Code::PathNotFound.says(text))
    };
    let path = Path::parse(below_location(r, full)).ok_or_else(unknown)?;
    let method = r.method as u32;
    let read = matches!(method, NGX_HTTP_GET | NGX_HTTP_HEAD);
    let call = match path {
        Path::Marks if method == NGX_HTTP_PUT => Call::Write(Write::Marks),
        Path::Renew if method == NGX_HTTP_POST => Call::Write(Write::Renew),
        Path::Orphans if method == NGX_HTTP_POST => Call::Write(Write::Orphans),
        Path::Pause if method == NGX_HTTP_PUT => Call::Write(Write::Pause),
        Path::Resume if method == NGX_HTTP_POST => Call::Write(Write::Resume),
        Path::Peers(upstream) if method == NGX_HTTP_POST => Call::Write(Write::Add { upstream }),
        Path::Peer { upstream, peer } if method == NGX_HTTP_DELETE => {
            let timeout = timeout(query)?;
            return Ok(Call::Write(Write::Remove { upstream, peer, timeout }));
        }
        Path::Peers(_) => return Err(not_allowed(r, "POST")),
        Path::Peer { .. } if !read => return Err(not_allowed(r, "GET, HEAD, DELETE")),
        Path::Marks | Path::Pause => return Err(not_allowed(r, "PUT")),
        Path::Renew | Path::Orphans | Path::Resume => return Err(not_allowed(r, "POST")),
        _ if !read => return Err(not_allowed(r, "GET, HEAD")),
        Path::Page => Call::Read(Read::Page),
        Path::Metrics => Call::Read(Read::Metrics),
        Path::Overview => Call::Read(Read::Overview),
        Path::Upstreams => Call::Read(Read::Upstreams),
        Path::Upstream(name) => Call::Read(Read::Upstream(name)),
        Path::Peer { upstream, peer } => Call::Read(Read::Peer { upstream, peer }),
        Path::Timeline => Call::Read(Read::Timeline),
        Path::Events => Call::Read(Read::Events { after: parameter(query, "after")?.unwrap_or(0) }),
        Path::Drained { upstream, peer } => return waiting(query, Awaited::Drained { upstream, peer }),
        Path::Quiet(upstream) => return waiting(query, Awaited::Quiet { upstream }),
    };
    if matches!(call, Call::Read(Read::Events { .. })) { Ok(call) } else { without_query(query, call) }
}

fn waiting(query: &str, awaited: Awaited) -> Result<Call, Rejected> {
    Ok(Call::Read(Read::Wait { awaited, timeout: timeout(query)? }))
}

fn timeout(query: &str) -> Result<Span, Refusal> {
    let timeout = parameter(query, "timeout")?.unwrap_or_default();
    if timeout > MAX_WAIT {
        let text = format!("\"timeout\" is {timeout}, more than {MAX_WAIT}: ask again when that has passed");
        return Err(Code::BadRequest.says(text));
    }
    Ok(timeout)
}

fn without_query(query: &str, call: Call) -> Result<Call, Rejected> {
    if query.is_empty() {
        return Ok(call);
    }
    Err(Code::BadRequest.says(format!("this path takes no parameters, not {query:?}")).into())
}

fn not_allowed(r: &ngx_http_request_t, methods: &'static str) -> Rejected {
    let refusal =
        Code::MethodNotAllowed.says(format!("{} is not for this path: use {methods}", text(&r.method_name)));
    Rejected { refusal, allow: Some(methods) }
}

/// The path below the location's own, which may be "/" or anything an operator chose.
pub(crate) fn below_location<'a>(r: &ngx_http_request_t, path: &'a str) -> &'a str {
    let name = NgxHttpCoreModule::location_conf(r).map(|location| text(&location.name)).unwrap_or_default();
    path.strip_prefix(name.trim_end_matches('/')).unwrap_or(path)
}

/// The one parameter that a path takes.
fn parameter<T: std::str::FromStr<Err: std::fmt::Display>>(
    query: &str,
    name: &str,
) -> Result<Option<T>, Refusal> {
    if query.is_empty() {
        return Ok(None);
    }
    let value = query.strip_prefix(name).and_then(|rest| rest.strip_prefix('='));
    let value = value.ok_or_else(|| Code::BadRequest.says(format!("{query:?} is not {name}=…")))?;
    value.parse().map(Some).map_err(|error| Code::BadRequest.says(format!("{name}={value}: {error}")))
}

/// Who may write is said by the kernel, not by the client.
pub(crate) fn authorize(r: &mut ngx_http_request_t) -> Result<(), Denied> {
    let origin = variable(r, "http_origin");
    let host = variable(r, "http_host").unwrap_or_default();
    let conf: Option<&LocationConf> = Handoff::location_conf(r);
    let Some(api) = conf.and_then(|conf| conf.api.as_ref()).filter(|api| api.write) else {
        let text = "this location is read-only: say \"handoff_api write=on\" where you write";
        return Err(Denied::ReadOnly(Code::Forbidden.says(text)));
    };
    // SAFETY: a request has a connection.
    let connection = unsafe { &*r.connection };
    let worker = rustix::process::geteuid().as_raw();
    let caller = caller(connection);
    if api.access.allows(&caller, worker) {
        let Some(origin) = origin.filter(|origin| is_foreign(origin, &host)) else { return Ok(()) };
        return Err(Denied::Caller(Code::Forbidden.says(format!(
            "a page of {origin} may not write to {host}: whose page it is, pass on the Host that it asked for \
             (proxy_set_header Host $http_host)"
        ))));
    }
    let who = match caller {
        Caller::Local { user, .. } => format!("user {user}"),
        Caller::Remote => "a client over TCP".to_owned(),
    };
    Err(Denied::Caller(Code::Forbidden.says(format!(
        "{who} may not write: be root or nginx's own user, or name a user= or group= in \"handoff_api write=on\""
    ))))
}

fn caller(connection: &ngx_connection_t) -> Caller {
    // SAFETY: the client's address, which an accepted connection has.
    let family = unsafe { connection.sockaddr.as_ref() }.map(|at| libc::c_int::from(at.sa_family));
    let mut peer = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let got = option(connection.fd, libc::SO_PEERCRED, slice::from_mut(&mut peer));
    if family != Some(libc::AF_UNIX) || got != Some(1) {
        return Caller::Remote;
    }
    let mut groups = [0 as libc::gid_t; 64];
    let count = option(connection.fd, libc::SO_PEERGROUPS, &mut groups).unwrap_or(0);
    let groups = groups.into_iter().take(count).chain([peer.gid]).collect();
    Caller::Local { user: peer.uid, groups }
}

/// How many elements of a socket's option there are.
fn option<T>(fd: libc::c_int, name: libc::c_int, place: &mut [T]) -> Option<usize> {
    let mut len = libc::socklen_t::try_from(size_of_val(place)).ok()?;
    let at = place.as_mut_ptr().cast();
    // SAFETY: writes at most `len` bytes there, and says how many.
    let got = unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, name, at, &raw mut len) };
    (got == 0).then(|| (len as usize).checked_div(size_of::<T>()))?
}

fn serve(r: &mut ngx_http_request_t, read: Read) -> ngx_int_t {
    match look(r, read) {
        Ok(status) => status,
        Err(refusal) => reply::refusal(r, refusal),
    }
}

fn look(r: &mut ngx_http_request_t, read: Read) -> Result<ngx_int_t, Refusal> {
    let (conf, zone) = place(r)?;
    let table = zone.table;
    let view = match read {
        Read::Page => return Ok(page::serve(r)),
        Read::Metrics => {
            let upstreams = {
                let _locked = lock(zone)?;
                view::upstreams(&table, conf, moment())
            };
            let text = metrics::render(&overview(conf, &table), &upstreams);
            return Ok(reply::answer(r, 200, metrics::CONTENT_TYPE, text));
        }
        Read::Timeline => {
            let _locked = lock(zone)?;
            json(&timeline::timeline(&table, moment()))
        }
        Read::Wait { awaited, timeout } => return Ok(wait::begin(r, Wait { conf, table, awaited, timeout })),
        Read::Overview => json(&overview(conf, &table)),
        Read::Events { after } => {
            let _locked = lock(zone)?;
            json(&table.recall(after))
        }
        Read::Upstreams => {
            let _locked = lock(zone)?;
            json(&view::upstreams(&table, conf, moment()))
        }
        Read::Upstream(name) => {
            let _locked = lock(zone)?;
            json(&upstream(conf, &table, &name)?)
        }
        Read::Peer { upstream: name, peer } => {
            find(&table, &name, &peer)?;
            let _locked = lock(zone)?;
            let upstream = view::upstream(&table, conf, moment(), &name);
            let gone =
                || Code::PeerNotFound.says(format!("the upstream {name:?} has no peer {peer:?} any more"));
            json(&upstream.peers.iter().find(|view| view.address == peer).ok_or_else(gone)?)
        }
    };
    Ok(reply::send(r, 200, view))
}

fn upstream(conf: &MainConf, table: &Table<'_>, name: &str) -> Result<handoff_wire::UpstreamView, Refusal> {
    if conf.upstream(name).is_none() {
        return Err(unknown_upstream(name));
    }
    Ok(view::upstream(table, conf, moment(), name))
}

fn overview(conf: &MainConf, table: &Table<'_>) -> Overview {
    let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    Overview {
        api: API_VERSION,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        nginx: version(),
        instance: table.header.instance(),
        started: table.header.started(),
        generation: table.header.generation(),
        events: table.header.told(),
        zone: ZoneView {
            size: conf.size() as u64,
            peers: number(table.ids().count()),
            peers_max: number(table.slots.len()),
            peers_uncovered: conf.without_slot.get(),
            processes_max: number(table.rows.len()),
        },
        old_master: upgrade::old_master(),
        processes: view::processes(table, conf),
        uncovered: conf.uncovered.clone(),
    }
}

/// nginx calls this when the body of a write is there.
unsafe extern "C" fn apply(r: *mut ngx_http_request_t) {
    // SAFETY: nginx passes the request that it read the body for.
    let request = unsafe { &mut *r };
    let status = match write(request) {
        Ok(written) => {
            log::tell(log_of(request), &written.events);
            match written.wait {
                Some(wait) => wait::begin(request, wait),
                None => reply::send(request, 200, written.ack),
            }
        }
        Err(rejected) => {
            if rejected.refusal.code == Code::SlotsFull {
                ngx_log_error!(NGX_LOG_WARN, log_of(request), "handoff: {}", rejected.refusal.text);
            }
            reject(request, rejected)
        }
    };
    // SAFETY: the count that reading the body added is given back here.
    unsafe { ngx_http_finalize_request(r, status) };
}

fn write(r: &ngx_http_request_t) -> Result<Written, Rejected> {
    let Call::Write(write) = parse(r)? else {
        return Err(Code::BadRequest.says("this path takes no body").into());
    };
    let bytes = body::take(r)?;
    let (conf, zone) = place(r)?;
    Ok(match write {
        Write::Marks => {
            let set: MarkSet = read(&bytes)?;
            let _locked = lock(zone)?;
            let written = Control::begin(zone.table, conf, moment()).mark(&set)?.into();
            // Whoever is away has the smallest share before it comes back.
            conf.weigh(zone);
            written
        }
        Write::Renew => {
            let renew: Renew = read(&bytes)?;
            let _locked = lock(zone)?;
            Control::begin(zone.table, conf, moment()).renew(&renew)?.into()
        }
        Write::Orphans => {
            let set: OrphanSet = read(&bytes)?;
            let _locked = lock(zone)?;
            Control::begin(zone.table, conf, moment()).orphans(&set)?.into()
        }
        Write::Pause => {
            let set: Pause = read(&bytes)?;
            let _locked = lock(zone)?;
            Control::begin(zone.table, conf, moment()).pause(&set)?.into()
        }
        Write::Resume => {
            let set: Resume = read(&bytes)?;
            let _locked = lock(zone)?;
            Control::begin(zone.table, conf, moment()).resume(&set)?.into()
        }
        Write::Add { upstream } => {
            let add: PeerAdd = read(&bytes)?;
            let applied = {
                let _locked = lock(zone)?;
                is_running(conf, zone)?;
                Control::begin(zone.table, conf, moment()).add(&upstream, &add)?
            };
            follow(conf, zone, &upstream);
            conf.weigh(zone);
            applied.into()
        }
        Write::Remove { upstream, peer, timeout } => {
            // Nothing need be said but who goes.
            let remove = match bytes.as_slice() {
                [] => PeerRemove { owner: Owner::operator(), reason: String::new(), force: false },
                bytes => read(bytes)?,
            };
            let applied = {
                let _locked = lock(zone)?;
                is_running(conf, zone)?;
                Control::begin(zone.table, conf, moment()).remove_peer(&upstream, &peer, &remove)?
            };
            follow(conf, zone, &upstream);
            let waits = timeout > Span::default() && applied.ack.in_flight > 0;
            let awaited = waits.then(|| Awaited::Gone(applied.ack.clone()));
            let wait = awaited.map(|awaited| Wait { conf, table: zone.table, awaited, timeout });
            Written { wait, ..applied.into() }
        }
    })
}

/// Who has slots is said by the newest configuration; a worker that finishes an older one does not know.
pub(crate) fn is_running(conf: &MainConf, zone: &Zone) -> Result<(), Refusal> {
    if zone.table.header.is_running(conf.configuration.get()) {
        return Ok(());
    }
    Err(Code::Busy.says("nginx was reloaded, and this worker is about to end: try again on a new connection"))
}

/// nginx's list of the peers follows, before anybody is told. Whoever is at it may keep us from it for a moment: then each
/// process has it follow before its next request.
fn follow(conf: &MainConf, zone: &Zone, upstream: &str) {
    if let Some(upstream) = conf.upstream(upstream) {
        upstream.refresh(zone);
    }
}

fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Refusal> {
    serde_json::from_slice(bytes)
        .map_err(|error| Code::BadRequest.says(format!("the body is not understood: {error}")))
}

pub(crate) fn place(r: &ngx_http_request_t) -> Result<(&'static MainConf, &'static Zone), Refusal> {
    let conf = Handoff::main_conf(r);
    let zone = conf.and_then(|conf| Some((conf, conf.zone()?)));
    zone.ok_or_else(|| Code::Busy.says("this nginx has no handoff_zone: look into its error log"))
}

pub(crate) fn lock(zone: &Zone) -> Result<Locked, Refusal> {
    zone.lock().ok_or_else(|| Code::Busy.says("another nginx process holds handoff_zone: try again"))
}

const _: () = assert!(NGX_HTTP_SPECIAL_RESPONSE as ngx_uint_t == 300);
