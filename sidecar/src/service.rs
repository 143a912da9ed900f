//! What the service manager (systemd, or whoever gives us a `NOTIFY_SOCKET`) is told.
//!
//! **Ready**: nginx and every PM2 were looked at once, whether they were there or not. What is missing is waited for by us;
//! a boot must not wait with us. **Alive**: every agent has gone round since the last word. An agent that hangs says
//! nothing, so nothing is said for it, and its watchdog ends us; a timer here would only prove that timers work. **Going**:
//! we were asked to end.

use crate::report::Report;
use sd_notify::NotifyState;
use std::{env, time::Duration};
use tokio::{sync::watch, time};

/// What an agent shows of itself each time that it goes round.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pulse {
    pub rounds: u64,
    pub has_seen_nginx: bool,
    pub has_seen_pm2: bool,
    pub nginx_answers: bool,
}

/// One agent, from outside.
#[derive(Debug)]
pub struct Patient {
    pub pulse: watch::Receiver<Pulse>,
    pub report: watch::Receiver<Report>,
}

/// An agent goes round once a second at least; `WatchdogSec=` is ten of these.
const BEAT: Duration = Duration::from_secs(1);

/// Tells it until an agent ends. Without a service manager, or without an agent, there is nothing to tell.
pub async fn tell(mut agents: Vec<Patient>) {
    if env::var_os("NOTIFY_SOCKET").is_none() || agents.is_empty() {
        return;
    }
    for agent in &mut agents {
        if agent.pulse.wait_for(Pulse::is_ready).await.is_err() {
            return;
        }
    }
    notify(NotifyState::Ready);
    let mut last = String::new();
    loop {
        let status: Vec<String> = agents.iter().map(Patient::status).collect();
        let status = status.join("; ");
        if status != last {
            notify(NotifyState::Status(&status));
            last = status;
        }
        for agent in &mut agents {
            agent.pulse.mark_unchanged();
            if agent.pulse.changed().await.is_err() {
                return;
            }
        }
        notify(NotifyState::Watchdog);
        time::sleep(BEAT).await;
    }
}

pub fn leaves() {
    notify(NotifyState::Stopping);
}

/// Nobody listens: so be it.
fn notify(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::debug!("the service manager was not told: {error}");
    }
}

// === impl Pulse ===

impl Pulse {
    fn is_ready(&self) -> bool {
        self.has_seen_nginx && self.has_seen_pm2
    }
}

// === impl Patient ===

impl Patient {
    /// For `systemctl status`.
    fn status(&self) -> String {
        let report = self.report.borrow();
        let nginx = if self.pulse.borrow().nginx_answers { "" } else { ", nginx does not answer" };
        let (workers, stops) = (report.workers.len(), report.latency.count);
        format!("{}: {workers} workers, {stops} stops acknowledged{nginx}", report.home)
    }
}
