//! One worker of PM2: what is known of it, and what follows for its peers.
//!
//! ```text
//!              PM2 is stopping it              it ends
//!   Serving ──────────────────────► Stopping ───────────► Dead ──────► Gone   (stopped, deleted, given up)
//!      ▲  ▲                                                │  ▲
//!      │  └─ it listens and is ready ── Starting ◄─────────┘  │ it ends, and nobody ordered it
//!      │                                   │                  │
//!      └── it stayed up ── Settling ◄──────┘  after a death that nobody ordered
//! ```
//!
//! Facts come in any order and some never come. So each one may be told at any time; a look (see [`Worker::look`]) that
//! began after the last order puts everything right that events did not tell.

use crate::{
    host::{Process, Unknown},
    peer::Peer,
    pm2::monitor::{Settings, Status},
    preload::workers::kill_timeout,
    settle::Settle,
};
use handoff_wire::{Expect, State};
use std::{
    collections::BTreeSet,
    fmt,
    time::{Duration, Instant},
};

#[derive(Clone, Debug)]
pub struct Worker {
    app: String,
    settings: Settings,
    phase: Phase,
    since: Instant,
    process: Option<Process>,
    /// When the look began that found it first: an older one does not know of it.
    met: Option<Instant>,
    /// The last process that ended: what an older look says of it is no news.
    buried: Option<Process>,
    /// The last order that we heard on the bus: an older look does not know of it.
    told: Option<Instant>,
    /// Its process says that it goes, whatever PM2 says: until then it is believed.
    parts: Option<Instant>,
    /// It has been starting for so long that nobody should wait for it.
    is_late: bool,
    /// When we heard that this end is the last one: no process follows.
    ended: Option<Instant>,
    /// The app said so, or PM2 did.
    ready: bool,
    /// The last end was ordered, or there was none.
    ordered: bool,
    settle: Settle,
    /// Peers that are or were this worker's. They stay so while it is replaced and nobody listens.
    claims: BTreeSet<Peer>,
    /// Those of them on which it listens now.
    open: BTreeSet<Peer>,
    /// The last look missed a listener that was there: look again before it is believed.
    doubted: bool,
    unknown: Option<Unknown>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// A process runs and does not serve yet.
    Starting,
    /// It serves, but the one before it died unasked.
    Settling {
        until: Instant,
    },
    Serving,
    Stopping,
    /// No process; another one is expected.
    Dead,
    /// No process, and none is expected.
    Gone,
}

/// What a look found of one worker.
#[derive(Clone, Debug)]
pub struct Seen {
    pub began: Instant,
    /// None: no living process.
    pub process: Option<Process>,
    /// None: PM2 was not asked.
    pub status: Option<Status>,
    /// The peers on which its processes listen, or why that is not known.
    pub open: Result<BTreeSet<Peer>, Unknown>,
}

/// What a peer should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    pub state: State,
    pub expect: Expect,
    pub reason: String,
    /// It could serve, and waits only to be trusted: better than nobody.
    pub is_able: bool,
}

/// PM2 has `stopped` for a moment in the middle of a restart, too.
const STOPPED_FOR_GOOD: Duration = Duration::from_secs(1);
/// PM2 says `waiting restart` for ever of a worker that it has given up, if the app has `restart_delay` or
/// `exp_backoff_restart_delay`. Nobody is kept waiting for longer than this.
const WAITED_FOR_GOOD: Duration = Duration::from_secs(60);
/// PM2's daemon is gone, and may have gone before it said of a worker that this end was its last. A service manager that
/// restarts the daemon has done so by then.
const ORPHANED_FOR_GOOD: Duration = Duration::from_secs(10);
/// Nobody is kept waiting longer than this for one that runs and does not listen.
const STARTED_IN_VAIN: Duration = Duration::from_secs(60);
/// While it serves elsewhere, it is expected for so long where it listened before.
const MOVED_FOR_GOOD: Duration = Duration::from_secs(60);
/// How much longer than its kill_timeout a process may need to go.
const PARTING_GRACE: Duration = Duration::from_secs(1);
/// How far PM2's word and the death that it explains may be apart.
const LATE_NOTICE: Duration = Duration::from_secs(1);
/// How often to look whether a starting worker listens, by its age. Older ones are met by the general look.
const EAGERNESS: [(Duration, Duration); 2] = [
    (Duration::from_secs(15), Duration::from_millis(10)),
    (Duration::from_secs(60), Duration::from_millis(100)),
];

// === impl Worker ===

impl Worker {
    pub fn new(now: Instant) -> Self {
        Self {
            app: String::new(),
            settings: Settings::default(),
            phase: Phase::Dead,
            since: now,
            process: None,
            met: None,
            buried: None,
            told: None,
            parts: None,
            is_late: false,
            ended: None,
            ready: false,
            ordered: true,
            settle: Settle::default(),
            claims: BTreeSet::new(),
            open: BTreeSet::new(),
            doubted: false,
            unknown: None,
        }
    }

    pub fn app(&self) -> &str {
        &self.app
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    pub fn phase(&self) -> Phase {
        self.phase
    }

    pub fn process(&self) -> Option<Process> {
        self.process
    }

    pub fn claims(&self) -> &BTreeSet<Peer> {
        &self.claims
    }

    pub fn open(&self) -> &BTreeSet<Peer> {
        &self.open
    }

    /// Why its processes could not be examined.
    pub fn unknown(&self) -> Option<&Unknown> {
        self.unknown.as_ref()
    }

    pub fn describe(&mut self, app: &str, settings: &Settings) {
        if self.app != app {
            self.app = app.to_owned();
            // A new daemon gives its numbers anew: the peers of another app are not this one's.
            self.claims.clone_from(&self.open);
        }
        if self.settings != *settings {
            self.settings = settings.clone();
        }
    }

    /// PM2 is about to stop it. False: its process was dead already.
    pub fn stopping(&mut self, now: Instant) -> bool {
        self.told = Some(now);
        self.ready = false;
        if self.process.is_some() {
            self.enter(Phase::Stopping, now);
            return true;
        }
        if self.phase == Phase::Dead && now.saturating_duration_since(self.since) < LATE_NOTICE {
            self.ordered = true;
        }
        false
    }

    /// Its process says that it was told to go: PM2 is not the only one who may.
    pub fn parts(&mut self, now: Instant) {
        if self.process.is_some() {
            self.parts = Some(now + kill_timeout(&self.settings) + PARTING_GRACE);
            self.told = Some(now);
            self.ready = false;
            self.enter(Phase::Stopping, now);
        }
    }

    /// PM2 is about to start a process.
    pub fn starting(&mut self, now: Instant) {
        self.ready = false;
        self.ended = None;
        self.come_back(now);
    }

    /// The app says that it can serve.
    pub fn says_ready(&mut self, now: Instant) {
        self.ready = true;
        self.serve_if_able(now);
    }

    /// Somebody stopped or deleted it, or PM2 gave it up.
    pub fn ended(&mut self, now: Instant) {
        self.told = Some(now);
        self.ended = Some(now);
        if self.process.is_none() {
            self.enter(Phase::Gone, now);
        }
    }

    /// A process ended. True: it was this worker's.
    pub fn died(&mut self, process: Process, now: Instant) -> bool {
        let is_ours = self.process == Some(process);
        if is_ours {
            self.bury(self.phase == Phase::Stopping, now);
        }
        is_ours
    }

    /// PM2 does not list it any more. True: nothing is left to be said of it.
    pub fn vanished(&mut self, now: Instant) -> bool {
        // A process that PM2 forgot is not PM2's: whoever it is, we do not speak for it.
        if self.process.is_some() || self.claims.is_empty() {
            return true;
        }
        self.enter(Phase::Gone, now);
        false
    }

    pub fn look(&mut self, seen: &Seen, now: Instant) {
        let is_older = |than: Option<Instant>| than.is_some_and(|than| seen.began < than);
        if is_older(self.told) || (seen.process != self.process && is_older(self.met)) {
            return;
        }
        match seen.process {
            Some(process) if self.buried == Some(process) => {}
            Some(process) => self.present(process, seen, now),
            None => self.absent(seen.status, now),
        }
    }

    /// PM2's daemon is gone.
    pub fn orphaned(&mut self, now: Instant) {
        if self.phase == Phase::Dead && now.saturating_duration_since(self.since) >= ORPHANED_FOR_GOOD {
            self.enter(Phase::Gone, now);
        }
    }

    /// Time went on.
    pub fn tick(&mut self, now: Instant) {
        if let Phase::Settling { until } = self.phase
            && until <= now
        {
            self.ordered = true;
            self.enter(Phase::Serving, now);
        }
        let lasts = now.saturating_duration_since(self.since);
        self.is_late = self.phase == Phase::Starting && lasts >= STARTED_IN_VAIN;
    }

    /// Another worker, or nobody of ours, is behind that address now.
    pub fn disclaim(&mut self, peer: &Peer) {
        if !self.open.contains(peer) {
            self.claims.remove(peer);
        }
    }

    /// How often to look at it, because it may listen any moment.
    pub fn eagerness(&self, now: Instant) -> Option<Duration> {
        let lacks = self.doubted || self.open.is_empty() || self.open.len() < self.claims.len();
        if self.process.is_none() || self.phase == Phase::Stopping || !lacks {
            return None;
        }
        let age = now.saturating_duration_since(self.since);
        EAGERNESS.iter().find(|(until, _)| age < *until).map(|&(_, pace)| pace)
    }

    /// It is about to go, or to come. Of a worker in cluster mode.
    pub fn is_changing(&self) -> bool {
        matches!(self.phase, Phase::Starting | Phase::Stopping | Phase::Dead)
    }

    pub fn is_serving(&self) -> bool {
        matches!(self.phase, Phase::Serving | Phase::Settling { .. })
    }

    /// It does not serve for certain, and is about to.
    pub fn is_expected(&self) -> bool {
        matches!(self.phase, Phase::Starting | Phase::Dead) || (self.settings.cluster && self.is_serving())
    }

    pub fn stopping_since(&self) -> Option<Instant> {
        (self.phase == Phase::Stopping).then_some(self.since)
    }

    /// Since when a new process is expected.
    pub fn missing_since(&self) -> Option<Instant> {
        (self.phase == Phase::Dead).then_some(self.since)
    }

    /// It says that it can serve; that it listens we have not seen yet. PM2 takes its word and stops the next one.
    pub fn is_able(&self) -> bool {
        let is_coming = matches!(self.phase, Phase::Starting | Phase::Dead);
        is_coming && self.ordered && self.ready && self.settings.wait_ready
    }

    /// Whether those who wait for it wait for somebody.
    pub fn expected(&self) -> Expect {
        if self.phase == Phase::Gone || self.is_late { Expect::Gone } else { Expect::Back }
    }

    pub fn wish(&self, peer: &Peer) -> Wish {
        let is_open = self.open.contains(peer);
        let (state, what) = match self.phase {
            Phase::Stopping => (State::Draining, "PM2 stops it"),
            Phase::Dead if self.ordered => (State::Down, "it ended and is replaced"),
            Phase::Dead => (State::Down, "it died"),
            Phase::Gone => (State::Down, "it ended for good"),
            Phase::Settling { .. } if is_open => (State::Checking, "it died before and must stay up"),
            Phase::Serving if is_open => (State::Up, ""),
            _ => (State::Checking, "it does not serve there yet"),
        };
        let is_settling = matches!(self.phase, Phase::Settling { .. });
        let is_able = (is_settling && is_open) || self.is_able();
        Wish { state, expect: self.expected(), reason: what.to_owned(), is_able }
    }

    fn absent(&mut self, status: Option<Status>, now: Instant) {
        if self.process.is_some() {
            let is_ordered = matches!(status, Some(Status::Stopping | Status::Stopped));
            self.bury(is_ordered || self.phase == Phase::Stopping, now);
        }
        let lasts = now.saturating_duration_since(self.since);
        let (for_long, in_vain) = (lasts >= STOPPED_FOR_GOOD, lasts >= WAITED_FOR_GOOD);
        match (status, self.phase) {
            (Some(Status::Errored), Phase::Dead) => self.enter(Phase::Gone, now),
            (Some(Status::Stopped), Phase::Dead) if for_long => self.enter(Phase::Gone, now),
            (Some(Status::Other), Phase::Dead) if in_vain => self.enter(Phase::Gone, now),
            (Some(Status::Launching | Status::Online), _) => self.come_back(now),
            _ => {}
        }
    }

    fn present(&mut self, process: Process, seen: &Seen, now: Instant) {
        if self.process != Some(process) {
            if self.process.is_some() {
                // In cluster mode PM2 starts the new one first.
                self.bury(self.phase == Phase::Stopping || self.settings.cluster, now);
            }
            self.process = Some(process);
            self.met = Some(seen.began);
            self.ended = None;
            self.come_back(now);
            self.enter(Phase::Starting, now);
        }
        match seen.status {
            Some(Status::Stopping | Status::Stopped | Status::Errored) => self.enter(Phase::Stopping, now),
            Some(status) => {
                // PM2 says `online` when the app said ready, or when it has waited long enough for that.
                self.ready |= status == Status::Online;
                if self.phase == Phase::Stopping && self.parts.is_none_or(|until| until <= now) {
                    self.enter(Phase::Starting, now);
                }
            }
            None => {}
        }
        self.unknown = seen.open.as_ref().err().cloned();
        if let Ok(open) = &seen.open {
            self.listens(open);
        }
        self.serve_if_able(now);
        let lasts = now.saturating_duration_since(self.since);
        if self.phase == Phase::Serving && lasts >= MOVED_FOR_GOOD {
            self.claims.clone_from(&self.open);
        }
    }

    fn listens(&mut self, open: &BTreeSet<Peer>) {
        let is_less = !self.open.is_subset(open);
        if is_less && !self.doubted {
            self.doubted = true;
            self.open.extend(open.iter().cloned());
        } else {
            self.doubted = false;
            self.open.clone_from(open);
        }
        self.claims.extend(open.iter().cloned());
    }

    fn serve_if_able(&mut self, now: Instant) {
        let Settings { cluster, wait_ready, .. } = self.settings;
        // In cluster mode somebody listens there all the time: only PM2 knows whether this one does.
        let is_able = !self.open.is_empty() && (self.ready || !(wait_ready || cluster));
        match self.phase {
            Phase::Starting if is_able && (self.ordered || cluster) => self.enter(Phase::Serving, now),
            Phase::Starting if is_able => {
                self.enter(Phase::Settling { until: now + self.settle.stay_up() }, now);
            }
            // It closed its listeners by itself.
            Phase::Serving | Phase::Settling { .. } if self.open.is_empty() => {
                self.enter(Phase::Starting, now)
            }
            _ => {}
        }
    }

    fn bury(&mut self, ordered: bool, now: Instant) {
        self.buried = self.process.take();
        self.parts = None;
        self.open.clear();
        self.doubted = false;
        self.ready = false;
        self.ordered = ordered;
        if !ordered {
            self.settle.died(now);
        }
        let is_last = self.ended.is_some_and(|at| now.saturating_duration_since(at) < LATE_NOTICE);
        self.enter(if is_last { Phase::Gone } else { Phase::Dead }, now);
    }

    /// Somebody starts it after it had ended for good: how the one before it died is forgiven.
    fn come_back(&mut self, now: Instant) {
        if self.phase == Phase::Gone {
            self.ordered = true;
            self.enter(Phase::Dead, now);
        }
    }

    fn enter(&mut self, phase: Phase, now: Instant) {
        if self.phase != phase {
            self.phase = phase;
            self.since = now;
            self.is_late = false;
        }
    }
}

// === impl Phase ===

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Starting => "starting",
            Self::Settling { .. } => "settling",
            Self::Serving => "serving",
            Self::Stopping => "stopping",
            Self::Dead => "replaced",
            Self::Gone => "gone",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROCESS: Process = Process { pid: 7, start: 1 };

    fn peer(port: u16) -> Peer {
        Peer::new("app", format!("127.0.0.1:{port}"))
    }

    fn seen(began: Instant, process: Option<Process>, status: Status, ports: &[u16]) -> Seen {
        Seen { began, process, status: Some(status), open: Ok(ports.iter().copied().map(peer).collect()) }
    }

    /// It serves on port 1.
    fn serving(now: Instant) -> Worker {
        let mut worker = Worker::new(now);
        worker.describe("shop", &Settings::default());
        worker.look(&seen(now, Some(PROCESS), Status::Online, &[1]), now);
        assert_eq!(worker.phase(), Phase::Serving);
        worker
    }

    /// It crashed, and PM2 gave it up with these words.
    fn given_up(now: Instant) -> Worker {
        let mut worker = serving(now);
        worker.ended(now);
        worker.died(PROCESS, now);
        worker
    }

    #[test]
    fn a_worker_that_pm2_gave_up_is_gone_though_pm2_says_that_it_waits() {
        let mut now = Instant::now();
        let mut worker = given_up(now);
        for _ in 0..3 {
            now += Duration::from_secs(3);
            worker.look(&seen(now, None, Status::Other, &[]), now);
            assert_eq!((worker.phase(), worker.wish(&peer(1)).expect), (Phase::Gone, Expect::Gone));
        }
    }

    #[test]
    fn who_waits_for_ever_to_be_restarted_is_gone() {
        let mut now = Instant::now();
        let mut worker = serving(now);
        worker.died(PROCESS, now);
        worker.look(&seen(now, None, Status::Other, &[]), now);
        assert_eq!(worker.phase(), Phase::Dead);
        now += WAITED_FOR_GOOD;
        worker.look(&seen(now, None, Status::Other, &[]), now);
        assert_eq!(worker.phase(), Phase::Gone);
    }

    #[test]
    fn who_died_with_pm2_is_gone_unless_it_is_soon_back() {
        let mut now = Instant::now();
        let mut worker = serving(now);
        worker.orphaned(now + ORPHANED_FOR_GOOD);
        assert_eq!(worker.phase(), Phase::Serving, "it outlives its daemon");
        worker.stopping(now);
        worker.died(PROCESS, now);
        worker.orphaned(now);
        assert_eq!((worker.phase(), worker.wish(&peer(1)).expect), (Phase::Dead, Expect::Back));
        now += ORPHANED_FOR_GOOD;
        worker.orphaned(now);
        assert_eq!((worker.phase(), worker.wish(&peer(1)).expect), (Phase::Gone, Expect::Gone));
        worker.look(&seen(now, Some(Process { pid: 8, start: 2 }), Status::Online, &[1]), now);
        assert_eq!(worker.phase(), Phase::Serving, "and when PM2 is there again");
    }

    #[test]
    fn who_is_started_again_by_an_order_serves_at_once() {
        let now = Instant::now() + Duration::from_secs(1);
        let again = seen(now, Some(Process { pid: 8, start: 2 }), Status::Online, &[1]);
        let mut worker = given_up(now);
        worker.look(&again, now);
        assert_eq!(worker.phase(), Phase::Serving);
        // PM2 itself started it.
        let mut worker = serving(now);
        worker.died(PROCESS, now);
        worker.look(&again, now);
        assert!(matches!(worker.phase(), Phase::Settling { .. }));
    }

    #[test]
    fn a_number_that_another_app_has_now_gives_no_claim_to_its_peers() {
        let now = Instant::now();
        let mut worker = given_up(now);
        worker.describe("shop", &Settings { wait_ready: true, ..Settings::default() });
        assert!(worker.claims().contains(&peer(1)));
        worker.describe("blog", &Settings::default());
        assert!(worker.claims().is_empty());
    }

    #[test]
    fn who_serves_elsewhere_is_not_expected_back_for_ever() {
        let mut now = Instant::now() + Duration::from_secs(1);
        let mut worker = serving(now);
        worker.died(PROCESS, now);
        let moved = Some(Process { pid: 8, start: 2 });
        for (after, expected) in [(0, true), (30, true), (90, false)] {
            now += Duration::from_secs(after);
            worker.look(&seen(now, moved, Status::Online, &[2]), now);
            worker.tick(now);
            assert_eq!(worker.claims().contains(&peer(1)), expected, "{after} s later");
        }
    }
}
