//! A fleet as the store sees it: app hosts and edges that hold the protocol of the sidecar, with its keys and values, and
//! have no workers and no nginx. So many real ones have no room on one machine.

use crate::{clock::Moment, dice::Dice};
use anyhow::{Context, Result, ensure};
use etcd_client::{
    Client, Compare, CompareOp, ConnectOptions, EventType, GetOptions, PutOptions, Txn, TxnOp, WatchOptions,
    WatchResponse, WatchStream,
};
use futures_util::FutureExt;
use handoff_wire::{
    Expect, PeerState, Responses, State,
    store::{
        AckMark, AckPeer, AckUpstream, AckValue, EdgeValue, Elsewhere, Holder, HostValue, Key, Keys, Name,
        WorkerMark, WorkerValue, at_edge,
    },
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{Semaphore, mpsc, watch},
    task::{JoinHandle, JoinSet},
    time::{Instant, interval, sleep, timeout},
};

/// Longer than the sidecar's 10 s: none of these opens a second session, and all are one process, which may be late itself.
const LEASE: i64 = 60;
/// As the sidecar has it.
const BEAT: Duration = Duration::from_millis(2_500);
/// So long after its last mark a roll-out still looks at the answers.
const WATCHED: Duration = Duration::from_secs(5);
/// So many come at once in the beginning.
const AT_ONCE: usize = 64;
/// What one txn may hold, by etcd's default: 128.
const BATCH: usize = 100;
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub hosts: usize,
    pub edges: usize,
    /// Of each host.
    pub workers: usize,
    /// How long a request may still be with a worker that drains; half of the drains find one.
    pub in_flight: Duration,
    /// How often an edge says what a host that deploys has been answered, and nothing else. None: never.
    pub counts: Option<Duration>,
    /// Whether an edge hears all that is there before it answers any of it.
    pub gathers: bool,
}

/// All of it ends when it is dropped.
pub struct Fleet {
    pub hosts: Vec<Host>,
    edges: Vec<JoinHandle<()>>,
}

pub struct Host {
    name: Name,
    address: Ipv4Addr,
    session: Session,
    keys: Arc<Keys>,
    acks: watch::Receiver<Acks>,
    following: JoinHandle<()>,
}

/// What a drain took, from the moment in which it was put into the store.
#[derive(Clone, Copy, Debug)]
pub struct Drained {
    /// Until the last edge had acknowledged it.
    pub acknowledged: Duration,
    /// Until nothing was in flight at any of them, and each had answered the fence.
    pub fenced: Duration,
}

/// The last word of each edge.
type Acks = BTreeMap<Name, (i64, u64)>;

struct Session {
    client: Client,
    lease: i64,
    keeper: JoinHandle<()>,
}

struct Edge {
    name: Name,
    session: Session,
    keys: Arc<Keys>,
    shape: Shape,
    dice: Dice,
    said: BTreeMap<Name, Said>,
    /// Whose acknowledgement has still to be written.
    due: BTreeSet<Name>,
    /// Until when a host wants to see how it is answered.
    watched: BTreeMap<Name, Instant>,
    /// What its counters have come to.
    count: u64,
    again: mpsc::UnboundedSender<Name>,
}

#[derive(Default)]
struct Said {
    address: Option<IpAddr>,
    revision: i64,
    /// By address: the value, and until when a request is still there.
    workers: BTreeMap<String, (WorkerValue, Instant)>,
}

/// Each has the workers of every hundredth host.
const UPSTREAMS: usize = 100;

/// What nginx is to be told of all workers: the upstreams, with these parameters in each.
pub fn upstreams(shape: &Shape, directives: &str) -> String {
    let servers = |host: usize| {
        (0..shape.workers).map(move |worker| format!("server {};", address(ip(host).into(), worker)))
    };
    let upstream = |number: usize| {
        let hosts = (number..shape.hosts).step_by(UPSTREAMS);
        let servers: Vec<String> = hosts.flat_map(servers).collect();
        format!("upstream app-{number} {{ zone app-{number} 1m; {} {directives} }}", servers.join(" "))
    };
    (0..UPSTREAMS.min(shape.hosts)).map(upstream).collect::<Vec<_>>().join("\n")
}

fn upstream(host: &Name) -> String {
    let number = host.as_str().rsplit('-').next().and_then(|number| number.parse::<usize>().ok());
    format!("app-{}", number.unwrap_or(0) % UPSTREAMS)
}

fn ip(host: usize) -> Ipv4Addr {
    Ipv4Addr::from_bits(0x0a00_0001 + u32::try_from(host).unwrap_or(0))
}

// === impl Fleet ===

impl Fleet {
    /// Comes back when every host has heard of every edge.
    pub async fn start(endpoint: &str, shape: Shape) -> Result<Self> {
        let keys = Arc::new(Keys::new(&"scale".parse()?));
        let turn = Arc::new(Semaphore::new(AT_ONCE));
        let mut coming = JoinSet::new();
        for number in 0..shape.hosts {
            let (endpoint, keys, turn) = (endpoint.to_owned(), keys.clone(), turn.clone());
            coming.spawn(async move {
                let _turn = turn.acquire().await?;
                Host::start(&endpoint, keys, number).await
            });
        }
        let mut hosts = Vec::new();
        while let Some(host) = coming.join_next().await {
            hosts.push(host??);
        }
        let mut coming = JoinSet::new();
        for number in 0..shape.edges {
            let (endpoint, keys) = (endpoint.to_owned(), keys.clone());
            coming.spawn(async move { Edge::start(&endpoint, keys, shape, number).await });
        }
        let mut edges = Vec::new();
        while let Some(edge) = coming.join_next().await {
            edges.push(edge??);
        }
        let mut fleet = Self { hosts, edges };
        fleet.knows(shape.edges).await?;
        Ok(fleet)
    }

    /// Waits until every host has heard of so many edges.
    pub async fn knows(&mut self, edges: usize) -> Result<()> {
        for host in &mut self.hosts {
            let all = host.acks.wait_for(|acks| acks.len() == edges);
            timeout(PATIENCE, all).await.context("a host does not hear of every edge")??;
        }
        Ok(())
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.edges.iter().for_each(JoinHandle::abort);
    }
}

// === impl Host ===

impl Host {
    async fn start(endpoint: &str, keys: Arc<Keys>, number: usize) -> Result<Self> {
        let mut session = Session::open(endpoint).await?;
        let name: Name = format!("host-{number}").parse()?;
        let address = ip(number);
        let value =
            HostValue { version: VERSION.to_owned(), addresses: vec![address.into()], holder: holder() };
        let put = session.put(&keys.host(&name), &value)?;
        session.client.txn(Txn::new().and_then([put])).await?;
        let acks = session.client.watch(keys.acks(&name), Some(WatchOptions::new().with_prefix())).await?;
        let (tell, told) = watch::channel(Acks::new());
        let following = tokio::spawn(follow(keys.clone(), acks, tell));
        Ok(Self { name, address, session, keys, acks: told, following })
    }

    /// One worker as a deploy has it: drained at every edge, fenced, replaced, up again.
    pub async fn replace(&mut self, worker: usize, restart: Duration) -> Result<Drained> {
        let address = address(self.address.into(), worker);
        let key = self.keys.worker(&self.name, &upstream(&self.name), &address);
        let began = Moment::now();
        let revision = self.say(&key, 1).await?;
        self.heard(revision, false).await?;
        let acknowledged = Moment::now().since(began);
        self.heard(revision, true).await?;
        let fence = self.say(&key, 2).await?;
        self.heard(fence, true).await?;
        let fenced = Moment::now().since(began);
        sleep(restart).await;
        self.session.client.delete(key, None).await?;
        Ok(Drained { acknowledged, fenced })
    }

    /// The worker drains. Answers at which revision this was said.
    async fn say(&mut self, key: &str, said: u64) -> Result<i64> {
        let mark = WorkerMark {
            owner: "rollout:4711".parse()?,
            state: State::Draining,
            expect: Expect::Back,
            reason: "handoff reload".to_owned(),
            force: false,
        };
        let value = WorkerValue { state: State::Draining, said, marks: vec![mark] };
        let ours = Compare::lease(self.keys.host(&self.name), CompareOp::Equal, self.session.lease);
        let txn = Txn::new().when([ours]).and_then([self.session.put(key, &value)?]);
        let answer = self.session.client.txn(txn).await?;
        ensure!(answer.succeeded(), "{}: our lease is over", self.name);
        Ok(answer.header().context("no header")?.revision())
    }

    /// Every edge has it; with `drained`, and no request is there any more.
    async fn heard(&mut self, revision: i64, drained: bool) -> Result<()> {
        let all = self.acks.wait_for(|acks| {
            acks.values().all(|&(at, in_flight)| at >= revision && (in_flight == 0 || !drained))
        });
        timeout(PATIENCE, all).await.context("not every edge acknowledges")??;
        Ok(())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.following.abort();
    }
}

async fn follow(keys: Arc<Keys>, mut acks: WatchStream, tell: watch::Sender<Acks>) {
    while let Ok(Some(news)) = acks.message().await {
        tell.send_modify(|acks| {
            for event in news.events() {
                match ack(&keys, event) {
                    Some((edge, Some(ack))) => _ = acks.insert(edge, ack),
                    // Nobody waits for an edge that is gone.
                    Some((edge, None)) => _ = acks.remove(&edge),
                    None => {}
                }
            }
        });
    }
}

/// What an edge said; no word is left of one whose lease is over.
fn ack(keys: &Keys, event: &etcd_client::Event) -> Option<(Name, Option<(i64, u64)>)> {
    let Key::Ack { edge, .. } = keys.parse(event.kv()?.key_str().ok()?)? else { return None };
    if event.event_type() == EventType::Delete {
        return Some((edge, None));
    }
    let value: AckValue = serde_json::from_slice(event.kv()?.value()).ok()?;
    let in_flight = value.upstreams.iter().flat_map(|upstream| &upstream.peers).map(|peer| peer.in_flight);
    Some((edge, Some((value.revision, in_flight.sum()))))
}

// === impl Edge ===

impl Edge {
    async fn start(endpoint: &str, keys: Arc<Keys>, shape: Shape, number: usize) -> Result<JoinHandle<()>> {
        let mut session = Session::open(endpoint).await?;
        let (from, to) = keys.said();
        let found = session.client.get(from.clone(), Some(GetOptions::new().with_range(to.clone()))).await?;
        let loaded = found.header().context("no header")?.revision();
        let watch = WatchOptions::new().with_range(to).with_start_revision(loaded + 1);
        let news = session.client.watch(from, Some(watch)).await?;
        let name: Name = format!("edge-{number}").parse()?;
        let (again, due_again) = mpsc::unbounded_channel();
        let dice = Dice::new(u64::try_from(number)?);
        let mut edge = Self {
            name,
            session,
            keys,
            shape,
            dice,
            said: BTreeMap::new(),
            due: BTreeSet::new(),
            watched: BTreeMap::new(),
            count: 0,
            again,
        };
        for kv in found.kvs() {
            edge.hear(kv.key_str()?, Some(kv.value()), kv.mod_revision())?;
        }
        edge.answer().await?;
        let value =
            EdgeValue { version: VERSION.to_owned(), nginx: "1.28.3".to_owned(), holder: holder(), loaded };
        let put = edge.session.put(&edge.keys.edge(&edge.name), &value)?;
        edge.session.client.txn(Txn::new().and_then([put])).await?;
        Ok(tokio::spawn(edge.serve(news, due_again)))
    }

    async fn serve(mut self, mut news: WatchStream, mut due_again: mpsc::UnboundedReceiver<Name>) {
        let mut tick = interval(self.shape.counts.unwrap_or(PATIENCE));
        loop {
            tokio::select! {
                Ok(Some(said)) = news.message() => self.hear_all(&said),
                Some(host) = due_again.recv() => {
                    self.due.insert(host);
                }
                _ = tick.tick(), if self.shape.counts.is_some() => {
                    let now = Instant::now();
                    self.watched.retain(|_, until| *until > now);
                    self.due.extend(self.watched.keys().cloned());
                }
                else => return,
            }
            // More than one host may have come to it by now.
            while let Some(Ok(Some(said))) =
                self.shape.gathers.then(|| news.message().now_or_never()).flatten()
            {
                self.hear_all(&said);
            }
            while let Ok(host) = due_again.try_recv() {
                self.due.insert(host);
            }
            // etcd has ended, and so has the measurement.
            if self.answer().await.is_err() {
                return;
            }
        }
    }

    fn hear_all(&mut self, said: &WatchResponse) {
        for event in said.events() {
            let Some(kv) = event.kv() else { continue };
            let value = (event.event_type() == EventType::Put).then(|| kv.value());
            // What another one wrote there is nothing to us.
            let key = kv.key_str().map_err(anyhow::Error::from);
            _ = key.and_then(|key| self.hear(key, value, kv.mod_revision()));
        }
    }

    fn hear(&mut self, key: &str, value: Option<&[u8]>, revision: i64) -> Result<()> {
        let Some(key) = self.keys.parse(key) else { return Ok(()) };
        let (Key::Host(name) | Key::Worker { host: name, .. }) = key.clone() else { return Ok(()) };
        let said = self.said.entry(name.clone()).or_default();
        said.revision = revision;
        match (key, value) {
            (Key::Host(_), Some(value)) => {
                said.address = serde_json::from_slice::<HostValue>(value)?.addresses.first().copied();
            }
            (Key::Worker { address, .. }, Some(value)) => {
                let value: WorkerValue = serde_json::from_slice(value)?;
                self.watched.insert(name.clone(), Instant::now() + WATCHED);
                // At a fence it is drained already.
                let is_busy = value.said == 1 && self.dice.share() < 0.5;
                let wait = if is_busy { self.dice.below(self.shape.in_flight) } else { Duration::ZERO };
                said.workers.insert(address, (value, Instant::now() + wait));
                if is_busy {
                    let (again, name) = (self.again.clone(), name.clone());
                    tokio::spawn(async move {
                        sleep(wait).await;
                        _ = again.send(name);
                    });
                }
            }
            (Key::Worker { address, .. }, None) => _ = said.workers.remove(&address),
            _ => said.address = None,
        }
        self.due.insert(name);
        Ok(())
    }

    /// Writes what is due, as much at once as etcd takes.
    async fn answer(&mut self) -> Result<()> {
        while !self.due.is_empty() {
            let mut puts = Vec::new();
            for _ in 0..BATCH {
                let Some(host) = self.due.pop_first() else { break };
                let value = self.value(&host);
                puts.push(self.session.put(&self.keys.ack(&host, &self.name), &value)?);
            }
            self.session.client.txn(Txn::new().and_then(puts)).await?;
        }
        Ok(())
    }

    fn value(&mut self, host: &Name) -> AckValue {
        self.count += 1;
        let (count, now) = (self.count, Instant::now());
        let said = self.said.entry(host.clone()).or_default();
        let peers = (0..self.shape.workers).filter_map(|worker| {
            let address = address(said.address?, worker);
            let spoken = said.workers.get(&address);
            let in_flight = spoken.map_or(0, |(_, busy_until)| u64::from(now < *busy_until));
            let marks = spoken.iter().flat_map(|(value, _)| &value.marks);
            let marks = marks.filter_map(|mark| {
                Some(AckMark { owner: at_edge(host, &mark.owner)?, state: mark.state, epoch: 7 })
            });
            let marks: Vec<AckMark> = marks.collect();
            Some(AckPeer {
                address,
                state: if marks.is_empty() { PeerState::Up } else { PeerState::Draining },
                marks,
                in_flight,
                requests: 123_456 + count,
                responses: Responses { success: 123_400 + count, server_error: 6, ..Responses::default() },
                fails: 0,
                cut: 0,
                weight: 1,
                backup: false,
            })
        });
        let peers = peers.collect();
        let elsewhere = Some(Elsewhere { serves: true, responses: Responses::default(), fails: 0 });
        AckValue {
            revision: said.revision,
            instance: "5f2c6a0e9b7d4c13".to_owned(),
            upstreams: vec![AckUpstream { name: upstream(host), peers, elsewhere, queue: None }],
            refused: Vec::new(),
            uncovered: Vec::new(),
            amiss: Vec::new(),
        }
    }
}

// === impl Session ===

impl Session {
    async fn open(endpoint: &str) -> Result<Self> {
        let options = ConnectOptions::new()
            // Longer than the sidecar's: all of them share one process here, which may be late itself.
            .with_keep_alive(Duration::from_secs(10), Duration::from_secs(20))
            .with_keep_alive_while_idle(true);
        let mut client = Client::connect([endpoint], Some(options)).await?;
        let lease = client.lease_grant(LEASE, None).await?.id();
        let (mut keeper, mut answers) = client.lease_keep_alive(lease).await?;
        let keeper = tokio::spawn(async move {
            while keeper.keep_alive().await.is_ok() && answers.message().await.is_ok() {
                sleep(BEAT).await;
            }
        });
        Ok(Self { client, lease, keeper })
    }

    fn put(&self, key: &str, value: &impl serde::Serialize) -> Result<TxnOp> {
        Ok(TxnOp::put(key, serde_json::to_vec(value)?, Some(PutOptions::new().with_lease(self.lease))))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

const VERSION: &str = env!("CARGO_PKG_VERSION");

fn address(host: IpAddr, worker: usize) -> String {
    format!("{host}:{}", 3000 + worker)
}

fn holder() -> Holder {
    Holder {
        boot: "b7f2a1de-5c3f-4a0b-9a4e-2f6f1f0c9d11".to_owned(),
        pid: std::process::id(),
        start: 4_711_000,
    }
}
