//! A private PM2 of some version, on some Node, with a home of its own.

use crate::scratch::Dir;
use handoff::pm2::{
    PmId,
    home::Home,
    monitor::Listed,
    orders::{Orders, OrdersError, Request},
    rpc::Rpc,
};
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use serde_json::{Value, json};
use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// Which PM2 on which Node.
#[derive(Clone, Copy)]
pub struct Cell {
    pub package: &'static str,
    pub version: &'static str,
    pub node: &'static str,
}

/// Its daemon and every worker are killed when it is dropped.
pub struct Pm2 {
    pub cell: Cell,
    dir: Dir,
}

/// What an app wrote down of itself.
#[derive(Debug, Deserialize)]
pub struct Fact {
    pub what: String,
    pub at: u64,
    pub worker: PmId,
    pub port: Option<String>,
    pub instance: Option<String>,
    pub v: Option<String>,
    pub home: Option<String>,
}

// === impl Cell ===

impl Cell {
    pub fn node(self) -> PathBuf {
        let arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "x64" };
        installed(&format!("node/node_modules/node-{}-{arch}/bin/node", self.node))
    }

    pub fn pm2(self) -> PathBuf {
        installed(&format!("pm2/node_modules/{}", self.package))
    }

    /// PM2's command line with our own environment, as an operator types it.
    pub fn command(self, home: &Path, arguments: &[&str]) -> Command {
        let node = self.node();
        // Some PM2 start their daemon on the `node` of the PATH.
        let mut path = vec![node.parent().unwrap().to_path_buf()];
        path.extend(env::split_paths(&env::var_os("PATH").unwrap()));
        let mut command = Command::new(node);
        command.arg(self.pm2().join("bin/pm2")).args(arguments);
        command.env("PATH", env::join_paths(path).unwrap()).env("PM2_HOME", home);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }
}

fn installed(path: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests").join(path);
    path.canonicalize().unwrap_or_else(|_| panic!("{} is missing: run `make setup`", path.display()))
}

// === impl Pm2 ===

impl Pm2 {
    pub fn start(cell: Cell) -> Self {
        let pm2 = Self { cell, dir: Dir::new() };
        fs::create_dir(pm2.path("pm2")).unwrap();
        assert!(cell.command(&pm2.path("pm2"), &["ping"]).status().unwrap().success());
        pm2
    }

    pub fn is_7(&self) -> bool {
        self.cell.version.starts_with("7.")
    }

    /// Starts apps, each with what every one of ours needs, and waits until all their workers are ready.
    pub async fn start_apps(&self, apps: Value) {
        let file = self.file("ecosystem.json", &self.ecosystem(apps));
        let mut rpc = self.rpc().await;
        for new in &self.orders(&Request { target: &file, ..Request::default() }).await.unwrap().prepare {
            rpc.prepare(&new.app).await.unwrap();
        }
        let workers = rpc.list().await.unwrap().len();
        until("all workers are ready", || self.facts("ready").len() == workers);
    }

    /// The text of an ecosystem file with these apps.
    pub fn ecosystem(&self, mut apps: Value) -> String {
        for app in apps.as_array_mut().unwrap() {
            app["script"] = json!(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/contract/app.js"));
            app["env"]["FACTS"] = json!(self.path("facts"));
        }
        json!({ "apps": apps }).to_string()
    }

    pub async fn orders(&self, request: &Request<'_>) -> Result<Orders, OrdersError> {
        Orders::ask(&self.home(), &mut self.rpc().await, request).await
    }

    pub async fn rpc(&self) -> Rpc {
        Rpc::connect(&self.home()).await.unwrap()
    }

    /// By number.
    pub async fn list(&self) -> Vec<Listed> {
        let mut list = self.rpc().await.list().await.unwrap();
        list.sort_by_key(|worker| worker.id);
        list
    }

    pub fn home(&self) -> Home {
        Home::new(&self.path("pm2"))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub fn file(&self, name: &str, text: &str) -> String {
        fs::write(self.path(name), text).unwrap();
        self.path(name).display().to_string()
    }

    pub fn facts(&self, what: &str) -> Vec<Fact> {
        let text = fs::read_to_string(self.path("facts")).unwrap_or_default();
        // The last line may be half written.
        let facts = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        facts
            .map(|line| serde_json::from_str::<Fact>(line).unwrap())
            .filter(|fact| fact.what == what)
            .collect()
    }

    /// The last start of a worker.
    pub fn life(&self, worker: PmId) -> Fact {
        self.facts("start").into_iter().rfind(|fact| fact.worker == worker).unwrap()
    }

    /// The daemon and its workers: all that were started with this home.
    fn processes(&self) -> Vec<Pid> {
        let mine = format!("PM2_HOME={}\0", self.path("pm2").display()).into_bytes();
        let is_mine = |environ: &[u8]| environ.windows(mine.len()).any(|bytes| bytes == mine);
        let pids = fs::read_dir("/proc").unwrap().filter_map(|entry| {
            let entry = entry.ok()?;
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let environ = fs::read(entry.path().join("environ")).ok()?;
            is_mine(&environ).then(|| Pid::from_raw(pid)).flatten()
        });
        pids.collect()
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
            left.into_iter().for_each(|pid| _ = kill_process(pid, Signal::KILL));
            thread::sleep(Duration::from_millis(10));
        }
    }
}

pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < Duration::from_secs(20), "waited in vain until {what}");
        thread::sleep(Duration::from_millis(5));
    }
}
