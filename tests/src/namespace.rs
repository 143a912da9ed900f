//! Another machine, as nginx sees it: a network namespace behind a pair of virtual interfaces. Needs root and `ip`.

use crate::command;
use anyhow::{Context, Result};
use std::{
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process,
};
use tokio::process::Command;

/// Gone when it is dropped, with its interfaces; what still runs in it keeps running, alone.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    address: Ipv4Addr,
}

// === impl Namespace ===

impl Namespace {
    /// One, with 198.18.x.y/30 between it and us: addresses that are set aside for measurements (RFC 2544).
    pub async fn new() -> Result<Self> {
        let number = process::id();
        let [.., high, low] = number.to_be_bytes();
        let subnet = Ipv4Addr::new(198, 18, high, low & !3);
        let [ours, theirs] = [1, 2].map(|host| Ipv4Addr::from_bits(subnet.to_bits() + host));
        let (name, outside, inside) =
            (format!("handoff-{number}"), format!("ho{number}"), format!("hi{number}"));
        ip(&format!("netns add {name}")).await.context("a network namespace needs root, and iproute2")?;
        let namespace = Self { name, address: theirs };
        let name = &namespace.name;
        for line in [
            format!("link add {outside} type veth peer name {inside} netns {name}"),
            format!("addr add {ours}/30 dev {outside}"),
            format!("link set {outside} up"),
            format!("-n {name} addr add {theirs}/30 dev {inside}"),
            format!("-n {name} link set {inside} up"),
            format!("-n {name} link set lo up"),
        ] {
            ip(&line).await?;
        }
        Ok(namespace)
    }

    /// Its address, as we reach it.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// What others enter it by.
    pub fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    /// What runs a program in it.
    pub fn command(&self, program: &str) -> Command {
        let mut command = command::clean("ip");
        command.args(["netns", "exec", &self.name, program]);
        command
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let delete = |what: [&str; 3]| _ = process::Command::new("ip").args(what).status();
        // With the namespace it goes, too, but some time later.
        delete(["link", "delete", &self.name.replace("handoff-", "ho")]);
        delete(["netns", "delete", &self.name]);
    }
}

async fn ip(line: &str) -> Result<String> {
    command::succeed(command::clean("ip").args(line.split(' '))).await
}
