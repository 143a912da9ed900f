//! What a person watches while `handoff reload` runs: a picture on a terminal, elsewhere a line for each step, or JSON.
//!
//! Whoever reads may go away (the terminal hangs up, `head` has enough) or sleep. Then no more is seen, and the roll-out
//! goes its way.

pub(super) mod line;
mod picture;
mod plain;
mod stages;
mod writer;

use crate::{
    deploy::event::{self as deploy, Told},
    harmless::steers,
    rollout::event::Event,
};
use line::Line;
use picture::Picture;
pub(super) use picture::Room;
use plain::Plain;
use serde::Serialize;
use stages::Stages;
use std::{
    env,
    ffi::OsString,
    io::{self, IsTerminal as _},
    time::{Duration, Instant},
};
use writer::Writer;

pub(super) struct Progress {
    view: View,
    began: Instant,
    out: Writer,
}

enum View {
    Json,
    Plain(Plain, Stages),
    Live(Live),
}

#[derive(Default)]
struct Live {
    picture: Picture,
    stages: Stages,
    /// How wide the lines are that stand on the terminal and are drawn over.
    drawn: Vec<usize>,
    has_colour: bool,
    /// A picture was finished before this one.
    is_next: bool,
}

/// How often the picture's seconds go on.
pub(super) const TICK: Duration = Duration::from_millis(100);
const UNKNOWN: Room = Room { columns: 80, rows: 24 };

// === impl Progress ===

impl Progress {
    pub(super) fn new(json: bool) -> Self {
        let view = match (json, can_draw()) {
            (true, _) => View::Json,
            (false, false) => View::Plain(Plain::default(), Stages::default()),
            (false, true) => View::Live(Live { has_colour: has_colour(), ..Live::default() }),
        };
        Self { view, began: Instant::now(), out: Writer::new(io::stdout()) }
    }

    pub(super) fn show(&mut self, event: &Event) {
        let now = self.began.elapsed();
        self.out.write(match &mut self.view {
            View::Json => json(event),
            View::Plain(plain, _) => plain.lines(event, now),
            View::Live(live) => live.show(event, room(), now),
        });
    }

    /// Of a deploy.
    pub(super) fn tell(&mut self, told: &Told) {
        let now = self.began.elapsed();
        let event = match told {
            Told::Rollout(event) => return self.show(event),
            Told::Deploy(event) => event,
        };
        self.out.write(match &mut self.view {
            View::Json => json(event),
            View::Plain(_, stages) => stages.plain(event, now),
            View::Live(live) => live.tell(event, room(), now),
        });
    }

    /// Time went on.
    pub(super) fn tick(&mut self) {
        let now = self.began.elapsed();
        self.out.write(match &mut self.view {
            View::Json => String::new(),
            View::Plain(plain, _) => plain.due(now),
            // While nobody looks, pictures would only pile up.
            View::Live(_) if !self.out.is_idle() => String::new(),
            View::Live(live) => live.draw(room(), now),
        });
    }
}

/// Whether what we write goes to a terminal on which a picture can be drawn over.
pub(super) fn can_draw() -> bool {
    io::stdout().is_terminal() && set("TERM").is_some_and(|term| term != "dumb")
}

pub(super) fn has_colour() -> bool {
    set("NO_COLOR").is_none()
}

fn set(name: &str) -> Option<OsString> {
    env::var_os(name).filter(|value| !value.is_empty())
}

/// Of the terminal, as it is now.
pub(super) fn room() -> Room {
    let size = rustix::termios::tcgetwinsize(io::stdout()).ok();
    let known = |number: u16, unknown| if number < 2 { unknown } else { usize::from(number) };
    size.map_or(UNKNOWN, |size| Room {
        // A line as wide as the terminal would be wrapped by some.
        columns: known(size.ws_col, UNKNOWN.columns) - 1,
        rows: known(size.ws_row, UNKNOWN.rows),
    })
}

/// What would steer a terminal is written as JSON can: somebody may look at it.
fn json(event: &impl Serialize) -> String {
    let mut out = String::new();
    for c in serde_json::to_string(event).unwrap_or_default().chars() {
        match c {
            c if steers(c) => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out + "\n"
}

/// Back to where lines of these widths began, and away with them. A terminal that became narrower has wrapped them.
pub(super) fn erase(widths: &[usize], room: Room) -> String {
    let rows = |width: &usize| width.div_ceil(room.columns + 1).max(1);
    match widths.iter().map(rows).sum::<usize>() {
        0 => String::new(),
        rows => format!("\x1b[{rows}A\r\x1b[J"),
    }
}

// === impl Live ===

impl Live {
    /// Only what stays is written at once: the picture follows with the next tick.
    fn show(&mut self, event: &Event, room: Room, now: Duration) -> String {
        let above = self.picture.take(event, now);
        if above.is_empty() && !self.picture.is_finished() {
            return String::new();
        }
        let above = self.erase(room) + &self.text(&above, usize::MAX);
        let drawn = self.draw(room, now);
        if !self.picture.is_finished() {
            return above + &drawn;
        }
        let below = self.text(&self.picture.below(room), usize::MAX);
        // It stays as it is; the next app has a picture of its own.
        let stages = std::mem::take(&mut self.stages);
        *self = Self { has_colour: self.has_colour, is_next: !stages.are_begun(), stages, ..Self::default() };
        above + &drawn + &below
    }

    /// A stage that is over stays; the one that goes on is drawn over, as long as no roll-out has a picture.
    fn tell(&mut self, event: &deploy::Event, room: Room, now: Duration) -> String {
        let above = self.stages.take(event, room, now);
        if above.is_empty() {
            return String::new();
        }
        self.erase(room) + &self.text(&above, usize::MAX) + &self.draw(room, now)
    }

    fn draw(&mut self, room: Room, now: Duration) -> String {
        let erased = self.erase(room);
        let mut lines = self.picture.lines(room, now);
        if lines.is_empty() {
            lines.extend(self.stages.line(now));
        }
        if lines.is_empty() {
            return erased;
        }
        let gap = if std::mem::take(&mut self.is_next) { "\n" } else { "" };
        self.drawn = lines.iter().map(|line| line.width().min(room.columns)).collect();
        erased + gap + &self.text(&lines, room.columns)
    }

    fn text(&self, lines: &[Line], width: usize) -> String {
        lines.iter().map(|line| line.render(width, self.has_colour) + "\n").collect()
    }

    fn erase(&mut self, room: Room) -> String {
        erase(&std::mem::take(&mut self.drawn), room)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        pm2::PmId,
        rollout::event::{End, Step, What},
    };

    const ROOM: Room = Room { columns: 79, rows: 24 };

    fn event(what: What) -> Event {
        Event { at: 1, app: "shop".into(), what }
    }

    fn live(has_colour: bool) -> Live {
        let mut live = Live { has_colour, ..Live::default() };
        assert_eq!(live.draw(ROOM, Duration::ZERO), "", "nothing has begun");
        live.show(&event(What::Begin { workers: vec![PmId(0)] }), ROOM, Duration::ZERO);
        live
    }

    fn end(live: &mut Live) -> String {
        let end = End { exit: 0, seconds: 0.0, replaced: vec![], cut: 0, text: "done".into() };
        live.show(&event(What::End(end)), ROOM, Duration::ZERO)
    }

    const HEAD: &str = "shop                                0.0 s\n";

    #[test]
    fn a_picture_is_drawn_over_the_last_one_and_notes_stand_above() {
        let mut live = live(false);
        let picture = format!("{HEAD}  0  waiting  \n");
        assert_eq!(live.draw(ROOM, Duration::ZERO), picture);
        assert_eq!(live.draw(ROOM, Duration::ZERO), format!("\x1b[2A\r\x1b[J{picture}"));
        let note = live.show(&event(What::Note { text: "beware".into() }), ROOM, Duration::ZERO);
        assert_eq!(note, format!("\x1b[2A\r\x1b[Jbeware\n{picture}"));
        assert_eq!(end(&mut live), format!("\x1b[2A\r\x1b[J{picture}done\n"));
        assert_eq!(live.draw(ROOM, Duration::ZERO), "", "it stays as it is");
        live.show(&event(What::Begin { workers: vec![PmId(0)] }), ROOM, Duration::ZERO);
        assert_eq!(live.draw(ROOM, Duration::ZERO), format!("\n{picture}"));
        assert_eq!(live.draw(ROOM, Duration::ZERO), format!("\x1b[2A\r\x1b[J{picture}"));
    }

    #[test]
    fn a_terminal_that_became_narrower_has_wrapped_the_picture() {
        let mut live = live(false);
        live.draw(ROOM, Duration::ZERO);
        let narrow = Room { columns: 19, ..ROOM };
        assert!(
            live.draw(narrow, Duration::ZERO).starts_with("\x1b[4A\r"),
            "41 columns are three rows of 20"
        );
        assert!(live.draw(narrow, Duration::ZERO).starts_with("\x1b[2A\r"));
    }

    #[test]
    fn without_colour_there_are_no_escape_sequences_in_a_line() {
        assert!(live(true).draw(ROOM, Duration::ZERO).contains("\x1b[2mwaiting"));
        assert!(!live(false).draw(ROOM, Duration::ZERO).contains('\x1b'));
    }

    #[test]
    fn json_says_the_same_and_steers_no_terminal() {
        let log = vec!["\x1b[2J\u{9b}31m\u{202e}ü\"".to_owned()];
        let step = Step::Failed { exit: 10, text: String::new(), log };
        let event = event(What::Step { worker: PmId(3), step });
        let line = json(&event);
        assert!(!line.trim_end_matches('\n').chars().any(steers), "{line}");
        let read: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(read, serde_json::to_value(&event).unwrap());
    }
}
