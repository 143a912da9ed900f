//! Deploy after deploy, over each way to deploy: nobody fails, nothing runs twice, nothing is kept. `make soak` is the same
//! with a thousand deploys and a million requests.

use anyhow::{Result, ensure};
use e2e::{
    alone,
    app::Mode,
    scenario::Level,
    site::VERSIONS,
    soak::{self, Plan},
    stand,
};

/// Of each mode and each nginx one, where nothing rests on a CPU that is free at the right moment.
fn few() -> Vec<stand::Plan> {
    let [older, newer] = VERSIONS;
    let kind = |nginx, mode, level| stand::Plan { nginx, mode, level, workers: 2, guesses: true };
    vec![kind(older, Mode::Fork, Level::L1), kind(newer, Mode::Cluster, Level::L2)]
}

#[tokio::test(flavor = "multi_thread")]
async fn deploys_in_a_row_fail_nobody_and_leave_nothing_behind() -> Result<()> {
    let _alone = alone::take()?;
    let plan = Plan { deploys: 4, requests: 400, seed: 1, rate: 100, sites: 2, at_once: 1, kinds: few() };
    let outcomes = plan.play(|_| {}).await?;
    eprintln!("{}", soak::table(&outcomes));
    for outcome in &outcomes {
        let broken = outcome.broken();
        ensure!(broken.is_empty(), "{}: {broken:?}\n{}\n{}", outcome.kind, outcome.log, outcome.said);
        ensure!(outcome.deploys.len() == 2 && outcome.tally.orders > 40, "{outcome:?}");
    }
    Ok(())
}
