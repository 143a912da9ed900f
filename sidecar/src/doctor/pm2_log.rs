//! PM2's own log: when it took a worker for ready, and how those ended that it stopped.

use super::facts::PmLog;
use crate::pm2::PmId;
use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom},
    path::Path,
    time::Duration,
};

/// The end of the log, which is enough for what happened last.
const READ: u64 = 4 << 20;
/// PM2 writes whole seconds: of less than that its log says nothing.
const COARSE: Duration = Duration::from_secs(2);

#[derive(Default)]
struct Last {
    started: Option<i64>,
    /// Seconds until it was taken for ready.
    took: Option<i64>,
    is_stopping: bool,
    /// How it ended when it was last told to: well or not.
    ended: Option<bool>,
}

pub fn read(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let len = file.metadata()?.len();
    file.seek(SeekFrom::Start(len.saturating_sub(READ)))?;
    let mut bytes = Vec::new();
    file.take(READ).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// What it says of one app. `ready`: how long PM2 waits for that, if it does.
pub fn of(log: &str, app: &str, ready: Option<Duration>) -> PmLog {
    let mut workers = BTreeMap::<PmId, Last>::new();
    for line in log.lines() {
        let Some((at, event)) = line.split_once(": PM2 log: ") else { continue };
        if let Some(id) = stopping(event, app) {
            workers.entry(id).or_default().is_stopping = true;
        } else if let Some((id, event)) = happened(event, app) {
            workers.entry(id).or_default().take(seconds(at), event);
        }
    }
    let listen = ready.filter(|ready| *ready >= COARSE).and_then(|ready| i64::try_from(ready.as_secs()).ok());
    let is_late = |last: &Last| listen.zip(last.took).is_some_and(|(listen, took)| took >= listen);
    // One that was sooner shows that the app says it.
    let starts: Vec<_> = workers.iter().filter(|(_, last)| last.took.is_some()).collect();
    let unready = starts.iter().all(|(_, last)| is_late(last)).then(|| starts.iter().map(|(id, _)| **id));
    let ends: Vec<bool> = workers.values().filter_map(|last| last.ended).collect();
    PmLog {
        unready: unready.into_iter().flatten().collect(),
        stops: ends.len(),
        killed: ends.iter().filter(|well| !**well).count(),
    }
}

/// `Stopping app:shop id:_old_0`
fn stopping(event: &str, app: &str) -> Option<PmId> {
    let (name, id) = event.strip_prefix("Stopping app:")?.rsplit_once(" id:")?;
    if name == app { number(id) } else { None }
}

/// `App [shop:0] online`
fn happened<'a>(event: &'a str, app: &str) -> Option<(PmId, &'a str)> {
    let (name, event) = event.strip_prefix("App [")?.split_once("] ")?;
    let (name, id) = name.rsplit_once(':')?;
    if name == app { Some((number(id)?, event)) } else { None }
}

fn number(id: &str) -> Option<PmId> {
    id.trim().trim_start_matches("_old_").parse().ok().map(PmId)
}

// === impl Last ===

impl Last {
    fn take(&mut self, at: Option<i64>, event: &str) {
        if event.starts_with("starting in ") {
            (self.started, self.took) = (at, None);
        } else if event == "online" {
            self.took = self.started.take().zip(at).map(|(from, to)| to - from);
        } else if let Some(how) = event.strip_prefix("exited with code ") {
            // One that ends before it was ready says nothing of `ready`.
            self.started = None;
            if std::mem::take(&mut self.is_stopping) {
                self.ended = Some(how.starts_with("[0]") && !how.ends_with("[SIGKILL]"));
            }
        }
    }
}

/// Of `2026-11-27T10:00:00`, in seconds since some day.
fn seconds(text: &str) -> Option<i64> {
    let (date, time) = text.split_once('T')?;
    let number = |text: Option<&str>| text?.parse::<i64>().ok();
    let mut date = date.split('-');
    let (year, month, day) = (number(date.next())?, number(date.next())?, number(date.next())?);
    let mut time = time.get(..8)?.split(':');
    let (hour, minute, second) = (number(time.next())?, number(time.next())?, number(time.next())?);
    // Years begin in March, so that the odd day is their last.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day;
    Some(((days * 24 + hour) * 60 + minute) * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(lines: &[(&str, &str)]) -> String {
        lines.iter().map(|(at, event)| format!("2026-11-{at}: PM2 log: {event}\n")).collect()
    }

    const LISTEN: Option<Duration> = Some(Duration::from_secs(10));

    #[test]
    fn a_worker_that_was_taken_for_ready_at_the_last_moment_said_nothing() {
        let started = |took: &str| {
            log(&[
                ("30T23:59:55", "App [shop:0] starting in -cluster mode-"),
                ("30T23:59:56", "App [jobs:0] online"),
                (took, "App [shop:0] online"),
            ])
        };
        let late = started("30T23:59:65").replace("2026-11-30T23:59:65", "2026-12-01T00:00:05");
        assert_eq!(of(&late, "shop", LISTEN).unready, [PmId(0)].into());
        assert_eq!(of(&late, "shop", None), PmLog::default(), "PM2 does not wait for it");
        assert_eq!(of(&late, "jobs", LISTEN), PmLog::default());
        assert_eq!(of(&started("30T23:59:57"), "shop", LISTEN).unready, [].into());
        let soon = started("30T23:59:57").replace(":0]", ":1]") + &late;
        assert_eq!(of(&soon, "shop", LISTEN).unready, [].into(), "the app says it");
    }

    #[test]
    fn an_ordered_end_is_well_or_not() {
        let ended = |how: &str| {
            log(&[
                ("27T10:00:00", "Stopping app:shop id:_old_3"),
                ("27T10:00:08", &format!("App [shop:_old_3] exited with {how}")),
                ("27T10:00:09", "App [shop:2] exited with code [0] via signal [SIGKILL]"),
            ])
        };
        for (how, killed) in [
            ("code [0] via signal [SIGKILL]", 1),
            ("code [1] via signal [SIGINT]", 1),
            ("code [0] via signal [SIGINT]", 0),
        ] {
            let found = of(&ended(how), "shop", LISTEN);
            assert_eq!((found.stops, found.killed), (1, killed), "{how}");
        }
        let again = ended("code [1] via signal [SIGINT]") + &ended("code [0] via signal [SIGINT]");
        assert_eq!(of(&again, "shop", LISTEN).killed, 0, "the last one counts");
    }
}
