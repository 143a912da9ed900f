//! The only worker of an app is replaced, or dies: whoever comes meanwhile waits for the next one.

use crate::trial::{Plan, Trial};
use anyhow::Result;
use e2e::{alone, app::Mode, scenario::Setup};
use rustix::process::Signal;
use std::time::Duration;
use tokio::time::sleep;

/// Until the new worker has taken all the connections of those who waited. What it has not taken when it closes its port is
/// reset by the kernel, and a POST among these is not repeated.
const TAKEN: Duration = Duration::from_secs(1);

async fn is_replaced(mode: Mode) -> Result<()> {
    let plan = Plan { setup: Setup::Handoff, mode, workers: 1, servers: 1, daemon: &[] };
    let mut trial = Trial::set(&plan, |_, _, _| ()).await?;
    for words in ["restart myapp", "reload myapp", "restart myapp"] {
        let began = trial.pm2(words).await?;
        trial.replaced(1, began).await?;
        trial.only_up(&[0]).await?;
        sleep(TAKEN).await;
    }
    trial.end().await?.nobody_noticed();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_only_worker_is_replaced_and_nobody_notices_but_by_the_time_it_takes() -> Result<()> {
    let _alone = alone::take()?;
    for mode in [Mode::Fork, Mode::Cluster] {
        is_replaced(mode).await?;
    }
    Ok(())
}

/// Nobody says so beforehand. Who was with it, or comes before nginx is told, waits as well; but not an order that was with it.
#[tokio::test(flavor = "multi_thread")]
async fn the_only_worker_dies_and_takes_nothing_with_it_but_its_orders() -> Result<()> {
    let _alone = alone::take()?;
    let plan = Plan { setup: Setup::Handoff, mode: Mode::Fork, workers: 1, servers: 1, daemon: &[] };
    let mut trial = Trial::set(&plan, |_, _, _| ()).await?;
    for (what, signal) in
        [("it throws", Signal::HUP), ("it is killed", Signal::KILL), ("it throws again", Signal::HUP)]
    {
        let began = trial.begin(what);
        trial.signal(0, signal)?;
        trial.replaced(1, began).await?;
        trial.only_up(&[0]).await?;
        sleep(TAKEN).await;
    }
    let findings = trial.end().await?;
    findings.only_failed(|visit| findings.died_with_its_worker(visit));
    Ok(())
}
