//! What a roll-out says to nginx of one worker's peers, and what nginx confirms.
//!
//! ```text
//!   drain ──► Set ──(nothing in flight)──► fence ──► Fenced ──► the worker may be stopped
//!     ▲                                      │
//!     └────────── it lapsed meanwhile ───────┘
//! ```
//!
//! Only [`Fenced`] lets a worker be stopped, and it comes from nowhere but nginx's word that the mark is the one that
//! was set, all the time, by the nginx that set it.

use crate::{
    control::{Address, Control, ControlError},
    peer::Peer,
};
use handoff_wire::{
    Ack, AckedMark, Code, DEFAULT_LEASE, Expect, MarkRequest, MarkSet, Owner, OwnerKind, PeerState, PeerView,
    Renew, RenewMark, Span, State,
};
use std::{collections::BTreeSet, time::Duration};
use tokio::time;

#[derive(Debug)]
pub struct Marks {
    control: Control,
    owner: Owner,
    peers: BTreeSet<Peer>,
    reason: String,
}

/// nginx has acknowledged: of peers that are drained, that it begins nothing new there; of those that change, that every
/// connection carries one request.
#[derive(Clone, Debug)]
pub struct Set {
    instance: String,
    marks: Vec<RenewMark>,
    pub in_flight: u64,
}

/// How nginx sees the upstreams of a worker's peers.
#[derive(Debug)]
pub struct Views {
    pub ours: Vec<PeerView>,
    pub others: Vec<PeerView>,
    /// In each of these upstreams somebody else serves.
    pub somebody_else: bool,
    /// How long a new worker takes to get its whole share of the requests.
    pub slow_start: Duration,
}

/// It was so without a break until now.
#[derive(Debug)]
pub struct Fenced {
    /// Requests that are cut if the worker does not finish them by itself.
    pub in_flight: u64,
}

/// While two nginx share the socket (an upgrade of the binary), a new connection may reach either. So many must reach
/// the one that we know.
const CONNECTIONS: usize = 4;
/// A mark that lapsed is set anew after each of these, and then no more: an nginx that is restarted is back by then.
pub const ANEW: [Duration; 5] = [
    Duration::ZERO,
    Duration::from_millis(200),
    Duration::from_millis(400),
    Duration::from_millis(800),
    Duration::from_millis(1600),
];
const BEAT: Duration = Duration::from_secs(1);

impl Views {
    /// Until each of the others that serve has its whole share, and the one for which that takes longest.
    pub fn growing(&self) -> Option<(&PeerView, Duration)> {
        let serving = self.others.iter().filter(|peer| peer.state.serves());
        let growing = serving.filter_map(|peer| Some((peer, peer.slow_start?.left.duration())));
        growing.max_by_key(|&(_, left)| left)
    }
}

impl Marks {
    pub fn new(address: Address, owner: Owner, peers: BTreeSet<Peer>, reason: &str) -> Self {
        Self { control: Control::new(address), owner, peers, reason: reason.to_owned() }
    }

    pub fn peers(&self) -> &BTreeSet<Peer> {
        &self.peers
    }

    /// A worker that did not serve may listen on others than were known.
    pub fn extend(&mut self, peers: &BTreeSet<Peer>) {
        self.peers.extend(peers.iter().cloned());
    }

    pub async fn drain(&mut self, force: bool) -> Result<Set, ControlError> {
        self.set(State::Draining, force).await
    }

    /// They serve on, and no connection that is older than this is used again.
    pub async fn change(&mut self) -> Result<Set, ControlError> {
        self.set(State::Changing, false).await
    }

    async fn set(&mut self, state: State, force: bool) -> Result<Set, ControlError> {
        let Some(ack) = self.say(state, Expect::Back, force).await? else {
            return Ok(Set { instance: String::new(), marks: Vec::new(), in_flight: 0 });
        };
        let in_flight = in_flight(&ack);
        let mark =
            |acked: AckedMark| RenewMark { upstream: acked.upstream, peer: acked.peer, epoch: acked.epoch };
        Ok(Set { instance: ack.instance, marks: ack.marks.into_iter().map(mark).collect(), in_flight })
    }

    /// Takes away what roll-outs before this one left on these peers: whoever has the lock is the only one.
    pub async fn clear(&mut self) -> Result<(), ControlError> {
        for peer in self.views().await?.ours {
            let owners = peer.marks.into_iter().map(|mark| mark.owner);
            for owner in owners.filter(|owner| owner.kind() == OwnerKind::Rollout && *owner != self.owner) {
                let mark = MarkRequest {
                    upstream: None,
                    peer: peer.address.clone(),
                    state: State::Up,
                    expect: Expect::Gone,
                    reason: String::new(),
                    all: false,
                };
                let set = MarkSet { owner, lease: Some(DEFAULT_LEASE), force: false, marks: vec![mark] };
                self.control.mark(&set).await?;
            }
        }
        Ok(())
    }

    /// How many requests nginx still has there. Answers when there are none, at the latest after `wait`.
    pub async fn in_flight(&mut self, wait: Duration) -> Result<u64, ControlError> {
        let until = time::Instant::now() + wait;
        let mut sum = 0;
        for peer in &self.peers {
            let left = until.saturating_duration_since(time::Instant::now());
            let seen = self.control.drained(&peer.upstream, &peer.address, Span::from(left)).await?;
            sum += seen.in_flight;
        }
        Ok(sum)
    }

    /// None: the mark is not what it was, so that nginx may have used the peers meanwhile as if there were none. Set it
    /// again.
    pub async fn fence(&mut self, set: Set) -> Result<Option<Fenced>, ControlError> {
        let Set { instance, marks, .. } = set;
        if marks.is_empty() {
            return Ok(Some(Fenced { in_flight: 0 }));
        }
        for _ in 0..CONNECTIONS {
            self.control.disconnect();
            if self.control.overview().await?.instance != instance {
                return Ok(None);
            }
        }
        let renew = Renew { owner: self.owner.clone(), lease: Some(DEFAULT_LEASE), marks: Some(marks) };
        match self.control.renew(&renew).await {
            Ok(ack) if ack.instance == instance => Ok(Some(Fenced { in_flight: in_flight(&ack) })),
            Ok(_) => Ok(None),
            // Whatever it is, it is no longer the mark that was set.
            Err(ControlError::Refused(refusal)) if refusal.code != Code::Forbidden => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The old process has ended, the new one does not serve yet.
    pub async fn starting(&mut self) -> Result<(), ControlError> {
        self.say(State::Checking, Expect::Back, true).await.map(drop)
    }

    /// It is given what can be tried elsewhere, and nothing else.
    pub async fn trial(&mut self) -> Result<(), ControlError> {
        self.say(State::Trial, Expect::Back, true).await.map(drop)
    }

    /// Nobody is there, and nobody comes.
    pub async fn down(&mut self) -> Result<(), ControlError> {
        self.say(State::Down, Expect::Gone, true).await.map(drop)
    }

    /// Nobody is there, and another one follows.
    pub async fn died(&mut self) -> Result<(), ControlError> {
        self.say(State::Down, Expect::Back, true).await.map(drop)
    }

    /// It runs, and nobody waits for it any more.
    pub async fn in_vain(&mut self) -> Result<(), ControlError> {
        self.say(State::Checking, Expect::Gone, true).await.map(drop)
    }

    pub async fn lift(&mut self) -> Result<(), ControlError> {
        self.say(State::Up, Expect::Gone, false).await.map(drop)
    }

    pub async fn views(&mut self) -> Result<Views, ControlError> {
        let upstreams: BTreeSet<&str> = self.peers.iter().map(|peer| peer.upstream.as_str()).collect();
        let mut views =
            Views { ours: Vec::new(), others: Vec::new(), somebody_else: true, slow_start: Duration::ZERO };
        for name in upstreams {
            let upstream = self.control.upstream(name).await?;
            views.slow_start = views.slow_start.max(upstream.slow_start.unwrap_or_default().duration());
            let is_ours = |view: &PeerView| self.peers.contains(&Peer::new(name, &view.address));
            let (ours, others): (Vec<_>, Vec<_>) = upstream.peers.into_iter().partition(is_ours);
            views.somebody_else &= others.iter().any(|peer| peer.state == PeerState::Up && !peer.backup);
            views.ours.extend(ours);
            views.others.extend(others);
        }
        Ok(views)
    }

    /// None: the worker has no peers.
    async fn say(&mut self, state: State, expect: Expect, force: bool) -> Result<Option<Ack>, ControlError> {
        if self.peers.is_empty() {
            return Ok(None);
        }
        let is_mark = state != State::Up;
        let request = |peer: &Peer| MarkRequest {
            upstream: Some(peer.upstream.clone()),
            peer: peer.address.clone(),
            state,
            expect: if is_mark { expect } else { Expect::Gone },
            reason: if is_mark { self.reason.clone() } else { String::new() },
            all: false,
        };
        let marks = self.peers.iter().map(request).collect();
        let set = MarkSet { owner: self.owner.clone(), lease: Some(DEFAULT_LEASE), force, marks };
        self.control.mark(&set).await.map(Some)
    }
}

/// Keeps every mark of this roll-out alive, for as long as it is polled.
pub async fn keep_alive(address: Address, owner: Owner) {
    let mut control = Control::new(address);
    let mut beat = time::interval(BEAT);
    beat.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
    loop {
        beat.tick().await;
        // Whoever needs a mark asks for it by its epoch, and learns then that nginx was away.
        _ = control.renew(&Renew { owner: owner.clone(), lease: None, marks: None }).await;
    }
}

fn in_flight(ack: &Ack) -> u64 {
    ack.marks.iter().map(|mark| mark.in_flight).sum()
}
