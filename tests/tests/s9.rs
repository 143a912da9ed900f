//! S9: Node closes an idle connection in the moment in which nginx sends a POST over it. Nobody knows whether that POST was
//! executed, so nginx does not repeat it, and a visitor gets 502 although nothing was wrong anywhere.
//!
//! Two upstreams of one peer each (a process of its own, or four workers of PM2 in cluster mode), one `always` and one as it is by default, are visited in the same way at the same time. The
//! first must fail, or the second proves nothing.

use anyhow::{Context, Result, ensure};
use e2e::{
    alone,
    blocks::{self, Block, servers},
    clock::Moment,
    farm::Farm,
    orders,
    place::{self, Place},
    pm2::{NEWEST, Pm2},
    ports,
    site::{PATIENCE, Site, VERSIONS},
};
use http_body_util::{BodyExt, Empty};
use hyper::{Method, Request, body::Bytes, client::conn::http1, header::HOST};
use hyper_util::rt::TokioIo;
use serde_json::json;
use std::{cell::Cell, collections::BTreeMap, fs, net::SocketAddr, path::PathBuf, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    spawn,
    task::JoinSet,
    time::{sleep, timeout},
};

/// More than one burst needs at once.
const POOL: u32 = 512;

const SHORT: Duration = Duration::from_millis(50);
const NODES_OWN: Duration = Duration::from_secs(5);
/// In this time every visitor of a burst has come.
const TOGETHER: Duration = Duration::from_millis(600);

/// When the visitors of a burst come back, after their last answer.
#[derive(Clone, Copy)]
struct Aim {
    at: Duration,
    /// They come so much too early at most, and so much too late.
    spread: Duration,
}

/// How it is tried.
#[derive(Clone, Copy)]
struct Trial {
    /// Node's `keepAliveTimeout`; it closes a second later. None: its own, of five seconds.
    idle: Option<Duration>,
    /// None: at what is measured.
    aim: Option<Aim>,
    is_cluster: bool,
    /// In a burst; a fifth of them are GETs, which nginx repeats.
    visitors: u32,
    bursts: usize,
}

/// Who executes orders.
enum Backend {
    Farm(Box<Farm>),
    /// Where the workers of a cluster write them down, and how many were read.
    Cluster(PathBuf, Cell<usize>),
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
    backend: Backend,
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

    fn of(self, visitor: u32, visitors: u32) -> Duration {
        self.at - self.spread + 2 * self.spread * visitor / visitors
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

// === impl Backend ===

impl Backend {
    /// How often each order was, since this was last asked.
    async fn executed(&self) -> Result<BTreeMap<String, usize>> {
        let paths: Vec<String> = match self {
            Self::Farm(farm) => farm.arrivals().await?.into_iter().map(|arrival| arrival.path).collect(),
            Self::Cluster(file, read) => {
                let text = fs::read_to_string(file)?;
                let new: Vec<String> = text.lines().skip(read.get()).map(str::to_owned).collect();
                read.set(read.get() + new.len());
                new
            }
        };
        let mut executed = BTreeMap::new();
        paths.into_iter().for_each(|path| *executed.entry(path).or_default() += 1);
        Ok(executed)
    }
}

// === impl Lane ===

impl Lane<'_> {
    /// All at once come, are answered at once, and come back when their connections are as old as they are meant to be.
    async fn burst(&mut self, number: usize, aim: Aim, visitors: u32) -> Result<()> {
        let mut visits = JoinSet::new();
        // In cluster mode nobody can be told when all are there.
        let together = Moment::now() + TOGETHER;
        for visitor in 0..visitors {
            let method = if visitor % 5 == 4 { Method::GET } else { Method::POST };
            let mut entered = Visitor::enter(self.site).await?;
            let (hold, order) = (
                format!("/{}/hold?{}", self.name, together.as_nanos()),
                format!("/{}/{number}/{visitor}", self.name),
            );
            visits.spawn(async move {
                let held = entered.ask(&Method::GET, hold).await?;
                ensure!(held == 200, "held, then {held}");
                (Moment::now() + aim.of(visitor, visitors)).reached().await;
                let status = entered.ask(&method, order.clone()).await?;
                anyhow::Ok((method, order, status))
            });
        }
        if let Backend::Farm(farm) = &self.backend {
            farm.holds_so_many(visitors as usize).await?;
            farm.release().await?;
        }
        let mut visited = Vec::new();
        while let Some(visit) = visits.join_next().await {
            visited.push(visit??);
        }
        self.count(visited).await
    }

    async fn count(&mut self, visited: Vec<(Method, String, u16)>) -> Result<()> {
        let executed = self.backend.executed().await?;
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

// === impl Trial ===

impl Trial {
    async fn nobody_fails(self) -> Result<()> {
        self.nobody_fails_over(&VERSIONS).await
    }

    async fn nobody_fails_over(self, versions: &[&str]) -> Result<()> {
        let _alone = alone::take()?;
        for version in versions {
            let [always, usual] = self.race(version).await?;
            eprintln!("nginx {version}, always: {always:?}\nnginx {version}, usual: {usual:?}");
            ensure!(always.failed > 0, "nobody fails with `always` either: {always:?}");
            ensure!(usual.failed == 0 && usual.failed_gets == 0, "{usual:?}");
        }
        Ok(())
    }

    /// What became of `always`, and of the default.
    async fn race(self, version: &str) -> Result<[Tally; 2]> {
        if self.is_cluster {
            let place = Place::new()?;
            let (pm2, peer) = self.cluster(&place).await?;
            let file = place.file(orders::FILE);
            let backend = || Backend::Cluster(file.clone(), Cell::default());
            let tallies = self.visited(version, [&peer, &peer], [backend(), backend()]).await;
            drop(pm2);
            return tallies;
        }
        let idle = self.idle.unwrap_or(NODES_OWN);
        let (always, usual) = (Farm::with_timeout(1, idle).await?, Farm::with_timeout(1, idle).await?);
        let peer = |farm: &Farm| farm.peers().first().map(|&peer| peer.to_owned()).context("no peer");
        let peers = [peer(&always)?, peer(&usual)?];
        self.visited(
            version,
            [&peers[0], &peers[1]],
            [always, usual].map(|farm| Backend::Farm(Box::new(farm))),
        )
        .await
    }

    /// Four workers that share an address.
    async fn cluster(self, place: &Place) -> Result<(Pm2, String)> {
        let port = ports::row(1)?;
        let idle = self.idle.map(|idle| idle.as_millis().to_string()).unwrap_or_default();
        let app = json!({
            "name": "idle", "script": place::root().join("tests/apps/idle.js"),
            "exec_mode": "cluster", "instances": 4, "wait_ready": true,
            "env": { "PORT": port, "IDLE": idle, "ORDERS": place.file(orders::FILE) },
        });
        let pm2 = Pm2::start_file(NEWEST, &place.pm2_home(), &json!({ "apps": [app] }), &[]).await?;
        Ok((pm2, ports::address(port).to_string()))
    }

    /// Bursts until there were so many, and until one POST failed where they may.
    async fn visited(self, version: &str, peers: [&str; 2], backends: [Backend; 2]) -> Result<[Tally; 2]> {
        let block = |name: &str, peer: &str, lines: &str| {
            Block::new(name, format!("{} keepalive {POOL}; {lines}", servers([peer], "max_fails=0")))
        };
        let blocks = [
            block("always", peers[0], "handoff; handoff_reuse always;"),
            block("usual", peers[1], "handoff;"),
        ];
        let site = blocks::site(version, &blocks).await?;
        let aim = match self.aim {
            Some(aim) => aim,
            None => Aim::at_the_end_of(peers[0].parse()?).await?,
        };
        eprintln!("visitors come back after {:?}", aim.at);
        let [always, usual] = backends;
        let mut always = Lane { backend: always, name: "always", site: &site, tally: Tally::default() };
        let mut usual = Lane { backend: usual, name: "usual", site: &site, tally: Tally::default() };
        for number in 0..4 * self.bursts {
            // Half a burst apart, so that they do not disturb each other.
            let later = async {
                sleep(aim.at / 2).await;
                usual.burst(number, aim, self.visitors).await
            };
            let (first, second) = tokio::join!(always.burst(number, aim, self.visitors), later);
            first.and(second)?;
            if number + 1 >= self.bursts && always.tally.failed > 0 {
                break;
            }
        }
        let tallies = [always.tally, usual.tally];
        site.end().await?;
        Ok(tallies)
    }
}

const AIMED: Trial = Trial { idle: Some(SHORT), aim: None, is_cluster: false, visitors: 30, bursts: 8 };
/// Not aimed at what was measured, but at what everybody has: Node's 5 s, and its second on top.
const AFTER_SIX_SECONDS: Trial = Trial {
    idle: None,
    aim: Some(Aim { at: Duration::from_secs(6), spread: Duration::from_millis(10) }),
    is_cluster: false,
    visitors: 260,
    bursts: 10,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_post_does_not_meet_the_end_of_a_connection() -> Result<()> {
    AIMED.nobody_fails().await
}

/// Over each nginx: `make s9`.
#[tokio::test(flavor = "multi_thread")]
async fn a_post_to_a_cluster_does_not_meet_the_end_of_a_connection() -> Result<()> {
    let [_, newest] = VERSIONS;
    Trial { is_cluster: true, ..AIMED }.nobody_fails_over(&[newest]).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "five minutes"]
async fn two_thousand_posts_do_not_meet_the_end_of_a_connection() -> Result<()> {
    Trial { bursts: 95, ..AIMED }.nobody_fails().await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "five minutes"]
async fn two_thousand_posts_to_a_cluster_do_not_meet_the_end_of_a_connection() -> Result<()> {
    Trial { bursts: 95, is_cluster: true, ..AIMED }.nobody_fails().await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "three minutes"]
async fn two_thousand_posts_after_six_seconds_do_not_meet_the_end_of_a_connection() -> Result<()> {
    AFTER_SIX_SECONDS.nobody_fails().await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "three minutes"]
async fn two_thousand_posts_to_a_cluster_after_six_seconds_do_not_meet_the_end_of_a_connection() -> Result<()>
{
    Trial { is_cluster: true, ..AFTER_SIX_SECONDS }.nobody_fails().await
}
