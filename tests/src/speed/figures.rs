//! Numbers as the tables of docs/speed.md have them.

use crate::spread;
use std::{fmt, time::Duration};

/// Durations of one kind.
#[derive(Clone, Debug, Default)]
pub struct Sample(Vec<Duration>);

/// A table in Markdown, as wide as its head.
#[derive(Clone, Debug)]
pub struct Table {
    columns: usize,
    lines: Vec<String>,
}

/// The middle one.
pub fn median(values: &[f64]) -> f64 {
    spread::median(values).unwrap_or(f64::NAN)
}

/// In milliseconds, with two digits that count.
pub fn millis(time: Duration) -> String {
    let millis = time.as_secs_f64() * 1e3;
    match millis {
        ..9.95 => format!("{millis:.2}"),
        ..99.5 => format!("{millis:.1}"),
        _ => format!("{millis:.0}"),
    }
}

/// The least and the largest.
pub fn range(values: &[f64], digits: usize) -> String {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let largest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if values.is_empty() { "–".to_owned() } else { format!("{least:.digits$}–{largest:.digits$}") }
}

// === impl Sample ===

impl Sample {
    pub fn push(&mut self, time: Duration) {
        self.0.push(time);
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The smallest that `percent` of all do not exceed.
    pub fn at(&self, percent: usize) -> Option<Duration> {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let place = (sorted.len() * percent).div_ceil(100);
        sorted.get(place.checked_sub(1)?).copied()
    }

    /// How many took longer.
    pub fn beyond(&self, limit: Duration) -> usize {
        self.0.iter().filter(|&&time| time > limit).count()
    }
}

impl Extend<Duration> for Sample {
    fn extend<T: IntoIterator<Item = Duration>>(&mut self, times: T) {
        self.0.extend(times);
    }
}

/// p50 / p99 / longest.
impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match [50, 99, 100].map(|percent| self.at(percent)) {
            [Some(half), Some(most), Some(all)] => {
                write!(f, "{} / {} / {}", millis(half), millis(most), millis(all))
            }
            _ => f.write_str("–"),
        }
    }
}

// === impl Table ===

impl Table {
    pub fn new(head: &[&str]) -> Self {
        let line = format!("|{}|", vec!["---"; head.len()].join("|"));
        Self { columns: head.len(), lines: vec![format!("| {} |", head.join(" | ")), line] }
    }

    /// What is missing at its end is empty.
    pub fn row<T: fmt::Display>(&mut self, cells: impl IntoIterator<Item = T>) {
        let mut cells: Vec<String> = cells.into_iter().map(|cell| cell.to_string()).collect();
        cells.resize(self.columns, String::new());
        self.lines.push(format!("| {} |", cells.join(" | ")));
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.lines.join("\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_a_time_that_was_measured() {
        let mut sample = Sample::default();
        sample.extend((1..=200).map(Duration::from_millis));
        assert_eq!(sample.to_string(), "100 / 198 / 200");
        assert_eq!(sample.beyond(Duration::from_millis(198)), 2);
        assert_eq!(Sample::default().to_string(), "–");
    }

    #[test]
    fn times_have_the_digits_that_count() {
        let texts = [310, 12_340, 250_400].map(|micros| millis(Duration::from_micros(micros)));
        assert_eq!(texts, ["0.31", "12.3", "250"]);
        assert_eq!((median(&[3.0, 1.0, 2.0]), range(&[2.0, 1.0], 1)), (2.0, "1.0–2.0".to_owned()));
    }

    #[test]
    fn a_table_is_markdown() {
        let mut table = Table::new(&["", "a", "b"]);
        table.row(["x", "1"]);
        assert_eq!(table.to_string(), "|  | a | b |\n|---|---|---|\n| x | 1 |  |");
    }
}
