//! Caddy in the place of nginx, as whoever wants requests to wait for a worker has it: it tries again until one listens.

use crate::{command, http, place, ports, process, wait};
use anyhow::{Context, Result, anyhow, bail};
use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

const TEMPLATE: &str = include_str!("Caddyfile");
const PATIENCE: Duration = Duration::from_secs(10);

/// Ends when it is dropped.
#[derive(Debug)]
pub struct Caddy {
    child: Child,
    port: u16,
}

pub fn binary() -> Result<PathBuf> {
    let path = place::target("caddy/bin/caddy");
    if !path.is_file() {
        bail!("{} is missing: run `build/caddy`", path.display());
    }
    Ok(path)
}

pub async fn version() -> Result<String> {
    let text = command::succeed(command::clean(binary()?).arg("version")).await?;
    let version = text.split_whitespace().next().with_context(|| format!("caddy version says: {text}"))?;
    Ok(version.trim_start_matches('v').to_owned())
}

// === impl Caddy ===

impl Caddy {
    /// Starts, and comes back when it serves.
    pub async fn start(prefix: &Path, port: u16, servers: &[SocketAddr]) -> Result<Self> {
        fs::create_dir_all(prefix)?;
        let (file, stderr) = (prefix.join("Caddyfile"), prefix.join("stderr"));
        fs::write(&file, conf(&prefix.display().to_string(), port, servers))?;
        let child = Command::new(binary()?)
            .args(["run", "--adapter", "caddyfile", "--config"])
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(&stderr)?)
            .spawn()
            .context("cannot run caddy")?;
        let mut caddy = Self { child, port };
        let serves = wait::until("caddy to serve", PATIENCE, async || {
            if let Ok(Some(status)) = caddy.child.try_wait() {
                return Some(Err(anyhow!("caddy ended with {status}")));
            }
            http::status(ports::address(port), "/health").await?.is_success().then_some(Ok(()))
        });
        let served = serves.await.and_then(|served| served);
        served.with_context(|| fs::read_to_string(&stderr).unwrap_or_default())?;
        Ok(caddy)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn stop(mut self) -> Result<()> {
        process::end(&mut self.child, PATIENCE).context("caddy cannot be waited for")?;
        Ok(())
    }
}

impl Drop for Caddy {
    fn drop(&mut self) {
        process::end(&mut self.child, PATIENCE);
    }
}

fn conf(prefix: &str, port: u16, servers: &[SocketAddr]) -> String {
    let servers: Vec<String> = servers.iter().map(SocketAddr::to_string).collect();
    TEMPLATE
        .replace("@prefix@", prefix)
        .replace("@port@", &port.to_string())
        .replace("@servers@", &servers.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_worker_is_a_server_and_nothing_in_the_template_is_left_open() {
        let text = conf("/p", 80, &[ports::address(3000), ports::address(3001)]);
        assert!(text.contains("reverse_proxy 127.0.0.1:3000 127.0.0.1:3001 {"), "{text}");
        assert!(!text.contains('@'), "{text}");
    }
}
