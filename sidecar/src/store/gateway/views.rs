//! What an app host is told when it asks: of all nginx together, as one nginx would say it of itself.

use super::{Desk, peer};
use crate::{
    peer::Peer,
    store::{
        report::{EdgeLine, HostReport},
        standing::millis,
    },
};
use handoff_wire::{
    Code, Drained, Overview, PeerView, Refusal, UpstreamView, Upstreams, ZoneView,
    store::{EdgeView, Member, MemberView, Name, StoreView},
};
use std::time::{Duration, Instant, SystemTime};
use tokio::time;

impl Desk {
    pub fn overview(&self) -> Result<Overview, Refusal> {
        let book = self.book();
        let began = self.began.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Ok(Overview {
            api: handoff_wire::API_VERSION,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            nginx: format!("{} through the store", book.edges.names().count()),
            instance: book.instance()?,
            started: u64::try_from(began.as_millis()).unwrap_or(0),
            generation: self.generation(),
            events: handoff_wire::EventCounts::default(),
            zone: ZoneView { size: 0, peers: 0, peers_max: 0, peers_uncovered: 0, processes_max: 0 },
            old_master: None,
            processes: Vec::new(),
            uncovered: book.edges.uncovered(),
        })
    }

    pub fn view(&self) -> Result<StoreView, Refusal> {
        let book = self.book();
        book.instance()?;
        let last = book.ledger.last_written().max(book.bring.revision().unwrap_or_default());
        let behind = book.edges.behind(last);
        let edge = |name: &Name| EdgeView { name: name.clone(), current: !behind.contains(&name) };
        let member = |member: &Member| MemberView {
            upstream: member.upstream.clone(),
            address: member.address.clone(),
            brought: book.bring.is_brought(member),
            edges: book.edges.of(&peer(member)).map(|(edge, ..)| edge.clone()).collect(),
            amiss: book.edges.amiss(&peer(member)),
        };
        Ok(StoreView {
            host: self.host.clone(),
            edges: book.edges.names().map(edge).collect(),
            members: book.bring.all().iter().map(member).collect(),
        })
    }

    pub fn upstreams(&self) -> Result<Upstreams, Refusal> {
        let book = self.book();
        let instance = book.instance()?;
        // Nothing at all would say that every peer is gone.
        if !book.edges.is_empty() && !book.edges.has_spoken() {
            return Err(book.waiting(Some(0)));
        }
        Ok(Upstreams { instance, generation: self.generation(), upstreams: book.upstreams(&self.host) })
    }

    pub fn upstream(&self, name: &str) -> Result<UpstreamView, Refusal> {
        let upstreams = self.upstreams()?.upstreams.into_iter();
        let found = upstreams.into_iter().find(|upstream| upstream.name == name);
        found.ok_or_else(|| {
            let text = format!("no nginx that is there has peers of this host in an upstream {name:?}");
            self.book().or_waiting(Code::UpstreamNotFound.says(text))
        })
    }

    pub fn peer(&self, upstream: &str, address: &str) -> Result<PeerView, Refusal> {
        let peers = self.upstream(upstream)?.peers;
        peers.into_iter().find(|view| view.address == address).ok_or_else(|| {
            let text = format!("no nginx that is there has the peer {address:?}");
            self.book().or_waiting(Code::PeerNotFound.says(text))
        })
    }

    pub async fn drained(&self, peer: &Peer, wait: Duration) -> Result<Drained, Refusal> {
        let until = Instant::now() + wait;
        let mut changed = self.changed.subscribe();
        loop {
            let seen = {
                let book = self.book();
                book.instance()?;
                book.drained(peer)
            };
            let is_over = match &seen {
                Ok(seen) => seen.drained,
                Err(refusal) => refusal.code != Code::Waiting,
            };
            if is_over || time::timeout_at(until.into(), changed.changed()).await.is_err() {
                return seen;
            }
        }
    }

    /// What this host tells of itself, whether it is in the store or not.
    pub fn report(&self) -> HostReport {
        let book = self.book();
        let (last, now) = (book.ledger.last_written(), Instant::now());
        self.standing.reaches(last);
        let behind = book.edges.behind(last);
        let edge = |name: &Name| {
            let (since, took) = book.lags.of(name).unwrap_or((SystemTime::now(), None));
            let has = book.edges.ack(name).map_or(last - 1, |ack| ack.revision.min(last - 1));
            EdgeLine {
                name: name.clone(),
                since: millis(since),
                behind: if behind.contains(&name) { last - has } else { 0 },
                behind_ms: u64::try_from(book.lags.owes(name, now).as_millis()).unwrap_or(u64::MAX),
                acknowledged_us: took.map(|took| u64::try_from(took.as_micros()).unwrap_or(u64::MAX)),
            }
        };
        HostReport {
            stand: self.standing.stand(),
            edges: book.edges.names().map(edge).collect(),
            acknowledgements: book.lags.histogram().clone(),
        }
    }
}
