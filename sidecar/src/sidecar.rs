//! `handoff run`: everything that lives together in one process.

use crate::{
    agent::{Agent, Lines},
    config::Override,
    control::{Address, Control},
    host::death::Deaths,
    memory::Memory,
    nginx::{Nginx, Refresh, Views},
    orphans::{Cast, Search},
    pm2::{bus, home::Home},
    preload::{Door, Heard},
    report::{self, Report},
    roster::Attention,
    scout::{self, Hurry},
    service::{self, Patient, Pulse},
    shutdown,
    store::{self, edge::Edge, gateway::Gateway, metrics, report::Source},
    telemetry::Changes,
};
use handoff_wire::Owner;
use std::{collections::BTreeSet, fs, io, os::unix::fs::MetadataExt as _, path::PathBuf, sync::Arc};
use tokio::{
    sync::{Notify, mpsc, watch},
    task::JoinSet,
};

#[derive(Clone, Debug)]
pub struct Settings {
    pub control: Address,
    /// None: all of it is on this host.
    pub store: Option<store::Settings>,
    pub homes: Vec<Home>,
    pub overrides: Vec<Override>,
    pub state_dir: PathBuf,
    /// Where preloads call. None: beside the reports.
    pub preload_socket: Option<PathBuf>,
}

const SOCKET: &str = "preload.sock";

/// Runs until the shutdown. Nothing that is missing outside ends it.
pub async fn run(mut settings: Settings, shutdown: watch::Receiver<bool>) {
    // Those who only watch end with the process; those who must take their leave are waited for.
    let mut watchers = JoinSet::new();
    let mut workers = JoinSet::new();
    let mut told = None;
    if let Some(store) = settings.store.take() {
        let mut source = Source::new(&store);
        store.unguarded().for_each(|endpoint| {
            tracing::warn!("{endpoint} is spoken to in the clear: let it be https, and name its authority with --store-ca");
        });
        if store.role.is_edge() {
            let edge = Edge::new(store.clone(), settings.control.clone());
            source.edge = Some(edge.shown());
            watchers.spawn(edge.run());
            let (nginx, views, _) = Nginx::new(settings.control.clone(), Vec::new());
            watchers.spawn(nginx.run());
            let memory = Memory::open(&settings.state_dir, Control::new(settings.control.clone()));
            workers.spawn(memory.run(views, shutdown.clone()));
            settings.state_dir.push("store");
        }
        if store.role.is_host() {
            // From here on nginx is all of them.
            settings.control = store.socket.clone();
            let gateway = Gateway::new(store.clone());
            source.host = Some(gateway.desk());
            watchers.spawn(gateway.run(users(&settings.homes)));
        }
        watchers.spawn(source.clone().publish());
        if let Some(address) = store.metrics {
            watchers.spawn(metrics::serve(address, source.clone()));
        }
        if !store.role.is_host() {
            tracing::info!(control = %settings.control, "handoff {} runs", env!("CARGO_PKG_VERSION"));
            while workers.join_next().await.is_some() {}
            watchers.shutdown().await;
            source.withdraw();
            return tracing::info!("handoff ends");
        }
        told = Some(source);
    }
    let daemons: Vec<(Home, Owner)> =
        settings.homes.iter().filter_map(|home| Some((home.clone(), home.owner()?))).collect();
    let owners: Vec<Owner> = daemons.iter().map(|(_, owner)| owner.clone()).collect();
    let (nginx, views, refresh) = Nginx::new(settings.control.clone(), owners.clone());

    watchers.spawn(nginx.run());
    let memory = Memory::open(&settings.state_dir, Control::new(settings.control.clone()));
    workers.spawn(memory.run(views.clone(), shutdown.clone()));
    let door = settings.preload_socket.clone().map_or_else(|| Ok(report::writable_place()?.join(SOCKET)), Ok);
    let door = door.inspect_err(|error: &io::Error| tracing::warn!("no preload is heard: {error}")).ok();
    let (mut agents, mut patients) = (Vec::new(), Vec::new());
    for (home, owner) in daemons {
        let (said, preloads) = mpsc::channel(64);
        agents.push(said);
        let door = door.clone();
        let daemon = Daemon { home, owner, views: views.clone(), refresh: refresh.clone(), preloads, door };
        match daemon.start(&settings, &mut watchers) {
            Ok((agent, patient)) => {
                workers.spawn(agent.run(shutdown.clone()));
                patients.push(patient);
            }
            Err(error) => tracing::error!("cannot watch processes: {error}"),
        }
    }
    if let Some(path) = door {
        watchers.spawn(Door::new(path, &settings.homes, agents).run());
    }
    tracing::info!(control = %settings.control, "handoff {} runs", env!("CARGO_PKG_VERSION"));
    watchers.spawn(service::tell(patients));
    let mut asked = shutdown.clone();
    // Not among those who are ended: they would be before it was their turn.
    workers.spawn(async move {
        shutdown::requested(&mut asked).await;
        service::leaves();
    });
    while workers.join_next().await.is_some() {}
    watchers.shutdown().await;
    if let Some(source) = told {
        source.withdraw();
    }
    for dir in report::places() {
        owners.iter().for_each(|owner| Report::remove(&dir, owner));
    }
    tracing::info!("handoff ends");
}

/// Root, our own user, and those of our PM2 daemons.
fn users(homes: &[Home]) -> BTreeSet<u32> {
    let owners = homes.iter().filter_map(|home| Some(fs::metadata(home.path()).ok()?.uid()));
    owners.chain([0, rustix::process::geteuid().as_raw()]).collect()
}

/// What one PM2 daemon needs.
struct Daemon {
    home: Home,
    owner: Owner,
    views: Views,
    refresh: Refresh,
    preloads: mpsc::Receiver<Heard>,
    door: Option<PathBuf>,
}

impl Daemon {
    fn start(self, settings: &Settings, watchers: &mut JoinSet<()>) -> io::Result<(Agent, Patient)> {
        let (deaths, told_deaths) = Deaths::new()?;
        let (bus, notices) = bus::channel();
        let (looks_in, looks) = mpsc::channel(1);
        let (attention, attention_out) = watch::channel(Attention::default());
        let (report, reports) = watch::channel(Report::default());
        let (pulse, pulses) = watch::channel(Pulse::default());
        let patient = Patient { pulse: pulses, report: reports.clone() };
        let hurry = Hurry::default();
        let (scout, lookout) = scout::pair(self.home.clone(), attention_out, hurry.clone(), looks_in);
        let home = self.home.clone();
        watchers.spawn(async move { bus.run(&home).await });
        watchers.spawn(scout.run());
        watchers.spawn(lookout.run());
        watchers.spawn(publish(reports));
        let (cast, cast_out) = watch::channel(Cast::default());
        let death = Arc::new(Notify::new());
        let control = Control::new(settings.control.clone());
        let search = Search {
            owner: self.owner.clone(),
            control,
            cast: cast_out,
            death: death.clone(),
            look: hurry.all.clone(),
        };
        watchers.spawn(search.run());
        let lines = Lines {
            notices,
            deaths,
            told_deaths,
            looks,
            preloads: self.preloads,
            door: self.door,
            views: self.views,
            refresh: self.refresh,
            attention,
            cast,
            death,
            hurry,
            urgent: Control::new(settings.control.clone()),
            rest: Some(Control::new(settings.control.clone())),
            report,
            pulse,
        };
        Ok((Agent::new(self.home, self.owner, settings.overrides.clone(), lines), patient))
    }
}

/// Writes what the agent says of itself, beside it: a slow disk must not be in a drain's way.
async fn publish(mut reports: watch::Receiver<Report>) {
    let mut log = Changes::default();
    while reports.changed().await.is_ok() {
        let report = reports.borrow_and_update().clone();
        let written = tokio::task::spawn_blocking(move || report.write(&report::writable_place()?)).await;
        if let Ok(Err(error)) = written {
            log.warn(format!(
                "`handoff status` will not see this process: {error}. Make /run/handoff writable for it or set \
                 HANDOFF_RUNTIME_DIR"
            ));
        }
    }
}
