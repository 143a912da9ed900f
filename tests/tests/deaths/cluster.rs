//! The same in cluster mode, where all workers share an address.

use crate::all_at_once::nobody_was_expected;
use crate::trial::{Findings, Plan, Trial, set};
use anyhow::Result;
use e2e::{
    alone,
    app::{Mode, NAME},
    scenario::Setup,
};
use rustix::process::Signal;
use serde_json::json;
use std::fs;

pub(crate) async fn announced(setup: Setup) -> Result<Findings> {
    // PM2 looks at its workers' memory each 30 s.
    let daemon = &[("PM2_WORKER_INTERVAL", "1000")];
    let plan = Plan { setup, mode: Mode::Cluster, workers: 4, servers: 1, daemon };
    let mut trial = Trial::set(&plan, |place, _, ecosystem| {
        set(ecosystem, "/apps/0/watch", json!([place.file("watched")]));
        set(ecosystem, "/apps/0/max_memory_restart", json!("200M"));
    })
    .await?;

    trial.pm2("stop 3").await?;
    trial.only_up(&[0]).await?;
    let began = trial.pm2("start 3").await?;
    trial.replaced(1, began).await?;
    trial.only_up(&[0]).await?;

    trial.pm2("delete 3").await?;
    trial.only_up(&[0]).await?;
    let began = trial.pm2("scale myapp 4").await?;
    trial.replaced(1, began).await?;
    trial.only_up(&[0]).await?;

    trial.pm2("scale myapp 3").await?;
    trial.only_up(&[0]).await?;
    let began = trial.pm2("scale myapp +1").await?;
    trial.replaced(1, began).await?;
    trial.only_up(&[0]).await?;

    let began = trial.begin("max_memory_restart of one");
    trial.signal(0, Signal::USR2)?;
    trial.replaced(1, began).await?;
    trial.only_up(&[0]).await?;

    let began = trial.begin("watch: a file changes");
    fs::write(trial.file("watched"), "new")?;
    trial.replaced(4, began).await?;
    trial.only_up(&[0]).await?;

    let began = trial.pm2("restart myapp").await?;
    trial.replaced(4, began).await?;
    trial.only_up(&[0]).await?;
    trial.end().await
}

pub(crate) async fn unasked(setup: Setup) -> Result<Findings> {
    let plan = Plan { setup, mode: Mode::Cluster, workers: 4, servers: 1, daemon: &[] };
    let mut trial = Trial::set(&plan, |_, _, _| {}).await?;

    let began = trial.begin("one throws");
    trial.signal(0, Signal::HUP)?;
    trial.replaced(1, began).await?;
    trial.only_up(&[0]).await?;

    let began = trial.begin("all throw at once");
    trial.signal_all(Signal::HUP)?;
    trial.replaced(4, began).await?;
    trial.only_up(&[0]).await?;
    trial.end().await
}

pub(crate) async fn all_at_once(setup: Setup) -> Result<Findings> {
    let plan = Plan { setup, mode: Mode::Cluster, workers: 4, servers: 1, daemon: &[] };
    let mut trial = Trial::set(&plan, |_, _, _| {}).await?;

    let began = trial.begin("restart myapp --cron-restart");
    trial.pm2.run(&["restart", NAME, "--cron-restart", &crate::all_at_once::soon()?]).await?;
    trial.replaced(4, began).await?;
    trial.only_up(&[0]).await?;

    let began = trial.begin("cron_restart");
    trial.replaced(4, began).await?;
    trial.only_up(&[0]).await?;

    let began = trial.pm2("update").await?;
    trial.replaced(4, began).await?;
    trial.only_up(&[0]).await?;

    trial.pm2("kill").await?;
    let began = trial.pm2("resurrect").await?;
    trial.replaced(4, began).await?;
    trial.only_up(&[0]).await?;
    trial.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_death_that_pm2_announces_loses_nothing_while_another_worker_serves() -> Result<()> {
    let _alone = alone::take()?;
    let findings = announced(Setup::Handoff).await?;
    findings.nobody_noticed();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_costs_the_orders_of_the_dead_worker() -> Result<()> {
    let _alone = alone::take()?;
    let findings = unasked(Setup::Handoff).await?;
    findings.only_failed(|visit| findings.died_with_its_worker(visit) || findings.nobody_listened(visit));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn where_all_die_at_once_requests_fail_only_if_nobody_is_expected() -> Result<()> {
    let _alone = alone::take()?;
    let findings = all_at_once(Setup::Handoff).await?;
    findings.only_failed(|visit| {
        nobody_was_expected(&findings, visit) || findings.lay_with_a_daemon_that_closed(visit)
    });
    Ok(())
}
