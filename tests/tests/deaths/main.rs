//! Deaths that are no deploys: what each of them costs the visitors when the user has added Handoff and nothing else.

use anyhow::Result;
use e2e::{alone, scenario::Setup};

mod all_at_once;
mod cluster;
mod crashes;
mod files;
mod ordered;
mod single;
mod trial;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "for comparison: ten minutes"]
async fn the_same_without_handoff() -> Result<()> {
    let _alone = alone::take()?;
    for setup in [Setup::Stock, Setup::Tuned] {
        for findings in [
            ordered::play(setup).await?,
            files::play(setup, files::own_port).await?.end().await?,
            crashes::play(setup).await?,
            all_at_once::play(setup).await?,
            cluster::announced(setup).await?,
            cluster::unasked(setup).await?,
            cluster::all_at_once(setup).await?,
        ] {
            findings.print(setup.title());
        }
    }
    Ok(())
}
