//! `/metrics`: what it says is what the API says, what the catalogue says of it, and what Prometheus and Grafana make of it.

use anyhow::{Context as _, Result, ensure};
use e2e::{
    backend::Backend,
    families::{Families, catalogued, sample, told},
    load::Load,
    marker::Marker,
    place, ports,
    prometheus::{self, Prometheus},
    site::{PATIENCE, Say, Site, VERSIONS},
    wait,
};
use handoff_wire::State;
use serde_json::Value;
use std::{
    collections::BTreeSet,
    fs,
    time::{Duration, Instant},
};

/// The API for reading, over TCP.
fn readable(site: &Site) -> String {
    format!(
        "server {{ listen 127.0.0.1:{}; access_log off; location /handoff/ {{ handoff_api; }} }}",
        site.port() + 1
    )
}

async fn metrics(site: &Site) -> Result<String> {
    let reply = site.control().get("/metrics").await?;
    ensure!(reply.status == 200, "{}", reply.text());
    ensure!(
        reply.header("content-type") == Some("text/plain; version=0.0.4; charset=utf-8"),
        "{:?}",
        reply.headers
    );
    Ok(reply.text())
}

#[tokio::test]
async fn the_catalogue_is_what_is_told_and_promtool_has_nothing_against_it() -> Result<()> {
    let backend = Backend::start(2).await?;
    for version in VERSIONS {
        let mut site = Site::new(version).await?;
        let lines = "handoff; handoff_slots 1; handoff_slow_start 1h;";
        site.write(&site.usual(&backend).replace("handoff;", lines))?;
        site.start().await?;
        site.visitors().get("/").await?;
        // What is told only while there is one.
        Marker::pm2(&site, "app").says(State::Checking, &[&backend.peer(0)]).await?;
        let pause = r#"{"owner":"operator","upstreams":["app"],"max":"10s"}"#;
        site.control().ask("PUT".parse()?, "/v1/pause", pause).await?;
        let text = metrics(&site).await?;
        let (told, catalogued) = (told(&text)?, catalogued(|name| !is_of_the_store(name))?);
        let names = |families: &Families| families.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&told), names(&catalogued), "docs/api/metrics.md does not list what there is");
        for (name, family) in &told {
            assert_eq!(Some(family), catalogued.get(name), "{name}");
        }
        let file = site.file("metrics.txt");
        fs::write(&file, &text)?;
        prometheus::check_metrics(&file).await?;
        site.end().await?;
    }
    Ok(())
}

#[tokio::test]
async fn what_is_told_is_what_the_api_says() -> Result<()> {
    let backend = Backend::start(2).await?;
    let (one, two) = (backend.peer(0), backend.peer(1));
    for version in VERSIONS {
        let site = Site::with(version, &backend).await?;
        site.say(&Say { reason: "a new disk", ..Say::DRAIN }, &[&one]).await?;
        for _ in 0..7 {
            site.visitors().get("/").await?;
        }
        let (text, peer, overview) = (metrics(&site).await?, site.peer(&two).await?, site.overview().await?);
        let of = |name: &str, peer: &str, more: &str| {
            sample(&text, &format!("{name}{{upstream=\"app\",peer=\"{peer}\"{more}}}"))
        };
        assert_eq!(of("handoff_peer_requests_total", &two, "")?, 7.0);
        assert_eq!(of("handoff_peer_responses_total", &two, ",class=\"2xx\"")?, 7.0);
        assert_eq!(of("handoff_peer_header_seconds_count", &two, "")?, 7.0);
        assert_eq!(of("handoff_peer_received_bytes_total", &two, "")?, peer.timing.received as f64);
        assert_eq!(of("handoff_peer_state", &one, ",state=\"draining\"")?, 1.0);
        assert_eq!(of("handoff_peer_state", &one, ",state=\"up\"")?, 0.0);
        assert_eq!(of("handoff_peer_state", &two, ",state=\"up\"")?, 1.0);
        assert_eq!(of("handoff_peer_marks", &one, ",owner=\"operator\"")?, 1.0);
        assert_eq!(sample(&text, "handoff_zone_peers")?, f64::from(overview.zone.peers));
        assert_eq!(sample(&text, "handoff_events_total{kind=\"mark\"}")?, 1.0);
        assert_eq!(sample(&text, "handoff_generation")?, overview.generation as f64);
        let started = sample(&text, "handoff_instance_start_time_seconds")?;
        let file =
            fs::metadata(site.conf())?.modified()?.duration_since(std::time::UNIX_EPOCH)?.as_secs_f64();
        assert!(
            (0.0..60.0).contains(&(started - file)),
            "it began {started}, the configuration was written {file}"
        );

        // A reload keeps all of it.
        site.reload().await?;
        let text = metrics(&site).await?;
        assert_eq!(sample(&text, "handoff_instance_start_time_seconds")?, started);
        let requests = format!("handoff_peer_requests_total{{upstream=\"app\",peer=\"{two}\"}}");
        assert_eq!(sample(&text, &requests)?, 7.0);
        assert_eq!(site.control().ask("POST".parse()?, "/metrics", "").await?.status, 405);
        assert_eq!(site.control().ask("HEAD".parse()?, "/metrics", "").await?.body.len(), 0);
        site.end().await?;
    }
    Ok(())
}

/// As many peers as the zone has places for, in as many upstreams as have room.
#[tokio::test]
async fn a_full_zone_is_told_within_milliseconds() -> Result<()> {
    const UPSTREAMS: usize = 140;
    const EACH: usize = 8;
    let mut site = Site::new("1.22.1").await?;
    let upstreams: String = (0..UPSTREAMS)
        .map(|number| {
            let servers: String =
                (0..EACH).map(|peer| format!("server 127.0.{number}.{}:80; ", peer + 1)).collect();
            format!("upstream u{number} {{ zone u{number} 64k; {servers} handoff; }}\n")
        })
        .collect();
    site.write(&format!("{upstreams}\n{}", site.api("write=on")))?;
    site.start().await?;
    for path in ["/metrics", "/v1/upstreams"] {
        let mut took = Vec::new();
        let mut size = 0;
        for _ in 0..20 {
            let began = Instant::now();
            let reply = site.control().get(path).await?;
            took.push(began.elapsed());
            size = reply.body.len();
        }
        took.sort_unstable();
        let median = took.get(took.len() / 2).copied().unwrap_or_default();
        println!(
            "{path}: {} peers, {} kB, {median:?} (median), {:?} (longest)",
            UPSTREAMS * EACH,
            size / 1000,
            took.last()
        );
        // With a wide margin, for a machine that does other things.
        assert!(median < Duration::from_millis(100), "{path}: {took:?}");
    }
    site.end().await
}

#[tokio::test]
async fn the_alerts_are_sound_and_tell_of_what_they_are_for() -> Result<()> {
    let monitoring = place::root().join("monitoring");
    let said = prometheus::check_rules(&monitoring.join("alerts.yml")).await?;
    assert!(said.contains("12 rules found"), "{said}");
    prometheus::test_rules(&place::root().join("tests/src/alerts-test.yml")).await?;
    // Whatever they ask for is told.
    let catalogued = catalogued(|_| true)?;
    let text = fs::read_to_string(monitoring.join("alerts.yml"))?;
    for name in names(&text) {
        ensure!(catalogued.contains_key(&name), "alerts.yml asks for {name}");
    }
    Ok(())
}

/// What sidecars say, and not nginx: tests/store sees to that.
fn is_of_the_store(name: &str) -> bool {
    name.starts_with("handoff_store_")
}

/// Words that begin like a metric's name.
fn names(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let names = words.filter(|word| {
        word.starts_with("handoff_") && !["handoff_queue", "handoff_retry", "handoff_zone"].contains(word)
    });
    names.map(|name| name.trim_end_matches("_bucket").to_owned()).collect()
}

/// The queries of a dashboard, with what Grafana would put in place of its variables.
fn queries(dashboard: &Value) -> Result<Vec<(String, String)>> {
    let mut queries = Vec::new();
    for panel in dashboard.get("panels").and_then(Value::as_array).context("no panels")? {
        let title = panel.get("title").and_then(Value::as_str).context("no title")?;
        for target in panel.get("targets").and_then(Value::as_array).context("no targets")? {
            let query = target.get("expr").and_then(Value::as_str).context("no query")?;
            let query =
                query.replace("$__rate_interval", "6s").replace("$instance", ".*").replace("$upstream", ".*");
            ensure!(!query.contains('$'), "{query}");
            queries.push((title.to_owned(), query));
        }
    }
    Ok(queries)
}

async fn values(prometheus: &Prometheus, query: &str) -> Result<Vec<f64>> {
    let series = prometheus.query(query).await?;
    let value = |of: &Value| {
        of.pointer("/value/1").and_then(Value::as_str).context("no value")?.parse().context("no number")
    };
    series.iter().map(value).collect()
}

/// One of three peers is draining, and 50 requests a second go to the others.
fn is_shown(title: &str, values: &[f64]) -> bool {
    let is_number = !values.is_empty() && values.iter().all(|value| !value.is_nan());
    let count = |state: f64| values.iter().filter(|&&value| value == state).count();
    is_number
        && match title {
            "Peers up" => values == [2.0 / 3.0],
            "Requests/s" => values.iter().all(|rate| (45.0..55.0).contains(rate)),
            "Peers" => (count(1.0), count(6.0)) == (2, 1),
            _ => true,
        }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_panel_of_the_grafana_dashboard_has_something_to_show() -> Result<()> {
    let text = fs::read_to_string(place::root().join("monitoring/grafana.json"))?;
    let catalogued = catalogued(|_| true)?;
    for name in names(&text) {
        ensure!(catalogued.contains_key(&name), "grafana.json asks for {name}");
    }
    let mut queries = queries(&serde_json::from_str(&text)?)?;
    queries.retain(|(_, query)| !query.contains("handoff_store_"));
    ensure!(queries.len() >= 20, "{queries:?}");
    let backend = Backend::start(3).await?;
    let mut site = Site::new("1.28.3").await?;
    site.write(&format!("{}\n{}", site.usual(&backend), readable(&site)))?;
    site.start().await?;
    let load = Load::start(ports::address(site.port()), 50);
    let target = ports::address(site.port() + 1);
    let prometheus = Prometheus::start(site.place(), target, "/handoff/metrics").await?;
    // Something for each kind of panel: a mark, and its end.
    site.say(&Say { reason: "a new disk", ..Say::DRAIN }, &[&backend.peer(0)]).await?;
    for (title, query) in queries {
        let mut last = Vec::new();
        // Not only that there is an answer: where it is known, it is the right one.
        let shown = wait::until(&title, PATIENCE, async || match values(&prometheus, &query).await {
            Ok(values) => {
                last = values;
                is_shown(&title, &last).then_some(Ok(()))
            }
            Err(error) => Some(Err(error)),
        });
        shown.await.with_context(|| format!("{query}: {last:?}"))??;
    }
    load.stop().await;
    site.end().await
}
