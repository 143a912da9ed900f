//! How a command ends: a number for scripts, a sentence for people.

use crate::{config::ConfigError, control::ControlError, pm2::rpc::RpcError, survey::SurveyError};
use std::process::ExitCode;

/// The exit codes, as `handoff help` and docs/api/cli.md list them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Done = 0,
    Failed = 1,
    Usage = 2,
    Deadline = 3,
    NoNginx = 4,
    NoPm2 = 5,
    UnknownTarget = 6,
    NotAllowed = 7,
    NoSidecar = 8,
}

pub const HELP: &str = "Exit codes:
  0  done
  1  refused or failed
  2  wrong arguments or wrong configuration
  3  the deadline passed
  4  nginx cannot be reached
  5  PM2 cannot be reached
  6  no such app, worker or peer
  7  not allowed to use a socket
  8  no sidecar runs (status only)";

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
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

impl From<ControlError> for Failure {
    fn from(error: ControlError) -> Self {
        let exit = match &error {
            error if error.is_forbidden() => Exit::NotAllowed,
            ControlError::Absent(_) | ControlError::Dead(_) | ControlError::TimedOut(_) => Exit::NoNginx,
            _ => Exit::Failed,
        };
        Self::new(exit, error.to_string())
    }
}

impl From<RpcError> for Failure {
    fn from(error: RpcError) -> Self {
        let exit = match &error {
            RpcError::Path(path) if path.is_refusal() => Exit::NotAllowed,
            error if error.is_absence() => Exit::NoPm2,
            RpcError::TimedOut { .. } => Exit::NoPm2,
            _ => Exit::Failed,
        };
        Self::new(exit, error.to_string())
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
    use handoff_wire::Code;

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
