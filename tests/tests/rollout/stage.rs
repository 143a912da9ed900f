//! nginx with the module, PM2 with an app of several releases, `handoff`, and a list of PM2's workers at hand.

#![allow(unreachable_pub, reason = "a module of a test is nobody else's")]

use crate::{
    held::Held,
    listing::{Listing, Workers},
    reload::{Ended, Reload},
    visits::Visits,
};
use anyhow::{Context, Result, ensure};
use e2e::{
    app::Mode,
    command, http,
    place::{self},
    pm2::{NEWEST, Pm2},
    ports,
    sidecar::{self, Sidecar},
    site::Site,
    wait,
};
use handoff_wire::{PeerState, PeerView};
use serde_json::{Value, json};
use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};
use tokio::process::Command;

pub const PATIENCE: Duration = Duration::from_secs(40);
/// In the app's environment, and nowhere else.
pub const SECRET: &str = "rosebud-is-a-sledge";
pub const APP: &str = "shop";
/// Beside which there is time for other things.
pub const LIGHT: u32 = 60;

/// Fields are dropped in this order: first those who ask, last those who answer.
pub struct Stage {
    listing: Listing,
    sidecar: Option<Sidecar>,
    pub pm2: Pm2,
    pub site: Site,
    first_port: u16,
    plan: Plan,
    names: AtomicU32,
}

/// What is to be set up.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub workers: u16,
    /// In fork mode: so many `server` lines more than workers.
    pub spares: u16,
    pub style: Style,
    pub sidecar: bool,
    pub mode: Mode,
    /// PM2's package.
    pub pm2: &'static str,
}

/// How the app takes a signal to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    Graceful,
    Naive,
}

/// What a test may add to what is set up.
#[derive(Debug)]
pub struct Setup {
    pub ecosystem: Value,
    /// nginx's http block.
    pub http: String,
}

// === impl Plan ===

impl Plan {
    pub const fn workers(workers: u16) -> Self {
        Self { workers, spares: 0, style: Style::Graceful, sidecar: false, mode: Mode::Fork, pm2: NEWEST }
    }

    /// All workers behind one address.
    pub const fn cluster(self) -> Self {
        Self { mode: Mode::Cluster, ..self }
    }

    fn ports(self) -> u16 {
        match self.mode {
            Mode::Fork => self.workers,
            Mode::Cluster => 1,
        }
    }

    pub const fn with_spares(self, spares: u16) -> Self {
        Self { spares, ..self }
    }

    pub const fn with_sidecar(self) -> Self {
        Self { sidecar: true, ..self }
    }

    pub const fn naive(self) -> Self {
        Self { style: Style::Naive, ..self }
    }

    pub const fn on(self, pm2: &'static str) -> Self {
        Self { pm2, ..self }
    }

    pub async fn set(self) -> Result<Stage> {
        Stage::set(self, |_, _| Ok(())).await
    }
}

// === impl Stage ===

impl Stage {
    /// `adapt` may add to it.
    pub async fn set(plan: Plan, adapt: impl FnOnce(&Site, &mut Setup) -> Result<()>) -> Result<Self> {
        let mut site = Site::new("1.22.1").await?;
        let first_port = ports::row(plan.ports() + plan.spares)?;
        fs::write(site.file("release"), "good")?;
        let servers: String = (first_port..)
            .take((plan.ports() + plan.spares).into())
            .map(|port| format!("server 127.0.0.1:{port}; "))
            .collect();
        let app = app(&site, APP, plan, json!({ "PORT": first_port }))?;
        let mut setup = Setup {
            ecosystem: json!({ "apps": [app] }),
            http: site.usual_with(&format!("{servers} keepalive 16;")),
        };
        adapt(&site, &mut setup)?;
        // So that the workers have their numbers in the order of their ports.
        let daemon = [("PM2_CONCURRENT_ACTIONS", "1")];
        let pm2 = Pm2::start_file(plan.pm2, &site.file("pm2"), &setup.ecosystem, &daemon).await?;
        // PM2 says `online` before one listens that says nothing; nginx would ban it for that.
        for address in (first_port..).take(plan.ports().into()).map(ports::address) {
            http::answers(address).await?;
        }
        site.write(&setup.http)?;
        site.start().await?;
        let listing = Listing::new(&site.file("pm2"))?;
        let names = AtomicU32::new(0);
        let mut stage = Self { listing, sidecar: None, pm2, site, first_port, plan, names };
        stage.is_whole().await?;
        if plan.sidecar {
            stage.sidecar = Some(Sidecar::start(stage.site.place(), &stage.addresses()).await?);
        }
        Ok(stage)
    }

    /// From now on PM2 starts this one.
    pub fn release(&self, words: &str) -> Result<()> {
        Ok(fs::write(self.site.file("release"), words)?)
    }

    pub fn orders(&self) -> PathBuf {
        self.site.file("orders")
    }

    pub fn addresses(&self) -> Vec<SocketAddr> {
        (self.first_port..).take(self.plan.ports().into()).map(ports::address).collect()
    }

    pub fn address(&self, worker: u16) -> String {
        ports::address(self.first_port + worker).to_string()
    }

    pub fn visited(&self, rate: u32) -> Visits {
        Visits::begin(self.site.port(), rate, &self.orders())
    }

    /// A worker of the app is busy for so long.
    pub async fn hold(&self, worker: u32, long: Duration) -> Result<Held> {
        let pid = self.workers().await?.get(&worker).context("no such worker")?.pid;
        Held::by(self, pid, long).await
    }

    pub fn new_name(&self, what: &str) -> String {
        format!("{what}-{}", self.names.fetch_add(1, Ordering::Relaxed))
    }

    pub fn sidecar(&self) -> Option<u32> {
        self.sidecar.as_ref().map(Sidecar::pid)
    }

    // --- what stands

    /// Of every app.
    pub async fn all_workers(&self) -> Result<Workers> {
        self.listing.workers().await
    }

    pub async fn workers(&self) -> Result<Workers> {
        Ok(self.all_workers().await?.into_iter().filter(|(_, worker)| worker.name == APP).collect())
    }

    /// To ask PM2 beside all else.
    pub fn listing(&self) -> Listing {
        self.listing.clone()
    }

    /// Waits until every worker runs and nginx gives requests to each, with no mark on any.
    pub async fn is_whole(&self) -> Result<()> {
        let mut last = None;
        let whole = wait::until("all workers to serve", PATIENCE, async || {
            let (workers, mut peers) = (self.workers().await.ok()?, self.site.app().await.ok()?);
            let addresses = self.addresses();
            peers.retain(|peer| addresses.iter().any(|address| peer.address == address.to_string()));
            let is_whole = workers.len() == usize::from(self.plan.workers)
                && workers.values().all(|worker| worker.is_online())
                && peers.iter().all(|peer| peer.state == PeerState::Up && peer.marks.is_empty());
            last = Some((workers, peers));
            is_whole.then_some(())
        });
        whole.await.with_context(|| format!("{last:#?}"))
    }

    /// The peers that some roll-out holds back.
    pub async fn marked(&self) -> Result<Vec<PeerView>> {
        let is_marked = |peer: &PeerView| {
            peer.marks.iter().any(|mark| mark.owner.kind() == handoff_wire::OwnerKind::Rollout)
        };
        Ok(self.site.app().await?.into_iter().filter(is_marked).collect())
    }

    /// These workers, and no others, are the processes that they were.
    pub async fn kept(&self, before: &Workers, wanted: &[u32]) -> Result<()> {
        let now = self.workers().await?;
        let same = |id: &u32| {
            let process = |workers: &Workers| workers.get(id).map(|worker| worker.process());
            process(before) == process(&now)
        };
        let kept: Vec<u32> = before.keys().copied().filter(same).collect();
        ensure!(kept == wanted, "{kept:?} are as they were, not {wanted:?}: {before:#?} {now:#?}");
        ensure!(wanted.iter().filter_map(|id| now.get(id)).all(|worker| worker.is_online()), "{now:#?}");
        Ok(())
    }

    /// As many workers, with the same numbers, instances and ports.
    pub async fn is_as_before(&self, before: &Workers) -> Result<()> {
        let now = self.all_workers().await?;
        let identities = |workers: &Workers| -> Vec<String> {
            workers.values().map(|worker| format!("{:?}", worker.identity())).collect()
        };
        let (was, is) = (identities(before), identities(&now));
        ensure!(was == is, "{was:?} became {is:?}");
        Ok(())
    }

    // --- handoff

    pub fn handoff(&self, arguments: &[&str]) -> Result<Command> {
        let mut handoff = command::clean(place::handoff()?);
        handoff.args(arguments).envs(sidecar::environment(self.site.place()));
        Ok(handoff)
    }

    /// `handoff reload --json`, while it runs.
    pub fn begin(&self, arguments: &[&str]) -> Result<Reload> {
        Reload::start(self.handoff(&[&["reload", "--json"], arguments].concat())?)
    }

    pub async fn reload(&self, arguments: &[&str]) -> Result<Ended> {
        self.begin(arguments)?.ended().await
    }

    /// What it writes for people.
    pub async fn says(&self, arguments: &[&str]) -> Result<(Option<i32>, String)> {
        let output = self.handoff(arguments)?.output().await?;
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        ensure!(!text.contains(SECRET), "it tells a secret of the app");
        Ok((output.status.code(), text))
    }

    /// Nothing went wrong in nginx, and the sidecar tells no secret.
    pub async fn end(self) -> Result<()> {
        if let Some(sidecar) = self.sidecar {
            sidecar.stop()?;
            let log = fs::read_to_string(self.site.file("handoff.log"))?;
            ensure!(!log.contains(SECRET), "the sidecar tells a secret of the app");
        }
        drop(self.pm2);
        self.site.end().await
    }
}

/// An app that runs whatever release is out, with one more environment variable or two.
pub fn app(site: &Site, name: &str, plan: Plan, env: Value) -> Result<Value> {
    let mut app = json!({
        "name": name,
        "script": place::root().join("tests/apps/release.js"),
        "exec_mode": if plan.mode == Mode::Fork { "fork" } else { "cluster" },
        "instances": plan.workers,
        "increment_var": "PORT",
        "wait_ready": plan.style == Style::Graceful,
        "listen_timeout": 4_000,
        "kill_timeout": 8_000,
        "min_uptime": 2_000,
        "max_restarts": 5,
        "env": {
            "RELEASE": site.file("release"),
            "ORDERS": site.file("orders"),
            "STYLE": if plan.style == Style::Graceful { "graceful" } else { "naive" },
            "SECRET": SECRET,
        },
    });
    if plan.mode == Mode::Cluster {
        app.as_object_mut().context("an object")?.remove("increment_var");
    }
    let own = app.get_mut("env").and_then(Value::as_object_mut).context("an object")?;
    own.extend(env.as_object().context("an object")?.clone());
    Ok(app)
}
