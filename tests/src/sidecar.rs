//! The sidecar, as an operator runs it: `handoff run`.

use crate::{
    command,
    net::Realm,
    peers,
    place::{self, Place},
    process, wait,
};
use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde::Deserialize;
use std::{
    ffi::OsString,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::Duration,
};

const PATIENCE: Duration = Duration::from_secs(10);

/// Ends when it is dropped.
#[derive(Debug)]
pub struct Sidecar {
    child: Child,
    log: PathBuf,
    environment: Environment,
}

/// What `handoff status` says, as far as a stage waits for it.
#[derive(Deserialize)]
struct Status {
    daemons: Vec<Daemon>,
}

#[derive(Deserialize)]
struct Daemon {
    apps: Vec<App>,
}

#[derive(Deserialize)]
struct App {
    app: String,
    level: Option<String>,
}

type Environment = [(&'static str, OsString); 4];

/// What every `handoff` of a stage is told.
pub fn environment(place: &Place) -> Environment {
    [
        ("PM2_HOME", place.pm2_home().into_os_string()),
        ("HANDOFF_CONTROL", format!("unix:{}", place.control_socket().display()).into()),
        ("HANDOFF_RUNTIME_DIR", place.file("runtime").into_os_string()),
        ("HANDOFF_STATE_DIR", place.file("state").into_os_string()),
    ]
}

// === impl Sidecar ===

impl Sidecar {
    /// Starts, and comes back when it knows every worker and nginx takes each of them for up.
    pub async fn start(place: &Place, workers: &[SocketAddr]) -> Result<Self> {
        let mut sidecar = Self::launch(place)?;
        sidecar.knows(&place.control_socket(), workers).await.with_context(|| sidecar.said())?;
        Ok(sidecar)
    }

    /// Starts, and does not wait.
    pub fn launch(place: &Place) -> Result<Self> {
        Self::launch_on(&Realm::default(), place, &[])
    }

    /// The same on another machine, with more to be told.
    pub fn launch_on(realm: &Realm, place: &Place, arguments: &[String]) -> Result<Self> {
        let log = place.file("handoff.log");
        let environment = environment(place);
        let child = realm
            .command(place::handoff()?)
            .arg("run")
            .args(arguments)
            .envs(environment.clone())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::options().create(true).append(true).open(&log)?)
            .spawn()
            .context("cannot run handoff")?;
        Ok(Self { child, log, environment })
    }

    /// Waits until it says that an app is protected so far.
    pub async fn protects(&self, app: &str, level: &str) -> Result<()> {
        let mut last = String::new();
        let protected = wait::until("the app to be protected", PATIENCE, async || {
            last = self.status().await.ok()?;
            let status: Status = serde_json::from_str(&last).ok()?;
            let mut apps = status.daemons.iter().flat_map(|daemon| &daemon.apps);
            apps.any(|of| of.app == app && of.level.as_deref() == Some(level)).then_some(())
        });
        protected.await.with_context(|| last)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it without a word.
    pub fn kill(self) {
        process::signal(self.pid(), Signal::KILL);
    }

    /// Asks it to end, as a service manager would.
    pub fn stop(mut self) -> Result<()> {
        let status = process::end(&mut self.child, PATIENCE).context("handoff cannot be waited for")?;
        ensure!(status.success(), "handoff ended with {status}: {}", self.said());
        Ok(())
    }

    async fn knows(&mut self, control: &Path, workers: &[SocketAddr]) -> Result<()> {
        wait::until("the sidecar to know every worker", PATIENCE, async || {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Some(Err(anyhow::anyhow!("handoff ended with {status}")));
            }
            let knows = self.status().await.is_ok() && peers::all_up(control, workers).await;
            knows.then_some(Ok(()))
        })
        .await?
    }

    async fn status(&self) -> Result<String> {
        let mut handoff = command::clean(place::handoff()?);
        command::succeed(handoff.args(["status", "--json"]).envs(self.environment.clone())).await
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
