//! Many nginx and etcd: a worker stops only when every nginx has let go of it. Each test has real nginx, two of them, real
//! PM2 and a real etcd of its own.

mod fleet;

use anyhow::Result;
use e2e::{alone, wait};
use fleet::{Fleet, WARM, failed};
use handoff_wire::PeerState;
use std::time::{Duration, Instant};
use tokio::time::sleep;

const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread")]
async fn every_nginx_hands_over_a_deploy() -> Result<()> {
    let _alone = alone::take()?;
    let fleet = Fleet::new().await?;
    let load = fleet.load();
    sleep(WARM).await;
    fleet.pm2.reload().await?;
    let ended = fleet.handoff(&["reload", "myapp"]).await?;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let failed = failed(load).await?;
    assert!(failed.iter().all(Vec::is_empty), "{failed:?}\n{}", fleet.log("app1"));
    assert_eq!(fleet.orders()?.executed_twice(), 0);
    // What was said is taken back, and nothing is left of it.
    let clean = wait::until("the store to hold nobody's marks", PATIENCE, async || {
        (!fleet.etcd.dump().await.ok()?.contains("/workers/")).then_some(())
    });
    clean.await
}

/// Beside it: the sidecar of the app host knows of one nginx only.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "make store"]
async fn without_the_store_the_other_nginx_fails() -> Result<()> {
    let _alone = alone::take()?;
    let mut fleet = Fleet::silent(false).await?;
    fleet.start_alone()?;
    wait::until("the sidecar to know its workers", PATIENCE, async || {
        fleet.log("app1").contains("lists its workers").then_some(())
    })
    .await?;
    sleep(Duration::from_secs(2)).await;
    let load = fleet.load();
    sleep(WARM).await;
    fleet.pm2.reload().await?;
    let failed: Vec<usize> = failed(load).await?.iter().map(Vec::len).collect();
    eprintln!("failed at each nginx: {failed:?}");
    assert!(failed[0] == 0 && failed[1] > 0, "{failed:?}");
    Ok(())
}
