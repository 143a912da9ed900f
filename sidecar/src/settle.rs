//! How long a worker must stay up before it is trusted again.
//!
//! After a death that nobody ordered nothing is known of the next process but that it started. It serves after a second
//! of life, after twice as long at each further death, and after a calm minute it begins anew.

use std::time::{Duration, Instant};

const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(30);
const CALM: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, Default)]
pub struct Settle {
    last: Option<(Instant, Duration)>,
}

impl Settle {
    /// Another death that nobody ordered.
    pub fn died(&mut self, now: Instant) {
        let stay = match self.last {
            Some((at, stay)) if now.saturating_duration_since(at) < CALM + stay => (stay * 2).min(LONGEST),
            _ => FIRST,
        };
        self.last = Some((now, stay));
    }

    /// How long the next process must live.
    pub fn stay_up(&self) -> Duration {
        self.last.map_or(FIRST, |(_, stay)| stay)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_death_doubles_the_wait_and_a_calm_minute_forgives() {
        let mut settle = Settle::default();
        let mut now = Instant::now();
        let waits = std::iter::repeat_with(|| {
            settle.died(now);
            now += settle.stay_up() + Duration::from_secs(1);
            settle.stay_up().as_secs()
        });
        assert_eq!(waits.take(7).collect::<Vec<_>>(), [1, 2, 4, 8, 16, 30, 30]);
        settle.died(now + Duration::from_secs(91));
        assert_eq!(settle.stay_up(), FIRST);
    }
}
