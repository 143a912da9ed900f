//! A connection to the store, and the lease under which everything of ours stands there.
//!
//! The lease is measured here, from when each renewal was *sent*: so we know that it may be over no later than the store
//! does, whatever the clocks of other machines say. Once it is over it stays so; whoever used it begins again with another.

use super::{
    Settings, StoreError,
    standing::{Database, Standing},
};
use crate::host::{Proc, Process};
use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, Identity, LeaseKeepAliveStream, LeaseKeeper,
    PutOptions, TlsOptions, Txn, TxnOp, TxnOpResponse,
};
use handoff_wire::store::Holder;
use serde::{Serialize, de::DeserializeOwned};
use std::{
    fs,
    hash::{BuildHasher as _, Hasher as _, RandomState},
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{sync::watch, task::JoinHandle, time};

/// How long the store keeps what is ours without hearing of us.
pub const LEASE: Duration = Duration::from_secs(10);
/// How often it hears of us.
const BEAT: Duration = Duration::from_millis(2500);
const RETRY: Duration = Duration::from_millis(250);
/// How often the store is asked how it is.
const LOOK: Duration = Duration::from_secs(30);
/// The store answers within milliseconds; while it has no leader it does not.
pub const PATIENCE: Duration = Duration::from_millis(1500);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

pub struct Session {
    pub client: Client,
    pub lease: i64,
    /// Until when the lease is ours for certain. None: it is over.
    until: watch::Receiver<Option<Instant>>,
    keeper: JoinHandle<()>,
}

/// Pauses that grow, and differ from one process to the next: when the store comes back, not all come at once.
#[derive(Debug)]
pub struct Backoff(Duration);

/// What is in the way of a claim.
#[derive(Debug)]
pub enum Claim {
    /// Since this revision.
    Ours(i64),
    /// Another process has that name.
    Taken(Holder),
    /// Something else that it depends on has changed.
    Overtaken,
}

// === impl Session ===

impl Session {
    pub async fn open(settings: &Settings, standing: &Arc<Standing>) -> Result<Self, StoreError> {
        let mut client = connect(settings, standing).await?;
        let asked = Instant::now();
        let seconds = i64::try_from(LEASE.as_secs()).unwrap_or(10);
        let granted = timely(client.lease_grant(seconds, None)).await?;
        let lease = granted.id();
        let (sender, until) = watch::channel(Some(asked + LEASE));
        standing.renewed(asked + LEASE);
        let keeper = tokio::spawn(keep(settings.clone(), client.clone(), lease, sender, standing.clone()));
        Ok(Self { client, lease, until, keeper })
    }

    pub fn is_ours(&self) -> bool {
        self.until.borrow().is_some_and(|until| Instant::now() < until)
    }

    /// Waits until the lease is over.
    pub async fn lost(&mut self) {
        loop {
            let Some(until) = *self.until.borrow_and_update() else { return };
            if Instant::now() >= until {
                return;
            }
            tokio::select! {
                () = time::sleep_until(until.into()) => {}
                changed = self.until.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Holds a key under our lease, if nobody else does and the other comparisons hold, too. A process of this machine that
    /// is gone holds nothing.
    pub async fn claim<T>(
        &mut self,
        key: &str,
        value: &T,
        holder: impl Fn(&T) -> &Holder,
        also: &[Compare],
    ) -> Result<Claim, StoreError>
    where
        T: Serialize + DeserializeOwned,
    {
        let mut is_as_seen = Compare::create_revision(key, CompareOp::Equal, 0);
        // Twice: the first look may find somebody who is gone.
        for _ in 0..2 {
            let mut compares = vec![is_as_seen.clone()];
            compares.extend_from_slice(also);
            let txn = Txn::new()
                .when(compares)
                .and_then(vec![self.put(key, value)?])
                .or_else(vec![TxnOp::get(key, None)]);
            let answer = timely(self.client.txn(txn)).await?;
            if answer.succeeded() {
                return Ok(Claim::Ours(answer.header().map_or(0, |header| header.revision())));
            }
            let responses = answer.op_responses();
            let Some(TxnOpResponse::Get(found)) = responses.first() else { return Ok(Claim::Overtaken) };
            let Some(found) = found.kvs().first() else { return Ok(Claim::Overtaken) };
            let theirs = read::<T>(found.value()).ok();
            let ours = holder(value);
            match theirs.as_ref().map(&holder) {
                Some(theirs) if theirs != ours && is_there(theirs, ours) => {
                    return Ok(Claim::Taken(theirs.clone()));
                }
                // It is ours from an earlier lease, nobody's any more, or nothing that we ever wrote.
                _ => is_as_seen = Compare::mod_revision(key, CompareOp::Equal, found.mod_revision()),
            }
        }
        Ok(Claim::Overtaken)
    }

    pub fn put(&self, key: &str, value: &impl Serialize) -> Result<TxnOp, StoreError> {
        let value = serde_json::to_vec(value).map_err(|error| StoreError::Failed(error.to_string()))?;
        Ok(TxnOp::put(key, value, Some(PutOptions::new().with_lease(self.lease))))
    }

    /// The key is held under our lease.
    pub fn holds(&self, key: &str) -> Compare {
        Compare::lease(key, CompareOp::Equal, self.lease)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

/// Reads a value that anybody may have written.
pub fn read<T: DeserializeOwned>(value: &[u8]) -> Result<T, String> {
    if value.len() > handoff_wire::store::MAX_VALUE {
        return Err(format!("it has {} bytes", value.len()));
    }
    serde_json::from_slice(value).map_err(|error| error.to_string())
}

/// What this process asked of the store, and what came to nothing.
static ASKED: AtomicU64 = AtomicU64::new(0);
static FAILED: AtomicU64 = AtomicU64::new(0);

pub async fn timely<T>(asked: impl Future<Output = Result<T, etcd_client::Error>>) -> Result<T, StoreError> {
    ASKED.fetch_add(1, Ordering::Relaxed);
    let answer = match time::timeout(PATIENCE, asked).await {
        Ok(answer) => answer.map_err(StoreError::from),
        Err(_) => Err(StoreError::Silent),
    };
    answer.inspect_err(|_| _ = FAILED.fetch_add(1, Ordering::Relaxed))
}

/// How many requests there were, and how many of them failed.
pub fn requests() -> (u64, u64) {
    (ASKED.load(Ordering::Relaxed), FAILED.load(Ordering::Relaxed))
}

/// Another process of this machine that lives, or any of another machine: of those we cannot know.
fn is_there(theirs: &Holder, ours: &Holder) -> bool {
    let process = Process { pid: theirs.pid, start: theirs.start };
    theirs.boot != ours.boot || process.is_alive(&Proc::default())
}

/// Chance enough to keep processes from doing the same at the same time.
pub fn dice() -> usize {
    usize::try_from(RandomState::new().build_hasher().finish() % 1_000_003).unwrap_or(0)
}

/// Up to this long.
pub fn by_chance(most: Duration) -> Duration {
    most * u32::try_from(dice() % 1024).unwrap_or(0) / 1024
}

/// This very process.
pub fn holder() -> Holder {
    let own = Process::own();
    Holder {
        boot: fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned(),
        pid: own.map_or(0, |process| process.pid),
        start: own.map_or(0, |process| process.start),
    }
}

/// To the next member: one that is gone must not be asked again and again. Where to begin is another member in each process.
pub async fn connect(settings: &Settings, standing: &Standing) -> Result<Client, StoreError> {
    static TURN: LazyLock<AtomicUsize> = LazyLock::new(|| AtomicUsize::new(dice()));
    let turn = TURN.fetch_add(1, Ordering::Relaxed) % settings.endpoints.len().max(1);
    let endpoint = settings.endpoints.get(turn).ok_or(StoreError::Silent)?;
    standing.speaks_to(endpoint);
    connect_to(settings, endpoint).await
}

/// To this member.
pub async fn connect_to(settings: &Settings, endpoint: &str) -> Result<Client, StoreError> {
    let mut options = ConnectOptions::new()
        .with_connect_timeout(PATIENCE)
        .with_keep_alive(Duration::from_secs(5), Duration::from_secs(10))
        .with_keep_alive_while_idle(true)
        // A member that lost the others must not keep us.
        .with_require_leader(true)
        .with_auto_token_refresh(true);
    // Read anew each time: certificates and passwords are renewed.
    if let Some(tls) = &settings.tls {
        let file = |path: &std::path::Path| {
            fs::read(path).map_err(|error| StoreError::File { path: path.to_owned(), error })
        };
        let mut own = TlsOptions::new().ca_certificate(Certificate::from_pem(file(&tls.ca)?));
        if let Some((cert, key)) = &tls.identity {
            own = own.identity(Identity::from_pem(file(cert)?, file(key)?));
        }
        options = options.with_tls(own);
    }
    if let Some((user, path)) = &settings.user {
        let password =
            fs::read_to_string(path).map_err(|error| StoreError::File { path: path.clone(), error })?;
        options = options.with_user(user, password.trim_end_matches(['\r', '\n']));
    }
    timely(Client::connect([endpoint], Some(options))).await
}

/// Renews the lease until it is over.
async fn keep(
    settings: Settings,
    mut client: Client,
    lease: i64,
    until: watch::Sender<Option<Instant>>,
    standing: Arc<Standing>,
) {
    let mut line: Option<(LeaseKeeper, LeaseKeepAliveStream)> = None;
    let mut looked: Option<Instant> = None;
    loop {
        let sent = Instant::now();
        let renewed = match &mut line {
            Some(line) => renew(line).await,
            None => match timely(client.lease_keep_alive(lease)).await {
                // Its first answer was the first renewal.
                Ok(opened) => renew(line.insert(opened)).await,
                Err(error) => Err(error),
            },
        };
        match renewed {
            Ok(true) => {
                until.send_replace(Some(sent + LEASE));
                standing.renewed(sent + LEASE);
                if looked.is_none_or(|looked| looked.elapsed() >= LOOK) {
                    looked = Some(Instant::now());
                    // Whoever may not ask that does without.
                    if let Ok(status) = timely(client.status()).await {
                        standing.measured(Database::from(&status));
                    }
                }
                time::sleep(BEAT).await;
                continue;
            }
            Ok(false) => break,
            Err(error) if error.is_no_lease() => break,
            Err(error) => tracing::debug!("the lease was not renewed: {error}"),
        }
        line = None;
        if until.borrow().is_none_or(|until| Instant::now() >= until) {
            break;
        }
        time::sleep(RETRY).await;
        // A lease is known to every member.
        if let Ok(another) = connect(&settings, &standing).await {
            client = another;
        }
    }
    until.send_replace(None);
}

/// False: the store knows it no more.
async fn renew((keeper, answers): &mut (LeaseKeeper, LeaseKeepAliveStream)) -> Result<bool, StoreError> {
    timely(keeper.keep_alive()).await?;
    Ok(timely(answers.message()).await?.is_some_and(|answer| answer.ttl() > 0))
}

// === impl Backoff ===

impl Backoff {
    pub fn reset(&mut self) {
        *self = Self::default();
    }

    /// Between half of a pause and all of it; the next one is twice as long.
    pub async fn pause(&mut self) {
        time::sleep(self.0 / 2 + by_chance(self.0 / 2)).await;
        self.0 = (self.0 * 2).min(LONGEST_PAUSE);
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Self(FIRST_PAUSE)
    }
}
