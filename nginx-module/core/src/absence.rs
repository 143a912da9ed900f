//! When a request found nobody behind a peer.
//!
//! An owner that is alive soon says what became of the worker. Where it is silent, this is all that is known: while nobody has
//! answered there since, a peer that no mark keeps requests from is no reason to leave another one closed. It is noted where a
//! connection was refused; a request that finds somebody notes nothing, for the peer's answers are counted anyway.

use crate::sync::{AtomicU64, Ordering};

#[derive(Debug, Default)]
#[repr(C)]
pub struct Absence {
    /// Milliseconds; 0: nobody was ever missed.
    at: AtomicU64,
    /// How many answers of the peer there were by then.
    answers: AtomicU64,
}

// === impl Absence ===

impl Absence {
    /// Two processes may do so at once. What is read then is of one or the other, or no absence.
    #[cold]
    pub(crate) fn note(&self, answers: u64, now: u64) {
        self.answers.store(answers, Ordering::Relaxed);
        self.at.store(now, Ordering::Release);
    }

    /// When nobody was there, if nobody has answered since.
    pub(crate) fn last(&self, answers: impl FnOnce() -> u64) -> Option<u64> {
        let at = Some(self.at.load(Ordering::Acquire)).filter(|&at| at != 0)?;
        (answers() == self.answers.load(Ordering::Relaxed)).then_some(at)
    }

    pub(crate) fn reset(&self) {
        self.at.store(0, Ordering::Release);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn it_lasts_until_the_peer_answers() {
        let absence = Absence::default();
        assert_eq!(absence.last(|| 0), None);
        absence.note(7, 1000);
        absence.note(7, 2000);
        assert_eq!([7, 8].map(|answers| absence.last(|| answers)), [Some(2000), None]);
        absence.note(8, 3000);
        assert_eq!(absence.last(|| 8), Some(3000));
        absence.reset();
        assert_eq!(absence.last(|| 8), None);
    }
}
