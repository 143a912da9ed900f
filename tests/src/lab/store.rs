//! A private etcd, with its data where it is told: one member or several, each on a machine of its own, or one on ours.

use crate::{
    door::Door,
    net::{Inside, Machine, Realm},
    ports, process, wait,
};
use anyhow::{Context, Result, ensure};
use hyper::Method;
use rustix::process::Signal;
use serde::Deserialize;
use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::Duration,
};

const PATIENCE: Duration = Duration::from_secs(20);
const CLIENTS: u16 = 2379;
const MEMBERS: u16 = 2380;

/// All its members end when it is dropped.
#[derive(Debug)]
pub struct Store {
    members: Vec<Member>,
}

#[derive(Debug)]
pub struct Member {
    /// None: ours.
    machine: Option<Machine>,
    clients: SocketAddr,
    members: SocketAddr,
    name: String,
    folder: PathBuf,
    cluster: String,
    child: Option<Child>,
}

/// What a member says of itself. Numbers of 64 bits are texts in JSON.
#[derive(Deserialize)]
struct Status {
    header: Header,
    leader: Option<String>,
    #[serde(rename = "dbSize")]
    db_size: Option<String>,
}

#[derive(Deserialize)]
struct Header {
    member_id: String,
}

// === impl Store ===

impl Store {
    /// Comes back when each member knows a leader.
    pub async fn start(machines: Vec<Machine>, folder: &Path, visitor: &Inside) -> Result<Self> {
        let named = || machines.iter().enumerate().map(|(number, machine)| (format!("m{number}"), machine));
        let cluster: Vec<String> =
            named().map(|(name, machine)| format!("{name}=http://{}", machine.address(MEMBERS))).collect();
        let names: Vec<String> = named().map(|(name, _)| name).collect();
        let members = machines.into_iter().zip(names).map(|(machine, name)| Member {
            clients: machine.address(CLIENTS),
            members: machine.address(MEMBERS),
            machine: Some(machine),
            folder: folder.join(&name),
            name,
            cluster: cluster.join(","),
            child: None,
        });
        let mut etcd = Self { members: members.collect() };
        etcd.members.iter_mut().try_for_each(Member::launch)?;
        for member in &etcd.members {
            member.is_healthy(visitor).await?;
        }
        Ok(etcd)
    }

    /// One member, on free ports of 127.0.0.1.
    pub async fn alone(folder: &Path) -> Result<Self> {
        let first = ports::row(2)?;
        let (clients, members) = (ports::address(first), ports::address(first + 1));
        let name = "m0".to_owned();
        let (folder, cluster) = (folder.join(&name), format!("{name}=http://{members}"));
        let mut member = Member { machine: None, clients, members, name, folder, cluster, child: None };
        member.launch()?;
        member.is_healthy(&Inside::here()).await?;
        Ok(Self { members: vec![member] })
    }

    /// What `--store` is given.
    pub fn endpoints(&self) -> String {
        let endpoints = self.members.iter().map(|member| format!("http://{}", member.clients));
        endpoints.collect::<Vec<_>>().join(",")
    }

    pub fn members(&self) -> &[Member] {
        &self.members
    }

    pub fn member(&mut self, number: usize) -> Result<&mut Member> {
        self.members.get_mut(number).with_context(|| format!("no member {number}"))
    }

    /// The number of the member that leads.
    pub async fn leader(&self, visitor: &Inside) -> Result<usize> {
        let mut found = None;
        for (number, member) in self.members.iter().enumerate() {
            let Status { header, leader, .. } = member.status(visitor).await?;
            if leader.is_some_and(|leader| leader == header.member_id) {
                found = Some(number);
            }
        }
        found.context("no member leads")
    }
}

// === impl Member ===

impl Member {
    pub fn machine(&self) -> Option<&Machine> {
        self.machine.as_ref()
    }

    /// Where it is spoken to.
    pub fn address(&self) -> SocketAddr {
        self.clients
    }

    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Starts, and does not wait. Data that is there already is gone on with.
    pub fn launch(&mut self) -> Result<()> {
        let [clients, members] = [self.clients, self.members].map(|address| format!("http://{address}"));
        let log = self.folder.with_extension("log");
        let realm = self.machine.as_ref().map_or_else(Realm::default, Machine::realm);
        let mut etcd = realm.command("etcd");
        etcd.args(["--name", &self.name]).arg("--data-dir").arg(&self.folder);
        etcd.args(["--listen-client-urls", &clients, "--advertise-client-urls", &clients]);
        etcd.args(["--listen-peer-urls", &members, "--initial-advertise-peer-urls", &members]);
        etcd.args(["--initial-cluster", &self.cluster, "--logger", "zap", "--log-level", "warn"]);
        etcd.stdin(Stdio::null()).stdout(Stdio::null());
        etcd.stderr(fs::File::options().create(true).append(true).open(log)?);
        self.child = Some(etcd.spawn().context("cannot run etcd: `build/setup` installs it")?);
        Ok(())
    }

    /// Without a word to anybody.
    pub fn kill(&mut self) -> Result<()> {
        let mut child = self.child.take().context("it does not run")?;
        process::signal(child.id(), Signal::KILL);
        child.wait()?;
        Ok(())
    }

    /// Waits until it answers, and knows a leader.
    pub async fn is_healthy(&self, visitor: &Inside) -> Result<()> {
        wait::until("etcd to have a leader", PATIENCE, async || {
            let status = self.status(visitor).await.ok()?;
            status.leader.is_some_and(|leader| leader != "0").then_some(())
        })
        .await
        .with_context(|| fs::read_to_string(self.folder.with_extension("log")).unwrap_or_default())
    }

    /// How large its file is.
    pub async fn db_size(&self, visitor: &Inside) -> Result<u64> {
        Ok(self.status(visitor).await?.db_size.context("no size")?.parse()?)
    }

    async fn status(&self, visitor: &Inside) -> Result<Status> {
        let door = Door::Tcp(self.clients);
        let ask = async move { door.ask(Method::POST, "/v3/maintenance/status", "{}").await };
        let reply = visitor.run(ask).await??;
        ensure!(reply.status == 200, "{}: {}", reply.status, reply.text());
        reply.json()
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            process::end(child, Duration::from_secs(5));
        }
    }
}
