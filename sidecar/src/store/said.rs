//! What app hosts have said, as an edge knows it. Nothing here speaks to anybody.

use super::session::read;
use crate::peer::Peer;
use handoff_wire::{
    Owner, Span,
    store::{HostValue, Key, Keys, MAX_MARKS, Member, MembersValue, Name, WorkerMark, WorkerValue, at_edge},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

/// What each host holds of its peers.
#[derive(Clone, Debug, Default)]
pub struct Said {
    hosts: BTreeMap<Name, Host>,
    /// Everything up to this revision was heard.
    revision: i64,
}

#[derive(Clone, Debug, Default)]
struct Host {
    /// None: it is gone, and so is what it said.
    value: Option<HostValue>,
    workers: BTreeMap<Peer, WorkerValue>,
    /// What it brings, here or silent, and since which revision it says so.
    members: Option<(i64, MembersValue)>,
}

/// A peer that nginx shall have, if it has room for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Brought {
    pub host: Name,
    pub member: Member,
    /// Other hosts that say it is theirs.
    pub also: Vec<Name>,
}

/// The mark of an owner on a peer, as nginx shall have it.
pub type Wanted = BTreeMap<(Peer, Owner), WorkerMark>;

// === impl Said ===

impl Said {
    /// One key changed; None: it is gone. Answers whose it was. Err: what stands there is nothing that we understand, and
    /// counts as gone.
    pub fn hear(
        &mut self,
        keys: &Keys,
        key: &[u8],
        value: Option<&[u8]>,
        revision: i64,
    ) -> Result<Option<Name>, String> {
        self.reach(revision);
        let Some(key) = std::str::from_utf8(key).ok().and_then(|key| keys.parse(key)) else {
            return Ok(None);
        };
        let (name, wrong) = match key {
            Key::Host(name) => {
                let (value, wrong) = split(value.map(read::<HostValue>));
                let host = self.hosts.entry(name.clone()).or_default();
                host.value = value;
                (name, wrong)
            }
            Key::Members(name) => {
                let (value, wrong) = split(value.map(read::<MembersValue>));
                let host = self.hosts.entry(name.clone()).or_default();
                // What nobody understands is no farewell.
                if wrong.is_none() {
                    host.members = value.map(|value| (revision, value));
                }
                (name, wrong)
            }
            Key::Worker { host: name, upstream, address } => {
                let (value, wrong) = split(value.map(worker));
                let host = self.hosts.entry(name.clone()).or_default();
                let peer = Peer::new(upstream, address);
                match value {
                    Some(value) => _ = host.workers.insert(peer, value),
                    None => _ = host.workers.remove(&peer),
                }
                (name, wrong)
            }
            Key::Edge(_) | Key::Ack { .. } => return Ok(None),
        };
        if self.hosts.get(&name).is_some_and(Host::is_empty) {
            self.hosts.remove(&name);
        }
        match wrong {
            Some(wrong) => Err(format!("what {name} says cannot be read: {wrong}")),
            None => Ok(Some(name)),
        }
    }

    /// Nothing up to this revision is still to come.
    pub fn reach(&mut self, revision: i64) {
        self.revision = self.revision.max(revision);
    }

    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// The hosts that are there.
    pub fn hosts(&self) -> impl Iterator<Item = (&Name, &HostValue)> {
        self.hosts.iter().filter_map(|(name, host)| Some((name, host.value.as_ref()?)))
    }

    pub fn has(&self, host: &Name) -> bool {
        self.hosts.get(host).is_some_and(|host| host.value.is_some())
    }

    /// By which nginx reaches the workers of a host.
    pub fn addresses(&self, host: &Name) -> &[IpAddr] {
        let value = self.hosts.get(host).and_then(|host| host.value.as_ref());
        value.map(|value| value.addresses.as_slice()).unwrap_or_default()
    }

    /// Whose workers are at an address. Several hosts behind one address know their own.
    pub fn at(&self, address: IpAddr) -> impl Iterator<Item = &Name> {
        let address = address.to_canonical();
        let is_at = move |value: &HostValue| value.addresses.iter().any(|own| own.to_canonical() == address);
        self.hosts().filter(move |(_, value)| is_at(value)).map(|(name, _)| name)
    }

    /// Every peer that nginx shall have because somebody brings it. Of two who do, the one whose name comes first.
    pub fn brought(&self) -> BTreeMap<Peer, Brought> {
        let mut brought = BTreeMap::<Peer, Brought>::new();
        for (host, member) in self.members() {
            let peer = Peer::new(&member.upstream, &member.address);
            match brought.get_mut(&peer) {
                Some(first) => first.also.push(host.clone()),
                None => {
                    let first = Brought { host: host.clone(), member: member.clone(), also: Vec::new() };
                    brought.insert(peer, first);
                }
            }
        }
        brought
    }

    /// The hosts that bring peers and are not there: since which revision they bring them, and how long these stay.
    pub fn silent(&self) -> impl Iterator<Item = (&Name, i64, Span)> {
        let silent = self.hosts.iter().filter(|(_, host)| host.value.is_none());
        silent.filter_map(|(name, host)| {
            let (revision, value) = host.members.as_ref()?;
            Some((name, *revision, value.grace))
        })
    }

    /// An upstream to which this host brings peers, and of whose hosts fewer than half are there: what looks like the end of
    /// many is most likely a partition. With how many are there, of how many.
    pub fn outnumbered(&self, host: &Name) -> Option<(String, usize, usize)> {
        let upstreams: BTreeSet<&str> =
            self.members().filter(|(name, _)| *name == host).map(|(_, member)| &*member.upstream).collect();
        upstreams.into_iter().find_map(|upstream| {
            let bring = self.members().filter(|(_, member)| member.upstream == upstream);
            let bring: BTreeSet<&Name> = bring.map(|(name, _)| name).collect();
            let here = bring.iter().filter(|name| self.has(name)).count();
            (here * 2 < bring.len()).then(|| (upstream.to_owned(), here, bring.len()))
        })
    }

    /// Whether a host says something of its peers that is to be in nginx before it goes on.
    pub fn is_under_way(&self, host: &Name) -> bool {
        self.hosts.get(host).is_some_and(|host| !host.workers.is_empty())
    }

    fn members(&self) -> impl Iterator<Item = (&Name, &Member)> {
        let values = self.hosts.iter().filter_map(|(name, host)| Some((name, &host.members.as_ref()?.1)));
        values.flat_map(|(name, value)| value.peers.iter().map(move |member| (name, member)))
    }

    /// Every mark that nginx shall have. What a host said of which the `hosts` key is gone was said by nobody.
    pub fn wanted(&self) -> Wanted {
        self.hosts.keys().flat_map(|host| self.wanted_by(host)).collect()
    }

    pub fn wanted_by(&self, host: &Name) -> Wanted {
        let of = self.hosts.get_key_value(host).filter(|(_, host)| host.value.is_some());
        let workers =
            of.into_iter().flat_map(|(name, host)| host.workers.iter().map(move |worker| (name, worker)));
        let marks = workers.flat_map(|(host, (peer, worker))| {
            let at = |mark: &WorkerMark| Some(((peer.clone(), at_edge(host, &mark.owner)?), mark.clone()));
            worker.marks.iter().take(MAX_MARKS).filter_map(at).collect::<Vec<_>>()
        });
        marks.collect()
    }
}

impl Host {
    fn is_empty(&self) -> bool {
        self.value.is_none() && self.workers.is_empty() && self.members.is_none()
    }
}

fn worker(value: &[u8]) -> Result<WorkerValue, String> {
    let value: WorkerValue = read(value)?;
    if value.marks.len() > MAX_MARKS {
        return Err(format!("{} marks on one peer", value.marks.len()));
    }
    Ok(value)
}

fn split<T>(read: Option<Result<T, String>>) -> (Option<T>, Option<String>) {
    match read {
        Some(Ok(value)) => (Some(value), None),
        Some(Err(wrong)) => (None, Some(wrong)),
        None => (None, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use handoff_wire::State;

    const HOST: &str = r#"{"version":"1","addresses":["10.0.0.5"],"holder":{"boot":"b","pid":1,"start":2}}"#;
    const DRAINS: &str =
        r#"{"state":"draining","said":1,"marks":[{"owner":"pm2:/a","state":"draining","expect":"back"}]}"#;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    fn said() -> (Keys, Said) {
        let keys = Keys::new(&name("prod"));
        let mut said = Said::default();
        let worker = keys.worker(&name("app1"), "shop", "10.0.0.5:3000");
        said.hear(&keys, worker.as_bytes(), Some(DRAINS.as_bytes()), 7).unwrap();
        (keys, said)
    }

    #[test]
    fn a_mark_counts_as_long_as_its_host_is_there() {
        let (keys, mut said) = said();
        assert!(said.wanted().is_empty());
        let host = keys.host(&name("app1"));
        said.hear(&keys, host.as_bytes(), Some(HOST.as_bytes()), 8).unwrap();
        let wanted = said.wanted();
        let ((peer, owner), mark) = wanted.first_key_value().unwrap();
        assert_eq!((peer, owner.as_str()), (&Peer::new("shop", "10.0.0.5:3000"), "pm2:app1//a"));
        assert_eq!((mark.state, said.revision()), (State::Draining, 8));
        said.hear(&keys, host.as_bytes(), None, 9).unwrap();
        assert!(said.wanted().is_empty());
    }

    fn brings(said: &mut Said, keys: &Keys, host: &str, upstream: &str, address: &str, revision: i64) {
        let value = format!(
            r#"{{"version":"1","grace":"60s","peers":[{{"upstream":"{upstream}","address":"{address}"}}]}}"#
        );
        let key = keys.members(&name(host));
        said.hear(keys, key.as_bytes(), Some(value.as_bytes()), revision).unwrap();
    }

    fn here(said: &mut Said, keys: &Keys, host: &str, is_here: bool) {
        let key = keys.host(&name(host));
        said.hear(keys, key.as_bytes(), is_here.then_some(HOST.as_bytes()), 20).unwrap();
    }

    #[test]
    fn what_a_host_brings_outlives_its_silence_and_ends_with_its_word() {
        let (keys, mut said) = said();
        here(&mut said, &keys, "app1", true);
        brings(&mut said, &keys, "app1", "shop", "10.0.0.5:3000", 9);
        assert_eq!((said.brought().len(), said.silent().count()), (1, 0));
        here(&mut said, &keys, "app1", false);
        assert_eq!(said.brought().len(), 1);
        assert_eq!(said.silent().collect::<Vec<_>>(), [(&name("app1"), 9, Span::from_secs(60))]);
        let key = keys.members(&name("app1"));
        said.hear(&keys, key.as_bytes(), Some(b"nonsense"), 10).unwrap_err();
        assert_eq!(said.brought().len(), 1, "what nobody understands is no farewell");
        assert_eq!(said.hear(&keys, key.as_bytes(), None, 11), Ok(Some(name("app1"))));
        assert!(said.brought().is_empty());
    }

    #[test]
    fn of_two_who_bring_the_same_peer_the_first_name_does() {
        let (keys, mut said) = said();
        brings(&mut said, &keys, "app2", "shop", "10.0.0.5:3000", 9);
        brings(&mut said, &keys, "app1", "shop", "10.0.0.5:3000", 10);
        let brought = said.brought().into_values().next().unwrap();
        assert_eq!((brought.host, brought.also), (name("app1"), vec![name("app2")]));
    }

    #[test]
    fn many_who_fall_silent_together_are_not_dead() {
        let (keys, mut said) = said();
        for host in ["app1", "app2", "app3"] {
            brings(&mut said, &keys, host, "shop", &format!("{host}:1"), 9);
            here(&mut said, &keys, host, true);
        }
        brings(&mut said, &keys, "app4", "other", "10.0.0.9:1", 9);
        here(&mut said, &keys, "app3", false);
        assert_eq!(said.outnumbered(&name("app3")), None);
        here(&mut said, &keys, "app2", false);
        assert_eq!(said.outnumbered(&name("app3")), Some(("shop".to_owned(), 1, 3)));
        assert_eq!(said.outnumbered(&name("app4")), Some(("other".to_owned(), 0, 1)), "the only one stays");
        // One of two may go.
        said.hear(&keys, keys.members(&name("app2")).as_bytes(), None, 21).unwrap();
        assert_eq!(said.outnumbered(&name("app3")), None);
    }

    #[test]
    fn a_host_is_found_by_its_address() {
        let (keys, mut said) = said();
        said.hear(&keys, keys.host(&name("app1")).as_bytes(), Some(HOST.as_bytes()), 8).unwrap();
        let at = |address: &str| said.at(address.parse().unwrap()).cloned().collect::<Vec<_>>();
        assert_eq!(at("::ffff:10.0.0.5"), [name("app1")]);
        assert_eq!(at("10.0.0.6"), []);
    }

    #[test]
    fn garbage_counts_as_gone_and_is_said() {
        let (keys, mut said) = said();
        let host = keys.host(&name("app1"));
        said.hear(&keys, host.as_bytes(), Some(HOST.as_bytes()), 8).unwrap();
        let worker = keys.worker(&name("app1"), "shop", "10.0.0.5:3000");
        let many =
            DRAINS.replace("[{", &format!("[{}{{", r#"{"owner":"operator","state":"down"},"#.repeat(8)));
        let long = format!("\"{}\"", "x".repeat(2 << 20));
        for garbage in ["", "{", "[]", &many, &long, r#"{"state":"up","said":1,"marks":[{"owner":"you"}]}"#] {
            said.hear(&keys, worker.as_bytes(), Some(DRAINS.as_bytes()), 9).unwrap();
            assert_eq!(said.wanted().len(), 1);
            let wrong = said.hear(&keys, worker.as_bytes(), Some(garbage.as_bytes()), 10).unwrap_err();
            assert!(wrong.contains("app1"), "{wrong}");
            assert!(said.wanted().is_empty());
        }
        for key in ["/other", "/handoff/v1/prod/workers/app1", "/handoff/v1/prod/workers/a b/x/y", "\u{fffd}"]
        {
            assert_eq!(said.hear(&keys, key.as_bytes(), Some(b"{}"), 11), Ok(None));
        }
    }
}
