//! An app host's end: what nginx's control API would say, if all nginx were one.
//!
//! A mark goes through here in this order: into the [`Ledger`]; into the store, if our lease still holds it; to every edge,
//! which puts it into its nginx and acknowledges the revision; and when all that are registered have, as the store itself
//! lists them after that, it is answered. What owners choose (a roll-out, a person) is answered no earlier. What is so
//! anyway (PM2 stops a worker) is answered soon, and if an edge lags behind, with the state `up`: somebody may begin a
//! request there.
//!
//! If the store is out of reach nothing is answered as done, and what was asked for stays in the ledger to be written.

use super::{
    Settings, StoreError,
    bring::Bring,
    edges::Edges,
    http,
    lag::Lags,
    ledger::{Before, Ledger, lapsed},
    report::{EdgeLine, HostReport},
    session::{Backoff, Claim, LEASE, Session, connect, holder, read, timely},
    standing::{Standing, millis},
};
use crate::{
    host::{Listeners, Locals, Proc},
    peer::Peer,
    telemetry::Changes,
};
use etcd_client::{Client, Compare, EventType, GetOptions, Txn, TxnOp, TxnOpResponse, WatchOptions};
use handoff_wire::{
    Ack, AckedMark, Code, Drained, MarkSet, MarkView, Overview, Owner, PeerState, PeerView, Refusal, Renew,
    Span, State, UpstreamView, Upstreams, ZoneView,
    store::{
        AckValue, AmissView, EdgeView, HostValue, Key, Keys, Left, LeftMember, Member, MemberView,
        MembersValue, Name, StoreView, at_edge,
    },
};
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};
use tokio::{sync::watch, time};

#[derive(Debug)]
pub struct Gateway {
    settings: Settings,
    desk: Arc<Desk>,
}

/// What every caller shares.
#[derive(Debug)]
pub struct Desk {
    host: Name,
    keys: Keys,
    began: SystemTime,
    book: Mutex<Book>,
    /// Grows with every change of the book.
    changed: watch::Sender<u64>,
    standing: Arc<Standing>,
    /// One writes at a time: what stands in the store is what the ledger was at one moment.
    line: tokio::sync::Mutex<Option<Line>>,
}

#[derive(Debug, Default)]
struct Book {
    ledger: Ledger,
    bring: Bring,
    edges: Edges,
    lags: Lags,
    /// Changes when the store may have lost what we hold. None: we are not in the store.
    instance: Option<String>,
    problem: Option<String>,
    view: View,
}

/// Whether what we know of the edges is what there is.
#[derive(Clone, Copy, Debug, Default)]
enum View {
    #[default]
    None,
    /// Those who have not answered our coming yet are waited for until then.
    Begun {
        since: i64,
        until: Instant,
    },
    Whole,
}

/// To the store, under our lease.
struct Line {
    client: Client,
    holds: Compare,
    lease: i64,
}

/// How long a choice waits for all edges before it is asked for again.
const WAIT: Duration = Duration::from_secs(1);
/// How long a fact does: nobody may hold up what comes after it.
const SHORT: Duration = Duration::from_millis(200);
/// How long an edge has to say what it has of a host that has just come.
const VIEW: Duration = Duration::from_secs(2);
const SWEEP: Duration = Duration::from_millis(250);
/// How often it is looked whether somebody listens where nobody has yet.
const LISTEN: Duration = Duration::from_millis(500);
/// etcd takes 128 in one transaction.
const AT_ONCE: usize = 100;

// === impl Gateway ===

impl Gateway {
    pub fn new(mut settings: Settings) -> Self {
        let bring = Bring::new(std::mem::take(&mut settings.brings));
        let desk = Desk {
            host: settings.name.clone(),
            keys: Keys::new(&settings.cluster),
            began: SystemTime::now(),
            book: Mutex::new(Book { bring, ..Book::default() }),
            changed: watch::Sender::new(0),
            standing: Arc::default(),
            line: tokio::sync::Mutex::default(),
        };
        Self { settings, desk: Arc::new(desk) }
    }

    /// What every caller shares.
    pub fn desk(&self) -> Arc<Desk> {
        self.desk.clone()
    }

    /// Serves for ever. `users`: who may write.
    pub async fn run(self, users: BTreeSet<u32>) {
        let door = http::serve(self.settings.socket.clone(), self.desk.clone(), users);
        tokio::join!(door, self.desk.sweep(), self.desk.meet_members(), self.sessions());
    }

    async fn sessions(&self) {
        let (mut log, mut backoff) = (Changes::default(), Backoff::default());
        loop {
            let Err(error) = self.session(&mut log, &mut backoff).await;
            log.warn(format!(
                "the store is out of reach, so that nothing of this host can be handed over: {error}"
            ));
            self.desk.standing.leaves(&error);
            self.desk.leave(error.to_string()).await;
            backoff.pause().await;
        }
    }

    async fn session(
        &self,
        log: &mut Changes,
        backoff: &mut Backoff,
    ) -> Result<std::convert::Infallible, StoreError> {
        let standing = &self.desk.standing;
        let mut session = Session::open(&self.settings, standing).await?;
        let value = HostValue {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            addresses: self.settings.addresses.clone(),
            holder: holder(),
        };
        let key = self.desk.keys.host(&self.desk.host);
        let since = match session.claim(&key, &value, |value| &value.holder, &[]).await? {
            Claim::Ours(revision) => revision,
            Claim::Overtaken => {
                return Err(StoreError::Failed("another process took our name just now".to_owned()));
            }
            Claim::Taken(holder) => {
                return Err(StoreError::Failed(format!(
                    "another process (pid {} of its machine) is {:?} there: give this one its own --store-name, or wait \
                     {} s after the end of the other",
                    holder.pid,
                    self.desk.host.as_str(),
                    LEASE.as_secs()
                )));
            }
        };
        let (found_at, found) = self.desk.members(&mut session).await?;
        self.desk.book().bring.found(found_at, found);
        let line = Line { client: session.client.clone(), holds: session.holds(&key), lease: session.lease };
        self.desk.enter(line, since).await;
        let mut client = session.client.clone();
        let listening = async {
            let mut pause = Backoff::default();
            loop {
                // What is unwritten is written as soon as there is somewhere to write it to.
                let heard = match self.desk.flush().await {
                    Ok(()) => self.desk.listen(&mut client, log, &mut pause).await,
                    Err(error) => Err(error),
                };
                if let Err(error) = heard {
                    standing.suffers(format!("it does not tell what nginx hosts say: {error}"));
                    log.warn(format!("the store does not tell what nginx hosts say: {error}"));
                }
                pause.pause().await;
                // The lease is known to every member, and this one may be gone.
                if let Ok(another) = connect(&self.settings, standing).await {
                    client = another.clone();
                    self.desk.turn_to(another).await;
                }
            }
        };
        tokio::select! {
            () = session.lost() => Err(StoreError::Lost),
            never = listening => never,
        }
        .inspect_err(|_: &StoreError| backoff.reset())
    }
}

// === impl Desk: what nginx would answer ===

impl Desk {
    pub fn overview(&self) -> Result<Overview, Refusal> {
        let book = self.book();
        let began = self.began.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Ok(Overview {
            api: handoff_wire::API_VERSION,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            nginx: format!("{} through the store", book.edges.names().count()),
            instance: book.instance()?,
            started: u64::try_from(began.as_millis()).unwrap_or(0),
            generation: self.generation(),
            events: handoff_wire::EventCounts::default(),
            zone: ZoneView { size: 0, peers: 0, peers_max: 0, peers_uncovered: 0, processes_max: 0 },
            processes: Vec::new(),
            uncovered: book.edges.uncovered(),
        })
    }

    pub fn view(&self) -> Result<StoreView, Refusal> {
        let book = self.book();
        book.instance()?;
        let last = book.ledger.last_written().max(book.bring.revision().unwrap_or_default());
        let behind = book.edges.behind(last);
        let edge = |name: &Name| EdgeView { name: name.clone(), current: !behind.contains(&name) };
        let member = |member: &Member| MemberView {
            upstream: member.upstream.clone(),
            address: member.address.clone(),
            brought: book.bring.is_brought(member),
            edges: book.edges.of(&peer(member)).map(|(edge, ..)| edge.clone()).collect(),
            amiss: book.edges.amiss(&peer(member)),
        };
        Ok(StoreView {
            host: self.host.clone(),
            edges: book.edges.names().map(edge).collect(),
            members: book.bring.all().iter().map(member).collect(),
        })
    }

    /// What this host tells of itself, whether it is in the store or not.
    pub fn report(&self) -> HostReport {
        let book = self.book();
        let (last, now) = (book.ledger.last_written(), Instant::now());
        self.standing.reaches(last);
        let behind = book.edges.behind(last);
        let edge = |name: &Name| {
            let (since, took) = book.lags.of(name).unwrap_or((SystemTime::now(), None));
            let has = book.edges.ack(name).map_or(last - 1, |ack| ack.revision.min(last - 1));
            EdgeLine {
                name: name.clone(),
                since: millis(since),
                behind: if behind.contains(&name) { last - has } else { 0 },
                behind_ms: u64::try_from(book.lags.owes(name, now).as_millis()).unwrap_or(u64::MAX),
                acknowledged_us: took.map(|took| u64::try_from(took.as_micros()).unwrap_or(u64::MAX)),
            }
        };
        HostReport {
            stand: self.standing.stand(),
            edges: book.edges.names().map(edge).collect(),
            acknowledgements: book.lags.histogram().clone(),
        }
    }

    pub fn upstreams(&self) -> Result<Upstreams, Refusal> {
        let book = self.book();
        let instance = book.instance()?;
        // Nothing at all would say that every peer is gone.
        if !book.edges.is_empty() && !book.edges.has_spoken() {
            return Err(book.waiting(Some(0)));
        }
        Ok(Upstreams { instance, generation: self.generation(), upstreams: book.upstreams(&self.host) })
    }

    pub fn upstream(&self, name: &str) -> Result<UpstreamView, Refusal> {
        let upstreams = self.upstreams()?.upstreams.into_iter();
        let found = upstreams.into_iter().find(|upstream| upstream.name == name);
        found.ok_or_else(|| {
            let text = format!("no nginx that is there has peers of this host in an upstream {name:?}");
            self.book().or_waiting(Code::UpstreamNotFound.says(text))
        })
    }

    pub fn peer(&self, upstream: &str, address: &str) -> Result<PeerView, Refusal> {
        let peers = self.upstream(upstream)?.peers;
        peers.into_iter().find(|view| view.address == address).ok_or_else(|| {
            let text = format!("no nginx that is there has the peer {address:?}");
            self.book().or_waiting(Code::PeerNotFound.says(text))
        })
    }

    pub async fn drained(&self, peer: &Peer, wait: Duration) -> Result<Drained, Refusal> {
        let until = Instant::now() + wait;
        let mut changed = self.changed.subscribe();
        loop {
            let seen = {
                let book = self.book();
                book.instance()?;
                book.drained(peer)
            };
            let is_over = match &seen {
                Ok(seen) => seen.drained,
                Err(refusal) => refusal.code != Code::Waiting,
            };
            if is_over || time::timeout_at(until.into(), changed.changed()).await.is_err() {
                return seen;
            }
        }
    }

    pub async fn mark(&self, set: &MarkSet) -> Result<Ack, Refusal> {
        let known = {
            let book = self.book();
            book.instance()?;
            book.edges.upstreams(|_| PeerState::Up)
        };
        let known = known
            .iter()
            .flat_map(|up| up.peers.iter().map(|peer| Peer::new(&up.name, &peer.address)))
            .collect();
        let (peers, before) = {
            let mut book = self.book();
            let marked = book.ledger.mark(set, &known, Instant::now());
            marked.map_err(|refusal| book.or_waiting(refusal))?
        };
        self.flush().await.map_err(|error| unreachable(&error))?;
        let is_choice = set.owner.kind().is_choice();
        let revision = |book: &Book| book.revision(&peers);
        let is_everywhere = self.everywhere(revision, if is_choice { WAIT } else { SHORT }).await;
        if is_choice && !set.force {
            self.withdraw(&peers, &set.owner, before).await?;
        }
        match is_everywhere {
            Ok(true) => {
                self.book().keep_tenures(&self.host, &peers, &set.owner);
                self.ack(&set.owner, &peers)
            }
            Ok(false) if is_choice => {
                let revision = self.book().revision(&peers);
                Err(self.book().waiting(revision))
            }
            Err(error) if is_choice => Err(unreachable(&error)),
            Ok(false) | Err(_) => {
                let mut ack = self.ack(&set.owner, &peers)?;
                // Somebody may begin a request there.
                ack.marks.iter_mut().for_each(|mark| mark.state = State::Up);
                Ok(ack)
            }
        }
    }

    pub async fn renew(&self, renew: &Renew) -> Result<Ack, Refusal> {
        self.book().instance()?;
        let peers = self.book().ledger.renew(renew, Instant::now())?;
        if renew.marks.is_some() {
            self.flush().await.map_err(|error| unreachable(&error))?;
            let revision = |book: &Book| book.revision(&peers);
            if !self.everywhere(revision, WAIT).await.map_err(|error| unreachable(&error))? {
                let revision = self.book().revision(&peers);
                return Err(self.book().waiting(revision));
            }
            let broken = peers.iter().find(|peer| !self.book().is_unbroken(&self.host, peer, &renew.owner));
            if let Some(peer) = broken {
                return Err(lapsed(&renew.owner, peer));
            }
        }
        self.ack(&renew.owner, &peers)
    }

    /// `DELETE /v1/store`: this host brings nothing any more. It is answered when every nginx has let go.
    pub async fn farewell(&self) -> Result<Left, Refusal> {
        self.book().instance()?;
        self.book().bring.leave();
        self.flush().await.map_err(|error| unreachable(&error))?;
        let revision = |book: &Book| book.bring.revision();
        if !self.everywhere(revision, WAIT).await.map_err(|error| unreachable(&error))? {
            let revision = self.book().bring.revision();
            return Err(self.book().waiting(revision));
        }
        let book = self.book();
        let left = |member: &Member| {
            let peer = peer(member);
            let stays = book.edges.of(&peer).map(|(edge, ..)| edge.clone());
            let amiss = book.edges.amiss(&peer);
            let why =
                |edge: &Name| amiss.iter().find(|amiss| amiss.edge == *edge).map(|amiss| amiss.text.clone());
            // Whoever has it and says nothing of it has it from somebody else.
            let theirs = || "nginx.conf names it, a person added it, or another host brings it".to_owned();
            let stays =
                stays.map(|edge| AmissView { text: why(&edge).unwrap_or_else(theirs), edge }).collect();
            LeftMember { upstream: member.upstream.clone(), address: member.address.clone(), stays }
        };
        Ok(Left { members: book.bring.all().iter().map(left).collect() })
    }

    fn ack(&self, owner: &Owner, peers: &[Peer]) -> Result<Ack, Refusal> {
        let book = self.book();
        let mark = |peer: &Peer| AckedMark {
            upstream: peer.upstream.clone(),
            peer: peer.address.clone(),
            state: plain(book.state(peer)),
            epoch: book.ledger.epoch(peer, owner),
            in_flight: book.edges.in_flight(peer),
        };
        Ok(Ack {
            instance: book.instance()?,
            generation: self.generation(),
            marks: peers.iter().map(mark).collect(),
        })
    }

    /// An nginx that refuses is reason enough to take it back everywhere.
    async fn withdraw(&self, peers: &[Peer], owner: &Owner, before: Before) -> Result<(), Refusal> {
        let Some(refusal) = self.book().refusal(&self.host, peers, owner) else { return Ok(()) };
        self.book().ledger.restore(before);
        _ = self.flush().await;
        Err(refusal)
    }

    fn generation(&self) -> u64 {
        *self.changed.borrow()
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self) {
        self.changed.send_modify(|generation| *generation += 1);
    }
}

// === impl Desk: the store ===

impl Desk {
    async fn enter(&self, line: Line, since: i64) {
        {
            let mut book = self.book();
            book.instance = Some(format!("{:016x}", line.lease));
            book.problem = None;
            book.view = View::Begun { since, until: Instant::now() + VIEW };
            book.ledger.forget_written();
        }
        *self.line.lock().await = Some(line);
        self.change();
    }

    /// From here on another member is asked.
    async fn turn_to(&self, client: Client) {
        if let Some(line) = self.line.lock().await.as_mut() {
            line.client = client;
        }
    }

    async fn leave(&self, problem: String) {
        *self.line.lock().await = None;
        let mut book = self.book();
        (book.instance, book.problem) = (None, Some(problem));
        book.bring.forget();
        book.view = View::None;
        book.edges = Edges::default();
        drop(book);
        self.change();
    }

    /// What stands in the store of what this host brings.
    async fn members(&self, session: &mut Session) -> Result<(i64, Option<MembersValue>), StoreError> {
        let found = timely(session.client.get(self.keys.members(&self.host), None)).await?;
        // What nobody understands is written anew.
        let value = found.kvs().first().and_then(|kv| Some((kv.mod_revision(), read(kv.value()).ok()?)));
        Ok(value.map_or((0, None), |(revision, value)| (revision, Some(value))))
    }

    /// Looks whether somebody listens where nobody has yet: until then nobody is told of the peer.
    async fn meet_members(&self) {
        let mut log = Changes::default();
        loop {
            let unmet = self.book().bring.unmet();
            if unmet.is_empty() {
                return;
            }
            let looking = tokio::task::spawn_blocking(move || {
                let proc = Proc::default();
                let (listeners, locals) = (Listeners::read(&proc)?, Locals::read(&proc));
                // Behind an address translation nobody can know.
                let is_met =
                    |address: &SocketAddr| !locals.has(address.ip()) || !listeners.tcp(*address).is_empty();
                Ok::<_, io::Error>(unmet.into_iter().filter(is_met).collect::<Vec<_>>())
            });
            match looking.await {
                Ok(Ok(met)) => met.into_iter().for_each(|address| {
                    tracing::info!(
                        "somebody listens on {address}: this host brings it to every nginx in the store"
                    );
                    self.book().bring.meet(address);
                }),
                Ok(Err(error)) => {
                    log.warn(format!("cannot see who listens here, so nothing new is brought: {error}"))
                }
                Err(_) => {}
            }
            time::sleep(LISTEN).await;
        }
    }

    /// Writes what is not written yet. Ok: all that had been said when this began stands there.
    async fn flush(&self) -> Result<(), StoreError> {
        let mut line = time::timeout(WAIT, self.line.lock()).await.map_err(|_| StoreError::Silent)?;
        let line = line.as_mut().ok_or(StoreError::Lost)?;
        // Before the marks on it: an edge adds nothing against which something is said.
        let members = self.book().bring.unwritten();
        if let Some(value) = members {
            let key = self.keys.members(&self.host);
            let op = match &value {
                // It outlives us: silence is no farewell.
                Some(value) => TxnOp::put(key, json(value)?, None),
                None => TxnOp::delete(key, None),
            };
            let done = timely(line.client.txn(Txn::new().when([line.holds.clone()]).and_then([op]))).await?;
            if !done.succeeded() {
                return Err(StoreError::Lost);
            }
            self.book().bring.wrote(done.header().map_or(0, |header| header.revision()), value);
        }
        let unwritten = self.book().ledger.unwritten();
        for some in unwritten.chunks(AT_ONCE) {
            let op = |(peer, _, value): &(Peer, u64, Option<_>)| {
                let key = self.keys.worker(&self.host, &peer.upstream, &peer.address);
                match value {
                    Some(value) => line.put(key, value),
                    None => Ok(TxnOp::delete(key, None)),
                }
            };
            let ops = some.iter().map(op).collect::<Result<Vec<_>, _>>()?;
            let txn = Txn::new().when([line.holds.clone()]).and_then(ops);
            let sent = Instant::now();
            let done = timely(line.client.txn(txn)).await?;
            if !done.succeeded() {
                return Err(StoreError::Lost);
            }
            let revision = done.header().map_or(0, |header| header.revision());
            let (mut book, mut changes) = (self.book(), false);
            for ((peer, said, _), response) in some.iter().zip(done.op_responses()) {
                // A key that was not there is no change, and nobody will tell of it.
                let is_change = !matches!(response, TxnOpResponse::Delete(gone) if gone.deleted() == 0);
                book.ledger.wrote(peer, *said, if is_change { revision } else { 0 });
                changes |= is_change;
            }
            if changes {
                let Book { lags, edges, .. } = &mut *book;
                lags.wrote(revision, sent, edges, Instant::now());
            }
        }
        Ok(())
    }

    /// Waits until every edge has what was said at this revision: those that the store lists *after* the others had it.
    async fn everywhere(
        &self,
        revision: impl Fn(&Book) -> Option<i64>,
        wait: Duration,
    ) -> Result<bool, StoreError> {
        let until = Instant::now() + wait;
        let mut changed = self.changed.subscribe();
        loop {
            let Some(revision) = revision(&self.book()) else { return Ok(false) };
            if self.book().is_everywhere(revision) {
                let live = self.live().await?;
                let mut book = self.book();
                book.edges.set_live(live);
                if book.is_everywhere(revision) {
                    return Ok(true);
                }
            }
            if time::timeout_at(until.into(), changed.changed()).await.is_err() {
                return Ok(false);
            }
        }
    }

    /// The edges that are registered now, if we are.
    async fn live(&self) -> Result<BTreeMap<Name, i64>, StoreError> {
        let line = time::timeout(WAIT, self.line.lock()).await.map_err(|_| StoreError::Silent)?;
        let (mut client, holds) = match line.as_ref() {
            Some(line) => (line.client.clone(), line.holds.clone()),
            None => return Err(StoreError::Lost),
        };
        drop(line);
        let keys = GetOptions::new().with_prefix().with_keys_only();
        let txn = Txn::new().when([holds]).and_then([TxnOp::get(self.keys.edges(), Some(keys))]);
        let found = timely(client.txn(txn)).await?;
        if !found.succeeded() {
            return Err(StoreError::Lost);
        }
        let responses = found.op_responses();
        let Some(TxnOpResponse::Get(found)) = responses.first() else { return Err(StoreError::Lost) };
        let edge = |kv: &etcd_client::KeyValue| match self.keys.parse(kv.key_str().ok()?)? {
            Key::Edge(edge) => Some((edge, kv.lease())),
            _ => None,
        };
        Ok(found.kvs().iter().filter_map(edge).collect())
    }

    /// Reads what edges say, and then hears what they say next. Comes back when that is no longer possible: then it is read
    /// anew.
    async fn listen(
        &self,
        client: &mut Client,
        log: &mut Changes,
        pause: &mut Backoff,
    ) -> Result<(), StoreError> {
        let (edges, acks) = (self.keys.edges(), self.keys.acks(&self.host));
        let all = || Some(GetOptions::new().with_prefix());
        let txn = Txn::new().and_then([TxnOp::get(&*edges, all()), TxnOp::get(&*acks, all())]);
        let found = timely(client.txn(txn)).await?;
        let revision = found.header().map_or(0, |header| header.revision());
        {
            let mut book = self.book();
            book.edges = Edges::default();
            for response in found.op_responses() {
                let TxnOpResponse::Get(found) = response else { continue };
                found.kvs().iter().for_each(|kv| self.hear(&mut book, kv, true, log));
            }
            book.complete();
        }
        self.change();
        let from = || Some(WatchOptions::new().with_prefix().with_start_revision(revision + 1));
        let mut stream = timely(client.watch(edges, from())).await?;
        timely(stream.watch(acks, from())).await?;
        log.info(format!("{} is in the store", self.host));
        self.standing.enters();
        pause.reset();
        while let Some(message) = stream.message().await? {
            if message.canceled() {
                return Err(StoreError::Failed(format!("it ended our watch: {}", message.cancel_reason())));
            }
            {
                let mut book = self.book();
                for event in message.events() {
                    let Some(kv) = event.kv() else { continue };
                    self.hear(&mut book, kv, event.event_type() == EventType::Put, log);
                }
                book.complete();
            }
            self.change();
        }
        Err(StoreError::Failed("it ended our watch".to_owned()))
    }

    fn hear(&self, book: &mut Book, kv: &etcd_client::KeyValue, is_there: bool, log: &mut Changes) {
        match kv.key_str().ok().and_then(|key| self.keys.parse(key)) {
            Some(Key::Edge(edge)) => {
                match is_there {
                    true => book.lags.came(&edge, kv.lease()),
                    false => book.lags.left(&edge),
                }
                book.edges.hear_edge(edge, is_there.then(|| kv.lease()));
            }
            Some(Key::Ack { edge, .. }) => {
                let value = if is_there { read::<AckValue>(kv.value()).map(Some) } else { Ok(None) };
                match value {
                    Ok(value) => {
                        if let Some(value) = &value {
                            book.lags.heard(&edge, value.revision, Instant::now());
                        }
                        book.edges.hear_ack(edge, value.map(|value| (kv.lease(), value)));
                    }
                    Err(wrong) => {
                        // As if it had said nothing: it is waited for.
                        log.warn(format!("what nginx on {edge} says cannot be read: {wrong}"));
                        book.edges.hear_ack(edge, None);
                    }
                }
            }
            _ => {}
        }
    }

    /// Takes away what lapses, and writes what could not be written before.
    async fn sweep(&self) {
        let mut beat = time::interval(SWEEP);
        beat.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
        loop {
            beat.tick().await;
            let (lapsed, is_behind) = {
                let mut book = self.book();
                let lapsed = book.ledger.sweep(Instant::now());
                book.complete();
                (lapsed, book.instance.is_some() && book.is_unwritten())
            };
            for (peer, owner) in &lapsed {
                tracing::warn!(upstream = peer.upstream, peer = peer.address, %owner, "a mark lapsed: its owner is silent");
            }
            if is_behind && self.flush().await.is_ok() {
                self.change();
            }
        }
    }
}

// === impl Book ===

impl Book {
    /// Half a picture would say that peers are gone.
    fn complete(&mut self) {
        let View::Begun { since, until } = self.view else { return };
        if self.is_everywhere(since) || Instant::now() >= until {
            self.view = View::Whole;
        }
    }

    fn instance(&self) -> Result<String, Refusal> {
        if self.instance.is_some() && !matches!(self.view, View::Whole) {
            return Err(Code::Waiting.says("the store is asked what nginx hosts have"));
        }
        self.instance.clone().ok_or_else(|| {
            let why = self.problem.as_deref().unwrap_or("not yet reached");
            Code::Waiting.says(format!("the store is out of reach: {why}"))
        })
    }

    /// Of the last that was said of these. None: it is not written yet.
    fn revision(&self, peers: &[Peer]) -> Option<i64> {
        peers.iter().try_fold(0, |last, peer| Some(self.ledger.written(peer)?.max(last)))
    }

    fn is_unwritten(&self) -> bool {
        !self.ledger.unwritten().is_empty() || self.bring.unwritten().is_some()
    }

    fn is_everywhere(&self, revision: i64) -> bool {
        !self.edges.is_empty() && self.edges.behind(revision).is_empty()
    }

    fn state(&self, peer: &Peer) -> PeerState {
        let said = self.ledger.effective(peer);
        match self.ledger.written(peer) {
            Some(revision) => self.edges.state(peer, said, revision),
            None => PeerState::Up,
        }
    }

    /// Who is waited for, for the one who waits.
    fn waiting(&self, revision: Option<i64>) -> Refusal {
        let behind: Vec<&str> = match revision {
            Some(revision) => self.edges.behind(revision).into_iter().map(Name::as_str).collect(),
            None => return Code::Waiting.says("it is being written to the store"),
        };
        Code::Waiting.says(match (self.edges.is_empty(), behind.as_slice()) {
            (true, _) => {
                "no nginx is in the store: does `handoff run --role edge` run on the nginx hosts?".to_owned()
            }
            (false, []) => "the store is asked who is there".to_owned(),
            (false, behind) => format!("waiting for nginx on {}", behind.join(", ")),
        })
    }

    /// An edge that has just come, or come back, and has not said what its nginx has.
    fn is_half(&self) -> bool {
        !self.edges.behind(0).is_empty()
    }

    /// What nobody has, one that has not spoken yet may have.
    fn or_waiting(&self, refusal: Refusal) -> Refusal {
        let is_missing = matches!(refusal.code, Code::PeerNotFound | Code::UpstreamNotFound);
        if is_missing && self.is_half() { self.waiting(Some(0)) } else { refusal }
    }

    fn drained(&self, peer: &Peer) -> Result<Drained, Refusal> {
        // What is in flight at an nginx that has not spoken yet nobody knows.
        if self.ledger.effective(peer) != State::Up && self.is_half() {
            return Err(self.waiting(Some(0)));
        }
        if !self.edges.has(peer) {
            let missing = format!("no nginx that is there has the peer {peer}");
            return Err(self.or_waiting(Code::PeerNotFound.says(missing)));
        }
        let (state, in_flight) = (plain(self.state(peer)), self.edges.in_flight(peer));
        Ok(Drained { drained: !state.begins_requests() && in_flight == 0, state, in_flight })
    }

    fn keep_tenures(&mut self, host: &Name, peers: &[Peer], owner: &Owner) {
        let Some(at_edge) = at_edge(host, owner) else { return };
        for peer in peers {
            let tenures = self.edges.tenures(peer, &at_edge);
            self.ledger.keep_tenures(peer, owner, tenures);
        }
    }

    /// Every nginx that has the peer has had the mark, from when all of them had it until now.
    fn is_unbroken(&self, host: &Name, peer: &Peer, owner: &Owner) -> bool {
        let (Some(at_edge), Some(then)) = (at_edge(host, owner), self.ledger.tenures(peer, owner)) else {
            return false;
        };
        let now = self.edges.tenures(peer, &at_edge);
        self.edges.of(peer).all(|(edge, ..)| now.get(edge).is_some_and(|now| then.get(edge) == Some(now)))
    }

    fn refusal(&self, host: &Name, peers: &[Peer], owner: &Owner) -> Option<Refusal> {
        let at_edge = at_edge(host, owner)?;
        let revision = self.revision(peers)?;
        self.edges.names().find_map(|edge| {
            let ack = self.edges.ack(edge).filter(|ack| ack.revision >= revision)?;
            let refused = ack.refused.iter().find(|refused| {
                let peer = Peer::new(&refused.upstream, &refused.address);
                refused.owner == at_edge && peers.contains(&peer)
            })?;
            let Refusal { status, code, text } = &refused.refusal;
            Some(Refusal { status: *status, code: *code, text: format!("nginx on {edge}: {text}") })
        })
    }

    fn upstreams(&self, host: &Name) -> Vec<UpstreamView> {
        let now = Instant::now();
        let mut upstreams = self.edges.upstreams(|peer| self.state(peer));
        for upstream in &mut upstreams {
            for view in &mut upstream.peers {
                let peer = Peer::new(&upstream.name, &view.address);
                view.marks = self.ledger.views(&peer, now);
                view.marks.extend(self.foreign(host, &peer));
            }
        }
        upstreams
    }

    /// Marks that somebody else has set at an edge.
    fn foreign(&self, host: &Name, peer: &Peer) -> Vec<MarkView> {
        let ours: Vec<Owner> =
            self.ledger.owners(peer).iter().filter_map(|owner| at_edge(host, owner)).collect();
        let marks =
            self.edges.of(peer).flat_map(|(edge, _, seen)| seen.marks.iter().map(move |mark| (edge, mark)));
        let foreign = marks.filter(|(_, mark)| !ours.contains(&mark.owner) && !is_of(host, &mark.owner));
        let view = |(edge, mark): (&Name, &handoff_wire::store::AckMark)| MarkView {
            owner: mark.owner.clone(),
            state: mark.state,
            expect: handoff_wire::Expect::Gone,
            reason: format!("at nginx on {edge}"),
            epoch: mark.epoch,
            lease: None,
            age: Span::from_millis(0),
        };
        foreign.map(view).collect()
    }
}

/// It was set for this host, which has taken it back already.
fn is_of(host: &Name, owner: &Owner) -> bool {
    let name = owner.as_str().split_once(':').map(|(_, name)| name);
    name.is_some_and(|name| name.strip_prefix(host.as_str()).is_some_and(|rest| rest.starts_with('/')))
}

/// As a mark would have it.
fn plain(state: PeerState) -> State {
    match state {
        // nginx alone leaves it out, and not for long.
        PeerState::Up | PeerState::Unavail => State::Up,
        PeerState::Changing => State::Changing,
        PeerState::Trial => State::Trial,
        PeerState::Checking => State::Checking,
        PeerState::Unhealthy => State::Unhealthy,
        PeerState::Draining => State::Draining,
        PeerState::Down => State::Down,
    }
}

fn peer(member: &Member) -> Peer {
    Peer::new(&member.upstream, &member.address)
}

fn json(value: &impl serde::Serialize) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(value).map_err(|error| StoreError::Failed(error.to_string()))
}

fn unreachable(error: &StoreError) -> Refusal {
    Code::Waiting.says(format!("the store is out of reach: {error}"))
}

// === impl Line ===

impl Line {
    fn put(&self, key: String, value: &impl serde::Serialize) -> Result<TxnOp, StoreError> {
        Ok(TxnOp::put(key, json(value)?, Some(etcd_client::PutOptions::new().with_lease(self.lease))))
    }
}

impl std::fmt::Debug for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Line").field("lease", &self.lease).finish_non_exhaustive()
    }
}
