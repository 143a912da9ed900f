//! The floor: no choice of ours leaves an upstream without anybody to serve.
//!
//! It counts the peers that could serve now: gate open to all, not `down` in the configuration, not left out by nginx for their
//! failures. Backups are apart: that they could help out is no reason to send the last primary away. Facts are not
//! bound: that a worker is being stopped is so whether we like it or not.

use crate::control::{Standing, World};
use crate::table::{SlotId, Table};
use handoff_wire::{Code, Refusal};

/// Refuses if taking `leaving` out would leave an upstream, which somebody serves now, to nobody.
pub fn check<W: World>(table: &Table<'_>, world: &W, leaving: &[SlotId]) -> Result<(), Refusal> {
    for upstream in world.upstreams() {
        let serves = |id| table.slot(id).is_some_and(|slot| slot.gate.state().serves());
        let peers = world.peers(&upstream);
        let serving = peers.iter().filter(|peer| !peer.backup && peer.available && serves(peer.slot));
        let (gone, left): (Vec<&Standing>, Vec<&Standing>) =
            serving.partition(|peer| leaving.contains(&peer.slot));
        if !gone.is_empty() && left.is_empty() {
            return Err(Code::Floor.says(format!(
                "nobody would be left to serve the upstream {upstream:?}: wait until another of its peers is up, or say \
                 \"force\":true if that is what you want"
            )));
        }
    }
    Ok(())
}
