//! However much fails, what is added to it is bounded.

use crate::stage::{Ask, Outcome, Stage};
use anyhow::{Result, ensure};
use e2e::site::VERSIONS;

/// A request that takes a place for two seconds.
fn told() -> Ask {
    Ask::get("").refused("503", "1").later("2")
}

#[tokio::test]
async fn a_budget_that_is_spent_leaves_the_answer_as_it_is() -> Result<()> {
    for version in VERSIONS {
        for (lines, allowed) in [("handoff_retry min=1;", 1), ("", 10), ("handoff_retry budget=0% min=2;", 2)]
        {
            let stage = Stage::new(version, 1, lines, "").await?;
            let mut visits = Vec::new();
            for number in 1..=allowed {
                visits.push(stage.begin(told())?);
                stage.rest(number).await?;
            }
            let retry = stage.retry().await?;
            ensure!((retry.active, retry.allowed) == (allowed, allowed), "{retry:?}");
            stage.meets("no place", told(), Outcome::answered(503, 1, "budget")).await?;
            // What nginx does itself is nobody else's business.
            stage.meets("no failure", Ask::get(""), Outcome::answered(200, 1, "-")).await?;
            for visit in visits {
                let met = stage.end_of(visit).await?;
                ensure!(met == Outcome::answered(200, 2, "retry_after"), "{met:?}");
            }
            let retry = stage.retry().await?;
            ensure!(
                (retry.active, retry.granted.retry_after, retry.refused.budget) == (0, allowed, 1),
                "{retry:?}"
            );
            stage.end().await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn the_budget_grows_with_what_is_in_flight() -> Result<()> {
    for version in VERSIONS {
        let stage = Stage::new(version, 1, "handoff_retry budget=50% min=1;", "").await?;
        let busy: Vec<_> = (0..6).map(|_| stage.begin(Ask::get("").held())).collect::<Result<_>>()?;
        stage.farm.holds_so_many(6).await?;
        ensure!(stage.retry().await?.allowed == 3);
        let mut visits = Vec::new();
        for number in 1..=3 {
            visits.push(stage.begin(told())?);
            stage.rest(number).await?;
        }
        stage.meets("no place", told(), Outcome::answered(503, 1, "budget")).await?;
        stage.farm.release().await?;
        for visit in visits.into_iter().chain(busy) {
            ensure!(stage.end_of(visit).await?.status == 200);
        }
        stage.end().await?;
    }
    Ok(())
}

/// Over all processes of nginx, and those that wait for news take a place when they go.
#[tokio::test]
async fn who_was_broken_goes_when_the_budget_has_a_place() -> Result<()> {
    for version in VERSIONS {
        let stage = Stage::new(version, 1, "handoff_retry min=1 budget=0%;", "").await?;
        stage.are_shared().await?;
        // Takes the only place until it is answered.
        let first = stage.begin(Ask::get("").held().dies("1"))?;
        stage.farm.holds_so_many(1).await?;
        ensure!(stage.retry().await?.active == 1);
        let met = stage.end_of(stage.begin(Ask::get("").dies("1"))?).await?;
        ensure!(met == Outcome::failed(502, 1, "budget"), "{met:?}");
        stage.farm.release().await?;
        let met = stage.end_of(first).await?;
        ensure!(met == Outcome::answered(200, 2, "replaced"), "{met:?}");
        stage.meets("a place", Ask::get("").dies("1"), Outcome::answered(200, 2, "replaced")).await?;
        stage.end().await?;
    }
    Ok(())
}
