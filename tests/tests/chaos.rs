//! Faults in the middle of deploys, judged by what may come of each. `make chaos` plays every kind of them, 500 in all.

use anyhow::{Result, ensure};
use e2e::{
    alone,
    app::Mode,
    chaos::{self, Round, fault::Fault, verdict},
    scenario::Level,
    site::VERSIONS,
    stand,
};

/// Of these nobody may notice anything, on whatever machine.
#[tokio::test(flavor = "multi_thread")]
async fn a_deploy_survives_what_befalls_it_and_nothing_stays() -> Result<()> {
    let _alone = alone::take()?;
    let [nginx, ..] = VERSIONS;
    let site = stand::Plan { nginx, mode: Mode::Fork, level: Level::L1, workers: 2, guesses: false };
    let faults = vec![Fault::SidecarFreezes, Fault::SocketRemoved];
    let seen = Round { number: 0, seed: 7, site, faults, rate: 60 }.play().await?;
    eprintln!("{}", chaos::table(std::slice::from_ref(&seen)));
    let broken = verdict::broken(&seen);
    ensure!(broken.is_empty(), "{broken:#?}\n{}", seen.said);
    ensure!(seen.ordeals.len() == 2 && seen.visits.len() > 300, "{:?}", seen.ordeals);
    Ok(())
}
