//! One at a time, `pm2 reload` too, for as long as it takes.

use crate::stage::{LIGHT, PATIENCE, Plan};
use anyhow::{Context, Result, ensure};
use e2e::wait;
use std::{fs, time::Duration};

/// Longer than the lock's stamp stays as it is.
const LONG: Duration = Duration::from_secs(12);

#[tokio::test(flavor = "multi_thread")]
async fn nobody_else_reloads_while_a_roll_out_is_under_way_however_long_it_takes() -> Result<()> {
    let stage = Plan::workers(2).with_sidecar().set().await?;
    let visits = stage.visited(LIGHT);
    let before = stage.workers().await?;
    let lock = stage.site.file("pm2/reload.lock");
    let stamp = || fs::read_to_string(&lock).ok().and_then(|stamp| stamp.parse::<u64>().ok());

    let held = stage.hold(0, LONG).await?;
    let mut reload = stage.begin(&["shop", "--drain-timeout", "30s"])?;
    reload.reaches(0, "draining").await?;
    let first = stamp().context("no stamp that PM2 respects")?;
    stage.reload(&["shop"]).await?.is(14, &["another `handoff reload` is under way", "pid"])?;
    let refused = stage.pm2.run(&["reload", "shop"]).await.err().context("pm2 reload was not refused")?;
    ensure!(refused.to_string().contains("Reload already in progress"), "{refused}");
    stage.kept(&before, &[0, 1]).await?;
    wait::until("the stamp to be written anew", LONG, async || stamp().filter(|&stamp| stamp > first))
        .await?;
    let ended = reload.ended().await?.is(0, &["all 2 workers of shop are new"])?;
    ensure!(ended.cut() == Some(0), "{ended:?}");
    held.is_served(&stage).await?;
    ensure!(stamp().is_none(), "it still holds PM2's lock");

    // The other way round.
    let before = stage.workers().await?;
    stage.release("good, slow 1500")?;
    let pm2 = stage.pm2.run(&["reload", "shop"]);
    let handoff = async {
        wait::until("PM2 to hold its lock", PATIENCE, async || stamp()).await?;
        stage.reload(&["shop"]).await?.is(14, &["a `pm2 reload` is under way", "try again in"])
    };
    let (pm2, handoff) = tokio::join!(pm2, handoff);
    pm2?;
    handoff?;
    stage.kept(&before, &[]).await?;
    stage.is_whole().await?;
    visits.end_well().await?;
    stage.end().await
}
