//! Requests that take longer than they may.

use crate::stage::{LIGHT, PATIENCE, Plan};
use anyhow::{Result, ensure};
use e2e::wait;
use std::time::Duration;
use tokio::task::JoinSet;

const LONG: Duration = Duration::from_millis(2_500);
/// Longer than a worker is waited for that was told to end.
const LONGER: Duration = Duration::from_secs(6);
const SOON: [&str; 3] = ["--drain-timeout", "700ms", "--on-deadline"];

fn then<'a>(what: &'a str, target: &'a str) -> Vec<&'a str> {
    [&[target], SOON.as_slice(), &[what]].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_outlasts_the_drain_timeout_is_spared_awaited_or_cut_and_counted() -> Result<()> {
    let stage = Plan::workers(2).naive().set().await?;
    let visits = stage.visited(LIGHT);

    let before = stage.workers().await?;
    let held = stage.hold(0, LONG).await?;
    let ended = stage.reload(&then("stop", "shop")).await?;
    let ended = ended
        .is(3, &["shop:0 still has 1 in flight after 700ms", "It was not stopped", "--drain-timeout"])?;
    ensure!(ended.steps(0) == ["draining", "kept"] && ended.steps(1).is_empty(), "{:?}", ended.events);
    stage.kept(&before, &[0, 1]).await?;
    stage.is_whole().await?;
    held.is_served(&stage).await?;

    let held = stage.hold(0, LONG).await?;
    let ended = stage.reload(&then("wait", "shop")).await?.is(0, &["all 2 workers of shop are new"])?;
    ensure!(ended.cut() == Some(0), "{:?}", ended.events);
    stage.kept(&before, &[]).await?;
    held.is_served(&stage).await?;

    let before = stage.workers().await?;
    // This worker alone: the other one may hold an order, too, that came to it first.
    let held = stage.hold(0, LONGER).await?;
    let ended = stage.reload(&then("cut", "shop:0")).await?;
    let ended = ended.is(4, &["1 requests that took longer", "were cut"])?;
    ensure!(ended.cut() == Some(1), "{:?}", ended.events);
    held.is_cut(&stage).await?;
    stage.kept(&before, &[1]).await?;
    stage.is_whole().await?;

    visits.end_well().await?;
    stage.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_graceful_worker_finishes_after_the_deadline_is_not_counted_as_cut() -> Result<()> {
    let stage = Plan::workers(2).set().await?;
    let held = stage.hold(0, LONG).await?;
    let ended = stage
        .reload(&then("cut", "shop"))
        .await?
        .is(0, &["all 2 workers of shop are new, and nothing was cut"])?;
    ensure!(ended.cut() == Some(0), "{:?}", ended.events);
    held.is_served(&stage).await?;
    stage.is_whole().await?;
    stage.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_worker_answers_instead_is_not_counted_as_cut() -> Result<()> {
    let stage = Plan::workers(2).naive().set().await?;
    let mut visits = JoinSet::new();
    for _ in 0..6 {
        let door = stage.site.visitors();
        visits.spawn(async move { door.get("/slow?ms=3000").await });
    }
    wait::until("both workers to be busy", PATIENCE, async || {
        let peers = stage.site.app().await.ok()?;
        peers.iter().all(|peer| peer.in_flight == 3).then_some(())
    })
    .await?;
    let ended = stage.reload(&then("cut", "shop:0")).await?.is(0, &[])?;
    ensure!(ended.cut() == Some(0), "{:?}", ended.events);
    for answer in visits.join_all().await {
        ensure!(answer?.status == 200);
    }
    stage.end().await
}
