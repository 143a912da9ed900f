//! A private nginx: its own prefix, its own port, in the foreground.

use crate::{command, conf::Conf, http, place, ports, process, wait};
use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

const PATIENCE: Duration = Duration::from_secs(10);

/// An nginx that can be run.
#[derive(Clone, Debug)]
pub struct Binary {
    pub path: PathBuf,
    pub version: String,
}

/// Ends with its workers when it is dropped.
#[derive(Debug)]
pub struct Nginx {
    child: Child,
    prefix: PathBuf,
    port: u16,
}

// === impl Binary ===

impl Binary {
    /// Every nginx there is here: the system's first, then those that the build made.
    pub async fn all() -> Vec<Self> {
        let mut found: Vec<Self> = Vec::new();
        for path in candidates() {
            if let Ok(binary) = Self::at(&path).await
                && found.iter().all(|known| known.version != binary.version)
            {
                found.push(binary);
            }
        }
        found
    }

    /// The one with this version or path; with neither, the first.
    pub async fn find(wanted: Option<&str>) -> Result<Self> {
        if let Some(path) = wanted.filter(|wanted| wanted.contains('/')) {
            return Self::at(Path::new(path)).await;
        }
        let all = Self::all().await;
        let versions: Vec<String> = all.iter().map(|binary| binary.version.clone()).collect();
        all.into_iter().find(|binary| wanted.is_none_or(|wanted| binary.version == wanted)).with_context(
            || {
                let wanted = wanted.map(|version| format!(" {version}")).unwrap_or_default();
                format!("no nginx{wanted} here (found: {versions:?}): run `make setup build`")
            },
        )
    }

    pub async fn at(path: &Path) -> Result<Self> {
        let output = command::clean(path).arg("-v").output().await;
        let output = output.with_context(|| format!("cannot run {}", path.display()))?;
        let text = String::from_utf8_lossy(&output.stderr);
        let Some((_, version)) = text.trim().split_once("nginx/") else {
            bail!("{} -v says: {text}", path.display());
        };
        let version = version.split_whitespace().next().unwrap_or_default().to_owned();
        Ok(Self { path: path.to_path_buf(), version })
    }

    /// Whether nginx takes a configuration, and what it says of it.
    pub async fn check(&self, conf: &Path) -> Result<(bool, String)> {
        let output = command::clean(&self.path).arg("-t").arg("-c").arg(conf).output().await?;
        Ok((output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned()))
    }
}

fn candidates() -> Vec<PathBuf> {
    let system =
        env::var_os("PATH").map(|path| env::split_paths(&path).collect::<Vec<_>>()).unwrap_or_default();
    let mut built: Vec<PathBuf> = fs::read_dir(place::target("nginx"))
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path().join("nginx"))
        .collect();
    built.sort();
    let system = system.into_iter().chain(["/usr/sbin".into()]).map(|folder| folder.join("nginx"));
    system.chain(built).filter(|path| path.is_file()).collect()
}

// === impl Nginx ===

impl Nginx {
    /// Starts, and comes back when it accepts connections.
    pub async fn start(binary: &Binary, prefix: &Path, conf: &Conf) -> Result<Self> {
        fs::create_dir_all(prefix)?;
        let file = prefix.join("nginx.conf");
        fs::write(&file, conf.text(&prefix.display().to_string()))?;
        let child = Command::new(&binary.path)
            .args(["-g", "daemon off;", "-e", "stderr"])
            .arg("-p")
            .arg(prefix)
            .arg("-c")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(prefix.join("stderr"))?)
            .spawn()
            .with_context(|| format!("cannot run {}", binary.path.display()))?;
        let mut nginx = Self { child, prefix: prefix.to_path_buf(), port: conf.port };
        nginx.accepts().await?;
        Ok(nginx)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn access_log(&self) -> PathBuf {
        self.prefix.join("access.log")
    }

    /// Lets it finish what it has, and write its logs.
    pub async fn quit(mut self) -> Result<()> {
        process::signal(self.pid(), Signal::QUIT);
        let ended =
            wait::until("nginx to end", PATIENCE, async || self.child.try_wait().ok().flatten()).await?;
        if !ended.success() {
            bail!("nginx ended with {ended}: {}", self.complaint());
        }
        Ok(())
    }

    async fn accepts(&mut self) -> Result<()> {
        let address = ports::address(self.port);
        let answered = wait::until("nginx to answer", PATIENCE, async || {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Some(Err(status));
            }
            http::status(address, "/health").await.map(|_| Ok(()))
        });
        let answered = answered.await.with_context(|| self.complaint())?;
        answered.map_err(|status| anyhow::anyhow!("nginx ended with {status}: {}", self.complaint()))
    }

    fn complaint(&self) -> String {
        let read = |name: &str| fs::read_to_string(self.prefix.join(name)).unwrap_or_default();
        let all = read("stderr") + &read("error.log");
        let complaints = all.lines().filter(|line| !line.contains("[notice]") && !line.contains("[info]"));
        complaints.collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        process::end(&mut self.child, PATIENCE);
    }
}
