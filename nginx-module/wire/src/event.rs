//! What changed, newest last: a bounded memory for people and for `handoff events`.

use crate::{Owner, State};
use serde::{Deserialize, Serialize};

/// `GET /v1/events?after=<seq>`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Events {
    pub instance: String,
    pub events: Vec<Event>,
    /// Ask for what comes after this.
    pub next: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    pub seq: u64,
    /// Milliseconds since 1970, by nginx's clock.
    pub at: u64,
    pub kind: EventKind,
    pub upstream: String,
    pub peer: String,
    pub owner: Owner,
    /// The effective state before and after.
    pub from: State,
    pub to: State,
    pub in_flight: u64,
    pub reason: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EventKind {
    /// An owner set or changed its mark.
    Mark,
    /// An owner took its mark away.
    Ready,
    /// A lease ran out.
    Lapse,
}

impl EventKind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Mark => "mark",
            Self::Ready => "ready",
            Self::Lapse => "lapse",
        }
    }
}
