//! What came of each kind of fault, a line each.

use super::{Ordeal, Seen, fault::Fault, verdict::Excuse};
use crate::spread;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

#[derive(Default)]
struct Line {
    times: usize,
    failed: usize,
    excuses: BTreeMap<Excuse, usize>,
    exits: BTreeSet<String>,
    seconds: Vec<f64>,
    again: Vec<f64>,
}

pub fn table(all: &[Seen]) -> String {
    let mut lines: BTreeMap<Fault, Line> = BTreeMap::new();
    for seen in all {
        for ordeal in &seen.ordeals {
            let Ordeal { fault, struck, over, deploy, again, .. } = ordeal;
            let line = lines.entry(*fault).or_default();
            line.times += 1;
            line.seconds.push(over.since(*struck).as_secs_f64());
            line.again.push(again.seconds());
            if !deploy.is_done() {
                let exit = deploy.exit.map_or_else(|| "no end".to_owned(), |exit| exit.to_string());
                line.exits.insert(exit);
            }
        }
        for visit in seen.visits.iter().filter(|visit| visit.failed()) {
            let Some(ordeal) = seen.ordeal(visit) else { continue };
            let line = lines.entry(ordeal.fault).or_default();
            line.failed += 1;
            if let Some(excuse) = seen.excuse(visit) {
                *line.excuses.entry(excuse).or_default() += 1;
            }
        }
    }
    let visits: usize = all.iter().map(|seen| seen.visits.len()).sum();
    let times: usize = lines.values().map(|line| line.times).sum();
    let twice: usize = all.iter().map(|seen| seen.orders.executed_twice()).sum();
    let races: usize = all.iter().map(Seen::races_lost).sum();
    let mut text = format!(
        "{:<34}{:>6}{:>8}{:>9}{:>12}{:>12}  exits, excuses\n{}",
        "what befalls a deploy",
        "times",
        "failed",
        "allowed",
        "as ever, s",
        "longest, s",
        "─".repeat(110),
    );
    for (fault, line) in &lines {
        let allowed: usize = line.excuses.values().sum();
        let longest = line.seconds.iter().copied().fold(0.0, f64::max);
        // Writing to a String cannot fail.
        _ = write!(
            text,
            "\n{:<34}{:>6}{:>8}{:>9}{:>12.1}{:>12.1}  {}{}",
            fault.says(),
            line.times,
            line.failed,
            allowed,
            spread::median(&line.seconds).unwrap_or_default(),
            longest,
            line.exits.iter().map(|exit| format!("{exit} ")).collect::<String>(),
            line.excuses.iter().map(|(excuse, times)| format!("{excuse:?} {times} ")).collect::<String>(),
        );
    }
    _ = write!(
        text,
        "\n{times} faults, {visits} visits, {races} orders cut at L0 by PM2's signal, {twice} orders ran twice"
    );
    text
}
