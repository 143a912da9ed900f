//! A private PM2: its own home, its own daemon, driven by the real command line.

use crate::{app::App, app::NAME, command, net::Realm, place, process};
use anyhow::{Context, Result};
use rustix::process::Signal;
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Output,
    thread,
    time::Duration,
};

/// The newest PM2 that tests/pm2 pins.
pub const NEWEST: &str = "pm2";

/// Its daemon and every worker are killed when it is dropped.
#[derive(Debug)]
pub struct Pm2 {
    home: PathBuf,
    cli: PathBuf,
    environment: Vec<(&'static str, String)>,
    realm: Realm,
}

impl Pm2 {
    /// Starts the app, and comes back when PM2 says that it is up.
    pub async fn start(package: &str, home: &Path, app: &App) -> Result<Self> {
        Self::start_file(package, home, &app.ecosystem(), &[]).await
    }

    /// Starts what an ecosystem file says, with a daemon that has these settings in its environment.
    pub async fn start_file(
        package: &str,
        home: &Path,
        ecosystem: &Value,
        environment: &[(&'static str, &str)],
    ) -> Result<Self> {
        let pm2 = Self::new(package, home, environment)?;
        pm2.starts(ecosystem).await?;
        Ok(pm2)
    }

    /// Starts the app on another machine.
    pub async fn start_on(realm: Realm, package: &str, home: &Path, app: &App) -> Result<Self> {
        let mut pm2 = Self::new(package, home, &[])?;
        pm2.realm = realm;
        pm2.starts(&app.ecosystem()).await?;
        Ok(pm2)
    }

    /// Starts what is in the ecosystem.config.js of a folder, from there.
    pub async fn start_in(package: &str, home: &Path, folder: &Path) -> Result<Self> {
        let pm2 = Self::new(package, home, &[])?;
        let mut start = pm2.command(&["start", "ecosystem.config.js"]);
        command::succeed(start.current_dir(folder)).await?;
        Ok(pm2)
    }

    fn new(package: &str, home: &Path, environment: &[(&'static str, &str)]) -> Result<Self> {
        fs::create_dir_all(home)?;
        let environment = environment.iter().map(|&(name, value)| (name, value.to_owned())).collect();
        Ok(Self {
            home: home.to_path_buf(),
            cli: place::pm2_cli(package)?,
            environment,
            realm: Realm::default(),
        })
    }

    async fn starts(&self, ecosystem: &Value) -> Result<()> {
        fs::write(self.ecosystem(), ecosystem.to_string())?;
        self.run(&["start", &self.ecosystem().display().to_string()]).await.map(drop)
    }

    /// The file that it was started with.
    pub fn ecosystem(&self) -> PathBuf {
        self.home.join("ecosystem.json")
    }

    pub async fn reload(&self) -> Result<()> {
        self.run(&["reload", NAME]).await.map(drop)
    }

    pub async fn version(&self) -> Result<String> {
        Ok(self.run(&["--version"]).await?.lines().last().unwrap_or_default().trim().to_owned())
    }

    /// The same, however it ends; `None`: it did not, within this time.
    pub async fn attempt(&self, arguments: &[&str], patience: Duration) -> Result<Option<Output>> {
        let output = tokio::time::timeout(patience, self.command(arguments).output()).await;
        Ok(output.ok().transpose()?)
    }

    /// The daemon, as it wrote itself down.
    pub fn daemon(&self) -> Result<u32> {
        let file = self.home.join("pm2.pid");
        let pid = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        Ok(pid.trim().parse()?)
    }

    /// Runs PM2's command line. It is a Node program, and starts as one.
    pub async fn run(&self, arguments: &[&str]) -> Result<String> {
        self.run_with(&[], arguments).await
    }

    /// The same, as `NAME=value pm2 …`.
    pub async fn run_with(&self, variables: &[(&str, &str)], arguments: &[&str]) -> Result<String> {
        command::succeed(self.command(arguments).envs(variables.iter().copied())).await
    }

    fn command(&self, arguments: &[&str]) -> tokio::process::Command {
        let mut pm2 = self.realm.clean("node");
        pm2.arg(&self.cli).args(arguments).env("PM2_HOME", &self.home).env("PM2_DISCRETE_MODE", "true");
        pm2.envs(self.environment.iter().map(|(name, value)| (name, value)));
        pm2
    }

    /// The daemon and its workers: all that were started with this home.
    pub fn processes(&self) -> Vec<u32> {
        process::with_environment(&format!("PM2_HOME={}", self.home.display()))
    }
}

impl Drop for Pm2 {
    fn drop(&mut self) {
        // Again, for a daemon that was just starting a worker when it was killed.
        for _ in 0..100 {
            let left = self.processes();
            if left.is_empty() {
                break;
            }
            left.into_iter().for_each(|pid| process::signal(pid, Signal::KILL));
            thread::sleep(Duration::from_millis(10));
        }
    }
}
