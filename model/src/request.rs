//! A request in nginx: it is given to a worker, fails there, goes on, waits. Who decides is core: [`Failure::verdict`],
//! [`Rest::look`] and [`Visitor::verdict`].
//!
//! ```text
//!  Coming ─► Chosen ─► Admitted ─► Sent ─► Taken ─► Answered
//!    ▲         │           │         │       │
//!    │         ▼ refused   └─────────┴───┬───┘
//!  Choosing ◄──┘                         ▼
//!    ▲  └── nobody ─► Held ──► Choosing  Broken ─► Choosing, Resting or Failed
//! ```
//!
//! What the location says: `proxy_next_upstream error timeout …`, `proxy_next_upstream_tries 2`, no `non_idempotent`.

use crate::{
    Method, Scene, Without,
    world::{Life, State, World},
    zone::{PEERS, Peer},
};
use handoff_core::{
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
    /// Of the marks, when the balancer began with it.
    generation: u8,
    /// Of the marks, when its connection was opened.
    number: u8,
    /// How often a worker began with it.
    pub executed: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum At {
    /// There is no such request in this scene.
    Never,
    Coming,
    Choosing,
    /// It is counted there, and has not looked at the gate.
    Chosen(Peer),
    /// It has looked, and is not counted: only where the wrong order is tried.
    Looked(Peer),
    Admitted(Peer),
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
}

/// Why the visitor got 502.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Why {
    Nobody,
    /// It may have been executed.
    Sent,
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
            generation: 0,
            number: 0,
            executed: 0,
        }
    }

    pub fn is_under_way(&self) -> bool {
        !matches!(self.at, At::Never | At::Coming | At::Answered | At::Failed(_) | At::Lost(_))
    }

    /// nginx counts it there.
    pub fn is_counted_at(&self, peer: Peer) -> bool {
        match self.at {
            At::Chosen(at) | At::Admitted(at) | At::Sent(at, _) | At::Taken(at, _) | At::Broken(at, _) => at == peer,
            At::Lost(at) => at == Some(peer),
            _ => false,
        }
    }

    /// It has been let in, and the worker has not taken it.
    pub fn is_on_its_way_to(&self, peer: Peer) -> bool {
        match self.at {
            At::Chosen(at) | At::Looked(at) | At::Admitted(at) | At::Sent(at, _) => at == peer,
            _ => false,
        }
    }

    fn begins_anew(&mut self, generation: u64) {
        self.tried = [false; PEERS];
        self.was_refused = false;
        self.generation = number(generation);
        self.at = At::Choosing;
    }
}

fn number(generation: u64) -> u8 {
    u8::try_from(generation).unwrap()
}

// === impl World ===

impl World {
    /// Whom the balancer may choose for it.
    pub fn choices(&self, scene: &Scene, request: usize) -> impl Iterator<Item = Peer> {
        let request = self.requests[request];
        let may_choose = matches!(request.at, At::Coming | At::Choosing);
        (0..scene.workers).filter(move |&peer| may_choose && !request.tried[peer])
    }

    pub fn chooses(&mut self, scene: &Scene, request: usize, peer: Peer) {
        let zone = self.zone.seen();
        let request = &mut self.requests[request];
        if request.at == At::Coming {
            request.begins_anew(zone.generation);
        }
        request.at = match scene.is_without(Without::Claim) {
            true if zone.serves(peer) => At::Looked(peer),
            true => return request.is_refused(peer),
            false => At::Chosen(peer),
        };
    }

    pub fn looks(&mut self, request: usize) {
        let (zone, request) = (self.zone.seen(), &mut self.requests[request]);
        match request.at {
            At::Chosen(peer) if zone.serves(peer) => request.at = At::Admitted(peer),
            At::Chosen(peer) => request.is_refused(peer),
            // The wrong order.
            At::Looked(peer) => {
                request.at = At::Admitted(peer);
                self.began_late |= !zone.serves(peer);
            }
            _ => unreachable!(),
        }
    }

    pub fn connects(&mut self, scene: &Scene, request: usize) {
        let (zone, is_of_the_first) = (self.zone.seen(), request.is_multiple_of(2));
        let request = &mut self.requests[request];
        let At::Admitted(peer) = request.at else { unreachable!() };
        let worker = self.workers[peer];
        request.tries += 1;
        // The first nginx worker has an idle connection to the first process of each worker, opened when all began.
        let pooled = is_of_the_first && std::mem::take(&mut self.pooled[peer]);
        let may_reuse = zone.retired_before[peer] <= u64::from(self.began) || scene.is_without(Without::Retire);
        let rides = pooled && may_reuse;
        request.number = if rides { self.began } else { number(zone.generation) };
        request.at = match (rides, worker.state) {
            (true, State::Listening) if worker.life == 0 => At::Sent(peer, 0),
            (true, _) => {
                request.stale += 1;
                At::Broken(peer, Broken::Reset)
            }
            (false, State::Listening) => At::Sent(peer, worker.life),
            (false, _) => At::Broken(peer, Broken::Refused),
        };
    }

    /// The worker closes its port: what it has not taken is reset.
    pub fn resets(&mut self, peer: Peer) {
        for request in &mut self.requests {
            if matches!(request.at, At::Sent(at, _) if at == peer) {
                request.at = At::Broken(peer, Broken::Reset);
            }
        }
    }

    /// The balancer has nobody left.
    pub fn finds_nobody(&mut self, scene: &Scene, request: usize) {
        let waits = self.would_wait(scene, request, self.requests[request].was_sent_on);
        let request = &mut self.requests[request];
        request.was_sent_on = false;
        request.at = if waits { At::Held } else { At::Failed(Why::Nobody) };
    }

    /// Who waits sees somebody, or that nobody is expected any more.
    pub fn is_released(&self) -> bool {
        matches!(self.zone.seen().outlook, Outlook::Serving(_) | Outlook::Nobody)
    }

    pub fn goes_on(&mut self, request: usize) {
        let generation = self.zone.seen().generation;
        let request = &mut self.requests[request];
        request.was_sent_on = true;
        request.begins_anew(generation);
    }

    /// nginx has noticed that the connection is refused or broken.
    pub fn fails(&mut self, scene: &Scene, request: usize) {
        let At::Broken(peer, broken) = self.requests[request].at else { unreachable!() };
        self.requests[request].tried[peer] = true;
        self.requests[request].broke += u8::from(broken == Broken::Reset);
        let verdict = self.failure(scene, request, peer, broken).verdict(
            true,
            || self.around(scene, request, peer, !scene.is_without(Without::Hold)),
            || true,
        );
        self.follows(request, peer, verdict);
    }

    /// What becomes of one that waits for the word that its worker is gone.
    pub fn look_again(&self, scene: &Scene, request: usize, peer: Peer, is_over: bool) -> Option<Verdict> {
        match Rest::ForNews.look(is_over, || self.around(scene, request, peer, false), || true) {
            Look::Stays => None,
            Look::Ends(verdict) => Some(verdict),
        }
    }

    pub fn settles(&mut self, request: usize, verdict: Verdict) {
        let generation = self.zone.seen().generation;
        let request = &mut self.requests[request];
        match verdict {
            Verdict::Granted(granted) => {
                request.added += u8::from(granted == Granted::Replaced);
                request.begins_anew(generation);
            }
            _ => request.at = At::Failed(Why::of(verdict)),
        }
    }

    fn follows(&mut self, request: usize, peer: Peer, verdict: Verdict) {
        match verdict {
            Verdict::Granted(Granted::Replaced) => self.settles(request, verdict),
            Verdict::Granted(_) => self.requests[request].at = At::Choosing,
            Verdict::Rests(_) => self.requests[request].at = At::Resting(peer),
            Verdict::Refused(_) => self.requests[request].at = At::Failed(Why::of(verdict)),
        }
    }

    fn failure(&self, scene: &Scene, at: usize, peer: Peer, broken: Broken) -> Failure {
        let request = &self.requests[at];
        let zone = self.zone.seen();
        let others = || (0..scene.workers).filter(|&other| other != peer);
        let is_at_the_only_one = scene.workers > 1 && !others().any(|other| zone.serves(other));
        let untried = request.tried.iter().take(scene.workers).filter(|tried| !**tried).count();
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
            tries_left: if is_at_the_only_one { 0 } else { tries_left },
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
            is_replaced: zone.retired_before[peer] > self.requests[request].number.into(),
            may_rest,
        }
    }

    fn would_wait(&self, scene: &Scene, request: usize, was_sent_on: bool) -> bool {
        let (zone, request) = (self.zone.seen(), &self.requests[request]);
        let visitor = Visitor {
            was_sent_on,
            was_refused: request.was_refused,
            has_news: zone.generation != u64::from(request.generation),
            tried: request.tries.into(),
            broke: request.broke.into(),
            is_background: false,
            has_stale: false,
        };
        !scene.is_without(Without::Hold) && visitor.verdict(zone.outlook) == Waits::Wait
    }
}

impl Request {
    fn is_refused(&mut self, peer: Peer) {
        self.tried[peer] = true;
        self.was_refused = true;
        self.at = At::Choosing;
    }
}

// === impl Why ===

impl Why {
    fn of(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Refused(Refused::Sent) => Self::Sent,
            _ => Self::Other,
        }
    }
}
