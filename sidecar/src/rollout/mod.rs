//! The safe reload: one worker after the other is replaced, and nobody notices.
//!
//! 1. The roll-out takes its [`lock`], and PM2's. It makes a [`plan`], and refuses what would not be safe.
//! 2. It [observes](world) PM2 and this host, and keeps its [`marks`] in nginx alive.
//! 3. The first worker has its [turn](replace), alone: a broken release meets it and nobody else. Then the others. For the
//!    only worker of an app another one [stands in](stand_in) meanwhile, where its upstream has a [port to spare](spare). In
//!    cluster mode a [canary] comes before them, and each worker has a [successor](succession).
//! 4. In the end all is as it was: as many workers, with the same numbers, instances and ports. Or it says what is not.
//!
//! It lives in the process that the operator started. When that is killed its marks run out and nothing more is stopped;
//! PM2 finishes what it was asked to do. Whatever else happens pulls the [`brake`].

pub mod abandoned;
pub mod arrival;
pub mod brake;
pub mod canary;
pub mod cluster;
pub mod counts;
pub mod event;
pub mod fitness;
pub mod grip;
pub mod health;
pub mod lock;
pub mod logs;
pub mod marks;
pub mod newcomer;
pub mod notes;
pub mod outcome;
pub mod parting;
pub mod plan;
pub mod reach;
pub mod replace;
pub mod spare;
pub mod stand_in;
pub mod stop;
pub mod stray;
pub mod succession;
pub mod surplus;
pub mod teller;
pub mod toll;
pub mod verdict;
pub mod window;
pub mod world;

pub use outcome::Outcome;
pub use plan::Plan;
pub use stop::{Broken, How, Stop};

use crate::{
    config::Override,
    control::{Address, Control},
    manager::Manager,
    orphans,
    peer::Peer,
    pm2::{PmId, home::Home, monitor::Status, orders::Sealed},
    report::{self, WorkerReport},
};
use brake::{Brake, Halt};
use canary::Canary;
use cluster::Cluster;
use event::{End, Event, What};
use grip::{Grip, KILL_GRACE, Said, Shared};
use handoff_wire::{Owner, Span};
use marks::Marks;
use notes::Notes;
use plan::{Planned, Relief, Surroundings};
use replace::Turn;
use stand_in::StandIn;
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};
use succession::Succession;
use teller::Teller;
use tokio::{
    sync::mpsc::{UnboundedSender, unbounded_channel},
    task::JoinSet,
    time,
};
use window::Window;
use world::{Hands, Observer, World, WorldError, Worlds};

/// How carefully.
#[derive(Clone, Debug)]
pub struct Options {
    pub drain_timeout: Span,
    pub on_deadline: OnDeadline,
    pub start_timeout: Span,
    pub health: Option<health::Path>,
    pub health_passes: u32,
    pub health_timeout: Span,
    /// None: as long as it needs to be seen that it answers users well.
    pub watch: Option<Span>,
    pub parallel: usize,
    pub force: bool,
    pub uncovered_ok: bool,
}

/// What becomes of requests that take longer than the drain timeout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum OnDeadline {
    /// The worker serves again, and the roll-out ends
    Stop,
    /// They are waited for, however long
    Wait,
    /// They are cut, and counted
    Cut,
}

/// Where it happens.
#[derive(Clone, Debug)]
pub struct Site {
    /// Where PM2 is at home; of another process manager, where a roll-out may keep its lock.
    pub home: Home,
    pub manager: Arc<dyn Manager>,
    pub control: Address,
    pub overrides: Vec<Override>,
}

/// What is asked for.
#[derive(Debug)]
pub struct Order {
    pub app: String,
    /// Only these workers.
    pub only: Option<BTreeSet<PmId>>,
    /// What PM2 is given for each worker's environment.
    pub env: BTreeMap<PmId, Sealed>,
    /// What one more worker would be with that.
    pub surplus: Option<Sealed>,
}

/// One roll-out of one app.
#[derive(Debug)]
pub struct Rollout {
    order: Order,
    site: Site,
    options: Options,
    owner: Owner,
    brake: Brake,
    hands: Hands,
    worlds: Worlds,
    plan: Plan,
    /// Those who look and those who renew, for as long as this lives.
    _tasks: JoinSet<()>,
}

impl Rollout {
    /// Looks, and plans. Nothing is changed.
    pub async fn prepare(order: Order, site: Site, options: Options, brake: Brake) -> Result<Self, Stop> {
        let mut control = Control::new(site.control.clone());
        let (overview, upstreams) = (control.overview().await?, control.upstreams().await?);
        let peers: BTreeSet<Peer> = upstreams
            .upstreams
            .iter()
            .flat_map(|up| up.peers.iter().map(|peer| Peer::new(&up.name, &peer.address)))
            .collect();
        let mut tasks = JoinSet::new();
        let hands = Hands::default();
        let both = (hands.clone(), brake.clone());
        let worlds = Observer::start(&site, &order.app, peers, both, &mut tasks).await?;
        let reported: Vec<WorkerReport> =
            report::live(&site.home).flat_map(|report| report.workers).collect();
        let reported = || reported.iter().filter(|worker| worker.app == order.app);
        let remembered =
            reported().map(|worker| (worker.id, worker.peers.iter().cloned().collect())).collect();
        let preloads = reported().filter(|worker| worker.preload).map(|worker| worker.id).collect();
        let world = worlds.borrow().clone().ok_or_else(|| Stop::Lost("PM2 lists no workers".to_owned()))?;
        let left = Notes::of(&site.home).get(&order.app).and_then(|note| note.find(world.listed.iter()));
        let around = Surroundings {
            overview: &overview,
            upstreams: &upstreams,
            remembered: &remembered,
            preloads: &preloads,
            left,
        };
        let chosen = |id| order.only.as_ref().is_none_or(|only| only.contains(&id));
        let plan = Plan::make(&order.app, &world, chosen, around, &options)
            .map_err(|reasons| Stop::Refused(reasons.join("\n")))?;
        let owner = owner(&order.app)?;
        Ok(Self { order, site, options, owner, brake, hands, worlds, plan, _tasks: tasks })
    }

    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Does it. Every event is sent before this comes back.
    pub async fn run(mut self, events: &UnboundedSender<Event>) -> Outcome {
        let began = Instant::now();
        let tell = Teller { app: self.order.app.clone(), events: events.clone() };
        tell.tell(What::Begin { workers: self.plan.turns.iter().map(|turn| turn.id).collect() });
        self.plan.caution().into_iter().for_each(|text| tell.tell(What::Note { text }));
        self._tasks.spawn(marks::keep_alive(self.site.control.clone(), self.owner.clone()));
        let (steps, mut said) = unbounded_channel();
        let before = self.worlds.borrow().clone();
        let mut outcome = {
            let brake = self.brake.clone();
            let turns = self.all(steps);
            tokio::pin!(turns);
            let mut is_pulled = false;
            loop {
                tokio::select! {
                    biased;
                    Some(said) = said.recv() => tell.said(said),
                    outcome = &mut turns => break outcome,
                    halt = brake.wait(), if !is_pulled => {
                        is_pulled = true;
                        tell.halt(&halt);
                    }
                }
            }
        };
        tell.rest(&mut said);
        if outcome.stop.is_none() {
            outcome.stop = before.and_then(|before| self.moved(&before)).map(Stop::Foreign);
        }
        let text = outcome.text(&self.plan);
        let seconds = (began.elapsed().as_secs_f64() * 1000.0).round() / 1000.0;
        let exit = outcome.exit() as u8;
        tell.tell(What::End(End {
            exit,
            seconds,
            replaced: outcome.replaced.clone(),
            cut: outcome.cut,
            text,
        }));
        outcome
    }

    async fn all(&mut self, steps: UnboundedSender<(PmId, Said)>) -> Outcome {
        // Whoever comes waits: that is what is done about it.
        let force = self.options.force || matches!(self.plan.relief, Some(Relief::Wait(_)));
        let shared = Arc::new(Shared {
            home: self.site.home.clone(),
            manager: self.site.manager.clone(),
            options: Options { force, ..self.options.clone() },
            worlds: self.worlds.clone(),
            brake: self.brake.clone(),
            preload: report::live(&self.site.home).find_map(|report| report.preload),
            steps,
        });
        match self.plan.cluster.clone() {
            Some(cluster) => self.successions(cluster, shared).await,
            None => self.forks(shared).await,
        }
    }

    /// The turns, and around them somebody who stands in where there is only one.
    async fn forks(&mut self, shared: Arc<Shared>) -> Outcome {
        let mut outcome = Outcome::default();
        let stand_in = match self.stand_in(&shared, &mut outcome).await {
            Ok(stand_in) => stand_in,
            Err(stop) => return Outcome { stop: Some(stop), ..outcome },
        };
        self.turns(stand_in.is_none(), shared, &mut outcome).await;
        let Some(stand_in) = stand_in else { return outcome };
        // Whatever stopped the turns, it is taken away if it is not needed.
        match self.serve() {
            true => outcome.add_cut(stand_in.leave().await),
            false => stand_in.stay(),
        }
        outcome
    }

    /// Somebody who serves while the only worker is replaced.
    async fn stand_in(
        &mut self,
        shared: &Arc<Shared>,
        outcome: &mut Outcome,
    ) -> Result<Option<StandIn>, Stop> {
        let place = |peers| {
            let reason = format!("handoff reload replaces the only worker of {}", self.order.app);
            Marks::new(self.site.control.clone(), self.owner.clone(), peers, &reason)
        };
        let (app, hands) = (self.order.app.clone(), self.hands.clone());
        if let Some(left) = self.plan.left {
            let grip = Grip::new(&app, left, &hands, shared.clone());
            let peers = grip.seen()?.open;
            let is_needed = !peers.is_empty() && !self.plan.turns.iter().any(|turn| turn.serves);
            let left = StandIn::left(&app, grip, place(peers));
            if is_needed {
                return Ok(Some(left));
            }
            outcome.cut += left.leave().await?;
        }
        let Some(Relief::StandIn(spare)) = self.plan.relief.clone() else { return Ok(None) };
        let model = self.plan.turns.first().map_or(PmId(0), |turn| turn.id);
        let marks = place(spare.peers.clone());
        let settings = self.order.surplus.take();
        let start = stand_in::Start { app, model, spare, settings, hands, shared: shared.clone() };
        start.run(marks).await.map(Some)
    }

    /// Every worker does.
    fn serve(&self) -> bool {
        let Some(world) = self.worlds.borrow().clone() else { return false };
        self.plan.turns.iter().all(|turn| {
            let seen = world.workers.get(&turn.id);
            seen.is_some_and(|seen| {
                seen.listed.status == Status::Online && seen.open.is_superset(&turn.peers)
            })
        })
    }

    /// The canary, then one worker after the other.
    async fn successions(&mut self, cluster: Cluster, shared: Arc<Shared>) -> Outcome {
        let mut outcome = Outcome::default();
        let reason = format!("handoff reload replaces a worker of {}", self.order.app);
        let marks = Marks::new(self.site.control.clone(), self.owner.clone(), cluster.peers.clone(), &reason);
        let mut window = match Window::open(marks).await {
            Ok(window) => window,
            Err(stop) => return Outcome { stop: Some(stop), ..outcome },
        };
        let is_alone = report::live(&self.site.home).next().is_none();
        if is_alone {
            let (control, owner) = (Control::new(self.site.control.clone()), self.owner.clone());
            self._tasks.spawn(abandoned::search(control, owner, self.worlds.clone()));
        }
        if let Err(stop) = self.succeed(cluster, &mut window, &shared, &mut outcome).await {
            outcome.stop = Some(stop);
        }
        if is_alone {
            time::sleep(orphans::LASTS).await;
        }
        if let Err(stop) = window.close().await {
            let text =
                format!("nginx keeps no connection to {} until its mark has lapsed: {stop}", self.order.app);
            _ = shared.steps.send((PmId(0), Said::Note(text)));
        }
        outcome
    }

    async fn succeed(
        &mut self,
        cluster: Cluster,
        window: &mut Window,
        shared: &Arc<Shared>,
        outcome: &mut Outcome,
    ) -> Result<(), Stop> {
        let app = self.order.app.clone();
        let grip = |id: PmId, hands: &Hands| Grip::new(&app, id, hands, shared.clone());
        self.nobody_leaves(cluster.kill_timeout + KILL_GRACE).await?;
        if let Some(left) = self.plan.left {
            outcome.cut += canary::remove_left(grip(left, &self.hands), &app, window).await?;
        }
        let before = window.answers().await?;
        if let Some(halt) = self.brake.pulled() {
            return Err(halt.into());
        }
        if let Some(model) = cluster.model {
            let (hands, surplus) = (self.hands.clone(), self.order.surplus.take());
            let canary = Canary { app: app.clone(), model, surplus, hands, shared: shared.clone() };
            outcome.cut += canary.sing(before, window).await?;
        }
        for Planned { id, serves, .. } in self.plan.turns.clone() {
            let env = self.order.env.remove(&id);
            let succession = Succession { grip: grip(id, &self.hands), serves, env, before };
            outcome.add(Ok(succession.run(window).await?));
        }
        Ok(())
    }

    /// Waits for the processes that an earlier reload has replaced: PM2 refuses to replace a worker a second time before,
    /// or loses sight of one of its processes.
    async fn nobody_leaves(&self, patience: Duration) -> Result<(), Stop> {
        let mut worlds = self.worlds.clone();
        let calm = worlds.wait_for(|world| world.as_ref().is_some_and(|world| world.leavers.is_empty()));
        if time::timeout(patience, calm).await.is_ok() {
            return Ok(());
        }
        let world = self.worlds.borrow().clone();
        let leavers = world.iter().flat_map(|world| world.leavers.iter());
        let pids: Vec<String> = leavers.map(|process| process.pid.to_string()).collect();
        let text = format!(
            "PM2 still ends what an earlier reload has replaced (pid {}); `handoff status` says so if PM2 has forgotten it",
            pids.join(", ")
        );
        Err(Stop::Refused(text))
    }

    /// The first worker alone, then the others.
    async fn turns(&mut self, mut is_first: bool, shared: Arc<Shared>, outcome: &mut Outcome) {
        let mut waiting: VecDeque<Planned> = self.plan.turns.iter().cloned().collect();
        let mut running = JoinSet::new();
        loop {
            let at_once = if outcome.replaced.is_empty() { 1 } else { self.options.parallel };
            while running.len() < at_once && outcome.stop.is_none() {
                if let Some(halt) = self.brake.pulled() {
                    outcome.stop = (!waiting.is_empty() || halt != Halt::Sibling).then(|| halt.into());
                    break;
                }
                let Some(planned) = waiting.pop_front() else { break };
                let turn = self.turn(planned, is_first, shared.clone());
                running.spawn(turn.run());
                is_first = false;
            }
            match running.join_next().await {
                None => return,
                Some(ended) => outcome.add(ended.unwrap_or_else(|error| Err(Stop::Lost(error.to_string())))),
            }
            if outcome.stop.is_some() {
                self.brake.pull(Halt::Sibling);
            }
        }
    }

    fn turn(&mut self, planned: Planned, is_first: bool, shared: Arc<Shared>) -> Turn {
        let grip = Grip::new(&self.order.app, planned.id, &self.hands, shared);
        let reason = format!("handoff reload replaces {}", grip.name);
        Turn {
            marks: Marks::new(self.site.control.clone(), self.owner.clone(), planned.peers, &reason),
            grip,
            serves: planned.serves,
            is_first,
            may_halt: true,
            env: self.order.env.remove(&planned.id),
        }
    }

    /// What is no longer as it was.
    fn moved(&self, before: &World) -> Option<String> {
        let now = self.worlds.borrow().clone()?;
        let app = &self.order.app;
        let is_same = |(id, was): (&PmId, &world::Seen)| {
            let Some(is) = now.workers.get(id) else { return Some(format!("{} is gone", id.of(app))) };
            let (was, is) = (&was.listed.settings, &is.listed.settings);
            let text =
                |what: Option<u64>| what.map_or_else(|| "none".to_owned(), |number| number.to_string());
            let of = |name: &str, was: Option<u64>, is: Option<u64>| {
                (was != is)
                    .then(|| format!("{} has {name} {} instead of {}", id.of(app), text(is), text(was)))
            };
            of("PORT", was.port.map(Into::into), is.port.map(Into::into)).or(of(
                "NODE_APP_INSTANCE",
                was.instance.map(Into::into),
                is.instance.map(Into::into),
            ))
        };
        before.workers.iter().filter(|(id, _)| Some(**id) != self.plan.left).find_map(is_same)
    }
}

/// No two roll-outs have the same owner, so that no one lives on another one's renewals.
fn owner(app: &str) -> Result<Owner, Stop> {
    let plain: String = app.chars().filter(char::is_ascii_alphanumeric).take(16).collect();
    let since = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    let name = format!("rollout:{plain}-{}-{:x}", std::process::id(), since.as_millis());
    name.parse().map_err(|error| Stop::Refused(format!("{name}: {error}")))
}

impl From<WorldError> for Stop {
    fn from(error: WorldError) -> Self {
        match error {
            WorldError::Manager(error) => error.into(),
            error @ WorldError::Deaf(_) => Self::Lost(error.to_string()),
            error @ WorldError::Host(_) => Self::Refused(error.to_string()),
        }
    }
}
