//! A roll-out has a worker finish what it has, before PM2 is asked for anything.
//!
//! In cluster mode nginx does not know which of its requests are with which worker; the worker does. It leaves the shared
//! address to the others, and counts down. This cannot be taken back: who was drained is to be replaced.

use super::message::Told;
use crate::host::Process;
use serde::Deserialize;
use std::{io, path::Path, time::Duration};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    time,
};

/// A worker that is finishing what it has.
#[derive(Debug)]
pub struct Drain {
    lines: Lines<BufReader<OwnedReadHalf>>,
    #[expect(dead_code, reason = "the sidecar hears when it is closed")]
    write: OwnedWriteHalf,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename = "in_flight")]
struct InFlight {
    n: u64,
}

/// The sidecar answers at once, and so does a worker that is not blocked.
const PATIENCE: Duration = Duration::from_secs(2);

// === impl Drain ===

impl Drain {
    /// Returns how many requests it has. None: it does not answer, or does not know the preload.
    pub async fn begin(
        socket: &Path,
        worker: Process,
        deadline: Duration,
    ) -> io::Result<Option<(Self, u64)>> {
        let (read, mut write) = UnixStream::connect(socket).await?.into_split();
        write.write_all(&Told::drain(worker, deadline).line()).await?;
        let mut drain = Self { lines: BufReader::new(read).lines(), write };
        let first = time::timeout(PATIENCE, drain.next()).await;
        Ok(first.unwrap_or_default().map(|n| (drain, n)))
    }

    /// How many it has, when that has changed. None: it has ended, or nobody tells any more.
    pub async fn next(&mut self) -> Option<u64> {
        let line = self.lines.next_line().await.ok()??;
        serde_json::from_str(&line).ok().map(|InFlight { n }| n)
    }
}
