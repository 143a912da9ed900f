//! What became of each site, a line each.

use super::{Course, Outcome, Who};
use crate::spread;
use std::fmt::Write as _;

pub fn table(outcomes: &[Outcome]) -> String {
    let mut text = format!(
        "{:<24}{:>8}{:>10}{:>10}{:>8}{:>7}{:>16}{:>16}{:>16}{:>12}{:>12}\n{}",
        "",
        "deploys",
        "s, median",
        "requests",
        "failed",
        "twice",
        "workers kB",
        "master kB",
        "sidecar kB",
        "nginx fds",
        "sidecar fds",
        "─".repeat(139),
    );
    for outcome in outcomes {
        // Writing to a String cannot fail.
        _ = write!(text, "\n{}", row(outcome));
    }
    let sum = |of: fn(&Outcome) -> u64| outcomes.iter().map(of).sum::<u64>();
    _ = write!(
        text,
        "\n{:<24}{:>8}{:>10}{:>10}{:>8}{:>7}",
        "all",
        sum(|outcome| outcome.deploys.len() as u64),
        "",
        sum(|outcome| outcome.tally.visits),
        sum(|outcome| outcome.tally.failed),
        sum(|outcome| outcome.executed.twice),
    );
    text
}

fn row(outcome: &Outcome) -> String {
    let course = |who| outcome.held.course(who).unwrap_or(Course { kb: (0, 0) });
    let [workers, master, sidecar] = [Who::Workers, Who::Master, Who::Sidecar].map(course);
    let from_to = |(from, to): (u64, u64)| format!("{from} → {to}");
    let (before, after) = &outcome.rest;
    let seconds: Vec<f64> = outcome.deploys.iter().map(super::Deploy::seconds).collect();
    let files = |of: &[Who]| {
        let sum = |rest: &super::Rest| of.iter().map(|&who| rest.files(who)).sum();
        (sum(before), sum(after))
    };
    format!(
        "{:<24}{:>8}{:>10.1}{:>10}{:>8}{:>7}{:>16}{:>16}{:>16}{:>12}{:>12}",
        outcome.kind.to_string(),
        outcome.deploys.len(),
        spread::median(&seconds).unwrap_or_default(),
        outcome.tally.visits,
        outcome.tally.failed,
        outcome.executed.twice,
        from_to(workers.kb),
        from_to(master.kb),
        from_to(sidecar.kb),
        from_to(files(&[Who::Master, Who::Workers])),
        from_to(files(&[Who::Sidecar])),
    )
}
