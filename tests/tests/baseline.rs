//! What Handoff is measured against: the failures are real, and they come from the deploy.

use anyhow::{Result, bail, ensure};
use e2e::{
    alone,
    nginx::Binary,
    runner::{Plan, Run},
    scenario::{Pace, S1, S4, SETTLING, Scenario, Setup},
};
use std::time::Duration;

/// One deploy, as short as it can be.
const ONCE: Pace = Pace {
    actions: &[Duration::from_secs(4)],
    gap: Duration::ZERO,
    at_least: Duration::ZERO,
    after: SETTLING,
};

async fn deploy_with_stock_nginx(scenario: Scenario) -> Result<Run> {
    let nginx = Binary::find(None).await?;
    Plan { scenario: Scenario { pace: ONCE, ..scenario }, setup: Setup::Stock, nginx, control: false }
        .play()
        .await
}

async fn fails_visits_in_a_deploy_and_none_without(scenario: Scenario) -> Result<()> {
    let _alone = alone::take()?;
    for _ in 0..3 {
        let run = deploy_with_stock_nginx(scenario).await?;
        let [deploy] = run.done[..] else { bail!("one deploy, not {:?}", run.done) };
        let calm = run.visits.iter().filter(|visit| !deploy.touches(visit));
        ensure!(calm.clone().count() > 500, "too few visits to say anything");
        ensure!(calm.filter(|visit| visit.failed()).count() == 0, "failed without a deploy");
        if run.failed().next().is_some() && run.log.retried() > 0 {
            return Ok(());
        }
    }
    bail!(
        "three deploys, and stock nginx failed nobody, or never tried again: the load does not see what it should"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn stock_nginx_fails_visits_across_a_pm2_reload_and_none_without() -> Result<()> {
    fails_visits_in_a_deploy_and_none_without(S4).await
}

#[tokio::test(flavor = "multi_thread")]
async fn stock_nginx_fails_visits_across_a_pm2_reload_in_cluster_mode_and_none_without() -> Result<()> {
    fails_visits_in_a_deploy_and_none_without(S1).await
}
