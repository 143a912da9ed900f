//! Hundreds of deploys under load: nobody fails, nothing runs twice, and nothing grows.
//!
//! Each kind of site (nginx's version, PM2's mode, the level of protection) stands once, for its share of the deploys and of the
//! requests; some of them side by side. Only so many deploys are on their way at a time: the promise of L0 needs a CPU that
//! is free now and then. In words: `docs/operations/soak.md`.

mod held;
mod report;
mod tally;

use crate::{
    app::Mode,
    clock::Moment,
    dice::Dice,
    load::Visit,
    net::Realm,
    scenario::Level,
    site::VERSIONS,
    stand::{self, Deploy, How, Stand},
};
use anyhow::{Context, Result};
use held::{Held, Rest};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{Semaphore, watch},
    task::{JoinSet, LocalSet},
    time::{interval, sleep},
};

pub use held::{Course, Who};
pub use report::table;
pub use tally::{Executed, Tally};

/// How often what ended is counted, and what is held is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_secs(2);

#[derive(Clone, Debug)]
pub struct Plan {
    /// In all, over all sites; each gets its share, and one at least.
    pub deploys: u64,
    /// The same; a site is visited until it has had both.
    pub requests: u64,
    pub seed: u64,
    /// Visits a second to a site.
    pub rate: u32,
    /// Sites that stand at a time.
    pub sites: usize,
    /// Deploys that are on their way at a time.
    pub at_once: usize,
    pub kinds: Vec<stand::Plan>,
}

/// What became of one site.
#[derive(Debug)]
pub struct Outcome {
    pub kind: stand::Plan,
    pub deploys: Vec<Deploy>,
    pub tally: Tally,
    pub executed: Executed,
    pub held: Held,
    /// Before the first visitor came, and when the last one had gone.
    pub rest: (Rest, Rest),
    /// Of the failures, what nginx logged of them.
    pub log: String,
    pub said: String,
}

/// Every kind there is.
pub fn kinds() -> Vec<stand::Plan> {
    let modes = [Mode::Fork, Mode::Cluster];
    let each_mode = move |nginx| modes.into_iter().map(move |mode| (nginx, mode));
    let of = |(nginx, mode)| {
        let levels = [Level::L0, Level::L1, Level::L2].into_iter();
        levels.map(move |level| stand::Plan { nginx, mode, level, workers: 2, guesses: true })
    };
    VERSIONS.into_iter().flat_map(each_mode).flat_map(of).collect()
}

impl Plan {
    /// `tell` is told of each site as it is done. Comes back with all of them.
    pub async fn play(&self, tell: impl Fn(&Outcome)) -> Result<Vec<Outcome>> {
        LocalSet::new().run_until(self.play_side_by_side(tell)).await
    }

    async fn play_side_by_side(&self, tell: impl Fn(&Outcome)) -> Result<Vec<Outcome>> {
        let places = Arc::new(Semaphore::new(self.sites));
        let turns = Arc::new(Semaphore::new(self.at_once));
        let mut sites = JoinSet::new();
        for (number, kind) in (0..).zip(self.kinds.clone()) {
            let share = |all: u64| all.div_ceil(self.kinds.len().max(1) as u64);
            let site = Site {
                kind,
                deploys: share(self.deploys).max(1),
                requests: share(self.requests),
                rate: self.rate,
                dice: Dice::new(self.seed.wrapping_add(number)),
                turns: turns.clone(),
            };
            let places = places.clone();
            sites.spawn_local(async move {
                let _place = places.acquire_owned().await?;
                let what = site.kind.to_string();
                site.play().await.context(what)
            });
        }
        let mut outcomes = Vec::new();
        while let Some(outcome) = sites.join_next().await {
            let outcome = outcome??;
            tell(&outcome);
            outcomes.push(outcome);
        }
        outcomes.sort_by_key(|outcome| self.kinds.iter().position(|kind| *kind == outcome.kind));
        Ok(outcomes)
    }
}

/// One that is to be played.
struct Site {
    kind: stand::Plan,
    deploys: u64,
    requests: u64,
    rate: u32,
    dice: Dice,
    turns: Arc<Semaphore>,
}

impl Site {
    async fn play(mut self) -> Result<Outcome> {
        let mut stand = self.kind.set(&Realm::default(), async |_| Ok(())).await?;
        let before = Rest::now(&stand);
        stand.visit(self.rate);
        let mut load = stand.load.take().context("nobody visits")?;
        let (mut tally, mut held) = (Tally::default(), Held::default());
        let (done, mut is_done) = watch::channel(false);
        let requests = self.requests;
        let deploys = async {
            let deploys = self.deploy(&stand).await;
            _ = done.send(true);
            deploys
        };
        let accounts = async {
            let mut look = interval(LOOK_EVERY);
            while !*is_done.borrow_and_update() || tally.visits < requests {
                look.tick().await;
                load.ended().into_iter().for_each(|visit| tally.count(visit));
                held.look(&stand);
            }
        };
        let (deploys, ()) = tokio::join!(deploys, accounts);
        let deploys = deploys?;
        load.stop().await.into_iter().for_each(|visit| tally.count(visit));
        stand.list_is_whole().await?;
        let rest = (before.clone(), come_to_rest(&stand, &before).await);
        let executed = tally.executed(&stand.app.orders())?;
        let log = std::fs::read_to_string(stand.access_log()).unwrap_or_default();
        let said = stand.said();
        stand.strike(&[]).await?;
        Ok(Outcome { kind: self.kind, deploys, tally, executed, held, rest, log, said })
    }

    async fn deploy(&mut self, stand: &Stand) -> Result<Vec<Deploy>> {
        let mut deploys = Vec::new();
        for _ in 0..self.deploys {
            sleep(self.dice.below(PAUSE)).await;
            let _turn = self.turns.acquire().await?;
            // With the preload, whatever is typed.
            let both = self.kind.level == Level::L2 && self.dice.roll() & 1 == 0;
            let how = if both { How::Handoff } else { self.kind.how() };
            deploys.push(stand.deploy(how).await?);
            stand.is_whole().await?;
        }
        Ok(deploys)
    }
}

/// What is held when connections have been closed, or when nobody has any more patience.
async fn come_to_rest(stand: &Stand, before: &Rest) -> Rest {
    let until = Moment::now() + stand::PATIENCE;
    loop {
        let after = Rest::now(stand);
        if after.kept(before).is_empty() || Moment::now() > until {
            return after;
        }
        sleep(LOOK_EVERY).await;
    }
}

// === impl Outcome ===

impl Outcome {
    /// What was promised, and did not hold.
    pub fn broken(&self) -> Vec<String> {
        let Self { deploys, tally, executed, held, rest: (before, after), .. } = self;
        let mut broken = held.grown();
        broken.extend(after.kept(before));
        let mut none = |count: u64, what: &str| {
            if count > 0 {
                broken.push(format!("{count} {what}"));
            }
        };
        none(tally.failed, "visits failed");
        none(executed.twice, "orders ran twice");
        none(executed.never, "orders were answered and never ran");
        for deploy in deploys.iter().filter(|deploy| !deploy.is_done()) {
            broken.push(format!("{} ended with {:?}: {}", deploy.how, deploy.exit, deploy.text));
        }
        if let Some(Visit { kind, answer, .. }) = tally.failures.first() {
            broken.push(format!("the first that failed: {kind}, {answer}"));
        }
        broken
    }
}
