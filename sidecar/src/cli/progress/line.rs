//! One line of text in several colours, never longer than there is room for.

use crate::harmless::harmless;
use std::fmt::Write as _;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cli) enum Style {
    Plain,
    Dim,
    Good,
    Busy,
    Bad,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::cli) struct Line(Vec<(Style, String)>);

// === impl Line ===

impl Line {
    pub(in crate::cli) fn plain(text: &str) -> Self {
        Self::default().with(Style::Plain, text)
    }

    /// What comes from an app may hold anything: it must not steer the terminal.
    pub(in crate::cli) fn with(mut self, style: Style, text: &str) -> Self {
        self.0.push((style, harmless(text)));
        self
    }

    /// How many columns it takes at most.
    pub(in crate::cli) fn width(&self) -> usize {
        self.0.iter().flat_map(|(_, text)| text.chars()).map(columns).sum()
    }

    pub(in crate::cli) fn render(&self, width: usize, has_colour: bool) -> String {
        let is_cut = self.width() > width;
        let mut room = if is_cut { width.saturating_sub(1) } else { width };
        let mut fits = |c: &char| {
            let left = room.checked_sub(columns(*c));
            room = left.unwrap_or(0);
            left.is_some()
        };
        let mut out = String::new();
        for (style, text) in &self.0 {
            let part: String = text.chars().take_while(&mut fits).collect();
            match style.code().filter(|_| has_colour && !part.is_empty()) {
                // Writing to a String cannot fail.
                Some(code) => _ = write!(out, "\x1b[{code}m{part}\x1b[0m"),
                None => out.push_str(&part),
            }
        }
        if is_cut && width > 0 {
            out.push('…');
        }
        out
    }
}

/// From here on some are two columns wide. A line that is cut too early is better than one that is wrapped.
const WIDE: char = '\u{1100}';

fn columns(c: char) -> usize {
    // What we draw with ourselves is narrow.
    if c < WIDE || matches!(c, '…' | '→' | '─'..='▟') { 1 } else { 2 }
}

// === impl Style ===

impl Style {
    fn code(self) -> Option<u8> {
        match self {
            Self::Plain => None,
            Self::Dim => Some(2),
            Self::Good => Some(32),
            Self::Busy => Some(33),
            Self::Bad => Some(31),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_cut_where_the_terminal_ends() {
        let line = Line::plain("shop ").with(Style::Good, "über alles");
        assert_eq!(line.render(80, false), "shop über alles");
        assert_eq!(line.render(15, false), "shop über alles");
        assert_eq!(line.render(8, false), "shop üb…");
        assert_eq!(line.render(1, false), "…");
        assert_eq!(line.render(0, false), "");
    }

    #[test]
    fn wide_characters_have_room() {
        let line = Line::plain("店 ").with(Style::Good, "店店x");
        assert_eq!(line.render(8, false), "店 店店x");
        assert_eq!(line.render(7, false), "店 店…");
        assert_eq!(
            line.render(5, true),
            "店 …",
            "half a character is none, nor is the next one taken instead"
        );
    }

    #[test]
    fn colours_do_not_count() {
        let line = Line::plain("a ").with(Style::Bad, "failed");
        assert_eq!(line.render(8, true), "a \x1b[31mfailed\x1b[0m");
        assert_eq!(line.render(5, true), "a \x1b[31mfa\x1b[0m…");
    }

    #[test]
    fn an_app_cannot_steer_the_terminal() {
        let line = Line::plain("\x1b[2Jhi\r\n\u{9b}31m\tthere\u{202e}");
        assert_eq!(line.render(80, true), "\u{fffd}[2Jhi\u{fffd}\u{fffd}\u{fffd}31m there\u{fffd}");
    }
}
