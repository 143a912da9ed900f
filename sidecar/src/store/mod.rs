//! Many app hosts and many nginx, which know of each other through a store: etcd.
//!
//! ```text
//!  app host                                 etcd                                  nginx host
//!  agent, `handoff reload`, …                                                     nginx
//!     │ the control API of nginx                                                    ▲ the control API of nginx
//!     ▼                                                                             │
//!  gateway ──what this host holds of its peers──► hosts/ workers/ ──────────────► edge
//!     │    ──which peers it brings─────────────► members/ ────────────────────────►│
//!     ▲                                                                             │
//!     └───────────────────────────── acks/ edges/ ◄──what nginx has of them─────────┘
//! ```
//!
//! On an app host the [`gateway`] answers at the control socket as nginx would, for every nginx there is: so whoever speaks
//! to nginx here, the agent, `handoff reload`, a person with `curl`, speaks to all of them, with the same words and the same
//! promises. A mark is answered when every live [`edge`] has it, in flight is the sum, and a fence asks each of them anew.
//!
//! What an edge puts into its nginx lives there as long as the edge renews it, and what it says in the store as long as its
//! lease: whoever falls silent is as if he had never spoken, and nginx serves as without us. Which peers a host brings stands
//! there until it says otherwise, or has been silent for long: a partition must not empty an upstream.
//!
//! The protocol, what was tried, and what a partition costs: `docs/decisions/store.md`.

pub mod bring;
pub mod edge;
pub mod edges;
pub mod gateway;
pub mod http;
pub mod lag;
pub mod ledger;
pub mod metrics;
pub mod mirror;
pub mod report;
pub mod said;
pub mod seats;
pub mod session;
pub mod settings;
pub mod standing;

pub use settings::{Role, Settings, Tls};

use std::{io, path::PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot read {}: {error}", path.display())]
    File { path: PathBuf, error: io::Error },
    #[error("it does not answer")]
    Silent,
    #[error("{}", text(.0))]
    Etcd(#[from] etcd_client::Error),
    #[error("{0}")]
    Failed(String),
    #[error("our lease is over")]
    Lost,
}

// === impl StoreError ===

impl StoreError {
    /// The lease that it was about does not exist any more.
    fn is_no_lease(&self) -> bool {
        self.to_string().contains("lease not found")
    }
}

/// The library's words, without its wrapping.
fn text(error: &etcd_client::Error) -> String {
    match error {
        etcd_client::Error::GRpcStatus(status) => match status.message() {
            "" => status.code().to_string(),
            message => message.to_owned(),
        },
        // "transport error" alone helps nobody.
        etcd_client::Error::TransportError(error) => {
            let reasons = std::iter::successors(std::error::Error::source(error), |error| error.source());
            reasons.last().map_or_else(|| error.to_string(), ToString::to_string)
        }
        error => error.to_string(),
    }
}
