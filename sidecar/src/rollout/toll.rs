//! What the end of a process cost, where nginx does not know which of its requests were with it.
//!
//! Two signs. Attempts that got no answer and that nginx counted as failed, from the order until shortly after the death:
//! nobody else ends in this time. And, if the process was killed or ended with an error, the clients that it still had:
//! streams and downloads that had begun, of which nginx counts nothing. The greater of the two is what is said.

use super::{grip::Grip, stop::Stop, window::Window, world::Seen};
use crate::{
    host::{Proc, Process, connections},
    pm2::event::Ending,
};
use handoff_wire::PeerView;
use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};
use tokio::time;

#[derive(Debug)]
pub struct Toll {
    began: Instant,
    before: Counts,
    old: Option<Process>,
    ports: BTreeSet<u16>,
    looked: Option<Instant>,
    clients: u64,
}

/// What nginx has counted of the peers of one app.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    requests: u64,
    answers: u64,
    in_flight: u64,
    fails: u64,
}

/// How often the clients of a process that is being stopped are counted: the kernel walks its whole table for that.
const PACE: Duration = Duration::from_millis(50);
/// So long after the death nginx has noticed, and PM2 has told how it was.
const AFTERWARDS: Duration = Duration::from_millis(100);

// === impl Toll ===

impl Toll {
    /// PM2 is about to be asked to end this process.
    pub async fn begin(window: &mut Window, old: Option<Process>) -> Result<Self, Stop> {
        let ports = window.addresses().iter().map(|address| address.port()).collect();
        let before = window.counts().await?;
        Ok(Self { began: Instant::now(), before, old, ports, looked: None, clients: 0 })
    }

    pub fn is_over(&self) -> bool {
        self.old.is_none_or(|old| !old.is_alive(&Proc::default()))
    }

    /// Counts its clients, once PM2 has begun to stop it.
    pub async fn look(&mut self, seen: &Seen, window: &mut Window) {
        let is_stopping = seen.stopping.is_some_and(|at| at >= self.began);
        let is_due = self.looked.is_none_or(|at| at.elapsed() >= PACE);
        let Some(old) = self.old.filter(|_| is_stopping && is_due && !self.ports.is_empty()) else { return };
        self.looked = Some(Instant::now());
        let (proc, ports) = (Proc::default(), self.ports.clone());
        let count = move || connections::clients(&proc, old, &ports);
        let clients = tokio::task::spawn_blocking(count).await;
        // A connection that waits for its next use is no request: nginx has no more than it says.
        let counts = window.counts().await;
        if let (Ok(Ok(clients)), Ok(counts)) = (clients, counts)
            && !self.is_over()
        {
            self.clients = clients.min(counts.in_flight);
        }
    }

    /// After the death.
    pub async fn sum(self, grip: &Grip, window: &mut Window) -> u64 {
        if self.old.is_none() {
            return 0;
        }
        time::sleep(AFTERWARDS).await;
        // What cannot be counted any more is said elsewhere: nginx is away.
        let lost = window.counts().await.map_or(0, |now| now.lost_since(self.before));
        let ended = grip.seen().ok().and_then(|seen| seen.ended).filter(|(at, _)| *at >= self.began);
        let is_forced = ended.is_some_and(|(_, ending)| ending == Ending::Forced);
        if is_forced { lost.max(self.clients) } else { lost }
    }
}

// === impl Counts ===

impl Counts {
    pub fn of(peers: &[PeerView]) -> Self {
        let sum = |count: fn(&PeerView) -> u64| peers.iter().map(count).sum();
        Self {
            requests: sum(|peer| peer.requests),
            answers: sum(|peer| peer.responses.total()),
            in_flight: sum(|peer| peer.in_flight),
            fails: sum(|peer| peer.fails),
        }
    }

    /// Attempts without an answer that nginx took for failures. Of one whose client left it does not, and an answer that
    /// it took for one is an answer.
    fn lost_since(self, before: Self) -> u64 {
        let begun = self.requests.saturating_sub(before.requests) + before.in_flight;
        let ended = begun.saturating_sub(self.in_flight);
        let unanswered = ended.saturating_sub(self.answers.saturating_sub(before.answers));
        unanswered.min(self.fails.saturating_sub(before.fails))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_got_no_answer_and_failed_is_lost() {
        let before = Counts { requests: 100, answers: 90, in_flight: 10, fails: 7 };
        let lost = |requests, answers, in_flight, fails| {
            Counts { requests, answers, in_flight, fails }.lost_since(before)
        };
        assert_eq!(lost(120, 115, 5, 7), 0);
        assert_eq!(lost(120, 112, 5, 10), 3);
        assert_eq!(lost(120, 112, 5, 7), 0, "their clients left");
        assert_eq!(lost(120, 115, 5, 9), 0, "their answers were taken for failures");
    }
}
