//! The end of a process, seen the moment it happens: a pidfd becomes readable.

use super::{Proc, Process};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::{io, os::fd::OwnedFd};
use tokio::io::{Interest, unix::AsyncFd};

/// A process that is watched.
#[derive(Debug)]
pub struct Watch {
    process: Process,
    pidfd: AsyncFd<OwnedFd>,
}

impl Watch {
    /// None: it is dead already.
    pub fn begin(proc: &Proc, process: Process) -> io::Result<Option<Self>> {
        let Some(pid) = i32::try_from(process.pid).ok().and_then(Pid::from_raw) else { return Ok(None) };
        let pidfd = match pidfd_open(pid, PidfdFlags::NONBLOCK) {
            Ok(pidfd) => pidfd,
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        // The number may have gone to another process between the look that found it and now.
        if !process.is_alive(proc) {
            return Ok(None);
        }
        Ok(Some(Self { process, pidfd: AsyncFd::with_interest(pidfd, Interest::READABLE)? }))
    }

    pub async fn end(self) -> Process {
        // An error of the reactor itself is taken for the end: the look that follows knows better.
        _ = self.pidfd.readable().await;
        self.process
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{process::Command, time::Duration};

    #[tokio::test]
    async fn a_death_is_seen_at_once() {
        let proc = Proc::default();
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let process = Process::find(&proc, child.id()).unwrap();
        let watch = Watch::begin(&proc, process).unwrap().unwrap();
        child.kill().unwrap();
        let end = tokio::time::timeout(Duration::from_secs(5), watch.end()).await;
        assert_eq!(end, Ok(process));
        child.wait().unwrap();
        assert!(Watch::begin(&proc, process).unwrap().is_none());
    }

    #[tokio::test]
    async fn another_process_with_the_same_number_is_not_watched() {
        let own = Process::own().unwrap();
        assert!(Watch::begin(&Proc::default(), Process { start: own.start + 1, ..own }).unwrap().is_none());
    }
}
