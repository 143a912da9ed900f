//! What became of the peers lately, put together from the events: one deploy after the other.

use crate::{Owner, State};
use serde::{Deserialize, Serialize};

/// `GET /v1/timeline`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Timeline {
    pub instance: String,
    /// The generation that it shows.
    pub generation: u64,
    /// Milliseconds since 1970, by nginx's clock.
    pub now: u64,
    /// Oldest first, as far back as events are remembered.
    pub deploys: Vec<Deploy>,
}

/// A stretch of time in which peers of an upstream were replaced, or kept away for another reason.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Deploy {
    pub upstream: String,
    pub began: u64,
    /// When the last of its peers was `up` again; absent while one is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<u64>,
    /// Who marked something, in the order in which they did.
    pub owners: Vec<Owner>,
    pub peers: Vec<Track>,
}

/// What became of one peer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Track {
    pub peer: String,
    /// Of the first mark that has one.
    pub reason: String,
    /// When it left `up`.
    pub in_flight: u64,
    /// How many marks ran out because their owners had fallen silent.
    pub lapsed: u64,
    pub steps: Vec<Step>,
}

/// What the peer was from then on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    pub at: u64,
    pub state: State,
}

// === impl Deploy ===

impl Deploy {
    /// When it ended, or now.
    pub fn end(&self, now: u64) -> u64 {
        self.ended.unwrap_or(now).max(self.began)
    }
}

// === impl Track ===

impl Track {
    /// What it is now, or was when the deploy ended.
    pub fn state(&self) -> State {
        self.steps.last().map_or(State::Up, |step| step.state)
    }

    /// From when to when it was what. The last one goes on until `end`.
    pub fn spans(&self, end: u64) -> impl Iterator<Item = (State, u64, u64)> {
        let ends = self.steps.iter().skip(1).map(|step| step.at).chain([end]);
        self.steps.iter().zip(ends).map(|(step, end)| (step.state, step.at, end.max(step.at)))
    }
}
