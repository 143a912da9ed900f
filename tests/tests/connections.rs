//! A connection to a worker ends with that worker: none that was opened before a drain carries a request after it, and
//! while one of several workers behind an address changes, each carries one request.

use anyhow::{Context, Result, ensure};
use e2e::{
    blocks::{self, Block, servers},
    crowd::{self, Answer, Ask},
    farm::Farm,
    marker::Marker,
    ports,
    site::{PATIENCE, Site, VERSIONS},
    wait,
};
use handoff_wire::State;
use std::collections::BTreeSet;

/// Where `keepalive` stands.
const KEEPALIVE: [&str; 2] = ["keepalive 64; handoff;", "handoff; keepalive 64;"];

/// Every visitor asks four times, of two peers.
const ASKS: usize = 4 * crowd::SIZE as usize;

/// One upstream, and the peer that is drained.
struct Pool<'a> {
    site: &'a Site,
    farm: &'a Farm,
    block: &'a Block,
    peer: &'a str,
}

impl Pool<'_> {
    fn marker(&self) -> Marker<'_> {
        Marker::operator(self.site, self.block.name())
    }

    async fn ask(&self) -> Result<()> {
        let asks = (0..ASKS).map(|_| Ask::get(format!("/{}/", self.block.name())));
        let answers = crowd::ask(ports::address(self.site.port()), asks).await?;
        ensure!(answers.iter().all(|answer| answer.status == 200), "{answers:?}");
        Ok(())
    }

    /// The connections over which requests reached the peer since this was last asked, and how many requests those were.
    async fn used(&self) -> Result<(BTreeSet<u64>, usize)> {
        let arrivals = self.farm.arrivals().await?;
        let here = arrivals.iter().filter(|arrival| arrival.peer == self.peer);
        let connections: Vec<u64> = here.map(|arrival| arrival.connection).collect();
        Ok((connections.iter().copied().collect(), connections.len()))
    }

    async fn open(&self) -> Result<BTreeSet<u64>> {
        Ok(self.farm.open().await?.remove(self.peer).unwrap_or_default())
    }

    /// As many requests as there are peers, held: round robin gives each of them one.
    async fn held(&self) -> Result<tokio::task::JoinHandle<Result<Vec<Answer>>>> {
        let asks = (0..2).map(|_| Ask::get(format!("/{}/hold", self.block.name())));
        let asks: Vec<Ask> = asks.collect();
        let held = tokio::spawn(crowd::ask(ports::address(self.site.port()), asks));
        self.farm.holds(&self.farm.peers()).await?;
        Ok(held)
    }

    // === the promises ===

    async fn without_marks_connections_are_used_again(&self) -> Result<()> {
        let idle = self.open().await?;
        // Each nginx process has a pool of its own, and it is not ours to say which of them is asked.
        let used_again = async || self.uses_one_of(&idle).await.map(|used| used.then_some(())).transpose();
        wait::until("an idle connection to be used again", PATIENCE, used_again).await?
    }

    async fn uses_one_of(&self, connections: &BTreeSet<u64>) -> Result<bool> {
        self.ask().await?;
        Ok(!self.used().await?.0.is_disjoint(connections))
    }

    async fn idle_ones_are_not_used_again(&self) -> Result<()> {
        let before = self.open().await?;
        ensure!(!before.is_empty(), "nothing is idle");
        self.marker().says(State::Draining, &[self.peer]).await?;
        self.ask().await?;
        ensure!(self.used().await?.1 == 0, "the peer was used while it was draining");
        self.marker().says(State::Up, &[self.peer]).await?;
        self.ask().await?;
        let (after, requests) = self.used().await?;
        ensure!(requests > 0, "the peer is not used any more");
        ensure!(before.is_disjoint(&after), "of {before:?} there is one in {after:?}");
        ensure!(after.len() < requests, "new connections are not used again: {requests} over {after:?}");
        Ok(())
    }

    async fn busy_ones_end_with_their_request(&self) -> Result<()> {
        let held = self.held().await?;
        let arrivals = self.farm.arrivals().await?;
        let busy =
            arrivals.iter().find(|arrival| arrival.peer == self.peer && arrival.path.ends_with("/hold"));
        let busy = busy.context("a held request has arrived")?.connection;
        let ack = self.marker().says(State::Draining, &[self.peer]).await?;
        let counted: u64 = ack.marks.iter().map(|mark| mark.in_flight).sum();
        ensure!(counted == 1, "one is held, {counted} are counted");
        self.farm.release().await?;
        let answers = held.await??;
        ensure!(answers.iter().all(|answer| answer.status == 200), "cut short: {answers:?}");
        self.marker().drained(self.peer).await?;
        wait::until("the busy connection to be closed", PATIENCE, async || {
            (!self.open().await.ok()?.contains(&busy)).then_some(())
        })
        .await?;
        self.marker().says(State::Up, &[self.peer]).await?;
        self.ask().await
    }

    /// A request that outlives the drain does not bring its connection back into the pool.
    async fn busy_ones_do_not_outlive_the_return(&self) -> Result<()> {
        let held = self.held().await?;
        self.marker().says(State::Draining, &[self.peer]).await?;
        self.marker().says(State::Up, &[self.peer]).await?;
        let before = self.open().await?;
        self.farm.release().await?;
        let answers = held.await??;
        ensure!(answers.iter().all(|answer| answer.status == 200), "cut short: {answers:?}");
        self.used().await?;
        self.ask().await?;
        let (after, requests) = self.used().await?;
        ensure!(requests > 0 && before.is_disjoint(&after), "of {before:?} there is one in {after:?}");
        Ok(())
    }

    // === the promises while a worker changes ===

    async fn each_carries_one_request_while_a_worker_changes(&self) -> Result<()> {
        let before = self.open().await?;
        ensure!(!before.is_empty(), "nothing is idle");
        self.marker().says(State::Changing, &[self.peer]).await?;
        self.ask().await?;
        self.site.reload().await?;
        self.ask().await?;
        let (meanwhile, requests) = self.used().await?;
        ensure!(requests > 0 && meanwhile.is_disjoint(&before), "of {before:?} one is in {meanwhile:?}");
        ensure!(meanwhile.len() == requests, "{requests} requests over {meanwhile:?}");
        self.marker().says(State::Up, &[self.peer]).await?;
        self.ask().await?;
        let (after, requests) = self.used().await?;
        ensure!(after.is_disjoint(&meanwhile), "of {meanwhile:?} one is in {after:?}");
        ensure!(after.len() < requests, "new connections are not used again: {requests} over {after:?}");
        Ok(())
    }

    /// One that was busy when the worker began to change, in a process of an older configuration by then.
    async fn busy_ones_carry_no_other_request(&self) -> Result<()> {
        let held = self.held().await?;
        let arrivals = self.farm.arrivals().await?;
        let busy =
            arrivals.iter().find(|arrival| arrival.peer == self.peer).context("a held request")?.connection;
        self.marker().says(State::Changing, &[self.peer]).await?;
        self.site.reload().await?;
        self.farm.release().await?;
        let answers = held.await??;
        ensure!(answers.iter().all(|answer| answer.status == 200), "cut short: {answers:?}");
        wait::until("the busy connection to be closed", PATIENCE, async || {
            (!self.open().await.ok()?.contains(&busy)).then_some(())
        })
        .await?;
        self.marker().says(State::Up, &[self.peer]).await.map(drop)
    }

    async fn keeps_every_promise(&self) -> Result<()> {
        self.ask().await?;
        self.without_marks_connections_are_used_again().await?;
        self.idle_ones_are_not_used_again().await?;
        self.busy_ones_end_with_their_request().await?;
        self.without_marks_connections_are_used_again().await?;
        self.busy_ones_do_not_outlive_the_return().await?;
        self.each_carries_one_request_while_a_worker_changes().await?;
        self.busy_ones_carry_no_other_request().await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_connection_outlives_the_worker_that_it_was_opened_to() {
    for version in VERSIONS {
        for tls in [false, true] {
            let farm = if tls { Farm::with_tls(2).await } else { Farm::start(2).await }.unwrap();
            let blocks = KEEPALIVE.map(|keepalive| {
                let name = if keepalive.starts_with("handoff") { "after" } else { "before" };
                let block = Block::new(name, format!("{} {keepalive}", servers(farm.peers(), "")));
                if tls { block.tls() } else { block }
            });
            let site = blocks::site(version, &blocks).await.unwrap();
            for block in &blocks {
                let pool = Pool { site: &site, farm: &farm, block, peer: farm.peers()[0] };
                let kept = pool.keeps_every_promise().await;
                kept.unwrap_or_else(|error| panic!("keepalive {}, TLS {tls}: {error:#}", block.name()));
            }
            site.end().await.unwrap();
        }
    }
}

/// Who resumes a TLS session saves a handshake; our hooks stand in between.
#[tokio::test(flavor = "multi_thread")]
async fn tls_sessions_are_resumed_before_and_after_a_drain() {
    for version in VERSIONS {
        let farm = Farm::with_tls(2).await.unwrap();
        let block = Block::new("app", format!("{} handoff;", servers(farm.peers(), ""))).tls();
        let site = blocks::site(version, std::slice::from_ref(&block)).await.unwrap();
        let pool = Pool { site: &site, farm: &farm, block: &block, peer: farm.peers()[0] };
        for _ in 0..2 {
            pool.ask().await.unwrap();
            let arrivals = farm.arrivals().await.unwrap();
            let resumed = arrivals.iter().filter(|arrival| arrival.peer == pool.peer && arrival.resumed);
            assert!(resumed.count() > 0, "nginx {version}: each of {} was a new session", arrivals.len());
            pool.marker().says(State::Draining, &[pool.peer]).await.unwrap();
            pool.marker().says(State::Up, &[pool.peer]).await.unwrap();
        }
        site.end().await.unwrap();
    }
}
