//! The worker's peers in nginx, kept shut until it serves and shut again before it goes.
//!
//! ```text
//!   Come ──► Coming ──(listens, is well, may)──► Serving        Leave ──► Leaving ──(nothing in flight)──► Drained
//!              │                                                  │
//!              └──► Alone: nginx has no such peer,  ◄─────────────┘           Follow ──► Done
//!                   or is not there
//! ```
//!
//! What is wished is compared with what nginx has, again and again: a restarted nginx and a lapsed mark are one case. The
//! marks of a worker have the same owner from one process to the next, so whoever follows finds what the one before it left.

use super::place::{self, Look, Wanted};
use crate::{
    control::{Address, Control, ControlError},
    peer::Peer,
    rollout::{
        health::{self, Path},
        marks::{Marks, Set},
    },
    settle::Settle,
    telemetry::Changes,
};
use handoff_wire::{Owner, PeerState, Renew, State, Upstreams};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{sync::watch, time};

/// What the peers are to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Up, when the worker listens and is well; and not before it says that it is ready, if that is asked for.
    Come { may: bool },
    /// Drained.
    Leave,
    /// Nobody is there, and another one follows.
    Follow { was_ordered: bool },
}

/// How far it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stage {
    #[default]
    Unknown,
    /// nginx has nothing to do with it, or cannot be told.
    Alone,
    Coming,
    Serving,
    Leaving {
        in_flight: u64,
    },
    Drained,
    Done,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    pub wish: Wish,
    pub stage: Stage,
}

#[derive(Debug)]
pub struct Gate {
    control: Control,
    owner: Owner,
    wanted: Vec<Wanted>,
    health: Option<Path>,
    log: Changes,
    known: watch::Sender<Known>,
    view: Option<(Instant, Arc<Upstreams>)>,
    /// What is kept shut.
    shut: Option<Shut>,
    /// Where it serves.
    ours: BTreeSet<Peer>,
    /// Beside others, which take what it does not.
    window: Option<Marks>,
    coming: Coming,
    failures: u32,
}

#[derive(Debug)]
struct Shut {
    marks: Marks,
    set: Option<Set>,
    instance: String,
}

#[derive(Debug)]
struct Coming {
    since: Instant,
    /// The one before it died, and nobody had ordered that.
    after_a_death: Option<bool>,
    listens_since: Option<Instant>,
}

const BEAT: Duration = Duration::from_secs(1);
/// A worker that starts is looked at so often, but never for more than a tenth of the time.
const PACE: Duration = Duration::from_millis(50);
const PACE_OF_LOOKS: u32 = 10;
/// Nobody is kept waiting longer than this for one that runs and does not serve.
const STARTED_IN_VAIN: Duration = Duration::from_secs(60);
const RETRY: Duration = Duration::from_millis(100);
/// An nginx that restarts is back before this many tries.
const TRIES: u32 = 3;
const FOR_EVER: Duration = Duration::from_secs(3600);

const COMES: &str = "it does not serve there yet";
const LEAVES: &str = "its supervisor stops it";
const ENDED: &str = "it ended and is replaced";
const DIED: &str = "it died";

// === impl Gate ===

impl Gate {
    pub fn new(
        address: Address,
        owner: Owner,
        wanted: Vec<Wanted>,
        health: Option<Path>,
    ) -> (Self, watch::Receiver<Known>) {
        let known = Known { wish: Wish::Come { may: false }, stage: Stage::Unknown };
        let (known, receiver) = watch::channel(known);
        let gate = Self {
            control: Control::new(address),
            owner,
            wanted,
            health,
            log: Changes::default(),
            known,
            view: None,
            shut: None,
            ours: BTreeSet::new(),
            window: None,
            coming: Coming { since: Instant::now(), after_a_death: None, listens_since: None },
            failures: 0,
        };
        (gate, receiver)
    }

    /// Sees to it that nginx is as it is wished, until nobody wishes any more.
    pub async fn run(mut self, mut wishes: watch::Receiver<Wish>) {
        loop {
            let wish = *wishes.borrow_and_update();
            let pause = tokio::select! {
                biased;
                changed = wishes.changed() => match changed {
                    // What was asked for last may have been done or not: it is asked for anew, on another connection.
                    Ok(()) => {
                        self.control.disconnect();
                        continue;
                    }
                    Err(_) => return,
                },
                done = self.turn(wish) => match done {
                    Ok(pause) => {
                        self.failures = 0;
                        pause
                    }
                    Err(error) => self.failed(wish, &error),
                },
            };
            if let Ok(Err(_)) = time::timeout(pause, wishes.changed()).await {
                return;
            }
        }
    }

    async fn turn(&mut self, wish: Wish) -> Result<Duration, ControlError> {
        match wish {
            Wish::Come { may } => self.come(wish, may).await,
            Wish::Leave => self.leave(wish).await,
            Wish::Follow { was_ordered } => self.follow(wish, was_ordered).await,
        }
    }

    /// An nginx that cannot be told is as one that does not know us: the worker comes and goes as without us.
    fn failed(&mut self, wish: Wish, error: &ControlError) -> Duration {
        self.log.warn(format!("nginx was not told: {error}"));
        self.view = None;
        self.failures = self.failures.saturating_add(1);
        let is_gone =
            matches!(error, ControlError::Absent(_) | ControlError::Dead(_)) || error.is_forbidden();
        if is_gone || self.failures >= TRIES {
            self.is_at(wish, Stage::Alone);
            return BEAT;
        }
        RETRY
    }

    fn is_at(&self, wish: Wish, stage: Stage) {
        let now = Known { wish, stage };
        self.known.send_if_modified(|known| std::mem::replace(known, now) != now);
    }

    // --- it comes

    async fn come(&mut self, wish: Wish, may: bool) -> Result<Duration, ControlError> {
        let upstreams = self.upstreams().await?;
        let left = self.left(&upstreams);
        self.coming.after_a_death.get_or_insert(left.values().any(|&state| state == State::Down));
        let began = Instant::now();
        let look = place::look(&upstreams, &self.wanted).unwrap_or_default();
        let pace = (began.elapsed() * PACE_OF_LOOKS).clamp(PACE, BEAT);
        let named = place::named(&upstreams, &self.wanted);
        if !look.ours.is_empty() {
            self.coming.listens_since.get_or_insert(began);
        }
        self.ours.clone_from(&look.ours);
        let can = self.listens(&look, &named) && may && self.is_settled(&upstreams, &look);
        if can && self.is_well(&look).await {
            self.open(&left, &look).await?;
            self.is_at(wish, Stage::Serving);
            return Ok(FOR_EVER);
        }
        let mut expected: BTreeSet<Peer> =
            if self.wanted.is_empty() { left.into_keys().chain(look.ours).collect() } else { named };
        // Somebody else serves there.
        expected.retain(|peer| !look.taken.contains(peer) && !look.shared.contains(peer));
        if expected.is_empty() {
            return Ok(self.is_nobodys(wish, &look.addresses, pace));
        }
        self.keep_shut(&upstreams.instance, expected).await?;
        self.is_at(wish, Stage::Coming);
        Ok(pace)
    }

    /// nginx has no peer that could be meant.
    fn is_nobodys(&mut self, wish: Wish, addresses: &[String], pace: Duration) -> Duration {
        let no_such_peer = "no upstream with `handoff` has a peer of this host there: its requests are as without us. Add \
                            it to the upstream, or `handoff;` to its block";
        let wanted: Vec<String> = self.wanted.iter().map(ToString::to_string).collect();
        if !wanted.is_empty() {
            self.log.warn(format!("{}: {no_such_peer}", wanted.join(", ")));
        } else if !addresses.is_empty() {
            self.log.warn(format!("the command listens on {}, and {no_such_peer}", addresses.join(", ")));
        } else {
            self.is_at(wish, Stage::Coming);
            return pace;
        }
        self.is_at(wish, Stage::Alone);
        BEAT
    }

    async fn keep_shut(&mut self, instance: &str, peers: BTreeSet<Peer>) -> Result<(), ControlError> {
        let is_so = |shut: &Shut| shut.instance == instance && *shut.marks.peers() == peers;
        if self.shut.as_ref().is_some_and(is_so) {
            return Ok(());
        }
        let mut marks = self.marks(peers, COMES);
        marks.starting().await?;
        self.shut = Some(Shut { marks, set: None, instance: instance.to_owned() });
        Ok(())
    }

    async fn open(&mut self, left: &BTreeMap<Peer, State>, look: &Look) -> Result<(), ControlError> {
        let ours = look.ours.iter().chain(left.keys()).cloned();
        let shut = self.shut.take().map(|shut| shut.marks.peers().clone()).unwrap_or_default();
        let peers: BTreeSet<Peer> = ours.chain(shut).collect();
        self.marks(peers, COMES).lift().await?;
        let names: Vec<String> = look.ours.iter().chain(&look.shared).map(ToString::to_string).collect();
        self.log.info(format!("serves {}", names.join(", ")));
        Ok(())
    }

    /// Wherever the user says, if nginx has a peer there at all; on one of `localhost`'s two addresses is enough.
    fn listens(&self, look: &Look, named: &BTreeSet<Peer>) -> bool {
        let mut open = look.ours.union(&look.shared);
        if self.wanted.is_empty() {
            return open.next().is_some();
        }
        let locals = crate::host::Locals::read(&crate::host::Proc::default());
        let has = |wanted: &Wanted, peers: &BTreeSet<Peer>| peers.iter().any(|peer| wanted.is(peer, &locals));
        let all = look.ours.union(&look.shared).cloned().collect();
        let mut meant = self.wanted.iter().filter(|wanted| has(wanted, named)).peekable();
        meant.peek().is_some() && meant.all(|wanted| has(wanted, &all))
    }

    /// After a death that nobody ordered nothing is known of the next process but that it started.
    fn is_settled(&self, upstreams: &Upstreams, look: &Look) -> bool {
        if self.coming.after_a_death != Some(true) {
            return true;
        }
        let stays =
            self.coming.listens_since.is_some_and(|since| since.elapsed() >= Settle::default().stay_up());
        let mut where_we_are = upstreams
            .upstreams
            .iter()
            .filter(|upstream| look.ours.iter().any(|peer| peer.upstream == upstream.name));
        let somebody_else_serves = where_we_are.all(|upstream| {
            upstream.peers.iter().any(|peer| {
                let is_ours = look.ours.contains(&Peer::new(&upstream.name, &peer.address));
                !is_ours && peer.state == PeerState::Up && !peer.backup
            })
        });
        stays || !somebody_else_serves
    }

    async fn is_well(&mut self, look: &Look) -> bool {
        let Some(path) = &self.health else { return true };
        for peer in &look.ours {
            if let Err(what) = health::check(peer, path).await {
                self.log.info(format!("{path} of {peer} {what}"));
                return false;
            }
        }
        true
    }

    // --- it leaves

    async fn leave(&mut self, wish: Wish) -> Result<Duration, ControlError> {
        let has_left = self.shut.as_ref().map_or(self.window.is_some(), |shut| shut.set.is_some());
        if !has_left && !self.begin_to_leave(wish).await? {
            return Ok(FOR_EVER);
        }
        let renewed = self.renew().await?;
        let Some(shut) = &mut self.shut else {
            self.is_at(wish, Stage::Drained);
            return Ok(BEAT);
        };
        if self.known.borrow().stage == Stage::Drained {
            if shut.instance != renewed {
                shut.set = None;
                return Ok(Duration::ZERO);
            }
            return Ok(BEAT);
        }
        let in_flight = shut.marks.in_flight(BEAT).await?;
        if in_flight > 0 {
            self.is_at(wish, Stage::Leaving { in_flight });
            return Ok(Duration::ZERO);
        }
        let Some(set) = shut.set.take() else { return Ok(Duration::ZERO) };
        match shut.marks.fence(set.clone()).await? {
            Some(fenced) if fenced.in_flight == 0 => {
                shut.set = Some(set);
                self.is_at(wish, Stage::Drained);
                Ok(BEAT)
            }
            // It lapsed, so that nginx may have used it again: from the beginning.
            _ => Ok(Duration::ZERO),
        }
    }

    /// False: nginx has nothing to do with it.
    async fn begin_to_leave(&mut self, wish: Wish) -> Result<bool, ControlError> {
        let upstreams = self.control.upstreams().await?;
        let look = place::look(&upstreams, &self.wanted).unwrap_or_default();
        let left = self.left(&upstreams);
        if !look.shared.is_empty() {
            let mut window = self.marks(look.shared, LEAVES);
            window.change().await?;
            self.window = Some(window);
        }
        // One that does not listen yet goes with the mark that it has.
        let ours: BTreeSet<Peer> = look.ours.into_iter().chain(left.into_keys()).collect();
        self.ours.clone_from(&ours);
        if ours.is_empty() {
            let stage = if self.window.is_some() { Stage::Drained } else { Stage::Alone };
            self.is_at(wish, stage);
            return Ok(self.window.is_some());
        }
        let mut marks = self.marks(ours, LEAVES);
        let set = marks.drain(true).await?;
        let in_flight = set.in_flight;
        self.shut = Some(Shut { marks, set: Some(set), instance: upstreams.instance });
        self.is_at(wish, Stage::Leaving { in_flight });
        Ok(true)
    }

    // --- it is gone

    async fn follow(&mut self, wish: Wish, was_ordered: bool) -> Result<Duration, ControlError> {
        let shut = self.shut.take().map(|shut| shut.marks.peers().clone()).unwrap_or_default();
        let peers: BTreeSet<Peer> = self.ours.iter().cloned().chain(shut).collect();
        if let Some(mut window) = self.window.take() {
            window.lift().await?;
        }
        if was_ordered {
            self.marks(peers, ENDED).starting().await?;
        } else {
            self.marks(peers, DIED).died().await?;
        }
        self.is_at(wish, Stage::Done);
        Ok(FOR_EVER)
    }

    // --- what nginx has

    /// Looked at once a second, with our marks kept alive.
    async fn upstreams(&mut self) -> Result<Arc<Upstreams>, ControlError> {
        if let Some((at, upstreams)) = &self.view
            && at.elapsed() < BEAT
        {
            return Ok(upstreams.clone());
        }
        if self.coming.since.elapsed() < STARTED_IN_VAIN {
            self.renew().await?;
        } else if let Some(shut) = &mut self.shut {
            shut.marks.in_vain().await?;
        }
        let upstreams = Arc::new(self.control.upstreams().await?);
        self.view = Some((Instant::now(), upstreams.clone()));
        Ok(upstreams)
    }

    /// Returns the instance that answers.
    async fn renew(&mut self) -> Result<String, ControlError> {
        let renew = Renew { owner: self.owner.clone(), lease: None, marks: None };
        Ok(self.control.renew(&renew).await?.instance)
    }

    /// What we, or the process before us, have said.
    fn left(&self, upstreams: &Upstreams) -> BTreeMap<Peer, State> {
        let peers = upstreams.upstreams.iter().flat_map(|upstream| {
            upstream.peers.iter().filter_map(|peer| {
                let own = peer.marks.iter().find(|mark| mark.owner == self.owner)?;
                Some((Peer::new(&upstream.name, &peer.address), own.state))
            })
        });
        peers.collect()
    }

    fn marks(&self, peers: BTreeSet<Peer>, reason: &str) -> Marks {
        Marks::new(self.control.address().clone(), self.owner.clone(), peers, reason)
    }
}
