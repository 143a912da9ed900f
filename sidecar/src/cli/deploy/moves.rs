//! Moves the workers from one release to another, and watches meanwhile what users meet.

use super::{
    super::work::{Wanted, Work, prepare},
    course::Course,
    trouble::Trouble,
};
use crate::{
    cli::exit::Exit,
    control::Control,
    deploy::{
        event::{Stage, Told, What},
        traffic::{ENOUGH, Verdict},
    },
    host::{Proc, Process},
    pm2::{
        PmId,
        monitor::{Listed, Status},
        orders::Prepare,
    },
    rollout::{
        OnDeadline, Options, Outcome, Plan, Rollout,
        brake::{Brake, Halt},
        event::{Event, Step, What as Said},
        plan::Relief,
    },
};
use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};
use tokio::{sync::mpsc::unbounded_channel, time};

/// How often nginx is asked what it has counted.
pub(super) const LOOK: Duration = Duration::from_millis(500);
/// How long the old release is watched at most, if it has too few answers to be compared with.
const MEASURE: Duration = Duration::from_secs(10);

impl Course<'_> {
    /// Reads nginx's counters.
    pub(super) async fn look(&mut self) {
        let mut control = Control::new(self.context.control.clone());
        match control.upstreams().await {
            Ok(upstreams) => self.tally.read(&upstreams),
            // What it has counted is read the next time.
            Err(error) => tracing::debug!("nginx does not say what it has counted: {error}"),
        }
        self.voice.tell(What::Traffic { old: self.tally.old, new: self.tally.new });
    }

    pub(super) fn verdict(&self) -> Verdict {
        self.limits.judge(&self.tally.new, &self.tally.old)
    }

    /// Sees to it that there is something to compare with.
    pub(super) async fn measured(&mut self, signals: Option<&Brake>) -> Result<(), Trouble> {
        let voice = self.voice.clone();
        let until = Instant::now() + MEASURE;
        let measure = async {
            loop {
                self.look().await;
                let old = self.tally.old;
                if old.answers.all >= ENOUGH {
                    return Ok(format!("the old release: {old}"));
                }
                if Instant::now() >= until {
                    return Ok(format!(
                        "the old release: {old}, too few to compare with ({ENOUGH} are enough)"
                    ));
                }
                time::sleep(LOOK).await;
            }
        };
        voice.stage(Stage::Measure, signals, measure).await
    }

    /// The roll-out, planned.
    pub(super) async fn prepared(
        &self,
        only: Option<BTreeSet<PmId>>,
        brake: Brake,
        options: Options,
        is_switched: bool,
    ) -> Result<Rollout, super::Failure> {
        let (mut rollout, _) = self.collected(only, brake, options, is_switched).await?;
        rollout.pop().ok_or_else(|| {
            super::Failure::new(Exit::UnknownTarget, format!("PM2 does not know {} any more", self.app))
        })
    }

    /// And the apps that are to be started.
    async fn collected(
        &self,
        only: Option<BTreeSet<PmId>>,
        brake: Brake,
        options: Options,
        is_switched: bool,
    ) -> Result<(Vec<Rollout>, Vec<Prepare>), super::Failure> {
        // Only what the link leads to has the right file.
        let file = self.settings.ecosystem.as_ref().filter(|_| is_switched);
        let file = file.map(|file| self.ground.through().join(file).display().to_string());
        let targets = [file.clone().unwrap_or_else(|| self.app.clone())];
        let env = self.settings.env.as_deref().filter(|_| file.is_some());
        let only_app = file.is_some().then_some(self.app.as_str());
        let wanted = Wanted { targets: &targets, only: only_app, env, update_env: false };
        let work = Work::collect(self.context, &wanted).await?;
        work.warnings.iter().for_each(|warning| self.voice.note(format!("PM2: {warning}")));
        let mut rollouts = Vec::new();
        for mut order in work.orders {
            order.only.clone_from(&only);
            let site = self.context.site(&work.home);
            rollouts.push(Rollout::prepare(order, site, options.clone(), brake.clone()).await?);
        }
        Ok((rollouts, work.prepare))
    }

    /// Every worker is replaced, unless users are served worse.
    pub(super) async fn replaced(&mut self, heeded: &[&Brake]) -> Result<String, Trouble> {
        let brake = Brake::default();
        let (rollouts, apps) = self.collected(None, brake.clone(), self.options.clone(), true).await?;
        if !apps.is_empty() {
            prepare(&self.home, apps).await?;
            return Ok(format!("{} was started", self.app));
        }
        let mut number = 0;
        for rollout in rollouts {
            let outcome = self.rolled(rollout, brake.clone(), heeded, true).await;
            number += outcome.replaced.len();
            self.cut += outcome.cut;
            if let Some(stop) = outcome.stop {
                return Err(stop.into());
            }
        }
        Ok(if number == 1 { "1 worker is new".to_owned() } else { format!("{number} workers are new") })
    }

    /// Every worker whose process is not one of these is replaced by one of the release that the link leads to now. Returns how
    /// many.
    pub(super) async fn moved_back(&mut self, to: &str, old: &[Process]) -> Result<usize, Trouble> {
        let process = |worker: &Listed| Process::find(&Proc::default(), worker.pid?);
        let is_old = |worker: &Listed| process(worker).is_some_and(|process| old.contains(&process));
        let workers = self.listed().await?;
        let new: BTreeSet<PmId> =
            workers.iter().filter(|worker| !is_old(worker)).map(|worker| worker.id).collect();
        let gone: Vec<Process> =
            workers.iter().filter(|worker| !is_old(worker)).filter_map(process).collect();
        if !new.is_empty() {
            // A release that serves users badly is not waited for without end.
            let options = Options { on_deadline: OnDeadline::Cut, watch: None, ..self.options.clone() };
            let brake = Brake::default();
            let (rollouts, _) = self.collected(Some(new.clone()), brake.clone(), options, true).await?;
            for rollout in rollouts {
                let outcome = self.rolled(rollout, brake.clone(), &[], false).await;
                self.cut += outcome.cut;
                if let Some(stop) = outcome.stop {
                    return Err(stop.into());
                }
            }
        }
        // It is looked at again: what was asked for is not what is.
        for worker in self.listed().await? {
            let (app, id) = (&worker.app, worker.id);
            let process = process(&worker).filter(|_| worker.status == Status::Online);
            let Some(process) = process else {
                return Err(Trouble::new(Exit::Mixed, format!("{app}:{id} is {}", worker.status)));
            };
            let runs = self.ground.release_of(process).filter(|_| !self.ground.is_in_place());
            if gone.contains(&process) || runs.is_some_and(|runs| runs != to) {
                return Err(Trouble::new(Exit::Mixed, format!("{app}:{id} still runs the new release")));
            }
        }
        Ok(new.len())
    }

    /// Whoever pulls one of the heeded brakes ends it. `is_new`: what it brings out is watched.
    async fn rolled(&mut self, rollout: Rollout, brake: Brake, heeded: &[&Brake], is_new: bool) -> Outcome {
        let plan = rollout.plan().clone();
        let (events, mut told) = unbounded_channel::<Event>();
        let run = rollout.run(&events);
        tokio::pin!(run);
        let mut look = time::interval(LOOK);
        look.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
        let (signals, guard) = (heeded.first().copied(), heeded.get(1).copied());
        let mut is_pulled = false;
        let outcome = loop {
            tokio::select! {
                biased;
                Some(event) = told.recv() => {
                    if is_new {
                        self.hear(&event, &plan).await;
                    }
                    self.voice.pass_on(Told::Rollout(event));
                }
                outcome = &mut run => break outcome,
                halt = pulled(signals), if !is_pulled => {
                    is_pulled = true;
                    brake.pull(halt);
                }
                halt = pulled(guard), if !is_pulled => {
                    is_pulled = true;
                    brake.pull(halt);
                }
                _ = look.tick(), if is_new => {
                    self.look().await;
                    if let Verdict::Worse(how, text) = self.verdict() {
                        brake.pull(Halt::Worse(how, text));
                    }
                }
            }
        };
        while let Ok(event) = told.try_recv() {
            self.voice.pass_on(Told::Rollout(event));
        }
        outcome
    }

    /// From the moment when a worker's new process starts, what its peers answer is the new release's.
    async fn hear(&mut self, event: &Event, plan: &Plan) {
        let Said::Step { worker, step: Step::Starting } = event.what else { return };
        self.look().await;
        let own = plan.turns.iter().find(|turn| turn.id == worker).map(|turn| turn.peers.clone());
        let peers = own.unwrap_or_else(|| match (&plan.relief, &plan.cluster) {
            (Some(Relief::StandIn(spare)), _) => spare.peers.clone(),
            (_, Some(cluster)) => cluster.peers.clone(),
            _ => BTreeSet::new(),
        });
        self.tally.are_new(&peers);
    }
}

async fn pulled(brake: Option<&Brake>) -> Halt {
    match brake {
        Some(brake) => brake.wait().await,
        None => std::future::pending().await,
    }
}
