//! What others wrote, made fit for a terminal and for a log.

/// The same without control characters, among them those that begin an escape sequence or another line.
pub fn harmless(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '\t' => ' ',
            c if steers(c) => char::REPLACEMENT_CHARACTER,
            c => c,
        })
        .collect()
}

/// Whether a terminal does something else with it than show it: control characters, and those that turn the direction
/// in which text is read.
pub fn steers(c: char) -> bool {
    c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_steers_is_replaced_and_the_rest_stays() {
        assert_eq!(harmless("a\tb\n\x1b[2Jc\u{202e}ü"), "a b\u{fffd}\u{fffd}[2Jc\u{fffd}ü");
    }
}
