//! How far a deploy has come, written before each step that would have to be undone. Only a killed one leaves it behind.

use super::event::Stage;
use crate::host::Process;
use serde::{Deserialize, Serialize};
use std::{
    fs, io,
    path::{Path, PathBuf},
};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Journal {
    /// The release that was being brought out.
    pub to: String,
    /// What served before.
    pub from: Option<String>,
    pub stage: Stage,
    /// Its directory was made by this deploy.
    pub is_made: bool,
    /// The processes of the app that ran the old release.
    pub old: Vec<Process>,
    pub began: String,
    pub who: String,
}

#[derive(Clone, Debug)]
pub struct Journals(PathBuf);

// === impl Journals ===

impl Journals {
    pub fn of(state: &Path) -> Self {
        Self(state.join("deploying.json"))
    }

    /// What cannot be read was cut short before anything was done.
    pub fn left(&self) -> Option<Journal> {
        serde_json::from_str(&fs::read_to_string(&self.0).ok()?).ok()
    }

    pub fn write(&self, journal: &Journal) -> io::Result<()> {
        let part = self.0.with_extension("part");
        fs::write(&part, serde_json::to_vec(journal)?)?;
        fs::rename(part, &self.0)
    }

    pub fn strike(&self) -> io::Result<()> {
        fs::remove_file(&self.0).or_else(|error| match error.kind() {
            io::ErrorKind::NotFound => Ok(()),
            _ => Err(error),
        })
    }
}
