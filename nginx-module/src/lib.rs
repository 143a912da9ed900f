//! The nginx dynamic module: pointers here, decisions in `handoff-core`.
//!
//! Order of events in a master: the directives are read ([`conf`]), postconfiguration wraps the balancer of every
//! upstream that says `handoff` ([`upstream`]) and prepares the control sockets ([`socket`]), the zone is made or found
//! again ([`zone`]), and nginx learns the header by which a worker says its name ([`name`]). In a worker: [`worker`] takes a
//! row of the zone and watches leases, [`peer`] stands between each request and the balancer, [`retry`] says
//! which of those that a peer failed go to one again, [`hold`] keeps those that wait for a peer, [`control`] answers the API.
//!
//! If anything of this is missing or full, requests are served as nginx alone would serve them.

mod address;
mod body;
mod closed;
mod conf;
mod control;
mod ending;
mod hold;
mod hooks;
mod log;
mod name;
mod nginx;
mod orphan;
mod page;
mod peer;
mod plus;
mod reply;
mod retry;
mod reuse;
mod seat;
mod socket;
mod trial;
mod turnstiles;
mod upgrade;
mod upstream;
mod variable;
mod wait;
mod worker;
mod world;
mod zone;

use conf::{LocationConf, MainConf, ServerConf};
use nginx_sys::{NGX_HTTP_MODULE, ngx_conf_t, ngx_http_module_t, ngx_int_t, ngx_module_t, ngx_uint_t};
use ngx::core::Status;
use ngx::http::{HttpModule, HttpModuleLocationConf, HttpModuleMainConf, HttpModuleServerConf};

/// The module, as the `ngx` crate wants it named.
pub(crate) struct Handoff;

impl HttpModule for Handoff {
    fn module() -> &'static ngx_module_t {
        let module = &raw const ngx_http_handoff_module;
        // SAFETY: nginx writes to it while it loads modules, before any of our code runs, and never again.
        unsafe { &*module }
    }

    unsafe extern "C" fn preconfiguration(cf: *mut ngx_conf_t) -> ngx_int_t {
        variable::add(cf).into()
    }

    unsafe extern "C" fn postconfiguration(cf: *mut ngx_conf_t) -> ngx_int_t {
        match conf::complete(cf) {
            Ok(()) => Status::NGX_OK.into(),
            Err(conf::Refused) => Status::NGX_ERROR.into(),
        }
    }
}

// SAFETY: these are the types that the create_*_conf hooks below make for this module.
unsafe impl HttpModuleMainConf for Handoff {
    type MainConf = MainConf;
}

// SAFETY: as above.
unsafe impl HttpModuleServerConf for Handoff {
    type ServerConf = ServerConf;
}

// SAFETY: as above.
unsafe impl HttpModuleLocationConf for Handoff {
    type LocationConf = LocationConf;
}

static CONTEXT: ngx_http_module_t = ngx_http_module_t {
    preconfiguration: Some(Handoff::preconfiguration),
    postconfiguration: Some(Handoff::postconfiguration),
    create_main_conf: Some(Handoff::create_main_conf),
    init_main_conf: None,
    create_srv_conf: Some(Handoff::create_srv_conf),
    merge_srv_conf: None,
    create_loc_conf: Some(Handoff::create_loc_conf),
    merge_loc_conf: Some(conf::merge_location),
};

ngx::ngx_modules!(ngx_http_handoff_module);

#[used]
#[allow(non_upper_case_globals, reason = "nginx shows this name in its messages")]
pub static mut ngx_http_handoff_module: ngx_module_t = ngx_module_t {
    ctx: (&raw const CONTEXT).cast_mut().cast(),
    commands: (&raw mut conf::COMMANDS).cast(),
    type_: NGX_HTTP_MODULE as ngx_uint_t,
    init_module: Some(zone::commit),
    init_process: Some(worker::begin),
    exit_process: Some(worker::end),
    ..ngx_module_t::default()
};
