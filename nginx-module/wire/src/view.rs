//! What the server answers.

use crate::{EventCounts, Expect, Owner, PeerState, Span, State};
use serde::{Deserialize, Serialize};

/// `GET /v1`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Overview {
    pub api: u32,
    /// The module's version.
    pub version: String,
    pub nginx: String,
    /// Changes when nginx lost its memory: after a restart, a binary upgrade, or a changed `handoff_zone`.
    pub instance: String,
    /// When that began, in milliseconds since 1970.
    #[serde(default)]
    pub started: u64,
    /// Grows with every change of a mark or of the configuration.
    pub generation: u64,
    #[serde(default)]
    pub events: EventCounts,
    pub zone: ZoneView,
    /// The pid of the older of two masters, while both live: from USR2 until one of them has gone. Each has marks of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub old_master: Option<u32>,
    pub processes: Vec<ProcessView>,
    /// One entry for each peer that requests also reach past its marks, as far as the configuration shows.
    #[serde(default)]
    pub uncovered: Vec<UncoveredView>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ZoneView {
    /// Bytes.
    pub size: u64,
    pub peers: u32,
    pub peers_max: u32,
    /// Peers for which there was no room: nginx serves them as if they were in no upstream of ours.
    pub peers_uncovered: u32,
    pub processes_max: u32,
}

/// A peer that is also reached where its marks are not seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UncoveredView {
    pub peer: String,
    /// Who passes requests to it there: `upstream "other" in /etc/nginx/nginx.conf:12`.
    pub by: String,
    /// How many others do so.
    pub more: u32,
}

/// One nginx process that can have requests in flight.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProcessView {
    /// 0: processes that found no row of their own.
    pub pid: u32,
    pub in_flight: u64,
}

/// `GET /v1/upstreams`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Upstreams {
    pub instance: String,
    pub generation: u64,
    pub upstreams: Vec<UpstreamView>,
}

/// `GET /v1/upstreams/{upstream}`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UpstreamView {
    pub name: String,
    pub peers: Vec<PeerView>,
    /// Absent: nobody waits for this upstream (`handoff_queue off`, or the zone had no room).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue: Option<QueueView>,
    /// Absent: it is not paused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause: Option<PauseView>,
    /// Absent: the zone had no room.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<RetryView>,
    /// How long a new worker takes to get its whole share. Absent: no time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slow_start: Option<Span>,
    /// Absent: it has no `handoff_slots`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slots: Option<SlotsView>,
}

/// Places for peers that are added while nginx runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotsView {
    /// As `handoff_slots` says.
    pub max: u32,
    /// By peers that are there.
    pub taken: u32,
    /// By peers that were removed, with requests still.
    pub leaving: u32,
    /// Peers that found no slot, since the upstream has its room in the zone.
    pub refused: u64,
}

/// Nobody begins a request on any peer of the upstream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PauseView {
    pub owner: Owner,
    pub reason: String,
    /// What is left of it, if nobody ends it before.
    pub left: Span,
    pub age: Span,
}

/// Requests that wait for a peer, in all nginx processes, and what became of those that did. Each that waited ends in one of
/// `resumed`, `released`, `timed_out` and `left`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueView {
    /// Now.
    pub held: u64,
    pub held_max: u64,
    /// Of these requests, as their clients sent them.
    pub bytes: u64,
    pub bytes_max: u64,
    pub timeout: Span,
    /// Given to a peer.
    pub resumed: u64,
    /// Served as nginx alone does: nobody was expected any more.
    pub released: u64,
    pub timed_out: u64,
    /// Their clients did not wait.
    pub left: u64,
    /// Turned away at once: they would have waited, and there was no room.
    pub overflowed: u64,
}

/// Requests that a peer failed, and what was decided about each failure.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetryView {
    /// Repeats that nginx alone would not have made, now.
    pub active: u64,
    /// How many of these there may be, with what is in flight now; 0 with `handoff_retry off`.
    pub allowed: u64,
    pub granted: GrantedView,
    pub refused: RefusedView,
}

/// Given to a peer again, by reason.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GrantedView {
    /// nginx alone would have done so.
    pub next: u64,
    /// No byte of it was written.
    pub unsent: u64,
    /// Another worker was behind the address.
    pub replaced: u64,
    /// The worker had said when to come again.
    pub retry_after: u64,
    /// Nobody was up: it waited.
    pub held: u64,
    /// It waited on a connection that nobody had taken.
    pub orphan: u64,
}

/// Not given to a peer again, by reason.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RefusedView {
    /// `proxy_next_upstream` does not name the failure.
    pub off: u64,
    /// It may have been executed.
    pub sent: u64,
    pub unbuffered: u64,
    pub timeout: u64,
    pub tries: u64,
    /// Nobody was there but the worker that had failed it.
    pub same: u64,
    /// It broke two workers.
    pub broke: u64,
    /// The worker had said when to come again, and it was not soon.
    pub later: u64,
    pub budget: u64,
}

/// `GET /v1/upstreams/{upstream}/peers/{peer}`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PeerView {
    pub address: String,
    pub state: PeerState,
    pub marks: Vec<MarkView>,
    /// Requests that nginx has with this peer now, in all its processes.
    pub in_flight: u64,
    /// Attempts begun on this peer since the instance began.
    pub requests: u64,
    /// What these attempts were answered, counted as each of them ends.
    #[serde(default)]
    pub responses: Responses,
    #[serde(default)]
    pub timing: TimingView,
    /// Attempts that nginx counted as failed.
    pub fails: u64,
    /// Requests that broke off with this peer: their answer never came whole, and nobody else was asked.
    #[serde(default)]
    pub cut: u64,
    /// Times the balancer chose this peer and was sent on because of a mark.
    pub refused: u64,
    #[serde(default)]
    pub outage: OutageView,
    /// Connections opened before this number are not reused (nginx's connection counter).
    pub retired_before: u64,
    /// Whether nginx has this peer now: the running configuration names it, or it was added. One that was removed stays until
    /// its requests end.
    pub configured: bool,
    /// Whether it was added while nginx runs.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dynamic: bool,
    /// Who added it; absent if nobody did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub added_by: Option<Owner>,
    pub weight: u32,
    pub backup: bool,
    /// Absent: the peer has its whole share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slow_start: Option<SlowStartView>,
}

/// A new worker gets its share little by little.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlowStartView {
    /// Of its weight, in percent.
    pub share: u32,
    /// Until it is the whole. Before the worker serves, all of the time.
    pub left: Span,
}

/// Answers by class. An attempt without an answer is in none of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Responses {
    #[serde(rename = "1xx")]
    pub informational: u64,
    #[serde(rename = "2xx")]
    pub success: u64,
    #[serde(rename = "3xx")]
    pub redirection: u64,
    #[serde(rename = "4xx")]
    pub client_error: u64,
    #[serde(rename = "5xx")]
    pub server_error: u64,
}

/// How long the peer took, and what went there and came back, counted as each attempt ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimingView {
    /// Of those attempts that are in [`Responses`], or have a status of no class: until the whole header was there.
    pub header: HeaderTimes,
    /// Of the same attempts: the sum of their times until the answer was whole, or broke off.
    pub response: Span,
    /// Bytes written to the peer, by all attempts.
    pub sent: u64,
    /// Bytes read from it.
    pub received: u64,
    /// When an attempt last began, in milliseconds since 1970; absent if none did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selected: Option<u64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeaderTimes {
    pub sum: Span,
    /// How many took so long: one number for each of [`HEADER_BOUNDS`], and one for all that took longer. An answer is in one
    /// of them.
    pub buckets: [u64; HEADER_BOUNDS.len() + 1],
}

/// The longest time, in milliseconds, that counts in a bucket.
pub const HEADER_BOUNDS: [u64; 11] = [5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000];

/// When the peer was `unavail`, `checking` or `unhealthy`, as nginx looked four times a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutageView {
    /// How many times it became `unavail`.
    pub unavail: u64,
    pub downtime: Span,
    /// When it became one of the three, in milliseconds since 1970; absent if it is none of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub downstart: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MarkView {
    pub owner: Owner,
    pub state: State,
    pub expect: Expect,
    pub reason: String,
    pub epoch: u64,
    /// What is left of the lease; absent if the mark has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<Span>,
    pub age: Span,
}

/// The answer to `PUT /v1/marks` and `POST /v1/renew`. Once it is written, no nginx process begins a request on a peer
/// whose state here is neither `up` nor `trial`; on one that is on `trial`, none that could not be tried elsewhere.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ack {
    pub instance: String,
    pub generation: u64,
    pub marks: Vec<AckedMark>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AckedMark {
    pub upstream: String,
    pub peer: String,
    /// The effective state: the most severe of all owners' marks.
    pub state: State,
    /// The epoch of the owner's mark; 0 if it now holds none.
    pub epoch: u64,
    pub in_flight: u64,
}

/// The answer to `POST` and `DELETE` of a peer. Once a `DELETE` is answered, no nginx process begins a request on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerAck {
    pub instance: String,
    pub generation: u64,
    pub upstream: String,
    /// As nginx writes it.
    pub peer: String,
    /// False: it was so before.
    pub changed: bool,
    pub state: State,
    pub in_flight: u64,
}

/// `GET /v1/upstreams/{upstream}/peers/{peer}/drained?timeout=5s`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Drained {
    /// True: the peer gets no new request and nginx waits for nothing from it.
    pub drained: bool,
    pub state: State,
    pub in_flight: u64,
}

/// The answer to `PUT /v1/pause`. Once it is written, no nginx process begins a request on any peer of these upstreams until
/// somebody resumes them, or until `left` has passed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PauseAck {
    pub instance: String,
    pub generation: u64,
    pub upstreams: Vec<PausedUpstream>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PausedUpstream {
    pub upstream: String,
    pub left: Span,
    /// Requests that nginx has with its peers still.
    pub in_flight: u64,
}

/// The answer to `POST /v1/resume`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ResumeAck {
    pub instance: String,
    pub generation: u64,
    pub upstreams: Vec<ResumedUpstream>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ResumedUpstream {
    pub upstream: String,
    pub was: Was,
    /// Requests that waited, and go on now.
    pub held: u64,
}

/// What an upstream was when it was resumed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Was {
    /// From the pause until now.
    Paused,
    /// Its pause was over before: requests have gone on since.
    Lapsed,
    /// Not paused at all.
    Running,
}

/// `GET /v1/upstreams/{upstream}/quiet?timeout=5s`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Quiet {
    /// True: the upstream is paused, and nginx waits for nothing from any of its peers.
    pub quiet: bool,
    pub in_flight: u64,
    /// What is left of the pause; absent if there is none (any more).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left: Option<Span>,
}

// === impl Responses ===

impl Responses {
    pub fn total(&self) -> u64 {
        [self.informational, self.success, self.redirection, self.client_error, self.server_error]
            .iter()
            .sum()
    }

    /// What the server itself says it failed at.
    pub fn errors(&self) -> u64 {
        self.server_error
    }
}
