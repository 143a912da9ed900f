//! The acknowledgement of a drain is a barrier: from its last byte on, nobody reaches the peer who is not counted in it,
//! and once it is drained nobody reaches it at all.
//!
//! Under a constant load one peer after the other is drained and let back. The peers stamp each request when it arrives
//! and when they answer it, the client of the API stamps the last byte of each answer, all with one clock. Of a request
//! that a peer answers after the acknowledgement there are two kinds: it was on its way when the drain was ordered, and
//! then it is counted, or it was sent there in spite of it.

use anyhow::{Context, Result, ensure};
use e2e::{
    alone,
    blocks::servers,
    clock::Moment,
    crowd::{self, Ask},
    farm::{Arrival, Farm},
    load::{Load, Visit},
    marker::Marker,
    ports,
    site::{Site, VERSIONS},
    spread::Spread,
};
use handoff_wire::State;
use std::{env, fmt, path::PathBuf, time::Duration};

const PEERS: u16 = 3;
const WORKERS: usize = 4;
/// Requests a second.
const RATE: u32 = 600;
/// Visits that pass between `drained` and `up`: time enough for a request that should not be there.
const PASSING: usize = 12;
/// What a drain may take on a machine that has nothing else to do.
const PROMPT_MS: f64 = 5.0;

struct Trial {
    version: &'static str,
    drains: usize,
    module: Option<PathBuf>,
}

struct Drain {
    peer: String,
    ordered: Moment,
    acknowledged: Moment,
    in_flight: u64,
    drained: Moment,
    /// Just before it was let back.
    over: Moment,
}

struct Outcome {
    drains: Vec<Drain>,
    arrivals: Vec<Arrival>,
    visits: Vec<Visit>,
    took: Duration,
}

// === impl Trial ===

impl Trial {
    async fn run(self) -> Result<Outcome> {
        let _alone = alone::take()?;
        let farm = Farm::start(PEERS).await?;
        let mut site = Site::new(self.version).await?.workers(WORKERS);
        if let Some(module) = self.module {
            site = site.loads(module);
        }
        let servers = servers(farm.peers(), "");
        site.write(&site.usual_with(&format!("{servers} keepalive 32;")))?;
        site.start().await?;

        let began = Moment::now();
        let load = Load::start(ports::address(site.port()), RATE);
        let mut drains = Vec::new();
        for peer in farm.peers().into_iter().cycle().take(self.drains) {
            drains.push(drain(&site, peer).await?);
        }
        let visits = load.stop().await;
        let took = Moment::now().since(began);
        let arrivals = farm.arrivals().await?;
        site.end().await?;
        Ok(Outcome { drains, arrivals, visits, took })
    }
}

async fn drain(site: &Site, peer: &str) -> Result<Drain> {
    let operator = Marker::operator(site, "app");
    let ordered = Moment::now();
    let ack = operator.says(State::Draining, &[peer]).await?;
    let acknowledged = Moment::now();
    operator.drained(peer).await?;
    let drained = Moment::now();
    let passing = (0..PASSING).map(|_| Ask::get("/fast"));
    let passed = crowd::ask(ports::address(site.port()), passing).await?;
    ensure!(passed.iter().all(|answer| answer.status == 200), "{passed:?}");
    let over = Moment::now();
    operator.says(State::Up, &[peer]).await?;
    let in_flight = ack.marks.first().context("an acknowledgement of nothing")?.in_flight;
    Ok(Drain { peer: peer.to_owned(), ordered, acknowledged, in_flight, drained, over })
}

// === impl Outcome ===

impl Outcome {
    /// Requests that the peer of a drain answered after the acknowledgement, or never.
    fn after_acknowledgement<'a>(&'a self, drain: &'a Drain) -> impl Iterator<Item = &'a Arrival> {
        let here =
            self.arrivals.iter().filter(|arrival| arrival.peer == drain.peer && arrival.at < drain.over);
        here.filter(|arrival| arrival.answered.is_none_or(|answered| answered > drain.acknowledged))
    }

    /// All that the barrier forbids.
    fn breaches(&self) -> Vec<String> {
        let breaches = self.drains.iter().zip(1..).flat_map(|(drain, number)| {
            let after = self.after_acknowledgement(drain).count();
            let late = self.after_acknowledgement(drain).filter(|arrival| arrival.at > drain.drained).count();
            let uncounted = (after as u64 > drain.in_flight).then(|| {
                format!("drain {number} counted {} in flight and {after} came to an end", drain.in_flight)
            });
            let sent = (late > 0).then(|| format!("drain {number} was complete, and {late} arrived"));
            uncounted.into_iter().chain(sent)
        });
        breaches.collect()
    }

    /// Whether the load was such that a breach would have shown.
    fn is_telling(&self) -> Result<()> {
        let failed: Vec<&Visit> = self.visits.iter().filter(|visit| visit.failed()).collect();
        ensure!(failed.is_empty(), "{} visits failed: {:?}", failed.len(), failed.first());
        let counted: u64 = self.drains.iter().map(|drain| drain.in_flight).sum();
        ensure!(counted > 0, "nothing was ever in flight");
        // From one drain of a peer to the next.
        let rounds = self.drains.windows(usize::from(PEERS) + 1);
        let idle =
            rounds.filter(|round| matches!(round, [before, .., after] if !self.came_back(before, after)));
        let idle = idle.count();
        ensure!(idle * 10 < self.drains.len(), "{idle} times a peer was up again and got nothing");
        Ok(())
    }

    fn came_back(&self, before: &Drain, after: &Drain) -> bool {
        let up = before.over..after.ordered;
        self.arrivals.iter().any(|arrival| arrival.peer == before.peer && up.contains(&arrival.at))
    }

    fn drain_calls(&self) -> Spread {
        Spread::of(self.drains.iter().map(|drain| drain.acknowledged.since(drain.ordered)))
    }

    fn rate(&self) -> f64 {
        self.visits.len() as f64 / self.took.as_secs_f64()
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let late =
            |drain| self.after_acknowledgement(drain).filter(|arrival| arrival.at > drain.acknowledged);
        let late: usize = self.drains.iter().map(|drain| late(drain).count()).sum();
        let counted: u64 = self.drains.iter().map(|drain| drain.in_flight).sum();
        let Spread { p50, p99, max } = self.drain_calls();
        write!(
            f,
            "{} drains in {:.1} s under {:.0} requests a second ({} in all): {counted} counted in flight, {late} of them \
             arrived after the acknowledgement, {} breaches; a drain call took {:?} ms (p50), {:?} ms (p99), {:?} ms at most",
            self.drains.len(),
            self.took.as_secs_f64(),
            self.rate(),
            self.visits.len(),
            self.breaches().len(),
            p50.unwrap_or_default(),
            p99.unwrap_or_default(),
            max.unwrap_or_default(),
        )
    }
}

async fn holds(drains: usize) -> Result<Vec<Outcome>> {
    let mut outcomes = Vec::new();
    for version in VERSIONS {
        let outcome = Trial { version, drains, module: None }.run().await?;
        println!("nginx {version}: {outcome}");
        outcome.is_telling()?;
        let breaches = outcome.breaches();
        ensure!(breaches.is_empty(), "nginx {version}: {breaches:?}");
        outcomes.push(outcome);
    }
    Ok(outcomes)
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_acknowledgement_of_a_drain_nobody_arrives_who_was_not_counted() {
    holds(120).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "for `make barrier`: it wants a machine with nothing else to do"]
async fn four_hundred_drains_are_acknowledged_promptly_and_every_one_is_a_barrier() {
    for outcome in holds(400).await.unwrap() {
        assert!(outcome.rate() >= 500.0, "{:.0} requests a second", outcome.rate());
        let p99 = outcome.drain_calls().p99.unwrap();
        assert!(p99 <= PROMPT_MS, "a drain call took {p99} ms (p99)");
    }
}

/// Else the test above would show nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_module_that_looks_before_it_claims_is_caught() {
    let module = env::var_os("HANDOFF_WRONG_ORDER_MODULE")
        .expect("HANDOFF_WRONG_ORDER_MODULE, which `make tests` and `make barrier` build");
    let module = Some(PathBuf::from(module));
    let outcome = Trial { version: "1.28.3", drains: 60, module }.run().await.unwrap();
    println!("in the wrong order: {outcome}");
    outcome.is_telling().unwrap();
    assert!(!outcome.breaches().is_empty(), "60 drains, and nothing was seen of it");
}
