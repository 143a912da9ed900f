//! One upstream `app` whose peers come and go, and visitors who wait for them.

use anyhow::{Result, ensure};
use e2e::{
    door::{Door, Reply},
    farm::Farm,
    ports,
    site::{PATIENCE, Site},
    wait,
};
use handoff_wire::{QueueView, UpstreamView, path};
use hyper::Method;
use serde_json::json;
use tokio::{spawn, task::JoinHandle};

/// The owner of all that is said here.
const OWNER: &str = "pm2:test";

pub(crate) struct Stage {
    pub(crate) site: Site,
    pub(crate) farm: Farm,
}

pub(crate) type Visit = JoinHandle<Result<Reply>>;

/// How many wait now, and what became of those that did: resumed, released, timed out, left, overflowed.
pub(crate) type Counts = (u64, [u64; 5]);

impl Stage {
    /// An upstream with `peers` peers and these lines, and a server with these locations.
    pub(crate) async fn new(version: &str, peers: u16, lines: &str, locations: &str) -> Result<Self> {
        Self::of(Site::new(version).await?, Farm::start(peers).await?, lines, locations).await
    }

    pub(crate) async fn of(site: Site, farm: Farm, lines: &str, locations: &str) -> Result<Self> {
        let servers: String = farm.peers().iter().map(|peer| format!("server {peer}; ")).collect();
        site.write(&format!(
            "proxy_http_version 1.1; proxy_set_header Connection \"\";\n\
             log_format held '$request_uri $status $handoff_held $handoff_tries $upstream_addr $upstream_status';\n\
             upstream app {{ zone app 256k; {servers} {lines} handoff; }}\n\
             server {{ access_log {} held; listen 127.0.0.1:{}; location / {{ proxy_pass http://app; }} {locations} }}\n{}",
            site.file("access.log").display(),
            site.port(),
            site.api("write=on")
        ))?;
        Self::with(site, farm).await
    }

    /// A site that has its configuration.
    pub(crate) async fn with(mut site: Site, farm: Farm) -> Result<Self> {
        site.start().await?;
        let stage = Self { site, farm };
        stage.renews();
        Ok(stage)
    }

    /// One peer and one nginx process, so that there is one line to stand in.
    pub(crate) async fn single(version: &str, lines: &str, locations: &str) -> Result<Self> {
        Self::of(Site::new(version).await?.workers(1), Farm::start(1).await?, lines, locations).await
    }

    pub(crate) fn peer(&self) -> String {
        self.farm.peers().first().copied().unwrap_or_default().to_owned()
    }

    // === what is said of the peers ===

    pub(crate) async fn says_as(&self, owner: &str, state: &str, expect: &str) -> Result<()> {
        let peers = self.farm.peers();
        let marks = peers.iter().map(|peer| json!({ "peer": peer, "state": state, "expect": expect }));
        let set = json!({ "owner": owner, "force": true, "marks": marks.collect::<Vec<_>>() });
        let reply = self.site.put(set).await?;
        ensure!(reply.status == 200, "{}", reply.text());
        Ok(())
    }

    pub(crate) async fn says(&self, state: &str, expect: &str, peers: &[&str]) -> Result<()> {
        let mark = |peer: &&str| match state {
            "up" => json!({ "peer": peer, "state": state }),
            _ => json!({ "peer": peer, "state": state, "expect": expect, "reason": "a test" }),
        };
        let marks: Vec<_> = peers.iter().map(mark).collect();
        let set = json!({ "owner": OWNER, "lease": "600s", "marks": marks });
        let reply = self.site.put(set).await?;
        ensure!(reply.status == 200, "{}", reply.text());
        Ok(())
    }

    /// All peers go, and come back.
    pub(crate) async fn goes(&self) -> Result<()> {
        self.says("draining", "back", &self.farm.peers()).await
    }

    pub(crate) async fn comes_back(&self) -> Result<()> {
        self.says("up", "", &self.farm.peers()).await
    }

    /// Nobody else keeps the owner from falling silent, which after three seconds would end it all.
    fn renews(&self) {
        let control = self.site.control();
        let renew = json!({ "owner": OWNER }).to_string();
        spawn(async move {
            while control.ask(Method::POST, path::RENEW, renew.clone()).await.is_ok() {
                tokio::time::sleep(std::time::Duration::from_millis(500)).await;
            }
        });
    }

    // === who visits ===

    pub(crate) fn visit(&self, method: Method, path: &str, body: impl Into<bytes::Bytes>) -> Visit {
        let (door, path, body) = (self.door(), path.to_owned(), body.into());
        spawn(async move { door.ask(method, &path, body).await })
    }

    pub(crate) fn get(&self, path: &str) -> Visit {
        self.visit(Method::GET, path, "")
    }

    pub(crate) fn door(&self) -> Door {
        Door::Tcp(ports::address(self.site.port()))
    }

    /// Those who wait, one after the other.
    pub(crate) async fn line_up(&self, count: usize) -> Result<Vec<Visit>> {
        let mut visits = Vec::new();
        for number in 0..count {
            visits.push(self.get(&format!("/{number}")));
            self.holds(number as u64 + 1).await?;
        }
        Ok(visits)
    }

    // === what nginx says of them ===

    pub(crate) async fn queue(&self) -> Result<QueueView> {
        let view: UpstreamView = self.site.read(&path::upstream("app")).await?;
        view.queue.ok_or_else(|| anyhow::anyhow!("no queue"))
    }

    pub(crate) async fn counts(&self) -> Result<Counts> {
        let QueueView { held, resumed, released, timed_out, left, overflowed, .. } = self.queue().await?;
        Ok((held, [resumed, released, timed_out, left, overflowed]))
    }

    pub(crate) async fn holds(&self, wanted: u64) -> Result<()> {
        wait::until(&format!("{wanted} requests to wait"), PATIENCE, async || {
            (self.queue().await.ok()?.held == wanted).then_some(())
        })
        .await
    }

    /// The access log, once it has so many lines.
    pub(crate) async fn log(&self, lines: usize) -> Result<Vec<String>> {
        let file = self.site.file("access.log");
        wait::until("the access log", PATIENCE, async || {
            let text = std::fs::read_to_string(&file).ok()?;
            let all: Vec<String> = text.lines().map(str::to_owned).collect();
            (all.len() >= lines).then_some(all)
        })
        .await
    }

    /// Nobody waits, nothing is in flight, and nginx has nothing to complain of.
    pub(crate) async fn end(self) -> Result<()> {
        let queue = self.queue().await?;
        ensure!((queue.held, queue.bytes) == (0, 0), "{queue:?}");
        for peer in self.site.app().await? {
            ensure!(peer.in_flight == 0, "{peer:?}");
        }
        self.site.end().await
    }
}
