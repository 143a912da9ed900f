//! What Prometheus is told of the store, over TCP: `handoff run --store-metrics 127.0.0.1:9911`. It is another form of the
//! [report](super::report); nothing is counted for it.

use super::{
    report::{Source, StoreReport},
    standing::Stand,
};
use crate::telemetry::Changes;
use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode, body::Incoming, header, server::conn::http1, service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{
    convert::Infallible,
    fmt::{Display, Write as _},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time,
};

/// Some samples under one name.
struct Family {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
    samples: fn(&StoreReport, &mut Samples<'_>),
}

struct Samples<'a> {
    name: &'static str,
    text: &'a mut String,
}

const PATH: &str = "/metrics";
const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
/// Nobody needs more than one or two.
const MOST: usize = 16;
const RETRY: Duration = Duration::from_secs(2);
/// Who connects and says nothing for so long is gone.
const SILENCE: Duration = Duration::from_secs(60);

const ALL: &[Family] = &[
    gauge(
        "handoff_store_connected",
        "Whether this process is in the store, under a lease of its own.",
        |it, out| {
            each(it, |role, stand| out.of(&[("role", role)], u8::from(stand.connected)));
        },
    ),
    gauge("handoff_store_changed_time_seconds", "Since when that is so, since 1970.", |it, out| {
        each(it, |role, stand| out.of(&[("role", role)], seconds(stand.since)));
    }),
    gauge(
        "handoff_store_lease_left_seconds",
        "After which the lease ends, unless it is renewed.",
        |it, out| {
            each(it, |role, stand| out.of(&[("role", role)], seconds(stand.lease_ms)));
        },
    ),
    counter("handoff_store_leases_lost_total", "Leases that ended before they were given up.", |it, out| {
        each(it, |role, stand| out.of(&[("role", role)], stand.leases_lost));
    }),
    gauge(
        "handoff_store_revision",
        "The change of the store up to which all was heard (edge), or that was said last (host).",
        |it, out| each(it, |role, stand| out.of(&[("role", role)], stand.revision)),
    ),
    counter("handoff_store_requests_total", "Requests to the store.", |it, out| out.of(&[], it.requests)),
    counter("handoff_store_failures_total", "Requests to the store that failed.", |it, out| {
        out.of(&[], it.failures);
    }),
    gauge(
        "handoff_store_database_bytes",
        "The size of the database of the member that is spoken to.",
        |it, out| {
            database(it, |database| out.of(&[], database.size));
        },
    ),
    gauge("handoff_store_database_used_bytes", "What of it is in use.", |it, out| {
        database(it, |database| out.of(&[], database.in_use));
    }),
    gauge(
        "handoff_store_database_quota_bytes",
        "At which size etcd takes no more writes, where it says so.",
        |it, out| {
            database(it, |database| database.quota.into_iter().for_each(|quota| out.of(&[], quota)));
        },
    ),
    gauge("handoff_store_edges", "nginx hosts that are there, as this app host knows.", |it, out| {
        it.host.iter().for_each(|host| out.of(&[], host.edges.len()));
    }),
    gauge(
        "handoff_store_edge_lag",
        "Changes of the store between what an nginx host has and what this app host said last.",
        |it, out| {
            let edges = it.host.iter().flat_map(|host| &host.edges);
            edges.for_each(|edge| out.of(&[("edge", edge.name.as_str())], edge.behind));
        },
    ),
    gauge("handoff_store_edge_lag_seconds", "For how long an nginx host has owed an answer.", |it, out| {
        let edges = it.host.iter().flat_map(|host| &host.edges);
        edges.for_each(|edge| out.of(&[("edge", edge.name.as_str())], seconds(edge.behind_ms)));
    }),
    Family {
        name: "handoff_store_acknowledgement_seconds",
        kind: "histogram",
        help: "How long an nginx host took to have what this app host said.",
        samples: |it, out| {
            let Some(host) = &it.host else { return };
            let times = &host.acknowledgements;
            for (bound, count) in times.buckets() {
                out.part("_bucket", &[("le", &bound.to_string())], count);
            }
            out.part("_bucket", &[("le", "+Inf")], times.count);
            out.part("_sum", &[], times.sum);
            out.part("_count", &[], times.count);
        },
    },
    gauge("handoff_store_hosts", "App hosts that are there, as this nginx host knows.", |it, out| {
        it.edge.iter().for_each(|edge| out.of(&[], edge.hosts.len()));
    }),
    gauge("handoff_store_host_peers", "Peers that nginx has at the addresses of an app host.", |it, out| {
        let hosts = it.edge.iter().flat_map(|edge| &edge.hosts);
        hosts.for_each(|host| out.of(&[("host", host.name.as_str())], host.peers));
    }),
];

const fn gauge(
    name: &'static str,
    help: &'static str,
    samples: fn(&StoreReport, &mut Samples<'_>),
) -> Family {
    Family { name, kind: "gauge", help, samples }
}

const fn counter(
    name: &'static str,
    help: &'static str,
    samples: fn(&StoreReport, &mut Samples<'_>),
) -> Family {
    Family { name, kind: "counter", help, samples }
}

fn each(it: &StoreReport, mut say: impl FnMut(&str, &Stand)) {
    it.host.iter().for_each(|host| say("host", &host.stand));
    it.edge.iter().for_each(|edge| say("edge", &edge.stand));
}

/// Both roles may speak to another member each; the first one's counts.
fn database(it: &StoreReport, say: impl FnMut(&super::standing::Database)) {
    let stands = it.host.iter().map(|host| &host.stand).chain(it.edge.iter().map(|edge| &edge.stand));
    stands.filter_map(|stand| stand.database.as_ref()).take(1).for_each(say);
}

fn seconds(millis: u64) -> f64 {
    Duration::from_millis(millis).as_secs_f64()
}

fn text(report: &StoreReport) -> String {
    let mut text = String::new();
    for Family { name, kind, help, samples } in ALL {
        let mut own = String::new();
        samples(report, &mut Samples { name, text: &mut own });
        if !own.is_empty() {
            _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{own}");
        }
    }
    text
}

// === impl Samples ===

impl Samples<'_> {
    fn of(&mut self, labels: &[(&str, &str)], value: impl Display) {
        self.part("", labels, value);
    }

    /// Names of hosts are made of letters, digits and `.-_`: nothing has to be escaped.
    fn part(&mut self, part: &str, labels: &[(&str, &str)], value: impl Display) {
        let labels: Vec<String> = labels.iter().map(|(label, of)| format!("{label}=\"{of}\"")).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        _ = writeln!(self.text, "{}{part}{labels} {value}", self.name);
    }
}

/// Serves for ever, or as soon as it can.
pub async fn serve(address: SocketAddr, source: Source) {
    let (mut log, mut callers, room) = (Changes::default(), JoinSet::new(), Arc::new(Semaphore::new(MOST)));
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => {
                log.info(format!("metrics of the store are at {address}"));
                while let Ok((socket, _)) = listener.accept().await {
                    while callers.try_join_next().is_some() {}
                    let Ok(room) = room.clone().try_acquire_owned() else { continue };
                    let source = source.clone();
                    callers.spawn(async move {
                        attend(socket, source).await;
                        drop(room);
                    });
                }
            }
            Err(error) => log.warn(format!("no metrics of the store: {address}: {error}")),
        }
        time::sleep(RETRY).await;
    }
}

async fn attend(socket: TcpStream, source: Source) {
    let service = service_fn(move |request: Request<Incoming>| {
        let response = answer(&request, &source);
        async move { Ok::<_, Infallible>(response) }
    });
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(SILENCE);
    // How it ends, the other side knows.
    _ = server.serve_connection(TokioIo::new(socket), service).await;
}

fn answer(request: &Request<Incoming>, source: &Source) -> Response<Full<Bytes>> {
    let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
    let (status, body) = match (request.uri().path(), is_read) {
        (PATH, true) => (StatusCode::OK, text(&source.report())),
        (PATH, false) => (StatusCode::METHOD_NOT_ALLOWED, "only GET\n".to_owned()),
        _ => (StatusCode::NOT_FOUND, format!("{PATH} is all there is\n")),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(CONTENT_TYPE));
    response
}

#[cfg(test)]
mod tests {
    use super::{super::report::stage::report, *};

    #[test]
    fn every_family_has_something_to_say_of_a_process_that_is_both() {
        let mut both = report();
        let quota = both.host.as_mut().and_then(|host| host.stand.database.as_mut());
        quota.unwrap().quota = Some(2 << 30);
        let text = text(&both);
        for family in ALL {
            assert!(
                text.contains(&format!("\n{}", family.name)) || text.contains(family.name),
                "{}",
                family.name
            );
        }
        for line in [
            "handoff_store_connected{role=\"host\"} 1",
            "handoff_store_connected{role=\"edge\"} 1",
            "handoff_store_lease_left_seconds{role=\"host\"} 8",
            "handoff_store_requests_total 12",
            "handoff_store_database_quota_bytes 2147483648",
            "handoff_store_edge_lag{edge=\"edge1\"} 0",
            "handoff_store_acknowledgement_seconds_bucket{le=\"0.005\"} 0",
            "handoff_store_acknowledgement_seconds_bucket{le=\"0.01\"} 1",
            "handoff_store_acknowledgement_seconds_bucket{le=\"+Inf\"} 1",
            "handoff_store_acknowledgement_seconds_count 1",
            "handoff_store_host_peers{host=\"app1\"} 4",
        ] {
            assert!(text.lines().any(|own| own == line), "no {line} in {text}");
        }
    }

    #[test]
    fn what_a_process_is_not_it_says_nothing_of() {
        let mut edge = report();
        edge.host = None;
        let text = text(&edge);
        assert!(!text.contains("role=\"host\"") && !text.contains("handoff_store_edges"), "{text}");
        assert!(text.contains("handoff_store_hosts 1"), "{text}");
    }
}
