//! What a deploy says of itself, beside what its roll-out says.

use super::{record::Outcome, traffic::Sample};
use crate::rollout;
use serde::{Deserialize, Serialize, Serializer};
use std::fmt;

#[derive(Clone, Debug, PartialEq)]
pub enum Told {
    Rollout(rollout::event::Event),
    Deploy(Event),
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Event {
    /// Milliseconds since 1970.
    pub at: u64,
    pub app: String,
    #[serde(flatten)]
    pub what: What,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum What {
    Stage {
        stage: Stage,
        #[serde(flatten)]
        state: State,
    },
    /// What users met so far.
    Traffic {
        #[serde(serialize_with = "sample")]
        old: Sample,
        #[serde(serialize_with = "sample")]
        new: Sample,
    },
    Note {
        text: String,
    },
    Deployed {
        exit: u8,
        outcome: Outcome,
        seconds: f64,
        text: String,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    Fetch,
    /// The directory is made.
    Release,
    Install,
    Build,
    /// How the old release serves users, to compare with.
    Measure,
    Switch,
    Reload,
    /// Every worker is new, and is watched.
    Bake,
    Back,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum State {
    Begun,
    Done { seconds: f64, text: String },
    Failed { seconds: f64, text: String, log: Vec<String> },
}

fn sample<S: Serializer>(sample: &Sample, to: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Numbers {
        answers: u64,
        errors: u64,
    }
    Numbers { answers: sample.answers.all, errors: sample.answers.errors }.serialize(to)
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Fetch => "fetch",
            Self::Release => "release",
            Self::Install => "install",
            Self::Build => "build",
            Self::Measure => "measure",
            Self::Switch => "switch",
            Self::Reload => "reload",
            Self::Bake => "bake",
            Self::Back => "back",
        })
    }
}
