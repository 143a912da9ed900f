//! One upstream and somebody who adds peers to it, and removes them.

use anyhow::{Context, Result, ensure};
use e2e::{
    crowd::{self, Answer, Ask},
    door::Reply,
    ports,
    site::Site,
};
use handoff_wire::{Code, Owner, PeerAck, PeerAdd, PeerRemove, PeerView, UpstreamView, path};
use hyper::Method;
use std::collections::BTreeMap;

/// Who speaks of the peers of an upstream.
#[derive(Clone, Copy)]
pub(super) struct Peers<'a> {
    pub(super) site: &'a Site,
    pub(super) upstream: &'a str,
}

/// An upstream `app` with these lines, and all that a test of it needs.
pub(super) async fn app(version: &str, lines: &str) -> Result<Site> {
    let mut site = Site::new(version).await?;
    site.write(&http(&site, lines))?;
    site.start().await?;
    Ok(site)
}

pub(super) fn http(site: &Site, lines: &str) -> String {
    format!(
        "upstream app {{ zone app 256k; {lines} handoff; }}\n{}\n{}",
        site.front("proxy_pass http://app; add_header X-Tried $upstream_addr always;"),
        site.api("write=on")
    )
}

/// So many visits, one after the other for each visitor; who answered how many.
pub(super) async fn shares(site: &Site, count: usize) -> Result<BTreeMap<String, usize>> {
    let mut shares = BTreeMap::new();
    for answer in visits(site, count).await? {
        *shares.entry(answer.peer.unwrap_or_default()).or_default() += 1;
    }
    Ok(shares)
}

/// Every one of them is answered by a peer.
pub(super) async fn visits(site: &Site, count: usize) -> Result<Vec<Answer>> {
    let asks = (0..count).map(|number| Ask::get(format!("/?visitor={number}")));
    let answers = crowd::ask(ports::address(site.port()), asks).await?;
    ensure!(answers.iter().all(|answer| answer.status == 200), "{answers:?}");
    Ok(answers)
}

// === impl Peers ===

impl<'a> Peers<'a> {
    pub(super) fn of(site: &'a Site) -> Self {
        Self { site, upstream: "app" }
    }

    pub(super) async fn add(&self, peer: &str) -> Result<PeerAck> {
        self.adds(&PeerAdd::new(Owner::operator(), peer)).await?.json()
    }

    pub(super) async fn adds(&self, add: &PeerAdd) -> Result<Reply> {
        let add = serde_json::to_string(add)?;
        self.site.ask(Method::POST, &path::peers(self.upstream), add).await
    }

    /// Forced: a test knows what it does. Waits for its last request if it is told how long.
    pub(super) async fn remove(&self, peer: &str, timeout: &str) -> Result<PeerAck> {
        let remove = PeerRemove { owner: Owner::operator(), reason: "a test".to_owned(), force: true };
        self.removes(peer, timeout, &serde_json::to_string(&remove)?).await?.json()
    }

    pub(super) async fn removes(&self, peer: &str, timeout: &str, remove: &str) -> Result<Reply> {
        let path = path::peer(self.upstream, peer) + timeout;
        self.site.ask(Method::DELETE, &path, remove.to_owned()).await
    }

    pub(super) async fn view(&self) -> Result<UpstreamView> {
        self.site.read(&path::upstream(self.upstream)).await
    }

    pub(super) async fn find(&self, peer: &str) -> Result<Option<PeerView>> {
        Ok(self.view().await?.peers.into_iter().find(|view| view.address == peer))
    }

    /// How many slots are taken, and how many by peers that are leaving.
    pub(super) async fn taken(&self) -> Result<(u32, u32)> {
        let slots = self.view().await?.slots.context("no slots")?;
        Ok((slots.taken, slots.leaving))
    }
}

/// It is refused so, and with these words.
pub(super) fn refused(reply: &Reply, code: Code, words: &str) -> Result<()> {
    let error = reply.refusal()?;
    ensure!((error.status, error.code) == (code.status(), code), "{error}");
    ensure!(error.text.contains(words), "{words:?} is not in {:?}", error.text);
    Ok(())
}
