//! What a person watches while `handoff reload` runs: a picture on a terminal, elsewhere a line for each step, or JSON.
//!
//! Whoever reads may go away (the terminal hangs up, `head` has enough). Then nothing more is written, and the roll-out
//! goes its way.

mod line;
mod picture;
mod plain;

use crate::rollout::event::Event;
use picture::Picture;
use plain::Plain;
use std::{
    env,
    io::{self, IsTerminal as _, Write as _},
    time::{Duration, Instant},
};

pub(super) struct Progress {
    view: View,
    began: Instant,
    /// Nobody reads any more.
    is_over: bool,
}

enum View {
    Json,
    Plain(Plain),
    Live(Live),
}

struct Live {
    picture: Picture,
    /// Lines that stand on the terminal and are drawn over.
    drawn: usize,
    has_colour: bool,
}

const WIDTH: usize = 80;
const HEIGHT: usize = 24;

// === impl Progress ===

impl Progress {
    pub(super) fn new(json: bool) -> Self {
        let set = |name| env::var_os(name).filter(|value| !value.is_empty());
        let is_dumb = set("TERM").is_none_or(|term| term == "dumb");
        let view = match (json, io::stdout().is_terminal() && !is_dumb) {
            (true, _) => View::Json,
            (false, false) => View::Plain(Plain::default()),
            (false, true) => View::Live(Live {
                picture: Picture::default(),
                drawn: 0,
                has_colour: set("NO_COLOR").is_none(),
            }),
        };
        Self { view, began: Instant::now(), is_over: false }
    }

    pub(super) fn show(&mut self, event: &Event) {
        let now = self.began.elapsed();
        let text = match &mut self.view {
            View::Json => serde_json::to_string(event).map(|line| line + "\n").unwrap_or_default(),
            View::Plain(plain) => plain.lines(event, now),
            View::Live(live) => live.show(event, now),
        };
        self.write(&text);
    }

    /// Time went on.
    pub(super) fn tick(&mut self) {
        let now = self.began.elapsed();
        if let View::Live(live) = &mut self.view {
            let text = live.draw(now);
            self.write(&text);
        }
    }

    fn write(&mut self, text: &str) {
        if self.is_over || text.is_empty() {
            return;
        }
        let mut out = io::stdout().lock();
        self.is_over = out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err();
    }
}

// === impl Live ===

impl Live {
    fn show(&mut self, event: &Event, now: Duration) -> String {
        let above = self.picture.take(event, now);
        let erased = self.erase();
        let above: String =
            above.iter().map(|line| line.render(usize::MAX, self.has_colour) + "\n").collect();
        let drawn = self.draw(now);
        if self.picture.is_finished() {
            // It stays as it is; the next app has a picture of its own.
            self.picture = Picture::default();
            self.drawn = 0;
        }
        erased + &above + &drawn
    }

    fn draw(&mut self, now: Duration) -> String {
        let (width, height) = size();
        let lines = self.picture.lines(height, now);
        let erased = self.erase();
        self.drawn = lines.len();
        // A line as wide as the terminal would be wrapped by some.
        let lines: String = lines.iter().map(|line| line.render(width - 1, self.has_colour) + "\n").collect();
        erased + &lines
    }

    /// Back to where the picture began, and away with it.
    fn erase(&mut self) -> String {
        match std::mem::take(&mut self.drawn) {
            0 => String::new(),
            lines => format!("\x1b[{lines}A\r\x1b[J"),
        }
    }
}

/// Of the terminal, now: columns and rows.
fn size() -> (usize, usize) {
    let size = rustix::termios::tcgetwinsize(io::stdout()).ok();
    let known = |number: u16, default| if number < 2 { default } else { usize::from(number) };
    size.map_or((WIDTH, HEIGHT), |size| (known(size.ws_col, WIDTH), known(size.ws_row, HEIGHT)))
}
