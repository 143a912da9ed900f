//! Several machines on one network: each is a network namespace, and all are wired to one switch. Needs root and `ip`.
//!
//! Nothing of it touches the network of the machine itself: the switch stands in a namespace, too, where no firewall of the
//! host looks at what passes. All have the addresses that are set aside for measurements (RFC 2544).
//!
//! A wire between two machines is cut silently, as a firewall cuts that drops: who sends waits in vain, and a connection
//! that stood seems to stand. Both are told a wrong hardware address of each other, which any kernel can do; `tc` and
//! `nft` need modules that not every kernel has.
//!
//! A name holds the pid of the process that made it. What a killed one left behind goes as soon as the next one begins.

use crate::{command, process};
use anyhow::{Context, Result};
use rustix::{
    process::Signal,
    thread::{LinkNameSpaceType, move_into_link_name_space},
};
use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    os::fd::AsFd,
    path::Path,
    process::Command,
    sync::atomic::{AtomicU16, Ordering},
    thread,
    time::Duration,
};
use tokio::{
    runtime::{Builder, Handle},
    sync::oneshot,
};

const PREFIX: &str = "handoff-lab-";
const FOLDER: &str = "/run/netns";
/// Nobody's: whoever is called by it does not hear.
const NOWHERE: &str = "02:00:00:00:00:01";

/// The switch. Gone when it is dropped.
#[derive(Debug)]
pub struct Net {
    switch: Namespace,
    machines: u8,
}

/// A machine on it. Whatever runs there is killed when this is dropped.
#[derive(Debug)]
pub struct Machine {
    namespace: Namespace,
    address: Ipv4Addr,
}

/// Where a program runs: on this machine's network, or on another's; with more in its environment, or not.
#[derive(Clone, Debug, Default)]
pub struct Realm {
    network: Option<String>,
    environment: Vec<(&'static str, String)>,
}

/// A thread of ours on that machine, for what has to go over its network.
#[derive(Debug)]
pub struct Inside {
    handle: Handle,
    /// Ends it.
    _stop: Option<oneshot::Sender<()>>,
}

#[derive(Debug)]
struct Namespace(String);

/// Whether there can be machines. Says so if not.
pub fn possible() -> bool {
    let possible = rustix::process::geteuid().is_root();
    if !possible {
        eprintln!("SKIPPED: only root can make network namespaces");
    }
    possible
}

// === impl Net ===

impl Net {
    pub async fn new() -> Result<Self> {
        sweep().await?;
        let switch = Namespace::new().await?;
        let name = &switch.0;
        ip(&format!("-n {name} link add sw type bridge")).await?;
        ip(&format!("-n {name} link set sw up")).await?;
        Ok(Self { switch, machines: 0 })
    }

    /// Plugs in another machine.
    pub async fn machine(&mut self) -> Result<Machine> {
        let namespace = Namespace::new().await?;
        self.machines += 1;
        let address = Ipv4Addr::new(198, 18, 0, self.machines);
        let (name, switch, port) = (&namespace.0, &self.switch.0, format!("p{}", self.machines));
        for line in [
            format!("link add {port} netns {switch} type veth peer name eth0 netns {name}"),
            format!("-n {switch} link set {port} master sw up"),
            format!("-n {name} addr add {address}/24 dev eth0"),
            format!("-n {name} link set eth0 up"),
            format!("-n {name} link set lo up"),
        ] {
            ip(&line).await?;
        }
        Ok(Machine { namespace, address })
    }
}

/// From now on neither hears of the other.
pub async fn cut(one: &Machine, other: &Machine) -> Result<()> {
    for (from, to) in [(one, other), (other, one)] {
        let (name, address) = (&from.namespace.0, to.address);
        ip(&format!("-n {name} neigh replace {address} lladdr {NOWHERE} dev eth0 nud permanent")).await?;
    }
    Ok(())
}

pub async fn heal(one: &Machine, other: &Machine) -> Result<()> {
    for (from, to) in [(one, other), (other, one)] {
        ip(&format!("-n {} neigh del {} dev eth0", from.namespace.0, to.address)).await?;
    }
    Ok(())
}

// === impl Machine ===

impl Machine {
    pub fn address(&self, port: u16) -> SocketAddr {
        SocketAddr::from((self.address, port))
    }

    pub fn ip(&self) -> Ipv4Addr {
        self.address
    }

    pub fn realm(&self) -> Realm {
        Realm { network: Some(self.namespace.0.clone()), environment: Vec::new() }
    }

    /// Sockets that are made there belong to its network.
    pub async fn enter(&self) -> Result<Inside> {
        let path = self.namespace.path();
        let file = fs::File::open(&path).with_context(|| path.clone())?;
        let (stop, stopped) = oneshot::channel::<()>();
        let (tell, told) = oneshot::channel();
        thread::Builder::new().name("inside".to_owned()).spawn(move || {
            let entered = move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network));
            let runtime =
                entered.map_err(Into::into).and_then(|()| Builder::new_current_thread().enable_all().build());
            match runtime {
                Ok(runtime) => {
                    _ = tell.send(Ok(runtime.handle().clone()));
                    // Until nobody holds the other end.
                    _ = runtime.block_on(stopped);
                }
                Err(error) => _ = tell.send(Err(error)),
            }
        })?;
        let handle = told.await?.with_context(|| format!("cannot enter {path}"))?;
        Ok(Inside { handle, _stop: Some(stop) })
    }

    /// The plug is pulled: all that runs there dies at once, and nobody tells anybody.
    pub async fn pull_the_plug(&self) -> Result<()> {
        ip(&format!("-n {} link set eth0 down", self.namespace.0)).await?;
        self.namespace.kill();
        Ok(())
    }
}

// === impl Realm ===

impl Realm {
    /// On this machine's network.
    pub fn with(environment: Vec<(&'static str, String)>) -> Self {
        Self { network: None, environment }
    }

    /// As a service manager starts it: with our environment.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = match &self.network {
            None => Command::new(program.as_ref()),
            Some(name) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", name]).arg(program.as_ref());
                command
            }
        };
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// The same with nothing of our environment but what it needs.
    pub fn clean(&self, program: impl AsRef<Path>) -> tokio::process::Command {
        let mut command = match &self.network {
            None => command::clean(program.as_ref()),
            Some(name) => {
                let mut command = command::clean("ip");
                command.args(["netns", "exec", name]).arg(program.as_ref());
                command
            }
        };
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }
}

// === impl Inside ===

impl Inside {
    /// On ours.
    pub fn here() -> Self {
        Self { handle: Handle::current(), _stop: None }
    }

    pub async fn run<T: Send + 'static>(&self, task: impl Future<Output = T> + Send + 'static) -> Result<T> {
        Ok(self.handle.spawn(task).await?)
    }
}

// === impl Namespace ===

impl Namespace {
    async fn new() -> Result<Self> {
        static MADE: AtomicU16 = AtomicU16::new(0);
        let name = format!("{PREFIX}{}-{}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        ip(&format!("netns add {name}")).await.context("a network namespace needs root, and iproute2")?;
        Ok(Self(name))
    }

    fn path(&self) -> String {
        format!("{FOLDER}/{}", self.0)
    }

    /// Kills what runs in it, and comes back when it has ended.
    fn kill(&self) {
        // Again, for a daemon that was just starting a worker when it was killed.
        for _ in 0..100 {
            let Ok(output) = Command::new("ip").args(["netns", "pids", &self.0]).output() else { return };
            let text = String::from_utf8_lossy(&output.stdout);
            let ours = std::process::id();
            let pids = text.lines().filter_map(|line| line.trim().parse().ok());
            let pids: Vec<u32> = pids.filter(|&pid| pid != ours && process::is_alive(pid)).collect();
            if pids.is_empty() {
                return;
            }
            pids.into_iter().for_each(|pid| process::signal(pid, Signal::KILL));
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        self.kill();
        _ = Command::new("ip").args(["netns", "delete", &self.0]).status();
    }
}

/// What processes that are no more have left: only those with our names, and only of the dead.
async fn sweep() -> Result<()> {
    for entry in fs::read_dir(FOLDER).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some((pid, _)) = name.strip_prefix(PREFIX).and_then(|rest| rest.split_once('-')) else {
            continue;
        };
        if pid.parse().is_ok_and(|pid| !process::is_alive(pid)) {
            drop(Namespace(name));
        }
    }
    Ok(())
}

async fn ip(line: &str) -> Result<String> {
    command::succeed(command::clean("ip").args(line.split(' '))).await
}
