//! `handoff reload` in cluster mode, where all workers share one address: one worker after the other, and a canary before
//! them that meets a broken release in their place.

use crate::{
    broken::{self, Broken},
    reload::{Ended, Reload},
    stage::{self, LIGHT, PATIENCE, Plan, Setup, Stage},
    visits::Account,
};
use anyhow::{Context, Result, ensure};
use e2e::{alone, process, site::Site, wait};
use handoff_wire::DEFAULT_LEASE;
use rustix::process::Signal;
use serde_json::{Value, json};
use std::{collections::BTreeSet, time::Duration};
use tokio::time::sleep;

const WORKERS: u16 = 4;
const ALL: [u32; 4] = [0, 1, 2, 3];
const OPTIONS: [&str; 7] = ["shop", "--health", "/health", "--health-timeout", "2s", "--start-timeout", "3s"];

/// Of which no user can notice anything: these do not listen, or answer users well.
const UNSEEN: [Broken; 4] = [
    ("crash", 10, &["it crashed"]),
    ("deaf", 11, &["no connection to 127.0.0.1:", "it does not listen there"]),
    ("mute", 11, &["it did not say `ready`"]),
    ("ill", 12, &["/health of 127.0.0.1:", "answers 503"]),
];
/// These listen and serve before they show what they are.
const SEEN: [Broken; 2] = [("late", 10, &["it crashed"]), ("errors", 13, &["were answered with an error"])];

/// It met the canary, which is gone, and no worker.
async fn comes_out(stage: &Stage, &(release, code, words): &Broken) -> Result<()> {
    let before = stage.workers().await?;
    stage.release(release)?;
    let ended = stage.reload(&OPTIONS).await?.is(code, words)?;
    eprintln!("{release}: exit {code}, {}", ended.text());
    ensure!(ended.text().contains("The old release serves on every worker of shop"), "{}", ended.text());
    ensure!(ended.replaced().is_empty() && ended.cut() == Some(0), "{:?}", ended.events);
    let canary = ended.canary()?;
    ensure!(ended.text().contains(&format!("its canary shop:{canary}")), "{}", ended.text());
    ensure!(ended.steps(canary).last() == Some(&"failed"), "{:?}", ended.events);
    ensure!(ALL.iter().all(|worker| ended.steps(*worker).is_empty()), "{:?}", ended.events);
    let is_logged = ["crash", "late"].contains(&release);
    ensure!(ended.log().contains("this release is broken") == is_logged, "it shows {}", ended.log());
    stage.kept(&before, &ALL).await?;
    stage.is_as_before(&before).await?;
    stage.release("good")?;
    stage.is_whole().await
}

impl Ended {
    /// The worker of which it speaks and which it did not plan to replace.
    pub(crate) fn canary(&self) -> Result<u32> {
        let planned = self.planned();
        let workers =
            self.events.iter().filter_map(|event| u32::try_from(event.get("worker")?.as_u64()?).ok());
        let others: BTreeSet<u32> = workers.filter(|worker| !planned.contains(worker)).collect();
        ensure!(others.len() == 1, "{others:?} beside {planned:?}: {:?}", self.events);
        others.first().copied().context("no canary")
    }
}

/// All that it says when nobody noticed anything.
async fn reloaded(stage: &Stage, options: &[&str]) -> Result<Ended> {
    let mut before = stage.workers().await?;
    // A canary that was left behind is none of them.
    before.retain(|id, _| ALL.contains(id));
    let ended =
        stage.reload(options).await?.is(0, &["all 4 workers of shop are new, and nothing was cut"])?;
    ensure!(ended.planned() == ALL && ended.replaced() == ALL, "{:?}", ended.events);
    stage.kept(&before, &[]).await?;
    stage.is_as_before(&before).await?;
    stage.is_whole().await?;
    Ok(ended)
}

async fn play(plan: Plan) -> Result<()> {
    let stage = plan.set().await?;
    let visits = stage.visited(LIGHT);
    let first = reloaded(&stage, &OPTIONS).await?;
    ensure!(first.steps(first.canary()?) == ["starting", "checking", "up", "deleted"], "{:?}", first.events);
    ensure!(first.steps(0) == ["starting", "checking", "stopping", "done"], "{:?}", first.steps(0));
    let second = reloaded(&stage, &["shop", "--watch", "500ms"]).await?;
    ensure!(second.canary()? > first.canary()?, "PM2 counts on");
    visits.end_well().await?;
    // What PM2 counts is where it was.
    stage.pm2.run(&["scale", "shop", "5"]).await?;
    let instances: Vec<_> = stage.workers().await?.values().map(|worker| worker.instance).collect();
    ensure!(instances == [0, 1, 2, 3, 4].map(Some), "{instances:?}");
    stage.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_worker_is_replaced_and_nobody_notices() -> Result<()> {
    play(Plan::workers(WORKERS).cluster()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_worker_is_replaced_and_nobody_notices_beside_a_sidecar_too() -> Result<()> {
    play(Plan::workers(WORKERS).cluster().with_sidecar()).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "the newest is not; `make every-case` runs it"]
async fn older_versions_of_pm2_do_it_too() -> Result<()> {
    for pm2 in ["pm2-6", "pm2-5"] {
        let stage = Plan::workers(WORKERS).cluster().with_sidecar().on(pm2).set().await?;
        let visits = stage.visited(LIGHT);
        reloaded(&stage, &OPTIONS).await?;
        comes_out(&stage, &UNSEEN[0]).await?;
        visits.end_well().await.context(pm2)?;
        stage.end().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "two minutes; `make every-case` runs it"]
async fn tens_of_reloads_in_a_row_lose_no_request() -> Result<()> {
    let _alone = alone::take()?;
    let stage = Plan::workers(WORKERS).cluster().set().await?;
    let visits = stage.visited(200);
    for _ in 0..20 {
        reloaded(&stage, &OPTIONS).await?;
    }
    visits.end_well().await?;
    stage.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_release_meets_the_canary_and_no_user() -> Result<()> {
    let _alone = alone::take()?;
    let stage = Plan::workers(WORKERS).cluster().set().await?;
    let visits = stage.visited(200);
    for broken in &UNSEEN {
        comes_out(&stage, broken).await.context(broken.0)?;
    }
    reloaded(&stage, &OPTIONS).await?;
    visits.end_well().await?;
    stage.end().await
}

/// Node gives the canary its share of the connections as soon as it listens: what cannot be known before that, some users
/// meet. They are a fifth at most, for as long as it is watched. Of a worker that throws, a connection that node is just
/// about to hand to it hangs.
#[tokio::test(flavor = "multi_thread")]
async fn a_release_that_serves_before_it_breaks_meets_few_users_and_no_worker() -> Result<()> {
    let _alone = alone::take()?;
    let stage = Plan::workers(WORKERS).cluster().with_sidecar().set().await?;
    let visits = stage.visited(200);
    for broken in &SEEN {
        comes_out(&stage, broken).await.context(broken.0)?;
    }
    let account: Account = visits.end().await?;
    account.print();
    let failed = account.failed().count();
    ensure!((1..100).contains(&failed) && account.hung() <= 3, "{failed} failed, {} hung", account.hung());
    account.every_order_once()?;
    stage.end().await
}

/// So that what the others show is not the calm of the machine.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "the same in fork mode is not; `make every-case` runs it"]
async fn a_pm2_reload_of_the_same_release_stops_every_worker() -> Result<()> {
    broken::a_pm2_reload_stops_every_worker(Plan::workers(WORKERS).cluster()).await
}

/// An app that ends at the signal loses what it has: that is said before and counted after.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_naive_app_loses_is_said_and_counted() -> Result<()> {
    let stage = Plan::workers(2).cluster().naive().set().await?;
    let held = stage.hold(0, Duration::from_secs(20)).await?;
    let ended = stage.reload(&["shop"]).await?.is(4, &["all 2 workers of shop are new", "were cut"])?;
    ensure!(ended.cut().is_some_and(|cut| cut >= 1), "{ended:?}");
    let says = |word: &str| ended.events.iter().any(|event| event.to_string().contains(word));
    ensure!(says("runs in cluster mode") && says("with the old shop:0"), "{ended:?}");
    held.is_cut(&stage).await?;
    stage.end().await
}

/// What is told to go and does not finish in time is cut by PM2, or by the app itself.
#[tokio::test(flavor = "multi_thread")]
async fn what_outlasts_the_end_of_its_worker_is_counted() -> Result<()> {
    let stage = Plan::workers(2).cluster().set().await?;
    let held = stage.hold(1, Duration::from_secs(20)).await?;
    let ended = stage.reload(&["shop"]).await?.is(4, &["all 2 workers of shop are new"])?;
    ensure!(ended.cut() == Some(held.count() as u64), "{} were held: {ended:?}", held.count());
    held.is_cut(&stage).await?;
    stage.end().await
}

/// Comes back when it is over. `worker`: none is the canary.
async fn signalled(stage: &Stage, worker: Option<u32>, step: &str, signal: Signal) -> Result<Ended> {
    let mut reload = stage.begin(&OPTIONS)?;
    match worker {
        None => reload.reaches_canary(step).await?,
        Some(worker) => reload.reaches(worker, step).await?,
    }
    reload.signal(signal);
    reload.ended().await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "the same in fork mode is not; `make every-case` runs it"]
async fn one_that_is_killed_leaves_a_canary_that_the_next_one_removes() -> Result<()> {
    let stage = Plan::workers(WORKERS).cluster().with_sidecar().set().await?;
    // Long enough to be met.
    stage.release("good, slow 400, pale 400")?;
    let visits = stage.visited(LIGHT);
    let before = stage.workers().await?;
    for (worker, step) in [
        (None, "starting"),
        (None, "up"),
        (Some(0), "starting"),
        (Some(0), "checking"),
        (Some(1), "starting"),
    ] {
        signalled(&stage, worker, step, Signal::KILL).await?;
        let left = stage.workers().await?.keys().copied().find(|id| !before.contains_key(id));
        eprintln!("killed at {step} of {worker:?}: {left:?} left behind");
        ensure!(left.is_some() == worker.is_none(), "{left:?} is left at {step} of {worker:?}");
        let (_, dry) = stage.says(&["reload", "shop", "--dry-run"]).await?;
        ensure!(dry.contains("and would be deleted") == left.is_some(), "{dry}");
        let (_, status) = stage.says(&["status"]).await?;
        match left {
            Some(left) => ensure!(status.contains(&format!("shop:{left} was left behind")), "{status}"),
            None => ensure!(!status.contains("left behind"), "{status}"),
        }
        wait::until("PM2 to be done", PATIENCE, async || {
            let workers = stage.workers().await.ok()?;
            workers.values().all(|worker| worker.is_online()).then_some(())
        })
        .await?;
        let ended =
            reloaded(&stage, &OPTIONS).await.with_context(|| format!("after {step} of {worker:?}"))?;
        let says = ended.events.iter().any(|event| event.to_string().contains("was the canary of"));
        ensure!(says == left.is_some(), "{:?}", ended.events);
        stage.is_as_before(&before).await?;
    }
    visits.end_well().await?;
    stage.end().await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "the same in fork mode is not; `make every-case` runs it"]
async fn a_signal_at_any_step_leaves_no_canary_and_no_mark() -> Result<()> {
    let stage = Plan::workers(WORKERS).cluster().set().await?;
    stage.release("good, slow 400, pale 400")?;
    let visits = stage.visited(LIGHT);
    let before = stage.workers().await?;
    for (worker, step, signal) in [
        (None, "starting", Signal::INT),
        (None, "up", Signal::TERM),
        (Some(0), "starting", Signal::HUP),
        (Some(0), "checking", Signal::INT),
    ] {
        let ended = signalled(&stage, worker, step, signal).await?;
        let ended = ended.is(128 + signal.as_raw(), &["stopped by SIG"])?;
        ensure!(ended.replaced() == Vec::from_iter(worker), "{ended:?}");
        ensure!(stage.marked().await?.is_empty(), "its mark is not lifted");
        stage.is_as_before(&before).await?;
        stage.is_whole().await?;
    }
    visits.end_well().await?;
    stage.end().await
}

/// The release changes once more when the first worker is new: what the canary could not know.
#[tokio::test(flavor = "multi_thread")]
async fn a_later_worker_that_is_broken_ends_the_roll_out() -> Result<()> {
    let stage = Plan::workers(WORKERS).cluster().with_sidecar().set().await?;
    let visits = stage.visited(LIGHT);
    let before = stage.workers().await?;
    let mut reload = stage.begin(&OPTIONS)?;
    reload.reaches(0, "stopping").await?;
    stage.release("crash")?;
    let ended =
        reload.ended().await?.is(10, &["the new shop:1", "it crashed", "1 of 4 workers of shop are new"])?;
    eprintln!("{}", ended.text());
    ensure!(ended.log().contains("this release is broken"), "it shows {}", ended.log());
    stage.kept(&before, &[2, 3]).await?;
    let broken = stage.workers().await?.remove(&1).context("worker 1")?;
    ensure!(["stopped", "errored"].contains(&broken.status.as_str()) && broken.pid == 0, "{broken:?}");
    ensure!(stage.marked().await?.is_empty(), "its mark is not lifted");

    // Somebody tries again, until PM2 gives it up.
    _ = stage.pm2.attempt(&["restart", "1"], PATIENCE).await?;
    wait::until("PM2 to give it up", PATIENCE, async || {
        stage.workers().await.ok()?.remove(&1).filter(|worker| worker.status == "errored")
    })
    .await?;
    stage.release("good")?;
    let ended = stage.reload(&OPTIONS).await?.is(0, &["all 4 workers of shop are new"])?;
    ensure!(ended.planned() == [1, 0, 2, 3], "who does not serve goes first: {:?}", ended.planned());
    stage.is_as_before(&before).await?;
    stage.is_whole().await?;
    visits.end_well().await?;
    stage.end().await
}

/// Until Node says that it is online, PM2 does not wait for the `ready` of one that it has just started again: frozen then, it could
/// not be stopped any more.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_just_starting_is_waited_for_and_not_frozen() -> Result<()> {
    let stage = Plan::workers(2).cluster().with_sidecar().set().await?;
    let before = stage.workers().await?;
    stage.release("only 1, slow 2500")?;
    let dies = before.get(&1).context("worker 1")?.pid;
    process::signal(dies, Signal::KILL);
    wait::until("PM2 to start it again", PATIENCE, async || {
        let again = stage.workers().await.ok()?.remove(&1)?;
        (again.pid != 0 && again.pid != dies).then_some(())
    })
    .await?;
    let daemon = stage.pm2.daemon()?;
    let is_frozen = async || -> Result<()> {
        loop {
            let frozen = process::children(daemon).into_iter().find(|&pid| process::is_stopped(pid));
            ensure!(frozen.is_none(), "{frozen:?} is frozen");
            sleep(Duration::from_millis(5)).await;
        }
    };
    let reload = stage.begin(&["shop"])?;
    let ended = tokio::select! {
        ended = reload.ended() => ended?,
        frozen = is_frozen() => return frozen,
    };
    ended.is(0, &["all 2 workers of shop are new"])?;
    stage.is_as_before(&before).await?;
    stage.is_whole().await?;
    stage.end().await
}

/// Another environment, and beside the shop an app in fork mode.
fn production(site: &Site, setup: &mut Setup) -> Result<()> {
    let shop = setup.ecosystem.pointer_mut("/apps/0").and_then(Value::as_object_mut).context("an app")?;
    shop.insert("env_production".to_owned(), json!({ "GREETING": "hello from production" }));
    let mut jobs = stage::app(site, "jobs", Plan::workers(1), json!({ "GREETING": "" }))?;
    jobs.as_object_mut().context("an object")?.remove("increment_var");
    let apps = setup.ecosystem.pointer_mut("/apps").and_then(Value::as_array_mut).context("apps")?;
    apps.push(jobs);
    Ok(())
}

async fn greeting(stage: &Stage) -> Result<Value> {
    let answer: Value = stage.site.visitors().get("/env?name=GREETING").await?.json()?;
    Ok(answer.get("value").cloned().unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_canary_has_the_environment_that_the_workers_are_going_to_get() -> Result<()> {
    let stage = Stage::set(Plan::workers(2).cluster(), production).await?;
    let before = stage.all_workers().await?;
    let file = stage.pm2.ecosystem().display().to_string();
    // Fit to serve with the new environment alone.
    stage.release("needs GREETING")?;
    let ended = stage.reload(&["shop"]).await?.is(10, &["it crashed"])?;
    ensure!(ended.log().contains("GREETING"), "{}", ended.log());
    stage.kept(&before, &[0, 1]).await?;

    stage
        .reload(&[&file, "--env", "production", "--only", "shop"])
        .await?
        .is(0, &["all 2 workers of shop are new"])?;
    ensure!(greeting(&stage).await? == "hello from production", "--env");
    stage.is_as_before(&before).await?;

    let mut command = stage.handoff(&["reload", "--json", "shop", "--update-env"])?;
    command.env("GREETING", "hello from the shell");
    Reload::start(command)?.ended().await?.is(0, &["all 2 workers of shop are new"])?;
    ensure!(greeting(&stage).await? == "hello from the shell", "--update-env");

    let ended = stage.reload(&["all"]).await?;
    ensure!(ended.code == Some(0) && ended.steps(2).last() == Some(&"done"), "{ended:?}");
    stage.is_as_before(&before).await?;
    stage.is_whole().await?;
    stage.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_command_ends_the_roll_out() -> Result<()> {
    let stage = Plan::workers(WORKERS).cluster().set().await?;
    stage.release("good, slow 1000")?;
    for command in [vec!["restart", "2"], vec!["scale", "shop", "+1"]] {
        let before = stage.workers().await?;
        let mut reload = stage.begin(&["shop"])?;
        reload.reaches_canary("starting").await?;
        let (told, ended) = tokio::join!(stage.pm2.run(&command), reload.ended());
        told?;
        let ended = ended?.is(15, &["somebody else changes this app"])?;
        ensure!(ended.replaced().is_empty(), "{ended:?}");
        let canary = ended.canary()?;
        let now = stage.workers().await?;
        ensure!(!now.contains_key(&canary), "the canary is still there: {now:?}");
        ensure!(before.keys().all(|id| now.contains_key(id)), "{before:?} {now:?}");
    }
    tokio::time::sleep(DEFAULT_LEASE.duration() / 10).await;
    ensure!(stage.marked().await?.is_empty(), "its mark is not lifted");
    ensure!(stage.workers().await?.len() == 5, "what somebody added is theirs");
    stage.end().await
}
