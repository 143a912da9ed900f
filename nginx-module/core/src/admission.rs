//! Claim, then look.
//!
//! A request is counted in its process's ledger *before* the gate is read; a drain closes the gate *before* the ledger is
//! read. Whatever the timing, one of the two sees the other: either the request finds the gate closed and leaves, or the
//! drain's acknowledgement counts it. In the other order a request that looked just before the drain could be counted
//! just after the acknowledgement: it would be served by a worker that everybody believes to be drained.
//!
//! The proof needs no `SeqCst`: [`InFlight::settle`] reads by a read-modify-write, so the claim and the reading have one
//! order. If the reading came first, the claim synchronizes with it and sees the closed gate. loom walks through it
//! (`tests/loom.rs`), and finds the hole at once when the two lines below change places (`--cfg look_before_claim`).

use crate::sync::{AtomicU32, Ordering};
use handoff_wire::State;

/// The effective state of a peer, as one word that the request path reads. Zero is `up`.
#[derive(Debug, Default)]
pub struct Gate(AtomicU32);

/// Of nearly all peers, nearly always.
const UP: u32 = 0;

/// How many requests one nginx process has with one peer.
#[derive(Debug, Default)]
pub struct InFlight(AtomicU32);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    Admitted,
    /// By a peer on trial: its failure is tried elsewhere.
    OnTrial,
    Refused(State),
    /// By the whole upstream.
    Paused,
}

/// Asks to begin a request. Whoever is admitted owes one [`InFlight::release`].
///
/// `is_paused` looks at the upstream. Only where a peer is on trial is it asked whether the request is fit for that.
#[cfg(not(look_before_claim))]
#[inline]
pub fn claim(
    gate: &Gate,
    in_flight: &InFlight,
    is_paused: impl FnOnce() -> bool,
    is_fit: impl FnOnce() -> bool,
) -> Admission {
    in_flight.claim();
    if is_paused() {
        in_flight.release();
        return Admission::Paused;
    }
    match gate.state() {
        State::Up | State::Changing => Admission::Admitted,
        State::Trial if is_fit() => Admission::OnTrial,
        state => {
            in_flight.release();
            Admission::Refused(state)
        }
    }
}

/// The mistake, kept so that the tests can prove that they would see it.
#[cfg(look_before_claim)]
pub fn claim(
    gate: &Gate,
    in_flight: &InFlight,
    is_paused: impl FnOnce() -> bool,
    is_fit: impl FnOnce() -> bool,
) -> Admission {
    if is_paused() {
        return Admission::Paused;
    }
    let admission = match gate.state() {
        State::Up | State::Changing => Admission::Admitted,
        State::Trial if is_fit() => Admission::OnTrial,
        state => return Admission::Refused(state),
    };
    #[cfg(not(loom))]
    std::thread::sleep(std::time::Duration::from_millis(2));
    in_flight.claim();
    admission
}

// === impl Gate ===

impl Gate {
    #[inline]
    pub fn state(&self) -> State {
        match self.0.load(Ordering::Acquire) {
            UP => State::Up,
            code => decode(code).unwrap_or(State::Down),
        }
    }

    /// Opens or closes the gate and answers what it was.
    pub fn set(&self, state: State) -> State {
        decode(self.0.swap(encode(state), Ordering::AcqRel)).unwrap_or(State::Down)
    }
}

// === impl InFlight ===

impl InFlight {
    #[inline]
    fn claim(&self) {
        self.0.fetch_add(1, Ordering::AcqRel);
    }

    #[inline]
    pub fn release(&self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }

    /// A glance, for views.
    pub fn get(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }

    /// The reading that an acknowledgement rests on: every claim is either in it, or sees the gate as it is now.
    pub fn settle(&self) -> u32 {
        self.0.fetch_add(0, Ordering::AcqRel)
    }

    /// For a process that takes over the row of a dead one.
    pub fn reset(&self) {
        self.0.store(0, Ordering::Release);
    }
}

pub(crate) fn encode(state: State) -> u32 {
    match state {
        State::Up => UP,
        State::Checking => 1,
        State::Unhealthy => 2,
        State::Draining => 3,
        State::Down => 4,
        State::Trial => 5,
        State::Changing => 6,
    }
}

pub(crate) fn decode(code: u32) -> Option<State> {
    State::ALL.into_iter().find(|&state| encode(state) == code)
}

#[cfg(all(test, not(loom), not(look_before_claim)))]
mod tests {
    use super::*;

    #[test]
    fn an_open_gate_admits_and_counts() {
        let (gate, in_flight) = (Gate::default(), InFlight::default());
        assert_eq!(
            claim(&gate, &in_flight, || false, || unreachable!("nobody is on trial")),
            Admission::Admitted
        );
        assert_eq!(in_flight.settle(), 1);
        in_flight.release();
        assert_eq!(in_flight.get(), 0);
    }

    #[test]
    fn an_open_gate_of_a_paused_upstream_refuses_and_counts_nothing() {
        let (gate, in_flight) = (Gate::default(), InFlight::default());
        assert_eq!(claim(&gate, &in_flight, || true, || true), Admission::Paused);
        assert_eq!(in_flight.settle(), 0);
    }

    #[test]
    fn a_peer_on_trial_admits_what_is_fit_and_nothing_else() {
        let (gate, in_flight) = (Gate::default(), InFlight::default());
        gate.set(State::Trial);
        assert_eq!(claim(&gate, &in_flight, || false, || false), Admission::Refused(State::Trial));
        assert_eq!(in_flight.get(), 0);
        assert_eq!(claim(&gate, &in_flight, || false, || true), Admission::OnTrial);
        assert_eq!(in_flight.settle(), 1);
    }

    #[test]
    fn every_other_state_refuses_and_counts_nothing() {
        let (gate, in_flight) = (Gate::default(), InFlight::default());
        for state in [State::Checking, State::Unhealthy, State::Draining, State::Down] {
            gate.set(state);
            assert_eq!(claim(&gate, &in_flight, || false, || true), Admission::Refused(state));
            assert_eq!(in_flight.get(), 0);
        }
    }

    #[test]
    fn a_state_survives_its_code() {
        for state in State::ALL {
            assert_eq!(decode(encode(state)), Some(state));
        }
        assert_eq!(decode(99), None);
    }
}
