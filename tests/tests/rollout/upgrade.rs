//! nginx's binary is upgraded, and two masters live.

use crate::stage::{LIGHT, Plan};
use anyhow::{Result, ensure};
use e2e::process;
use rustix::process::Signal;
use std::time::Duration;
use tokio::time::sleep;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "an old master may take longer to go than a roll-out waits"]
async fn while_two_masters_live_nobody_is_stopped() -> Result<()> {
    let mut stage = Plan::workers(2).naive().with_sidecar().as_daemon().set().await?;
    let before = stage.workers().await?;
    let (old, new) = (stage.site.master(), stage.site.upgraded().await?);
    let words = ["nginx is being upgraded", &format!("kill -QUIT {old}"), "serves on"];
    let ended = stage.reload(&["shop", "--drain-timeout", "300ms"]).await?.is(3, &words)?;
    ensure!(ended.steps(0) == ["kept"] && ended.steps(1).is_empty(), "{:?}", ended.events);

    let mut reload = stage.begin(&["shop"])?;
    reload.reaches(0, "note").await?;
    sleep(Duration::from_millis(500)).await;
    stage.kept(&before, &[0, 1]).await?;
    ensure!(stage.marked().await?.is_empty(), "a worker is kept from users");
    stage.site.signal(Signal::QUIT);
    process::death(old).await?;
    stage.site.follow(new);
    let visits = stage.visited(LIGHT);
    let ended = reload.ended().await?.is(0, &["all 2 workers of shop are new, and nothing was cut"])?;
    ensure!(ended.steps(0).first() == Some(&"draining"), "{:?}", ended.events);
    stage.kept(&before, &[]).await?;
    stage.is_whole().await?;
    visits.end_well().await?;
    stage.end().await
}
