//! Deploy after deploy, over each way to deploy: nobody fails, nothing runs twice, nothing is kept. `make soak` is the same
//! with a thousand deploys and a million requests.

use anyhow::{Result, ensure};
use e2e::{
    alone,
    soak::{self, Plan},
    stand,
};

/// One after the other, each in a mode and over an nginx of its own, and all three levels.
fn few() -> Vec<stand::Plan> {
    soak::kinds().into_iter().step_by(5).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn deploys_in_a_row_fail_nobody_and_leave_nothing_behind() -> Result<()> {
    let _alone = alone::take()?;
    let plan = Plan { deploys: 6, requests: 600, seed: 1, rate: 100, sites: 3, at_once: 2, kinds: few() };
    let outcomes = plan.play(|_| {}).await?;
    eprintln!("{}", soak::table(&outcomes));
    for outcome in &outcomes {
        let broken = outcome.broken();
        ensure!(broken.is_empty(), "{}: {broken:?}\n{}\n{}", outcome.kind, outcome.log, outcome.said);
        ensure!(outcome.deploys.len() == 2 && outcome.tally.orders > 20, "{outcome:?}");
    }
    Ok(())
}
