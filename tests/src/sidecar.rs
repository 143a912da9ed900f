//! The sidecar, as an operator runs it: `handoff run`.

use crate::{command, peers, place, process, wait};
use anyhow::{Context, Result, ensure};
use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

const PATIENCE: Duration = Duration::from_secs(10);

/// Ends when it is dropped.
#[derive(Debug)]
pub struct Sidecar {
    child: Child,
    log: PathBuf,
    pm2_home: PathBuf,
    control: PathBuf,
}

impl Sidecar {
    /// Starts, and comes back when it knows every worker and nginx takes each of them for up.
    pub async fn start(log: &Path, pm2_home: &Path, control: &Path, workers: &[SocketAddr]) -> Result<Self> {
        let child = Command::new(place::handoff()?)
            .arg("run")
            .env("PM2_HOME", pm2_home)
            .env("HANDOFF_CONTROL", address(control))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(log)?)
            .spawn()
            .context("cannot run handoff")?;
        let mut sidecar = Self {
            child,
            log: log.to_path_buf(),
            pm2_home: pm2_home.to_path_buf(),
            control: control.to_path_buf(),
        };
        sidecar.knows(workers).await.with_context(|| sidecar.said())?;
        Ok(sidecar)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Asks it to end, as a service manager would.
    pub fn stop(mut self) -> Result<()> {
        let status = process::end(&mut self.child, PATIENCE).context("handoff cannot be waited for")?;
        ensure!(status.success(), "handoff ended with {status}: {}", self.said());
        Ok(())
    }

    async fn knows(&mut self, workers: &[SocketAddr]) -> Result<()> {
        wait::until("the sidecar to know every worker", PATIENCE, async || {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Some(Err(anyhow::anyhow!("handoff ended with {status}")));
            }
            let knows = self.status().await.is_ok() && peers::all_up(&self.control, workers).await;
            knows.then_some(Ok(()))
        })
        .await?
    }

    async fn status(&self) -> Result<String> {
        let mut handoff = command::clean(place::handoff()?);
        handoff
            .args(["status", "--json"])
            .env("PM2_HOME", &self.pm2_home)
            .env("HANDOFF_CONTROL", address(&self.control));
        command::succeed(&mut handoff).await
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        process::end(&mut self.child, PATIENCE);
    }
}

fn address(control: &Path) -> String {
    format!("unix:{}", control.display())
}
