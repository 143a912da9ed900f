//! Many nginx and etcd: a worker stops only when every nginx has let go of it. Each test has real nginx, two of them, real
//! PM2 and a real etcd of its own.

mod fleet;
mod members;
mod roles;
mod seen;

use anyhow::{Context, Result, ensure};
use e2e::{alone, load::Visit, wait};
use fleet::{Fleet, WARM, all_is_well, visits};
use handoff_wire::{PeerState, State};
use std::time::{Duration, Instant};
use tokio::time::sleep;

const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread")]
async fn every_nginx_hands_over_a_deploy() -> Result<()> {
    let _alone = alone::take()?;
    let fleet = Fleet::new().await?;
    let load = fleet.load();
    sleep(WARM).await;
    fleet.pm2.reload().await?;
    let ended = fleet.handoff(&["reload", "myapp"]).await?;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    all_is_well(&visits(load).await?, &fleet.orders()?)?;
    // What was said is taken back, and nothing is left of it.
    let clean = wait::until("the store to hold nobody's marks", PATIENCE, async || {
        (!fleet.etcd.dump().await.ok()?.contains("/workers/")).then_some(())
    });
    clean.await
}

/// Beside it: the sidecar of the app host knows of one nginx only.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "make store"]
async fn without_the_store_the_other_nginx_fails() -> Result<()> {
    let _alone = alone::take()?;
    let mut fleet = Fleet::silent(false).await?;
    fleet.start_alone()?;
    wait::until("the sidecar to know its workers", PATIENCE, async || {
        let ended = fleet.handoff(&["--control", &fleet.control(0).ok()?, "status"]).await.ok()?;
        (ended.code == Some(0)).then_some(())
    })
    .await?;
    let load = fleet.load();
    sleep(WARM).await;
    fleet.pm2.reload().await?;
    let visits = visits(load).await?;
    let failed = visits.iter().map(|visits| visits.iter().filter(|visit| visit.failed()).count());
    let failed: Vec<usize> = failed.collect();
    let all: Vec<usize> = visits.iter().map(Vec::len).collect();
    eprintln!("failed at each nginx: {failed:?} of {all:?}");
    ensure!(failed.first() == Some(&0) && failed.last() > Some(&0), "{failed:?}");
    Ok(())
}

/// It is killed while a deploy runs, and back before the leases are over; then it forgets what it had been told.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "make store"]
async fn a_deploy_survives_a_restart_of_etcd_and_its_compaction() -> Result<()> {
    let _alone = alone::take()?;
    let mut fleet = Fleet::new().await?;
    let load = fleet.load();
    sleep(WARM).await;
    let reload = fleet.begin_handoff(&["reload", "myapp"])?;
    fleet.sees(0, PeerState::Draining).await?;
    fleet.etcd.kill();
    // As long as it takes to notice: nobody has another sign of it.
    sleep(Duration::from_secs(2)).await;
    fleet.etcd.run().await?;
    fleet.etcd.compact().await?;
    let ended = reload.wait_with_output().await?;
    ensure!(ended.status.success(), "{}: {}", ended.status, String::from_utf8_lossy(&ended.stdout));
    let ended = fleet.handoff(&["reload", "myapp"]).await?;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    all_is_well(&visits(load).await?, &fleet.orders()?)
}

/// Longer than any lease: nothing is stopped meanwhile, and all goes on as before when it is back.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "make store"]
async fn while_etcd_is_gone_nothing_is_handed_over_and_nothing_is_lost() -> Result<()> {
    let _alone = alone::take()?;
    let mut fleet = Fleet::new().await?;
    let load = fleet.load();
    sleep(WARM).await;
    let before = fleet.pids().await?;
    fleet.etcd.kill();
    let ended = fleet.handoff(&["reload", "myapp"]).await?;
    assert_ne!(ended.code, Some(0), "{ended:?}");
    ensure!(ended.stderr.contains("out of reach") || ended.stdout.contains("out of reach"), "{ended:?}");
    wait::until("the leases to be over", PATIENCE, async || {
        fleet.log("app1").contains("our lease is over").then_some(())
    })
    .await?;
    assert_eq!(fleet.pids().await?, before);
    fleet.etcd.run().await?;
    fleet.is_whole().await?;
    let ended = fleet.handoff(&["reload", "myapp"]).await?;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    all_is_well(&visits(load).await?, &fleet.orders()?)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_that_dies_in_a_drain_is_waited_for_until_its_lease_is_over() -> Result<()> {
    let _alone = alone::take()?;
    let mut fleet = Fleet::new().await?;
    // It cannot say that it is drained, and does not say that it is gone.
    fleet.kill_edge(1)?;
    let load = fleet.load();
    let began = Instant::now();
    let reload = fleet.begin_handoff(&["reload", "myapp"])?;
    fleet.sees(0, PeerState::Draining).await?;
    let pids = fleet.pids().await?;
    let gone = wait::until("the lease of the edge to be over", PATIENCE, async || {
        let is_in = fleet.etcd.dump().await.ok()?.contains("/edges/edge2\n");
        (!is_in).then(Instant::now)
    });
    let gone = gone.await?;
    ensure!(gone - began > Duration::from_secs(3), "its lease was over at once: {:?}", gone - began);
    // Nothing was stopped for as long as it counted; a stop takes longer than it took to look.
    assert_eq!(fleet.pids().await?, pids, "stopped while an edge was waited for");
    let ended = reload.wait_with_output().await?;
    ensure!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    // nginx 2 was told nothing, and does what nginx does alone; nginx 1 notices nothing.
    let visits = visits(load).await?;
    let at_first = visits.first().context("visits of nginx 1")?;
    let failed: Vec<&Visit> = at_first.iter().filter(|visit| visit.failed()).collect();
    ensure!(failed.is_empty(), "{failed:?}");
    fleet.start_edge(1)?;
    fleet.is_whole().await
}

/// What a host said lives as long as it does.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "make store"]
async fn a_host_that_dies_is_let_go_and_one_that_comes_back_takes_over() -> Result<()> {
    let _alone = alone::take()?;
    let mut fleet = Fleet::new().await?;
    let peer = fleet.app.addresses().first().context("a worker")?.to_string();
    let ended = fleet.handoff(&["drain", &peer]).await?;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    for site in &fleet.sites {
        assert_eq!(site.peer(&peer).await?.state, PeerState::Draining);
    }
    let file = fleet.site(0)?.file("state/operator-marks.json");
    wait::until("it to be written down", PATIENCE, async || {
        std::fs::read_to_string(&file).ok()?.contains(&peer).then_some(())
    })
    .await?;
    fleet.kill_host()?;
    wait::until("both nginx to use the worker again", PATIENCE, async || fleet.all_up().await.then_some(()))
        .await?;
    fleet.start_host()?;
    // What a person decided is decided: it was written down.
    for edge in 0..2 {
        fleet.sees(edge, PeerState::Draining).await?;
    }
    fleet.kill_host()?;
    fleet.start_host()?;
    let began = Instant::now();
    wait::until("the app host to be there again, with what it had written down", PATIENCE, async || {
        let view = fleet.view().await.ok()?;
        let mut peers = view.upstreams.iter().flat_map(|upstream| &upstream.peers);
        peers.any(|peer| peer.marks.iter().any(|mark| mark.owner.as_str() == "operator")).then_some(())
    })
    .await?;
    ensure!(began.elapsed() < Duration::from_secs(5), "it waited for its own lease: {:?}", began.elapsed());
    let ended = fleet.handoff(&["ready", &peer]).await?;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    fleet.is_whole().await
}

/// What was not asked for, by nobody that we know.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "make store"]
async fn garbage_in_the_store_is_said_and_hurts_nobody() -> Result<()> {
    let _alone = alone::take()?;
    let fleet = Fleet::new().await?;
    let long = "x".repeat(100_000);
    for (key, value) in [
        ("workers/app1/app/127.0.0.1:1", "{"),
        (
            "workers/ghost/app/127.0.0.1:1",
            r#"{"state":"down","said":1,"marks":[{"owner":"pm2:1","state":"down"}]}"#,
        ),
        ("hosts/other", r#"{"addresses":"everywhere"}"#),
        ("hosts/long", &long),
        ("edges/edge3/more", "x"),
        ("acks/app1/edge1/more", "x"),
        ("nonsense", "\u{1}"),
    ] {
        fleet.etcd.ctl(&["put", &format!("/handoff/v1/default/{key}"), value]).await?;
    }
    wait::until("the edge to say so", PATIENCE, async || {
        fleet.log("edge1").contains("cannot be read").then_some(())
    })
    .await?;
    let load = fleet.load();
    sleep(WARM).await;
    let ended = fleet.handoff(&["reload", "myapp"]).await?;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    all_is_well(&visits(load).await?, &fleet.orders()?)
}

/// Certificates for everybody, and users who may write what is theirs and nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn with_certificates_and_users_it_is_the_same() -> Result<()> {
    let _alone = alone::take()?;
    let mut fleet = Fleet::silent(true).await?;
    fleet.enable_users().await?;
    fleet.begin().await?;
    let load = fleet.load();
    let ended = fleet.handoff(&["reload", "myapp"]).await?;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    all_is_well(&visits(load).await?, &fleet.orders()?)?;
    // Their roles are as narrow as the documentation says.
    fleet.etcd.login("app1:app1app1");
    let denied = fleet.etcd.ctl(&["put", "/handoff/v1/default/workers/app2/app/127.0.0.1:1", "{}"]).await;
    ensure!(
        denied.is_err_and(|error| error.to_string().contains("permission denied")),
        "app1 may speak for app2"
    );
    Ok(())
}

/// Not a test: how long a mark takes to be everywhere.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "make store"]
async fn a_mark_is_everywhere_within_milliseconds() -> Result<()> {
    let _alone = alone::take()?;
    let fleet = Fleet::new().await?;
    let peer = fleet.app.addresses().first().context("a worker")?.to_string();
    let mut took = Vec::new();
    for round in 0..200 {
        let state = if round % 2 == 0 { State::Draining } else { State::Up };
        let began = Instant::now();
        fleet.mark(&peer, state).await?;
        took.push(began.elapsed());
    }
    took.sort();
    let at = |share: usize| took.get(took.len() * share / 100).copied().unwrap_or_default();
    eprintln!("a mark at both nginx: p50 {:?}, p99 {:?}", at(50), at(99));
    eprintln!("resident: app host {:?} kB, edge {:?} kB", fleet.host_rss(), fleet.edge_rss(0));
    ensure!(at(50) < Duration::from_millis(500), "{:?}", at(50));
    Ok(())
}
