//! The only worker of an app is replaced. Whoever comes meanwhile waits for the next one; with `handoff reload` and a port
//! to spare, nobody has to.

use anyhow::{Result, ensure};
use e2e::{
    alone,
    nginx::Binary,
    runner::{Plan, Run},
    scenario::{Action, BRISK, Level, S5, S5_RESTART, S5N, Scenario, Setup},
    verdict,
};
use std::time::Duration;

/// From PM2's notice until the worker closes, and from `ready` until all who waited are with the new one; on a machine that has other
/// things to do, too.
const SLACK: Duration = Duration::from_millis(500);

async fn two_deploys(scenario: Scenario, version: &str) -> Result<Run> {
    let nginx = Binary::find(Some(version)).await?;
    // How long a deploy may take is judged on a machine that does nothing else (`make scenario`).
    let scenario = Scenario { pace: BRISK, within: None, ..scenario };
    let run = Plan { scenario, setup: Setup::Handoff, nginx, control: false }.play().await?;
    ensure!(run.deploys().count() == 2 && run.visits.len() > 1_000, "{} visits", run.visits.len());
    let failed: Vec<_> = run.failed().map(|visit| (visit, run.log.tried(visit.number))).collect();
    ensure!(failed.is_empty(), "{}, nginx {version}: {failed:?}", scenario.name);
    ensure!(run.orders.executed_twice() == 0, "{}, nginx {version}: executed twice", scenario.name);
    let sent = verdict::sent_where_none_should_be(&run);
    ensure!(sent.is_empty(), "{}, nginx {version}: {sent:?}", scenario.name);
    Ok(run)
}

/// PM2 stops it before it starts the next one: so long somebody waits, and hardly longer.
async fn whoever_comes_waits(scenario: Scenario, version: &str) -> Result<()> {
    let _alone = alone::take()?;
    let run = two_deploys(scenario, version).await?;
    let (gap, wait) = (run.gaps().into_iter().max(), run.log.held().max());
    eprintln!("{}: {} held, {wait:?} at most; no worker for {gap:?}", scenario.name, run.log.held().count());
    ensure!(run.gaps().len() == 2 && run.log.held().count() > 20, "nobody waited: {:?}", run.lives);
    ensure!(wait <= gap.map(|gap| gap + SLACK), "{wait:?}, and there was no worker for {gap:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn at_a_pm2_reload_whoever_comes_waits_for_the_next_worker() -> Result<()> {
    whoever_comes_waits(S5, "1.28.3").await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a reload is not; `make every-case` runs it"]
async fn at_a_pm2_restart_whoever_comes_waits_for_the_next_worker() -> Result<()> {
    whoever_comes_waits(S5_RESTART, "1.22.1").await
}

/// Of a worker that handles no signal: it is drained before PM2 is asked.
#[tokio::test(flavor = "multi_thread")]
async fn at_a_handoff_reload_another_one_stands_in_and_nobody_waits() -> Result<()> {
    let _alone = alone::take()?;
    let run = two_deploys(Scenario { level: Level::L1, ..S5N }, "1.22.1").await?;
    ensure!(run.done.iter().all(|done| done.action == Action::SafeReload), "{:?}", run.done);
    let broken = verdict::broken_promises(&run);
    ensure!(broken.is_empty(), "{broken:?}");
    ensure!(run.log.held().count() == 0, "{} waited", run.log.held().count());
    let ports: Vec<u16> = run.lives.iter().map(|life| life.port).collect();
    let (own, spare) = (ports[0], *ports.iter().find(|&&port| port != ports[0]).unwrap_or(&0));
    ensure!(ports == [own, spare, own, spare, own], "{ports:?}");
    Ok(())
}
