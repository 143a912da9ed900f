//! A server as it is configured: what `…/servers` shows.

use handoff_wire::{Span, State};
use serde::Serialize;

/// A server as nginx keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// Its place in nginx's list, for as long as the configuration is the same.
    pub id: u32,
    /// What `/v1` calls the peer.
    pub address: String,
    /// What the `server` directive calls it.
    pub name: String,
    pub weight: u32,
    pub max_conns: u64,
    pub max_fails: u64,
    pub fail_timeout: Span,
    pub slow_start: Span,
    pub backup: bool,
    /// nginx.conf says so.
    pub down: bool,
}

/// The same, with what clients of this API made of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ConfServer {
    pub id: u32,
    pub server: String,
    pub weight: u32,
    pub max_conns: u64,
    pub max_fails: u64,
    pub fail_timeout: Span,
    pub slow_start: Span,
    pub route: &'static str,
    pub backup: bool,
    pub down: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub drain: bool,
}

// === impl ConfServer ===

impl ConfServer {
    /// `mark`: that of the owner `plus`.
    pub(super) fn of(server: &Server, mark: Option<State>) -> Self {
        Self {
            id: server.id,
            server: server.address.clone(),
            weight: server.weight,
            max_conns: server.max_conns,
            max_fails: server.max_fails,
            fail_timeout: server.fail_timeout,
            slow_start: server.slow_start,
            route: "",
            backup: server.backup,
            down: server.down || mark == Some(State::Down),
            drain: mark == Some(State::Draining),
        }
    }
}
