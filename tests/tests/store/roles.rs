//! One process that is both an app host and an edge; workers that share an address; workers that speak for themselves.

use crate::fleet::{Fleet, Plan, WARM, all_is_well, visits};
use anyhow::{Result, ensure};
use e2e::{alone, app::Mode};
use tokio::time::sleep;

/// `--role both` beside an nginx of its own, and another nginx elsewhere. Workers in cluster mode that handle no signal and load
/// the preload: whatever is typed, every nginx is told before they go.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "make store"]
async fn a_machine_that_is_both_hands_over_workers_that_speak_for_themselves() -> Result<()> {
    let _alone = alone::take()?;
    let mut fleet = Fleet::of(Plan { mode: Mode::Cluster, preload: true, ..Plan::default() }).await?;
    fleet.be_both();
    fleet.begin().await?;
    everybody_is_replaced(&fleet, true).await
}

/// Without the preload: the roll-out waits at every nginx, for each worker of the address that they share.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "make store"]
async fn workers_that_share_an_address_are_rolled_through_every_nginx() -> Result<()> {
    let _alone = alone::take()?;
    let mut fleet = Fleet::of(Plan { mode: Mode::Cluster, workers: 3, ..Plan::default() }).await?;
    fleet.begin().await?;
    everybody_is_replaced(&fleet, false).await
}

/// By `handoff reload`, and by `pm2 reload` before; and nobody notices.
async fn everybody_is_replaced(fleet: &Fleet, by_pm2_too: bool) -> Result<()> {
    let before = fleet.pids().await?;
    let load = fleet.load();
    sleep(WARM).await;
    if by_pm2_too {
        fleet.pm2.reload().await?;
    }
    let ended = fleet.handoff(&["reload", "myapp"]).await?;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let visits = visits(load).await?;
    let after = fleet.pids().await?;
    ensure!(after.iter().all(|pid| !before.contains(pid)), "{before:?} {after:?}");
    all_is_well(&visits, &fleet.orders()?)
}
