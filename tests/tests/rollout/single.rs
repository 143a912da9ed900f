//! The only worker of an app in fork mode: another one stands in for it, on a port that its upstream has to spare.

use crate::{
    broken::{Broken, OPTIONS},
    reload::Ended,
    stage::{LIGHT, PATIENCE, Plan, Stage},
};
use anyhow::{Context, Result, bail, ensure};
use e2e::wait;
use handoff_wire::{DEFAULT_LEASE, PeerState};
use rustix::process::Signal;
use std::{fs, time::Duration};

const ONE: Plan = Plan::workers(1).with_spares(1);
/// Every step takes long enough to be met.
const LENGTHY: &str = "good, slow 600, pale 600, weary 600";

const BROKEN: [Broken; 6] = [
    ("crash", 10, &["it crashed"]),
    ("late", 10, &["it crashed"]),
    ("deaf", 11, &["it did not listen on 127.0.0.1:"]),
    ("mute", 11, &["it did not say `ready`"]),
    ("ill", 12, &["/health of 127.0.0.1:", "answers 503"]),
    ("errors", 13, &["it answered", "with an error"]),
];

/// All that it says when nobody noticed anything.
async fn reloaded(stage: &Stage, options: &[&str]) -> Result<Ended> {
    let mut before = stage.workers().await?;
    // One that was left behind is none of them.
    before.retain(|id, _| *id == 0);
    let ended = stage.reload(options).await?.is(0, &["all 1 worker of shop are new, and nothing was cut"])?;
    ensure!(ended.planned() == [0] && ended.replaced() == [0], "{:?}", ended.events);
    stage.kept(&before, &[]).await?;
    stage.is_as_before(&before).await?;
    stage.is_whole().await?;
    Ok(ended)
}

/// Nobody is sent to the spare port, as far as the sidecar is concerned.
async fn spare_is_down(stage: &Stage) -> Result<()> {
    let spare = stage.address(1);
    let mut last = None;
    wait::until("the spare port to be down", PATIENCE, async || {
        last = stage.site.peer(&spare).await.ok();
        last.as_ref().is_some_and(|peer| peer.state == PeerState::Down).then_some(())
    })
    .await
    .with_context(|| format!("{last:?}"))
}

async fn play(plan: Plan) -> Result<()> {
    let stage = plan.set().await?;
    let visits = stage.visited(LIGHT);
    for time in 0..2 {
        if plan.sidecar {
            spare_is_down(&stage).await?;
        }
        let ended = reloaded(&stage, &OPTIONS).await?;
        let steps = ["starting", "checking", "trial", "up", "draining", "stopping", "deleted"];
        // PM2 counts on.
        ensure!(ended.steps(1 + time) == steps, "{:?}", ended.events);
        let steps = ["draining", "stopping", "starting", "checking", "trial", "up", "done"];
        ensure!(ended.steps(0) == steps, "{:?}", ended.events);
    }
    let restarts = stage.workers().await?.get(&0).map(|worker| worker.restarts);
    ensure!(restarts == Some(2), "it was replaced twice, as PM2 counts: {restarts:?}");
    ensure!(stage.marked().await?.is_empty(), "its marks are not lifted");
    visits.end_well().await?;
    stage.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn another_one_stands_in_and_all_is_as_before() -> Result<()> {
    play(ONE).await
}

#[tokio::test(flavor = "multi_thread")]
async fn another_one_stands_in_and_all_is_as_before_beside_a_sidecar_too() -> Result<()> {
    play(ONE.with_sidecar()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn another_one_stands_in_for_a_worker_that_handles_no_signal() -> Result<()> {
    let stage = ONE.naive().with_sidecar().set().await?;
    let visits = stage.visited(LIGHT);
    let held = stage.hold(0, Duration::from_millis(1_500)).await?;
    reloaded(&stage, &["shop"]).await?;
    held.is_served(&stage).await?;
    visits.end_well().await?;
    stage.end().await
}

/// It is deleted, and the worker is not touched.
async fn comes_out(stage: &Stage, &(release, code, words): &Broken) -> Result<()> {
    let before = stage.workers().await?;
    stage.release(release)?;
    let ended = stage.reload(&OPTIONS).await?.is(code, words)?;
    eprintln!("{release}: exit {code}, {}", ended.text());
    ensure!(ended.text().contains("The old release serves on every worker of shop"), "{}", ended.text());
    ensure!(ended.replaced().is_empty() && ended.cut() == Some(0), "{:?}", ended.events);
    let stand_in = ended.canary()?;
    ensure!(ended.text().contains(&format!("its stand-in shop:{stand_in}")), "{}", ended.text());
    ensure!(ended.steps(stand_in).last() == Some(&"failed"), "{:?}", ended.events);
    ensure!(ended.steps(0).is_empty(), "{:?}", ended.events);
    let is_logged = ["crash", "late"].contains(&release);
    ensure!(ended.log().contains("this release is broken") == is_logged, "it shows {}", ended.log());
    stage.kept(&before, &[0]).await?;
    stage.is_as_before(&before).await?;
    ensure!(stage.marked().await?.is_empty(), "its marks are not lifted");
    stage.is_whole().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_release_meets_the_stand_in_and_no_user() -> Result<()> {
    let _alone = e2e::alone::take()?;
    let stage = ONE.with_sidecar().set().await?;
    let visits = stage.visited(200);
    for broken in &BROKEN {
        comes_out(&stage, broken).await.context(broken.0)?;
    }
    stage.release("good")?;
    reloaded(&stage, &OPTIONS).await?;
    visits.end_well().await?;
    stage.end().await
}

/// The release changes once more when the stand-in serves. It goes on serving, and so it does while the worker comes back.
#[tokio::test(flavor = "multi_thread")]
async fn a_stand_in_serves_until_the_worker_does() -> Result<()> {
    let stage = ONE.with_sidecar().set().await?;
    let before = stage.workers().await?;
    let visits = stage.visited(LIGHT);
    let held = stage.hold(0, Duration::from_secs(2)).await?;
    let mut reload = stage.begin(&OPTIONS)?;
    reload.reaches(0, "draining").await?;
    stage.release("crash")?;
    let ended = reload.ended().await?.is(10, &["the new shop:0", "it crashed"])?;
    held.is_served(&stage).await?;
    let stand_in = ended.canary()?;
    ensure!(ended.events.iter().any(|event| event.to_string().contains("serves on")), "{ended:?}");
    let is_well = async || stage.workers().await.ok()?.get(&stand_in)?.is_online().then_some(());
    wait::until("the stand-in to serve", PATIENCE, is_well).await?;
    let (_, status) = stage.says(&["status"]).await?;
    ensure!(status.contains(&format!("shop:{stand_in} was left behind")), "{status}");
    stage.release("good")?;
    let ended = stage.reload(&OPTIONS).await?.is(0, &["all 1 worker of shop are new"])?;
    ensure!(ended.steps(stand_in).last() == Some(&"deleted"), "{:?}", ended.events);
    stage.is_as_before(&before).await?;
    stage.is_whole().await?;
    visits.end_well().await?;
    stage.end().await
}

/// Comes back when it is over.
async fn signalled(stage: &Stage, of_the_worker: bool, step: &str, signal: Signal) -> Result<Ended> {
    let long = Duration::from_millis(1_500);
    let held = if of_the_worker && step == "draining" { Some(stage.hold(0, long).await?) } else { None };
    let mut reload = stage.begin(&OPTIONS)?;
    match of_the_worker {
        true => reload.reaches(0, step).await?,
        false => reload.reaches_canary(step).await?,
    }
    reload.signal(signal);
    let ended = reload.ended().await?;
    if let Some(held) = held {
        held.is_served(stage).await?;
    }
    Ok(ended)
}

/// Of the stand-in and of the worker, in the order in which they come.
const STEPS: [(bool, &str); 10] = [
    (false, "starting"),
    (false, "checking"),
    (false, "up"),
    (true, "draining"),
    (true, "stopping"),
    (true, "starting"),
    (true, "checking"),
    (true, "up"),
    (false, "draining"),
    (false, "stopping"),
];

/// Users notice nothing, and the next one takes away what is left behind.
async fn killed(steps: &[(bool, &str)]) -> Result<()> {
    let stage = ONE.with_sidecar().set().await?;
    stage.release(LENGTHY)?;
    reloaded(&stage, &OPTIONS).await?;
    let before = stage.workers().await?;
    let visits = stage.visited(LIGHT);
    for &(of_the_worker, step) in steps {
        signalled(&stage, of_the_worker, step, Signal::KILL).await?;
        let workers = stage.workers().await?;
        let left: Vec<u32> = workers.keys().copied().filter(|id| !before.contains_key(id)).collect();
        eprintln!("killed at {step}: {left:?} left behind");
        let [left] = left[..] else { bail!("{left:?} at {step}") };
        let (_, dry) = stage.says(&["reload", "shop", "--dry-run"]).await?;
        ensure!(dry.contains(&format!("shop:{left} was left behind")), "{dry}");
        reloaded(&stage, &OPTIONS).await.with_context(|| format!("after {step}"))?;
        stage.is_as_before(&before).await?;
    }
    let limit = DEFAULT_LEASE.duration() + Duration::from_secs(2);
    wait::until("its marks to run out", limit, async || stage.marked().await.ok()?.is_empty().then_some(()))
        .await?;
    visits.end_well().await?;
    stage.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_killed_leaves_somebody_who_serves_and_the_next_one_cleans_up() -> Result<()> {
    killed(&[STEPS[0], STEPS[5], STEPS[9]]).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "every case; `make every-case` runs it"]
async fn one_that_is_killed_at_any_step_leaves_somebody_who_serves() -> Result<()> {
    killed(&STEPS).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "the same with more workers is not; `make every-case` runs it"]
async fn a_signal_at_any_step_leaves_no_stand_in_and_no_mark() -> Result<()> {
    let stage = ONE.set().await?;
    stage.release(LENGTHY)?;
    reloaded(&stage, &OPTIONS).await?;
    let before = stage.workers().await?;
    let visits = stage.visited(LIGHT);
    for (of_the_worker, step, signal) in [
        (false, "starting", Signal::INT),
        (false, "up", Signal::TERM),
        (true, "draining", Signal::HUP),
        (true, "starting", Signal::INT),
        (false, "stopping", Signal::TERM),
    ] {
        let ended = signalled(&stage, of_the_worker, step, signal).await?;
        eprintln!("{signal:?} at {step}: {:?}, {}", ended.code, ended.text());
        ensure!(stage.marked().await?.is_empty(), "its marks are not lifted");
        stage.is_as_before(&before).await?;
        stage.is_whole().await?;
    }
    visits.end_well().await?;
    stage.end().await
}

/// What a file or a shell says goes into the stand-in, too.
#[tokio::test(flavor = "multi_thread")]
async fn a_stand_in_has_the_environment_that_the_worker_is_going_to_get() -> Result<()> {
    let stage = ONE.set().await?;
    let visits = stage.visited(LIGHT);
    stage.release("good, needs GREETING")?;
    let ended = stage.reload(&["shop"]).await?.is(10, &["its stand-in"])?;
    ensure!(ended.log().contains("GREETING is not set"), "{}", ended.log());
    let file = stage.pm2.ecosystem().display().to_string();
    let text =
        fs::read_to_string(&file)?.replace("\"env\":{", "\"env_live\":{\"GREETING\":\"hello\"},\"env\":{");
    fs::write(&file, text)?;
    reloaded(&stage, &[&file, "--env", "live"]).await?;
    visits.end_well().await?;
    stage.end().await
}

/// A port on which nobody listens is no worker that is up.
#[tokio::test(flavor = "multi_thread")]
async fn at_a_pm2_reload_requests_wait_though_there_is_a_port_to_spare() -> Result<()> {
    let stage = ONE.with_sidecar().set().await?;
    spare_is_down(&stage).await?;
    let before = stage.workers().await?;
    let visits = stage.visited(LIGHT);
    stage.pm2.run(&["reload", "shop"]).await?;
    stage.is_whole().await?;
    stage.kept(&before, &[]).await?;
    visits.end_well().await?;
    stage.end().await
}

/// Without a port to spare those who come wait, and what to add is said.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_port_to_spare_requests_wait_and_the_mend_is_said() -> Result<()> {
    let stage = Plan::workers(1).with_sidecar().set().await?;
    let mend = format!("add `server {};` to the upstream \"app\"", stage.address(1));
    let (_, dry) = stage.says(&["reload", "shop", "--dry-run"]).await?;
    ensure!(dry.contains(&mend) && dry.contains("for 30s at most"), "{dry}");
    let visits = stage.visited(LIGHT);
    let ended = reloaded(&stage, &OPTIONS).await?;
    ensure!(ended.events.iter().any(|event| event.to_string().contains("requests wait")), "{ended:?}");
    visits.end_well().await?;
    stage.end().await
}
