//! Many hosts of the app behind many nginx: machines of their own, with a network between them that can be cut.

use anyhow::{Result, ensure};
use e2e::{
    alone,
    app::Behaviour,
    lab::{Lab, Plan},
    net,
    nginx::Binary,
    scenario::Setup,
};
use std::time::Duration;
use tokio::time::sleep;

const RATE: u32 = 200;
const CALM: Duration = Duration::from_secs(1);

/// As every host is on its own, PM2 kills whom nginx is asking.
#[tokio::test(flavor = "multi_thread")]
async fn a_deploy_of_all_hosts_without_a_store_fails_visits() -> Result<()> {
    if !net::possible() {
        return Ok(());
    }
    let _alone = alone::take()?;
    let nginx = Binary::find(None).await?;
    let (setup, behaviour) = (Setup::Tuned, Behaviour::Naive);
    let lab = Lab::set(&Plan { nginx, setup, edges: 2, hosts: 2, workers: 2, behaviour, members: 0 }).await?;
    let visitors = lab.visit(RATE).await?;
    sleep(CALM).await;
    for host in &lab.hosts {
        host.pm2_reload().await?;
    }
    sleep(CALM).await;
    let seen = lab.strike(visitors).await?;
    ensure!(seen.visits.len() > 300, "too few visits to say anything: {}", seen.visits.len());
    ensure!(seen.failed().next().is_some(), "nobody failed: the load does not see what it should");
    Ok(())
}
