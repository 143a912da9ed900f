//! Whoever runs it goes away, at any step: users notice nothing, nothing stays half done, and the next one just works.

use crate::{
    reload::Ended,
    stage::{LIGHT, Plan, Stage},
};
use anyhow::{Context, Result, ensure};
use e2e::{clock::Moment, wait};
use handoff_wire::DEFAULT_LEASE;
use rustix::process::Signal;
use std::time::Duration;

/// Every step takes long enough to be met.
const LENGTHY: &str = "good, slow 600, pale 600, weary 600";
const LONG: Duration = Duration::from_millis(1_500);
const OPTIONS: [&str; 3] = ["shop", "--health", "/health"];
/// How late nginx and we may be.
const SLACK: Duration = Duration::from_secs(2);

/// Of the first worker; the last one lies between two workers.
const STEPS: [&str; 8] = ["begin", "draining", "stopping", "starting", "checking", "trial", "up", "done"];

/// Comes back when it is over.
async fn signalled(stage: &Stage, step: &str, signals: &[Signal]) -> Result<Ended> {
    let held = if step == "draining" { Some(stage.hold(0, LONG).await?) } else { None };
    let mut reload = stage.begin(&OPTIONS)?;
    reload.reaches(0, step).await?;
    for (number, &signal) in signals.iter().enumerate() {
        if number > 0 {
            // It has noticed the one before.
            reload.reaches(0, "note").await?;
        }
        reload.signal(signal);
    }
    let ended = reload.ended().await?;
    eprintln!("{signals:?} at {step}: {:?}, {:?}, {}", ended.code, ended.steps(0), ended.text());
    if let Some(held) = held {
        held.is_served(stage).await?;
    }
    Ok(ended)
}

/// It ends as its signal says, having brought up what it had stopped.
async fn interrupted(stage: &Stage, step: &str, signal: Signal) -> Result<()> {
    let before = stage.workers().await?;
    let ended = signalled(stage, step, &[signal]).await?.is(128 + signal.as_raw(), &["stopped by SIG"])?;
    ensure!(stage.marked().await?.is_empty(), "its marks are not lifted: {step}");
    let replaced = ended.replaced();
    for worker in [0, 1] {
        let last = ended.steps(worker).last().copied();
        let is_well = if replaced.contains(&worker) {
            last == Some("done")
        } else {
            [None, Some("kept")].contains(&last)
        };
        ensure!(is_well, "half done: {ended:?}");
    }
    let kept: Vec<u32> = before.keys().copied().filter(|id| !replaced.contains(id)).collect();
    stage.kept(&before, &kept).await?;
    stage.is_whole().await
}

/// Its marks run out, and PM2 has finished what it was asked to do.
async fn killed(stage: &Stage, step: &str, signals: &[Signal]) -> Result<()> {
    signalled(stage, step, signals).await?;
    let died = Moment::now();
    let limit = DEFAULT_LEASE.duration() + SLACK;
    wait::until("its marks to run out", limit, async || stage.marked().await.ok()?.is_empty().then_some(()))
        .await?;
    eprintln!("no marks {:?} after its death", Moment::now().since(died));
    stage.is_whole().await
}

async fn just_works(stage: &Stage) -> Result<()> {
    let before = stage.workers().await?;
    stage.reload(&OPTIONS).await?.is(0, &["all 2 workers of shop are new, and nothing was cut"])?;
    stage.kept(&before, &[]).await?;
    stage.is_as_before(&before).await?;
    stage.is_whole().await
}

async fn play(plan: Plan, cases: impl AsyncFnOnce(&Stage) -> Result<()>) -> Result<()> {
    let stage = plan.set().await?;
    stage.release(LENGTHY)?;
    stage.reload(&["shop"]).await?.is(0, &[])?;
    let visits = stage.visited(LIGHT);
    cases(&stage).await?;
    just_works(&stage).await?;
    visits.end_well().await?;
    stage.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_at_any_step_leaves_nothing_half_done() -> Result<()> {
    let signals = [Signal::INT, Signal::HUP, Signal::TERM];
    play(Plan::workers(2), async |stage| {
        for (step, signal) in STEPS.into_iter().zip(signals.into_iter().cycle()) {
            interrupted(stage, step, signal).await.with_context(|| format!("{signal:?} at {step}"))?;
        }
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_killed_leaves_marks_that_run_out() -> Result<()> {
    play(Plan::workers(2).with_sidecar(), async |stage| {
        for step in ["draining", "starting"] {
            killed(stage, step, &[Signal::KILL]).await.with_context(|| step)?;
        }
        Ok(())
    })
    .await
}

async fn every_case(plan: Plan) -> Result<()> {
    play(plan, async |stage| {
        for step in STEPS {
            for signal in [Signal::INT, Signal::HUP, Signal::TERM] {
                interrupted(stage, step, signal).await.with_context(|| format!("{signal:?} at {step}"))?;
                just_works(stage).await?;
            }
            killed(stage, step, &[Signal::KILL]).await.with_context(|| format!("SIGKILL at {step}"))?;
            just_works(stage).await?;
        }
        killed(stage, "starting", &[Signal::INT, Signal::INT]).await.context("two of them")
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "every case; `make every-case` runs it"]
async fn every_signal_at_every_step_is_survived() -> Result<()> {
    every_case(Plan::workers(2)).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "every case; `make every-case` runs it"]
async fn every_signal_at_every_step_is_survived_beside_a_sidecar_too() -> Result<()> {
    every_case(Plan::workers(2).with_sidecar()).await
}
