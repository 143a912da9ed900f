//! Which request may meet a peer on trial: one that can be tried elsewhere without harm if the peer fails it.

/// What is known of a request for which the balancer chose a peer on trial.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    /// GET or HEAD: whoever asks twice changes nothing twice.
    pub is_safe: bool,
    /// It would become a connection that lives for long, and ends with its worker.
    pub upgrades: bool,
    /// Its body goes to the peer as it arrives, and is not kept for another.
    pub is_unbuffered: bool,
    /// The configuration lets nginx try the next peer at all, and there is time left for it.
    pub may_go_on: bool,
    /// How many attempts nginx still grants it, this one among them.
    pub tries: usize,
    /// How many peers it was given to before.
    pub tried: usize,
    /// How many other peers could serve it now.
    pub others: usize,
}

// === impl Candidate ===

impl Candidate {
    pub fn is_fit(&self) -> bool {
        // Whichever of the others it was given to before, one is left.
        let can_be_served_elsewhere = self.tries > 1 && self.others > self.tried;
        self.is_safe && !self.upgrades && !self.is_unbuffered && self.may_go_on && can_be_served_elsewhere
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const FIT: Candidate = Candidate {
        is_safe: true,
        upgrades: false,
        is_unbuffered: false,
        may_go_on: true,
        tries: 2,
        tried: 0,
        others: 1,
    };

    #[test]
    fn a_request_that_one_other_peer_could_serve_is_fit() {
        assert!(FIT.is_fit());
        assert!(Candidate { tries: 9, tried: 1, others: 2, ..FIT }.is_fit());
    }

    #[test]
    fn whatever_cannot_be_repeated_elsewhere_without_harm_is_not() {
        for (why, candidate) in [
            ("it may change something", Candidate { is_safe: false, ..FIT }),
            ("it becomes a WebSocket", Candidate { upgrades: true, ..FIT }),
            ("its body is gone", Candidate { is_unbuffered: true, ..FIT }),
            ("nginx is told not to", Candidate { may_go_on: false, ..FIT }),
            ("this is its last attempt", Candidate { tries: 1, ..FIT }),
            ("nobody else is up", Candidate { others: 0, ..FIT }),
            ("the only other one failed it before", Candidate { tries: 2, tried: 1, ..FIT }),
            ("no attempt is left", Candidate { tries: 0, ..FIT }),
        ] {
            assert!(!candidate.is_fit(), "{why}");
        }
    }
}
