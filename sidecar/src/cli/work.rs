//! What is to be rolled out in one PM2 daemon, as its own words or its ecosystem file say.

use super::{Context, Failure, complain};
use crate::{
    cli::exit::Exit,
    manager::{Manager, Pm2},
    pm2::{
        PmId,
        home::Home,
        monitor::Listed,
        orders::{Orders, Prepare, Request},
        rpc::{Rpc, RpcError},
    },
    rollout::{
        Order, Plan, Site,
        brake::{Brake, Halt},
        lock::{Lock, REFRESH},
        plan::{Planned, Relief},
    },
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use tokio::time;

/// What an operator says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted<'a> {
    /// Apps (shop), workers (shop:3), `all`, or ecosystem files.
    pub(super) targets: &'a [String],
    pub(super) only: Option<&'a str>,
    pub(super) env: Option<&'a str>,
    pub(super) update_env: bool,
}

/// What is to be done in one daemon.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) home: Home,
    pub(super) orders: Vec<Order>,
    pub(super) prepare: Vec<Prepare>,
    pub(super) warnings: Vec<String>,
}

/// Apps of a file that do not run yet are started, as PM2 would.
pub(super) async fn prepare(home: &Home, apps: Vec<Prepare>) -> Result<(), Failure> {
    for Prepare { name, app } in apps {
        let mut rpc = Rpc::connect(home).await.map_err(RpcError::from)?;
        rpc.prepare(&app).await?;
        complain(format_args!("{name} did not run: it was started"));
    }
    Ok(())
}

pub(super) fn describe(plan: &Plan) -> String {
    let app = &plan.app;
    let line = |planned: &Planned| {
        let peers: Vec<String> = planned.peers.iter().map(ToString::to_string).collect();
        let what = match (planned.serves, peers.is_empty()) {
            (true, false) if plan.cluster.is_some() => "would be replaced",
            (true, false) => "would be drained and replaced",
            (false, false) => "does not serve, and would be started anew",
            (_, true) => "has no peer in nginx, and would be restarted",
        };
        let peers = if peers.is_empty() { String::new() } else { format!(": {}", peers.join(", ")) };
        format!("{} {what}{peers}\n", planned.id.of(app))
    };
    let caution = plan.caution().map(|text| format!("{text}\n"));
    let cluster = plan.cluster.as_ref();
    let left = plan.left.map(|left| {
        format!("{app}:{left} was left behind by a roll-out that did not end, and would be deleted\n")
    });
    let stand_in = match &plan.relief {
        Some(Relief::StandIn(spare)) => {
            let (variable, port) = (&spare.variable, spare.port);
            Some(format!("another worker of {app} would stand in for it meanwhile, with {variable}={port}\n"))
        }
        _ => None,
    };
    let canary = cluster
        .and_then(|cluster| cluster.model)
        .map(|_| format!("{app} would have one worker more for a moment, a canary of the new release\n"));
    let more = caution.into_iter().chain(left).chain(canary);
    more.chain(plan.turns.iter().map(line)).chain(stand_in).collect()
}

/// Keeps PM2's own reloads away, for as long as it is polled.
pub(super) async fn hold(lock: &mut Lock, brake: &Brake) -> Result<Exit, Failure> {
    loop {
        time::sleep(REFRESH).await;
        match lock.refresh() {
            Ok(true) => {}
            Ok(false) => {
                brake.pull(Halt::Foreign("somebody took PM2's reload.lock (pm2 reload --force?)".to_owned()))
            }
            Err(error) => tracing::warn!("PM2's reload.lock could not be renewed: {error}"),
        }
    }
}

/// As PM2 tells a file from the name of an app.
pub(super) fn is_file(target: &str) -> bool {
    let endings = [".json", ".yml", ".yaml", ".config.js", ".config.cjs", ".config.mjs"];
    endings.iter().any(|ending| target.ends_with(ending))
}

// === impl Context ===

impl Context {
    pub(super) fn site(&self, home: &Home) -> Site {
        self.site_of(home, Arc::new(Pm2::new(home.clone())))
    }

    pub(super) fn site_of(&self, home: &Home, manager: Arc<dyn Manager>) -> Site {
        let (control, overrides) = (self.control.clone(), self.overrides.clone());
        Site { home: home.clone(), manager, control, overrides }
    }
}

// === impl Work ===

impl Work {
    pub(super) async fn collect(context: &Context, wanted: &Wanted<'_>) -> Result<Self, Failure> {
        let (home, mut rpc, listed) = find(context, wanted).await?;
        let mut work = Self { home, orders: Vec::new(), prepare: Vec::new(), warnings: Vec::new() };
        for target in wanted.targets {
            if is_file(target) || wanted.update_env {
                work.ask_pm2(&mut rpc, target, wanted, &listed).await?;
            } else {
                work.add(target, &listed)?;
            }
        }
        Ok(work)
    }

    /// What the target is, and what is sent along, is for PM2 to say.
    async fn ask_pm2(
        &mut self,
        rpc: &mut Rpc,
        target: &str,
        wanted: &Wanted<'_>,
        listed: &[Listed],
    ) -> Result<(), Failure> {
        let (only, env) = (wanted.only, wanted.env);
        let request = Request { target, only, env, update_env: wanted.update_env };
        let mut orders = Orders::ask(&self.home, rpc, &request).await?;
        for worker in listed {
            if let Some((old, new)) = orders.moved_port(worker.id) {
                let text = format!(
                    "{target} would move {}:{} from port {old} to {new}, where nginx does not look for it. Change the \
                     upstream and the app one after the other",
                    worker.app, worker.id
                );
                return Err(Failure::new(Exit::Failed, text));
            }
        }
        let apps: BTreeSet<&str> = listed
            .iter()
            .filter(|worker| orders.reload.contains_key(&worker.id))
            .map(|worker| worker.app.as_str())
            .collect();
        for app in apps {
            let ids: Vec<PmId> =
                listed.iter().filter(|worker| worker.app == app).map(|worker| worker.id).collect();
            let env = ids.into_iter().filter_map(|id| Some((id, orders.reload.remove(&id)?))).collect();
            let ids = listed.iter().filter(|worker| worker.app == app).map(|worker| worker.id);
            let surplus = ids.filter_map(|id| orders.surplus.remove(&id)).next();
            self.push(Order { app: app.to_owned(), only: None, env, surplus });
        }
        self.prepare.append(&mut orders.prepare);
        self.warnings.append(&mut orders.warnings);
        Ok(())
    }

    fn add(&mut self, target: &str, listed: &[Listed]) -> Result<(), Failure> {
        let apps: BTreeSet<&str> = listed.iter().map(|worker| worker.app.as_str()).collect();
        let plain =
            |app: &str, only| Order { app: app.to_owned(), only, env: BTreeMap::new(), surplus: None };
        if target == "all" {
            let modules: BTreeSet<&str> = listed
                .iter()
                .filter(|worker| worker.settings.module)
                .map(|worker| worker.app.as_str())
                .collect();
            apps.difference(&modules).for_each(|app| self.push(plain(app, None)));
            return Ok(());
        }
        if apps.contains(target) {
            self.push(plain(target, None));
            return Ok(());
        }
        let one = |worker: &&Listed| format!("{}:{}", worker.app, worker.id) == target;
        let worker = listed.iter().find(one).ok_or_else(|| {
            let there: Vec<&str> = apps.into_iter().collect();
            let there = if there.is_empty() { "nothing".to_owned() } else { there.join(", ") };
            Failure::new(Exit::UnknownTarget, format!("PM2 knows no {target}. There is: {there}"))
        })?;
        self.push(plain(&worker.app, Some([worker.id].into())));
        Ok(())
    }

    /// An app that is named twice is replaced once.
    fn push(&mut self, order: Order) {
        let is_in =
            |known: &Order| known.app == order.app && (known.only.is_none() || known.only == order.only);
        if !self.orders.iter().any(is_in) {
            self.orders.push(order);
        }
    }
}

/// The one daemon that the targets are in.
pub(super) async fn find(
    context: &Context,
    wanted: &Wanted<'_>,
) -> Result<(Home, Rpc, Vec<Listed>), Failure> {
    let mut found = Vec::new();
    for home in &context.homes {
        let mut rpc = Rpc::connect(home).await.map_err(RpcError::from)?;
        let listed = rpc.list().await?;
        let is_meant = |worker: &Listed| {
            if wanted.only == Some(worker.app.as_str()) {
                return true;
            }
            wanted
                .targets
                .iter()
                .any(|target| *target == worker.app || *target == format!("{}:{}", worker.app, worker.id))
        };
        if context.homes.len() == 1 || listed.iter().any(is_meant) {
            found.push((home.clone(), rpc, listed));
        }
    }
    let homes: Vec<String> = found.iter().map(|(home, ..)| home.to_string()).collect();
    match (found.pop(), found.is_empty()) {
        (Some(one), true) => Ok(one),
        (None, _) => {
            let text =
                format!("no PM2 here knows {}: say which one with --pm2-home", wanted.targets.join(", "));
            Err(Failure::new(Exit::UnknownTarget, text))
        }
        (Some(_), false) => {
            let text = format!(
                "{} runs under {}: say which with --pm2-home",
                wanted.targets.join(", "),
                homes.join(" and ")
            );
            Err(Failure::new(Exit::UnknownTarget, text))
        }
    }
}
