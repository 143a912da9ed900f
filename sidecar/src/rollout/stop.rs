//! Why a roll-out ended before its end.

use super::{
    brake::{Halt, Signal},
    verdict::Worse,
};
use crate::{
    cli::exit::Exit,
    control::ControlError,
    manager::{ManagerError, systemd::SystemdError},
    pm2::rpc::RpcError,
};
use handoff_wire::Span;

#[derive(Debug, thiserror::Error)]
pub enum Stop {
    #[error("stopped by {0}")]
    Interrupted(Signal),
    #[error("somebody else changes this app: {0}")]
    Foreign(String),
    #[error(
        "{worker} still has {in_flight} in flight after {after}. It was not stopped, and serves again. Give it longer \
         with --drain-timeout, or decide with --on-deadline"
    )]
    Deadline { worker: String, in_flight: u64, after: Span },
    #[error(
        "{worker} still has {in_flight} in flight after {after}. It was not stopped: it finishes them, and takes nothing new \
         until it is replaced. Give it longer with --drain-timeout, or decide with --on-deadline"
    )]
    Overdue { worker: String, in_flight: u64, after: Span },
    #[error("{}", broken(.0))]
    Broken(Broken),
    #[error("{0}")]
    Refused(String),
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error(transparent)]
    Pm2(#[from] RpcError),
    #[error(transparent)]
    Systemd(SystemdError),
    #[error("{0}")]
    Lost(String),
    #[error("another worker failed")]
    Sibling,
    #[error("the new release serves users worse: {1}")]
    Worse(Worse, String),
}

/// A new process that is not fit to serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    pub worker: String,
    pub how: How,
    pub text: String,
    /// What it wrote last.
    pub log: Vec<String>,
    pub role: Role,
}

/// What it was started for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// To serve in the place of the old process.
    Successor,
    /// To see how the new release does, in cluster mode.
    Canary,
    /// To serve while the only worker is replaced.
    StandIn,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    Crashed,
    NotReady,
    Unhealthy,
    /// It answers users with errors.
    Errors,
}

fn broken(Broken { worker, text, role, .. }: &Broken) -> String {
    let surplus = match role {
        Role::Successor => {
            return format!(
                "the new {worker} is not fit to serve: {text}. It was stopped; mend it and reload again"
            );
        }
        Role::Canary => "canary",
        Role::StandIn => "stand-in",
    };
    format!(
        "the new release is not fit to serve: of its {surplus} {worker}, {text}. It was deleted; mend it and reload again"
    )
}

// === impl Stop ===

impl Stop {
    pub fn exit(&self) -> Exit {
        match self {
            Self::Interrupted(Signal::Hangup) => Exit::Hangup,
            Self::Interrupted(Signal::Interrupt) => Exit::Interrupted,
            Self::Interrupted(Signal::Terminate) => Exit::Terminated,
            Self::Foreign(_) => Exit::Foreign,
            Self::Deadline { .. } | Self::Overdue { .. } => Exit::Deadline,
            Self::Broken(broken) => broken.how.exit(),
            Self::Refused(_) | Self::Sibling => Exit::Failed,
            Self::Control(error) => error.into(),
            Self::Pm2(error) => error.into(),
            Self::Systemd(error) => error.into(),
            Self::Lost(_) => Exit::NoPm2,
            Self::Worse(Worse::Errors, _) => Exit::Errors,
            Self::Worse(Worse::Slow, _) => Exit::Slow,
        }
    }
}

impl From<ManagerError> for Stop {
    fn from(error: ManagerError) -> Self {
        match error {
            ManagerError::Pm2(error) => Self::Pm2(error),
            ManagerError::Systemd(error) => Self::Systemd(error),
        }
    }
}

impl From<Halt> for Stop {
    fn from(halt: Halt) -> Self {
        match halt {
            Halt::Signal(signal) => Self::Interrupted(signal),
            Halt::Foreign(text) => Self::Foreign(text),
            Halt::Pm2(text) => Self::Lost(text),
            Halt::Sibling => Self::Sibling,
            Halt::Worse(how, text) => Self::Worse(how, text),
        }
    }
}

// === impl How ===

impl How {
    pub fn exit(self) -> Exit {
        match self {
            Self::Crashed => Exit::Crashed,
            Self::NotReady => Exit::NotReady,
            Self::Unhealthy => Exit::Unhealthy,
            Self::Errors => Exit::Errors,
        }
    }
}
