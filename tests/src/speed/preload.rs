//! What the preload costs an app: its requests, and its start.
//!
//! The smallest server there is, so that nothing of the app's own hides what the preload adds, and the smallest of Express, which is
//! the least that an app of today does. For requests each runs three times under a real PM2, beside a real sidecar: without the preload, without it again, and with it. What it takes to start is told
//! without PM2, whose own start-up would hide it.

use super::figures::{Table, median};
use crate::{
    callgrind,
    clock::Moment,
    command,
    place::{self, Place},
    pm2::{NEWEST, Pm2},
    ports, process,
    sidecar::Sidecar,
    site::Site,
    wait,
};
use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http_body_util::Empty;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use serde_json::json;
use std::{
    fmt, fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::TcpStream,
    spawn,
    task::JoinSet,
    time::timeout,
};

#[derive(Clone, Debug)]
pub struct Plan {
    /// Of requests.
    pub rounds: usize,
    pub round: Duration,
    pub starts: usize,
}

pub struct Report(Vec<Row>);

struct Row {
    node: String,
    app: &'static str,
    /// Of each app.
    rounds: [Vec<Round>; 3],
    /// In milliseconds, of each way to start.
    starts: [Vec<f64>; 4],
}

#[derive(Clone, Copy)]
struct Round {
    requests_a_second: f64,
    /// Microseconds of CPU time a request.
    cpu: f64,
}

struct App {
    pid: u32,
    visitors: Vec<SendRequest<Empty<Bytes>>>,
}

const APPS: [(&str, &str); 2] = [
    (
        "`node:http`",
        "
require('node:http').createServer((request, response) => {
  response.statusCode = 204;
  response.end();
}).listen(process.env.PORT, '127.0.0.1', () => require('node:fs').writeSync(1, 'listens\\n'));
",
    ),
    (
        "Express",
        "
const app = require('@express@')();
app.get('/', (request, response) => response.status(204).end());
app.listen(process.env.PORT, '127.0.0.1', () => require('node:fs').writeSync(1, 'listens\\n'));
",
    ),
];
const NAMES: [&str; 3] = ["plain", "again", "preload"];
const CONNECTIONS: usize = 8;
const PATIENCE: Duration = Duration::from_secs(60);

// === impl Plan ===

impl Plan {
    pub async fn play(&self) -> Result<Report> {
        let folder = place::root().join("tests/node/node_modules");
        let mut nodes: Vec<PathBuf> = fs::read_dir(&folder)
            .with_context(|| format!("{}: run `build/setup`", folder.display()))?
            .map(|entry| Ok(entry?.path().join("bin/node")))
            .collect::<Result<_>>()?;
        nodes.retain(|node| node.is_file());
        nodes.sort();
        ensure!(!nodes.is_empty(), "no Node in {}: run `build/setup`", folder.display());
        let mut rows = Vec::new();
        for (app, text) in APPS {
            for node in &nodes {
                rows.push(self.row(node, app, text).await?);
            }
        }
        Ok(Report(rows))
    }

    async fn row(&self, node: &Path, app: &'static str, text: &str) -> Result<Row> {
        let version = command::succeed(command::clean(node).arg("--version")).await?;
        let port = ports::row(NAMES.len().try_into()?)?;
        let addresses: Vec<SocketAddr> = (port..).take(NAMES.len()).map(ports::address).collect();
        let mut site = Site::new("1.22.1").await?;
        let servers: String = addresses.iter().map(|address| format!("server {address}; ")).collect();
        site.write(&format!(
            "upstream app {{ zone app 256k; {servers} handoff; }}\n{}",
            site.api("write=on")
        ))?;
        site.start().await?;
        let place = site.place();
        let (script, door) = (place.file("app.js"), place.file("runtime/preload.sock"));
        fs::write(&script, text.replace("@express@", &place::express()?.display().to_string()))?;
        let listed = |(name, address): (&&str, &SocketAddr)| {
            let args = if *name == "preload" { format!("-r {}", preload().display()) } else { String::new() };
            json!({
                "name": name, "script": script, "exec_mode": "fork", "interpreter": node, "node_args": args,
                "env": { "PORT": address.port(), "HANDOFF_PRELOAD_SOCKET": door },
            })
        };
        let apps: Vec<_> = NAMES.iter().zip(&addresses).map(listed).collect();
        let pm2 = Pm2::start_file(NEWEST, &place.pm2_home(), &json!({ "apps": apps }), &[]).await?;
        let sidecar = Sidecar::start(place, &addresses).await?;
        sidecar.protects("preload", "L2").await?;

        let rounds = self.requests(place, &addresses).await?;
        let starts = self.starts(node, place, &script, &door).await?;
        sidecar.stop()?;
        drop(pm2);
        site.end().await?;
        Ok(Row { node: version.trim().trim_start_matches('v').to_owned(), app, rounds, starts })
    }

    /// Each round visits every app once, each time in another order.
    async fn requests(&self, place: &Place, addresses: &[SocketAddr]) -> Result<[Vec<Round>; 3]> {
        let mut apps = Vec::new();
        for (name, &address) in NAMES.iter().zip(addresses) {
            apps.push(App::of(place, name, address).await?);
        }
        // Until Node has compiled what is asked for most.
        for app in &mut apps {
            app.round(self.round * 2).await?;
        }
        let mut rounds: [Vec<Round>; 3] = Default::default();
        for number in 0..self.rounds {
            let mut order: Vec<_> = apps.iter_mut().zip(&mut rounds).collect();
            order.rotate_left(number % NAMES.len());
            for (app, rounds) in order {
                rounds.push(app.round(self.round).await?);
            }
        }
        Ok(rounds)
    }

    /// Plain, plain again, with the preload and nobody at its socket, with the preload and a sidecar there.
    async fn starts(&self, node: &Path, place: &Place, script: &Path, door: &Path) -> Result<[Vec<f64>; 4]> {
        let nobody = place.file("nobody.sock");
        let ways = [None, None, Some(nobody.as_path()), Some(door)];
        let mut starts: [Vec<f64>; 4] = Default::default();
        for number in 0..self.starts {
            let mut order: Vec<_> = ways.iter().zip(&mut starts).collect();
            order.rotate_left(number % ways.len());
            for (way, starts) in order {
                starts.push(start(node, script, *way).await?.as_secs_f64() * 1e3);
            }
        }
        Ok(starts)
    }
}

fn preload() -> PathBuf {
    place::root().join("sidecar/preload/handoff.cjs")
}

/// From its beginning until it listens.
async fn start(node: &Path, script: &Path, door: Option<&Path>) -> Result<Duration> {
    let mut command = command::clean(node);
    if let Some(door) = door {
        command.arg("-r").arg(preload());
        command.env("HANDOFF_PRELOAD", "on").env("HANDOFF_PRELOAD_SOCKET", door);
    }
    command.arg(script).env("PORT", "0").stdout(Stdio::piped());
    let began = Moment::now();
    let mut child = command.spawn().context("cannot run node")?;
    let stdout = child.stdout.take().context("no output")?;
    let mut line = String::new();
    timeout(PATIENCE, BufReader::new(stdout).read_line(&mut line))
        .await
        .context("node does not listen")??;
    let took = Moment::now().since(began);
    ensure!(line == "listens\n", "node says {line:?}");
    child.kill().await?;
    Ok(took)
}

// === impl App ===

impl App {
    async fn of(place: &Place, name: &str, address: SocketAddr) -> Result<Self> {
        // Each of them has number 0 of its app.
        let numbers = NAMES.iter().position(|other| other == &name).context("no such app")?;
        let file = place.pm2_home().join(format!("pids/{name}-{numbers}.pid"));
        let pid = fs::read_to_string(&file).with_context(|| file.display().to_string())?.trim().parse()?;
        let mut visitors = Vec::new();
        for _ in 0..CONNECTIONS {
            let connect = async || TcpStream::connect(address).await.ok();
            let stream = wait::until("an app to listen", PATIENCE, connect).await?;
            let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
            spawn(connection);
            visitors.push(sender);
        }
        Ok(Self { pid, visitors })
    }

    async fn round(&mut self, time: Duration) -> Result<Round> {
        let (began, before) = (Instant::now(), process::cpu(self.pid)?);
        let mut visiting = JoinSet::new();
        for mut visitor in self.visitors.drain(..) {
            visiting.spawn(async move {
                let mut visits = 0_u32;
                while began.elapsed() < time {
                    callgrind::ask(&mut visitor, "/").await?;
                    visits += 1;
                }
                anyhow::Ok((visitor, visits))
            });
        }
        let mut all = 0;
        while let Some(done) = visiting.join_next().await {
            let (visitor, visits) = done??;
            self.visitors.push(visitor);
            all += visits;
        }
        let requests = f64::from(all);
        Ok(Round {
            requests_a_second: requests / began.elapsed().as_secs_f64(),
            cpu: (process::cpu(self.pid)? - before) / 1e3 / requests,
        })
    }
}

// === impl Row ===

impl Row {
    /// The median of the ratios to the first, in each round.
    fn ratio(&self, app: usize, of: fn(&Round) -> f64) -> f64 {
        let [plain, ..] = &self.rounds;
        let others = self.rounds.get(app).map(Vec::as_slice).unwrap_or_default();
        median(&plain.iter().zip(others).map(|(plain, other)| of(other) / of(plain)).collect::<Vec<_>>())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new(&[
            "app",
            "Node",
            "requests/s",
            "again",
            "with the preload",
            "CPU a request, µs",
            "again",
            "with the preload",
            "start, ms",
            "again",
            "with the preload, no sidecar",
            "with a sidecar",
        ]);
        for row in &self.0 {
            let [plain, ..] = &row.rounds;
            let rate: fn(&Round) -> f64 = |round| round.requests_a_second;
            let cpu: fn(&Round) -> f64 = |round| round.cpu;
            let mid = |of: fn(&Round) -> f64| median(&plain.iter().map(of).collect::<Vec<_>>());
            let starts = row.starts.each_ref().map(|starts| median(starts));
            let [start, more @ ..] = starts;
            let mut cells = vec![row.app.to_owned(), row.node.clone(), format!("{:.0}", mid(rate))];
            cells.extend([1, 2].map(|app| format!("{:.3} ×", row.ratio(app, rate))));
            cells.push(format!("{:.1}", mid(cpu)));
            cells.extend([1, 2].map(|app| format!("{:.3} ×", row.ratio(app, cpu))));
            cells.push(format!("{start:.1}"));
            cells.extend(more.map(|other| format!("{:+.1}", other - start)));
            table.row(cells);
        }
        table.fmt(f)
    }
}
