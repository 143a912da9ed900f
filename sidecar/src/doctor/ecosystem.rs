//! The ecosystem file, read by PM2's own code (`ecosystem.cjs`).
//!
//! It may be code, so it is run as the user that PM2 runs as, or not at all, and for a bounded time.

use super::facts::{EcosystemFile, FileApp};
use crate::pm2::{home::Home, orders, rpc::Rpc, trust::Daemon};
use serde::Deserialize;
use std::{
    env, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    process::Command,
    time,
};

const SCRIPT: &str = include_str!("ecosystem.cjs");
/// A file may fetch what it needs.
const PATIENCE: Duration = Duration::from_secs(10);
const MAX_ANSWER: u64 = 4 << 20;
/// Where `pm2 start` without an argument looks, too.
const NAMES: [&str; 6] = [
    "ecosystem.config.js",
    "ecosystem.config.cjs",
    "ecosystem.config.mjs",
    "ecosystem.json",
    "ecosystem.config.json",
    "ecosystem.config.yaml",
];

/// PM2's own code, and the node that it runs on.
#[derive(Clone, Debug)]
pub struct Pm2Code {
    pub node: PathBuf,
    pub root: PathBuf,
    /// Whose daemon runs it.
    pub uid: u32,
}

#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("{} is not there", .0.display())]
    Absent(PathBuf),
    #[error("it is code, and runs as user {daemon} only: sudo -u '#{daemon}' handoff doctor …")]
    OtherUser { daemon: u32 },
    #[error("it was not read within {} s", PATIENCE.as_secs())]
    TimedOut,
    #[error("node said nothing of it ({0})")]
    Garbled(String),
    #[error("running node failed: {0}")]
    Io(#[from] io::Error),
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    apps: Vec<FileApp>,
    refused: Option<String>,
}

// === impl Pm2Code ===

impl Pm2Code {
    /// What a daemon says of itself.
    pub async fn of(home: &Home) -> Option<Self> {
        let mut rpc = Rpc::connect(home).await.ok()?;
        let report = rpc.report().await.ok()?;
        let Daemon { pid, uid } = rpc.daemon();
        Some(Self { node: orders::node(&report, pid).ok()?, root: orders::root(&report).ok()?, uid })
    }
}

/// The file that `pm2 start` would take here. It is run: one that nobody named must be PM2's user's, or root's.
pub fn find(user: Option<u32>) -> Option<PathBuf> {
    let here = env::current_dir().ok()?;
    let path = NAMES.iter().map(|name| here.join(name)).find(|path| path.is_file())?;
    let owner = path.metadata().ok()?.uid();
    (owner == 0 || user.is_none_or(|user| owner == user)).then_some(path)
}

pub async fn read(file: &Path, code: &Pm2Code) -> Result<EcosystemFile, FileError> {
    let path = file.canonicalize().map_err(|_| FileError::Absent(file.into()))?;
    let own = rustix::process::geteuid().as_raw();
    let mut command = Command::new(&code.node);
    command.args(["--input-type=commonjs", "-"]).arg(&code.root).arg(&path);
    if own != code.uid {
        if own != 0 {
            return Err(FileError::OtherUser { daemon: code.uid });
        }
        // Nothing of root's is its business.
        command.uid(code.uid).gid(group(code.uid).unwrap_or(code.uid)).env_clear();
        command.envs(env::var_os("PATH").map(|path| ("PATH", path)));
    }
    if let Some(dir) = path.parent() {
        command.current_dir(dir);
    }
    time::timeout(PATIENCE, run(command, path.clone())).await.unwrap_or(Err(FileError::TimedOut))
}

async fn run(mut command: Command, path: PathBuf) -> Result<EcosystemFile, FileError> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    let mut child = command.spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(SCRIPT.as_bytes()).await?;
    }
    let mut text = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(MAX_ANSWER).read_to_end(&mut text).await?;
    }
    match parse(&text) {
        Some(answer) => Ok(EcosystemFile { path, apps: answer.apps, refused: answer.refused }),
        None => Err(FileError::Garbled(child.wait().await?.to_string())),
    }
}

/// The file may have written whatever it likes before.
fn parse(text: &[u8]) -> Option<Answer> {
    let line = text.trim_ascii_end().rsplit(|&byte| byte == b'\n').next()?;
    serde_json::from_slice(line).ok()
}

fn group(uid: u32) -> Option<u32> {
    super::users::Users::read().group_of(uid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_is_the_answer() {
        let answer = parse(
            b"hello\n\n{\"apps\":[{\"name\":\"shop\",\"kill_timeout\":8000,\"ports\":{\"env\":3000}}]}\n",
        )
        .unwrap();
        assert_eq!((answer.apps[0].name.as_str(), answer.apps[0].kill_timeout), ("shop", Some(8000)));
        assert_eq!(answer.apps[0].ports["env"], 3000);
        assert_eq!(parse(b"{\"refused\":\"x\"}").unwrap().refused.as_deref(), Some("x"));
        assert!(parse(b"oops").is_none());
    }
}
