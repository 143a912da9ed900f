//! Many backends in one Node process, that tell what arrived where, when, and over which connection.

use crate::{
    clock::Moment,
    command,
    door::Door,
    namespace::Namespace,
    place::{self, Place},
    ports, wait,
};
use anyhow::{Context, Result, ensure};
use hyper::Method;
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};
use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    fs,
    process::Stdio,
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::timeout,
};

/// How long it takes to answer what ends with `/slow`.
const SLOW: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_secs(10);

/// Killed when it is dropped.
#[derive(Debug)]
pub struct Farm {
    peers: Vec<String>,
    place: Place,
    seen: Cell<usize>,
    #[expect(dead_code, reason = "it is killed when this is dropped")]
    child: Child,
}

/// A request that reached a peer, answered or not.
#[derive(Clone, Debug, Deserialize)]
pub struct Arrival {
    /// The name by which nginx knows the peer.
    pub peer: String,
    /// Counted over all peers, in the order in which they were accepted.
    pub connection: u64,
    /// nginx's own end of it; none on a unix socket.
    pub port: Option<u16>,
    /// Its TLS session was an earlier one's.
    pub resumed: bool,
    pub path: String,
    #[serde(deserialize_with = "moment")]
    pub at: Moment,
    /// When its answer began; never, if it was broken or is still held.
    #[serde(deserialize_with = "moments")]
    pub answered: Option<Moment>,
}

/// So many free addresses on 127.0.0.1.
pub fn addresses(count: u16) -> Result<Vec<String>> {
    let first = ports::row(count)?;
    Ok((first..).take(count.into()).map(|port| ports::address(port).to_string()).collect())
}

// === impl Farm ===

impl Farm {
    /// Peers on free ports of 127.0.0.1.
    pub async fn start(count: u16) -> Result<Self> {
        Self::at(addresses(count)?).await
    }

    /// Peers with these names.
    pub async fn at(peers: Vec<String>) -> Result<Self> {
        Self::found(command::clean("node"), Place::new()?, peers, Duration::ZERO, None).await
    }

    /// Peers that close idle connections: Node's `keepAliveTimeout`.
    pub async fn with_timeout(count: u16, idle: Duration) -> Result<Self> {
        Self::found(command::clean("node"), Place::new()?, addresses(count)?, idle, None).await
    }

    /// Peers that speak TLS, with a certificate of their own making.
    pub async fn with_tls(count: u16) -> Result<Self> {
        let place = Place::new()?;
        let tls = certificate(&place).await?;
        Self::found(command::clean("node"), place, addresses(count)?, Duration::ZERO, Some(tls)).await
    }

    /// Peers on another machine that close idle connections: Node's `keepAliveTimeout`.
    pub async fn on(machine: &Namespace, count: u16, idle: Duration, tls: bool) -> Result<Self> {
        let place = Place::new()?;
        let tls = if tls { Some(certificate(&place).await?) } else { None };
        let first = ports::row(count)?;
        let peers = (first..).take(count.into()).map(|port| format!("{}:{port}", machine.address()));
        Self::found(machine.command("node"), place, peers.collect(), idle, tls).await
    }

    async fn found(
        mut node: Command,
        place: Place,
        peers: Vec<String>,
        idle: Duration,
        tls: Option<Value>,
    ) -> Result<Self> {
        let settings = json!({
            "peers": peers,
            "control": place.file("farm.sock"),
            "slow": SLOW.as_millis(),
            "idle": idle.as_millis(),
            "tls": tls,
        });
        node.arg(place::root().join("tests/apps/farm.js")).arg(settings.to_string());
        let child = listening(&mut node).await?;
        Ok(Self { peers, place, seen: Cell::default(), child })
    }

    pub fn peers(&self) -> Vec<&str> {
        self.peers.iter().map(String::as_str).collect()
    }

    /// What arrived since this was last asked.
    pub async fn arrivals(&self) -> Result<Vec<Arrival>> {
        let new: Vec<Arrival> = self.call(Method::GET, &format!("/arrivals?{}", self.seen.get())).await?;
        self.seen.set(self.seen.get() + new.len());
        Ok(new)
    }

    /// How many connections there have been.
    pub async fn connections(&self) -> Result<u64> {
        self.call(Method::GET, "/connections").await
    }

    /// The connections that each peer has.
    pub async fn open(&self) -> Result<BTreeMap<String, BTreeSet<u64>>> {
        self.call(Method::GET, "/open").await
    }

    /// Waits until each of these peers has a request that ends with `/hold`.
    pub async fn holds(&self, peers: &[&str]) -> Result<()> {
        wait::until("a request to be held", PATIENCE, async || {
            let held: BTreeSet<String> = self.call(Method::GET, "/held").await.ok()?;
            peers.iter().all(|&peer| held.contains(peer)).then_some(())
        })
        .await
    }

    /// Waits until all peers together hold so many requests.
    pub async fn holds_so_many(&self, wanted: usize) -> Result<()> {
        wait::until("so many requests to be held", PATIENCE, async || {
            let held: Vec<String> = self.call(Method::GET, "/held").await.ok()?;
            (held.len() == wanted).then_some(())
        })
        .await
    }

    /// Answers all that is held.
    pub async fn release(&self) -> Result<()> {
        self.call(Method::POST, "/release").await
    }

    /// Breaks the connections of a peer and closes its port.
    pub async fn stop(&self, peer: &str) -> Result<()> {
        self.call(Method::POST, &format!("/stop?{peer}")).await
    }

    pub async fn restart(&self, peer: &str) -> Result<()> {
        self.call(Method::POST, &format!("/start?{peer}")).await
    }

    async fn call<T: serde::de::DeserializeOwned>(&self, method: Method, path: &str) -> Result<T> {
        Door::Unix(self.place.file("farm.sock")).ask(method, path, "").await?.json()
    }
}

async fn certificate(place: &Place) -> Result<Value> {
    let (key, cert) = (place.file("key.pem"), place.file("cert.pem"));
    let mut openssl = command::clean("openssl");
    openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]);
    openssl.args(["-days", "2", "-subj", "/CN=localhost", "-keyout"]).arg(&key).arg("-out").arg(&cert);
    command::succeed(&mut openssl).await?;
    Ok(json!({ "key": fs::read_to_string(key)?, "cert": fs::read_to_string(cert)? }))
}

/// Comes back when it says that it is ready.
async fn listening(node: &mut Command) -> Result<Child> {
    // Its standard input is a pipe of ours, so that it ends with us however we end.
    let mut child = node.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("cannot run node")?;
    let stdout = child.stdout.take().context("no output")?;
    let mut line = String::new();
    let read = timeout(PATIENCE, BufReader::new(stdout).read_line(&mut line)).await;
    read.context("the farm does not listen")??;
    ensure!(line == "ready\n", "the farm says {line:?}");
    Ok(child)
}

fn moment<'de, D: Deserializer<'de>>(d: D) -> Result<Moment, D::Error> {
    u64::deserialize(d).map(Moment::from_nanos)
}

fn moments<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Moment>, D::Error> {
    Ok(Option::deserialize(d)?.map(Moment::from_nanos))
}
