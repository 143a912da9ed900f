//! Plays one scenario, as often as asked and with each setup in turn, and writes what came of it.

use anyhow::{Result, ensure};
use clap::Parser;
use e2e::{
    load::Visit,
    nginx::Binary,
    picture, place,
    report::Report,
    runner::{Plan, Run},
    scenario::{Action, Level, Scenario, Setup},
    stage, table, verdict,
};
use std::process::ExitCode;

#[derive(Debug, Parser)]
#[command(about)]
struct Options {
    /// Which one: S4, S4n, S6b, S6c
    #[arg(long)]
    scenario: String,
    /// How often each setup plays it
    #[arg(long, default_value_t = 1)]
    runs: usize,
    /// How much of Handoff the user takes
    #[arg(long, value_enum, default_value = "L0")]
    level: Level,
    /// Which setups to play it with
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["stock", "tuned", "handoff"])]
    setups: Vec<Setup>,
    /// Which nginx, by its version or its path
    #[arg(long)]
    nginx: Option<String>,
    /// Also measure what starting as many Node processes costs without a deploy
    #[arg(long)]
    control: bool,
}

fn main() -> ExitCode {
    stage::enter(play(Options::parse()))
}

async fn play(options: Options) -> Result<()> {
    ensure!(options.runs > 0, "--runs must be at least 1");
    let Options { level: Level::L0, ref setups, runs: times, .. } = options;
    let scenario = Scenario::find(&options.scenario)?;
    let nginx = Binary::find(options.nginx.as_deref()).await?;
    let mut runs = Vec::new();
    for time in 1..=times {
        // In turn, so that a noisy neighbour bothers each of them alike.
        for &setup in setups {
            eprintln!("{} with {}, run {time} of {times}: {}", scenario.name, setup.title(), scenario.says);
            let plan = Plan { scenario, setup, nginx: nginx.clone(), control: options.control };
            let run = plan.play().await?;
            explain(&run);
            runs.push(run);
        }
    }
    let report = Report::new(scenario.name, stage::versions(&nginx, &runs).await, setups, &runs);
    let folder = place::target("scenarios");
    let json = folder.join(format!("{}.json", scenario.name));
    let svg = folder.join(format!("{}.svg", scenario.name));
    report.write(&json)?;
    picture::write(&svg, &last_of_each(setups, &runs))?;
    println!("{}\n{}\n{}", table::text(&report), json.display(), svg.display());
    Ok(())
}

fn explain(run: &Run) {
    eprintln!("  {} of {} failed", run.failed().count(), run.visits.len());
    if run.scenario.action == Action::Kill {
        let unexplained = verdict::unexplained(run);
        eprintln!("  {} of them no order that was with the worker when it died", unexplained.len());
        unexplained.iter().for_each(|visit| tell(run, visit, ""));
    }
    if run.setup != Setup::Handoff {
        return;
    }
    run.failed().for_each(|visit| tell(run, visit, ""));
    for (visit, state) in verdict::sent_where_none_should_be(run) {
        tell(run, visit, &format!(" while it was {state}"));
    }
    for time in verdict::death_to_down(run) {
        eprintln!("  from death to down: {}", time.map_or("never".to_owned(), |time| format!("{time:.1?}")));
    }
}

fn tell(run: &Run, visit: &Visit, when: &str) {
    let Visit { number, kind, answer, .. } = visit;
    let at = visit.due.since(run.began).as_secs_f64();
    eprintln!("  at {at:.3} s {kind}, visit {number}: {answer}, tried {:?}{when}", run.log.tried(*number));
}

fn last_of_each<'a>(setups: &[Setup], runs: &'a [Run]) -> Vec<&'a Run> {
    setups.iter().filter_map(|&setup| runs.iter().rfind(|run| run.setup == setup)).collect()
}
