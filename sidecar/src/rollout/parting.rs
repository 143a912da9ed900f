//! A worker in cluster mode finishes what it has before PM2 is asked for anything, if it has the preload.
//!
//! It leaves the shared address to the others and counts down. That cannot be taken back: from then on it is to be
//! replaced, and whatever ends the roll-out says so.

use super::{OnDeadline, event::Step, grip::Grip, stop::Stop};
use crate::{host::Process, pm2::monitor::Status, preload::drain::Drain};
use std::time::Duration;
use tokio::time::{self, Instant};

const LOOK_PAUSE: Duration = Duration::from_millis(100);

/// Waits until it has nothing left, or for as long as it may. False: it finishes nothing beforehand.
pub async fn finished(grip: &Grip, process: Process, at_deadline: OnDeadline) -> Result<bool, Stop> {
    let Some(socket) = &grip.shared.preload else { return Ok(false) };
    if !somebody_else_serves(grip)? {
        return Ok(false);
    }
    let long = grip.options().drain_timeout.duration();
    // Whatever it is, PM2's signal is all that is left.
    let Ok(Some((mut drain, mut in_flight))) = Drain::begin(socket, process, long).await else {
        return Ok(false);
    };
    let deadline = Instant::now() + long;
    grip.step(Step::Draining { in_flight });
    while in_flight > 0 {
        grip.go_on().inspect_err(|_| grip.note(takes_nothing_new(grip)))?;
        if Instant::now() >= deadline {
            match at_deadline {
                OnDeadline::Cut => return Ok(true),
                OnDeadline::Wait => {}
                OnDeadline::Stop => {
                    let (worker, after) = (grip.name.clone(), grip.options().drain_timeout);
                    return Err(Stop::Overdue { worker, in_flight, after });
                }
            }
        }
        match time::timeout(LOOK_PAUSE, drain.next()).await {
            Err(_) => {}
            Ok(Some(now)) => {
                in_flight = now;
                grip.step(Step::Draining { in_flight });
            }
            // It has ended, or the sidecar has.
            Ok(None) => return Ok(false),
        }
    }
    Ok(true)
}

fn somebody_else_serves(grip: &Grip) -> Result<bool, Stop> {
    let world = grip.world()?;
    let serves = |id, status, has_process: bool| id != grip.id && status == Status::Online && has_process;
    Ok(world.workers.iter().any(|(&id, seen)| serves(id, seen.listed.status, seen.process.is_some())))
}

fn takes_nothing_new(grip: &Grip) -> String {
    format!("{} finishes what it has and takes nothing new until it is replaced", grip.name)
}
