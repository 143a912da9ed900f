//! PM2 ends every worker of an app at once. Requests fail while nobody listens and at no other time; as soon as somebody
//! does, all is as it was.

use crate::trial::{Findings, Plan, Trial, set};
use anyhow::Result;
use e2e::{
    alone,
    app::{Mode, NAME},
    load::Visit,
    scenario::Setup,
    wait,
};
use serde_json::json;
use std::{
    fs,
    time::{Duration, SystemTime},
};
use tokio::time::timeout;

/// Longer than a restart of the whole app takes.
const SOON: Duration = Duration::from_secs(10);
const ALL: [u16; 4] = [0, 1, 2, 3];

/// Between these nobody is there, and nobody is expected.
const BETWEEN: [&str; 2] = ["kill", "resurrect"];

/// A cron pattern for once a minute, the next time soon.
pub(crate) fn soon() -> Result<String> {
    let second = (SystemTime::now() + SOON).duration_since(SystemTime::UNIX_EPOCH)?.as_secs() % 60;
    Ok(format!("{second} * * * * *"))
}

pub(crate) async fn play(setup: Setup) -> Result<Findings> {
    let plan = Plan { setup, mode: Mode::Fork, workers: 4, servers: 4, daemon: &[] };
    let mut trial = Trial::set(&plan, |place, _, ecosystem| {
        set(ecosystem, "/apps/0/watch", json!([place.file("watched")]));
    })
    .await?;

    let began = trial.begin("watch: a second change in mid-restart");
    fs::write(trial.file("watched"), "one")?;
    trial.replaced(2, began).await?;
    // PM2 is at the other two now, and begins anew with these. It does not see a change while it restarts for the one before.
    wait::until("PM2 to begin anew", 2 * SOON, async || {
        fs::write(trial.file("watched"), "two").ok()?;
        timeout(SOON / 2, trial.replaced(6, began)).await.ok()
    })
    .await??;
    trial.only_up(&ALL).await?;

    let began = trial.begin("restart myapp --cron-restart");
    trial.pm2.run(&["restart", NAME, "--cron-restart", &soon()?]).await?;
    trial.replaced(4, began).await?;
    trial.only_up(&ALL).await?;
    if setup == Setup::Handoff {
        let status = trial.status().await?;
        assert!(status.contains("myapp: beware: cron_restart restarts all"), "{status}");
    }

    let began = trial.begin("cron_restart");
    trial.replaced(4, began).await?;
    trial.only_up(&ALL).await?;

    let began = trial.pm2("update").await?;
    trial.replaced(4, began).await?;
    trial.only_up(&ALL).await?;

    trial.pm2("kill").await?;
    trial.only_up(&[]).await?;
    for worker in ALL {
        trial.reason_is(worker, &format!("gone: myapp:{worker}: it ended for good")).await?;
    }
    let began = trial.pm2("resurrect").await?;
    trial.replaced(4, began).await?;
    trial.only_up(&ALL).await?;
    trial.end().await
}

pub(crate) fn nobody_was_expected(findings: &Findings, visit: &Visit) -> bool {
    BETWEEN.contains(&findings.deed(visit)) && findings.nobody_listened(visit)
}

#[tokio::test(flavor = "multi_thread")]
async fn where_all_die_at_once_requests_fail_only_if_nobody_is_expected() -> Result<()> {
    let _alone = alone::take()?;
    let findings = play(Setup::Handoff).await?;
    findings.only_failed(|visit| {
        nobody_was_expected(&findings, visit) || findings.lay_before_a_worker_that_closed(visit)
    });
    Ok(())
}
