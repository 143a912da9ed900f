//! Whether a request broke off with its peer, as nginx saw the end of the attempt.

/// How an attempt ended.
#[derive(Clone, Copy, Debug)]
pub struct Ending {
    /// nginx counts it as failed.
    pub failed: bool,
    /// nginx did not wait any longer.
    pub timed_out: bool,
    /// None: the peer has not closed the connection.
    pub closed: Option<Closed>,
    /// None: the header did not come.
    pub answer: Option<Answer>,
}

/// How the peer closed the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    Orderly,
    Reset,
}

/// What is known of an answer whose header came.
#[derive(Clone, Copy, Debug)]
pub struct Answer {
    /// The last byte of it came.
    pub is_done: bool,
    /// Nobody said how long it is: it ends with its connection.
    pub is_open_ended: bool,
    /// It made a WebSocket of the connection, which either end may close.
    pub upgrades: bool,
    /// Nobody waits for it any more.
    pub is_abandoned: bool,
}

// === impl Ending ===

impl Ending {
    pub fn is_broken(&self) -> bool {
        match (self.answer, self.closed) {
            (None, _) => self.failed && !self.timed_out,
            (Some(_), None) => false,
            (Some(answer), Some(closed)) => {
                !answer.is_whole(closed) && !answer.upgrades && !answer.is_abandoned
            }
        }
    }
}

// === impl Answer ===

impl Answer {
    fn is_whole(&self, closed: Closed) -> bool {
        self.is_done || (self.is_open_ended && closed == Closed::Orderly)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const HALF: Answer =
        Answer { is_done: false, is_open_ended: false, upgrades: false, is_abandoned: false };

    fn ending(answer: Option<Answer>, closed: Option<Closed>) -> Ending {
        Ending { failed: false, timed_out: false, closed, answer }
    }

    #[test]
    fn half_an_answer_is_broken_when_the_peer_closes_and_not_when_nginx_does() {
        for closed in [Closed::Orderly, Closed::Reset] {
            assert!(ending(Some(HALF), Some(closed)).is_broken());
            assert!(!ending(Some(Answer { is_done: true, ..HALF }), Some(closed)).is_broken());
            assert!(!ending(Some(Answer { upgrades: true, ..HALF }), Some(closed)).is_broken());
            assert!(!ending(Some(Answer { is_abandoned: true, ..HALF }), Some(closed)).is_broken());
        }
        assert!(!ending(Some(HALF), None).is_broken());
    }

    #[test]
    fn an_answer_of_no_length_is_whole_unless_its_connection_is_reset() {
        let open_ended = Some(Answer { is_open_ended: true, ..HALF });
        assert!(!ending(open_ended, Some(Closed::Orderly)).is_broken());
        assert!(ending(open_ended, Some(Closed::Reset)).is_broken());
    }

    #[test]
    fn without_an_answer_it_is_broken_if_nginx_says_so_and_did_not_give_up_itself() {
        for closed in [None, Some(Closed::Orderly), Some(Closed::Reset)] {
            let left = ending(None, closed);
            assert!(!left.is_broken(), "the client left");
            assert!(Ending { failed: true, ..left }.is_broken());
            assert!(!Ending { failed: true, timed_out: true, ..left }.is_broken());
        }
    }
}
