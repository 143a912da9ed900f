//! Hosts that bring peers and are silent: what they bring stays for their grace, and then an edge says in their place that they
//! bring nothing any more. It counts the silence that it has heard itself, and of many edges one is the first.

use super::Edge;
use crate::store::{
    StoreError,
    session::{Session, by_chance, timely},
};
use etcd_client::{Compare, CompareOp, Txn, TxnOp};
use handoff_wire::{Span, store::Name};
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

#[derive(Clone, Copy, Debug)]
pub(super) struct Silence {
    pub(super) since: Instant,
    /// Ours: of many edges one is the first.
    pub(super) until: Instant,
}

/// The first edge to say that a host is gone is so much later at most.
const TURN: Duration = Duration::from_secs(30);
/// As good as for ever.
const FAR: Duration = Duration::from_secs(365 * 86_400);

impl Edge {
    pub(super) fn hear_of_silence(&mut self) {
        let silent: BTreeMap<Name, Span> =
            self.said.silent().map(|(host, _, grace)| (host.clone(), grace)).collect();
        self.silent.retain(|host, _| silent.contains_key(host));
        let since = Instant::now();
        for (host, grace) in silent {
            let grace = grace.duration();
            let turn = by_chance((grace / 10).min(TURN));
            self.silent.entry(host.clone()).or_insert_with(|| {
                tracing::warn!(%host, "silent: the peers that it brings stay for {grace:?}");
                Silence { since, until: since.checked_add(grace + turn).unwrap_or(since + FAR) }
            });
        }
    }

    /// Says in the place of a host that has been silent for too long that it brings nothing any more: once for all edges.
    pub(super) async fn bury(&mut self, session: &mut Session) -> Result<(), StoreError> {
        let now = Instant::now();
        let over =
            self.said.silent().filter(|(host, ..)| self.silent.get(host).is_some_and(|it| it.until <= now));
        let over: Vec<(Name, i64)> = over.map(|(host, revision, _)| (host.clone(), revision)).collect();
        for (host, revision) in over {
            if let Some((upstream, here, all)) = self.said.outnumbered(&host) {
                self.bury_log.warn(format!(
                    "{host} is silent, and what it brings stays: only {here} of the {all} hosts that bring peers to {upstream} \
                     are there. If it is gone for good, delete {} from the store",
                    self.keys.members(&host)
                ));
                continue;
            }
            let key = self.keys.members(&host);
            let is_silent = Compare::create_revision(self.keys.host(&host), CompareOp::Equal, 0);
            let is_as_heard = Compare::mod_revision(&*key, CompareOp::Equal, revision);
            let us = session.holds(&self.keys.edge(&self.settings.name));
            let txn = Txn::new().when([us, is_silent, is_as_heard]).and_then([TxnOp::delete(&*key, None)]);
            match timely(session.client.txn(txn)).await {
                Ok(done) if done.succeeded() => {
                    let long = self.silent.get(&host).map_or(0, |silence| silence.since.elapsed().as_secs());
                    tracing::warn!(%host, "silent for {long} s: it brings nothing any more");
                }
                // Somebody was first, or it is there again: that is heard.
                Ok(_) => {}
                Err(error) => {
                    self.bury_log
                        .warn(format!("what {host} brings cannot be taken out of the store: {error}"));
                }
            }
            // Not again at once, whatever came of it.
            if let Some(silence) = self.silent.get_mut(&host) {
                silence.until = now + TURN;
            }
        }
        Ok(())
    }
}
