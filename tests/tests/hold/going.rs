//! nginx reloads, goes or dies while requests wait in it.

use crate::{
    basics::all_are,
    stage::{Stage, Visit},
};
use anyhow::{Context, Result};
use e2e::{
    clock::Moment,
    farm::Farm,
    process,
    site::{PATIENCE, Site, VERSIONS},
    wait,
};
use rustix::process::Signal;
use std::{fs, time::Duration};

async fn gone(workers: &[u32]) -> Result<()> {
    for &pid in workers {
        process::death(pid).await?;
    }
    Ok(())
}

#[tokio::test]
async fn who_waits_in_an_old_worker_goes_on_too() -> Result<()> {
    for version in VERSIONS {
        let stage = Stage::new(version, 2, "handoff_queue 20;", "").await?;
        stage.goes().await?;
        let mut visits: Vec<_> = (0..10).map(|_| stage.get("/")).collect();
        stage.holds(10).await?;
        let old = stage.site.serving_workers();
        for _ in 0..2 {
            stage.site.reload().await?;
            visits.extend((0..5).map(|_| stage.get("/")));
            stage.holds(visits.len() as u64).await?;
        }
        // One room for all: those in old workers count.
        assert_eq!(stage.get("/").await??.status, 503);
        assert!(old.iter().any(|&pid| process::is_alive(pid)), "nobody waits in an old worker");
        stage.comes_back().await?;
        all_are(200, visits).await?;
        assert_eq!(stage.counts().await?, (0, [20, 0, 0, 0, 1]));
        gone(&old).await?;
        stage.end().await?;
    }
    Ok(())
}

#[tokio::test]
async fn an_nginx_that_quits_waits_for_those_who_wait() -> Result<()> {
    for version in VERSIONS {
        for comes_back in [true, false] {
            let stage = Stage::new(version, 1, "handoff_queue 20 timeout=1500ms;", "").await?;
            stage.goes().await?;
            let visits: Vec<_> = (0..6).map(|_| stage.get("/")).collect();
            stage.holds(6).await?;
            if comes_back {
                // A worker that quits takes no more calls: the word comes before it quits, and is heard after.
                let workers = stage.site.serving_workers();
                stage.site.reload().await?;
                assert!(workers.iter().any(|&pid| process::is_alive(pid)));
                stage.comes_back().await?;
            }
            let began = Moment::now();
            stage.site.end().await?;
            assert!(Moment::now().since(began) < Duration::from_secs(4));
            all_are(if comes_back { 200 } else { 503 }, visits).await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn worker_shutdown_timeout_ends_the_wait() -> Result<()> {
    for version in VERSIONS {
        let farm = Farm::start(1).await?;
        let site = Site::new(version).await?;
        let http = site.usual_with(&format!("server {};", farm.peers()[0]));
        site.write_whole(&http, "worker_shutdown_timeout 1s;")?;
        let stage = Stage::with(site, farm).await?;
        stage.goes().await?;
        let visits: Vec<Visit> = (0..6).map(|_| stage.get("/")).collect();
        stage.holds(6).await?;
        let old = stage.site.serving_workers();
        stage.site.reload().await?;
        gone(&old).await?;
        for visit in visits {
            assert!(visit.await?.is_err(), "nginx closed these connections");
        }
        stage.holds(0).await?;
        assert_eq!(stage.counts().await?, (0, [0, 0, 0, 6, 0]));
        stage.comes_back().await?;
        all_are(200, vec![stage.get("/")]).await?;
        stage.end().await?;
    }
    Ok(())
}

#[tokio::test]
async fn what_a_killed_worker_held_counts_no_more() -> Result<()> {
    for version in VERSIONS {
        let stage = Stage::new(version, 1, "handoff_queue 10;", "").await?;
        stage.goes().await?;
        let visits: Vec<Visit> = (0..10).map(|_| stage.get("/")).collect();
        stage.holds(10).await?;
        // One process may have all of them, and the other one none.
        let files = |worker: &u32| fs::read_dir(format!("/proc/{worker}/fd")).map_or(0, Iterator::count);
        let victim = stage.site.serving_workers().into_iter().max_by_key(files).context("a worker")?;
        process::signal(victim, Signal::KILL);
        process::death(victim).await?;
        // Its clients are cut off at once; the others count on.
        let mut lost = 0;
        wait::until("the sum to be right again", PATIENCE, async || {
            lost = visits.iter().filter(|visit| visit.is_finished()).count();
            (lost > 0 && stage.queue().await.ok()?.held + lost as u64 == 10).then_some(())
        })
        .await?;
        stage.comes_back().await?;
        let mut served = 0;
        for visit in visits {
            served += usize::from(visit.await?.is_ok_and(|reply| reply.status == 200));
        }
        assert_eq!(served + lost, 10);
        stage.holds(0).await?;
        assert_eq!(stage.site.app().await?[0].in_flight, 0);
        stage.site.end_but_for(&["exited on signal 9"]).await?;
    }
    Ok(())
}

#[tokio::test]
async fn an_nginx_that_is_told_to_end_at_once_does() -> Result<()> {
    for version in VERSIONS {
        let stage = Stage::new(version, 1, "", "").await?;
        stage.goes().await?;
        let visits: Vec<Visit> = (0..6).map(|_| stage.get("/")).collect();
        stage.holds(6).await?;
        stage.site.signal(Signal::TERM);
        process::death(stage.site.master()).await?;
        for visit in visits {
            assert!(visit.await?.is_err());
        }
        stage.site.is_sound_but_for(&[])?;
    }
    Ok(())
}
