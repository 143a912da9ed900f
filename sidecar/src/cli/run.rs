//! `handoff run`

use super::{Context, Exit, Failure};
use crate::{
    memory, shutdown,
    sidecar::{self, Settings},
};
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Where the operator's marks are remembered [default: /var/lib/handoff, or the user's state directory]
    #[arg(long, env = "HANDOFF_STATE_DIR", value_name = "DIR")]
    state_dir: Option<PathBuf>,
}

pub(super) async fn run(context: &Context, args: &Args) -> Result<Exit, Failure> {
    let shutdown = shutdown::listen()
        .map_err(|error| Failure::new(Exit::Failed, format!("cannot listen for signals: {error}")))?;
    let state_dir = args.state_dir.clone().or_else(|| context.state_dir.clone());
    let settings = Settings {
        control: context.control.clone(),
        homes: context.homes.clone(),
        overrides: context.overrides.clone(),
        state_dir: state_dir.unwrap_or_else(memory::default_dir),
    };
    sidecar::run(settings, shutdown).await;
    Ok(Exit::Done)
}
