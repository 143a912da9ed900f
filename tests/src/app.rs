//! The sample application, as an ecosystem file describes it to PM2.

use crate::{http, orders, place, ports};
use anyhow::Result;
use serde_json::{Value, json};
use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

pub const NAME: &str = "myapp";
const LISTEN_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behaviour {
    /// Says when it is ready, and closes its server before it exits.
    Graceful,
    /// Says nothing and handles no signal.
    Naive,
    /// Graceful, but worker 0 throws 200 ms after it listens, as long as the crash file exists.
    Throws,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Each worker has a port of its own.
    Fork,
    /// All share one port, on which PM2's daemon listens for them.
    Cluster,
}

#[derive(Clone, Debug)]
pub struct App {
    pub behaviour: Behaviour,
    pub mode: Mode,
    pub workers: u16,
    /// Where they listen.
    pub host: Ipv4Addr,
    pub first_port: u16,
    /// How long PM2 waits for `ready`, if it does.
    pub wait_ready: Option<Duration>,
    /// The workers load our preload, which calls here.
    pub preload: Option<PathBuf>,
    folder: PathBuf,
    script: PathBuf,
}

impl App {
    /// An app on free ports, whose files are in `folder`.
    pub fn new(behaviour: Behaviour, mode: Mode, workers: u16, folder: &Path) -> Result<Self> {
        Ok(Self {
            behaviour,
            mode,
            workers,
            host: Ipv4Addr::LOCALHOST,
            first_port: ports::row(workers)?,
            wait_ready: (behaviour != Behaviour::Naive).then_some(LISTEN_TIMEOUT),
            preload: None,
            folder: folder.to_path_buf(),
            script: place::server_js()?,
        })
    }

    pub fn addresses(&self) -> Vec<SocketAddr> {
        let ports = match self.mode {
            Mode::Fork => self.workers,
            Mode::Cluster => 1,
        };
        (self.first_port..).take(ports.into()).map(|port| (self.host, port).into()).collect()
    }

    /// Waits until something answers at each of them.
    pub async fn answers(&self) -> Result<()> {
        for address in self.addresses() {
            http::answers(address).await?;
        }
        Ok(())
    }

    pub fn script(&self) -> &Path {
        &self.script
    }

    pub fn orders(&self) -> PathBuf {
        self.folder.join(orders::FILE)
    }

    pub fn lives(&self) -> PathBuf {
        self.folder.join("lives")
    }

    pub fn crash_file(&self) -> PathBuf {
        self.folder.join("crash")
    }

    /// What every worker finds in its environment, but for its own port.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        let behaviour = match self.behaviour {
            Behaviour::Graceful => "graceful",
            Behaviour::Naive => "naive",
            Behaviour::Throws => "throws",
        };
        let path = |path: PathBuf| path.display().to_string();
        vec![
            ("NODE_ENV", "production".to_owned()),
            ("BEHAVIOUR", behaviour.to_owned()),
            ("ORDERS", path(self.orders())),
            ("LIVES", path(self.lives())),
            ("HOST", self.host.to_string()),
            ("CRASH_FILE", path(self.crash_file())),
        ]
    }

    pub fn ecosystem(&self) -> Value {
        let mut env: serde_json::Map<String, Value> =
            self.environment().into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect();
        env.insert("PORT".to_owned(), self.first_port.into());
        let socket = self.preload.iter().map(|path| path.display().to_string());
        env.extend(socket.map(|path| ("HANDOFF_PRELOAD_SOCKET".to_owned(), path.into())));
        let preload = place::root().join("sidecar/preload/handoff.cjs");
        let node_args = self.preload.iter().map(|_| format!("-r {}", preload.display()));
        let (mode, increment_var) = match self.mode {
            Mode::Fork => ("fork", Some("PORT")),
            Mode::Cluster => ("cluster", None),
        };
        json!({ "apps": [{
            "name": NAME,
            "script": self.script,
            "exec_mode": mode,
            "instances": self.workers,
            "increment_var": increment_var,
            "node_args": node_args.collect::<String>(),
            "wait_ready": self.wait_ready.is_some(),
            "listen_timeout": millis(self.wait_ready.unwrap_or(LISTEN_TIMEOUT)),
            "kill_timeout": 8_000,
            "min_uptime": 3_000,
            "max_restarts": 5,
            "env": env,
        }]})
    }
}

fn millis(long: Duration) -> u64 {
    u64::try_from(long.as_millis()).unwrap_or(u64::MAX)
}
