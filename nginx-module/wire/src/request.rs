//! What a client asks for.

use crate::{DEFAULT_PAUSE, Expect, Owner, Span, State};
use serde::{Deserialize, Serialize};

/// `PUT /v1/marks`: an owner says what it holds of one or more peers. All of it is done, or nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MarkSet {
    pub owner: Owner,
    /// How long the marks live without being renewed. Absent: the owner's default
    /// ([`DEFAULT_LEASE`](crate::DEFAULT_LEASE), and none for `operator` and `plus`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<Span>,
    /// Do it even if nobody is left to serve.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub force: bool,
    pub marks: Vec<MarkRequest>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MarkRequest {
    /// Absent: every upstream that has the peer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream: Option<String>,
    pub peer: String,
    /// `up` removes the owner's own mark and nothing else.
    pub state: State,
    #[serde(default)]
    pub expect: Expect,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// With `up`: remove the marks of every owner.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub all: bool,
}

/// `POST /v1/renew`: the owner is alive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Renew {
    pub owner: Owner,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<Span>,
    /// Fencing: refused if one of these is no longer the mark that the owner set. Absent: all that the owner holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub marks: Option<Vec<RenewMark>>,
}

/// `POST /v1/orphans`: connections that lead to nobody. What waits on them is tried elsewhere, as if it had not been sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OrphanSet {
    pub owner: Owner,
    pub connections: Vec<OrphanRequest>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OrphanRequest {
    pub peer: String,
    /// Of nginx's own end.
    pub port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RenewMark {
    pub upstream: String,
    pub peer: String,
    pub epoch: u64,
}

/// `PUT /v1/pause`: nobody begins a request on any peer of these upstreams. All of it is done, or nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pause {
    pub owner: Owner,
    pub upstreams: Vec<String>,
    /// How long it lasts at most, from its beginning: to say the same again does not move its end.
    #[serde(default = "default_pause")]
    pub max: Span,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Do it even if those who come first would not wait for so long.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub force: bool,
}

/// `POST /v1/resume`: the owner's pause of these upstreams is over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resume {
    pub owner: Owner,
    pub upstreams: Vec<String>,
    /// Whoever paused them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub force: bool,
}

/// `POST /v1/upstreams/{upstream}/peers`: the upstream has this peer from now on. To say the same again changes nothing; to say
/// it otherwise changes the peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerAdd {
    pub owner: Owner,
    /// An address and a port, or `unix:` and a path; never a name.
    pub peer: String,
    /// This and the next three as the parameters of nginx's `server`, and with its defaults.
    #[serde(default = "one")]
    pub weight: u32,
    #[serde(default = "one")]
    pub max_fails: u32,
    #[serde(default = "default_fail_timeout")]
    pub fail_timeout: Span,
    /// 0 is no limit.
    #[serde(default)]
    pub max_conns: u32,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// `DELETE /v1/upstreams/{upstream}/peers/{peer}`: a peer that was added is so no longer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerRemove {
    pub owner: Owner,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Do it even if nobody is left to serve.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub force: bool,
}

fn one() -> u32 {
    1
}

fn default_fail_timeout() -> Span {
    Span::from_secs(10)
}

fn default_pause() -> Span {
    DEFAULT_PAUSE
}

// === impl PeerAdd ===

impl PeerAdd {
    /// With nginx's defaults.
    pub fn new(owner: Owner, peer: impl Into<String>) -> Self {
        Self {
            owner,
            peer: peer.into(),
            weight: one(),
            max_fails: one(),
            fail_timeout: default_fail_timeout(),
            max_conns: 0,
            reason: String::new(),
        }
    }
}
