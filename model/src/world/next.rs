//! Which steps a world may take.

use super::{Fate, Phase, Rollout, Stage, State, Worker, World, drain};
use crate::{
    By, Fault, Scene, Without,
    request::{At, Request},
    sidecar::{self, Fact, Listed},
    step::Step,
    zone::{PEERS, Peer},
};

impl World {
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

    pub(super) fn plan(&self, scene: &Scene) -> sidecar::Asked {
        sidecar::plan(&self.sidecar.knows[..scene.workers], self.sidecar.view)
    }

    pub(super) fn look(&self, peer: Peer) -> Fact {
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
    pub(super) fn silent(&self) -> [bool; 2] {
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
}
