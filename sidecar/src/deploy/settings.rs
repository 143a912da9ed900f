//! What is set for an app that is deployed: `[deploy.NAME]` in the configuration file.

use super::traffic::Limits;
use crate::rollout::health;
use handoff_wire::Span;
use serde::{Deserialize, Deserializer, de};
use std::path::{Component, Path, PathBuf};

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Where its releases are, or with `in_place` the working tree that it runs from.
    #[serde(deserialize_with = "absolute")]
    pub path: PathBuf,
    #[serde(default)]
    pub in_place: bool,
    pub repository: Option<String>,
    #[serde(rename = "ref")]
    pub reference: Option<String>,
    /// So many releases are kept.
    pub keep: Option<usize>,
    /// What all releases have in common: files, or directories with a slash at the end.
    #[serde(default, deserialize_with = "inside")]
    pub shared: Vec<String>,
    pub install: Option<String>,
    pub build: Option<String>,
    /// How long one of the two may take.
    pub hook_timeout: Option<Span>,
    /// A file of the release.
    pub ecosystem: Option<String>,
    /// What it calls env_NAME.
    pub env: Option<String>,
    #[serde(default, deserialize_with = "health_path")]
    pub health: Option<health::Path>,
    /// How long each new worker is watched before the next one.
    pub watch: Option<Span>,
    /// How long all of them are, when the last one is new.
    pub bake: Option<Span>,
    #[serde(default)]
    pub limits: RawLimits,
    pub on_start: Option<String>,
    pub on_success: Option<String>,
    pub on_failure: Option<String>,
}

/// Each where it is not the default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawLimits {
    /// In percent.
    errors: Option<f64>,
    slower: Option<f64>,
    slower_by: Option<Span>,
}

pub const KEEP: usize = 5;
pub const HOOK_TIMEOUT: Span = Span::from_secs(15 * 60);
pub const BAKE: Span = Span::from_secs(30);
pub const WATCH: Span = Span::from_secs(3);

// === impl Settings ===

impl Settings {
    pub fn limits(&self) -> Limits {
        let (default, own) = (Limits::default(), self.limits);
        Limits {
            errors: own.errors.map_or(default.errors, |percent| percent / 100.0),
            slower: own.slower.unwrap_or(default.slower),
            slower_by: own.slower_by.unwrap_or(default.slower_by),
        }
    }
}

fn absolute<'de, D: Deserializer<'de>>(d: D) -> Result<PathBuf, D::Error> {
    let path = PathBuf::deserialize(d)?;
    if path.is_absolute() {
        return Ok(path);
    }
    Err(de::Error::custom(format!(
        "path {:?} is not absolute: write it from the root, as /srv/shop",
        path.display()
    )))
}

fn inside<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<String>, D::Error> {
    let shared = Vec::<String>::deserialize(d)?;
    let is_inside = |name: &&String| {
        let mut parts = Path::new(name).components().peekable();
        parts.peek().is_some() && parts.all(|part| matches!(part, Component::Normal(_)))
    };
    match shared.iter().find(|name| !is_inside(name)) {
        None => Ok(shared),
        Some(wrong) => Err(de::Error::custom(format!(
            "shared {wrong:?} is not in a release: write it from there, as .env or uploads/"
        ))),
    }
}

fn health_path<'de, D: Deserializer<'de>>(d: D) -> Result<Option<health::Path>, D::Error> {
    String::deserialize(d)?.parse().map(Some).map_err(|error| de::Error::custom(format!("health: {error}")))
}
