//! One `handoff reload`, and what it says while it runs.

#![allow(unreachable_pub, reason = "a module of a test is nobody else's")]

use crate::stage::{PATIENCE, SECRET};
use anyhow::{Context, Result, bail, ensure};
use e2e::process;
use rustix::process::Signal;
use serde_json::Value;
use std::process::Stdio;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    task::JoinHandle,
    time::timeout,
};

#[derive(Debug)]
pub struct Reload {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    seen: Vec<Value>,
    stderr: JoinHandle<String>,
}

/// How it ended.
#[derive(Debug)]
pub struct Ended {
    /// None: it was killed.
    pub code: Option<i32>,
    /// With `--json`, all that it said.
    pub events: Vec<Value>,
    pub stderr: String,
}

// === impl Reload ===

impl Reload {
    /// A command that says `--json`.
    pub fn start(mut command: Command) -> Result<Self> {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let lines = BufReader::new(child.stdout.take().context("no output")?).lines();
        let mut stderr = child.stderr.take().context("no output")?;
        let stderr = tokio::spawn(async move {
            let mut text = String::new();
            _ = stderr.read_to_string(&mut text).await;
            text
        });
        Ok(Self { child, lines, seen: Vec::new(), stderr })
    }

    pub fn signal(&self, signal: Signal) {
        self.child.id().into_iter().for_each(|pid| process::signal(pid, signal));
    }

    /// Reads on until it says that a worker has come so far. `begin` is a step of all of them.
    pub async fn reaches(&mut self, worker: u32, step: &str) -> Result<()> {
        loop {
            let Some(event) = self.next().await? else { bail!("it ended before {step}: {:?}", self.seen) };
            let is_worker = is(&event, "worker", worker) && is(&event, "step", step);
            if is_worker || is(&event, "event", step) {
                return Ok(());
            }
        }
    }

    /// The same of a worker that it did not plan to replace.
    pub async fn reaches_canary(&mut self, step: &str) -> Result<()> {
        let mut planned = Vec::new();
        loop {
            let Some(event) = self.next().await? else { bail!("it ended before {step}: {:?}", self.seen) };
            if let Some(workers) = event.get("workers").and_then(Value::as_array) {
                planned.clone_from(workers);
            }
            let is_other = event.get("worker").is_some_and(|worker| !planned.contains(worker));
            if is_other && is(&event, "step", step) {
                return Ok(());
            }
        }
    }

    pub async fn ended(mut self) -> Result<Ended> {
        while self.next().await?.is_some() {}
        let status = timeout(PATIENCE, self.child.wait()).await.context("it does not end")??;
        let stderr = self.stderr.await?;
        Ended { code: status.code(), events: self.seen, stderr }.without_secrets()
    }

    async fn next(&mut self) -> Result<Option<Value>> {
        let line = timeout(PATIENCE, self.lines.next_line()).await;
        let line = line.with_context(|| format!("it says nothing more after {:?}", self.seen))??;
        let event: Option<Value> = line.map(|line| serde_json::from_str(&line)).transpose()?;
        self.seen.extend(event.clone());
        Ok(event)
    }
}

fn is(event: &Value, name: &str, wanted: impl Into<Value>) -> bool {
    event.get(name) == Some(&wanted.into())
}

// === impl Ended ===

impl Ended {
    /// The steps of one worker, each as often as it was said in a row.
    pub fn steps(&self, worker: u32) -> Vec<&str> {
        let steps = self.events.iter().filter(|event| is(event, "worker", worker));
        let mut steps: Vec<&str> = steps.filter_map(|event| event.get("step")?.as_str()).collect();
        steps.dedup();
        steps
    }

    /// The workers, in the order in which they were to be replaced.
    pub fn planned(&self) -> Vec<u32> {
        self.numbers("begin", "workers")
    }

    pub fn replaced(&self) -> Vec<u32> {
        self.numbers("end", "replaced")
    }

    pub fn cut(&self) -> Option<u64> {
        self.event("end")?.get("cut")?.as_u64()
    }

    /// Its last word.
    pub fn text(&self) -> &str {
        let text = self.event("end").and_then(|end| end.get("text")?.as_str());
        text.unwrap_or(&self.stderr)
    }

    /// What it shows of the log of a worker that failed.
    pub fn log(&self) -> String {
        let failed = self.events.iter().find(|event| is(event, "step", "failed"));
        failed.and_then(|failed| failed.get("log")).map(Value::to_string).unwrap_or_default()
    }

    /// It ended in this way and says all of these words.
    pub fn is(self, code: i32, words: &[&str]) -> Result<Self> {
        ensure!(self.code == Some(code), "exit {:?}, not {code}: {self:#?}", self.code);
        for word in words {
            ensure!(self.text().contains(word), "{word:?} is not said: {:?}", self.text());
        }
        Ok(self)
    }

    fn event(&self, name: &str) -> Option<&Value> {
        self.events.iter().find(|event| is(event, "event", name))
    }

    fn numbers(&self, event: &str, field: &str) -> Vec<u32> {
        let numbers = self.event(event).and_then(|event| event.get(field)?.as_array()).into_iter().flatten();
        numbers.filter_map(|number| u32::try_from(number.as_u64()?).ok()).collect()
    }

    fn without_secrets(self) -> Result<Self> {
        let all = format!("{:?}{}", self.events, self.stderr);
        ensure!(!all.contains(SECRET), "it tells a secret of the app");
        Ok(self)
    }
}
