//! What a user may wait for: from a worker's death until nginx has it marked, from its `ready` to the first request, from `up`
//! to each of those who waited; and, to compare, how long a visit needs that waits for nothing.
//!
//! Deaths and `ready` are those of a real worker under PM2, the only one, under a constant load: so that somebody always waits.

use super::figures::{Sample, Table};
use crate::{
    clock::Moment,
    crowd::{self, Ask},
    farm::Farm,
    load::Load,
    pm2::{NEWEST, Pm2},
    ports, process,
    sidecar::Sidecar,
    site::Site,
    wait,
};
use anyhow::{Context, Result, ensure};
use handoff_wire::{Expect, MarkRequest, MarkSet, Owner, PeerState, State, UpstreamView, path};
use rustix::process::Signal;
use serde_json::json;
use std::{fmt, fs, path::Path, time::Duration};
use tokio::{
    spawn,
    time::{sleep, timeout},
};

#[derive(Clone, Debug)]
pub struct Plan {
    pub nginx: String,
    pub deaths: usize,
    /// How often ten visits wait.
    pub waits: usize,
    /// Visits a second while workers die.
    pub rate: u32,
}

/// Of each moment two series by turns: the second is the same again.
#[derive(Debug, Default)]
pub struct Report {
    pub marked: [Sample; 2],
    pub first_request: [Sample; 2],
    pub sent_on: [Sample; 2],
    pub unheld: [Sample; 2],
}

/// When the worker began to listen, and when the first visit was there, in a file that all lives share.
const APP: &str = "
const fs = require('node:fs');
const file = process.env.MOMENTS;
const tell = (what) => fs.appendFileSync(file, `${what} ${process.pid} ${process.hrtime.bigint()}\\n`);
let first = true;
const serve = (request, response) => {
  if (first) tell('first');
  first = false;
  response.end('ok');
};
require('node:http').createServer(serve).listen(process.env.PORT, '127.0.0.1', () => {
  tell('ready');
  process.send('ready');
});
";
const AT_ONCE: usize = 10;
const PATIENCE: Duration = Duration::from_secs(30);
/// Of a worker, before it is killed.
const LIFE: Duration = Duration::from_millis(600);

/// A line of the file.
struct Line {
    is_first: bool,
    worker: u32,
    at: Moment,
}

// === impl Plan ===

impl Plan {
    pub async fn play(&self) -> Result<Report> {
        let mut report = Report::default();
        self.die(&mut report).await?;
        self.wait(&mut report).await?;
        Ok(report)
    }

    async fn die(&self, report: &mut Report) -> Result<()> {
        let mut site = Site::new(&self.nginx).await?;
        let port = ports::row(1)?;
        site.write(&format!(
            "upstream app {{ zone app 256k; server {}; keepalive 32; handoff; }}\n{}\n{}",
            ports::address(port),
            site.front("proxy_pass http://app;"),
            site.api("write=on")
        ))?;
        site.start().await?;
        let (script, moments) = (site.file("app.js"), site.file("moments"));
        fs::write(&script, APP)?;
        fs::write(&moments, "")?;
        let app = json!({ "apps": [{
            "name": "app", "script": script, "exec_mode": "fork", "wait_ready": true, "min_uptime": 100,
            "max_restarts": 100_000, "env": { "PORT": port, "MOMENTS": moments },
        }]});
        let pm2 = Pm2::start_file(NEWEST, &site.place().pm2_home(), &app, &[]).await?;
        let sidecar = Sidecar::start(site.place(), &[ports::address(port)]).await?;
        let load = Load::start(ports::address(site.port()), self.rate);
        let peer = ports::address(port).to_string();
        for number in 0..self.deaths {
            let victim = serving(&moments).await?;
            sleep(LIFE).await;
            let death = spawn(process::death(victim));
            process::signal(victim, Signal::KILL);
            let marked =
                timeout(PATIENCE, not_up(&site, &peer)).await.context("a death is never marked")??;
            series(&mut report.marked, number).push(marked.since(death.await??));
        }
        serving(&moments).await?;
        load.stop().await;
        let lines = read(&moments)?;
        let readies = lines.iter().filter(|line| !line.is_first).skip(1);
        for (number, ready) in readies.enumerate() {
            let mut firsts = lines.iter().filter(|line| line.is_first && line.worker == ready.worker);
            let first = firsts.next().context("a worker that nobody visited")?;
            series(&mut report.first_request, number).push(first.at.since(ready.at));
        }
        sidecar.stop()?;
        drop(pm2);
        site.end().await
    }

    async fn wait(&self, report: &mut Report) -> Result<()> {
        let farm = Farm::start(1).await?;
        let [peer] = farm.peers()[..] else { anyhow::bail!("one peer") };
        let mut site = Site::new(&self.nginx).await?;
        site.write(&format!(
            "upstream app {{ zone app 256k; server {peer} max_fails=0; keepalive 32; handoff; }}\n{}\n{}",
            site.front("proxy_pass http://app;"),
            site.api("write=on")
        ))?;
        site.start().await?;
        for number in 0..self.waits {
            says(&site, peer, State::Draining).await?;
            let visits = spawn(crowd::ask(ports::address(site.port()), (0..AT_ONCE).map(|_| Ask::get("/"))));
            wait::until("all of them to wait", PATIENCE, async || {
                let view: UpstreamView = site.read(&path::upstream("app")).await.ok()?;
                (view.queue?.held == AT_ONCE as u64).then_some(())
            })
            .await?;
            farm.arrivals().await?;
            let up = Moment::now();
            says(&site, peer, State::Up).await?;
            let answers = visits.await??;
            ensure!(answers.iter().all(|answer| answer.status == 200), "{answers:?}");
            let arrivals = farm.arrivals().await?;
            series(&mut report.sent_on, number).extend(arrivals.iter().map(|arrival| arrival.at.since(up)));

            let sent = Moment::now();
            let visits = (0..AT_ONCE).map(|_| Ask::get("/"));
            crowd::ask(ports::address(site.port()), visits).await?;
            let arrivals = farm.arrivals().await?;
            series(&mut report.unheld, number).extend(arrivals.iter().map(|arrival| arrival.at.since(sent)));
        }
        site.end().await
    }
}

/// A person says so. Whom they drain they expect back.
pub fn mark(upstream: &str, peer: &str, state: State) -> MarkRequest {
    MarkRequest {
        upstream: Some(upstream.to_owned()),
        peer: peer.to_owned(),
        state,
        expect: if state == State::Up { Expect::Gone } else { Expect::Back },
        reason: String::new(),
        all: false,
    }
}

pub fn set(marks: Vec<MarkRequest>) -> MarkSet {
    MarkSet { owner: Owner::operator(), lease: None, force: true, marks }
}

/// Of the only peer of the upstream `app`.
pub async fn says(site: &Site, peer: &str, state: State) -> Result<()> {
    let reply = site.put(serde_json::to_value(set(vec![mark("app", peer, state)]))?).await?;
    ensure!(reply.status == 200, "{}", reply.text());
    Ok(())
}

/// Asks again and again, so that no more time is missed than a call takes.
async fn not_up(site: &Site, peer: &str) -> Result<Moment> {
    while site.peer(peer).await?.state == PeerState::Up {}
    Ok(Moment::now())
}

fn series(of: &mut [Sample; 2], number: usize) -> &mut Sample {
    let [first, again] = of;
    if number.is_multiple_of(2) { first } else { again }
}

/// The worker that was there last, once it was visited.
async fn serving(moments: &Path) -> Result<u32> {
    wait::until("a worker to serve", PATIENCE, async || {
        let last = read(moments).ok()?.pop()?;
        (last.is_first && process::is_alive(last.worker)).then_some(last.worker)
    })
    .await
}

fn read(moments: &Path) -> Result<Vec<Line>> {
    let line = |line: &str| {
        let mut words = line.split(' ');
        let is_first = words.next()? == "first";
        let worker = words.next()?.parse().ok()?;
        Some(Line { is_first, worker, at: Moment::from_nanos(words.next()?.parse().ok()?) })
    };
    let text = fs::read_to_string(moments)?;
    text.lines().map(|text| line(text).with_context(|| text.to_owned())).collect()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new(&["ms: p50 / p99 / longest", "", "again", "of"]);
        let rows = [
            ("death of a worker → nginx has it marked", &self.marked),
            ("its `ready` → the first request is there", &self.first_request),
            ("the call `up` → each of ten who wait is at the peer", &self.sent_on),
            ("a visit that waits for nothing → at the peer, ten at once", &self.unheld),
        ];
        for (name, [first, again]) in rows {
            let of = format!("{} + {}", first.len(), again.len());
            table.row([name.to_owned(), first.to_string(), again.to_string(), of]);
        }
        table.fmt(f)
    }
}
