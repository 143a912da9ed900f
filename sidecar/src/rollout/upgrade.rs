//! nginx's binary is being upgraded (USR2): two masters live, and two nginx answer on the same sockets, each with marks of its
//! own.
//!
//! Whichever is asked, the other one knows nothing of a drain, and nobody can tell what it has with a worker. So nobody is
//! drained or stopped until one of the masters has gone, which is the operator's to do.

use super::{OnDeadline, grip::Grip, marks::Marks, stop::Stop};
use std::time::{Duration, Instant};
use tokio::time;

const PAUSE: Duration = Duration::from_millis(200);

/// Waits until there is one master, as long as for what is in flight. `may_halt`: whatever else ends the turn may end it here.
pub async fn over(marks: &mut Marks, grip: &Grip, may_halt: bool) -> Result<(), Stop> {
    let after = grip.options().drain_timeout;
    let deadline = Instant::now() + after.duration();
    let mut is_told = false;
    while let Some(old) = marks.old_master().await? {
        if !is_told {
            let name = &grip.name;
            grip.note(format!(
                "{name} waits: nginx is being upgraded, and its old master (pid {old}) lives on"
            ));
            is_told = true;
        }
        if may_halt {
            grip.go_on()?;
        }
        if Instant::now() >= deadline {
            match grip.options().on_deadline {
                OnDeadline::Cut => return Ok(()),
                OnDeadline::Wait => {}
                OnDeadline::Stop => return Err(Stop::Upgrade { worker: grip.name.clone(), old, after }),
            }
        }
        time::sleep(PAUSE).await;
    }
    Ok(())
}
