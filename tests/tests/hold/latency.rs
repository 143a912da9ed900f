//! From the word `up` to the request at the peer; and what a flood of those who wait costs everybody else.

use crate::{basics::all_are, bounds::beside, stage::Stage};
use anyhow::{Context, Result};
use e2e::{
    clock::Moment,
    load::{Kind, Load},
    ports,
    site::VERSIONS,
    spread::Spread,
};
use std::time::Duration;

/// How long 99 of 100 took.
async fn p99(stage: &Stage) -> Result<Duration> {
    let mut took = Vec::new();
    for _ in 0..100 {
        stage.goes().await?;
        let visits: Vec<_> = (0..10).map(|_| stage.get("/")).collect();
        stage.holds(10).await?;
        stage.farm.arrivals().await?;
        stage.comes_back().await?;
        let up = Moment::now();
        all_are(200, visits).await?;
        took.extend(stage.farm.arrivals().await?.into_iter().map(|arrival| arrival.at.since(up)));
    }
    took.sort();
    let [p50, p99] =
        [50, 99].map(|percent| took.get(took.len() * percent / 100).copied().unwrap_or_default());
    eprintln!("sent on after {p50:?} (p50), {p99:?} (p99), {:?} (longest)", took.last());
    Ok(p99)
}

/// Three times, for the machine may be busy with something else.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "it measures; `make latency` runs it"]
async fn those_who_wait_are_sent_on_within_ten_milliseconds() -> Result<()> {
    for version in VERSIONS {
        let stage = Stage::new(version, 2, "", "").await?;
        let mut best = Duration::MAX;
        for _ in 0..3 {
            best = best.min(p99(&stage).await?);
        }
        assert!(best <= Duration::from_millis(10), "{best:?}");
        stage.end().await?;
    }
    Ok(())
}

const ROUNDS: usize = 9;
const ROUND: Duration = Duration::from_secs(3);
/// Visits a second, to the other upstream and of the flood.
const RATE: u32 = 200;
const FLOOD: u32 = 600;

#[derive(Clone, Copy, Debug)]
enum Beside {
    Nobody,
    /// As many visitors, whom nginx turns away by itself: what it costs the machine to make them.
    TurnedAway,
    /// Visitors of an upstream that nobody serves: as many wait as may, and the others find no room.
    Held,
}

/// The quick visits elsewhere.
async fn elsewhere(stage: &Stage, beside: Beside) -> Result<Spread> {
    let port = stage.site.port();
    let held = stage.peer();
    stage.says("draining", "back", &[&held]).await?;
    let flood = match beside {
        Beside::Nobody => None,
        Beside::TurnedAway => Some(port + 2),
        Beside::Held => Some(port),
    };
    let flood = flood.map(|port| Load::start(ports::address(port), FLOOD));
    if let Beside::Held = beside {
        stage.holds(400).await?;
    }
    let load = Load::start(ports::address(port + 1), RATE);
    tokio::time::sleep(ROUND).await;
    let visits = load.stop().await;
    stage.says("up", "", &[&held]).await?;
    if let Some(flood) = flood {
        flood.stop().await;
    }
    stage.holds(0).await?;
    let failed = visits.iter().find(|visit| visit.failed());
    assert!(failed.is_none(), "{failed:?}");
    Ok(Spread::of(visits.iter().filter(|visit| visit.kind == Kind::Fast).map(|visit| visit.latency)))
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "it measures; `make latency` runs it"]
async fn a_flood_into_a_held_upstream_is_not_felt_elsewhere() -> Result<()> {
    for version in VERSIONS {
        let stage = beside(version, "handoff_queue 400;").await?;
        let kinds = [Beside::Nobody, Beside::TurnedAway, Beside::Held];
        let mut rounds: [Vec<Spread>; 3] = Default::default();
        for _ in 0..ROUNDS {
            for (spreads, beside) in rounds.iter_mut().zip(kinds) {
                spreads.push(elsewhere(&stage, beside).await?);
            }
        }
        let [calm, turned_away, held] = rounds.each_ref().map(|spreads| Spread::median(spreads));
        eprintln!("elsewhere, ms: calm {calm:?}; as many turned away {turned_away:?}; held {held:?}");
        let p99 = |spread: Spread| spread.p99.context("a percentile");
        assert!(p99(held)? <= 1.2 * p99(calm)?.max(p99(turned_away)?), "{held:?}");
        stage.end().await?;
    }
    Ok(())
}
