//! An owner that speaks of the peers of one upstream, or of all.

use crate::{door::Reply, site::Site};
use anyhow::{Context, Result, ensure};
use handoff_wire::{
    Ack, Code, Drained, Expect, MAX_LEASE, MAX_WAIT, MarkRequest, MarkSet, PeerView, State, path,
};
use hyper::Method;

#[derive(Clone, Copy, Debug)]
pub struct Marker<'a> {
    site: &'a Site,
    owner: &'static str,
    upstream: Option<&'a str>,
}

impl<'a> Marker<'a> {
    /// A person: all that it says is a choice.
    pub fn operator(site: &'a Site, upstream: &'a str) -> Self {
        Self { site, owner: "operator", upstream: Some(upstream) }
    }

    /// The sidecar: what it says is a fact.
    pub fn pm2(site: &'a Site, upstream: &'a str) -> Self {
        Self { site, owner: "pm2:test", upstream: Some(upstream) }
    }

    /// Names no upstream.
    pub fn everywhere(self) -> Self {
        Self { upstream: None, ..self }
    }

    /// Once this is back, the mark is in force. Forced: a test knows what it does.
    pub async fn says(&self, state: State, peers: &[&str]) -> Result<Ack> {
        let mark = |peer: &&str| MarkRequest {
            upstream: self.upstream.map(str::to_owned),
            peer: (*peer).to_owned(),
            state,
            expect: Expect::Gone,
            reason: "a test".to_owned(),
            all: false,
        };
        let owner: handoff_wire::Owner = self.owner.parse()?;
        // Longer than a test on the slowest machine.
        let lease = owner.kind().is_leased().then_some(MAX_LEASE);
        let set = MarkSet { owner, lease, force: true, marks: peers.iter().map(mark).collect() };
        let set = serde_json::to_string(&set)?;
        let mut reply = self.put(&set).await?;
        // Another process was at it, and did not get its turn on a busy machine: the answer says to try again.
        while reply.status == Code::Busy.status() {
            reply = self.put(&set).await?;
        }
        let ack: Ack = reply.json().with_context(|| format!("{state}: {peers:?}"))?;
        ensure!(ack.marks.len() >= peers.len(), "{ack:?} does not name all of {peers:?}");
        Ok(ack)
    }

    async fn put(&self, set: &str) -> Result<Reply> {
        self.site.control().ask(Method::PUT, path::MARKS, set.to_owned()).await
    }

    pub async fn view(&self, peer: &str) -> Result<PeerView> {
        self.site.control().get(&path::peer(self.upstream()?, peer)).await?.json()
    }

    /// Waits until nginx has nothing in flight there.
    pub async fn drained(&self, peer: &str) -> Result<Drained> {
        let path = format!("{}?timeout={MAX_WAIT}", path::drained(self.upstream()?, peer));
        let drained: Drained = self.site.control().get(&path).await?.json()?;
        ensure!(drained.drained, "{peer} is not drained within {MAX_WAIT}: {drained:?}");
        Ok(drained)
    }

    fn upstream(&self) -> Result<&str> {
        self.upstream.context("which upstream?")
    }
}
