//! The peers that this host brings: those that its configuration names, from when somebody has listened there for the first
//! time, until the host leaves. Nothing here speaks to anybody.
//!
//! That a worker is replaced, or gone for an hour, is a matter of marks: what was brought stays.

use super::settings::Brings;
use crate::peer::Peer;
use handoff_wire::{
    Span,
    store::{Member, MembersValue},
};
use std::{collections::BTreeSet, net::SocketAddr};

#[derive(Debug, Default)]
pub struct Bring {
    peers: Vec<Member>,
    grace: Span,
    /// Somebody has listened there.
    met: BTreeSet<Peer>,
    has_left: bool,
    /// What stands in the store, since this revision. None: nobody knows.
    stands: Option<(i64, Option<MembersValue>)>,
}

// === impl Bring ===

impl Bring {
    pub fn new(brings: Brings) -> Self {
        Self { peers: brings.peers, grace: brings.grace, ..Self::default() }
    }

    /// What there is to look for.
    pub fn unmet(&self) -> Vec<SocketAddr> {
        let unmet = self.peers.iter().filter(|member| !self.met.contains(&peer(member)));
        unmet.filter_map(|member| member.address.parse().ok()).collect()
    }

    /// Somebody listens there.
    pub fn meet(&mut self, address: SocketAddr) {
        let at = self.peers.iter().filter(|member| member.address.parse() == Ok(address));
        self.met.extend(at.map(peer));
    }

    /// What this host brought when it was last here, it has brought.
    pub fn found(&mut self, revision: i64, value: Option<MembersValue>) {
        self.met.extend(value.iter().flat_map(|value| &value.peers).map(peer));
        self.stands = Some((revision, value));
    }

    /// The store may have lost it.
    pub fn forget(&mut self) {
        self.stands = None;
    }

    /// What is to stand in the store. None: nothing.
    pub fn value(&self) -> Option<MembersValue> {
        let peers: Vec<Member> =
            self.peers.iter().filter(|member| self.is_brought(member)).cloned().collect();
        let version = env!("CARGO_PKG_VERSION").to_owned();
        (!peers.is_empty()).then_some(MembersValue { version, grace: self.grace, peers })
    }

    /// What has still to be written.
    pub fn unwritten(&self) -> Option<Option<MembersValue>> {
        let (_, stands) = self.stands.as_ref()?;
        let value = self.value();
        (*stands != value).then_some(value)
    }

    pub fn wrote(&mut self, revision: i64, value: Option<MembersValue>) {
        self.stands = Some((revision, value));
    }

    /// Since which revision the store has what this host brings. None: it has not, yet.
    pub fn revision(&self) -> Option<i64> {
        self.stands.as_ref().filter(|_| self.unwritten().is_none()).map(|(revision, _)| *revision)
    }

    /// From here on it brings nothing, until this process begins anew.
    pub fn leave(&mut self) {
        self.has_left = true;
    }

    pub fn all(&self) -> &[Member] {
        &self.peers
    }

    pub fn is_brought(&self, member: &Member) -> bool {
        !self.has_left && self.met.contains(&peer(member))
    }
}

fn peer(member: &Member) -> Peer {
    Peer::new(&member.upstream, &member.address)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bring() -> Bring {
        let member = |port: u16| -> Member {
            serde_json::from_value(
                serde_json::json!({"upstream": "shop", "address": format!("10.0.0.5:{port}")}),
            )
            .unwrap()
        };
        Bring::new(Brings { peers: vec![member(3000), member(3001)], grace: Span::from_secs(60) })
    }

    fn ports(value: Option<MembersValue>) -> Vec<String> {
        value.into_iter().flat_map(|value| value.peers).map(|member| member.address).collect()
    }

    #[test]
    fn nobody_is_told_of_a_peer_where_nobody_has_listened_yet() {
        let mut bring = bring();
        bring.found(1, None);
        assert_eq!((bring.unwritten(), bring.revision()), (None, Some(1)));
        bring.meet("10.0.0.5:3001".parse().unwrap());
        assert_eq!(ports(bring.unwritten().flatten()), ["10.0.0.5:3001"]);
        assert_eq!(bring.revision(), None);
        bring.wrote(2, bring.value());
        assert_eq!((bring.unwritten(), bring.revision()), (None, Some(2)));
        assert_eq!(bring.unmet(), ["10.0.0.5:3000".parse().unwrap()]);
    }

    #[test]
    fn what_was_brought_stays_whoever_listens_now() {
        let (mut before, mut again) = (bring(), bring());
        before.meet("10.0.0.5:3000".parse().unwrap());
        again.found(7, before.value());
        assert_eq!(again.unwritten(), None);
        // An edge took it out while we were away.
        again.forget();
        again.found(9, None);
        assert_eq!(ports(again.unwritten().flatten()), ["10.0.0.5:3000"]);
    }

    #[test]
    fn who_leaves_brings_nothing_more() {
        let mut bring = bring();
        bring.meet("10.0.0.5:3000".parse().unwrap());
        bring.found(1, bring.value());
        bring.leave();
        bring.meet("10.0.0.5:3001".parse().unwrap());
        assert_eq!(bring.unwritten(), Some(None));
    }

    #[test]
    fn what_the_configuration_names_no_more_is_taken_back() {
        let mut before = bring();
        before.meet("10.0.0.5:3000".parse().unwrap());
        let mut none = Bring::default();
        none.found(3, before.value());
        assert_eq!(none.unwritten(), Some(None));
    }
}
