//! Where new workers get their share little by little, each is given the time for it before the next one goes.

use crate::stage::{LIGHT, Plan, Setup, Stage};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::time::Duration;

const RAMP: Duration = Duration::from_secs(4);

async fn stage() -> Result<Stage> {
    Stage::set(Plan::workers(2).with_sidecar(), |_, setup: &mut Setup| {
        setup.http =
            setup.http.replace("handoff;", &format!("handoff; handoff_slow_start {}s;", RAMP.as_secs()));
        Ok(())
    })
    .await
}

/// When a worker came so far, in milliseconds.
fn at(events: &[Value], worker: u32, step: &str) -> Result<u64> {
    let is_it = |event: &&Value| {
        event.get("worker") == Some(&worker.into()) && event.get("step") == Some(&step.into())
    };
    let event = events.iter().find(is_it).with_context(|| format!("worker {worker}: no {step}"))?;
    event.get("at").and_then(Value::as_u64).context("a time")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_worker_goes_when_the_last_one_has_its_whole_share_and_nobody_notices() -> Result<()> {
    let stage = stage().await?;
    let before = stage.workers().await?;
    let visits = stage.visited(LIGHT);

    let ended = stage.reload(&["shop"]).await?.is(0, &["all 2 workers of shop are new"])?;
    // From its trial on.
    let between = at(&ended.events, 1, "draining")?.saturating_sub(at(&ended.events, 0, "trial")?);
    ensure!(u128::from(between) + 100 >= RAMP.as_millis(), "{between} ms after the first one came");
    let waits = ended.events.iter().filter(|event| event.to_string().contains("(handoff_slow_start)"));
    ensure!(waits.count() == 1, "it does not say why it waits: {ended:#?}");

    // PM2 itself waits for nobody: whoever serves serves all.
    stage.pm2.run(&["reload", "shop"]).await?;
    stage.is_whole().await?;
    stage.kept(&before, &[]).await?;
    visits.end_well().await?;
    stage.end().await
}
