//! What `/metrics` says, in Prometheus' text format 0.0.4: every name, what it means, and where it comes from.
//!
//! Nothing is counted for it: it is another form of what the API shows. Labels are bounded by the zone: upstreams and peers by
//! its size, all others by the words of the contract. Units are seconds and bytes.

use handoff_wire::{
    HEADER_BOUNDS, HeaderTimes, Overview, OwnerKind, PeerState, PeerView, QueueView, RetryView, SlotsView,
    Span, UpstreamView, Upstreams,
};
use std::fmt::{self, Display, Write as _};

/// What the header `Content-Type` says.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Some samples under one name.
pub struct Family<T> {
    pub name: &'static str,
    pub kind: Kind,
    pub help: &'static str,
    samples: fn(&T, &mut Samples<'_>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// Of all of nginx.
pub const INSTANCE: &[Family<Overview>] = &[
    gauge("handoff_build_info", "The versions of the module and of nginx; always 1.", |view, out| {
        out.of(&[("version", &view.version), ("nginx", &view.nginx)], 1);
    }),
    gauge(
        "handoff_instance_info",
        "Names nginx's memory of marks and counts; always 1. Another one: nginx was restarted or upgraded.",
        |view, out| out.of(&[("instance", &view.instance)], 1),
    ),
    gauge("handoff_instance_start_time_seconds", "When that memory began, since 1970.", |view, out| {
        out.one(Seconds(Span::from_millis(view.started)));
    }),
    gauge("handoff_generation", "Grows with every change of a mark or of the configuration.", |view, out| {
        out.one(view.generation);
    }),
    counter("handoff_events_total", "Changes of marks, pauses and peers, by kind.", |view, out| {
        let it = view.events;
        out.each(
            "kind",
            [
                ("mark", it.mark),
                ("ready", it.ready),
                ("lapse", it.lapse),
                ("pause", it.pause),
                ("resume", it.resume),
                ("add", it.add),
                ("remove", it.remove),
            ],
        );
    }),
    gauge("handoff_processes", "nginx processes that may have requests in flight.", |view, out| {
        out.one(view.processes.len());
    }),
    gauge("handoff_processes_max", "How many have a place of their own.", |view, out| {
        out.one(view.zone.processes_max);
    }),
    gauge("handoff_zone_size_bytes", "The size of handoff_zone.", |view, out| out.one(view.zone.size)),
    gauge("handoff_zone_peers", "Peers that have a place in handoff_zone.", |view, out| {
        out.one(view.zone.peers);
    }),
    gauge("handoff_zone_peers_max", "How many places there are.", |view, out| out.one(view.zone.peers_max)),
    gauge("handoff_zone_peers_without_place", "Peers for which handoff_zone had no room.", |view, out| {
        out.one(view.zone.peers_uncovered);
    }),
    gauge("handoff_peers_uncovered", "Peers that requests also reach past their marks.", |view, out| {
        out.one(view.uncovered.len());
    }),
];

/// Of an upstream.
pub const UPSTREAM: &[Family<UpstreamView>] = &[
    gauge(
        "handoff_upstream_paused",
        "Whether every new request waits until somebody resumes.",
        |view, out| {
            out.one(u8::from(view.pause.is_some()));
        },
    ),
    gauge("handoff_upstream_pause_left_seconds", "After which a pause ends by itself.", |view, out| {
        if let Some(pause) = &view.pause {
            out.one(Seconds(pause.left));
        }
    }),
    gauge("handoff_slots", "How many peers can be added while nginx runs.", |view, out| {
        slots(view, out, |it| it.max.into());
    }),
    gauge("handoff_slots_taken", "Slots of peers that were added.", |view, out| {
        slots(view, out, |it| it.taken.into());
    }),
    gauge(
        "handoff_slots_leaving",
        "Slots of peers that were removed and have requests still.",
        |view, out| {
            slots(view, out, |it| it.leaving.into());
        },
    ),
    counter("handoff_slots_refused_total", "Peers for which no slot was free.", |view, out| {
        slots(view, out, |it| it.refused);
    }),
    gauge("handoff_queue_held", "Requests that wait for a peer.", |view, out| queue(view, out, |it| it.held)),
    gauge("handoff_queue_held_max", "How many may wait.", |view, out| queue(view, out, |it| it.held_max)),
    gauge("handoff_queue_held_bytes", "The size of the requests that wait.", |view, out| {
        queue(view, out, |it| it.bytes);
    }),
    gauge("handoff_queue_held_max_bytes", "Which size they may have together.", |view, out| {
        queue(view, out, |it| it.bytes_max);
    }),
    gauge("handoff_queue_timeout_seconds", "How long a request waits at most.", |view, out| {
        if let Some(queue) = &view.queue {
            out.one(Seconds(queue.timeout));
        }
    }),
    counter("handoff_queue_ended_total", "Waits that ended, by outcome.", |view, out| {
        let Some(QueueView { resumed, released, timed_out, left, .. }) = view.queue else { return };
        let outcomes =
            [("resumed", resumed), ("released", released), ("timed_out", timed_out), ("left", left)];
        out.each("outcome", outcomes);
    }),
    counter("handoff_queue_overflowed_total", "Requests that found no room to wait: 503.", |view, out| {
        queue(view, out, |it| it.overflowed);
    }),
    gauge(
        "handoff_slow_start_seconds",
        "How long a new worker takes to get its whole share.",
        |view, out| {
            if let Some(length) = view.slow_start {
                out.one(Seconds(length));
            }
        },
    ),
    gauge("handoff_retries_active", "Repeats under way that nginx alone would not make.", |view, out| {
        retry(view, out, |it| it.active);
    }),
    gauge("handoff_retries_allowed", "How many of these there may be now.", |view, out| {
        retry(view, out, |it| it.allowed);
    }),
    counter("handoff_retries_granted_total", "Failed attempts after which a peer got the request again.", {
        |view, out| {
            let Some(it) = view.retry.as_ref().map(|retry| &retry.granted) else { return };
            out.each(
                "reason",
                [
                    ("next", it.next),
                    ("unsent", it.unsent),
                    ("replaced", it.replaced),
                    ("retry_after", it.retry_after),
                    ("held", it.held),
                    ("orphan", it.orphan),
                ],
            );
        }
    }),
    counter("handoff_retries_refused_total", "Failed attempts after which nobody got the request again.", {
        |view, out| {
            let Some(it) = view.retry.as_ref().map(|retry| &retry.refused) else { return };
            out.each(
                "reason",
                [
                    ("off", it.off),
                    ("sent", it.sent),
                    ("unbuffered", it.unbuffered),
                    ("timeout", it.timeout),
                    ("tries", it.tries),
                    ("same", it.same),
                    ("broke", it.broke),
                    ("later", it.later),
                    ("budget", it.budget),
                ],
            );
        }
    }),
];

/// Of a peer.
pub const PEER: &[Family<PeerView>] = &[
    gauge("handoff_peer_state", "1 for the state that the peer is in, 0 for the others.", |view, out| {
        out.each("state", STATES.map(|(name, state)| (name, u64::from(view.state == state))));
    }),
    gauge("handoff_peer_marks", "What owners say of the peer, by the kind of owner.", |view, out| {
        let of = |kind| view.marks.iter().filter(|mark| mark.owner.kind() == kind).count();
        out.each("owner", OWNERS.map(|(name, kind)| (name, of(kind))));
    }),
    gauge("handoff_peer_in_flight", "Requests that nginx has with the peer.", |view, out| {
        out.one(view.in_flight);
    }),
    gauge(
        "handoff_peer_weight",
        "As the configuration says; 0 if it names the peer no longer.",
        |view, out| {
            out.one(view.weight);
        },
    ),
    gauge("handoff_peer_slow_start_percent", "Which part of its weight a new worker has.", |view, out| {
        if let Some(ramp) = view.slow_start {
            out.one(ramp.share);
        }
    }),
    counter("handoff_peer_requests_total", "Attempts begun on the peer.", |view, out| out.one(view.requests)),
    counter("handoff_peer_responses_total", "Attempts that it answered, by class.", |view, out| {
        let it = view.responses;
        out.each(
            "class",
            [
                ("1xx", it.informational),
                ("2xx", it.success),
                ("3xx", it.redirection),
                ("4xx", it.client_error),
                ("5xx", it.server_error),
            ],
        );
    }),
    histogram("handoff_peer_header_seconds", "How long it took until the header of an answer was there.", {
        |view, out| out.buckets(&view.timing.header)
    }),
    counter(
        "handoff_peer_answering_seconds_total",
        "How long its answers took until they were whole, summed.",
        |view, out| out.one(Seconds(view.timing.response)),
    ),
    counter("handoff_peer_sent_bytes_total", "Bytes written to the peer.", |view, out| {
        out.one(view.timing.sent);
    }),
    counter("handoff_peer_received_bytes_total", "Bytes read from the peer.", |view, out| {
        out.one(view.timing.received);
    }),
    gauge("handoff_peer_last_selected_seconds", "When an attempt last began, since 1970.", |view, out| {
        if let Some(at) = view.timing.selected {
            out.one(Seconds(Span::from_millis(at)));
        }
    }),
    counter(
        "handoff_peer_unavail_total",
        "Times that nginx left the peer out for its failures.",
        |view, out| {
            out.one(view.outage.unavail);
        },
    ),
    counter(
        "handoff_peer_outage_seconds_total",
        "How long it was unavail, checking or unhealthy.",
        |view, out| {
            out.one(Seconds(view.outage.downtime));
        },
    ),
    counter("handoff_peer_fails_total", "Attempts that nginx counted as failed.", |view, out| {
        out.one(view.fails);
    }),
    counter("handoff_peer_cut_total", "Requests that broke off with the peer, and went nowhere else.", {
        |view, out| out.one(view.cut)
    }),
    counter(
        "handoff_peer_refused_total",
        "Times the balancer chose the peer and was sent on.",
        |view, out| {
            out.one(view.refused);
        },
    ),
];

const STATES: [(&str, PeerState); 8] = [
    ("up", PeerState::Up),
    ("changing", PeerState::Changing),
    ("trial", PeerState::Trial),
    ("checking", PeerState::Checking),
    ("unhealthy", PeerState::Unhealthy),
    ("draining", PeerState::Draining),
    ("down", PeerState::Down),
    ("unavail", PeerState::Unavail),
];

/// `HEADER_BOUNDS` in seconds.
const LE: [&str; HEADER_BOUNDS.len() + 1] =
    ["0.005", "0.01", "0.025", "0.05", "0.1", "0.25", "0.5", "1", "2.5", "5", "10", "+Inf"];

/// A daemon's home and a roll-out's id are left out: there may be any number of them.
const OWNERS: [(&str, OwnerKind); 6] = [
    ("operator", OwnerKind::Operator),
    ("plus", OwnerKind::Plus),
    ("health", OwnerKind::Health),
    ("pm2", OwnerKind::Pm2),
    ("worker", OwnerKind::Worker),
    ("rollout", OwnerKind::Rollout),
];

const fn gauge<T>(name: &'static str, help: &'static str, samples: fn(&T, &mut Samples<'_>)) -> Family<T> {
    Family { name, kind: Kind::Gauge, help, samples }
}

const fn counter<T>(name: &'static str, help: &'static str, samples: fn(&T, &mut Samples<'_>)) -> Family<T> {
    Family { name, kind: Kind::Counter, help, samples }
}

const fn histogram<T>(
    name: &'static str,
    help: &'static str,
    samples: fn(&T, &mut Samples<'_>),
) -> Family<T> {
    Family { name, kind: Kind::Histogram, help, samples }
}

fn queue(view: &UpstreamView, out: &mut Samples<'_>, number: impl Fn(&QueueView) -> u64) {
    if let Some(queue) = &view.queue {
        out.one(number(queue));
    }
}

fn slots(view: &UpstreamView, out: &mut Samples<'_>, count: impl Fn(&SlotsView) -> u64) {
    if let Some(slots) = &view.slots {
        out.one(count(slots));
    }
}

fn retry(view: &UpstreamView, out: &mut Samples<'_>, number: impl Fn(&RetryView) -> u64) {
    if let Some(retry) = &view.retry {
        out.one(number(retry));
    }
}

/// All of it; `None` if there is no memory for so much.
pub fn render(overview: &Overview, upstreams: &Upstreams) -> Option<Vec<u8>> {
    let all = || upstreams.upstreams.iter();
    let peers: usize = all().map(|upstream| upstream.peers.len()).sum();
    let mut page = Page::with_room(peers.saturating_mul(A_PEER));
    let of = |upstream: &UpstreamView| labelled("", "upstream", &upstream.name);
    let whole = [(String::new(), overview)];
    let labelled_upstreams: Vec<_> = all().map(|upstream| (of(upstream), upstream)).collect();
    let peers = all().flat_map(|upstream| {
        let its = of(upstream);
        upstream.peers.iter().map(move |peer| (labelled(&its, "peer", &peer.address), peer))
    });
    let labelled_peers: Vec<_> = peers.collect();
    INSTANCE.iter().for_each(|family| page.family(family, &whole));
    UPSTREAM.iter().for_each(|family| page.family(family, &labelled_upstreams));
    PEER.iter().for_each(|family| page.family(family, &labelled_peers));
    page.whole()
}

/// Labels with one more; the last brace is left open.
fn labelled(labels: &str, name: &str, value: &str) -> String {
    let comma = if labels.is_empty() { "{" } else { "," };
    let mut out = format!("{labels}{comma}{name}=\"");
    for c in value.chars() {
        match c {
            '\\' => out.push_str(r"\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str(r"\n"),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// So many bytes are told of a peer, more or less: a page that grows is copied each time.
const A_PEER: usize = 4096;

/// Text that asks before it grows: there may be megabytes of it, and nginx lives on when there is no memory.
struct Page {
    text: String,
    is_full: bool,
}

/// Writes what one family says of one thing.
struct Samples<'a> {
    page: &'a mut Page,
    name: &'static str,
    /// Of that thing, with an open brace.
    labels: &'a str,
}

/// As Prometheus counts time.
struct Seconds(Span);

// === impl Page ===

impl Page {
    fn with_room(bytes: usize) -> Self {
        let mut text = String::new();
        let is_full = text.try_reserve(bytes).is_err();
        Self { text, is_full }
    }

    fn family<T>(&mut self, family: &Family<T>, things: &[(String, &T)]) {
        let Family { name, kind, help, samples } = family;
        for part in ["# HELP ", name, " ", help, "\n# TYPE ", name, " ", kind.as_str(), "\n"] {
            self.push(part);
        }
        for (labels, thing) in things {
            samples(thing, &mut Samples { page: self, name, labels });
        }
    }

    fn push(&mut self, text: &str) {
        if self.text.try_reserve(text.len()).is_err() {
            self.is_full = true;
        } else {
            self.text.push_str(text);
        }
    }

    fn whole(self) -> Option<Vec<u8>> {
        (!self.is_full).then(|| self.text.into_bytes())
    }
}

impl fmt::Write for Page {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.push(text);
        Ok(())
    }
}

// === impl Samples ===

impl Samples<'_> {
    fn one(&mut self, value: impl Display) {
        self.of(&[], value);
    }

    /// One sample for each value of one more label.
    fn each<const N: usize>(&mut self, label: &str, samples: [(&str, impl Display); N]) {
        for (of, value) in samples {
            self.of(&[(label, of)], value);
        }
    }

    /// Counts up to each bound; nginx has them apart.
    fn buckets(&mut self, times: &HeaderTimes) {
        let mut count = 0_u64;
        for (number, bound) in times.buckets.iter().zip(LE) {
            count = count.saturating_add(*number);
            self.write("_bucket", &[("le", bound)], count);
        }
        self.write("_sum", &[], Seconds(times.sum));
        self.write("_count", &[], count);
    }

    fn of(&mut self, more: &[(&str, &str)], value: impl Display) {
        self.write("", more, value);
    }

    /// What comes in `more` are words of ours, and need no escaping.
    fn write(&mut self, end: &str, more: &[(&str, &str)], value: impl Display) {
        for part in [self.name, end, self.labels] {
            self.page.push(part);
        }
        let mut before = if self.labels.is_empty() { "{" } else { "," };
        for (name, of) in more {
            for part in [before, name, "=\"", of, "\""] {
                self.page.push(part);
            }
            before = ",";
        }
        self.page.push(if before == "," { "} " } else { " " });
        // Writing to a page cannot fail.
        _ = writeln!(self.page, "{value}");
    }
}

// === impl Kind ===

impl Kind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

// === impl Seconds ===

impl Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_millis();
        write!(f, "{}.{:03}", millis / 1000, millis % 1000)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_bounds_are_the_same_in_seconds() {
        for (millis, seconds) in HEADER_BOUNDS.iter().zip(LE) {
            assert_eq!(seconds.parse::<f64>().unwrap() * 1000.0, *millis as f64, "{seconds}");
        }
        assert_eq!(LE.last(), Some(&"+Inf"));
    }
}
