//! Plays one scenario, as often as asked and with each setup in turn, and writes what came of it.

use anyhow::{Result, ensure};
use clap::Parser;
use e2e::{
    load::Visit,
    nginx::Binary,
    picture, place,
    reload::Reload,
    report::Report,
    runner::{Plan, Run},
    scenario::{Action, Level, Scenario, Setup},
    stage,
    streams::Stream,
    table, verdict,
};
use std::process::ExitCode;

#[derive(Debug, Parser)]
#[command(about)]
struct Options {
    /// Which one, as in `S1`, `S3-restart`, `S4n`; a wrong one lists them
    #[arg(long)]
    scenario: String,
    /// How often each setup plays it
    #[arg(long, default_value_t = 1)]
    runs: usize,
    /// How much of Handoff the user takes
    #[arg(long, value_enum, default_value = "L0")]
    level: Level,
    /// Which setups to play it with [default: stock,tuned,handoff; at L1 tuned,haproxy,handoff, of one worker stock,caddy,handoff]
    #[arg(long, value_enum, value_delimiter = ',')]
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
    let Options { level, runs: times, .. } = options;
    let scenario = Scenario::find(&options.scenario)?.at(level)?;
    let setups = if options.setups.is_empty() { scenario.setups() } else { &options.setups };
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
    if level == Level::L1 { judge(&runs) } else { Ok(()) }
}

/// Who types `handoff reload` was promised something.
fn judge(runs: &[Run]) -> Result<()> {
    let ours = runs.iter().filter(|run| run.setup == Setup::Handoff);
    let broken: Vec<String> = ours.flat_map(verdict::broken_promises).collect();
    ensure!(broken.is_empty(), "not as promised:\n  {}", broken.join("\n  "));
    Ok(())
}

fn explain(run: &Run) {
    eprintln!("  {} of {} failed", run.failed().count(), run.visits.len());
    if run.scenario.action == Action::Kill {
        let unexplained = verdict::unexplained(run);
        eprintln!("  {} of them no order that was with the worker when it died", unexplained.len());
        unexplained.iter().for_each(|visit| tell(run, visit, ""));
    }
    if run.scenario.streaming.is_some() {
        let (cut, refused, all) = (run.cut().count(), run.refused().count(), run.streams.len());
        eprintln!("  of {all} streams {cut} cut, {refused} refused");
    }
    if run.setup != Setup::Handoff {
        return;
    }
    run.failed().for_each(|visit| tell(run, visit, ""));
    run.cut().for_each(|stream| tell_cut(run, stream));
    for Reload { exit, text, .. } in &run.reloads {
        eprintln!("  exit code {exit}: {text}");
    }
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

fn tell_cut(run: &Run, stream: &Stream) {
    let Stream { kind, ended, worker, pulses, .. } = stream;
    let at = ended.since(run.began).as_secs_f64();
    let worker = worker.map_or("nobody knows whom".to_owned(), |pid| pid.to_string());
    eprintln!("  at {at:.3} s {kind} with {worker}: cut after {pulses} pulses");
}

fn last_of_each<'a>(setups: &[Setup], runs: &'a [Run]) -> Vec<&'a Run> {
    setups.iter().filter_map(|&setup| runs.iter().rfind(|run| run.setup == setup)).collect()
}
