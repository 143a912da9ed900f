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
    OnDeadline,
    arrival::{self, Checks},
    counts::Counts,
    event::Step,
    fitness::Expected,
    grip::{Call, Grip, KILL_GRACE},
    health,
    logs::Logs,
    marks::{ANEW, Fenced, Marks, Set, Views},
    stop::{Broken, How, Stop},
    verdict::{self, Answers},
    world::Seen,
};
use crate::{
    host::Proc,
    peer::Peer,
    pm2::{PmId, orders::Sealed},
};
use handoff_wire::{Code, OwnerKind, PeerState};
use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};
use tokio::time;

/// What nginx had counted before the old process was told to end, and when that last had its connections.
#[derive(Clone, Copy, Debug)]
struct End {
    before: Counts,
    last: Counts,
}

#[derive(Debug)]
pub struct Turn {
    pub grip: Grip,
    /// It serves now, so that it is drained; another one is only kept from being used before it is well.
    pub serves: bool,
    /// The first one is watched longer: it stands for all.
    pub is_first: bool,
    /// It may be left as it is for a reason that is not its own.
    pub may_halt: bool,
    pub marks: Marks,
    pub env: Option<Sealed>,
}

/// A worker that is new. So many requests were cut when its old process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replaced {
    pub id: PmId,
    pub cut: u64,
}

const FLOOR_PAUSE: Duration = Duration::from_millis(200);
const COUNT_PAUSE: Duration = Duration::from_millis(100);
const DEATH_PAUSE: Duration = Duration::from_millis(5);
/// So long after the new process is ready nginx has noticed the end of the old one.
const NOTICE: Duration = Duration::from_millis(500);
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
        let settings = self.grip.seen()?.listed.settings;
        let logs = Logs::note([settings.err_log, settings.out_log].into_iter().flatten());
        match self.replaced(fenced).await {
            Ok(cut) => {
                self.grip
                    .step(Step::Done { seconds: (began.elapsed().as_secs_f64() * 1000.0).round() / 1000.0 });
                Ok(Replaced { id: self.grip.id, cut })
            }
            Err(Stop::Broken(broken)) => {
                if let Err(stop) = self.retire(broken.how).await {
                    self.grip.note(format!("{} could not be taken out of service: {stop}", self.grip.name));
                }
                // Now that it has ended, PM2 has written down its last words.
                let stop = self.grip.with_log(Stop::Broken(broken), &logs);
                if let Stop::Broken(Broken { how, text, log, .. }) = &stop {
                    let (exit, text, log) = (how.exit() as u8, text.clone(), log.clone());
                    self.grip.step(Step::Failed { exit, text, log });
                }
                Err(stop)
            }
            Err(stop) => Err(stop),
        }
    }

    /// Nothing was done to it: it serves again.
    pub async fn keep(&mut self, stop: Stop) -> Stop {
        match self.marks.lift().await {
            Ok(()) => self.grip.step(Step::Kept),
            Err(error) => {
                self.grip.note(format!("{} serves again when its mark has lapsed: {error}", self.grip.name))
            }
        }
        stop
    }

    // --- until it may be stopped

    pub async fn drained(&mut self) -> Result<Fenced, Stop> {
        self.relieved().await?;
        let process = self.grip.seen()?.process;
        let deadline = Instant::now() + self.grip.options().drain_timeout.duration();
        for pause in ANEW {
            time::sleep(pause).await;
            let drained = self.drain(deadline).await?;
            self.marks.clear().await?;
            self.grip.step(Step::Draining { in_flight: drained.in_flight });
            self.idle(drained.in_flight, deadline).await?;
            let is_the_same = self.grip.seen()?.process == process;
            if self.serves && !is_the_same {
                return Err(Stop::Foreign(format!("{} was restarted meanwhile", self.grip.name)));
            }
            self.go_on()?;
            if let Some(fenced) = self.marks.fence(drained).await? {
                return Ok(fenced);
            }
            self.grip
                .note(format!("nginx may have used {} again meanwhile: draining it anew", self.grip.name));
        }
        Err(Stop::Refused(format!(
            "nginx forgets the mark on {} again and again: is it being restarted? `handoff events` shows more",
            self.grip.name
        )))
    }

    /// Waits while others have not their whole share (`handoff_slow_start`): else the last worker of the old release would
    /// have nearly all of it. Not longer than that takes now, whatever comes up meanwhile.
    async fn relieved(&mut self) -> Result<(), Stop> {
        let mut until = None;
        while self.serves {
            let views = self.marks.views().await?;
            let Some((peer, left)) = views.growing() else { break };
            if until.is_none() {
                let share = peer.slow_start.map_or(0, |ramp| ramp.share);
                self.grip.note(format!(
                    "{} waits: {} has {share} % of its share, and the whole in {:.1} s (handoff_slow_start)",
                    self.grip.name,
                    peer.address,
                    left.as_secs_f64()
                ));
            }
            let until = *until.get_or_insert(Instant::now() + left);
            self.go_on()?;
            if Instant::now() >= until {
                break;
            }
            time::sleep(left.min(COUNT_PAUSE)).await;
        }
        Ok(())
    }

    /// Waits while nobody else serves.
    async fn drain(&mut self, deadline: Instant) -> Result<Set, Stop> {
        loop {
            match self.marks.drain(self.grip.options().force).await {
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

    fn go_on(&self) -> Result<(), Stop> {
        if self.may_halt { self.grip.go_on() } else { Ok(()) }
    }

    async fn idle(&mut self, mut in_flight: u64, deadline: Instant) -> Result<(), Stop> {
        while in_flight > 0 {
            self.go_on()?;
            if Instant::now() >= deadline {
                match self.grip.options().on_deadline {
                    OnDeadline::Cut => return Ok(()),
                    OnDeadline::Wait => {}
                    OnDeadline::Stop => {
                        let after = self.grip.options().drain_timeout;
                        return Err(Stop::Deadline { worker: self.grip.name.clone(), in_flight, after });
                    }
                }
            }
            let now = self.counted(in_flight, deadline).await?;
            if now != in_flight {
                self.grip.step(Step::Draining { in_flight: now });
                in_flight = now;
            }
        }
        Ok(())
    }

    /// What nginx still has there a moment later.
    async fn counted(&mut self, known: u64, deadline: Instant) -> Result<u64, Stop> {
        let asked = Instant::now();
        let now = match self.marks.in_flight(COUNT_PAUSE).await {
            // One of many nginx is there again, and has not said yet what it has.
            Err(error) if error.code() == Some(Code::Waiting) && asked < deadline => known,
            now => now?,
        };
        if now == known {
            // nginx answers earlier when one of its workers is told to go.
            time::sleep(COUNT_PAUSE.saturating_sub(asked.elapsed())).await;
        }
        Ok(now)
    }

    // --- from there on, forward only

    async fn replaced(&mut self, fenced: Fenced) -> Result<u64, Stop> {
        self.grip.step(Step::Stopping { cut: fenced.in_flight });
        self.grip.in_hand.is_moving(true);
        if !self.serves {
            self.grip.stop().await?;
        }
        let was = self.grip.seen()?;
        let before = self.counts().await?;
        let mut expected = Expected::after(&was);
        let mut call = self.grip.reload(&was, self.env.take());
        let end = self.ended(before, &was, &mut call).await?;
        self.grip.step(Step::Starting);
        self.marks.starting().await?;
        let cut = self.serves_again(&mut expected, call, end).await?;
        self.grip.announce("reload").await;
        Ok(cut)
    }

    /// The process for which PM2 was asked with this call, where there was none before.
    pub async fn proves_itself<T: Send + 'static>(
        &mut self,
        expected: &mut Expected,
        call: Call<T>,
    ) -> Result<(), Stop> {
        self.serves_again(expected, call, None).await.map(drop)
    }

    /// Returns how many requests the old process took with it.
    async fn serves_again<T: Send + 'static>(
        &mut self,
        expected: &mut Expected,
        call: Call<T>,
        end: Option<End>,
    ) -> Result<u64, Stop> {
        self.fit(expected, call).await?;
        self.grip.in_hand.is_moving(false);
        self.well(expected).await?;
        let cut = self.cut(end).await?;
        self.tried(expected).await?;
        self.marks.lift().await?;
        let views = self.until(PeerState::Up, expected).await?;
        self.grip.step(Step::Up);
        match self.grip.options().watch {
            Some(watch) => self.watched(expected, views, watch.duration(), u64::MAX).await?,
            None if self.is_first => self.watched(expected, views, WATCH, ENOUGH_ANSWERS).await?,
            None => {}
        }
        Ok(cut)
    }

    /// Waits for the end of the old process. None: there was none.
    async fn ended(&mut self, before: Counts, was: &Seen, call: &mut Call) -> Result<Option<End>, Stop> {
        let Some(old) = was.process else { return Ok(None) };
        let proc = Proc::default();
        let patience = was.listed.settings.kill_timeout.unwrap_or_default() + KILL_GRACE;
        let until = Instant::now() + patience;
        let mut last = before;
        while old.is_alive(&proc) {
            call.answered().await?;
            if Instant::now() >= until {
                let (who, name) = (self.grip.manager(), &self.grip.name);
                return Err(Stop::Refused(format!(
                    "{who} could not stop {name} (pid {}) for {patience:?}",
                    old.pid
                )));
            }
            if last.in_flight > 0 {
                let now = self.counts().await?;
                last = if old.is_whole(&proc) { now } else { last };
            }
            time::sleep(DEATH_PAUSE).await;
        }
        Ok(Some(End { before, last }))
    }

    /// How many requests the old process took with it. Nothing new has begun since it was told to end, so that whatever broke
    /// off broke off with it. A WebSocket may break off or be closed, which nginx cannot tell apart: one that was open when the
    /// process was last whole was cut. So was what nginx still passes on now, as far as anybody knows.
    async fn cut(&mut self, end: Option<End>) -> Result<u64, Stop> {
        let Some(End { before, last }) = end else { return Ok(0) };
        let until = Instant::now() + NOTICE;
        loop {
            let now = self.counts().await?;
            if now.in_flight == 0 || Instant::now() >= until {
                return Ok(now.cut_since(before) + now.closed_since(last) + now.in_flight);
            }
            time::sleep(UP_PAUSE).await;
        }
    }

    async fn counts(&mut self) -> Result<Counts, Stop> {
        Ok(Counts::of(&self.marks.views().await?.ours))
    }

    /// Waits until the new process listens and is ready.
    async fn fit<T: Send + 'static>(
        &mut self,
        expected: &mut Expected,
        mut call: Call<T>,
    ) -> Result<(), Stop> {
        let until = Instant::now() + self.grip.options().start_timeout.duration();
        loop {
            if !self.serves {
                self.marks.extend(&self.grip.seen()?.open);
            }
            let peers = self.marks.peers();
            let lacks = |seen: &Seen| lacks(peers, seen);
            if arrival::is_fit(expected, &self.grip, &mut call, until, lacks).await? {
                return Ok(());
            }
        }
    }

    /// Waits until its health checks pass.
    async fn well(&mut self, expected: &mut Expected) -> Result<(), Stop> {
        let Some(mut checks) = Checks::begin(&self.grip) else { return Ok(()) };
        loop {
            let mut answers = Vec::new();
            for peer in self.marks.peers() {
                let answer = health::check(peer, &checks.path).await;
                answers.push(answer.map_err(|what| format!("{} {what}", peer.address)));
            }
            arrival::still_lives(expected, &self.grip)?;
            if checks.count(&self.grip, &answers).await? {
                return Ok(());
            }
        }
    }

    /// Before it is given to users: what it gets now can be tried elsewhere, and is, if its answer is an error.
    async fn tried(&mut self, expected: &mut Expected) -> Result<(), Stop> {
        let enough = if self.is_first { ENOUGH_ANSWERS_OF_THE_FIRST } else { ENOUGH_ANSWERS };
        let views = self.marks.views().await?;
        if !views.somebody_else || self.marks.peers().is_empty() {
            return Ok(());
        }
        let long = verdict::trial(views.slow_start, WATCH);
        self.marks.trial().await?;
        self.grip.step(Step::Trial);
        let views = self.until(PeerState::Trial, expected).await?;
        self.watched(expected, views, long, enough).await
    }

    /// Waits until nginx has it so. Whoever else holds it back by choice is left to do so.
    async fn until(&mut self, state: PeerState, expected: &mut Expected) -> Result<Views, Stop> {
        let until = Instant::now() + self.grip.options().start_timeout.duration();
        loop {
            let views = self.marks.views().await?;
            let Some(held) = views.ours.iter().find(|peer| peer.state != state) else { return Ok(views) };
            let by_choice = held.marks.iter().find(|mark| {
                let kind = mark.owner.kind();
                kind.is_choice() && kind != OwnerKind::Rollout
            });
            if let Some(mark) = by_choice {
                if state == PeerState::Up {
                    self.grip.note(format!(
                        "{} stays {} by {}: {}",
                        self.grip.name, mark.state, mark.owner, mark.reason
                    ));
                }
                return Ok(views);
            }
            arrival::still_lives(expected, &self.grip)?;
            if Instant::now() >= until {
                let by = held.marks.first().map(|mark| format!(" by {} ({})", mark.owner, mark.reason));
                let (state, by) = (held.state, by.unwrap_or_default());
                return Err(self.grip.broken(How::NotReady, format!("nginx still has it {state}{by}")));
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
            arrival::still_lives(expected, &self.grip)?;
            let views = self.marks.views().await?;
            let (new, old) = (Answers::of(&views.ours).since(ours), Answers::of(&views.others).since(others));
            if new.is_worse_than(old) {
                let text = format!(
                    "it answered {} of {} requests with an error (the others {} of {})",
                    new.errors, new.all, old.errors, old.all
                );
                return Err(self.grip.broken(How::Errors, text));
            }
            let is_over = self.grip.shared.brake.pulled().is_some();
            if is_over || Instant::now() >= until || new.all >= enough || !views.somebody_else {
                return Ok(());
            }
            time::sleep(WATCH_PAUSE).await;
        }
    }

    // --- a new process that is not fit to serve

    /// Takes it out of service. One that answers with errors while nobody else serves stays: that is better than nobody.
    async fn retire(&mut self, how: How) -> Result<(), Stop> {
        self.stop(how != How::Errors).await?;
        self.grip.announce("stop").await;
        Ok(self.marks.down().await?)
    }

    /// `force`: even if nobody else serves.
    pub async fn stop(&mut self, force: bool) -> Result<(), Stop> {
        let deadline = Instant::now() + self.grip.options().drain_timeout.duration();
        let drained = self.marks.drain(force).await?;
        let mut in_flight = drained.in_flight;
        while in_flight > 0 && Instant::now() < deadline {
            in_flight = self.counted(in_flight, deadline).await?;
        }
        self.grip.in_hand.is_moving(true);
        self.grip.stop().await
    }

    /// PM2 is asked to stop it, and nobody follows. Returns how many requests it took with it.
    pub async fn ended_for_good(&mut self) -> Result<u64, Stop> {
        self.grip.in_hand.is_moving(true);
        let was = self.grip.seen()?;
        let before = self.counts().await?;
        let mut call = self.grip.begin_to_stop();
        let end = self.ended(before, &was, &mut call).await?;
        self.grip.stop().await?;
        self.cut(end).await
    }
}

fn lacks(peers: &BTreeSet<Peer>, seen: &Seen) -> Option<String> {
    let Peer { address, .. } = peers.difference(&seen.open).next()?;
    Some(if seen.listens.is_empty() {
        format!("it did not listen on {address}")
    } else {
        format!("it did not listen on {address} (it does on {})", seen.listens.join(", "))
    })
}
