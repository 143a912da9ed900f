//! One worker more than the app has, for a while: in cluster mode a [canary](super::canary), in fork mode one that
//! [stands in](super::stand_in) for the only worker.
//!
//! What it must not outlive is the roll-out: it is [noted](super::notes) before PM2 is asked for it, so that the next
//! roll-out knows it when this one is killed.

use super::{
    grip::{Call, Grip, Said, Shared},
    notes::{Note, Notes},
    stop::Stop,
    world::Hands,
};
use crate::pm2::{PmId, rpc::RpcError};
use std::{
    collections::BTreeSet,
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::time;

/// PM2 lists a new worker as soon as it was asked.
const LISTED: Duration = Duration::from_secs(5);

/// Asks PM2 for it. Comes back when it is listed; that it runs is said by the call.
pub async fn start(
    app: &str,
    hands: &Hands,
    shared: &Arc<Shared>,
    ask: impl Future<Output = Result<PmId, RpcError>> + Send + 'static,
) -> Result<(Grip, Call<PmId>), Stop> {
    let notes = Notes::of(&shared.home);
    let mut worlds = shared.worlds.clone();
    let world = worlds.borrow().clone().ok_or(Stop::Pm2(RpcError::Closed))?;
    let known: BTreeSet<PmId> = world.workers.keys().copied().collect();
    let note = Note::asking(app, world.listed.iter());
    let unnoted = |error| Stop::Refused(format!("one more worker cannot be noted in PM2's home: {error}"));
    notes.put(note.clone()).map_err(unnoted)?;
    hands.expect_one_more();
    let mut call = Call::begin(ask);
    let until = Instant::now() + LISTED;
    let listed = loop {
        let world = worlds.borrow_and_update().clone().ok_or(Stop::Pm2(RpcError::Closed))?;
        if let Some(seen) = world.workers.values().find(|seen| !known.contains(&seen.listed.id)) {
            break seen.listed.clone();
        }
        call.answered().await?;
        if Instant::now() >= until {
            return Err(Stop::Refused(format!("PM2 started no other worker of {app} within {LISTED:?}")));
        }
        _ = time::timeout_at(until.into(), worlds.changed()).await;
    };
    let grip = Grip::new(app, listed.id, hands, shared.clone());
    grip.in_hand.is_moving(true);
    notes.put(note.found(&listed)).map_err(unnoted)?;
    Ok((grip, call))
}

/// PM2 has forgotten it.
pub fn strike(grip: &Grip, app: &str) {
    if let Err(error) = Notes::of(&grip.shared.home).strike(app) {
        grip.note(format!("the note of {} cannot be struck: {error}", grip.name));
    }
}

/// It could not be taken away, for this reason.
pub fn left_behind(grip: &Grip, what: &str, stop: Stop) -> Stop {
    let text = format!("the {what} {0} is still there: the next `handoff reload` deletes it", grip.name);
    _ = grip.shared.steps.send((grip.id, Said::Note(text)));
    stop
}
