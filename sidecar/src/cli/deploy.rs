//! `handoff deploy APP`

mod account;
mod back;
mod bake;
mod course;
mod moves;
mod release;
mod trouble;
mod voice;

use super::{
    Context, Exit, Failure, brake_on_signals,
    care::Care,
    progress::{Progress, TICK},
    say,
    work::{Wanted, Work, describe},
};
use crate::{
    deploy::{
        event::Told,
        git::Git,
        ground::Ground,
        journal::Journals,
        lock::Lock,
        record::{Outcome, Record, Records},
        settings::Settings,
    },
    pm2::{
        home::Home,
        monitor::Listed,
        rpc::{Rpc, RpcError},
    },
    rollout::{Options, Rollout, brake::Brake},
};
use course::Course;
use handoff_wire::Span;
use release::Goal;
use std::path::{Path, PathBuf};
use tokio::{sync::mpsc::unbounded_channel, time};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The app: its name in PM2, and in the configuration file, [deploy.NAME]
    app: String,
    /// The branch, tag or commit [default: what is configured, else the repository's first branch]
    #[arg(long = "ref", value_name = "REF")]
    reference: Option<String>,
    /// A directory or a tarball instead of a repository
    #[arg(long, value_name = "PATH", conflicts_with = "reference")]
    from: Option<PathBuf>,
    /// A release that is there already, or the beginning of its name
    #[arg(long, value_name = "ID", conflicts_with_all = ["reference", "from"])]
    release: Option<String>,
    /// The last release before this one that served well
    #[arg(long, conflicts_with_all = ["reference", "from", "release"])]
    rollback: bool,
    /// Even if that commit serves already
    #[arg(long)]
    again: bool,
    /// Say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
    /// How long all workers are watched when the last one is new [default: 30s]
    #[arg(long, value_name = "TIME")]
    bake: Option<Span>,
    /// Where the releases are, if not as configured
    #[arg(long, value_name = "DIR")]
    path: Option<PathBuf>,
    /// Where its commits come from, if not as configured
    #[arg(long, value_name = "URL")]
    repository: Option<String>,
    /// What installs a release, if not as configured
    #[arg(long, value_name = "COMMAND")]
    install: Option<String>,
    /// What builds it, if not as configured
    #[arg(long, value_name = "COMMAND")]
    build: Option<String>,
    /// In the working tree that the app runs from: a worker that starts meanwhile meets a mix of both releases
    #[arg(long)]
    in_place: bool,
    #[command(flatten)]
    care: Care,
}

/// What is known before anything is done.
struct Ready {
    home: Home,
    /// The workers of the app; none: PM2 does not know it yet.
    workers: Vec<Listed>,
}

pub(super) async fn run(context: &Context, args: &Args) -> Result<Exit, Failure> {
    let signals = brake_on_signals()?;
    let settings = args.settings(context)?;
    let ground = Ground::of(&settings.path, settings.in_place)?;
    let ready = Ready::find(context, &args.app, &ground).await?;
    let goal = args.goal(&settings, &ground)?;
    let options = args.options(&settings);
    if args.dry_run {
        return dry_run(context, args, &settings, &ground, &goal, ready, options).await;
    }
    ground.lay()?;
    let lock = Lock::take(ground.state())?;
    let (told, mut telling) = unbounded_channel::<Told>();
    let course = Course::new(context, args, settings, ground, options, goal, ready, signals, told);
    let mut progress = Progress::new(args.json);
    let run = course.run();
    tokio::pin!(run);
    let mut tick = time::interval(TICK);
    let ended = loop {
        tokio::select! {
            biased;
            Some(told) = telling.recv() => progress.tell(&told),
            ended = &mut run => break ended,
            _ = tick.tick() => progress.tick(),
        }
    };
    while let Ok(told) = telling.try_recv() {
        progress.tell(&told);
    }
    drop(lock);
    ended
}

async fn dry_run(
    context: &Context,
    args: &Args,
    settings: &Settings,
    ground: &Ground,
    goal: &Goal,
    ready: Ready,
    options: Options,
) -> Result<Exit, Failure> {
    let app = &args.app;
    let serves = if ground.is_in_place() { None } else { ground.current()? };
    let serves = serves.map_or_else(String::new, |id| format!(" (now {id})"));
    match goal {
        Goal::Reference { repository, reference } => {
            let wanted = reference.as_deref().unwrap_or("HEAD");
            let place = if ground.is_in_place() { ground.path() } else { Path::new("/") };
            let there = Git::at(place).run(["ls-remote", "--", repository, wanted]).await;
            let there = there.map_err(|error| Failure::new(Exit::NotMade, error.to_string()))?;
            let commit = there.split_whitespace().next().and_then(|commit| commit.get(..7));
            let commit = commit.map_or_else(
                || format!("{wanted}, if that is a commit"),
                |commit| format!("{wanted} ({commit})"),
            );
            _ = say(format_args!("{app} would become {commit} of {repository}{serves}"));
        }
        Goal::Files(path) => {
            _ = say(format_args!("{app} would become what is in {}{serves}", path.display()))
        }
        Goal::Release(id) => _ = say(format_args!("{app} would become {id}{serves}")),
    }
    if !matches!(goal, Goal::Release(_)) {
        for (what, command) in [("install", &settings.install), ("build", &settings.build)] {
            command.iter().for_each(|command| _ = say(format_args!("{what}: {command}")));
        }
    }
    if let Some(left) = Journals::of(ground.state()).left() {
        _ = say(format_args!(
            "a deploy of {} was killed and left {} half done: it would be undone first",
            left.who, left.to
        ));
    }
    if ready.workers.is_empty() {
        _ = say(format_args!(
            "PM2 does not know {app}: it would be started{}",
            match settings.ecosystem {
                Some(_) => "",
                None => " by you, once the release is there",
            }
        ));
        return Ok(Exit::Done);
    }
    let targets = [app.clone()];
    let work =
        Work::collect(context, &Wanted { targets: &targets, only: None, env: None, update_env: false })
            .await?;
    for order in work.orders {
        let rollout =
            Rollout::prepare(order, context.site(&work.home), options.clone(), Brake::default()).await?;
        _ = say(describe(rollout.plan()).trim_end());
    }
    Ok(Exit::Done)
}

// === impl Ready ===

impl Ready {
    async fn find(context: &Context, app: &str, ground: &Ground) -> Result<Self, Failure> {
        let mut found = Vec::new();
        for home in &context.homes {
            let mut rpc = Rpc::connect(home).await.map_err(RpcError::from)?;
            let mut workers = rpc.list().await?;
            workers.retain(|worker| worker.app == app);
            let (own, daemon) = (rustix::process::geteuid().as_raw(), rpc.daemon().uid);
            if context.homes.len() == 1 || !workers.is_empty() {
                if own != daemon {
                    let text = format!(
                        "PM2 in {home} runs as user {daemon} and handoff as user {own}, and what is built here is going to run \
                         there: run it as that user: sudo -u '#{daemon}' handoff deploy {app}"
                    );
                    return Err(Failure::new(Exit::NotAllowed, text));
                }
                found.push(Self { home: home.clone(), workers });
            }
        }
        let one = found.pop().filter(|_| found.is_empty()).ok_or_else(|| {
            Failure::new(Exit::UnknownTarget, format!("say with --pm2-home which PM2 {app} is to run under"))
        })?;
        for worker in &one.workers {
            ground
                .is_where_it_starts(worker)
                .map_err(|error| Failure::new(Exit::Failed, error.to_string()))?;
        }
        Ok(one)
    }
}

// === impl Args ===

impl Args {
    /// What is configured, and what is said instead.
    fn settings(&self, context: &Context) -> Result<Settings, Failure> {
        let mut settings = context.deploy.get(&self.app).cloned().unwrap_or_default();
        if let Some(path) = &self.path {
            settings.path = std::path::absolute(path)
                .map_err(|error| Failure::new(Exit::Usage, format!("--path: {error}")))?;
        }
        if settings.path.as_os_str().is_empty() {
            let text = format!(
                "where does {0} lie? Write [deploy.{0}] with its path into the configuration (--config), or say --path DIR",
                self.app
            );
            return Err(Failure::new(Exit::Usage, text));
        }
        settings.in_place |= self.in_place;
        for (said, configured) in [
            (&self.repository, &mut settings.repository),
            (&self.reference, &mut settings.reference),
            (&self.install, &mut settings.install),
            (&self.build, &mut settings.build),
        ] {
            if said.is_some() {
                configured.clone_from(said);
            }
        }
        settings.bake = self.bake.or(settings.bake);
        Ok(settings)
    }

    fn options(&self, settings: &Settings) -> Options {
        let options = self.care.options();
        Options {
            health: options.health.or_else(|| settings.health.clone()),
            watch: options.watch.or(settings.watch).or(Some(crate::deploy::settings::WATCH)),
            ..options
        }
    }

    fn goal(&self, settings: &Settings, ground: &Ground) -> Result<Goal, Failure> {
        let usage = |text: String| Err(Failure::new(Exit::Usage, text));
        if ground.is_in_place() {
            if self.from.is_some() || self.release.is_some() {
                return usage("in place there are no releases: say --ref with the commit".to_owned());
            }
            if !settings.shared.is_empty() {
                return usage(
                    "in place everything is shared: take `shared` out of the configuration".to_owned(),
                );
            }
            let reference = if self.rollback {
                Some(self.before(ground, |record| record.commit.clone())?)
            } else {
                settings.reference.clone()
            };
            return Ok(Goal::Reference { repository: "origin".to_owned(), reference });
        }
        if let Some(path) = &self.from {
            let path = path.canonicalize();
            return path
                .map(Goal::Files)
                .map_err(|error| Failure::new(Exit::Usage, format!("--from: {error}")));
        }
        if self.rollback {
            let is_there =
                |record: &Record| Some(record.release.clone()).filter(|id| ground.all().contains(id));
            return self.before(ground, is_there).map(Goal::Release);
        }
        if let Some(wanted) = &self.release {
            let all = ground.all();
            let mut meant = all.iter().filter(|id| id.starts_with(wanted.as_str()));
            return match (meant.next(), meant.next()) {
                (Some(id), None) => Ok(Goal::Release(id.clone())),
                _ => Err(Failure::new(
                    Exit::UnknownTarget,
                    format!(
                        "{wanted:?} is not the name of one release. There is: {}",
                        if all.is_empty() { "nothing".to_owned() } else { all.join(", ") }
                    ),
                )),
            };
        }
        match &settings.repository {
            Some(repository) => {
                Ok(Goal::Reference { repository: repository.clone(), reference: settings.reference.clone() })
            }
            None => usage(format!(
                "where does {0} come from? Add `repository` to [deploy.{0}], or say --repository URL or --from PATH",
                self.app
            )),
        }
    }

    /// What served well before what serves now.
    fn before(&self, ground: &Ground, what: impl Fn(&Record) -> Option<String>) -> Result<String, Failure> {
        let records = Records::of(ground.state())
            .read()
            .map_err(|error| Failure::new(Exit::Failed, error.to_string()))?;
        let mut good =
            records.iter().rev().filter(|record| record.outcome == Outcome::Done).filter_map(&what);
        let now = if ground.is_in_place() { good.next() } else { ground.current()? };
        let before = good.find(|id| Some(id) != now.as_ref());
        before.ok_or_else(|| {
            let text = format!("no release of {} before this one served well and is still there: `handoff deploys {0}` shows them", self.app);
            Failure::new(Exit::UnknownTarget, text)
        })
    }
}
