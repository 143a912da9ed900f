//! The directives, and what a whole configuration must hold.
//!
//! The order of directives never matters: each is only read where it stands, and everything that depends on another is
//! done in [`complete`], when nginx has read them all.

use crate::nginx::{array, text};
use crate::upstream::Upstream;
use crate::zone::{self, Zone};
use crate::{Handoff, control, socket};
use handoff_core::access::Access;
use handoff_core::directive::{self, Api, Invalid};
use handoff_core::slot::MAX_NAME;
use handoff_core::table::RowId;
use nginx_sys::{
    NGX_CONF_ANY, NGX_CONF_NOARGS, NGX_CONF_TAKE1, NGX_HTTP_LOC_CONF, NGX_HTTP_LOC_CONF_OFFSET,
    NGX_HTTP_MAIN_CONF, NGX_HTTP_MAIN_CONF_OFFSET, NGX_HTTP_SRV_CONF_OFFSET, NGX_HTTP_UPS_CONF,
    NGX_HTTP_UPSTREAM_CREATE, NGX_LOG_EMERG, NGX_LOG_WARN, ngx_command_t, ngx_conf_t, ngx_http_conf_addr_t,
    ngx_http_conf_port_t, ngx_http_core_srv_conf_t, ngx_http_upstream_server_t, ngx_http_upstream_srv_conf_t,
    ngx_parse_size, ngx_shared_memory_add, ngx_str_t, ngx_uint_t,
};
use ngx::core::{NGX_CONF_ERROR, NGX_CONF_OK};
use ngx::http::{
    HttpModule, HttpModuleLocationConf, HttpModuleMainConf, HttpModuleServerConf, NgxHttpCoreModule,
    NgxHttpUpstreamModule,
};
use ngx::{ngx_conf_log_error, ngx_log_error};
use std::cell::{Cell, OnceCell};
use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_void};
use std::fmt;
use std::ptr::{self, NonNull};

/// The `http` block.
#[derive(Default)]
pub(crate) struct MainConf {
    size: Option<usize>,
    /// Upstream blocks and requests point to them: complete and still before the first pointer is taken.
    upstreams: Vec<Upstream>,
    apis: Vec<ApiPlace>,
    /// This configuration's number in the zone.
    pub(crate) configuration: Cell<u64>,
    /// Peers for which the zone had no room.
    pub(crate) uncovered: Cell<u32>,
    zone: OnceCell<Zone>,
    /// This process's row. Set in a worker, where the configuration is that process's own copy.
    pub(crate) row: Cell<Option<RowId>>,
}

/// A `server` or `upstream` block.
#[derive(Default)]
pub(crate) struct ServerConf {
    enabled: bool,
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

pub(crate) static mut COMMANDS: [ngx_command_t; 4] = [
    ngx_command_t {
        name: ngx::ngx_string!("handoff"),
        type_: (NGX_HTTP_UPS_CONF | NGX_CONF_NOARGS) as ngx_uint_t,
        set: Some(set_handoff),
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

/// Postconfiguration: all directives are read.
pub(crate) fn complete(cf: *mut ngx_conf_t) -> Result<(), Refused> {
    // SAFETY: nginx passes a valid pointer.
    let context = unsafe { &*cf };
    let main = Handoff::main_conf_mut(context).ok_or(Refused)?;
    let all = NgxHttpUpstreamModule::main_conf(context).ok_or(Refused)?;
    // SAFETY: the upstream module keeps an array of these, complete by now.
    let all: &[*mut ngx_http_upstream_srv_conf_t] = unsafe { array(&raw const all.upstreams) };
    // SAFETY: each of them is valid for as long as the configuration; nobody else uses them in postconfiguration.
    let all = || all.iter().filter_map(|us| unsafe { us.as_mut() });

    let taking_part = || all().filter(|us| server_conf(us).is_some_and(|conf| conf.enabled));
    main.upstreams = taking_part().map(|us| take_part(context, us)).collect::<Result<_, _>>()?;
    for (us, upstream) in taking_part().zip(&main.upstreams) {
        if let Some(conf) = server_conf(us) {
            conf.upstream.set(Some(NonNull::from(upstream)));
        }
    }
    warn_of_bypasses(context, main, all());
    if main.upstreams.is_empty() && main.apis.is_empty() {
        return Ok(());
    }
    guard_sockets(context, main)?;
    declare_zone(cf, main)
}

/// Wraps the balancer of an upstream that says `handoff`.
fn take_part(cf: &ngx_conf_t, us: &mut ngx_http_upstream_srv_conf_t) -> Result<Upstream, Refused> {
    let name = text(&us.host).into_owned();
    let at = place_of(us);
    if us.shm_zone.is_null() {
        ngx_log_error!(
            NGX_LOG_EMERG,
            cf.log,
            "upstream \"{name}\" has \"handoff\" but no \"zone\": add \"zone {name} 256k;\" in {at}"
        );
        return Err(Refused);
    }
    let addresses: Vec<_> = servers(us).iter().flat_map(addresses).collect();
    let names = addresses.iter().map(|(name, _)| name).chain([&name]);
    if let Some(long) = names.max_by_key(|name| name.len()).filter(|name| name.len() > MAX_NAME) {
        ngx_log_error!(
            NGX_LOG_EMERG,
            cf.log,
            "\"{long}\" is longer than the {MAX_NAME} bytes that \"handoff\" takes in {at}"
        );
        return Err(Refused);
    }
    Upstream::wrap(name, us, addresses).ok_or(Refused)
}

/// A drain is worth nothing where the same worker is reached another way.
fn warn_of_bypasses<'a>(
    cf: &ngx_conf_t,
    main: &MainConf,
    all: impl Iterator<Item = &'a mut ngx_http_upstream_srv_conf_t>,
) {
    let mut covered = HashMap::new();
    for upstream in &main.upstreams {
        covered.extend(upstream.addresses.names().map(|name| (name, &upstream.name)));
    }
    for us in all.filter(|us| server_conf(us).is_none_or(|conf| !conf.enabled)) {
        let other = text(&us.host);
        for (address, _) in servers(us).iter().flat_map(addresses) {
            let Some(upstream) = covered.get(address.as_str()) else { continue };
            let at = place_of(us);
            if us.flags & NGX_HTTP_UPSTREAM_CREATE as ngx_uint_t == 0 {
                ngx_log_error!(
                    NGX_LOG_WARN,
                    cf.log,
                    "requests passed to {address} directly do not see the marks of upstream \"{upstream}\": \
                     pass them to http://{upstream} in {at}"
                );
            } else {
                ngx_log_error!(
                    NGX_LOG_WARN,
                    cf.log,
                    "upstream \"{other}\" has the peer {address} of upstream \"{upstream}\" but no \"handoff\": \
                     marks are not seen there; add \"handoff;\" in {at}"
                );
            }
        }
    }
}

/// Every socket that a control API listens on.
fn guard_sockets(cf: &ngx_conf_t, main: &MainConf) -> Result<(), Refused> {
    let core = NgxHttpCoreModule::main_conf(cf).ok_or(Refused)?;
    // SAFETY: the core module keeps an array of these, complete by now.
    let ports: &[ngx_http_conf_port_t] = unsafe { array(core.ports) };
    for port in ports {
        // SAFETY: as above.
        let addrs: &[ngx_http_conf_addr_t] = unsafe { array(&raw const port.addrs) };
        for addr in addrs {
            // SAFETY: as above.
            let servers: &[*const ngx_http_core_srv_conf_t] = unsafe { array(&raw const addr.servers) };
            for place in main.apis.iter().filter(|place| servers.contains(&place.server)) {
                guard_socket(cf, addr, place)?;
            }
        }
    }
    Ok(())
}

fn guard_socket(cf: &ngx_conf_t, addr: &ngx_http_conf_addr_t, place: &ApiPlace) -> Result<(), Refused> {
    if let Some(path) = socket::path(addr.opt.sockaddr.cast(), addr.opt.socklen) {
        socket::prepare(&path, place.api.group.as_deref(), cf.log);
        return Ok(());
    }
    if place.api.write && !place.api.tcp {
        let listen = text(&addr.opt.addr_text);
        ngx_log_error!(
            NGX_LOG_EMERG,
            cf.log,
            "\"handoff_api write=on\" can be reached over TCP by \"listen {listen}\", where nobody knows who writes: \
             listen on a unix socket, or say \"tcp=allow\" and guard it in {}",
            place.at
        );
        return Err(Refused);
    }
    Ok(())
}

fn declare_zone(cf: *mut ngx_conf_t, main: &mut MainConf) -> Result<(), Refused> {
    let mut name: ngx_str_t = ngx::ngx_string!("handoff");
    let size = main.size.unwrap_or(directive::DEFAULT_ZONE);
    let tag = ptr::from_ref(Handoff::module()).cast_mut().cast();
    // SAFETY: the name is static; nginx logs what is wrong with it.
    let zone = unsafe { ngx_shared_memory_add(cf, &raw mut name, size, tag) };
    // SAFETY: null or valid, and ours alone: the tag is this module.
    let zone = unsafe { zone.as_mut() }.ok_or(Refused)?;
    zone.init = Some(zone::init);
    zone.data = ptr::from_mut(main).cast();
    Ok(())
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

/// Our part of an upstream block; implicit upstreams have none.
fn server_conf(us: &ngx_http_upstream_srv_conf_t) -> Option<&'static ServerConf> {
    Handoff::server_conf(us)
}

/// The upstream behind a block that takes part.
pub(crate) fn upstream_of(us: &ngx_http_upstream_srv_conf_t) -> Option<&'static Upstream> {
    // SAFETY: in the main configuration of the same cycle, which lives as long as any request of it.
    server_conf(us)?.upstream.get().map(|upstream| unsafe { upstream.as_ref() })
}

fn servers(us: &ngx_http_upstream_srv_conf_t) -> &[ngx_http_upstream_server_t] {
    // SAFETY: null or an array of these, complete in postconfiguration.
    unsafe { array(us.servers) }
}

fn addresses(server: &ngx_http_upstream_server_t) -> impl Iterator<Item = (String, *const libc::sockaddr)> {
    let addrs = if server.addrs.is_null() {
        &[]
    } else {
        // SAFETY: the server line's addresses, resolved when the configuration was read.
        unsafe { std::slice::from_raw_parts(server.addrs, server.naddrs) }
    };
    addrs.iter().map(|addr| (text(&addr.name).into_owned(), addr.sockaddr.cast_const().cast()))
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

/// "file:line" of an upstream.
fn place_of(us: &ngx_http_upstream_srv_conf_t) -> String {
    if us.file_name.is_null() {
        return String::new();
    }
    // SAFETY: the name of a configuration file, ended by a zero.
    let file = unsafe { CStr::from_ptr(us.file_name.cast()) };
    format!("{}:{}", file.to_string_lossy(), us.line)
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
