//! A request that nginx could not repeat does not ride a connection that has been idle: it gets a fresh one, which then takes
//! the place of the old one in the pool.

use anyhow::{Context, Result, ensure};
use e2e::{
    blocks::{self, Block, servers},
    crowd::{self, Ask},
    farm::Farm,
    ports,
    site::{PATIENCE, Site, VERSIONS},
    wait,
};
use hyper::Method;
use std::{collections::BTreeSet, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{sleep, timeout},
};

/// What the upstreams with a short `idle` say, and a pause that is longer.
const IDLE: &str = "handoff_reuse idle=200ms;";
const PAUSE: Duration = Duration::from_millis(250);

/// So long that a slow machine does not make anything old.
const NEVER_OLD: &str = "handoff_reuse idle=1h;";

/// An nginx of one process, so that there is one pool an upstream, and its backend.
struct Stage {
    site: Site,
    farm: Farm,
}

impl Stage {
    /// Upstreams of one peer, with these names and lines, and what their locations say.
    async fn new(version: &str, farm: Farm, tls: bool, upstreams: &[(&str, &str, &str)]) -> Result<Self> {
        let peers = servers(farm.peers(), "max_fails=0");
        let blocks = upstreams.iter().map(|(name, lines, location)| {
            let block = Block::new(*name, format!("{peers} keepalive 8; {lines}")).passed_with(*location);
            if tls { block.tls() } else { block }
        });
        let mut site = Site::new(version).await?.workers(1);
        let http = blocks::http(site.port(), &blocks.collect::<Vec<_>>());
        site.write(&format!("{http}\n{}", site.api("write=on")))?;
        site.start().await?;
        Ok(Self { site, farm })
    }

    /// The number of the connection to the peer over which this was answered.
    async fn ridden(&self, method: &str, upstream: &str) -> Result<u64> {
        let method = Method::from_bytes(method.as_bytes())?;
        let ask = Ask { method, ..Ask::get(format!("/{upstream}/")) };
        let answers = crowd::ask(ports::address(self.site.port()), [ask]).await?;
        let answer = answers.first().context("no answer")?;
        ensure!(answer.status == 200, "{answer:?}");
        answer.connection.context("nobody says over which connection")
    }

    /// Over two connections the same method is answered, one after the other, with a pause between them.
    async fn after_a_pause(&self, method: &str, upstream: &str) -> Result<[u64; 2]> {
        let before = self.ridden(method, upstream).await?;
        sleep(PAUSE).await;
        Ok([before, self.ridden(method, upstream).await?])
    }

    async fn is_fresh(&self, method: &str, upstream: &str) -> Result<()> {
        let [before, after] = self.after_a_pause(method, upstream).await?;
        ensure!(before < after, "{method} to {upstream}: over {before}, and after a pause over {after}");
        wait::until("the old connection to be closed", PATIENCE, async || {
            let open = self.farm.open().await.ok()?;
            (!open.values().any(|open| open.contains(&before))).then_some(())
        })
        .await?;
        ensure!(self.ridden("GET", upstream).await? == after, "{after} is not in the pool");
        Ok(())
    }

    async fn is_ridden_again(&self, method: &str, upstream: &str) -> Result<()> {
        let [before, after] = self.after_a_pause(method, upstream).await?;
        ensure!(before == after, "{method} to {upstream}: over {before}, and after a pause over {after}");
        Ok(())
    }

    /// As many requests at once, and the connections they rode.
    async fn crowd(&self, upstream: &str, size: usize) -> Result<BTreeSet<u64>> {
        let asks: Vec<Ask> = (0..size).map(|_| Ask::get(format!("/{upstream}/hold"))).collect();
        let held = tokio::spawn(crowd::ask(ports::address(self.site.port()), asks));
        self.farm.holds_so_many(size).await?;
        self.farm.release().await?;
        let answers = held.await??;
        ensure!(answers.iter().all(|answer| answer.status == 200), "{answers:?}");
        Ok(answers.iter().filter_map(|answer| answer.connection).collect())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_not_be_repeated_does_not_ride_an_idle_connection() -> Result<()> {
    let short = format!("handoff; {IDLE}");
    let early = format!("{IDLE} handoff;");
    let twice = "proxy_next_upstream error timeout non_idempotent;";
    let upstreams = [
        ("short", short.as_str(), ""),
        ("early", &early, ""),
        ("twice", &short, twice),
        ("off", &short, "proxy_next_upstream off;"),
        ("timeout", &short, "proxy_next_upstream timeout http_503;"),
    ];
    for version in VERSIONS {
        for tls in [false, true] {
            let farm = if tls { Farm::with_tls(1).await? } else { Farm::start(1).await? };
            let stage = Stage::new(version, farm, tls, &upstreams).await?;
            for (method, upstream) in [
                ("POST", "short"),
                ("LOCK", "short"),
                ("PATCH", "short"),
                ("POST", "early"),
                ("POST", "twice"),
                ("GET", "off"),
                ("GET", "timeout"),
                ("PUT", "off"),
            ] {
                stage.is_fresh(method, upstream).await.with_context(|| format!("TLS {tls}"))?;
            }
            for (method, upstream) in
                [("GET", "short"), ("HEAD", "short"), ("PUT", "short"), ("DELETE", "early"), ("GET", "twice")]
            {
                stage.is_ridden_again(method, upstream).await.with_context(|| format!("TLS {tls}"))?;
            }
            stage.site.end().await?;
        }
    }
    Ok(())
}

/// A GET that finds the same connection in the same place notices nothing, not even in how many there are.
#[tokio::test(flavor = "multi_thread")]
async fn the_pool_stays_as_large_as_it_was() -> Result<()> {
    const SIZE: usize = 6;
    let short = format!("handoff; {IDLE}");
    let upstreams = [("short", short.as_str(), ""), ("always", "handoff; handoff_reuse always;", "")];
    for version in VERSIONS {
        let stage = Stage::new(version, Farm::start(1).await?, false, &upstreams).await?;
        for (upstream, _, _) in &upstreams {
            let mut pool = stage.crowd(upstream, SIZE).await?;
            for _ in 0..3 {
                sleep(PAUSE).await;
                let ridden = stage.ridden("POST", upstream).await?;
                let is_fresh = !pool.contains(&ridden);
                ensure!(is_fresh == (*upstream == "short"), "{upstream}: {ridden} of {pool:?}");
                let next = stage.crowd(upstream, SIZE).await?;
                let kept = pool.intersection(&next).count();
                let wanted = SIZE - usize::from(is_fresh);
                ensure!(kept == wanted && next.contains(&ridden), "{upstream}: {pool:?}, then {next:?}");
                pool = next;
            }
        }
        let connections = stage.farm.connections().await?;
        ensure!(connections as usize == 2 * SIZE + 3, "{connections} were opened: some GET found none");
        stage.site.end().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_used_just_now_is_used_again() -> Result<()> {
    let upstreams = [
        ("hour", &*format!("handoff; {NEVER_OLD}"), ""),
        ("always", "handoff_reuse always; handoff;", ""),
        ("stock", "", ""),
        ("usual", "handoff;", ""),
    ];
    for version in VERSIONS {
        let stage = Stage::new(version, Farm::start(1).await?, false, &upstreams).await?;
        for (upstream, _, _) in upstreams.iter().take(3) {
            for method in ["POST", "GET", "POST"] {
                stage.is_ridden_again(method, upstream).await?;
            }
        }
        let usual = async || {
            let twice =
                [stage.ridden("POST", "usual").await.ok()?, stage.ridden("POST", "usual").await.ok()?];
            (twice[0] == twice[1]).then_some(())
        };
        wait::until("two POSTs within a second", PATIENCE, usual).await?;
        let before = stage.ridden("POST", "usual").await?;
        sleep(Duration::from_millis(1050)).await;
        ensure!(stage.ridden("POST", "usual").await? > before, "the default is more than a second");
        stage.site.end().await?;
    }
    Ok(())
}

/// The peer may have ended its answer long before, and counts from there.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_client_does_not_make_a_connection_younger() -> Result<()> {
    let short = format!("handoff; {IDLE}");
    let hour = format!("handoff; {NEVER_OLD}");
    let unbuffered = "proxy_buffering off;";
    let upstreams = [("short", short.as_str(), unbuffered), ("hour", &hour, unbuffered)];
    for version in VERSIONS {
        let stage = Stage::new(version, Farm::start(1).await?, false, &upstreams).await?;
        for (upstream, is_fresh) in [("short", true), ("hour", false)] {
            stage.farm.arrivals().await?;
            fetch_slowly(&stage, upstream).await?;
            let arrivals = stage.farm.arrivals().await?;
            let before = arrivals.first().context("nothing arrived")?.connection;
            let after = stage.ridden("POST", upstream).await?;
            ensure!((before < after) == is_fresh, "{upstream}: over {before}, then over {after}");
        }
        stage.site.end().await?;
    }
    Ok(())
}

/// An answer that is too large for nginx to be rid of before the client takes it.
async fn fetch_slowly(stage: &Stage, upstream: &str) -> Result<()> {
    const SIZE: usize = 8_000_000;
    let mut visitor = TcpStream::connect(ports::address(stage.site.port())).await?;
    let head = format!("GET /{upstream}/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Size: {SIZE}\r\n\r\n");
    visitor.write_all(head.as_bytes()).await?;
    visitor.readable().await?;
    sleep(PAUSE).await;
    let mut answer = Vec::new();
    timeout(PATIENCE, visitor.read_to_end(&mut answer)).await??;
    ensure!(answer.len() > SIZE, "{upstream}: only {} bytes", answer.len());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_passed_on_as_it_comes_does_not_ride_an_idle_connection() -> Result<()> {
    let short = format!("handoff; {IDLE}");
    let hour = format!("handoff; {NEVER_OLD}");
    let unbuffered = "proxy_request_buffering off;";
    let upstreams =
        [("short", short.as_str(), unbuffered), ("hour", &hour, unbuffered), ("buffered", &short, "")];
    for version in VERSIONS {
        let stage = Stage::new(version, Farm::start(1).await?, false, &upstreams).await?;
        for (upstream, is_fresh) in [("short", true), ("hour", false), ("buffered", false)] {
            let before = stage.ridden("GET", upstream).await?;
            sleep(PAUSE).await;
            stage.farm.arrivals().await?;
            put_slowly(&stage, upstream).await?;
            let arrivals = stage.farm.arrivals().await?;
            let after = arrivals.first().context("nothing arrived")?.connection;
            ensure!((before < after) == is_fresh, "{upstream}: over {before}, then over {after}");
        }
        stage.site.end().await?;
    }
    Ok(())
}

/// A request whose body is so large that nginx has not got all of it when it passes the head on, unless it waits for it.
async fn put_slowly(stage: &Stage, upstream: &str) -> Result<()> {
    const SIZE: usize = 300_000;
    let mut visitor = TcpStream::connect(ports::address(stage.site.port())).await?;
    let head = format!(
        "PUT /{upstream}/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        2 * SIZE
    );
    visitor.write_all(head.as_bytes()).await?;
    for _ in 0..2 {
        visitor.write_all(&vec![b'x'; SIZE]).await?;
    }
    let mut answer = String::new();
    timeout(PATIENCE, visitor.read_to_string(&mut answer)).await??;
    ensure!(answer.starts_with("HTTP/1.1 200 "), "{upstream}: {answer}");
    Ok(())
}
