//! Somebody else changes the app in the middle of a roll-out: it does nothing more, and says so.

use crate::stage::{LIGHT, Plan, Stage};
use anyhow::{Context, Result, ensure};
use std::time::Duration;

/// Longer than PM2's command line needs to start.
const LONG: Duration = Duration::from_millis(2_500);

/// In the middle of a drain, PM2 is told something.
async fn interferes(stage: &Stage, command: &[&str], says: &[&str]) -> Result<()> {
    let before = stage.workers().await?;
    let held = stage.hold(0, LONG).await?;
    let mut reload = stage.begin(&["shop"])?;
    reload.reaches(0, "draining").await?;
    let (told, ended) = tokio::join!(stage.pm2.run(command), reload.ended());
    let ended = ended?.is(15, says).with_context(|| command.join(" "))?;
    told?;
    eprintln!("pm2 {}: {}", command.join(" "), ended.text());
    ensure!(ended.replaced().is_empty(), "{ended:?}");
    for worker in before.keys() {
        ensure!(!ended.steps(*worker).contains(&"stopping"), "it stopped {worker}: {ended:?}");
    }
    ensure!(stage.marked().await?.is_empty(), "its marks are not lifted");
    held.is_served(stage).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_command_ends_the_roll_out_and_nothing_more_is_stopped() -> Result<()> {
    let stage = Plan::workers(3).with_sidecar().set().await?;
    let visits = stage.visited(LIGHT);
    let before = stage.workers().await?;
    let somebody = ["somebody else changes this app"];

    interferes(&stage, &["stop", "2"], &somebody).await?;
    let now = stage.workers().await?;
    let status = now.get(&2).map(|worker| worker.status.as_str());
    ensure!(status == Some("stopped"), "it is not ours to start: {now:?}");
    stage.kept(&before, &[0, 1]).await?;
    stage.pm2.run(&["start", "2"]).await?;
    stage.is_whole().await?;

    interferes(&stage, &["restart", "1"], &somebody).await?;
    stage.is_whole().await?;
    interferes(&stage, &["reload", "shop", "--force"], &somebody).await?;
    stage.is_whole().await?;

    interferes(&stage, &["delete", "2"], &somebody).await?;
    ensure!(stage.workers().await?.len() == 2, "it is not ours to start again");
    // PM2 gives it the port after the highest one, which is the one that became free.
    stage.pm2.run(&["scale", "shop", "3"]).await?;
    stage.is_whole().await?;
    stage.reload(&["shop"]).await?.is(0, &["all 3 workers of shop are new"])?;
    stage.is_whole().await?;

    interferes(&stage, &["scale", "shop", "4"], &["somebody else changes this app", "was added"]).await?;
    visits.end_well().await?;
    stage.end().await
}
