//! Whoever starts and stops the workers of an app: what a roll-out needs of it, and nothing else.
//!
//! A roll-out drains, watches and judges by itself; it has a process replaced. [`Pm2`] does that over its socket, [`Systemd`]
//! for the units of a template. What only PM2 has (one worker more for a moment, cluster mode, ecosystem files) is not here.

pub mod systemd;

mod pm2;

pub use pm2::Pm2;
pub use systemd::Systemd;

use crate::pm2::{PmId, bus, monitor::Listed, orders::Sealed, rpc::RpcError, trust::Daemon};
use std::{fmt, future::Future, pin::Pin};
use systemd::SystemdError;

pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, ManagerError>> + Send + 'a>>;

pub trait Manager: fmt::Debug + Send + Sync {
    /// What people call it.
    fn called(&self) -> &'static str;

    /// What it calls a worker.
    fn name(&self, app: &str, id: PmId) -> String;

    /// Every worker that it has, and as whom it speaks.
    fn list(&self) -> Answer<'_, (Daemon, Vec<Listed>)>;

    /// It tells what it does, as it does it. False: whoever wants to know looks.
    fn tells(&self) -> bool;

    /// Hears what it tells, for as long as this is polled.
    fn hear(&self, bus: bus::Bus) -> Pin<Box<dyn Future<Output = ()> + Send>>;

    /// Ends its process and starts another one. Comes back when it is done, whatever came of it: that is to be seen.
    fn replace(&self, id: PmId, env: Option<Sealed>) -> Answer<'_, ()>;

    /// Ends its process, and starts no other one.
    fn stop(&self, id: PmId) -> Answer<'_, ()>;

    /// Keeps one that it starts again and again from running, until it can be stopped.
    fn freeze(&self, id: PmId) -> Answer<'_, ()>;

    /// It runs on.
    fn thaw(&self, id: PmId) -> Answer<'_, ()>;

    /// Knows it no longer. It must be stopped.
    fn forget(&self, id: PmId) -> Answer<'_, ()>;

    /// Tells others what was done to it, as its own command line does.
    fn announce(&self, id: PmId, action: &'static str) -> Answer<'_, ()>;
}

#[derive(Debug, thiserror::Error)]
pub enum ManagerError {
    #[error(transparent)]
    Pm2(#[from] RpcError),
    #[error(transparent)]
    Systemd(#[from] SystemdError),
}
