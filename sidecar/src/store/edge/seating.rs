//! Puts into nginx the peers that hosts bring, and takes out those that nobody brings any more.

use super::Edge;
use crate::{control::ControlError, peer::Peer, store::seats::Step};
use handoff_wire::{Span, store::Name};
use std::collections::{BTreeMap, BTreeSet};

/// Of peers that are not as they should be, so many are named at a time.
const NAMED: usize = 5;

impl Edge {
    /// Adds peers that hosts bring, and takes away those that nobody brings any more.
    pub(super) async fn seat(&mut self, is_beat: bool) -> Result<(), ControlError> {
        if !self.seats.is_due(is_beat) {
            return Ok(());
        }
        let wanted = self.said.wanted();
        let against: BTreeSet<&Peer> =
            wanted.iter().filter(|(_, mark)| !mark.state.serves()).map(|((peer, _), _)| peer).collect();
        let steps = self.seats.steps(&self.mirror, |peer| !against.contains(peer));
        let mut changed = BTreeSet::new();
        for step in &steps {
            let Peer { upstream, address } = step.peer();
            let answer = match step {
                Step::Add { add, .. } => self.control.add(upstream, add).await,
                Step::Remove { remove, .. } => {
                    self.control.remove(upstream, address, remove, Span::default()).await
                }
            };
            match answer {
                Ok(ack) => {
                    self.seats.done(step);
                    if ack.changed {
                        let (what, why) = match step {
                            Step::Add { add, .. } => ("added to nginx", &add.reason),
                            Step::Remove { remove, .. } => ("taken out of nginx", &remove.reason),
                        };
                        tracing::info!(
                            upstream,
                            peer = address,
                            in_flight = ack.in_flight,
                            reason = why,
                            "{what}"
                        );
                        changed.insert(upstream.clone());
                    }
                }
                Err(ControlError::Refused(refusal)) => {
                    self.seats.refused(step, &refusal);
                    changed.insert(upstream.clone());
                }
                Err(error) => {
                    self.seats.look_again();
                    return Err(error);
                }
            }
            self.due.extend(step.host().cloned());
        }
        for upstream in &changed {
            self.mirror.look_into(&mut self.control, upstream).await?;
        }
        self.told.retain(|(peer, _), _| self.mirror.has(peer));
        self.say_what_is_amiss();
        Ok(())
    }

    /// Once for each peer and reason, and never all at once.
    fn say_what_is_amiss(&mut self) {
        let now: BTreeMap<Peer, String> =
            self.seats.amiss().map(|(peer, text, _)| (peer.clone(), text.to_owned())).collect();
        if now == self.seats_log {
            return;
        }
        let is_new = |peer: &Peer, text: &str| self.seats_log.get(peer).is_none_or(|said| said != text);
        let new: Vec<_> = self.seats.amiss().filter(|(peer, text, _)| is_new(peer, text)).collect();
        for (_, text, is_wrong) in new.iter().take(NAMED) {
            if *is_wrong {
                tracing::warn!("{text}");
            } else {
                tracing::info!("{text}");
            }
        }
        if let Some(more) = new.len().checked_sub(NAMED).filter(|more| *more > 0) {
            tracing::warn!("so it is with {more} more peers that hosts bring");
        }
        // Who brings them sees it in its status.
        let others = self.seats_log.keys().chain(now.keys());
        let hosts: BTreeSet<Name> = others.flat_map(|peer| self.mirror.hosts(peer, &self.said)).collect();
        self.due.extend(hosts);
        self.seats_log = now;
    }
}
