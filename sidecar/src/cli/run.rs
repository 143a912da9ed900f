//! `handoff run`

use super::{Context, Exit, Failure, hosts::StoreArgs};
use crate::{
    memory, shutdown,
    sidecar::{self, Settings},
    store,
};
use std::{env, net::SocketAddr, os::unix::process::CommandExt as _, path::PathBuf, process::Command};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Where the operator's marks are remembered [default: /var/lib/handoff, or the user's state directory]
    #[arg(long, env = "HANDOFF_STATE_DIR", value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Where workers' preloads call [default: preload.sock in /run/handoff or $XDG_RUNTIME_DIR/handoff]
    #[arg(long, env = "HANDOFF_PRELOAD_SOCKET", value_name = "PATH")]
    preload_socket: Option<PathBuf>,
    #[command(flatten)]
    store: StoreArgs,
    /// Where Prometheus reads what this process knows of the store, over TCP
    #[arg(long, env = "HANDOFF_STORE_METRICS", value_name = "IP:PORT", help_heading = "Several hosts")]
    store_metrics: Option<SocketAddr>,
}

/// What `nice` calls it. Everything that is done at this priority takes microseconds.
const PRIORITY: i32 = -10;

pub(super) async fn run(context: &Context, args: &Args) -> Result<Exit, Failure> {
    let shutdown = shutdown::listen()
        .map_err(|error| Failure::new(Exit::Failed, format!("cannot listen for signals: {error}")))?;
    let state_dir = args.state_dir.clone().or_else(|| context.state_dir.clone());
    let mut store = args.store.clone().over(context.store.clone());
    store.metrics = args.store_metrics.or(store.metrics);
    let store =
        store::Settings::of(store, &context.control).map_err(|text| Failure::new(Exit::Usage, text))?;
    let settings = Settings {
        control: context.control.clone(),
        store,
        homes: context.homes.clone(),
        overrides: context.overrides.clone(),
        state_dir: state_dir.unwrap_or_else(memory::default_dir),
        preload_socket: args.preload_socket.clone().or_else(|| context.preload_socket.clone()),
    };
    sidecar::run(settings, shutdown).await;
    Ok(Exit::Done)
}

/// glibc gives each thread a heap of its own, of which no other uses what is free, and keeps what a long answer of PM2 once
/// took. One heap, from which what is large goes back at once, is fast enough for us. It is asked for before the program
/// begins: so it begins again.
pub(super) fn keep_little() {
    const HEAPS: (&str, &str) = ("MALLOC_ARENA_MAX", "1");
    const LARGE: (&str, &str) = ("MALLOC_MMAP_THRESHOLD_", "65536");
    const KEPT: (&str, &str) = ("MALLOC_TRIM_THRESHOLD_", "65536");
    // Whoever set it knows better; or it was us.
    if env::var_os(HEAPS.0).is_some() {
        return;
    }
    let mut words = env::args_os();
    let (Ok(program), Some(name)) = (env::current_exe(), words.next()) else { return };
    let error = Command::new(program).arg0(name).args(words).envs([HEAPS, LARGE, KEPT]).exec();
    tracing::debug!("more memory is kept than is needed: {error}");
}

/// A deploy starts processes that want all of the CPU at the very moment when nginx must be told. Before there is a
/// second thread: the kernel counts this by thread, and threads inherit it.
pub(super) fn come_first() {
    if let Err(errno) = rustix::process::setpriority_process(None, PRIORITY) {
        tracing::debug!("no higher priority ({errno}): on a busy host a notice may come late");
    }
}
