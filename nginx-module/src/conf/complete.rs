//! What a configuration must hold as a whole, when nginx has read all of it (postconfiguration).

use super::block::{addresses, is_resolved, place_of, servers};
use super::bypass::{self, Bypass};
use super::{ApiPlace, MainConf, Refused, server_conf};
use crate::nginx::{array, conf_of, text};
use crate::seat::{self, Seats, Weights};
use crate::upstream::{Rules, Upstream};
use crate::{Handoff, name, socket, zone};
use handoff_core::hold::Queue;
use handoff_core::retry::Budget;
use handoff_core::slot::MAX_NAME;
use handoff_core::{directive, view};
use nginx_sys::{
    NGX_HTTP_UPSTREAM_BACKUP, NGX_LOG_EMERG, NGX_LOG_WARN, ngx_conf_t, ngx_http_conf_addr_t,
    ngx_http_conf_port_t, ngx_http_core_srv_conf_t, ngx_http_upstream_srv_conf_t, ngx_shared_memory_add,
    ngx_str_t, ngx_uint_t,
};
use ngx::http::{HttpModule, HttpModuleMainConf, NgxHttpCoreModule, NgxHttpUpstreamModule};
use ngx::ngx_log_error;
use std::path::PathBuf;
use std::ptr::{self, NonNull};

pub(crate) fn complete(cf: *mut ngx_conf_t) -> Result<(), Refused> {
    // SAFETY: nginx passes a valid pointer.
    let context = unsafe { &*cf };
    let main = Handoff::main_conf_mut(context).ok_or(Refused)?;
    let all = NgxHttpUpstreamModule::main_conf(context).ok_or(Refused)?;
    // SAFETY: the upstream module keeps an array of these, complete by now.
    let all: &[*mut ngx_http_upstream_srv_conf_t] = unsafe { array(&raw const all.upstreams) };
    // SAFETY: each of them is valid for as long as the configuration; nobody else uses them in postconfiguration.
    let all = || all.iter().filter_map(|us| unsafe { us.as_mut() });

    for us in all() {
        wants_handoff(context, us)?;
    }
    let taking_part = || all().filter(|us| server_conf(us).is_some_and(|conf| conf.enabled));
    main.upstreams = taking_part().map(|us| take_part(context, us)).collect::<Result<_, _>>()?;
    for (us, upstream) in taking_part().zip(&main.upstreams) {
        if let Some(conf) = server_conf(us) {
            conf.upstream.set(Some(NonNull::from(upstream)));
        }
    }
    let bypasses = bypass::find(&main.upstreams, all());
    for bypass in &bypasses {
        ngx_log_error!(NGX_LOG_WARN, context.log, "{}", bypass.warning());
    }
    main.uncovered = view::uncovered(bypasses.into_iter().map(Bypass::way));
    if main.upstreams.is_empty() && main.apis.is_empty() {
        return Ok(());
    }
    if !main.upstreams.is_empty() {
        name::learn(context)?;
    }
    main.sockets = guard_sockets(context, main)?;
    declare_zone(cf, main)
}

/// A block that says how it takes part, but not that it does.
fn wants_handoff(cf: &ngx_conf_t, us: &ngx_http_upstream_srv_conf_t) -> Result<(), Refused> {
    let Some(conf) = server_conf(us).filter(|conf| !conf.enabled) else { return Ok(()) };
    let says = [
        ("handoff_reuse", conf.reuse.is_some()),
        ("handoff_queue", conf.queue.is_some()),
        ("handoff_retry", conf.retry.is_some()),
        ("handoff_slow_start", conf.slow_start.is_some()),
        ("handoff_slots", conf.slots.is_some()),
    ];
    let Some((directive, _)) = says.into_iter().find(|(_, is_said)| *is_said) else { return Ok(()) };
    let (name, at) = (text(&us.host), place_of(us));
    ngx_log_error!(
        NGX_LOG_EMERG,
        cf.log,
        "upstream \"{name}\" has \"{directive}\" but no \"handoff\": add \"handoff;\" in {at}"
    );
    Err(Refused)
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
    let rules = Rules {
        reuse: server_conf(us).and_then(|conf| conf.reuse).unwrap_or_default(),
        queue: server_conf(us).and_then(|conf| conf.queue).unwrap_or_else(|| Some(Queue::default())),
        retry: server_conf(us).and_then(|conf| conf.retry).unwrap_or_else(|| Some(Budget::default())),
        slow_start: server_conf(us).and_then(|conf| conf.slow_start).flatten(),
    };
    if let Some(why) = rules.slow_start.and_then(|_| never_starts_slowly(us)) {
        ngx_log_error!(
            NGX_LOG_EMERG,
            cf.log,
            "upstream \"{name}\" has \"handoff_slow_start\", and {why} in {at}"
        );
        return Err(Refused);
    }
    let slots = server_conf(us).and_then(|conf| conf.slots).unwrap_or_default();
    if slots > 0 && servers(us).iter().any(is_resolved) {
        ngx_log_error!(
            NGX_LOG_EMERG,
            cf.log,
            "upstream \"{name}\" has \"handoff_slots\" and a server with \"resolve\", and nginx would let only one of them say \
             who its peers are: leave one out in {at}"
        );
        return Err(Refused);
    }
    let weights = match rules.slow_start {
        Some(_) => Weights::Grown,
        None if slots > 0 && seat::is_fixed(cf, us) => Weights::Fixed,
        None => Weights::Heeded,
    };
    let seats = Seats::new(slots, weights);
    let keepalive = conf_of(cf, us, c"ngx_http_upstream_keepalive_module");
    Upstream::wrap(name, us, addresses, seats, rules, keepalive).ok_or(Refused)
}

/// Why the peers of an upstream cannot get their share little by little. A share is a weight that changes; nginx lets those
/// balancers have backups that look at the weights at each request.
fn never_starts_slowly(us: &ngx_http_upstream_srv_conf_t) -> Option<&'static str> {
    if us.flags & NGX_HTTP_UPSTREAM_BACKUP as ngx_uint_t == 0 {
        return Some(
            "its balancing method (hash, ip_hash, random) gives every peer its share once and for all: use round robin or \
             least_conn, or leave \"handoff_slow_start\" out",
        );
    }
    servers(us).iter().any(is_resolved).then_some(
        "a \"server … resolve\", of whose peers nobody can say when they came: leave one of the two out",
    )
}

/// Every socket that a control API listens on; those of them that are files.
fn guard_sockets(cf: &ngx_conf_t, main: &MainConf) -> Result<Vec<PathBuf>, Refused> {
    let mut files = Vec::new();
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
                files.extend(guard_socket(cf, addr, place)?);
            }
        }
    }
    Ok(files)
}

fn guard_socket(
    cf: &ngx_conf_t,
    addr: &ngx_http_conf_addr_t,
    place: &ApiPlace,
) -> Result<Option<PathBuf>, Refused> {
    if let Some(path) = socket::path(addr.opt.sockaddr.cast()) {
        socket::prepare(&path, place.api.group.as_deref(), cf.log);
        return Ok(Some(path));
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
    Ok(None)
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
