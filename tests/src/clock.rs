//! One clock for all: CLOCK_MONOTONIC, which Node calls `process.hrtime.bigint()`.

use rustix::time::{ClockId, Timespec, clock_gettime};
use std::{
    ops::{Add, Sub},
    time::Duration,
};

/// Nanoseconds since the machine booted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(u64);

impl Moment {
    pub fn now() -> Self {
        Self(nanos(clock_gettime(ClockId::Monotonic)))
    }

    pub fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    pub fn as_nanos(self) -> u64 {
        self.0
    }

    /// What the wall clock showed as `millis` since 1970.
    pub fn from_unix_millis(millis: u64) -> Self {
        let wall = nanos(clock_gettime(ClockId::Realtime));
        let ago = wall.saturating_sub(millis.saturating_mul(1_000_000));
        Self(Self::now().0.saturating_sub(ago))
    }

    /// Zero if `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    pub async fn reached(self) {
        tokio::time::sleep(self.since(Self::now())).await;
    }
}

impl Add<Duration> for Moment {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl Sub<Duration> for Moment {
    type Output = Self;

    fn sub(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)))
    }
}

fn nanos(time: Timespec) -> u64 {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(time.tv_nsec).unwrap_or(0))
}
