//! What a roll-out says of itself while it goes on.

use crate::pm2::PmId;
use serde::Serialize;

/// Of one app.
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
    /// These are to be replaced, in this order.
    Begin {
        workers: Vec<PmId>,
    },
    /// Of one of these, or of a canary beside them.
    Step {
        worker: PmId,
        #[serde(flatten)]
        step: Step,
    },
    /// Something that the operator should know, and that stops nothing.
    Note {
        text: String,
    },
    End(End),
}

/// How far a worker is.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "step", rename_all = "lowercase")]
pub enum Step {
    /// nginx has acknowledged: it gets nothing new, and has so many left.
    Draining { in_flight: u64 },
    /// PM2 was asked to replace it; so many requests were still in flight.
    Stopping { cut: u64 },
    /// The old process has ended.
    Starting,
    /// It listens and is ready; so many of its health checks passed in a row.
    Checking { passed: u32, of: u32 },
    /// It gets what can be tried elsewhere, and its errors are.
    Trial,
    /// Users' requests reach it again.
    Up,
    /// It is new, serves, and was watched for a moment.
    Done { seconds: f64 },
    /// Of a canary: it is no longer needed, well or not seen to the end.
    Deleted { seconds: f64 },
    /// It was not stopped, and serves as before.
    Kept,
    /// The new process is not fit to serve.
    Failed { exit: u8, text: String, log: Vec<String> },
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct End {
    /// The exit code.
    pub exit: u8,
    pub seconds: f64,
    pub replaced: Vec<PmId>,
    /// Requests that were in flight when their worker was stopped.
    pub cut: u64,
    pub text: String,
}
