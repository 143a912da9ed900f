//! Workers that handle no signal at all: the user types `handoff reload`, and no visitor notices.

use anyhow::Result;
use e2e::{
    alone,
    nginx::Binary,
    runner::{Plan, Run},
    scenario::{Action, BRISK, Level, S4N, Scenario, Setup},
    verdict,
};

/// How long a deploy may take is judged on a machine that does nothing else (`make scenario`).
const S4N_L1: Scenario = Scenario { level: Level::L1, pace: BRISK, within: None, ..S4N };

async fn two_deploys() -> Result<Run> {
    let nginx = Binary::find(None).await?;
    Plan { scenario: S4N_L1, setup: Setup::Handoff, nginx, control: false }.play().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handoff_reload_of_workers_that_handle_no_signal_loses_no_request() {
    let _alone = alone::take().unwrap();
    let run = two_deploys().await.unwrap();
    assert!(run.done.iter().all(|done| done.action == Action::SafeReload), "{:?}", run.done);
    let exits: Vec<i32> = run.reloads.iter().map(|reload| reload.exit).collect();
    assert_eq!(exits, [0, 0], "{:?}", run.reloads);
    assert!(run.visits.len() > 1_000, "{} visits", run.visits.len());
    let failed: Vec<_> = run.failed().map(|visit| (visit, run.log.tried(visit.number))).collect();
    assert!(failed.is_empty(), "{failed:?}");
    let broken = verdict::broken_promises(&run);
    assert!(broken.is_empty(), "{broken:?}");
    let sent = verdict::sent_where_none_should_be(&run);
    assert!(sent.is_empty(), "{sent:?}");
    let replaced = run.lives.iter().filter(|life| life.died.is_some()).count();
    assert_eq!(replaced, 8, "two deploys of four workers: {:?}", run.lives);
}
