//! The end of a process, seen the moment it happens: its pidfd becomes readable.
//!
//! One thread waits for all of them. It is a thread and no task because tokio's `AsyncFd` cannot be used without unsafe
//! code (docs/decisions/sidecar-deaths.md); for the same reason a death is not delayed by anything that tasks do.

use super::{Proc, Process};
use rustix::{
    buffer::spare_capacity,
    event::{Timespec, epoll},
    io::Errno,
};
use std::{
    collections::BTreeMap,
    io,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};
use tokio::sync::mpsc;

/// The processes that are watched.
#[derive(Clone, Debug)]
pub struct Deaths(Arc<Watched>);

#[derive(Debug)]
struct Watched {
    epoll: OwnedFd,
    processes: Mutex<BTreeMap<u32, (Process, OwnedFd)>>,
}

/// How a watch began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watch {
    Begun,
    Dead,
}

/// So long the thread outlives the one whom it tells.
const LINGER: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

impl Deaths {
    /// Starts the thread. Each death is told once.
    pub fn new() -> io::Result<(Self, mpsc::Receiver<Process>)> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let watched = Arc::new(Watched { epoll, processes: Mutex::default() });
        let (sender, receiver) = mpsc::channel(64);
        let thread = watched.clone();
        thread::Builder::new().name("deaths".into()).spawn(move || thread.run(&sender))?;
        Ok((Self(watched), receiver))
    }

    /// Watches a process, if it is not watched already.
    pub fn watch(&self, proc: &Proc, process: Process) -> io::Result<Watch> {
        let mut processes = self.0.processes();
        if processes.get(&process.pid).is_some_and(|(watched, _)| *watched == process) {
            return Ok(Watch::Begun);
        }
        let Some(pidfd) = process.open(proc)? else { return Ok(Watch::Dead) };
        let data = epoll::EventData::new_u64(process.pid.into());
        epoll::add(&self.0.epoll, &pidfd, data, epoll::EventFlags::IN)?;
        processes.insert(process.pid, (process, pidfd));
        Ok(Watch::Begun)
    }
}

// === impl Watched ===

impl Watched {
    fn run(&self, deaths: &mpsc::Sender<Process>) {
        let mut events = Vec::with_capacity(64);
        while !deaths.is_closed() {
            events.clear();
            match epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&LINGER)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return tracing::error!("watching processes failed: {errno}"),
            }
            for event in &events {
                let pid = u32::try_from(event.data.u64()).unwrap_or(0);
                // Closing the pidfd takes it out of the set.
                let ended = self.processes().remove(&pid).map(|(process, _)| process);
                if let Some(process) = ended
                    && deaths.blocking_send(process).is_err()
                {
                    return;
                }
            }
        }
    }

    fn processes(&self) -> MutexGuard<'_, BTreeMap<u32, (Process, OwnedFd)>> {
        self.processes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_death_is_told_once() {
        let (deaths, mut told) = Deaths::new().unwrap();
        let proc = Proc::default();
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let process = Process::find(&proc, child.id()).unwrap();
        assert_eq!(deaths.watch(&proc, process).unwrap(), Watch::Begun);
        assert_eq!(deaths.watch(&proc, process).unwrap(), Watch::Begun);
        child.kill().unwrap();
        assert_eq!(told.blocking_recv(), Some(process));
        assert_eq!(deaths.watch(&proc, process).unwrap(), Watch::Dead);
        child.wait().unwrap();
        assert_eq!(deaths.watch(&proc, process).unwrap(), Watch::Dead);
        assert!(told.try_recv().is_err());
    }

    #[test]
    fn another_process_with_the_same_number_is_not_watched() {
        let (deaths, _told) = Deaths::new().unwrap();
        let own = Process::own().unwrap();
        let earlier = Process { start: own.start + 1, ..own };
        assert_eq!(deaths.watch(&Proc::default(), earlier).unwrap(), Watch::Dead);
    }
}
