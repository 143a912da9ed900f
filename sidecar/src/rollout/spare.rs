//! Where another worker can stand in for the only one of an app: a port that its upstream has and nobody listens on.
//!
//! The app must be able to learn its port: the variable that says where it listens now says another one to the stand-in.

use crate::{
    peer::{Peer, Place},
    pm2::monitor::Settings,
};
use handoff_wire::Upstreams;
use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spare {
    pub peers: BTreeSet<Peer>,
    /// What tells the app its port.
    pub variable: String,
    pub port: u16,
}

impl Spare {
    /// For the worker of these peers. Error: what to do so that there is one.
    pub fn find(
        name: &str,
        settings: &Settings,
        own: &BTreeSet<Peer>,
        upstreams: &Upstreams,
        is_free: impl Fn(&Peer) -> bool,
    ) -> Result<Self, String> {
        let listens = own.first().map(|peer| peer.address.as_str()).unwrap_or_default();
        let untold = || {
            format!(
                "let PM2 tell {name} where to listen (no PORT of its environment says {listens}), and give the upstream a \
                 second `server`"
            )
        };
        let (Some(variable), Some(port)) = (&settings.port_var, settings.port) else { return Err(untold()) };
        let addresses: Option<Vec<(&str, IpAddr)>> = own.iter().map(|peer| at(peer, port)).collect();
        let addresses = addresses.ok_or_else(untold)?;
        let mut known = BTreeSet::new();
        for upstream in &upstreams.upstreams {
            let used = upstream.peers.iter().filter(|peer| peer.configured && !peer.backup);
            known.extend(used.map(|peer| Peer::new(&upstream.name, &peer.address)));
        }
        let is_ours = |peer: &&Peer| addresses.iter().any(|(upstream, _)| *upstream == peer.upstream);
        let ports: BTreeSet<u16> = known.iter().filter(is_ours).filter_map(port_of).collect();
        let peers = |port: u16| -> BTreeSet<Peer> {
            let peer =
                |&(upstream, ip): &(&str, IpAddr)| Peer::new(upstream, SocketAddr::new(ip, port).to_string());
            addresses.iter().map(peer).collect()
        };
        let is_spare = |port: &u16| peers(*port).iter().all(|peer| known.contains(peer) && is_free(peer));
        match ports.iter().copied().find(is_spare) {
            Some(port) => Ok(Self { peers: peers(port), variable: variable.clone(), port }),
            None => {
                let next = ports.last().and_then(|last| last.checked_add(1)).unwrap_or(port);
                let lines: Vec<String> = peers(next)
                    .iter()
                    .map(|Peer { upstream, address }| {
                        format!("`server {address};` to the upstream {upstream:?}")
                    })
                    .collect();
                Err(format!("add {}", lines.join(" and ")))
            }
        }
    }
}

/// Its upstream and its IP address, if it has this port.
fn at(peer: &Peer, port: u16) -> Option<(&str, IpAddr)> {
    match peer.place() {
        Some(Place::Tcp(address)) if address.port() == port => Some((&peer.upstream, address.ip())),
        _ => None,
    }
}

fn port_of(peer: &Peer) -> Option<u16> {
    match peer.place() {
        Some(Place::Tcp(address)) => Some(address.port()),
        _ => None,
    }
}
