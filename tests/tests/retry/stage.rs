//! One upstream `app`, and requests that its peers fail.

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use e2e::{
    door::{Door, Reply},
    farm::Farm,
    ports,
    site::{PATIENCE, Site},
    wait,
};
use handoff_wire::{RetryView, UpstreamView, path};
use hyper::{Method, Request, header::HOST};
use serde_json::json;
use std::{cell::Cell, time::Duration};
use tokio::{spawn, task::JoinHandle};

/// The owner of all that is said here.
const OWNER: &str = "pm2:test";

/// As every user of nginx's own example has it.
const USUAL: &str = "proxy_next_upstream error timeout http_502 http_503 http_504 http_429;";

pub(crate) struct Stage {
    pub(crate) site: Site,
    pub(crate) farm: Farm,
    asked: Cell<u32>,
}

/// A request, and where and how its peers fail it.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    method: Method,
    location: &'static str,
    ending: &'static str,
    headers: Vec<(&'static str, &'static str)>,
    body: Bytes,
}

pub(crate) struct Visit {
    path: String,
    reply: JoinHandle<Result<Reply>>,
}

/// What became of it: the status, how often it was passed to a peer, and what was decided last.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) status: u16,
    pub(crate) tries: u32,
    pub(crate) word: String,
    /// The answer is a peer's, and not nginx's.
    pub(crate) is_peers: bool,
    /// How often it arrived at a peer.
    pub(crate) arrived: usize,
}

// === impl Ask ===

impl Ask {
    pub(crate) fn get(location: &'static str) -> Self {
        Self { method: Method::GET, location, ending: "", headers: Vec::new(), body: Bytes::new() }
    }

    pub(crate) fn post(location: &'static str) -> Self {
        Self { method: Method::POST, body: Bytes::from_static(b"an order"), ..Self::get(location) }
    }

    pub(crate) fn held(mut self) -> Self {
        self.ending = "/hold";
        self
    }

    pub(crate) fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    fn with(mut self, name: &'static str, value: &'static str) -> Self {
        self.headers.push((name, value));
        self
    }

    /// Its peers break the connection as soon as it arrives: so many times.
    pub(crate) fn dies(self, times: &'static str) -> Self {
        self.with("x-die", "*").with("x-times", times)
    }

    /// Its peers answer with a status that is no good: so many times.
    pub(crate) fn refused(self, status: &'static str, times: &'static str) -> Self {
        self.with("x-refuse", "*").with("x-status", status).with("x-times", times)
    }

    pub(crate) fn is_order(&self) -> bool {
        self.method == Method::POST
    }

    pub(crate) fn later(self, time: &'static str) -> Self {
        self.with("x-later", time)
    }
}

// === impl Visit ===

impl Visit {
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    pub(crate) async fn reply(self) -> Result<Reply> {
        self.reply.await?
    }
}

// === impl Outcome ===

impl Outcome {
    /// A peer's answer.
    pub(crate) fn answered(status: u16, tries: u32, word: &str) -> Self {
        Self { status, tries, word: word.to_owned(), is_peers: true, arrived: tries as usize }
    }

    /// nginx's own.
    pub(crate) fn failed(status: u16, tries: u32, word: &str) -> Self {
        Self { is_peers: false, ..Self::answered(status, tries, word) }
    }
}

// === impl Stage ===

impl Stage {
    /// An nginx of one process, an upstream with `peers` peers and these lines, and a server with these locations beside `/`.
    pub(crate) async fn new(version: &str, peers: u16, lines: &str, locations: &str) -> Result<Self> {
        Self::of(Site::new(version).await?.workers(1), Farm::start(peers).await?, lines, locations).await
    }

    pub(crate) async fn of(mut site: Site, farm: Farm, lines: &str, locations: &str) -> Result<Self> {
        let servers: String =
            farm.peers().iter().map(|peer| format!("server {peer} max_fails=0; ")).collect();
        site.write(&format!(
            "proxy_http_version 1.1; proxy_set_header Connection \"\"; {USUAL}\n\
             log_format retry '$request_uri $handoff_tries $handoff_retry';\n\
             upstream app {{ zone app 256k; {servers} {lines} handoff; }}\n\
             server {{ access_log {} retry; listen 127.0.0.1:{}; location / {{ proxy_pass http://app; }} {locations} }}\n{}",
            site.file("access.log").display(),
            site.port(),
            site.api("write=on")
        ))?;
        site.start().await?;
        Ok(Self { site, farm, asked: Cell::new(0) })
    }

    pub(crate) fn peer(&self) -> String {
        self.farm.peers().first().copied().unwrap_or_default().to_owned()
    }

    // === what is said of the peers ===

    pub(crate) async fn says(&self, state: &str, peers: &[&str]) -> Result<()> {
        let mark = |peer: &&str| match state {
            "up" => json!({ "peer": peer, "state": state }),
            _ => json!({ "peer": peer, "state": state, "expect": "back" }),
        };
        let marks: Vec<_> = peers.iter().map(mark).collect();
        let reply = self.site.put(json!({ "owner": OWNER, "lease": "600s", "marks": marks })).await?;
        ensure!(reply.status == 200, "{}", reply.text());
        Ok(())
    }

    /// Several workers are behind each address.
    pub(crate) async fn are_shared(&self) -> Result<()> {
        self.says("changing", &self.farm.peers()).await
    }

    // === who asks ===

    pub(crate) fn begin(&self, ask: Ask) -> Result<Visit> {
        let number = self.asked.replace(self.asked.get() + 1);
        let path = format!("{}/{number}{}", ask.location, ask.ending);
        let mut request = Request::builder().method(ask.method).uri(&path).header(HOST, "localhost");
        for (name, value) in ask.headers {
            request = request.header(name, value);
        }
        let (request, door) = (request.body(ask.body)?, self.door());
        Ok(Visit { path, reply: spawn(async move { door.send(request).await }) })
    }

    pub(crate) async fn end_of(&self, visit: Visit) -> Result<Outcome> {
        let Visit { path, reply } = visit;
        let reply = reply.await??;
        let line = self.logged(&path).await?;
        let [tries, word] = line.split(' ').collect::<Vec<_>>()[..] else { anyhow::bail!("{line}") };
        Ok(Outcome {
            status: reply.status,
            tries: tries.parse()?,
            word: word.to_owned(),
            is_peers: reply.header("x-peer").is_some(),
            arrived: self.arrived(&path).await?,
        })
    }

    pub(crate) async fn meets(&self, what: &str, ask: Ask, outcome: Outcome) -> Result<()> {
        let met = self.end_of(self.begin(ask)?).await?;
        ensure!(met == outcome, "{what}: {met:?}, not {outcome:?}");
        Ok(())
    }

    pub(crate) fn door(&self) -> Door {
        Door::Tcp(ports::address(self.site.port()))
    }

    /// How often a path arrived at a peer.
    pub(crate) async fn arrived(&self, path: &str) -> Result<usize> {
        Ok(self.farm.all_arrivals().await?.iter().filter(|arrival| arrival.path == path).count())
    }

    // === what nginx says ===

    pub(crate) async fn logged(&self, path: &str) -> Result<String> {
        let file = self.site.file("access.log");
        let begin = format!("{path} ");
        wait::until("a line in the access log", PATIENCE, async || {
            let text = std::fs::read_to_string(&file).ok()?;
            text.lines().find_map(|line| Some(line.strip_prefix(&begin)?.to_owned()))
        })
        .await
    }

    pub(crate) async fn view(&self) -> Result<UpstreamView> {
        self.site.read(&path::upstream("app")).await
    }

    pub(crate) async fn retry(&self) -> Result<RetryView> {
        self.view().await?.retry.context("nobody counts")
    }

    pub(crate) async fn rest(&self, wanted: u64) -> Result<()> {
        self.rest_within(wanted, PATIENCE).await
    }

    pub(crate) async fn rest_within(&self, wanted: u64, limit: Duration) -> Result<()> {
        wait::until(&format!("{wanted} requests to wait"), limit, async || {
            (self.view().await.ok()?.queue?.held == wanted).then_some(())
        })
        .await
    }

    /// Nothing is left of anything, and nginx has nothing to complain of.
    pub(crate) async fn end(self) -> Result<()> {
        let view = self.view().await?;
        let held = view.queue.map_or(0, |queue| queue.held + queue.bytes);
        let active = view.retry.context("nobody counts")?.active;
        ensure!((held, active) == (0, 0), "{held} held, {active} active");
        ensure!(view.peers.iter().all(|peer| peer.in_flight == 0), "{:?}", view.peers);
        self.site.end().await
    }
}
