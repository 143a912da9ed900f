//! What is to be known of an app in cluster mode before one of its workers is replaced.

use super::{
    Options,
    plan::{self, Surroundings},
    world::{Seen, World},
};
use crate::{
    host::connections,
    peer::{Peer, Place},
    pm2::{
        PmId,
        monitor::{Settings, Status},
    },
    preload::workers::kill_timeout,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// Where the app listens; all its workers do.
    pub peers: BTreeSet<Peer>,
    /// Whose double the canary is. None: nobody serves, so that nothing can be lost.
    pub model: Option<PmId>,
    /// From PM2's signal to SIGKILL.
    pub kill_timeout: Duration,
    /// Each worker can be asked to [finish](super::parting) what it has before that signal.
    pub finishes: bool,
}

// === impl Cluster ===

impl Cluster {
    pub fn of(workers: &BTreeMap<PmId, &Seen>, world: &World, around: Surroundings<'_>) -> Self {
        let peers = workers.iter().flat_map(|(&id, seen)| plan::peers(id, seen, world, around)).collect();
        let online: Vec<PmId> = workers
            .iter()
            .filter(|(_, seen)| seen.listed.status == Status::Online)
            .map(|(&id, _)| id)
            .collect();
        let first = workers.values().next().map(|seen| seen.listed.settings.clone()).unwrap_or_default();
        Self {
            peers,
            model: online.first().copied(),
            kill_timeout: kill_timeout(&first),
            finishes: online.len() > 1 && online.iter().all(|id| around.preloads.contains(id)),
        }
    }

    pub fn reasons(
        &self,
        app: &str,
        workers: &BTreeMap<PmId, &Seen>,
        around: Surroundings<'_>,
        options: &Options,
    ) -> Vec<String> {
        let unknown = workers.iter().find_map(|(id, seen)| {
            Some(format!("what {app}:{id} listens on is not known: {}", seen.unknown.as_ref()?))
        });
        let listens = workers.values().next().map(|seen| seen.listens.clone()).unwrap_or_default();
        let uncovered = if options.uncovered_ok {
            Vec::new()
        } else {
            plan::uncovered(app, &self.peers, &listens, around)
        };
        let settings = workers.values().map(|seen| &seen.listed.settings);
        let canary = self.model.and_then(|_| noticed(app, settings));
        let untold = connections::are_told()
            .err()
            .filter(|_| !self.peers.is_empty())
            .map(|error| format!("the kernel does not tell here whose a connection is (sock_diag): {error}"));
        unknown
            .into_iter()
            .chain(untold)
            .chain(uncovered)
            .chain(canary)
            .chain(self.unreachable(options))
            .collect()
    }

    /// Where no worker can be told from the others.
    fn unreachable(&self, options: &Options) -> Option<String> {
        options.health.as_ref()?;
        let peer = self.peers.iter().find(|peer| !matches!(peer.place(), Some(Place::Tcp(_))))?;
        Some(format!(
            "--health asks each worker, and behind {} they cannot be told apart: in cluster mode it needs an address \
             of TCP",
            peer.address
        ))
    }
}

/// What one more worker, the canary, would change that somebody notices.
pub fn noticed<'a>(app: &str, workers: impl Iterator<Item = &'a Settings> + Clone) -> Option<String> {
    if let Some(name) = workers.clone().find_map(|settings| settings.increment_var.as_ref()) {
        return Some(format!(
            "{app} counts {name} up from worker to worker (increment_var): the canary, with which a release is tried \
             in cluster mode, would have a {name} that no worker has. Take increment_var away, or use fork mode"
        ));
    }
    // PM2 gives the lowest number that is free.
    let has_first = workers.clone().any(|settings| settings.instance == Some(0));
    (!has_first).then(|| {
        format!(
            "the canary, with which a release is tried in cluster mode, would be instance 0 of {app}, which no worker is \
             now, and would do what only that one does: `pm2 scale {app} +1` gives the number to a worker"
        )
    })
}
