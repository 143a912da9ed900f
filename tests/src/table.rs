//! Results side by side, for a terminal.

use crate::report::{Report, Tally};
use std::fmt::Write as _;

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
    ("retried by nginx", |tally| tally.retried.to_string()),
    ("p99 calm, ms", |tally| number(tally.ms.calm.p99)),
    ("p99 deploying, ms", |tally| number(tally.ms.deploying.p99)),
    ("p99 control, ms", |tally| number(tally.ms.control.p99)),
    ("max calm, ms", |tally| number(tally.ms.calm.max)),
    ("max deploying, ms", |tally| number(tally.ms.deploying.max)),
    ("deploy, seconds", |tally| seconds(&tally.deploy_seconds)),
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
    for (label, cell) in ROWS {
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
    value.map_or_else(|| "–".to_owned(), |value| format!("{value:.1}"))
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
        _ => "–".to_owned(),
    }
}
