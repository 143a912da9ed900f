//! A connection that leads to nobody: what waits on it is tried again at once, as if it had not been sent.
//!
//! The backends here have read what they are said not to have: that they see it twice is how a test knows.

use anyhow::{Context, Result, ensure};
use e2e::{
    blocks::{self, Block, servers},
    door::Reply,
    farm::{Arrival, Farm},
    site::{PATIENCE, Site, VERSIONS},
    wait,
};
use handoff_wire::path;
use hyper::Method;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

struct Stage {
    site: Site,
    farm: Farm,
}

/// A request that the backend has and does not answer.
struct Held {
    answer: JoinHandle<Result<Reply>>,
    port: u16,
}

impl Stage {
    async fn set(version: &str) -> Result<Self> {
        let farm = Farm::start(1).await?;
        let block =
            |name: &str| Block::new(name, format!("{} keepalive 8; handoff;", servers(farm.peers(), "")));
        let all = [
            block("app"),
            block("off").passed_with("proxy_next_upstream off;"),
            block("unbuffered").passed_with("proxy_request_buffering off;"),
        ];
        Ok(Self { site: blocks::site(version, &all).await?, farm })
    }

    fn peer(&self) -> Result<&str> {
        self.farm.peers().first().copied().context("a peer")
    }

    async fn hold(&self, method: Method, block: &str) -> Result<Held> {
        let (door, path) = (self.site.visitors(), format!("/{block}/hold"));
        let answer = tokio::spawn(async move { door.ask(method, &path, "an order".to_owned()).await });
        let arrival = wait::until("the request to arrive", PATIENCE, async || self.arrived().await.ok()?);
        let port = arrival.await?.port.context("a port")?;
        Ok(Held { answer, port })
    }

    /// The next request that reached the backend.
    async fn arrived(&self) -> Result<Option<Arrival>> {
        let mut arrivals = self.farm.arrivals().await?;
        ensure!(arrivals.len() < 2, "more than one at once: {arrivals:?}");
        Ok(arrivals.pop())
    }

    async fn tell(&self, connections: Value) -> Result<Reply> {
        let body = json!({ "owner": "pm2:test", "connections": connections });
        self.site.ask(Method::POST, path::ORPHANS, body.to_string()).await
    }

    /// Whoever reports an orphan does so until it is gone.
    async fn tell_of(&self, port: u16) -> Result<()> {
        let reply = self.tell(json!([{ "peer": self.peer()?, "port": port }])).await?;
        ensure!(reply.status == 200, "{reply:?}");
        Ok(())
    }

    async fn is_sent_again(&self, method: Method) -> Result<()> {
        let held = self.hold(method.clone(), "app").await?;
        let again = wait::until("the request to arrive again", PATIENCE, async || {
            self.tell_of(held.port).await.ok()?;
            self.arrived().await.ok()?
        });
        ensure!(again.await?.port != Some(held.port), "over the same connection");
        self.farm.release().await?;
        let reply = held.answer.await??;
        ensure!(reply.status == 200, "{method}: {reply:?}");
        Ok(())
    }

    /// It cannot be sent again: whoever waits is told so at once.
    async fn fails_fast(&self, method: Method, block: &str) -> Result<()> {
        let mut held = self.hold(method.clone(), block).await?;
        let reply = wait::until("an answer", PATIENCE, async || {
            self.tell_of(held.port).await.ok()?;
            if held.answer.is_finished() { (&mut held.answer).await.ok() } else { None }
        });
        let reply = reply.await??;
        ensure!(reply.status == 502, "{method} {block}: {reply:?}");
        ensure!(self.arrived().await?.is_none(), "{method} {block}: sent again");
        self.farm.release().await
    }

    /// A port that is nobody's, and another peer's.
    async fn others_are_left_alone(&self) -> Result<()> {
        let held = self.hold(Method::POST, "app").await?;
        self.tell_of(held.port ^ 1).await?;
        self.farm.release().await?;
        let reply = held.answer.await??;
        ensure!(reply.status == 200, "{reply:?}");
        Ok(())
    }

    async fn what_is_wrong_is_refused(&self) -> Result<()> {
        let peer = self.peer()?;
        let many: Vec<Value> = (1..=65).map(|port| json!({ "peer": peer, "port": port })).collect();
        for (connections, status, says) in [
            (json!([]), 400, "must name 1 to 64"),
            (json!(many), 400, "must name 1 to 64"),
            (json!([{ "peer": "127.0.0.1:1", "port": 4 }]), 404, "has a peer \\\"127.0.0.1:1\\\""),
            (json!([{ "peer": peer, "port": 70_000 }]), 400, "the body is not understood"),
        ] {
            let reply = self.tell(connections).await?;
            ensure!(reply.status == status && reply.text().contains(says), "{says}: {reply:?}");
        }
        let reply = self.site.ask(Method::GET, path::ORPHANS, String::new()).await?;
        ensure!(reply.status == 405, "{reply:?}");
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_on_an_orphan_is_tried_again_if_it_can_be() -> Result<()> {
    for version in VERSIONS {
        let stage = Stage::set(version).await?;
        for method in [Method::GET, Method::POST, Method::POST] {
            stage.is_sent_again(method).await.with_context(|| version.to_owned())?;
        }
        stage.fails_fast(Method::GET, "off").await.with_context(|| version.to_owned())?;
        stage.fails_fast(Method::POST, "unbuffered").await.with_context(|| version.to_owned())?;
        stage.others_are_left_alone().await.with_context(|| version.to_owned())?;
        stage.what_is_wrong_is_refused().await.with_context(|| version.to_owned())?;
        let upstreams = stage.site.read::<handoff_wire::Upstreams>(path::UPSTREAMS).await?.upstreams;
        let failed: u64 = upstreams.iter().flat_map(|upstream| &upstream.peers).map(|peer| peer.fails).sum();
        ensure!(failed == 0, "an orphan is no failure of its peer: {upstreams:?}");
        stage.site.end_but_for(&["upstream prematurely closed connection"]).await?;
    }
    Ok(())
}
