//! Another worker that serves while the only one of an app in fork mode is replaced.
//!
//! ```text
//!   the stand-in:  starting ──► checking ──► trial ──► up ─────────────────────────► draining ──► stopping ──► deleted
//!   the worker:                                          draining ──► … ──► up, done
//! ```
//!
//! It is of the new release, and comes first: a broken release meets nobody, and the worker is not touched. It listens on a
//! [port to spare](super::spare), and goes as soon as the worker is new and serves, so that for PM2 all is as it was: the
//! worker keeps its number, its port and its instance.
//!
//! It is a [surplus](super::surplus) worker. If the worker does not serve in the end, it stays, and whoever reloads next
//! has it at hand.

use super::{
    event::Step,
    fitness::Expected,
    grip::{Call, Grip, Shared},
    logs::Logs,
    marks::Marks,
    replace::Turn,
    spare::Spare,
    stop::{Broken, Role, Stop},
    surplus,
    world::{Hands, Seen},
};
use crate::pm2::{
    PmId,
    orders::Sealed,
    rpc::{Rpc, RpcError},
};
use std::{sync::Arc, time::Instant};

/// What is needed to start one.
#[derive(Debug)]
pub struct Start {
    pub app: String,
    /// For whom it stands in.
    pub model: PmId,
    pub spare: Spare,
    /// What PM2 is to make it of, if not of its model.
    pub settings: Option<Sealed>,
    pub hands: Hands,
    pub shared: Arc<Shared>,
}

#[derive(Debug)]
pub struct StandIn {
    app: String,
    turn: Turn,
    logs: Logs,
    since: Instant,
}

// === impl Start ===

impl Start {
    /// Comes back when it serves.
    pub async fn run(self, mut marks: Marks) -> Result<StandIn, Stop> {
        let settings = self.settings().await?;
        let Self { app, hands, shared, .. } = self;
        // Nobody is sent there before it is well.
        marks.starting().await?;
        marks.clear().await?;
        let home = shared.home.clone();
        let ask =
            async move { Rpc::connect(&home).await.map_err(RpcError::from)?.start_one(&settings).await };
        let started = surplus::start(&app, &hands, &shared, ask).await;
        let (grip, call) = match started {
            Ok(started) => started,
            Err(stop) => {
                marks.lift().await?;
                return Err(stop);
            }
        };
        grip.step(Step::Starting);
        let mut stand_in = StandIn::new(app, grip, marks);
        match stand_in.proves_itself(call).await {
            Ok(()) => Ok(stand_in),
            Err(stop) => Err(stand_in.dismissed(stop).await),
        }
    }

    async fn settings(&self) -> Result<Sealed, Stop> {
        let settings = match self.settings.clone() {
            Some(settings) => Some(settings),
            None => {
                let mut rpc = Rpc::connect(&self.shared.home).await.map_err(RpcError::from)?;
                rpc.settings(self.model).await?
            }
        };
        let moved = settings.and_then(|settings| settings.at_port(&self.spare.variable, self.spare.port));
        moved.ok_or_else(|| Stop::Foreign(format!("{}:{} was deleted", self.app, self.model)))
    }
}

// === impl StandIn ===

impl StandIn {
    fn new(app: String, grip: Grip, marks: Marks) -> Self {
        let turn = Turn { grip, serves: true, is_first: true, may_halt: false, marks, env: None };
        Self { app, turn, logs: Logs::default(), since: Instant::now() }
    }

    /// One that a killed roll-out left behind.
    pub fn left(app: &str, grip: Grip, marks: Marks) -> Self {
        grip.note(format!("{} was left behind by a roll-out that did not end: it is deleted", grip.name));
        Self::new(app.to_owned(), grip, marks)
    }

    async fn proves_itself(&mut self, call: Call<PmId>) -> Result<(), Stop> {
        let Seen { listed, .. } = self.turn.grip.seen()?;
        self.logs = Logs::note([listed.settings.err_log, listed.settings.out_log].into_iter().flatten());
        let mut expected = Expected::anew();
        let brake = self.turn.grip.shared.brake.clone();
        let proved = tokio::select! {
            proved = self.turn.proves_itself(&mut expected, call) => proved,
            halt = brake.wait() => Err(halt.into()),
        };
        self.turn.grip.in_hand.is_moving(false);
        proved
    }

    /// It is not needed any more. Returns how many requests its end cost.
    pub async fn leave(mut self) -> Result<u64, Stop> {
        let drained = match self.turn.drained().await {
            Ok(drained) => drained,
            Err(stop) => {
                let stop = self.turn.keep(stop).await;
                return Err(surplus::left_behind(&self.turn.grip, "stand-in", stop));
            }
        };
        self.turn.grip.step(Step::Stopping { cut: drained.in_flight });
        let cut = match self.turn.ended_for_good().await {
            Ok(cut) => cut,
            Err(stop) => return Err(surplus::left_behind(&self.turn.grip, "stand-in", stop)),
        };
        self.forgotten().await?;
        let seconds = (self.since.elapsed().as_secs_f64() * 1000.0).round() / 1000.0;
        self.turn.grip.step(Step::Deleted { seconds });
        Ok(cut)
    }

    /// The worker for which it stands in does not serve.
    pub fn stay(self) {
        let grip = &self.turn.grip;
        grip.note(format!("the stand-in {0} serves on: the next `handoff reload` deletes it", grip.name));
    }

    /// It is not fit to serve, or not wanted any more; the worker was not touched.
    async fn dismissed(mut self, stop: Stop) -> Stop {
        let stopped = self.turn.stop(true).await;
        // Now that it has ended, PM2 has written down its last words.
        let stop = self.turn.grip.with_log(stop, &self.logs);
        let gone = match stopped {
            Ok(()) => self.forgotten().await,
            stopped => stopped,
        };
        let stop = match (stop, gone) {
            (Stop::Broken(broken), gone) => {
                let Broken { how, text, log, .. } = broken.clone();
                self.turn.grip.step(Step::Failed { exit: how.exit() as u8, text, log });
                if gone.is_err() {
                    _ = surplus::left_behind(&self.turn.grip, "stand-in", Stop::Sibling);
                }
                return Stop::Broken(Broken { role: Role::StandIn, ..broken });
            }
            (stop, Ok(())) => stop,
            (stop, Err(_)) => surplus::left_behind(&self.turn.grip, "stand-in", stop),
        };
        let seconds = (self.since.elapsed().as_secs_f64() * 1000.0).round() / 1000.0;
        self.turn.grip.step(Step::Deleted { seconds });
        stop
    }

    /// PM2 forgets it, and nginx what was said of its place, where nobody listens any more.
    async fn forgotten(&mut self) -> Result<(), Stop> {
        self.turn.grip.delete().await?;
        surplus::strike(&self.turn.grip, &self.app);
        Ok(self.turn.marks.lift().await?)
    }
}
