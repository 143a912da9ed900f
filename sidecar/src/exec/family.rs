//! The child and all that is left to us by it.
//!
//! We are the one to whom orphans of our child fall: what a worker started is seen to listen though its parent has gone, a
//! master that replaced itself (gunicorn's `USR2`) is followed, and nobody stays a zombie.

use crate::host::{Proc, Process};
use rustix::process::{
    Pid, Resource, Rlimit, WaitOptions, WaitStatus, getpid, set_child_subreaper, setrlimit, wait,
};
use std::{io, process::ExitCode};
use tokio::signal::unix::{Signal, SignalKind, signal};

#[derive(Debug)]
pub struct Family {
    children: Signal,
    /// The process that counts is the last of these that lives: one that replaces itself names the next.
    line: Vec<Member>,
}

#[derive(Debug)]
struct Member {
    pid: Pid,
    /// None: it had ended before we looked.
    process: Option<Process>,
}

/// How the command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    Exit(u8),
    Signal(i32),
}

// === impl Family ===

impl Family {
    pub fn new() -> io::Result<Self> {
        // A kernel without it leaves orphans to process 1.
        _ = set_child_subreaper(Some(getpid()));
        Ok(Self { children: signal(SignalKind::child())?, line: Vec::new() })
    }

    /// This is the process that counts, from now on.
    pub fn follow(&mut self, main: Pid) {
        let number = main.as_raw_nonzero().get().unsigned_abs();
        self.line.push(Member { pid: main, process: Process::find(&Proc::default(), number) });
    }

    /// Who is told what is meant for the command.
    pub fn main(&self) -> Option<Pid> {
        let lives = |member: &&Member| member.process.is_some_and(|one| one.is_alive(&Proc::default()));
        self.line.iter().rev().find(lives).map(|member| member.pid)
    }

    /// No process that counts is left; how the last one ended.
    pub async fn ended(&mut self) -> Ended {
        loop {
            if let Some(ended) = self.reap() {
                return ended;
            }
            if self.children.recv().await.is_none() {
                std::future::pending::<()>().await;
            }
        }
    }

    fn reap(&self) -> Option<Ended> {
        let mut ended = None;
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            if self.line.iter().any(|member| member.pid == pid) {
                ended = Ended::of(status);
            }
        }
        ended.filter(|_| self.main().is_none())
    }
}

// === impl Ended ===

impl Ended {
    fn of(status: WaitStatus) -> Option<Self> {
        let exit = status.exit_status().map(|code| Self::Exit(u8::try_from(code).unwrap_or(u8::MAX)));
        exit.or(status.terminating_signal().map(Self::Signal))
    }

    /// Ends as it did, so that whoever started us sees the truth.
    pub fn repeat(self) -> ExitCode {
        match self {
            Self::Exit(code) => code.into(),
            Self::Signal(signal) => {
                // The one who failed has dumped its memory; ours helps nobody.
                _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
                // The kernel protects process 1 from signals, its own too.
                if getpid().as_raw_nonzero().get() != 1 {
                    _ = signal_hook::low_level::emulate_default_handler(signal);
                }
                // One that ends nobody by default.
                ExitCode::from(u8::try_from(128 + signal).unwrap_or(u8::MAX))
            }
        }
    }
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exit(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
        }
    }
}
