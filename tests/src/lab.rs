//! Many machines: hosts of the app, edges with nginx in front of them, and etcd between their sidecars. Needs root.
//!
//! Each is a machine of [`net`](crate::net). The visitors have one of their own, and go to all edges by turns.

pub mod edge;
pub mod fault;
pub mod host;
pub mod store;
pub mod trial;
pub mod verdict;

use crate::{
    access_log::AccessLog,
    app::Behaviour,
    clock::Moment,
    http,
    lives::Life,
    load::{Load, Visit},
    net::{Inside, Machine, Net},
    nginx::Binary,
    orders::Orders,
    place::Place,
    scenario::Setup,
    wait,
};
use anyhow::{Context, Result};
use edge::Edge;
use host::AppHost;
use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};
use store::Store;

const PATIENCE: Duration = Duration::from_secs(30);

/// What is laid out.
#[derive(Clone, Debug)]
pub struct Plan {
    pub nginx: Binary,
    pub setup: Setup,
    pub edges: usize,
    pub hosts: usize,
    /// On each of them.
    pub workers: u16,
    pub behaviour: Behaviour,
    /// How many members etcd has.
    pub members: usize,
}

/// Fields are dropped in this order: first those who ask, last those who answer.
#[derive(Debug)]
pub struct Lab {
    pub edges: Vec<Edge>,
    pub hosts: Vec<AppHost>,
    pub etcd: Option<Store>,
    visitors: Inside,
    net: Net,
    #[expect(dead_code, reason = "they are gone when this is dropped")]
    rest: (Machine, Place),
}

/// All that may be changed while the hosts are deployed.
struct Parts<'a> {
    hosts: &'a [AppHost],
    edges: &'a mut Vec<Edge>,
    etcd: Option<&'a mut Store>,
    visitors: &'a Inside,
    net: &'a mut Net,
    plan: &'a Plan,
}

/// Something that one nginx holds of a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    pub peer: String,
    pub what: String,
}

/// Everything that was seen.
#[derive(Debug)]
pub struct Seen {
    pub visits: Vec<Visit>,
    pub orders: Orders,
    /// By the address of the host.
    pub lives: Vec<(IpAddr, Life)>,
    pub hosts: Vec<IpAddr>,
    /// Of each edge, what its nginx logged.
    pub logs: Vec<(SocketAddr, AccessLog)>,
    pub began: Moment,
}

/// The visitors, on their way.
#[derive(Debug)]
pub struct Visitors {
    load: Load,
    began: Moment,
}

// === impl Lab ===

impl Lab {
    /// Comes back when every edge passes to every worker. No sidecar runs yet.
    pub async fn set(plan: &Plan) -> Result<Self> {
        let mut net = Net::new().await?;
        let place = Place::new()?;
        let visitors_machine = net.machine().await?;
        let visitors = visitors_machine.enter().await?;
        let etcd = match plan.members {
            0 => None,
            members => {
                let machines = machines(&mut net, members).await?;
                Some(Store::start(machines, place.path(), &visitors).await?)
            }
        };
        let mut lab =
            Self { edges: vec![], hosts: vec![], etcd, visitors, net, rest: (visitors_machine, place) };
        let mut servers = Vec::new();
        for machine in machines(&mut lab.net, plan.hosts).await? {
            servers.extend(AppHost::at(&machine, plan.workers));
            lab.hosts.push(AppHost::start(machine, plan.behaviour, plan.workers).await?);
        }
        for _ in 0..plan.edges {
            lab.add_edge(plan, &servers).await?;
        }
        lab.answers().await?;
        Ok(lab)
    }

    async fn add_edge(&mut self, plan: &Plan, servers: &[SocketAddr]) -> Result<()> {
        let machine = self.net.machine().await?;
        self.edges.push(Edge::start(machine, &plan.nginx, servers, plan.setup).await?);
        Ok(())
    }

    /// Another edge, with its sidecar.
    async fn join(
        edges: &mut Vec<Edge>,
        net: &mut Net,
        etcd: &Store,
        plan: &Plan,
        servers: &[SocketAddr],
    ) -> Result<()> {
        let mut edge = Edge::start(net.machine().await?, &plan.nginx, servers, plan.setup).await?;
        edge.start_sidecar(&arguments(etcd, "edge", edges.len()))?;
        edges.push(edge);
        Ok(())
    }

    /// The hosts, and all that may be changed while they are deployed.
    fn parts<'a>(&'a mut self, plan: &'a Plan) -> Result<(&'a [AppHost], Parts<'a>)> {
        let Self { edges, hosts, etcd, visitors, net, .. } = self;
        let etcd = etcd.as_mut();
        Ok((hosts, Parts { hosts, edges, etcd, visitors, net, plan }))
    }

    /// Waits until every worker and every edge answers: PM2 says `online` of one that does not listen yet.
    pub async fn answers(&self) -> Result<()> {
        let workers = self.hosts.iter().flat_map(AppHost::addresses);
        for address in workers.chain(self.edges.iter().map(Edge::address)) {
            wait::until("a worker or an edge to answer", PATIENCE, async || {
                self.visitors.run(http::is_well(address)).await.ok()?.then_some(())
            })
            .await
            .with_context(|| address.to_string())?;
        }
        Ok(())
    }

    /// Starts the sidecars: those of the edges, and those of the app hosts. Comes back when each host knows every edge, and
    /// says that its app is protected.
    pub async fn start_sidecars(&mut self) -> Result<()> {
        for number in 0..self.edges.len() {
            self.start_edge_sidecar(number)?;
        }
        for number in 0..self.hosts.len() {
            self.start_host_sidecar(number)?;
        }
        self.knows_edges(self.edges.len()).await
    }

    pub fn start_edge_sidecar(&mut self, number: usize) -> Result<()> {
        let arguments = arguments(self.etcd.as_ref().context("there is no etcd")?, "edge", number);
        self.edge(number)?.start_sidecar(&arguments)
    }

    pub fn start_host_sidecar(&mut self, number: usize) -> Result<()> {
        let mut arguments = arguments(self.etcd.as_ref().context("there is no etcd")?, "host", number);
        let host = self.hosts.get_mut(number).with_context(|| format!("no host {number}"))?;
        arguments.extend(["--store-address".to_owned(), host.machine().ip().to_string()]);
        host.start_sidecar(&arguments)
    }

    pub fn edge(&mut self, number: usize) -> Result<&mut Edge> {
        self.edges.get_mut(number).with_context(|| format!("no edge {number}"))
    }

    /// Waits until nothing is left of a deploy: no edge that is there holds anything of anybody, and the hosts know them all.
    pub async fn is_as_ever(&self, edges: usize) -> Result<()> {
        for edge in self.edges.iter().filter(|edge| !edge.is_gone()) {
            let mut last = Vec::new();
            wait::until("every peer to be as ever", PATIENCE, async || {
                last = edge.not_as_ever().await.ok()?;
                last.is_empty().then_some(())
            })
            .await
            .with_context(|| format!("{last:?}"))?;
        }
        self.knows_edges(edges).await
    }

    /// Waits until every host waits for so many edges, and nobody is marked.
    pub async fn knows_edges(&self, edges: usize) -> Result<()> {
        for host in &self.hosts {
            let mut last = String::new();
            wait::until("a host to know every edge", PATIENCE, async || {
                let (known, is_up) = (host.edges().await.ok()?, host.is_all_up().await);
                last = format!("it knows {known} of {edges} edges, and that all is up: {is_up}");
                (known == edges && is_up).then_some(())
            })
            .await
            .with_context(|| last + "\n" + &host.said())?;
        }
        Ok(())
    }

    /// So many visits a second, over all edges.
    pub async fn visit(&self, rate: u32) -> Result<Visitors> {
        let targets: Vec<SocketAddr> = self.edges.iter().map(Edge::address).collect();
        let began = Moment::now();
        Ok(Visitors { load: self.visitors.run(async move { Load::over(&targets, rate) }).await?, began })
    }

    /// Takes all down in order.
    pub async fn strike(self, visitors: Visitors) -> Result<Seen> {
        let visits = self.visitors.run(async move { visitors.load.stop().await }).await?;
        let mut seen = Seen {
            visits,
            orders: Orders::default(),
            lives: vec![],
            hosts: vec![],
            logs: vec![],
            began: visitors.began,
        };
        for host in self.hosts {
            let address = host.machine().ip().into();
            let left = host.strike().await?;
            seen.orders.add(left.orders);
            seen.lives.extend(left.lives.into_iter().map(|life| (address, life)));
            seen.hosts.push(address);
        }
        for edge in self.edges {
            seen.logs.push((edge.address(), edge.strike().await?));
        }
        Ok(seen)
    }
}

fn arguments(etcd: &Store, role: &str, number: usize) -> Vec<String> {
    let name = format!("{role}-{number}");
    ["--store", &etcd.endpoints(), "--role", role, "--store-name", &name].map(str::to_owned).to_vec()
}

async fn machines(net: &mut Net, count: usize) -> Result<Vec<Machine>> {
    let mut machines = Vec::new();
    for _ in 0..count {
        machines.push(net.machine().await?);
    }
    Ok(machines)
}

// === impl Seen ===

impl Seen {
    pub fn failed(&self) -> impl Iterator<Item = &Visit> {
        self.visits.iter().filter(|visit| visit.failed())
    }

    /// Where nginx tried a visit.
    pub fn tried(&self, visit: &Visit) -> &[SocketAddr] {
        let log = self.logs.iter().find(|(edge, _)| *edge == visit.target);
        log.map(|(_, log)| log.tried(visit.number)).unwrap_or_default()
    }
}
