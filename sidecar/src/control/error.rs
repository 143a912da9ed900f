//! Why nginx did not do what it was asked, and what helps.

use super::Address;
use handoff_wire::{Code, Refusal};
use std::{io, os::unix::fs::MetadataExt as _, path::Path};

#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error(
        "nginx's control socket {0} does not exist: is nginx running, and does its configuration have a server \
         with `listen {0};` and `handoff_api write=on;`? Another path is given with --control"
    )]
    Absent(Address),
    #[error("nobody listens on {0}: nginx is not running. Start it")]
    Dead(Address),
    #[error("not allowed to use {address} ({who}): {mend}")]
    NotAllowed { address: Address, who: String, mend: &'static str },
    #[error("nginx does not answer on {0}: is it stopped or overloaded?")]
    TimedOut(Address),
    /// The connection broke; the request may or may not have been done.
    #[error("the connection to nginx failed: {0}")]
    Failed(String),
    #[error("{}", refusal(.0))]
    Refused(Refusal),
    #[error(
        "what answers on the control socket is not this version of Handoff's module (status {0}): \
         is `handoff_api` in that location, and are module and sidecar of one release?"
    )]
    NotOurs(u16),
}

/// nginx's own sentence, and what it means for whoever runs us.
fn refusal(refusal: &Refusal) -> String {
    match refusal.code {
        Code::Forbidden => format!(
            "nginx does not let this user write: {}. Run handoff as root or as nginx's user, or say \
             `handoff_api write=on user=NAME;`",
            refusal.text
        ),
        Code::Waiting => refusal.text.clone(),
        _ => format!("nginx refuses: {}", refusal.text),
    }
}

impl ControlError {
    pub(super) fn connecting(address: &Address, error: io::Error) -> Self {
        let address = address.clone();
        match error.kind() {
            io::ErrorKind::NotFound => Self::Absent(address),
            io::ErrorKind::ConnectionRefused => Self::Dead(address),
            io::ErrorKind::PermissionDenied => {
                let (who, mend) = rights(address.path());
                Self::NotAllowed { address, who, mend }
            }
            _ => Self::Failed(error.to_string()),
        }
    }

    /// nginx does not run, or its socket is out of reach.
    pub fn is_absence(&self) -> bool {
        !matches!(self, Self::Refused(_) | Self::NotAllowed { .. })
    }

    pub fn is_forbidden(&self) -> bool {
        match self {
            Self::NotAllowed { .. } => true,
            Self::Refused(refusal) => refusal.code == Code::Forbidden,
            _ => false,
        }
    }

    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Refused(refusal) => Some(refusal.code),
            _ => None,
        }
    }
}

/// Whose the nearest thing is that we may see, and how to get in.
fn rights(socket: &Path) -> (String, &'static str) {
    let Some((path, meta)) = socket.ancestors().find_map(|path| Some((path, path.metadata().ok()?))) else {
        return ("its directory cannot be seen".into(), "run handoff as root");
    };
    let (uid, gid, mode) = (meta.uid(), meta.gid(), meta.mode() & 0o777);
    (
        format!("{} belongs to user {uid}, group {gid}, mode {mode:o}", path.display()),
        "run handoff as that user, join the group, or run it as root",
    )
}
