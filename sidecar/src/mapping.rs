//! Which worker stands behind which peer.
//!
//! A peer belongs to a worker if the socket that gets the peer's connections is held by that worker's processes, and by
//! nobody else's. Anything less is not a claim: a peer that is not certain is not touched.

use crate::{
    host::{Listeners, Locals},
    peer::{Peer, Place},
    pm2::PmId,
};
use std::collections::{BTreeMap, BTreeSet};

/// What stands behind a peer's address now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Behind {
    /// Nobody listens that we can see.
    Nobody,
    /// Nobody listens: a connection was refused.
    Refused,
    /// One worker alone.
    Worker(PmId),
    /// PM2's daemon, for the workers of an app in cluster mode.
    Daemon,
    /// Several workers share the address.
    Several(BTreeSet<PmId>),
    /// Somebody else listens, alone or beside a worker.
    Stranger,
    /// Another host's address.
    Foreign,
    /// Neither an IP address nor a path.
    Unclear,
}

impl Behind {
    /// With what came of a connection, if one was tried: a packet filter may lead on from where nobody listens.
    pub fn tried(self, is_refused: Option<bool>) -> Self {
        match (self, is_refused) {
            (Self::Nobody, Some(true)) => Self::Refused,
            (Self::Nobody, Some(false)) => Self::Unclear,
            (behind, _) => behind,
        }
    }

    pub fn is_nobody(&self) -> bool {
        matches!(self, Self::Nobody | Self::Refused)
    }
}

/// What the kernel says, as far as mapping needs it.
#[derive(Clone, Debug)]
pub struct Scene<'a> {
    pub listeners: &'a Listeners,
    pub locals: &'a Locals,
    /// Whose sockets these are. A socket that is missing here is a stranger's.
    pub holders: &'a BTreeMap<u64, PmId>,
    /// The sockets of PM2's daemon.
    pub daemons: &'a BTreeSet<u64>,
}

impl Scene<'_> {
    pub fn behind(&self, peer: &Peer) -> Behind {
        let sockets = match peer.place() {
            None => return Behind::Unclear,
            Some(Place::Tcp(address)) if !self.locals.has(address.ip()) => return Behind::Foreign,
            Some(Place::Tcp(address)) => self.listeners.tcp(address),
            Some(Place::Unix(path)) => self.listeners.unix(path),
        };
        self.holder(&sockets)
    }

    fn holder(&self, sockets: &[u64]) -> Behind {
        if sockets.is_empty() {
            return Behind::Nobody;
        }
        if sockets.iter().all(|inode| self.daemons.contains(inode)) {
            return Behind::Daemon;
        }
        let holders: Option<BTreeSet<PmId>> =
            sockets.iter().map(|inode| self.holders.get(inode).copied()).collect();
        match holders {
            None => Behind::Stranger,
            Some(holders) if holders.len() == 1 => {
                holders.first().map_or(Behind::Nobody, |&worker| Behind::Worker(worker))
            }
            Some(holders) => Behind::Several(holders),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn behind(tcp: &[(&str, u64)], holders: &[(u64, u32)], address: &str) -> Behind {
        let scene = Scene {
            listeners: &Listeners::of(tcp, &[("/run/app.sock", 90)]),
            locals: &Locals::of(&["192.0.2.2", "fd00::2"]),
            holders: &holders.iter().map(|&(inode, id)| (inode, PmId(id))).collect(),
            daemons: &[50].into(),
        };
        scene.behind(&Peer::new("app", address))
    }

    const WORKER: Behind = Behind::Worker(PmId(1));

    #[test]
    fn a_worker_that_listens_on_the_address_is_the_peer() {
        let tcp = [("127.0.0.1:3000", 7), ("192.0.2.2:3001", 8)];
        assert_eq!(behind(&tcp, &[(7, 1), (8, 2)], "127.0.0.1:3000"), WORKER);
        assert_eq!(behind(&tcp, &[(7, 1), (8, 2)], "192.0.2.2:3001"), Behind::Worker(PmId(2)));
        assert_eq!(behind(&tcp, &[(7, 1)], "127.0.0.1:3001"), Behind::Nobody);
    }

    #[test]
    fn a_wildcard_listener_is_every_address_of_this_host_and_no_other() {
        let tcp = [("[::]:3000", 7)];
        for ours in ["127.0.0.1:3000", "[::1]:3000", "192.0.2.2:3000", "[fd00::2]:3000"] {
            assert_eq!(behind(&tcp, &[(7, 1)], ours), WORKER, "{ours}");
        }
        for foreign in ["192.0.2.3:3000", "10.0.0.1:3000", "[fd00::3]:3000"] {
            assert_eq!(behind(&tcp, &[(7, 1)], foreign), Behind::Foreign, "{foreign}");
        }
    }

    #[test]
    fn localhost_is_two_peers_and_only_the_one_that_is_listened_on_is_the_workers() {
        let tcp = [("127.0.0.1:3000", 7)];
        assert_eq!(behind(&tcp, &[(7, 1)], "127.0.0.1:3000"), WORKER);
        assert_eq!(behind(&tcp, &[(7, 1)], "[::1]:3000"), Behind::Nobody);
    }

    #[test]
    fn a_stranger_on_the_exact_address_keeps_it_from_a_wildcard_worker() {
        let tcp = [("0.0.0.0:3000", 7), ("127.0.0.1:3000", 8)];
        assert_eq!(behind(&tcp, &[(7, 1)], "127.0.0.1:3000"), Behind::Stranger);
        assert_eq!(behind(&tcp, &[(7, 1)], "192.0.2.2:3000"), WORKER);
    }

    #[test]
    fn a_shared_address_belongs_to_no_single_worker() {
        let tcp = [("0.0.0.0:3000", 7), ("0.0.0.0:3000", 8)];
        let both = Behind::Several([PmId(1), PmId(2)].into());
        assert_eq!(behind(&tcp, &[(7, 1), (8, 2)], "127.0.0.1:3000"), both);
        assert_eq!(behind(&tcp, &[(7, 1)], "127.0.0.1:3000"), Behind::Stranger);
        assert_eq!(behind(&tcp, &[(7, 1), (8, 1)], "127.0.0.1:3000"), WORKER);
    }

    #[test]
    fn in_cluster_mode_the_daemon_listens_whoever_else_holds_its_socket() {
        assert_eq!(behind(&[("127.0.0.1:3000", 50)], &[], "127.0.0.1:3000"), Behind::Daemon);
        assert_eq!(behind(&[("127.0.0.1:3000", 50)], &[(50, 1)], "127.0.0.1:3000"), Behind::Daemon);
        let beside = [("0.0.0.0:3000", 50), ("0.0.0.0:3000", 7)];
        assert_eq!(behind(&beside, &[], "127.0.0.1:3000"), Behind::Stranger);
    }

    #[test]
    fn a_unix_socket_is_known_by_its_path() {
        assert_eq!(behind(&[], &[(90, 1)], "unix:/run/app.sock"), WORKER);
        assert_eq!(behind(&[], &[(90, 1)], "unix:/run/other.sock"), Behind::Nobody);
        assert_eq!(behind(&[], &[(90, 1)], "app.example:80"), Behind::Unclear);
    }

    #[test]
    fn where_nobody_is_seen_to_listen_a_connection_tells() {
        assert_eq!(Behind::Nobody.tried(Some(true)), Behind::Refused);
        assert_eq!(Behind::Nobody.tried(Some(false)), Behind::Unclear);
        assert_eq!(Behind::Nobody.tried(None), Behind::Nobody);
        assert_eq!(Behind::Stranger.tried(Some(true)), Behind::Stranger);
    }
}
