//! The only worker of an app is replaced: whoever comes meanwhile waits for the next one.

use crate::trial::{Plan, Trial};
use anyhow::Result;
use e2e::{alone, app::Mode, scenario::Setup};
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
