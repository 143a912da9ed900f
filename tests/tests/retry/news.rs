//! One address, and nobody knows yet what became of its worker.

use crate::stage::{Ask, Outcome, Stage};
use anyhow::{Result, ensure};
use e2e::{
    clock::Moment,
    process,
    site::{PATIENCE, VERSIONS},
    wait,
};
use rustix::process::Signal;
use std::time::Duration;
use tokio::{io::AsyncWriteExt, time::sleep};

/// Whoever says so is sometimes late on a machine with much to do: then this is played again.
async fn in_time<T>(mut play: impl AsyncFnMut() -> Result<Option<T>>) -> Result<T> {
    for _ in 0..20 {
        if let Some(played) = play().await? {
            return Ok(played);
        }
    }
    anyhow::bail!("the word always came too late")
}

#[tokio::test]
async fn where_nobody_says_anything_it_fails_a_moment_later() -> Result<()> {
    for version in VERSIONS {
        let stage = Stage::new(version, 1, "", "").await?;
        for (ask, word) in [(Ask::get(""), "same"), (Ask::post(""), "sent")] {
            let began = Moment::now();
            stage.meets("it breaks", ask.dies("1"), Outcome::failed(502, 1, word)).await?;
            let took = Moment::now().since(began);
            ensure!((took >= Duration::from_millis(195)) == (word == "same"), "{word}: {took:?}");
        }
        // An order that was not sent fares as anything else.
        stage.farm.stop(&stage.peer()).await?;
        for ask in [Ask::get(""), Ask::post("")] {
            let began = Moment::now();
            let met = stage.end_of(stage.begin(ask)?).await?;
            ensure!(met == Outcome { arrived: 0, ..Outcome::failed(502, 1, "same") }, "{met:?}");
            ensure!(Moment::now().since(began) >= Duration::from_millis(195));
        }
        stage.farm.restart(&stage.peer()).await?;
        stage.end().await?;
    }
    Ok(())
}

/// A worker dies without a word. Who was with it, and who comes before nginx is told, waits for the next one. nginx does not count
/// what broke over a connection of its cache.
#[tokio::test]
async fn who_failed_before_nginx_was_told_waits_for_the_next_worker() -> Result<()> {
    for version in VERSIONS {
        for (lines, tries) in [("", 2), ("keepalive 4;", 3)] {
            let stage = Stage::new(version, 1, lines, TWO).await?;
            in_time(async || a_worker_dies(&stage, tries).await).await?;
            stage.end().await?;
        }
    }
    Ok(())
}

const TWO: &str = "location /two { proxy_next_upstream_tries 2; proxy_pass http://app; }";

async fn a_worker_dies(stage: &Stage, tries: u32) -> Result<Option<()>> {
    let peer = stage.peer();
    stage.meets("a connection is kept", Ask::get(""), Outcome::answered(200, 1, "-")).await?;
    let with_it = stage.begin(Ask::get("/two").held())?;
    stage.farm.holds_so_many(1).await?;
    let order_with_it = stage.begin(Ask::post("/two").held())?;
    stage.farm.holds_so_many(2).await?;
    stage.farm.stop(&peer).await?;
    let after = [stage.begin(Ask::get("/two"))?, stage.begin(Ask::post("/two"))?];
    let rest = stage.rest_within(3, Duration::from_millis(500)).await;
    stage.says("down", &[&peer]).await?;
    // Whoever was too late fails by then.
    sleep(Duration::from_millis(300)).await;
    let is_in_time = rest.is_ok() && stage.view().await?.queue.is_some_and(|queue| queue.held == 3);
    stage.farm.release().await?;
    stage.farm.restart(&peer).await?;
    stage.says("up", &[&peer]).await?;
    if is_in_time {
        stage.farm.holds_so_many(1).await?;
    }
    stage.farm.release().await?;
    let met = stage.end_of(with_it).await?;
    ensure!(stage.end_of(order_with_it).await? == Outcome::failed(502, 1, "sent"));
    let [get, post] = after;
    let after = [stage.end_of(get).await?, stage.end_of(post).await?];
    if !is_in_time {
        return Ok(None);
    }
    ensure!(met == Outcome { arrived: 2, ..Outcome::answered(200, tries, "held") }, "{met:?}");
    let good = Outcome { arrived: 1, ..Outcome::answered(200, 2, "held") };
    ensure!(after.iter().all(|met| *met == good), "{after:?}");
    Ok(Some(()))
}

/// nginx is busy while the worker dies, and then finds one connection to it after the other in its cache: that is one death.
#[tokio::test]
async fn who_meets_a_dead_worker_twice_has_not_killed_two() -> Result<()> {
    for version in VERSIONS {
        let stage = Stage::new(version, 1, "keepalive 4;", "").await?;
        let (peer, worker) = (stage.peer(), stage.site.serving_workers()[0]);
        let tries = in_time(async || {
            let both = [stage.begin(Ask::get("").held())?, stage.begin(Ask::get("").held())?];
            stage.farm.holds_so_many(2).await?;
            stage.farm.release().await?;
            for visit in both {
                ensure!(stage.end_of(visit).await?.status == 200);
            }
            let visit = stage.begin(Ask::get("").held())?;
            stage.farm.holds_so_many(1).await?;
            process::signal(worker, Signal::STOP);
            wait::until("nginx to stop", PATIENCE, async || process::is_stopped(worker).then_some(()))
                .await?;
            stage.farm.stop(&peer).await?;
            process::signal(worker, Signal::CONT);
            stage.says("down", &[&peer]).await?;
            sleep(Duration::from_millis(300)).await;
            let waits = stage.view().await?.queue.is_some_and(|queue| queue.held == 1);
            stage.farm.release().await?;
            stage.farm.restart(&peer).await?;
            stage.says("up", &[&peer]).await?;
            if waits {
                stage.farm.holds_so_many(1).await?;
                stage.farm.release().await?;
            }
            let met = stage.end_of(visit).await?;
            Ok((waits && met.status == 200).then_some(met.tries))
        })
        .await?;
        ensure!(tries == 4, "{tries}: it is to meet both connections, a closed port, and the next worker");
        stage.end().await?;
    }
    Ok(())
}

/// A worker that goes lets one more connection in, and nginx is told before that breaks, too: that is one death.
#[tokio::test]
async fn who_comes_to_a_worker_that_goes_and_was_named_has_not_killed_two() -> Result<()> {
    for version in VERSIONS {
        let stage = Stage::new(version, 1, "keepalive 4;", "").await?;
        in_time(async || comes_twice_to_one_that_goes(&stage).await).await?;
        stage.end().await?;
    }
    Ok(())
}

async fn comes_twice_to_one_that_goes(stage: &Stage) -> Result<Option<()>> {
    let peer = stage.peer();
    stage.meets("a connection is kept", Ask::get(""), Outcome::answered(200, 1, "-")).await?;
    let visit = stage.begin(Ask::get("").held())?;
    stage.farm.holds_so_many(1).await?;
    let broke = Moment::now();
    stage.farm.disconnect(&peer).await?;
    // The one that broke is held, too, until it is released.
    stage.farm.holds_so_many(2).await?;
    stage.says("down", &[&peer]).await?;
    stage.farm.disconnect(&peer).await?;
    let is_in_time = Moment::now().since(broke) < Duration::from_millis(150);
    let waits = stage.rest_within(1, Duration::from_millis(500)).await.is_ok();
    stage.says("up", &[&peer]).await?;
    if waits {
        stage.farm.holds_so_many(3).await?;
    }
    stage.farm.release().await?;
    let met = stage.end_of(visit).await?;
    if !is_in_time {
        return Ok(None);
    }
    ensure!(met == Outcome::answered(200, 3, "held"), "{met:?}");
    Ok(Some(()))
}

/// In cluster mode another worker is there at once; nginx only has to hear that one died.
#[tokio::test]
async fn who_was_broken_goes_to_another_worker_when_nginx_is_told() -> Result<()> {
    for version in VERSIONS {
        let stage = Stage::new(version, 1, "", "").await?;
        let peer = stage.peer();
        in_time(async || {
            let visit = stage.begin(Ask::get("").dies("1"))?;
            stage.rest(1).await?;
            stage.says("changing", &[&peer]).await?;
            let met = stage.end_of(visit).await?;
            stage.says("up", &[&peer]).await?;
            if met == Outcome::failed(502, 1, "same") {
                return Ok(None);
            }
            ensure!(met == Outcome::answered(200, 2, "replaced"), "{met:?}");
            Ok(Some(()))
        })
        .await?;
        stage.end().await?;
    }
    Ok(())
}

/// All of several peers refuse before nginx is told that they are gone. Who was refused by two of them has not been tried twice.
#[tokio::test]
async fn where_all_died_at_once_who_met_them_waits() -> Result<()> {
    for version in VERSIONS {
        let stage = Stage::new(version, 3, "", TWO).await?;
        for peer in stage.farm.peers() {
            stage.farm.stop(peer).await?;
        }
        for (location, tries) in [("", 4), ("/two", 3)] {
            in_time(async || all_died(&stage, location, tries).await).await?;
            for peer in stage.farm.peers() {
                stage.farm.stop(peer).await?;
            }
        }
        stage.end().await?;
    }
    Ok(())
}

async fn all_died(stage: &Stage, location: &'static str, tries: u32) -> Result<Option<()>> {
    let peers = stage.farm.peers();
    let visits = [stage.begin(Ask::get(location))?, stage.begin(Ask::post(location))?];
    stage.rest(2).await?;
    stage.says("down", &peers).await?;
    sleep(Duration::from_millis(300)).await;
    let is_in_time = stage.view().await?.queue.is_some_and(|queue| queue.held == 2);
    if is_in_time {
        for peer in &peers {
            stage.farm.restart(peer).await?;
        }
    }
    stage.says("up", &peers).await?;
    for visit in visits {
        let met = stage.end_of(visit).await?;
        let good = Outcome { arrived: 1, ..Outcome::answered(200, tries, "held") };
        ensure!(!is_in_time || met == good, "{met:?}");
    }
    Ok(is_in_time.then_some(()))
}

#[tokio::test]
async fn a_client_that_leaves_while_its_request_waits_is_forgotten() -> Result<()> {
    for version in VERSIONS {
        let stage = Stage::new(version, 1, "", "").await?;
        // Long enough to be met: it was told to come in two seconds.
        let mut leaving = stage.door().open().await?;
        let head = "GET /leaves HTTP/1.1\r\nHost: x\r\nX-Refuse: *\r\nX-Later: 2\r\n\r\n";
        leaving.write_all(head.as_bytes()).await?;
        stage.rest(1).await?;
        ensure!(stage.retry().await?.active == 1);
        drop(leaving);
        stage.rest(0).await?;
        ensure!(stage.retry().await?.active == 0);
        ensure!(stage.arrived("/leaves").await? == 1);
        stage.end().await?;
    }
    Ok(())
}

/// Old workers finish what they have, and what waits is part of it.
#[tokio::test]
async fn a_reload_takes_nothing_from_who_waits() -> Result<()> {
    for version in VERSIONS {
        let stage = Stage::new(version, 1, "", "").await?;
        let visit = stage.begin(Ask::get("").refused("503", "1").later("2"))?;
        stage.rest(1).await?;
        stage.site.reload().await?;
        stage.rest(1).await?;
        let met = stage.end_of(visit).await?;
        ensure!(met == Outcome::answered(200, 2, "retry_after"), "{met:?}");
        stage.end().await?;
    }
    Ok(())
}

/// What a process that is killed had waiting, and had repeated, is nobody's.
#[tokio::test]
async fn a_worker_of_nginx_that_is_killed_leaves_nothing() -> Result<()> {
    for version in VERSIONS {
        let stage = Stage::new(version, 1, "", "").await?;
        let visit = stage.begin(Ask::get("").refused("503", "1").later("2"))?;
        stage.rest(1).await?;
        ensure!(stage.retry().await?.active == 1);
        for worker in stage.site.serving_workers() {
            process::signal(worker, Signal::KILL);
        }
        ensure!(visit.reply().await.is_err(), "its connection was cut");
        stage.rest(0).await?;
        ensure!(stage.retry().await?.active == 0);
        stage.site.end_but_for(&["exited on signal 9"]).await?;
    }
    Ok(())
}
