//! How a command ends: a number for scripts, a sentence for people.

use crate::{
    config::ConfigError,
    control::ControlError,
    deploy::{self, ground::GroundError},
    manager::systemd::SystemdError,
    pm2::{orders::OrdersError, rpc::RpcError},
    rollout::{Stop, lock::LockError},
    survey::SurveyError,
};
use handoff_wire::Code;
use std::process::ExitCode;

/// The exit codes, as `handoff help` and docs/api/cli.md list them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Done = 0,
    Failed = 1,
    Usage = 2,
    Deadline = 3,
    Cut = 4,
    NoPm2 = 5,
    UnknownTarget = 6,
    NotAllowed = 7,
    NoSidecar = 8,
    NoNginx = 9,
    Crashed = 10,
    NotReady = 11,
    Unhealthy = 12,
    Errors = 13,
    Busy = 14,
    Foreign = 15,
    NotMade = 16,
    Slow = 17,
    Mixed = 18,
    Warnings = 20,
    Ill = 21,
    Unseen = 22,
    Hangup = 129,
    Interrupted = 130,
    Terminated = 143,
}

pub const HELP: &str = "Exit codes:
  0  done
  1  refused or failed
  2  wrong arguments or wrong configuration
  3  the deadline passed
  4  reload, deploy: done, but requests were cut
  5  PM2 cannot be reached
  6  no such app, worker or peer
  7  not allowed to use a socket
  8  no sidecar runs (status only)
  9  nginx cannot be reached
 10  reload, deploy: the new worker crashed
 11  reload, deploy: the new worker was not ready in time
 12  reload, deploy: the new worker is not healthy
 13  reload, deploy: the new worker answers users with errors
 14  another roll-out, deploy or `pm2 reload` is under way
 15  reload, deploy: somebody else changed the app meanwhile
 16  deploy: the release could not be fetched, installed or built; nothing was changed
 17  deploy: the new release is slower than the old one
 18  deploy: not every worker could be moved back to the old release
 20  doctor: warnings
 21  doctor: errors
 22  doctor: nothing found, but something could not be looked at
128+ reload, deploy, pause: ended by that signal (129, 130, 143)";

#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub struct Failure {
    pub exit: Exit,
    pub text: String,
}

impl Failure {
    pub fn new(exit: Exit, text: impl Into<String>) -> Self {
        Self { exit, text: text.into() }
    }

    /// A refusal with this code, which `--force` overrides, says so.
    pub(super) fn or_force(error: ControlError, code: Code) -> Self {
        let is_it = error.code() == Some(code);
        let failure = Self::from(error);
        let text = if is_it { format!("{failure}. --force does it all the same") } else { failure.text };
        Self { text, ..failure }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

impl From<&ControlError> for Exit {
    fn from(error: &ControlError) -> Self {
        match error {
            error if error.is_forbidden() => Self::NotAllowed,
            ControlError::Absent(_) | ControlError::Dead(_) | ControlError::TimedOut(_) => Self::NoNginx,
            _ => Self::Failed,
        }
    }
}

impl From<&RpcError> for Exit {
    fn from(error: &RpcError) -> Self {
        match error {
            RpcError::Path(path) if path.is_refusal() => Self::NotAllowed,
            error if error.is_absence() => Self::NoPm2,
            RpcError::TimedOut { .. } => Self::NoPm2,
            _ => Self::Failed,
        }
    }
}

impl From<&SystemdError> for Exit {
    fn from(error: &SystemdError) -> Self {
        match error {
            SystemdError::NoTemplate(_) => Self::Usage,
            SystemdError::Unknown(_) => Self::UnknownTarget,
            SystemdError::Absent(_) | SystemdError::Silent | SystemdError::Refused(_) => Self::Failed,
        }
    }
}

impl From<SystemdError> for Failure {
    fn from(error: SystemdError) -> Self {
        Self::new(Exit::from(&error), error.to_string())
    }
}

impl From<ControlError> for Failure {
    fn from(error: ControlError) -> Self {
        Self::new(Exit::from(&error), error.to_string())
    }
}

impl From<RpcError> for Failure {
    fn from(error: RpcError) -> Self {
        Self::new(Exit::from(&error), error.to_string())
    }
}

impl From<Stop> for Failure {
    fn from(stop: Stop) -> Self {
        Self::new(stop.exit(), stop.to_string())
    }
}

impl From<OrdersError> for Failure {
    fn from(error: OrdersError) -> Self {
        let exit = match &error {
            OrdersError::Rpc(error) => error.into(),
            OrdersError::OtherUser { .. } => Exit::NotAllowed,
            OrdersError::Unknown(_) => Exit::UnknownTarget,
            OrdersError::Option(_) => Exit::Usage,
            _ => Exit::Failed,
        };
        Self::new(exit, error.to_string())
    }
}

impl From<LockError> for Failure {
    fn from(error: LockError) -> Self {
        let exit = match error {
            LockError::Busy { .. } | LockError::Pm2 { .. } => Exit::Busy,
            LockError::Io { .. } => Exit::Failed,
        };
        Self::new(exit, error.to_string())
    }
}

impl From<deploy::lock::LockError> for Failure {
    fn from(error: deploy::lock::LockError) -> Self {
        let exit = match error {
            deploy::lock::LockError::Busy { .. } => Exit::Busy,
            deploy::lock::LockError::Io { .. } => Exit::Failed,
        };
        Self::new(exit, error.to_string())
    }
}

impl From<GroundError> for Failure {
    fn from(error: GroundError) -> Self {
        Self::new(Exit::Failed, error.to_string())
    }
}

impl From<SurveyError> for Failure {
    fn from(error: SurveyError) -> Self {
        match error {
            SurveyError::Pm2(error) => error.into(),
            SurveyError::Host(_) => Self::new(Exit::Failed, error.to_string()),
        }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::new(Exit::Usage, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pm2::trust::PathError;

    fn control(error: ControlError) -> Exit {
        Failure::from(error).exit
    }

    #[test]
    fn every_error_has_its_exit_code() {
        let address = || "unix:/run/nginx.sock".parse().unwrap();
        assert_eq!(control(ControlError::Absent(address())), Exit::NoNginx);
        assert_eq!(control(ControlError::Dead(address())), Exit::NoNginx);
        assert_eq!(control(ControlError::TimedOut(address())), Exit::NoNginx);
        assert_eq!(control(ControlError::Refused(Code::Floor.says("x"))), Exit::Failed);
        assert_eq!(control(ControlError::Refused(Code::Forbidden.says("x"))), Exit::NotAllowed);
        assert_eq!(control(ControlError::NotOurs(200)), Exit::Failed);
        let pm2 = |error: RpcError| Failure::from(error).exit;
        assert_eq!(pm2(PathError::Absent("/x".into()).into()), Exit::NoPm2);
        assert_eq!(pm2(PathError::Link("/x".into()).into()), Exit::NotAllowed);
        assert_eq!(pm2(RpcError::Closed), Exit::NoPm2);
        assert_eq!(pm2(RpcError::TimedOut { method: "m" }), Exit::NoPm2);
    }
}
