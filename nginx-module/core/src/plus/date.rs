//! A moment as that API writes it: ISO 8601, with milliseconds.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

/// Of milliseconds since 1970. None: no calendar goes so far.
pub(super) fn iso(unix: u64) -> Option<String> {
    let at = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(unix))?;
    let mut text = String::new();
    write!(text, "{}", humantime::format_rfc3339_millis(at)).ok()?;
    Some(text)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_written_with_milliseconds_in_utc() {
        for (unix, text) in [
            (0, Some("1970-01-01T00:00:00.000Z")),
            (1_656_410_961_602, Some("2022-06-28T10:09:21.602Z")),
            (1_709_164_800_000, Some("2024-02-29T00:00:00.000Z")),
            (u64::MAX, None),
        ] {
            assert_eq!(iso(unix).as_deref(), text);
        }
    }
}
