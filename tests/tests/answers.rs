//! What a peer answers is counted by class, once for each attempt, whatever becomes of it afterwards.

use anyhow::{Context, Result, bail, ensure};
use e2e::{
    backend::Backend,
    parrot::{fastcgi, parrot},
    ports,
    site::{PATIENCE, Site, VERSIONS},
    wait,
};
use handoff_wire::{PeerView, Responses, UpstreamView, path};
use hyper::Method;
use std::{net::SocketAddr, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    spawn,
    time::sleep,
};

const NONE: Responses =
    Responses { informational: 0, success: 0, redirection: 0, client_error: 0, server_error: 0 };
const SUCCESS: Responses = Responses { success: 1, ..NONE };
const REDIRECTION: Responses = Responses { redirection: 1, ..NONE };
const CLIENT_ERROR: Responses = Responses { client_error: 1, ..NONE };
const SERVER_ERROR: Responses = Responses { server_error: 1, ..NONE };

/// The peers of an upstream, once every attempt on them has ended: only then it is counted.
async fn peers(site: &Site, upstream: &str) -> Result<Vec<PeerView>> {
    wait::until("every attempt to end", PATIENCE, async || {
        let peers = site.read::<UpstreamView>(&path::upstream(upstream)).await.ok()?.peers;
        peers.iter().all(|peer| peer.in_flight == 0).then_some(peers)
    })
    .await
}

async fn responses(site: &Site) -> Result<Vec<Responses>> {
    Ok(peers(site, "app").await?.iter().map(|peer| peer.responses).collect())
}

/// What two peers gave together.
async fn sum(site: &Site) -> Result<Responses> {
    let [a, b] = responses(site).await?[..] else { bail!("not two peers") };
    Ok(Responses {
        informational: a.informational + b.informational,
        success: a.success + b.success,
        redirection: a.redirection + b.redirection,
        client_error: a.client_error + b.client_error,
        server_error: a.server_error + b.server_error,
    })
}

async fn cut(site: &Site, upstream: &str) -> Result<u64> {
    Ok(peers(site, upstream).await?.iter().map(|peer| peer.cut).sum())
}

/// A site with an upstream `app`, whose peers are tried whatever they answered before, and these locations.
async fn site(version: &str, backend: &Backend, locations: &str) -> Result<Site> {
    let mut site = Site::new(version).await?;
    site.write(&format!(
        "proxy_cache_path {} keys_zone=all:1m;\nproxy_http_version 1.1; proxy_set_header Connection \"\";\n\
         upstream app {{ zone app 256k; {} keepalive 8; handoff; }}\n\
         server {{ listen 127.0.0.1:{}; {locations} }}\n{}",
        site.file("cache").display(),
        backend.servers().replace(';', " max_fails=0;"),
        site.port(),
        site.api("")
    ))?;
    site.start().await?;
    Ok(site)
}

#[tokio::test]
async fn every_answer_counts_in_its_class_and_a_reload_forgets_none() -> Result<()> {
    let backend = Backend::start(2).await?;
    for version in VERSIONS {
        let site = Site::with(version, &backend).await?;
        for status in [200, 204, 206, 301, 304, 400, 404, 404, 429, 500, 503, 599] {
            for method in [Method::GET, Method::HEAD, Method::POST] {
                let reply = site.visitors().ask(method, &format!("/status/{status}"), "").await?;
                assert_eq!(reply.status, status);
            }
        }
        let counted = Responses {
            success: 9,
            redirection: 6,
            client_error: 12,
            server_error: 9,
            ..Responses::default()
        };
        assert_eq!(sum(&site).await?, counted);
        let views = peers(&site, "app").await?;
        let attempts = |peer: &PeerView| (peer.requests, peer.responses.total());
        assert_eq!(views.iter().map(attempts).collect::<Vec<_>>(), [(18, 18), (18, 18)]);

        site.reload().await?;
        assert_eq!(sum(&site).await?, counted);
        site.visitors().get("/status/200").await?;
        assert_eq!(sum(&site).await?, Responses { success: 10, ..counted });
        site.end().await?;
    }
    Ok(())
}

#[tokio::test]
async fn each_attempt_of_a_request_counts_where_its_answer_came_from() -> Result<()> {
    let backend = Backend::start(2).await?;
    let first = backend.addresses().next().context("a peer")?.port();
    let locations = "location / { proxy_next_upstream error http_502 http_404; proxy_pass http://app; }";
    for version in VERSIONS {
        let site = site(version, &backend, locations).await?;
        let both = Responses { client_error: 1, ..SERVER_ERROR };
        for (status, counted) in [(502, SERVER_ERROR), (404, both)] {
            let reply = site.visitors().get(&format!("/status/{status}")).await?;
            assert_eq!(reply.status, status);
            assert_eq!(responses(&site).await?, [counted, counted]);
        }
        wait::until("a request to meet the peer that hangs up", PATIENCE, async || {
            let reply = site.visitors().get(&format!("/hangup/{first}")).await.ok()?;
            assert_eq!(reply.status, 200);
            // The other failure is the 502.
            (peers(&site, "app").await.ok()?.first()?.fails == 2).then_some(())
        })
        .await?;
        let after = responses(&site).await?;
        assert_eq!(after[0], both, "it answered nothing");
        assert!(after[1].success > 0, "{after:?}");
        assert_eq!(cut(&site, "app").await?, 0, "what broke off was answered by the other one");
        site.end().await?;
    }
    Ok(())
}

#[tokio::test]
async fn an_answer_counts_when_its_attempt_ends_and_not_without_its_header() -> Result<()> {
    let backend = Backend::start(2).await?;
    let locations = "
        location / { proxy_pass http://app; }
        location /hasty/ { proxy_read_timeout 200ms; proxy_next_upstream off; proxy_pass http://app/; }
        location /unbuffered/ { proxy_buffering off; proxy_pass http://app/; }
        location /socket { proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade;
            proxy_pass http://app; }";
    for version in VERSIONS {
        let site = site(version, &backend, locations).await?;
        // nginx gives up, or the visitor does.
        assert_eq!(site.visitors().get("/hasty/hold").await?.status, 504);
        backend.holds(0).await?;
        let mut visitor = site.visitors().open().await?;
        visitor.write_all(b"GET /hold HTTP/1.0\r\n\r\n").await?;
        backend.holds(1).await?;
        drop(visitor);
        backend.holds(0).await?;
        assert_eq!(sum(&site).await?, NONE);

        // The visitor goes in the middle of an answer.
        let mut visitor = site.visitors().open().await?;
        visitor.write_all(b"GET /unbuffered/stream HTTP/1.0\r\n\r\n").await?;
        until(&mut visitor, "first\n").await?;
        drop(visitor);
        assert_eq!(sum(&site).await?, SUCCESS);

        let mut socket = site.visitors().open().await?;
        let upgrade = b"GET /socket HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
        socket.write_all(upgrade).await?;
        until(&mut socket, "\r\n\r\n").await?;
        let open = site.app().await?;
        assert_eq!(open.iter().map(|peer| peer.in_flight).sum::<u64>(), 1);
        assert_eq!(open.iter().map(|peer| peer.responses.informational).sum::<u64>(), 0);
        drop(socket);
        assert_eq!(sum(&site).await?, Responses { informational: 1, ..SUCCESS });
        // None of it was the peer's doing.
        assert_eq!(cut(&site, "app").await?, 0);
        site.end().await?;
    }
    Ok(())
}

async fn until(stream: &mut (impl AsyncReadExt + Unpin), end: &str) -> Result<()> {
    let mut got = String::new();
    while !got.ends_with(end) {
        got.push(char::from(stream.read_u8().await.with_context(|| got.clone())?));
    }
    Ok(())
}

#[tokio::test]
async fn what_the_cache_answers_is_no_answer_of_a_peer() -> Result<()> {
    let backend = Backend::start(2).await?;
    let locations = "location / {
        proxy_cache all; proxy_cache_key all; proxy_cache_valid 200 1s; proxy_cache_use_stale http_500;
        proxy_next_upstream off; proxy_pass http://app; }";
    for version in VERSIONS {
        let site = site(version, &backend, locations).await?;
        assert_eq!(site.visitors().get("/status/200").await?.status, 200);
        for _ in 0..5 {
            assert_eq!(site.visitors().get("/status/200").await?.status, 200);
        }
        let counted = sum(&site).await?;
        assert!(counted.total() < 6, "the cache answered none: {counted:?}");
        // When the cache's copy is old, the peer is asked, fails, and the copy is sent all the same.
        wait::until("an error behind an old answer", PATIENCE, async || {
            assert_eq!(site.visitors().get("/status/500").await.ok()?.status, 200);
            (sum(&site).await.ok()?.server_error > 0).then_some(())
        })
        .await?;
        assert_eq!(sum(&site).await?.success, counted.success);
        site.end().await?;
    }
    Ok(())
}

/// How a location passes a request, what it is answered, how the visitor's answer begins, and what is counted.
type Case = (&'static str, Vec<u8>, &'static str, Responses);

fn cases() -> Vec<Case> {
    let proxy = "proxy_pass http://$peer";
    let http = |answer: &str| answer.as_bytes().to_vec();
    vec![
        (proxy, http("HTTP/1.1 304 Not Modified\r\n\r\n"), "HTTP/1.1 304 ", REDIRECTION),
        // The body ends early: what was said stands.
        (proxy, http("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok"), "HTTP/1.1 200 ", SUCCESS),
        // nginx takes it for HTTP/0.9, which knows no errors.
        (proxy, http("what?\r\n"), "what?", SUCCESS),
        // No header, half a header, and one that nginx does not take.
        (proxy, http(""), "HTTP/1.1 502 ", NONE),
        (proxy, http("HTTP/1.1 200 OK\r\nContent-Le"), "HTTP/1.1 502 ", NONE),
        (proxy, http("HTTP/1.1 200 OK\r\nA\0: b\r\n\r\n"), "HTTP/1.1 502 ", NONE),
        (proxy, http("HTTP/1.1 700 Odd\r\n\r\n"), "HTTP/1.1 700 ", NONE),
        // The visitor gets another answer than the one that came.
        (proxy, http("HTTP/1.1 200 OK\r\nX-Accel-Redirect: /gone\r\n\r\n"), "HTTP/1.1 410 ", SUCCESS),
        (
            "proxy_intercept_errors on; error_page 500 =410 /gone; proxy_pass http://$peer",
            http("HTTP/1.1 500 Oh\r\n\r\n"),
            "HTTP/1.1 410 ",
            SERVER_ERROR,
        ),
        ("scgi_pass $peer", http("Status: 404 Not Found\r\n\r\n"), "HTTP/1.1 404 ", CLIENT_ERROR),
        ("uwsgi_pass $peer", http("HTTP/1.1 503 Busy\r\n\r\n"), "HTTP/1.1 503 ", SERVER_ERROR),
        ("fastcgi_pass $peer", fastcgi("Status: 500 Oh\r\n\r\n"), "HTTP/1.1 500 ", SERVER_ERROR),
        ("fastcgi_pass $peer", fastcgi("Content-Type: text/plain\r\n\r\n"), "HTTP/1.1 200 ", SUCCESS),
        ("set $memcached_key a; memcached_pass $peer", http("END\r\n"), "HTTP/1.1 404 ", CLIENT_ERROR),
    ]
}

#[tokio::test]
async fn whatever_the_protocol_the_answer_counts_as_nginx_read_it() -> Result<()> {
    for version in VERSIONS {
        let mut site = Site::new(version).await?;
        let cases = cases();
        let first = ports::row(u16::try_from(cases.len())?)?;
        let (mut upstreams, mut locations) = (String::new(), String::new());
        for (number, (pass, answer, ..)) in cases.iter().enumerate() {
            let address = ports::address(first + u16::try_from(number)?);
            parrot(address, answer.clone()).await?;
            let pass = pass.replace("$peer", &format!("app{number}"));
            upstreams +=
                &format!("upstream app{number} {{ zone app{number} 64k; server {address}; handoff; }}\n");
            locations += &format!("location = /{number} {{ {pass}; }}\n");
        }
        // Its peer is this nginx itself.
        let grpc = ports::address(site.port() + 1);
        upstreams += &format!("upstream grpc {{ zone grpc 64k; server {grpc}; handoff; }}\n");
        locations += "location = /grpc { grpc_pass grpc://grpc; }\n";
        site.write(&format!(
            "{upstreams}server {{ listen 127.0.0.1:{}; {locations} location = /gone {{ return 410; }} }}\n\
             server {{ listen {grpc} http2; location / {{ return 503; }} }}\n{}",
            site.port(),
            site.api("")
        ))?;
        site.start().await?;
        for (number, (pass, _, begins, counted)) in cases.into_iter().enumerate() {
            counts(&site, &number.to_string(), &format!("app{number}"), begins, counted)
                .await
                .with_context(|| format!("{number}: {pass}"))?;
        }
        counts(&site, "grpc", "grpc", "HTTP/1.1 503 ", SERVER_ERROR).await?;
        site.end().await?;
    }
    Ok(())
}

async fn counts(site: &Site, path: &str, upstream: &str, begins: &str, counted: Responses) -> Result<()> {
    let answer = site.visitors().raw(format!("GET /{path} HTTP/1.0\r\n\r\n")).await?;
    ensure!(answer.starts_with(begins), "{answer:?} does not begin with {begins:?}");
    let peers = peers(site, upstream).await?;
    let seen: Vec<_> = peers.iter().map(|peer| (peer.requests, peer.responses)).collect();
    ensure!(seen == [(1, counted)], "{seen:?} instead of {counted:?}");
    Ok(())
}

/// How a peer ends its answer.
#[derive(Clone, Copy, PartialEq)]
enum Ends {
    Orderly,
    /// After what it sent has come.
    Reset,
}

#[tokio::test]
async fn a_request_is_cut_when_its_peer_ends_before_the_answer_does() -> Result<()> {
    const SIZED: &str = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n";
    const CHUNKED: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    const CLOSED: &str = "HTTP/1.1 200 OK\r\n\r\n";
    const SWITCHED: &str =
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
    let cases = [
        (SIZED, "ab", Ends::Orderly, 1),
        (SIZED, "ab", Ends::Reset, 1),
        (SIZED, "abcd", Ends::Orderly, 0),
        (SIZED, "abcd", Ends::Reset, 0),
        (CHUNKED, "", Ends::Orderly, 1),
        (CHUNKED, "2\r\nab\r\n", Ends::Orderly, 1),
        (CHUNKED, "2\r\nab\r\n", Ends::Reset, 1),
        (CHUNKED, "2\r\nab\r\n0\r\n\r\n", Ends::Orderly, 0),
        (CLOSED, "ab", Ends::Orderly, 0),
        (CLOSED, "ab", Ends::Reset, 1),
        ("HTTP/1.1 204 No Content\r\n\r\n", "", Ends::Orderly, 0),
        // Nothing of it came, or not all of its header.
        ("", "", Ends::Orderly, 1),
        ("", "", Ends::Reset, 1),
        ("HTTP/1.1 200 OK\r\nContent-Le", "", Ends::Orderly, 1),
        // A WebSocket may be closed by either end.
        (SWITCHED, "", Ends::Orderly, 0),
    ];
    for version in VERSIONS {
        let mut site = Site::new(version).await?;
        let first = ports::row(u16::try_from(cases.len())?)?;
        let (mut upstreams, mut locations) = (String::new(), String::new());
        for (number, (header, body, ends, _)) in cases.into_iter().enumerate() {
            let address = ports::address(first + u16::try_from(number)?);
            peer_that_ends(address, [header, body].concat().into(), ends).await?;
            upstreams +=
                &format!("upstream app{number} {{ zone app{number} 64k; server {address}; handoff; }}\n");
            for (path, buffering) in [("kept", "on"), ("passed", "off")] {
                locations += &format!(
                    "location = /{path}/{number} {{ proxy_buffering {buffering}; proxy_pass http://app{number}; }}\n"
                );
            }
        }
        site.write(&format!(
            "proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade;\n\
             {upstreams}server {{ listen 127.0.0.1:{}; {locations} }}\n{}",
            site.port(),
            site.api("")
        ))?;
        site.start().await?;
        for (number, (header, body, _, wanted)) in cases.into_iter().enumerate() {
            let upstream = format!("app{number}");
            for (before, path) in ["kept", "passed"].into_iter().enumerate() {
                let request = format!("GET /{path}/{number} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n");
                let request = match header {
                    SWITCHED => format!("{request}Upgrade: websocket\r\n\r\n"),
                    _ => format!("{request}\r\n"),
                };
                let answer = site.visitors().raw(request).await?;
                let (before, after) = (before as u64 * wanted, cut(&site, &upstream).await?);
                ensure!(
                    after == before + wanted,
                    "{path} {header:?} {body:?}: {after} cut instead of {} ({answer:?})",
                    before + wanted
                );
            }
        }
        site.end().await?;
    }
    Ok(())
}

async fn peer_that_ends(address: SocketAddr, answer: Vec<u8>, ends: Ends) -> Result<()> {
    let listener = TcpListener::bind(address).await?;
    spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            _ = stream.read(&mut [0; 4096]).await;
            _ = stream.write_all(&answer).await;
            if ends == Ends::Reset {
                sleep(Duration::from_millis(100)).await;
                _ = stream.set_zero_linger();
            }
        }
    });
    Ok(())
}
