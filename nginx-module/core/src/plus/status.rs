//! What is: the peers of an upstream and what they did.

use super::date::iso;
use super::server::Server;
use handoff_wire::{PeerState, PeerView, Responses, Span, UpstreamView};
use serde::Serialize;

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Upstream {
    pub peers: Vec<Peer>,
    /// Peers that the configuration names no longer, with requests still.
    pub zombies: usize,
    pub zone: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue: Option<Queue>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Peer {
    pub id: u32,
    pub server: String,
    pub name: String,
    pub backup: bool,
    pub weight: u32,
    pub state: &'static str,
    pub active: u64,
    pub max_conns: u64,
    pub requests: u64,
    /// Milliseconds, on average; absent while there is nothing to take an average of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub header_time: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response_time: Option<u64>,
    pub responses: Answers,
    pub sent: u64,
    pub received: u64,
    pub fails: u64,
    pub unavail: u64,
    pub health_checks: HealthChecks,
    /// Milliseconds.
    pub downtime: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub downstart: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selected: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Answers {
    #[serde(flatten)]
    pub classes: Responses,
    pub total: u64,
}

/// nginx makes none, and says so as that API does of an upstream without `health_check`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct HealthChecks {
    pub checks: u64,
    pub fails: u64,
    pub unhealthy: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Queue {
    pub size: u64,
    pub max_size: u64,
    pub overflows: u64,
}

// === impl Upstream ===

impl Upstream {
    pub(super) fn of(view: &UpstreamView, servers: &[Server], zone: String) -> Self {
        let is_zombie = |peer: &&PeerView| !peer.configured && peer.in_flight > 0;
        let peer_of = |server: &Server| {
            let view = view.peers.iter().find(|peer| peer.address == server.address)?;
            Some(Peer::of(view, server))
        };
        Self {
            peers: servers.iter().filter_map(peer_of).collect(),
            zombies: view.peers.iter().filter(is_zombie).count(),
            zone,
            queue: view.queue.as_ref().map(|queue| Queue {
                size: queue.held,
                max_size: queue.held_max,
                overflows: queue.overflowed,
            }),
        }
    }
}

// === impl Peer ===

impl Peer {
    fn of(view: &PeerView, server: &Server) -> Self {
        let timing = &view.timing;
        let answers: u64 = timing.header.buckets.iter().sum();
        let average = |sum: Span| sum.as_millis().checked_div(answers);
        Self {
            id: server.id,
            server: view.address.clone(),
            name: server.name.clone(),
            backup: server.backup,
            weight: server.weight,
            state: word(view.state),
            active: view.in_flight,
            max_conns: server.max_conns,
            requests: view.requests,
            header_time: average(timing.header.sum),
            response_time: average(timing.response),
            responses: Answers { classes: view.responses, total: view.responses.total() },
            sent: timing.sent,
            received: timing.received,
            fails: view.fails,
            unavail: view.outage.unavail,
            health_checks: HealthChecks::default(),
            downtime: view.outage.downtime.as_millis(),
            downstart: view.outage.downstart.and_then(iso),
            selected: timing.selected.and_then(iso),
        }
    }
}

/// That API has six words. While a worker changes its peer serves everybody; on trial it is being looked at.
fn word(state: PeerState) -> &'static str {
    match state {
        PeerState::Up | PeerState::Changing => "up",
        PeerState::Trial | PeerState::Checking => "checking",
        PeerState::Unhealthy => "unhealthy",
        PeerState::Draining => "draining",
        PeerState::Down => "down",
        PeerState::Unavail => "unavail",
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn every_state_is_one_of_the_six_words() {
        for (state, says) in [
            (PeerState::Up, "up"),
            (PeerState::Changing, "up"),
            (PeerState::Trial, "checking"),
            (PeerState::Checking, "checking"),
            (PeerState::Unhealthy, "unhealthy"),
            (PeerState::Draining, "draining"),
            (PeerState::Down, "down"),
            (PeerState::Unavail, "unavail"),
        ] {
            assert_eq!(word(state), says);
        }
    }
}
