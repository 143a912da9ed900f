//! A request in nginx: it is given to a worker, fails there, goes on, waits. Who decides is core: [`Failure::verdict`],
//! [`Rest::look`] and [`Visitor::verdict`].
//!
//! ```text
//!  Coming ──► Sent ──► Taken ──► Answered
//!    │ nobody  │         │
//!    ▼         └────┬────┘
//!   Held            ▼
//!    │            Broken ──► Resting ──► Failed
//!    ▼              │           │
//!   Anew ◄──────────┴───────────┘     (or to the next worker at once)
//! ```
//!
//! From the choice to the written request nginx does all in one call, and so does the model: that the order of claim and look
//! is the right one is what loom shows (`make loom`). What the location says: `proxy_next_upstream error timeout …`, `proxy_next_upstream_tries 2`, no `non_idempotent`.

use crate::{
    Method, Scene, Without,
    world::{Life, State, World},
    zone::{Command, PEERS, Peer},
};
use handoff_core::{
    Admission, Gate, InFlight, admission,
    hold::{Outlook, Verdict as Waits, Visitor},
    retry::{Around, Cause, Failure, Granted, Look, Refused, Rest, Sent, Verdict},
};

/// How many attempts the location allows for.
const TRIES: u8 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Request {
    pub at: At,
    /// Whom the balancer will not choose again for it.
    tried: [bool; PEERS],
    /// How many workers it was given to.
    tries: u8,
    /// Those attempts that broke over a connection of the keepalive cache: nginx does not count them.
    stale: u8,
    broke: u8,
    added: u8,
    was_refused: bool,
    was_sent_on: bool,
    /// Marks have changed since the balancer began with it.
    pub has_news: bool,
    /// Another worker is behind its peer since it has its connection.
    pub is_replaced: bool,
    /// How often a worker began with it.
    pub executed: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum At {
    /// There is no such request in this scene.
    Never,
    Coming,
    /// The balancer begins with it once more.
    Anew,
    /// It has looked at the gate, and is not counted there: only where the wrong order is tried.
    Looked(Peer),
    /// All of it is written; the worker has not taken it.
    Sent(Peer, Life),
    Taken(Peer, Life),
    Broken(Peer, Broken),
    Held,
    Resting(Peer),
    Answered,
    Failed(Why),
    /// With the nginx process that had it; and is counted still: only where that is tried.
    Lost(Option<Peer>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Broken {
    Refused,
    Reset,
    /// Over a connection of the keepalive cache, which the worker had closed.
    Stale,
}

/// Why the visitor got 502.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Why {
    Nobody,
    /// It may have been executed.
    Sent,
    /// It was tried as often as the location says, or with every worker.
    Tries,
    /// A mark of a sidecar that is silent keeps it from a worker that serves.
    HeldBack,
    /// The same, and its connection broke with some of it sent: that does not say that nobody is there.
    BrokeAndHeldBack,
    /// While it rested another worker came up, to which it had not been given.
    Overlooked,
    Other,
}

// === impl Request ===

impl Request {
    pub fn new(at: At) -> Self {
        Self {
            at,
            tried: [false; PEERS],
            tries: 0,
            stale: 0,
            broke: 0,
            added: 0,
            was_refused: false,
            was_sent_on: false,
            has_news: false,
            is_replaced: false,
            executed: 0,
        }
    }

    pub fn is_under_way(&self) -> bool {
        !matches!(self.at, At::Never | At::Coming | At::Answered | At::Failed(_) | At::Lost(_))
    }

    /// nginx counts it there.
    pub fn is_counted_at(&self, peer: Peer) -> bool {
        match self.at {
            At::Sent(at, _) | At::Taken(at, _) | At::Broken(at, _) => at == peer,
            At::Lost(at) => at == Some(peer),
            _ => false,
        }
    }

    /// All of it is written, and the worker has not taken it.
    pub fn is_on_its_way_to(&self, peer: Peer) -> bool {
        matches!(self.at, At::Sent(at, _) | At::Looked(at) if at == peer)
    }

    /// It is over, and nothing of it is remembered.
    pub fn ends(&mut self, at: At) {
        *self = Self { executed: self.executed, ..Self::new(at) };
    }

    /// Where its peer is, and it has a connection there.
    pub fn connected(&self) -> Option<Peer> {
        match self.at {
            At::Sent(peer, _) | At::Taken(peer, _) | At::Broken(peer, _) | At::Resting(peer) => Some(peer),
            _ => None,
        }
    }
}

fn admission(state: handoff_wire::State) -> Admission {
    let gate = Gate::default();
    gate.set(state);
    admission::claim(&gate, &InFlight::default(), || false, || false)
}

// === impl World ===

impl World {
    /// Whom the balancer may choose first.
    pub fn choices(&self, scene: &Scene, request: usize) -> impl Iterator<Item = Peer> {
        let begins = matches!(self.requests[request].at, At::Coming | At::Anew);
        (0..scene.workers).filter(move |_| begins)
    }

    /// Whom it would choose else.
    fn untried(&self, scene: &Scene, request: usize) -> impl Iterator<Item = Peer> {
        let tried = self.requests[request].tried;
        (0..scene.workers).filter(move |&peer| !tried[peer])
    }

    /// The balancer chooses this one first; the request claims its place, looks, and goes or is refused. Who is refused is given
    /// to whoever is left, in the same call.
    pub fn chooses(&mut self, scene: &Scene, at: usize, first: Peer) {
        let zone = self.zone.seen();
        let request = &mut self.requests[at];
        if matches!(request.at, At::Coming | At::Anew) {
            (request.tried, request.was_refused, request.has_news) = ([false; PEERS], false, false);
        }
        for peer in (first..scene.workers).chain(0..first) {
            let request = &mut self.requests[at];
            if request.tried[peer] {
                continue;
            }
            match admission(zone.gates[peer]) {
                Admission::Admitted if scene.is_without(Without::Claim) => {
                    return request.at = At::Looked(peer);
                }
                Admission::Admitted => return self.connects(scene, at, peer),
                _ => (request.tried[peer], request.was_refused) = (true, true),
            }
        }
        self.finds_nobody(scene, at);
    }

    /// Only where the wrong order is tried.
    pub fn claims_late(&mut self, scene: &Scene, request: usize, peer: Peer) {
        self.began_late |= !self.zone.seen().serves(peer);
        self.connects(scene, request, peer);
    }

    fn connects(&mut self, scene: &Scene, request: usize, peer: Peer) {
        let worker = self.workers[peer];
        let chosen = if (request, peer) == (0, 0) { self.pooled.take() } else { None };
        let rides = chosen.is_some_and(|is_retired| !is_retired || scene.is_without(Without::Retire));
        let request = &mut self.requests[request];
        request.tries += 1;
        request.was_sent_on = false;
        request.is_replaced = rides && chosen == Some(true);
        request.at = match (rides, worker.state) {
            (true, State::Listening) if worker.life == 0 => At::Sent(peer, 0),
            (true, _) => {
                request.stale += 1;
                At::Broken(peer, Broken::Stale)
            }
            (false, State::Listening) => At::Sent(peer, worker.life),
            (false, _) => At::Broken(peer, Broken::Refused),
        };
    }

    /// The worker closes its port: what it has not taken is reset. If it is killed, so is what it was working on.
    pub fn resets(&mut self, peer: Peer, is_killed: bool) {
        for request in &mut self.requests {
            match request.at {
                At::Sent(at, _) if at == peer => request.at = At::Broken(peer, Broken::Reset),
                At::Taken(at, _) if at == peer && is_killed => request.at = At::Broken(peer, Broken::Reset),
                _ => {}
            }
        }
    }

    /// The balancer has nobody left.
    pub(crate) fn finds_nobody(&mut self, scene: &Scene, request: usize) {
        let waits = self.would_wait(scene, request, self.requests[request].was_sent_on);
        let why = match usize::from(self.requests[request].tries) {
            _ if self.is_held_back() => self.held_back(request),
            tries if tries >= scene.workers => Why::Tries,
            _ => Why::Nobody,
        };
        let request = &mut self.requests[request];
        request.was_sent_on = false;
        if waits {
            request.at = At::Held;
        } else {
            request.ends(At::Failed(why));
        }
    }

    /// Who waits sees somebody, or that nobody is expected any more.
    pub fn is_released(&self) -> bool {
        matches!(self.zone.seen().outlook, Outlook::Serving(_) | Outlook::Nobody)
    }

    pub fn goes_on(&mut self, request: usize) {
        self.requests[request].was_sent_on = true;
        self.requests[request].at = At::Anew;
    }

    /// nginx has noticed that the connection is refused or broken.
    pub fn fails(&mut self, scene: &Scene, request: usize) {
        let At::Broken(peer, broken) = self.requests[request].at else { unreachable!() };
        self.requests[request].tried[peer] = true;
        // What was in the cache when it last broke says nothing of another worker.
        let is_another = match broken {
            Broken::Refused => false,
            Broken::Reset => true,
            Broken::Stale => self.requests[request].broke == 0,
        };
        self.requests[request].broke += u8::from(is_another);
        let failure = self.failure(scene, request, peer, broken);
        if failure.met_nobody() && !scene.is_without(Without::Absence) {
            self.tell(Command::Misses(peer));
        }
        let verdict = failure.verdict(
            true,
            || self.around(scene, request, peer, !scene.is_without(Without::Hold)),
            || true,
        );
        self.follows(scene, request, peer, verdict);
    }

    /// What becomes of one that waits for the word that its worker is gone.
    pub fn look_again(&self, scene: &Scene, request: usize, peer: Peer, is_over: bool) -> Option<Verdict> {
        match Rest::ForNews.look(is_over, || self.around(scene, request, peer, false), || true) {
            Look::Stays => None,
            Look::Ends(verdict) => Some(verdict),
        }
    }

    pub fn settles(&mut self, scene: &Scene, request: usize, verdict: Verdict) {
        let why = match verdict {
            Verdict::Refused(Refused::Sent) => Why::Sent,
            _ if self.is_held_back() => self.held_back(request),
            _ if self.is_overlooked(request) => Why::Overlooked,
            _ if self.untried(scene, request).next().is_none() && scene.workers > 1 => Why::Tries,
            _ => Why::of(verdict),
        };
        let request = &mut self.requests[request];
        match verdict {
            Verdict::Granted(granted) => {
                request.added += u8::from(granted == Granted::Replaced);
                request.at = At::Anew;
            }
            _ => request.ends(At::Failed(why)),
        }
    }

    fn held_back(&self, request: usize) -> Why {
        if self.requests[request].broke == 0 { Why::HeldBack } else { Why::BrokeAndHeldBack }
    }

    /// Somebody serves to whom it has not been given.
    fn is_overlooked(&self, request: usize) -> bool {
        let (zone, request) = (self.zone.seen(), &self.requests[request]);
        matches!(request.at, At::Resting(_))
            && (0..PEERS).any(|peer| zone.serves(peer) && !request.tried[peer])
    }

    fn follows(&mut self, scene: &Scene, request: usize, peer: Peer, verdict: Verdict) {
        match verdict {
            Verdict::Granted(Granted::Replaced) => self.settles(scene, request, verdict),
            Verdict::Granted(_) => {
                let other = self.untried(scene, request).next();
                match other {
                    Some(other) => self.chooses(scene, request, other),
                    None => self.finds_nobody(scene, request),
                }
            }
            Verdict::Rests(_) => self.requests[request].at = At::Resting(peer),
            Verdict::Refused(_) => self.settles(scene, request, verdict),
        }
    }

    fn failure(&self, scene: &Scene, at: usize, peer: Peer, broken: Broken) -> Failure {
        let request = &self.requests[at];
        let zone = self.zone.seen();
        let others = || (0..scene.workers).filter(|&other| other != peer);
        let is_at_the_only_one = scene.workers > 1 && !others().any(|other| zone.serves(other));
        let untried = self.untried(scene, at).count();
        let spent = request.tries - request.stale;
        let tries_left = untried.min(TRIES.saturating_sub(spent).into());
        Failure {
            cause: Cause::Connection,
            sent: if broken == Broken::Refused { Sent::Nothing } else { Sent::Something },
            may_change: scene.requests[at] == Method::Post,
            is_unbuffered: false,
            is_reason: !scene.is_without(Without::Next),
            may_repeat_changes: scene.is_without(Without::Unsent),
            time_left: None,
            tries_left: if is_at_the_only_one {
                0
            } else {
                tries_left + usize::from(broken == Broken::Stale)
            },
            may_try: spent < TRIES,
            broke: request.broke.into(),
            added: request.added.into(),
            retry_after: None,
        }
    }

    fn around(&self, scene: &Scene, request: usize, peer: Peer, may_rest: bool) -> Around {
        let zone = self.zone.seen();
        let others = (0..scene.workers).filter(|&other| other != peer && zone.serves(other)).count();
        Around {
            would_wait: self.would_wait(scene, request, false),
            is_alone: zone.serves(peer) && others == 0,
            is_replaced: self.requests[request].is_replaced,
            may_rest,
        }
    }

    fn would_wait(&self, scene: &Scene, request: usize, was_sent_on: bool) -> bool {
        let (zone, request) = (self.zone.seen(), &self.requests[request]);
        let visitor = Visitor {
            was_sent_on,
            was_refused: request.was_refused,
            has_news: request.has_news,
            tried: request.tries.into(),
            broke: request.broke.into(),
            is_background: false,
            has_stale: false,
        };
        !scene.is_without(Without::Hold) && visitor.verdict(zone.outlook) == Waits::Wait
    }
}

// === impl Why ===

impl Why {
    fn of(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Refused(Refused::Tries | Refused::Broke) => Self::Tries,
            _ => Self::Other,
        }
    }
}
