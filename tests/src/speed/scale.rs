//! Ten thousand peers, ten thousand requests that wait, a thousand marks a second, and 32 processes of nginx: what they need of
//! memory and time, beside an nginx that has the same upstreams without `handoff`.

use super::{
    figures::{Sample, Table, median, millis},
    moments::{mark, says, set},
};
use crate::{
    callgrind::Backend, clock::Moment, door::Door, farm::Farm, load::Load, nginx::Binary, place::Place,
    ports, process, site::Site, wait,
};
use anyhow::{Context, Result, ensure};
use handoff_wire::{Code, State, UpstreamView, path};
use hyper::Method;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::{fmt::Write as _, net::SocketAddr, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::timeout,
};

#[derive(Clone, Debug)]
pub struct Plan {
    pub nginx: String,
    pub processes: usize,
    pub upstreams: usize,
    /// Of each upstream.
    pub peers: usize,
    /// How often each page of the API is asked for.
    pub asks: usize,
    /// For how long marks are set.
    pub time: Duration,
    /// Requests that wait.
    pub parked: usize,
    pub rounds: usize,
}

/// The tables, one under the other.
pub struct Report(pub Vec<Table>);

/// What nginx with all its processes takes.
#[derive(Clone, Copy, Debug, Default)]
struct Memory {
    /// Shared memory counts once.
    all: f64,
    /// Of a worker, its own.
    own: f64,
}

/// One start of one nginx.
#[derive(Clone, Copy, Debug)]
struct Start {
    start: Duration,
    reload: Duration,
    memory: Memory,
}

const MARKS_A_SECOND: u32 = 1_000;
/// In a call, where many are set at once.
const BATCH: usize = 100;
/// Visits a second, to an upstream beside all of these.
const RATE: u32 = 200;
/// Who find that already as many wait as may.
const TOO_MANY: usize = 100;
/// Of a process of nginx: twice as many as may wait in it, however unevenly they come.
const CONNECTIONS: usize = 8_192;
const PATIENCE: Duration = Duration::from_secs(60);
const PORT: u16 = 9;
/// What the kernel says of a process's memory as a whole.
const ROLLED_UP: &str = "smaps_rollup";

// === impl Plan ===

impl Plan {
    pub async fn play(&self) -> Result<Report> {
        // Of this process, and of all that it starts.
        let most = getrlimit(Resource::Nofile).maximum;
        setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most })?;
        let [starts, api, marks] = self.peers().await?;
        Ok(Report(vec![starts, api, marks, self.park().await?]))
    }

    /// Nobody listens there, and nobody is sent there.
    fn peer(&self, upstream: usize, number: usize) -> String {
        format!("127.{}.{}.{}:{PORT}", 1 + upstream / 200, 1 + upstream % 200, 1 + number)
    }

    fn http(&self, site: &Site, ours: &str, live: &str) -> String {
        let mut http = format!("upstream live {{ zone live 256k; {live} keepalive 32; {ours} }}\n");
        for upstream in 0..self.upstreams {
            let servers: String =
                (0..self.peers).map(|number| format!("server {}; ", self.peer(upstream, number))).collect();
            _ = writeln!(http, "upstream u{upstream} {{ zone u{upstream} 512k; {servers} {ours} }}");
        }
        // 4m hold 1 142 peers of 143 upstreams.
        let megabytes = (self.upstreams * self.peers + 100) / 280 + 1;
        let zone = if ours.is_empty() { String::new() } else { format!("handoff_zone {megabytes}m;\n") };
        let api = if ours.is_empty() { String::new() } else { site.api("write=on") };
        format!("{zone}{http}{}\n{api}", site.front("proxy_pass http://live;"))
    }

    async fn nginx(&self, ours: &str, live: &str) -> Result<Site> {
        let site = Site::new(&self.nginx).await?.workers(self.processes);
        site.write(&self.http(&site, ours, live))?;
        Ok(site)
    }

    async fn peers(&self) -> Result<[Table; 3]> {
        let names = ["without `handoff`", "without, again", "with `handoff`", "with `handoff`, again"];
        let mut starts = vec![Vec::new(); names.len()];
        for _ in 0..self.rounds {
            for (name, starts) in names.iter().zip(&mut starts) {
                let ours = if name.starts_with("with `") { "handoff;" } else { "" };
                let live = format!("server {};", ports::address(PORT));
                let mut site = self.nginx(ours, &live).await?;
                let began = Moment::now();
                site.start().await?;
                let start = Moment::now().since(began);
                let memory = Memory::of(&site)?;
                let began = Moment::now();
                site.reload().await?;
                let reload = Moment::now().since(began);
                site.end().await?;
                starts.push(Start { start, reload, memory });
            }
        }
        let count = (self.peers * self.upstreams) as f64;
        let title = format!(
            "{count} peers in {} upstreams, {} processes; medians of {}",
            self.upstreams, self.processes, self.rounds
        );
        let mut table = Table::new(&[
            &title,
            "start, ms",
            "reload, ms",
            "memory, MiB: all",
            "a worker's own",
            "more, kB a peer: all",
            "a worker's own",
        ]);
        let mid =
            |starts: &[Start], of: fn(&Start) -> f64| median(&starts.iter().map(of).collect::<Vec<_>>());
        let all = |starts: &[Start]| mid(starts, |start| start.memory.all);
        let own = |starts: &[Start]| mid(starts, |start| start.memory.own);
        let without = starts.first().context("nothing was started")?;
        for (name, starts) in names.iter().zip(&starts) {
            table.row([
                (*name).to_owned(),
                format!("{:.0}", mid(starts, |start| start.start.as_secs_f64() * 1e3)),
                format!("{:.0}", mid(starts, |start| start.reload.as_secs_f64() * 1e3)),
                format!("{:.1}", all(starts) / 1024.0),
                format!("{:.2}", own(starts) / 1024.0),
                format!("{:.2}", (all(starts) - all(without)) / count),
                format!("{:.3}", (own(starts) - own(without)) / count),
            ]);
        }
        let (api, marks) = self.ask_and_mark().await?;
        Ok([table, api, marks])
    }

    /// What the API needs, and what it is to visitors elsewhere.
    async fn ask_and_mark(&self) -> Result<(Table, Table)> {
        let place = Place::new()?;
        let backend = Backend::start(&Binary::find(Some(&self.nginx)).await?, place.path(), 2).await?;
        let live: String = backend.peers(2).iter().map(|peer| format!("server {}; ", peer.address)).collect();
        let mut site = self.nginx("handoff;", &live).await?;
        site.start().await?;
        let overview = site.overview().await?;
        ensure!(overview.zone.peers_uncovered == 0, "{:?}", overview.zone);

        let mut api = Table::new(&["the API, ms: p50 / p99 / longest", "", "again", "kB", "asked"]);
        let pages = [
            ("overview, `/v1`", path::OVERVIEW.to_owned()),
            ("every upstream, `/v1/upstreams`", path::UPSTREAMS.to_owned()),
            ("one upstream", path::upstream("u0")),
            ("one peer", path::peer("u0", &self.peer(0, 0))),
            ("`/metrics`", path::METRICS.to_owned()),
        ];
        let mut samples = vec![<[Sample; 2]>::default(); pages.len()];
        let mut sizes = vec![0; pages.len()];
        for number in 0..2 * self.asks {
            for (((_, page), [first, again]), size) in pages.iter().zip(&mut samples).zip(&mut sizes) {
                let began = Moment::now();
                let reply = site.ask(Method::GET, page, String::new()).await?;
                let sample = if number.is_multiple_of(2) { first } else { again };
                sample.push(Moment::now().since(began));
                ensure!(reply.status == 200, "{page}: {}", reply.text());
                *size = reply.body.len();
            }
        }
        for (((name, _), [first, again]), size) in pages.iter().zip(&samples).zip(sizes) {
            let of = format!("{} + {}", first.len(), again.len());
            let size = format!("{:.1}", size as f64 / 1024.0);
            api.row([(*name).to_owned(), first.to_string(), again.to_string(), size, of]);
        }

        let marks = self.mark(&site).await?;
        site.end().await?;
        Ok((api, marks))
    }

    /// A thousand marks a second, one a call, then a hundred a call; and nothing, twice.
    async fn mark(&self, site: &Site) -> Result<Table> {
        let mut table = Table::new(&[
            "ms: p50 / p99 / longest",
            "marks a second",
            "a call",
            "told to come again",
            "visits elsewhere meanwhile",
        ]);
        let lines: [(&str, Option<usize>); 4] = [
            ("no marks", None),
            ("one mark a call", Some(1)),
            ("a hundred a call", Some(BATCH.min(self.upstreams * self.peers))),
            ("no marks, again", None),
        ];
        for (name, batch) in lines {
            let load = Load::start(ports::address(site.port()), RATE);
            let began = Moment::now();
            let (calls, busy) = match batch {
                Some(batch) => self.mark_in(site.control(), batch).await?,
                None => {
                    tokio::time::sleep(self.time).await;
                    Default::default()
                }
            };
            let seconds = Moment::now().since(began).as_secs_f64();
            let visits = load.stop().await;
            let failed = visits.iter().filter(|visit| visit.failed()).count();
            ensure!(failed == 0, "{failed} visits elsewhere failed");
            let mut elsewhere = Sample::default();
            elsewhere.extend(visits.iter().map(|visit| visit.latency));
            let rate = (calls.len() * batch.unwrap_or(0)) as f64 / seconds;
            table.row([
                name.to_owned(),
                format!("{rate:.0}"),
                calls.to_string(),
                busy.to_string(),
                elsewhere.to_string(),
            ]);
        }
        Ok(table)
    }

    /// Each peer in turn is drained, and let back in the next round; each call when it is due, however the last one went. How
    /// long each took, and how often one was told to come again, as another process of nginx was at it.
    async fn mark_in(&self, control: Door, batch: usize) -> Result<(Sample, usize)> {
        let gap = Duration::from_secs(1) / MARKS_A_SECOND * u32::try_from(batch)?;
        let calls = usize::try_from(self.time.as_nanos() / gap.as_nanos())?;
        let all = self.upstreams * self.peers;
        let mut due = Moment::now();
        let mut under_way = JoinSet::new();
        for call in 0..calls {
            let marks = (call * batch..(call + 1) * batch).map(|number| {
                let (upstream, place) = (number % all / self.peers, number % self.peers);
                let state = if (number / all).is_multiple_of(2) { State::Draining } else { State::Up };
                mark(&format!("u{upstream}"), &self.peer(upstream, place), state)
            });
            let (set, control) = (serde_json::to_string(&set(marks.collect()))?, control.clone());
            due.reached().await;
            under_way.spawn(async move {
                let mut busy = 0;
                loop {
                    let reply = control.ask(Method::PUT, path::MARKS, set.clone()).await?;
                    if !reply.is(Code::Busy) {
                        ensure!(reply.status == 200, "{}", reply.text());
                        return Ok((Moment::now().since(due), busy));
                    }
                    busy += 1;
                }
            });
            due = due + gap;
        }
        let (mut sample, mut busy) = (Sample::default(), 0);
        while let Some(done) = under_way.join_next().await {
            let (took, times) = done??;
            sample.push(took);
            busy += times;
        }
        Ok((sample, busy))
    }

    /// As many requests wait as may, and some find no room; then all are sent on.
    async fn park(&self) -> Result<Table> {
        let title = format!("{} requests wait, in {} processes", self.parked, self.processes);
        let mut table = Table::new(&[
            &title,
            "kB of nginx's memory each",
            "kB while with a peer, each",
            "`up` → at the peer, ms: p50 / p99 / longest",
            "found no room",
            "told so within, ms",
        ]);
        for name in ["", "again"] {
            let farm = Farm::start(1).await?;
            let [peer] = farm.peers()[..] else { anyhow::bail!("one peer") };
            let site = self.waiting_room(peer).await?;
            let target = ports::address(site.port());
            let visitors = Visitors::come(target, self.parked).await?;
            let before = Memory::of(&site)?;
            says(&site, peer, State::Draining).await?;
            let visitors = visitors.ask("/wait").await?;
            wait::until("all of them to wait", PATIENCE, async || {
                let view: UpstreamView = site.read(&path::upstream("app")).await.ok()?;
                (view.queue?.held == self.parked as u64).then_some(())
            })
            .await?;
            let waiting = Memory::of(&site)?.since(before);
            let began = Moment::now();
            let turned_away = Visitors::come(target, TOO_MANY).await?.ask("/wait").await?.answers().await?;
            let told = Moment::now().since(began);
            let no_room = turned_away.iter().filter(|&&status| status == 503).count();
            let up = Moment::now();
            says(&site, peer, State::Up).await?;
            visitors.are_served().await?;
            let mut sent_on = Sample::default();
            sent_on.extend(farm.arrivals().await?.iter().map(|arrival| arrival.at.since(up)));
            site.end().await?;

            // In another nginx: what was needed once is kept.
            let site = self.waiting_room(peer).await?;
            let visitors = Visitors::come(ports::address(site.port()), self.parked).await?;
            let before = Memory::of(&site)?;
            let visitors = visitors.ask("/hold").await?;
            farm.holds_so_many(self.parked).await?;
            let with_peer = Memory::of(&site)?.since(before);
            farm.release().await?;
            visitors.are_served().await?;
            site.end().await?;

            let each = |all: f64| format!("{:.1}", all / self.parked as f64);
            table.row([
                name.to_owned(),
                each(waiting),
                each(with_peer),
                sent_on.to_string(),
                format!("{no_room} of {TOO_MANY}"),
                millis(told),
            ]);
        }
        Ok(table)
    }

    async fn waiting_room(&self, peer: &str) -> Result<Site> {
        let mut site = Site::new(&self.nginx).await?.workers(self.processes).connections(CONNECTIONS);
        let queue = self.parked;
        site.write(&format!(
            "upstream app {{ zone app 256k; server {peer} max_fails=0; handoff_queue {queue} timeout=120s; handoff; }}\n{}\n{}",
            site.front("proxy_pass http://app; proxy_read_timeout 120s;"),
            site.api("write=on")
        ))?;
        site.start().await?;
        Ok(site)
    }
}

// === impl Report ===

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let tables: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&tables.join("\n\n"))
    }
}

// === impl Memory ===

impl Memory {
    fn of(site: &Site) -> Result<Self> {
        let workers = site.serving_workers();
        let [mut all] = process::kilobytes(site.master(), ROLLED_UP, ["Pss:"])?;
        let mut own = 0;
        for &pid in &workers {
            let [whole, anonymous] = process::kilobytes(pid, ROLLED_UP, ["Pss:", "Pss_Anon:"])?;
            (all, own) = (all + whole, own + anonymous);
        }
        Ok(Self { all: all as f64, own: own as f64 / workers.len() as f64 })
    }

    /// What there is more, in kB.
    fn since(self, before: Self) -> f64 {
        self.all - before.all
    }
}

/// Each with a connection of its own.
struct Visitors(Vec<TcpStream>);

/// Those who have asked.
struct Asked(JoinSet<Result<u16>>);

// === impl Visitors ===

impl Visitors {
    /// One after the other, as nginx takes them.
    async fn come(target: SocketAddr, count: usize) -> Result<Self> {
        let mut all = Vec::new();
        for _ in 0..count {
            all.push(TcpStream::connect(target).await?);
        }
        Ok(Self(all))
    }

    async fn ask(self, path: &str) -> Result<Asked> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        let mut asked = JoinSet::new();
        for mut visitor in self.0 {
            visitor.write_all(request.as_bytes()).await?;
            asked.spawn(async move {
                let mut answer = Vec::new();
                visitor.read_to_end(&mut answer).await?;
                let answer = String::from_utf8_lossy(&answer).into_owned();
                let status = answer.split(' ').nth(1).with_context(|| format!("no answer: {answer:?}"))?;
                Ok(status.parse()?)
            });
        }
        Ok(Asked(asked))
    }
}

// === impl Asked ===

impl Asked {
    async fn answers(mut self) -> Result<Vec<u16>> {
        let mut answers = Vec::new();
        while let Some(answer) = timeout(PATIENCE, self.0.join_next()).await.context("no answer")? {
            answers.push(answer??);
        }
        Ok(answers)
    }

    async fn are_served(self) -> Result<()> {
        let answers = self.answers().await?;
        let lost = answers.iter().filter(|&&status| status != 200).count();
        ensure!(lost == 0, "{lost} of {} were not served", answers.len());
        Ok(())
    }
}
