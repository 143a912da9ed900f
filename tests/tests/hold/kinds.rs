//! Whatever nginx passes, and to whatever kind of peer.

use crate::{
    basics::all_are,
    stage::{Stage, Visit},
};
use anyhow::{Context, Result, ensure};
use e2e::{
    farm::Farm,
    parrot::{fastcgi, parrot},
    ports,
    site::{PATIENCE, Site, VERSIONS},
    wait,
};
use handoff_wire::{UpstreamView, path};
use hyper::Method;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test]
async fn over_tls_with_sessions_and_with_connections_kept() -> Result<()> {
    for version in VERSIONS {
        let farm = Farm::with_tls(1).await?;
        let peer = farm.peers()[0].to_owned();
        let site = Site::new(version).await?.workers(1);
        site.write(&format!(
            "upstream app {{ zone app 256k; server {peer}; keepalive 4; handoff; }}\n{}\n{}",
            site.front("proxy_pass https://app;"),
            site.api("write=on")
        ))?;
        let stage = Stage::with(site, farm).await?;
        for round in 0..3 {
            stage.goes().await?;
            let visits: Vec<_> = (0..6).map(|_| stage.get("/")).collect();
            let post = stage.visit(Method::POST, "/", "body");
            stage.holds(7).await?;
            stage.comes_back().await?;
            all_are(200, visits).await?;
            all_are(200, vec![post]).await?;
            let resumed = stage.farm.arrivals().await?.iter().filter(|arrival| arrival.resumed).count();
            assert!(round == 0 || resumed > 0, "no session was used again");
            all_are(200, (0..4).map(|_| stage.get("/")).collect()).await?;
            stage.farm.arrivals().await?;
        }
        stage.end().await?;
    }
    Ok(())
}

#[tokio::test]
async fn websockets_and_what_else_is_upgraded() -> Result<()> {
    let locations = "location /socket { proxy_set_header Upgrade $http_upgrade;
        proxy_set_header Connection upgrade; proxy_pass http://app; }";
    for version in VERSIONS {
        let backend = e2e::backend::Backend::start(1).await?;
        let site = Site::new(version).await?;
        site.write(&format!(
            "proxy_http_version 1.1; upstream app {{ zone app 256k; {} handoff; }}\n\
             server {{ listen 127.0.0.1:{}; {locations} }}\n{}",
            backend.servers(),
            site.port(),
            site.api("write=on")
        ))?;
        let stage = Stage::with(site, Farm::start(0).await?).await?;
        let peer = backend.peer(0);
        stage.says("draining", "back", &[&peer]).await?;
        let mut socket = stage.door().open().await?;
        let upgrade = "GET /socket HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
        socket.write_all(upgrade.as_bytes()).await?;
        stage.holds(1).await?;
        stage.says("up", "", &[&peer]).await?;
        let mut answer = String::new();
        while !answer.ends_with("\r\n\r\n") {
            answer.push(char::from(socket.read_u8().await?));
        }
        assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
        socket.write_all(b"hello").await?;
        let mut echo = [0; 5];
        socket.read_exact(&mut echo).await?;
        assert_eq!(&echo, b"hello");
        drop(socket);
        stage.site.has_in_flight(&peer, 0).await?;
        stage.end().await?;
    }
    Ok(())
}

#[tokio::test]
async fn whatever_the_protocol_of_the_peer() -> Result<()> {
    for version in VERSIONS {
        let http = |answer: &str| answer.as_bytes().to_vec();
        let cases = [
            ("proxy_pass http://app0", http("HTTP/1.1 200 OK\r\n\r\n")),
            ("fastcgi_pass app1", fastcgi("Content-Type: text/plain\r\n\r\n")),
            ("uwsgi_pass app2", http("HTTP/1.1 200 OK\r\n\r\n")),
            ("scgi_pass app3", http("Status: 200 OK\r\n\r\n")),
            ("set $memcached_key a; memcached_pass app4", http("VALUE a 0 2\r\nok\r\nEND\r\n")),
            ("grpc_pass grpc://app5", Vec::new()),
        ];
        let site = Site::new(version).await?;
        let first = ports::row(8)?;
        let (mut upstreams, mut locations) = (String::new(), String::new());
        let mut peers = Vec::new();
        for (number, (pass, answer)) in (0..).zip(&cases) {
            let address = ports::address(first + number);
            if !answer.is_empty() {
                parrot(address, answer.clone()).await?;
            }
            upstreams +=
                &format!("upstream app{number} {{ zone app{number} 64k; server {address}; handoff; }}\n");
            locations += &format!("location = /{number} {{ {pass}; }}\n");
            peers.push(address.to_string());
        }
        // gRPC's peer is this nginx itself.
        let grpc = peers.last().context("a peer")?;
        site.write(&format!(
            "{upstreams}server {{ listen 127.0.0.1:{}; {locations} }}\n\
             server {{ listen {grpc} http2; location / {{ return 200; }} }}\n{}",
            site.port(),
            site.api("write=on")
        ))?;
        let stage = Stage::with(site, Farm::start(0).await?).await?;
        let names: Vec<&str> = peers.iter().map(String::as_str).collect();
        stage.says("draining", "back", &names).await?;
        let visits: Vec<Visit> = (0..cases.len()).map(|number| stage.get(&format!("/{number}"))).collect();
        for number in 0..cases.len() {
            let name = path::upstream(&format!("app{number}"));
            wait::until(&format!("one to wait for {name}"), PATIENCE, async || {
                let view: UpstreamView = stage.site.read(&name).await.ok()?;
                (view.queue?.held == 1).then_some(())
            })
            .await?;
        }
        stage.says("up", "", &names).await?;
        for (visit, (pass, _)) in visits.into_iter().zip(&cases) {
            let reply = visit.await?.context(*pass)?;
            ensure!(reply.status == 200, "{pass}: {reply:?}");
        }
        stage.site.end().await?;
    }
    Ok(())
}

#[tokio::test]
async fn parts_of_a_request_wait_too() -> Result<()> {
    let locations = "location /guarded/ { auth_request /guard; proxy_pass http://app/; }
        location = /guard { internal; proxy_pass_request_body off; proxy_set_header Content-Length '';
            proxy_pass http://app/guard; }
        location /page { ssi on; ssi_types text/plain; default_type text/plain;
            return 200 '<!--# include virtual=\"/part/1\" --><!--# include virtual=\"/part/2\" -->'; }";
    for version in VERSIONS {
        let stage = Stage::single(version, "", locations).await?;
        for (path, waiting, arrive) in [
            ("/guarded/x", 1, &["/guard", "/x"][..]),
            // SSI asks for both at once, in whatever order nginx likes.
            ("/page", 2, &["/part/1", "/part/2"]),
        ] {
            stage.goes().await?;
            let visit = stage.get(path);
            stage.holds(waiting).await?;
            stage.comes_back().await?;
            all_are(200, vec![visit]).await?;
            let mut arrived: Vec<_> = stage.farm.arrivals().await?.into_iter().map(|at| at.path).collect();
            arrived.sort();
            assert_eq!(arrived, arrive);
        }
        stage.end().await?;
    }
    Ok(())
}

/// A mirror's answer interests nobody, but nginx begins with its client's next request only when it has it.
#[tokio::test]
async fn a_mirror_keeps_nobody_waiting() -> Result<()> {
    for version in VERSIONS {
        let farm = Farm::start(2).await?;
        let [one, other] = farm.peers()[..] else { panic!("two peers") };
        let (one, other) = (one.to_owned(), other.to_owned());
        let site = Site::new(version).await?.workers(1);
        site.write(&format!(
            "upstream app {{ zone app 256k; server {one}; handoff; }}\n\
             upstream shadow {{ zone shadow 256k; server {other}; handoff; }}\n\
             server {{ listen 127.0.0.1:{}; location / {{ mirror /mirror; proxy_pass http://app; }}\n\
             location = /mirror {{ internal; proxy_pass http://shadow$request_uri; }} }}\n{}",
            site.port(),
            site.api("write=on")
        ))?;
        let stage = Stage::with(site, farm).await?;
        stage.says("draining", "back", &[&other]).await?;
        let two = "GET /1 HTTP/1.1\r\nHost: x\r\n\r\nGET /2 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        let text = stage.door().raw(two).await?;
        assert_eq!(text.matches("HTTP/1.1 200 OK").count(), 2, "{text}");
        // The main request of a mirror waits like any other.
        stage.says("up", "", &[&other]).await?;
        stage.says("draining", "back", &[&one]).await?;
        let visit = stage.get("/3");
        stage.holds(1).await?;
        stage.says("up", "", &[&one]).await?;
        all_are(200, vec![visit]).await?;
        let arrived = stage.farm.arrivals().await?;
        let at_shadow: Vec<_> =
            arrived.iter().filter(|arrival| arrival.peer == other).map(|arrival| &arrival.path).collect();
        assert_eq!(at_shadow, ["/3"]);
        stage.end().await?;
    }
    Ok(())
}

#[tokio::test]
async fn who_has_an_old_answer_need_not_wait() -> Result<()> {
    for version in VERSIONS {
        let backend = e2e::backend::Backend::start(1).await?;
        let site = Site::new(version).await?;
        let cache = site.file("cache");
        let location = |name: &str, more: &str| {
            format!(
                "location /{name} {{ proxy_cache all; proxy_cache_key {name}; proxy_ignore_headers Cache-Control;
                 proxy_cache_valid 200 1s; add_header X-Cache $upstream_cache_status; {more}
                 proxy_pass http://app/; }}\n"
            )
        };
        let locations = location("plain", "")
            + &location("stale", "proxy_cache_use_stale error;")
            + &location("behind", "proxy_cache_use_stale updating; proxy_cache_background_update on;")
            + &location("locked", "proxy_cache_lock on;");
        site.write(&format!(
            "proxy_cache_path {} keys_zone=all:1m;\n\
             upstream app {{ zone app 256k; {} handoff; }}\nserver {{ listen 127.0.0.1:{}; {locations} }}\n{}",
            cache.display(),
            backend.servers(),
            site.port(),
            site.api("write=on")
        ))?;
        let stage = Stage::with(site, Farm::start(0).await?).await?;
        let peer = backend.peer(0);
        let paths = ["/plain", "/stale", "/behind"];
        for path in paths {
            all_are(200, vec![stage.get(path)]).await?;
        }
        tokio::time::sleep(std::time::Duration::from_millis(2100)).await;
        stage.says("draining", "back", &[&peer]).await?;
        for path in ["/stale", "/behind"] {
            let reply = stage.get(path).await??;
            assert_eq!((reply.status, reply.header("x-cache")), (200, Some("STALE")), "{path}");
        }
        assert_eq!(stage.counts().await?, (0, [0; 5]));
        // No old answer may be given, or there is none: it waits, and so do those who wait for its answer.
        let mut waiting = vec![stage.get("/plain")];
        stage.holds(1).await?;
        waiting.push(stage.get("/locked"));
        stage.holds(2).await?;
        waiting.push(stage.get("/locked"));
        // Whoever leaves is forgotten, though nginx would like to have the answer for its cache.
        let mut leaving = stage.door().open().await?;
        leaving.write_all(b"GET /plain HTTP/1.1\r\nHost: x\r\n\r\n").await?;
        stage.holds(3).await?;
        drop(leaving);
        stage.holds(2).await?;
        stage.says("up", "", &[&peer]).await?;
        all_are(200, waiting).await?;
        assert_eq!(stage.get("/plain").await??.header("x-cache"), Some("HIT"));
        assert_eq!(stage.counts().await?.0, 0);
        stage.end().await?;
    }
    Ok(())
}

/// A person who marks a peer may say that it comes back, and then there is no lease that could end the wait.
#[tokio::test]
async fn a_person_can_let_them_wait() -> Result<()> {
    for version in VERSIONS {
        let stage = Stage::new(version, 1, "", "").await?;
        let mark = json!({ "peer": stage.peer(), "state": "draining", "expect": "back" });
        stage.site.put(json!({ "owner": "operator", "force": true, "marks": [mark] })).await?;
        let visit = stage.get("/");
        stage.holds(1).await?;
        tokio::time::sleep(std::time::Duration::from_millis(3500)).await;
        stage.holds(1).await?;
        stage.says_as("operator", "up", "gone").await?;
        all_are(200, vec![visit]).await?;
        stage.end().await?;
    }
    Ok(())
}
