//! The new process of a worker until it is fit to serve, whatever becomes of the old one meanwhile.

use super::{
    event::Step,
    fitness::{Expected, Fitness},
    grip::{Call, Grip},
    health::Path,
    stop::{How, Stop},
    world::Seen,
};
use crate::host::Proc;
use handoff_wire::Span;
use std::time::{Duration, Instant};
use tokio::time;

/// The health checks of one process, of which so many are to pass in a row.
#[derive(Debug)]
pub struct Checks {
    pub path: Path,
    passed: u32,
    of: u32,
    timeout: Span,
    pub until: Instant,
    /// What was wrong the last time.
    pub ill: Option<String>,
}

const CHECK_PAUSE: Duration = Duration::from_millis(100);

/// One look. False: it may be fit yet, and another look is worth it. `lacks`: where it should listen and does not.
pub async fn is_fit<T: Send + 'static>(
    expected: &mut Expected,
    grip: &Grip,
    call: &mut Call<T>,
    until: Instant,
    lacks: impl FnOnce(&Seen) -> Option<String>,
) -> Result<bool, Stop> {
    if call.answered().await?.is_some() {
        expected.answered();
    }
    match expected.judge(&grip.seen()?, lacks) {
        Fitness::Fit => return Ok(true),
        Fitness::Broken(how, text) => return Err(grip.broken(how, text)),
        Fitness::NotYet(what) if Instant::now() >= until => {
            let text = format!("{what} within {}", grip.options().start_timeout);
            return Err(grip.broken(How::NotReady, text));
        }
        Fitness::NotYet(_) => {}
    }
    grip.next_look().await?;
    Ok(false)
}

pub fn still_lives(expected: &mut Expected, grip: &Grip) -> Result<(), Stop> {
    if !expected.lives(&Proc::default()) {
        return Err(grip.broken(How::Crashed, "it crashed".to_owned()));
    }
    match expected.judge(&grip.seen()?, |_| None) {
        Fitness::Broken(How::Crashed, text) => Err(grip.broken(How::Crashed, text)),
        _ => Ok(()),
    }
}

// === impl Checks ===

impl Checks {
    /// None: nobody asked for them.
    pub fn begin(grip: &Grip) -> Option<Self> {
        let options = grip.options();
        let (path, timeout) = (options.health.clone()?, options.health_timeout);
        let until = Instant::now() + timeout.duration();
        let checks = Self { path, passed: 0, of: options.health_passes, timeout, until, ill: None };
        grip.step(checks.step());
        Some(checks)
    }

    /// Counts one, of each of its addresses. True: it is well. False: after a pause, it is to be checked again.
    pub async fn count(&mut self, grip: &Grip, answers: &[Result<(), String>]) -> Result<bool, Stop> {
        self.ill = answers.iter().find_map(|answer| answer.clone().err());
        match &self.ill {
            None => self.passed += 1,
            Some(ill) if Instant::now() >= self.until => {
                let text = format!("{} of {ill}, after {}", self.path, self.timeout);
                return Err(grip.broken(How::Unhealthy, text));
            }
            Some(_) => self.passed = 0,
        }
        grip.step(self.step());
        if self.passed >= self.of {
            return Ok(true);
        }
        time::sleep(CHECK_PAUSE).await;
        Ok(false)
    }

    fn step(&self) -> Step {
        Step::Checking { passed: self.passed, of: self.of }
    }
}
