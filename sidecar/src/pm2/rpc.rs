//! Questions to a PM2 daemon, and its answers.
//!
//! One connection, one question at a time. A reply carries the id of its question, so the late answer to one that we
//! gave up is passed over. After any error but a refusal by PM2, and one that came too late, the connection is of no
//! use any more.
//!
//! Any of the futures may be dropped: the connection stays usable, and what was asked may still be done.

use super::{
    PmId,
    frame::{self, Argument, Decoder, FrameError, Policy},
    home::Home,
    monitor::{self, Listed},
    orders::Sealed,
    trust::{self, Daemon, PathError},
};
use bytes::{Buf as _, BytesMut};
use serde::{
    Deserialize, Serialize,
    de::{DeserializeOwned, IgnoredAny},
};
use serde_json::{json, value::RawValue};
use std::{io, time::Duration};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::UnixStream,
    time,
};

/// PM2 answers from memory; a daemon that needs longer is stuck.
const PATIENCE: Duration = Duration::from_secs(5);
/// A thousand workers with large environments stay well below this.
const MAX_REPLY: u32 = 64 << 20;
const MAX_ID: u32 = 64;

#[derive(Debug)]
pub struct Rpc {
    socket: BufReader<UnixStream>,
    decoder: Decoder<Replies>,
    /// What a dropped call left to be sent: a message that is cut short would garble the next one.
    unsent: BytesMut,
    daemon: Daemon,
    calls: u64,
}

/// What the daemon says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Report {
    #[serde(rename = "pm2_version")]
    pub version: String,
    /// The node that it runs on, its own script, and what that was given.
    pub argv: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum RpcError {
    #[error(transparent)]
    Path(#[from] PathError),
    #[error("PM2 closed the connection: its daemon ended or restarts")]
    Closed,
    #[error("PM2 does not answer {method} within {} s: is its daemon stopped or overloaded?", PATIENCE.as_secs())]
    TimedOut { method: &'static str },
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("the connection to PM2 failed: {0}")]
    Io(#[from] io::Error),
    #[error("PM2 refuses {method}: {text}")]
    Refused { method: &'static str, text: String },
    // The cause is left out on purpose: serde quotes the text it stumbles over, and that may be an environment variable.
    #[error("PM2's answer to {method} is not what PM2 5 to 7 answer (column {column})")]
    Unexpected { method: &'static str, column: usize },
    #[error("PM2's answer to {method} has {len} bytes, more than the {MAX_REPLY} that are read")]
    TooLarge { method: &'static str, len: u32 },
}

/// A worker as PM2 answers when it has started it; everything else of it is passed over.
#[derive(Deserialize)]
struct Started {
    pm2_env: StartedEnv,
}

#[derive(Deserialize)]
struct StartedEnv {
    pm_id: PmId,
}

#[derive(Debug)]
struct Replies;

#[derive(Serialize)]
struct Call<'a, A> {
    r#type: &'static str,
    method: &'a str,
    args: A,
}

#[derive(Deserialize)]
#[serde(bound = "T: DeserializeOwned")]
struct Answer<T> {
    #[serde(default = "none")]
    args: Option<T>,
    #[serde(default)]
    error: Option<ErrorText>,
}

/// PM2 sends whatever was thrown: mostly a text.
#[derive(Deserialize)]
#[serde(untagged)]
enum ErrorText {
    Text(String),
    Message { msg: String },
    Other(IgnoredAny),
}

fn none<T>() -> Option<T> {
    None
}

// === impl Rpc ===

impl Rpc {
    pub async fn connect(home: &Home) -> Result<Self, PathError> {
        let (socket, daemon) = trust::connect(&home.rpc()).await?;
        let socket = BufReader::with_capacity(64 * 1024, socket);
        Ok(Self { socket, decoder: Decoder::new(Replies), unsent: BytesMut::new(), daemon, calls: 0 })
    }

    pub fn daemon(&self) -> Daemon {
        self.daemon
    }

    /// Every worker that PM2 knows.
    pub async fn list(&mut self) -> Result<Vec<Listed>, RpcError> {
        let (reply,): (monitor::Reply,) = self.call("getMonitorData", [serde_json::Map::new()]).await?;
        Ok(reply.0)
    }

    /// All that PM2 has of a worker.
    pub async fn settings(&mut self, id: PmId) -> Result<Option<Sealed>, RpcError> {
        let (all,): (monitor::Sealeds,) = self.call("getMonitorData", [serde_json::Map::new()]).await?;
        Ok(all.of(id))
    }

    pub async fn version(&mut self) -> Result<String, RpcError> {
        let (version,) = self.call("getVersion", [serde_json::Map::new()]).await?;
        Ok(version)
    }

    pub async fn report(&mut self) -> Result<Report, RpcError> {
        let (report,) = self.call("getReport", [serde_json::Map::new()]).await?;
        Ok(report)
    }

    /// Replaces the process of a worker, and answers when the new one runs: with `wait_ready` when it said so, or did
    /// not within `listen_timeout`. The caller says how long to wait.
    pub async fn reload(&mut self, id: PmId, env: Option<&RawValue>) -> Result<(), RpcError> {
        #[derive(Serialize)]
        struct Reload<'a> {
            // A number: PM2 takes a text too, and then never hears the worker's `ready`.
            id: PmId,
            #[serde(skip_serializing_if = "Option::is_none")]
            env: Option<&'a RawValue>,
        }
        self.act("reloadProcessId", [Reload { id, env }]).await
    }

    /// Starts one more worker, with the settings and the environment of this one, and answers with its number when it
    /// runs, as `reload` does. The caller says how long to wait.
    pub async fn duplicate(&mut self, id: PmId) -> Result<PmId, RpcError> {
        let (started,): (Started,) = self.exchange("duplicateProcessId", [id]).await?;
        Ok(started.pm2_env.pm_id)
    }

    /// The same with settings and an environment that are given.
    pub async fn start_one(&mut self, app: &RawValue) -> Result<PmId, RpcError> {
        let (started,): ((Started,),) = self.exchange("prepare", [app]).await?;
        Ok(started.0.pm2_env.pm_id)
    }

    /// Stops a worker and forgets it. The caller says how long to wait.
    pub async fn delete(&mut self, id: PmId) -> Result<(), RpcError> {
        self.act("deleteProcessId", [id]).await
    }

    /// Stops a worker, and answers when its process is dead. The caller says how long to wait.
    ///
    /// PM2 7 takes the end of a process with `wait_ready` for a crash, and starts it again, until it was ready or
    /// `listen_timeout` has passed: look whether it is stopped.
    pub async fn stop(&mut self, id: PmId) -> Result<(), RpcError> {
        self.act("stopProcessId", [id]).await
    }

    /// Sends a signal, such as `SIGSTOP`, to the process of a worker.
    pub async fn signal(&mut self, id: PmId, signal: &str) -> Result<(), RpcError> {
        let what = json!({ "process_id": id, "signal": signal });
        self.call::<_, IgnoredAny>("sendSignalToProcessId", [what]).await.map(drop)
    }

    /// Starts an app that PM2 does not know yet, and answers when all its processes run. The caller says how long to
    /// wait.
    pub async fn prepare(&mut self, app: &RawValue) -> Result<(), RpcError> {
        self.act("prepare", [app]).await
    }

    /// Tells all who listen to PM2's bus what was done by hand, as PM2's command line does after it.
    pub async fn announce(&mut self, id: PmId, action: &str) -> Result<(), RpcError> {
        let what = json!({ "id": id, "action_name": action, "manually": true });
        self.call::<_, IgnoredAny>("notifyByProcessId", [what]).await.map(drop)
    }

    /// The answer holds the app's whole environment: that it came is all we read of it.
    async fn act<A: Serialize>(&mut self, method: &'static str, args: A) -> Result<(), RpcError> {
        self.exchange::<_, IgnoredAny>(method, args).await.map(drop)
    }

    async fn call<A: Serialize, T: DeserializeOwned>(
        &mut self,
        method: &'static str,
        args: A,
    ) -> Result<T, RpcError> {
        time::timeout(PATIENCE, self.exchange(method, args))
            .await
            .unwrap_or(Err(RpcError::TimedOut { method }))
    }

    async fn exchange<A: Serialize, T: DeserializeOwned>(
        &mut self,
        method: &'static str,
        args: A,
    ) -> Result<T, RpcError> {
        self.calls += 1;
        let id = format!("s:handoff:{}", self.calls);
        let call = serde_json::to_vec(&Call { r#type: "call", method, args }).map_err(io::Error::from)?;
        let call = [b"j:".as_slice(), &call].concat();
        self.unsent.extend_from_slice(&frame::encode(&[&call, id.as_bytes()]));
        while self.unsent.has_remaining() {
            self.socket.write_buf(&mut self.unsent).await?;
        }
        loop {
            let message = self.read().await?;
            if let [answer, Argument::Kept(of)] = message.as_slice()
                && of == id.as_bytes()
            {
                return read_answer(method, answer);
            }
        }
    }

    async fn read(&mut self) -> Result<Vec<Argument>, RpcError> {
        loop {
            let mut input = self.socket.fill_buf().await?;
            if input.is_empty() {
                return Err(RpcError::Closed);
            }
            let available = input.len();
            let message = self.decoder.feed(&mut input)?;
            let taken = available - input.len();
            self.socket.consume(taken);
            if let Some(message) = message {
                return Ok(message);
            }
        }
    }
}

fn read_answer<T: DeserializeOwned>(method: &'static str, answer: &Argument) -> Result<T, RpcError> {
    if let Argument::Skipped(len) = *answer {
        return Err(RpcError::TooLarge { method, len });
    }
    let text = answer.text(b'j').ok_or(RpcError::Unexpected { method, column: 0 })?;
    let answer: Answer<T> = serde_json::from_slice(text)
        .map_err(|error| RpcError::Unexpected { method, column: error.column() })?;
    match (answer.args, answer.error) {
        (_, Some(error)) => Err(RpcError::Refused { method, text: error.into_text() }),
        (Some(args), None) => Ok(args),
        (None, None) => Err(RpcError::Unexpected { method, column: 0 }),
    }
}

// === impl Replies ===

impl Policy for Replies {
    fn keeps(&self, before: &[Argument], len: u32) -> bool {
        len <= if before.is_empty() { MAX_REPLY } else { MAX_ID }
    }
}

// === impl ErrorText ===

impl ErrorText {
    fn into_text(self) -> String {
        match self {
            Self::Text(text) | Self::Message { msg: text } => text,
            Self::Other(_) => "it gives no reason".into(),
        }
    }
}

// === impl RpcError ===

impl RpcError {
    /// The daemon does not run, or not any more: it may be there again in a moment.
    pub fn is_absence(&self) -> bool {
        match self {
            Self::Path(error) => error.is_absence(),
            Self::Closed | Self::Io(_) => true,
            _ => false,
        }
    }
}
