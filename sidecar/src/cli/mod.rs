//! The command line.

mod care;
mod deploy;
mod deploys;
mod doctor;
mod drain;
mod events;
mod exec;
pub mod exit;
mod hosts;
mod pause;
mod peers;
pub(crate) mod preload;
mod progress;
mod ready;
mod reload;
mod resume;
mod run;
mod status;
mod table;
mod target;
mod work;

use crate::{
    config::{self, File, Override},
    control::{Address, Control},
    deploy::settings::Settings,
    exec::family::Ended,
    pm2::home::Home,
    rollout::brake::Brake,
    store,
    telemetry::{Format, Level},
};
use clap::{Args, CommandFactory as _, Parser, Subcommand};
use exit::{Exit, Failure};
use handoff_wire::DEFAULT_CONTROL;
use std::{
    collections::BTreeMap,
    fmt::Display,
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
};

/// No user's request fails because of a deploy.
#[derive(Debug, Parser)]
#[command(name = "handoff", version, after_help = exit::HELP)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args)]
struct Global {
    /// Where nginx listens for us [default: unix:/run/handoff/nginx.sock; unix:/run/handoff/store.sock if that is there]
    #[arg(long, global = true, env = "HANDOFF_CONTROL", value_name = "ADDRESS")]
    control: Option<Address>,
    /// The home of the PM2 daemon; may be given more than once [default: PM2_HOME, else ~/.pm2]
    #[arg(long, global = true, value_name = "DIR")]
    pm2_home: Vec<PathBuf>,
    /// A configuration file (TOML)
    #[arg(long, global = true, env = "HANDOFF_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// What is logged, on standard error [default: info; warn but for `run`]
    #[arg(long, global = true, env = "HANDOFF_LOG", value_name = "LEVEL")]
    log: Option<Level>,
    /// For people or for programs [default: text]
    #[arg(long, global = true, env = "HANDOFF_LOG_FORMAT", value_name = "FORMAT")]
    log_format: Option<Format>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Watch PM2 and tell nginx in time: runs beside PM2 for as long as it does
    Run(run::Args),
    /// Run one worker under any supervisor: nginx is told before it is
    Exec(exec::Args),
    /// Become the command of `exec`
    #[command(hide = true)]
    Launch(exec::Launch),
    /// Show apps, workers, peers, and what each app is protected against
    Status(status::Args),
    /// Give a worker no new requests, until `ready`
    Drain(drain::Args),
    /// Take the operator's mark away
    Ready(ready::Args),
    /// Keep every new request of an upstream waiting, until `resume` or for a time: for migrations
    Pause(pause::Args),
    /// Let those who wait go on
    Resume(resume::Args),
    /// Let an upstream have more peers while nginx runs, or fewer
    Peers(peers::Args),
    /// Replace every worker, one after the other, and let nobody notice
    Reload(reload::Args),
    /// Bring out a release: fetch, build, replace every worker, watch what users meet, and go back if that is worse
    Deploy(Box<deploy::Args>),
    /// Show past deploys
    Deploys(deploys::Args),
    /// Show what changed
    Events(events::Args),
    /// Find what in nginx, PM2, the apps and this host loses requests, and say what mends it
    Doctor(Box<doctor::Args>),
    /// Write the Node preload: `handoff preload > handoff.cjs`, and node_args: '-r /path/to/handoff.cjs' in the app's
    /// ecosystem file
    Preload,
}

/// What every command knows: arguments over configuration over defaults.
#[derive(Debug)]
struct Context {
    control: Address,
    homes: Vec<Home>,
    overrides: Vec<Override>,
    state_dir: Option<PathBuf>,
    preload_socket: Option<PathBuf>,
    store: config::Store,
    deploy: BTreeMap<String, Settings>,
}

pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let is_service = matches!(cli.command, Command::Run(_) | Command::Exec(_));
    let done = cli.global.context(is_service).and_then(|context| {
        if matches!(cli.command, Command::Run(_)) {
            run::keep_little();
            run::come_first();
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .map_err(|error| Failure::new(Exit::Failed, format!("cannot start: {error}")))?;
        let exit = runtime.block_on(cli.command.run(&context));
        // A look at /proc that is under way is not waited for.
        runtime.shutdown_background();
        exit
    });
    match done {
        Ok(exit) => exit,
        Err(failure) => {
            complain(&failure);
            failure.exit.into()
        }
    }
}

/// What there is to type, for whoever writes manuals.
pub fn command() -> clap::Command {
    Cli::command()
}

/// An answer. Whoever wanted it may have gone, as `head` does: that is no reason to end otherwise.
fn say(text: impl Display) -> io::Result<()> {
    writeln!(io::stdout(), "{text}")
}

/// What is not well. Nor is it a reason that nobody hears it.
fn complain(text: impl Display) {
    _ = writeln!(io::stderr(), "handoff: {text}");
}

/// Pulled by the first signal from now on.
fn brake_on_signals() -> Result<Brake, Failure> {
    let brake = Brake::default();
    brake
        .listen()
        .map_err(|error| Failure::new(Exit::Failed, format!("cannot listen for signals: {error}")))?;
    Ok(brake)
}

// === impl Command ===

impl Command {
    async fn run(&self, context: &Context) -> Result<ExitCode, Failure> {
        let exit = match self {
            // They end as their command does.
            Self::Exec(args) => return exec::run(context, args).await.map(Ended::repeat),
            Self::Launch(args) => return Ok(exec::launch(args)),
            Self::Run(args) => run::run(context, args).await,
            Self::Status(args) => status::run(context, args).await,
            Self::Drain(args) => drain::run(context, args).await,
            Self::Ready(args) => ready::run(context, args).await,
            Self::Pause(args) => pause::run(context, args).await,
            Self::Resume(args) => resume::run(context, args).await,
            Self::Peers(args) => peers::run(context, args).await,
            Self::Reload(args) => reload::run(context, args).await,
            Self::Deploy(args) => deploy::run(context, args).await,
            Self::Deploys(args) => deploys::run(context, args),
            Self::Events(args) => events::run(context, args).await,
            Self::Doctor(args) => doctor::run(context, args).await,
            Self::Preload => preload::run(),
        };
        exit.map(ExitCode::from)
    }
}

// === impl Global ===

impl Global {
    fn context(&self, is_service: bool) -> Result<Context, Failure> {
        let file = self.config.as_deref().map(File::read).transpose()?.unwrap_or_default();
        // What a command does, it answers; a service has only its log.
        let default = if is_service { Level::Info } else { Level::Warn };
        crate::telemetry::init(
            self.log.or(file.log).unwrap_or(default),
            self.log_format.or(file.log_format).unwrap_or_default(),
        );
        let default = || {
            // What is told to one nginx of several would be no handing over.
            let store = store::settings::SOCKET.parse().ok().filter(|store: &Address| store.path().exists());
            match store.filter(|_| !is_service) {
                Some(store) => Ok(store),
                None => {
                    DEFAULT_CONTROL.parse().map_err(|error| Failure::new(Exit::Usage, format!("{error}")))
                }
            }
        };
        let named: Vec<Home> = if self.pm2_home.is_empty() {
            file.pm2.iter().map(|pm2| Home::new(&pm2.home)).collect()
        } else {
            self.pm2_home.iter().map(|home| Home::new(home)).collect()
        };
        Ok(Context {
            control: self.control.clone().or(file.control).map_or_else(default, Ok)?,
            homes: if named.is_empty() { vec![Home::from_env()] } else { named },
            overrides: file.overrides,
            state_dir: file.state_dir,
            preload_socket: file.preload_socket,
            store: file.store,
            deploy: file.deploy,
        })
    }
}

// === impl Context ===

impl Context {
    fn control(&self) -> Control {
        Control::new(self.control.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        command().debug_assert();
    }
}
