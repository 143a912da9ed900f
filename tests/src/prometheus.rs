//! A real Prometheus, Debian's: it scrapes one place each second, and answers queries.

use crate::{command, door::Door, place::Place, ports, process, wait};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::{
    fs,
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

const PATIENCE: Duration = Duration::from_secs(20);

/// Ends when it is dropped.
#[derive(Debug)]
pub struct Prometheus {
    child: Child,
    port: u16,
}

// === impl Prometheus ===

impl Prometheus {
    pub async fn start(place: &Place, target: SocketAddr, path: &str) -> Result<Self> {
        let port = ports::row(1)?;
        let conf = place.file("prometheus.yml");
        fs::write(
            &conf,
            format!(
                "global: {{ scrape_interval: 1s }}\nscrape_configs:\n  - job_name: handoff\n    metrics_path: {path}\n    \
                 static_configs: [{{ targets: [\"{target}\"] }}]\n"
            ),
        )?;
        let mut command = Command::new("/usr/bin/prometheus");
        command.arg(format!("--config.file={}", conf.display()));
        command.arg(format!("--storage.tsdb.path={}", place.file("prometheus").display()));
        command.arg(format!("--web.listen-address=127.0.0.1:{port}"));
        let log = fs::File::create(place.file("prometheus.log"))?;
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn();
        let prometheus = Self { child: child.context("cannot run prometheus: run `build/setup`")?, port };
        wait::until("Prometheus to be ready", PATIENCE, async || {
            let ready = prometheus.door().get("/-/ready").await.ok()?;
            (ready.status == 200).then_some(())
        })
        .await?;
        Ok(prometheus)
    }

    /// What a query comes to now: the series, and their values.
    pub async fn query(&self, query: &str) -> Result<Vec<Value>> {
        let reply = self.door().get(&format!("/api/v1/query?query={}", encoded(query))).await?;
        let answer: Value = serde_json::from_slice(&reply.body).with_context(|| reply.text())?;
        let result = answer.pointer("/data/result").and_then(Value::as_array);
        Ok(result.with_context(|| format!("{query}: {answer}"))?.clone())
    }

    fn door(&self) -> Door {
        Door::Tcp(ports::address(self.port))
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        process::end(&mut self.child, PATIENCE);
    }
}

fn encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

/// `promtool check metrics`: what it has against them.
pub async fn check_metrics(text: &Path) -> Result<()> {
    let mut promtool = command::clean("promtool");
    promtool.args(["check", "metrics"]).stdin(fs::File::open(text)?);
    let said = command::succeed(&mut promtool).await?;
    ensure!(said.trim().is_empty(), "{said}");
    Ok(())
}

pub async fn check_rules(rules: &Path) -> Result<String> {
    command::succeed(command::clean("promtool").args(["check", "rules"]).arg(rules)).await
}

/// `promtool test rules`
pub async fn test_rules(tests: &Path) -> Result<String> {
    command::succeed(command::clean("promtool").args(["test", "rules"]).arg(tests)).await
}
