//! Whether the new process of a worker is fit to serve, as far as PM2 and the kernel know.
//!
//! PM2 answers when the process said `ready`, when it did not within `listen_timeout`, or when it died, and does not say
//! which. So a crash is read from the restart counter (PM2 adds one for its own replacement, and one more for each death)
//! and from the process that was met first; and `ready` from the bus.

use super::{stop::How, world::Seen};
use crate::{
    host::{Proc, Process},
    pm2::monitor::Status,
};
use std::time::{Duration, Instant};

/// What a new process must be to serve.
#[derive(Clone, Debug)]
pub struct Expected {
    old: Option<Process>,
    /// None: it is the first with its number, so that whatever is said of this one is said of it, however late we look.
    asked: Option<Instant>,
    restarts: u32,
    /// PM2 said that it is done.
    answered: Option<Instant>,
    met: Option<Process>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fitness {
    Fit,
    /// What is missing.
    NotYet(String),
    Broken(How, String),
}

/// How much later than PM2's answer the word `ready` may arrive on the bus. What was seen before that says nothing.
const READY_GRACE: Duration = Duration::from_millis(500);

// === impl Expected ===

impl Expected {
    /// After PM2 is asked to replace this one.
    pub fn after(was: &Seen) -> Self {
        let is_counted = matches!(was.listed.status, Status::Online | Status::Launching);
        Self {
            old: was.process,
            asked: Some(Instant::now()),
            restarts: was.listed.settings.restarts + u32::from(is_counted),
            answered: None,
            met: None,
        }
    }

    /// Of a worker that PM2 is asked for anew.
    pub fn anew() -> Self {
        Self { old: None, asked: None, restarts: 0, answered: None, met: None }
    }

    /// PM2 said that it is done, whatever came of it.
    pub fn answered(&mut self) {
        self.answered.get_or_insert_with(Instant::now);
    }

    /// Whether the process that was met runs. The kernel knows before PM2 is looked at again.
    pub fn lives(&self, proc: &Proc) -> bool {
        self.met.is_none_or(|process| process.is_alive(proc))
    }

    /// The process that was met.
    pub fn met(&self) -> Option<Process> {
        self.met
    }

    /// `lacks`: where it should listen and does not.
    pub fn judge(&mut self, seen: &Seen, lacks: impl FnOnce(&Seen) -> Option<String>) -> Fitness {
        let new = seen.process.filter(|&process| Some(process) != self.old);
        let crashed = |text: &str| Fitness::Broken(How::Crashed, text.to_owned());
        if seen.listed.status == Status::Errored {
            return crashed("it crashed, and was given up");
        }
        if seen.listed.settings.restarts > self.restarts || (self.met.is_some() && new != self.met) {
            return crashed("it crashed");
        }
        let Some(new) = new else {
            return match self.answered {
                // PM2 answers when there is a process, or when it has ended.
                Some(answered) if seen.looked > answered + READY_GRACE => {
                    crashed("it ended as soon as it was started")
                }
                _ => Fitness::NotYet("it did not start".to_owned()),
            };
        };
        self.met = Some(new);
        if let Some(unknown) = &seen.unknown {
            return Fitness::NotYet(format!("{unknown}; that did not change"));
        }
        let is_ready = seen.ready.is_some_and(|ready| self.asked.is_none_or(|asked| ready >= asked));
        if seen.listed.settings.wait_ready && !is_ready {
            return match self.answered {
                Some(answered) if seen.looked > answered + READY_GRACE => {
                    let text = "it did not say `ready` within PM2's listen_timeout: send process.send('ready') when \
                                it listens, or take wait_ready away";
                    Fitness::Broken(How::NotReady, text.to_owned())
                }
                _ => Fitness::NotYet("it did not say `ready`".to_owned()),
            };
        }
        lacks(seen).map_or(Fitness::Fit, Fitness::NotYet)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pm2::{
        PmId,
        monitor::{Listed, Settings},
    };
    use std::collections::BTreeSet;

    const OLD: Process = Process { pid: 7, start: 1 };
    const NEW: Process = Process { pid: 8, start: 2 };

    fn seen(process: Option<Process>, status: Status, restarts: u32) -> Seen {
        let settings = Settings { wait_ready: true, restarts, ..Settings::default() };
        let pid = process.map(|process| process.pid);
        Seen {
            listed: Listed { id: PmId(1), app: "shop".into(), pid, status, settings },
            process,
            open: BTreeSet::new(),
            listens: Vec::new(),
            unknown: None,
            ready: None,
            threw: None,
            looked: Instant::now(),
        }
    }

    fn ready(seen: Seen) -> Seen {
        Seen { ready: Some(Instant::now()), ..seen }
    }

    fn replacing() -> Expected {
        Expected::after(&seen(Some(OLD), Status::Online, 3))
    }

    fn answered_long_ago(expected: &mut Expected) {
        expected.asked = expected.asked.map(|asked| asked - READY_GRACE * 4);
        expected.answered = Instant::now().checked_sub(READY_GRACE * 2);
    }

    fn is_crash(fitness: &Fitness) -> bool {
        matches!(fitness, Fitness::Broken(How::Crashed, _))
    }

    #[test]
    fn a_new_process_that_listens_and_is_ready_is_fit() {
        let mut expected = replacing();
        let mut judge = |seen: &Seen| expected.judge(seen, |_| None);
        assert_eq!(judge(&seen(Some(OLD), Status::Online, 3)), Fitness::NotYet("it did not start".into()));
        assert_eq!(judge(&seen(None, Status::Stopping, 3)), Fitness::NotYet("it did not start".into()));
        let launching = seen(Some(NEW), Status::Launching, 4);
        assert_eq!(judge(&launching), Fitness::NotYet("it did not say `ready`".into()));
        assert_eq!(judge(&ready(launching)), Fitness::Fit);
    }

    #[test]
    fn where_it_does_not_listen_is_said() {
        let mut expected = replacing();
        let fitness =
            expected.judge(&ready(seen(Some(NEW), Status::Online, 4)), |_| Some("it is deaf".into()));
        assert_eq!(fitness, Fitness::NotYet("it is deaf".into()));
    }

    #[test]
    fn a_ready_from_before_is_not_its_own() {
        let early = ready(seen(Some(NEW), Status::Online, 4));
        let mut expected = Expected { asked: Some(Instant::now() + Duration::from_secs(1)), ..replacing() };
        assert_eq!(expected.judge(&early, |_| None), Fitness::NotYet("it did not say `ready`".into()));
        assert_eq!(
            Expected::anew().judge(&ready(seen(Some(NEW), Status::Online, 0)), |_| None),
            Fitness::Fit
        );
    }

    #[test]
    fn pm2_went_on_without_the_word_ready() {
        let mut expected = replacing();
        answered_long_ago(&mut expected);
        let fitness = expected.judge(&seen(Some(NEW), Status::Online, 4), |_| None);
        assert!(matches!(fitness, Fitness::Broken(How::NotReady, _)), "{fitness:?}");
    }

    #[test]
    fn what_was_seen_before_pm2_answered_is_no_crash() {
        // PM2 was stopped, and with it whoever waited for its list.
        let before = seen(None, Status::Stopped, 3);
        let mut expected = replacing();
        answered_long_ago(&mut expected);
        let looked = expected.answered.map_or(before.looked, |answered| answered + READY_GRACE);
        let fitness = expected.judge(&Seen { looked, ..before }, |_| None);
        assert_eq!(fitness, Fitness::NotYet("it did not start".into()));
    }

    #[test]
    fn every_way_to_die_is_a_crash() {
        let judge = |seen: &Seen| is_crash(&replacing().judge(seen, |_| None));
        assert!(judge(&seen(Some(NEW), Status::Online, 5)));
        assert!(judge(&seen(None, Status::Errored, 4)));

        let mut expected = replacing();
        expected.judge(&ready(seen(Some(NEW), Status::Online, 4)), |_| None);
        assert!(is_crash(&expected.judge(&seen(None, Status::Other, 4), |_| None)));

        let mut expected = replacing();
        answered_long_ago(&mut expected);
        assert!(is_crash(&expected.judge(&seen(None, Status::Stopped, 4), |_| None)));
    }

    #[test]
    fn a_worker_that_was_stopped_is_started_without_being_counted() {
        let mut expected = Expected::after(&seen(None, Status::Stopped, 3));
        assert!(is_crash(&expected.judge(&seen(Some(NEW), Status::Online, 4), |_| None)));
    }
}
