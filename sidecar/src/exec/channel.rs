//! Node's channel (`process.send`) between the child and PM2.
//!
//! PM2 gives the process that it starts one end of a socket, `NODE_CHANNEL_FD`, and both sides write one JSON text a line.
//! We stand in the middle: `shutdown` from PM2 (its `shutdown_with_message`) is a stop, and waits for the drain; `ready` from
//! the child waits until nginx may send requests. All else passes at once and unread. Where we cannot stand in the middle
//! (another way of writing, a kernel that does not let us have the socket), the child has it directly.

use rustix::{
    io::{FdFlags, fcntl_setfd},
    process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open},
};
use std::{
    env, io,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::net::UnixStream as StdStream,
    },
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixStream, unix::OwnedReadHalf},
    sync::mpsc,
};

pub const FD: &str = "NODE_CHANNEL_FD";
const MODE: &str = "NODE_CHANNEL_SERIALIZATION_MODE";

/// A line that waits for what nginx says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Word {
    /// PM2 asks it to end.
    Shutdown(Vec<u8>),
    /// It can serve.
    Ready(Vec<u8>),
}

#[derive(Debug)]
pub struct Channel {
    words: mpsc::Receiver<Word>,
    to_child: mpsc::Sender<Vec<u8>>,
    to_manager: mpsc::Sender<Vec<u8>>,
    /// The end that the child inherits.
    child: Option<OwnedFd>,
}

/// Whoever does not read keeps the other side waiting, as without us.
const MOST_LINES: usize = 64;
/// In the place of a line: this side has closed.
const END: &[u8] = b"";

// === impl Channel ===

impl Channel {
    /// None: there is none, or the child has it directly.
    pub fn find() -> Option<Self> {
        let fd: i32 = env::var(FD).ok()?.parse().ok()?;
        if env::var(MODE).is_ok_and(|mode| mode != "json") {
            return None;
        }
        let between = Self::between(fd);
        if let Err(error) = &between {
            tracing::warn!(
                "the command has PM2's channel directly ({error}): a stop by shutdown_with_message does not wait for nginx"
            );
        }
        between.ok()
    }

    fn between(fd: i32) -> io::Result<Self> {
        let own = pidfd_open(getpid(), PidfdFlags::empty())?;
        let manager = StdStream::from(pidfd_getfd(own, fd, PidfdGetfdFlags::empty())?);
        let (ours, child) = StdStream::pair()?;
        let child = OwnedFd::from(child);
        fcntl_setfd(&child, FdFlags::empty())?;
        let (from_manager, to_manager) = halves(manager)?;
        let (from_child, to_child) = halves(ours)?;
        let (word, words) = mpsc::channel(MOST_LINES);
        let shutdown = |line: &[u8]| (line == b"\"shutdown\"\n").then(|| Word::Shutdown(line.to_vec()));
        let ready = |line: &[u8]| (line == b"\"ready\"\n").then(|| Word::Ready(line.to_vec()));
        tokio::spawn(pass(from_manager, to_child.clone(), word.clone(), shutdown));
        tokio::spawn(pass(from_child, to_manager.clone(), word, ready));
        Ok(Self { words, to_child, to_manager, child: Some(child) })
    }

    /// The number of the child's end.
    pub fn fd(&self) -> Option<i32> {
        self.child.as_ref().map(|child| child.as_raw_fd())
    }

    /// The child has its end.
    pub fn is_inherited(&mut self) {
        self.child = None;
    }

    /// For ever, when both sides have closed.
    pub async fn word(&mut self) -> Word {
        match self.words.recv().await {
            Some(word) => word,
            None => std::future::pending().await,
        }
    }

    pub fn tell_child(&self, line: Vec<u8>) {
        _ = self.to_child.try_send(line);
    }

    pub fn tell_manager(&self, line: Vec<u8>) {
        _ = self.to_manager.try_send(line);
    }
}

/// A reader, and a way to a writer, which closes when it is told to.
fn halves(socket: StdStream) -> io::Result<(OwnedReadHalf, mpsc::Sender<Vec<u8>>)> {
    socket.set_nonblocking(true)?;
    let (read, mut write) = UnixStream::from_std(socket)?.into_split();
    let (sender, mut lines) = mpsc::channel::<Vec<u8>>(MOST_LINES);
    tokio::spawn(async move {
        while let Some(line) = lines.recv().await {
            if line == END || write.write_all(&line).await.is_err() {
                return;
            }
        }
    });
    Ok((read, sender))
}

async fn pass(
    from: OwnedReadHalf,
    to: mpsc::Sender<Vec<u8>>,
    words: mpsc::Sender<Word>,
    waits: impl Fn(&[u8]) -> Option<Word>,
) {
    let mut from = BufReader::new(from);
    loop {
        let mut line = Vec::new();
        match from.read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => {
                _ = to.send(END.to_vec()).await;
                return;
            }
            Ok(_) => {}
        }
        let passed = match waits(&line) {
            Some(word) => words.send(word).await.is_ok(),
            None => to.send(line).await.is_ok(),
        };
        if !passed {
            return;
        }
    }
}
