//! What an app host says of its peers.
//!
//! A mark goes through here in this order: into the ledger; into the store, if our lease still holds it; to every edge,
//! which puts it into its nginx and acknowledges the revision; and when all that are registered have, as the store itself
//! lists them after that, it is answered. What owners choose (a roll-out, a person) is answered no earlier. What is so
//! anyway (PM2 stops a worker) is answered soon, and if an edge lags behind, with the state `up`: somebody may begin a
//! request there.
//!
//! If the store is out of reach nothing is answered as done, and what was asked for stays in the ledger to be written.

use super::{
    Desk, WAIT,
    book::{Book, plain},
    unreachable,
};
use crate::{
    peer::Peer,
    store::ledger::{Before, lapsed},
};
use handoff_wire::{Ack, AckedMark, MarkSet, Owner, PeerState, Refusal, Renew, State};
use std::time::{Duration, Instant};

/// How long a fact does: nobody may hold up what comes after it.
const SHORT: Duration = Duration::from_millis(200);

impl Desk {
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
}
