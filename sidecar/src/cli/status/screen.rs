//! Lines that stay where they are on a terminal: only those that changed are written again, and nothing is cleared that will be
//! written over. So nothing flickers, what was on the terminal before stays above, and the last picture stays at the end.

use crate::cli::progress::{Room, erase, line::Line};

#[derive(Debug, Default)]
pub(super) struct Screen {
    has_colour: bool,
    room: Option<Room>,
    /// As they were written.
    drawn: Vec<String>,
    widths: Vec<usize>,
}

impl Screen {
    pub(super) fn new(has_colour: bool) -> Self {
        Self { has_colour, ..Self::default() }
    }

    /// What to write so that these lines stand there, and those of before do not.
    pub(super) fn draw(&mut self, lines: &[Line], room: Room) -> String {
        let new: Vec<String> = lines.iter().map(|line| line.render(room.columns, self.has_colour)).collect();
        let mut out = String::new();
        if self.room != Some(room) {
            out = erase(&self.widths, room);
            self.drawn.clear();
        } else if new == self.drawn {
            return out;
        } else if !self.drawn.is_empty() {
            out = format!("\x1b[{}A", self.drawn.len());
        }
        for (at, line) in new.iter().enumerate() {
            if self.drawn.get(at) != Some(line) {
                out = out + "\r" + line + "\x1b[K";
            }
            out.push('\n');
        }
        if new.len() < self.drawn.len() {
            out.push_str("\x1b[J");
        }
        self.widths = lines.iter().map(|line| line.width().min(room.columns)).collect();
        (self.room, self.drawn) = (Some(room), new);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOM: Room = Room { columns: 9, rows: 24 };

    fn lines(texts: &[&str]) -> Vec<Line> {
        texts.iter().map(|text| Line::plain(text)).collect()
    }

    #[test]
    fn only_what_changed_is_written_again() {
        let mut screen = Screen::new(false);
        assert_eq!(screen.draw(&lines(&["a", "b"]), ROOM), "\ra\x1b[K\n\rb\x1b[K\n");
        assert_eq!(screen.draw(&lines(&["a", "b"]), ROOM), "", "nothing changed");
        assert_eq!(screen.draw(&lines(&["a", "c"]), ROOM), "\x1b[2A\n\rc\x1b[K\n");
        assert_eq!(screen.draw(&lines(&["a"]), ROOM), "\x1b[2A\n\x1b[J");
        assert_eq!(screen.draw(&lines(&["a", "d"]), ROOM), "\x1b[1A\n\rd\x1b[K\n");
    }

    #[test]
    fn a_terminal_of_another_size_is_drawn_anew() {
        let mut screen = Screen::new(false);
        screen.draw(&lines(&["123456789", "b"]), ROOM);
        let narrow = Room { columns: 4, ..ROOM };
        let drawn = screen.draw(&lines(&["123456789", "b"]), narrow);
        assert_eq!(drawn, "\x1b[3A\r\x1b[J\r123…\x1b[K\n\rb\x1b[K\n", "9 columns are two rows of 5");
    }
}
