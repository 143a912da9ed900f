//! How a set of durations is spread, in milliseconds.

use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Nothing measured: nothing said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    pub p50: Option<f64>,
    pub p99: Option<f64>,
    pub max: Option<f64>,
}

impl Spread {
    pub fn of(durations: impl IntoIterator<Item = Duration>) -> Self {
        let mut millis: Vec<f64> = durations.into_iter().map(millis).collect();
        millis.sort_by(f64::total_cmp);
        Self { p50: rank(&millis, 50), p99: rank(&millis, 99), max: millis.last().copied() }
    }

    /// Of several runs: the median of their percentiles, and the largest of all.
    pub fn median(runs: &[Self]) -> Self {
        let all = |of: fn(&Self) -> Option<f64>| {
            let mut values: Vec<f64> = runs.iter().filter_map(of).collect();
            values.sort_by(f64::total_cmp);
            values
        };
        Self {
            p50: rank(&all(|run| run.p50), 50),
            p99: rank(&all(|run| run.p99), 50),
            max: all(|run| run.max).last().copied(),
        }
    }
}

/// The middle one; of two, the larger.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied()
}

/// The smallest value that `percent` of all do not exceed.
fn rank(sorted: &[f64], percent: usize) -> Option<f64> {
    let place = (sorted.len() * percent).div_ceil(100);
    sorted.get(place.checked_sub(1)?).copied()
}

/// With one digit after the point: no finer than the timers of the load.
fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 10_000.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let spread = Spread::of((1..=200).map(Duration::from_millis));
        assert_eq!(spread, Spread { p50: Some(100.0), p99: Some(198.0), max: Some(200.0) });
        let one = Spread::of([Duration::from_micros(1_260)]);
        assert_eq!(one, Spread { p50: Some(1.3), p99: Some(1.3), max: Some(1.3) });
    }

    #[test]
    fn of_nothing_nothing_is_said() {
        assert_eq!(Spread::of([]), Spread::default());
        assert_eq!(Spread::median(&[]), Spread::default());
    }

    #[test]
    fn runs_are_summed_up_by_their_median_and_by_the_worst_of_all() {
        let run = |millis| Spread::of([Duration::from_millis(millis)]);
        let median = Spread::median(&[run(5), run(90), run(7), Spread::default()]);
        assert_eq!(median, Spread { p50: Some(7.0), p99: Some(7.0), max: Some(90.0) });
    }
}
