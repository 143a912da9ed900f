//! One worker's turn.
//!
//! ```text
//!   draining ──► stopping ──► starting ──► checking ──► trial ──► up ──► done
//!      │                          │            │          │        │
//!      ▼                          └────────────┴──────────┴────────┴──► failed: PM2 stops it, nginx has it down
//!     kept: it was not stopped, and serves again
//! ```
//!
//! Until PM2 is asked, anything may end the turn, and the worker is left as it was. From then on the way leads forward
//! only: the new process serves, or it is stopped.

use super::{
    OnDeadline, Options,
    brake::{Brake, Halt},
    event::Step,
    fitness::{Expected, Fitness},
    health,
    logs::Logs,
    marks::{Fenced, Marks, Set, Views},
    stop::{Broken, How, Stop},
    verdict::Answers,
    world::{InHand, Seen, World, Worlds},
};
use crate::{
    host::Proc,
    pm2::{
        PmId,
        home::Home,
        monitor::Status,
        orders::Sealed,
        rpc::{Rpc, RpcError},
    },
};
use handoff_wire::{Code, OwnerKind, PeerState};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{sync::mpsc::UnboundedSender, task::JoinHandle, time};

#[derive(Debug)]
pub struct Turn {
    pub id: PmId,
    pub name: String,
    /// It serves now, so that it is drained; another one is only kept from being used before it is well.
    pub serves: bool,
    /// The first one is watched longer: it stands for all.
    pub is_first: bool,
    pub marks: Marks,
    pub in_hand: InHand,
    pub env: Option<Sealed>,
    pub shared: Arc<Shared>,
}

/// What all turns of one roll-out have in common.
#[derive(Debug)]
pub struct Shared {
    pub home: Home,
    pub options: Options,
    pub worlds: Worlds,
    pub brake: Brake,
    pub steps: UnboundedSender<(PmId, Said)>,
}

/// What a turn has to say.
#[derive(Debug)]
pub enum Said {
    Step(Step),
    Note(String),
}

/// A worker that is new. So many requests were in flight when its old process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replaced {
    pub id: PmId,
    pub cut: u64,
}

/// PM2, at work.
#[derive(Debug)]
struct Call(Option<JoinHandle<Result<(), RpcError>>>);

/// So often a mark that lapsed is set anew before we give up.
const TRIES: usize = 5;
const FLOOR_PAUSE: Duration = Duration::from_millis(200);
const COUNT_PAUSE: Duration = Duration::from_millis(100);
/// How long nginx waits for the last request while its worker ends: it answers the moment that one is complete.
const CUT_PAUSE: Duration = Duration::from_millis(10);
const DEATH_PAUSE: Duration = Duration::from_millis(5);
/// How much longer than its kill_timeout PM2 may need to end a process.
const KILL_GRACE: Duration = Duration::from_secs(15);
const CHECK_PAUSE: Duration = Duration::from_millis(100);
const UP_PAUSE: Duration = Duration::from_millis(20);
const WATCH_PAUSE: Duration = Duration::from_millis(40);
/// How long a worker is on trial, or watched if nobody said how long; so many answers are enough. The first one stands for
/// all.
const WATCH: Duration = Duration::from_secs(1);
const ENOUGH_ANSWERS: u64 = 8;
const ENOUGH_ANSWERS_OF_THE_FIRST: u64 = 20;

// === impl Turn ===

impl Turn {
    pub async fn run(mut self) -> Result<Replaced, Stop> {
        let began = Instant::now();
        let fenced = match self.drained().await {
            Ok(fenced) => fenced,
            Err(stop) => return Err(self.keep(stop).await),
        };
        match self.replaced(fenced).await {
            Ok(cut) => {
                self.step(Step::Done { seconds: (began.elapsed().as_secs_f64() * 1000.0).round() / 1000.0 });
                Ok(Replaced { id: self.id, cut })
            }
            Err(Stop::Broken(broken)) => {
                if let Err(stop) = self.retire(broken.how).await {
                    self.note(format!("{} could not be taken out of service: {stop}", self.name));
                }
                let Broken { how, text, log, .. } = broken.clone();
                self.step(Step::Failed { exit: how.exit() as u8, text, log });
                Err(Stop::Broken(broken))
            }
            Err(stop) => Err(stop),
        }
    }

    /// Nothing was done to it: it serves again.
    async fn keep(&mut self, stop: Stop) -> Stop {
        match self.marks.lift().await {
            Ok(()) => self.step(Step::Kept),
            Err(error) => self.note(format!("{} serves again when its mark has lapsed: {error}", self.name)),
        }
        stop
    }

    // --- until it may be stopped

    async fn drained(&mut self) -> Result<Fenced, Stop> {
        let process = self.seen()?.process;
        let deadline = Instant::now() + self.options().drain_timeout.duration();
        for _ in 0..TRIES {
            let drained = self.drain(deadline).await?;
            self.marks.clear().await?;
            self.step(Step::Draining { in_flight: drained.in_flight });
            self.idle(drained.in_flight, deadline).await?;
            let is_the_same = self.seen()?.process == process;
            if self.serves && !is_the_same {
                return Err(Stop::Foreign(format!("{} was restarted meanwhile", self.name)));
            }
            self.go_on()?;
            if let Some(fenced) = self.marks.fence(drained).await? {
                return Ok(fenced);
            }
            self.note(format!("nginx may have used {} again meanwhile: draining it anew", self.name));
        }
        Err(Stop::Refused(format!(
            "nginx forgets the mark on {} again and again: is it being restarted? `handoff events` shows more",
            self.name
        )))
    }

    /// Waits while nobody else serves.
    async fn drain(&mut self, deadline: Instant) -> Result<Set, Stop> {
        loop {
            match self.marks.drain(self.options().force).await {
                Err(error) if error.code() == Some(Code::Floor) => {
                    self.go_on()?;
                    if Instant::now() >= deadline {
                        return Err(Stop::Refused(format!("{error}. --force does it all the same")));
                    }
                    time::sleep(FLOOR_PAUSE).await;
                }
                drained => return Ok(drained?),
            }
        }
    }

    async fn idle(&mut self, mut in_flight: u64, deadline: Instant) -> Result<(), Stop> {
        while in_flight > 0 {
            self.go_on()?;
            if Instant::now() >= deadline {
                match self.options().on_deadline {
                    OnDeadline::Cut => return Ok(()),
                    OnDeadline::Wait => {}
                    OnDeadline::Stop => {
                        let after = self.options().drain_timeout;
                        return Err(Stop::Deadline { worker: self.name.clone(), in_flight, after });
                    }
                }
            }
            let asked = Instant::now();
            let now = self.marks.in_flight(COUNT_PAUSE).await?;
            if now != in_flight {
                self.step(Step::Draining { in_flight: now });
                in_flight = now;
            } else {
                // nginx answers earlier when one of its workers is told to go.
                time::sleep(COUNT_PAUSE.saturating_sub(asked.elapsed())).await;
            }
        }
        Ok(())
    }

    // --- from there on, forward only

    async fn replaced(&mut self, fenced: Fenced) -> Result<u64, Stop> {
        let settings = self.seen()?.listed.settings;
        let logs = Logs::note([settings.err_log, settings.out_log].into_iter().flatten());
        self.step(Step::Stopping { cut: fenced.in_flight });
        self.in_hand.is_moving(true);
        if !self.serves {
            self.stop().await?;
        }
        let was = self.seen()?;
        let mut expected = Expected::after(&was);
        let mut call = self.ask(&was);
        let cut = self.ended(fenced.in_flight, &was, &mut call).await?;
        self.step(Step::Starting);
        self.marks.starting().await?;
        let serves = self.serves_again(&mut expected, call).await;
        serves.map_err(|stop| self.with_log(stop, &logs))?;
        self.announce("reload").await;
        Ok(cut)
    }

    async fn serves_again(&mut self, expected: &mut Expected, call: Call) -> Result<(), Stop> {
        self.fit(expected, call).await?;
        self.in_hand.is_moving(false);
        self.well(expected).await?;
        self.tried(expected).await?;
        self.marks.lift().await?;
        let views = self.until(PeerState::Up, expected).await?;
        self.step(Step::Up);
        match self.options().watch {
            Some(watch) => self.watched(expected, views, watch.duration(), u64::MAX).await,
            None if self.is_first => self.watched(expected, views, WATCH, ENOUGH_ANSWERS).await,
            None => Ok(()),
        }
    }

    fn ask(&mut self, was: &Seen) -> Call {
        if matches!(was.listed.status, Status::Online | Status::Launching) {
            self.in_hand.expect_stop();
        }
        let (home, id, env) = (self.shared.home.clone(), self.id, self.env.take());
        Call(Some(tokio::spawn(async move {
            let mut rpc = Rpc::connect(&home).await.map_err(RpcError::from)?;
            rpc.reload(id, env.as_deref()).await
        })))
    }

    /// Waits for the end of the old process. Returns how many requests it took with it.
    async fn ended(&mut self, mut cut: u64, was: &Seen, call: &mut Call) -> Result<u64, Stop> {
        let Some(old) = was.process else { return Ok(0) };
        let proc = Proc::default();
        let patience = was.listed.settings.kill_timeout.unwrap_or_default() + KILL_GRACE;
        let until = Instant::now() + patience;
        while old.is_alive(&proc) {
            call.answered().await?;
            if Instant::now() >= until {
                let name = &self.name;
                return Err(Stop::Refused(format!(
                    "PM2 could not stop {name} (pid {}) for {patience:?}",
                    old.pid
                )));
            }
            if cut == 0 {
                time::sleep(DEATH_PAUSE).await;
                continue;
            }
            let now = self.marks.in_flight(CUT_PAUSE).await?;
            // What nginx counts after the death is no more what was lost by it.
            cut = if old.is_alive(&proc) { now } else { cut };
        }
        Ok(cut)
    }

    /// Waits until the new process listens and is ready.
    async fn fit(&mut self, expected: &mut Expected, mut call: Call) -> Result<(), Stop> {
        let until = Instant::now() + self.options().start_timeout.duration();
        loop {
            if call.answered().await? {
                expected.answered();
            }
            match self.fitness(expected)? {
                Fitness::Fit => return Ok(()),
                Fitness::Broken(how, text) => return Err(self.broken(how, text)),
                Fitness::NotYet(what) if Instant::now() >= until => {
                    let text = format!("{what} within {}", self.options().start_timeout);
                    return Err(self.broken(How::NotReady, text));
                }
                Fitness::NotYet(_) => self.next_look().await?,
            }
        }
    }

    /// Waits until its health checks pass.
    async fn well(&mut self, expected: &mut Expected) -> Result<(), Stop> {
        let Some(path) = self.options().health.clone() else { return Ok(()) };
        let (of, timeout) = (self.options().health_passes, self.options().health_timeout);
        let until = Instant::now() + timeout.duration();
        let peers = self.marks.peers().clone();
        let mut passed = 0;
        self.step(Step::Checking { passed, of });
        while passed < of {
            let mut ill = None;
            for peer in &peers {
                let answer = health::check(peer, &path).await;
                ill = ill.or(answer.err().map(|what| format!("{path} of {} {what}", peer.address)));
            }
            self.still_lives(expected)?;
            match ill {
                None => passed += 1,
                Some(text) if Instant::now() >= until => {
                    return Err(self.broken(How::Unhealthy, format!("{text}, after {timeout}")));
                }
                Some(_) => passed = 0,
            }
            self.step(Step::Checking { passed, of });
            if passed < of {
                time::sleep(CHECK_PAUSE).await;
            }
        }
        Ok(())
    }

    /// Before it is given to users: what it gets now can be tried elsewhere, and is, if its answer is an error.
    async fn tried(&mut self, expected: &mut Expected) -> Result<(), Stop> {
        let enough = if self.is_first { ENOUGH_ANSWERS_OF_THE_FIRST } else { ENOUGH_ANSWERS };
        if !self.marks.views().await?.somebody_else || self.marks.peers().is_empty() {
            return Ok(());
        }
        self.marks.trial().await?;
        self.step(Step::Trial);
        let views = self.until(PeerState::Trial, expected).await?;
        self.watched(expected, views, WATCH, enough).await
    }

    /// Waits until nginx has it so. Whoever else holds it back by choice is left to do so.
    async fn until(&mut self, state: PeerState, expected: &mut Expected) -> Result<Views, Stop> {
        let until = Instant::now() + self.options().start_timeout.duration();
        loop {
            let views = self.marks.views().await?;
            let Some(held) = views.ours.iter().find(|peer| peer.state != state) else { return Ok(views) };
            let by_choice = held.marks.iter().find(|mark| {
                let kind = mark.owner.kind();
                kind.is_choice() && kind != OwnerKind::Rollout
            });
            if let Some(mark) = by_choice {
                if state == PeerState::Up {
                    self.note(format!(
                        "{} stays {} by {}: {}",
                        self.name, mark.state, mark.owner, mark.reason
                    ));
                }
                return Ok(views);
            }
            self.still_lives(expected)?;
            if Instant::now() >= until {
                let by = held.marks.first().map(|mark| format!(" by {} ({})", mark.owner, mark.reason));
                let (state, by) = (held.state, by.unwrap_or_default());
                return Err(self.broken(How::NotReady, format!("nginx still has it {state}{by}")));
            }
            time::sleep(UP_PAUSE).await;
        }
    }

    /// Watches how it answers, for so long or until so many answers are there. `before`: how it was when it began.
    async fn watched(
        &mut self,
        expected: &mut Expected,
        before: Views,
        long: Duration,
        enough: u64,
    ) -> Result<(), Stop> {
        let (ours, others) = (Answers::of(&before.ours), Answers::of(&before.others));
        let until = Instant::now() + long;
        loop {
            self.still_lives(expected)?;
            let views = self.marks.views().await?;
            let (new, old) = (Answers::of(&views.ours).since(ours), Answers::of(&views.others).since(others));
            if new.is_worse_than(old) {
                let text = format!(
                    "it answered {} of {} requests with an error (the others {} of {})",
                    new.errors, new.all, old.errors, old.all
                );
                return Err(self.broken(How::Errors, text));
            }
            if Instant::now() >= until || new.all >= enough || !views.somebody_else {
                return Ok(());
            }
            time::sleep(WATCH_PAUSE).await;
        }
    }

    // --- a new process that is not fit to serve

    /// Takes it out of service. One that answers with errors while nobody else serves stays: that is better than nobody.
    async fn retire(&mut self, how: How) -> Result<(), Stop> {
        let deadline = Instant::now() + self.options().drain_timeout.duration();
        let drained = self.marks.drain(how != How::Errors).await?;
        let mut in_flight = drained.in_flight;
        while in_flight > 0 && Instant::now() < deadline {
            in_flight = self.marks.in_flight(COUNT_PAUSE).await?;
        }
        self.in_hand.is_moving(true);
        self.stop().await?;
        self.announce("stop").await;
        Ok(self.marks.down().await?)
    }

    /// PM2 7 says that it stopped a worker that was not ready yet, and starts it again. One that is frozen until PM2 no
    /// longer waits for `ready` stays stopped.
    async fn stop(&self) -> Result<(), Stop> {
        let waits = self.seen()?.listed.settings.listen_timeout.unwrap_or_default() + KILL_GRACE;
        let until = Instant::now() + waits;
        self.ask_to_stop().await?;
        while !self.is_stopped()? {
            if Instant::now() >= until {
                return Err(Stop::Refused(format!("PM2 could not stop {} within {waits:?}", self.name)));
            }
            if self.seen()?.listed.status == Status::Online {
                self.ask_to_stop().await?;
                continue;
            }
            let mut rpc = Rpc::connect(&self.shared.home).await.map_err(RpcError::from)?;
            // Refused between two of its lives.
            _ = rpc.signal(self.id, "SIGSTOP").await;
            self.fresh_look().await?;
        }
        Ok(())
    }

    async fn ask_to_stop(&self) -> Result<(), Stop> {
        let patience = self.seen()?.listed.settings.kill_timeout.unwrap_or_default() + KILL_GRACE;
        self.in_hand.expect_stop();
        let mut rpc = Rpc::connect(&self.shared.home).await.map_err(RpcError::from)?;
        let stopped = time::timeout(patience, rpc.stop(self.id)).await;
        let late = || Stop::Refused(format!("PM2 could not stop {} within {patience:?}", self.name));
        stopped.map_err(|_| late())??;
        // So that the next thing that is known of it is how it is now.
        self.fresh_look().await
    }

    fn is_stopped(&self) -> Result<bool, Stop> {
        let seen = self.seen()?;
        let is_over = matches!(seen.listed.status, Status::Stopped | Status::Errored);
        Ok(is_over && seen.process.is_none())
    }

    // --- looking

    fn options(&self) -> &Options {
        &self.shared.options
    }

    fn world(&self) -> Result<Arc<World>, Stop> {
        self.shared.worlds.borrow().clone().ok_or(Stop::Pm2(RpcError::Closed))
    }

    fn seen(&self) -> Result<Seen, Stop> {
        let world = self.world()?;
        let seen = world.workers.get(&self.id).cloned();
        seen.ok_or_else(|| Stop::Foreign(format!("{} was deleted", self.name)))
    }

    fn fitness(&mut self, expected: &mut Expected) -> Result<Fitness, Stop> {
        let seen = self.seen()?;
        if !self.serves {
            self.marks.extend(&seen.open);
        }
        let peers = self.marks.peers();
        Ok(expected.judge(&seen, |seen| match peers.iter().find(|peer| !seen.open.contains(peer)) {
            None => None,
            Some(peer) if seen.listens.is_empty() => Some(format!("it did not listen on {}", peer.address)),
            Some(peer) => Some(format!(
                "it did not listen on {} (it does on {})",
                peer.address,
                seen.listens.join(", ")
            )),
        }))
    }

    fn still_lives(&mut self, expected: &mut Expected) -> Result<(), Stop> {
        if !expected.lives(&Proc::default()) {
            return Err(self.broken(How::Crashed, "it crashed".to_owned()));
        }
        match self.fitness(expected)? {
            Fitness::Broken(How::Crashed, text) => Err(self.broken(How::Crashed, text)),
            _ => Ok(()),
        }
    }

    async fn next_look(&self) -> Result<(), Stop> {
        let mut worlds = self.shared.worlds.clone();
        worlds.mark_unchanged();
        tokio::select! {
            changed = worlds.changed() => changed.map_err(|_| self.gone()),
            () = time::sleep(COUNT_PAUSE) => Ok(()),
        }
    }

    async fn fresh_look(&self) -> Result<(), Stop> {
        let asked = Instant::now();
        let mut worlds = self.shared.worlds.clone();
        let fresh = worlds.wait_for(|world| world.as_ref().is_some_and(|world| world.began > asked));
        fresh.await.map(drop).map_err(|_| self.gone())
    }

    /// Nobody looks any more.
    fn gone(&self) -> Stop {
        match self.shared.brake.pulled() {
            Some(Halt::Pm2(text)) => Stop::Lost(text),
            _ => Stop::Pm2(RpcError::Closed),
        }
    }

    // --- saying

    fn go_on(&self) -> Result<(), Stop> {
        self.shared.brake.pulled().map_or(Ok(()), |halt| Err(halt.into()))
    }

    fn broken(&self, how: How, text: String) -> Stop {
        Stop::Broken(Broken { worker: self.name.clone(), how, text, log: Vec::new() })
    }

    fn with_log(&self, stop: Stop, logs: &Logs) -> Stop {
        match (stop, self.world()) {
            (Stop::Broken(broken), Ok(world)) => {
                Stop::Broken(Broken { log: logs.last_lines(world.daemon.uid), ..broken })
            }
            (stop, _) => stop,
        }
    }

    /// Tells whoever listens on PM2's bus, as PM2's own command line does.
    async fn announce(&self, action: &'static str) {
        if let Ok(mut rpc) = Rpc::connect(&self.shared.home).await {
            _ = rpc.announce(self.id, action).await;
        }
    }

    fn step(&self, step: Step) {
        _ = self.shared.steps.send((self.id, Said::Step(step)));
    }

    fn note(&self, text: String) {
        _ = self.shared.steps.send((self.id, Said::Note(text)));
    }
}

// === impl Call ===

impl Call {
    /// Whether PM2 is done. Error: it refused, or is gone.
    async fn answered(&mut self) -> Result<bool, RpcError> {
        match self.0.take_if(|task| task.is_finished()) {
            Some(task) => task.await.unwrap_or(Ok(())).map(|()| true),
            None => Ok(self.0.is_none()),
        }
    }
}
