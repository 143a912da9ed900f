//! What an edge answers hosts: what its nginx has of their peers, up to which revision.

use super::{COUNTS, Edge};
use crate::store::{
    StoreError,
    session::{Session, dice, timely},
};
use etcd_client::Txn;
use handoff_wire::store::{AckRefused, AckValue, Name};
use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

/// In one transaction.
const AT_ONCE: usize = 50;
/// So many hosts are told in this time of what they do not wait for: with an edge that comes, others come.
const SPREAD: Duration = Duration::from_millis(200);

impl Edge {
    /// Says to each host what nginx has of its peers, if that is something else than before.
    pub(super) async fn tell(&mut self, session: &mut Session) -> Result<(), StoreError> {
        let now = Instant::now();
        self.spread_some(now);
        let is_time =
            |host: &Name| self.acked.get(host).is_none_or(|(_, at)| now.duration_since(*at) >= COUNTS);
        let due: BTreeSet<Name> =
            self.due.iter().chain(self.stale.iter().filter(|host| is_time(host))).cloned().collect();
        let mut new = Vec::new();
        for host in due {
            // What it says is in nginx when its peers are, too.
            if self.seats.is_behind_for(&host) {
                continue;
            }
            self.due.remove(&host);
            self.stale.remove(&host);
            if !self.said.has(&host) {
                self.acked.remove(&host);
                continue;
            }
            let ack = self.ack(&host);
            if self.acked.get(&host).is_none_or(|(last, _)| *last != ack) {
                new.push((host, ack));
            }
        }
        let edge = self.keys.edge(&self.settings.name);
        for some in new.chunks(AT_ONCE) {
            let put =
                |(host, ack): &(Name, AckValue)| session.put(&self.keys.ack(host, &self.settings.name), ack);
            let puts = some.iter().map(put).collect::<Result<Vec<_>, _>>()?;
            let done =
                timely(session.client.txn(Txn::new().when([session.holds(&edge)]).and_then(puts))).await?;
            if !done.succeeded() {
                return Err(StoreError::Lost);
            }
            for (host, ack) in some {
                self.acked.insert(host.clone(), (ack.clone(), now));
            }
        }
        Ok(())
    }

    fn ack(&self, host: &Name) -> AckValue {
        let refused = self.refused.iter().filter(|(key, _)| self.said.wanted_by(host).contains_key(key));
        let refused = refused.map(|((peer, owner), (_, refusal))| AckRefused {
            upstream: peer.upstream.clone(),
            address: peer.address.clone(),
            owner: owner.clone(),
            refusal: refusal.clone(),
        });
        let addresses = self.said.addresses(host);
        AckValue {
            revision: self.said.revision(),
            instance: self.mirror.instance().to_owned(),
            upstreams: self.mirror.of(addresses, self.watched.contains_key(host)),
            refused: refused.collect(),
            uncovered: self.mirror.uncovered(addresses),
            amiss: self.seats.amiss_of(host),
        }
    }

    /// Every host is to be told. Those who wait for it first; the others come by and by, and in no order.
    pub(super) fn tell_all(&mut self) {
        for (name, _) in self.said.hosts() {
            let hosts = if self.said.is_under_way(name) { &mut self.due } else { &mut self.later };
            hosts.insert(name.clone());
        }
    }

    fn spread_some(&mut self, now: Instant) {
        self.later.retain(|host| !self.due.contains(host));
        if self.later.is_empty() || now.duration_since(self.spread) < SPREAD {
            return;
        }
        self.spread = now;
        let some = self.later.iter().skip(dice() % self.later.len()).chain(&self.later).take(AT_ONCE);
        let some: BTreeSet<Name> = some.cloned().collect();
        self.later.retain(|host| !some.contains(host));
        self.due.extend(some);
    }
}
