//! What came of each deploy: a line of JSON, appended.
//!
//! The file is bounded: of more than [`MOST`] lines the newer half is kept. No variable of an environment gets there.

use super::{event::Stage, traffic::Sample};
use serde::{Deserialize, Serialize};
use std::{
    env, fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::SystemTime,
};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub app: String,
    pub release: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "ref")]
    pub reference: Option<String>,
    /// What served before; None: nothing did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<String>,
    pub who: String,
    pub began: String,
    pub seconds: f64,
    pub outcome: Outcome,
    pub exit: u8,
    pub text: String,
    pub steps: Vec<Step>,
    /// Requests that were cut with their workers.
    #[serde(default)]
    pub cut: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traffic: Option<Traffic>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The new release serves.
    Done,
    /// It failed before anybody could notice.
    Failed,
    /// The old release serves again, on every worker.
    RolledBack,
    /// Not every worker could be moved back.
    Mixed,
    /// It was killed, and what it left was mended by the next one.
    Killed,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    pub stage: Stage,
    pub seconds: f64,
    pub ok: bool,
}

/// What users met.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Traffic {
    pub old: Numbers,
    pub new: Numbers,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Numbers {
    pub answers: u64,
    pub errors: u64,
}

#[derive(Debug)]
pub struct Records(PathBuf);

const MOST: usize = 500;

/// In UTC, to the second.
pub fn now() -> String {
    humantime::format_rfc3339_seconds(SystemTime::now()).to_string()
}

/// Who runs this, as far as they say.
pub fn who() -> String {
    let set = |name| env::var(name).ok().filter(|value| !value.is_empty());
    ["SUDO_USER", "LOGNAME", "USER"]
        .into_iter()
        .find_map(set)
        .unwrap_or_else(|| format!("user {}", rustix::process::getuid().as_raw()))
}

// === impl Records ===

impl Records {
    pub fn of(state: &Path) -> Self {
        Self(state.join("deploys.jsonl"))
    }

    /// Whoever has the lock of the app writes.
    pub fn add(&self, record: &Record) -> io::Result<()> {
        let line = serde_json::to_string(record)?;
        let text = fs::read_to_string(&self.0).or_else(absent)?;
        let lines: Vec<&str> = text.lines().collect();
        if lines.len() >= MOST {
            let newer = lines.get(lines.len() - MOST / 2..).unwrap_or_default();
            let part = self.0.with_extension("part");
            fs::write(&part, newer.join("\n") + "\n")?;
            fs::rename(part, &self.0)?;
        }
        let mut file = fs::File::options().create(true).append(true).open(&self.0)?;
        // One that was cut short by a full disk ends here.
        let gap = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
        file.write_all(format!("{gap}{line}\n").as_bytes())?;
        file.sync_data()
    }

    /// Oldest first. A line that cannot be read is passed over.
    pub fn read(&self) -> io::Result<Vec<Record>> {
        let text = fs::read_to_string(&self.0).or_else(absent)?;
        Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
    }
}

fn absent(error: io::Error) -> io::Result<String> {
    if error.kind() == io::ErrorKind::NotFound { Ok(String::new()) } else { Err(error) }
}

impl From<&Sample> for Numbers {
    fn from(sample: &Sample) -> Self {
        Self { answers: sample.answers.all, errors: sample.answers.errors }
    }
}

impl Outcome {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "failed",
            Self::RolledBack => "rolled back",
            Self::Mixed => "mixed",
            Self::Killed => "killed",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(release: &str) -> Record {
        Record {
            app: "shop".into(),
            release: release.into(),
            commit: None,
            reference: None,
            previous: None,
            who: "me".into(),
            began: now(),
            seconds: 1.5,
            outcome: Outcome::RolledBack,
            exit: 13,
            text: "it answered\nwith errors".into(),
            steps: vec![Step { stage: Stage::Install, seconds: 0.5, ok: true }],
            cut: 0,
            traffic: None,
        }
    }

    #[test]
    fn records_are_read_as_they_were_written_and_what_is_cut_short_is_passed_over() {
        let dir = crate::scratch::Dir::new();
        let records = Records::of(&dir);
        assert_eq!(records.read().unwrap(), []);
        records.add(&record("a")).unwrap();
        let path = dir.join("deploys.jsonl");
        fs::write(&path, fs::read_to_string(&path).unwrap() + "{\"app\":\"sh").unwrap();
        records.add(&record("b")).unwrap();
        let read = records.read().unwrap();
        assert_eq!(read.iter().map(|record| record.release.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(read[1].outcome, Outcome::RolledBack);
    }

    #[test]
    fn the_file_does_not_grow_for_ever() {
        let dir = crate::scratch::Dir::new();
        let records = Records::of(&dir);
        (0..=MOST).for_each(|number| records.add(&record(&number.to_string())).unwrap());
        let read = records.read().unwrap();
        assert_eq!((read.len(), read.last().unwrap().release.as_str()), (MOST / 2 + 1, "500"));
    }
}
