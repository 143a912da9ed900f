//! An app host's end: what nginx's control API would say, if all nginx were one.
//!
//! ```text
//!   callers ──► views, marks, members ──► book ◄──► line ◄──► the store
//! ```
//!
//! What is known stands in the book, which speaks to nobody. The line writes what is new there into the store, and what edges
//! say into the book. Each life of the line is a session: a lease, and our name under it. Between two of them nothing is
//! answered as done.

mod book;
mod line;
mod marks;
mod members;
mod views;

use super::{
    Settings, StoreError,
    bring::Bring,
    http,
    session::{Backoff, Claim, LEASE, Session, connect, holder},
    standing::Standing,
};
use crate::{peer::Peer, telemetry::Changes};
use book::Book;
use handoff_wire::{
    Code, Refusal,
    store::{HostValue, Keys, Member, Name},
};
use line::Line;
use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};
use tokio::sync::watch;

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

/// How long a choice waits for all edges before it is asked for again.
const WAIT: Duration = Duration::from_secs(1);

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

// === impl Desk ===

impl Desk {
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

fn peer(member: &Member) -> Peer {
    Peer::new(&member.upstream, &member.address)
}

fn unreachable(error: &StoreError) -> Refusal {
    Code::Waiting.says(format!("the store is out of reach: {error}"))
}
