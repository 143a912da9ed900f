//! S9: Node closes an idle connection in the moment in which nginx sends a POST over it. Nobody knows whether that POST was
//! executed, so nginx does not repeat it, and a visitor gets 502 although nothing was wrong anywhere.
//!
//! Two upstreams of one peer each, one `always` and one as it is by default, are visited in the same way at the same time. The
//! first must fail, or the second proves nothing.

use anyhow::{Context, Result, ensure};
use e2e::{
    alone,
    blocks::{self, Block, servers},
    clock::Moment,
    farm::Farm,
    ports,
    site::{PATIENCE, Site, VERSIONS},
};
use http_body_util::{BodyExt, Empty};
use hyper::{Method, Request, body::Bytes, client::conn::http1, header::HOST};
use hyper_util::rt::TokioIo;
use std::{collections::BTreeMap, net::SocketAddr, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    spawn,
    task::JoinSet,
    time::{sleep, timeout},
};

/// In a burst; a fifth of them are GETs, which nginx repeats.
const VISITORS: u32 = 30;

/// What Node calls `keepAliveTimeout`; it closes a second later.
const SHORT: Duration = Duration::from_millis(50);
const DEFAULT: Duration = Duration::from_secs(5);

/// When the visitors of a burst come back, after their last answer.
#[derive(Clone, Copy)]
struct Aim {
    at: Duration,
    /// They come so much too early at most, and so much too late.
    spread: Duration,
}

/// What became of all that was sent to one upstream.
#[derive(Debug, Default)]
struct Tally {
    posts: usize,
    failed: usize,
    failed_gets: usize,
    /// Failed, though the peer has executed it.
    executed_in_vain: usize,
}

/// A peer of its own, and the upstream in front of it.
struct Lane<'a> {
    farm: Farm,
    name: &'static str,
    site: &'a Site,
    tally: Tally,
}

struct Visitor(http1::SendRequest<Empty<Bytes>>);

// === impl Aim ===

impl Aim {
    /// At the moment in which this peer closes.
    async fn at_the_end_of(peer: SocketAddr) -> Result<Self> {
        let mut lives = JoinSet::new();
        (0..9).for_each(|_| drop(lives.spawn(idle_life(peer))));
        let mut lives = lives.join_all().await.into_iter().collect::<Result<Vec<_>>>()?;
        lives.sort_unstable();
        let at = *lives.get(lives.len() / 2).context("the median of nothing")?;
        Ok(Self { at, spread: Duration::from_millis(4) })
    }

    fn of(self, visitor: u32) -> Duration {
        self.at - self.spread + 2 * self.spread * visitor / VISITORS
    }
}

/// How long a connection lives after its answer.
async fn idle_life(peer: SocketAddr) -> Result<Duration> {
    let mut connection = TcpStream::connect(peer).await?;
    connection.write_all(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n").await?;
    let mut answer = Vec::new();
    ensure!(connection.read_buf(&mut answer).await? > 0, "no answer");
    let answered = Moment::now();
    timeout(PATIENCE, connection.read_to_end(&mut answer)).await.context("it does not close")??;
    Ok(Moment::now().since(answered))
}

// === impl Visitor ===

impl Visitor {
    async fn enter(site: &Site) -> Result<Self> {
        let stream = TcpStream::connect(ports::address(site.port())).await?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        spawn(connection);
        Ok(Self(sender))
    }

    async fn ask(&mut self, method: &Method, path: String) -> Result<u16> {
        let request = Request::builder().method(method).uri(path).header(HOST, "x").body(Empty::new())?;
        let answer = timeout(PATIENCE, self.0.send_request(request)).await.context("it hangs")??;
        let status = answer.status().as_u16();
        answer.into_body().collect().await?;
        Ok(status)
    }
}

// === impl Lane ===

impl Lane<'_> {
    /// All at once come, are answered at once, and come back when their connections are as old as they are meant to be.
    async fn burst(&mut self, number: usize, aim: Aim) -> Result<()> {
        let mut visits = JoinSet::new();
        for visitor in 0..VISITORS {
            let method = if visitor % 5 == 4 { Method::GET } else { Method::POST };
            let mut entered = Visitor::enter(self.site).await?;
            let (hold, order) =
                (format!("/{}/hold", self.name), format!("/{}/{number}/{visitor}", self.name));
            visits.spawn(async move {
                let held = entered.ask(&Method::GET, hold).await?;
                ensure!(held == 200, "held, then {held}");
                (Moment::now() + aim.of(visitor)).reached().await;
                let status = entered.ask(&method, order.clone()).await?;
                anyhow::Ok((method, order, status))
            });
        }
        self.farm.holds_so_many(VISITORS as usize).await?;
        self.farm.release().await?;
        let mut visited = Vec::new();
        while let Some(visit) = visits.join_next().await {
            visited.push(visit??);
        }
        self.count(visited).await
    }

    async fn count(&mut self, visited: Vec<(Method, String, u16)>) -> Result<()> {
        let mut executed: BTreeMap<String, usize> = BTreeMap::new();
        for arrival in self.farm.arrivals().await? {
            *executed.entry(arrival.path).or_default() += 1;
        }
        for (method, order, status) in visited {
            let times = executed.get(&order).copied().unwrap_or_default();
            let is_well = status == 200;
            if method == Method::GET {
                self.tally.failed_gets += usize::from(!is_well);
                continue;
            }
            ensure!(times <= 1, "{order} was executed {times} times");
            ensure!(times == 1 || !is_well, "{order} was answered, and never executed");
            self.tally.posts += 1;
            self.tally.failed += usize::from(!is_well);
            self.tally.executed_in_vain += usize::from(!is_well && times == 1);
        }
        Ok(())
    }
}

/// Bursts until there were so many, and until one POST failed where they may: what became of `always`, and of the default.
async fn race(version: &str, node: Duration, aim: Option<Aim>, bursts: usize) -> Result<[Tally; 2]> {
    let (always, usual) = (Farm::with_timeout(1, node).await?, Farm::with_timeout(1, node).await?);
    let block = |name: &str, farm: &Farm, lines: &str| {
        Block::new(name, format!("{} keepalive 64; {lines}", servers(farm.peers(), "max_fails=0")))
    };
    let blocks =
        [block("always", &always, "handoff; handoff_reuse always;"), block("usual", &usual, "handoff;")];
    let site = blocks::site(version, &blocks).await?;
    let peer: SocketAddr = always.peers().first().context("no peer")?.parse()?;
    let aim = match aim {
        Some(aim) => aim,
        None => Aim::at_the_end_of(peer).await?,
    };
    eprintln!("visitors come back after {:?}", aim.at);
    let mut always = Lane { farm: always, name: "always", site: &site, tally: Tally::default() };
    let mut usual = Lane { farm: usual, name: "usual", site: &site, tally: Tally::default() };
    for number in 0..4 * bursts {
        // Half a burst apart, so that they do not disturb each other.
        let later = async {
            sleep(aim.at / 2).await;
            usual.burst(number, aim).await
        };
        let (first, second) = tokio::join!(always.burst(number, aim), later);
        first.and(second)?;
        if number + 1 >= bursts && always.tally.failed > 0 {
            break;
        }
    }
    let tallies = [always.tally, usual.tally];
    site.end().await?;
    Ok(tallies)
}

async fn nobody_fails(node: Duration, aim: Option<Aim>, bursts: usize) -> Result<()> {
    let _alone = alone::take()?;
    for version in VERSIONS {
        let [always, usual] = race(version, node, aim, bursts).await?;
        eprintln!("nginx {version}, always: {always:?}\nnginx {version}, usual: {usual:?}");
        ensure!(always.failed > 0, "nobody fails with `always` either: {always:?}");
        ensure!(usual.failed == 0 && usual.failed_gets == 0, "{usual:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_post_does_not_meet_the_end_of_a_connection() -> Result<()> {
    nobody_fails(SHORT, None, 8).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "five minutes"]
async fn two_thousand_posts_do_not_meet_the_end_of_a_connection() -> Result<()> {
    nobody_fails(SHORT, None, 95).await
}

/// Not aimed at what was measured, but at what everybody has: Node's 5 s, and its second on top.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "four minutes"]
async fn posts_after_six_seconds_do_not_meet_the_end_of_a_connection() -> Result<()> {
    let aim = Aim { at: Duration::from_secs(6), spread: Duration::from_millis(10) };
    nobody_fails(DEFAULT, Some(aim), 12).await
}
