//! Ports that are free on 127.0.0.1.

use anyhow::{Context, Result};
use std::{
    mem,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::{
        linux::net::SocketAddrExt,
        unix::net::{self, UnixListener},
    },
    process,
    sync::atomic::{AtomicU16, Ordering},
};

/// Below the ports that the kernel gives to outgoing connections, so that none of these takes one from us.
const FIRST: u16 = 16_000;
const STRIDE: u16 = 16;
const STRIDES: u16 = 1_000;

/// The first of `count` free ports in a row, which are nobody else's while this process lives. Processes that run side by side
/// look in different places.
pub fn row(count: u16) -> Result<u16> {
    static TAKEN: AtomicU16 = AtomicU16::new(0);
    let place = u16::try_from(process::id() % u32::from(STRIDES)).unwrap_or(0) * 7;
    (0..STRIDES)
        .map(|_| place.wrapping_add(TAKEN.fetch_add(count.div_ceil(STRIDE), Ordering::Relaxed)) % STRIDES)
        .filter(|&stride| (stride..stride + count.div_ceil(STRIDE)).all(take))
        .map(|stride| FIRST + stride * STRIDE)
        .find(|&first| (first..first + count).all(is_free))
        .context("no row of free ports on 127.0.0.1")
}

pub fn address(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// A port is free, too, while the worker that has it is restarted. So every sixteen have a name, which one process has at a time
/// and the kernel takes back.
fn take(stride: u16) -> bool {
    let name = net::SocketAddr::from_abstract_name(format!("handoff-ports-{stride}"));
    name.and_then(|name| UnixListener::bind_addr(&name)).map(mem::forget).is_ok()
}

fn is_free(port: u16) -> bool {
    TcpListener::bind(address(port)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_taken_once_though_nobody_listens_there() -> Result<()> {
        let stride = (row(4)? - FIRST) / STRIDE;
        assert!(is_free(FIRST + stride * STRIDE) && !take(stride));
        Ok(())
    }
}
