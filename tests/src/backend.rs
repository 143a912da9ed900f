//! A Node process that is several peers, and does what a test tells it.

use crate::{command, door::Door, http, place, ports, wait};
use anyhow::Result;
use hyper::StatusCode;
use std::{net::SocketAddr, time::Duration};
use tokio::process::Child;

const PATIENCE: Duration = Duration::from_secs(10);

/// Killed when it is dropped.
#[derive(Debug)]
pub struct Backend {
    ports: Vec<u16>,
    #[expect(dead_code, reason = "it is killed when this is dropped")]
    child: Child,
}

impl Backend {
    /// As many peers as asked for, once all of them listen.
    pub async fn start(peers: u16) -> Result<Self> {
        let ports: Vec<u16> = (ports::row(peers)?..).take(peers.into()).collect();
        let mut node = command::clean("node");
        node.arg(place::root().join("tests/apps/backend.js"));
        node.args(ports.iter().map(ToString::to_string));
        let backend = Self { ports, child: node.spawn()? };
        for address in backend.addresses() {
            wait::until("a backend to listen", PATIENCE, async || {
                http::status(address, "/").await.filter(StatusCode::is_success)
            })
            .await?;
        }
        Ok(backend)
    }

    pub fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.ports.iter().map(|&port| ports::address(port))
    }

    /// What nginx and the API call a peer.
    pub fn peer(&self, number: usize) -> String {
        self.addresses().nth(number).map(|address| address.to_string()).unwrap_or_default()
    }

    /// The `server` lines of an upstream.
    pub fn servers(&self) -> String {
        self.addresses().map(|address| format!("server {address};")).collect::<Vec<_>>().join(" ")
    }

    /// Waits until exactly so many requests are held.
    pub async fn holds(&self, wanted: usize) -> Result<()> {
        let door = self.door();
        let what = format!("{wanted} requests to be held");
        wait::until(&what, PATIENCE, async || {
            let held = door.get("/held").await.ok()?.text();
            (held == wanted.to_string()).then_some(())
        })
        .await
    }

    pub async fn release(&self) -> Result<()> {
        self.door().get("/release").await?;
        Ok(())
    }

    fn door(&self) -> Door {
        Door::Tcp(ports::address(self.ports.first().copied().unwrap_or_default()))
    }
}
