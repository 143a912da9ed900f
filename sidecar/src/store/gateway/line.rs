//! The line to the store: what this host says goes there, and what edges say is heard.

use super::{
    Desk, WAIT,
    book::{Book, View},
};
use crate::{
    peer::Peer,
    store::{
        StoreError,
        edges::Edges,
        session::{Backoff, read, timely},
    },
    telemetry::Changes,
};
use etcd_client::{Client, Compare, EventType, GetOptions, Txn, TxnOp, TxnOpResponse, WatchOptions};
use handoff_wire::store::{AckValue, Key, Name};
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};
use tokio::time;

/// To the store, under our lease.
pub(super) struct Line {
    pub(super) client: Client,
    pub(super) holds: Compare,
    pub(super) lease: i64,
}

/// How long an edge has to say what it has of a host that has just come.
const VIEW: Duration = Duration::from_secs(2);
const SWEEP: Duration = Duration::from_millis(250);
/// etcd takes 128 in one transaction.
const AT_ONCE: usize = 100;

impl Desk {
    pub(super) async fn enter(&self, line: Line, since: i64) {
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
    pub(super) async fn turn_to(&self, client: Client) {
        if let Some(line) = self.line.lock().await.as_mut() {
            line.client = client;
        }
    }

    pub(super) async fn leave(&self, problem: String) {
        *self.line.lock().await = None;
        let mut book = self.book();
        (book.instance, book.problem) = (None, Some(problem));
        book.bring.forget();
        book.view = View::None;
        book.edges = Edges::default();
        drop(book);
        self.change();
    }

    /// Writes what is not written yet. Ok: all that had been said when this began stands there.
    pub(super) async fn flush(&self) -> Result<(), StoreError> {
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
    pub(super) async fn everywhere(
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
    pub(super) async fn listen(
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
    pub(super) async fn sweep(&self) {
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

fn json(value: &impl serde::Serialize) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(value).map_err(|error| StoreError::Failed(error.to_string()))
}
