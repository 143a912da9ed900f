//! Workers that handle nothing, in cluster mode and in fork mode, with one line more in their ecosystem file: whoever tells
//! one to go, and however, no visitor notices.

use anyhow::{Result, ensure};
use e2e::{
    alone,
    nginx::Binary,
    runner::{Plan, Run},
    scenario::{
        Level, Pace, S3, S3_INT, S3_RESTART, S3_SCALE, S3_STOP, S3B, S4N, S8, SETTLING, Scenario, Setup,
        Streaming,
    },
    streams::{Ending, Kind},
    verdict,
};
use std::time::Duration;

const ONCE: Pace = Pace {
    actions: &[Duration::from_secs(1)],
    gap: Duration::ZERO,
    at_least: Duration::ZERO,
    after: SETTLING,
};

async fn played(scenario: Scenario, setup: Setup, version: &str) -> Result<Run> {
    let nginx = Binary::find(Some(version)).await?;
    Plan { scenario, setup, nginx, control: false }.play().await
}

async fn nobody_notices(scenario: Scenario, version: &str) -> Result<()> {
    let _alone = alone::take()?;
    let scenario = Scenario { level: Level::L2, pace: ONCE, ..scenario };
    let run = played(scenario, Setup::Handoff, version).await?;
    let failed: Vec<_> = run.failed().map(|visit| (visit, run.log.tried(visit.number))).collect();
    ensure!(
        failed.is_empty(),
        "{}, nginx {version}: of {} visits {failed:?}",
        scenario.name,
        run.visits.len()
    );
    let twice: Vec<_> = run.orders.twice().collect();
    ensure!(twice.is_empty(), "{}: executed twice: {twice:?}, {:?}", scenario.name, run.lives);
    ensure!(run.done.len() == 1, "{}", scenario.name);
    Ok(())
}

/// What the others are measured against.
#[tokio::test(flavor = "multi_thread")]
async fn without_handoff_a_reload_of_such_workers_fails_visits() {
    let _alone = alone::take().unwrap();
    let run = played(Scenario { pace: ONCE, ..S3B }, Setup::Tuned, "1.22.1").await.unwrap();
    assert!(run.failed().count() > 0, "none of {} visits failed", run.visits.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_that_waits_for_ready_which_the_preload_says() -> Result<()> {
    nobody_notices(S3, "1.22.1").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload() -> Result<()> {
    nobody_notices(S3B, "1.28.3").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart() -> Result<()> {
    nobody_notices(S3_RESTART, "1.22.1").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_and_a_start() -> Result<()> {
    nobody_notices(S3_STOP, "1.28.3").await
}

#[tokio::test(flavor = "multi_thread")]
async fn one_worker_less_and_one_more() -> Result<()> {
    nobody_notices(S3_SCALE, "1.22.1").await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupt_by_hand() -> Result<()> {
    nobody_notices(S3_INT, "1.28.3").await
}

/// PM2 stops the next worker before the last one listens again; with the preload it stays until then.
#[tokio::test(flavor = "multi_thread")]
async fn a_reload_in_fork_mode_where_pm2_waits_for_nobody() -> Result<()> {
    nobody_notices(S4N, "1.22.1").await
}

/// `handoff reload`: PM2 would wait for nobody as long as that.
#[tokio::test(flavor = "multi_thread")]
async fn streams_in_cluster_mode_are_waited_for() {
    let _alone = alone::take().unwrap();
    let scenario = Scenario {
        level: Level::L2,
        workers: 3,
        streaming: Some(Streaming { each: 10, pulses: 20 }),
        pace: Pace { after: Duration::from_secs(1), ..ONCE },
        ..S8
    };
    let run = played(scenario, Setup::Handoff, "1.22.1").await.unwrap();
    for kind in [Kind::Events, Kind::Echo] {
        let all = run.streams.iter().filter(|stream| stream.kind == kind);
        let whole = all.clone().filter(|stream| stream.ending == Ending::Complete).count();
        assert!(whole >= 10, "{whole} of {} {kind} whole", all.count());
    }
    let broken = verdict::broken_promises(&run);
    assert!(broken.is_empty(), "{broken:?}");
    assert_eq!((run.cut().count(), run.said_cut()), (0, 0));
}
