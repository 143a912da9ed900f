//! Where a worker serves: what the user said, and which peers of nginx the child listens on.

use crate::{
    host::{Listeners, Locals, Proc, Process, Processes},
    mapping::{Behind, Scene},
    peer::{Peer, Place},
    pm2::{PmId, trust::Daemon},
};
use handoff_wire::Upstreams;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
};

/// `--port` or `--socket`
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    Port(u16),
    Socket(String),
}

/// What was seen of the peers that may be ours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// Our child alone listens there.
    pub ours: BTreeSet<Peer>,
    /// Our child, and somebody else.
    pub shared: BTreeSet<Peer>,
    /// Somebody else alone.
    pub taken: BTreeSet<Peer>,
    /// Where our child listens, for people.
    pub addresses: Vec<String>,
}

/// There is one worker, as far as mapping is concerned.
const US: PmId = PmId(0);

/// The peers that nginx has where the user says.
pub fn named(upstreams: &Upstreams, wanted: &[Wanted]) -> BTreeSet<Peer> {
    let locals = Locals::read(&Proc::default());
    let is_wanted = |peer: &Peer| wanted.iter().any(|wanted| wanted.is(peer, &locals));
    configured(upstreams).filter(is_wanted).collect()
}

/// Looks at what our child, its children and those that they left behind listen on.
pub fn look(upstreams: &Upstreams, wanted: &[Wanted]) -> io::Result<Look> {
    let proc = Proc::default();
    let listeners = Listeners::read(&proc)?;
    let locals = Locals::read(&proc);
    let mut found = Look::default();
    let candidates = configured(upstreams)
        .filter(|peer| wanted.is_empty() || wanted.iter().any(|wanted| wanted.is(peer, &locals)));
    let candidates: Vec<Peer> = candidates.collect();
    let Some(own) = Process::own() else { return Ok(found) };
    let uid = rustix::process::geteuid().as_raw();
    let held = Processes::read(&proc).held(&proc, own, Daemon { pid: own.pid, uid });
    let Ok(held) = held else {
        let word = if wanted.is_empty() { Vec::new() } else { candidates };
        return Ok(by_word(word, &listeners));
    };
    found.addresses = listeners.describe(|inode| held.sockets.contains_key(&inode));
    let holders: BTreeMap<u64, PmId> = held.sockets.keys().map(|&inode| (inode, US)).collect();
    let scene =
        Scene { listeners: &listeners, locals: &locals, holders: &holders, daemons: &BTreeSet::new() };
    for peer in candidates {
        match scene.behind(&peer) {
            Behind::Worker(_) => found.ours.insert(peer),
            Behind::Stranger if is_held(&peer, &listeners, &holders) => found.shared.insert(peer),
            Behind::Stranger => found.taken.insert(peer),
            _ => false,
        };
    }
    Ok(found)
}

/// Whether one of the sockets is ours.
fn is_held(peer: &Peer, listeners: &Listeners, holders: &BTreeMap<u64, PmId>) -> bool {
    sockets(peer, listeners).iter().any(|inode| holders.contains_key(inode))
}

fn sockets(peer: &Peer, listeners: &Listeners) -> Vec<u64> {
    match peer.place() {
        Some(Place::Tcp(address)) => listeners.tcp(address),
        Some(Place::Unix(path)) => listeners.unix(path),
        None => Vec::new(),
    }
}

/// Our child's descriptors are not ours to see: then whoever listens where the user says is our child.
fn by_word(candidates: Vec<Peer>, listeners: &Listeners) -> Look {
    let ours = candidates.into_iter().filter(|peer| !sockets(peer, listeners).is_empty()).collect();
    Look { ours, ..Look::default() }
}

fn configured(upstreams: &Upstreams) -> impl Iterator<Item = Peer> {
    upstreams.upstreams.iter().flat_map(|upstream| {
        let configured = upstream.peers.iter().filter(|peer| peer.configured);
        configured.map(|peer| Peer::new(&upstream.name, &peer.address))
    })
}

// === impl Wanted ===

impl Wanted {
    /// A port is every peer with that port and an address of this host.
    pub fn is(&self, peer: &Peer, locals: &Locals) -> bool {
        match (self, peer.place()) {
            (Self::Port(port), Some(Place::Tcp(address))) => {
                *port == address.port() && locals.has(address.ip())
            }
            (Self::Socket(path), Some(Place::Unix(other))) => path == other,
            _ => false,
        }
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port(port) => write!(f, "port {port}"),
            Self::Socket(path) => write!(f, "unix:{path}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::net::TcpListener;

    fn upstreams(peers: &[&str]) -> Upstreams {
        let peer = |address: &&str| {
            json!({"address": address, "state": "up", "marks": [], "in_flight": 0, "requests": 0, "fails": 0,
                   "refused": 0, "retired_before": 0, "configured": true, "weight": 1, "backup": false})
        };
        let peers: Vec<_> = peers.iter().map(peer).collect();
        let view = json!({"instance": "1", "generation": 1, "upstreams": [{"name": "app", "peers": peers}]});
        serde_json::from_value(view).unwrap()
    }

    fn addresses(peers: &BTreeSet<Peer>) -> Vec<&str> {
        peers.iter().map(|peer| peer.address.as_str()).collect()
    }

    #[test]
    fn a_port_is_every_peer_of_this_host_with_it() {
        let view =
            upstreams(&["127.0.0.1:3001", "[::1]:3001", "192.0.2.77:3001", "127.0.0.1:3002", "unix:/a"]);
        assert_eq!(addresses(&named(&view, &[Wanted::Port(3001)])), ["127.0.0.1:3001", "[::1]:3001"]);
        assert_eq!(addresses(&named(&view, &[Wanted::Socket("/a".into())])), ["unix:/a"]);
    }

    #[test]
    fn a_peer_is_ours_if_nobody_else_listens_there() {
        let (one, other) =
            (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("0.0.0.0:0").unwrap());
        let port = |listener: &TcpListener| listener.local_addr().unwrap().port();
        let names = [format!("127.0.0.1:{}", port(&one)), format!("127.0.0.1:{}", port(&other))];
        let view = upstreams(&[&names[0], &names[1], "127.0.0.1:1"]);
        let all = look(&view, &[]).unwrap();
        assert!(names.iter().all(|name| addresses(&all.ours).contains(&name.as_str())), "{all:?}");
        assert_eq!((all.shared.len(), all.taken.len()), (0, 0));
        let first = look(&view, &[Wanted::Port(port(&one))]).unwrap();
        assert_eq!(addresses(&first.ours), [names[0].as_str()]);
    }
}
