//! `handoff reload TARGET…`

use super::{
    Context, Exit, Failure, brake_on_signals,
    care::Care,
    complain,
    progress::{Progress, TICK},
    say,
    work::{Wanted, Work, describe, hold, is_file, prepare},
};
use crate::{
    manager::Systemd,
    pm2::{home::Home, orders::Prepare},
    report,
    rollout::{Order, Rollout, Site, brake::Brake, event::Event, lock::Lock},
};
use std::{collections::BTreeMap, fs, io, sync::Arc};
use tokio::{sync::mpsc::unbounded_channel, time};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Apps (shop), workers (shop:3), `all`, or ecosystem files; of systemd, templates (shop@) or units (shop@3)
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
    #[command(flatten)]
    care: Care,
    /// Say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(context: &Context, args: &Args) -> Result<Exit, Failure> {
    let brake = brake_on_signals()?;
    args.check()?;
    let task = if args.target.iter().any(|target| Systemd::is_meant(target)) {
        Task::of_units(context, args).await?
    } else {
        Task::of_apps(context, args).await?
    };
    if args.dry_run {
        return dry_run(args, task, &brake).await;
    }
    let mut lock = Lock::take(&task.home)?;
    let stays_ours = hold(&mut lock, &brake);
    tokio::select! {
        done = roll_out(args, task, &brake) => done,
        never = stays_ours => never,
    }
}

/// What is rolled out, and where; then what is started.
struct Task {
    home: Home,
    orders: Vec<(Order, Site)>,
    prepare: Vec<Prepare>,
}

async fn roll_out(args: &Args, task: Task, brake: &Brake) -> Result<Exit, Failure> {
    let mut progress = Progress::new(args.json);
    let mut exit = Exit::Done;
    for (order, site) in task.orders {
        let (events, mut told) = unbounded_channel::<Event>();
        let rollout = Rollout::prepare(order, site, args.care.options(), brake.clone()).await?;
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
    prepare(&task.home, task.prepare).await?;
    Ok(exit)
}

async fn dry_run(args: &Args, task: Task, brake: &Brake) -> Result<Exit, Failure> {
    for (order, site) in task.orders {
        let rollout = Rollout::prepare(order, site, args.care.options(), brake.clone()).await?;
        _ = say(describe(rollout.plan()).trim_end());
    }
    for Prepare { name, .. } in task.prepare {
        _ = say(format_args!("{name} does not run: it would be started"));
    }
    Ok(Exit::Done)
}

// === impl Task ===

impl Task {
    async fn of_apps(context: &Context, args: &Args) -> Result<Self, Failure> {
        let work = Work::collect(context, &args.wanted()).await?;
        for warning in &work.warnings {
            complain(format_args!("PM2: {warning}"));
        }
        let orders = work.orders.into_iter().map(|order| (order, context.site(&work.home))).collect();
        Ok(Self { home: work.home, orders, prepare: work.prepare })
    }

    /// Of systemd. All roll-outs of units have one lock.
    async fn of_units(context: &Context, args: &Args) -> Result<Self, Failure> {
        let failed = |error: io::Error| {
            Failure::new(Exit::Failed, format!("there is no place for a lock: {error}. Run it as root"))
        };
        let place = report::writable_place().map_err(failed)?.join("systemd");
        fs::create_dir_all(&place).map_err(failed)?;
        let home = Home::new(&place);
        let mut orders = Vec::new();
        for target in &args.target {
            let (systemd, only) = Systemd::find(target).await?;
            let (app, only) = (systemd.app().to_owned(), only.map(|id| [id].into()));
            let order = Order { app, only, env: BTreeMap::new(), surplus: None };
            orders.push((order, context.site_of(&home, Arc::new(systemd))));
        }
        Ok(Self { home, orders, prepare: Vec::new() })
    }
}

// === impl Args ===

impl Args {
    fn wanted(&self) -> Wanted<'_> {
        Wanted {
            targets: &self.target,
            only: self.only.as_deref(),
            env: self.env.as_deref(),
            update_env: self.update_env,
        }
    }

    fn check(&self) -> Result<(), Failure> {
        if let Some(target) = self.target.iter().find(|target| Systemd::is_meant(target))
            && (self.update_env || self.only.is_some() || self.env.is_some())
        {
            let text = format!(
                "{target} is of systemd, which has the environment of its units: take --env, --only and \
                                --update-env away"
            );
            return Err(Failure::new(Exit::Usage, text));
        }
        let has_file = self.target.iter().any(|target| is_file(target));
        let misused = match (has_file, &self.only, &self.env) {
            (false, Some(_), _) => "--only",
            (false, _, Some(_)) => "--env",
            _ => return Ok(()),
        };
        let text = format!("{misused} chooses from an ecosystem file: give one, such as ecosystem.config.js");
        Err(Failure::new(Exit::Usage, text))
    }
}
