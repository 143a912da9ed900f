//! The picture: a line for each worker, drawn anew as things happen.
//!
//! ```text
//! shop                                  3.1 s
//!   0  new         1.2 s
//!   1  draining    0.4 s  3 in flight
//!   2  waiting
//! ```

use super::line::{Line, Style};
use crate::{
    pm2::PmId,
    rollout::event::{End, Event, Step, What},
};
use std::time::Duration;

#[derive(Debug, Default)]
pub(super) struct Picture {
    app: String,
    began: Duration,
    rows: Vec<Row>,
    end: Option<End>,
}

#[derive(Debug)]
struct Row {
    id: PmId,
    /// None: its turn has not come.
    step: Option<Step>,
    began: Duration,
    /// When its turn was over.
    ended: Option<Duration>,
}

// === impl Picture ===

impl Picture {
    /// Returns what is to stand above the picture for good.
    pub(super) fn take(&mut self, event: &Event, now: Duration) -> Vec<Line> {
        match &event.what {
            What::Begin { workers } => {
                let row = |&id| Row { id, step: None, began: now, ended: None };
                *self = Self {
                    app: event.app.clone(),
                    began: now,
                    rows: workers.iter().map(row).collect(),
                    end: None,
                };
            }
            What::Step { worker, step } => {
                if let Some(row) = self.rows.iter_mut().find(|row| row.id == *worker) {
                    row.take(step, now);
                }
            }
            What::Note { text } => return vec![Line::plain(text)],
            What::End(end) => self.end = Some(end.clone()),
        }
        Vec::new()
    }

    pub(super) fn is_finished(&self) -> bool {
        self.end.is_some()
    }

    /// At most so many: where there is no room, those that wait and those that are new are summed up.
    pub(super) fn lines(&self, height: usize, now: Duration) -> Vec<Line> {
        if self.app.is_empty() {
            return Vec::new();
        }
        let since = self.end.as_ref().map_or(now.saturating_sub(self.began), seconds);
        let head = Line::plain(&format!("{:<34} {:>6}", self.app, text(since)));
        let mut lines = vec![head];
        let id_width = self.rows.iter().map(|row| row.id.to_string().len()).max().unwrap_or(0);
        let is_shown = |row: &&Row| self.rows.len() + 4 <= height || row.is_in_hand();
        lines.extend(self.rows.iter().filter(is_shown).map(|row| row.line(id_width, now)));
        let shown = lines.len() - 1;
        if shown < self.rows.len() {
            let new = self.rows.iter().filter(|row| matches!(row.step, Some(Step::Done { .. }))).count();
            let waiting = self.rows.iter().filter(|row| row.step.is_none()).count();
            lines.push(Line::plain("  ").with(Style::Dim, &format!("{new} new, {waiting} waiting")));
        }
        lines.extend(self.rows.iter().flat_map(Row::failure));
        if let Some(end) = &self.end {
            let style = if end.exit == 0 { Style::Good } else { Style::Bad };
            lines.extend(end.text.lines().flat_map(wrapped).map(|text| Line::default().with(style, &text)));
        }
        lines
    }
}

fn seconds(end: &End) -> Duration {
    Duration::from_secs_f64(end.seconds.max(0.0))
}

fn text(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

/// What must be read in full is broken between words.
fn wrapped(text: &str) -> Vec<String> {
    const WIDTH: usize = 76;
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.chars().count() + word.chars().count() < WIDTH => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

// === impl Row ===

impl Row {
    fn take(&mut self, step: &Step, now: Duration) {
        if self.step.is_none() {
            self.began = now;
        }
        self.step = Some(step.clone());
        self.ended = (!self.is_in_hand()).then_some(now);
    }

    fn is_in_hand(&self) -> bool {
        !matches!(self.step, None | Some(Step::Done { .. } | Step::Kept | Step::Failed { .. }))
    }

    fn line(&self, id_width: usize, now: Duration) -> Line {
        let (style, word, more) = self.says();
        let line = Line::plain(&format!("  {:>id_width$}  ", self.id)).with(style, &format!("{word:<9}"));
        if self.step.is_none() {
            return line;
        }
        let time = text(self.ended.unwrap_or(now).saturating_sub(self.began));
        line.with(Style::Dim, &format!(" {time:>7}")).with(Style::Plain, &more)
    }

    fn says(&self) -> (Style, &'static str, String) {
        let Some(step) = &self.step else { return (Style::Dim, "waiting", String::new()) };
        let more = match step {
            Step::Draining { in_flight } if *in_flight > 0 => format!("  {in_flight} in flight"),
            Step::Stopping { cut } if *cut > 0 => format!("  {cut} still in flight"),
            Step::Checking { passed, of } => format!("  {passed} of {of}"),
            Step::Kept => "  serves as before".to_owned(),
            _ => String::new(),
        };
        let (style, word) = match step {
            Step::Draining { .. } => (Style::Busy, "draining"),
            Step::Stopping { .. } => (Style::Busy, "stopping"),
            Step::Starting => (Style::Busy, "starting"),
            Step::Checking { .. } => (Style::Busy, "checking"),
            Step::Trial => (Style::Busy, "trial"),
            Step::Up => (Style::Good, "up"),
            Step::Done { .. } => (Style::Good, "new"),
            Step::Kept => (Style::Plain, "kept"),
            Step::Failed { .. } => (Style::Bad, "failed"),
        };
        (style, word, more)
    }

    /// What it wrote last.
    fn failure(&self) -> Vec<Line> {
        let Some(Step::Failed { log, .. }) = &self.step else { return Vec::new() };
        if log.is_empty() {
            return Vec::new();
        }
        let head = Line::plain(&format!("  the last lines of {}:", self.id));
        let lines = log.iter().map(|line| Line::default().with(Style::Dim, &format!("    {line}")));
        [head].into_iter().chain(lines).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(steps: &[(u32, Step, u64)]) -> Picture {
        let mut picture = Picture::default();
        let mut take = |what: What, at: u64| {
            let event = Event { at: 0, app: "shop".into(), what };
            assert!(picture.take(&event, Duration::from_millis(at)).is_empty());
        };
        take(What::Begin { workers: (0..4).map(PmId).collect() }, 0);
        for (worker, step, at) in steps {
            take(What::Step { worker: PmId(*worker), step: step.clone() }, *at);
        }
        picture
    }

    fn drawn(picture: &Picture, width: usize, height: usize, now: u64) -> Vec<String> {
        let lines = picture.lines(height, Duration::from_millis(now));
        lines.iter().map(|line| line.render(width, false).trim_end().to_owned()).collect()
    }

    fn in_the_middle() -> Picture {
        picture(&[
            (0, Step::Draining { in_flight: 0 }, 10),
            (0, Step::Done { seconds: 1.2 }, 1210),
            (1, Step::Draining { in_flight: 3 }, 1300),
        ])
    }

    #[test]
    fn every_worker_has_a_line() {
        let lines = drawn(&in_the_middle(), 79, 24, 1700);
        assert_eq!(
            lines,
            [
                "shop                                1.7 s",
                "  0  new         1.2 s",
                "  1  draining    0.4 s  3 in flight",
                "  2  waiting",
                "  3  waiting",
            ]
        );
    }

    #[test]
    fn a_narrow_terminal_cuts_and_a_low_one_sums_up() {
        assert_eq!(drawn(&in_the_middle(), 26, 24, 1700)[2], "  1  draining    0.4 s  3…");
        assert_eq!(
            drawn(&in_the_middle(), 79, 6, 1700),
            [
                "shop                                1.7 s",
                "  1  draining    0.4 s  3 in flight",
                "  1 new, 2 waiting"
            ]
        );
    }

    #[test]
    fn a_failure_shows_what_the_app_wrote() {
        let log = vec!["Error: no \x1b[31mdatabase".to_owned()];
        let failed = Step::Failed { exit: 10, text: "it crashed".into(), log };
        let mut picture = picture(&[(0, Step::Starting, 10), (0, failed, 710)]);
        let end = End { exit: 10, seconds: 0.7, replaced: vec![], cut: 0, text: "it crashed. ".repeat(9) };
        picture.take(&Event { at: 0, app: "shop".into(), what: What::End(end) }, Duration::from_secs(1));
        let lines = drawn(&picture, 79, 24, 5000);
        assert_eq!(lines[0], "shop                                0.7 s");
        assert_eq!(lines[1], "  0  failed      0.7 s");
        assert_eq!(lines[5..7], ["  the last lines of 0:", "    Error: no \u{fffd}[31mdatabase"]);
        assert!(lines.len() == 9 && lines[7..].iter().all(|line| line.len() < 80), "{lines:?}");
        assert!(picture.is_finished());
    }
}
