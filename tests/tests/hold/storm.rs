//! Everything at once: marks and pauses that come and go, peers that die, visitors of every kind, and some who leave. Whoever
//! stays is answered, and each answer is one that the rules allow for that request; in the end nothing is left.
//!
//! Fair weather and rough weather take turns. In fair weather whoever is not up is expected back: everybody is served, or waits in
//! vain (503), and nobody is told 502. In rough weather nobody may be expected, and peers break what they have.

use crate::stage::Stage;
use anyhow::{Context, Result, ensure};
use e2e::{
    clock::Moment,
    command,
    door::Reply,
    farm::{self, Farm},
    ports, process,
    site::{PATIENCE, Site, VERSIONS},
    wait,
};
use handoff_wire::{UpstreamView, path};
use hyper::Method;
use rustix::process::Signal;
use serde_json::json;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::{sleep, timeout},
};

const QUEUE: &str = "handoff_queue 30 bytes=200k timeout=150ms;";

const PATHS: [&str; 9] =
    ["/", "/off/", "/unbuffered/", "/patient/", "/mirrored/", "/again/", "/page/", "/safe/", "/die/"];

/// From a reload to the moment when all old workers know that they go.
const GOODBYE: Duration = Duration::from_secs(2);

/// Requests of one run of curl, which speaks HTTP/2, eight at a time.
const BATCH: u64 = 40;

/// How long, and how much of it.
#[derive(Clone, Copy)]
struct Plan {
    visitors: usize,
    requests: u64,
    /// Then so many more, while nginx reloads, and its workers are killed.
    violent: u64,
}

const SHORT: Plan = Plan { visitors: 16, requests: 1_500, violent: 0 };
const LONG: Plan = Plan { visitors: 64, requests: 75_000, violent: 30_000 };

/// What the weather was, when, for whoever judges an answer.
#[derive(Default)]
struct Weather {
    rough: Mutex<Vec<(Moment, Option<Moment>)>>,
    kills: Mutex<Vec<Moment>>,
    reloads: Mutex<Vec<Moment>>,
    is_over: AtomicBool,
    begun: AtomicU64,
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    Answered(u16),
    /// By the visitor.
    Abandoned,
    /// The connection ended before the answer did.
    Broken,
}

#[derive(Debug)]
struct Visit {
    path: String,
    began: Moment,
    ended: Moment,
    outcome: Outcome,
    comes_again: bool,
}

/// Two upstreams, one of them over TLS, and doors for HTTP/1 and for HTTP/2 over TLS.
struct Storm {
    stage: Stage,
    safe: Farm,
    weather: Arc<Weather>,
    /// POSTs that arrived at a peer.
    orders: BTreeMap<String, usize>,
}

/// splitmix64: the same storm each time, as far as the visitors go.
fn chance(end: u64) -> u64 {
    static STATE: AtomicU64 = AtomicU64::new(7);
    let z = STATE.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ (z >> 31)) % end
}

fn pick<T: Copy>(from: &[T]) -> Result<T> {
    from.get(chance(from.len() as u64) as usize).copied().context("nothing to choose from")
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

// === impl Weather ===

impl Weather {
    fn turns_rough(&self) {
        lock(&self.rough).push((Moment::now(), None));
    }

    fn turns_fair(&self) {
        if let Some((_, end)) = lock(&self.rough).last_mut() {
            *end = Some(Moment::now());
        }
    }

    fn kills(&self, worker: u32) {
        lock(&self.kills).push(Moment::now());
        process::signal(worker, Signal::KILL);
    }

    /// Whether the rules allow what became of it.
    fn judge(&self, visit: &Visit) -> Result<()> {
        let lasted = visit.began..=visit.ended;
        let was_rough = || {
            let rough = lock(&self.rough);
            rough.iter().any(|(from, to)| *from <= visit.ended && to.is_none_or(|to| to >= visit.began))
        };
        let saw_a_kill = || lock(&self.kills).iter().any(|kill| lasted.contains(kill));
        // A worker that goes says so to its HTTP/2 clients. What curl asks in that moment it does not ask again (3 of 24 000 in
        // a stock nginx that reloaded 50 times).
        let saw_a_reload = || {
            let reloads = lock(&self.reloads);
            reloads.iter().any(|at| *at <= visit.ended && visit.began.since(*at) < GOODBYE)
        };
        let is_allowed = match visit.outcome {
            Outcome::Answered(200) | Outcome::Abandoned => true,
            // Whoever has waited in vain, or found no room, is told to come again.
            Outcome::Answered(503) => visit.comes_again,
            Outcome::Answered(502) => visit.path.starts_with("/die/") || was_rough(),
            Outcome::Answered(_) => false,
            Outcome::Broken => saw_a_kill() || (visit.path.starts_with("https:") && saw_a_reload()),
        };
        let weather = if was_rough() { "rough" } else { "fair" };
        ensure!(is_allowed, "{visit:?} in {weather} weather");
        Ok(())
    }
}

// === visitors ===

impl Visit {
    fn of(path: String, began: Moment, reply: Result<Reply>) -> Self {
        let (outcome, comes_again) = reply.map_or((Outcome::Broken, false), |reply| {
            (Outcome::Answered(reply.status), reply.header("retry-after") == Some("5"))
        });
        Self { path, began, ended: Moment::now(), outcome, comes_again }
    }
}

/// What one of so many visitors does: the first two speak HTTP/2.
async fn visits(visitor: usize, port: u16, begun: &AtomicU64) -> Result<Vec<Visit>> {
    let url = match visitor {
        0 => format!("https://127.0.0.1:{}/", port + 1),
        1 => format!("https://127.0.0.1:{}/safe/", port + 1),
        _ => return Ok(vec![visit(port, begun.fetch_add(1, Ordering::Relaxed)).await?]),
    };
    begun.fetch_add(BATCH, Ordering::Relaxed);
    batch(&url).await
}

/// Comes again and again, until the storm is over.
async fn come(visitor: usize, port: u16, weather: &Weather) -> Result<BTreeMap<Outcome, usize>> {
    let mut outcomes = BTreeMap::new();
    while !weather.is_over.load(Ordering::Relaxed) {
        let visits = timeout(PATIENCE, visits(visitor, port, &weather.begun)).await;
        for visit in visits.context("a visit hangs")?? {
            weather.judge(&visit)?;
            *outcomes.entry(visit.outcome).or_default() += 1;
        }
    }
    Ok(outcomes)
}

/// One request of a visitor over HTTP/1.
async fn visit(port: u16, number: u64) -> Result<Visit> {
    let place = pick(&PATHS)?;
    let method = match place {
        "/page/" => "GET",
        _ => pick(&["GET", "POST", "PUT"])?,
    };
    let slow = pick(&["", "", "", "/slow"])?;
    // What a location sends on by itself may arrive twice: the user said so.
    let kind = if method == "POST" && place != "/again/" { "order" } else { "visit" };
    let path = format!("{place}{kind}-{number}{slow}");
    let body = if method == "GET" { 0 } else { pick(&[0, 10, 30_000])? };
    let began = Moment::now();
    match chance(20) {
        0..3 => leave(port, method, &path, body).await?,
        3..6 if body > 0 => {
            let reply = trickle(port, method, &path, body).await;
            return Ok(Visit::of(path, began, reply));
        }
        _ => {
            let door = e2e::door::Door::Tcp(ports::address(port));
            let reply = door.ask(method.parse::<Method>()?, &path, vec![b'x'; body]).await;
            return Ok(Visit::of(path, began, reply));
        }
    }
    Ok(Visit { path, began, ended: Moment::now(), outcome: Outcome::Abandoned, comes_again: false })
}

fn head(method: &str, path: &str, body: usize) -> String {
    format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {body}\r\n\r\n")
}

/// This one leaves: in the middle of its body, or while it waits; in order, or with a reset.
async fn leave(port: u16, method: &str, path: &str, body: usize) -> Result<()> {
    let mut stream = TcpStream::connect(ports::address(port)).await?;
    if chance(2) == 0 {
        stream.set_zero_linger()?;
    }
    // nginx may be gone before we are.
    _ = stream.write_all(head(method, path, body).as_bytes()).await;
    _ = stream.write_all(&vec![b'x'; pick(&[0, body / 2, body])?]).await;
    sleep(Duration::from_millis(chance(200))).await;
    Ok(())
}

/// A body that comes slowly.
async fn trickle(port: u16, method: &str, path: &str, body: usize) -> Result<Reply> {
    let mut stream = TcpStream::connect(ports::address(port)).await?;
    stream.write_all(head(method, path, body).as_bytes()).await?;
    let bytes = vec![b'x'; body];
    for piece in bytes.chunks(body.div_ceil(4)) {
        sleep(Duration::from_millis(chance(40))).await;
        // An answer may come before the body has gone; what counts is whether it comes.
        if stream.write_all(piece).await.is_err() {
            break;
        }
    }
    let mut text = Vec::new();
    stream.read_to_end(&mut text).await?;
    let text = String::from_utf8_lossy(&text);
    let status = text.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)).context("no answer")?;
    let mut reply = Reply { status: status.parse()?, headers: Default::default(), body: bytes::Bytes::new() };
    if text.contains("\r\nRetry-After: 5\r\n") {
        reply.headers.insert("retry-after", "5".parse()?);
    }
    Ok(reply)
}

/// A client that speaks HTTP/2 over TLS.
async fn batch(url: &str) -> Result<Vec<Visit>> {
    let began = Moment::now();
    let mut curl = command::clean("curl");
    curl.args(["-sk", "--http2", "-Z", "--parallel-max", "8", "-o", "/dev/null"]);
    curl.args(["-w", "%{http_code} %header{retry-after} %{errormsg}\\n"])
        .arg(format!("{url}batch-[1-{BATCH}]"));
    let output = curl.output().await?;
    let text = String::from_utf8_lossy(&output.stdout);
    let ended = Moment::now();
    let visits = text.lines().map(|line| {
        let mut words = line.splitn(3, ' ');
        let (code, again) = words.next().zip(words.next()).context("two words")?;
        let error = words.next().unwrap_or_default();
        let outcome = match code.parse()? {
            0 => Outcome::Broken,
            code => Outcome::Answered(code),
        };
        Ok(Visit { path: format!("{url}{error}"), began, ended, outcome, comes_again: again == "5" })
    });
    let visits = visits.collect::<Result<Vec<_>>>()?;
    ensure!(visits.len() as u64 == BATCH, "{} answers to {BATCH} requests: {text}", visits.len());
    Ok(visits)
}

// === impl Storm ===

impl Storm {
    async fn new(version: &str) -> Result<Self> {
        let (farm, safe) = (Farm::start(3).await?, Farm::with_tls(2).await?);
        let site = Site::new(version).await?;
        let (key, cert) = farm::certificate(site.place()).await?;
        let servers = |farm: &Farm| e2e::blocks::servers(farm.peers(), "max_fails=0");
        let port = site.port();
        site.write(&format!(
            "proxy_http_version 1.1; proxy_set_header Connection \"\"; client_max_body_size 0;
            upstream app {{ zone app 256k; {} keepalive 4; {QUEUE} handoff; }}
            upstream safe {{ zone safe 256k; {} keepalive 4; {QUEUE} handoff; }}
            server {{ listen 127.0.0.1:{port}; listen 127.0.0.1:{} ssl http2;
                ssl_certificate {}; ssl_certificate_key {}; keepalive_requests 100000;
                location / {{ proxy_pass http://app; }}
                location /off/ {{ proxy_next_upstream off; proxy_pass http://app/; }}
                location /unbuffered/ {{ proxy_request_buffering off; proxy_pass http://app/; }}
                location /patient/ {{ proxy_ignore_client_abort on; proxy_pass http://app/; }}
                location /mirrored/ {{ mirror /mirror; proxy_pass http://app/; }}
                location = /mirror {{ internal; proxy_pass http://app; }}
                location /again/ {{ error_page 502 503 = @again; proxy_pass http://app/; }}
                location @again {{ proxy_pass http://app; }}
                location /safe/ {{ proxy_pass https://safe/; }}
                location /die/ {{ proxy_set_header X-Die *; proxy_pass http://app/; }}
                location /page/ {{ ssi on; ssi_types text/plain; default_type text/plain;
                    return 200 '<!--# include virtual=\"/1\" --><!--# include virtual=\"/safe/2\" -->'; }}
            }}\n{}",
            servers(&farm),
            servers(&safe),
            port + 1,
            cert.display(),
            key.display(),
            site.api("write=on")
        ))?;
        let stage = Stage::with(site, farm).await?;
        Ok(Self { stage, safe, weather: Arc::default(), orders: BTreeMap::new() })
    }

    fn peers(&self) -> Vec<&str> {
        self.stage.farm.peers().into_iter().chain(self.safe.peers()).collect()
    }

    async fn says(&self, state: &str, expect: &str) -> Result<()> {
        let all = self.peers();
        let (one, others) = all.split_at(1);
        let some = pick(&[one, others, &all, &all])?;
        self.stage.says(state, expect, some).await
    }

    async fn pauses_or_resumes(&self) -> Result<()> {
        if chance(3) > 0 {
            let upstreams = pick(&[&["app"][..], &["safe"], &["app", "safe"]])?;
            self.stage.pauses(json!({ "upstreams": upstreams, "max": "1s", "force": true })).await.map(drop)
        } else {
            self.resumes().await
        }
    }

    async fn resumes(&self) -> Result<()> {
        let resume = json!({ "owner": "operator", "upstreams": ["app", "safe"] }).to_string();
        let reply = self.stage.site.ask(Method::POST, path::RESUME, resume).await?;
        ensure!(reply.status == 200, "{}", reply.text());
        Ok(())
    }

    /// Marks come and go, and whoever is not up is expected.
    async fn fair(&mut self) -> Result<()> {
        for _ in 0..10 {
            match chance(4) {
                0 => self.pauses_or_resumes().await?,
                _ => {
                    let state =
                        pick(&["draining", "down", "checking", "trial", "changing", "up", "up", "up"])?;
                    self.says(state, "back").await?;
                }
            }
            sleep(Duration::from_millis(chance(120))).await;
        }
        Ok(())
    }

    /// Nobody may be expected, and peers break what they have.
    async fn rough(&mut self) -> Result<()> {
        self.weather.turns_rough();
        let mut stopped = BTreeSet::new();
        for _ in 0..10 {
            match chance(5) {
                0 => {
                    let peer = pick(&self.stage.farm.peers())?.to_owned();
                    self.stage.farm.stop(&peer).await?;
                    stopped.insert(peer);
                }
                1 => self.pauses_or_resumes().await?,
                _ => {
                    let state = pick(&["draining", "down", "up", "up"])?;
                    self.says(state, pick(&["back", "gone"])?).await?;
                }
            }
            sleep(Duration::from_millis(chance(80))).await;
            if let Some(peer) = stopped.pop_first() {
                self.stage.farm.restart(&peer).await?;
            }
        }
        self.clears().await?;
        // Whoever was let go for nobody's sake has gone by now.
        self.weather.turns_fair();
        Ok(())
    }

    async fn clears(&mut self) -> Result<()> {
        self.stage.says("up", "", &self.peers()).await?;
        self.resumes().await?;
        for arrival in self.stage.farm.arrivals().await?.into_iter().chain(self.safe.arrivals().await?) {
            if arrival.path.starts_with("/order-") {
                *self.orders.entry(arrival.path).or_default() += 1;
            }
        }
        Ok(())
    }

    /// nginx reloads, or one of its workers is killed.
    async fn strike(&self) -> Result<()> {
        if chance(2) == 0 {
            lock(&self.weather.reloads).push(Moment::now());
            self.stage.site.reload().await?;
        } else {
            let workers = self.stage.site.serving(&[]).await?;
            let victim = pick(&workers)?;
            self.weather.kills(victim);
            process::death(victim).await?;
            self.stage.site.serving(&[victim]).await?;
        }
        Ok(())
    }

    /// What nginx's workers have in memory, in kB.
    fn resident(&self) -> u64 {
        self.stage.site.serving_workers().into_iter().filter_map(process::resident).sum()
    }

    async fn rages(&mut self, plan: Plan) -> Result<Tally> {
        let port = self.stage.site.port();
        let mut visitors = JoinSet::new();
        for visitor in 0..plan.visitors {
            let weather = Arc::clone(&self.weather);
            visitors.spawn(async move {
                let outcomes = come(visitor, port, &weather).await;
                if outcomes.is_err() {
                    weather.is_over.store(true, Ordering::Relaxed);
                }
                outcomes
            });
        }
        let mut tally = Tally::default();
        let rages = self.weather_changes(plan, &mut tally);
        let rages = rages.await;
        self.weather.is_over.store(true, Ordering::Relaxed);
        while let Some(outcomes) = visitors.join_next().await {
            for (outcome, count) in outcomes?? {
                *tally.outcomes.entry(outcome).or_default() += count;
            }
        }
        rages?;
        Ok(tally)
    }

    async fn weather_changes(&mut self, plan: Plan, tally: &mut Tally) -> Result<()> {
        // Where a visitor has seen what must not be, it is over.
        let begun = |storm: &Self| match storm.weather.is_over.load(Ordering::Relaxed) {
            true => u64::MAX,
            false => storm.weather.begun.load(Ordering::Relaxed),
        };
        while begun(self) < plan.requests {
            self.fair().await?;
            self.rough().await?;
            // What nginx keeps for reuse it has by then.
            if tally.resident.is_none() && begun(self) > plan.requests / 3 {
                tally.resident = Some((self.resident(), 0));
            }
        }
        if let Some((_, after)) = &mut tally.resident {
            *after = self.resident();
        }
        while begun(self) < plan.requests + plan.violent {
            self.fair().await?;
            self.strike().await?;
            self.rough().await?;
            self.strike().await?;
            tally.strikes += 2;
        }
        Ok(())
    }

    /// Nobody waits, nothing is in flight, and each order has arrived once at most.
    async fn ends(mut self, tally: &Tally) -> Result<()> {
        self.clears().await?;
        let (mut resumed, mut timed_out) = (0, 0);
        for name in ["app", "safe"] {
            let queue = wait::until("nothing to be left", PATIENCE, async || {
                let view: UpstreamView = self.stage.site.read(&path::upstream(name)).await.ok()?;
                let in_flight: u64 = view.peers.iter().map(|peer| peer.in_flight).sum();
                let queue = view.queue?;
                eprintln!("{name}: {in_flight} in flight, {queue:?}");
                ([queue.held, queue.bytes, in_flight] == [0; 3]).then_some(queue)
            })
            .await?;
            resumed += queue.resumed;
            timed_out += queue.timed_out;
        }
        ensure!(
            resumed > 0 && timed_out > 0,
            "{resumed} went on, {timed_out} waited in vain: nobody had to wait"
        );
        let twice: Vec<_> = self.orders.iter().filter(|(_, arrived)| **arrived > 1).collect();
        ensure!(twice.is_empty() && !self.orders.is_empty(), "arrived more than once: {twice:?}");
        if let Some((before, after)) = tally.resident {
            ensure!(after <= before + before / 20 + 1024, "{before} kB at first, then {after} kB");
        }
        eprintln!("{} POSTs arrived, none of them twice", self.orders.len());
        self.stage.site.end_but_for(&["exited on signal 9"]).await
    }
}

/// What was seen.
#[derive(Default)]
struct Tally {
    outcomes: BTreeMap<Outcome, usize>,
    /// After a third of the requests, and after all of them, with the same workers.
    resident: Option<(u64, u64)>,
    strikes: usize,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let requests: usize = self.outcomes.values().sum();
        write!(f, "{requests} requests, {} reloads and kills: {:?}", self.strikes, self.outcomes)?;
        self.resident.map_or(Ok(()), |(before, after)| write!(f, "; {before} kB in memory, then {after} kB"))
    }
}

async fn storm(version: &str, plan: Plan) -> Result<()> {
    let mut storm = Storm::new(version).await?;
    let tally = storm.rages(plan).await?;
    eprintln!("{tally}");
    let count = |outcome| tally.outcomes.get(&outcome).copied().unwrap_or_default() as u64;
    ensure!(count(Outcome::Answered(200)) * 3 > plan.requests, "it is no storm if nobody is served: {tally}");
    for outcome in [Outcome::Answered(502), Outcome::Answered(503), Outcome::Abandoned] {
        ensure!(count(outcome) > 0, "no {outcome:?}: {tally}");
    }
    storm.ends(&tally).await
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_storm_everybody_who_stays_is_answered_as_the_rules_allow() -> Result<()> {
    for version in VERSIONS {
        storm(version, SHORT).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "two minutes; `make storm` runs it"]
async fn in_a_long_storm_too_and_nothing_leaks_in_debians_nginx() -> Result<()> {
    storm("1.22.1", LONG).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "two minutes; `make storm` runs it"]
async fn in_a_long_storm_too_and_nothing_leaks_in_a_newer_nginx() -> Result<()> {
    storm("1.28.3", LONG).await
}
