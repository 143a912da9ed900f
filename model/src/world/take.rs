//! What a step changes.

use super::{Fate, Phase, Stage, State, Worker, World, drain};
use crate::{
    Fault, Method, Scene, Without,
    request::At,
    sidecar::{self, Fact, Knows, Listed},
    step::Step,
    zone::{Command, Mark, Owner, PEERS, Peer, Zone},
};
use handoff_core::retry::Verdict;
use handoff_wire::{Expect, State as Says};

impl World {
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
