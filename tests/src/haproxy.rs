//! HAProxy in the place of nginx, as a careful team would have it, and its runtime API.

use crate::{command, http, ports, process, wait};
use anyhow::{Context, Result, bail, ensure};
use std::{
    env, fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    time::timeout,
};

const TEMPLATE: &str = include_str!("haproxy.cfg");
const BACKEND: &str = "myapp";
const PATIENCE: Duration = Duration::from_secs(10);

/// Ends when it is dropped.
#[derive(Debug)]
pub struct Haproxy {
    child: Child,
    prefix: PathBuf,
    port: u16,
}

/// What an operator can set a server to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Ready,
    Drain,
}

/// One line of `show stat`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    pub name: String,
    pub sessions: u32,
    /// `UP`, `DOWN`, `DRAIN` or on the way between.
    pub status: String,
}

pub fn binary() -> Result<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain(["/usr/sbin".into()]);
    let mut found = folders.map(|folder| folder.join("haproxy")).filter(|path| path.is_file());
    found.next().context("haproxy is missing: run `build/setup haproxy`")
}

pub async fn version() -> Result<String> {
    let text = command::succeed(command::clean(binary()?).arg("-v")).await?;
    let version = text.split_whitespace().nth(2).with_context(|| format!("haproxy -v says: {text}"))?;
    Ok(version.to_owned())
}

/// What HAProxy calls the server of the worker with this number.
pub fn server(number: usize) -> String {
    format!("s{number}")
}

// === impl Haproxy ===

impl Haproxy {
    /// Starts, and comes back when it takes every server for up.
    pub async fn start(prefix: &Path, port: u16, servers: &[SocketAddr]) -> Result<Self> {
        fs::create_dir_all(prefix)?;
        let file = prefix.join("haproxy.cfg");
        fs::write(&file, conf(&prefix.display().to_string(), port, servers))?;
        let child = Command::new(binary()?)
            .arg("-db")
            .arg("-f")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(prefix.join("stderr"))?)
            .spawn()
            .context("cannot run haproxy")?;
        let mut haproxy = Self { child, prefix: prefix.to_path_buf(), port };
        haproxy.serves().await.with_context(|| haproxy.complaint())?;
        Ok(haproxy)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub async fn set(&self, server: &str, state: State) -> Result<()> {
        let state = match state {
            State::Ready => "ready",
            State::Drain => "drain",
        };
        let answer = self.ask(&format!("set server {BACKEND}/{server} state {state}")).await?;
        ensure!(answer.trim().is_empty(), "HAProxy refuses {state} of {server}: {answer}");
        Ok(())
    }

    pub async fn servers(&self) -> Result<Vec<Server>> {
        const SERVERS: u8 = 4;
        parse(&self.ask(&format!("show stat {BACKEND} {SERVERS} -1")).await?)
    }

    pub async fn shows(&self, server: &str) -> Result<Server> {
        let servers = self.servers().await?;
        servers.into_iter().find(|shown| shown.name == server).with_context(|| format!("no server {server}"))
    }

    pub fn stop(mut self) -> Result<()> {
        process::end(&mut self.child, PATIENCE).context("haproxy cannot be waited for")?;
        Ok(())
    }

    async fn ask(&self, question: &str) -> Result<String> {
        let mut socket = UnixStream::connect(self.prefix.join("admin.sock")).await?;
        socket.write_all(format!("{question}\n").as_bytes()).await?;
        let mut answer = String::new();
        let read = timeout(PATIENCE, socket.read_to_string(&mut answer)).await;
        read.with_context(|| format!("HAProxy does not answer {question}"))??;
        Ok(answer)
    }

    async fn serves(&mut self) -> Result<()> {
        wait::until("haproxy to serve", PATIENCE, async || {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Some(Err(anyhow::anyhow!("haproxy ended with {status}")));
            }
            let servers = self.servers().await.ok()?;
            let up = !servers.is_empty() && servers.iter().all(|server| server.status == "UP");
            (up && http::status(ports::address(self.port), "/health").await?.is_success()).then_some(Ok(()))
        })
        .await?
    }

    fn complaint(&self) -> String {
        fs::read_to_string(self.prefix.join("stderr")).unwrap_or_default()
    }
}

impl Drop for Haproxy {
    fn drop(&mut self) {
        process::end(&mut self.child, PATIENCE);
    }
}

fn conf(prefix: &str, port: u16, servers: &[SocketAddr]) -> String {
    let line = |(number, address)| format!("    server {} {address}", server(number));
    let servers: Vec<String> = servers.iter().enumerate().map(line).collect();
    TEMPLATE
        .replace("@prefix@", prefix)
        .replace("@port@", &port.to_string())
        .replace("@servers@", &servers.join("\n"))
}

/// Comma-separated values, with their names in the first line.
fn parse(text: &str) -> Result<Vec<Server>> {
    let mut lines = text.lines().filter(|line| !line.is_empty());
    let Some(head) = lines.next().and_then(|head| head.strip_prefix("# ")) else {
        bail!("no head in what HAProxy shows: {text}");
    };
    let column = |name: &str| {
        let place = head.split(',').position(|column| column == name);
        place.with_context(|| format!("HAProxy shows no {name}"))
    };
    let (name, sessions, status) = (column("svname")?, column("scur")?, column("status")?);
    lines
        .map(|line| {
            let field = |place: usize| line.split(',').nth(place).context("a line is cut short");
            Ok(Server {
                name: field(name)?.to_owned(),
                sessions: field(sessions)?.parse()?,
                status: field(status)?.to_owned(),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_worker_is_a_server_and_nothing_in_the_template_is_left_open() {
        let text = conf("/p", 80, &[ports::address(3000), ports::address(3001)]);
        assert!(text.ends_with("    server s0 127.0.0.1:3000\n    server s1 127.0.0.1:3001\n"), "{text}");
        assert!(!text.contains('@'), "{text}");
    }

    #[test]
    fn what_it_shows_is_found_by_the_names_of_its_columns() {
        let servers = parse("# pxname,svname,qcur,scur,status,\nmyapp,s0,0,3,DRAIN,\n\n").unwrap();
        let s0 = Server { name: "s0".to_owned(), sessions: 3, status: "DRAIN".to_owned() };
        assert_eq!(servers, [s0]);
        assert!(parse("Permission denied\n").is_err());
    }
}
