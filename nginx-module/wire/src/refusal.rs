//! A refusal is data: a status, a code for programs, and a sentence for people.

use serde::{Deserialize, Serialize};
use std::fmt;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    pub error: Refusal,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    pub status: u16,
    pub code: Code,
    pub text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Code {
    /// The body or the query is not what this path takes.
    BadRequest,
    /// The caller may not write.
    Forbidden,
    PathNotFound,
    UpstreamNotFound,
    PeerNotFound,
    MethodNotAllowed,
    /// The choice would leave nobody to serve.
    Floor,
    /// The mark lapsed, so nginx used the peer again meanwhile: drain again.
    Lapsed,
    /// Another owner has paused the upstream.
    Paused,
    /// Nobody can wait for the upstream, so it cannot be paused.
    NoQueue,
    /// Those who come first would not wait until the end of such a pause.
    TooLong,
    TooLarge,
    /// The zone has no room for one more mark on this peer.
    MarksFull,
    /// Another process held the zone too long: try again.
    Busy,
    /// Not everywhere yet, where many nginx are told through a store: ask the same again.
    Waiting,
    /// A code of a newer server.
    #[serde(other)]
    Unknown,
}

impl Code {
    pub fn status(self) -> u16 {
        match self {
            Self::BadRequest => 400,
            Self::Forbidden => 403,
            Self::PathNotFound | Self::UpstreamNotFound | Self::PeerNotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::Floor | Self::Lapsed | Self::Paused | Self::NoQueue | Self::TooLong => 409,
            Self::TooLarge => 413,
            Self::MarksFull => 507,
            Self::Busy | Self::Waiting => 503,
            Self::Unknown => 500,
        }
    }

    pub fn says(self, text: impl Into<String>) -> Refusal {
        Refusal { status: self.status(), code: self, text: text.into() }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}, {:?})", self.text, self.status, self.code)
    }
}

impl std::error::Error for Refusal {}
