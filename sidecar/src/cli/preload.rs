//! `handoff preload`

use super::{Exit, Failure, say};

/// As it is installed with npm.
pub(crate) const PRELOAD: &str = include_str!("../../preload/handoff.cjs");

pub(super) fn run() -> Result<Exit, Failure> {
    let written = say(PRELOAD.trim_end());
    written.map_err(|error| Failure::new(Exit::Failed, format!("cannot write the preload: {error}")))?;
    Ok(Exit::Done)
}
