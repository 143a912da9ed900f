//! Whose connection is whose: the kernel's tables, and the open files of processes.

use super::{Proc, Process, diag, tree};
use std::{collections::BTreeSet, io, net::SocketAddr};

/// A connection as one of its two ends has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    pub local: SocketAddr,
    pub remote: SocketAddr,
    /// 0: nobody has accepted it yet.
    pub inode: u64,
}

/// Who has the other end of a connection of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// The process that was asked for.
    Wanted,
    Other,
    /// Nobody yet, or PM2's daemon, which is about to hand it on.
    Nobody,
}

/// Error: this kernel, or what it is locked in, does not tell.
pub fn are_told() -> io::Result<()> {
    diag::connections(1, 1).map(drop)
}

/// `ours` and `theirs`: the two ends of the connection.
pub fn holder(
    proc: &Proc,
    (ours, theirs): (SocketAddr, SocketAddr),
    wanted: Process,
    daemon: u32,
) -> io::Result<Holder> {
    let same = |one: SocketAddr, other: SocketAddr| {
        one.ip().to_canonical() == other.ip().to_canonical() && one.port() == other.port()
    };
    let connections = diag::connections(theirs.port(), ours.port())?;
    let is_it = |other: &&Connection| same(other.local, theirs) && same(other.remote, ours);
    let Some(inode) = connections.iter().find(is_it).map(|other| other.inode).filter(|&inode| inode != 0)
    else {
        return Ok(Holder::Nobody);
    };
    // The daemon lets go of it when a worker has taken it: first the daemon, then the worker.
    let is_on_its_way = tree::sockets(proc, daemon)?.contains(&inode);
    Ok(match tree::sockets(proc, wanted.pid) {
        Ok(sockets) if sockets.contains(&inode) && wanted.is_alive(proc) => Holder::Wanted,
        _ if is_on_its_way => Holder::Nobody,
        _ => Holder::Other,
    })
}

/// Every connection to this address of ours.
pub fn at(address: SocketAddr) -> io::Result<Vec<Connection>> {
    let here = |connection: &Connection| connection.local == address;
    Ok(diag::connections(address.port(), 0)?.into_iter().filter(here).collect())
}

/// How many clients a process has at these ports of its own.
pub fn clients(proc: &Proc, process: Process, ports: &BTreeSet<u16>) -> io::Result<u64> {
    let held = tree::sockets(proc, process.pid)?;
    let mut clients = 0;
    for &port in ports {
        let connections = diag::connections(port, 0)?;
        clients += connections.iter().filter(|connection| held.contains(&connection.inode)).count() as u64;
    }
    Ok(clients)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn the_process_at_the_other_end_is_found() {
        let proc = Proc::default();
        let own = Process::own().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let ends = (client.local_addr().unwrap(), client.peer_addr().unwrap());
        assert_eq!(holder(&proc, ends, own, own.pid).unwrap(), Holder::Nobody, "nobody has accepted it");
        let (_server, _) = listener.accept().unwrap();
        let parent = std::os::unix::process::parent_id();
        assert_eq!(holder(&proc, ends, own, parent).unwrap(), Holder::Wanted);
        let dead = Process { start: own.start + 1, ..own };
        assert_eq!(holder(&proc, ends, dead, own.pid).unwrap(), Holder::Nobody, "the daemon has it");
        assert_eq!(holder(&proc, ends, dead, parent).unwrap(), Holder::Other);
    }

    #[test]
    fn clients_are_counted_at_the_ports_that_matter() {
        let (proc, own) = (Proc::default(), Process::own().unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let clients = || clients(&proc, own, &[address.port()].into()).unwrap();
        assert_eq!(clients(), 0);
        let _client = TcpStream::connect(address).unwrap();
        assert_eq!(clients(), 0, "not accepted");
        let _server = listener.accept().unwrap();
        assert_eq!(clients(), 1);
    }
}
