//! Where nginx tried each visit, and how long it kept it waiting, in its own words. Failures are never counted from here,
//! only explained.

use anyhow::{Context, Result};
use std::{collections::HashMap, fmt, fs, net::SocketAddr, path::Path, time::Duration};

/// By the number of the visit.
#[derive(Clone, Debug, Default)]
pub struct AccessLog(HashMap<u64, Entry>);

#[derive(Clone, Debug, Default)]
struct Entry {
    /// The peers, in order.
    tried: Vec<SocketAddr>,
    held: Duration,
    /// `$handoff_retry`: why it was tried again, or not.
    decision: String,
    /// None of them took a connection.
    is_refused: bool,
}

impl AccessLog {
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        Ok(Self::parse(&text))
    }

    /// Lines without a visit's number are the stage's own questions.
    pub fn parse(text: &str) -> Self {
        Self(text.lines().filter_map(line).collect())
    }

    pub fn tried(&self, visit: u64) -> &[SocketAddr] {
        self.0.get(&visit).map(|entry| entry.tried.as_slice()).unwrap_or_default()
    }

    /// How long this one waited for a peer.
    pub fn waited(&self, visit: u64) -> Duration {
        self.0.get(&visit).map(|entry| entry.held).unwrap_or_default()
    }

    /// The peers at which it was tried, if nobody listened at any of them.
    pub fn refused(&self, visit: u64) -> Option<&[SocketAddr]> {
        self.0.get(&visit).filter(|entry| entry.is_refused).map(|entry| entry.tried.as_slice())
    }

    /// It was not tried again, for so many others were.
    pub fn is_over_budget(&self, visit: u64) -> bool {
        self.0.get(&visit).is_some_and(|entry| entry.decision == "budget")
    }

    /// All of it, for the person who looks for what went wrong.
    pub fn entry(&self, visit: u64) -> impl fmt::Debug + '_ {
        self.0.get(&visit)
    }

    /// Whether the visit ever reached nginx.
    pub fn knows(&self, visit: u64) -> bool {
        self.0.contains_key(&visit)
    }

    /// Visits that nginx tried more than once.
    pub fn retried(&self) -> usize {
        self.0.values().filter(|entry| entry.tried.len() > 1).count()
    }

    /// How long each visit that waited for a peer did so.
    pub fn held(&self) -> impl Iterator<Item = Duration> {
        self.0.values().map(|entry| entry.held).filter(|held| !held.is_zero())
    }
}

fn line(line: &str) -> Option<(u64, Entry)> {
    let mut fields = line.split('|');
    let visit = fields.next()?.parse().ok()?;
    // With no peer left, nginx writes the name of the upstream: that was no try.
    let tried = fields.next()?.split([',', ' ']).filter_map(|word| word.parse().ok()).collect();
    // Only Handoff has anybody wait.
    let held = fields.nth(1).and_then(|seconds| seconds.parse().ok());
    let held = held.map(Duration::from_secs_f64).unwrap_or_default();
    let decision = fields.next().unwrap_or_default().to_owned();
    let mut took =
        fields.nth(1).into_iter().flat_map(|times| times.split([',', ' '])).filter(|time| !time.is_empty());
    let is_refused = took.next() == Some("-") && took.all(|time| time == "-");
    Some((visit, Entry { tried, held, decision, is_refused }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_visit_that_went_on_to_a_second_peer_was_retried() {
        let log = AccessLog::parse(
            "1|127.0.0.1:3000|200\n2|127.0.0.1:3000, 127.0.0.1:3001|502, 200\n-|127.0.0.1:3000|200\n3|myapp|502\n",
        );
        assert_eq!(log.tried(1).len(), 1);
        assert_eq!(log.tried(2).len(), 2);
        assert!(log.tried(3).is_empty());
        assert_eq!(log.retried(), 1);
    }

    #[test]
    fn a_visit_that_met_only_closed_ports_was_refused() {
        let log = AccessLog::parse(
            "1|127.0.0.1:1, 127.0.0.1:2|502, 502|0.200|same|up|-, -\n2|127.0.0.1:1, 127.0.0.1:2|502, 502|0.200|same|up|-, 0.001\n\
             3|127.0.0.1:1|502|0.000\n",
        );
        assert_eq!([1, 2, 3].map(|visit| log.refused(visit).map(<[_]>::len)), [Some(2), None, None]);
    }

    #[test]
    fn who_waited_is_known_where_anybody_waits() {
        let log = AccessLog::parse("1|127.0.0.1:3000|200|0.000\n2|127.0.0.1:3000|200|0.412\n3|myapp|502|-\n");
        assert_eq!(log.held().collect::<Vec<_>>(), [Duration::from_millis(412)]);
        assert_eq!([1, 2, 3, 4].map(|visit| log.waited(visit).as_millis()), [0, 412, 0, 0]);
    }
}
