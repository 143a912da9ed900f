//! The host, and every step that it may take next.

use crate::{
    By, Fault, Method, Scene, Without,
    request::{At, Request},
    sidecar::{self, Fact, Knows, Listed, View},
    zone::{Command, Mark, Owner, PEERS, Peer, Zone},
};
use handoff_core::retry::Verdict;
use handoff_wire::{Expect, State as Says};
use std::fmt;

/// The how many-th process of a worker it is.
pub type Life = u8;
pub const REQUESTS: usize = 3;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    pub zone: Zone,
    /// Which nginx it is.
    instance: u8,
    pub workers: [Worker; PEERS],
    /// The first nginx worker has an idle connection to the first process of the first worker, and whether that is not to be used
    /// any more.
    pub pooled: Option<bool>,
    pub requests: [Request; REQUESTS],
    pm2: Pm2,
    sidecar: Sidecar,
    rollout: Rollout,
    faults: u8,
    /// A request was let in where that was acknowledged to be over.
    pub began_late: bool,
    /// A worker was stopped that nginx might use.
    pub stopped_in_use: bool,
    /// No step is left.
    pub is_over: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Worker {
    pub life: Life,
    pub state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    Booting,
    Listening,
    /// It was told to go: its port is closed, and it ends when it has finished.
    Closing,
    Dead,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Pm2 {
    /// What it is doing.
    job: Option<(Peer, Phase)>,
    /// How many workers are new.
    done: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Phase {
    /// `Stopping app:` is on the bus.
    Announced,
    Signalled,
    Ended,
    Started,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Sidecar {
    fate: Fate,
    knows: [Knows; PEERS],
    view: View,
    /// What PM2 has said and it has not heard.
    bus: Vec<(Peer, Fact)>,
    deaths: [Option<Life>; PEERS],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Rollout {
    fate: Fate,
    turn: Peer,
    stage: Stage,
    /// Its mark has been sent, and was not waited for: only where that is tried.
    is_sending: Option<Peer>,
}

/// As in `handoff reload`'s turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Stage {
    Begins,
    Drained { epoch: u64, instance: u8 },
    Fenced,
    Stopping,
    Starting,
    Lifted,
    Over,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Fate {
    Runs,
    /// SIGSTOP; it goes on some time.
    Frozen,
    /// It is restarted some time.
    Away,
    /// For good.
    Dead,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Chooses(usize, Peer),
    ClaimsLate(usize, Peer),
    IsTaken(usize),
    IsAnswered(usize),
    Fails(usize),
    GoesOn(usize),
    RestEnds(usize, bool),
    NoticesClose,
    Announces(Peer),
    Signals(Peer),
    Ends(Peer),
    Starts(Peer),
    Listens(Peer),
    SidecarHears,
    SidecarLearnsOfDeath(Peer),
    SidecarLooks(Peer),
    SidecarSeesNginx,
    StaysUp(Peer),
    SidecarIsBack,
    Drains(Peer),
    MarkArrives(Peer),
    Fences(Peer),
    AsksPm2(Peer),
    SaysStarting(Peer),
    Lifts(Peer),
    SeesUp(Peer),
    RolloutThaws,
    TimePasses,
    Happens(Fault),
    NothingIsLeft,
}

// === impl World ===

impl World {
    pub fn new(scene: &Scene) -> Self {
        let zone = Zone::new(scene.workers);
        let seen = zone.seen();
        let knows = std::array::from_fn(|peer| {
            Knows::nothing().hears(peer, Fact::Look { life: Some(0), status: Listed::Online, listens: true })
        });
        let runs = |does| if does { Fate::Runs } else { Fate::Dead };
        let request = |at| Request::new(if at < scene.requests.len() { At::Coming } else { At::Never });
        let begins = scene.by == By::HandoffReload;
        Self {
            zone,
            instance: 1,
            workers: [Worker { life: 0, state: State::Listening }; PEERS],
            // Where somebody dies, others do not add to it.
            pooled: scene.faults.is_empty().then_some(false),
            requests: std::array::from_fn(request),
            pm2: Pm2::default(),
            sidecar: Sidecar {
                fate: runs(scene.sidecar),
                knows,
                view: sidecar::view(&seen),
                bus: Vec::new(),
                deaths: [None; PEERS],
            },
            rollout: Rollout {
                fate: runs(begins),
                turn: 0,
                stage: if begins { Stage::Begins } else { Stage::Over },
                is_sending: None,
            },
            faults: 0,
            began_late: false,
            stopped_in_use: false,
            is_over: false,
        }
    }

    fn is_at_work(&self, peer: Peer) -> bool {
        self.requests.iter().any(|request| matches!(request.at, At::Taken(at, _) if at == peer))
    }

    /// Somebody serves, and a mark that nobody renews keeps requests away from there.
    pub fn is_held_back(&self) -> bool {
        let zone = self.zone.seen();
        let listens = |peer: &Peer| self.workers[*peer].state == State::Listening && !zone.serves(*peer);
        let is_marked = |peer: Peer| zone.mark(peer, Owner::Sidecar).is_some();
        self.sidecar.fate != Fate::Runs && (0..PEERS).filter(listens).any(is_marked)
    }

    pub fn in_flight(&self, peer: Peer) -> usize {
        self.requests.iter().filter(|request| request.is_counted_at(peer)).count()
    }

    /// Every worker is new and serves, nobody waits, and nginx has no mark that keeps anybody away.
    pub fn is_settled(&self, scene: &Scene) -> bool {
        let zone = self.zone.seen();
        let is_deployed = match scene.by {
            By::Pm2Reload => self.pm2.done == scene.workers,
            By::HandoffReload => self.rollout.stage == Stage::Over || self.rollout.fate == Fate::Dead,
        };
        let serves = |peer| zone.serves(peer) && self.workers[peer].state == State::Listening;
        is_deployed
            && self.pm2.job.is_none()
            && (0..scene.workers).all(serves)
            && !self.requests.iter().any(Request::is_under_way)
    }

    pub fn steps(&self, scene: &Scene, steps: &mut Vec<Step>) {
        if self.is_over {
            return;
        }
        self.nginx_steps(scene, steps);
        self.pm2_steps(scene, steps);
        self.sidecar_steps(scene, steps);
        self.rollout_steps(scene, steps);
        self.slow_steps(scene, steps);
        // None of these must happen: whatever is settled is so without them.
        if steps.is_empty() {
            steps.push(Step::NothingIsLeft);
        } else if self.faults < scene.most_faults {
            steps.extend(
                scene
                    .faults
                    .iter()
                    .filter(|fault| self.may_happen(**fault))
                    .map(|&fault| Step::Happens(fault)),
            );
        }
    }

    /// What takes as long as a process to boot: by then nginx has noticed which connections broke, and gone on, and a worker has
    /// taken what was written to it.
    fn slow_steps(&self, scene: &Scene, steps: &mut Vec<Step>) {
        let is_busy = |at| matches!(at, At::Sent(..) | At::Broken(..) | At::Anew);
        if self.requests.iter().any(|request| is_busy(request.at)) {
            return;
        }
        // And seconds pass when whoever runs has heard and said what there is, and PM2 has sent its signal.
        let is_quick = |step: &Step| {
            matches!(
                step,
                Step::ClaimsLate(..)
                    | Step::Signals(_)
                    | Step::SidecarHears
                    | Step::SidecarLearnsOfDeath(_)
                    | Step::SidecarLooks(_)
                    | Step::SidecarSeesNginx
                    | Step::AsksPm2(_)
            )
        };
        let seconds_pass = !steps.iter().any(is_quick);
        let has_heard = self.sidecar.bus.is_empty() && self.sidecar.deaths == [None; PEERS];
        if let Some((peer, Phase::Started)) = self.pm2.job
            && (has_heard || scene.slow_bus || self.sidecar.fate != Fate::Runs)
        {
            steps.push(Step::Listens(peer));
        }
        let is_back = matches!(self.sidecar.fate, Fate::Frozen | Fate::Away);
        steps.extend(is_back.then_some(Step::SidecarIsBack));
        steps.extend((self.rollout.fate == Fate::Frozen).then_some(Step::RolloutThaws));
        let may_lapse = self.zone.seen().has_marks_of(self.silent()) && !scene.is_without(Without::Lapse);
        steps.extend((seconds_pass && may_lapse).then_some(Step::TimePasses));
        if seconds_pass && self.sidecar.fate == Fate::Runs {
            let is_new = |peer: &Peer| {
                let knows = self.sidecar.knows[*peer];
                knows.hears(*peer, Fact::StayedUp) != knows
            };
            steps.extend((0..scene.workers).filter(is_new).map(Step::StaysUp));
        }
    }

    fn nginx_steps(&self, scene: &Scene, steps: &mut Vec<Step>) {
        for (at, request) in self.requests.iter().enumerate() {
            steps.extend(self.choices(scene, at).map(|peer| Step::Chooses(at, peer)));
            match request.at {
                At::Looked(peer) => steps.push(Step::ClaimsLate(at, peer)),
                At::Sent(peer, life) => {
                    let worker = Worker { life, state: State::Listening };
                    steps.extend((self.workers[peer] == worker).then_some(Step::IsTaken(at)));
                }
                At::Taken(..) => steps.push(Step::IsAnswered(at)),
                At::Broken(..) => steps.push(Step::Fails(at)),
                At::Held => steps.extend(self.is_released().then_some(Step::GoesOn(at))),
                At::Resting(peer) => {
                    let ends = |is_over| self.look_again(scene, at, peer, is_over).is_some();
                    if ends(false) {
                        steps.push(Step::RestEnds(at, false));
                    } else if !self.has_news_under_way(scene, peer) {
                        steps.push(Step::RestEnds(at, true));
                    }
                }
                _ => {}
            }
        }
        let has_closed = self.workers[0] != Worker { life: 0, state: State::Listening };
        steps.extend((self.pooled.is_some() && has_closed).then_some(Step::NoticesClose));
    }

    /// The sidecar has learnt of it, or is about to, and nginx has not: that takes less than the time for which a request waits
    /// for such a word.
    fn has_news_under_way(&self, scene: &Scene, peer: Peer) -> bool {
        let is_of = |(of, _): &(Peer, Fact)| *of == peer;
        let is_on_its_way = self.sidecar.deaths[peer].is_some() || self.sidecar.bus.iter().any(is_of);
        let is_to_be_seen = (0..scene.workers).any(|peer| self.has_news_for_a_look(scene, peer));
        self.sidecar.fate == Fate::Runs && (is_on_its_way || is_to_be_seen || !self.has_told_nginx(scene))
    }

    fn has_news_for_a_look(&self, scene: &Scene, peer: Peer) -> bool {
        let knows = self.sidecar.knows[peer];
        knows.hears(peer, self.look(peer)) != knows && !scene.is_without(Without::Looks)
    }

    fn has_told_nginx(&self, scene: &Scene) -> bool {
        self.sidecar.view == sidecar::view(&self.zone.seen()) && self.plan(scene).is_empty()
    }

    fn pm2_steps(&self, scene: &Scene, steps: &mut Vec<Step>) {
        match self.pm2.job {
            // What it said of the one before has been heard by then.
            None if scene.by == By::Pm2Reload
                && self.pm2.done < scene.workers
                && self.sidecar.bus.is_empty() =>
            {
                steps.push(Step::Announces(self.pm2.done));
            }
            None => {}
            Some((peer, Phase::Announced)) => {
                steps.extend(self.has_had_its_lead(scene, peer).then_some(Step::Signals(peer)));
            }
            Some((peer, Phase::Signalled)) => {
                steps.extend((!self.is_at_work(peer)).then_some(Step::Ends(peer)));
            }
            Some((peer, Phase::Ended)) => steps.push(Step::Starts(peer)),
            Some((_, Phase::Started)) => {}
        }
    }

    /// Between PM2's word and its signal a sidecar that runs has told nginx, and what had begun before has reached the worker.
    fn has_had_its_lead(&self, scene: &Scene, peer: Peer) -> bool {
        let is_needed = scene.by == By::Pm2Reload && self.sidecar.fate == Fate::Runs;
        let has_heard = !self.sidecar.bus.contains(&(peer, Fact::Stopping)) && self.has_told_nginx(scene);
        let is_there = !self.requests.iter().any(|request| request.is_on_its_way_to(peer));
        !is_needed || scene.is_without(Without::Lead) || (has_heard && is_there)
    }

    fn sidecar_steps(&self, scene: &Scene, steps: &mut Vec<Step>) {
        let sidecar = &self.sidecar;
        if sidecar.fate != Fate::Runs {
            return;
        }
        steps.extend((!sidecar.bus.is_empty()).then_some(Step::SidecarHears));
        for peer in 0..scene.workers {
            steps.extend(sidecar.deaths[peer].map(|_| Step::SidecarLearnsOfDeath(peer)));
            steps.extend(self.has_news_for_a_look(scene, peer).then_some(Step::SidecarLooks(peer)));
        }
        steps.extend((sidecar.view != sidecar::view(&self.zone.seen())).then_some(Step::SidecarSeesNginx));
    }

    fn plan(&self, scene: &Scene) -> sidecar::Asked {
        sidecar::plan(&self.sidecar.knows[..scene.workers], self.sidecar.view)
    }

    fn look(&self, peer: Peer) -> Fact {
        let Worker { life, state } = self.workers[peer];
        let status = match self.pm2.job {
            Some((of, Phase::Announced | Phase::Signalled)) if of == peer => Listed::Stopping,
            Some((of, Phase::Ended)) if of == peer => Listed::Stopped,
            Some((of, Phase::Started)) if of == peer => Listed::Launching,
            _ => Listed::Online,
        };
        let life = Some(life).filter(|_| state != State::Dead);
        Fact::Look { life, status, listens: state == State::Listening }
    }

    fn rollout_steps(&self, scene: &Scene, steps: &mut Vec<Step>) {
        let Rollout { fate, turn, stage, is_sending } = self.rollout;
        steps.extend(is_sending.map(Step::MarkArrives));
        if fate != Fate::Runs {
            return;
        }
        let job = self.pm2.job.map(|(_, phase)| phase);
        let listens = job.is_none() && self.workers[turn].state == State::Listening;
        let step = match stage {
            Stage::Begins => {
                let may = scene.is_without(Without::Ack) || self.zone.tell(drain(turn, scene)).is_ok();
                may.then_some(Step::Drains(turn))
            }
            Stage::Drained { .. } => {
                let is_idle = self.in_flight(turn) == 0 || scene.is_without(Without::Idle);
                is_idle.then_some(Step::Fences(turn))
            }
            Stage::Fenced => self.sidecar.bus.is_empty().then_some(Step::AsksPm2(turn)),
            Stage::Stopping => {
                let has_ended = !matches!(job, Some(Phase::Announced | Phase::Signalled));
                has_ended.then_some(Step::SaysStarting(turn))
            }
            Stage::Starting => {
                let is_fit = listens || (scene.is_without(Without::Listens) && job == Some(Phase::Started));
                is_fit.then_some(Step::Lifts(turn))
            }
            Stage::Lifted => (listens && self.zone.seen().serves(turn)).then_some(Step::SeesUp(turn)),
            Stage::Over => None,
        };
        steps.extend(step);
    }

    /// Whose marks nobody renews.
    fn silent(&self) -> [bool; 2] {
        [self.sidecar.fate, self.rollout.fate].map(|fate| fate != Fate::Runs)
    }

    fn may_happen(&self, fault: Fault) -> bool {
        let (sidecar, rollout) = (self.sidecar.fate == Fate::Runs, self.rollout.fate == Fate::Runs);
        match fault {
            Fault::SidecarDies | Fault::SidecarIsRestarted | Fault::SidecarFreezes => sidecar,
            Fault::NoticeIsLate => sidecar && matches!(self.pm2.job, Some((_, Phase::Announced))),
            Fault::WorkerIsKilled => match self.pm2.job {
                Some((peer, Phase::Signalled)) => self.is_at_work(peer),
                _ => false,
            },
            // Between the answer to the fence and PM2's signal nothing can help it: the lease is to be longer than that.
            Fault::RolloutFreezes | Fault::RolloutDies => {
                rollout && !matches!(self.rollout.stage, Stage::Fenced | Stage::Over)
            }
            // The same.
            Fault::NginxRestarts => {
                self.rollout.stage != Stage::Fenced
                    && !matches!(self.pm2.job, Some((_, Phase::Announced | Phase::Signalled)))
            }
            Fault::NginxWorkerDies => self.requests.iter().step_by(2).any(Request::is_under_way),
        }
    }

    // --- what a step changes

    pub fn take(&mut self, scene: &Scene, step: Step) {
        match step {
            Step::Chooses(request, peer) => self.chooses(scene, request, peer),
            Step::ClaimsLate(request, peer) => self.claims_late(scene, request, peer),
            Step::IsTaken(at) => {
                let request = &mut self.requests[at];
                let At::Sent(peer, life) = request.at else { unreachable!() };
                request.executed += u8::from(scene.requests[at] == Method::Post);
                request.at = At::Taken(peer, life);
            }
            Step::IsAnswered(request) => {
                let At::Taken(peer, _) = self.requests[request].at else { unreachable!() };
                if self.zone.seen().is_missed(peer) {
                    self.tell(Command::Answers(peer));
                }
                self.requests[request].ends(At::Answered);
            }
            Step::Fails(request) => self.fails(scene, request),
            Step::GoesOn(request) => self.goes_on(request),
            Step::RestEnds(request, is_over) => {
                let At::Resting(peer) = self.requests[request].at else { unreachable!() };
                let verdict: Verdict = self.look_again(scene, request, peer, is_over).unwrap();
                self.settles(scene, request, verdict);
            }
            Step::NoticesClose => self.pooled = None,
            Step::Announces(peer) => self.announces(peer),
            Step::Signals(peer) => self.signals(peer),
            Step::Ends(peer) => self.ends(peer),
            Step::Starts(peer) => {
                let life = self.workers[peer].life + 1;
                self.workers[peer] = Worker { life, state: State::Booting };
                self.pm2.job = Some((peer, Phase::Started));
                self.says(peer, Fact::Starting);
            }
            Step::Listens(peer) => {
                self.workers[peer].state = State::Listening;
                self.pm2.job = None;
                self.pm2.done += 1;
                self.says(peer, Fact::Ready);
            }
            Step::SidecarHears
            | Step::SidecarLearnsOfDeath(_)
            | Step::SidecarLooks(_)
            | Step::SidecarSeesNginx
            | Step::StaysUp(_)
            | Step::SidecarIsBack => {
                self.sidecar_learns(scene, step);
                self.reconcile(scene);
            }
            Step::Drains(_) | Step::MarkArrives(_) | Step::Fences(_) | Step::AsksPm2(_) => {
                self.towards_the_stop(scene, step)
            }
            Step::SaysStarting(peer) => {
                self.marks(peer, Says::Checking);
                self.rollout.stage = Stage::Starting;
            }
            Step::Lifts(peer) => {
                self.marks(peer, Says::Up);
                self.rollout.stage = Stage::Lifted;
            }
            Step::SeesUp(peer) => {
                let is_last = peer + 1 == scene.workers;
                self.rollout.stage = if is_last { Stage::Over } else { Stage::Begins };
                self.rollout.turn = if is_last { peer } else { peer + 1 };
            }
            Step::RolloutThaws => self.rollout.fate = Fate::Runs,
            Step::TimePasses => {
                // After 3 s a mark lapses where nobody is up, after 10 s anywhere.
                let of = self.silent();
                let fresh = |mark: &Mark| mark.left > 7000;
                let marks = self.zone.seen().marks;
                let of_silent = marks.iter().flat_map(|marks| marks.iter().zip(of));
                let mut of_silent = of_silent.filter_map(|(mark, is_silent)| mark.filter(|_| is_silent));
                let millis = if of_silent.any(|mark| fresh(&mark)) { 3000 } else { 7000 };
                self.tell(Command::Silence { of, millis });
            }
            Step::Happens(fault) => self.happens(scene, fault),
            Step::NothingIsLeft => self.is_over = true,
        }
    }

    pub(crate) fn tell(&mut self, command: Command) {
        let (zone, change) = self.zone.tell(command).unwrap();
        self.zone = zone;
        for request in &mut self.requests {
            request.has_news |= change.is_news && request.is_under_way();
            request.is_replaced |= request.connected().is_some_and(|peer| change.retires[peer]);
        }
        self.pooled = self.pooled.map(|is_retired| is_retired || change.retires[0]);
    }

    fn announces(&mut self, peer: Peer) {
        self.pm2.job = Some((peer, Phase::Announced));
        self.says(peer, Fact::Stopping);
    }

    fn signals(&mut self, peer: Peer) {
        self.pm2.job = Some((peer, Phase::Signalled));
        self.workers[peer].state = State::Closing;
        self.resets(peer, false);
    }

    fn ends(&mut self, peer: Peer) {
        self.workers[peer].state = State::Dead;
        self.pm2.job = Some((peer, Phase::Ended));
        // A pidfd tells it also to who slept.
        if matches!(self.sidecar.fate, Fate::Runs | Fate::Frozen) {
            self.sidecar.deaths[peer] = Some(self.workers[peer].life);
        }
    }

    /// On its bus. What nobody hears now, nobody will.
    fn says(&mut self, peer: Peer, fact: Fact) {
        if self.sidecar.fate == Fate::Runs {
            self.sidecar.bus.push((peer, fact));
        }
    }

    fn learns(&mut self, peer: Peer, fact: Fact) {
        self.sidecar.knows[peer] = self.sidecar.knows[peer].hears(peer, fact);
    }

    fn sidecar_learns(&mut self, scene: &Scene, step: Step) {
        match step {
            Step::SidecarHears => {
                let (peer, fact) = self.sidecar.bus.remove(0);
                self.learns(peer, fact);
                if fact == Fact::Starting && scene.is_without(Without::Listens) {
                    let life = Some(self.workers[peer].life);
                    self.learns(peer, Fact::Look { life, status: Listed::Online, listens: true });
                }
            }
            Step::SidecarLearnsOfDeath(peer) => {
                let life = self.sidecar.deaths[peer].take().unwrap();
                self.learns(peer, Fact::Died(life));
            }
            Step::SidecarLooks(peer) => self.learns(peer, self.look(peer)),
            Step::SidecarSeesNginx => self.sidecar.view = sidecar::view(&self.zone.seen()),
            Step::StaysUp(peer) => self.learns(peer, Fact::StayedUp),
            Step::SidecarIsBack => self.sidecar_is_back(),
            _ => unreachable!(),
        }
    }

    /// After anything that comes in it asks nginx for what differs, and hears nothing else until that is answered.
    fn reconcile(&mut self, scene: &Scene) {
        let mut marks = self.plan(scene);
        if marks.is_empty() {
            return;
        }
        if scene.is_without(Without::Expect) {
            marks.iter_mut().for_each(|(_, _, expect)| *expect = Expect::Gone);
        }
        self.tell(Command::Mark { owner: Owner::Sidecar, marks, force: false });
        self.sidecar.view = sidecar::view(&self.zone.seen());
    }

    fn sidecar_is_back(&mut self) {
        if self.sidecar.fate == Fate::Away {
            self.sidecar.knows = [Knows::nothing(); PEERS];
            self.sidecar.deaths = [None; PEERS];
            self.sidecar.view = sidecar::view(&self.zone.seen());
        }
        self.sidecar.fate = Fate::Runs;
    }

    fn towards_the_stop(&mut self, scene: &Scene, step: Step) {
        match step {
            Step::Drains(peer) if scene.is_without(Without::Ack) => {
                self.rollout.is_sending = Some(peer);
                self.rollout.stage = Stage::Fenced;
            }
            Step::Drains(peer) => {
                self.tell(drain(peer, scene));
                let mark = self.zone.seen().mark(peer, Owner::Rollout).unwrap();
                self.rollout.stage = Stage::Drained { epoch: mark.epoch, instance: self.instance };
            }
            Step::MarkArrives(peer) => {
                // Or it is refused, and nobody has waited for that either.
                if self.zone.tell(drain(peer, scene)).is_ok() {
                    self.tell(drain(peer, scene));
                }
                self.rollout.is_sending = None;
            }
            Step::Fences(peer) => {
                let Stage::Drained { epoch, instance } = self.rollout.stage else { unreachable!() };
                let renewed = self.zone.tell(Command::Renew { owner: Owner::Rollout, peer, epoch });
                let is_unbroken = renewed.is_ok() && instance == self.instance;
                self.zone = renewed.map_or(self.zone, |(zone, _)| zone);
                let goes_on = is_unbroken || scene.is_without(Without::Fence);
                self.rollout.stage = if goes_on { Stage::Fenced } else { Stage::Begins };
            }
            Step::AsksPm2(peer) => {
                self.stopped_in_use |= self.in_flight(peer) > 0 || self.zone.seen().serves(peer);
                self.rollout.stage = Stage::Stopping;
                self.announces(peer);
            }
            _ => unreachable!(),
        }
    }

    fn marks(&mut self, peer: Peer, state: Says) {
        let marks = vec![(peer, state, Expect::Back)];
        self.tell(Command::Mark { owner: Owner::Rollout, marks, force: true });
    }

    fn happens(&mut self, scene: &Scene, fault: Fault) {
        self.faults += 1;
        match fault {
            Fault::SidecarDies => self.sidecar.fate = Fate::Dead,
            Fault::SidecarIsRestarted => self.sidecar.fate = Fate::Away,
            Fault::SidecarFreezes => self.sidecar.fate = Fate::Frozen,
            Fault::NoticeIsLate => {
                let Some((peer, _)) = self.pm2.job else { unreachable!() };
                self.signals(peer);
            }
            Fault::WorkerIsKilled => {
                let Some((peer, _)) = self.pm2.job else { unreachable!() };
                self.resets(peer, true);
                self.ends(peer);
            }
            Fault::RolloutDies => self.rollout.fate = Fate::Dead,
            Fault::RolloutFreezes => self.rollout.fate = Fate::Frozen,
            Fault::NginxRestarts => {
                self.zone = Zone::new(scene.workers);
                self.instance += 1;
                self.pooled = None;
                self.lose(0, 1, false);
            }
            Fault::NginxWorkerDies => self.lose(0, 2, scene.is_without(Without::Rows)),
        }
        if self.sidecar.fate != Fate::Runs {
            // What it had not heard it will not hear: a notice that is old is none.
            self.sidecar.bus.clear();
        }
    }

    /// Their nginx process is gone.
    fn lose(&mut self, first: usize, each: usize, keeps_counting: bool) {
        for request in
            self.requests.iter_mut().skip(first).step_by(each).filter(|request| request.is_under_way())
        {
            let counted = (0..PEERS).find(|&peer| request.is_counted_at(peer));
            request.at = At::Lost(counted.filter(|_| keeps_counting));
        }
    }
}

/// Nobody else serves where there is one worker: whoever comes waits.
fn drain(peer: Peer, scene: &Scene) -> Command {
    let marks = vec![(peer, Says::Draining, Expect::Back)];
    Command::Mark { owner: Owner::Rollout, marks, force: scene.workers == 1 }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Chooses(request, peer) => {
                write!(f, "request {request}: the balancer chooses worker {peer}")
            }
            Self::ClaimsLate(request, peer) => {
                write!(f, "request {request} is counted at worker {peer}, and goes there")
            }
            Self::IsTaken(request) => write!(f, "request {request}: the worker begins with it"),
            Self::IsAnswered(request) => write!(f, "request {request} is answered"),
            Self::Fails(request) => write!(f, "request {request}: nginx sees that its connection broke"),
            Self::GoesOn(request) => write!(f, "request {request} waits no more"),
            Self::RestEnds(request, false) => write!(f, "request {request}: there is news of its worker"),
            Self::RestEnds(request, true) => write!(f, "request {request}: there was no news of its worker"),
            Self::NoticesClose => write!(f, "nginx sees that its idle connection to worker 0 was closed"),
            Self::Announces(peer) => write!(f, "PM2 says that it stops worker {peer}"),
            Self::Signals(peer) => write!(f, "PM2 signals worker {peer}, which closes its port"),
            Self::Ends(peer) => write!(f, "worker {peer} ends"),
            Self::Starts(peer) => write!(f, "PM2 starts worker {peer}"),
            Self::Listens(peer) => write!(f, "worker {peer} listens, and says `ready`"),
            Self::SidecarHears => write!(f, "the sidecar hears what PM2 said"),
            Self::SidecarLearnsOfDeath(peer) => write!(f, "the sidecar learns that worker {peer} has ended"),
            Self::SidecarLooks(peer) => write!(f, "the sidecar looks at worker {peer}"),
            Self::SidecarSeesNginx => write!(f, "the sidecar reads what nginx has"),
            Self::StaysUp(peer) => {
                write!(f, "worker {peer} has stayed up for as long as the sidecar wants after a death")
            }
            Self::SidecarIsBack => write!(f, "the sidecar is back"),
            Self::Drains(peer) => write!(f, "the roll-out drains worker {peer}"),
            Self::MarkArrives(peer) => write!(f, "the mark on worker {peer} reaches nginx"),
            Self::Fences(peer) => {
                write!(f, "the roll-out finds nothing in flight at worker {peer}, and asks for the fence")
            }
            Self::AsksPm2(peer) => write!(f, "the roll-out asks PM2 to replace worker {peer}"),
            Self::SaysStarting(peer) => write!(f, "the roll-out says that worker {peer} is starting"),
            Self::Lifts(peer) => write!(f, "the roll-out lifts its mark from worker {peer}"),
            Self::SeesUp(peer) => write!(f, "the roll-out sees worker {peer} up"),
            Self::RolloutThaws => write!(f, "the roll-out goes on"),
            Self::TimePasses => write!(f, "seconds pass, and a lease with them"),
            Self::Happens(fault) => write!(f, "{fault}"),
            Self::NothingIsLeft => write!(f, "nothing is left to happen"),
        }
    }
}
