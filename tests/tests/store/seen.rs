//! What an operator sees of the store: `handoff status`, `handoff doctor`, metrics.

use crate::{
    PATIENCE,
    fleet::{EDGES, Ended, Fleet},
};
use anyhow::{Context, Result, ensure};
use e2e::{
    alone, command,
    door::Door,
    etcd::{Etcd, Tls},
    families::{Families, catalogued, sample, told},
    place::{self, Place},
    ports, process,
    prometheus::{self, Prometheus},
    wait,
};
use handoff_wire::State;
use rustix::process::Signal;
use serde_json::Value;
use std::{fs, net::TcpListener, path::Path};

async fn metrics(fleet: &Fleet, name: &str) -> Result<String> {
    let reply = Door::Tcp(fleet.metrics(name)).get("/metrics").await?;
    ensure!(reply.status == 200, "{}", reply.text());
    Ok(reply.text())
}

fn json(ended: &Ended) -> Result<Value> {
    serde_json::from_str(&ended.stdout).with_context(|| format!("{ended:?}"))
}

/// What it finds of the store, and what it says of each.
fn found(answer: &Value) -> Result<Vec<(String, String)>> {
    let findings = answer.get("findings").and_then(Value::as_array).context("findings")?;
    let text = |finding: &Value, key: &str| finding.get(key).and_then(Value::as_str).map(str::to_owned);
    let all = findings.iter().map(|finding| Some((text(finding, "id")?, text(finding, "found")?)));
    let all: Vec<_> = all.collect::<Option<_>>().context("an id and what was found")?;
    Ok(all.into_iter().filter(|(id, _)| id.starts_with("store-")).collect())
}

async fn ids(fleet: &Fleet) -> Result<Vec<String>> {
    let answer = json(&fleet.handoff(&["doctor", "--json"]).await?)?;
    Ok(found(&answer)?.into_iter().map(|(id, _)| id).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_there_and_who_is_behind_is_seen() -> Result<()> {
    let _alone = alone::take()?;
    let fleet = Fleet::new().await?;
    let peer = fleet.app.addresses().first().context("a worker")?.to_string();
    fleet.mark(&peer, State::Draining).await?;
    fleet.mark(&peer, State::Up).await?;

    let lines = [
        format!("store  app1  in the store ({}) for ", fleet.etcd.url()),
        "       nginx on edge1, there for ".to_owned(),
        "       nginx on edge2, there for ".to_owned(),
        "store  edge1  in the store".to_owned(),
        "       app host app1 (127.0.0.1): 2 peers of this nginx".to_owned(),
    ];
    let mut last = String::new();
    // Each sidecar's file is a second old at most.
    let seen = wait::until("status to tell of everybody", PATIENCE, async || {
        last = fleet.handoff(&["status"]).await.ok()?.stdout;
        let has = |line: &String| last.lines().any(|own| own.starts_with(line));
        (lines.iter().all(has) && last.matches(": acknowledged in ").count() == 2).then_some(())
    });
    seen.await.with_context(|| last.clone())?;

    // What is told is what is listed; this etcd does not say its quota.
    let (host, edge) = (metrics(&fleet, "app1").await?, metrics(&fleet, "edge1").await?);
    let mut all = told(&edge)?;
    for (name, family) in told(&host)? {
        all.entry(name).or_insert(family);
    }
    let listed = catalogued(|name| {
        name.starts_with("handoff_store_") && name != "handoff_store_database_quota_bytes"
    })?;
    let names = |families: &Families| families.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&all), names(&listed), "docs/api/metrics.md does not list what there is");
    for (name, family) in &all {
        assert_eq!(Some(family), listed.get(name), "{name}");
    }
    for text in [&host, &edge] {
        let file = fleet.site(0)?.file("metrics.txt");
        fs::write(&file, text)?;
        prometheus::check_metrics(&file).await?;
    }
    assert_eq!(sample(&host, "handoff_store_connected{role=\"host\"}")?, 1.0);
    assert_eq!(sample(&host, "handoff_store_edges")?, 2.0);
    // Two marks, each acknowledged by two.
    ensure!(sample(&host, "handoff_store_acknowledgement_seconds_count")? >= 4.0, "{host}");
    let left = sample(&edge, "handoff_store_lease_left_seconds{role=\"edge\"}")?;
    ensure!((5.0..=10.0).contains(&left), "{left} s are left of a lease of 10 s that is renewed each 2.5 s");
    assert_eq!(sample(&edge, "handoff_store_host_peers{host=\"app1\"}")?, 2.0);
    ensure!(sample(&host, "handoff_store_database_bytes")? > 10_000.0, "{host}");
    assert_eq!(Door::Tcp(fleet.metrics("app1")).get("/").await?.status, 404);

    assert_eq!(ids(&fleet).await?, Vec::<String>::new());

    // One that is halted is still registered, and everybody waits for it.
    process::signal(fleet.edge(1)?, Signal::STOP);
    ensure!(
        fleet.mark(&peer, State::Draining).await.is_err(),
        "a choice was answered for an edge that is halted"
    );
    let behind = wait::until("the doctor to say who is behind", PATIENCE, async || {
        let answer = json(&fleet.handoff(&["doctor", "--json"]).await.ok()?).ok()?;
        let behind = found(&answer).ok()?.into_iter().find(|(id, _)| id == "store-edge-behind")?;
        Some(behind.1)
    });
    let behind = behind.await?;
    ensure!(behind.starts_with("edge2: for "), "{behind}");
    let host = metrics(&fleet, "app1").await?;
    ensure!(sample(&host, "handoff_store_edge_lag{edge=\"edge2\"}")? >= 1.0, "{host}");
    ensure!(sample(&host, "handoff_store_edge_lag_seconds{edge=\"edge2\"}")? >= 2.0, "{host}");
    assert_eq!(sample(&host, "handoff_store_edge_lag{edge=\"edge1\"}")?, 0.0);
    process::signal(fleet.edge(1)?, Signal::CONT);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "make store"]
async fn without_etcd_everybody_says_so() -> Result<()> {
    let _alone = alone::take()?;
    let mut fleet = Fleet::new().await?;
    fleet.etcd.kill();
    let away = wait::until("the doctor to say that etcd is away", PATIENCE, async || {
        let ids = ids(&fleet).await.ok()?;
        (ids.iter().filter(|id| *id == "store-unreached").count() == 3).then_some(ids)
    });
    let away = away.await?;
    ensure!(away.iter().all(|id| id == "store-unreached"), "{away:?}");
    let out = wait::until("metrics to say that nobody is in the store", PATIENCE, async || {
        let host = metrics(&fleet, "app1").await.ok()?;
        (sample(&host, "handoff_store_connected{role=\"host\"}").ok()? == 0.0).then_some(host)
    });
    ensure!(sample(&out.await?, "handoff_store_leases_lost_total{role=\"host\"}")? >= 1.0);
    Ok(())
}

/// As an operator asks who has no sidecar there yet: by the options of `handoff run`.
async fn doctor(place: &Place, store: &str, more: &[&str]) -> Result<Vec<(String, String)>> {
    let mut handoff = command::clean(place::handoff()?);
    handoff.env("PM2_HOME", place.file("pm2")).env("HANDOFF_RUNTIME_DIR", place.file("runtime"));
    handoff.args(["doctor", "--json", "--store", store, "--store-name", "app1"]).args(more);
    let output = handoff.args(["--store-address", "127.0.0.1"]).output().await?;
    let text = String::from_utf8(output.stdout)?;
    found(&serde_json::from_str(&text).with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?)
}

#[track_caller]
fn is_only(found: &[(String, String)], id: &str, says: &str) {
    assert!(
        matches!(found, [(own, text)] if own == id && text.contains(says)),
        "not {id}, {says:?}: {found:?}"
    );
}

#[tokio::test]
async fn the_doctor_finds_what_is_wrong_with_an_etcd() -> Result<()> {
    let place = Place::new()?;
    // Room for what etcd itself has, and for little more.
    let mut etcd = Etcd::start_as(&place, None, &["--quota-backend-bytes", "65536"]).await?;
    let url = etcd.url();
    is_only(&doctor(&place, &url, &[]).await?, "store-no-edge", "default");
    is_only(
        &doctor(&place, &url.replace("http:", "https:"), &["--store-ca", "/dev/null"]).await?,
        "store-tls",
        &url[5..],
    );
    let nobody = format!("{url},http://{}", ports::address(ports::row(1)?));
    let away = doctor(&place, &nobody, &[]).await?;
    ensure!(
        away.iter().any(|(id, found)| id == "store-member-away" && found.contains("refused")),
        "{away:?}"
    );
    is_only(
        &doctor(&place, &url, &["--store-user", "app1", "--store-password-file", "/nowhere"]).await?,
        "store-file",
        "/nowhere",
    );
    let full = etcd.ctl(&["put", "a", &"x".repeat(70_000)]).await;
    ensure!(full.is_err_and(|error| error.to_string().contains("database space exceeded")), "it has room");
    is_only(&doctor(&place, &url, &[]).await?, "store-alarm", "NOSPACE");
    // One that takes connections and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0")?;
    let address = format!("http://{}", silent.local_addr()?);
    is_only(&doctor(&place, &address, &[]).await?, "store-unreached", "does not answer");
    etcd.kill();
    is_only(&doctor(&place, &url, &[]).await?, "store-unreached", "refused");
    Ok(())
}

#[tokio::test]
#[ignore = "make store"]
async fn the_doctor_finds_what_is_wrong_with_certificates_users_and_rights() -> Result<()> {
    let place = Place::new()?;
    let tls = Tls::new(&place, &["etcd", "root", "app1"]).await?;
    let other = Place::new()?;
    let foreign = Tls::new(&other, &["app1"]).await?;
    let mut etcd = Etcd::start_with(&place, Some(tls.clone())).await?;
    let url = etcd.url();
    let path = |path: &Path| path.display().to_string();
    let with = |ca: &Tls, own: Option<&Tls>| {
        let mut options = vec!["--store-ca".to_owned(), path(&ca.ca())];
        if let Some(own) = own {
            options.extend([
                "--store-cert".into(),
                path(&own.cert("app1")),
                "--store-key".into(),
                path(&own.key("app1")),
            ]);
        }
        options
    };
    let ask = async |options: Vec<String>| {
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        doctor(&place, &url, &options).await
    };
    is_only(&ask(with(&tls, Some(&tls))).await?, "store-no-edge", "default");
    for wrong in [with(&foreign, Some(&tls)), with(&tls, Some(&foreign)), with(&tls, None)] {
        let found = ask(wrong.clone()).await?;
        eprintln!("{wrong:?}: {found:?}");
        is_only(&found, "store-tls", &url);
    }
    let plain = url.replace("https:", "http:");
    is_only(&doctor(&place, &plain, &[]).await?, "store-tls", &plain);

    etcd.ctl(&["role", "add", "app1"]).await?;
    let prefix = "/handoff/v1/default";
    etcd.ctl(&["role", "grant-permission", "app1", "readwrite", &format!("{prefix}/hosts/app1")]).await?;
    for user in ["root:rootroot", "app1:app1app1"] {
        etcd.ctl(&["user", "add", user]).await?;
    }
    _ = etcd.ctl(&["role", "add", "root"]).await;
    etcd.ctl(&["user", "grant-role", "root", "root"]).await?;
    etcd.ctl(&["user", "grant-role", "app1", "app1"]).await?;
    etcd.ctl(&["auth", "enable"]).await?;
    etcd.login("root:rootroot");
    let password = |word: &str| -> Result<Vec<String>> {
        let file = place.file("password");
        fs::write(&file, word)?;
        let mut options = with(&tls, Some(&tls));
        options.extend(["--store-user".into(), "app1".into(), "--store-password-file".into(), path(&file)]);
        Ok(options)
    };
    is_only(&ask(password("wrong")?).await?, "store-user", "app1");
    let lacks = ask(password("app1app1")?).await?;
    is_only(&lacks, "store-rights", &format!("readwrite {prefix}/workers/app1/ --prefix=true"));
    // What it says to grant is enough.
    let grants = lacks.first().and_then(|(_, found)| found.split_once("lacks: ")).context("what it lacks")?.1;
    for grant in grants.split(", ") {
        let words: Vec<&str> =
            ["role", "grant-permission", "app1"].into_iter().chain(grant.split(' ')).collect();
        etcd.ctl(&words).await?;
    }
    is_only(&ask(password("app1app1")?).await?, "store-no-edge", "default");
    // Nothing was written by asking.
    let keys = etcd.dump().await?;
    ensure!(keys.trim().is_empty(), "{keys}");
    Ok(())
}

/// With what a fleet says.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "make store"]
async fn every_panel_of_the_store_has_something_to_show() -> Result<()> {
    let _alone = alone::take()?;
    let fleet = Fleet::new().await?;
    let dashboard: Value =
        serde_json::from_str(&fs::read_to_string(place::root().join("monitoring/grafana.json"))?)?;
    let panels = dashboard.get("panels").and_then(Value::as_array).context("panels")?;
    let targets = panels.iter().filter_map(|panel| panel.get("targets")?.as_array()).flatten();
    let queries: Vec<String> = targets
        .filter_map(|target| target.get("expr")?.as_str())
        .filter(|query| query.contains("handoff_store_"))
        .map(|query| query.replace("$__rate_interval", "6s"))
        .collect();
    ensure!(queries.len() >= 5, "{queries:?}");
    let prometheus = Prometheus::start(fleet.site(0)?.place(), fleet.metrics("app1"), "/metrics").await?;
    let peer = fleet.app.addresses().first().context("a worker")?.to_string();
    let mut state = State::Up;
    for query in queries {
        let shown = wait::until(&query, PATIENCE, async || {
            state = if state == State::Up { State::Draining } else { State::Up };
            fleet.mark(&peer, state).await.ok()?;
            let series = prometheus.query(&query).await.ok()?;
            let value = series.first()?.pointer("/value/1")?.as_str()?.parse::<f64>().ok()?;
            (!value.is_nan()).then_some(())
        });
        shown.await?;
    }
    let edges = prometheus.query("handoff_store_edges").await?;
    let edges = edges.first().and_then(|edges| edges.pointer("/value/1")?.as_str()).context("edges")?;
    assert_eq!(edges, EDGES.len().to_string());
    Ok(())
}
