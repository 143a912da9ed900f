//! What was found when we looked: PM2's list and the kernel's tables of one moment.

use crate::{
    host::{Listeners, Locals, Proc, Process, Processes, Unknown, tree::Held},
    pm2::{PmId, monitor::Listed, trust::Daemon},
};
use std::{collections::BTreeMap, io, time::Instant};

#[derive(Clone, Debug)]
pub struct Look {
    pub began: Instant,
    /// None: PM2 was not asked, or did not answer.
    pub listed: Option<Vec<Listed>>,
    /// The workers whose processes were examined.
    pub examined: BTreeMap<PmId, Examined>,
    pub listeners: Listeners,
    pub locals: Locals,
}

#[derive(Clone, Debug)]
pub struct Examined {
    pub process: Process,
    pub held: Result<Held, Unknown>,
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
        let examined = roots
            .iter()
            .filter(|(_, process)| process.is_alive(proc))
            .map(|&(id, process)| (id, Examined { process, held: processes.held(proc, process, daemon) }))
            .collect();
        Ok(Self { began, listed: None, examined, listeners, locals: Locals::read(proc) })
    }

    /// Whose sockets are whose.
    pub fn holders(&self) -> BTreeMap<u64, PmId> {
        let held = self.examined.iter().filter_map(|(&id, worker)| Some((id, worker.held.as_ref().ok()?)));
        held.flat_map(|(id, held)| held.sockets.keys().map(move |&inode| (inode, id))).collect()
    }
}

/// The living processes of listed workers.
pub fn roots(proc: &Proc, listed: &[Listed]) -> Vec<(PmId, Process)> {
    listed.iter().filter_map(|worker| Some((worker.id, Process::find(proc, worker.pid?)?))).collect()
}
