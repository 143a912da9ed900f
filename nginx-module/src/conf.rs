//! The directives, and what they leave behind.
//!
//! The order of directives never matters: each is only read where it stands, and everything that depends on another is
//! done in [`mod@complete`], when nginx has read them all.

mod block;
mod bypass;
mod complete;

pub(crate) use complete::complete;

use crate::nginx::{array, text};
use crate::upstream::Upstream;
use crate::zone::Zone;
use crate::{Handoff, control, seat};
use handoff_core::access::Access;
use handoff_core::directive::{self, Api, Invalid};
use handoff_core::hold::Queue;
use handoff_core::retry::Budget;
use handoff_core::reuse::Reuse;
use handoff_core::table::RowId;
use handoff_wire::{Span, UncoveredView};
use nginx_sys::{
    NGX_CONF_1MORE, NGX_CONF_ANY, NGX_CONF_NOARGS, NGX_CONF_TAKE1, NGX_HTTP_LOC_CONF,
    NGX_HTTP_LOC_CONF_OFFSET, NGX_HTTP_MAIN_CONF, NGX_HTTP_MAIN_CONF_OFFSET, NGX_HTTP_SRV_CONF_OFFSET,
    NGX_HTTP_UPS_CONF, NGX_LOG_EMERG, ngx_command_t, ngx_conf_t, ngx_http_core_srv_conf_t,
    ngx_http_request_t, ngx_http_upstream_srv_conf_t, ngx_parse_offset, ngx_parse_size, ngx_parse_time,
    ngx_str_t, ngx_uint_t,
};
use ngx::core::{NGX_CONF_ERROR, NGX_CONF_OK};
use ngx::http::{
    HttpModuleLocationConf, HttpModuleMainConf, HttpModuleServerConf, NgxHttpCoreModule,
    NgxHttpUpstreamModule,
};
use ngx::ngx_conf_log_error;
use std::cell::{Cell, OnceCell};
use std::ffi::{CString, c_char, c_void};
use std::fmt;
use std::path::PathBuf;
use std::ptr::{self, NonNull};

/// The `http` block.
#[derive(Default)]
pub(crate) struct MainConf {
    size: Option<usize>,
    /// Upstream blocks and requests point to them: complete and still before the first pointer is taken.
    upstreams: Vec<Upstream>,
    apis: Vec<ApiPlace>,
    /// The unix sockets on which a control API listens.
    pub(crate) sockets: Vec<PathBuf>,
    /// This configuration's number in the zone.
    pub(crate) configuration: Cell<u64>,
    /// Peers for which the zone had no room.
    pub(crate) without_slot: Cell<u32>,
    /// Upstreams for whose waiting requests the zone had no room.
    pub(crate) without_room: Cell<usize>,
    /// Who passes requests to our peers where their marks are not seen.
    pub(crate) uncovered: Vec<UncoveredView>,
    zone: OnceCell<Zone>,
    /// This process's row. Set in a worker, where the configuration is that process's own copy.
    pub(crate) row: Cell<Option<RowId>>,
}

/// A `server` or `upstream` block.
#[derive(Default)]
pub(crate) struct ServerConf {
    enabled: bool,
    reuse: Option<Reuse>,
    /// `Some(None)` is `off`.
    queue: Option<Option<Queue>>,
    /// The same.
    retry: Option<Option<Budget>>,
    /// The same.
    slow_start: Option<Option<Span>>,
    slots: Option<usize>,
    upstream: Cell<Option<NonNull<Upstream>>>,
}

/// A `location`.
#[derive(Default)]
pub(crate) struct LocationConf {
    pub(crate) api: Option<LocationApi>,
}

pub(crate) struct LocationApi {
    pub(crate) write: bool,
    pub(crate) access: Access,
}

/// A `handoff_api` and where it stands.
struct ApiPlace {
    api: Api,
    server: *const ngx_http_core_srv_conf_t,
    at: String,
}

/// The configuration was refused, and nginx has logged why.
pub(crate) struct Refused;

pub(crate) static mut COMMANDS: [ngx_command_t; 9] = [
    ngx_command_t {
        name: ngx::ngx_string!("handoff"),
        type_: (NGX_HTTP_UPS_CONF | NGX_CONF_NOARGS) as ngx_uint_t,
        set: Some(set_handoff),
        conf: NGX_HTTP_SRV_CONF_OFFSET,
        offset: 0,
        post: ptr::null_mut(),
    },
    ngx_command_t {
        name: ngx::ngx_string!("handoff_reuse"),
        type_: (NGX_HTTP_UPS_CONF | NGX_CONF_TAKE1) as ngx_uint_t,
        set: Some(set_reuse),
        conf: NGX_HTTP_SRV_CONF_OFFSET,
        offset: 0,
        post: ptr::null_mut(),
    },
    ngx_command_t {
        name: ngx::ngx_string!("handoff_queue"),
        type_: (NGX_HTTP_UPS_CONF | NGX_CONF_1MORE) as ngx_uint_t,
        set: Some(set_queue),
        conf: NGX_HTTP_SRV_CONF_OFFSET,
        offset: 0,
        post: ptr::null_mut(),
    },
    ngx_command_t {
        name: ngx::ngx_string!("handoff_retry"),
        type_: (NGX_HTTP_UPS_CONF | NGX_CONF_1MORE) as ngx_uint_t,
        set: Some(set_retry),
        conf: NGX_HTTP_SRV_CONF_OFFSET,
        offset: 0,
        post: ptr::null_mut(),
    },
    ngx_command_t {
        name: ngx::ngx_string!("handoff_slow_start"),
        type_: (NGX_HTTP_UPS_CONF | NGX_CONF_TAKE1) as ngx_uint_t,
        set: Some(set_slow_start),
        conf: NGX_HTTP_SRV_CONF_OFFSET,
        offset: 0,
        post: ptr::null_mut(),
    },
    ngx_command_t {
        name: ngx::ngx_string!("handoff_slots"),
        type_: (NGX_HTTP_UPS_CONF | NGX_CONF_TAKE1) as ngx_uint_t,
        set: Some(set_slots),
        conf: NGX_HTTP_SRV_CONF_OFFSET,
        offset: 0,
        post: ptr::null_mut(),
    },
    ngx_command_t {
        name: ngx::ngx_string!("handoff_zone"),
        type_: (NGX_HTTP_MAIN_CONF | NGX_CONF_TAKE1) as ngx_uint_t,
        set: Some(set_zone),
        conf: NGX_HTTP_MAIN_CONF_OFFSET,
        offset: 0,
        post: ptr::null_mut(),
    },
    ngx_command_t {
        name: ngx::ngx_string!("handoff_api"),
        type_: (NGX_HTTP_LOC_CONF | NGX_CONF_ANY) as ngx_uint_t,
        set: Some(set_api),
        conf: NGX_HTTP_LOC_CONF_OFFSET,
        offset: 0,
        post: ptr::null_mut(),
    },
    ngx_command_t::empty(),
];

const DUPLICATE: *mut c_char = c"is duplicate".as_ptr().cast_mut();

/// `handoff;`
unsafe extern "C" fn set_handoff(
    _cf: *mut ngx_conf_t,
    _cmd: *mut ngx_command_t,
    conf: *mut c_void,
) -> *mut c_char {
    // SAFETY: nginx passes what create_srv_conf made for this block.
    let conf = unsafe { &mut *conf.cast::<ServerConf>() };
    if std::mem::replace(&mut conf.enabled, true) { DUPLICATE } else { NGX_CONF_OK }
}

/// `handoff_reuse idle=time | always;`
unsafe extern "C" fn set_reuse(
    cf: *mut ngx_conf_t,
    _cmd: *mut ngx_command_t,
    conf: *mut c_void,
) -> *mut c_char {
    // SAFETY: nginx passes what create_srv_conf made for this block.
    let conf = unsafe { &mut *conf.cast::<ServerConf>() };
    if conf.reuse.is_some() {
        return DUPLICATE;
    }
    let Some(argument) = arguments(cf).first() else { return NGX_CONF_ERROR };
    match directive::reuse(&text(argument), milliseconds) {
        Ok(reuse) => conf.reuse = Some(reuse),
        Err(invalid) => return refuse(cf, "handoff_reuse", &invalid),
    }
    NGX_CONF_OK
}

/// `handoff_queue number [bytes=size] [timeout=time] | off;`
unsafe extern "C" fn set_queue(
    cf: *mut ngx_conf_t,
    _cmd: *mut ngx_command_t,
    conf: *mut c_void,
) -> *mut c_char {
    // SAFETY: nginx passes what create_srv_conf made for this block.
    let conf = unsafe { &mut *conf.cast::<ServerConf>() };
    if conf.queue.is_some() {
        return DUPLICATE;
    }
    let words: Vec<_> = arguments(cf).iter().map(text).collect();
    match directive::queue(words.iter().map(AsRef::as_ref), bytes, milliseconds) {
        Ok(queue) => conf.queue = Some(queue),
        Err(invalid) => return refuse(cf, "handoff_queue", &invalid),
    }
    NGX_CONF_OK
}

/// `handoff_retry [budget=percent%] [min=number] | off;`
unsafe extern "C" fn set_retry(
    cf: *mut ngx_conf_t,
    _cmd: *mut ngx_command_t,
    conf: *mut c_void,
) -> *mut c_char {
    // SAFETY: nginx passes what create_srv_conf made for this block.
    let conf = unsafe { &mut *conf.cast::<ServerConf>() };
    if conf.retry.is_some() {
        return DUPLICATE;
    }
    let words: Vec<_> = arguments(cf).iter().map(text).collect();
    match directive::retry(words.iter().map(AsRef::as_ref)) {
        Ok(retry) => conf.retry = Some(retry),
        Err(invalid) => return refuse(cf, "handoff_retry", &invalid),
    }
    NGX_CONF_OK
}

/// `handoff_slow_start time | off;`
unsafe extern "C" fn set_slow_start(
    cf: *mut ngx_conf_t,
    _cmd: *mut ngx_command_t,
    conf: *mut c_void,
) -> *mut c_char {
    // SAFETY: nginx passes what create_srv_conf made for this block.
    let conf = unsafe { &mut *conf.cast::<ServerConf>() };
    if conf.slow_start.is_some() {
        return DUPLICATE;
    }
    let Some(argument) = arguments(cf).first() else { return NGX_CONF_ERROR };
    match directive::slow_start(&text(argument), milliseconds) {
        Ok(slow_start) => conf.slow_start = Some(slow_start),
        Err(invalid) => return refuse(cf, "handoff_slow_start", &invalid),
    }
    NGX_CONF_OK
}

/// `handoff_slots number;`
unsafe extern "C" fn set_slots(
    cf: *mut ngx_conf_t,
    _cmd: *mut ngx_command_t,
    conf: *mut c_void,
) -> *mut c_char {
    // SAFETY: nginx passes what create_srv_conf made for this block.
    let conf = unsafe { &mut *conf.cast::<ServerConf>() };
    if conf.slots.is_some() {
        return DUPLICATE;
    }
    let Some(argument) = arguments(cf).first() else { return NGX_CONF_ERROR };
    let count = match directive::slots(&text(argument)) {
        Ok(count) => count,
        Err(invalid) => return refuse(cf, "handoff_slots", &invalid),
    };
    conf.slots = Some(count);
    // SAFETY: nginx passes a valid pointer, and nobody else uses it now.
    let context = unsafe { &*cf };
    let Some(us) = NgxHttpUpstreamModule::server_conf(context) else { return NGX_CONF_ERROR };
    // A block of which nobody else is named must not be empty when it ends; and the balancer is to count them.
    match seat::place(context, us.servers, count) {
        Some(()) => NGX_CONF_OK,
        None => NGX_CONF_ERROR,
    }
}

/// A size as nginx reads it.
fn bytes(text: &str) -> Option<u64> {
    let mut copy = ngx_str_t { len: text.len(), data: text.as_ptr().cast_mut() };
    // SAFETY: reads the string it is given.
    let size = unsafe { ngx_parse_offset(&raw mut copy) };
    u64::try_from(size).ok()
}

/// A time as nginx reads it.
fn milliseconds(text: &str) -> Option<u64> {
    let mut copy = ngx_str_t { len: text.len(), data: text.as_ptr().cast_mut() };
    // SAFETY: reads the string it is given.
    let time = unsafe { ngx_parse_time(&raw mut copy, 0) };
    u64::try_from(time).ok()
}

/// `handoff_zone size;`
unsafe extern "C" fn set_zone(
    cf: *mut ngx_conf_t,
    _cmd: *mut ngx_command_t,
    conf: *mut c_void,
) -> *mut c_char {
    // SAFETY: nginx passes what create_main_conf made.
    let conf = unsafe { &mut *conf.cast::<MainConf>() };
    if conf.size.is_some() {
        return DUPLICATE;
    }
    let Some(argument) = arguments(cf).first() else { return NGX_CONF_ERROR };
    let mut copy = *argument;
    // SAFETY: reads the string it is given.
    let size = unsafe { ngx_parse_size(&raw mut copy) };
    let Ok(size) = usize::try_from(size) else {
        let text = text(argument);
        return refuse(cf, "handoff_zone", &format_args!("invalid size \"{text}\": write 4m or 512k"));
    };
    if let Err(invalid) = directive::zone(size) {
        return refuse(cf, "handoff_zone", &invalid);
    }
    conf.size = Some(size);
    NGX_CONF_OK
}

/// `handoff_api [write=on|off] [user=name] [group=name] [tcp=allow];`
unsafe extern "C" fn set_api(
    cf: *mut ngx_conf_t,
    _cmd: *mut ngx_command_t,
    conf: *mut c_void,
) -> *mut c_char {
    // SAFETY: nginx passes what create_loc_conf made for this location.
    let conf = unsafe { &mut *conf.cast::<LocationConf>() };
    if conf.api.is_some() {
        return DUPLICATE;
    }
    let words: Vec<_> = arguments(cf).iter().map(text).collect();
    let api = match Api::parse(words.iter().map(AsRef::as_ref)) {
        Ok(api) => api,
        Err(invalid) => return refuse(cf, "handoff_api", &invalid),
    };
    let access = match access(&api) {
        Ok(access) => access,
        Err(invalid) => return refuse(cf, "handoff_api", &invalid),
    };
    conf.api = Some(LocationApi { write: api.write, access });

    // SAFETY: nginx passes a valid pointer, and nobody else uses it now.
    let context = unsafe { &*cf };
    let Some(core) = NgxHttpCoreModule::location_conf_mut(context) else { return NGX_CONF_ERROR };
    core.handler = Some(control::handle);
    let Some(server) = NgxHttpCoreModule::server_conf(context) else { return NGX_CONF_ERROR };
    let Some(main) = Handoff::main_conf_mut(context) else { return NGX_CONF_ERROR };
    main.apis.push(ApiPlace { api, server: ptr::from_ref(server), at: place(context) });
    NGX_CONF_OK
}

/// A request body must fit into memory, whatever the defaults of this location say: reading one never waits for a disk.
pub(crate) unsafe extern "C" fn merge_location(
    cf: *mut ngx_conf_t,
    _prev: *mut c_void,
    conf: *mut c_void,
) -> *mut c_char {
    // SAFETY: nginx passes what create_loc_conf made for this location.
    let conf = unsafe { &*conf.cast::<LocationConf>() };
    // SAFETY: nginx passes a valid pointer.
    let context = unsafe { &*cf };
    // The core module comes before every other, so its own merge is done.
    if conf.api.is_some()
        && let Some(core) = NgxHttpCoreModule::location_conf_mut(context)
    {
        core.client_body_buffer_size = core.client_body_buffer_size.max(handoff_wire::MAX_BODY);
    }
    NGX_CONF_OK
}

// === impl MainConf ===

impl MainConf {
    pub(crate) fn upstreams(&self) -> impl Iterator<Item = &Upstream> {
        self.upstreams.iter()
    }

    pub(crate) fn zone(&self) -> Option<&Zone> {
        self.zone.get()
    }

    pub(crate) fn set_zone(&self, zone: Zone) {
        // nginx initializes the zone of a cycle once; a second time would bring the same.
        _ = self.zone.set(zone);
    }

    pub(crate) fn size(&self) -> usize {
        self.size.unwrap_or(directive::DEFAULT_ZONE)
    }
}

/// Whether the configuration has an upstream block of this name, with `handoff` or without.
pub(crate) fn has_block(r: &ngx_http_request_t, name: &str) -> bool {
    let Some(main) = NgxHttpUpstreamModule::main_conf(r) else { return false };
    // SAFETY: the upstream module keeps an array of these, complete since the configuration was read.
    let all: &[*const ngx_http_upstream_srv_conf_t] = unsafe { array(&raw const main.upstreams) };
    // SAFETY: each of them lives as long as the configuration.
    let all = all.iter().filter_map(|us| unsafe { us.as_ref() });
    all.filter(|us| block::is_block(us)).any(|us| text(&us.host) == name)
}

/// Our part of an upstream block; implicit upstreams have none.
fn server_conf(us: &ngx_http_upstream_srv_conf_t) -> Option<&'static ServerConf> {
    Handoff::server_conf(us)
}

/// The upstream behind a block that takes part.
pub(crate) fn upstream_of(us: &ngx_http_upstream_srv_conf_t) -> Option<&'static Upstream> {
    // SAFETY: in the main configuration of the same cycle, which lives as long as any request of it.
    server_conf(us)?.upstream.get().map(|upstream| unsafe { upstream.as_ref() })
}

/// The arguments of the directive that is being read.
fn arguments<'a>(cf: *mut ngx_conf_t) -> &'a [ngx_str_t] {
    // SAFETY: nginx passes a valid pointer.
    let words = unsafe { (*cf).args };
    // SAFETY: the words of the directive live until it is done.
    let words: &[ngx_str_t] = unsafe { array(words) };
    words.get(1..).unwrap_or_default()
}

fn refuse(cf: *mut ngx_conf_t, directive: &str, why: &dyn fmt::Display) -> *mut c_char {
    ngx_conf_log_error!(NGX_LOG_EMERG, cf, "\"{directive}\": {why}");
    NGX_CONF_ERROR
}

/// "file:line" of the directive that is being read.
fn place(cf: &ngx_conf_t) -> String {
    // SAFETY: set while a file is read; null for what stands on the command line.
    unsafe { cf.conf_file.as_ref() }
        .map_or_else(String::new, |file| format!("{}:{}", text(&file.file.name), file.line))
}

/// Looks up the names of `user=` and `group=`.
fn access(api: &Api) -> Result<Access, Invalid> {
    let master = rustix::process::geteuid().as_raw();
    let mut access = Access { users: vec![0, master], groups: Vec::new(), tcp: api.tcp };
    if let Some(name) = &api.user {
        access.users.push(user(name).ok_or_else(|| Invalid::NoSuch("user", name.clone()))?);
    }
    if let Some(name) = &api.group {
        access.groups.push(group(name).ok_or_else(|| Invalid::NoSuch("group", name.clone()))?);
    }
    Ok(access)
}

fn user(name: &str) -> Option<u32> {
    let name = CString::new(name).ok()?;
    // SAFETY: nginx reads its configuration in one thread, as the function demands.
    let user = unsafe { libc::getpwnam(name.as_ptr()) };
    // SAFETY: null, or valid until the next call.
    unsafe { user.as_ref() }.map(|user| user.pw_uid)
}

pub(crate) fn group(name: &str) -> Option<u32> {
    let name = CString::new(name).ok()?;
    // SAFETY: as above.
    let group = unsafe { libc::getgrnam(name.as_ptr()) };
    // SAFETY: as above.
    unsafe { group.as_ref() }.map(|group| group.gr_gid)
}
