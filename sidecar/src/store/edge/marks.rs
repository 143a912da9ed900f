//! The marks of hosts, in nginx: put there, kept alive, and told again to an nginx that has forgotten them.

use super::{BEAT, Edge, Nginx};
use crate::{control::ControlError, peer::Peer, store::said::Wanted};
use handoff_wire::{Code, Expect, MarkRequest, MarkSet, Owner, Renew, Span, State, store::WorkerMark};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

/// Longer than the lease in the store and a second between two renewals: as long as a host waits for us because we died a
/// moment ago, nginx still does what we last told it.
const MARK_LEASE: Span = Span::from_secs(15);
const MAX_MARKS: usize = 256;

impl Edge {
    /// Puts into nginx what it does not have of what was said.
    pub(super) async fn put(&mut self) {
        if self.nginx == Nginx::Answers {
            let result = async {
                self.seat(false).await?;
                self.put_all(self.said.wanted(), false).await
            };
            let result = result.await;
            self.met(result);
        }
    }

    /// The same, to an nginx of which nothing is known. What was said before was decided before, floor and all.
    pub(super) async fn put_again(&mut self) {
        let result = async {
            self.mirror.look(&mut self.control).await?;
            // What is there and wanted no more goes.
            self.told = self.mirror.marks_of_hosts();
            self.seats.forget();
            self.seat(false).await?;
            self.put_all(self.said.wanted(), true).await
        };
        let result = result.await;
        self.met(result);
        self.tell_all();
    }

    async fn put_all(&mut self, wanted: Wanted, force: bool) -> Result<(), ControlError> {
        self.refused.retain(|key, (mark, _)| wanted.get(key) == Some(mark));
        let gone: Vec<(Peer, Owner)> =
            self.told.keys().filter(|key| !wanted.contains_key(*key)).cloned().collect();
        let new = wanted.iter().filter(|(key, mark)| {
            let is_told = self.told.get(*key).is_some_and(|told| says_the_same(told, mark));
            self.mirror.has(&key.0) && !is_told && !self.refused.contains_key(*key)
        });
        // By owner: a command is one owner's, and is done whole or not at all.
        let mut sets = BTreeMap::<(Owner, bool), Vec<(Peer, WorkerMark)>>::new();
        for ((peer, owner), mark) in new {
            let set = sets.entry((owner.clone(), mark.force || force)).or_default();
            set.push((peer.clone(), mark.clone()));
        }
        for (peer, owner) in gone {
            let up = WorkerMark {
                owner: owner.clone(),
                state: State::Up,
                expect: Expect::Gone,
                reason: String::new(),
                force: false,
            };
            sets.entry((owner, false)).or_default().push((peer, up));
        }
        for ((owner, force), mut marks) in sets {
            // Who comes back serves before another one goes.
            marks.sort_by_key(|(_, mark)| mark.state != State::Up);
            for some in marks.chunks(MAX_MARKS) {
                self.put_some(&owner, force, some).await?;
            }
        }
        Ok(())
    }

    async fn put_some(
        &mut self,
        owner: &Owner,
        force: bool,
        marks: &[(Peer, WorkerMark)],
    ) -> Result<(), ControlError> {
        let request = |(peer, mark): &(Peer, WorkerMark)| MarkRequest {
            upstream: Some(peer.upstream.clone()),
            peer: peer.address.clone(),
            state: mark.state,
            expect: mark.expect,
            reason: mark.reason.clone(),
            all: false,
        };
        let requests = marks.iter().map(request).collect();
        let set = MarkSet { owner: owner.clone(), lease: Some(MARK_LEASE), force, marks: requests };
        match self.control.mark(&set).await {
            Ok(ack) => {
                self.mirror.acknowledge(owner, &ack);
                for (peer, mark) in marks {
                    let key = (peer.clone(), owner.clone());
                    tracing::info!(upstream = peer.upstream, peer = peer.address, state = %mark.state, %owner, reason = mark.reason, "told nginx");
                    match mark.state {
                        State::Up => _ = self.told.remove(&key),
                        _ => _ = self.told.insert(key, mark.clone()),
                    }
                }
                Ok(())
            }
            Err(ControlError::Refused(refusal)) if marks.len() > 1 && refusal.code != Code::Floor => {
                // One of them is the reason, and no reason for the others.
                for one in marks {
                    Box::pin(self.put_some(owner, force, std::slice::from_ref(one))).await?;
                }
                Ok(())
            }
            Err(ControlError::Refused(refusal)) => {
                for (peer, mark) in marks {
                    let key = (peer.clone(), owner.clone());
                    self.told.remove(&key);
                    match refusal.code {
                        // Nothing is passed on to a peer that nginx does not have.
                        Code::PeerNotFound | Code::UpstreamNotFound => {}
                        _ => _ = self.refused.insert(key, (mark.clone(), refusal.clone())),
                    }
                }
                self.nginx_log.warn(format!("nginx was not told: {}", refusal.text));
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Each second: what nginx was told stays alive, and an nginx that has forgotten it is told again.
    pub(super) async fn keep_marks(&mut self) {
        self.beat = Instant::now() + BEAT;
        let result = self.keep().await;
        self.met(result);
        self.show();
    }

    async fn keep(&mut self) -> Result<(), ControlError> {
        let was = self.mirror.instance().to_owned();
        let is_new = self.mirror.meet(&mut self.control).await?;
        // What was heard holds no longer, or nothing was heard yet: marks end by themselves.
        if self.until.is_none_or(|until| until <= Instant::now()) {
            return Ok(());
        }
        if self.mirror.instance() != was || self.nginx != Nginx::Answers {
            self.mirror.look(&mut self.control).await?;
            // What is there and wanted no more goes.
            self.told = self.mirror.marks_of_hosts();
            self.seats.forget();
            self.seat(false).await?;
            self.put_all(self.said.wanted(), true).await?;
            self.tell_all();
            return Ok(());
        }
        if is_new {
            let changed = self.mirror.look(&mut self.control).await?;
            self.seats.look_again();
            if changed {
                self.tell_all();
            }
        }
        self.seat(true).await?;
        let owners: BTreeSet<Owner> = self.told.keys().map(|(_, owner)| owner.clone()).collect();
        for owner in owners {
            let ack = self.control.renew(&Renew { owner: owner.clone(), lease: None, marks: None }).await?;
            self.mirror.keep(&owner, &ack);
            let held: BTreeSet<Peer> =
                ack.marks.iter().map(|mark| Peer::new(&mark.upstream, &mark.peer)).collect();
            // A lapse, a hand: whatever it was, the host is told of another epoch.
            let lost: Vec<Peer> = self
                .told
                .keys()
                .filter(|(peer, of)| *of == owner && !held.contains(peer))
                .map(|(peer, _)| peer.clone())
                .collect();
            for peer in lost {
                self.told.remove(&(peer, owner.clone()));
            }
        }
        self.put_all(self.said.wanted(), true).await
    }
}

/// nginx knows the owner by another name, and nothing of force.
fn says_the_same(one: &WorkerMark, other: &WorkerMark) -> bool {
    (one.state, one.expect, &one.reason) == (other.state, other.expect, &other.reason)
}
