//! The time in which workers that share an address are replaced, as nginx keeps it: each connection carries one request,
//! and none that is older than the window is used again.
//!
//! So whoever ends has no connection on which another request could come; what it still has it must finish by itself.
//! What it did not is [counted](toll).

use super::{
    counts::Counts,
    marks::{ANEW, Marks},
    stop::Stop,
    verdict::Answers,
};
use crate::peer::{Peer, Place};
use handoff_wire::PeerView;
use std::{collections::BTreeSet, net::SocketAddr, time::Duration};
use tokio::time;

#[derive(Debug)]
pub struct Window {
    marks: Marks,
}

/// Long enough to see how an app with some traffic does.
const SAMPLE: Duration = Duration::from_millis(500);

impl Window {
    /// Of the peers of one app. nginx has it so when this comes back.
    pub async fn open(mut marks: Marks) -> Result<Self, Stop> {
        marks.change().await?;
        marks.clear().await?;
        Ok(Self { marks })
    }

    /// It was open without a break until now, so that a worker may be stopped.
    pub async fn holds(&mut self) -> Result<(), Stop> {
        for pause in ANEW {
            time::sleep(pause).await;
            // What was set before stays as it is, with its epoch, and what lapsed is set anew: either way it is this mark
            // that holds until the end of the order.
            let set = self.marks.change().await?;
            if self.marks.fence(set).await?.is_some() {
                return Ok(());
            }
        }
        let text =
            "nginx forgets the mark again and again: is it being restarted? `handoff events` shows more";
        Err(Stop::Refused(text.to_owned()))
    }

    pub async fn close(mut self) -> Result<(), Stop> {
        Ok(self.marks.lift().await?)
    }

    pub async fn views(&mut self) -> Result<Vec<PeerView>, Stop> {
        Ok(self.marks.views().await?.ours)
    }

    /// How users are answered at this time.
    pub async fn answers(&mut self) -> Result<Answers, Stop> {
        let before = Answers::of(&self.views().await?);
        time::sleep(SAMPLE).await;
        Ok(Answers::of(&self.views().await?).since(before))
    }

    pub async fn counts(&mut self) -> Result<Counts, Stop> {
        Ok(Counts::of(&self.views().await?))
    }

    /// Where the app listens, each address once.
    pub fn addresses(&self) -> BTreeSet<SocketAddr> {
        let address = |peer: &Peer| match peer.place() {
            Some(Place::Tcp(address)) => Some(address),
            _ => None,
        };
        self.marks.peers().iter().filter_map(address).collect()
    }
}
