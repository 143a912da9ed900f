//! A broken release meets one worker, and no user: whatever is wrong with it, however the worker was before, with and
//! without a sidecar.

use crate::stage::{PATIENCE, Plan, Stage};
use anyhow::{Context, Result, ensure};
use e2e::{alone, wait};
use handoff_wire::PeerState;
use std::time::Duration;

/// Visits a second.
const RATE: u32 = 200;
const WORKERS: u16 = 4;
pub(crate) const OPTIONS: [&str; 9] = [
    "shop",
    "--health",
    "/health",
    "--health-timeout",
    "1s",
    "--start-timeout",
    "3s",
    "--drain-timeout",
    "20s",
];

/// A release, the exit code, and what is said of it.
pub(crate) type Broken = (&'static str, i32, &'static [&'static str]);

const CRASH: Broken = ("crash", 10, &["the new shop:0", "it crashed"]);
const LATE: Broken = ("late", 10, &["the new shop:0", "it crashed"]);
const DEAF: Broken = ("deaf", 11, &["the new shop:0", "it did not listen on 127.0.0.1:"]);
const MUTE: Broken = ("mute", 11, &["the new shop:0", "it did not say `ready`"]);
const ILL: Broken = ("ill", 12, &["the new shop:0", "/health of 127.0.0.1:", "answers 503"]);
const ERRORS: Broken = ("errors", 13, &["the new shop:0", "it answered", "with an error"]);

/// One broken release after the other comes out; only the first of them finds worker 0 at work.
async fn come_out(stage: &Stage, releases: &[Broken]) -> Result<()> {
    let before = stage.workers().await?;
    for &(release, code, words) in releases {
        stage.release(release)?;
        let ended = stage.reload(&OPTIONS).await?.is(code, words)?;
        eprintln!("{release}: exit {code}, {}", ended.text());
        ended.is_stopped_at_the_first(stage, release).await?;
        // It is what PM2 has, and nginx for as long as the marks of the roll-out would have lived.
        stage.kept(&before, &[1, 2, 3]).await?;
    }
    Ok(())
}

impl crate::reload::Ended {
    async fn is_stopped_at_the_first(&self, stage: &Stage, release: &str) -> Result<()> {
        ensure!(self.planned().first() == Some(&0), "it begins with {:?}", self.planned());
        ensure!(self.replaced().is_empty() && self.steps(0).last() == Some(&"failed"), "{:?}", self.events);
        ensure!((1..4).all(|worker| self.steps(worker).is_empty()), "{:?}", self.events);
        ensure!(self.text().contains("No other worker of shop was touched"), "{}", self.text());
        let is_logged = ["crash", "late"].contains(&release);
        ensure!(self.log().contains("this release is broken") == is_logged, "it shows {}", self.log());
        let worker = stage.workers().await?.remove(&0).context("worker 0")?;
        ensure!((worker.status.as_str(), worker.pid) == ("stopped", 0), "{worker:?}");
        let peer = stage.site.peer(&stage.address(0)).await?;
        ensure!(peer.state != PeerState::Up && peer.in_flight == 0, "{peer:?}");
        Ok(())
    }
}

/// The mended release needs nothing but to be reloaded.
async fn mended(stage: &Stage) -> Result<()> {
    let before = stage.workers().await?;
    stage.release("good")?;
    let ended =
        stage.reload(&OPTIONS).await?.is(0, &["all 4 workers of shop are new, and nothing was cut"])?;
    ensure!(ended.planned() == [0, 1, 2, 3] && ended.replaced() == [0, 1, 2, 3], "{:?}", ended.events);
    stage.kept(&before, &[]).await?;
    stage.is_as_before(&before).await?;
    stage.is_whole().await
}

async fn play(plan: Plan, turns: &[&[Broken]]) -> Result<()> {
    let _alone = alone::take()?;
    let stage = plan.set().await?;
    let visits = stage.visited(RATE);
    for releases in turns {
        come_out(&stage, releases).await?;
        mended(&stage).await?;
    }
    visits.end_well().await?;
    stage.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_release_meets_one_worker_and_no_user() -> Result<()> {
    play(Plan::workers(WORKERS).with_sidecar(), &[&[CRASH, ILL, DEAF, ERRORS, LATE]]).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "with a sidecar it is not; `make every-case` runs it"]
async fn a_broken_release_meets_one_worker_and_no_user_without_a_sidecar_too() -> Result<()> {
    play(Plan::workers(WORKERS), &[&[ERRORS, MUTE, CRASH]]).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "every case; `make every-case` runs it"]
async fn every_broken_release_meets_one_worker_and_no_user() -> Result<()> {
    let turns: Vec<[Broken; 2]> = [CRASH, LATE, DEAF, MUTE, ILL, ERRORS].map(|broken| [broken; 2]).to_vec();
    let turns: Vec<&[Broken]> = turns.iter().map(|turn| turn.as_slice()).collect();
    for plan in [Plan::workers(WORKERS), Plan::workers(WORKERS).with_sidecar()] {
        play(plan, &turns).await?;
    }
    Ok(())
}

/// What the others are held against: `pm2 reload` of a release that crashes stops every worker, and users notice.
pub(crate) async fn a_pm2_reload_stops_every_worker(plan: Plan) -> Result<()> {
    let _alone = alone::take()?;
    let stage = plan.with_sidecar().set().await?;
    let before = stage.workers().await?;
    let visits = stage.visited(RATE);
    stage.release("crash")?;
    // PM2 says that all went well.
    stage.pm2.run(&["reload", "shop"]).await?;
    wait::until("the last of the old workers to be gone", PATIENCE, async || {
        stage.kept(&before, &[]).await.ok()
    })
    .await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let account = visits.end().await?;
    account.print();
    ensure!(account.failed().count() > 100, "only {} failed", account.failed().count());
    stage.end().await
}

/// So that what the others show is not the calm of the machine.
#[tokio::test(flavor = "multi_thread")]
async fn a_pm2_reload_of_the_same_release_stops_every_worker() -> Result<()> {
    a_pm2_reload_stops_every_worker(Plan::workers(WORKERS)).await
}
