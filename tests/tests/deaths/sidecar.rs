//! The sidecar is killed, or stopped, while requests wait for the only worker, which is being restarted. After three seconds of
//! its silence it is as if it had said nothing: those who wait are let go, and nginx answers as it would alone.

use crate::trial::{Findings, Plan, Trial, set};
use anyhow::{Context, Result, ensure};
use e2e::{
    alone,
    app::{Mode, NAME},
    clock::Moment,
    load::{Answer, Visit},
    scenario::Setup,
    wait,
};
use handoff_wire::QueueView;
use hyper::StatusCode;
use rustix::process::Signal;
use serde_json::json;
use std::{fs, time::Duration};

const PATIENCE: Duration = Duration::from_secs(10);
/// nginx looks at leases each 250 ms; a sidecar that lives renews its own each second.
const RULE: std::ops::RangeInclusive<Duration> = Duration::from_millis(1_900)..=Duration::from_millis(4_000);
/// Between what happens and what a client sees of it.
const SLACK: Duration = Duration::from_millis(300);
/// A connection is refused, and the request waits for the word that somebody comes back: 200 ms, in which so many come.
const MOMENT: Duration = Duration::from_millis(500);
const AT_ONCE: u64 = 100;

struct Silence {
    findings: Findings,
    /// When the sidecar said its last word at the latest, and when nginx had let everybody go.
    silent: Moment,
    over: Moment,
    /// When the worker was let begin.
    back: Moment,
    held: u64,
    queue: QueueView,
}

async fn fall_silent(signal: Signal) -> Result<Silence> {
    let plan = Plan { setup: Setup::Handoff, mode: Mode::Fork, workers: 1, servers: 1, daemon: &[] };
    let mut trial = Trial::set(&plan, |place, _, ecosystem| {
        set(ecosystem, "/apps/0/env/LATE_FILE", json!(place.file("late")));
    })
    .await?;
    fs::write(trial.file("late"), "")?;
    let began = trial.begin("restart myapp, and the sidecar falls silent");
    let restart = trial.pm2.run(&["restart", NAME]);
    let silence = async {
        wait::until("requests to wait", PATIENCE, async || {
            (trial.queue().await.ok()?.held > 20).then_some(())
        })
        .await?;
        trial.signal_sidecar(signal);
        let silent = Moment::now();
        let mut held = 0;
        wait::until("those who wait to be let go", PATIENCE, async || {
            let queue = trial.queue().await.ok()?;
            held = held.max(queue.held);
            (queue.resumed > 0 && queue.held < AT_ONCE).then_some(())
        })
        .await?;
        let over = Moment::now();
        // A while as nginx alone, with nobody there.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let queue = trial.queue().await?;
        let back = Moment::now();
        fs::remove_file(trial.file("late"))?;
        anyhow::Ok((silent, over, back, held, queue))
    };
    let (restarted, silence) = tokio::join!(restart, silence);
    restarted?;
    let (silent, over, back, held, queue) = silence?;
    trial.replaced(1, began).await?;
    // The worker serves, though nobody says so.
    trial.begin("the sidecar is there again");
    if signal == Signal::KILL {
        trial.kill_sidecar();
        trial.start_sidecar().await?;
    } else {
        trial.signal_sidecar(Signal::CONT);
    }
    trial.only_up(&[0]).await?;
    let began = trial.pm2("restart myapp").await?;
    trial.replaced(1, began).await?;
    trial.only_up(&[0]).await?;
    Ok(Silence { findings: trial.end().await?, silent, over, back, held, queue })
}

impl Silence {
    fn print(&self, title: &str) {
        self.findings.print(title);
        eprintln!(
            "{} waited; silent for {:?} when all had been let go: {:?}",
            self.held,
            self.over.since(self.silent),
            self.queue
        );
    }

    fn ended(visit: &Visit) -> Moment {
        visit.due + visit.latency
    }

    /// Every visit is accounted for.
    fn is_as_it_should_be(&self) -> Result<()> {
        let Self { findings, silent, over, back, queue, .. } = self;
        findings.nothing_twice_and_nothing_hung();
        let took = over.since(*silent);
        ensure!(RULE.contains(&took), "it took {took:?}");
        let new = findings.lives.iter().filter(|life| life.booted > *back);
        let listened = new.filter_map(|life| life.listened).min().context("a new worker")?;
        let (failed, served): (Vec<&Visit>, Vec<&Visit>) =
            findings.visits.iter().partition(|visit| visit.failed());
        for visit in &failed {
            let is_stock = matches!(visit.answer, Answer::Status { code: StatusCode::BAD_GATEWAY, .. });
            let ended = Self::ended(visit);
            ensure!(is_stock && ended + SLACK > *over && ended < listened + SLACK, "{visit:?}");
            if let Some(order) = visit.order() {
                ensure!(findings.orders.executions(&order).is_empty(), "failed and executed: {visit:?}");
            }
            // Who comes when it is over is answered in a moment.
            ensure!(visit.due < *over || visit.latency < MOMENT, "{visit:?}");
        }
        // Nobody who came while somebody listened failed; nobody else who came did not.
        for visit in &served {
            let came_between = visit.due > *over && visit.due + SLACK < listened;
            ensure!(!came_between, "nobody was there to serve it: {visit:?}");
        }
        // They were let go to where nginx alone would have sent them: to the one peer, where nobody listens.
        let waited = failed.iter().filter(|visit| visit.latency > MOMENT).count() as u64;
        ensure!(waited > 300 && waited <= queue.resumed, "{waited} waited in vain, {queue:?}");
        ensure!(queue.held < AT_ONCE, "{queue:?}");
        ensure!([queue.overflowed, queue.timed_out, queue.left] == [0; 3], "{queue:?}");
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_that_is_killed_ends_the_wait_after_three_seconds() -> Result<()> {
    let _alone = alone::take()?;
    let silence = fall_silent(Signal::KILL).await?;
    silence.print("killed");
    silence.is_as_it_should_be()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_that_is_stopped_ends_the_wait_after_three_seconds() -> Result<()> {
    let _alone = alone::take()?;
    let silence = fall_silent(Signal::STOP).await?;
    silence.print("stopped");
    silence.is_as_it_should_be()
}
