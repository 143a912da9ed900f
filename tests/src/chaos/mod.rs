//! Faults at random moments of deploys under load, each judged by what may come of it.
//!
//! A round is a site that stands for some faults in a row. Each time a deploy begins, the fault befalls it at a moment that
//! the dice choose, whoever runs the site does what he would, and waits until all is as ever; then comes a deploy that
//! nothing befalls, and of which nobody may notice anything. In words: `docs/operations/chaos.md`.

pub mod fault;
mod report;
pub mod verdict;
mod world;

use crate::{
    access_log::AccessLog,
    app::Mode,
    clock::Moment,
    dice::Dice,
    lives::{self, Life},
    load::Visit,
    net::Realm,
    orders::Orders,
    process,
    scenario::Level,
    site::VERSIONS,
    stand::{self, Deploy, How, Stand},
    wait,
};
use anyhow::{Context, Result};
use fault::{Fault, Needs};
use rustix::process::Signal;
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::Semaphore,
    task::{JoinSet, LocalSet},
    time::sleep,
};
use world::{Clock, Disk, World};

pub use report::table;

const CALM: Duration = Duration::from_secs(1);
/// About as long as a deploy takes.
const DEPLOY: Duration = Duration::from_millis(3_500);
/// Faults of a round.
const ROUND: usize = 8;
/// Whoever runs the site looks at its status so often.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

#[derive(Clone, Debug)]
pub struct Plan {
    pub faults: usize,
    pub seed: u64,
    /// Visits a second to a site.
    pub rate: u32,
    /// Sites that stand at a time.
    pub sites: usize,
    /// From which faults are dealt, each as often as any other.
    pub kinds: Vec<Fault>,
}

/// A site, and what befalls it.
#[derive(Clone, Debug)]
pub struct Round {
    pub number: usize,
    pub seed: u64,
    pub site: stand::Plan,
    pub faults: Vec<Fault>,
    pub rate: u32,
}

/// What came of one fault.
#[derive(Clone, Debug)]
pub struct Ordeal {
    pub fault: Fault,
    pub struck: Moment,
    /// When all was as ever.
    pub over: Moment,
    pub deploy: Deploy,
    /// PM2 had to be begun anew.
    pub anew: bool,
    /// The one after it, which nothing befell.
    pub again: Deploy,
}

/// All that was seen of a round.
#[derive(Debug)]
pub struct Seen {
    pub round: Round,
    pub ordeals: Vec<Ordeal>,
    pub visits: Vec<Visit>,
    pub orders: Orders,
    pub lives: Vec<Life>,
    pub log: AccessLog,
    /// The same, in nginx's own words.
    pub lines: String,
    /// What the sidecar, nginx, PM2 and the workers said last.
    pub said: String,
    /// What kept it from going on.
    pub stuck: Option<String>,
}

/// nginx says this of what was done to it.
const DONE_TO_IT: [&str; 3] =
    ["exited on signal 9", "shared memory zone \"handoff\" was locked by", "open socket"];

impl Plan {
    /// The same for the same seed.
    pub fn rounds(&self) -> Vec<Round> {
        let mut dice = Dice::new(self.seed);
        let mut deck = Vec::new();
        while deck.len() < self.faults {
            let mut kinds = self.kinds.clone();
            shuffle(&mut kinds, &mut dice);
            deck.extend(kinds);
        }
        deck.truncate(self.faults);
        let those = |needs| deck.iter().copied().filter(|fault| fault.needs() == needs).collect::<Vec<_>>();
        let groups = [Needs::NoClock, Needs::WallClock, Needs::SidecarClock].map(those);
        let faults = groups.iter().flat_map(|group| group.chunks(ROUND));
        let mut rounds: Vec<Round> = (0..)
            .zip(faults)
            .map(|(number, faults)| Round {
                number,
                seed: dice.roll(),
                site: site(&mut dice),
                faults: faults.to_vec(),
                rate: self.rate,
            })
            .collect();
        shuffle(&mut rounds, &mut dice);
        rounds
    }

    /// `tell` is told of each round as it is over.
    pub async fn play(&self, rounds: Vec<Round>, tell: impl Fn(&Seen)) -> Result<Vec<Seen>> {
        LocalSet::new().run_until(self.play_side_by_side(rounds, tell)).await
    }

    async fn play_side_by_side(&self, rounds: Vec<Round>, tell: impl Fn(&Seen)) -> Result<Vec<Seen>> {
        let places = Arc::new(Semaphore::new(self.sites));
        let mut playing = JoinSet::new();
        for round in rounds {
            let places = places.clone();
            playing.spawn_local(async move {
                let _place = places.acquire_owned().await?;
                let what = format!("round {}, {}", round.number, round.site);
                round.play().await.context(what)
            });
        }
        let mut all = Vec::new();
        while let Some(seen) = playing.join_next().await {
            let seen = seen??;
            tell(&seen);
            all.push(seen);
        }
        Ok(all)
    }
}

fn site(dice: &mut Dice) -> stand::Plan {
    let mut one_of = |many: u64| dice.roll() % many;
    stand::Plan {
        nginx: if one_of(2) == 0 { VERSIONS[0] } else { VERSIONS[1] },
        mode: if one_of(2) == 0 { Mode::Fork } else { Mode::Cluster },
        level: match one_of(3) {
            0 => Level::L0,
            1 => Level::L1,
            _ => Level::L2,
        },
        workers: 2,
        guesses: false,
    }
}

fn shuffle<T>(all: &mut [T], dice: &mut Dice) {
    for last in (1..all.len()).rev() {
        #[expect(clippy::cast_possible_truncation, reason = "at most `last`")]
        let other = (dice.roll() % (last as u64 + 1)) as usize;
        all.swap(last, other);
    }
}

// === impl Round ===

impl Round {
    pub async fn play(self) -> Result<Seen> {
        let mut dice = Dice::new(self.seed);
        let folder = crate::place::Place::new()?;
        let needs = self.faults.first().map(|fault| fault.needs());
        let clock = (needs != Some(Needs::NoClock)).then(|| Clock::new(folder.path())).transpose()?;
        let realm = match &clock {
            Some(clock) if needs == Some(Needs::WallClock) => clock.wall(),
            _ => Realm::default(),
        };
        let needs_disk = self.faults.iter().any(|fault| fault.fills_disk());
        let mut disk = None;
        let mut stand = self
            .site
            .set(&realm, async |place| {
                disk = if needs_disk { Some(Disk::new(place).await?) } else { None };
                Ok(())
            })
            .await?;
        if let Some(clock) = clock.as_ref().filter(|_| needs == Some(Needs::SidecarClock)) {
            stand.move_sidecar(clock.both())?;
            stand.is_whole().await?;
        }
        let world = World { lives: stand.app.lives(), disk, clock };
        stand.pm2.run(&["save"]).await?;
        let lives = lives::Watch::new(&stand.app.lives());
        stand.visit(self.rate);
        sleep(CALM).await;
        let (mut ordeals, mut stuck) = (Vec::new(), None);
        for &fault in &self.faults {
            match suffer(fault, &mut stand, &world, &mut dice).await {
                Ok(ordeal) => ordeals.push(ordeal),
                Err(error) => {
                    stuck = Some(format!("{}: {error:#}", fault.says()));
                    break;
                }
            }
        }
        sleep(CALM).await;
        let visits = stand.load.take().context("nobody visits")?.stop().await;
        if stuck.is_none() {
            stuck = at_rest(&stand).await.err().map(|error| format!("{error:#}"));
        }
        let (orders, lives) = (Orders::read(&stand.app.orders())?, lives.finish().await?);
        let lines = std::fs::read_to_string(stand.access_log())?;
        let said = stand.said();
        if stuck.is_none() {
            stuck = stand.strike(&DONE_TO_IT).await.err().map(|error| format!("{error:#}"));
        }
        Ok(Seen {
            round: self,
            ordeals,
            visits,
            orders,
            lives,
            log: AccessLog::parse(&lines),
            lines,
            said,
            stuck,
        })
    }
}

async fn suffer(fault: Fault, stand: &mut Stand, world: &World, dice: &mut Dice) -> Result<Ordeal> {
    let how = if dice.roll() & 1 == 0 { How::Handoff } else { stand.plan.how() };
    let moment = dice.below(DEPLOY);
    let befall = async {
        sleep(moment).await;
        let struck = Moment::now();
        fault.befall(stand, world, dice).await.map(|after| (struck, after))
    };
    let (deploy, befell) = tokio::join!(stand.deploy(how), befall);
    let (deploy, (struck, after)) = (deploy?, befell?);
    let mended = async {
        let anew = fault.mend(stand, world, after).await?;
        tokio::select! {
            whole = whole_again(&deploy, stand) => whole?,
            failed = end_forgotten(stand) => failed?,
        }
        anyhow::Ok(anew)
    };
    let anew = mended
        .await
        .with_context(|| format!("the {how} had ended with {:?}: {}", deploy.exit, deploy.text))?;
    let over = Moment::now();
    let again = stand.deploy_in_turn(stand.plan.how()).await.context("the deploy after it")?;
    stand.is_whole().await?;
    Ok(Ordeal { fault, struck, over, deploy, anew, again })
}

async fn whole_again(deploy: &Deploy, stand: &Stand) -> Result<()> {
    if deploy.is_broken() {
        // The new release was not to blame, as the operator knows.
        let again = stand.deploy_in_turn(How::Handoff).await?;
        anyhow::ensure!(again.is_done(), "the same again ended with {:?}: {}", again.exit, again.text);
    }
    stand.is_whole().await?;
    stand.list_is_whole().await
}

/// In cluster mode PM2 starts an old worker again that was killed while it was being replaced, and then forgets it, at the end of
/// the deploy or later: `handoff status` says so.
async fn end_forgotten(stand: &Stand) -> Result<()> {
    loop {
        let forgotten = stand.forgotten().await?;
        forgotten.into_iter().for_each(|worker| process::signal(worker, Signal::INT));
        sleep(LOOK_AGAIN).await;
    }
}

/// Nobody visits any more: nginx must know it, and nothing of ours be stopped.
async fn at_rest(stand: &Stand) -> Result<()> {
    wait::until("nothing to be in flight", stand::PATIENCE, async || {
        let peers = stand.site.app().await.ok()?;
        peers.iter().all(|peer| peer.in_flight == 0).then_some(())
    })
    .await?;
    let stopped = stand.pm2.processes().into_iter().filter(|&pid| process::is_stopped(pid)).count();
    anyhow::ensure!(stopped == 0, "{stopped} processes are stopped still");
    Ok(())
}
