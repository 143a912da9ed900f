//! A worker in cluster mode that PM2 started again while it was to stop it, and knows nothing of.
//!
//! One that dies as it starts is started again. If the order to stop it comes just then, PM2 takes the new process's first word
//! for a sign of life, starts one more when it has ended, and writes down `stopped`. That one would serve on with a release that
//! was given up, and nobody would ever end it.

use super::{
    grip::{Grip, KILL_GRACE},
    stop::Stop,
};
use crate::{
    host::{Proc, Process},
    pm2::PmId,
    preload::workers::kill_timeout,
};
use rustix::process::{Signal, pidfd_send_signal};
use serde::Deserialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    time::{Duration, Instant},
};

/// What is known before PM2 is asked to stop a worker, or to forget it.
#[derive(Debug)]
pub struct Strays {
    /// Who is there.
    known: BTreeSet<Process>,
    /// How long PM2 would wait until it kills one.
    patience: Duration,
}

/// What PM2 writes into the environment of a worker in cluster mode. The rest of it is nobody's business.
#[derive(Debug, Deserialize)]
struct Env {
    pm_id: PmId,
}

impl Strays {
    pub fn before(grip: &Grip) -> Result<Self, Stop> {
        let patience = kill_timeout(&grip.seen()?.listed.settings);
        Ok(Self { known: grip.world()?.leavers.clone(), patience })
    }

    /// Ends those of this worker as PM2 would, and waits for it.
    pub async fn end(self, grip: &Grip) -> Result<(), Stop> {
        let until = Instant::now() + self.patience + KILL_GRACE;
        let mut told: BTreeMap<Process, Instant> = BTreeMap::new();
        loop {
            grip.fresh_look().await?;
            let world = grip.world()?;
            // PM2 lists its pid, too, until the worker is deleted: beside the word `stopped`.
            let listed = world.workers.get(&grip.id).and_then(|seen| seen.listed.pid);
            let listed = listed.and_then(|pid| Process::find(&Proc::default(), pid));
            let unknown = world.leavers.difference(&self.known).copied().chain(listed);
            let strays: BTreeSet<Process> = unknown.filter(|&stray| is_of(stray, grip.id)).collect();
            let Some(one) = strays.first() else { return Ok(()) };
            if Instant::now() >= until {
                let (name, pid) = (&grip.name, one.pid);
                return Err(Stop::Refused(format!(
                    "PM2 started {name} again as it stopped it, and pid {pid} does not end"
                )));
            }
            for stray in strays {
                match told.get(&stray) {
                    None => {
                        grip.note(format!(
                            "PM2 started {} again as it stopped it: pid {} is ended",
                            grip.name, stray.pid
                        ));
                        told.insert(stray, Instant::now());
                        _ = signal(stray, Signal::INT);
                    }
                    Some(since) if since.elapsed() > self.patience => _ = signal(stray, Signal::KILL),
                    Some(_) => {}
                }
            }
        }
    }
}

fn is_of(process: Process, id: PmId) -> bool {
    let environment = Proc::default().environment(process.pid).unwrap_or_default();
    let mut entries = environment.split(|&byte| byte == 0);
    let env = entries.find_map(|entry| entry.strip_prefix(b"pm2_env="));
    env.and_then(|env| serde_json::from_slice::<Env>(env).ok()).is_some_and(|env| env.pm_id == id)
}

fn signal(process: Process, signal: Signal) -> io::Result<()> {
    if let Some(pidfd) = process.open(&Proc::default())? {
        pidfd_send_signal(&pidfd, signal)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_stray_is_known_by_what_pm2_gave_it_and_ended() {
        let start = |env: &str| Command::new("sleep").arg("60").env("pm2_env", env).spawn().unwrap();
        let mut one = start(r#"{"name":"shop","pm_id":3,"env":{"SECRET":"x"}}"#);
        let mut old = start(r#"{"name":"shop","pm_id":"_old_3"}"#);
        let [of_one, of_old] = [&one, &old].map(|child| Process::find(&Proc::default(), child.id()).unwrap());
        assert!(is_of(of_one, PmId(3)) && !is_of(of_one, PmId(4)) && !is_of(of_old, PmId(3)));
        signal(Process { start: of_one.start + 1, ..of_one }, Signal::INT).unwrap();
        assert!(of_one.is_alive(&Proc::default()), "it has the number of another process");
        signal(of_one, Signal::INT).unwrap();
        one.wait().unwrap();
        old.kill().unwrap();
        old.wait().unwrap();
    }
}
