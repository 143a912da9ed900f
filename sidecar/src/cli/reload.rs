//! `handoff reload TARGET…`

use super::{Context, Exit, Failure, complain, progress::Progress, say};
use crate::{
    pm2::{
        PmId,
        home::Home,
        monitor::Listed,
        orders::{Orders, Prepare, Request},
        rpc::{Rpc, RpcError},
    },
    rollout::{
        OnDeadline, Options, Order, Plan, Rollout, Site,
        brake::Brake,
        event::Event,
        health,
        lock::{Lock, REFRESH},
        plan::Relief,
    },
};
use handoff_wire::Span;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use tokio::{sync::mpsc::unbounded_channel, time};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Apps (shop), workers (shop:3), `all`, or ecosystem files
    #[arg(required = true)]
    target: Vec<String>,
    /// With a file: only these apps, separated by commas
    #[arg(long, value_name = "APPS")]
    only: Option<String>,
    /// With a file: the environment that it calls env_NAME
    #[arg(long, value_name = "NAME")]
    env: Option<String>,
    /// Give the app the environment of this command
    #[arg(long)]
    update_env: bool,
    /// How long requests may take to finish before their worker is stopped
    #[arg(long, value_name = "TIME", default_value = "30s")]
    drain_timeout: Span,
    /// What becomes of those that take longer
    #[arg(long, value_name = "WHAT", default_value = "stop")]
    on_deadline: OnDeadline,
    /// How long a worker may take until it listens and is ready
    #[arg(long, value_name = "TIME", default_value = "30s")]
    start_timeout: Span,
    /// What a worker is asked, at its own address, before it serves; 2xx and 3xx are well
    #[arg(long, value_name = "PATH")]
    health: Option<health::Path>,
    /// How often it must be well in a row
    #[arg(long, value_name = "N", default_value = "3", value_parser = clap::value_parser!(u32).range(1..=1000))]
    health_passes: u32,
    /// How long it may take until it is well
    #[arg(long, value_name = "TIME", default_value = "10s")]
    health_timeout: Span,
    /// How long to watch how it answers users [default: until that is clear, at most 1s]
    #[arg(long, value_name = "TIME")]
    watch: Option<Span>,
    /// So many workers at once; the first one is always alone
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u16).range(1..=1000))]
    parallel: u16,
    /// Say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
    /// Do it even if nobody is left to serve
    #[arg(long)]
    force: bool,
    /// Do it even if requests reach a worker past Handoff
    #[arg(long)]
    uncovered_ok: bool,
}

/// What is to be done in one daemon.
#[derive(Debug)]
struct Work {
    home: Home,
    orders: Vec<Order>,
    prepare: Vec<Prepare>,
    warnings: Vec<String>,
}

/// How often the picture's seconds go on.
const TICK: Duration = Duration::from_millis(100);

pub(super) async fn run(context: &Context, args: &Args) -> Result<Exit, Failure> {
    let brake = Brake::default();
    brake
        .listen()
        .map_err(|error| Failure::new(Exit::Failed, format!("cannot listen for signals: {error}")))?;
    args.check()?;
    let work = Work::collect(context, args).await?;
    for warning in &work.warnings {
        complain(format_args!("PM2: {warning}"));
    }
    if args.dry_run {
        return dry_run(context, args, work, &brake).await;
    }
    let mut lock = Lock::take(&work.home)?;
    let stays_ours = hold(&mut lock, &brake);
    tokio::select! {
        done = roll_out(context, args, work, &brake) => done,
        never = stays_ours => never,
    }
}

async fn roll_out(context: &Context, args: &Args, work: Work, brake: &Brake) -> Result<Exit, Failure> {
    let mut progress = Progress::new(args.json);
    let mut exit = Exit::Done;
    for order in work.orders {
        let (events, mut told) = unbounded_channel::<Event>();
        let site = context.site(&work.home);
        let rollout = Rollout::prepare(order, site, args.options(), brake.clone()).await?;
        let run = rollout.run(&events);
        tokio::pin!(run);
        let mut tick = time::interval(TICK);
        let outcome = loop {
            tokio::select! {
                biased;
                Some(event) = told.recv() => progress.show(&event),
                outcome = &mut run => break outcome,
                _ = tick.tick() => progress.tick(),
            }
        };
        while let Ok(event) = told.try_recv() {
            progress.show(&event);
        }
        if outcome.exit() != Exit::Done {
            exit = outcome.exit();
        }
        if outcome.stop.is_some() {
            return Ok(exit);
        }
    }
    prepare(&work.home, work.prepare).await?;
    Ok(exit)
}

/// Apps of a file that do not run yet are started, as PM2 would.
async fn prepare(home: &Home, apps: Vec<Prepare>) -> Result<(), Failure> {
    for Prepare { name, app } in apps {
        let mut rpc = Rpc::connect(home).await.map_err(RpcError::from)?;
        rpc.prepare(&app).await?;
        complain(format_args!("{name} did not run: it was started"));
    }
    Ok(())
}

async fn dry_run(context: &Context, args: &Args, work: Work, brake: &Brake) -> Result<Exit, Failure> {
    for order in work.orders {
        let site = context.site(&work.home);
        let rollout = Rollout::prepare(order, site, args.options(), brake.clone()).await?;
        _ = say(describe(rollout.plan()).trim_end());
    }
    for Prepare { name, .. } in work.prepare {
        _ = say(format_args!("{name} does not run: it would be started"));
    }
    Ok(Exit::Done)
}

fn describe(plan: &Plan) -> String {
    let app = &plan.app;
    let line = |planned: &crate::rollout::plan::Planned| {
        let peers: Vec<String> = planned.peers.iter().map(ToString::to_string).collect();
        let what = match (planned.serves, peers.is_empty()) {
            (true, false) if plan.cluster.is_some() => "would be replaced",
            (true, false) => "would be drained and replaced",
            (false, false) => "does not serve, and would be started anew",
            (_, true) => "has no peer in nginx, and would be restarted",
        };
        let peers = if peers.is_empty() { String::new() } else { format!(": {}", peers.join(", ")) };
        format!("{app}:{} {what}{peers}\n", planned.id)
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
async fn hold(lock: &mut Lock, brake: &Brake) -> Result<Exit, Failure> {
    loop {
        time::sleep(REFRESH).await;
        match lock.refresh() {
            Ok(true) => {}
            Ok(false) => brake.pull(crate::rollout::brake::Halt::Foreign(
                "somebody took PM2's reload.lock (pm2 reload --force?)".to_owned(),
            )),
            Err(error) => tracing::warn!("PM2's reload.lock could not be renewed: {error}"),
        }
    }
}

// === impl Args ===

impl Args {
    fn check(&self) -> Result<(), Failure> {
        let has_file = self.target.iter().any(|target| is_file(target));
        let misused = match (has_file, &self.only, &self.env) {
            (false, Some(_), _) => "--only",
            (false, _, Some(_)) => "--env",
            _ => return Ok(()),
        };
        let text = format!("{misused} chooses from an ecosystem file: give one, such as ecosystem.config.js");
        Err(Failure::new(Exit::Usage, text))
    }

    fn options(&self) -> Options {
        Options {
            drain_timeout: self.drain_timeout,
            on_deadline: self.on_deadline,
            start_timeout: self.start_timeout,
            health: self.health.clone(),
            health_passes: self.health_passes,
            health_timeout: self.health_timeout,
            watch: self.watch,
            parallel: self.parallel.into(),
            force: self.force,
            uncovered_ok: self.uncovered_ok,
        }
    }
}

/// As PM2 tells a file from the name of an app.
fn is_file(target: &str) -> bool {
    let endings = [".json", ".yml", ".yaml", ".config.js", ".config.cjs", ".config.mjs"];
    endings.iter().any(|ending| target.ends_with(ending))
}

// === impl Context ===

impl Context {
    fn site(&self, home: &Home) -> Site {
        Site { home: home.clone(), control: self.control.clone(), overrides: self.overrides.clone() }
    }
}

// === impl Work ===

impl Work {
    async fn collect(context: &Context, args: &Args) -> Result<Self, Failure> {
        let (home, mut rpc, listed) = find(context, args).await?;
        let mut work = Self { home, orders: Vec::new(), prepare: Vec::new(), warnings: Vec::new() };
        for target in &args.target {
            if is_file(target) || args.update_env {
                work.ask_pm2(&mut rpc, target, args, &listed).await?;
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
        args: &Args,
        listed: &[Listed],
    ) -> Result<(), Failure> {
        let (only, env) = (args.only.as_deref(), args.env.as_deref());
        let request = Request { target, only, env, update_env: args.update_env };
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
        self.push(plain(&worker.app, Some(worker.id)));
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
async fn find(context: &Context, args: &Args) -> Result<(Home, Rpc, Vec<Listed>), Failure> {
    let mut found = Vec::new();
    for home in &context.homes {
        let mut rpc = Rpc::connect(home).await.map_err(RpcError::from)?;
        let listed = rpc.list().await?;
        let is_meant = |worker: &Listed| {
            args.target
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
            let text = format!("no PM2 here knows {}: say which one with --pm2-home", args.target.join(", "));
            Err(Failure::new(Exit::UnknownTarget, text))
        }
        (Some(_), false) => {
            let text = format!(
                "{} runs under {}: say which with --pm2-home",
                args.target.join(", "),
                homes.join(" and ")
            );
            Err(Failure::new(Exit::UnknownTarget, text))
        }
    }
}
