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

/// Of the terminal, now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cli) struct Room {
    pub columns: usize,
    pub rows: usize,
}

#[derive(Debug)]
struct Row {
    id: PmId,
    /// It is none of the workers that are to be replaced.
    is_canary: bool,
    /// None: its turn has not come.
    step: Option<Step>,
    began: Duration,
    /// When its turn was over.
    ended: Option<Duration>,
}

/// How wide the head is.
const HEAD: usize = 41;

// === impl Picture ===

impl Picture {
    /// Returns what is to stand above the picture for good.
    pub(super) fn take(&mut self, event: &Event, now: Duration) -> Vec<Line> {
        match &event.what {
            What::Begin { workers } => {
                let row = |&id| Row { id, is_canary: false, step: None, began: now, ended: None };
                *self = Self {
                    app: event.app.clone(),
                    began: now,
                    rows: workers.iter().map(row).collect(),
                    end: None,
                };
            }
            What::Step { worker, step } => {
                if !self.app.is_empty() && self.rows.iter().all(|row| row.id != *worker) {
                    let canary = Row { id: *worker, is_canary: true, step: None, began: now, ended: None };
                    self.rows.insert(0, canary);
                }
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

    /// Fits: else it could not be drawn over. Where rows are few, those that wait and those that are new are summed up.
    pub(super) fn lines(&self, room: Room, now: Duration) -> Vec<Line> {
        if self.app.is_empty() {
            return Vec::new();
        }
        let id_width = self.rows.iter().map(|row| row.id.to_string().len()).max().unwrap_or(0);
        // The head, and where the cursor stands.
        let most = room.rows.saturating_sub(2);
        let (shown, rest): (Vec<&Row>, Vec<&Row>) = if self.rows.len() <= most {
            (self.rows.iter().collect(), Vec::new())
        } else {
            let (telling, mut rest): (Vec<&Row>, Vec<&Row>) =
                self.rows.iter().partition(|row| row.is_telling());
            let shown: Vec<&Row> = telling.iter().copied().take(most.saturating_sub(1)).collect();
            rest.extend(telling.into_iter().skip(shown.len()));
            (shown, rest)
        };
        let mut lines = vec![self.head(room, now)];
        lines.extend(shown.iter().map(|row| row.line(id_width, now)));
        if !rest.is_empty() {
            lines.push(Line::plain("  ").with(Style::Dim, &summary(&rest)));
        }
        lines
    }

    fn head(&self, room: Room, now: Duration) -> Line {
        let since = self.end.as_ref().map_or(now.saturating_sub(self.began), seconds);
        let time = text(since);
        let width = room.columns.min(HEAD).saturating_sub(time.len() + 1);
        let app = Line::plain(&self.app).render(width, false);
        Line::plain(&format!("{app:<width$} {time}"))
    }

    /// How it ended: what is to stand below the picture for good, in full.
    pub(super) fn below(&self, room: Room) -> Vec<Line> {
        let Some(end) = &self.end else { return Vec::new() };
        let style = if end.exit == 0 { Style::Good } else { Style::Bad };
        let text = end.text.lines().flat_map(|text| wrapped(text, room.columns));
        let failures = self.rows.iter().flat_map(|row| row.failure(&self.app, end));
        failures.chain(text.map(|text| Line::default().with(style, &text))).collect()
    }
}

/// How many of the rest say what.
fn summary(rest: &[&Row]) -> String {
    let mut numbers: Vec<(&str, usize)> = Vec::new();
    for (_, word, _) in rest.iter().map(|row| row.says()) {
        match numbers.iter_mut().find(|(known, _)| *known == word) {
            Some((_, number)) => *number += 1,
            None => numbers.push((word, 1)),
        }
    }
    let numbers: Vec<String> = numbers.iter().map(|(word, number)| format!("{number} {word}")).collect();
    numbers.join(", ")
}

fn seconds(end: &End) -> Duration {
    Duration::from_secs_f64(end.seconds.max(0.0))
}

fn text(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

/// What must be read in full is broken between words.
pub(super) fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.chars().count() + word.chars().count() < width => {
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

    /// Neither waiting nor new.
    fn is_telling(&self) -> bool {
        !matches!(self.step, None | Some(Step::Done { .. } | Step::Deleted { .. }))
    }

    fn is_in_hand(&self) -> bool {
        !matches!(
            self.step,
            None | Some(Step::Done { .. } | Step::Deleted { .. } | Step::Kept | Step::Failed { .. })
        )
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
            Step::Failed { text, .. } => format!("  {text}"),
            _ => String::new(),
        };
        let more = if self.is_canary { format!("  canary{more}") } else { more };
        let (style, word) = match step {
            Step::Draining { .. } => (Style::Busy, "draining"),
            Step::Stopping { .. } => (Style::Busy, "stopping"),
            Step::Starting => (Style::Busy, "starting"),
            Step::Checking { .. } => (Style::Busy, "checking"),
            Step::Trial => (Style::Busy, "trial"),
            Step::Up => (Style::Good, "up"),
            Step::Done { .. } => (Style::Good, "new"),
            Step::Deleted { .. } => (Style::Plain, "deleted"),
            Step::Kept => (Style::Plain, "kept"),
            Step::Failed { .. } => (Style::Bad, "failed"),
        };
        (style, word, more)
    }

    /// Why, if the end does not say it, and what it wrote last.
    fn failure(&self, app: &str, end: &End) -> Vec<Line> {
        let Some(Step::Failed { text, log, .. }) = &self.step else { return Vec::new() };
        let why = (!end.text.contains(text)).then(|| format!("{} failed: {text}", self.id.of(app)));
        let wrote = (!log.is_empty()).then(|| format!("{} wrote last:", self.id.of(app)));
        let heads = why.iter().chain(&wrote).map(|head| Line::plain(head));
        heads.chain(log.iter().map(|line| Line::default().with(Style::Dim, &format!("  {line}")))).collect()
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

    fn drawn(picture: &Picture, columns: usize, rows: usize, now: u64) -> Vec<String> {
        let room = Room { columns, rows };
        let lines = picture.lines(room, Duration::from_millis(now));
        assert!(lines.len() < rows, "the last row is the cursor's");
        lines.iter().map(|line| line.render(columns, false).trim_end().to_owned()).collect()
    }

    fn below(picture: &Picture, columns: usize) -> Vec<String> {
        let lines = picture.below(Room { columns, rows: 24 });
        lines.iter().map(|line| line.render(usize::MAX, false)).collect()
    }

    fn ended(picture: &mut Picture, exit: u8, text: &str) {
        let end = End { exit, seconds: 2.5, replaced: vec![], cut: 0, text: text.into() };
        picture.take(&Event { at: 0, app: "shop".into(), what: What::End(end) }, Duration::from_secs(9));
        assert!(picture.is_finished());
    }

    fn in_the_middle() -> Picture {
        picture(&[
            (0, Step::Draining { in_flight: 0 }, 10),
            (0, Step::Done { seconds: 1.2 }, 1210),
            (1, Step::Draining { in_flight: 3 }, 1300),
        ])
    }

    fn failed(text: &str, log: &[&str]) -> Step {
        Step::Failed { exit: 10, text: text.into(), log: log.iter().copied().map(String::from).collect() }
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
    fn a_canary_has_a_line_above_the_others() {
        let deleted = Step::Deleted { seconds: 2.1 };
        let picture = picture(&[(4, Step::Starting, 0), (4, deleted, 2100), (0, Step::Starting, 2100)]);
        assert_eq!(
            drawn(&picture, 79, 24, 2600)[..3],
            [
                "shop                                2.6 s",
                "  4  deleted     2.1 s  canary",
                "  0  starting    0.5 s"
            ]
        );
    }

    #[test]
    fn a_narrow_terminal_cuts_what_comes_last_and_keeps_the_time() {
        assert_eq!(
            drawn(&in_the_middle(), 39, 24, 1700)[..3],
            [
                "shop                              1.7 s",
                "  0  new         1.2 s",
                "  1  draining    0.4 s  3 in flight"
            ]
        );
        assert_eq!(
            drawn(&in_the_middle(), 19, 24, 1700)[..3],
            ["shop          1.7 s", "  0  new         1…", "  1  draining    0…"]
        );
        let mut picture = Picture::default();
        let what = What::Begin { workers: vec![PmId(0)] };
        picture.take(&Event { at: 0, app: "a-shop-with-a-long-name".into(), what }, Duration::ZERO);
        assert_eq!(drawn(&picture, 19, 24, 1000)[0], "a-shop-with-… 1.0 s");
    }

    #[test]
    fn a_low_terminal_shows_what_is_under_way_and_sums_up_the_rest() {
        assert_eq!(drawn(&in_the_middle(), 79, 6, 1700).len(), 5);
        assert_eq!(
            drawn(&in_the_middle(), 79, 5, 1700),
            [
                "shop                                1.7 s",
                "  1  draining    0.4 s  3 in flight",
                "  1 new, 2 waiting"
            ]
        );
        let steps =
            [(0, Step::Up, 0), (1, failed("it crashed", &[]), 0), (2, Step::Kept, 0), (3, Step::Starting, 0)];
        assert_eq!(
            drawn(&picture(&steps), 79, 5, 0),
            [
                "shop                                0.0 s",
                "  0  up          0.0 s",
                "  1  failed      0.0 s  it crashed",
                "  1 kept, 1 starting"
            ]
        );
    }

    #[test]
    fn a_failure_shows_what_the_app_wrote() {
        let broken = failed("it crashed", &["Error: no \x1b[31mdatabase"]);
        let mut picture = picture(&[(0, Step::Starting, 10), (0, broken, 710)]);
        assert!(below(&picture, 79).is_empty());
        ended(&mut picture, 10, "the new shop:0 is not fit to serve: it crashed. It was stopped");
        let lines = drawn(&picture, 79, 24, 5000);
        assert_eq!(lines[0], "shop                                2.5 s");
        assert_eq!(lines[1], "  0  failed      0.7 s  it crashed");
        assert_eq!(
            below(&picture, 40),
            [
                "shop:0 wrote last:",
                "  Error: no \u{fffd}[31mdatabase",
                "the new shop:0 is not fit to serve: it",
                "crashed. It was stopped",
            ]
        );
    }

    #[test]
    fn a_failure_that_the_end_does_not_speak_of_says_why() {
        let mut picture = picture(&[(1, failed("no answer", &["a"]), 1), (2, failed("it crashed", &[]), 2)]);
        ended(&mut picture, 10, "shop:2: it crashed");
        assert_eq!(
            below(&picture, 79),
            ["shop:1 failed: no answer", "shop:1 wrote last:", "  a", "shop:2: it crashed"]
        );
    }
}
