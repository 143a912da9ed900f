//! `pm2 startOrReload FILE`: two workers at a time, as `pm2 reload NAME`, and with the file's own environment.

use crate::trial::{Plan, Trial, set};
use anyhow::{Context, Result};
use e2e::{alone, app::Mode, scenario::Setup};
use serde_json::{Value, json};

const ALL: [u16; 4] = [0, 1, 2, 3];

pub(crate) async fn play(setup: Setup, adapt: impl Fn(&mut Value)) -> Result<Trial> {
    let plan = Plan { setup, mode: Mode::Fork, workers: 4, servers: 4, daemon: &[] };
    let mut trial = Trial::set(&plan, |_, _, ecosystem| {
        set(ecosystem, "/apps/0/env_production", json!({"RELEASE": "two"}));
        adapt(ecosystem);
    })
    .await?;
    let began = trial.begin("startOrReload FILE --env production");
    let file = trial.pm2.ecosystem().display().to_string();
    trial.pm2.run(&["startOrReload", &file, "--env", "production"]).await?;
    // Whatever becomes of the others.
    trial.replaced(1, began).await?;
    Ok(trial)
}

/// The app adds NODE_APP_INSTANCE to the first port.
pub(crate) fn own_port(ecosystem: &mut Value) {
    let first = ecosystem.pointer("/apps/0/env/PORT").cloned().unwrap_or_default();
    set(ecosystem, "/apps/0/env/FIRST_PORT", first);
    for app in ecosystem.pointer_mut("/apps").and_then(Value::as_array_mut).into_iter().flatten() {
        app.as_object_mut().map(|app| app.remove("increment_var"));
    }
}

/// The workers that PM2 gave up. Never to be shown: PM2's list holds whole environments.
async fn errored(trial: &Trial) -> Result<Vec<String>> {
    let list = trial.pm2.run(&["jlist"]).await?;
    let list = list.lines().last().context("no list")?;
    let list: Vec<Value> = serde_json::from_str(list).ok().context("PM2's list cannot be read")?;
    let errored = list.iter().filter(|worker| worker.pointer("/pm2_env/status") == Some(&json!("errored")));
    Ok(errored.filter_map(|worker| Some(worker.get("pm_id")?.to_string())).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_of_the_file_loses_nothing_where_the_app_finds_its_own_port() -> Result<()> {
    let _alone = alone::take()?;
    let trial = play(Setup::Handoff, own_port).await?;
    trial.only_up(&ALL).await?;
    let findings = trial.end().await?;
    findings.nobody_noticed();
    Ok(())
}

/// PM2 gives each worker the PORT of the file, which is that of the first one.
#[tokio::test(flavor = "multi_thread")]
async fn a_reload_of_the_file_leaves_one_worker_where_increment_var_gave_the_ports() -> Result<()> {
    let _alone = alone::take()?;
    let mut trial = play(Setup::Handoff, |_| {}).await?;
    trial.given_up(3).await?;
    trial.no_more_than(1).await?;
    let status = trial.status().await?;
    assert!(status.contains("myapp: beware: several workers have the same PORT"), "{status}");
    trial.begin("PORT=… pm2 restart ID --update-env");
    let errored = errored(&trial).await?;
    assert_eq!(errored.len(), 3, "{errored:?}");
    for (id, worker) in errored.iter().zip(1..) {
        let port = trial.address(worker).port().to_string();
        trial.pm2.run_with(&[("PORT", &port)], &["restart", id, "--update-env"]).await?;
    }
    trial.only_up(&ALL).await?;
    let findings = trial.end().await?;
    findings.nobody_noticed();
    Ok(())
}
