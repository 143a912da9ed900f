//! The agent of one PM2 daemon: hears, decides, tells nginx.
//!
//! ```text
//!   bus ──notices──►┐
//!   pidfds ─deaths─►│  roster ──wishes──► plan ──marks──► nginx
//!   scout ──looks──►│    ▲                 ▲
//!   nginx ──views──►┤    └── attention ──► scout
//! preloads ─words──►┘
//! ```
//!
//! After anything that comes in, the plan is made anew from all that is known, and what differs is asked of nginx at
//! once. What takes a peer out of service or puts it back is waited for; everything else is asked beside that, on a
//! connection of its own, so that nothing stands between a notice and its drain. If nginx does not do it, the plan is simply made again.

use crate::{
    config::Override,
    control::{Control, ControlError},
    host::{
        Proc, Process,
        death::{Deaths, Watch},
    },
    look::Look,
    nginx::{Refresh, Views},
    orphans::Cast,
    pm2::{
        bus::{Item, Notice, Notices},
        event::Event,
        home::Home,
    },
    preload::{Heard, Line, What, message::Told},
    reconcile::{self, Observed},
    report::{self, Latency, Report},
    roster::{Attention, Roster},
    scout::Hurry,
    service::Pulse,
    shutdown,
    telemetry::Changes,
    worker::Phase,
};
use handoff_wire::{Ack, DEFAULT_LEASE, MarkRequest, MarkSet, Owner, State};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};
use tokio::{
    sync::{Notify, mpsc, watch},
    task::JoinHandle,
    time,
};

/// What an agent listens to and speaks to.
#[derive(Debug)]
pub struct Lines {
    pub notices: Notices,
    pub deaths: Deaths,
    pub told_deaths: mpsc::Receiver<Process>,
    pub looks: mpsc::Receiver<Look>,
    pub preloads: mpsc::Receiver<Heard>,
    /// Where they call.
    pub door: Option<PathBuf>,
    pub views: Views,
    pub refresh: Refresh,
    pub attention: watch::Sender<Attention>,
    pub cast: watch::Sender<Cast>,
    /// A worker in cluster mode ended.
    pub death: Arc<Notify>,
    pub hurry: Hurry,
    /// For what cannot wait.
    pub urgent: Control,
    /// For the rest. None: it is on an errand.
    pub rest: Option<Control>,
    pub report: watch::Sender<Report>,
    /// Each round, for the service manager.
    pub pulse: watch::Sender<Pulse>,
}

#[derive(Debug)]
pub struct Agent {
    home: Home,
    owner: Owner,
    roster: Roster,
    observed: Option<Observed>,
    /// The way back to each process that has the preload.
    guests: BTreeMap<Process, Line>,
    lines: Lines,
    latency: Latency,
    /// What can wait, under way.
    errand: Option<Errand>,
    retry: Option<Instant>,
    log: Changes,
    forgotten: Changes,
}

/// Marks on their way to nginx, and the connection that carries them.
#[derive(Debug)]
struct Errand {
    marks: Vec<MarkRequest>,
    task: JoinHandle<(Control, Result<Ack, ControlError>)>,
}

/// A notice older than this tells of a worker that may have been replaced since (we were stopped for a while): it is no
/// order any more, only a reason to look.
const FRESH: Duration = Duration::from_secs(2);
/// nginx takes so many marks at once.
const MAX_MARKS: usize = 256;
const RETRY: Duration = Duration::from_millis(50);
const BEAT: Duration = Duration::from_secs(1);

impl Agent {
    pub fn new(home: Home, owner: Owner, overrides: Vec<Override>, lines: Lines) -> Self {
        Self {
            home,
            owner,
            roster: Roster::new(overrides),
            observed: None,
            guests: BTreeMap::new(),
            lines,
            latency: Latency::default(),
            errand: None,
            retry: None,
            log: Changes::default(),
            forgotten: Changes::default(),
        }
    }

    /// Works until the shutdown, then takes back what would keep a serving worker from serving.
    pub async fn run(mut self, mut shutdown: watch::Receiver<bool>) {
        let mut beat = time::interval(BEAT);
        beat.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
        loop {
            let wake = [self.roster.next_tick(), self.retry].into_iter().flatten().min();
            let wake = wake.unwrap_or_else(|| Instant::now() + BEAT);
            let mut read = None;
            let back = errand_back(&mut self.errand);
            tokio::select! {
                biased;
                () = shutdown::requested(&mut shutdown) => break,
                // Notices first: only they come before the fact.
                Some(item) = self.lines.notices.next() => read = self.hear_all(item),
                Some(process) = self.lines.told_deaths.recv() => self.died(process),
                back = back => self.end_errand(back),
                Some(heard) = self.lines.preloads.recv() => self.hear_preload(heard),
                Some(look) = self.lines.looks.recv() => self.see(&look),
                changed = self.lines.views.changed() => if changed.is_ok() { self.view() },
                () = time::sleep_until(wake.into()) => {}
                _ = beat.tick() => self.beat().await,
            }
            self.roster.tick(Instant::now());
            self.reconcile(read).await;
            self.answer();
            self.attend();
            self.show_pulse();
        }
        self.take_leave().await;
    }

    /// Hears everything that is there. Returns when the bytes of the first order were, so that its way can be measured.
    fn hear_all(&mut self, item: Item) -> Option<Instant> {
        self.lines.hurry.all.notify_one();
        let mut next = match item {
            Item::Resync => None,
            Item::Notice(notice) => Some(notice),
        };
        let mut first = None;
        while let Some(notice) = next {
            first = first.or(self.hear(notice));
            next = self.lines.notices.try_next();
        }
        first
    }

    fn hear(&mut self, Notice { event, at, read }: Notice) -> Option<Instant> {
        let age =
            SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().saturating_sub(Duration::from_millis(at));
        if age > FRESH {
            tracing::debug!(?event, age_ms = age.as_millis(), "a notice came late: looking instead");
            return None;
        }
        tracing::debug!(?event, "PM2 says");
        if matches!(event, Event::Ready(_)) {
            self.lines.hurry.starting.notify_one();
        }
        self.roster.notice(&event, Instant::now());
        matches!(event, Event::Stopping(_)).then_some(read)
    }

    fn hear_preload(&mut self, Heard { process, what }: Heard) {
        tracing::debug!(pid = process.pid, ?what, "a preload says");
        match &what {
            What::Came(line) => {
                self.guests.insert(process, line.clone());
                self.lines.hurry.all.notify_one();
            }
            What::Left => _ = self.guests.remove(&process),
            What::Listens(_) | What::Stopping => {}
        }
        self.roster.preload(process, &what, Instant::now());
    }

    /// Tells those who said goodbye how it stands, and newcomers their names. Whoever does not listen is not waited for.
    fn answer(&mut self) {
        let names = self.roster.names().into_iter().map(|(process, name)| (process, Told::Name { name }));
        let mut words: Vec<(Process, Told)> = names.collect();
        if let Some(observed) = &self.observed {
            let answers = self.roster.answers(observed, Instant::now());
            words.extend(answers.into_iter().map(|(process, answer)| (process, answer.into())));
        }
        for (process, told) in words {
            if let Some(guest) = self.guests.get(&process) {
                tracing::debug!(pid = process.pid, ?told, "a preload is told");
                guest.say(told);
            }
        }
    }

    fn died(&mut self, process: Process) {
        tracing::debug!(pid = process.pid, "a process ended");
        if self.roster.died(process, Instant::now()) {
            self.lines.death.notify_one();
        }
        self.lines.hurry.all.notify_one();
    }

    fn see(&mut self, look: &Look) {
        self.lines.pulse.send_modify(|pulse| pulse.has_seen_pm2 = true);
        self.roster.look(look, Instant::now());
        if look.listed.is_some() {
            self.lines.cast.send_replace(self.roster.cast(look));
        }
        self.watch(look);
    }

    fn view(&mut self) {
        self.lines.pulse.send_modify(|pulse| pulse.has_seen_nginx = true);
        let view = self.lines.views.borrow_and_update().clone();
        let Some(view) = view else {
            self.observed = None;
            return;
        };
        let known = self.observed.as_ref().map(|seen| (seen.instance.as_str(), seen.generation));
        // We know of a later change: this view was on its way when we made it.
        if known.is_some_and(|(instance, generation)| {
            instance == view.upstreams.instance && generation > view.upstreams.generation
        }) {
            self.lines.refresh.notify_one();
            return;
        }
        let observed = Observed::new(&view.upstreams, &self.owner, view.asked);
        if self.roster.set_peers(observed.peers().cloned().collect()) {
            self.lines.hurry.all.notify_one();
        }
        self.observed = Some(observed);
    }

    async fn beat(&mut self) {
        // An error is told by whoever needs the connection.
        _ = self.lines.urgent.warm().await;
        let report = self.report();
        if let Some(text) = report::of_forgotten(&report.forgotten) {
            self.forgotten.warn(text);
        }
        self.lines.report.send_replace(report);
    }

    /// Asks nginx for what is not as it should be.
    async fn reconcile(&mut self, read: Option<Instant>) {
        if self.retry.is_some_and(|retry| Instant::now() < retry) {
            return;
        }
        self.retry = None;
        let Some(observed) = &self.observed else { return };
        let wishes = self.roster.wishes();
        let behind = |peer: &_| self.roster.behind(peer);
        let marks = reconcile::plan(&wishes, observed, behind, Instant::now());
        let (urgent, rest): (Vec<_>, Vec<_>) = marks.into_iter().partition(|mark| observed.is_urgent(mark));
        for marks in urgent.chunks(MAX_MARKS) {
            self.wait_for_errand(marks).await;
            let ack = self.lines.urgent.mark(&self.set(marks)).await;
            self.told(marks, ack);
        }
        if let Some(read) = read
            && self.retry.is_none()
            && urgent.iter().any(|mark| mark.state == State::Draining)
        {
            self.latency.add(read.elapsed());
            tracing::debug!(us = read.elapsed().as_micros(), "from PM2's notice to nginx's acknowledgement");
        }
        self.send_errand(rest);
    }

    /// Sends what can wait, if nobody is on the way.
    fn send_errand(&mut self, mut marks: Vec<MarkRequest>) {
        marks.truncate(MAX_MARKS);
        if marks.is_empty() {
            return;
        }
        let set = self.set(&marks);
        let Some(mut control) = self.lines.rest.take() else { return };
        let task = tokio::spawn(async move {
            let ack = control.mark(&set).await;
            (control, ack)
        });
        self.errand = Some(Errand { marks, task });
    }

    fn end_errand(&mut self, back: Option<(Control, Result<Ack, ControlError>)>) {
        let Some(errand) = self.errand.take() else { return };
        let Some((control, ack)) = back else {
            self.lines.rest = Some(Control::new(self.lines.urgent.address().clone()));
            return;
        };
        self.lines.rest = Some(control);
        self.told(&errand.marks, ack);
    }

    /// What is asked of the same peers must arrive in order.
    async fn wait_for_errand(&mut self, marks: &[MarkRequest]) {
        let is_same = |one: &MarkRequest, other: &MarkRequest| {
            (&one.upstream, &one.peer) == (&other.upstream, &other.peer)
        };
        let errand = self.errand.as_ref().map(|errand| errand.marks.as_slice()).unwrap_or_default();
        if errand.iter().any(|sent| marks.iter().any(|mark| is_same(sent, mark))) {
            let back = errand_back(&mut self.errand).await;
            self.end_errand(back);
        }
    }

    fn set(&self, marks: &[MarkRequest]) -> MarkSet {
        MarkSet { owner: self.owner.clone(), lease: Some(DEFAULT_LEASE), force: false, marks: marks.to_vec() }
    }

    fn told(&mut self, marks: &[MarkRequest], ack: Result<Ack, ControlError>) {
        let ack = match ack {
            Ok(ack) => ack,
            Err(error) => return self.refused(&error),
        };
        for mark in marks {
            let upstream = mark.upstream.as_deref().unwrap_or_default();
            tracing::info!(upstream, peer = mark.peer, state = %mark.state, reason = mark.reason, "told nginx");
        }
        let Some(observed) = &mut self.observed else { return };
        if observed.instance == ack.instance {
            observed.acknowledge(marks, &ack, Instant::now());
        } else {
            // Another nginx answered than the one that was looked at. While two share the socket (an upgrade of the
            // binary), a new connection may reach either.
            self.observed = None;
            self.lines.urgent.disconnect();
            self.lines.rest.iter_mut().for_each(Control::disconnect);
            self.retry = Some(Instant::now() + RETRY);
            self.lines.refresh.notify_one();
        }
    }

    fn refused(&mut self, error: &ControlError) {
        self.log.warn(format!("nginx was not told: {error}"));
        self.retry = Some(Instant::now() + RETRY);
        if !error.is_forbidden() {
            self.observed = None;
        }
        self.lines.refresh.notify_one();
    }

    /// Tells the scout where to look.
    fn attend(&mut self) {
        let attention = self.roster.attention(Instant::now());
        let has_doubts = !attention.doubtful.is_subset(&self.lines.attention.borrow().doubtful);
        self.lines.attention.send_if_modified(|current| {
            let is_new = *current != attention;
            *current = attention;
            is_new
        });
        if has_doubts {
            self.lines.hurry.all.notify_one();
        }
    }

    /// Watches every process that a worker depends on: the one that PM2 started, and those that listen.
    fn watch(&mut self, look: &Look) {
        let listens: BTreeSet<u64> = look.listeners.inodes().collect();
        for examined in look.examined.values() {
            let sockets = examined.held.iter().flat_map(|held| &held.sockets);
            let listening = sockets.filter(|(inode, _)| listens.contains(inode)).map(|(_, &process)| process);
            for process in listening.chain([examined.process]) {
                self.watch_process(process);
            }
        }
        if look.listed.is_some() {
            look.leavers.iter().for_each(|&process| self.watch_process(process));
        }
    }

    fn watch_process(&mut self, process: Process) {
        match self.lines.deaths.watch(&Proc::default(), process) {
            Ok(Watch::Begun) => {}
            Ok(Watch::Dead) => self.died(process),
            Err(error) => {
                self.log
                    .warn(format!("cannot watch processes ({error}): a death is seen within seconds only"));
            }
        }
    }

    fn show_pulse(&self) {
        let nginx_answers = self.observed.is_some();
        self.lines.pulse.send_modify(|pulse| {
            *pulse = Pulse { rounds: pulse.rounds.wrapping_add(1), nginx_answers, ..*pulse };
        });
    }

    fn report(&self) -> Report {
        Report::new(&self.home, &self.owner, &self.roster, &self.latency, self.lines.door.as_deref())
    }

    /// Facts stay: a worker that is being stopped is so whether we watch or not, and its mark ends with its lease. What
    /// only we hold back, we let go.
    async fn take_leave(mut self) {
        let held_back =
            self.roster.workers().filter(|(_, worker)| matches!(worker.phase(), Phase::Settling { .. }));
        let peers: Vec<_> = held_back.flat_map(|(_, worker)| worker.open().iter().cloned()).collect();
        let marks: Vec<MarkRequest> = peers.iter().map(reconcile::let_go).collect();
        if marks.is_empty() {
            return;
        }
        if let Err(error) = self.lines.urgent.mark(&self.set(&marks)).await {
            tracing::warn!("nginx was not told that we leave: {error}");
        }
    }
}

/// Waits for the errand to end; for ever if there is none. None: its task was aborted.
async fn errand_back(errand: &mut Option<Errand>) -> Option<(Control, Result<Ack, ControlError>)> {
    match errand {
        Some(errand) => (&mut errand.task).await.ok(),
        None => std::future::pending().await,
    }
}
