//! The floor: no choice of ours leaves an upstream without anybody to serve.
//!
//! It counts the peers that could serve now: gate open to all, not `down` in the configuration, not left out by nginx for their
//! failures. Backups are apart: that they could help out is no reason to send the last primary away. Facts are not
//! bound: that a worker is being stopped is so whether we like it or not. Nor is a choice that is over, if nobody renews it,
//! before those who wait for the upstream give up.

use crate::control::{Standing, World};
use crate::table::{SlotId, Table};
use handoff_wire::{Code, Refusal, Span};

/// A peer that is to be taken out.
#[derive(Clone, Copy, Debug)]
pub struct Leaver {
    pub slot: SlotId,
    /// It is expected back, and at the latest after so long.
    pub back_within: Option<Span>,
}

/// Refuses if taking `leaving` out would leave an upstream, which somebody serves now, to nobody.
pub fn check<W: World>(table: &Table<'_>, world: &W, leaving: &[Leaver]) -> Result<(), Refusal> {
    for upstream in world.upstreams() {
        let serves = |id| table.slot(id).is_some_and(|slot| slot.gate.state().serves());
        let peers = world.peers(&upstream);
        let serving = peers.iter().filter(|peer| !peer.backup && peer.available && serves(peer.slot));
        let leaver = |peer: &Standing| leaving.iter().find(|leaver| leaver.slot == peer.slot);
        let (gone, left): (Vec<&Standing>, Vec<&Standing>) = serving.partition(|peer| leaver(peer).is_some());
        let patience = world.queue(&upstream).map_or(0, |queue| queue.timeout);
        let is_waited_for =
            |leaver: &Leaver| leaver.back_within.is_some_and(|within| within.as_millis() <= patience);
        let are_waited_for = gone.iter().filter_map(|peer| leaver(peer)).all(is_waited_for);
        if !gone.is_empty() && left.is_empty() && !are_waited_for {
            return Err(Code::Floor.says(format!(
                "nobody would be left to serve the upstream {upstream:?}: wait until another of its peers is up, or say \
                 \"force\":true if that is what you want"
            )));
        }
    }
    Ok(())
}
