//! From the call to the acknowledgement, and who comes to the peer after it: Handoff, Handoff again, and HAProxy, by turns and
//! under the same load.
//!
//! Each stands in front of peers of its own, all of them in one process of Node, which stamps every arrival with the clock by
//! which the calls are stamped. Both are asked as a script asks them: a connection to their unix socket for each call.

use super::figures::{Sample, Table};
use crate::{
    blocks::servers,
    clock::Moment,
    crowd::{self, Ask},
    farm::{Arrival, Farm},
    haproxy::{self, Haproxy},
    load::Load,
    marker::Marker,
    ports,
    site::Site,
    wait,
};
use anyhow::{Context, Result, ensure};
use handoff_wire::State;
use std::{fmt, time::Duration};

#[derive(Clone, Debug)]
pub struct Plan {
    pub nginx: String,
    /// Of each.
    pub drains: usize,
    /// Visits a second to each.
    pub rate: u32,
    pub haproxy: bool,
}

/// What became of the drains of one proxy.
#[derive(Debug)]
pub struct Outcome {
    pub proxy: &'static str,
    pub drains: Vec<Drain>,
    arrivals: Vec<Arrival>,
}

#[derive(Clone, Debug)]
pub struct Drain {
    peer: String,
    ordered: Moment,
    acknowledged: Moment,
    /// What the acknowledgement says.
    in_flight: Option<u64>,
    drained: Moment,
    /// Just before it was let back.
    over: Moment,
}

#[derive(Debug)]
pub struct Report(pub Vec<Outcome>);

/// Of each proxy.
const PEERS: u16 = 4;
const PROCESSES: usize = 2;
const PATIENCE: Duration = Duration::from_secs(30);
/// Visits that pass between `drained` and `up`: time enough for one that should not be there.
const PASSING: usize = 12;

enum Proxy {
    Handoff(Site),
    Haproxy(Haproxy),
}

// === impl Plan ===

impl Plan {
    pub async fn play(&self) -> Result<Report> {
        let farm = Farm::start(3 * PEERS).await?;
        let peers = farm.peers();
        let mut thirds = peers.chunks(PEERS.into());
        let mut proxies = Vec::new();
        for name in ["Handoff", "Handoff again"] {
            let peers = thirds.next().context("too few peers")?;
            proxies.push((name, Proxy::Handoff(self.site(peers).await?), peers));
        }
        // Its directory.
        let site = Site::new(&self.nginx).await?;
        if self.haproxy {
            let peers = thirds.next().context("too few peers")?;
            let addresses = peers.iter().map(|peer| peer.parse()).collect::<Result<Vec<_>, _>>()?;
            let haproxy = Haproxy::start(&site.place().haproxy_prefix(), ports::row(1)?, &addresses).await?;
            proxies.push(("HAProxy", Proxy::Haproxy(haproxy), peers));
        }

        let targets: Vec<_> = proxies.iter().map(|(_, proxy, _)| ports::address(proxy.port())).collect();
        let load = Load::over(&targets, self.rate * u32::try_from(targets.len())?);
        let mut drains = vec![Vec::new(); proxies.len()];
        for number in 0..self.drains {
            let mut order: Vec<_> = proxies.iter().zip(&mut drains).collect();
            let turn = number % order.len();
            order.rotate_left(turn);
            for ((name, proxy, peers), drains) in order {
                let place = number % peers.len();
                let peer = peers.get(place).context("no peer")?;
                let drain = proxy.drain(place, peer).await;
                drains.push(drain.with_context(|| format!("drain {number} of {name}"))?);
            }
        }
        let visits = load.stop().await;
        let failed = visits.iter().filter(|visit| visit.failed()).count();
        ensure!(failed == 0, "{failed} of {} visits failed", visits.len());
        let arrivals: Vec<Arrival> = farm.arrivals().await?;

        let mut outcomes = Vec::new();
        for ((proxy, stands, peers), drains) in proxies.into_iter().zip(drains) {
            // HAProxy asks its servers how they are.
            let is_visit = |arrival: &&Arrival| arrival.path != "/health";
            let here = arrivals.iter().filter(is_visit);
            let here = here.filter(|arrival| peers.contains(&arrival.peer.as_str()));
            outcomes.push(Outcome { proxy, drains, arrivals: here.cloned().collect() });
            stands.end().await?;
        }
        Ok(Report(outcomes))
    }

    async fn site(&self, peers: &[&str]) -> Result<Site> {
        let mut site = Site::new(&self.nginx).await?.workers(PROCESSES);
        site.write(&format!(
            "upstream app {{ zone app 256k; least_conn; {} keepalive 32; handoff; }}\n{}\n{}",
            servers(peers.iter().copied(), "max_fails=0"),
            site.front("proxy_pass http://app;"),
            site.api("write=on")
        ))?;
        site.start().await?;
        Ok(site)
    }
}

// === impl Proxy ===

impl Proxy {
    fn port(&self) -> u16 {
        match self {
            Self::Handoff(site) => site.port(),
            Self::Haproxy(haproxy) => haproxy.port(),
        }
    }

    async fn drain(&self, number: usize, peer: &str) -> Result<Drain> {
        let server = haproxy::server(number);
        let ordered = Moment::now();
        let in_flight = match self {
            Self::Handoff(site) => {
                let ack = Marker::operator(site, "app").says(State::Draining, &[peer]).await?;
                Some(ack.marks.first().context("an acknowledgement of nothing")?.in_flight)
            }
            Self::Haproxy(haproxy) => {
                haproxy.set(&server, haproxy::State::Drain).await?;
                None
            }
        };
        let acknowledged = Moment::now();
        match self {
            Self::Handoff(site) => _ = Marker::operator(site, "app").drained(peer).await?,
            Self::Haproxy(haproxy) => {
                wait::until("its sessions to end", PATIENCE, async || {
                    (haproxy.shows(&server).await.ok()?.sessions == 0).then_some(())
                })
                .await?;
            }
        }
        let drained = Moment::now();
        let passing = (0..PASSING).map(|_| Ask::get("/fast"));
        let passed = crowd::ask(ports::address(self.port()), passing).await?;
        ensure!(passed.iter().all(|answer| answer.status == 200), "{passed:?}");
        let over = Moment::now();
        match self {
            Self::Handoff(site) => _ = Marker::operator(site, "app").says(State::Up, &[peer]).await?,
            Self::Haproxy(haproxy) => haproxy.set(&server, haproxy::State::Ready).await?,
        }
        Ok(Drain { peer: peer.to_owned(), ordered, acknowledged, in_flight, drained, over })
    }

    async fn end(self) -> Result<()> {
        match self {
            Self::Handoff(site) => site.end().await,
            Self::Haproxy(haproxy) => haproxy.stop(),
        }
    }
}

// === impl Outcome ===

impl Outcome {
    pub fn calls(&self) -> Sample {
        let mut calls = Sample::default();
        calls.extend(self.drains.iter().map(|drain| drain.acknowledged.since(drain.ordered)));
        calls
    }

    /// Those who were on their way to the peer when it was acknowledged that nobody more would be sent.
    pub fn late(&self) -> usize {
        self.after(|drain| drain.acknowledged)
    }

    /// Those whom the acknowledgement did not count: they were sent after it. Only Handoff counts.
    pub fn uncounted(&self) -> Option<usize> {
        let uncounted = self.drains.iter().map(|drain| {
            let is_of = |arrival: &&Arrival| arrival.peer == drain.peer && arrival.at < drain.over;
            let lasts =
                |arrival: &&Arrival| arrival.answered.is_none_or(|answered| answered > drain.acknowledged);
            let after = self.arrivals.iter().filter(is_of).filter(lasts).count();
            Some(after.saturating_sub(usize::try_from(drain.in_flight?).ok()?))
        });
        uncounted.sum()
    }

    /// Those who came when it was said that nobody was there any more.
    pub fn too_late(&self) -> usize {
        self.after(|drain| drain.drained)
    }

    fn after(&self, moment: fn(&Drain) -> Moment) -> usize {
        let after = |drain: &Drain| {
            let is_of = |arrival: &&Arrival| arrival.peer == drain.peer && arrival.at < drain.over;
            self.arrivals.iter().filter(is_of).filter(|arrival| arrival.at > moment(drain)).count()
        };
        self.drains.iter().map(after).sum()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new(&[
            "drain",
            "drains",
            "call → acknowledged, ms: p50 / p99 / longest",
            "arrived after the acknowledgement",
            "sent after it",
            "arrived after it was drained",
        ]);
        for outcome in &self.0 {
            table.row([
                outcome.proxy.to_owned(),
                outcome.drains.len().to_string(),
                outcome.calls().to_string(),
                outcome.late().to_string(),
                outcome.uncounted().map_or("it does not count".to_owned(), |count| count.to_string()),
                outcome.too_late().to_string(),
            ]);
        }
        table.fmt(f)
    }
}
