//! What may happen in the middle of a deploy to machines, to what runs on them, and to the wires between them.

use super::{Lab, Parts, edge::Edge};
use crate::{
    clock::Moment,
    net::{self, Machine},
    wait,
};
use anyhow::{Context, Result};
use std::time::Duration;
use tokio::time::sleep;

/// It befalls the host that is deployed first, the first edge, or the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    None,
    /// The wire between the host and every member of the store loses all.
    HostLosesStore,
    EdgeLosesStore,
    /// The edge cannot reach the workers of the host.
    HostLosesEdge,
    /// The edge's sidecar is killed, and started again as a service manager does.
    EdgeSidecarRestarts,
    /// Nobody starts it again.
    EdgeSidecarDies,
    /// The edge's nginx is killed, and started again.
    NginxRestarts,
    /// The plug of the edge is pulled.
    EdgeDies,
    /// Every member is killed, and started again.
    StoreRestarts,
    /// The member that leads is killed, and stays dead.
    LeaderDies,
    /// Another edge begins.
    EdgeJoins,
}

const PATIENCE: Duration = Duration::from_secs(20);
/// Longer than any lease: whoever is cut off is given up by the others.
const LONG: Duration = Duration::from_secs(16);
/// Shorter than any.
const SHORT: Duration = Duration::from_secs(3);
/// A service manager's `RestartSec`.
const RESTART: Duration = Duration::from_secs(1);

pub const ALL: [Fault; 11] = [
    Fault::None,
    Fault::EdgeJoins,
    Fault::StoreRestarts,
    Fault::LeaderDies,
    Fault::HostLosesStore,
    Fault::EdgeLosesStore,
    Fault::HostLosesEdge,
    Fault::EdgeSidecarRestarts,
    Fault::EdgeSidecarDies,
    Fault::NginxRestarts,
    Fault::EdgeDies,
];

impl Fault {
    pub fn says(self) -> &'static str {
        match self {
            Self::None => "nothing",
            Self::HostLosesStore => "an app host and the store hear nothing of each other for 16 s",
            Self::EdgeLosesStore => "an edge and the store hear nothing of each other for 16 s",
            Self::HostLosesEdge => "an app host and an edge hear nothing of each other for 16 s",
            Self::EdgeSidecarRestarts => "the sidecar of an edge is killed, and back after 1 s",
            Self::EdgeSidecarDies => "the sidecar of an edge is killed, and stays dead",
            Self::NginxRestarts => "the nginx of an edge is killed, and back after 1 s",
            Self::EdgeDies => "an edge is without power",
            Self::StoreRestarts => "every member of the store is killed, and back after 3 s",
            Self::LeaderDies => "the member of the store that leads is killed, and stays dead",
            Self::EdgeJoins => "another edge begins",
        }
    }

    /// Waits until the deploy has begun to drain, and comes back when it is over: from when to when it was.
    pub(super) async fn befall(self, lab: Parts<'_>) -> Result<Option<(Moment, Moment)>> {
        if self == Self::None {
            return Ok(None);
        }
        let Parts { hosts, edges, etcd, .. } = lab;
        let etcd = etcd.context("there is no etcd")?;
        drains(edges).await?;
        let struck = Moment::now();
        let host = hosts.first().context("no host")?.machine();
        let store = || etcd.members().iter().filter_map(|member| member.machine()).collect::<Vec<_>>();
        match self {
            Self::None => {}
            Self::HostLosesStore => lost(host, &store()).await?,
            Self::EdgeLosesStore => lost(first(edges)?.machine(), &store()).await?,
            Self::HostLosesEdge => lost(host, &[first(edges)?.machine()]).await?,
            Self::EdgeSidecarRestarts => {
                first(edges)?.kill_sidecar()?;
                sleep(RESTART).await;
                first(edges)?.start_sidecar_again()?;
            }
            Self::EdgeSidecarDies => first(edges)?.kill_sidecar()?,
            Self::NginxRestarts => {
                first(edges)?.kill_nginx().await?;
                sleep(RESTART).await;
                first(edges)?.start_nginx().await?;
            }
            Self::EdgeDies => first(edges)?.pull_the_plug().await?,
            Self::StoreRestarts => {
                let all = etcd.members().len();
                (0..all).try_for_each(|number| etcd.member(number)?.kill())?;
                sleep(SHORT).await;
                (0..all).try_for_each(|number| etcd.member(number)?.launch())?;
            }
            Self::LeaderDies => {
                let leader = etcd.leader(lab.visitors).await?;
                etcd.member(leader)?.kill()?;
            }
            Self::EdgeJoins => {
                let servers = hosts.iter().flat_map(|host| host.addresses()).collect::<Vec<_>>();
                Lab::join(edges, lab.net, etcd, lab.plan, &servers).await?;
            }
        }
        Ok(Some((struck, Moment::now())))
    }

    /// How many edges hosts wait for afterwards, of so many.
    pub fn edges_after(self, edges: usize) -> usize {
        match self {
            Self::EdgeSidecarDies | Self::EdgeDies => edges - 1,
            Self::EdgeJoins => edges + 1,
            _ => edges,
        }
    }
}

fn first(edges: &mut [Edge]) -> Result<&mut Edge> {
    edges.first_mut().context("no edge")
}

/// Some worker is about to go.
async fn drains(edges: &[Edge]) -> Result<()> {
    let edge = edges.last().context("no edge")?;
    wait::until("a worker to drain", PATIENCE, async || {
        edge.not_as_ever().await.is_ok_and(|odd| !odd.is_empty()).then_some(())
    })
    .await
}

/// For longer than any lease.
async fn lost(one: &Machine, others: &[&Machine]) -> Result<()> {
    for other in others {
        net::cut(one, other).await?;
    }
    sleep(LONG).await;
    for other in others {
        net::heal(one, other).await?;
    }
    Ok(())
}
