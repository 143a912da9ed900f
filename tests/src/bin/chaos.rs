//! Five hundred faults at random moments of deploys under load, each judged by what may come of it.

use anyhow::{Result, ensure};
use clap::Parser;
use e2e::{
    chaos::{
        self, Plan, Seen,
        fault::{self, Fault},
        verdict,
    },
    clock::Moment,
    stage,
};
use std::process::ExitCode;

#[derive(Debug, Parser)]
#[command(about)]
struct Options {
    #[arg(long, env = "CHAOS_FAULTS", default_value_t = 500)]
    faults: usize,
    /// Sites, faults and their moments follow from it
    #[arg(long, env = "CHAOS_SEED", default_value_t = 1)]
    seed: u64,
    /// Only this round of the seed, to see one again
    #[arg(long, env = "CHAOS_ROUND")]
    round: Option<usize>,
    /// Only faults with this in their name, as in `SIGSTOP`
    #[arg(long, env = "CHAOS_ONLY")]
    only: Option<String>,
    /// Visits a second to each site
    #[arg(long, env = "CHAOS_RATE", default_value_t = 100)]
    rate: u32,
    /// Sites that stand side by side
    #[arg(long, env = "CHAOS_SITES", default_value_t = 2)]
    sites: usize,
}

fn main() -> ExitCode {
    stage::enter(play(Options::parse()))
}

async fn play(options: Options) -> Result<()> {
    let Options { faults, seed, round, only, rate, sites } = options;
    ensure!(rate > 0 && sites > 0, "--rate and --sites must be at least 1");
    ensure!(rustix::process::geteuid().is_root(), "only root can fill a disk without filling yours");
    let is_meant = |fault: &Fault| only.as_ref().is_none_or(|only| fault.says().contains(only));
    let kinds: Vec<Fault> = fault::ALL.into_iter().filter(is_meant).collect();
    ensure!(!kinds.is_empty(), "no fault has that in its name: {:?}", fault::ALL.map(Fault::says));
    let began = Moment::now();
    let plan = Plan { faults, seed, rate, sites, kinds };
    let mut rounds = plan.rounds();
    rounds.retain(|each| round.is_none_or(|round| each.number == round));
    ensure!(!rounds.is_empty(), "the seed {seed} has no such round");
    let all = plan.play(rounds, explain).await?;
    println!("{}", chaos::table(&all));
    println!("seed {seed}, {:.0} s", Moment::now().since(began).as_secs_f64());
    let broken: usize = all.iter().map(|seen| verdict::broken(seen).len()).sum();
    ensure!(broken == 0, "{broken} promises did not hold");
    Ok(())
}

/// For the person at the terminal, as it comes.
fn explain(seen: &Seen) {
    let (round, broken) = (&seen.round, verdict::broken(seen));
    let faults: Vec<&str> = round.faults.iter().map(|fault| fault.says()).collect();
    eprintln!("round {}, {}: {}: {} broken", round.number, round.site, faults.join("; "), broken.len());
    for promise in &broken {
        eprintln!("  {promise}");
    }
    if !broken.is_empty() {
        eprintln!("{}", seen.said);
    }
}
