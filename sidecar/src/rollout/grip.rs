//! A worker that a roll-out has in hand: how it is, what is asked of PM2 for it, and what is said of it.

use super::{
    Options,
    brake::{Brake, Halt},
    event::Step,
    logs::{Logs, MOST_LINES},
    stop::{Broken, How, Role, Stop},
    stray::Strays,
    world::{Hands, InHand, Seen, World, Worlds},
};
use crate::{
    manager::{Manager, ManagerError},
    pm2::{
        PmId,
        home::Home,
        monitor::{LISTEN_TIMEOUT, Status},
        orders::Sealed,
        rpc::RpcError,
    },
    preload::workers::kill_timeout,
};
use std::{
    future::Future,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{sync::mpsc::UnboundedSender, task::JoinHandle, time};

#[derive(Debug)]
pub struct Grip {
    pub id: PmId,
    pub name: String,
    pub in_hand: InHand,
    pub shared: Arc<Shared>,
    /// Since when it is in hand.
    since: Instant,
}

/// What all turns of one roll-out have in common.
#[derive(Debug)]
pub struct Shared {
    pub home: Home,
    pub manager: Arc<dyn Manager>,
    pub options: Options,
    pub worlds: Worlds,
    pub brake: Brake,
    /// Where the sidecar hears preloads, and passes on to them what is wanted.
    pub preload: Option<PathBuf>,
    pub steps: UnboundedSender<(PmId, Said)>,
}

/// What a turn has to say.
#[derive(Debug)]
pub enum Said {
    Step(Step),
    Note(String),
}

/// The process manager, at work.
#[derive(Debug)]
pub struct Call<T = ()> {
    task: Option<JoinHandle<Result<T, ManagerError>>>,
    answer: Option<T>,
}

/// How much longer than its kill_timeout PM2 may need to end a process.
pub const KILL_GRACE: Duration = Duration::from_secs(15);
/// How much longer than its listen_timeout PM2 may need to say that it waits no longer.
const READY_GRACE: Duration = Duration::from_secs(2);
const LOOK_PAUSE: Duration = Duration::from_millis(100);

// === impl Grip ===

impl Grip {
    pub fn new(app: &str, id: PmId, hands: &Hands, shared: Arc<Shared>) -> Self {
        Self {
            id,
            name: shared.manager.name(app, id),
            in_hand: hands.take(id),
            shared,
            since: Instant::now(),
        }
    }

    // --- looking

    pub fn options(&self) -> &Options {
        &self.shared.options
    }

    /// What it is called.
    pub fn manager(&self) -> &'static str {
        self.shared.manager.called()
    }

    pub fn world(&self) -> Result<Arc<World>, Stop> {
        self.shared.worlds.borrow().clone().ok_or(Stop::Pm2(RpcError::Closed))
    }

    pub fn seen(&self) -> Result<Seen, Stop> {
        let world = self.world()?;
        let seen = world.workers.get(&self.id).cloned();
        seen.ok_or_else(|| Stop::Foreign(format!("{} was deleted", self.name)))
    }

    pub async fn next_look(&self) -> Result<(), Stop> {
        let mut worlds = self.shared.worlds.clone();
        worlds.mark_unchanged();
        tokio::select! {
            changed = worlds.changed() => changed.map_err(|_| self.gone()),
            () = time::sleep(LOOK_PAUSE) => Ok(()),
        }
    }

    pub async fn fresh_look(&self) -> Result<(), Stop> {
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

    pub fn go_on(&self) -> Result<(), Stop> {
        self.shared.brake.pulled().map_or(Ok(()), |halt| Err(halt.into()))
    }

    // --- asking the process manager

    /// Its process is to be replaced.
    pub fn reload(&self, was: &Seen, env: Option<Sealed>) -> Call {
        if matches!(was.listed.status, Status::Online | Status::Launching) {
            self.in_hand.expect_stop();
        }
        let (manager, id) = (self.shared.manager.clone(), self.id);
        Call::begin(async move { manager.replace(id, env).await })
    }

    /// PM2 is asked to stop it. That it has, is to be seen.
    pub fn begin_to_stop(&self) -> Call {
        self.in_hand.expect_stop();
        let (manager, id) = (self.shared.manager.clone(), self.id);
        Call::begin(async move { manager.stop(id).await })
    }

    /// PM2 7 says that it stopped a worker that was not ready yet, and starts it again. One that is frozen until PM2 no
    /// longer waits for `ready` stays stopped.
    pub async fn stop(&self) -> Result<(), Stop> {
        let stopped = self.stop_frozen().await;
        if stopped.is_err() {
            _ = self.shared.manager.thaw(self.id).await;
        }
        stopped
    }

    async fn stop_frozen(&self) -> Result<(), Stop> {
        let (listens, dies) = self.timeouts()?;
        // What is frozen ends by SIGKILL.
        let waits = (listens + dies) * 2 + KILL_GRACE;
        let until = Instant::now() + waits;
        let mut frozen = None;
        self.ask_to_stop().await?;
        while !self.is_stopped()? {
            let seen = self.seen()?;
            if Instant::now() >= until {
                let (manager, name) = (self.manager(), &self.name);
                let status = format!("{:?}", seen.listed.status).to_lowercase();
                let text = format!("{manager} could not stop {name} within {waits:?}: it is {status}");
                return Err(Stop::Refused(text));
            }
            if seen.listed.status == Status::Online {
                self.ask_to_stop().await?;
                continue;
            }
            let held = frozen.filter(|&(process, _)| process == seen.process);
            if held.is_none() {
                // Refused between two of its lives.
                let is_frozen = self.shared.manager.freeze(self.id).await.is_ok();
                frozen = is_frozen.then(|| (seen.process, Instant::now()));
            } else if held.is_some_and(|(_, since)| since.elapsed() > listens + READY_GRACE) {
                // In cluster mode PM2 waits for `ready` from when Node says that the worker is online: this one was frozen before.
                _ = self.shared.manager.thaw(self.id).await;
                frozen = None;
            }
            self.fresh_look().await?;
        }
        Ok(())
    }

    /// How long PM2 waits for its `ready`, and for its end.
    fn timeouts(&self) -> Result<(Duration, Duration), Stop> {
        let settings = self.seen()?.listed.settings;
        Ok((settings.listen_timeout.unwrap_or(LISTEN_TIMEOUT), kill_timeout(&settings)))
    }

    /// For cluster mode, where a worker that is not ready may listen, and would be frozen with a user's request: waits until
    /// PM2 does not wait for `ready` any more, or has given it up.
    pub async fn stop_when_settled(&self) -> Result<(), Stop> {
        let strays = Strays::before(self)?;
        self.stop_in_time().await?;
        strays.end(self).await
    }

    async fn stop_in_time(&self) -> Result<(), Stop> {
        let (listens, _) = self.timeouts()?;
        let until = Instant::now() + listens + KILL_GRACE;
        while !self.is_stopped()? {
            match self.seen()?.listed.status {
                _ if Instant::now() >= until => return self.stop().await,
                Status::Online | Status::Other => self.ask_to_stop().await?,
                _ => self.next_look().await?,
            }
        }
        Ok(())
    }

    /// PM2 is to forget it. It must be stopped.
    pub async fn delete(&self) -> Result<(), Stop> {
        let strays = Strays::before(self)?;
        self.in_hand.expect_end();
        let deleted = time::timeout(KILL_GRACE, self.shared.manager.forget(self.id)).await;
        let late = || {
            Stop::Refused(format!("{} could not delete {} within {KILL_GRACE:?}", self.manager(), self.name))
        };
        deleted.map_err(|_| late())??;
        // While it is in hand, so that nobody takes it for somebody else's deed.
        strays.end(self).await
    }

    async fn ask_to_stop(&self) -> Result<(), Stop> {
        let (_, dies) = self.timeouts()?;
        let patience = dies + KILL_GRACE;
        self.in_hand.expect_stop();
        let stopped = time::timeout(patience, self.shared.manager.stop(self.id)).await;
        let late =
            || Stop::Refused(format!("{} could not stop {} within {patience:?}", self.manager(), self.name));
        stopped.map_err(|_| late())??;
        // So that the next thing that is known of it is how it is now.
        self.fresh_look().await
    }

    fn is_stopped(&self) -> Result<bool, Stop> {
        let seen = self.seen()?;
        let is_over = matches!(seen.listed.status, Status::Stopped | Status::Errored);
        Ok(is_over && seen.process.is_none())
    }

    // --- saying

    pub fn broken(&self, how: How, text: String) -> Stop {
        Stop::Broken(Broken { worker: self.name.clone(), how, text, log: Vec::new(), role: Role::Successor })
    }

    /// What it wrote last; in cluster mode what it threw stands on PM2's bus, and mostly not in its log.
    pub fn with_log(&self, stop: Stop, logs: &Logs) -> Stop {
        let (broken, world) = match (stop, self.world()) {
            (Stop::Broken(broken), Ok(world)) => (broken, world),
            (stop, _) => return stop,
        };
        let mut log = logs.last_lines(world.daemon.uid);
        let threw = world.workers.get(&self.id).and_then(|seen| seen.threw.as_ref());
        if let Some((at, thrown)) = threw
            && *at >= self.since
        {
            let missing = thrown.lines().filter(|line| !log.iter().any(|known| known == line));
            let missing: Vec<String> = missing.take(MOST_LINES).map(str::to_owned).collect();
            log.extend(missing);
            log.drain(..log.len().saturating_sub(MOST_LINES));
        }
        Stop::Broken(Broken { log, ..broken })
    }

    /// Tells whoever listens on PM2's bus, as PM2's own command line does.
    pub async fn announce(&self, action: &'static str) {
        _ = self.shared.manager.announce(self.id, action).await;
    }

    pub fn step(&self, step: Step) {
        _ = self.shared.steps.send((self.id, Said::Step(step)));
    }

    pub fn note(&self, text: String) {
        _ = self.shared.steps.send((self.id, Said::Note(text)));
    }
}

// === impl Call ===

impl<T: Send + 'static> Call<T> {
    pub fn begin<E: Into<ManagerError>>(call: impl Future<Output = Result<T, E>> + Send + 'static) -> Self {
        Self { task: Some(tokio::spawn(async { call.await.map_err(E::into) })), answer: None }
    }

    /// What it says, if it is done. Error: it refused, or is gone.
    pub async fn answered(&mut self) -> Result<Option<&T>, ManagerError> {
        if let Some(task) = self.task.take_if(|task| task.is_finished()) {
            self.answer = Some(task.await.unwrap_or(Err(RpcError::Closed.into()))?);
        }
        Ok(self.answer.as_ref())
    }
}
