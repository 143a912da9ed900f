//! Heavy tests run one at a time: two loads on a small machine would measure each other.
//!
//! nextest is told so in `.config/nextest.toml`; this holds under `cargo test` too.

use crate::place;
use anyhow::{Context, Result};
use rustix::fs::{FlockOperation, flock};
use std::fs::{self, File};

/// As long as this is held, no other heavy test runs.
#[derive(Debug)]
#[must_use]
pub struct Alone(#[expect(dead_code, reason = "the lock goes when the file is closed")] File);

/// Waits for its turn.
pub fn take() -> Result<Alone> {
    let path = place::target("stage.lock");
    fs::create_dir_all(place::root().join("target"))?;
    let file = File::create(&path).with_context(|| path.display().to_string())?;
    flock(&file, FlockOperation::LockExclusive)?;
    Ok(Alone(file))
}
