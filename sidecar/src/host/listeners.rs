//! Every listening socket of this network namespace.

use super::{Proc, diag};
use std::{
    fs::File,
    io::{self, BufRead as _, BufReader},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listeners {
    tcp: Vec<Listener>,
    unix: Vec<(String, u64)>,
}

/// A socket that listens on TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Listener {
    pub(super) address: SocketAddr,
    /// If it is bound to every address of IPv6: of IPv4, too.
    pub(super) takes_v4: bool,
    pub(super) inode: u64,
}

/// TCP_LISTEN.
const LISTENING: &str = "0A";
/// The flag __SO_ACCEPTCON in /proc/net/unix.
const ACCEPTS: u32 = 0x1_0000;

impl Listeners {
    pub fn read(proc: &Proc) -> io::Result<Self> {
        // A kernel, or a sandbox, without sock_diag has the slow tables.
        let tcp = diag::listeners().or_else(|_| tables(proc))?;
        let rows = BufReader::new(File::open(proc.path().join("net/unix"))?).lines().skip(1);
        let mut unix = Vec::new();
        for row in rows {
            unix.extend(unix_row(&row?));
        }
        Ok(Self { tcp, unix })
    }

    #[cfg(test)]
    pub(crate) fn of(tcp: &[(&str, u64)], unix: &[(&str, u64)]) -> Self {
        Self {
            tcp: tcp
                .iter()
                .map(|&(address, inode)| Listener {
                    address: address.parse().unwrap(),
                    takes_v4: true,
                    inode,
                })
                .collect(),
            unix: unix.iter().map(|&(path, inode)| (path.to_owned(), inode)).collect(),
        }
    }

    /// The sockets that get a connection to this address of ours: those bound to it, else the wildcard ones of its
    /// family, else the wildcard ones of IPv6, which take IPv4 too unless told otherwise. More than one: they share it.
    pub fn tcp(&self, address: SocketAddr) -> Vec<u64> {
        let wildcard: IpAddr = match address {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let exact = self.bound(|listener| listener.address == address);
        let family = || self.bound(|listener| listener.address == SocketAddr::new(wildcard, address.port()));
        let dual = || {
            let any = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), address.port());
            self.bound(|listener| listener.address == any && listener.takes_v4)
        };
        let found = [exact].into_iter().chain(std::iter::once_with(family)).chain(std::iter::once_with(dual));
        found.into_iter().find(|found| !found.is_empty()).unwrap_or_default()
    }

    pub fn unix(&self, path: &str) -> Vec<u64> {
        self.unix.iter().filter(|(bound, _)| bound == path).map(|&(_, inode)| inode).collect()
    }

    pub fn inodes(&self) -> impl Iterator<Item = u64> {
        let tcp = self.tcp.iter().map(|listener| listener.inode);
        tcp.chain(self.unix.iter().map(|&(_, inode)| inode))
    }

    /// The addresses that belong to these sockets, for people.
    pub fn describe(&self, holds: impl Fn(u64) -> bool) -> Vec<String> {
        let held = self.tcp.iter().filter(|listener| holds(listener.inode));
        let tcp = held.map(|listener| listener.address.to_string());
        let unix =
            self.unix.iter().filter(|(_, inode)| holds(*inode)).map(|(path, _)| format!("unix:{path}"));
        tcp.chain(unix).collect()
    }

    fn bound(&self, is_it: impl Fn(&&Listener) -> bool) -> Vec<u64> {
        self.tcp.iter().filter(is_it).map(|listener| listener.inode).collect()
    }
}

/// `/proc/net/{tcp,tcp6}`
fn tables(proc: &Proc) -> io::Result<Vec<Listener>> {
    let mut found = Vec::new();
    for (table, parse) in [("tcp", v4 as fn(&str) -> Option<IpAddr>), ("tcp6", v6)] {
        let rows = match File::open(proc.path().join("net").join(table)) {
            Ok(file) => BufReader::new(file).lines().skip(1),
            // A kernel without IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        for row in rows {
            let listener = tcp_row(&row?, parse);
            found.extend(listener.map(|(address, inode)| Listener { address, takes_v4: true, inode }));
        }
    }
    Ok(found)
}

/// `   0: 0100007F:0BB8 00000000:0000 0A 00000000:00000000 00:00000000 00000000  0  0 4711 …`
fn tcp_row(row: &str, parse: fn(&str) -> Option<IpAddr>) -> Option<(SocketAddr, u64)> {
    let mut fields = row.split_ascii_whitespace();
    let (address, port) = fields.nth(1)?.split_once(':')?;
    if fields.nth(1)? != LISTENING {
        return None;
    }
    let inode = fields.nth(5)?.parse().ok()?;
    Some((SocketAddr::new(parse(address)?, u16::from_str_radix(port, 16).ok()?), inode))
}

/// `ffff8880: 00000002 00000000 00010000 0001 01  4711 /run/app/1.sock`
fn unix_row(row: &str) -> Option<(String, u64)> {
    let mut rest = row;
    // A path may hold spaces and is what is left in the end; a socket without one is nobody's peer.
    let mut field = || {
        let (field, tail) = rest.trim_start().split_once(' ')?;
        rest = tail;
        Some(field)
    };
    let (_number, _references, _protocol) = (field()?, field()?, field()?);
    let flags = u32::from_str_radix(field()?, 16).ok()?;
    let (_type, _state) = (field()?, field()?);
    let inode = field()?.parse().ok()?;
    (flags & ACCEPTS != 0).then(|| (rest.to_owned(), inode))
}

/// Each group of four bytes stands in the host's own order.
fn group(hex: &str) -> Option<[u8; 4]> {
    u32::from_str_radix(hex, 16).ok().map(u32::to_ne_bytes)
}

fn v4(hex: &str) -> Option<IpAddr> {
    group(hex).map(|bytes| Ipv4Addr::from(bytes).into())
}

fn v6(hex: &str) -> Option<IpAddr> {
    let mut bytes = [0; 16];
    for (to, index) in bytes.chunks_exact_mut(4).zip([0, 8, 16, 24]) {
        to.copy_from_slice(&group(hex.get(index..index + 8)?)?);
    }
    // A socket of IPv6 that is bound to an address of IPv4 is one of IPv4.
    Some(Ipv6Addr::from(bytes).to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(listeners: &Listeners, address: &str) -> Vec<u64> {
        listeners.tcp(address.parse().unwrap())
    }

    #[test]
    fn rows_of_the_kernels_tables_are_read() {
        let row = "   0: 0100007F:0BB8 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0000 100 0 0 10 0";
        assert_eq!(tcp_row(row, v4), Some(("127.0.0.1:3000".parse().unwrap(), 4711)));
        let row = "   1: 00000000000000000000000001000000:0BB8 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000  0 0 4712 1";
        assert_eq!(tcp_row(row, v6), Some(("[::1]:3000".parse().unwrap(), 4712)));
        let row = "   2: 0000000000000000FFFF00000100007F:0BB8 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000  0 0 4713 1";
        assert_eq!(tcp_row(row, v6), Some(("127.0.0.1:3000".parse().unwrap(), 4713)));
        let row = "   3: 0100007F:0BB8 0100007F:9C50 01 00000000:00000000 00:00000000 00000000     0        0 4714 1";
        assert_eq!(tcp_row(row, v4), None);
        assert_eq!(tcp_row("", v4), None);
    }

    #[test]
    fn a_unix_socket_may_have_spaces_in_its_path() {
        let row = "ffff8880: 00000002 00000000 00010000 0001 01  4711 /run/my app/1.sock";
        assert_eq!(unix_row(row), Some(("/run/my app/1.sock".into(), 4711)));
        assert_eq!(unix_row("ffff8880: 00000003 00000000 00000000 0001 03  4711 /run/app.sock"), None);
        assert_eq!(unix_row("ffff8880: 00000002 00000000 00010000 0001 01  4711"), None);
    }

    #[test]
    fn the_most_exact_listener_gets_the_connection() {
        let all = Listeners::of(&[("127.0.0.1:80", 1), ("0.0.0.0:80", 2), ("[::]:80", 3)], &[]);
        assert_eq!(tcp(&all, "127.0.0.1:80"), [1]);
        assert_eq!(tcp(&all, "127.0.0.2:80"), [2]);
        assert_eq!(tcp(&all, "[::1]:80"), [3]);
        assert_eq!(tcp(&all, "127.0.0.1:81"), [0_u64; 0]);
    }

    #[test]
    fn a_wildcard_of_ipv6_takes_ipv4_if_nobody_else_does() {
        let dual = Listeners::of(&[("[::]:80", 3)], &[]);
        assert_eq!(tcp(&dual, "127.0.0.1:80"), [3]);
        let v4 = Listeners::of(&[("0.0.0.0:80", 2)], &[]);
        assert_eq!(tcp(&v4, "[::1]:80"), [0_u64; 0]);
    }

    #[test]
    fn a_wildcard_of_ipv6_alone_takes_no_ipv4() {
        let mut listeners = Listeners::of(&[("[::]:80", 3)], &[]);
        listeners.tcp[0].takes_v4 = false;
        assert_eq!(tcp(&listeners, "127.0.0.1:80"), [0_u64; 0]);
        assert_eq!(tcp(&listeners, "[::1]:80"), [3]);
    }

    #[test]
    fn the_slow_tables_say_the_same() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let of =
            |found: Vec<Listener>| found.into_iter().find(|found| found.address == address).unwrap().inode;
        assert_eq!(of(tables(&Proc::default()).unwrap()), of(diag::listeners().unwrap()));
    }

    #[test]
    fn sockets_that_share_an_address_are_all_found() {
        let shared = Listeners::of(&[("0.0.0.0:80", 1), ("0.0.0.0:80", 2)], &[("/run/a.sock", 7)]);
        assert_eq!(tcp(&shared, "127.0.0.1:80"), [1, 2]);
        assert_eq!(shared.unix("/run/a.sock"), [7]);
        assert_eq!(shared.describe(|inode| inode != 1), ["0.0.0.0:80", "unix:/run/a.sock"]);
    }
}
