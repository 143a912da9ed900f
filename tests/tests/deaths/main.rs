//! Deaths that are no deploys: what each of them costs the visitors when the user has added Handoff and nothing else.

use anyhow::Result;
use e2e::{alone, scenario::Setup};

mod all_at_once;
mod cluster;
mod crashes;
mod files;
mod ordered;
mod sidecar;
mod single;
mod trial;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "five minutes, for comparison: make deaths"]
async fn fork_mode_without_handoff() -> Result<()> {
    let _alone = alone::take()?;
    for setup in [Setup::Stock, Setup::Tuned] {
        ordered::play(setup).await?.print(setup.title());
        files::play(setup, files::own_port).await?.end().await?.print(setup.title());
        crashes::play(setup).await?.print(setup.title());
        all_at_once::play(setup).await?.print(setup.title());
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "five minutes, for comparison: make deaths"]
async fn cluster_mode_without_handoff() -> Result<()> {
    let _alone = alone::take()?;
    for setup in [Setup::Stock, Setup::Tuned] {
        cluster::announced(setup).await?.print(setup.title());
        cluster::unasked(setup).await?.print(setup.title());
        cluster::all_at_once(setup).await?.print(setup.title());
    }
    Ok(())
}
