//! What may happen next, and how it reads.

use crate::{Fault, zone::Peer};
use std::fmt;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Chooses(usize, Peer),
    ClaimsLate(usize, Peer),
    IsTaken(usize),
    IsAnswered(usize),
    Fails(usize),
    GoesOn(usize),
    RestEnds(usize, bool),
    NoticesClose,
    Announces(Peer),
    Signals(Peer),
    Ends(Peer),
    Starts(Peer),
    Listens(Peer),
    SidecarHears,
    SidecarLearnsOfDeath(Peer),
    SidecarLooks(Peer),
    SidecarSeesNginx,
    StaysUp(Peer),
    SidecarIsBack,
    Drains(Peer),
    MarkArrives(Peer),
    Fences(Peer),
    AsksPm2(Peer),
    SaysStarting(Peer),
    Lifts(Peer),
    SeesUp(Peer),
    RolloutThaws,
    TimePasses,
    Happens(Fault),
    NothingIsLeft,
}

// === impl Step ===

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Chooses(request, peer) => {
                write!(f, "request {request}: the balancer chooses worker {peer}")
            }
            Self::ClaimsLate(request, peer) => {
                write!(f, "request {request} is counted at worker {peer}, and goes there")
            }
            Self::IsTaken(request) => write!(f, "request {request}: the worker begins with it"),
            Self::IsAnswered(request) => write!(f, "request {request} is answered"),
            Self::Fails(request) => write!(f, "request {request}: nginx sees that its connection broke"),
            Self::GoesOn(request) => write!(f, "request {request} waits no more"),
            Self::RestEnds(request, false) => write!(f, "request {request}: there is news of its worker"),
            Self::RestEnds(request, true) => write!(f, "request {request}: there was no news of its worker"),
            Self::NoticesClose => write!(f, "nginx sees that its idle connection to worker 0 was closed"),
            Self::Announces(peer) => write!(f, "PM2 says that it stops worker {peer}"),
            Self::Signals(peer) => write!(f, "PM2 signals worker {peer}, which closes its port"),
            Self::Ends(peer) => write!(f, "worker {peer} ends"),
            Self::Starts(peer) => write!(f, "PM2 starts worker {peer}"),
            Self::Listens(peer) => write!(f, "worker {peer} listens, and says `ready`"),
            Self::SidecarHears => write!(f, "the sidecar hears what PM2 said"),
            Self::SidecarLearnsOfDeath(peer) => write!(f, "the sidecar learns that worker {peer} has ended"),
            Self::SidecarLooks(peer) => write!(f, "the sidecar looks at worker {peer}"),
            Self::SidecarSeesNginx => write!(f, "the sidecar reads what nginx has"),
            Self::StaysUp(peer) => {
                write!(f, "worker {peer} has stayed up for as long as the sidecar wants after a death")
            }
            Self::SidecarIsBack => write!(f, "the sidecar is back"),
            Self::Drains(peer) => write!(f, "the roll-out drains worker {peer}"),
            Self::MarkArrives(peer) => write!(f, "the mark on worker {peer} reaches nginx"),
            Self::Fences(peer) => {
                write!(f, "the roll-out finds nothing in flight at worker {peer}, and asks for the fence")
            }
            Self::AsksPm2(peer) => write!(f, "the roll-out asks PM2 to replace worker {peer}"),
            Self::SaysStarting(peer) => write!(f, "the roll-out says that worker {peer} is starting"),
            Self::Lifts(peer) => write!(f, "the roll-out lifts its mark from worker {peer}"),
            Self::SeesUp(peer) => write!(f, "the roll-out sees worker {peer} up"),
            Self::RolloutThaws => write!(f, "the roll-out goes on"),
            Self::TimePasses => write!(f, "seconds pass, and a lease with them"),
            Self::Happens(fault) => write!(f, "{fault}"),
            Self::NothingIsLeft => write!(f, "nothing is left to happen"),
        }
    }
}
