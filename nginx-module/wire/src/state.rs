//! What a peer may be, in the words of nginx's own status APIs.

use serde::{Deserialize, Serialize};
use std::fmt;

/// What a mark says of a peer, mildest first: the effective state of a peer is the most severe of its marks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Serves requests.
    Up,
    /// One of the workers that share the address is being replaced: serves requests, each over a connection of its own.
    Changing,
    /// A new worker serves what could be tried elsewhere without harm, and is given no other request.
    Trial,
    /// A worker is starting there: no new request yet.
    Checking,
    /// Its health check fails: no new request.
    Unhealthy,
    /// Finishes what it has: no new request.
    Draining,
    /// Gone, or to be treated as gone: no new request.
    Down,
}

impl State {
    pub const ALL: [Self; 7] =
        [Self::Up, Self::Changing, Self::Trial, Self::Checking, Self::Unhealthy, Self::Draining, Self::Down];

    /// Whether every request may begin: `up` or `changing`.
    #[inline]
    pub fn serves(self) -> bool {
        self <= Self::Changing
    }

    /// Whether some requests may still begin: those, or `trial`.
    pub fn begins_requests(self) -> bool {
        self <= Self::Trial
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Changing => "changing",
            Self::Trial => "trial",
            Self::Checking => "checking",
            Self::Unhealthy => "unhealthy",
            Self::Draining => "draining",
            Self::Down => "down",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What a view says of a peer: a mark's state, or nginx's own passive verdict where no mark says anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PeerState {
    Up,
    Changing,
    Trial,
    Checking,
    Unhealthy,
    Draining,
    Down,
    /// `max_fails` attempts failed within `fail_timeout`: nginx itself leaves the peer out for a while.
    Unavail,
}

impl PeerState {
    /// Whether the peer is given every request: `up` or `changing`.
    pub fn serves(self) -> bool {
        matches!(self, Self::Up | Self::Changing)
    }
}

impl From<State> for PeerState {
    fn from(state: State) -> Self {
        match state {
            State::Up => Self::Up,
            State::Changing => Self::Changing,
            State::Trial => Self::Trial,
            State::Checking => Self::Checking,
            State::Unhealthy => Self::Unhealthy,
            State::Draining => Self::Draining,
            State::Down => Self::Down,
        }
    }
}

impl fmt::Display for PeerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Up => "up",
            Self::Changing => "changing",
            Self::Trial => "trial",
            Self::Checking => "checking",
            Self::Unhealthy => "unhealthy",
            Self::Draining => "draining",
            Self::Down => "down",
            Self::Unavail => "unavail",
        })
    }
}

/// What the owner of a mark expects to follow: a worker that comes back, or nobody.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Expect {
    #[default]
    Gone,
    Back,
}

impl Expect {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Gone => "gone",
            Self::Back => "back",
        }
    }
}
