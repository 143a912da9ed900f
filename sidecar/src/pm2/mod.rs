//! PM2, spoken to over the two unix sockets of its daemon.
//!
//! `pub.sock` (the [`bus`]) tells what happens, `rpc.sock` ([`rpc`]) answers what is. Neither has a handshake, a version
//! or any protection but its file rights, so [`trust`] decides whether we believe who listens there.

pub mod bus;
pub mod event;
pub mod frame;
pub mod home;
pub mod monitor;
pub mod orders;
pub mod rpc;
pub mod trust;
pub mod update;

use serde::{Deserialize, Serialize};
use std::fmt;

/// PM2's number of a worker. It outlives the process: the replacement has the same one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PmId(pub u32);

/// Of systemd, as which no app of PM2 is called here.
pub fn is_template(app: &str) -> bool {
    app.ends_with('@')
}

impl PmId {
    /// What an operator calls a worker: `shop:3` in PM2; of systemd's template `shop@`, `shop@3`.
    pub fn of(self, app: &str) -> String {
        let between = if is_template(app) { "" } else { ":" };
        format!("{app}{between}{self}")
    }
}

impl fmt::Display for PmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
