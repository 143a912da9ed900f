//! An answer that the configuration takes for a failure, where nginx has nobody else to ask.

use crate::stage::{Ask, Outcome, Stage};
use anyhow::{Result, ensure};
use e2e::{
    clock::Moment,
    farm::Farm,
    parrot::{fastcgi, parrot},
    ports,
    site::{Site, VERSIONS},
};
use std::time::Duration;
use tokio::time::sleep;

const LOCATIONS: &str = "
    location /moment { proxy_next_upstream_timeout 900ms; proxy_pass http://app; }
    location /long { proxy_next_upstream_timeout 5s; proxy_pass http://app; }
    location /one { proxy_next_upstream_tries 1; proxy_pass http://app; }
    location /500 { proxy_next_upstream http_500 http_404 http_503; proxy_pass http://app; }";

#[tokio::test]
async fn another_worker_may_answer_better() -> Result<()> {
    for version in VERSIONS {
        let stage = Stage::new(version, 1, "", LOCATIONS).await?;
        for status in ["502", "503", "504", "429"] {
            let passed = Outcome::answered(status.parse()?, 1, "same");
            stage.meets("nobody else", Ask::get("").refused(status, "1"), passed).await?;
        }
        stage.are_shared().await?;
        for status in ["502", "503", "504", "429"] {
            let ask = Ask::get("").refused(status, "1");
            stage.meets("another one", ask.clone(), Outcome::answered(200, 2, "replaced")).await?;
            let order = Ask::post("").refused(status, "1");
            stage.meets("an order", order, Outcome::answered(status.parse()?, 1, "sent")).await?;
        }
        // That may be meant.
        for status in ["500", "404"] {
            let passed = Outcome::answered(status.parse()?, 1, "-");
            stage.meets("an answer", Ask::get("/500").refused(status, "1"), passed).await?;
        }
        stage.end().await?;
    }
    Ok(())
}

/// The worker says so as it goes; another one is expected.
#[tokio::test]
async fn who_is_told_503_by_one_that_goes_waits_for_the_next() -> Result<()> {
    for version in VERSIONS {
        let stage = Stage::new(version, 1, "", "").await?;
        let peer = stage.peer();
        let visit = stage.begin(Ask::get("").held().refused("503", "1"))?;
        let order = stage.begin(Ask::post("").held().refused("503", "1"))?;
        stage.farm.holds_so_many(2).await?;
        stage.says("draining", &[&peer]).await?;
        stage.farm.release().await?;
        stage.rest(1).await?;
        ensure!(stage.end_of(order).await? == Outcome::answered(503, 1, "sent"));
        stage.says("up", &[&peer]).await?;
        stage.farm.holds_so_many(1).await?;
        stage.farm.release().await?;
        ensure!(stage.end_of(visit).await? == Outcome::answered(200, 2, "held"));
        stage.end().await?;
    }
    Ok(())
}

#[tokio::test]
async fn who_is_told_to_come_again_soon_comes_then() -> Result<()> {
    for version in VERSIONS {
        let stage = Stage::new(version, 1, "keepalive 4;", LOCATIONS).await?;
        for (later, location, waits) in [("0", "", 0), ("1", "", 1000), ("1", "/long", 1000)] {
            let began = Moment::now();
            let ask = Ask::get(location).refused("503", "1").later(later);
            stage.meets("soon", ask, Outcome::answered(200, 2, "retry_after")).await?;
            let took = Moment::now().since(began);
            ensure!(took >= Duration::from_millis(waits), "it came after {took:?}");
        }
        for (what, ask) in [
            ("later", Ask::get("").later("3")),
            ("a date", Ask::get("").later("Wed, 21 Oct 2015 07:28:00 GMT")),
            ("nonsense", Ask::get("").later("soon")),
            ("past the time for tries", Ask::get("/moment").later("1")),
        ] {
            let passed = Outcome::answered(429, 1, "later");
            stage.meets(what, ask.refused("429", "1"), passed).await?;
        }
        let one = Ask::get("/one").refused("503", "1").later("0");
        stage.meets("one try", one, Outcome::answered(503, 1, "tries")).await?;
        let order = Ask::post("").refused("503", "1").later("0");
        stage.meets("an order", order, Outcome::answered(503, 1, "sent")).await?;
        let again = Ask::get("").refused("503", "9").later("0");
        stage.meets("once", again, Outcome::answered(503, 2, "tries")).await?;
        stage.end().await?;
    }
    Ok(())
}

#[tokio::test]
async fn where_nobody_waits_nobody_comes_again() -> Result<()> {
    for version in VERSIONS {
        let stage = Stage::new(version, 1, "handoff_queue off;", "").await?;
        let ask = Ask::get("").refused("503", "1").later("0");
        stage.meets("no room", ask, Outcome::answered(503, 1, "same")).await?;
        stage.meets("no room", Ask::get("").dies("1"), Outcome::failed(502, 1, "same")).await?;
        stage.end().await?;
    }
    Ok(())
}

/// The peer's own answer comes through in the end.
#[tokio::test]
async fn whatever_the_protocol_of_the_peer() -> Result<()> {
    let cases = [
        ("proxy", "", b"HTTP/1.1 503 No\r\nX-Peer: p\r\nContent-Length: 0\r\n\r\n".to_vec()),
        ("fastcgi", "", fastcgi("Status: 503 No\r\nX-Peer: p\r\nContent-Type: text/plain\r\n\r\n")),
        ("uwsgi", "", b"HTTP/1.1 503 No\r\nX-Peer: p\r\nContent-Length: 0\r\n\r\n".to_vec()),
        ("scgi", "", b"Status: 503 No\r\nX-Peer: p\r\nContent-Length: 0\r\n\r\n".to_vec()),
        ("grpc", "grpc://", Vec::new()),
    ];
    for version in VERSIONS {
        for (protocol, scheme, answer) in &cases {
            let site = Site::new(version).await?.workers(1);
            let farm = Farm::at(Vec::new()).await?;
            let peer = ports::address(ports::row(3)? + 2);
            let scheme = if *protocol == "proxy" { "http://" } else { scheme };
            let lines = format!("server {peer};");
            let grpc = format!(
                "}} server {{ listen {peer} http2; location / {{ add_header X-Peer p always; return 503; }}"
            );
            if !answer.is_empty() {
                parrot(peer, answer.clone()).await?;
            }
            let locations = format!(
                "location /it {{ {protocol}_next_upstream error http_503; {protocol}_pass {scheme}app; }} {}",
                if answer.is_empty() { &grpc } else { "" }
            );
            let stage = Stage::of(site, farm, &lines, &locations).await?;
            let peer = peer.to_string();
            let met = stage.end_of(stage.begin(Ask::get("/it"))?).await?;
            ensure!(
                met == Outcome { arrived: 0, ..Outcome::answered(503, 1, "same") },
                "{protocol}: {met:?}"
            );
            stage.says("changing", &[&peer]).await?;
            let met = stage.end_of(stage.begin(Ask::get("/it"))?).await?;
            ensure!(
                met == Outcome { arrived: 0, ..Outcome::answered(503, 2, "tries") },
                "{protocol}: {met:?}"
            );
            stage.end().await?;
        }
    }
    Ok(())
}

/// What nginx reads from its cache goes the same way, and is no answer of a peer.
#[tokio::test]
async fn an_old_answer_is_given_where_nobody_has_a_better_one() -> Result<()> {
    for version in VERSIONS {
        let site = Site::new(version).await?.workers(1);
        let cache = format!(
            "location /kept {{ proxy_cache kept; proxy_cache_key all; proxy_cache_valid 200 1s; proxy_cache_use_stale http_503;
             add_header X-Cache $upstream_cache_status; proxy_pass http://app; }} }}
             proxy_cache_path {} keys_zone=kept:1m; server {{",
            site.file("cache").display()
        );
        let stage = Stage::of(site, Farm::start(1).await?, "", &cache).await?;
        stage.meets("it is kept", Ask::get("/kept"), Outcome::answered(200, 1, "-")).await?;
        sleep(Duration::from_millis(2100)).await;
        let refused = || Ask::get("/kept").refused("503", "1");
        let met = stage.end_of(stage.begin(refused())?).await?;
        ensure!(met == Outcome::answered(200, 1, "same"), "{met:?}");
        stage.are_shared().await?;
        let met = stage.end_of(stage.begin(refused())?).await?;
        ensure!(met == Outcome::answered(200, 2, "replaced"), "{met:?}");
        stage.end().await?;
    }
    Ok(())
}
