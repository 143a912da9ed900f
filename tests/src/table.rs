//! Results side by side, for a terminal.

use crate::report::{Outcomes, Report, Streams, Tally};
use std::{collections::BTreeMap, fmt::Write as _};

const LABEL: usize = 26;
const COLUMN: usize = 16;

type Cell = fn(&Tally) -> String;

const ROWS: [(&str, Cell); 15] = [
    ("runs", |tally| tally.runs.to_string()),
    ("deploys", |tally| tally.deploys.to_string()),
    ("requests", |tally| tally.requests.to_string()),
    ("failed", |tally| tally.failed.to_string()),
    ("  how", |tally| causes(tally)),
    ("hung", |tally| tally.hung.to_string()),
    ("run twice", |tally| tally.executed_twice.to_string()),
    ("failed though executed", |tally| tally.failed_though_executed.to_string()),
    ("retried by nginx", |tally| tally.retried.map_or_else(nothing, |count| count.to_string())),
    ("p99 calm, ms", |tally| number(tally.ms.calm.p99)),
    ("p99 deploying, ms", |tally| number(tally.ms.deploying.p99)),
    ("p99 control, ms", |tally| number(tally.ms.control.p99)),
    ("max calm, ms", |tally| number(tally.ms.calm.max)),
    ("max deploying, ms", |tally| number(tally.ms.deploying.max)),
    ("deploy, seconds", |tally| seconds(&tally.deploy_seconds)),
];

/// What only `handoff reload` has.
const EXITS: [(&str, Cell); 1] = [("exit code", |tally| exits(&tally.exits))];

/// Where somebody waited.
const HELD: [(&str, Cell); 3] = [
    ("held", |tally| tally.held.to_string()),
    ("longest wait, ms", |tally| number(tally.held_ms.max)),
    ("no worker, seconds", |tally| seconds(&tally.gap_seconds)),
];

/// Where there were streams: how many were whole, and what became of the others.
const STREAMS: [(&str, Cell); 3] = [
    ("event streams", |tally| outcomes(tally, |streams| streams.events)),
    ("WebSockets", |tally| outcomes(tally, |streams| streams.websockets)),
    ("cut, as Handoff says", |tally| said_cut(tally)),
];

pub fn text(report: &Report) -> String {
    let mut text = format!("{:LABEL$}", report.scenario);
    for tally in &report.results {
        let level = tally.level.map(|level| format!(" {level:?}")).unwrap_or_default();
        push(&mut text, &format!("{}{level}", tally.setup));
    }
    text.push('\n');
    let width = LABEL + COLUMN * report.results.len();
    text.push_str(&"─".repeat(width));
    let exits = EXITS.iter().filter(|_| report.results.iter().any(|tally| !tally.exits.is_empty()));
    let streams = STREAMS.iter().filter(|_| report.results.iter().any(|tally| tally.streams.is_some()));
    let held = HELD.iter().filter(|_| report.results.iter().any(|tally| tally.held > 0));
    for (label, cell) in ROWS.iter().chain(exits).chain(held).chain(streams) {
        // Writing to a String cannot fail.
        _ = write!(text, "\n{label:LABEL$}");
        for tally in &report.results {
            push(&mut text, &cell(tally));
        }
    }
    text.push('\n');
    text
}

fn push(text: &mut String, cell: &str) {
    _ = write!(text, "{cell:>COLUMN$}");
}

fn causes(tally: &Tally) -> String {
    let causes: Vec<String> =
        tally.failed_by.iter().map(|(cause, count)| format!("{count}x{cause}")).collect();
    causes.join(" ")
}

fn number(value: Option<f64>) -> String {
    value.map_or_else(nothing, |value| format!("{value:.1}"))
}

fn nothing() -> String {
    "–".to_owned()
}

/// Each code once, and how often.
fn exits(all: &[i32]) -> String {
    let mut counts: BTreeMap<i32, usize> = BTreeMap::new();
    all.iter().for_each(|&exit| *counts.entry(exit).or_default() += 1);
    let counts: Vec<String> = counts.into_iter().map(|(exit, count)| format!("{count}x{exit}")).collect();
    if counts.is_empty() { nothing() } else { counts.join(" ") }
}

fn outcomes(tally: &Tally, of: fn(Streams) -> Outcomes) -> String {
    let Some(Outcomes { complete, cut, refused }) = tally.streams.map(of) else { return nothing() };
    let bad = [(cut, "cut"), (refused, "refused")].into_iter().filter(|&(count, _)| count > 0);
    bad.fold(complete.to_string(), |text, (count, what)| format!("{text}, {count} {what}"))
}

fn said_cut(tally: &Tally) -> String {
    match tally.streams {
        Some(streams) if !tally.exits.is_empty() => streams.said_cut.to_string(),
        _ => nothing(),
    }
}

/// From the fastest to the slowest.
fn seconds(all: &[f64]) -> String {
    let sorted = {
        let mut sorted = all.to_vec();
        sorted.sort_by(f64::total_cmp);
        sorted
    };
    match (sorted.first(), sorted.last()) {
        (Some(first), Some(last)) if first == last => format!("{first:.1}"),
        (Some(first), Some(last)) => format!("{first:.1}–{last:.1}"),
        _ => nothing(),
    }
}
