//! Whether nginx is being upgraded (USR2): from then until one of the two masters has gone, two nginx answer on the same
//! sockets, each with marks of its own.
//!
//! A worker was forked by its master before that began, or by the new one. What both can see is the file in which nginx keeps
//! the old master's pid for as long as both live: it gives the file its old name back when the new one ends, and removes it
//! when the old one does. A master that was killed leaves it behind; so it is believed only of a master of ours.

use crate::nginx::{global, text};
use nginx_sys::{ngx_core_conf_t, ngx_core_module};
use std::fs;
use std::os::unix::process::parent_id;

/// The pid of the older master, while both live.
pub(crate) fn old_master() -> Option<u32> {
    // nginx counts the zero at the end of this name.
    let name = text(&core_conf()?.oldpid);
    let written = fs::read_to_string(name.trim_end_matches('\0')).ok()?;
    let old: u32 = written.trim().parse().ok()?;
    let master = parent_id();
    (old == master || parent_of(master)? == old).then_some(old)
}

fn core_conf() -> Option<&'static ngx_core_conf_t> {
    let cycle = global!(ngx_cycle);
    // SAFETY: null, or the cycle that this process serves, which lives as long as the process.
    let cycle = unsafe { cycle.as_ref() }?;
    // SAFETY: nginx counts its modules before it reads a configuration, and never again.
    let index = unsafe { ngx_core_module.index };
    // SAFETY: nginx keeps a place there for each module.
    let at = unsafe { cycle.conf_ctx.add(index) };
    // SAFETY: as above.
    let conf = unsafe { *at };
    // SAFETY: null, or the configuration of that module, which is of this type.
    unsafe { conf.cast::<ngx_core_conf_t>().as_ref() }
}

fn parent_of(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything, the fields after it do not: a state, and the parent.
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_ascii_whitespace().nth(1)?.parse().ok()
}
