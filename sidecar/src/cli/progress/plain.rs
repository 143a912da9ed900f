//! A line for each step, for a log.

use crate::{
    harmless::harmless,
    pm2::PmId,
    rollout::event::{Event, Step, What},
};
use std::{collections::BTreeMap, time::Duration};

#[derive(Debug, Default)]
pub(super) struct Plain {
    app: String,
    began: Duration,
    /// These are to be replaced.
    planned: Vec<PmId>,
    /// Workers of which something was counted.
    counted: BTreeMap<PmId, Counted>,
}

#[derive(Debug)]
struct Counted {
    /// When it was told last.
    told: Duration,
    /// It changed since.
    untold: Option<Step>,
}

/// A count that changes is told so often.
const PACE: Duration = Duration::from_secs(1);

// === impl Plain ===

impl Plain {
    pub(super) fn lines(&mut self, event: &Event, now: Duration) -> String {
        let app = &event.app;
        match &event.what {
            What::Begin { workers } => {
                *self = Self { app: app.clone(), began: now, planned: workers.clone(), ..Self::default() };
                let ids: Vec<String> = workers.iter().map(ToString::to_string).collect();
                format!("{}\n", harmless(&format!("{app}: replacing {}", ids.join(", "))))
            }
            What::Step { worker, step } => {
                if self.is_early(*worker, step, now) {
                    return String::new();
                }
                self.line(*worker, step, now) + &log(step)
            }
            What::Note { text } => format!("{}\n", harmless(text)),
            What::End(end) => {
                let text: Vec<String> = end.text.lines().map(harmless).collect();
                format!("{} ({:.1} s)\n", text.join("\n"), end.seconds)
            }
        }
    }

    /// Counts that were held back.
    pub(super) fn due(&mut self, now: Duration) -> String {
        let mut due = Vec::new();
        for (worker, counted) in &mut self.counted {
            if now >= counted.told + PACE
                && let Some(step) = counted.untold.take()
            {
                counted.told = now;
                due.push((*worker, step));
            }
        }
        due.iter().map(|(worker, step)| self.line(*worker, step, now)).collect()
    }

    fn is_early(&mut self, worker: PmId, step: &Step, now: Duration) -> bool {
        if !matches!(step, Step::Draining { in_flight: 1.. } | Step::Checking { .. }) {
            self.counted.remove(&worker);
            return false;
        }
        match self.counted.get_mut(&worker) {
            Some(counted) if now < counted.told + PACE => {
                counted.untold = Some(step.clone());
                true
            }
            _ => {
                self.counted.insert(worker, Counted { told: now, untold: None });
                false
            }
        }
    }

    fn line(&self, worker: PmId, step: &Step, now: Duration) -> String {
        let since = now.saturating_sub(self.began).as_secs_f64();
        let canary = if self.planned.contains(&worker) { "" } else { " (canary)" };
        let text = harmless(&format!("{}{canary} {}", worker.of(&self.app), says(step)));
        format!("{text} ({since:.1} s)\n")
    }
}

fn says(step: &Step) -> String {
    match step {
        Step::Draining { in_flight } => format!("draining, {in_flight} in flight"),
        Step::Stopping { cut: 0 } => "stopping".to_owned(),
        Step::Stopping { cut } => format!("stopping, {cut} still in flight"),
        Step::Starting => "starting".to_owned(),
        Step::Checking { passed, of } => format!("checking, {passed} of {of}"),
        Step::Trial => "on trial".to_owned(),
        Step::Up => "up".to_owned(),
        Step::Done { seconds } => format!("is new after {seconds:.1} s"),
        Step::Deleted { seconds } => format!("is deleted after {seconds:.1} s"),
        Step::Kept => "was not stopped, and serves as before".to_owned(),
        Step::Failed { text, .. } => format!("failed: {text}"),
    }
}

fn log(step: &Step) -> String {
    let Step::Failed { log, .. } = step else { return String::new() };
    log.iter().map(|line| format!("  {}\n", harmless(line))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rollout::event::End;

    struct Told(Plain);

    impl Told {
        fn at(&mut self, now: u64, what: What) -> String {
            self.0.lines(&Event { at: 0, app: "shop".into(), what }, Duration::from_millis(now))
        }

        fn step(&mut self, now: u64, step: Step) -> String {
            self.at(now, What::Step { worker: PmId(1), step })
        }

        fn due(&mut self, now: u64) -> String {
            self.0.due(Duration::from_millis(now))
        }
    }

    fn begun() -> Told {
        let mut told = Told(Plain::default());
        let begin = What::Begin { workers: vec![PmId(1), PmId(2)] };
        assert_eq!(told.at(500, begin), "shop: replacing 1, 2\n");
        told
    }

    #[test]
    fn a_step_is_a_line_and_so_is_the_end() {
        let mut told = begun();
        assert_eq!(told.step(600, Step::Draining { in_flight: 0 }), "shop:1 draining, 0 in flight (0.1 s)\n");
        assert_eq!(told.step(600, Step::Stopping { cut: 0 }), "shop:1 stopping (0.1 s)\n");
        let log = vec!["Error\x07".to_owned(), "    at start".to_owned()];
        let failed = Step::Failed { exit: 10, text: "it crashed".into(), log };
        assert_eq!(
            told.step(2500, failed),
            "shop:1 failed: it crashed (2.0 s)\n  Error\u{fffd}\n      at start\n"
        );
        assert_eq!(told.at(2500, What::Note { text: "beware\r".into() }), "beware\u{fffd}\n");
        let end =
            End { exit: 10, seconds: 2.25, replaced: vec![], cut: 0, text: "no.\nIt\x1bcrashed".into() };
        assert_eq!(told.at(2750, What::End(end)), "no.\nIt\u{fffd}crashed (2.2 s)\n");
    }

    #[test]
    fn a_canary_is_told_from_the_workers() {
        let step = What::Step { worker: PmId(4), step: Step::Deleted { seconds: 2.1 } };
        assert_eq!(begun().at(2600, step), "shop:4 (canary) is deleted after 2.1 s (2.1 s)\n");
    }

    #[test]
    fn a_count_is_told_each_second_and_the_last_one_always() {
        let mut told = begun();
        assert_eq!(told.step(600, Step::Draining { in_flight: 3 }), "shop:1 draining, 3 in flight (0.1 s)\n");
        assert_eq!(told.step(900, Step::Draining { in_flight: 2 }), "");
        assert_eq!(told.step(1000, Step::Draining { in_flight: 1 }), "");
        assert_eq!(told.due(1599), "");
        assert_eq!(told.due(1600), "shop:1 draining, 1 in flight (1.1 s)\n");
        assert_eq!(told.due(9000), "", "nothing changed");
        assert_eq!(
            told.step(9100, Step::Draining { in_flight: 2 }),
            "shop:1 draining, 2 in flight (8.6 s)\n"
        );
        assert_eq!(told.step(9200, Step::Draining { in_flight: 1 }), "");
        assert_eq!(
            told.step(9300, Step::Draining { in_flight: 0 }),
            "shop:1 draining, 0 in flight (8.8 s)\n"
        );
        assert_eq!(told.due(20000), "", "what came after it has been told");
    }
}
