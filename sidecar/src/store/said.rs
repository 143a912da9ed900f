//! What app hosts have said, as an edge knows it. Nothing here speaks to anybody.

use super::session::read;
use crate::peer::Peer;
use handoff_wire::{
    Owner,
    store::{HostValue, Key, Keys, MAX_MARKS, Name, WorkerMark, WorkerValue, at_edge},
};
use std::{collections::BTreeMap, net::IpAddr};

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
        if self.hosts.get(&name).is_some_and(|host| host.value.is_none() && host.workers.is_empty()) {
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
