//! PM2 ends one worker, or two at a time, and says so before: nobody notices.

use crate::trial::{Findings, Plan, Trial, set};
use anyhow::Result;
use e2e::{alone, app::Mode, scenario::Setup};
use rustix::process::Signal;
use serde_json::json;
use std::fs;

/// A server of nginx behind which nobody is at first.
const SPARE: u16 = 4;

pub(crate) async fn play(setup: Setup) -> Result<Findings> {
    // PM2 looks at its workers' memory each 30 s.
    let daemon = &[("PM2_WORKER_INTERVAL", "1000")];
    let mut trial = Trial::set(
        &Plan { setup, mode: Mode::Fork, workers: 4, servers: 5, daemon },
        |place, _, ecosystem| {
            set(ecosystem, "/apps/0/watch", json!([place.file("watched")]));
            set(ecosystem, "/apps/0/max_memory_restart", json!("200M"));
        },
    )
    .await?;

    trial.pm2("stop 3").await?;
    trial.only_up(&[0, 1, 2, SPARE]).await?;
    trial.reason_is(3, "gone: myapp:3: it ended for good").await?;
    trial.pm2("start 3").await?;
    trial.only_up(&[0, 1, 2, 3, SPARE]).await?;

    trial.pm2("delete 3").await?;
    trial.only_up(&[0, 1, 2, SPARE]).await?;
    trial.reason_is(3, "gone: myapp:3: it ended for good").await?;
    // It gets the port after the highest one.
    let began = trial.pm2("scale myapp 4").await?;
    trial.replaced(1, began).await?;
    trial.only_up(&[0, 1, 2, 3, SPARE]).await?;

    // PM2 takes the first one away.
    trial.pm2("scale myapp 3").await?;
    trial.only_up(&[1, 2, 3, SPARE]).await?;
    let began = trial.pm2("scale myapp +1").await?;
    trial.replaced(1, began).await?;
    trial.app.workers += 1;

    let began = trial.begin("max_memory_restart of two");
    trial.signal(1, Signal::USR2)?;
    trial.signal(SPARE, Signal::USR2)?;
    trial.replaced(2, began).await?;
    trial.only_up(&[1, 2, 3, SPARE]).await?;

    let began = trial.begin("watch: a file changes");
    fs::write(trial.file("watched"), "new")?;
    trial.replaced(4, began).await?;
    trial.only_up(&[1, 2, 3, SPARE]).await?;

    let began = trial.pm2("restart myapp").await?;
    trial.replaced(4, began).await?;
    trial.only_up(&[1, 2, 3, SPARE]).await?;
    trial.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_death_that_pm2_announces_loses_nothing_while_another_worker_serves() -> Result<()> {
    let _alone = alone::take()?;
    let findings = play(Setup::Handoff).await?;
    findings.nobody_noticed();
    Ok(())
}
