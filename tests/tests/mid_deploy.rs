//! What may happen in the middle of a deploy, and what the visitors see of it: nothing, or no more than without Handoff.

use anyhow::Result;
use e2e::{
    alone,
    load::{Answer, Visit},
    nginx::Binary,
    runner::{Plan, Run},
    scenario::{Pace, S1, S4, SETTLING, Scenario, Setup, Trouble},
};
use handoff_wire::State;
use std::{collections::HashMap, time::Duration};

const ONCE: Pace = Pace {
    actions: &[Duration::from_secs(1)],
    gap: Duration::ZERO,
    at_least: Duration::ZERO,
    // In cluster mode PM2's word that it replaces a worker stands for two seconds.
    after: SETTLING,
};

async fn play(trouble: Trouble, scenario: Scenario) -> Result<Run> {
    let scenario = Scenario { trouble: Some(trouble), ..scenario };
    let nginx = Binary::find(None).await?;
    Plan { scenario, setup: Setup::Handoff, nginx, control: false }.play().await
}

/// With Handoff or without, nginx closes its clients' idle connections as it reloads. A request that crosses this on the wire
/// never reaches nginx; any client repeats it.
fn crossed_a_reload(trouble: Trouble, visit: &Visit, run: &Run) -> bool {
    trouble == Trouble::NginxReloads && visit.answer == Answer::Reset && !run.log.knows(visit.number)
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_is_lost_whatever_is_restarted_meanwhile() {
    let _alone = alone::take().unwrap();
    for (trouble, scenario) in [
        (Trouble::SidecarRestarts, S4),
        (Trouble::SidecarFreezes, S4),
        (Trouble::NginxReloads, S4),
        (Trouble::Pm2Vanishes, S4),
        (Trouble::SidecarRestarts, S1),
        (Trouble::NginxReloads, S1),
    ] {
        let run = play(trouble, Scenario { pace: ONCE, ..scenario }).await.unwrap();
        let failed = run.failed().filter(|visit| !crossed_a_reload(trouble, visit, &run));
        let failed: Vec<_> = failed.map(|visit| (visit, run.log.tried(visit.number))).collect();
        assert!(failed.is_empty(), "{trouble:?}, {}: {failed:?}", scenario.name);
        assert_eq!(run.orders.executed_twice(), 0, "{trouble:?}");
        let last: HashMap<_, _> = run.changes.iter().map(|change| (change.peer, change.to)).collect();
        assert!(!last.is_empty(), "{trouble:?}: nginx was told nothing");
        assert!(last.values().all(|&state| state == State::Up), "{trouble:?}: not all came back: {last:?}");
    }
}

/// Ten seconds after the last mark was renewed nothing is left of it; three, where nobody else is up.
#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_that_never_comes_back_is_no_outage() {
    let _alone = alone::take().unwrap();
    for (workers, lapse) in [(4, Duration::from_secs(10)), (1, Duration::from_secs(3))] {
        let pace = Pace { after: lapse + Duration::from_secs(3), ..ONCE };
        let run = play(Trouble::SidecarDies, Scenario { workers, pace, ..S4 }).await.unwrap();
        let settled = run.done.iter().map(|done| done.settled).max().unwrap();
        let lapsed = settled + lapse + Duration::from_secs(1);
        let late: Vec<_> = run.failed().filter(|visit| visit.due > lapsed).collect();
        assert!(late.is_empty(), "{workers} workers: {late:?}");
        assert!(
            run.visits.iter().any(|visit| visit.due > lapsed),
            "{workers} workers: nobody came late enough"
        );
        let last = run.changes.iter().rev().find(|change| change.to == State::Up);
        assert!(last.is_some(), "{workers} workers: no mark lapsed: {:?}", run.changes);
        assert_eq!(run.orders.executed_twice(), 0, "{workers} workers");
    }
}
