//! A peer on trial gets what can be repeated without harm, and what it fails is tried elsewhere: a broken release never meets
//! a user.

use anyhow::{Context, Result, ensure};
use e2e::{
    blocks::{self, Block, servers},
    crowd::{self, Answer, Ask},
    door::{Door, Reply},
    farm::{self, Farm},
    marker::Marker,
    ports,
    site::{PATIENCE, Site, VERSIONS},
    wait,
};
use handoff_wire::{PeerState, State};
use hyper::Method;
use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    spawn,
    task::JoinSet,
    time::timeout,
};

/// One failure would be too many, for longer than a test lasts.
const STRICT: &str = "max_fails=1 fail_timeout=1h";

/// So many requests that each balancer gives some of them to each peer.
const ASKS: usize = 4 * crowd::SIZE as usize;

/// An upstream of a farm, and its first peer, which is on trial.
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

    async fn ask(&self, ask: impl Fn(Ask) -> Ask) -> Result<Vec<Answer>> {
        let path = |number| format!("/{}/{number}?visitor={number}", self.block.name());
        let asks = (0..ASKS).map(|number| ask(Ask::get(path(number))));
        crowd::ask(ports::address(self.site.port()), asks).await
    }

    /// How many of these requests reached the peer. Everybody is answered well, and nobody meets a peer twice.
    async fn reach(&self, ask: impl Fn(Ask) -> Ask) -> Result<usize> {
        self.farm.arrivals().await?;
        let answers = self.ask(ask).await?;
        ensure!(answers.iter().all(|answer| answer.status == 200), "{answers:?}");
        let arrivals = self.farm.arrivals().await?;
        let once: BTreeSet<_> = arrivals.iter().map(|arrival| (&arrival.peer, &arrival.path)).collect();
        ensure!(once.len() == arrivals.len(), "somebody was given to a peer twice: {arrivals:?}");
        Ok(arrivals.iter().filter(|arrival| arrival.peer == self.peer).count())
    }

    async fn is(&self, state: PeerState) -> Result<()> {
        let view = self.marker().view(self.peer).await?;
        ensure!(view.state == state, "not {state}: {view:?}");
        Ok(())
    }

    /// From the beginning of a trial to its end.
    async fn stands_trial(&self) -> Result<()> {
        // nginx leaves the worker out that is to be replaced, and would leave the new one out too.
        self.ask(|ask| ask.with("x-die", self.peer)).await?;
        self.is(PeerState::Unavail).await?;
        self.marker().says(State::Draining, &[self.peer]).await?;
        self.marker().says(State::Trial, &[self.peer]).await?;
        ensure!(self.reach(|ask| ask).await? > 0, "no GET reached it");
        ensure!(self.reach(posted).await? == 0, "a POST reached it");
        for failure in ["x-refuse", "x-die"] {
            let before = self.marker().view(self.peer).await?.fails;
            let reached = self.reach(|ask| ask.with(failure, self.peer)).await?;
            ensure!(reached > 0, "{failure} was never seen");
            let counted = self.marker().view(self.peer).await?.fails - before;
            ensure!(counted == reached as u64, "{counted} of {reached} failures are counted");
            ensure!(self.reach(|ask| ask).await? > 0, "after {failure} no GET reached it");
        }
        self.is(PeerState::Trial).await?;
        self.marker().says(State::Up, &[self.peer]).await?;
        self.is(PeerState::Up).await?;
        ensure!(self.reach(posted).await? > 0, "after its trial no POST reached it");
        Ok(())
    }
}

fn posted(ask: Ask) -> Ask {
    Ask { method: Method::POST, ..ask }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_every_balancer_a_trial_spares_its_users_and_the_peer() -> Result<()> {
    let balancers = [
        "",
        "least_conn;",
        "hash $arg_visitor;",
        "hash $arg_visitor consistent;",
        "ip_hash;",
        "random;",
        "random two;",
        "random two least_conn;",
    ];
    for version in VERSIONS {
        let farm = Farm::start(4).await?;
        let peers = farm.peers();
        let cases: Vec<_> = balancers
            .iter()
            .flat_map(|line| ["handoff;", "keepalive 8; handoff;"].map(|keepalive| (line, keepalive)))
            .collect();
        let block = |(number, (line, keepalive)): (usize, &(_, _))| {
            let lines = format!("{line} {} {keepalive}", servers(peers.iter().copied(), STRICT));
            Block::new(format!("u{number}"), lines)
        };
        let blocks: Vec<Block> = cases.iter().enumerate().map(block).collect();
        let site = blocks::site(version, &blocks).await?;
        for (block, case) in blocks.iter().zip(cases) {
            let pool = Pool { site: &site, farm: &farm, block, peer: peers[0] };
            pool.stands_trial().await.with_context(|| format!("{case:?}"))?;
        }
        site.end().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_location_says_of_the_next_upstream_is_respected() -> Result<()> {
    for version in VERSIONS {
        let farm = Farm::start(3).await?;
        let peers = farm.peers();
        let cases = [
            ("proxy_next_upstream off;", false),
            ("proxy_next_upstream_tries 1;", false),
            ("proxy_next_upstream_tries 2;", true),
            ("proxy_next_upstream http_404;", true),
            ("proxy_next_upstream_timeout 1m;", true),
        ];
        let block = |(number, (location, _)): (usize, &(&str, bool))| {
            let lines = format!("{} handoff;", servers(peers.iter().copied(), STRICT));
            Block::new(format!("u{number}"), lines).passed_with(*location)
        };
        let blocks: Vec<Block> = cases.iter().enumerate().map(block).collect();
        let site = blocks::site(version, &blocks).await?;
        for (block, (location, is_met)) in blocks.iter().zip(cases) {
            let pool = Pool { site: &site, farm: &farm, block, peer: peers[0] };
            pool.marker().says(State::Trial, &[pool.peer]).await?;
            let reached = pool.reach(|ask| ask.with("x-refuse", pool.peer)).await?;
            ensure!((reached > 0) == is_met, "{location} {reached} reached it");
        }
        site.end().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_lasts_or_cannot_be_sent_again_is_not_for_a_trial() -> Result<()> {
    for version in VERSIONS {
        let farm = Farm::start(3).await?;
        let peers = farm.peers();
        let lines = format!("{} handoff;", servers(peers.iter().copied(), STRICT));
        let blocks = [
            Block::new("buffered", &lines),
            Block::new("unbuffered", &lines).passed_with("proxy_request_buffering off;"),
        ];
        let site = blocks::site(version, &blocks).await?;
        for block in &blocks {
            let pool = Pool { site: &site, farm: &farm, block, peer: peers[0] };
            pool.marker().says(State::Trial, &[pool.peer]).await?;
            ensure!(pool.reach(|ask| ask).await? > 0, "no GET reached it in {}", block.name());
            ensure!(pool.reach(|ask| Ask { method: Method::HEAD, ..ask }).await? > 0, "no HEAD reached it");
            let upgraded = pool.reach(|ask| ask.with("upgrade", "websocket")).await?;
            ensure!(upgraded == 0, "{upgraded} WebSockets reached it");
        }
        for (path, method, is_met) in [
            ("/buffered/", "GET", true),
            ("/unbuffered/", "GET", false),
            ("/buffered/", "PUT", false),
            ("/unbuffered/", "PUT", false),
        ] {
            farm.arrivals().await?;
            for _ in 0..12 {
                send_slowly(&site.visitors(), &format!("{method} {path}")).await?;
            }
            let arrivals = farm.arrivals().await?;
            ensure!(arrivals.len() == 12, "{arrivals:?}");
            let met = arrivals.iter().any(|arrival| arrival.peer == peers[0]);
            ensure!(met == is_met, "{method} {path}: {arrivals:?}");
        }
        site.end().await?;
    }
    Ok(())
}

/// A request whose body is so large that nginx has not got all of it when it passes the head on.
async fn send_slowly(door: &Door, line: &str) -> Result<()> {
    const SIZE: usize = 300_000;
    let mut visitor = door.open().await?;
    let head =
        format!("{line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", 2 * SIZE);
    visitor.write_all(head.as_bytes()).await?;
    for _ in 0..2 {
        visitor.write_all(&vec![b'x'; SIZE]).await?;
    }
    let mut answer = String::new();
    timeout(PATIENCE, visitor.read_to_string(&mut answer)).await??;
    ensure!(answer.starts_with("HTTP/1.1 200 "), "{line}: {answer}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn with_nobody_else_up_it_is_as_if_it_were_still_checking() -> Result<()> {
    for version in VERSIONS {
        let farm = Farm::start(2).await?;
        let [one, other] = farm.peers()[..] else { unreachable!() };
        let pair = format!("{} handoff;", servers([one, other], STRICT));
        let backed = format!("server {one} {STRICT}; server {other} backup; handoff;");
        let blocks = [Block::new("pair", pair), Block::new("backed", backed)];
        let site = blocks::site(version, &blocks).await?;

        let pair = Pool { site: &site, farm: &farm, block: &blocks[0], peer: one };
        pair.marker().says(State::Draining, &[other]).await?;
        for state in [State::Checking, State::Trial] {
            pair.marker().says(state, &[one]).await?;
            farm.arrivals().await?;
            let answers = pair.ask(|ask| ask).await?;
            ensure!(answers.iter().all(|answer| answer.status == 502), "{state}: {answers:?}");
            ensure!(farm.arrivals().await?.is_empty(), "somebody was reached");
        }
        // nginx's own verdict counts too.
        pair.marker().says(State::Up, &[one, other]).await?;
        pair.ask(|ask| ask.with("x-die", other)).await?;
        pair.marker().says(State::Trial, &[one]).await?;
        let answers = pair.ask(|ask| ask).await?;
        ensure!(answers.iter().all(|answer| answer.status == 502), "{answers:?}");

        // A backup is somebody.
        let backed = Pool { site: &site, farm: &farm, block: &blocks[1], peer: one };
        backed.marker().says(State::Trial, &[one]).await?;
        ensure!(backed.reach(|ask| ask.with("x-refuse", one)).await? > 0, "no GET reached it");
        ensure!(backed.reach(posted).await? == 0, "a POST reached it");
        site.end().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn two_peers_on_trial_do_not_use_up_the_third() -> Result<()> {
    for version in VERSIONS {
        let farm = Farm::start(3).await?;
        let [one, two, three] = farm.peers()[..] else { unreachable!() };
        let block = Block::new("app", format!("{} handoff;", servers([one, two, three], STRICT)));
        let site = blocks::site(version, std::slice::from_ref(&block)).await?;
        let pool = Pool { site: &site, farm: &farm, block: &block, peer: one };
        pool.marker().says(State::Trial, &[one, two]).await?;
        let both = format!("{one},{two}");
        for peer in [one, two] {
            let reached = Pool { peer, ..pool }.reach(|ask| ask.with("x-refuse", &both)).await?;
            ensure!(reached > 0, "no GET reached {peer}");
        }
        site.end().await?;
    }
    Ok(())
}

/// How many requests with this header, which names the peer, reached it, and over which connections.
async fn connections(pool: &Pool<'_>, header: &'static str) -> Result<(usize, BTreeSet<u64>)> {
    pool.farm.arrivals().await?;
    let answers = pool.ask(|ask| ask.with(header, pool.peer)).await?;
    ensure!(answers.iter().all(|answer| answer.status == 200), "{answers:?}");
    let arrivals = pool.farm.arrivals().await?.into_iter().filter(|arrival| arrival.peer == pool.peer);
    let connections: Vec<u64> = arrivals.map(|arrival| arrival.connection).collect();
    ensure!(!connections.is_empty(), "nothing reached it with {header}");
    Ok((connections.len(), connections.into_iter().collect()))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_connected_before_or_for_a_trial_is_not_used_again() -> Result<()> {
    for version in VERSIONS {
        for (farm, is_tls) in [(Farm::start(2).await?, false), (Farm::with_tls(2).await?, true)] {
            let peers = farm.peers();
            let lines = format!("{} keepalive 64; handoff;", servers(peers.iter().copied(), STRICT));
            let block = Block::new("app", lines);
            let block = if is_tls { block.tls() } else { block };
            let site = blocks::site(version, std::slice::from_ref(&block)).await?;
            let pool = Pool { site: &site, farm: &farm, block: &block, peer: peers[0] };
            let (_, mut old) = connections(&pool, "x-before").await?;
            pool.marker().says(State::Draining, &[pool.peer]).await?;
            pool.marker().says(State::Trial, &[pool.peer]).await?;
            for header in ["x-trial", "x-refuse", "x-die"] {
                let (requests, new) = connections(&pool, header).await?;
                ensure!(new.is_disjoint(&old), "{header}: {new:?} after {old:?}");
                ensure!(new.len() == requests, "{header}: {requests} requests over {new:?}");
                old.extend(new);
            }
            pool.marker().says(State::Up, &[pool.peer]).await?;
            let (requests, new) = connections(&pool, "x-after").await?;
            ensure!(new.is_disjoint(&old), "after the trial: {new:?} after {old:?}");
            ensure!(
                new.len() < requests,
                "{requests} requests, and no connection was used again, as it was before"
            );
            site.end().await?;
        }
    }
    Ok(())
}

/// Peers that have one answer each to everything, or none.
struct Parrots {
    addresses: Vec<String>,
    asked: Vec<Arc<AtomicUsize>>,
    /// Ends them when it is dropped.
    _tasks: JoinSet<()>,
}

impl Parrots {
    async fn start(answers: &[Option<Vec<u8>>]) -> Result<Self> {
        let addresses = farm::addresses(u16::try_from(answers.len())?)?;
        let (mut asked, mut tasks) = (Vec::new(), JoinSet::new());
        for (address, answer) in addresses.iter().zip(answers) {
            let (listener, count) = (TcpListener::bind(address).await?, Arc::new(AtomicUsize::new(0)));
            asked.push(Arc::clone(&count));
            let answer = answer.clone();
            tasks.spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    count.fetch_add(1, Relaxed);
                    spawn(parrot(stream, answer.clone()));
                }
            });
        }
        Ok(Self { addresses, asked, _tasks: tasks })
    }

    fn servers(&self) -> String {
        servers(self.addresses.iter().map(String::as_str), STRICT)
    }

    /// The name of the first.
    fn first(&self) -> &str {
        self.addresses.first().map_or("", String::as_str)
    }

    /// How often each of them was asked since this was last asked.
    fn asked(&self) -> Vec<usize> {
        self.asked.iter().map(|count| count.swap(0, Relaxed)).collect()
    }
}

async fn parrot(mut stream: TcpStream, answer: Option<Vec<u8>>) {
    let mut request = [0; 4096];
    _ = stream.read(&mut request).await;
    if let Some(answer) = answer {
        _ = stream.write_all(&answer).await;
        _ = stream.shutdown().await;
    }
    // Closed with unread bytes it would be reset, and what was sent might be lost.
    _ = stream.read_to_end(&mut Vec::new()).await;
}

fn http(answer: &str) -> Option<Vec<u8>> {
    Some(format!("HTTP/1.1 {answer}\r\nContent-Length: 0\r\n\r\n").into_bytes())
}

/// One upstream of parrots, of which the first is on trial.
struct Stage {
    site: Site,
    parrots: Parrots,
}

impl Stage {
    async fn with(version: &str, answers: &[Option<Vec<u8>>], location: &str) -> Result<Self> {
        let parrots = Parrots::start(answers).await?;
        let mut site = Site::new(version).await?;
        site.write(&format!(
            "proxy_cache_path {} keys_zone=all:1m;\nupstream app {{ zone app 256k; {} handoff; }}\n{}\n{}",
            site.file("cache").display(),
            parrots.servers(),
            site.front(&format!(
                "add_header X-State $handoff_state always; add_header X-Tries $handoff_tries always; {location}"
            )),
            site.api("write=on")
        ))?;
        site.start().await?;
        Marker::operator(&site, "app").says(State::Trial, &[parrots.first()]).await?;
        Ok(Self { site, parrots })
    }

    /// Asks until the peer on trial was asked too. The answers, and how often each peer was asked.
    async fn ask(&self) -> Result<(Vec<Reply>, Vec<usize>)> {
        let mut replies = Vec::new();
        for number in 0..2 * self.parrots.addresses.len() {
            replies.push(self.site.visitors().get(&format!("/{number}")).await?);
        }
        let asked = self.parrots.asked();
        ensure!(asked.first() > Some(&0), "nothing reached it: {asked:?}");
        Ok((replies, asked))
    }
}

#[tokio::test]
async fn whatever_it_fails_with_is_tried_elsewhere_and_what_it_answers_is_answered() -> Result<()> {
    let proxy = "proxy_pass http://app;";
    let scgi = |status: &str| Some(format!("Status: {status}\r\n\r\n").into_bytes());
    let cases = [
        (proxy, http("500 Oh"), http("200 OK"), 200),
        (proxy, http("502 Oh"), http("200 OK"), 200),
        (proxy, http("503 Oh"), http("200 OK"), 200),
        (proxy, http("504 Oh"), http("200 OK"), 200),
        // It closes, sends what is no header, or nothing at all.
        (proxy, Some(Vec::new()), http("200 OK"), 200),
        (proxy, Some(b"HTTP/1.1 200 OK\r\nA\0: b\r\n\r\n".to_vec()), http("200 OK"), 200),
        ("proxy_read_timeout 100ms; proxy_pass http://app;", None, http("200 OK"), 200),
        ("proxy_next_upstream http_404; proxy_pass http://app;", http("500 Oh"), http("200 OK"), 200),
        (
            "proxy_intercept_errors on; error_page 500 =410 /gone; proxy_pass http://app;",
            http("500 Oh"),
            http("200 OK"),
            200,
        ),
        ("scgi_pass app;", scgi("500 Oh"), scgi("200 OK"), 200),
        ("uwsgi_pass app;", http("503 Oh"), http("200 OK"), 200),
        // These may be meant so.
        (proxy, http("404 No"), http("404 No"), 404),
        (proxy, http("429 No"), http("429 No"), 429),
        (proxy, http("501 No"), http("501 No"), 501),
    ];
    for version in VERSIONS {
        for (location, on_trial, other, status) in &cases {
            let stage = Stage::with(version, &[on_trial.clone(), other.clone()], location).await?;
            let (replies, asked) = stage.ask().await?;
            let statuses: Vec<u16> = replies.iter().map(|reply| reply.status).collect();
            let what =
                format!("{location} {}", String::from_utf8_lossy(on_trial.as_deref().unwrap_or(b"nothing")));
            ensure!(statuses.iter().all(|got| got == status), "{what}: {statuses:?} {asked:?}");
            let view = stage.site.peer(stage.parrots.first()).await?;
            ensure!(view.state == PeerState::Trial, "{what}: {view:?}");
            stage.site.end().await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn after_a_trial_the_users_own_reasons_hold_again() -> Result<()> {
    for version in VERSIONS {
        // Everybody fails: the second one's failure is the user's.
        let all = [http("500 A"), http("500 B"), http("500 C")];
        let stage = Stage::with(version, &all, "proxy_pass http://app;").await?;
        let (replies, asked) = stage.ask().await?;
        let told: Vec<_> = replies.iter().map(|reply| (reply.status, reply.header("x-tries"))).collect();
        assert!(told.iter().all(|(status, _)| *status == 500), "{told:?}");
        let retried = told.iter().filter(|(_, tries)| *tries == Some("2")).count();
        assert_eq!((retried, told.len() + retried), (asked[0], asked.iter().sum()), "{told:?} {asked:?}");
        stage.site.end().await?;

        // A reason that the user did name goes on counting, and the failures of others are counted as ever.
        let location = "proxy_next_upstream http_503; proxy_pass http://app;";
        let stage = Stage::with(version, &[http("500 A"), http("503 B"), http("200 OK")], location).await?;
        let (replies, asked) = stage.ask().await?;
        assert!(replies.iter().all(|reply| reply.status == 200), "{replies:?} {asked:?}");
        let view = stage.site.peer(&stage.parrots.addresses[1]).await?;
        assert_eq!(view.state, PeerState::Unavail, "{asked:?}");
        stage.site.end().await?;
    }
    Ok(())
}

#[tokio::test]
async fn an_error_of_a_trial_never_gets_into_the_cache() -> Result<()> {
    let location = "proxy_cache all; proxy_cache_key $uri; proxy_cache_valid any 1h; proxy_cache_lock on; proxy_pass http://app;";
    for version in VERSIONS {
        let stage = Stage::with(version, &[http("500 Oh"), http("200 OK")], location).await?;
        for _ in 0..2 {
            for number in 0..8 {
                let reply = stage.site.visitors().get(&format!("/{number}")).await?;
                assert_eq!(reply.status, 200);
            }
        }
        let asked = stage.parrots.asked();
        assert!(asked[0] > 0 && asked[1] == 8, "{asked:?}");
        stage.site.end().await?;
    }
    Ok(())
}

#[tokio::test]
async fn an_old_answer_is_for_when_nobody_else_has_a_new_one() -> Result<()> {
    let location =
        "proxy_cache all; proxy_cache_key all; proxy_cache_valid 200 1s; proxy_cache_use_stale http_500;
        add_header X-Cache $upstream_cache_status; proxy_pass http://app;";
    for version in VERSIONS {
        let stage = Stage::with(version, &[http("500 Oh"), http("200 OK")], location).await?;
        let mut expired = 0;
        wait::until("a trial behind an old answer", PATIENCE, async || {
            let reply = stage.site.visitors().get("/").await.ok()?;
            assert_eq!(reply.status, 200);
            assert_ne!(reply.header("x-cache"), Some("STALE"), "somebody else had a new one");
            expired += usize::from(reply.header("x-cache") == Some("EXPIRED"));
            let asked = stage.parrots.asked[0].load(Relaxed);
            (expired > 0 && asked > 1).then_some(())
        })
        .await?;
        stage.site.end().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_trial_is_shown_for_what_it_is() -> Result<()> {
    for version in VERSIONS {
        let stage = Stage::with(version, &[http("200 A"), http("200 B")], "proxy_pass http://app;").await?;
        let (replies, asked) = stage.ask().await?;
        let on_trial = replies.iter().filter(|reply| reply.header("x-state") == Some("trial")).count();
        assert_eq!(on_trial, asked[0]);
        let view = stage.site.peer(stage.parrots.first()).await?;
        assert_eq!((view.state, view.requests, view.responses.success), (PeerState::Trial, 2, 2));
        let event = stage.site.events(0).await?.events.pop().context("an event")?;
        assert_eq!((event.from, event.to), (Some(State::Up), Some(State::Trial)));
        stage.site.end().await?;
    }
    Ok(())
}
