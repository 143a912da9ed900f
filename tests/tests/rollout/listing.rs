//! What PM2 says of its workers, without starting its command line for each look.

#![allow(unreachable_pub, reason = "a module of a test is nobody else's")]

use anyhow::{Context, Result};
use e2e::{
    command,
    place::{self},
    pm2::NEWEST,
};
use serde::Deserialize;
use std::{collections::BTreeMap, path::Path, process::Stdio, sync::Arc};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout},
    sync::Mutex,
};

#[derive(Clone, Debug)]
pub struct Listing(Arc<Mutex<Asking>>);

#[derive(Debug)]
struct Asking {
    /// Ends with its input.
    _child: Child,
    ask: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Worker {
    pub id: u32,
    pub name: String,
    pub pid: u32,
    pub is_alive: bool,
    pub status: String,
    /// Milliseconds since 1970.
    pub started: u64,
    pub restarts: u32,
    pub instance: Option<u32>,
    pub port: Option<u16>,
}

/// By PM2's numbers.
pub type Workers = BTreeMap<u32, Worker>;

// === impl Listing ===

impl Listing {
    pub fn new(home: &Path) -> Result<Self> {
        let mut node = command::clean("node");
        let package = place::pm2_cli(NEWEST)?.with_file_name("..");
        node.arg(place::root().join("tests/tests/rollout/list.cjs")).arg(package).env("PM2_HOME", home);
        let mut child = node.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let ask = child.stdin.take().context("no input")?;
        let answers = BufReader::new(child.stdout.take().context("no output")?).lines();
        Ok(Self(Arc::new(Mutex::new(Asking { _child: child, ask, answers }))))
    }

    pub async fn workers(&self) -> Result<Workers> {
        let mut asking = self.0.lock().await;
        asking.ask.write_all(b"\n").await?;
        let line = asking.answers.next_line().await?.context("PM2's list ended")?;
        let workers: Vec<Worker> = serde_json::from_str(&line)?;
        Ok(workers.into_iter().map(|worker| (worker.id, worker)).collect())
    }
}

// === impl Worker ===

impl Worker {
    /// One process and no other.
    pub fn process(&self) -> (u32, u64) {
        (self.pid, self.started)
    }

    /// What no deploy may change.
    pub fn identity(&self) -> (u32, &str, Option<u32>, Option<u16>) {
        (self.id, &self.name, self.instance, self.port)
    }

    pub fn is_online(&self) -> bool {
        self.status == "online" && self.is_alive
    }
}
