//! A worker that is killed takes with it what it was executing, and nothing else.

use anyhow::Result;
use e2e::{
    alone,
    nginx::Binary,
    runner::{Plan, Run},
    scenario::{BRISK, S6B, Scenario, Setup},
    verdict,
};
use std::time::Duration;

async fn two_kills() -> Result<Run> {
    let nginx = Binary::find(None).await?;
    let scenario = Scenario { pace: BRISK, ..S6B };
    Plan { scenario, setup: Setup::Handoff, nginx, control: false }.play().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_worker_costs_only_the_orders_that_it_was_executing() {
    let _alone = alone::take().unwrap();
    let run = two_kills().await.unwrap();
    let unexplained = verdict::unexplained(&run);
    assert!(unexplained.is_empty(), "{unexplained:?}");
    assert_eq!(run.orders.executed_twice(), 0);
    let sent = verdict::sent_where_none_should_be(&run);
    assert!(sent.is_empty(), "{sent:?}");
    for time in verdict::death_to_down(&run) {
        let time = time.expect("nginx never held the peer for down");
        assert!(time < Duration::from_millis(500), "marked {time:?} after its death");
    }
}
