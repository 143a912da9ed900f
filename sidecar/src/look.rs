//! What was found when we looked: PM2's list and the kernel's tables of one moment.

use crate::{
    host::{
        Listeners, Locals, Proc, Process, Processes, Unknown,
        tree::{self, Held},
    },
    mapping::{Behind, Scene},
    peer::{Peer, Place},
    pm2::{PmId, monitor::Listed, trust::Daemon},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

#[derive(Clone, Debug)]
pub struct Look {
    pub began: Instant,
    /// None: PM2 was not asked, or did not answer.
    pub listed: Option<Vec<Listed>>,
    /// The workers whose processes were examined.
    pub examined: BTreeMap<PmId, Examined>,
    /// PM2's daemon; 0 is none that we know.
    pub daemon: u32,
    /// It has ended, and none that we know is in its place. So nobody starts a worker that is not there.
    pub is_orphaned: bool,
    /// Its own sockets: in cluster mode it is the one that listens.
    pub daemons: BTreeSet<u64>,
    /// Children of the daemon that are none of the workers looked at. Beside PM2's whole list: workers that have been
    /// replaced, and are about to end.
    pub leavers: BTreeSet<Process>,
    /// `pm2 update` is at work: who was stopped is started again. None: that was not looked for.
    pub updating: Option<bool>,
    pub listeners: Listeners,
    pub locals: Locals,
    /// Whether a connection was refused, where one was tried.
    pub refused: BTreeMap<Peer, bool>,
}

#[derive(Clone, Debug)]
pub struct Examined {
    pub process: Process,
    pub held: Result<Held, Unknown>,
}

/// A look, and what must be as it was for the next one to find the same.
#[derive(Debug)]
pub struct Before {
    look: Look,
    family: Vec<Process>,
    roots: Vec<(PmId, Process)>,
    /// So often its findings have been taken for the next one's.
    again: u32,
}

/// After so many, who holds which socket is read anew, whatever else there is.
const AGAIN: u32 = 9;

impl Before {
    /// None: not for another look.
    pub fn new(look: &Look, processes: &Processes, roots: Vec<(PmId, Process)>) -> Option<Self> {
        let was_told_all = look.examined.values().all(|examined| examined.held.is_ok());
        let is_known = look.daemon != 0 && look.examined.len() == roots.len();
        (was_told_all && is_known).then(|| {
            let family = processes.family(look.daemon);
            let look = Look { listed: None, updating: None, refused: BTreeMap::new(), ..look.clone() };
            Self { look, family, roots, again: 0 }
        })
    }

    /// Looks only at who lives and who listens: while nobody comes, goes, or listens elsewhere, nothing else changes. To read
    /// what each worker has open is by far the dearest part of a look. None: it is due.
    pub fn look_again(
        &mut self,
        proc: &Proc,
        began: Instant,
        daemon: Option<Daemon>,
        processes: &Processes,
        roots: &[(PmId, Process)],
    ) -> io::Result<Option<Look>> {
        let daemon = daemon.map_or(0, |daemon| daemon.pid);
        let listeners = Listeners::read(proc)?;
        let is_same = self.holds(daemon, &processes.family(daemon), roots, &listeners);
        Ok(is_same.then(|| Look { began, locals: Locals::read(proc), ..self.look.clone() }))
    }

    fn holds(
        &mut self,
        daemon: u32,
        family: &[Process],
        roots: &[(PmId, Process)],
        listeners: &Listeners,
    ) -> bool {
        self.again += 1;
        self.again <= AGAIN
            && self.look.daemon == daemon
            && self.roots == roots
            && self.family == family
            && self.look.listeners == *listeners
    }
}

impl Look {
    /// Looks at the given processes, and at who listens where. `processes` may be a little older than the look.
    pub fn take(
        proc: &Proc,
        began: Instant,
        daemon: Option<Daemon>,
        processes: &Processes,
        roots: &[(PmId, Process)],
    ) -> io::Result<Self> {
        // First who listens, then whose it is: a socket that is new in between is missed, never taken for a stranger's.
        let listeners = Listeners::read(proc)?;
        // A daemon that we do not know speaks for nobody.
        let daemon = daemon.unwrap_or(Daemon { pid: 0, uid: u32::MAX });
        let daemons = tree::sockets(proc, daemon.pid).unwrap_or_default();
        let is_root = |process: &Process| roots.iter().any(|(_, root)| root == process);
        let leavers = processes.kin(proc, daemon.pid).into_iter().filter(|kin| !is_root(kin)).collect();
        let examined = roots
            .iter()
            .filter(|(_, process)| process.is_alive(proc))
            .map(|&(id, process)| (id, Examined { process, held: processes.held(proc, process, daemon) }))
            .collect();
        let locals = Locals::read(proc);
        Ok(Self {
            began,
            listed: None,
            examined,
            daemon: daemon.pid,
            is_orphaned: daemon.pid != 0 && !processes.pids().any(|pid| pid == daemon.pid),
            daemons,
            leavers,
            updating: None,
            listeners,
            locals,
            refused: BTreeMap::new(),
        })
    }

    /// Tries a connection to each.
    pub fn try_each(&mut self, peers: &BTreeSet<Peer>) {
        let address = |peer: &Peer| match peer.place() {
            Some(Place::Tcp(address)) => Some(address),
            _ => None,
        };
        let addresses = peers.iter().filter_map(|peer| Some((peer, address(peer)?)));
        self.refused = addresses.map(|(peer, address)| (peer.clone(), is_refused(&address))).collect();
    }

    pub fn behind(&self, scene: &Scene<'_>, peer: &Peer) -> Behind {
        scene.behind(peer).tried(self.refused.get(peer).copied())
    }

    /// Whose sockets are whose.
    pub fn holders(&self) -> BTreeMap<u64, PmId> {
        let held = self.examined.iter().filter_map(|(&id, worker)| Some((id, worker.held.as_ref().ok()?)));
        held.flat_map(|(id, held)| held.sockets.keys().map(move |&inode| (inode, id))).collect()
    }
}

/// On this host that is known at once; what takes longer is on its way to somewhere else.
fn is_refused(address: &SocketAddr) -> bool {
    let tried = TcpStream::connect_timeout(address, Duration::from_millis(10));
    tried.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

/// The living processes of listed workers.
pub fn roots(proc: &Proc, listed: &[Listed]) -> Vec<(PmId, Process)> {
    listed.iter().filter_map(|worker| Some((worker.id, Process::find(proc, worker.pid?)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    const ADDRESS: (&str, u64) = ("127.0.0.1:3000", 7);

    #[test]
    fn what_was_found_holds_until_somebody_comes_goes_or_listens_elsewhere() {
        let [worker, other] = [3, 4].map(|pid| Process { pid, start: 1 });
        let listeners = Listeners::of(&[ADDRESS], &[]);
        let roots = [(PmId(0), worker)];
        let before = || Before {
            look: Look {
                began: Instant::now(),
                listed: None,
                examined: BTreeMap::new(),
                daemon: 2,
                is_orphaned: false,
                daemons: BTreeSet::new(),
                leavers: BTreeSet::new(),
                updating: None,
                listeners: listeners.clone(),
                locals: Locals::of(&[]),
                refused: BTreeMap::new(),
            },
            family: vec![worker],
            roots: roots.to_vec(),
            again: 0,
        };
        assert!(before().holds(2, &[worker], &roots, &listeners));
        assert!(!before().holds(5, &[worker], &roots, &listeners));
        assert!(!before().holds(2, &[worker, other], &roots, &listeners));
        assert!(!before().holds(2, &[worker], &[(PmId(1), worker)], &listeners));
        let moved = Listeners::of(&[("127.0.0.1:3000", 8)], &[]);
        assert!(!before().holds(2, &[worker], &roots, &moved));
        let mut before = before();
        let times = (0..100).take_while(|_| before.holds(2, &[worker], &roots, &listeners)).count();
        assert_eq!(times, AGAIN as usize, "then it is read anew, whatever else there is");
    }

    #[test]
    fn a_connection_is_refused_where_nobody_listens() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        assert!(!is_refused(&address));
        drop(listener);
        assert!(is_refused(&address));
    }
}
