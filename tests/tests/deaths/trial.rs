//! A stage with visitors, on which one thing happens after the other. Each has a window of its own, in which its visits
//! are accounted for.

#![allow(unreachable_pub, reason = "a module of a test is nobody else's")]

use anyhow::{Context, Result};
use e2e::{
    access_log::AccessLog,
    app::{App, Behaviour, Mode},
    clock::Moment,
    command,
    conf::{Conf, Tuning},
    lives::{self, Life},
    load::{Answer, Kind, Load, Visit},
    nginx::{Binary, Nginx},
    orders::Orders,
    peers,
    place::{self, Place},
    pm2::{NEWEST, Pm2},
    ports, process,
    scenario::Setup,
    sidecar::Sidecar,
    wait,
};
use handoff_wire::{PeerState, PeerView, QueueView};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::{fmt, fs, net::SocketAddr, path::PathBuf, time::Duration};

pub const RATE: u32 = 200;
const PATIENCE: Duration = Duration::from_secs(90);
/// So long nothing happens before and after.
const CALM: Duration = Duration::from_millis(500);
/// So many may be with the workers at any time. With more, those who had waited are still in the line before a new worker, of
/// which it has not taken all: if it is stopped now, it resets them.
const USUAL: u64 = 40;
/// How late nginx may hear of what is true already.
const SLACK: Duration = Duration::from_millis(250);

/// Fields are dropped in this order: first those who ask, last those who answer.
pub struct Trial {
    load: Load,
    peers: Option<peers::Watch>,
    lives: lives::Watch,
    sidecar: Option<Sidecar>,
    nginx: Nginx,
    pub pm2: Pm2,
    pub app: App,
    place: Place,
    servers: u16,
    deeds: Vec<Deed>,
}

/// What is to be set up.
pub struct Plan {
    pub setup: Setup,
    pub mode: Mode,
    pub workers: u16,
    /// Servers in nginx's configuration, at the ports from the first worker's on.
    pub servers: u16,
    /// The daemon's environment.
    pub daemon: &'static [(&'static str, &'static str)],
}

/// Something that was done to the workers.
#[derive(Clone, Copy, Debug)]
pub struct Deed {
    pub name: &'static str,
    pub began: Moment,
}

/// All that was seen.
pub struct Findings {
    deeds: Vec<Deed>,
    pub visits: Vec<Visit>,
    pub orders: Orders,
    pub lives: Vec<Life>,
    log: AccessLog,
}

/// What one deed came to.
#[derive(Clone, Debug)]
pub struct Cost {
    pub deed: Deed,
    pub visits: usize,
    pub failed: Vec<Visit>,
    /// How long nobody listened.
    pub nobody: Duration,
}

// === impl Trial ===

impl Trial {
    /// `adapt` may change what the ecosystem file says.
    pub async fn set(plan: &Plan, adapt: impl FnOnce(&Place, &App, &mut Value)) -> Result<Self> {
        let nginx = Binary::find(Some("1.22.1")).await?;
        let place = Place::new()?;
        let row = plan.servers.max(plan.workers);
        let mut app = App::new(Behaviour::Graceful, plan.mode, row, place.path())?;
        let servers = app.addresses();
        app.workers = plan.workers;
        let mut ecosystem = app.ecosystem();
        let preload = place::root().join("tests/tests/deaths/worker.cjs");
        set(&mut ecosystem, "/apps/0/node_args", json!(["-r", preload]));
        adapt(&place, &app, &mut ecosystem);
        let pm2 = Pm2::start_file(NEWEST, &place.pm2_home(), &ecosystem, plan.daemon).await?;
        app.answers().await?;
        let control = place.control_socket();
        let is_handoff = plan.setup == Setup::Handoff;
        let tuning = if is_handoff {
            Tuning::Handoff { module: place::module(&nginx.version)?, control: control.clone() }
        } else if plan.setup == Setup::Tuned {
            Tuning::Tuned
        } else {
            Tuning::Stock
        };
        let conf = Conf { port: ports::row(1)?, servers, tuning, non_idempotent: false };
        let nginx = Nginx::start(&nginx, &place.nginx_prefix(), &conf).await?;
        let sidecar = if is_handoff { Some(Sidecar::start(&place, &app.addresses()).await?) } else { None };
        let peers = sidecar.as_ref().map(|_| peers::Watch::new(&control));
        let lives = lives::Watch::new(&app.lives());
        let load = Load::start(ports::address(nginx.port()), RATE);
        tokio::time::sleep(CALM).await;
        Ok(Self {
            load,
            peers,
            lives,
            sidecar,
            nginx,
            pm2,
            app,
            place,
            servers: plan.servers,
            deeds: Vec::new(),
        })
    }

    /// From now on, what happens is this deed's doing.
    pub fn begin(&mut self, name: &'static str) -> Moment {
        let began = Moment::now();
        self.deeds.push(Deed { name, began });
        began
    }

    // === the sidecar ===

    /// It is gone, without a word.
    pub fn kill_sidecar(&mut self) {
        if let Some(sidecar) = self.sidecar.take() {
            sidecar.kill();
        }
    }

    pub fn signal_sidecar(&self, signal: Signal) {
        if let Some(sidecar) = &self.sidecar {
            process::signal(sidecar.pid(), signal);
        }
    }

    /// As a service manager does, after a while. Comes back when it knows every worker.
    pub async fn start_sidecar(&mut self) -> Result<()> {
        self.sidecar = Some(Sidecar::start(&self.place, &self.app.addresses()).await?);
        Ok(())
    }

    /// Those who wait, and what became of those that did.
    pub async fn queue(&self) -> Result<QueueView> {
        let view = peers::upstreams(&self.place.control_socket()).await?;
        let queue = view.upstreams.into_iter().find_map(|upstream| upstream.queue);
        queue.context("no queue")
    }

    /// Runs PM2's command line; its words are the deed's name.
    pub async fn pm2(&mut self, words: &'static str) -> Result<Moment> {
        let began = self.begin(words);
        let arguments: Vec<&str> = words.split(' ').collect();
        self.pm2.run(&arguments).await?;
        Ok(began)
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.place.file(name)
    }

    pub fn address(&self, worker: u16) -> SocketAddr {
        ports::address(self.app.first_port + worker)
    }

    /// Sends a signal to the process that listens, or listened last, on the port of this worker.
    pub fn signal(&self, worker: u16, signal: Signal) -> Result<()> {
        let port = self.app.first_port + worker;
        let lives = lives::read(&self.app.lives())?;
        let last = lives.iter().rfind(|life| life.port == port && life.listened.is_some());
        process::signal(last.context("nobody listened there")?.worker, signal);
        Ok(())
    }

    /// Sends a signal to every worker.
    pub fn signal_all(&self, signal: Signal) -> Result<()> {
        let lives = lives::read(&self.app.lives())?;
        let living = lives.iter().filter(|life| process::is_alive(life.worker));
        living.for_each(|life| process::signal(life.worker, signal));
        Ok(())
    }

    /// Waits until so many processes that booted since then have listened.
    pub async fn replaced(&self, count: usize, since: Moment) -> Result<()> {
        wait::until("the new workers to listen", PATIENCE, async || {
            let lives = lives::read(&self.app.lives()).ok()?;
            let new = lives.iter().filter(|life| life.booted > since && life.listened.is_some()).count();
            (new >= count).then_some(())
        })
        .await
    }

    /// Waits until nginx holds exactly these peers (in cluster mode there is one, 0) for up, and every other one for down; a spare one, behind which nobody
    /// ever was, may be unavailable. Without Handoff nobody holds anything.
    pub async fn only_up(&self, workers: &[u16]) -> Result<()> {
        let up: Vec<String> = workers.iter().map(|&worker| self.address(worker).to_string()).collect();
        let spare: Vec<String> =
            (self.app.workers..self.servers).map(|worker| self.address(worker).to_string()).collect();
        self.all(&format!("{up:?} and only they to be up"), |peer| match peer.state {
            PeerState::Up => up.contains(&peer.address),
            PeerState::Unavail => up.contains(&peer.address) && spare.contains(&peer.address),
            PeerState::Down => !up.contains(&peer.address),
            _ => false,
        })
        .await
    }

    /// Waits until Handoff holds nobody back but these, who are down. What nginx itself thinks of a peer that died passes
    /// with its `fail_timeout`.
    pub async fn only_down(&self, workers: &[u16]) -> Result<()> {
        let down: Vec<String> = workers.iter().map(|&worker| self.address(worker).to_string()).collect();
        self.all(&format!("{down:?} and only they to be down"), |peer| match peer.state {
            PeerState::Down => down.contains(&peer.address),
            PeerState::Up | PeerState::Unavail => !down.contains(&peer.address) && peer.marks.is_empty(),
            _ => false,
        })
        .await
    }

    /// Waits until nginx holds no more than so many for up.
    pub async fn no_more_than(&self, wanted: usize) -> Result<()> {
        wait::until("most peers not to be up", PATIENCE, async || {
            let up = self.peers().await.ok()?.iter().filter(|peer| peer.state == PeerState::Up).count();
            (up <= wanted).then_some(())
        })
        .await
    }

    async fn all(&self, what: &str, is_right: impl Fn(&PeerView) -> bool) -> Result<()> {
        if self.sidecar.is_none() {
            tokio::time::sleep(CALM).await;
            return Ok(());
        }
        let mut last = Vec::new();
        wait::until(what, PATIENCE, async || {
            last = self.peers().await.ok()?;
            let is_calm = last.iter().map(|peer| peer.in_flight).sum::<u64>() <= USUAL;
            (is_calm && last.iter().all(&is_right)).then_some(())
        })
        .await
        .with_context(|| states(&last))
    }

    pub async fn peers(&self) -> Result<Vec<PeerView>> {
        let view = peers::upstreams(&self.place.control_socket()).await?;
        Ok(view.upstreams.into_iter().flat_map(|upstream| upstream.peers).collect())
    }

    /// Why nginx holds a worker's peer for what it does.
    pub async fn reason(&self, worker: u16) -> Result<String> {
        let address = self.address(worker).to_string();
        let peers = self.peers().await?;
        let peer = peers.iter().find(|peer| peer.address == address).context("no such peer")?;
        Ok(peer.marks.iter().map(|mark| format!("{}: {}", mark.expect.as_str(), mark.reason)).collect())
    }

    /// Waits until nginx has this reason. Without Handoff it has none.
    pub async fn reason_is(&self, worker: u16, wanted: &str) -> Result<()> {
        if self.sidecar.is_none() {
            return Ok(());
        }
        let mut last = String::new();
        wait::until("the reason to be right", PATIENCE, async || {
            last = self.reason(worker).await.ok()?;
            (last == wanted).then_some(())
        })
        .await
        .with_context(|| format!("{last:?}, not {wanted:?}"))
    }

    /// Waits until PM2 has given up so many workers.
    pub async fn given_up(&self, workers: usize) -> Result<()> {
        let log = self.place.pm2_home().join("pm2.log");
        wait::until("PM2 to give up", PATIENCE, async || {
            let given_up = fs::read_to_string(&log).ok()?.matches("had too many unstable restarts").count();
            (given_up >= workers).then_some(())
        })
        .await
    }

    /// What `handoff status` says.
    pub async fn status(&self) -> Result<String> {
        let mut handoff = command::clean(place::handoff()?);
        let control = format!("unix:{}", self.place.control_socket().display());
        handoff.arg("status").env("HANDOFF_CONTROL", control).env("PM2_HOME", self.place.pm2_home());
        handoff.env("HANDOFF_RUNTIME_DIR", self.file("runtime"));
        command::succeed(&mut handoff).await
    }

    /// Ends the load, and takes all down in order.
    pub async fn end(mut self) -> Result<Findings> {
        tokio::time::sleep(CALM).await;
        let mut visits = self.load.all_ended().await;
        visits.extend(self.load.stop().await);
        visits.sort_by_key(|visit| visit.number);
        if let Some(peers) = self.peers {
            peers.finish().await?;
        }
        let lives = self.lives.finish().await?;
        let orders = Orders::read(&self.app.orders())?;
        if let Some(sidecar) = self.sidecar {
            sidecar.stop()?;
        }
        let log = self.nginx.access_log();
        self.nginx.quit().await?;
        Ok(Findings { deeds: self.deeds, visits, orders, lives, log: AccessLog::read(&log)? })
    }
}

/// Changes what is there, or adds it.
pub fn set(ecosystem: &mut Value, pointer: &str, value: Value) {
    let Some((object, name)) = pointer.rsplit_once('/') else { return };
    if let Some(Value::Object(object)) = ecosystem.pointer_mut(object) {
        object.insert(name.to_owned(), value);
    }
}

fn states(peers: &[PeerView]) -> String {
    let state =
        |peer: &PeerView| format!("{} {:?} {} {:?}; ", peer.address, peer.state, peer.in_flight, peer.marks);
    peers.iter().map(state).collect()
}

// === impl Findings ===

impl Findings {
    /// A visit belongs to the last deed that had begun when it was answered.
    pub fn costs(&self) -> Vec<Cost> {
        let ends = self.deeds.iter().skip(1).map(|deed| Some(deed.began)).chain([None]);
        self.deeds.iter().zip(ends).map(|(&deed, end)| self.cost(deed, end)).collect()
    }

    fn cost(&self, deed: Deed, end: Option<Moment>) -> Cost {
        let is_its = |visit: &&Visit| {
            let answered = visit.due + visit.latency;
            answered >= deed.began && end.is_none_or(|end| answered < end)
        };
        let visits: Vec<&Visit> = self.visits.iter().filter(is_its).collect();
        let gaps = lives::gaps(&self.lives)
            .into_iter()
            .filter(|gap| gap.0 >= deed.began && end.is_none_or(|end| gap.0 < end));
        Cost {
            deed,
            visits: visits.len(),
            failed: visits.into_iter().filter(|visit| visit.failed()).cloned().collect(),
            nobody: gaps.map(|(from, to)| to.since(from)).sum(),
        }
    }

    /// The deed during which a visit was answered.
    pub fn deed(&self, visit: &Visit) -> &'static str {
        let answered = visit.due + visit.latency;
        self.deeds.iter().rfind(|deed| deed.began <= answered).map_or("", |deed| deed.name)
    }

    /// No visit failed, and no order was executed twice.
    pub fn nobody_noticed(&self) {
        self.only_failed(|_| false);
    }

    /// Holds everywhere, whatever happened.
    pub fn nothing_twice_and_nothing_hung(&self) {
        assert_eq!(self.orders.executed_twice(), 0, "executed twice");
        let hung = self.visits.iter().filter(|visit| visit.answer == Answer::Hung);
        let hung: Vec<String> = hung.map(|visit| self.story(visit)).collect();
        assert!(hung.is_empty(), "hung: {}", hung.join("\n"));
    }

    /// Every visit that failed is one of these; none hung, and no order was executed twice.
    pub fn only_failed(&self, may: impl Fn(&Visit) -> bool) {
        self.print("Handoff");
        self.nothing_twice_and_nothing_hung();
        for cost in self.costs() {
            let unexplained: Vec<String> =
                cost.failed.iter().filter(|visit| !may(visit)).map(|visit| self.story(visit)).collect();
            assert!(unexplained.is_empty(), "{cost}\n{}", unexplained.join("\n"));
        }
    }

    /// What became of a visit, and who had been at the peer that it came to last.
    fn story(&self, visit: &Visit) -> String {
        let tried = self.log.tried(visit.number);
        let entry = self.log.entry(visit.number);
        let executions = visit.order().map(|order| self.orders.executions(&order).len());
        let there = |life: &&Life| tried.last().is_some_and(|last| last.port() == life.port);
        let lives: Vec<&Life> = self.lives.iter().filter(there).collect();
        format!("{visit:?}: {entry:?}, executions: {executions:?}, whom it came to last: {lives:?}")
    }

    /// An order that was with a worker when this died unasked: it may not be repeated.
    pub fn died_with_its_worker(&self, visit: &Visit) -> bool {
        let Some(last) = self.log.tried(visit.number).last() else { return false };
        let lasted = visit.due - SLACK..=visit.due + visit.latency + SLACK;
        let unasked = self.lives.iter().filter(|life| life.port == last.port() && life.closed.is_none());
        visit.kind == Kind::Order && unasked.filter_map(|life| life.died).any(|died| lasted.contains(&died))
    }

    /// An order that came to a worker that had just begun to listen, with all who had waited, and lay in its backlog when it
    /// was stopped: the kernel resets it, and nginx cannot know that nobody has executed it.
    pub fn lay_before_a_worker_that_closed(&self, visit: &Visit) -> bool {
        let Some(last) = self.log.tried(visit.number).last() else { return false };
        let Some((came, ended)) = self.untouched(visit) else { return false };
        self.lives.iter().any(|life| {
            life.port == last.port()
                && life.listened.is_some_and(|listened| listened <= came + SLACK && came <= listened + SLACK)
                && life.closed.is_some_and(|closed| came <= closed && closed <= ended)
        })
    }

    /// In cluster mode the daemon accepts for all. It closes what it has handed to nobody when the last worker closes: the same.
    pub fn lay_with_a_daemon_that_closed(&self, visit: &Visit) -> bool {
        let Some((came, ended)) = self.untouched(visit) else { return false };
        let mut closed = self.lives.iter().filter_map(|life| life.closed);
        closed.any(|closed| came <= closed && closed <= came + SLACK && closed <= ended)
    }

    /// Of an order that nobody executed: when it came to a peer, and when it ended.
    fn untouched(&self, visit: &Visit) -> Option<(Moment, Moment)> {
        let is_untouched = self.orders.executions(&visit.order()?).is_empty();
        let came = visit.due + self.log.waited(visit.number);
        is_untouched.then_some((came, visit.due + visit.latency))
    }

    pub fn nobody_listened(&self, visit: &Visit) -> bool {
        let (from, to) = (visit.due, visit.due + visit.latency);
        lives::gaps(&self.lives).iter().any(|gap| from <= gap.1 + SLACK && to + SLACK >= gap.0)
    }

    /// For the person at the terminal.
    pub fn print(&self, title: &str) {
        eprintln!("{title}");
        self.costs().iter().for_each(|cost| eprintln!("{cost}"));
    }
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { deed, visits, failed, nobody } = self;
        write!(
            f,
            "{:<40} {visits:>5} visits, {:>4} failed, nobody listened for {nobody:.3?}",
            deed.name,
            failed.len()
        )
    }
}
