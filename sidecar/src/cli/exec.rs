//! `handoff exec -- COMMAND…`, and `handoff launch`, in which its child begins.

use super::{Context, Exit, Failure, complain};
use crate::{
    exec::{
        self, Settings,
        family::Ended,
        launch,
        place::Wanted,
        signals::{Name, STOPS},
    },
    rollout::health::Path,
};
use handoff_wire::Span;
use std::{ffi::OsString, process::ExitCode};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Where the worker will listen: every peer with this port and an address of this host. May be given more than once
    /// [default: where it is seen to listen]
    #[arg(long, value_name = "PORT")]
    port: Vec<u16>,
    /// Or on this unix socket
    #[arg(long, value_name = "PATH")]
    socket: Vec<String>,
    /// What it is asked at its own address before it serves; 2xx and 3xx are well
    #[arg(long, value_name = "PATH")]
    health: Option<Path>,
    /// It serves only when it says so: READY=1 (sd_notify), or `ready` on PM2's channel
    #[arg(long)]
    notify: bool,
    /// How long requests may take to finish before it is told to go
    #[arg(long, value_name = "TIME", default_value = "30s")]
    drain_timeout: Span,
    /// What is a stop, whatever the command makes of it; beside these, what it does not handle
    #[arg(long, value_name = "SIGNALS", value_delimiter = ',', default_value = STOPS)]
    stop_signals: Vec<Name>,
    /// What the worker is called in nginx [default: its unit, PM2's name of it, or where it listens]
    #[arg(long)]
    name: Option<String>,
    /// The command and its arguments
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

#[derive(Debug, clap::Args)]
pub(super) struct Launch {
    supervisor: u32,
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

pub(super) async fn run(context: &Context, args: &Args) -> Result<Ended, Failure> {
    let ended = exec::run(args.settings(context)?).await;
    ended.map_err(|error| Failure::new(Exit::Failed, format!("cannot start: {error}")))
}

/// Comes back if it could not become the command.
pub(super) fn launch(args: &Launch) -> ExitCode {
    let error = launch::become_command(args.supervisor, &args.command);
    complain(&error);
    error.exit_code().into()
}

// === impl Args ===

impl Args {
    fn settings(&self, context: &Context) -> Result<Settings, Failure> {
        if let Some(relative) = self.socket.iter().find(|path| !path.starts_with('/')) {
            let text =
                format!("--socket {relative} is no absolute path: write it as in nginx's server directive");
            return Err(Failure::new(Exit::Usage, text));
        }
        let ports = self.port.iter().map(|&port| Wanted::Port(port));
        let sockets = self.socket.iter().map(|path| Wanted::Socket(path.clone()));
        Ok(Settings {
            control: context.control.clone(),
            wanted: ports.chain(sockets).collect(),
            health: self.health.clone(),
            waits_for_ready: self.notify,
            drain_timeout: self.drain_timeout.duration(),
            stops: self.stop_signals.clone(),
            name: self.name.clone(),
            command: self.command.clone(),
        })
    }
}
