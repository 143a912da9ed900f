//! What may befall a site in the middle of a deploy, and what an operator or a service manager does about it.

use super::world::World;
use crate::{
    dice::Dice,
    process,
    sidecar::Sidecar,
    site::Site,
    stand::{PATIENCE, Stand},
    wait,
};
use anyhow::{Context, Result};
use rustix::process::Signal;
use std::{fs, time::Duration};
use tokio::time::sleep;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// kill -9, and a service manager starts it again after a second.
    SidecarRestarts,
    /// kill -9, and it is started again when nothing is left of it.
    SidecarDies,
    /// SIGSTOP, for less than any lease.
    SidecarFreezes,
    /// SIGSTOP, for longer than any lease.
    SidecarFreezesForLong,
    /// kill -9 of one of nginx's workers.
    NginxWorkerDies,
    /// SIGSTOP of one of nginx's workers, for a while.
    NginxWorkerFreezes,
    /// `nginx -s reload`
    NginxReloads,
    /// USR2, and QUIT to the old master.
    NginxIsUpgraded,
    /// USR2, WINCH to the old master, and then all of it back.
    NginxUpgradeIsTakenBack,
    /// kill -9 of PM2's daemon; the operator ends what it left and types `pm2 resurrect`.
    Pm2Dies,
    /// SIGSTOP of PM2's daemon, for a while.
    Pm2Freezes,
    /// kill -9 of a worker of the app.
    WorkerDies,
    /// kill -9 of all of them.
    AllWorkersDie,
    /// SIGSTOP of a worker of the app, for a while.
    WorkerFreezes,
    /// Nothing more can be written where `handoff` writes, and where PM2 does.
    DiskFull,
    /// Where `handoff run` writes, nothing can be.
    DiskReadOnly,
    /// The file of the control socket is removed; the operator reloads nginx.
    SocketRemoved,
    /// The wall clock of all is an hour further.
    WallClockForward,
    /// The wall clock of all is set back by an hour.
    WallClockBack,
    /// To the sidecar, half a minute passes at once.
    SidecarSleeps,
}

pub const ALL: [Fault; 20] = [
    Fault::SidecarRestarts,
    Fault::SidecarDies,
    Fault::SidecarFreezes,
    Fault::SidecarFreezesForLong,
    Fault::NginxWorkerDies,
    Fault::NginxWorkerFreezes,
    Fault::NginxReloads,
    Fault::NginxIsUpgraded,
    Fault::NginxUpgradeIsTakenBack,
    Fault::Pm2Dies,
    Fault::Pm2Freezes,
    Fault::WorkerDies,
    Fault::AllWorkersDie,
    Fault::WorkerFreezes,
    Fault::DiskFull,
    Fault::DiskReadOnly,
    Fault::SocketRemoved,
    Fault::WallClockForward,
    Fault::WallClockBack,
    Fault::SidecarSleeps,
];

/// A service manager's `RestartSec`.
const RESTART: Duration = Duration::from_secs(1);
const SHORT: Duration = Duration::from_secs(3);
/// Longer than any lease.
const LONG: Duration = Duration::from_secs(11);
const HOUR: i64 = 3_600;
const HALF_A_MINUTE: i64 = 30;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    NoClock,
    /// Of all processes.
    WallClock,
    /// Both clocks of the sidecar: libfaketime cannot move the monotonic one alone.
    SidecarClock,
}

/// What is another one now.
#[derive(Debug, Default)]
pub struct After {
    sidecar: Option<Sidecar>,
    master: Option<u32>,
}

impl Fault {
    pub fn says(self) -> &'static str {
        match self {
            Self::SidecarRestarts => "sidecar: kill -9, back after 1 s",
            Self::SidecarDies => "sidecar: kill -9, stays dead",
            Self::SidecarFreezes => "sidecar: SIGSTOP, up to 3 s",
            Self::SidecarFreezesForLong => "sidecar: SIGSTOP, 11 to 14 s",
            Self::NginxWorkerDies => "nginx worker: kill -9",
            Self::NginxWorkerFreezes => "nginx worker: SIGSTOP, up to 3 s",
            Self::NginxReloads => "nginx: reload",
            Self::NginxIsUpgraded => "nginx: USR2, QUIT",
            Self::NginxUpgradeIsTakenBack => "nginx: USR2, taken back",
            Self::Pm2Dies => "PM2: kill -9, resurrect",
            Self::Pm2Freezes => "PM2: SIGSTOP, up to 3 s",
            Self::WorkerDies => "a worker: kill -9",
            Self::AllWorkersDie => "all workers: kill -9",
            Self::WorkerFreezes => "a worker: SIGSTOP, up to 3 s",
            Self::DiskFull => "disk full",
            Self::DiskReadOnly => "disk read-only",
            Self::SocketRemoved => "control socket removed",
            Self::WallClockForward => "wall clock: an hour on",
            Self::WallClockBack => "wall clock: an hour back",
            Self::SidecarSleeps => "sidecar: 30 s pass at once",
        }
    }

    /// Only root can have a disk of its own for it.
    pub fn fills_disk(self) -> bool {
        matches!(self, Self::DiskFull | Self::DiskReadOnly)
    }

    /// Which clock must be ours before it can befall a site. What needs different ones does not befall the same site.
    pub fn needs(self) -> Needs {
        match self {
            Self::WallClockForward | Self::WallClockBack => Needs::WallClock,
            Self::SidecarSleeps => Needs::SidecarClock,
            _ => Needs::NoClock,
        }
    }

    /// Comes back when it is over, or when nothing more comes of it.
    pub(super) async fn befall(self, stand: &Stand, world: &World, dice: &mut Dice) -> Result<After> {
        let mut after = After::default();
        match self {
            Self::SidecarRestarts => {
                process::signal(sidecar(stand)?, Signal::KILL);
                sleep(RESTART).await;
                after.sidecar = Some(stand.another_sidecar()?);
            }
            Self::SidecarDies => process::signal(sidecar(stand)?, Signal::KILL),
            Self::SidecarFreezes => frozen(sidecar(stand)?, dice.below(SHORT)).await,
            Self::SidecarFreezesForLong => frozen(sidecar(stand)?, LONG + dice.below(SHORT)).await,
            Self::NginxWorkerDies => process::signal(nginx_worker(stand, dice)?, Signal::KILL),
            Self::NginxWorkerFreezes => frozen(nginx_worker(stand, dice)?, dice.below(SHORT)).await,
            Self::NginxReloads => _ = stand.site.reload().await?,
            Self::NginxIsUpgraded => after.master = Some(upgrade(&stand.site, dice).await?),
            Self::NginxUpgradeIsTakenBack => take_back(&stand.site, dice).await?,
            Self::Pm2Dies => process::signal(stand.pm2.daemon()?, Signal::KILL),
            Self::Pm2Freezes => frozen(stand.pm2.daemon()?, dice.below(SHORT)).await,
            Self::WorkerDies => process::signal(one_of(&world.workers(&stand.pm2), dice)?, Signal::KILL),
            Self::AllWorkersDie => {
                world
                    .workers(&stand.pm2)
                    .into_iter()
                    .for_each(|worker| process::signal(worker, Signal::KILL));
            }
            Self::WorkerFreezes => frozen(one_of(&world.workers(&stand.pm2), dice)?, dice.below(SHORT)).await,
            Self::DiskFull => world.disk()?.fill()?,
            Self::DiskReadOnly => world.disk()?.close().await?,
            Self::SocketRemoved => fs::remove_file(stand.site.socket())?,
            Self::WallClockForward => world.clock()?.jumps(HOUR)?,
            Self::WallClockBack => world.clock()?.jumps(-HOUR)?,
            Self::SidecarSleeps => world.clock()?.jumps(HALF_A_MINUTE)?,
        }
        Ok(after)
    }

    /// When the deploy has come to its end, however: whoever runs this site does what he would. Says whether he had to begin PM2
    /// anew.
    pub(super) async fn mend(self, stand: &mut Stand, world: &World, after: After) -> Result<bool> {
        if let Some(sidecar) = after.sidecar {
            stand.sidecar = Some(sidecar);
        }
        if let Some(master) = after.master {
            stand.site.follow(master);
        }
        match self {
            // All that it said runs out by itself.
            Self::SidecarDies => {
                stand.is_whole().await.context("marks of a sidecar that is dead")?;
                stand.start_sidecar()?;
            }
            Self::Pm2Dies => return resurrected(stand).await,
            Self::DiskFull => {
                world.disk()?.empty()?;
                // PM2's daemon ends without room, and so do new workers in cluster mode, which write down their pid.
                if stand.is_given_up().await {
                    return resurrected(stand).await;
                }
            }
            Self::DiskReadOnly => world.disk()?.open().await?,
            Self::SocketRemoved => _ = stand.site.reload().await?,
            _ => {}
        }
        Ok(false)
    }
}

fn sidecar(stand: &Stand) -> Result<u32> {
    Ok(stand.sidecar.as_ref().context("no sidecar")?.pid())
}

fn nginx_worker(stand: &Stand, dice: &mut Dice) -> Result<u32> {
    one_of(&stand.site.serving_workers(), dice)
}

fn one_of(pids: &[u32], dice: &mut Dice) -> Result<u32> {
    #[expect(clippy::cast_possible_truncation, reason = "below the number of pids")]
    let place = (dice.roll() % pids.len().max(1) as u64) as usize;
    pids.get(place).copied().context("nobody is there to be struck")
}

async fn frozen(pid: u32, long: Duration) {
    process::signal(pid, Signal::STOP);
    sleep(long).await;
    process::signal(pid, Signal::CONT);
}

/// The new master.
async fn upgrade(site: &Site, dice: &mut Dice) -> Result<u32> {
    let new = site.upgraded().await?;
    sleep(dice.below(SHORT)).await;
    site.signal(Signal::QUIT);
    process::death(site.master()).await?;
    Ok(new)
}

async fn take_back(site: &Site, dice: &mut Dice) -> Result<()> {
    let new = site.upgraded().await?;
    site.signal(Signal::WINCH);
    sleep(dice.below(SHORT)).await;
    site.signal(Signal::HUP);
    process::signal(new, Signal::QUIT);
    process::death(new).await?;
    site.serving(&[]).await.map(drop)
}

/// As after a reboot: what the daemon left running would be in the way.
async fn resurrected(stand: &Stand) -> Result<bool> {
    let (pm2, sidecar) = (&stand.pm2, sidecar(stand)?);
    wait::until("what PM2 left to be gone", PATIENCE, async || {
        let mut left = pm2.processes();
        // It knows the home, too.
        left.retain(|&pid| pid != sidecar);
        left.iter().for_each(|&pid| process::signal(pid, Signal::KILL));
        left.is_empty().then_some(())
    })
    .await?;
    pm2.run(&["resurrect"]).await?;
    Ok(true)
}
