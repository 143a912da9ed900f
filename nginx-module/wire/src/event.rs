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
    /// Empty: it is about the whole upstream.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub peer: String,
    pub owner: Owner,
    /// The effective state of the peer, before and after.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<State>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<State>,
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
    /// A lease ran out, or a pause was over.
    Lapse,
    /// An owner paused an upstream, or moved the end of its pause.
    Pause,
    /// A pause was ended.
    Resume,
    /// An owner added a peer, or changed one that was.
    Add,
    /// An owner removed a peer that was added.
    Remove,
}

/// How many there were since the instance began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventCounts {
    pub mark: u64,
    pub ready: u64,
    pub lapse: u64,
    pub pause: u64,
    pub resume: u64,
    #[serde(default)]
    pub add: u64,
    #[serde(default)]
    pub remove: u64,
}

impl EventKind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Mark => "mark",
            Self::Ready => "ready",
            Self::Lapse => "lapse",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Add => "add",
            Self::Remove => "remove",
        }
    }
}
