//! Whoever deploys goes away, at any step. With a signal that can be heard, what was begun is undone; after SIGKILL the next
//! deploy finds what lies there, says so, and mends it first.

use crate::stage::{Deploy, Stage};
use anyhow::{Context, Result, ensure};
use e2e::{app::Mode, pm2::NEWEST};
use rustix::process::Signal;
use std::fs;

/// A stage, or a step of a worker.
#[derive(Clone, Copy, Debug)]
enum When {
    Stage(&'static str),
    Step(u32, &'static str),
}

const WHEN: [When; 4] =
    [When::Stage("install"), When::Step(2, "starting"), When::Step(4, "done"), When::Stage("bake")];

async fn reaches(deploy: &mut Deploy, when: When) -> Result<()> {
    match when {
        When::Stage(stage) => deploy.reaches(stage).await,
        When::Step(worker, step) => deploy.reaches_step(worker, step).await,
    }
}

async fn serving() -> Result<Stage> {
    let stage = Stage::serving("1.22.1", Mode::Fork, NEWEST).await?;
    // Long enough to be met.
    fs::write(stage.source().join("install.sh"), "sleep 1; mkdir -p node_modules/.cache\n")?;
    Ok(stage)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "what `make deploys` runs"]
async fn a_signal_at_any_step_is_followed_by_the_way_back() -> Result<()> {
    let stage = serving().await?;
    let old = stage.current()?;
    let visits = stage.visited()?;
    for (when, signal) in WHEN.into_iter().zip([Signal::INT, Signal::TERM, Signal::HUP, Signal::INT]) {
        let releases = stage.releases()?;
        stage.commit("good").await?;
        let mut deploy = stage.begin(&["--bake", "30s"])?;
        reaches(&mut deploy, when).await?;
        deploy.signal(signal);
        let is_early = matches!(when, When::Stage("install"));
        let outcome = if is_early { "failed" } else { "rolled-back" };
        let ended = deploy.ended().await?.is(128 + signal.as_raw(), outcome, &["stopped by SIG"]);
        ended.with_context(|| format!("{signal:?} at {when:?}"))?;
        stage.runs(&old).await.with_context(|| format!("{when:?}"))?;
        ensure!(!is_early || stage.releases()? == releases, "something is left: {:?}", stage.releases()?);
        ensure!(!stage.path().join("deploying.json").exists(), "the next one would take it for killed");
    }
    stage.commit("good").await?;
    stage.deploy(&[]).await?.is(0, "done", &["on every worker"])?;
    visits.end_well().await?;
    stage.end().await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "what `make deploys` runs"]
async fn what_a_killed_one_left_is_mended_by_the_next() -> Result<()> {
    let stage = serving().await?;
    let visits = stage.visited()?;
    // The last of them on its way back.
    for (when, release) in
        WHEN.map(|when| (when, "good")).into_iter().chain([(When::Stage("back"), "crash, only 2")])
    {
        let (old, releases) = (stage.current()?, stage.releases()?);
        stage.commit(release).await?;
        let mut deploy = stage.begin(&["--bake", "30s"])?;
        reaches(&mut deploy, when).await?;
        deploy.signal(Signal::KILL);
        let killed = deploy.ended().await?;
        ensure!(killed.code.is_none() && killed.end().is_none(), "{killed:?}");
        // What is wrong with the next one is found after that.
        let ended =
            stage.deploy(&["--ref", "nobody"]).await?.is(16, "failed", &["no branch, tag or commit"])?;
        let notes = format!("{:?}", ended.events);
        ensure!(notes.contains("did not come to its end"), "{notes}");
        stage.runs(&old).await.with_context(|| format!("{when:?}"))?;
        ensure!(stage.releases()? == releases, "something is left: {:?}", stage.releases()?);
        let (_, text) = stage.says(&["deploys", "shop"]).await?;
        ensure!(text.contains("killed"), "{text}");
    }
    stage.commit("good").await?;
    stage.deploy(&[]).await?.is(0, "done", &["on every worker"])?;
    visits.end_well().await?;
    stage.end().await
}
