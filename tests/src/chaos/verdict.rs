//! What may come of a deploy, whatever befalls it. In words: `docs/operations/chaos.md`.

use super::{Ordeal, Seen, fault::Fault};
use crate::{
    app::Mode,
    clock::Moment,
    lives::{self, Life},
    load::{Answer, Kind, Visit},
    scenario::Level,
    stand::How,
};
use std::{collections::BTreeSet, time::Duration};

/// nginx tells times in milliseconds, and on a machine that has other things to do it hears of what happened later.
const LATE: Duration = Duration::from_millis(250);

/// Of a mark's owner, where nobody serves, and how often nginx looks.
const SILENCE: Duration = Duration::from_millis(3_250);

/// A worker with the preload finishes what it has before it goes, and writes nothing down: only its end is known.
const LEAVING: Duration = Duration::from_millis(1_500);

/// Whose end may explain a failure.
const NEAR: Duration = Duration::from_secs(5);

/// Why a visit could fail, and nobody can be blamed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Excuse {
    /// An order was with a worker when this died, or was sent to it over a kept connection just then.
    DiedWithWorker,
    /// Nobody listened.
    NobodyListened,
    /// Nobody listened at the only address that the marks of a silent sidecar left, and it could not wait until they ran out.
    HeldBack,
    /// It came to a worker of nginx that was killed.
    DiedWithNginx,
    /// nginx closed its connection before it came: any client sends it again.
    CrossedAReload,
    /// One of so many that their worker's death broke at once that the budget of `handoff_retry` was spent.
    OverBudget,
    /// At L0, an order that the worker had not taken in when PM2's signal came: on a starved machine PM2's word comes too late.
    RaceLost,
}

/// Of the thousands of visits of a round.
const MOST_RACES: usize = 2;

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
        let ends = seen.lives.iter().filter_map(|life| Some((life.port, life.ended()?)));
        let is_near = |&(_, end): &(u16, Moment)| end + NEAR >= visit.due && visit.due + NEAR >= end;
        let ends: Vec<_> = ends.filter(is_near).collect();
        broken.push(format!(
            "{fault}, due {after:?} s after: {visit:?}, nginx logged {logged}; of its workers ended {ends:?}"
        ));
    }
    let races = seen.races_lost();
    if races > MOST_RACES {
        broken.push(format!("{races} orders were cut at L0: no machine is that busy"));
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
        let race_lost = || {
            let is_possible = self.round.site.level == Level::L0 && visit.kind == Kind::Order;
            (is_possible && self.died_with_worker(visit)).then_some(Excuse::RaceLost)
        };
        self.excuse_by_fault(visit).or_else(race_lost)
    }

    pub fn races_lost(&self) -> usize {
        let is_lost = |visit: &&Visit| visit.failed() && self.excuse(visit) == Some(Excuse::RaceLost);
        self.visits.iter().filter(is_lost).count()
    }

    fn excuse_by_fault(&self, visit: &Visit) -> Option<Excuse> {
        let &Ordeal { fault, anew, .. } = self.ordeal(visit)?;
        let order = |excuse| (self.died_with_worker(visit)).then_some(excuse);
        let untold = || {
            let excuse = order(Excuse::DiedWithWorker).or_else(|| self.nobody_listened(visit));
            excuse.or_else(|| self.held_back(visit))
        };
        match fault {
            Fault::SidecarRestarts
            | Fault::SidecarDies
            | Fault::SidecarFreezes
            | Fault::SidecarFreezesForLong
            | Fault::SocketRemoved
            | Fault::Pm2Dies
            | Fault::AllWorkersDie => untold(),
            Fault::WorkerDies if visit.kind == Kind::Order => order(Excuse::DiedWithWorker),
            Fault::WorkerDies => order(Excuse::OverBudget).filter(|_| self.log.is_over_budget(visit.number)),
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
            Fault::DiskFull if anew => untold(),
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
        let leaving = if self.round.site.level == Level::L2 { LEAVING } else { Duration::ZERO };
        let lasted = visit.due..=visit.due + visit.latency + LATE + LATE + leaving;
        let there = self.lives.iter().filter(|life| life.port == last.port());
        let mut ends = there.flat_map(|life: &Life| life.closed.into_iter().chain(life.died));
        may_not_be_repeated && ends.any(|end| lasted.contains(&(end + LATE)))
    }

    fn nobody_listened(&self, visit: &Visit) -> Option<Excuse> {
        let (from, to) = (visit.due, visit.due + visit.latency);
        let was_there = |&(began, ended): &(Moment, Moment)| from <= ended + LATE && to + LATE >= began;
        let all = match self.round.site.mode {
            Mode::Fork => self.round.site.workers,
            Mode::Cluster => 1,
        };
        // A worker that goes has closed its port before it ends, and nobody but nginx sees it.
        let refused: Option<BTreeSet<_>> =
            self.log.refused(visit.number).map(|tried| tried.iter().copied().collect());
        let met_nobody = refused.is_some_and(|tried| tried.len() == usize::from(all));
        (met_nobody || lives::gaps(&self.lives).iter().any(was_there)).then_some(Excuse::NobodyListened)
    }

    fn held_back(&self, visit: &Visit) -> Option<Excuse> {
        let last = self.log.tried(visit.number).last()?;
        let mut there = self.lives.iter().filter(|life| life.port == last.port());
        let (from, to) = (visit.due, visit.due + visit.latency);
        let listened = |life: &Life| {
            let ended = life.ended();
            life.listened.is_some_and(|at| at + LATE < from) && ended.is_none_or(|at| at > to)
        };
        let lapsed = self.ordeal(visit)?.struck + SILENCE + LATE;
        (visit.due < lapsed && !there.any(listened)).then_some(Excuse::HeldBack)
    }

    /// With Handoff or without, nginx closes its clients' idle connections as it reloads.
    fn crossed_a_reload(&self, visit: &Visit) -> Option<Excuse> {
        let crossed = visit.answer == Answer::Reset && !self.log.knows(visit.number);
        crossed.then_some(Excuse::CrossedAReload)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        access_log::AccessLog,
        chaos::Round,
        orders::Orders,
        ports,
        stand::{Deploy, Plan},
    };
    use hyper::StatusCode;

    fn at(seconds: f64) -> Moment {
        Moment::from_nanos(0) + Duration::from_secs_f64(seconds)
    }

    /// One visit of this kind fails from 10 s on, for 100 ms; nginx tried the worker of port 3000, which dies then.
    fn seen(fault: Fault, kind: Kind, due: f64) -> Seen {
        seen_at(Level::L1, fault, kind, due)
    }

    fn seen_at(level: Level, fault: Fault, kind: Kind, due: f64) -> Seen {
        let code = StatusCode::BAD_GATEWAY;
        let visit = Visit {
            number: 7,
            target: ports::address(80),
            kind,
            due: at(due),
            latency: Duration::from_millis(100),
            answer: Answer::Status { code, worker: None },
        };
        let life = |port: u16, died| Life {
            worker: port.into(),
            port,
            instance: 0,
            booted: at(0.0),
            listened: Some(at(1.0)),
            closed: None,
            died,
        };
        let deploy =
            Deploy { how: How::Pm2, began: at(8.0), ended: at(12.0), exit: Some(0), text: String::new() };
        let site = Plan { nginx: "1.22.1", mode: Mode::Fork, level, workers: 2, guesses: false };
        let lines = "7|127.0.0.1:3000|502|0.000\n".to_owned();
        Seen {
            round: Round { number: 0, seed: 0, site, faults: vec![fault], rate: 1 },
            ordeals: vec![Ordeal {
                fault,
                struck: at(9.0),
                over: at(30.0),
                anew: false,
                again: deploy.clone(),
                deploy,
            }],
            visits: vec![visit],
            orders: Orders::default(),
            lives: vec![life(3000, Some(at(10.05))), life(3001, None)],
            log: AccessLog::parse(&lines),
            lines,
            said: String::new(),
            stuck: None,
        }
    }

    #[test]
    fn an_order_may_die_with_its_worker_only_where_nobody_tells_nginx_or_the_worker_is_struck() {
        let excuse = |fault| {
            let seen = seen(fault, Kind::Order, 10.0);
            (broken(&seen).len(), seen.visits.first().and_then(|visit| seen.excuse(visit)))
        };
        for fault in [Fault::SidecarDies, Fault::SocketRemoved, Fault::WorkerDies, Fault::NginxIsUpgraded] {
            assert_eq!(excuse(fault), (0, Some(Excuse::DiedWithWorker)), "{fault:?}");
        }
        for fault in [
            Fault::NginxReloads,
            Fault::WallClockBack,
            Fault::DiskFull,
            Fault::NginxWorkerDies,
            Fault::WorkerFreezes,
        ] {
            assert_eq!(excuse(fault), (1, None), "{fault:?}");
        }
    }

    #[test]
    fn at_l0_a_race_may_be_lost_now_and_then() {
        let mut seen = seen_at(Level::L0, Fault::WorkerFreezes, Kind::Order, 10.0);
        let visit = seen.visits[0].clone();
        assert_eq!((broken(&seen).len(), seen.excuse(&visit)), (0, Some(Excuse::RaceLost)));
        seen.visits = vec![visit; MOST_RACES + 1];
        assert_eq!(broken(&seen).len(), 1);
        let fast = seen_at(Level::L0, Fault::WorkerFreezes, Kind::Fast, 10.0);
        assert_eq!(broken(&fast).len(), 1, "a GET is sent elsewhere");
    }

    #[test]
    fn behind_one_address_a_death_may_break_more_than_the_budget() {
        let mut seen = seen(Fault::WorkerDies, Kind::Fast, 10.0);
        seen.round.site.mode = Mode::Cluster;
        assert_eq!(broken(&seen).len(), 1);
        seen.log = AccessLog::parse("7|127.0.0.1:3000|502|0.000|budget|changing|0.001\n");
        assert_eq!(seen.visits.first().and_then(|visit| seen.excuse(visit)), Some(Excuse::OverBudget));
    }

    #[test]
    fn who_may_be_sent_elsewhere_must_be_served() {
        assert_eq!(broken(&seen(Fault::WorkerDies, Kind::Fast, 10.0)).len(), 1);
    }

    #[test]
    fn marks_of_a_silent_sidecar_hold_nobody_back_for_longer_than_three_seconds() {
        let excuse = |due| {
            let seen = seen(Fault::SidecarDies, Kind::Fast, due);
            seen.visits.first().and_then(|visit| seen.excuse(visit))
        };
        assert_eq!(excuse(12.0), Some(Excuse::HeldBack));
        assert_eq!(excuse(13.0), None);
    }

    #[test]
    fn before_and_after_nobody_may_fail() {
        for due in [5.0, 31.0] {
            assert_eq!(broken(&seen(Fault::SidecarDies, Kind::Order, due)).len(), 1, "at {due}");
        }
    }

    #[test]
    fn a_deploy_may_stop_short_only_where_it_loses_what_it_works_with() {
        let with = |fault, exit| {
            let mut seen = seen(fault, Kind::Fast, 10.0);
            seen.visits.clear();
            for ordeal in &mut seen.ordeals {
                ordeal.deploy.exit = exit;
            }
            broken(&seen).len()
        };
        assert_eq!([with(Fault::Pm2Dies, Some(1)), with(Fault::SidecarDies, Some(1))], [0, 1]);
        assert_eq!(with(Fault::SidecarDies, None), 1);
    }
}
