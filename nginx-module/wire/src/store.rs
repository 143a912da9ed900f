//! What stands in the store (etcd), where app hosts and nginx are different machines.
//!
//! ```text
//! /handoff/v1/<cluster>/hosts/<host>                          who publishes, and at which addresses
//! /handoff/v1/<cluster>/members/<host>                        which peers that host brings
//! /handoff/v1/<cluster>/workers/<host>/<upstream>/<address>   what that host holds of one of its peers
//! /handoff/v1/<cluster>/edges/<edge>                          an nginx whose word is waited for
//! /handoff/v1/<cluster>/acks/<host>/<edge>                    what that nginx has of the peers of that host
//! ```
//!
//! Every key lives under the lease of whoever wrote it, and ends with it; but `members`, which outlives the silence of its host
//! and ends with its word. The first three are written by app hosts, the last two by edges. Values are JSON and lenient when read, so that hosts can be upgraded one after the other.

use crate::{
    Expect, Owner, OwnerKind, PeerAdd, PeerState, QueueView, Refusal, Responses, Span, State, UncoveredView,
    path::{decode, encode},
};
use serde::{Deserialize, Deserializer, Serialize, de};
use std::{fmt, net::IpAddr, str::FromStr};

/// The name of an app host, an edge or a cluster.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Name(String);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameError(String);

/// The keys of one cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keys {
    root: String,
}

/// What a key names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    Host(Name),
    Members(Name),
    Worker { host: Name, upstream: String, address: String },
    Edge(Name),
    Ack { host: Name, edge: Name },
}

/// `hosts/<host>`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostValue {
    pub version: String,
    /// By which nginx reaches the workers of this host.
    pub addresses: Vec<IpAddr>,
    pub holder: Holder,
}

/// The process that wrote a `hosts` or `edges` key: who starts with the same name knows whether it is still there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Of the machine: changes with each boot.
    pub boot: String,
    pub pid: u32,
    /// When the process started, in clock ticks since the boot.
    pub start: u64,
}

/// `members/<host>`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MembersValue {
    pub version: String,
    /// How long they stay when the host has fallen silent.
    pub grace: Span,
    pub peers: Vec<Member>,
}

/// A peer that a host brings, with the terms of nginx's `server`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Member {
    pub upstream: String,
    pub address: String,
    #[serde(default = "Member::one", skip_serializing_if = "Member::is_one")]
    pub weight: u32,
    #[serde(default = "Member::one", skip_serializing_if = "Member::is_one")]
    pub max_fails: u32,
    #[serde(default = "Member::fail_timeout", skip_serializing_if = "Member::is_fail_timeout")]
    pub fail_timeout: Span,
    #[serde(default, skip_serializing_if = "is_default")]
    pub max_conns: u32,
}

/// `workers/<host>/<upstream>/<address>`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerValue {
    /// The most severe of the marks.
    pub state: State,
    /// How many times it was said, so that to say the same again is a change that edges answer.
    pub said: u64,
    pub marks: Vec<WorkerMark>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerMark {
    pub owner: Owner,
    pub state: State,
    #[serde(default)]
    pub expect: Expect,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Even if nobody is left to serve.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub force: bool,
}

/// `edges/<edge>`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EdgeValue {
    pub version: String,
    /// nginx's version.
    pub nginx: String,
    pub holder: Holder,
    /// It began with the store as it was at this revision.
    pub loaded: i64,
}

/// `acks/<host>/<edge>`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AckValue {
    /// All that the host said up to this revision holds in nginx.
    pub revision: i64,
    /// nginx's, which changes when it lost its memory.
    pub instance: String,
    pub upstreams: Vec<AckUpstream>,
    /// What nginx did not do, until the host says something else.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<AckRefused>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub uncovered: Vec<UncoveredView>,
    /// What the host brings and nginx did not take from it, or did not let go.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub amiss: Vec<Amiss>,
}

/// A peer that is not as its host would have it, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Amiss {
    pub upstream: String,
    pub address: String,
    pub text: String,
}

/// An upstream that has peers of the host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AckUpstream {
    pub name: String,
    pub peers: Vec<AckPeer>,
    /// Absent: all its peers are the host's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub elsewhere: Option<Elsewhere>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue: Option<QueueView>,
}

/// The peers of an upstream that are on other hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Elsewhere {
    /// One of them is up, and no backup.
    pub serves: bool,
    #[serde(default, skip_serializing_if = "is_default")]
    pub responses: Responses,
    #[serde(default, skip_serializing_if = "is_default")]
    pub fails: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AckPeer {
    pub address: String,
    pub state: PeerState,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub marks: Vec<AckMark>,
    #[serde(default, skip_serializing_if = "is_default")]
    pub in_flight: u64,
    /// From here on: only while somebody looks at how this host answers.
    #[serde(default, skip_serializing_if = "is_default")]
    pub requests: u64,
    #[serde(default, skip_serializing_if = "is_default")]
    pub responses: Responses,
    #[serde(default, skip_serializing_if = "is_default")]
    pub fails: u64,
    #[serde(default, skip_serializing_if = "is_default")]
    pub cut: u64,
    pub weight: u32,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub backup: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AckMark {
    /// As nginx has it: see [`at_edge`].
    pub owner: Owner,
    pub state: State,
    /// Of its tenure there.
    pub epoch: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AckRefused {
    pub upstream: String,
    pub address: String,
    pub owner: Owner,
    pub refusal: Refusal,
}

/// `GET /v1/store`, on an app host: who is in the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreView {
    pub host: Name,
    pub edges: Vec<EdgeView>,
    /// What this host brings.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<MemberView>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberView {
    pub upstream: String,
    pub address: String,
    /// False: nobody has listened there yet, so nobody is told of it.
    pub brought: bool,
    /// Whose nginx have it.
    pub edges: Vec<Name>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub amiss: Vec<AmissView>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AmissView {
    pub edge: Name,
    pub text: String,
}

/// The answer to `DELETE /v1/store`: every nginx has let go of what this host brought.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Left {
    pub members: Vec<LeftMember>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftMember {
    pub upstream: String,
    pub address: String,
    /// Whose nginx have it still, and why; nobody's, if it is gone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stays: Vec<AmissView>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EdgeView {
    pub name: Name,
    /// Its nginx has all that this host says.
    pub current: bool,
}

pub const VIEW: &str = "/v1/store";
const ROOT: &str = "/handoff/v1";
const BRINGER: &str = "/store";
/// The longest name, in bytes.
const MAX_NAME: usize = 40;
/// The longest value that is read; what we write is shorter by far.
pub const MAX_VALUE: usize = 1 << 20;
/// More marks on one peer than any nginx takes.
pub const MAX_MARKS: usize = 8;

/// The owner by which an edge's nginx knows a mark of an app host: two hosts are never the same one there, and what is no
/// lasting mark of this nginx's own operator lives as long as the host.
pub fn at_edge(host: &Name, owner: &Owner) -> Option<Owner> {
    let text = owner.as_str();
    let (kind, name) = match owner.kind() {
        OwnerKind::Operator | OwnerKind::Plus | OwnerKind::Health => ("rollout", text),
        OwnerKind::Rollout | OwnerKind::Pm2 | OwnerKind::Worker => text.split_once(':')?,
    };
    let whole = format!("{kind}:{host}/{name}");
    whole.parse().ok().or_else(|| format!("{kind}:{host}/{:016x}", hash(name)).parse().ok())
}

/// Who adds the peers of an app host to an edge's nginx, and nobody else: so it is known later whose they are.
pub fn bringer(host: &Name) -> Option<Owner> {
    format!("rollout:{host}{BRINGER}").parse().ok()
}

/// Whether a peer was added for an app host.
pub fn is_bringer(owner: &Owner) -> bool {
    let name = owner.as_str().strip_prefix("rollout:").and_then(|name| name.strip_suffix(BRINGER));
    name.is_some_and(|name| name.parse::<Name>().is_ok())
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// FNV-1a: the same in every version of us.
fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

// === impl Member ===

impl Member {
    /// What nginx is asked for.
    pub fn add(&self, owner: Owner, reason: String) -> PeerAdd {
        PeerAdd {
            owner,
            peer: self.address.clone(),
            weight: self.weight,
            max_fails: self.max_fails,
            fail_timeout: self.fail_timeout,
            max_conns: self.max_conns,
            reason,
        }
    }

    fn one() -> u32 {
        1
    }

    fn is_one(number: &u32) -> bool {
        *number == 1
    }

    fn fail_timeout() -> Span {
        Span::from_secs(10)
    }

    fn is_fail_timeout(span: &Span) -> bool {
        *span == Self::fail_timeout()
    }
}

// === impl Name ===

impl Name {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        let is_name = !text.is_empty() && text.len() <= MAX_NAME && text.chars().all(is_plain);
        if is_name { Ok(Self(text.to_owned())) } else { Err(NameError(text.to_owned())) }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(de::Error::custom)
    }
}

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is not a name: use 1 to {MAX_NAME} letters, digits and the signs . - _", self.0)
    }
}

impl std::error::Error for NameError {}

// === impl Keys ===

impl Keys {
    pub fn new(cluster: &Name) -> Self {
        Self { root: format!("{ROOT}/{cluster}/") }
    }

    pub fn host(&self, host: &Name) -> String {
        format!("{}hosts/{host}", self.root)
    }

    pub fn members(&self, host: &Name) -> String {
        format!("{}members/{host}", self.root)
    }

    pub fn worker(&self, host: &Name, upstream: &str, address: &str) -> String {
        format!("{}workers/{host}/{}/{}", self.root, encode(upstream), encode(address))
    }

    pub fn edge(&self, edge: &Name) -> String {
        format!("{}edges/{edge}", self.root)
    }

    /// What all edges begin with.
    pub fn edges(&self) -> String {
        format!("{}edges/", self.root)
    }

    pub fn ack(&self, host: &Name, edge: &Name) -> String {
        format!("{}{edge}", self.acks(host))
    }

    /// What all acknowledgements for a host begin with.
    pub fn acks(&self, host: &Name) -> String {
        format!("{}acks/{host}/", self.root)
    }

    /// From the first key of an app host to after the last: nothing else stands between these.
    pub fn said(&self) -> (String, String) {
        (format!("{}hosts/", self.root), format!("{}workers0", self.root))
    }

    /// Whether the key says who is there, or which peers somebody brings.
    pub fn is_membership(&self, key: &[u8]) -> bool {
        let key = std::str::from_utf8(key).ok().and_then(|key| self.parse(key));
        matches!(key, Some(Key::Host(_) | Key::Members(_)))
    }

    /// None: it is no key of ours.
    pub fn parse(&self, key: &str) -> Option<Key> {
        let segments: Vec<&str> = key.strip_prefix(&self.root)?.split('/').collect();
        Some(match *segments.as_slice() {
            ["hosts", host] => Key::Host(host.parse().ok()?),
            ["members", host] => Key::Members(host.parse().ok()?),
            ["workers", host, upstream, address] => Key::Worker {
                host: host.parse().ok()?,
                upstream: decode(upstream)?,
                address: decode(address)?,
            },
            ["edges", edge] => Key::Edge(edge.parse().ok()?),
            ["acks", host, edge] => Key::Ack { host: host.parse().ok()?, edge: edge.parse().ok()? },
            _ => return None,
        })
    }
}
