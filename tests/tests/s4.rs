//! The main job: the user types `pm2 reload` as ever, and no visitor notices.

use anyhow::Result;
use e2e::{
    alone,
    nginx::Binary,
    runner::{Plan, Run},
    scenario::{BRISK, S4, Scenario, Setup},
    verdict,
};

const VERSIONS: [&str; 2] = ["1.22.1", "1.28.3"];

async fn two_deploys(version: &str) -> Result<Run> {
    let nginx = Binary::find(Some(version)).await?;
    let scenario = Scenario { pace: BRISK, ..S4 };
    Plan { scenario, setup: Setup::Handoff, nginx, control: false }.play().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pm2_reload_of_fork_workers_loses_no_request() {
    let _alone = alone::take().unwrap();
    for version in VERSIONS {
        let run = two_deploys(version).await.unwrap();
        assert_eq!(run.deploys().count(), 2);
        assert!(run.visits.len() > 1_000, "{} visits", run.visits.len());
        let failed: Vec<_> = run.failed().map(|visit| (visit, run.log.tried(visit.number))).collect();
        assert!(failed.is_empty(), "nginx {version}: {failed:?}");
        assert_eq!(run.orders.executed_twice(), 0, "nginx {version}");
        let sent = verdict::sent_where_none_should_be(&run);
        assert!(sent.is_empty(), "nginx {version}: {sent:?}");
        assert!(run.changes.len() >= 16, "each of 8 workers drained and came back: {:?}", run.changes);
    }
}
