//! What Handoff is measured against: the failures are real, and they come from the deploy.

use anyhow::Result;
use e2e::{
    alone,
    nginx::Binary,
    runner::{Plan, Run},
    scenario::{Pace, S4, SETTLING, Scenario, Setup},
};
use std::time::Duration;

/// S4 with one deploy, as short as it can be.
const SHORT: Scenario = Scenario {
    pace: Pace {
        actions: &[Duration::from_secs(4)],
        gap: Duration::ZERO,
        at_least: Duration::ZERO,
        after: SETTLING,
    },
    ..S4
};

async fn deploy_with_stock_nginx() -> Result<Run> {
    let nginx = Binary::find(None).await?;
    Plan { scenario: SHORT, setup: Setup::Stock, nginx, control: false }.play().await
}

#[tokio::test(flavor = "multi_thread")]
async fn stock_nginx_fails_visits_across_a_pm2_reload_and_none_without() {
    let _alone = alone::take().unwrap();
    for _ in 0..3 {
        let run = deploy_with_stock_nginx().await.unwrap();
        let [deploy] = run.done[..] else { panic!("one deploy, not {:?}", run.done) };
        let calm = run.visits.iter().filter(|visit| !deploy.touches(visit));
        assert!(calm.clone().count() > 500, "too few visits to say anything");
        assert_eq!(calm.filter(|visit| visit.failed()).count(), 0, "failed without a deploy");
        assert!(run.log.retried() > 0, "nginx was never seen to try again");
        if run.failed().next().is_some() {
            return;
        }
    }
    panic!("three deploys, and stock nginx failed nobody: the load does not see what it should");
}
