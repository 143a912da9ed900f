//! Targets and environments mean what they mean in `pm2 reload`, but that every worker keeps its own port.

use crate::{
    reload::Reload,
    stage::{self, LIGHT, Plan, Setup, Stage},
};
use anyhow::{Context, Result, ensure};
use e2e::{door::Door, ports, site::Site};
use serde_json::{Value, json};

/// A worker that listens nowhere, and another environment of the shop.
fn jobs(site: &Site, setup: &mut Setup) -> Result<()> {
    let shop = setup.ecosystem.pointer_mut("/apps/0").and_then(Value::as_object_mut).context("an app")?;
    shop.insert("env_production".to_owned(), json!({ "GREETING": "hello from production" }));
    let mut jobs = stage::app(site, "jobs", Plan::workers(1), json!({}))?;
    jobs.as_object_mut().context("an object")?.remove("increment_var");
    let apps = setup.ecosystem.pointer_mut("/apps").and_then(Value::as_array_mut).context("apps")?;
    apps.push(jobs);
    Ok(())
}

/// What each worker of the shop has in its environment.
async fn greetings(stage: &Stage) -> Result<Vec<Value>> {
    let mut greetings = Vec::new();
    for address in stage.addresses() {
        let answer: Value = Door::Tcp(address).get("/env?name=GREETING").await?.json()?;
        greetings.push(answer.get("value").cloned().unwrap_or_default());
    }
    Ok(greetings)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_an_environment_all_and_one_worker_mean_what_they_mean_in_pm2() -> Result<()> {
    let stage = Stage::set(Plan::workers(2).with_sidecar(), jobs).await?;
    let visits = stage.visited(LIGHT);
    let first = stage.all_workers().await?;
    let file = stage.pm2.ecosystem().display().to_string();
    let restarts = async || -> Result<Vec<u32>> {
        Ok(stage.all_workers().await?.values().map(|worker| worker.restarts).collect())
    };
    ensure!(greetings(&stage).await? == [Value::Null, Value::Null], "a greeting before there was one");

    let ended = stage.reload(&[&file, "--env", "production", "--only", "shop"]).await?;
    let ended = ended.is(0, &["all 2 workers of shop are new"])?;
    ensure!(ended.replaced() == [0, 1], "{:?}", ended.events);
    ensure!(greetings(&stage).await? == ["hello from production", "hello from production"], "--env");
    ensure!(restarts().await? == [1, 1, 0], "{:?}", restarts().await?);

    let mut command = stage.handoff(&["reload", "--json", "shop", "--update-env"])?;
    command.env("GREETING", "hello from the shell").env("PORT", ports::row(1)?.to_string());
    Reload::start(command)?.ended().await?.is(0, &["all 2 workers of shop are new"])?;
    ensure!(greetings(&stage).await? == ["hello from the shell", "hello from the shell"], "--update-env");
    ensure!(restarts().await? == [2, 2, 0], "{:?}", restarts().await?);

    let ended = stage.reload(&["shop:1"]).await?.is(0, &["all 1 worker of shop are new"])?;
    ensure!(ended.replaced() == [1], "{:?}", ended.events);
    ensure!(
        greetings(&stage).await? == ["hello from the shell", "hello from the shell"],
        "it forgot its environment"
    );

    let ended = stage.reload(&["all"]).await?;
    ensure!(ended.code == Some(0) && stage.all_workers().await?.len() == 3, "{ended:?}");
    let steps = ["draining", "stopping", "starting", "up", "done"];
    ensure!(
        ended.steps(2).iter().all(|step| steps.contains(step)),
        "a worker of no peer: {:?}",
        ended.steps(2)
    );
    ensure!(restarts().await? == [3, 4, 1], "{:?}", restarts().await?);

    stage.is_as_before(&first).await?;
    stage.is_whole().await?;
    visits.end_well().await?;
    stage.end().await
}
