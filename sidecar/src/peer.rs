//! A peer as nginx names it, and the address that its name stands for.

use serde::{Deserialize, Serialize};
use std::{fmt, net::SocketAddr};

/// One address in one upstream.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Peer {
    pub upstream: String,
    pub address: String,
}

/// What an address is, if we understand it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place<'a> {
    Tcp(SocketAddr),
    Unix(&'a str),
}

impl Peer {
    pub fn new(upstream: impl Into<String>, address: impl Into<String>) -> Self {
        Self { upstream: upstream.into(), address: address.into() }
    }

    pub fn place(&self) -> Option<Place<'_>> {
        Place::parse(&self.address)
    }
}

impl<'a> Place<'a> {
    pub fn parse(address: &'a str) -> Option<Self> {
        if let Some(path) = address.strip_prefix("unix:") {
            return Some(Self::Unix(path));
        }
        let address: SocketAddr = address.parse().ok()?;
        Some(Self::Tcp(SocketAddr::new(address.ip().to_canonical(), address.port())))
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in {}", self.address, self.upstream)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stands_for_an_address_or_a_path() {
        assert_eq!(Place::parse("127.0.0.1:80"), Some(Place::Tcp("127.0.0.1:80".parse().unwrap())));
        assert_eq!(Place::parse("[::ffff:127.0.0.1]:80"), Some(Place::Tcp("127.0.0.1:80".parse().unwrap())));
        assert_eq!(Place::parse("[::1]:80"), Some(Place::Tcp("[::1]:80".parse().unwrap())));
        assert_eq!(Place::parse("unix:/run/a b.sock"), Some(Place::Unix("/run/a b.sock")));
        assert_eq!(Place::parse("app.example:80"), None);
    }
}
