//! Every interleaving of claims, releases and drains, on the admission that is shipped.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p handoff-core --test loom --release` must pass; with `--cfg look_before_claim` as
//! well the acknowledgement's tests must fail. A process has a row of its own, so each thread counts in its own cell.

#![cfg(loom)]

use handoff_core::admission::{self, Admission, Gate, InFlight};
use handoff_core::pause::Until;
use handoff_wire::State;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use loom::thread::{self, JoinHandle};

/// By the clock of all processes.
const NOW: u64 = 1;

/// One peer, as two nginx processes see it.
#[derive(Default)]
struct Peer {
    gate: Gate,
    pause: Until,
    cells: [InFlight; 2],
    begun: AtomicU32,
    ended: AtomicU32,
    /// The worker behind the peer, after somebody believed that it had nothing left to do.
    stopped: AtomicBool,
}

impl Peer {
    /// Every request here is fit for a trial.
    fn claim(&self, process: usize) -> bool {
        let is_paused = || self.pause.holds(|| NOW);
        let admission = admission::claim(&self.gate, &self.cells[process], is_paused, || true);
        matches!(admission, Admission::Admitted | Admission::OnTrial)
    }

    /// What an acknowledgement says.
    fn settle(&self) -> u32 {
        self.cells.iter().map(InFlight::settle).sum()
    }

    fn drain(&self) -> u32 {
        self.gate.set(State::Draining);
        self.settle()
    }

    fn pause(&self) -> u32 {
        self.pause.set(NOW + 1);
        self.settle()
    }

    fn is_drained(&self) -> bool {
        !self.gate.state().begins_requests() && self.settle() == 0
    }

    /// A request from its claim to its release: if the worker is stopped meanwhile, a user notices.
    fn serve(&self, process: usize) {
        if self.claim(process) {
            self.begun.fetch_add(1, Relaxed);
            assert!(!self.stopped.load(Relaxed), "begun on a worker that was believed to be drained");
            self.ended.fetch_add(1, Relaxed);
            self.cells[process].release();
        }
    }

    fn stop(&self) {
        assert_eq!(self.begun.load(Relaxed), self.ended.load(Relaxed), "drained with a request in flight");
        self.stopped.store(true, Relaxed);
    }
}

fn in_thread<T: 'static>(peer: &Arc<Peer>, run: impl FnOnce(&Peer) -> T + 'static) -> JoinHandle<T> {
    let peer = Arc::clone(peer);
    thread::spawn(move || run(&peer))
}

fn two_claims(peer: &Arc<Peer>) -> [JoinHandle<bool>; 2] {
    [0, 1].map(|process| in_thread(peer, move |peer| peer.claim(process)))
}

fn admitted(claims: [JoinHandle<bool>; 2]) -> u32 {
    claims.into_iter().map(|claim| u32::from(claim.join().unwrap())).sum()
}

#[test]
fn an_acknowledged_drain_has_counted_whoever_was_admitted() {
    loom::model(|| {
        let peer = Arc::new(Peer::default());
        let claims = two_claims(&peer);
        let acknowledged = peer.drain();
        let admitted = admitted(claims);
        assert!(admitted <= acknowledged, "{admitted} admitted, {acknowledged} acknowledged");
        assert_eq!(peer.settle(), admitted, "whoever is refused leaves no trace");
    });
}

#[test]
fn a_second_drain_counts_whoever_came_in_between() {
    loom::model(|| {
        let peer = Arc::new(Peer::default());
        let claims = two_claims(&peer);
        // What the first drain counted is nobody's concern here, and doubles the interleavings many times.
        peer.gate.set(State::Draining);
        peer.gate.set(State::Up);
        let acknowledged = peer.drain();
        let admitted = admitted(claims);
        assert!(admitted <= acknowledged, "{admitted} admitted, {acknowledged} acknowledged");
    });
}

#[test]
fn a_claim_after_the_acknowledgement_is_refused() {
    loom::model(|| {
        let peer = Arc::new(Peer::default());
        let early = in_thread(&peer, |peer| peer.claim(0));
        let acknowledged = peer.drain();
        // The acknowledgement travels, and whoever has heard of it claims.
        let late = in_thread(&peer, |peer| peer.claim(1));
        assert!(!late.join().unwrap());
        assert!(u32::from(early.join().unwrap()) <= acknowledged);
    });
}

#[test]
fn an_acknowledged_pause_has_counted_whoever_was_admitted() {
    loom::model(|| {
        let peer = Arc::new(Peer::default());
        let claims = two_claims(&peer);
        let acknowledged = peer.pause();
        let admitted = admitted(claims);
        assert!(admitted <= acknowledged, "{admitted} admitted, {acknowledged} acknowledged");
        assert_eq!(peer.settle(), admitted, "whoever is refused leaves no trace");
    });
}

#[test]
fn a_claim_after_the_acknowledgement_of_a_pause_is_refused() {
    loom::model(|| {
        let peer = Arc::new(Peer::default());
        let early = in_thread(&peer, |peer| peer.claim(0));
        let acknowledged = peer.pause();
        // The acknowledgement travels, and whoever has heard of it claims.
        let late = in_thread(&peer, |peer| peer.claim(1));
        assert!(!late.join().unwrap());
        assert!(u32::from(early.join().unwrap()) <= acknowledged);
    });
}

#[test]
fn the_end_of_a_trial_has_counted_whoever_was_admitted_to_it() {
    loom::model(|| {
        let peer = Arc::new(Peer::default());
        peer.gate.set(State::Trial);
        let claims = two_claims(&peer);
        let acknowledged = peer.drain();
        let admitted = admitted(claims);
        assert!(admitted <= acknowledged, "{admitted} admitted, {acknowledged} acknowledged");
    });
}

#[test]
fn once_a_trial_is_acknowledged_nobody_else_is_admitted() {
    loom::model(|| {
        let peer = Arc::new(Peer::default());
        let claim = |process| {
            in_thread(&peer, move |peer| {
                admission::claim(&peer.gate, &peer.cells[process], || false, || false)
            })
        };
        let early = claim(0);
        peer.gate.set(State::Trial);
        let acknowledged = peer.settle();
        // The acknowledgement travels, and whoever has heard of it claims.
        let late = claim(1);
        assert_eq!(late.join().unwrap(), Admission::Refused(State::Trial));
        let admitted = u32::from(early.join().unwrap() == Admission::Admitted);
        assert!(admitted <= acknowledged, "{admitted} admitted, {acknowledged} acknowledged");
    });
}

#[test]
fn whoever_drains_and_sees_nobody_left_may_stop_the_worker() {
    loom::model(|| {
        let peer = Arc::new(Peer::default());
        let requests = [0, 1].map(|process| in_thread(&peer, move |peer| peer.serve(process)));
        peer.gate.set(State::Draining);
        if peer.is_drained() || peer.is_drained() {
            peer.stop();
        }
        requests.into_iter().for_each(|request| request.join().unwrap());
        assert!(peer.is_drained(), "nobody is left behind");
    });
}

#[test]
fn whoever_waits_for_a_drain_of_another_process_may_stop_the_worker() {
    loom::model(|| {
        let peer = Arc::new(Peer::default());
        let request = in_thread(&peer, |peer| peer.serve(0));
        let drain = in_thread(&peer, |peer| _ = peer.gate.set(State::Draining));
        if peer.is_drained() {
            peer.stop();
        }
        request.join().unwrap();
        drain.join().unwrap();
    });
}

/// A slot of a peer that was removed is given to another one when nothing is in flight there: whoever was admitted reads one
/// address, and not half of each.
#[test]
fn a_slot_changes_hands_under_nobody() {
    loom::model(|| {
        let peer = Arc::new(Peer::default());
        let address = Arc::new([AtomicU32::new(1), AtomicU32::new(1)]);
        let serving = {
            let (peer, address) = (Arc::clone(&peer), Arc::clone(&address));
            thread::spawn(move || {
                if peer.claim(0) {
                    let [high, low] = [&address[0], &address[1]].map(|half| half.load(Relaxed));
                    assert_eq!(high, low, "half of one peer and half of another");
                    peer.cells[0].release();
                }
            })
        };
        // Removed, and if that is acknowledged with nothing in flight, let to the next.
        peer.gate.set(State::Down);
        if peer.settle() == 0 {
            address.iter().for_each(|half| half.store(2, Relaxed));
            peer.gate.set(State::Up);
        }
        serving.join().unwrap();
    });
}
