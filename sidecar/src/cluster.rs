//! Apps in cluster mode: whether one of their workers is being replaced.
//!
//! PM2's daemon listens for all workers of such an app, so nginx cannot keep a request away from the one that goes. But a
//! connection is one worker's for as long as it lasts: while somebody goes, nginx uses each for one request.
//!
//! PM2 says in time that it replaces a worker: when it starts the new one, a whole start-up before the old one gets its
//! signal. It lists the new one only; the old one is a child of the daemon that is not listed any more.

use crate::host::Process;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

#[derive(Debug, Default)]
pub struct Clusters {
    /// Whose processes these are, and were.
    apps: BTreeMap<Process, String>,
    /// Those that PM2 lists no longer.
    leavers: BTreeMap<Process, Leaver>,
    has_looked: bool,
    /// Until when PM2's word stands, that it replaces a worker of an app. By then it can be seen.
    heard: BTreeMap<String, Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Leaver {
    since: Instant,
    /// It was a worker, or may have been one before we came. Else PM2 has just started it, and does not list it yet.
    may_serve: bool,
}

/// Longer than PM2 takes to do what it says.
const WORD: Duration = Duration::from_secs(2);
/// How often to look whether what was said is over.
const PACE: Duration = Duration::from_millis(250);

impl Clusters {
    /// PM2 says that it starts or stops a worker of the app.
    pub fn hear(&mut self, app: &str, now: Instant) {
        self.heard.insert(app.to_owned(), now + WORD);
    }

    /// A worker of the app is this process.
    pub fn meet(&mut self, app: &str, process: Process) {
        self.apps.insert(process, app.to_owned());
    }

    /// These are children of the daemon, and no workers that it lists.
    pub fn left(&mut self, leavers: &BTreeSet<Process>, now: Instant) {
        let is_first = !std::mem::replace(&mut self.has_looked, true);
        self.leavers.retain(|leaver, _| leavers.contains(leaver));
        for &leaver in leavers {
            let may_serve = is_first || self.apps.contains_key(&leaver);
            self.leavers.entry(leaver).or_insert(Leaver { since: now, may_serve });
        }
    }

    /// True: it was a worker's.
    pub fn died(&mut self, process: Process) -> bool {
        self.leavers.remove(&process);
        self.apps.remove(&process).is_some()
    }

    pub fn tick(&mut self, now: Instant) {
        self.heard.retain(|_, until| *until > now);
    }

    /// When time alone changes something.
    pub fn next_tick(&self) -> Option<Instant> {
        self.heard.values().min().copied()
    }

    /// Somebody goes, as far as that is not to be seen in the workers that PM2 lists.
    pub fn is_leaving(&self, app: &str) -> bool {
        self.heard.contains_key(app) || self.leavers_of(app).next().is_some()
    }

    /// Somebody whom PM2 lists no longer is there, and nobody knows that it has stopped.
    pub fn is_served_by_leavers(&self, app: &str) -> bool {
        self.leavers_of(app).any(|leaver| leaver.may_serve)
    }

    /// One that we never met may be anybody's.
    fn leavers_of(&self, app: &str) -> impl Iterator<Item = &Leaver> {
        let is_its = move |leaver: &Process| self.apps.get(leaver).is_none_or(|of| of == app);
        self.leavers.iter().filter(move |(leaver, _)| is_its(leaver)).map(|(_, leaver)| leaver)
    }

    /// Those whom PM2 should have ended in this time, and has not: it has lost sight of them.
    pub fn forgotten(&self, patience: Duration, now: Instant) -> impl Iterator<Item = Process> {
        let is_forgotten = move |since: Instant| now.saturating_duration_since(since) > patience;
        self.leavers.iter().filter(move |(_, leaver)| is_forgotten(leaver.since)).map(|(&leaver, _)| leaver)
    }

    /// How often to look, because somebody goes.
    pub fn pace(&self) -> Option<Duration> {
        (!self.heard.is_empty() || !self.leavers.is_empty()).then_some(PACE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: Process = Process { pid: 7, start: 1 };

    #[test]
    fn who_is_not_listed_any_more_is_leaving_until_it_ends() {
        let mut clusters = Clusters::default();
        clusters.meet("shop", OLD);
        clusters.left(&[OLD].into(), Instant::now());
        assert!(clusters.is_leaving("shop") && !clusters.is_leaving("blog"));
        assert_eq!(clusters.pace(), Some(PACE));
        clusters.died(OLD);
        assert!(!clusters.is_leaving("shop"));
        assert_eq!(clusters.pace(), None);
    }

    #[test]
    fn a_leaver_that_was_never_met_may_be_anybodys() {
        let mut clusters = Clusters::default();
        clusters.left(&[OLD].into(), Instant::now());
        assert!(clusters.is_leaving("shop") && clusters.is_leaving("blog"));
    }

    #[test]
    fn who_was_a_worker_serves_until_it_ends_and_who_is_not_listed_yet_does_not() {
        let now = Instant::now();
        let (mut clusters, new) = (Clusters::default(), Process { pid: 8, start: 2 });
        clusters.meet("shop", OLD);
        clusters.left(&BTreeSet::new(), now);
        clusters.left(&[new].into(), now);
        assert!(clusters.is_leaving("shop") && !clusters.is_served_by_leavers("shop"));
        clusters.left(&[OLD, new].into(), now);
        assert!(clusters.is_served_by_leavers("shop") && !clusters.is_served_by_leavers("blog"));
        clusters.died(OLD);
        assert!(!clusters.is_served_by_leavers("shop"));
        // Listed, and then no longer.
        clusters.meet("shop", new);
        clusters.left(&BTreeSet::new(), now);
        clusters.left(&[new].into(), now);
        assert!(clusters.is_served_by_leavers("shop"));
    }

    #[test]
    fn who_had_left_before_we_came_may_serve() {
        let mut clusters = Clusters::default();
        clusters.left(&[OLD].into(), Instant::now());
        assert!(clusters.is_served_by_leavers("shop"));
    }

    #[test]
    fn who_is_leaving_for_longer_than_pm2_takes_is_forgotten() {
        let (mut clusters, began) = (Clusters::default(), Instant::now());
        let mut after = |seconds, leavers: &[Process]| {
            let now = began + Duration::from_secs(seconds);
            clusters.left(&leavers.iter().copied().collect(), now);
            clusters.forgotten(Duration::from_secs(30), now).collect::<Vec<_>>()
        };
        assert_eq!(after(0, &[OLD]), []);
        assert_eq!(after(30, &[OLD]), []);
        assert_eq!(after(31, &[OLD]), [OLD]);
        assert_eq!(after(32, &[]), []);
        assert_eq!(after(33, &[OLD]), [], "it is counted from when it left");
    }

    #[test]
    fn pm2s_word_stands_until_it_can_be_seen() {
        let (mut clusters, now) = (Clusters::default(), Instant::now());
        clusters.hear("shop", now);
        clusters.hear("shop", now + WORD / 2);
        clusters.tick(now + WORD);
        assert!(clusters.is_leaving("shop") && !clusters.is_leaving("blog"));
        clusters.tick(clusters.next_tick().unwrap());
        assert!(!clusters.is_leaving("shop"));
    }
}
