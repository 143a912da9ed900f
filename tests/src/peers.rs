//! What nginx held of each peer, as its control API tells it.

use crate::{clock::Moment, http};
use anyhow::Result;
use handoff_wire::{Event, Events, PeerState, State, Upstreams, path};
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{sync::watch, task::JoinHandle, time::interval};

/// A peer's state as a whole changed.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    pub at: Moment,
    pub peer: SocketAddr,
    pub to: State,
    pub reason: String,
}

/// Follows the events until it is asked what it saw.
#[derive(Debug)]
pub struct Watch {
    socket: PathBuf,
    following: JoinHandle<Vec<Change>>,
    stop: watch::Sender<()>,
}

pub async fn upstreams(socket: &Path) -> Result<Upstreams> {
    http::json(socket, path::UPSTREAMS).await
}

/// Whether every one of these addresses is a peer of ours that serves.
pub async fn all_up(socket: &Path, addresses: &[SocketAddr]) -> bool {
    let Ok(Upstreams { upstreams, .. }) = upstreams(socket).await else { return false };
    let peers = || upstreams.iter().flat_map(|upstream| &upstream.peers);
    addresses.iter().map(SocketAddr::to_string).all(|address| {
        peers().any(|peer| peer.address == address)
            && peers().filter(|peer| peer.address == address).all(|peer| peer.state == PeerState::Up)
    })
}

impl Watch {
    pub fn new(socket: &Path) -> Self {
        let (stop, stopped) = watch::channel(());
        let following = tokio::spawn(follow(socket.to_path_buf(), stopped));
        Self { socket: socket.to_path_buf(), following, stop }
    }

    /// Fails if the API does not answer at the end.
    pub async fn finish(self) -> Result<Vec<Change>> {
        drop(self.stop);
        upstreams(&self.socket).await?;
        Ok(self.following.await?)
    }
}

/// nginx remembers a bounded number of events: asks often enough to miss none.
async fn follow(socket: PathBuf, mut stopped: watch::Receiver<()>) -> Vec<Change> {
    let mut changes = Vec::new();
    let mut after = 0;
    let mut ask = interval(Duration::from_millis(500));
    let mut last = false;
    while !last {
        tokio::select! {
            _ = stopped.changed() => last = true,
            _ = ask.tick() => {}
        }
        // While nginx restarts, nobody answers.
        if let Ok(events) = http::json::<Events>(&socket, &format!("{}?after={after}", path::EVENTS)).await {
            after = events.next;
            changes.extend(events.events.iter().filter_map(change));
        }
    }
    changes
}

fn change(event: &Event) -> Option<Change> {
    let (from, to) = (event.from?, event.to?);
    (from != to).then_some(())?;
    Some(Change {
        at: Moment::from_unix_millis(event.at),
        peer: event.peer.parse().ok()?,
        to,
        reason: event.reason.clone(),
    })
}
