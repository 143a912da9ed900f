//! A peer behind which several workers are, of an app in cluster mode: what it should be, from what all of them are.

use crate::{
    peer::Peer,
    worker::{Phase, Wish, Worker},
};
use handoff_wire::{Expect, State};

#[derive(Debug, Default)]
pub struct Shared {
    app: String,
    /// Somebody takes requests, or is about to, by its own word.
    is_served: bool,
    /// Somebody comes or goes.
    is_changing: bool,
    /// Of those who do not serve.
    goes: bool,
    comes: bool,
    is_expected: bool,
}

impl Shared {
    /// `stays`: it has its order to go and does not, because nobody else serves.
    pub fn meet(&mut self, peer: &Peer, worker: &Worker, stays: bool) {
        worker.app().clone_into(&mut self.app);
        self.is_served |= (worker.is_serving() && worker.open().contains(peer)) || worker.is_able() || stays;
        self.is_changing |= worker.is_changing();
        self.goes |= worker.phase() == Phase::Stopping;
        self.comes |= worker.phase() == Phase::Starting || worker.is_serving();
        self.is_expected |= worker.expected() == Expect::Back;
    }

    /// Somebody goes whom PM2 lists no longer. `serves`: it is there, and nobody knows that it has stopped.
    pub fn leaves(&mut self, serves: bool) {
        self.is_served |= serves;
        self.is_changing = true;
    }

    pub fn wish(&self) -> Wish {
        let (state, what) = match self {
            Self { is_served: true, is_changing: false, .. } => (State::Up, ""),
            Self { is_served: true, .. } => (State::Changing, "a worker is being replaced"),
            Self { goes: true, .. } => (State::Draining, "PM2 stops its last workers"),
            Self { comes: true, .. } => (State::Checking, "none of its workers serves yet"),
            Self { is_expected: true, .. } => (State::Down, "its workers ended and are replaced"),
            _ => (State::Down, "its workers ended for good"),
        };
        let expect = if self.is_served || self.is_expected { Expect::Back } else { Expect::Gone };
        Wish { state, expect, reason: format!("{}: {what}", self.app), is_able: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        host::Process,
        pm2::monitor::{Settings, Status},
        worker::Seen,
    };
    use std::time::{Duration, Instant};

    fn peer() -> Peer {
        Peer::new("app", "127.0.0.1:3000")
    }

    fn worker(now: Instant) -> Worker {
        of_app(now, true)
    }

    fn of_app(now: Instant, wait_ready: bool) -> Worker {
        let mut worker = Worker::new(now);
        worker.describe("shop", &Settings { cluster: true, wait_ready, ..Settings::default() });
        look(&mut worker, now, Some(1), Status::Online, true);
        worker
    }

    fn look(worker: &mut Worker, now: Instant, start: Option<u64>, status: Status, is_open: bool) {
        let open = if is_open { [peer()].into() } else { [].into() };
        let process = start.map(|start| Process { pid: 7, start });
        worker.look(&Seen { began: now, process, status: Some(status), open: Ok(open) }, now);
    }

    fn of(workers: &[&Worker]) -> (State, Expect) {
        let mut shared = Shared::default();
        workers.iter().for_each(|worker| shared.meet(&peer(), worker, false));
        let wish = shared.wish();
        (wish.state, wish.expect)
    }

    #[test]
    fn as_long_as_one_serves_the_others_change() {
        let now = Instant::now();
        let (calm, mut other) = (worker(now), worker(now));
        assert_eq!(of(&[&calm, &other]), (State::Up, Expect::Back));
        other.stopping(now);
        assert_eq!(of(&[&calm, &other]), (State::Changing, Expect::Back));
        other.died(Process { pid: 7, start: 1 }, now);
        assert_eq!(of(&[&calm, &other]), (State::Changing, Expect::Back));
        other.ended(now);
        assert_eq!(of(&[&calm, &other]), (State::Up, Expect::Back));
    }

    #[test]
    fn the_last_one_is_waited_for_if_it_comes_back() {
        let now = Instant::now();
        let mut last = worker(now);
        last.stopping(now);
        assert_eq!(of(&[&last]), (State::Draining, Expect::Back));
        last.died(Process { pid: 7, start: 1 }, now);
        assert_eq!(of(&[&last]), (State::Down, Expect::Back));
        look(&mut last, now, Some(2), Status::Launching, false);
        assert_eq!(of(&[&last]), (State::Checking, Expect::Back));
        // PM2 takes its word, and so do we.
        last.says_ready(now);
        assert_eq!(of(&[&last]), (State::Changing, Expect::Back));
        look(&mut last, now, Some(2), Status::Online, true);
        assert_eq!(of(&[&last]), (State::Up, Expect::Back));
    }

    #[test]
    fn nobody_is_waited_for_who_was_stopped_for_good() {
        let now = Instant::now();
        let mut last = worker(now);
        last.stopping(now);
        last.ended(now);
        last.died(Process { pid: 7, start: 1 }, now);
        assert_eq!(of(&[&last]), (State::Down, Expect::Gone));
    }

    #[test]
    fn who_was_replaced_and_is_still_there_serves() {
        let now = Instant::now();
        let mut new = worker(now);
        look(&mut new, now, Some(2), Status::Launching, true);
        let mut shared = Shared::default();
        shared.meet(&peer(), &new, false);
        shared.leaves(true);
        assert_eq!(shared.wish().state, State::Changing);
    }

    #[test]
    fn who_runs_and_does_not_listen_is_not_waited_for_for_ever() {
        let mut now = Instant::now();
        let mut last = of_app(now, false);
        look(&mut last, now, Some(2), Status::Online, false);
        assert_eq!(of(&[&last]), (State::Checking, Expect::Back));
        now += Duration::from_secs(61);
        last.tick(now);
        assert_eq!(of(&[&last]), (State::Checking, Expect::Gone));
    }
}
