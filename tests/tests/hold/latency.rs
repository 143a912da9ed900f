//! From the word `up` to the request at the peer.

use crate::{basics::all_are, stage::Stage};
use anyhow::Result;
use e2e::{clock::Moment, site::VERSIONS};
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
