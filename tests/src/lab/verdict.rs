//! What may come of a deploy of many hosts, whatever befalls them. In words: `docs/operations/many-hosts-faults.md`.

use super::{fault::Fault, trial::Outcome};
use crate::{
    clock::Moment,
    load::{Kind, Visit},
    stand::How,
};
use std::time::Duration;

/// nginx tells times in milliseconds, as of when it last looked at the clock.
const CLOCK: Duration = Duration::from_millis(10);
/// For so long nginx, on a machine that has other things to do, may not have heard that a worker has closed a connection.
const UNHEARD: Duration = Duration::from_millis(100);
/// The leases of all: what is silent for so long is given up.
const LEASE: Duration = Duration::from_secs(10);
/// How long a deploy of one host takes, and more than that on a machine that has other things to do.
const CALM: Duration = Duration::from_secs(20);

/// What was promised, and did not hold.
pub fn broken(outcome: &Outcome) -> Vec<String> {
    let mut broken = Vec::new();
    let failed: Vec<&Visit> = outcome.seen.failed().filter(|visit| !is_excused(outcome, visit)).collect();
    if let Some(visit) = failed.first() {
        let tried = outcome.seen.tried(visit);
        broken.push(format!("{} visits failed, the first of them {visit:?} at {tried:?}", failed.len()));
    }
    let twice = outcome.seen.orders.executed_twice();
    if twice > 0 {
        broken.push(format!("{twice} orders ran twice"));
    }
    for deploy in outcome.deploys.iter().filter(|deploy| !deploy.is_done()) {
        if !may_end_short(outcome.trial.fault) {
            broken.push(format!("a deploy did not end well: {:?}", deploy.reload));
        }
    }
    for deploy in outcome.again.iter().filter(|deploy| !deploy.is_done()) {
        broken.push(format!("the same deploy, when all was over, did not end well: {:?}", deploy.reload));
    }
    let longest = outcome.deploys.iter().map(|deploy| deploy.seconds()).fold(0.0, f64::max);
    let may_take = CALM + held_up(outcome.trial.fault);
    if longest > may_take.as_secs_f64() {
        broken.push(format!("a deploy took {longest:.1} s instead of {may_take:?} at most"));
    }
    broken
}

/// Whether a failure is one that nobody could have kept from the visitor.
pub fn is_excused(outcome: &Outcome, visit: &Visit) -> bool {
    let Some((struck, over)) = outcome.fault else { return false };
    let edge = outcome.seen.logs.first().is_some_and(|(edge, _)| *edge == visit.target);
    let ended = visit.due + visit.latency;
    match outcome.trial.fault {
        Fault::None
        | Fault::EdgeJoins
        | Fault::StoreRestarts
        | Fault::LeaderDies
        | Fault::HostLosesStore
        | Fault::EdgeSidecarRestarts => false,
        // Nobody tells this nginx any more, and hosts have given it up: to it, a worker that is replaced dies.
        Fault::EdgeLosesStore | Fault::EdgeSidecarDies => edge && died_with_it(outcome, visit),
        // Whether it arrived, nobody can know: it may not be repeated.
        Fault::HostLosesEdge => {
            let host = outcome.seen.hosts.first();
            let was_there = outcome.seen.tried(visit).last().is_some_and(|peer| Some(&peer.ip()) == host);
            edge && visit.kind == Kind::Order && was_there && visit.due <= over && ended >= struck
        }
        // There is no nginx.
        Fault::NginxRestarts => edge && visit.due <= over + CLOCK && ended + CLOCK >= struck,
        Fault::EdgeDies => edge && ended + CLOCK >= struck,
    }
}

/// An order was with a worker when it died, or was sent to it over a kept connection just then.
fn died_with_it(outcome: &Outcome, visit: &Visit) -> bool {
    let lasted =
        |died: Moment| (visit.due..=visit.due + visit.latency + CLOCK + UNHEARD).contains(&(died + UNHEARD));
    let Some(last) = outcome.seen.tried(visit).last() else { return false };
    let mut lives = outcome.seen.lives.iter();
    let is_there = |host: &std::net::IpAddr, port: u16| *host == last.ip() && port == last.port();
    visit.kind == Kind::Order
        && lives.any(|(host, life)| is_there(host, life.port) && life.died.is_some_and(lasted))
}

/// A deploy that cannot be handed over may stop short, and say so.
fn may_end_short(fault: Fault) -> bool {
    matches!(fault, Fault::HostLosesStore | Fault::StoreRestarts)
}

/// How much longer a deploy may take.
fn held_up(fault: Fault) -> Duration {
    match fault {
        Fault::None | Fault::EdgeJoins => Duration::ZERO,
        // Until the lease of the one that is silent is over.
        Fault::EdgeSidecarRestarts | Fault::EdgeSidecarDies | Fault::EdgeDies | Fault::NginxRestarts => LEASE,
        Fault::EdgeLosesStore => LEASE,
        // An election, and a client that finds another member.
        Fault::LeaderDies => LEASE,
        // As long as the store is out of reach, and until everybody has found it again.
        Fault::StoreRestarts => LEASE + LEASE,
        Fault::HostLosesStore => LEASE + LEASE + LEASE,
        // The new worker is looked at through the edges, too.
        Fault::HostLosesEdge => LEASE + LEASE,
    }
}

/// A line of the table.
pub fn row(outcome: &Outcome) -> String {
    let excused = outcome.seen.failed().filter(|visit| is_excused(outcome, visit)).count();
    let exits: Vec<String> =
        outcome.deploys.iter().filter_map(|deploy| Some(deploy.reload.as_ref()?.exit.to_string())).collect();
    let seconds: Vec<String> =
        outcome.deploys.iter().map(|deploy| format!("{:.1}", deploy.seconds())).collect();
    let how = match outcome.trial.how {
        How::Pm2 => "pm2 reload",
        How::Handoff => "handoff reload",
    };
    format!(
        "| {} | {how} | {} of {} ({excused} allowed) | {} | {} | {} | {:.1} |",
        outcome.trial.fault.says(),
        outcome.seen.failed().count(),
        outcome.seen.visits.len(),
        outcome.seen.orders.executed_twice(),
        seconds.join(", "),
        if exits.is_empty() { "-".to_owned() } else { exits.join(", ") },
        outcome.recovered.as_secs_f64(),
    )
}

pub const HEADER: &str = "| what befalls | deploy | failed | twice | seconds a host | exit | as ever after, s |\n|---|---|---|---|---|---|---|";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        access_log::AccessLog,
        app::Behaviour,
        lab::{
            Plan, Seen,
            trial::{Deploy, Trial},
        },
        load::Answer,
        nginx::Binary,
        orders::Orders,
        reload::Reload,
        scenario::Setup,
    };
    use std::net::SocketAddr;

    fn at(seconds: u64) -> Moment {
        Moment::from_nanos(0) + Duration::from_secs(seconds)
    }

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    /// One order fails from 10 s to 11 s, at this edge; nginx had tried the first host. Meanwhile this befalls.
    fn outcome(fault: Fault, edge: &str, exit: i32) -> Outcome {
        let nginx = Binary { path: "/nginx".into(), version: "1.22.1".to_owned() };
        let (setup, behaviour) = (Setup::Handoff, Behaviour::Naive);
        let plan = Plan { nginx, setup, edges: 2, hosts: 2, workers: 2, behaviour, members: 1 };
        let log = || AccessLog::parse("7|10.0.0.9:3000|502|0.000\n");
        let visit = Visit {
            number: 7,
            target: address(edge),
            kind: Kind::Order,
            due: at(10),
            latency: Duration::from_secs(1),
            answer: Answer::Reset,
        };
        let seen = Seen {
            visits: vec![visit],
            orders: Orders::default(),
            lives: Vec::new(),
            hosts: vec![address("10.0.0.9:80").ip()],
            logs: vec![(address("10.0.0.1:80"), log()), (address("10.0.0.2:80"), log())],
            began: at(0),
        };
        let reload = Some(Reload { exit, cut: 0, text: String::new() });
        Outcome {
            trial: Trial { plan, how: How::Handoff, fault, rate: 1 },
            seen,
            deploys: vec![Deploy { began: at(5), ended: at(12), reload }],
            again: Vec::new(),
            fault: Some((at(9), at(12))),
            recovered: Duration::ZERO,
        }
    }

    #[test]
    fn only_who_comes_to_the_edge_that_is_struck_may_fail() {
        for fault in [Fault::NginxRestarts, Fault::EdgeDies, Fault::HostLosesEdge] {
            assert_eq!(broken(&outcome(fault, "10.0.0.1:80", 0)), Vec::<String>::new(), "{fault:?}");
            assert_eq!(broken(&outcome(fault, "10.0.0.2:80", 0)).len(), 1, "{fault:?}");
        }
    }

    #[test]
    fn an_edge_that_is_not_told_may_fail_only_what_dies_with_a_worker() {
        let mut outcome = outcome(Fault::EdgeLosesStore, "10.0.0.1:80", 0);
        assert_eq!(broken(&outcome).len(), 1);
        let life = crate::lives::Life {
            worker: 1,
            port: 3000,
            instance: 0,
            booted: at(0),
            listened: Some(at(1)),
            closed: None,
            died: Some(at(11)),
        };
        outcome.seen.lives = vec![(address("10.0.0.9:80").ip(), life)];
        assert_eq!(broken(&outcome), Vec::<String>::new());
    }

    #[test]
    fn nobody_may_fail_where_nothing_is_lost() {
        for fault in
            [Fault::None, Fault::EdgeJoins, Fault::StoreRestarts, Fault::LeaderDies, Fault::HostLosesStore]
        {
            assert_eq!(broken(&outcome(fault, "10.0.0.1:80", 0)).len(), 1, "{fault:?}");
        }
    }

    #[test]
    fn a_deploy_may_stop_short_only_where_the_store_is_away() {
        assert_eq!(broken(&outcome(Fault::EdgeDies, "10.0.0.1:80", 3)).len(), 1);
        let short = outcome(Fault::HostLosesStore, "10.0.0.1:80", 3);
        assert!(broken(&short).iter().all(|what| what.contains("visits failed")));
    }
}
