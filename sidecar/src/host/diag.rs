//! The kernel's own list of TCP sockets, asked for by netlink (`sock_diag(7)`): who listens, and who has a connection.
//!
//! `/proc/net/tcp` has the same, but to read its first line the kernel walks its whole table of connections: 5 to 10 ms on
//! an idle host, much more on a busy one, and we look every few milliseconds while a worker starts. This takes 50 µs
//! whatever the number of connections, and says besides whether a socket of IPv6 takes IPv4.

use super::{connections::Connection, listeners::Listener};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
    sockopt::{Timeout, set_socket_timeout},
};
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST_DUMP: u16 = 0x301;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const IPPROTO_TCP: u8 = 6;
const TCP_ESTABLISHED: u32 = 1;
const TCP_LISTEN: u32 = 10;
const INET_DIAG_SKV6ONLY: u16 = 11;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// struct nlmsghdr
const HEADER: usize = 16;
/// struct inet_diag_msg
const MESSAGE: usize = 72;
/// The kernel answers at once; a broken one must not hang us.
const PATIENCE: Duration = Duration::from_secs(1);

/// Which sockets; a port of 0 is any.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    state: u32,
    local: u16,
    remote: u16,
}

/// Every socket that listens on TCP.
pub(super) fn listeners() -> io::Result<Vec<Listener>> {
    dump(Wanted { state: TCP_LISTEN, local: 0, remote: 0 }, listener)
}

/// Every connection between these two ports, as seen from the first one.
pub(super) fn connections(local: u16, remote: u16) -> io::Result<Vec<Connection>> {
    dump(Wanted { state: TCP_ESTABLISHED, local, remote }, connection)
}

fn dump<T>(wanted: Wanted, read: fn(&[u8]) -> io::Result<T>) -> io::Result<Vec<T>> {
    let socket = socket_with(
        AddressFamily::NETLINK,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        Some(netlink::SOCK_DIAG),
    )?;
    set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE))?;
    let mut found = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    for family in [AF_INET, AF_INET6] {
        send(&socket, &request(family, wanted), SendFlags::empty())?;
        while !read_datagram(
            received(recv(&socket, &mut buffer, RecvFlags::empty())?.0, &buffer)?,
            &mut found,
            read,
        )? {}
    }
    Ok(found)
}

fn received(len: usize, buffer: &[u8]) -> io::Result<&[u8]> {
    buffer.get(..len).filter(|datagram| !datagram.is_empty()).ok_or_else(malformed)
}

/// struct nlmsghdr, struct inet_diag_req_v2
fn request(family: u8, Wanted { state, local, remote }: Wanted) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(72);
    bytes.extend(72_u32.to_ne_bytes());
    bytes.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend(NLM_F_REQUEST_DUMP.to_ne_bytes());
    bytes.extend([0; 8]); // sequence number, port
    bytes.extend([family, IPPROTO_TCP, 0, 0]);
    bytes.extend((1_u32 << state).to_ne_bytes());
    bytes.extend(local.to_be_bytes());
    bytes.extend(remote.to_be_bytes());
    bytes.resize(72, 0); // any address
    bytes
}

/// Reads the messages of one datagram. True: that was the last one.
fn read_datagram<T>(
    mut datagram: &[u8],
    found: &mut Vec<T>,
    read: fn(&[u8]) -> io::Result<T>,
) -> io::Result<bool> {
    while !datagram.is_empty() {
        let len = usize::try_from(u32_at(datagram, 0)?).map_err(|_| malformed())?;
        let kind = u16_at(datagram, 4)?;
        let body = datagram.get(HEADER..len).ok_or_else(malformed)?;
        match kind {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => {
                let errno = i32::from_ne_bytes(array_at(body, 0)?);
                return Err(io::Error::from_raw_os_error(errno.wrapping_neg()));
            }
            SOCK_DIAG_BY_FAMILY => found.push(read(body)?),
            _ => {}
        }
        datagram = datagram.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

fn listener(message: &[u8]) -> io::Result<Listener> {
    let attributes = message.get(MESSAGE..).unwrap_or_default();
    let takes_v4 = attribute(attributes, INET_DIAG_SKV6ONLY).is_none_or(|value| value.first() != Some(&1));
    Ok(Listener { address: address(message, 4, 8)?, takes_v4, inode: inode(message)? })
}

fn connection(message: &[u8]) -> io::Result<Connection> {
    let (local, remote) = (address(message, 4, 8)?, address(message, 6, 24)?);
    Ok(Connection { local, remote, inode: inode(message)? })
}

/// One end of a socket: where its port and its address stand.
fn address(message: &[u8], port: usize, address: usize) -> io::Result<SocketAddr> {
    let [family, ..] = *message else { return Err(malformed()) };
    let ip: IpAddr = match family {
        AF_INET => Ipv4Addr::from(array_at::<4>(message, address)?).into(),
        AF_INET6 => Ipv6Addr::from(array_at::<16>(message, address)?).to_canonical(),
        _ => return Err(malformed()),
    };
    Ok(SocketAddr::new(ip, u16::from_be_bytes(array_at(message, port)?)))
}

fn inode(message: &[u8]) -> io::Result<u64> {
    Ok(u32_at(message, 68)?.into())
}

/// The value of an attribute (struct rtattr).
fn attribute(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let len = usize::from(u16_at(attributes, 0).ok()?);
        let kind = u16_at(attributes, 2).ok()?;
        let value = attributes.get(4..len)?;
        if kind == wanted {
            return Some(value);
        }
        attributes = attributes.get(len.next_multiple_of(4)..)?;
    }
}

fn u32_at(bytes: &[u8], at: usize) -> io::Result<u32> {
    Ok(u32::from_ne_bytes(array_at(bytes, at)?))
}

fn u16_at(bytes: &[u8], at: usize) -> io::Result<u16> {
    Ok(u16::from_ne_bytes(array_at(bytes, at)?))
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> io::Result<[u8; N]> {
    bytes.get(at..at + N).and_then(|bytes| bytes.try_into().ok()).ok_or_else(malformed)
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer on its sockets is malformed")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn the_kernel_lists_a_new_listener() {
        for address in ["127.0.0.1:0", "0.0.0.0:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let found = listeners().unwrap();
            let wanted = listener.local_addr().unwrap();
            assert!(
                found.iter().any(|found| found.address == wanted && found.inode != 0),
                "{wanted}: {found:?}"
            );
        }
    }

    #[test]
    fn a_message_is_read_field_by_field() {
        let mut message = vec![0; MESSAGE];
        message[0] = AF_INET6;
        message[4..6].copy_from_slice(&3000_u16.to_be_bytes());
        message[68..72].copy_from_slice(&4711_u32.to_ne_bytes());
        let read = listener(&message).unwrap();
        let address = "[::]:3000".parse().unwrap();
        assert_eq!(read, Listener { address, takes_v4: true, inode: 4711 });
        message.extend(5_u16.to_ne_bytes());
        message.extend(INET_DIAG_SKV6ONLY.to_ne_bytes());
        message.extend([1, 0, 0, 0]);
        assert!(!listener(&message).unwrap().takes_v4);
        assert!(listener(&message[..40]).is_err());
    }

    #[test]
    fn an_error_of_the_kernel_is_an_error() {
        let mut datagram = 20_u32.to_ne_bytes().to_vec();
        datagram.extend(NLMSG_ERROR.to_ne_bytes());
        datagram.extend([0; 10]);
        datagram.extend((-2_i32).to_ne_bytes());
        let error = read_datagram(&datagram, &mut Vec::new(), listener).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(read_datagram(&[1, 0, 0], &mut Vec::new(), listener).is_err());
    }
}
