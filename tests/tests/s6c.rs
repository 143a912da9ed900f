//! A worker that crashes as soon as it serves is not taken back each time that it listens.

use anyhow::Result;
use e2e::{
    alone,
    clock::Moment,
    nginx::Binary,
    runner::{Plan, Run},
    scenario::{S6C, Setup},
};

async fn a_crash_loop() -> Result<Run> {
    let nginx = Binary::find(None).await?;
    Plan { scenario: S6C, setup: Setup::Handoff, nginx, control: false }.play().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_crashes_in_a_loop_costs_no_more_than_its_first_crash() {
    let _alone = alone::take().unwrap();
    let run = a_crash_loop().await.unwrap();
    let [crashing] = run.done[..] else { panic!("one loop, not {:?}", run.done) };
    let crashes: Vec<Moment> =
        run.lives.iter().filter_map(|life| life.died).filter(|&died| died > crashing.began).collect();
    assert!(crashes.len() >= 5, "{} crashes are no loop", crashes.len());
    let first = crashes.into_iter().min().unwrap();
    // Orders that were with the worker when it first crashed: they may not be repeated. Nobody comes to grief later.
    let failed: Vec<_> = run.failed().collect();
    assert!(failed.iter().all(|visit| visit.order().is_some() && visit.due < first), "{failed:?}");
}
