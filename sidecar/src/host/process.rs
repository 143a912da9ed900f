//! A process is its number and the moment it began: numbers are used again.

use super::Proc;
use rustix::{
    io::Errno,
    process::{Pid, PidfdFlags, pidfd_open},
};
use serde::{Deserialize, Serialize};
use std::{io, os::fd::OwnedFd};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Process {
    pub pid: u32,
    /// In clock ticks since the host started.
    pub start: u64,
}

/// What `/proc/<pid>/stat` says of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stat {
    pub(super) parent: u32,
    pub(super) start: u64,
    pub(super) is_dead: bool,
    has_memory: bool,
}

const GENERATIONS: usize = 64;

impl Process {
    /// The living process with this number. One that ended and waits for its parent is not alive.
    pub fn find(proc: &Proc, pid: u32) -> Option<Self> {
        let stat = Stat::read(proc, pid).filter(|stat| !stat.is_dead)?;
        Some(Self { pid, start: stat.start })
    }

    pub fn is_alive(self, proc: &Proc) -> bool {
        Self::find(proc, self.pid) == Some(self)
    }

    /// A descriptor of this very process. None: it has ended, and its number may be somebody else's.
    pub fn open(self, proc: &Proc) -> io::Result<Option<OwnedFd>> {
        let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) else { return Ok(None) };
        let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
            Err(Errno::SRCH) => return Ok(None),
            pidfd => pidfd?,
        };
        Ok(self.is_alive(proc).then_some(pidfd))
    }

    /// Alive and with all its connections. One that ends lets go of its memory, then of its connections, and is dead after
    /// that.
    pub fn is_whole(self, proc: &Proc) -> bool {
        Stat::read(proc, self.pid)
            .is_some_and(|stat| !stat.is_dead && stat.has_memory && stat.start == self.start)
    }

    /// This very process.
    pub fn own() -> Option<Self> {
        Self::find(&Proc::default(), std::process::id())
    }
}

/// Whether a process is that one, or was started by it, or by one that it started.
pub fn is_below(proc: &Proc, pid: u32, ancestor: u32) -> bool {
    let parents = std::iter::successors(Some(pid), |&pid| Some(Stat::read(proc, pid)?.parent));
    // There is no longer line of parents, unless they change while we look.
    parents.take(GENERATIONS).any(|pid| pid == ancestor)
}

/// The user that a process runs as.
pub fn user(proc: &Proc, pid: u32) -> Option<u32> {
    let status = proc.head(pid, "status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

impl Stat {
    pub(super) fn read(proc: &Proc, pid: u32) -> Option<Self> {
        Self::parse(&proc.head(pid, "stat").ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        // The name in parentheses may hold anything, parentheses too.
        let mut fields = text.rsplit_once(')')?.1.split_ascii_whitespace();
        let state = fields.next()?;
        let parent = fields.next()?.parse().ok()?;
        // Field 22 of the manual; the state is the third.
        let start = fields.nth(17)?.parse().ok()?;
        let memory: u64 = fields.next()?.parse().ok()?;
        Some(Self { parent, start, is_dead: matches!(state, "Z" | "X" | "x"), has_memory: memory > 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_look_like_the_rest_of_the_line() {
        let line = "812 (node) S 1 (x) R 811 812 812 0 -1 4194560 1 0 0 0 2 1 0 0 20 0 11 0 98765 1 2 3";
        let stat = Stat::parse(line);
        assert_eq!(stat, Some(Stat { parent: 811, start: 98765, is_dead: false, has_memory: true }));
    }

    #[test]
    fn a_zombie_is_dead() {
        let line = "812 (node) Z 811 812 812 0 -1 4194560 1 0 0 0 2 1 0 0 20 0 11 0 98765 1 2 3";
        assert!(Stat::parse(line).unwrap().is_dead);
    }

    #[test]
    fn one_that_is_about_to_end_has_no_memory() {
        let line = "812 (node) R 811 812 812 0 -1 4194564 1 0 0 0 2 1 0 0 20 0 11 0 98765 0 0 3";
        let stat = Stat::parse(line).unwrap();
        assert!(!stat.is_dead && !stat.has_memory);
    }

    #[test]
    fn we_are_alive() {
        let own = Process::own().unwrap();
        assert!(own.is_alive(&Proc::default()) && own.is_whole(&Proc::default()));
        assert!(!Process { start: own.start + 1, ..own }.is_alive(&Proc::default()));
        assert_eq!(user(&Proc::default(), own.pid), Some(rustix::process::getuid().as_raw()));
    }
}
