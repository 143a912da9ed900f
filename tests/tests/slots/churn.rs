//! Hundreds of peers come and go under every balancer and a constant load, and no request notices.

use crate::stage::Peers;
use anyhow::{Result, ensure};
use e2e::{
    alone,
    clock::Moment,
    crowd::{self, Ask},
    farm::{Arrival, Farm},
    load::{Load, Visit},
    ports,
    site::{Site, VERSIONS},
};
use rustix::process::Signal;
use std::collections::BTreeMap;

/// Whatever nginx has.
const BALANCERS: [&str; 9] = [
    "",
    "least_conn;",
    "ip_hash;",
    "hash $request_id;",
    "hash $request_id consistent;",
    "random;",
    "random two;",
    "random two least_conn;",
    "keepalive 8;",
];

/// Visits that pass while both are there, besides.
const PASSING: usize = 12;

/// One that was removed.
struct Removal {
    upstream: usize,
    peer: String,
    acknowledged: Moment,
    in_flight: u64,
    /// Just before it was added again.
    over: Moment,
}

struct Outcome {
    visits: Vec<Visit>,
    arrivals: Vec<Arrival>,
    removals: Vec<Removal>,
    adds: usize,
    passings: usize,
}

/// What happens to nginx meanwhile.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Meanwhile {
    Nothing,
    Reloads,
}

impl Meanwhile {
    /// Requests a second; each has a connection of its own if there are reloads.
    fn rate(self) -> u32 {
        match self {
            Self::Nothing => 600,
            Self::Reloads => 200,
        }
    }
}

async fn run(version: &str, rounds: usize, meanwhile: Meanwhile) -> Result<Outcome> {
    let _alone = alone::take()?;
    // The first two are always there, the others come and go.
    let farm = Farm::start(4).await?;
    let site = site(version, &farm, meanwhile).await?;
    let all = farm.peers();
    let [_, _, three, four] = all[..] else { unreachable!() };
    let load = Load::start(ports::address(site.port()), meanwhile.rate());
    let mut removals: Vec<Removal> = Vec::new();
    let (mut adds, mut passings) = (0, 0);
    for round in 0..rounds {
        for upstream in 0..BALANCERS.len() {
            let name = format!("u{upstream}");
            let peers = Peers { site: &site, upstream: &name };
            for peer in [three, four] {
                over(&mut removals, upstream, peer);
                peers.add(peer).await?;
                adds += 1;
            }
            let passing = (0..PASSING).map(|_| Ask::get("/fast"));
            let passed = crowd::ask(ports::address(site.port()), passing).await?;
            ensure!(passed.iter().all(|answer| answer.status == 200), "{passed:?}");
            passings += PASSING;
            for peer in if round % 2 == 0 { [three, four] } else { [four, three] } {
                // Every other is waited for.
                let wait = if round % 2 == 0 { "?timeout=5s" } else { "" };
                let ack = peers.remove(peer, wait).await?;
                ensure!(ack.changed, "{ack:?}");
                let (acknowledged, in_flight) = (Moment::now(), ack.in_flight);
                ensure!(wait.is_empty() || in_flight == 0, "{ack:?}");
                let peer = peer.to_owned();
                removals.push(Removal {
                    upstream,
                    peer,
                    acknowledged,
                    in_flight,
                    over: Moment::from_nanos(u64::MAX),
                });
            }
        }
        if meanwhile == Meanwhile::Reloads && round % 4 == 1 {
            site.signal(Signal::HUP);
        }
    }
    let visits = load.stop().await;
    let arrivals = farm.arrivals().await?;
    site.end().await?;
    Ok(Outcome { visits, arrivals, removals, adds, passings })
}

fn over(removals: &mut [Removal], upstream: usize, peer: &str) {
    let mut before = removals.iter_mut().rev();
    if let Some(removal) = before.find(|removal| removal.upstream == upstream && removal.peer == peer) {
        removal.over = Moment::now();
    }
}

/// Each visit goes to an upstream by chance, and its path says to which.
async fn site(version: &str, farm: &Farm, meanwhile: Meanwhile) -> Result<Site> {
    let mut site = Site::new(version).await?;
    let share = 100.0 / BALANCERS.len() as f64;
    let last = BALANCERS.len() - 1;
    let split: String = (0..last).map(|number| format!("{share:.2}% u{number}; ")).collect();
    let servers = farm.peers().into_iter().take(2).map(|peer| format!("server {peer}; "));
    let servers: String = servers.collect();
    let upstreams = BALANCERS.iter().enumerate().map(|(number, balancer)| {
        format!(
            "upstream u{number} {{ zone u{number} 128k; {balancer} {servers} handoff_slots 4; handoff; }}\n"
        )
    });
    // An old worker that ends closes connections of visitors, and one of them may be sending just then.
    let keepalive = if meanwhile == Meanwhile::Reloads { "keepalive_timeout 0;\n" } else { "" };
    site.write(&format!(
        "{keepalive}{}split_clients $request_id $up {{ {split} * u{last}; }}\n{}\n{}",
        upstreams.collect::<String>(),
        site.front("proxy_pass http://$up/$up$request_uri;"),
        site.api("write=on")
    ))?;
    site.start().await?;
    Ok(site)
}

impl Outcome {
    fn check(&self) -> Result<()> {
        let Self { visits, arrivals, removals, adds, passings } = self;
        let sent = visits.len() + passings;
        let failed: Vec<_> = visits.iter().filter(|visit| visit.failed()).collect();
        ensure!(failed.is_empty(), "{} of {} failed: {:?}", failed.len(), visits.len(), failed.first());
        ensure!(arrivals.len() == sent, "{sent} visits, {} arrivals", arrivals.len());
        for removal in removals {
            let is_late = |arrival: &&Arrival| {
                arrival.peer == removal.peer
                    && arrival.path.starts_with(&format!("/u{}/", removal.upstream))
                    && arrival.at < removal.over
                    && arrival.answered.is_none_or(|answered| answered > removal.acknowledged)
            };
            let late = arrivals.iter().filter(is_late).count();
            ensure!(
                late as u64 <= removal.in_flight,
                "{late} requests after the acknowledgement at {} in u{}, which counted {}",
                removal.peer,
                removal.upstream,
                removal.in_flight
            );
        }
        // What came must have been used, or nothing was shown.
        let mut served = BTreeMap::<_, usize>::new();
        for arrival in arrivals {
            *served.entry((arrival.path.split('/').nth(1), arrival.peer.as_str())).or_default() += 1;
        }
        eprintln!(
            "{sent} visits, 0 failed, 0 twice; {adds} peers added, {} removed; {served:?}",
            removals.len()
        );
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_notices_that_peers_come_and_go() -> Result<()> {
    for version in VERSIONS {
        run(version, 12, Meanwhile::Nothing).await?.check()?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn nor_that_nginx_is_reloaded_meanwhile() -> Result<()> {
    for version in VERSIONS {
        run(version, 8, Meanwhile::Reloads).await?.check()?;
    }
    Ok(())
}

/// For as long as it takes to believe it.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "two minutes: make churn"]
async fn no_request_of_a_hundred_thousand_notices() -> Result<()> {
    for version in VERSIONS {
        for meanwhile in [Meanwhile::Nothing, Meanwhile::Reloads] {
            let outcome = run(version, 200, meanwhile).await?;
            outcome.check()?;
        }
    }
    Ok(())
}
