//! A Debian of its own: systemd as process 1, a network of its own, and a root directory that is as `build/clean-root` made
//! it, whatever was done to an earlier one. Needs root.

use crate::{
    command,
    namespace::Namespace,
    place::{self, Place},
    process, wait,
};
use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

const PATIENCE: Duration = Duration::from_secs(60);
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Switched off when it is dropped.
#[derive(Debug)]
pub struct Machine {
    nspawn: Child,
    /// Its process 1, as we see it.
    init: u32,
    network: Namespace,
    place: Place,
}

/// What a command in it wrote, both outputs together, and its exit code.
#[derive(Clone, Debug)]
pub struct Said {
    pub code: Option<i32>,
    pub text: String,
}

// === impl Machine ===

impl Machine {
    /// Comes back when it has booted. `/stage` is what the tests lay out, `/packages` what is to be installed,
    /// `/packages-next` the same one revision later.
    pub async fn boot() -> Result<Self> {
        let root = place::target("clean-root");
        ensure!(root.join(".made-of").exists(), "{} is missing: run `make packages-test`", root.display());
        let (network, place) = (Namespace::new().await?, Place::new()?);
        let log = place.file("console");
        let bind = |from: PathBuf, to: &str| format!("--bind-ro={}:{to}", from.display());
        let nspawn = Command::new("systemd-nspawn")
            .args(["--quiet", "--boot", "--volatile=overlay", "--register=no", "--keep-unit"])
            .args(["--console=read-only", "--machine=clean"])
            .arg(format!("--directory={}", root.display()))
            .arg(format!("--network-namespace-path={}", network.path().display()))
            .arg(bind(place::root().join("dist/packages"), "/packages"))
            .arg(bind(place::target("packages/next"), "/packages-next"))
            .arg(bind(place::root().join("tests/apps"), "/stage/apps"))
            .arg(bind(place::root().join("tests/clean"), "/stage/clean"))
            .stdin(Stdio::null())
            .stdout(fs::File::create(&log)?)
            .stderr(fs::File::create(place.file("nspawn"))?)
            .spawn()
            .context("cannot run systemd-nspawn: `make packages-test` installs it")?;
        let mut machine = Self { nspawn, init: 0, network, place };
        machine.has_booted().await.with_context(|| machine.console())?;
        Ok(machine)
    }

    /// Where its servers are reached.
    pub fn address(&self, port: u16) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(self.network.address()), port)
    }

    /// One of its files.
    pub fn file(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.init))
    }

    /// Runs a script as root, or as that user in a new login.
    pub async fn run(&self, user: Option<&str>, script: &str) -> Result<Said> {
        let mut command = command::clean("nsenter");
        command.arg(format!("--target={}", self.init)).args(["--all", "env", "--ignore-environment"]);
        command.args([&format!("PATH={PATH}"), "HOME=/root", "LANG=C.UTF-8"]);
        // Who is asked says yes.
        command.args(["DEBIAN_FRONTEND=noninteractive", "APT_CONFIG=/stage/clean/apt.conf"]);
        let script = format!("exec 2>&1\nset -e\n{script}");
        match user {
            None => command.args(["bash", "-c", &format!("cd /packages\n{script}")]),
            Some(user) => command.args(["su", "-", user, "-c", &script]),
        };
        let output = command.output().await.context("cannot run nsenter")?;
        let text = [output.stdout, output.stderr].concat();
        Ok(Said { code: output.status.code(), text: String::from_utf8_lossy(&text).into_owned() })
    }

    /// Runs a script as root that must succeed; what it wrote.
    pub async fn succeeds(&self, script: &str) -> Result<String> {
        let said = self.run(None, script).await?;
        ensure!(said.code == Some(0), "{script}\nended with {:?}:\n{}", said.code, said.text);
        Ok(said.text)
    }

    async fn has_booted(&mut self) -> Result<()> {
        wait::until("a machine to boot", PATIENCE, async || {
            if let Ok(Some(status)) = self.nspawn.try_wait() {
                return Some(Err(anyhow::anyhow!("systemd-nspawn ended with {status}")));
            }
            if let [init] = process::children(self.nspawn.id()).as_slice() {
                self.init = *init;
                let state = self.run(None, "systemctl is-system-running").await.ok()?;
                return (state.text.trim() == "running").then_some(Ok(()));
            }
            None
        })
        .await?
    }

    fn console(&self) -> String {
        let read = |name| fs::read_to_string(self.place.file(name)).unwrap_or_default();
        read("console") + &read("nspawn")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // With process 1 goes whatever runs in it.
        if self.init != 0 {
            process::signal(self.init, Signal::KILL);
        }
        process::end(&mut self.nspawn, Duration::from_secs(10));
    }
}
