//! A worker dies unasked. It takes with it the orders that it had, and nothing else.

use crate::trial::{Findings, Plan, Trial, set};
use anyhow::Result;
use e2e::{
    alone,
    app::{App, Mode},
    scenario::Setup,
};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::fs;

/// Two workers that PM2 starts again at once, and two of another app with which it waits longer each time.
fn two_apps(app: &App, ecosystem: &mut Value) {
    set(ecosystem, "/apps/0/instances", json!(2));
    let mut patient = ecosystem.pointer("/apps/0").cloned().unwrap_or_default();
    set(&mut patient, "/name", json!("patient"));
    set(&mut patient, "/exp_backoff_restart_delay", json!(100));
    set(&mut patient, "/env/PORT", json!(app.first_port + 2));
    if let Some(Value::Array(apps)) = ecosystem.pointer_mut("/apps") {
        apps.push(patient);
    }
}

pub(crate) async fn play(setup: Setup) -> Result<Findings> {
    // So that the workers have their numbers in the order of their ports.
    let daemon = &[("PM2_CONCURRENT_ACTIONS", "1")];
    let plan = Plan { setup, mode: Mode::Fork, workers: 4, servers: 4, daemon };
    let mut trial = Trial::set(&plan, |_, app, ecosystem| two_apps(app, ecosystem)).await?;

    let began = trial.begin("one throws");
    trial.signal(0, Signal::HUP)?;
    trial.replaced(1, began).await?;
    trial.only_down(&[]).await?;

    let began = trial.begin("one throws, exp_backoff_restart_delay");
    trial.signal(2, Signal::HUP)?;
    trial.replaced(1, began).await?;
    trial.only_down(&[]).await?;

    // nginx leaves a worker that died out for its fail_timeout, and the next two to stop are the others.
    trial.only_up(&[0, 1, 2, 3]).await?;

    trial.begin("two throw at boot, until PM2 gives up");
    let ports = [1, 3].map(|worker| trial.address(worker).port().to_string());
    fs::write(trial.app.crash_file(), ports.join(" "))?;
    trial.pm2.run(&["restart", "1", "3"]).await?;
    trial.given_up(2).await?;
    trial.only_down(&[1, 3]).await?;
    trial.reason_is(1, "gone: myapp:1: it ended for good").await?;
    trial.reason_is(3, "gone: patient:3: it ended for good").await?;

    fs::remove_file(trial.app.crash_file())?;
    let began = trial.pm2("restart 1 3").await?;
    trial.replaced(2, began).await?;
    trial.only_down(&[]).await?;

    let began = trial.begin("all throw at once");
    for worker in 0..4 {
        trial.signal(worker, Signal::HUP)?;
    }
    trial.replaced(4, began).await?;
    trial.only_down(&[]).await?;
    trial.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_costs_the_orders_of_the_dead_worker() -> Result<()> {
    let _alone = alone::take()?;
    let findings = play(Setup::Handoff).await?;
    findings.only_failed(|visit| findings.died_with_its_worker(visit) || findings.nobody_listened(visit));
    Ok(())
}
