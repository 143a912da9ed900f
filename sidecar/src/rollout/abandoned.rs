//! Connections that the end of a worker left to nobody, where no sidecar [looks for them](crate::orphans).

use super::world::Worlds;
use crate::{
    control::Control,
    host::Proc,
    orphans::{Cast, Search},
};
use handoff_wire::Owner;
use std::sync::Arc;
use tokio::sync::{Notify, watch};

/// For as long as the roll-out lives.
pub async fn search(control: Control, owner: Owner, mut worlds: Worlds) {
    let (told, cast) = watch::channel(Cast::default());
    let death = Arc::new(Notify::new());
    // A roll-out looks often enough.
    let search = Search { owner, control, cast, death: death.clone(), look: Arc::default() };
    let follow = async move {
        let proc = Proc::default();
        while worlds.changed().await.is_ok() {
            let now = worlds.borrow_and_update().as_ref().map(|world| world.cast.clone()).unwrap_or_default();
            let before = told.send_replace(now);
            if before.workers.iter().any(|worker| !worker.is_alive(&proc)) {
                death.notify_one();
            }
        }
    };
    tokio::join!(search.run(), follow);
}
