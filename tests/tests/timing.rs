//! What a peer took, sent and received is what nginx itself says of each attempt, and counts once; when it was out is seen.

use anyhow::{Context, Result};
use e2e::{
    backend::Backend,
    ports,
    site::{PATIENCE, Site, VERSIONS},
    wait,
};
use handoff_wire::{HEADER_BOUNDS, PeerState, PeerView, Span, TimingView};
use hyper::Method;
use std::{
    collections::BTreeMap,
    fs,
    time::{Duration, SystemTime},
};
use tokio::{io::AsyncReadExt, io::AsyncWriteExt, time::sleep};

const LOG: &str = "log_format attempts '$upstream_addr|$upstream_bytes_sent|$upstream_bytes_received|\
    $upstream_header_time|$upstream_response_time';\n";

/// What nginx's access log says of the attempts on each peer.
fn logged(log: &str) -> Result<BTreeMap<String, TimingView>> {
    let mut peers = BTreeMap::<String, TimingView>::new();
    for line in log.lines() {
        let mut columns = line.split('|').map(|column| column.split(", "));
        let mut attempts = || columns.next().with_context(|| line.to_owned());
        let each = attempts()?.zip(attempts()?).zip(attempts()?).zip(attempts()?).zip(attempts()?);
        for ((((peer, sent), received), header), response) in each {
            let timing = peers.entry(peer.to_owned()).or_default();
            timing.sent += sent.parse::<u64>()?;
            timing.received += received.parse::<u64>()?;
            let Some(header) = millis(header) else { continue };
            timing.header.sum = plus(timing.header.sum, header);
            timing.response = plus(timing.response, millis(response).context("a time to the end")?);
            let bucket = HEADER_BOUNDS.iter().filter(|&&bound| bound < header).count();
            *timing.header.buckets.get_mut(bucket).context("a bucket")? += 1;
        }
    }
    Ok(peers)
}

fn plus(sum: Span, millis: u64) -> Span {
    Span::from_millis(sum.as_millis() + millis)
}

/// nginx writes seconds with three digits, or a dash.
fn millis(text: &str) -> Option<u64> {
    text.replace('.', "").parse().ok()
}

/// Milliseconds since 1970.
fn now() -> Result<u64> {
    Ok(u64::try_from(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_millis())?)
}

async fn peers(site: &Site) -> Result<Vec<PeerView>> {
    wait::until("every attempt to end", PATIENCE, async || {
        let peers = site.app().await.ok()?;
        peers.iter().all(|peer| peer.in_flight == 0).then_some(peers)
    })
    .await
}

#[tokio::test]
async fn times_and_bytes_are_the_sums_of_what_nginx_logs_of_each_attempt() -> Result<()> {
    let backend = Backend::start(2).await?;
    let first = backend.addresses().next().context("a peer")?.port();
    for version in VERSIONS {
        let mut site = Site::new(version).await?;
        let log = site.file("attempts.log");
        site.write(&format!(
            "{LOG}proxy_http_version 1.1; proxy_set_header Connection \"\";\n\
             upstream app {{ zone app 256k; {servers} keepalive 8; handoff; }}\n\
             server {{ listen 127.0.0.1:{port}; access_log {log} attempts;\n\
             location / {{ proxy_next_upstream error http_502; proxy_pass http://app; }}\n\
             location /hasty/ {{ proxy_read_timeout 200ms; proxy_next_upstream off; proxy_pass http://app/; }}\n\
             location /unbuffered/ {{ proxy_buffering off; proxy_pass http://app/; }}\n\
             location /socket {{ proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade;\n\
             proxy_pass http://app; }} }}\n{api}",
            log = log.display(),
            servers = backend.servers().replace(';', " max_fails=0;"),
            port = site.port(),
            api = site.api(""),
        ))?;
        site.start().await?;
        let began = now()?;
        assert_eq!(peers(&site).await?[0].timing, TimingView::default());

        for status in [200, 304, 404, 502, 500] {
            site.visitors().get(&format!("/status/{status}")).await?;
            site.visitors().ask(Method::POST, &format!("/status/{status}"), "a body of its own").await?;
            site.visitors().ask(Method::HEAD, &format!("/status/{status}"), "").await?;
        }
        for _ in 0..2 {
            site.visitors().get(&format!("/hangup/{first}")).await?;
        }
        assert_eq!(site.visitors().get("/hasty/hold").await?.status, 504);
        backend.holds(0).await?;
        // Its header comes at once, the rest of it later.
        let visitors = site.visitors();
        let visit = tokio::spawn(async move { visitors.get("/unbuffered/stream").await });
        backend.holds(1).await?;
        sleep(Duration::from_millis(120)).await;
        backend.release().await?;
        visit.await??;
        // Its header comes late, twice: nginx goes on from the first, and from the second it does not.
        let visitors = site.visitors();
        let visit = tokio::spawn(async move { visitors.get("/hold/502").await });
        while !visit.is_finished() {
            sleep(Duration::from_millis(120)).await;
            backend.release().await?;
        }
        visit.await??;
        let mut socket = site.visitors().open().await?;
        socket
            .write_all(
                b"GET /socket HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
            )
            .await?;
        let mut got = String::new();
        while !got.ends_with("\r\n\r\n") {
            got.push(char::from(socket.read_u8().await?));
        }
        socket.write_all(b"there and back").await?;
        socket.read_exact(&mut [0; 14]).await?;
        drop(socket);

        let views = peers(&site).await?;
        let ended = now()?;
        let requests = 15 + 2 + 1 + 1 + 1 + 1;
        let lines = wait::until("nginx to log every request", PATIENCE, async || {
            let text = fs::read_to_string(&log).ok()?;
            (text.lines().count() == requests).then_some(text)
        })
        .await?;
        let logged = logged(&lines)?;
        assert_eq!(logged.len(), 2, "{lines}");
        for view in &views {
            let selected = view.timing.selected;
            assert!(selected.is_some_and(|at| (began..=ended).contains(&at)), "{selected:?}");
            let counted = TimingView { selected: None, ..view.timing };
            assert_eq!(counted, logged[&view.address], "{} of\n{lines}", view.address);
            let answers: u64 = counted.header.buckets.iter().sum();
            assert_eq!(answers, view.responses.total());
        }
        let sum = |of: &dyn Fn(&TimingView) -> u64| views.iter().map(|view| of(&view.timing)).sum::<u64>();
        assert!(sum(&|timing| timing.header.sum.as_millis()) >= 120);
        assert!(sum(&|timing| timing.response.as_millis()) >= 300, "the header is not all of an answer");
        assert!(sum(&|timing| timing.header.buckets[5..].iter().sum()) >= 1, "one took longer than 100 ms");

        site.reload().await?;
        assert_eq!(
            peers(&site).await?.iter().map(|view| view.timing).collect::<Vec<_>>(),
            [views[0].timing, views[1].timing]
        );
        site.end().await?;
    }
    Ok(())
}

#[tokio::test]
async fn an_outage_lasts_from_the_failure_that_was_one_too_many_until_nginx_tries_again() -> Result<()> {
    let backend = Backend::start(1).await?;
    for version in VERSIONS {
        let mut site = Site::new(version).await?;
        let dead = ports::address(ports::row(1)?).to_string();
        site.write(
            &site.usual_with(&format!("{} server {dead} max_fails=1 fail_timeout=1s;", backend.servers())),
        )?;
        site.start().await?;
        let began = now()?;
        let fail = async || {
            wait::until("nginx to leave the peer out", PATIENCE, async || {
                site.visitors().get("/").await.ok()?;
                let view = site.peer(&dead).await.ok()?;
                (view.state == PeerState::Unavail && view.outage.downstart.is_some()).then_some(view)
            })
            .await
        };
        let out = fail().await?;
        assert_eq!(out.outage.unavail, 1);
        assert!(out.outage.downstart >= Some(began), "{:?}", out.outage);
        let back = async || {
            wait::until("nginx to try again", PATIENCE, async || {
                site.peer(&dead).await.ok().filter(|view| view.outage.downstart.is_none())
            })
            .await
        };
        let lasted = back().await?.outage.downtime;
        // nginx counts in seconds, and says so when a whole one has passed.
        assert!((750..4000).contains(&lasted.as_millis()), "{lasted}");
        assert_eq!(fail().await?.outage.unavail, 2);
        let twice = back().await?.outage.downtime;
        assert!(twice > lasted, "{lasted}, then {twice}");
        assert_eq!(site.peer(&backend.peer(0)).await?.outage, handoff_wire::OutageView::default());
        site.end().await?;
    }
    Ok(())
}
