//! A worker in cluster mode dies while PM2 replaces it. PM2 starts it again, tells it to go before it has said `ready`, takes that
//! for a sign of life, starts it once more when it has gone, and forgets it.

use crate::stage::{PATIENCE, Plan, Stage};
use anyhow::{Context, Result, bail, ensure};
use e2e::{process, wait};
use handoff_wire::PeerState;
use rustix::process::Signal;
use std::{collections::BTreeSet, time::Duration};

/// Longer than `weary` is.
const SOON: Duration = Duration::from_secs(12);

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

/// Replaces the workers, and one dies. Whom PM2 forgot: on a machine that is slow at the wrong moment, nobody, or the one that it
/// had started again, for which it starts another one when it ends.
async fn one_dies(stage: &Stage) -> Result<Option<u32>> {
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
    let again = again?;
    let has_gone = wait::until("the one that was started again to go", SOON, async || {
        (!process::is_alive(again)).then_some(())
    });
    let has_gone = has_gone.await.is_ok();
    let mut forgotten = strays(stage).await?.into_iter();
    Ok(forgotten.next().filter(|_| has_gone && forgotten.len() == 0))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_pm2_forgot_is_named_and_the_mend_ends_it() -> Result<()> {
    for _ in 0..6 {
        let stage = Plan::workers(2).cluster().with_sidecar().set().await?;
        if let Some(forgotten) = one_dies(&stage).await?
            && is_named_and_ended(&stage, forgotten).await?
        {
            return stage.end().await;
        }
    }
    bail!("PM2 forgets nobody, or goes on with it")
}

/// False: PM2 has started another one in its place.
async fn is_named_and_ended(stage: &Stage, forgotten: u32) -> Result<bool> {
    let named = wait::until("the sidecar to name it", PATIENCE, async || {
        let (_, status) = stage.says(&["status"]).await.ok()?;
        status.contains(&format!("PM2 has forgotten in cluster mode: pid {forgotten}.")).then_some(status)
    });
    let (named, refused) = tokio::join!(named, stage.says(&["reload", "shop"]));
    let (named, (code, refused)) = (named?, refused?);
    ensure!(named.contains(&format!("`kill -INT {forgotten}` ends it")), "{named}");
    ensure!(code == Some(1) && refused.contains(&format!("(pid {forgotten})")), "{code:?}: {refused}");
    let peer = stage.site.app().await?.pop().context("a peer")?;
    ensure!(peer.state == PeerState::Changing, "{peer:?}");
    let (_, found) = stage.says(&["doctor", "--only", "pm2-worker-forgotten"]).await?;
    ensure!(found.contains(&format!("kill -INT {forgotten}")), "{found}");

    process::signal(forgotten, Signal::INT);
    process::death(forgotten).await?;
    let is_alone = wait::until("nobody to be forgotten", PATIENCE, async || {
        let (_, status) = stage.says(&["status"]).await.ok()?;
        let is_alone = strays(stage).await.ok()?.is_empty();
        (!is_alone || !status.contains("forgotten")).then_some(is_alone)
    });
    if !is_alone.await? {
        return Ok(false);
    }
    stage.is_whole().await?;
    stage.release("good")?;
    let reloaded = stage.reload(&["shop"]).await?;
    if !strays(stage).await?.is_empty() {
        return Ok(false);
    }
    reloaded.is(0, &["all 2 workers of shop are new"])?;
    Ok(true)
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
