//! A worker's processes and the sockets they hold.
//!
//! PM2 knows the process that it started; with `npm start` the one that listens is a grandchild.

use super::{
    Proc, Process, Unknown,
    process::{self, Stat},
};
use crate::pm2::trust::Daemon;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
};

/// Who is whose child, at one moment.
#[derive(Debug, Default)]
pub struct Processes {
    children: BTreeMap<u32, Vec<u32>>,
    alive: BTreeSet<Process>,
}

/// What a worker's processes hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// The inode of every open socket, and the process that has it.
    pub sockets: BTreeMap<u64, Process>,
}

impl Processes {
    pub fn read(proc: &Proc) -> Self {
        let mut processes = Self::default();
        let entries = fs::read_dir(proc.path()).into_iter().flatten().flatten();
        for pid in entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()) {
            if let Some(stat) = Stat::read(proc, pid) {
                processes.children.entry(stat.parent).or_default().push(pid);
                if !stat.is_dead {
                    processes.alive.insert(Process { pid, start: stat.start });
                }
            }
        }
        processes
    }

    pub fn pids(&self) -> impl Iterator<Item = u32> {
        self.children.values().flatten().copied()
    }

    /// The children of a process.
    pub fn of(&self, parent: u32) -> impl Iterator<Item = u32> {
        self.children.get(&parent).into_iter().flatten().copied()
    }

    /// The process and all its descendants, itself first.
    fn tree(&self, root: u32) -> Vec<u32> {
        let mut seen = BTreeSet::from([root]);
        let mut tree = vec![root];
        let mut next = 0;
        while let Some(pid) = tree.get(next) {
            let children = self.children.get(pid).map(Vec::as_slice).unwrap_or_default();
            let new: Vec<u32> = children.iter().copied().filter(|&child| seen.insert(child)).collect();
            tree.extend(new);
            next += 1;
        }
        tree
    }

    /// The process and all its descendants, as far as they are alive.
    pub fn family(&self, root: u32) -> Vec<Process> {
        let tree: BTreeSet<u32> = self.tree(root).into_iter().collect();
        self.alive.iter().filter(|process| tree.contains(&process.pid)).copied().collect()
    }

    /// The children of a process that run the same program as it does.
    pub fn kin(&self, proc: &Proc, parent: u32) -> Vec<Process> {
        let program = |pid: u32| fs::read_link(proc.of(pid).join("exe")).ok();
        let own = program(parent);
        let children = self.children.get(&parent).into_iter().flatten().copied();
        let kin = children.filter(|&pid| own.is_some() && program(pid) == own);
        kin.filter_map(|pid| Process::find(proc, pid)).collect()
    }

    /// The sockets of a worker, as far as its daemon may speak for it and we may look.
    pub fn held(&self, proc: &Proc, root: Process, daemon: Daemon) -> Result<Held, Unknown> {
        let mut held = Held::default();
        for pid in self.tree(root.pid) {
            let Some(process) = Process::find(proc, pid) else { continue };
            let user = process::user(proc, pid).unwrap_or(u32::MAX);
            if !daemon.may_speak_for(user) {
                // A child that changed its user is a stranger; a worker that did is not examined at all.
                if pid == root.pid {
                    return Err(Unknown::OtherUser(pid, user, daemon.uid));
                }
                continue;
            }
            match sockets(proc, pid) {
                Ok(inodes) => held.sockets.extend(inodes.into_iter().map(|inode| (inode, process))),
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    return Err(Unknown::NotAllowed(pid));
                }
                // It ended while we looked.
                Err(_) => {}
            }
            if !held.sockets.is_empty() && !shares_network(proc, pid) {
                return Err(Unknown::OtherNamespace(pid));
            }
        }
        Ok(held)
    }
}

/// The inodes of a process's open sockets.
pub fn sockets(proc: &Proc, pid: u32) -> io::Result<BTreeSet<u64>> {
    let files = fs::read_dir(proc.of(pid).join("fd"))?;
    Ok(files.flatten().filter_map(|file| inode(fs::read_link(file.path()).ok()?.to_str()?)).collect())
}

fn inode(link: &str) -> Option<u64> {
    link.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// Whether a process sees the same network as we do. Its sockets are in our tables only then.
fn shares_network(proc: &Proc, pid: u32) -> bool {
    let namespace = |of: std::path::PathBuf| fs::read_link(of.join("ns/net")).ok();
    match (namespace(proc.of(pid)), namespace(proc.path().join("self"))) {
        (Some(theirs), Some(ours)) => theirs == ours,
        // Not ours to see: its socket inodes would not be found in our tables either.
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn children(children: &[(u32, &[u32])]) -> Processes {
        let children = children.iter().map(|(parent, children)| (*parent, children.to_vec()));
        Processes { children: children.collect(), ..Processes::default() }
    }

    #[test]
    fn a_tree_is_the_process_and_its_descendants() {
        let processes = children(&[(1, &[2, 9]), (2, &[3, 4]), (4, &[5]), (5, &[2])]);
        assert_eq!(processes.tree(2), [2, 3, 4, 5]);
        assert_eq!(processes.tree(9), [9]);
    }

    #[test]
    fn a_family_is_those_who_live() {
        let processes = Processes {
            alive: [(2, 20), (3, 30), (9, 90)].map(|(pid, start)| Process { pid, start }).into(),
            ..children(&[(1, &[2, 9]), (2, &[3, 4])])
        };
        assert_eq!(processes.family(2), [(2, 20), (3, 30)].map(|(pid, start)| Process { pid, start }));
        let own = Process::own().unwrap();
        assert!(Processes::read(&Proc::default()).family(own.pid).contains(&own));
    }

    #[test]
    fn kin_runs_the_same_program() {
        let proc = Proc::default();
        let other = std::process::Command::new("sleep").arg("60").spawn();
        let mut other = other.unwrap();
        let own = Process::own().unwrap();
        let kin = Processes::read(&proc).kin(&proc, own.pid);
        assert!(kin.iter().all(|process| process.pid != other.id()), "{kin:?}");
        other.kill().unwrap();
        other.wait().unwrap();
        let parent = children(&[(own.pid, &[own.pid])]);
        assert_eq!(parent.kin(&proc, own.pid), [own]);
    }

    #[test]
    fn a_socket_is_known_by_its_inode() {
        assert_eq!(inode("socket:[4711]"), Some(4711));
        assert_eq!(inode("pipe:[4711]"), None);
        assert_eq!(inode("/tmp/socket:[4711]"), None);
    }

    #[test]
    fn our_own_listener_is_found() {
        let proc = Proc::default();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let own = Process::own().unwrap();
        let daemon = Daemon { pid: own.pid, uid: rustix::process::getuid().as_raw() };
        let held = Processes::read(&proc).held(&proc, own, daemon).unwrap();
        let listeners = super::super::Listeners::read(&proc).unwrap();
        let found = listeners.tcp(listener.local_addr().unwrap());
        assert_eq!(found.len(), 1);
        assert_eq!(held.sockets.get(&found[0]), Some(&own));
    }

    #[test]
    fn another_users_process_is_not_claimed() {
        let proc = Proc::default();
        let own = Process::own().unwrap();
        let uid = rustix::process::getuid().as_raw();
        let daemon = Daemon { pid: 1, uid: uid + 1 };
        let unknown = Processes::read(&proc).held(&proc, own, daemon);
        assert_eq!(unknown, Err(Unknown::OtherUser(own.pid, uid, uid + 1)));
    }
}
