//! A line for each step, for a log.

use super::line::harmless;
use crate::{
    pm2::PmId,
    rollout::event::{Event, Step, What},
};
use std::{collections::BTreeMap, time::Duration};

#[derive(Debug, Default)]
pub(super) struct Plain {
    began: Duration,
    /// When each worker's count was told last.
    counted: BTreeMap<PmId, Duration>,
}

/// A count that goes down is told so often.
const PACE: Duration = Duration::from_secs(1);

// === impl Plain ===

impl Plain {
    pub(super) fn lines(&mut self, event: &Event, now: Duration) -> String {
        let app = &event.app;
        let line =
            |text: String, since: Duration| format!("{} ({:.1} s)\n", harmless(&text), since.as_secs_f64());
        match &event.what {
            What::Begin { workers } => {
                *self = Self { began: now, ..Self::default() };
                let ids: Vec<String> = workers.iter().map(ToString::to_string).collect();
                format!("{}\n", harmless(&format!("{app}: replacing {}", ids.join(", "))))
            }
            What::Step { worker, step } => {
                let since = now.saturating_sub(self.began);
                if !self.is_due(*worker, step, now) {
                    return String::new();
                }
                line(format!("{app}:{worker} {}", says(step)), since) + &log(step)
            }
            What::Note { text } => format!("{}\n", harmless(text)),
            What::End(end) => end.text.lines().map(|text| harmless(text) + "\n").collect(),
        }
    }

    fn is_due(&mut self, worker: PmId, step: &Step, now: Duration) -> bool {
        let is_count = matches!(step, Step::Draining { in_flight: 1.. } | Step::Checking { .. });
        let is_early = is_count && self.counted.get(&worker).is_some_and(|last| now - *last < PACE);
        if is_count && !is_early {
            self.counted.insert(worker, now);
        }
        !is_early
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

    #[test]
    fn a_step_is_a_line_and_a_count_is_told_each_second() {
        let mut plain = Plain::default();
        let mut at = |what: What, now: u64| {
            plain.lines(&Event { at: 0, app: "shop".into(), what }, Duration::from_millis(now))
        };
        let step = |step: Step| What::Step { worker: PmId(1), step };
        assert_eq!(at(What::Begin { workers: vec![PmId(1), PmId(2)] }, 500), "shop: replacing 1, 2\n");
        assert_eq!(at(step(Step::Draining { in_flight: 3 }), 600), "shop:1 draining, 3 in flight (0.1 s)\n");
        assert_eq!(at(step(Step::Draining { in_flight: 2 }), 900), "");
        assert_eq!(at(step(Step::Draining { in_flight: 1 }), 1600), "shop:1 draining, 1 in flight (1.1 s)\n");
        assert_eq!(at(step(Step::Draining { in_flight: 0 }), 1700), "shop:1 draining, 0 in flight (1.2 s)\n");
        let failed = Step::Failed { exit: 10, text: "it crashed".into(), log: vec!["Error\x07".into()] };
        assert_eq!(at(step(failed), 2500), "shop:1 failed: it crashed (2.0 s)\n  Error\u{fffd}\n");
    }
}
