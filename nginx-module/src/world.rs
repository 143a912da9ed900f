//! What core cannot know by itself: which processes live, and how nginx regards its peers.

use crate::conf::MainConf;
use crate::nginx;
use handoff_core::hold::Queue;
use handoff_core::retry::Budget;
use handoff_core::{Process, Slots, Standing};
use handoff_wire::Span;
use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};
use std::fs;

impl handoff_core::World for MainConf {
    fn alive(&self, process: Process) -> bool {
        alive(process)
    }

    fn peers(&self, upstream: &str) -> Vec<Standing> {
        let (Some(upstream), Some(zone)) = (self.upstream(upstream), self.zone()) else { return Vec::new() };
        // Who came back a moment ago is not judged by what was before.
        upstream.refresh(zone);
        upstream.standings(zone)
    }

    fn upstreams(&self) -> Vec<String> {
        self.upstreams().map(|upstream| upstream.name.clone()).collect()
    }

    fn queue(&self, upstream: &str) -> Option<Queue> {
        self.upstream(upstream)?.hold.queue
    }

    fn retry(&self, upstream: &str) -> Option<Budget> {
        self.upstream(upstream)?.retry
    }

    fn slow_start(&self, upstream: &str) -> Option<Span> {
        self.upstream(upstream)?.slow_start
    }

    fn slots(&self, upstream: &str) -> Option<Slots> {
        let seats = &self.upstream(upstream)?.seats;
        let slots = Slots { ids: seats.slots().to_vec(), weighs: seats.weighs() };
        (seats.count > 0).then_some(slots)
    }

    fn connections(&self) -> u64 {
        nginx::connections()
    }
}

/// Whether it is still the same process, and not only the same pid.
pub(crate) fn alive(process: Process) -> bool {
    start(process.pid) == Some(process.start)
}

/// This process, as its row names it. Without /proc its start is 0, for all processes alike.
pub(crate) fn own() -> Process {
    let pid = std::process::id();
    Process { pid, start: start(pid).unwrap_or_default() }
}

/// When a process started, in the kernel's ticks; `None` if it is gone or only waits to be reaped.
fn start(pid: u32) -> Option<u64> {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return without_proc(pid) };
    // The name in parentheses may hold anything, the fields after it do not. State is the third field, start the 22nd.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X" | "x") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// Where /proc is not mounted a pid must do.
fn without_proc(pid: u32) -> Option<u64> {
    if fs::exists("/proc/self/stat").unwrap_or(false) {
        return None;
    }
    let pid = Pid::from_raw(i32::try_from(pid).ok()?)?;
    let is_there = !matches!(test_kill_process(pid), Err(Errno::SRCH));
    is_there.then_some(0)
}
