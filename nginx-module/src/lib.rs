//! The nginx dynamic module: pointers here, decisions in `handoff-core`.

use nginx_sys::{NGX_HTTP_MODULE, ngx_http_module_t, ngx_module_t, ngx_uint_t};

static CONTEXT: ngx_http_module_t = ngx_http_module_t {
    preconfiguration: None,
    postconfiguration: None,
    create_main_conf: None,
    init_main_conf: None,
    create_srv_conf: None,
    merge_srv_conf: None,
    create_loc_conf: None,
    merge_loc_conf: None,
};

static mut NO_COMMANDS: [nginx_sys::ngx_command_t; 1] = [nginx_sys::ngx_command_t::empty()];

ngx::ngx_modules!(ngx_http_handoff_module);

#[used]
#[allow(non_upper_case_globals, reason = "nginx shows this name in its messages")]
pub static mut ngx_http_handoff_module: ngx_module_t = ngx_module_t {
    ctx: (&raw const CONTEXT).cast_mut().cast(),
    commands: (&raw mut NO_COMMANDS).cast(),
    type_: NGX_HTTP_MODULE as ngx_uint_t,
    ..ngx_module_t::default()
};
