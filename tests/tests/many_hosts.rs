//! Many hosts of the app behind many nginx: machines of their own, with a network between them that can be cut.
//!
//! What may come of it stands in `docs/operations/many-hosts-faults.md`. `make many-hosts` plays all of it.

use anyhow::{Result, ensure};
use e2e::{
    alone,
    app::Behaviour,
    clock::Moment,
    lab::{
        Lab, Plan,
        fault::{self, Fault},
        trial::Trial,
        verdict,
    },
    net,
    nginx::Binary,
    scenario::Setup,
    site::VERSIONS,
    stand::How,
};
use std::{ops::Range, time::Duration};
use tokio::time::sleep;

const RATE: u32 = 200;
const CALM: Duration = Duration::from_secs(1);

/// Three app hosts of two workers each, that handle no signal, behind two edges.
async fn plan(nginx: &str, setup: Setup, members: usize) -> Result<Plan> {
    let nginx = Binary::find(Some(nginx)).await?;
    Ok(Plan { nginx, setup, edges: 2, hosts: 3, workers: 2, behaviour: Behaviour::Naive, members })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deploy_of_all_hosts_fails_visits_without_a_store_and_none_with_one() -> Result<()> {
    if !net::possible() {
        return Ok(());
    }
    let _alone = alone::take()?;
    let plan = Plan { hosts: 2, ..plan(VERSIONS[0], Setup::Handoff, 1).await? };
    let mut lab = Lab::set(&plan).await?;
    let visitors = lab.visit(RATE).await?;
    sleep(CALM).await;
    let deploys = Moment::now();
    for host in &lab.hosts {
        host.pm2_reload().await?;
    }
    lab.answers().await?;
    lab.start_sidecars().await?;
    let deploys_with = Moment::now();
    for host in &lab.hosts {
        let reload = host.reload(&[]).await?;
        ensure!(reload.exit == 0, "{reload:?}\n{}", host.said());
    }
    lab.is_as_ever(2).await?;
    sleep(CALM).await;
    let seen = lab.strike(visitors).await?;
    // By when they ended: a deploy may fail whoever was there when it began.
    let failed = |span: Range<Moment>| {
        let failed = seen.failed().filter(move |visit| span.contains(&(visit.due + visit.latency)));
        failed.map(|visit| (visit, seen.tried(visit))).collect::<Vec<_>>()
    };
    let before = failed(seen.began..deploys);
    ensure!(before.is_empty(), "visits fail without a deploy: {before:?}");
    let without = failed(deploys..deploys_with);
    ensure!(!without.is_empty(), "nobody failed: the load does not see what it should");
    let with = failed(deploys_with..Moment::now());
    ensure!(with.is_empty(), "{with:?}");
    ensure!(seen.orders.executed_twice() == 0, "orders ran twice");
    Ok(())
}

/// The machines, the workers and the judge are the same, and there is no store.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "make many-hosts"]
async fn without_a_store_the_judge_sees_what_fails() -> Result<()> {
    ensure!(net::possible(), "needs root");
    let _alone = alone::take()?;
    let plan = plan(VERSIONS[0], Setup::Tuned, 0).await?;
    let outcome = Trial { plan, how: How::Pm2, fault: Fault::None, rate: RATE }.play().await?;
    println!("{}\n{}", verdict::HEADER, verdict::row(&outcome));
    ensure!(!verdict::broken(&outcome).is_empty(), "three hosts were deployed, and nobody failed");
    Ok(())
}

/// `pm2 reload`, as ever: workers that close their server when they are told to end.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "make many-hosts"]
async fn with_a_store_a_pm2_reload_of_all_hosts_fails_nobody() -> Result<()> {
    ensure!(net::possible(), "needs root");
    let _alone = alone::take()?;
    for version in VERSIONS {
        let plan = Plan { behaviour: Behaviour::Graceful, ..plan(version, Setup::Handoff, 1).await? };
        let outcome = Trial { plan, how: How::Pm2, fault: Fault::None, rate: RATE }.play().await?;
        println!("{}\n{}", verdict::HEADER, verdict::row(&outcome));
        let broken = verdict::broken(&outcome);
        ensure!(broken.is_empty(), "{broken:#?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "make many-hosts"]
async fn whatever_befalls_them_only_those_fail_whom_nobody_could_help() -> Result<()> {
    ensure!(net::possible(), "needs root");
    let _alone = alone::take()?;
    // One of them again, with HANDOFF_FAULT=EdgeDies.
    let wanted = std::env::var("HANDOFF_FAULT").ok();
    let is_wanted = |fault: &Fault| {
        wanted.as_ref().is_none_or(|wanted| wanted.split(',').any(|wanted| wanted == format!("{fault:?}")))
    };
    let mut broken = Vec::new();
    println!("{}", verdict::HEADER);
    for fault in fault::ALL.into_iter().filter(is_wanted) {
        let members = if fault == Fault::LeaderDies { 3 } else { 1 };
        let plan = plan(VERSIONS[0], Setup::Handoff, members).await?;
        let trial = Trial { plan, how: How::Handoff, fault, rate: RATE };
        match trial.play().await {
            Ok(outcome) => {
                println!("{}", verdict::row(&outcome));
                broken.extend(verdict::broken(&outcome).into_iter().map(|what| format!("{fault:?}: {what}")));
            }
            Err(error) => broken.push(format!("{fault:?}: {error:#}")),
        }
    }
    ensure!(broken.is_empty(), "{broken:#?}");
    Ok(())
}
