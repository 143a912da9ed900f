//! What may come of a deploy, whatever befalls it. In words: `docs/operations/chaos.md`.

use super::{Ordeal, Seen, fault::Fault};
use crate::{
    app::Mode,
    clock::Moment,
    lives::Life,
    load::{Answer, Kind, Visit},
    stand::How,
};
use std::time::Duration;

/// nginx tells times in milliseconds, and on a machine that has other things to do it hears of what happened later.
const LATE: Duration = Duration::from_millis(250);

/// Why a visit could fail, and nobody can be blamed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Excuse {
    /// An order was with a worker when this died, or was sent to it over a kept connection just then.
    DiedWithWorker,
    /// Nobody listened.
    NobodyListened,
    /// It came to a worker of nginx that was killed.
    DiedWithNginx,
    /// nginx closed its connection before it came: any client sends it again.
    CrossedAReload,
}

/// What was promised of a round, and did not hold.
pub fn broken(seen: &Seen) -> Vec<String> {
    let mut broken: Vec<String> = seen.stuck.iter().map(|stuck| format!("stuck: {stuck}")).collect();
    let failed = seen.visits.iter().filter(|visit| visit.failed());
    for visit in failed.filter(|visit| seen.excuse(visit).is_none()) {
        let ordeal = seen.ordeal(visit);
        let fault = ordeal.map_or("nothing", |ordeal| ordeal.fault.says());
        let after = ordeal.map(|ordeal| visit.due.since(ordeal.struck).as_secs_f64());
        let begins = format!("{}|", visit.number);
        let logged = seen.lines.lines().find(|line| line.starts_with(&begins)).unwrap_or("nothing");
        broken.push(format!("{fault}, due {after:?} s after: {visit:?}, nginx logged {logged}"));
    }
    for (order, executions) in seen.orders.twice() {
        broken.push(format!("{order} ran twice: {executions:?}"));
    }
    for ordeal in &seen.ordeals {
        let Ordeal { fault, deploy, again, .. } = ordeal;
        if !deploy.is_done() && !may_end_short(*fault, deploy.how) {
            broken.push(format!(
                "{}: {} ended with {:?}: {}",
                fault.says(),
                deploy.how,
                deploy.exit,
                deploy.text
            ));
        }
        if !again.is_done() {
            let (how, exit) = (again.how, again.exit);
            broken.push(format!("{}: the {how} after it ended with {exit:?}: {}", fault.says(), again.text));
        }
    }
    broken
}

impl Seen {
    /// What befell the site while this visit was there, if anything did.
    pub fn ordeal(&self, visit: &Visit) -> Option<&Ordeal> {
        let ended = visit.due + visit.latency;
        self.ordeals.iter().find(|ordeal| visit.due <= ordeal.over && ended + LATE >= ordeal.struck)
    }

    pub fn excuse(&self, visit: &Visit) -> Option<Excuse> {
        let fault = self.ordeal(visit)?.fault;
        let order = |excuse| (self.died_with_worker(visit)).then_some(excuse);
        let untold = || order(Excuse::DiedWithWorker).or_else(|| self.nobody_listened(visit));
        match fault {
            Fault::SidecarRestarts
            | Fault::SidecarDies
            | Fault::SidecarFreezes
            | Fault::SidecarFreezesForLong
            | Fault::SocketRemoved
            | Fault::Pm2Dies
            | Fault::AllWorkersDie => untold(),
            Fault::WorkerDies => order(Excuse::DiedWithWorker).filter(|_| visit.kind == Kind::Order),
            Fault::NginxWorkerDies => {
                let struck = self.ordeal(visit)?.struck;
                let was_there = (visit.due..=visit.due + visit.latency + LATE).contains(&(struck + LATE / 2));
                let broke = matches!(visit.answer, Answer::Reset | Answer::Incomplete);
                (was_there && broke).then_some(Excuse::DiedWithNginx)
            }
            Fault::NginxReloads => self.crossed_a_reload(visit),
            // Only one of the two may have been told.
            Fault::NginxIsUpgraded | Fault::NginxUpgradeIsTakenBack => {
                self.crossed_a_reload(visit).or_else(|| order(Excuse::DiedWithWorker))
            }
            Fault::NginxWorkerFreezes
            | Fault::Pm2Freezes
            | Fault::WorkerFreezes
            | Fault::DiskFull
            | Fault::DiskReadOnly
            | Fault::WallClockForward
            | Fault::WallClockBack
            | Fault::SidecarSleeps => None,
        }
        .or_else(|| (fault == Fault::SocketRemoved).then(|| self.crossed_a_reload(visit)).flatten())
    }

    /// Where all share an address, nginx alone has nobody else to turn to, whatever the method.
    fn died_with_worker(&self, visit: &Visit) -> bool {
        let Some(last) = self.log.tried(visit.number).last() else { return false };
        let may_not_be_repeated = visit.kind == Kind::Order || self.round.site.mode == Mode::Cluster;
        let lasted = visit.due..=visit.due + visit.latency + LATE + LATE;
        let there = self.lives.iter().filter(|life| life.port == last.port());
        let mut ends = there.flat_map(|life: &Life| life.closed.into_iter().chain(life.died));
        may_not_be_repeated && ends.any(|end| lasted.contains(&(end + LATE)))
    }

    fn nobody_listened(&self, visit: &Visit) -> Option<Excuse> {
        let (from, to) = (visit.due, visit.due + visit.latency);
        let was_there = |&(began, ended): &(Moment, Moment)| from <= ended + LATE && to + LATE >= began;
        self.gaps().iter().any(was_there).then_some(Excuse::NobodyListened)
    }

    /// With Handoff or without, nginx closes its clients' idle connections as it reloads.
    fn crossed_a_reload(&self, visit: &Visit) -> Option<Excuse> {
        let crossed = visit.answer == Answer::Reset && !self.log.knows(visit.number);
        crossed.then_some(Excuse::CrossedAReload)
    }

    /// From when to when nobody listened, after the first had begun to.
    fn gaps(&self) -> Vec<(Moment, Moment)> {
        let mut steps: Vec<(Moment, i32)> = Vec::new();
        for life in &self.lives {
            let Some(listened) = life.listened else { continue };
            steps.push((listened, 1));
            let ended = life.closed.into_iter().chain(life.died).min();
            steps.extend(ended.map(|ended| (ended, -1)));
        }
        steps.sort_unstable();
        let (mut serving, mut since, mut gaps) = (0, None, Vec::new());
        for (at, step) in steps {
            serving += step;
            match since {
                None if serving == 0 => since = Some(at),
                Some(from) if serving > 0 => {
                    gaps.push((from, at));
                    since = None;
                }
                _ => {}
            }
        }
        gaps
    }
}

/// A deploy that loses what it works with may stop short, and say so.
fn may_end_short(fault: Fault, how: How) -> bool {
    match fault {
        // The daemon itself is gone.
        Fault::Pm2Dies => true,
        // Nobody can be told of a drain; PM2's own file cannot be written.
        Fault::SocketRemoved | Fault::DiskFull => true,
        // Another nginx knows nothing of what is under way.
        Fault::NginxIsUpgraded | Fault::NginxUpgradeIsTakenBack => how == How::Handoff,
        // A process that does not answer, and that no other can be told from.
        Fault::NginxWorkerFreezes => how == How::Handoff,
        // To `handoff reload` a new worker that dies is a broken release; PM2 starts one that it was just about to start.
        Fault::WorkerDies | Fault::AllWorkersDie => true,
        _ => false,
    }
}
