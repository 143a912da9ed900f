//! However many come, no more wait than may, and nobody else is harmed.

use crate::stage::{Stage, Visit};
use anyhow::{Result, bail};
use e2e::{
    clock::Moment,
    farm::Farm,
    load::Load,
    ports,
    site::{Site, VERSIONS},
};
use hyper::Method;
use std::time::Duration;

/// How many were answered so.
async fn count(visits: Vec<Visit>, status: u16) -> Result<usize> {
    let mut count = 0;
    for visit in visits {
        count += usize::from(visit.await??.status == status);
    }
    Ok(count)
}

#[tokio::test(flavor = "multi_thread")]
async fn so_many_wait_and_the_others_are_told_to_come_again() -> Result<()> {
    for version in VERSIONS {
        let farm = Farm::start(2).await?;
        let [held, open] = farm.peers()[..] else { panic!("two peers") };
        let site = Site::new(version).await?;
        site.write(&format!(
            "upstream app {{ zone app 256k; server {held}; handoff_queue 50; handoff; }}\n\
             upstream other {{ zone other 256k; server {open}; handoff; }}\n\
             server {{ listen 127.0.0.1:{}; location / {{ proxy_pass http://app; }}\n\
             location /other {{ proxy_pass http://other; }} }}\n{}",
            site.port(),
            site.api("write=on")
        ))?;
        let (held, peers) = (held.to_owned(), farm.peers().len());
        let stage = Stage::with(site, farm).await?;
        assert_eq!(peers, 2);
        stage.says("draining", "back", &[&held]).await?;
        let flood: Vec<_> = (0..400).map(|_| stage.get("/")).collect();
        // In the middle of it the other upstream is as quick as ever, and the bound holds at every moment.
        let mut slowest = Duration::ZERO;
        for _ in 0..50 {
            let began = Moment::now();
            assert_eq!(stage.get("/other").await??.status, 200);
            slowest = slowest.max(Moment::now().since(began));
            let queue = stage.queue().await?;
            assert!(queue.held <= 50, "{queue:?}");
        }
        eprintln!("the slowest visit elsewhere took {slowest:?}");
        stage.holds(50).await?;
        stage.comes_back().await?;
        let mut statuses = std::collections::BTreeMap::<u16, usize>::new();
        for visit in flood {
            let reply = visit.await??;
            assert!(reply.status != 503 || reply.header("retry-after") == Some("5"), "{reply:?}");
            *statuses.entry(reply.status).or_default() += 1;
        }
        assert_eq!(statuses, [(200, 50), (503, 350)].into());
        assert_eq!(stage.counts().await?, (0, [50, 0, 0, 0, 350]));
        let told = stage.site.told();
        let lines = told.iter().filter(|line| line.contains("as many requests wait as handoff_queue allows"));
        assert!((1..=2).contains(&lines.count()), "one line for each process: {told:?}");
        stage.end().await?;
    }
    Ok(())
}

#[tokio::test]
async fn so_many_bytes_wait() -> Result<()> {
    for version in VERSIONS {
        let stage = Stage::new(version, 1, "handoff_queue 100 bytes=100k;", "").await?;
        stage.goes().await?;
        let small: Vec<_> = (0..3).map(|_| stage.visit(Method::POST, "/", vec![b'x'; 20 * 1024])).collect();
        stage.holds(3).await?;
        let queue = stage.queue().await?;
        assert!((60 * 1024..65 * 1024).contains(&queue.bytes), "{queue:?}");
        assert_eq!((queue.held_max, queue.bytes_max), (100, 100 * 1024));
        // In a file, and not in memory: it is bytes all the same.
        let large = stage.visit(Method::POST, "/", vec![b'x'; 60 * 1024]);
        assert_eq!(large.await??.status, 503);
        let fits = stage.visit(Method::POST, "/", vec![b'x'; 30 * 1024]);
        stage.holds(4).await?;
        stage.comes_back().await?;
        assert_eq!(count(small.into_iter().chain([fits]).collect(), 200).await?, 4);
        assert_eq!(stage.counts().await?, (0, [4, 0, 0, 0, 1]));
        stage.end().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn half_of_a_processs_connections_are_left_for_others() -> Result<()> {
    for version in VERSIONS {
        let stage = Stage::single(version, "", "location = /here { return 204; }").await?;
        stage.goes().await?;
        // The stage's nginx has 1024 connections a process.
        let flood: Vec<_> = (0..700).map(|_| stage.get("/")).collect();
        let turned_away = async || {
            let queue = stage.queue().await.ok()?;
            (queue.held + queue.overflowed == 700).then_some(queue)
        };
        let queue = e2e::wait::until("all to be there", Duration::from_secs(20), turned_away).await?;
        assert!((480..=512).contains(&queue.held), "{queue:?}");
        assert_eq!(stage.get("/here").await??.status, 204);
        stage.comes_back().await?;
        assert_eq!(count(flood, 200).await?, usize::try_from(queue.held)?);
        stage.end().await?;
    }
    Ok(())
}

/// As many as come at once may show for a moment, before they are turned away: one in each process.
#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_bodies_stays_within_its_bounds_and_nobody_elsewhere_fails() -> Result<()> {
    const LARGEST: usize = 20 * 1024;
    const PROCESSES: u64 = 2;
    for version in VERSIONS {
        let stage = beside(version, "handoff_queue 100 bytes=400k timeout=30s;").await?;
        let held = stage.peer();
        stage.says("draining", "back", &[&held]).await?;
        let elsewhere = Load::start(ports::address(stage.site.port() + 1), 400);
        let mut flood = Vec::new();
        let bytes_max = 400 * 1024 + PROCESSES * LARGEST as u64 + 1024;
        let (mut most, mut largest) = (0, 0);
        for burst in 0..40 {
            // Small ones fill the line, large ones the bytes.
            let body = if burst % 2 == 0 { 0 } else { LARGEST };
            flood.extend((0..20).map(|_| stage.visit(Method::POST, "/", vec![b'x'; body])));
            let queue = stage.queue().await?;
            assert!(queue.held <= 100 + PROCESSES && queue.bytes <= bytes_max, "{queue:?}");
            (most, largest) = (most.max(queue.held), largest.max(queue.bytes));
        }
        let all_are_there = async || {
            let queue = stage.queue().await.ok()?;
            (queue.held + queue.overflowed == 800).then_some(queue)
        };
        let queue = e2e::wait::until("all to be there", Duration::from_secs(20), all_are_there).await?;
        assert!(queue.held <= 100 && queue.bytes <= 400 * 1024, "{queue:?}");
        assert!(queue.bytes > 400 * 1024 - LARGEST as u64 || queue.held == 100, "it was no flood: {queue:?}");
        stage.says("up", "", &[&held]).await?;
        let mut statuses = std::collections::BTreeMap::<u16, u64>::new();
        for visit in flood {
            *statuses.entry(visit.await??.status).or_default() += 1;
        }
        assert_eq!(statuses, [(200, queue.held), (503, queue.overflowed)].into());
        let visits = elsewhere.stop().await;
        let failed: Vec<_> = visits.iter().filter(|visit| visit.failed()).collect();
        assert!(failed.is_empty(), "{failed:?}");
        eprintln!("{most} requests and {largest} bytes at most; {} visits elsewhere", visits.len());
        stage.end().await?;
    }
    Ok(())
}

/// `app`, whose one peer comes and goes, and on the next port `other`, whose one peer stays; on the one after that nginx itself
/// turns everybody away.
pub(crate) async fn beside(version: &str, lines: &str) -> Result<Stage> {
    let farm = Farm::start(2).await?;
    let [held, open] = farm.peers()[..] else { bail!("two peers") };
    let site = Site::new(version).await?;
    let port = site.port();
    site.write(&format!(
        "proxy_http_version 1.1; proxy_set_header Connection \"\";\n\
         upstream app {{ zone app 256k; server {held}; {lines} handoff; }}\n\
         upstream other {{ zone other 256k; server {open}; keepalive 16; handoff; }}\n\
         server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://app; }} }}\n\
         server {{ listen 127.0.0.1:{}; location / {{ proxy_pass http://other; }} }}\n\
         server {{ listen 127.0.0.1:{}; location / {{ return 503; }} }}\n{}",
        port + 1,
        port + 2,
        site.api("write=on")
    ))?;
    Stage::with(site, farm).await
}
