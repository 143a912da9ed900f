//! What most users run: four workers in cluster mode behind one address. They type `pm2 reload` or `pm2 restart` as ever,
//! and no visitor notices.

use anyhow::Result;
use e2e::{
    alone,
    nginx::Binary,
    runner::{Plan, Run},
    scenario::{BRISK, Pace, S1, S2, SETTLING, Scenario, Setup},
    verdict,
};
use handoff_wire::State;
use std::time::Duration;

/// Two hundred and seventy reloads in a row, and as many requests as come meanwhile: more than 300 000.
const S1X: Scenario = Scenario {
    name: "S1x",
    rate: 450,
    pace: Pace {
        actions: &[Duration::ZERO; 270],
        gap: Duration::from_millis(500),
        at_least: Duration::ZERO,
        after: SETTLING,
    },
    ..S1
};

async fn deploys(scenario: Scenario, version: &str) -> Result<Run> {
    let nginx = Binary::find(Some(version)).await?;
    Plan { scenario, setup: Setup::Handoff, nginx, control: false }.play().await
}

fn nobody_noticed(run: &Run, version: &str) {
    let Run { scenario: Scenario { name, .. }, visits, .. } = run;
    let failed: Vec<_> = run.failed().map(|visit| (visit, run.log.tried(visit.number))).collect();
    assert!(failed.is_empty(), "{name}, nginx {version}: of {} visits {failed:?}", visits.len());
    assert_eq!(run.orders.executed_twice(), 0, "{name}, nginx {version}");
    let sent = verdict::sent_where_none_should_be(run);
    assert!(sent.is_empty(), "{name}, nginx {version}: {sent:?}");
    for done in &run.done {
        // While one worker after the other is replaced, and one deploy follows the other, it may be said once for all.
        let is_told = run.changes.windows(2).any(|pair| {
            matches!(pair, [from, to] if from.to == State::Changing && from.at <= done.ended && to.at >= done.began)
        });
        assert!(is_told, "nginx was not told of {done:?}: {:?}", run.changes);
    }
    let (deploys, orders) =
        (run.done.len(), run.visits.iter().filter(|visit| visit.order().is_some()).count());
    eprintln!(
        "{name}, nginx {version}: {deploys} deploys, {} visits, {orders} of them orders",
        run.visits.len()
    );
    assert_eq!(run.changes.last().map(|change| change.to), Some(State::Up), "the last one is over");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pm2_reload_in_cluster_mode_loses_no_request() {
    let _alone = alone::take().unwrap();
    nobody_noticed(&deploys(Scenario { pace: BRISK, ..S1 }, "1.28.3").await.unwrap(), "1.28.3");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a reload is not; `make every-case` runs it"]
async fn a_pm2_restart_in_cluster_mode_loses_no_request() {
    let _alone = alone::take().unwrap();
    nobody_noticed(&deploys(Scenario { pace: BRISK, ..S2 }, "1.22.1").await.unwrap(), "1.22.1");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a quarter of an hour; `make every-case` runs it"]
async fn hundreds_of_pm2_reloads_in_a_row_lose_no_request() {
    let _alone = alone::take().unwrap();
    let run = deploys(S1X, "1.22.1").await.unwrap();
    assert!(run.visits.len() >= 300_000, "{} visits", run.visits.len());
    nobody_noticed(&run, "1.22.1");
}
