//! Why a deploy went no further, and with which exit code it ends.

use super::super::exit::{Exit, Failure};
use crate::{
    deploy::{git::GitError, ground::GroundError, hook::HookError},
    pm2::rpc::RpcError,
    rollout::{Broken, Stop, brake::Halt, stop::Role},
};

#[derive(Clone, Debug)]
pub(super) struct Trouble {
    pub(super) exit: Exit,
    pub(super) text: String,
    pub(super) log: Vec<String>,
}

// === impl Trouble ===

impl Trouble {
    pub(super) fn new(exit: Exit, text: impl Into<String>) -> Self {
        Self { exit, text: text.into(), log: Vec::new() }
    }
}

impl From<Failure> for Trouble {
    fn from(Failure { exit, text }: Failure) -> Self {
        Self::new(exit, text)
    }
}

impl From<Trouble> for Failure {
    fn from(Trouble { exit, text, .. }: Trouble) -> Self {
        Self::new(exit, text)
    }
}

impl From<Stop> for Trouble {
    fn from(stop: Stop) -> Self {
        let exit = stop.exit();
        match stop {
            // What is to be done about it is said by what is done.
            Stop::Broken(Broken { worker, text, role, .. }) => {
                let which = match role {
                    Role::Successor => format!("the new {worker}"),
                    Role::Canary => format!("the new release: its canary {worker}"),
                    Role::StandIn => format!("the new release: its stand-in {worker}"),
                };
                Self::new(exit, format!("{which} is not fit to serve: {text}"))
            }
            stop => Self::new(exit, stop.to_string()),
        }
    }
}

impl From<Halt> for Trouble {
    fn from(halt: Halt) -> Self {
        Stop::from(halt).into()
    }
}

impl From<RpcError> for Trouble {
    fn from(error: RpcError) -> Self {
        Failure::from(error).into()
    }
}

impl From<GroundError> for Trouble {
    fn from(error: GroundError) -> Self {
        Self::new(Exit::NotMade, error.to_string())
    }
}

impl From<GitError> for Trouble {
    fn from(error: GitError) -> Self {
        Self::new(Exit::NotMade, error.to_string())
    }
}

impl From<HookError> for Trouble {
    fn from(error: HookError) -> Self {
        Self::new(Exit::NotMade, error.to_string())
    }
}
