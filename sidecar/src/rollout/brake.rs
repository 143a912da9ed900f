//! Why a roll-out is to end early. Whoever has a reason pulls; whoever waits for something else notices.
//!
//! A worker that was not stopped yet is then left as it was. One that was stopped is brought up again first: there is no
//! way back from there but forward.

use super::verdict::Worse;
use std::{fmt, io};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

#[derive(Clone, Debug)]
pub struct Brake(watch::Sender<Option<Halt>>);

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Halt {
    Signal(Signal),
    /// Somebody else changes the app.
    Foreign(String),
    /// PM2 is gone.
    Pm2(String),
    /// Another worker of the same roll-out failed.
    Sibling,
    /// Whoever watches what users meet has seen enough.
    Worse(Worse, String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    Hangup,
    Interrupt,
    Terminate,
}

impl Default for Brake {
    fn default() -> Self {
        Self(watch::Sender::new(None))
    }
}

impl Brake {
    /// The first reason is the one that counts.
    pub fn pull(&self, halt: Halt) {
        self.0.send_if_modified(|current| {
            let is_first = current.is_none();
            current.get_or_insert(halt);
            is_first
        });
    }

    pub fn pulled(&self) -> Option<Halt> {
        self.0.borrow().clone()
    }

    /// Waits until it is pulled.
    pub async fn wait(&self) -> Halt {
        let mut halts = self.0.subscribe();
        match halts.wait_for(Option::is_some).await.ok().and_then(|halt| halt.clone()) {
            Some(halt) => halt,
            // We hold a sender ourselves.
            None => std::future::pending().await,
        }
    }

    /// Pulls at the first SIGINT, SIGTERM or SIGHUP; the second one ends this process, as if it were killed.
    pub fn listen(&self) -> io::Result<()> {
        for which in [Signal::Hangup, Signal::Interrupt, Signal::Terminate] {
            let mut signals = signal(which.kind())?;
            let brake = self.clone();
            tokio::spawn(async move {
                while signals.recv().await.is_some() {
                    if matches!(brake.pulled(), Some(Halt::Signal(_))) {
                        std::process::exit(which.exit_code());
                    }
                    brake.pull(Halt::Signal(which));
                }
            });
        }
        Ok(())
    }
}

// === impl Signal ===

impl Signal {
    fn kind(self) -> SignalKind {
        match self {
            Self::Hangup => SignalKind::hangup(),
            Self::Interrupt => SignalKind::interrupt(),
            Self::Terminate => SignalKind::terminate(),
        }
    }

    /// As a shell reports it.
    fn exit_code(self) -> i32 {
        128 + self.kind().as_raw_value()
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hangup => "SIGHUP",
            Self::Interrupt => "SIGINT",
            Self::Terminate => "SIGTERM",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_reason_counts() {
        let brake = Brake::default();
        assert_eq!(brake.pulled(), None);
        brake.pull(Halt::Signal(Signal::Hangup));
        brake.pull(Halt::Sibling);
        assert_eq!(brake.wait().await, Halt::Signal(Signal::Hangup));
        assert_eq!(Signal::Interrupt.exit_code(), 130);
    }
}
