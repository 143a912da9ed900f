//! Ports that are free on 127.0.0.1.

use anyhow::{Context, Result};
use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    process,
    sync::atomic::{AtomicU16, Ordering},
};

/// Below the ports that the kernel gives to outgoing connections, so that none of these takes one from us.
const FIRST: u16 = 16_000;
const STRIDE: u16 = 16;
const STRIDES: u16 = 1_000;

/// The first of `count` free ports in a row. Processes that run side by side look in different places.
pub fn row(count: u16) -> Result<u16> {
    static TAKEN: AtomicU16 = AtomicU16::new(0);
    let place = u16::try_from(process::id() % u32::from(STRIDES)).unwrap_or(0) * 7;
    (0..STRIDES)
        .map(|_| place.wrapping_add(TAKEN.fetch_add(count.div_ceil(STRIDE), Ordering::Relaxed)) % STRIDES)
        .map(|stride| FIRST + stride * STRIDE)
        .find(|&first| (first..first + count).all(is_free))
        .context("no row of free ports on 127.0.0.1")
}

pub fn address(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

fn is_free(port: u16) -> bool {
    TcpListener::bind(address(port)).is_ok()
}
