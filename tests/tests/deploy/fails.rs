//! Every step fails on purpose. Each time: users notice nothing but what the release itself answers them, the old release is on
//! every worker, and the next deploy just works.

use crate::stage::{RATE, Stage};
use anyhow::{Context, Result, ensure};
use e2e::{app::Mode, clock::Moment, pm2::NEWEST};
use std::{fs, time::Duration};

/// A release, the exit code, how it ends, and what is said.
struct Bad {
    release: &'static str,
    code: i32,
    outcome: &'static str,
    words: &'static [&'static str],
    /// What becomes of it when every worker is new.
    trouble: Option<&'static str>,
    /// So long users may meet its own errors.
    errors: Duration,
}

const NONE: Duration = Duration::ZERO;
const BAD: Bad =
    Bad { release: "", code: 0, outcome: "rolled-back", words: &[], trouble: None, errors: NONE };

const CRASH: Bad = Bad { release: "crash", code: 10, words: &["the new shop:1", "it crashed"], ..BAD };
const ILL: Bad = Bad { release: "ill", code: 12, words: &["the new shop:1", "answers 503"], ..BAD };
const THIRD: Bad = Bad {
    release: "crash, only 2",
    code: 10,
    words: &["the new shop:3", "3 workers were moved back"],
    ..BAD
};
const LAZY: Bad =
    Bad { release: "lazy 400", code: 17, words: &["serves users worse", "took longer than"], ..BAD };
const SPOILT: Bad = Bad {
    release: "frail",
    code: 13,
    words: &["serves users worse", "with an error", "4 workers were moved back"],
    trouble: Some("errors"),
    errors: Duration::from_secs(15),
    ..BAD
};
const SLOWED: Bad = Bad {
    release: "frail",
    code: 17,
    words: &["serves users worse", "took longer than", "4 workers were moved back"],
    trouble: Some("lazy 400"),
    ..BAD
};
const CANARY: Bad =
    Bad { release: "crash", code: 10, words: &["its canary", "No worker had left the old release"], ..BAD };

async fn comes_out(stage: &Stage, bad: &Bad) -> Result<()> {
    let (old, other) = (stage.current()?, stage.other().await?);
    let identities = stage.identities().await?;
    let visits = stage.visited()?;
    stage.commit(bad.release).await?;
    let mut deploy = stage.begin(&["--bake", "30s"])?;
    let mut since = Moment::now();
    if let Some(trouble) = bad.trouble {
        deploy.reaches("bake").await?;
        since = Moment::now();
        fs::write(stage.trouble(), trouble)?;
    }
    let ended = deploy.ended().await?.is(bad.code, bad.outcome, bad.words)?;
    let until = Moment::now();
    _ = fs::remove_file(stage.trouble());
    stage.runs(&old).await?;
    let most = (f64::from(RATE) * until.since(since).min(bad.errors).as_secs_f64()) as usize;
    let failed = visits.end().await?.failed_by_the_app(since, until, most)?;
    eprintln!("{:?}: {failed} errors of the app in {:?}", bad.release, until.since(since));
    ensure!(ended.stages().last() == Some(&("back".to_owned(), true)), "{:?}", ended.stages());
    ensure!(stage.other().await? == other, "another app was touched");
    ensure!(stage.identities().await? == identities, "{:?}", stage.identities().await?);
    let record = stage.record()?;
    ensure!(record.get("exit").and_then(serde_json::Value::as_i64) == Some(bad.code.into()), "{record}");
    Ok(())
}

async fn just_works(stage: &Stage) -> Result<()> {
    let visits = stage.visited()?;
    stage.commit("good").await?;
    stage.deploy(&[]).await?.is(0, "done", &["on every worker"])?;
    stage.runs(&stage.current()?).await?;
    visits.end_well().await
}

/// What is wrong before the switch is noticed by nobody.
async fn is_not_made(stage: &Stage, what: &str, words: &[&str]) -> Result<()> {
    let (old, workers, releases) = (stage.current()?, stage.workers().await?, stage.releases()?);
    let visits = stage.visited()?;
    let ended = stage.deploy(&[]).await?.is(16, "failed", words)?;
    ensure!(ended.stages().last() == Some(&(what.to_owned(), false)), "{:?}", ended.stages());
    stage.runs(&old).await?;
    ensure!(stage.workers().await? == workers, "a worker was touched");
    ensure!(stage.releases()? == releases, "something is left: {:?}", stage.releases()?);
    visits.end_well().await
}

async fn before_the_switch(version: &str) -> Result<()> {
    let stage = Stage::serving(version, Mode::Fork, NEWEST).await?;
    let (source, hidden) = (stage.source(), stage.site.file("hidden"));
    stage.commit("good").await?;
    fs::rename(&source, &hidden)?;
    is_not_made(&stage, "fetch", &["git fetch failed", "Nothing was changed"]).await?;
    fs::rename(&hidden, &source)?;

    let env = stage.path().join("shared/.env");
    let text = fs::read(&env)?;
    fs::remove_file(&env)?;
    is_not_made(&stage, "release", &["\".env\" is not shared yet"]).await?;
    fs::write(&env, text)?;

    let hooks = [("install.sh", "install"), ("build.sh", "build")];
    for (file, what) in hooks {
        let script = fs::read(source.join(file))?;
        fs::write(source.join(file), "echo oh no; exit 1\n")?;
        stage.commit_all().await?;
        is_not_made(&stage, what, &[file, "exit status: 1"]).await.with_context(|| what)?;
        fs::write(source.join(file), script)?;
    }
    just_works(&stage).await?;
    stage.end().await
}

async fn play(version: &str, mode: Mode, pm2: &'static str, bads: &[Bad]) -> Result<()> {
    let stage = Stage::serving(version, mode, pm2).await?;
    for bad in bads {
        comes_out(&stage, bad).await.with_context(|| bad.release)?;
    }
    just_works(&stage).await?;
    stage.end().await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "what `make deploys` runs"]
async fn what_fails_before_the_switch_is_noticed_by_nobody() -> Result<()> {
    before_the_switch("1.22.1").await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "what `make deploys` runs"]
async fn what_fails_at_the_first_the_third_or_after_the_last_worker_goes_back() -> Result<()> {
    play("1.28.3", Mode::Fork, NEWEST, &[CRASH, ILL, THIRD, LAZY, SPOILT, SLOWED]).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "what `make deploys` runs"]
async fn so_it_does_in_cluster_mode() -> Result<()> {
    play("1.22.1", Mode::Cluster, NEWEST, &[CANARY, SPOILT, SLOWED]).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "what `make deploys` runs"]
async fn so_it_does_on_pm2_6() -> Result<()> {
    play("1.22.1", Mode::Fork, "pm2-6", &[THIRD, SPOILT]).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "what `make deploys` runs"]
async fn so_it_does_on_pm2_5() -> Result<()> {
    play("1.22.1", Mode::Fork, "pm2-5", &[THIRD, SPOILT]).await
}
