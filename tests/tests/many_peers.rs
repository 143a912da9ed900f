//! Among many peers a balancer is told whom marks keep requests away from, and does not have to be refused.

use anyhow::{Context, Result, ensure};
use e2e::{
    blocks::{self, Block, servers},
    crowd::{self, Ask},
    farm::Farm,
    marker::Marker,
    ports,
    site::{Site, VERSIONS},
};
use handoff_wire::State;
use std::collections::BTreeSet;

const BALANCERS: [&str; 7] = [
    "",
    "least_conn;",
    "ip_hash;",
    "hash $arg_visitor;",
    "hash $arg_visitor consistent;",
    "random;",
    "random two;",
];
const KEEPALIVE: [&str; 2] = ["handoff;", "keepalive 8; handoff;"];

/// More than one word has bits for.
const PEERS: u16 = 67;

/// Round robin comes to each peer.
const ASKS: usize = PEERS as usize + 5;

/// An nginx in front of many peers.
struct Stage {
    farm: Farm,
    site: Site,
}

// === impl Stage ===

impl Stage {
    async fn new(version: &str, blocks: impl FnOnce(&[&str]) -> Vec<Block>) -> Result<Self> {
        let farm = Farm::start(PEERS).await?;
        let blocks: Vec<Block> =
            blocks(&farm.peers()).into_iter().map(|block| block.in_zone("512k")).collect();
        let mut site = Site::new(version).await?;
        let (http, api) = (blocks::http(site.port(), &blocks), site.api("write=on"));
        site.write(&format!("handoff_zone 8m;\n{http}\n{api}"))?;
        site.start().await?;
        Ok(Self { farm, site })
    }

    fn operator<'a>(&'a self, upstream: &'a str) -> Marker<'a> {
        Marker::operator(&self.site, upstream)
    }

    /// Who serves, where everybody is served.
    async fn serving(&self, upstream: &str) -> Result<BTreeSet<String>> {
        self.farm.arrivals().await?;
        let asks = (0..ASKS).map(|number| Ask::get(format!("/{upstream}/?visitor={number}")));
        let answers = crowd::ask(ports::address(self.site.port()), asks).await?;
        ensure!(answers.iter().all(|answer| answer.status == 200), "{upstream}: {answers:?}");
        Ok(self.farm.arrivals().await?.into_iter().map(|arrival| arrival.peer).collect())
    }

    /// How often the balancer chose one of these and was sent on.
    async fn refused(&self, upstream: &str, peers: &[&str]) -> Result<u64> {
        let mut refused = 0;
        for peer in peers {
            refused += self.operator(upstream).view(peer).await?.refused;
        }
        Ok(refused)
    }
}

fn set(peers: &[&str]) -> BTreeSet<String> {
    peers.iter().map(|&peer| peer.to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_balancer_chooses_who_is_marked() -> Result<()> {
    let kept = BALANCERS.map(|balancer| (balancer, "keepalive 8; handoff;"));
    let cases = || kept.into_iter().chain([("", "handoff;")]);
    for version in VERSIONS {
        let stage = Stage::new(version, |peers| {
            let lines =
                cases().map(|(it, keepalive)| format!("{it} {} {keepalive}", servers(peers.to_vec(), "")));
            (0..).zip(lines).map(|(number, lines)| Block::new(format!("u{number}"), lines)).collect()
        });
        let stage = stage.await?;
        let peers = stage.farm.peers();
        let marked: Vec<&str> = peers.iter().copied().step_by(2).collect();
        let left: Vec<&str> = peers.iter().copied().skip(1).step_by(2).collect();
        for (number, (balancer, keepalive)) in cases().enumerate() {
            let (name, what) = (&format!("u{number}"), format!("nginx {version}: {balancer} {keepalive}"));
            let operator = stage.operator(name);
            let comes_to_all = ["", "least_conn;"].contains(&balancer);
            operator.says(State::Draining, &marked).await?;
            let serving = stage.serving(name).await?;
            ensure!(serving.is_subset(&set(&left)), "{what}: {serving:?} serve");
            ensure!(!comes_to_all || serving == set(&left), "{what}: only {serving:?} serve");
            let refused = stage.refused(name, &marked).await?;
            ensure!(refused == 0, "{what}: the balancer was refused {refused} times");

            operator.says(State::Up, &marked).await?;
            let serving = stage.serving(name).await?;
            ensure!(!serving.is_disjoint(&set(&marked)), "{what}: only {serving:?} serve again");
            ensure!(!comes_to_all || serving == set(&peers), "{what}: {serving:?} serve again");
        }
        stage.site.end().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn backups_serve_when_all_primaries_are_marked_and_nobody_when_all_are() -> Result<()> {
    for version in VERSIONS {
        let cases =
            || ["", "least_conn;"].into_iter().flat_map(|it| KEEPALIVE.map(|keepalive| (it, keepalive)));
        let stage = Stage::new(version, |peers| {
            let (primaries, backups) = peers.split_at(usize::from(PEERS) / 2);
            let (primaries, backups) = (servers(primaries.to_vec(), ""), servers(backups.to_vec(), "backup"));
            let lines = cases().map(|(it, keepalive)| format!("{it} {primaries} {backups} {keepalive}"));
            (0..).zip(lines).map(|(number, lines)| Block::new(format!("u{number}"), lines)).collect()
        });
        let stage = stage.await?;
        let peers = stage.farm.peers();
        let (primaries, backups) = peers.split_at(usize::from(PEERS) / 2);
        for number in 0..cases().count() {
            let name = &format!("u{number}");
            let operator = stage.operator(name);
            operator.says(State::Draining, primaries).await?;
            ensure!(stage.serving(name).await? == set(backups), "{name}: not the backups");
            let (away, left) = backups.split_at(5);
            operator.says(State::Down, away).await?;
            ensure!(stage.serving(name).await? == set(left), "{name}: not the backups that are left");
            operator.says(State::Draining, left).await?;
            let answer = crowd::one(ports::address(stage.site.port()), format!("/{name}/")).await?;
            ensure!(answer.status == 502 && answer.peer.is_none(), "{name}: {answer:?}");
            operator.says(State::Up, primaries).await?;
            ensure!(stage.serving(name).await? == set(primaries), "{name}: not the primaries");
        }
        stage.site.end().await?;
    }
    Ok(())
}

/// What a balancer was told for one choice it is not to remember in the next.
#[tokio::test(flavor = "multi_thread")]
async fn who_came_up_while_a_request_was_elsewhere_gets_it_when_that_breaks() -> Result<()> {
    for version in VERSIONS {
        let stage = Stage::new(version, |peers| {
            let lines = |keepalive| format!("{} handoff_queue off; {keepalive}", servers(peers.to_vec(), ""));
            (0..).zip(KEEPALIVE.map(lines)).map(|(number, it)| Block::new(format!("u{number}"), it)).collect()
        });
        let stage = stage.await?;
        let peers = stage.farm.peers();
        let (&first, others) = peers.split_first().context("no peers")?;
        let second = others.last().context("one peer")?;
        for number in 0..KEEPALIVE.len() {
            let name = format!("u{number}");
            let operator = stage.operator(&name);
            operator.says(State::Draining, others).await?;
            let address = ports::address(stage.site.port());
            let visit = tokio::spawn(crowd::one(address, format!("/{name}/hold")));
            stage.farm.holds(&[first]).await?;
            operator.says(State::Up, &[second]).await?;
            stage.farm.disconnect(first).await?;
            stage.farm.holds(&[second]).await?;
            stage.farm.release().await?;
            let answer = visit.await??;
            ensure!(answer.status == 200 && answer.peer.as_deref() == Some(second), "{name}: {answer:?}");
            operator.says(State::Up, others).await?;
        }
        stage.site.end().await?;
    }
    Ok(())
}
