//! Processes that the stage did not start itself, but answers for.

use crate::clock::Moment;
use anyhow::{Context, Result};
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::retry_on_intr,
    process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open},
};
use std::{
    collections::HashMap,
    fs,
    process::{Child, ExitStatus},
    thread,
    time::{Duration, Instant},
};
use tokio::sync::oneshot;

/// A signal to a process that may be gone already.
pub fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = pid_of(pid) {
        _ = kill_process(pid, signal);
    }
}

/// The moment at which a process dies; at once if there is none.
pub async fn death(pid: u32) -> Result<Moment> {
    let Some(fd) = pid_of(pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()) else {
        return Ok(Moment::now());
    };
    // A thread of its own, which ends with the process: the runtime would wait for one of its pool.
    let (tell, told) = oneshot::channel();
    thread::Builder::new().spawn(move || {
        let dead = retry_on_intr(|| poll(&mut [PollFd::new(&fd, PollFlags::IN)], None));
        // Nobody asks any more when the stage was dropped.
        _ = tell.send(dead.map(|_| Moment::now()));
    })?;
    Ok(told.await??)
}

/// All children of a process, and theirs.
pub fn descendants(ancestor: u32) -> Vec<u32> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for pid in numbered_entries("/proc") {
        if let Some(parent) = parent(pid) {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut found = Vec::new();
    let mut next = vec![ancestor];
    while let Some(pid) = next.pop() {
        let mut mine = children.remove(&pid).unwrap_or_default();
        found.extend_from_slice(&mine);
        next.append(&mut mine);
    }
    found
}

/// The processes that it started itself and that still run.
pub fn children(of: u32) -> Vec<u32> {
    numbered_entries("/proc").into_iter().filter(|&pid| parent(pid) == Some(of)).collect()
}

/// Those of our own processes that were started with `NAME=value` in their environment.
pub fn with_environment(variable: &str) -> Vec<u32> {
    let has = |pid: &u32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|&byte| byte == 0).any(|entry| entry == variable.as_bytes())
    };
    numbered_entries("/proc").into_iter().filter(has).collect()
}

/// What `ps` shows: the arguments, or the title that the process gave itself.
pub fn title(pid: u32) -> Option<String> {
    let text = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    Some(String::from_utf8_lossy(&text).replace('\0', " "))
}

/// What a process has in memory, in kB.
pub fn resident(pid: u32) -> Option<u64> {
    let [all] = kilobytes(pid, "status", ["VmRSS:"]).ok()?;
    Some(all)
}

/// What `/proc/PID/status` or `smaps_rollup` says under these names.
pub fn kilobytes<const N: usize>(pid: u32, file: &str, names: [&str; N]) -> Result<[u64; N]> {
    let path = format!("/proc/{pid}/{file}");
    let text = fs::read_to_string(&path)?;
    let mut all = [0; N];
    for (kb, name) in all.iter_mut().zip(names) {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let number = line.and_then(|line| line.split_ascii_whitespace().next());
        *kb = number.with_context(|| format!("no {name} in {path}"))?.parse()?;
    }
    Ok(all)
}

/// How long the threads that it has now have run, in nanoseconds.
pub fn cpu(pid: u32) -> Result<f64> {
    let mut all = 0.0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs::read_to_string(thread?.path().join("schedstat"))?;
        all += text.split_whitespace().next().context("an empty schedstat")?.parse::<f64>()?;
    }
    Ok(all)
}

pub fn is_alive(pid: u32) -> bool {
    state_and_parent(pid).is_some_and(|(state, _)| state != "Z" && state != "X")
}

/// Whether a signal has stopped it.
pub fn is_stopped(pid: u32) -> bool {
    state_and_parent(pid).is_some_and(|(state, _)| state == "T")
}

/// Asks a child to end, and makes it after `patience`. For `Drop`, where nothing can be awaited.
pub fn end(child: &mut Child, patience: Duration) -> Option<ExitStatus> {
    // Its pid may be somebody else's once it was waited for.
    if let Ok(Some(status)) = child.try_wait() {
        return Some(status);
    }
    signal(child.id(), Signal::TERM);
    if let Some(status) = ended(child, patience) {
        return Some(status);
    }
    let all = descendants(child.id());
    _ = child.kill();
    all.into_iter().for_each(|pid| signal(pid, Signal::KILL));
    child.wait().ok()
}

/// How a child ended, if it does within `patience`.
pub fn ended(child: &mut Child, patience: Duration) -> Option<ExitStatus> {
    let deadline = Instant::now() + patience;
    loop {
        match child.try_wait() {
            Ok(None) if Instant::now() < deadline => thread::sleep(Duration::from_millis(5)),
            Ok(status) => return status,
            Err(_) => return None,
        }
    }
}

fn parent(pid: u32) -> Option<u32> {
    state_and_parent(pid).map(|(_, parent)| parent)
}

fn state_and_parent(pid: u32) -> Option<(String, u32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything, also parentheses.
    let mut words = stat.rsplit_once(')')?.1.split_whitespace();
    Some((words.next()?.to_owned(), words.next()?.parse().ok()?))
}

fn numbered_entries(directory: &str) -> Vec<u32> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

fn pid_of(pid: u32) -> Option<Pid> {
    Pid::from_raw(i32::try_from(pid).ok()?)
}
