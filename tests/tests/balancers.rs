//! Whatever balancer an operator chose: a marked peer gets nothing, the others get what is theirs, and who is up again
//! gets its own at once.

use anyhow::{Result, ensure};
use e2e::{
    blocks::{self, Block},
    crowd::{self, Answer, Ask},
    farm::Farm,
    marker::Marker,
    ports,
    site::{PATIENCE, Site, VERSIONS},
    wait,
};
use handoff_wire::{PeerState, State};
use std::collections::BTreeMap;

/// How a balancer shares out.
#[derive(Clone, Copy, Debug)]
enum Shares {
    /// By weight, give or take this part of what is due.
    Even(f64),
    /// Each visitor keeps to its peer.
    Sticky,
}

/// Its line, the weights of its four servers, and what is to be seen of it.
struct Balancer(&'static str, [u32; 4], Shares);

const EQUAL: [u32; 4] = [1; 4];

const BALANCERS: [Balancer; 10] = [
    Balancer("", EQUAL, Shares::Even(0.1)),
    Balancer("", [4, 2, 1, 1], Shares::Even(0.2)),
    Balancer("least_conn;", EQUAL, Shares::Even(0.6)),
    // Its weights decide only where the connections of two peers are even.
    Balancer("least_conn;", [4, 2, 1, 1], Shares::Even(1.0)),
    Balancer("hash $arg_visitor;", EQUAL, Shares::Sticky),
    Balancer("hash $arg_visitor consistent;", EQUAL, Shares::Sticky),
    Balancer("ip_hash;", EQUAL, Shares::Sticky),
    Balancer("random;", EQUAL, Shares::Even(0.8)),
    Balancer("random two;", EQUAL, Shares::Even(0.6)),
    Balancer("random two least_conn;", EQUAL, Shares::Even(0.6)),
];

/// Where `keepalive` stands, if it does.
const KEEPALIVE: [&str; 3] = ["handoff;", "keepalive 8; handoff;", "handoff; keepalive 8;"];

/// Every visitor asks four times.
const ASKS: usize = 4 * crowd::SIZE as usize;

/// One upstream with its peers, and all that is known of how it shares out.
struct Pool<'a> {
    site: &'a Site,
    farm: &'a Farm,
    name: &'a str,
    weights: BTreeMap<&'a str, u32>,
    shares: Shares,
    marker: Marker<'a>,
}

type Homes = BTreeMap<usize, String>;

impl Pool<'_> {
    async fn ask(&self, count: usize, header: Option<(&'static str, &str)>) -> Result<Vec<Answer>> {
        let asks = (0..count).map(|number| {
            let ask = Ask::get(format!("/{}/?visitor={}", self.name, visitor(number)));
            header.into_iter().fold(ask, |ask, (name, value)| ask.with(name, value))
        });
        crowd::ask(ports::address(self.site.port()), asks).await
    }

    /// Everybody is answered, nothing reaches the `marked`, and the others get what is theirs. Which visitor went where.
    async fn serves_without(&self, marked: &[&str]) -> Result<Homes> {
        self.farm.arrivals().await?;
        let answers = self.ask(ASKS, None).await?;
        let mut arrived: BTreeMap<&str, u32> = self.weights.keys().map(|&peer| (peer, 0)).collect();
        let arrivals = self.farm.arrivals().await?;
        for arrival in &arrivals {
            *arrived.entry(&arrival.peer).or_default() += 1;
        }
        ensure!(answers.iter().all(|answer| answer.status == 200), "{answers:?}");
        ensure!(arrivals.len() == ASKS, "{ASKS} requests, {arrived:?}");
        let left: u32 =
            self.weights.iter().filter(|(peer, _)| !marked.contains(peer)).map(|(_, weight)| weight).sum();
        for (peer, &got) in &arrived {
            if marked.contains(peer) {
                ensure!(got == 0, "{got} requests reached the marked {peer}");
            } else if let (Shares::Even(tolerance), Some(&weight)) = (self.shares, self.weights.get(peer)) {
                let due = ASKS as f64 * f64::from(weight) / f64::from(left);
                let off = (f64::from(got) - due).abs();
                ensure!(off <= 2.0 + due * tolerance, "{peer} is due {due:.0} and got {got} of {arrived:?}");
            }
        }
        homes(&answers)
    }

    /// Back to how it was when nobody was marked.
    async fn serves_all(&self, before: &Homes) -> Result<()> {
        let after = self.serves_without(&[]).await?;
        ensure!(!self.is_sticky() || after == *before, "visitors moved: {before:?} to {after:?}");
        Ok(())
    }

    /// Who did not live at a marked peer does not move.
    async fn moves_only_from(&self, marked: &[&str], before: &Homes) -> Result<()> {
        let during = self.serves_without(marked).await?;
        let strayed = before
            .iter()
            .filter(|(visitor, home)| !marked.contains(&home.as_str()) && during.get(visitor) != Some(home));
        let strayed: Vec<_> = strayed.collect();
        ensure!(!self.is_sticky() || strayed.is_empty(), "without need: {strayed:?} of {during:?}");
        Ok(())
    }

    /// nginx finds out by itself that a peer fails. Its visitors are served by others.
    async fn fails(&self, peer: &str) -> Result<()> {
        let left_out = async || self.is_left_out(peer).await.map(|out| out.then_some(())).transpose();
        wait::until("nginx to leave the peer out", PATIENCE, left_out).await?
    }

    async fn is_left_out(&self, peer: &str) -> Result<bool> {
        for answer in self.ask(ASKS, Some(("x-die", peer))).await? {
            ensure!(answer.status == 200, "{answer:?} while {peer} fails");
        }
        Ok(self.marker.view(peer).await?.state == PeerState::Unavail)
    }

    async fn is(&self, peer: &str, state: PeerState) -> Result<()> {
        let view = self.marker.view(peer).await?;
        ensure!(view.state == state, "not {state}: {view:?}");
        Ok(())
    }

    fn is_sticky(&self) -> bool {
        matches!(self.shares, Shares::Sticky)
    }

    // === the promises ===

    async fn a_mark_keeps_everybody_away(&self, one: &str, other: &str, before: &Homes) -> Result<()> {
        for (state, marked) in [
            (State::Draining, vec![one]),
            (State::Down, vec![one]),
            (State::Checking, vec![one, other]),
            (State::Unhealthy, vec![one, other]),
        ] {
            self.marker.says(state, &marked).await?;
            self.moves_only_from(&marked, before).await?;
            self.marker.says(State::Up, &marked).await?;
            self.serves_all(before).await?;
        }
        Ok(())
    }

    async fn a_planned_return_forgives(&self, peer: &str, before: &Homes) -> Result<()> {
        self.fails(peer).await?;
        self.marker.says(State::Draining, &[peer]).await?;
        self.marker.says(State::Up, &[peer]).await?;
        self.is(peer, PeerState::Up).await?;
        self.serves_all(before).await
    }

    /// What nginx counted stays as it is: nothing at first, then a failure.
    async fn an_unplanned_return_does_not(&self, peer: &str, before: &Homes) -> Result<()> {
        let sidecar = Marker::pm2(self.site, self.name);
        sidecar.says(State::Down, &[peer]).await?;
        self.serves_without(&[peer]).await?;
        sidecar.says(State::Up, &[peer]).await?;
        self.serves_all(before).await?;

        self.fails(peer).await?;
        sidecar.says(State::Down, &[peer]).await?;
        self.serves_without(&[peer]).await?;
        sidecar.says(State::Up, &[peer]).await?;
        self.is(peer, PeerState::Unavail).await?;
        self.serves_without(&[peer]).await.map(drop)
    }

    async fn with_nobody_left_it_is_as_stock(&self, before: &Homes) -> Result<()> {
        let all: Vec<&str> = self.weights.keys().copied().collect();
        self.marker.says(State::Draining, &all).await?;
        self.farm.arrivals().await?;
        let answers = self.ask(crowd::SIZE.into(), None).await?;
        ensure!(answers.iter().all(|answer| answer.status == 502), "{answers:?}");
        ensure!(self.farm.arrivals().await?.is_empty(), "somebody was reached");
        self.marker.says(State::Up, &all).await?;
        self.serves_all(before).await
    }

    async fn keeps_every_promise(&self) -> Result<()> {
        let before = self.serves_without(&[]).await?;
        // With a sticky balancer, one that somebody lives at.
        let one = before.values().next().map_or("", String::as_str);
        let other = self.weights.keys().find(|&&peer| peer != one).copied().unwrap_or_default();
        self.an_unplanned_return_does_not(one, &before).await?;
        self.a_planned_return_forgives(one, &before).await?;
        self.a_mark_keeps_everybody_away(one, other, &before).await?;
        self.with_nobody_left_it_is_as_stock(&before).await
    }
}

fn visitor(number: usize) -> usize {
    number % usize::from(crowd::SIZE)
}

/// Where each visitor was served the first time.
fn homes(answers: &[Answer]) -> Result<Homes> {
    let mut homes = Homes::new();
    for (number, answer) in answers.iter().enumerate() {
        let peer = answer.peer.clone().unwrap_or_default();
        homes.entry(visitor(number)).or_insert(peer);
    }
    Ok(homes)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_balancer_leaves_marked_peers_alone_and_takes_them_back_at_once() {
    for version in VERSIONS {
        let farm = Farm::start(4).await.unwrap();
        let cases: Vec<_> =
            BALANCERS.iter().flat_map(|it| KEEPALIVE.map(|keepalive| (it, keepalive))).collect();
        let blocks: Vec<Block> = cases
            .iter()
            .enumerate()
            .map(|(number, (Balancer(line, weights, _), keepalive))| {
                let peers = farm.peers();
                let servers = peers.iter().zip(weights).map(|(peer, weight)| {
                    // So long that whoever is used again was forgiven.
                    format!("server {peer} weight={weight} max_fails=1 fail_timeout=1h;")
                });
                let servers: String = servers.collect();
                Block::new(format!("u{number}"), format!("{line} {servers} {keepalive}"))
            })
            .collect();
        let site = blocks::site(version, &blocks).await.unwrap();
        for (block, (Balancer(line, weights, shares), keepalive)) in blocks.iter().zip(cases) {
            let pool = Pool {
                site: &site,
                farm: &farm,
                name: block.name(),
                weights: farm.peers().into_iter().zip(*weights).collect(),
                shares: *shares,
                marker: Marker::operator(&site, block.name()),
            };
            let kept = pool.keeps_every_promise().await;
            kept.unwrap_or_else(|error| panic!("{line} {weights:?} {keepalive}: {error:#}"));
        }
        site.end().await.unwrap();
    }
}
