//! What is wrong, where, why it hurts, and what exactly mends it.

use super::conf::Spot;
use crate::pm2::PmId;
use serde::{Serialize, ser::SerializeMap};
use std::{fmt, path::PathBuf};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Nobody fails by it.
    Note,
    /// Requests fail, when something is replaced or dies.
    Warning,
    /// Requests fail, are run twice, or nginx does not start.
    Error,
}

/// One that can be found, as docs/api/doctor.md lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    pub id: &'static str,
    pub severity: Severity,
    /// What is the case.
    pub what: &'static str,
    pub why: &'static str,
    /// What mends it, in general; a finding has the exact steps.
    pub mend: &'static str,
    /// Where there is more, from the repository's root.
    pub docs: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub kind: &'static Kind,
    pub severity: Severity,
    pub about: About,
    pub at: Option<Spot>,
    pub found: String,
    pub mend: Vec<Step>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum About {
    Nginx,
    Handoff,
    App(String, Option<PmId>),
    Host,
}

/// What to do. Steps that change a file say the words to change, so that a program can follow them, too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "do", rename_all = "lowercase")]
pub enum Step {
    /// These words in place of those that begin in this line. Without new ones: they go.
    Replace {
        file: PathBuf,
        line: usize,
        old: String,
        new: String,
    },
    /// Behind these words, with which a block begins in this line.
    Insert {
        file: PathBuf,
        line: usize,
        block: String,
        text: String,
    },
    /// Before everything else in the file.
    Prepend {
        file: PathBuf,
        text: String,
    },
    /// Of the app, in its ecosystem file.
    Set {
        file: Option<PathBuf>,
        app: String,
        key: String,
        value: String,
    },
    Run {
        command: String,
    },
    /// What only its author can do.
    Change {
        text: String,
    },
    /// The steps of that finding are enough.
    See {
        id: &'static str,
    },
    /// Instead of the steps before.
    Or {
        text: String,
    },
}

/// What was not looked at. It is not counted as well.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unseen {
    pub what: String,
    pub why: String,
    /// It was not asked for.
    pub by_choice: bool,
}

// === impl Finding ===

impl Finding {
    pub fn new(kind: &'static Kind, about: About, found: impl Into<String>) -> Self {
        Self { kind, severity: kind.severity, about, at: None, found: found.into(), mend: Vec::new() }
    }

    /// A directive that is found wrong may be written in several lines.
    pub fn nginx(kind: &'static Kind, at: &Spot, found: impl Into<String>) -> Self {
        Self { at: Some(at.clone()), ..Self::new(kind, About::Nginx, words(&found.into())) }
    }

    pub fn at(self, at: Option<Spot>) -> Self {
        Self { at, ..self }
    }

    pub fn with(mut self, step: Step) -> Self {
        self.mend.push(step);
        self
    }

    pub fn with_all(mut self, steps: impl IntoIterator<Item = Step>) -> Self {
        self.mend.extend(steps);
        self
    }

    /// It hurts less here.
    pub fn as_note(self) -> Self {
        Self { severity: Severity::Note, ..self }
    }

    pub fn app(&self) -> Option<&str> {
        match &self.about {
            About::App(app, _) => Some(app),
            _ => None,
        }
    }
}

impl Serialize for Finding {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("id", self.kind.id)?;
        map.serialize_entry("severity", &self.severity)?;
        let (about, app, worker) = match &self.about {
            About::Nginx => ("nginx", None, None),
            About::Handoff => ("handoff", None, None),
            About::Host => ("host", None, None),
            About::App(app, worker) => ("app", Some(app), *worker),
        };
        map.serialize_entry("about", about)?;
        map.serialize_entry("app", &app)?;
        map.serialize_entry("worker", &worker)?;
        map.serialize_entry("file", &self.at.as_ref().map(|at| &*at.file))?;
        map.serialize_entry("line", &self.at.as_ref().map(|at| at.line))?;
        map.serialize_entry("found", &self.found)?;
        map.serialize_entry("why", self.kind.why)?;
        map.serialize_entry("mend", &self.mend)?;
        map.serialize_entry("docs", self.kind.docs)?;
        map.end()
    }
}

// === impl Step ===

impl Step {
    pub fn replace(at: &Spot, new: impl Into<String>) -> Self {
        Self::Replace { file: at.file.to_path_buf(), line: at.line, old: at.source.clone(), new: new.into() }
    }

    pub fn insert(block: &Spot, text: impl Into<String>) -> Self {
        let (file, line) = (block.file.to_path_buf(), block.line);
        Self::Insert { file, line, block: block.source.clone(), text: text.into() }
    }

    pub fn run(command: impl Into<String>) -> Self {
        Self::Run { command: command.into() }
    }

    pub fn change(text: impl Into<String>) -> Self {
        Self::Change { text: text.into() }
    }

    pub fn or(text: impl Into<String>) -> Self {
        Self::Or { text: text.into() }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Replace { file, line, old, new } if new.is_empty() => {
                write!(f, "{}:{line}: remove  {}", file.display(), words(old))
            }
            Self::Replace { file, line, new, .. } => write!(f, "{}:{line}: write  {new}", file.display()),
            Self::Insert { file, line, block, text } => {
                write!(f, "{}:{line}: behind {} add  {text}", file.display(), words(block))
            }
            Self::Prepend { file, text } => write!(f, "at the top of {}: add  {text}", file.display()),
            Self::Set { file, app, key, value } => match file {
                Some(file) => write!(f, "{}, {app}: write  {key}: {value},", file.display()),
                None => write!(f, "in the ecosystem file, {app}: write  {key}: {value},"),
            },
            Self::Run { command } => write!(f, "run  {command}"),
            Self::Change { text } => f.write_str(text),
            Self::See { id } => write!(f, "mend {id}"),
            Self::Or { text } => write!(f, "or: {text}"),
        }
    }
}

/// On one line.
fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

// === impl Severity ===

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Error => "error",
        })
    }
}

// === impl Unseen ===

impl Unseen {
    pub fn new(what: impl Into<String>, why: impl fmt::Display) -> Self {
        Self { what: what.into(), why: why.to_string(), by_choice: false }
    }

    /// Nobody asked for it.
    pub fn unasked(what: impl Into<String>, why: impl fmt::Display) -> Self {
        Self { by_choice: true, ..Self::new(what, why) }
    }
}
