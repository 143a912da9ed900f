//! A thousand deploys and a million requests over every kind of site: nobody may fail, nothing run twice, nothing grow.

use anyhow::{Result, ensure};
use clap::Parser;
use e2e::{
    clock::Moment,
    soak::{self, Outcome, Plan},
    stage,
};
use std::process::ExitCode;

#[derive(Debug, Parser)]
#[command(about)]
struct Options {
    #[arg(long, env = "SOAK_DEPLOYS", default_value_t = 1_000)]
    deploys: u64,
    #[arg(long, env = "SOAK_REQUESTS", default_value_t = 1_000_000)]
    requests: u64,
    /// Pauses and what is typed follow from it
    #[arg(long, env = "SOAK_SEED", default_value_t = 1)]
    seed: u64,
    /// Visits a second to each site
    #[arg(long, env = "SOAK_RATE", default_value_t = 150)]
    rate: u32,
    /// Sites that stand side by side
    #[arg(long, env = "SOAK_SITES", default_value_t = 4)]
    sites: usize,
    /// Deploys that are on their way at a time
    #[arg(long, env = "SOAK_AT_ONCE", default_value_t = 2)]
    at_once: usize,
}

fn main() -> ExitCode {
    stage::enter(play(Options::parse()))
}

async fn play(options: Options) -> Result<()> {
    let Options { deploys, requests, seed, rate, sites, at_once } = options;
    ensure!(rate > 0 && sites > 0 && at_once > 0, "--rate, --sites and --at-once must be at least 1");
    let began = Moment::now();
    let plan = Plan { deploys, requests, seed, rate, sites, at_once, kinds: soak::kinds() };
    let outcomes = plan.play(explain).await?;
    println!("{}", soak::table(&outcomes));
    println!("seed {seed}, {:.0} s", Moment::now().since(began).as_secs_f64());
    let broken: usize = outcomes.iter().map(|outcome| outcome.broken().len()).sum();
    ensure!(broken == 0, "{broken} promises did not hold");
    Ok(())
}

/// For the person at the terminal, as it comes.
fn explain(outcome: &Outcome) {
    let Outcome { kind, deploys, tally, .. } = outcome;
    eprintln!("{kind}: {} deploys, {} visits, {} failed", deploys.len(), tally.visits, tally.failed);
    let broken = outcome.broken();
    for promise in &broken {
        eprintln!("  {promise}");
    }
    for visit in &tally.failures {
        eprintln!("  {visit:?}");
    }
    if tally.failed > 0 {
        eprintln!("nginx logged of those that failed:\n{}\n{}", outcome.log, outcome.said);
    }
}
