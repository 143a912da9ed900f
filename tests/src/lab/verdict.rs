//! What may come of a deploy of many hosts, whatever befalls them. In words: `docs/operations/many-hosts-faults.md`.

use super::{
    fault::Fault,
    trial::{How, Outcome},
};
use crate::{
    clock::Moment,
    load::{Kind, Visit},
};
use std::time::Duration;

/// nginx tells times in milliseconds, as of when it last looked at the clock.
const CLOCK: Duration = Duration::from_millis(10);
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

/// An order was with a worker when it died.
fn died_with_it(outcome: &Outcome, visit: &Visit) -> bool {
    let lasted = |died: Moment| (visit.due..=visit.due + visit.latency + CLOCK).contains(&died);
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
