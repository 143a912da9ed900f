//! Two workers, each started by the test as a supervisor would.

#![allow(unreachable_pub, reason = "a module of a test is nobody else's")]

use anyhow::{Context, Result, ensure};
use e2e::{
    http,
    load::{Load, Visit},
    orders::Orders,
    place, ports, process,
    site::{PATIENCE, Site},
    wait,
};
use handoff_wire::{PeerState, PeerView};
use hyper::StatusCode;
use rustix::process::Signal;
use std::{
    ffi::OsString,
    fs,
    os::unix::process::ExitStatusExt as _,
    path::PathBuf,
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
};

pub const RATE: u32 = 200;

#[derive(Debug)]
pub struct Stage {
    pub site: Site,
    first: u16,
}

/// A command that somebody supervises. Killed when it is dropped.
#[derive(Debug)]
pub struct Worker {
    child: Child,
    log: PathBuf,
}

/// What became of the visits while workers were restarted.
#[derive(Debug)]
pub struct Toll {
    with_handoff: bool,
    failed: Vec<String>,
    all: usize,
}

/// As a supervisor has it: with nothing of ours in its environment.
pub fn clean(program: impl Into<OsString>) -> Command {
    let mut command = Command::new(program.into());
    command.env_clear().stdin(Stdio::null()).stdout(Stdio::null());
    for name in ["PATH", "HOME", "TMPDIR"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command
}

// === impl Stage ===

impl Stage {
    /// nginx with two peers, where nobody listens yet.
    pub async fn set(version: &str) -> Result<Self> {
        let mut site = Site::new(version).await?;
        let first = ports::row(2)?;
        let servers = [first, first + 1].map(|port| format!("server {};", ports::address(port))).join(" ");
        site.write(&site.usual_with(&format!("{servers} keepalive 8;")))?;
        site.start().await?;
        Ok(Self { site, first })
    }

    pub fn port(&self, worker: u16) -> u16 {
        self.first + worker
    }

    pub fn peer_name(&self, worker: u16) -> String {
        ports::address(self.port(worker)).to_string()
    }

    pub async fn peer(&self, worker: u16) -> Result<PeerView> {
        self.site.peer(&self.peer_name(worker)).await
    }

    /// `handoff exec`, with the rest to come.
    pub fn exec(&self, worker: u16) -> Result<Command> {
        let mut command = clean(place::handoff()?);
        command.env("HANDOFF_CONTROL", format!("unix:{}", self.site.socket().display()));
        command.env("PORT", self.port(worker).to_string()).env("ORDERS", self.orders());
        command.args(["exec", "--port", &self.port(worker).to_string()]);
        Ok(command)
    }

    /// The sample app, one that handles no signal, under `handoff exec` or alone.
    pub fn app(&self, worker: u16, with_handoff: bool, options: &[&str]) -> Result<Command> {
        let mut command = if with_handoff {
            let mut command = self.exec(worker)?;
            command.args(options).args(["--", "node"]);
            command
        } else {
            let mut command = clean("node");
            command.env("PORT", self.port(worker).to_string()).env("ORDERS", self.orders());
            command
        };
        command.arg(place::server_js()?).env("BEHAVIOUR", "naive");
        Ok(command)
    }

    pub fn start(&self, command: Command, name: &str) -> Result<Worker> {
        Worker::start(command, self.site.file(name))
    }

    pub async fn serves(&self, worker: u16) -> Result<()> {
        self.listens(worker).await?;
        // Not before: a peer of which nothing was said yet is up.
        self.is(worker, PeerState::Up).await.map(drop)
    }

    /// Whatever nginx makes of it.
    pub async fn listens(&self, worker: u16) -> Result<()> {
        let health = async || {
            http::status(ports::address(self.port(worker)), "/health").await.filter(StatusCode::is_success)
        };
        wait::until("a worker to serve", PATIENCE, health).await.map(drop)
    }

    /// Nobody says anything of it any more.
    pub async fn is_unmarked(&self, worker: u16) -> Result<()> {
        let what = format!("worker {worker} to have no mark");
        wait::until(&what, PATIENCE, async || {
            self.peer(worker).await.ok().filter(|peer| peer.marks.is_empty()).map(drop)
        })
        .await
    }

    pub async fn is(&self, worker: u16, state: PeerState) -> Result<PeerView> {
        let mut last = None;
        let what = format!("worker {worker} to be {state:?}");
        let found = wait::until(&what, PATIENCE, async || {
            last = self.peer(worker).await.ok();
            last.clone().filter(|peer| peer.state == state)
        });
        found.await.with_context(|| format!("{last:?}"))
    }

    /// One worker after the other is restarted in this way, under load.
    pub async fn restarts(
        &self,
        with_handoff: bool,
        mut restart: impl AsyncFnMut(u16) -> Result<()>,
    ) -> Result<Toll> {
        let is_back = async |worker| match with_handoff {
            true => self.serves(worker).await,
            false => self.listens(worker).await,
        };
        for worker in [0, 1] {
            is_back(worker).await?;
        }
        let load = self.load();
        for worker in [0, 1] {
            restart(worker).await?;
            is_back(worker).await?;
        }
        let visits = load.stop().await;
        Ok(Toll { with_handoff, failed: self.judge(&visits)?, all: visits.len() })
    }

    pub fn load(&self) -> Load {
        Load::start(ports::address(self.site.port()), RATE)
    }

    /// Those that failed. Nothing must have run twice.
    pub fn judge(&self, visits: &[Visit]) -> Result<Vec<String>> {
        let orders = Orders::read(&self.orders())?;
        ensure!(orders.executed_twice() == 0, "{} orders ran twice", orders.executed_twice());
        let failed = visits.iter().filter(|visit| visit.failed());
        Ok(failed.map(|visit| format!("{} {}: {}", visit.number, visit.kind, visit.answer)).collect())
    }

    fn orders(&self) -> PathBuf {
        self.site.file("orders")
    }
}

// === impl Toll ===

impl Toll {
    /// With Handoff nobody notices; without it somebody does, or the former shows nothing.
    pub fn is_as_it_should(&self, version: &str) {
        let Self { with_handoff, failed, all } = self;
        let how = if *with_handoff { "with" } else { "without" };
        println!("nginx {version}, {how} handoff exec: {} of {all} failed", failed.len());
        match with_handoff {
            true => assert_eq!(*failed, [""; 0], "of {all}"),
            false => assert!(!failed.is_empty(), "then `with handoff exec` shows nothing"),
        }
    }
}

// === impl Worker ===

impl Worker {
    pub fn start(mut command: Command, log: PathBuf) -> Result<Self> {
        command.stderr(fs::File::options().create(true).append(true).open(&log)?);
        let child = command.spawn().context("cannot start a worker")?;
        Ok(Self { child, log })
    }

    /// Its standard input, if that is a pipe.
    pub fn input(&mut self) -> Result<ChildStdin> {
        self.child.stdin.take().context("its standard input is no pipe")
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The command itself, once there is no `handoff` between.
    pub async fn command(&self) -> Result<u32> {
        wait::until("the command to run", PATIENCE, async || {
            let [child] = process::children(self.pid()).as_slice().try_into().ok()?;
            let title = process::title(child)?;
            (!title.contains("launch")).then_some(child)
        })
        .await
    }

    pub fn signal(&self, signal: Signal) {
        process::signal(self.pid(), signal);
    }

    pub async fn ended(&mut self) -> Result<ExitStatus> {
        let ended = wait::until("a worker to end", PATIENCE, async || self.child.try_wait().ok()?).await;
        ended.with_context(|| self.said())
    }

    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    pub fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub async fn says(&self, words: &str) -> Result<()> {
        let what = format!("it to say {words:?}");
        let said = async || self.said().contains(words).then_some(());
        wait::until(&what, PATIENCE, said).await.with_context(|| self.said())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if self.is_running() {
            let all = process::descendants(self.pid());
            _ = self.child.kill();
            _ = self.child.wait();
            all.into_iter().for_each(|pid| process::signal(pid, Signal::KILL));
        }
    }
}

/// Exit code, or signal.
pub fn how(status: ExitStatus) -> (Option<i32>, Option<i32>) {
    (status.code(), status.signal())
}
