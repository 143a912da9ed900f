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
    pm2::orders::Prepare,
    rollout::{Rollout, brake::Brake, event::Event, lock::Lock},
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
    let work = Work::collect(context, &args.wanted()).await?;
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
    prepare(&work.home, work.prepare).await?;
    Ok(exit)
}

async fn dry_run(context: &Context, args: &Args, work: Work, brake: &Brake) -> Result<Exit, Failure> {
    for order in work.orders {
        let site = context.site(&work.home);
        let rollout = Rollout::prepare(order, site, args.care.options(), brake.clone()).await?;
        _ = say(describe(rollout.plan()).trim_end());
    }
    for Prepare { name, .. } in work.prepare {
        _ = say(format_args!("{name} does not run: it would be started"));
    }
    Ok(Exit::Done)
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
