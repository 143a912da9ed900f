//! How a program of the stage runs: until it is done, or until somebody stops it; either way nothing is left behind.

use crate::{caddy, command, haproxy, nginx::Binary, runner::Run, scenario::Setup};
use anyhow::{Result, bail};
use std::{collections::BTreeMap, process::ExitCode};
use tokio::{
    runtime::Runtime,
    signal::unix::{SignalKind, signal},
};

/// Dropping the play ends all that it started.
pub fn enter(play: impl Future<Output = Result<()>>) -> ExitCode {
    match play_or_stop(play) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // For the person at the terminal: what is wrong, and no backtrace.
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn play_or_stop(play: impl Future<Output = Result<()>>) -> Result<()> {
    Runtime::new()?.block_on(async {
        let mut terminated = signal(SignalKind::terminate())?;
        let mut interrupted = signal(SignalKind::interrupt())?;
        tokio::select! {
            result = play => result,
            _ = terminated.recv() => bail!("terminated"),
            _ = interrupted.recv() => bail!("interrupted"),
        }
    })
}

/// Of everything that takes part.
pub async fn versions(nginx: &Binary, runs: &[Run]) -> BTreeMap<String, String> {
    let node = command::succeed(command::clean("node").arg("--version")).await.unwrap_or_default();
    let pm2 = runs.first().map(|run| run.pm2.clone()).unwrap_or_default();
    let mut versions = BTreeMap::from([
        ("handoff".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
        ("nginx".to_owned(), nginx.version.clone()),
        ("node".to_owned(), node.trim().trim_start_matches('v').to_owned()),
        ("pm2".to_owned(), pm2),
    ]);
    if runs.iter().any(|run| run.setup == Setup::Haproxy) {
        versions.insert("haproxy".to_owned(), haproxy::version().await.unwrap_or_default());
    }
    if runs.iter().any(|run| run.setup == Setup::Caddy) {
        versions.insert("caddy".to_owned(), caddy::version().await.unwrap_or_default());
    }
    versions
}
