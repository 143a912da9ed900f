//! How long nginx hosts take to acknowledge what this host says. Nothing here speaks to anybody.

use super::edges::Edges;
use handoff_wire::store::Name;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant, SystemTime},
};

#[derive(Debug, Default)]
pub struct Lags {
    /// What was written and not everybody has answered.
    pending: VecDeque<Written>,
    edges: BTreeMap<Name, Seen>,
    histogram: Histogram,
}

#[derive(Debug)]
struct Written {
    revision: i64,
    sent: Instant,
    waits: BTreeSet<Name>,
}

/// An edge, in the life that it has now.
#[derive(Clone, Copy, Debug)]
struct Seen {
    lease: i64,
    since: SystemTime,
    last: Option<Duration>,
}

/// Of seconds, as Prometheus has it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Histogram {
    /// Below each of [`BOUNDS`], not summed up.
    counts: [u64; BOUNDS.len()],
    pub count: u64,
    pub sum: f64,
}

/// In seconds. What takes longer than a lease is answered by nobody.
pub const BOUNDS: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Who lags behind by more is behind, whatever the number.
const MOST: usize = 64;

// === impl Lags ===

impl Lags {
    /// The store has it, since this revision. Its answer may come after that of an edge.
    pub fn wrote(&mut self, revision: i64, sent: Instant, edges: &Edges, now: Instant) {
        let behind: BTreeSet<Name> = edges.behind(revision).into_iter().cloned().collect();
        let answered: Vec<Name> = edges.names().filter(|edge| !behind.contains(*edge)).cloned().collect();
        for edge in answered {
            self.add(&edge, now - sent);
        }
        if !behind.is_empty() {
            self.pending.push_back(Written { revision, sent, waits: behind });
        }
        if self.pending.len() > MOST {
            self.pending.pop_front();
        }
    }

    /// An edge has all up to this revision.
    pub fn heard(&mut self, edge: &Name, revision: i64, now: Instant) {
        let mut took = Vec::new();
        for written in self.pending.iter_mut().filter(|written| written.revision <= revision) {
            took.extend(written.waits.remove(edge).then(|| now - written.sent));
        }
        took.into_iter().for_each(|took| self.add(edge, took));
        self.pending.retain(|written| !written.waits.is_empty());
    }

    /// An edge registered, perhaps for the second time.
    pub fn came(&mut self, edge: &Name, lease: i64) {
        let new = Seen { lease, since: SystemTime::now(), last: None };
        let seen = self.edges.entry(edge.clone()).or_insert(new);
        if seen.lease != lease {
            *seen = new;
        }
    }

    pub fn left(&mut self, edge: &Name) {
        self.edges.remove(edge);
        for written in &mut self.pending {
            written.waits.remove(edge);
        }
        self.pending.retain(|written| !written.waits.is_empty());
    }

    /// Since when it is known, and how long it took to answer last.
    pub fn of(&self, edge: &Name) -> Option<(SystemTime, Option<Duration>)> {
        self.edges.get(edge).map(|seen| (seen.since, seen.last))
    }

    /// For how long it has owed an answer.
    pub fn owes(&self, edge: &Name, now: Instant) -> Duration {
        let oldest = self.pending.iter().find(|written| written.waits.contains(edge));
        oldest.map_or(Duration::ZERO, |written| now.saturating_duration_since(written.sent))
    }

    pub fn histogram(&self) -> &Histogram {
        &self.histogram
    }

    fn add(&mut self, edge: &Name, took: Duration) {
        self.histogram.add(took);
        if let Some(seen) = self.edges.get_mut(edge) {
            seen.last = Some(took);
        }
    }
}

// === impl Histogram ===

impl Histogram {
    pub fn add(&mut self, took: Duration) {
        let seconds = took.as_secs_f64();
        let at = BOUNDS.iter().position(|bound| seconds <= *bound);
        if let Some(count) = at.and_then(|at| self.counts.get_mut(at)) {
            *count += 1;
        }
        self.count += 1;
        self.sum += seconds;
    }

    /// How many took no longer than each bound.
    pub fn buckets(&self) -> impl Iterator<Item = (f64, u64)> {
        let sums = self.counts.iter().scan(0, |sum, count| {
            *sum += count;
            Some(*sum)
        });
        BOUNDS.into_iter().zip(sums)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use handoff_wire::store::AckValue;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    fn ack(revision: i64) -> AckValue {
        AckValue {
            revision,
            instance: "a".into(),
            upstreams: Vec::new(),
            refused: Vec::new(),
            uncovered: Vec::new(),
            amiss: Vec::new(),
        }
    }

    #[test]
    fn an_answer_counts_once_whichever_is_heard_first() {
        let (mut edges, mut lags, sent) = (Edges::default(), Lags::default(), Instant::now());
        for (edge, revision) in [("slow", 6), ("fast", 7)] {
            edges.hear_edge(name(edge), Some(1));
            lags.came(&name(edge), 1);
            edges.hear_ack(name(edge), Some((1, ack(revision))));
        }
        let after = |millis| sent + Duration::from_millis(millis);
        lags.wrote(7, sent, &edges, after(2));
        assert_eq!(lags.histogram().count, 1);
        lags.heard(&name("fast"), 7, after(3));
        lags.heard(&name("slow"), 6, after(3));
        assert_eq!(lags.histogram().count, 1);
        assert_eq!(lags.owes(&name("fast"), after(3)), Duration::ZERO);
        assert_eq!(lags.owes(&name("slow"), after(3)), Duration::from_millis(3));
        lags.heard(&name("slow"), 8, after(40));
        lags.heard(&name("slow"), 9, after(50));
        assert_eq!(
            lags.histogram().buckets().take(4).map(|(_, count)| count).collect::<Vec<_>>(),
            [1, 1, 1, 2]
        );
        let (_, last) = lags.of(&name("slow")).unwrap();
        assert_eq!(last, Some(Duration::from_millis(40)));
    }

    #[test]
    fn who_left_is_not_waited_for_and_begins_anew() {
        let (mut edges, mut lags, now) = (Edges::default(), Lags::default(), Instant::now());
        edges.hear_edge(name("a"), Some(1));
        lags.came(&name("a"), 1);
        lags.wrote(7, now, &edges, now);
        lags.left(&name("a"));
        lags.came(&name("a"), 2);
        lags.heard(&name("a"), 7, now);
        assert_eq!(lags.histogram().count, 0);
        for revision in 8..200 {
            lags.wrote(revision, now, &edges, now);
        }
        assert_eq!(lags.pending.len(), MOST);
    }
}
