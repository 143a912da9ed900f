//! One place, one deploy after the other: the first of all, a good one, one whose build fails, one that shows only in the end
//! what it is, and the way back by hand.

use crate::stage::{APP, QUICK, RATE, Stage};
use anyhow::{Context, Result, ensure};
use e2e::{app::Mode, clock::Moment, pm2::NEWEST};
use serde_json::Value;
use std::{collections::BTreeSet, fs, time::Duration};

#[tokio::test(flavor = "multi_thread")]
async fn good_ones_come_out_and_bad_ones_go_back_by_themselves() -> Result<()> {
    let stage = Stage::set("1.22.1", Mode::Fork, NEWEST).await?;

    // The first: PM2 does not know the app, and is given it.
    let commit = stage.commit("good").await?;
    let ended = stage.deploy(&[]).await?.is(0, "done", &["on every worker"])?;
    let stages: Vec<String> = ended.stages().into_iter().map(|(stage, _)| stage).collect();
    ensure!(stages == ["fetch", "release", "install", "build", "switch", "reload", "bake"], "{stages:?}");
    let first = stage.current()?;
    stage.runs(&first).await?;
    let revision = fs::read_to_string(stage.path().join("current/REVISION"))?;
    ensure!(revision.trim() == commit, "{revision}");
    let other = stage.other().await?;

    // The same again is no deploy.
    stage.deploy(&[]).await?.is(0, "done", &["nothing is new"])?;
    ensure!(stage.releases()?.len() == 1, "{:?}", stage.releases()?);

    // A good one, beside visitors.
    let visits = stage.visited()?;
    stage.commit("good, pale 50").await?;
    let before = stage.workers().await?;
    let ended = stage.deploy(&[]).await?.is(0, "done", &["on every worker", "0 errors"])?;
    ensure!(ended.stages().iter().all(|(_, is_well)| *is_well), "{:?}", ended.stages());
    let second = stage.current()?;
    stage.runs(&second).await?;
    let now = stage.workers().await?;
    ensure!(
        before.iter().all(|(id, was)| now.get(id).is_some_and(|is| is.process() != was.process())),
        "{now:?}"
    );
    visits.end_well().await?;

    // The build fails: nothing is noticed, nothing stays.
    let visits = stage.visited()?;
    fs::write(stage.source().join("build.sh"), "echo building; echo oh no >&2; exit 3\n")?;
    stage.commit("good").await?;
    let ended = stage.deploy(&[]).await?.is(
        16,
        "failed",
        &["sh build.sh", "exit status: 3", "Nothing was changed"],
    )?;
    ensure!(ended.log().contains("oh no"), "{}", ended.log());
    stage.runs(&second).await?;
    ensure!(stage.workers().await? == now, "a worker was touched");
    ensure!(stage.releases()? == BTreeSet::from([first.clone(), second.clone()]), "{:?}", stage.releases()?);
    visits.end_well().await?;

    // All are new, and well; then users meet errors, while /health is well.
    let visits = stage.visited()?;
    fs::write(stage.source().join("build.sh"), "mkdir -p dist && cp server.js dist/server.js\n")?;
    stage.commit("frail").await?;
    let mut deploy = stage.begin(&["--bake", "30s"])?;
    deploy.reaches("bake").await?;
    let since = Moment::now();
    fs::write(stage.trouble(), "errors")?;
    deploy.reaches("back").await?;
    let found = Moment::now().since(since);
    let ended =
        deploy.ended().await?.is(13, "rolled-back", &["serves users worse", "4 workers were moved back"])?;
    let until = Moment::now();
    stage.runs(&second).await?;
    ensure!(ended.text().contains(&second), "{}", ended.text());
    let took = until.since(since);
    let most = (f64::from(RATE) * (took + Duration::from_millis(500)).as_secs_f64()) as usize;
    let failed = visits.end().await?.failed_by_the_app(since, until, most)?;
    eprintln!("found out after {found:?}, all back after {took:?}: {failed} answers were errors of the app");
    ensure!(found < Duration::from_secs(3), "it was found out after {found:?}");

    // The way back by hand, beside visitors.
    let visits = stage.visited()?;
    stage.deploy(&["--rollback"]).await?.is(0, "done", &[&first])?;
    stage.runs(&first).await?;
    visits.end_well().await?;

    let record = stage.record()?;
    ensure!(
        record.get("who") == Some(&Value::from("tester")) && record.get("exit") == Some(&Value::from(0)),
        "{record}"
    );
    let (code, text) = stage.says(&["deploys", APP]).await?;
    eprintln!("{text}");
    ensure!(code == Some(0), "{code:?}");
    for outcome in ["done", "failed", "rolled back"] {
        ensure!(text.contains(outcome), "{outcome} is not in {text}");
    }
    ensure!(stage.other().await? == other, "another app was touched");
    stage.end().await
}

/// Without a terminal, and with words that a person reads.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "what `make deploys` runs"]
async fn a_dry_run_says_what_would_be_done_and_changes_nothing() -> Result<()> {
    let stage = Stage::serving("1.22.1", Mode::Fork, NEWEST).await?;
    let commit = stage.commit("good").await?;
    let (tree, workers) = (stage.tree().await?, stage.workers().await?);
    let (code, text) = stage.says(&[&["deploy", APP, "--dry-run"], &QUICK[..]].concat()).await?;
    eprintln!("{text}");
    ensure!(code == Some(0), "{code:?} {text}");
    let short = commit.get(..7).context("a hash")?;
    for words in [short, "sh install.sh", "shop:1 would be drained and replaced", &stage.current()?] {
        ensure!(text.contains(words), "{words:?} is not in {text}");
    }
    ensure!(stage.tree().await? == tree && stage.workers().await? == workers, "something was changed");
    stage.end().await
}
