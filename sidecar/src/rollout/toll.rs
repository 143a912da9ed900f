//! What the end of a process cost, where nginx does not know which of its requests were with it.
//!
//! Requests that broke off nginx counts, and from the order until shortly after the death nobody else ends. Of a WebSocket
//! it cannot say whether it broke off or was closed: of those that the process still had when it was last seen alive, as
//! many were cut as have been closed since.

use super::{counts::Counts, stop::Stop, window::Window};
use crate::host::{Proc, Process, connections};
use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};
use tokio::time;

#[derive(Debug)]
pub struct Toll {
    before: Counts,
    old: Option<Process>,
    ports: BTreeSet<u16>,
    looked: Option<Instant>,
    last: Option<Last>,
}

/// When the process last had all its connections.
#[derive(Clone, Copy, Debug)]
struct Last {
    clients: u64,
    counts: Counts,
}

/// How often the clients of a process that is being replaced are counted: the kernel walks its whole table for that.
const PACE: Duration = Duration::from_millis(50);
/// So long after the death nginx has noticed.
const AFTERWARDS: Duration = Duration::from_millis(100);

// === impl Toll ===

impl Toll {
    /// PM2 is about to be asked to end this process.
    pub async fn begin(window: &mut Window, old: Option<Process>) -> Result<Self, Stop> {
        let ports = window.addresses().iter().map(|address| address.port()).collect();
        let before = window.counts().await?;
        Ok(Self { before, old, ports, looked: None, last: None })
    }

    pub fn is_over(&self) -> bool {
        self.old.is_none_or(|old| !old.is_alive(&Proc::default()))
    }

    /// Counts its clients, if that is due.
    pub async fn look(&mut self, window: &mut Window) {
        let is_due = self.looked.is_none_or(|at| at.elapsed() >= PACE);
        let Some(old) = self.old.filter(|_| is_due && !self.ports.is_empty()) else { return };
        self.looked = Some(Instant::now());
        let ports = self.ports.clone();
        let count = move || connections::clients(&Proc::default(), old, &ports);
        let clients = tokio::task::spawn_blocking(count).await;
        let counts = window.counts().await;
        if let (Ok(Ok(clients)), Ok(counts)) = (clients, counts)
            && old.is_whole(&Proc::default())
        {
            self.last = Some(Last { clients, counts });
        }
    }

    /// After the death.
    pub async fn sum(self, window: &mut Window) -> u64 {
        if self.old.is_none() {
            return 0;
        }
        time::sleep(AFTERWARDS).await;
        // What cannot be counted any more is said elsewhere: nginx is away.
        let Ok(now) = window.counts().await else { return 0 };
        let closed = |last: Last| now.closed_since(last.counts).min(last.clients);
        now.cut_since(self.before) + self.last.map_or(0, closed)
    }
}
