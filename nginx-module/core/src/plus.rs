//! The face that clients of the NGINX Plus API know: `/api/{3..9}/…`, as far as it is about http upstreams.
//!
//! It is a face and not a second truth: what it shows is what `/v1` shows, in other words, a `PATCH` sets or removes the
//! mark of the owner `plus`, and what a `POST` adds or a `DELETE` removes is a peer that comes and goes. What nginx does not tell us is left out; a client then takes it for zero or nothing.
//!
//! A request is [taken apart](path), and [answered](answer) or [carried out](patch) by somebody who holds the control lock.
//! Whatever goes wrong is an [`Error`] in the words of that API.

pub mod answer;
mod change;
mod date;
pub mod error;
pub mod fields;
pub mod patch;
pub mod path;
pub mod server;
pub mod status;

pub use answer::Sight;
pub use error::{Code, Error};
pub use fields::Fields;
pub use path::{Call, Path};
pub use server::Server;

/// What only the shell can know of nginx, beside the [`World`](crate::World).
pub trait Nginx {
    fn about(&self) -> About;
    /// None: nginx was built without `ngx_http_stub_status_module`, and counts nobody.
    fn visitors(&self) -> Option<Visitors>;
    /// The servers of an upstream that takes part, primary ones first, as nginx keeps them.
    fn servers(&self, upstream: &str) -> Vec<Server>;
    /// The `zone` of an upstream that takes part.
    fn zone(&self, upstream: &str) -> String;
    /// Whether nginx.conf has an `upstream` block of this name.
    fn has_block(&self, upstream: &str) -> bool;
}

/// The nginx process that answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct About {
    pub version: String,
    /// Where it was asked.
    pub address: String,
    pub pid: u32,
    pub ppid: u32,
}

/// Connections and requests of visitors, as `stub_status` counts them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Visitors {
    pub accepted: u64,
    pub handled: u64,
    pub requests: u64,
    /// Open, idle ones included.
    pub active: u64,
    pub reading: u64,
    pub writing: u64,
    pub waiting: u64,
}
