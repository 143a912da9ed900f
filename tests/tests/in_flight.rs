//! What nginx has with a peer is counted exactly: never too little, never too much, and nothing is left over.

use anyhow::{Context, Result, ensure};
use e2e::{
    backend::Backend,
    door::{Reply, Stream},
    process,
    site::{PATIENCE, Say, Site, VERSIONS},
    wait,
};
use handoff_wire::{Drained, State, path};
use hyper::Method;
use rustix::process::Signal;
use std::collections::BTreeMap;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    spawn,
    task::JoinHandle,
};

/// By its peers and by nginx's processes: always the same.
async fn in_flight(site: &Site) -> Result<u64> {
    let by_peer = site.app().await?.iter().map(|peer| peer.in_flight).sum();
    let by_process: u64 = by_process(site).await?.values().sum();
    ensure!(by_peer == by_process, "{by_peer} at the peers, {by_process} in the processes");
    Ok(by_peer)
}

async fn by_process(site: &Site) -> Result<BTreeMap<u32, u64>> {
    let processes = site.overview().await?.processes;
    Ok(processes.into_iter().map(|process| (process.pid, process.in_flight)).collect())
}

async fn becomes(site: &Site, wanted: u64) -> Result<()> {
    wait::until(&format!("{wanted} in flight"), PATIENCE, async || {
        (in_flight(site).await.ok()? == wanted).then_some(())
    })
    .await
    .with_context(|| site.error_log())
}

fn visit(site: &Site, method: Method, path: &str) -> JoinHandle<Result<Reply>> {
    let (visitors, path) = (site.visitors(), path.to_owned());
    spawn(async move {
        let body = if method == Method::POST { "a body" } else { "" };
        visitors.ask(method, &path, body).await
    })
}

/// A connection on which these bytes were sent, and whatever came back up to `until`.
async fn stream(site: &Site, bytes: &str, until: &str) -> Result<Box<dyn Stream>> {
    let mut stream = site.visitors().open().await?;
    stream.write_all(bytes.as_bytes()).await?;
    let mut got = String::new();
    while !got.ends_with(until) {
        got.push(char::from(stream.read_u8().await.with_context(|| got.clone())?));
    }
    Ok(stream)
}

/// A site whose locations are all the ways in which nginx can pass a request.
async fn site(version: &str, backend: &Backend) -> Result<Site> {
    let mut site = Site::new(version).await?;
    let cache = site.file("cache").display().to_string();
    let locations = "
        location / { proxy_pass http://app; }
        location /patient/ { proxy_ignore_client_abort on; proxy_pass http://app/; }
        location /unbuffered/ { proxy_request_buffering off; proxy_buffering off; proxy_pass http://app/; }
        location /hasty/ { proxy_read_timeout 200ms; proxy_next_upstream off; proxy_pass http://app/; }
        location /cached/ { proxy_cache all; proxy_pass http://app/; }
        location /mirrored/ { mirror /mirror; proxy_pass http://app/; }
        location = /mirror { internal; proxy_pass http://app/hold; }
        location /guarded/ { auth_request /guard; proxy_pass http://app/; }
        location = /guard { internal; proxy_pass_request_body off; proxy_set_header Content-Length \"\";
            proxy_pass http://app/hold; }
        location /again/ { proxy_intercept_errors on; error_page 503 = @again; proxy_pass http://app/; }
        location @again { rewrite ^ /hold break; proxy_pass http://app; }
        location /socket { proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade;
            proxy_pass http://app; }";
    site.write(&format!(
        "proxy_cache_path {cache} keys_zone=all:1m;\nproxy_http_version 1.1; proxy_set_header Connection \"\";\n\
         upstream app {{ zone app 256k; {} keepalive 8; handoff; }}\n\
         server {{ listen 127.0.0.1:{}; {locations} }}\n{}",
        backend.servers(),
        site.port(),
        site.api("write=on")
    ))?;
    site.start().await?;
    Ok(site)
}

#[tokio::test]
async fn a_request_counts_from_its_peer_being_chosen_to_its_last_byte() -> Result<()> {
    let backend = Backend::start(2).await?;
    // A request, what is in flight while it is held, and its status in the end.
    let cases = [
        (Method::GET, "/hold", 1, 200),
        (Method::POST, "/hold", 1, 200),
        (Method::HEAD, "/hold", 1, 200),
        (Method::DELETE, "/hold", 1, 200),
        (Method::GET, "/stream", 1, 200),
        (Method::GET, "/unbuffered/stream", 1, 200),
        (Method::POST, "/unbuffered/hold", 1, 200),
        (Method::GET, "/cached/hold", 1, 200),
        (Method::GET, "/mirrored/hold", 2, 200),
        // Held by the guard; what it guards is let through at once.
        (Method::GET, "/guarded/fast", 1, 200),
        (Method::GET, "/again/status/503", 1, 200),
    ];
    for version in VERSIONS {
        let site = site(version, &backend).await?;
        for (method, path, held, status) in &cases {
            let what = format!("{method} {path}");
            let visit = visit(&site, method.clone(), path);
            backend.holds(*held).await.context(what.clone())?;
            assert_eq!(in_flight(&site).await?, *held as u64, "{what}");
            backend.release().await?;
            assert_eq!(visit.await??.status, *status, "{what}");
            becomes(&site, 0).await.context(what)?;
        }
        // And all at once, many times.
        let visits: Vec<_> = (0..60).map(|_| visit(&site, Method::GET, "/hold")).collect();
        backend.holds(60).await?;
        assert_eq!(in_flight(&site).await?, 60);
        let [one, other] = &site.app().await?[..] else { panic!("two peers") };
        assert_eq!((one.in_flight, other.in_flight), (30, 30));
        backend.release().await?;
        for visit in visits {
            assert_eq!(visit.await??.status, 200);
        }
        becomes(&site, 0).await?;
        site.end().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_websocket_counts_for_as_long_as_it_is_open() -> Result<()> {
    let backend = Backend::start(2).await?;
    for version in VERSIONS {
        let site = site(version, &backend).await?;
        let mut sockets = Vec::new();
        for open in 1..=4 {
            let mut socket = stream(
                &site,
                "GET /socket HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
                "\r\n\r\n",
            )
            .await?;
            socket.write_all(b"hello").await?;
            let mut echo = [0; 5];
            socket.read_exact(&mut echo).await?;
            assert_eq!(&echo, b"hello");
            assert_eq!(in_flight(&site).await?, open);
            sockets.push(socket);
        }
        for open in (0..4).rev() {
            drop(sockets.pop());
            becomes(&site, open).await?;
        }
        site.end().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_body_that_nginx_still_collects_is_nobodys_yet() -> Result<()> {
    let backend = Backend::start(2).await?;
    for version in VERSIONS {
        let site = site(version, &backend).await?;
        for (path, collecting) in [("/hold", 0), ("/unbuffered/hold", 1)] {
            let head = format!("POST {path} HTTP/1.0\r\nContent-Length: 10\r\n\r\nhalf ");
            let mut slow = stream(&site, &head, "").await?;
            if collecting > 0 {
                backend.holds(1).await?;
            }
            // Two answers later each worker has taken what came before.
            in_flight(&site).await?;
            assert_eq!(in_flight(&site).await?, collecting, "{path}");
            slow.write_all(b"a body").await?;
            backend.holds(1).await?;
            assert_eq!(in_flight(&site).await?, 1, "{path}");
            backend.release().await?;
            let mut answer = String::new();
            slow.read_to_string(&mut answer).await?;
            assert!(answer.starts_with("HTTP/1.1 200 "), "{path}: {answer}");
            becomes(&site, 0).await?;
        }
        site.end().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_client_that_leaves_takes_its_request_along_unless_nginx_goes_on() -> Result<()> {
    let backend = Backend::start(2).await?;
    for version in VERSIONS {
        let site = site(version, &backend).await?;
        for (path, stays) in [("/hold", false), ("/unbuffered/stream", false), ("/patient/hold", true)] {
            let mut visitors = Vec::new();
            for _ in 0..10 {
                visitors.push(stream(&site, &format!("GET {path} HTTP/1.0\r\n\r\n"), "").await?);
            }
            backend.holds(10).await?;
            assert_eq!(in_flight(&site).await?, 10, "{path}");
            drop(visitors);
            if stays {
                // Each worker has seen them go by the time it has answered somebody who came later.
                for _ in 0..4 {
                    assert_eq!(in_flight(&site).await?, 10, "{path}");
                }
                backend.release().await?;
            }
            becomes(&site, 0).await.context(path)?;
            backend.holds(0).await?;
        }
        site.end().await?;
    }
    Ok(())
}

#[tokio::test]
async fn each_attempt_counts_where_it_is() -> Result<()> {
    let backend = Backend::start(2).await?;
    let first = backend.addresses().next().context("a peer")?.port();
    let peers = [backend.peer(0), backend.peer(1)];
    for version in VERSIONS {
        let site = site(version, &backend).await?;
        let of = async |peer: usize| {
            let view = site.peer(peers.get(peer).context("a peer")?).await?;
            anyhow::Ok((view.in_flight, view.requests, view.fails))
        };
        // Round robin: until a request met the first peer, which hangs up, and went on to the second.
        let path = format!("/hangup/{first}/hold");
        let visits = [visit(&site, Method::GET, &path), visit(&site, Method::GET, &path)];
        backend.holds(2).await?;
        let (in_flight_0, requests, fails) = of(0).await?;
        assert_eq!(in_flight_0, 0);
        assert!(requests > 0 && fails == requests, "{fails} of {requests} failed");
        assert_eq!(of(1).await?, (2, 2, 0));
        backend.release().await?;
        for visit in visits {
            assert_eq!(visit.await??.status, 200);
        }
        becomes(&site, 0).await?;
        site.end().await?;
    }
    Ok(())
}

#[tokio::test]
async fn an_attempt_that_fails_is_over() -> Result<()> {
    let backend = Backend::start(2).await?;
    for version in VERSIONS {
        let site = site(version, &backend).await?;
        // nginx gives up: both peers have it, nobody answers.
        for wanted in 1..=2 {
            let reply = visit(&site, Method::GET, "/hasty/hold").await??;
            assert_eq!(reply.status, 504);
            becomes(&site, 0).await?;
            let fails: u64 = site.app().await?.iter().map(|peer| peer.fails).sum();
            assert_eq!(fails, wanted);
        }
        backend.holds(0).await?;
        site.end().await?;

        // Nobody is there.
        drop_peer(version).await?;
    }
    Ok(())
}

async fn drop_peer(version: &str) -> Result<()> {
    let gone = e2e::ports::address(e2e::ports::row(1)?);
    let mut site = Site::new(version).await?;
    site.write(&site.usual_with(&format!("server {gone};")))?;
    site.start().await?;
    for tried in 1..=3 {
        assert_eq!(visit(&site, Method::GET, "/").await??.status, 502);
        let view = site.peer(&gone.to_string()).await?;
        assert_eq!((view.in_flight, view.requests, view.fails), (0, tried, tried));
    }
    site.end().await
}

#[tokio::test]
async fn what_comes_from_the_cache_is_nobodys() -> Result<()> {
    let backend = Backend::start(2).await?;
    for version in VERSIONS {
        let site = site(version, &backend).await?;
        for _ in 0..5 {
            assert_eq!(visit(&site, Method::GET, "/cached/fast").await??.status, 200);
        }
        let requests: u64 = site.app().await?.iter().map(|peer| peer.requests).sum();
        assert_eq!((requests, in_flight(&site).await?), (1, 0));
        site.end().await?;
    }
    Ok(())
}

#[tokio::test]
async fn old_workers_of_a_reloaded_nginx_are_counted_until_they_end() -> Result<()> {
    let backend = Backend::start(2).await?;
    let peers = [backend.peer(0), backend.peer(1)];
    let [one, other] = &peers;
    for version in VERSIONS {
        let site = site(version, &backend).await?;
        let old_visits: Vec<_> = (0..4).map(|_| visit(&site, Method::GET, "/hold")).collect();
        backend.holds(4).await?;
        let old = by_process(&site).await?;
        let new_workers = site.reload().await?;
        assert_eq!(in_flight(&site).await?, 4);
        // In a new worker, with a client that will leave.
        let leaving = stream(&site, "GET /hold HTTP/1.0\r\n\r\n", "").await?;
        backend.holds(5).await?;
        assert_eq!(in_flight(&site).await?, 5);
        let now = by_process(&site).await?;
        for (pid, in_flight) in old.iter().filter(|(_, in_flight)| **in_flight > 0) {
            assert_eq!(now.get(pid), Some(in_flight), "an old worker");
        }
        let in_new: u64 = new_workers.iter().filter_map(|pid| now.get(pid)).sum();
        assert_eq!(in_new, 1);

        // Drained is the sum: not when the new workers are done, only when all are.
        site.say(&Say { force: true, ..Say::DRAIN }, &[one, other]).await?;
        drop(leaving);
        becomes(&site, 4).await?;
        for peer in [one, other] {
            let drained: Drained = site.read(&path::drained("app", peer)).await?;
            assert_eq!(drained, Drained { drained: false, state: State::Draining, in_flight: 2 });
        }
        let control = site.control();
        let path = path::drained("app", one) + "?timeout=20s";
        let waiting = spawn(async move { control.get(&path).await });
        site.overview().await?;
        backend.release().await?;
        let drained: Drained = waiting.await??.json()?;
        assert_eq!(drained, Drained { drained: true, state: State::Draining, in_flight: 0 });
        for visit in old_visits {
            assert_eq!(visit.await??.status, 200);
        }
        // Old workers end with their last request, and with them their rows.
        wait::until("the old workers to end", PATIENCE, async || {
            let rows = by_process(&site).await.ok()?;
            rows.keys().all(|pid| new_workers.contains(pid)).then_some(())
        })
        .await?;
        site.end().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_killed_worker_takes_its_requests_along_and_another_takes_its_place() -> Result<()> {
    let backend = Backend::start(2).await?;
    for version in VERSIONS {
        let site = site(version, &backend).await?;
        let before = site.overview().await?.instance;
        for _ in 0..3 {
            let visits: Vec<_> = (0..12).map(|_| visit(&site, Method::GET, "/hold")).collect();
            backend.holds(12).await?;
            let (victim, lost) = by_process(&site)
                .await?
                .into_iter()
                .max_by_key(|(_, in_flight)| *in_flight)
                .context("a worker")?;
            assert!(lost > 0);
            process::signal(victim, Signal::KILL);
            process::death(victim).await?;
            // From this moment on, and not some time later.
            assert_eq!(in_flight(&site).await?, 12 - lost);
            wait::until("another worker to take its place", PATIENCE, async || {
                let rows = by_process(&site).await.ok()?;
                (rows.len() == 2 && !rows.contains_key(&victim)).then_some(())
            })
            .await?;
            assert_eq!(in_flight(&site).await?, 12 - lost);
            backend.release().await?;
            let mut served = 0;
            for visit in visits {
                served += u64::from(visit.await?.is_ok_and(|reply| reply.status == 200));
            }
            assert_eq!(served, 12 - lost);
            becomes(&site, 0).await?;
        }
        assert_eq!(site.overview().await?.instance, before);
        assert_eq!(visit(&site, Method::GET, "/").await??.status, 200);
        site.end_but_for(&["exited on signal 9"]).await?;
    }
    Ok(())
}
