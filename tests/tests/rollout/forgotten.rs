//! A worker in cluster mode dies while PM2 replaces it. PM2 starts it again, tells it to go before it has said `ready`, takes that
//! for a sign of life, starts it once more when it has gone, and forgets it.

use crate::stage::{PATIENCE, Plan, Stage};
use anyhow::{Context, Result, ensure};
use e2e::{process, wait};
use handoff_wire::PeerState;
use rustix::process::Signal;
use std::collections::BTreeSet;

/// Workers that PM2 does not list.
async fn strays(stage: &Stage) -> Result<BTreeSet<u32>> {
    let listed: BTreeSet<u32> = stage.workers().await?.values().map(|worker| worker.pid).collect();
    let workers = process::children(stage.pm2.daemon()?).into_iter();
    Ok(workers.filter(|pid| !listed.contains(pid) && process::is_alive(*pid)).collect())
}

/// One that is none of these.
async fn stray(stage: &Stage, but: &[u32]) -> Result<u32> {
    wait::until("a worker that PM2 does not list", PATIENCE, async || {
        strays(stage).await.ok()?.into_iter().find(|pid| !but.contains(pid))
    })
    .await
}

/// Replaces the workers, and one dies.
async fn one_dies(stage: &Stage) -> Result<()> {
    // The new one is ready before the old one that was started again, and that one is ready before it has gone.
    stage.release("slow 2000")?;
    let dies = async {
        let old = stray(stage, &[]).await?;
        stage.release("slow 3500, weary 4000")?;
        process::signal(old, Signal::KILL);
        stray(stage, &[old]).await
    };
    let (reloaded, again) = tokio::join!(stage.pm2.run(&["reload", "shop"]), dies);
    reloaded?;
    again.map(drop)
}

/// Whom PM2 has forgotten, as the sidecar says: on a machine that is slow at the wrong moment, nobody.
async fn forgotten(stage: &Stage) -> Result<Option<u32>> {
    wait::until("all to be whole, or one to be named", PATIENCE, async || {
        let (_, status) = stage.says(&["status"]).await.ok()?;
        let named = status.split_once("PM2 has forgotten in cluster mode: pid ").map(|(_, rest)| rest);
        match named.and_then(|rest| rest.split(['.', ',', ' ']).next()?.parse().ok()) {
            Some(pid) => Some(Some(pid)),
            None => strays(stage).await.ok()?.is_empty().then_some(None),
        }
    })
    .await
}

/// As the mend says.
async fn end(forgotten: u32) -> Result<()> {
    process::signal(forgotten, Signal::INT);
    process::death(forgotten).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_pm2_forgot_is_named_and_the_mend_ends_it() -> Result<()> {
    let stage = Plan::workers(2).cluster().with_sidecar().set().await?;
    let mut named = None;
    for _ in 0..5 {
        stage.is_whole().await?;
        one_dies(&stage).await?;
        named = forgotten(&stage).await?;
        if named.is_some() {
            break;
        }
    }
    let forgotten = named.context("PM2 forgets nobody")?;
    let ((_, status), (code, refused)) =
        tokio::try_join!(stage.says(&["status"]), stage.says(&["reload", "shop"]))?;
    ensure!(status.contains(&format!("`kill -INT {forgotten}")), "{status}");
    ensure!(code == Some(1) && refused.contains(&format!("pid {forgotten}")), "{code:?}: {refused}");
    let peer = stage.site.app().await?.pop().context("a peer")?;
    ensure!(peer.state == PeerState::Changing, "{peer:?}");
    let (_, found) = stage.says(&["doctor", "--only", "pm2-worker-forgotten"]).await?;
    ensure!(found.contains(&format!("kill -INT {forgotten}")), "{found}");

    end(forgotten).await?;
    // There may be another one that was not named yet.
    while let Some(pid) = self::forgotten(&stage).await? {
        end(pid).await?;
    }
    stage.is_whole().await?;
    wait::until("nobody to be forgotten", PATIENCE, async || {
        let (_, status) = stage.says(&["status"]).await.ok()?;
        (!status.contains("forgotten")).then_some(())
    })
    .await?;
    stage.release("good")?;
    stage.reload(&["shop"]).await?.is(0, &["all 2 workers of shop are new"])?;
    stage.end().await
}

/// PM2 starts a canary again that died, and may do so even while it is told to forget it.
#[tokio::test(flavor = "multi_thread")]
async fn a_canary_that_dies_is_ended_for_good() -> Result<()> {
    let stage = Plan::workers(2).cluster().with_sidecar().set().await?;
    for slow in [0, 50, 200, 500, 1000] {
        stage.is_whole().await?;
        stage.release(&format!("good, slow {slow}"))?;
        let before = stage.workers().await?;
        let reload = stage.begin(&["shop"])?;
        let canary = wait::until("a canary", PATIENCE, async || {
            let workers = stage.workers().await.ok()?;
            workers.into_iter().find(|(id, worker)| !before.contains_key(id) && worker.pid != 0)
        });
        let (_, canary) = canary.await?;
        process::signal(canary.pid, Signal::KILL);
        reload.ended().await?.is(10, &["it crashed"])?;
        wait::until("nobody to be left", PATIENCE, async || {
            strays(&stage).await.ok()?.is_empty().then_some(())
        })
        .await
        .with_context(|| format!("with one that listens after {slow} ms"))?;
        stage.kept(&before, &[0, 1]).await?;
    }
    stage.end().await
}
