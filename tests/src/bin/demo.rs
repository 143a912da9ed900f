//! Two minutes: the same two deploys under the same load, first with tuned nginx, then with Handoff.

use anyhow::Result;
use clap::Parser;
use e2e::{
    nginx::Binary,
    picture, place,
    report::Report,
    runner::Plan,
    scenario::{S4, Setup},
    stage, table, timeline,
};
use std::process::ExitCode;

const SETUPS: [Setup; 2] = [Setup::Tuned, Setup::Handoff];

#[derive(Debug, Parser)]
#[command(about)]
struct Options {
    /// Which nginx, by its version or its path
    #[arg(long)]
    nginx: Option<String>,
    /// Which setups to show
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = SETUPS)]
    setups: Vec<Setup>,
}

fn main() -> ExitCode {
    stage::enter(play(Options::parse()))
}

async fn play(Options { nginx, setups }: Options) -> Result<()> {
    let nginx = Binary::find(nginx.as_deref()).await?;
    let plans: Vec<Plan> = setups
        .iter()
        .map(|&setup| Plan { scenario: S4, setup, nginx: nginx.clone(), control: false })
        .collect();
    // Better now than after the first minute.
    plans.iter().try_for_each(Plan::check)?;

    println!("Four Node workers under PM2, one port each, behind nginx {}.", nginx.version);
    println!(
        "{} visitors a second, one in four of them orders. Somebody types `pm2 reload`, twice.\n",
        S4.rate
    );
    let mut runs = Vec::new();
    for plan in &plans {
        println!("{}: about a minute …", plan.setup.title());
        let run = plan.play().await?;
        println!("{}: {} of {} visits failed\n", plan.setup.title(), run.failed().count(), run.visits.len());
        runs.push(run);
    }

    let report = Report::new(S4.name, stage::versions(&nginx, &runs).await, &setups, &runs);
    let folder = place::target("demo");
    let (json, svg) = (folder.join("report.json"), folder.join("timeline.svg"));
    let shown: Vec<_> = runs.iter().collect();
    report.write(&json)?;
    picture::write(&svg, &shown)?;
    println!("{}\n{}\n{}\n{}", timeline::text(&shown), table::text(&report), json.display(), svg.display());
    Ok(())
}
