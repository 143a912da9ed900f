//! What a deploy does before and after its roll-out: a line for each stage, the last of them alive.
//!
//! ```text
//!   fetch      0.4 s  main is 1a2b3c4
//!   install    7.9 s  npm ci
//!   build      2.1 s
//! ```

use super::{
    line::{Line, Style},
    picture::{Room, wrapped},
};
use crate::{
    deploy::{
        event::{Event, Stage, State, What},
        record::Outcome,
        traffic::Sample,
    },
    harmless::harmless,
};
use std::time::Duration;

#[derive(Debug, Default)]
pub(super) struct Stages {
    are_begun: bool,
    going_on: Option<(Stage, Duration)>,
    traffic: Option<(Sample, Sample)>,
}

const STAGE: usize = 9;

// === impl Stages ===

impl Stages {
    pub(super) fn are_begun(&self) -> bool {
        self.are_begun
    }

    /// A line for a log, or none.
    pub(super) fn plain(&mut self, event: &Event, now: Duration) -> String {
        if let What::Stage { stage, state: State::Begun } = &event.what {
            self.begin(*stage, now);
            return format!("{}\n", harmless(&format!("{}: {stage}", event.app)));
        }
        let lines = self.lines(event, usize::MAX);
        lines.iter().map(|line| line.render(usize::MAX, false) + "\n").collect()
    }

    /// What is to stand above the picture for good.
    pub(super) fn take(&mut self, event: &Event, room: Room, now: Duration) -> Vec<Line> {
        if let What::Stage { stage, state: State::Begun } = &event.what {
            self.begin(*stage, now);
        }
        self.lines(event, room.columns)
    }

    /// The stage that goes on.
    pub(super) fn line(&self, now: Duration) -> Option<Line> {
        let (stage, began) = self.going_on?;
        let line = stage_line(Style::Busy, stage, now.saturating_sub(began).as_secs_f64());
        Some(match self.traffic.filter(|_| stage >= Stage::Measure) {
            Some((old, new)) if stage == Stage::Bake => {
                line.with(Style::Plain, &format!("  new: {new}; before: {old}"))
            }
            Some((old, _)) => line.with(Style::Plain, &format!("  {old}")),
            None => line,
        })
    }

    fn begin(&mut self, stage: Stage, now: Duration) {
        self.are_begun = true;
        self.going_on = Some((stage, now));
    }

    fn lines(&mut self, event: &Event, width: usize) -> Vec<Line> {
        match &event.what {
            What::Stage { state: State::Begun, .. } => Vec::new(),
            What::Stage { stage, state: State::Done { seconds, text } } => {
                self.going_on = None;
                vec![stage_line(Style::Good, *stage, *seconds).with(Style::Plain, &format!("  {text}"))]
            }
            What::Stage { stage, state: State::Failed { seconds, text, log } } => {
                self.going_on = None;
                let failed =
                    stage_line(Style::Bad, *stage, *seconds).with(Style::Plain, &format!("  {text}"));
                let log = log.iter().map(|line| Line::plain("    ").with(Style::Dim, line));
                std::iter::once(failed).chain(log).collect()
            }
            What::Traffic { old, new } => {
                self.traffic = Some((*old, *new));
                Vec::new()
            }
            What::Note { text } => vec![Line::plain(text)],
            What::Deployed { outcome, text, seconds, .. } => {
                self.going_on = None;
                let style = if *outcome == Outcome::Done { Style::Good } else { Style::Bad };
                let text = format!("{text} ({seconds:.1} s)");
                let lines = text.lines().flat_map(|line| wrapped(line, width));
                lines.map(|line| Line::default().with(style, &line)).collect()
            }
        }
    }
}

fn stage_line(style: Style, stage: Stage, seconds: f64) -> Line {
    Line::plain("  ").with(style, &format!("{stage:<STAGE$}")).with(Style::Dim, &format!(" {seconds:>6.1} s"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(what: What) -> Event {
        Event { at: 0, app: "shop".into(), what }
    }

    fn state(stage: Stage, state: State) -> Event {
        event(What::Stage { stage, state })
    }

    const ROOM: Room = Room { columns: 79, rows: 24 };

    #[test]
    fn a_log_has_a_line_for_the_beginning_and_for_the_end_of_a_stage() {
        let mut stages = Stages::default();
        assert_eq!(stages.plain(&state(Stage::Install, State::Begun), Duration::ZERO), "shop: install\n");
        let failed = State::Failed { seconds: 2.5, text: "no".into(), log: vec!["npm\x07 error".into()] };
        assert_eq!(
            stages.plain(&state(Stage::Install, failed), Duration::ZERO),
            "  install      2.5 s  no\n    npm\u{fffd} error\n"
        );
    }

    #[test]
    fn what_goes_on_is_drawn_and_what_is_over_stays() {
        let mut stages = Stages::default();
        assert!(stages.take(&state(Stage::Bake, State::Begun), ROOM, Duration::from_secs(1)).is_empty());
        stages.take(
            &event(What::Traffic { old: Sample::default(), new: Sample::default() }),
            ROOM,
            Duration::ZERO,
        );
        let line = stages.line(Duration::from_secs(3)).unwrap().render(79, false);
        assert_eq!(line, "  bake         2.0 s  new: 0 answers, 0 errors; before: 0 answers, 0 errors");
        let done = State::Done { seconds: 2.0, text: "well".into() };
        assert_eq!(stages.take(&state(Stage::Bake, done), ROOM, Duration::ZERO).len(), 1);
        assert!(stages.line(Duration::ZERO).is_none());
    }
}
