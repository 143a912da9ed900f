//! What the processes hold that live through all deploys, looked at again and again: memory, and open files.

use crate::{process, stand::Stand};
use std::{collections::BTreeMap, fmt, fs};

/// So much more memory may be held from one half minute to the next, by the median of all of them. Memory that is taken once
/// for the most that was ever under way, and kept, comes in steps, at moments that chance chooses; who loses ten bytes with
/// each request, or ten kB with each deploy, takes more in every half minute.
const GROWTH_KB: u64 = 32;
/// In looks, one each second.
const HALF_MINUTE: usize = 30;
/// Of fewer looks nothing can be said: visitors keep their connections for more than a minute, and nginx some memory for
/// each.
const LOOKS: usize = 360;

/// So many more descriptors may be open when the last visitor has gone than before the first one came: to workers of the
/// app, and of whoever asks just then. Whoever loses one with each fifth deploy is beyond it.
const FILES: u64 = 8;
/// The same of memory, which is not given back, in kB.
const KEPT_KB: u64 = 16 * 1_024;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Who {
    Master,
    /// All of nginx's workers together.
    Workers,
    Sidecar,
    /// Not ours to answer for: a Node program, which takes before it gives back.
    Pm2,
}

/// As long as the site stands.
#[derive(Debug, Default)]
pub struct Held(BTreeMap<Who, Vec<Look>>);

/// What is held while nobody visits.
#[derive(Clone, Debug)]
pub struct Rest(BTreeMap<Who, Look>);

#[derive(Clone, Copy, Debug)]
struct Look {
    kb: u64,
    files: u64,
}

/// The medians of the second third of the looks, and of the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Course {
    pub kb: (u64, u64),
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Master => "nginx master",
            Self::Workers => "nginx workers",
            Self::Sidecar => "sidecar",
            Self::Pm2 => "PM2",
        })
    }
}

// === impl Held ===

impl Held {
    pub fn look(&mut self, stand: &Stand) {
        let sidecar = stand.sidecar.iter().map(|sidecar| sidecar.pid()).collect();
        for (who, pids) in [
            (Who::Master, vec![stand.site.master()]),
            (Who::Workers, stand.site.serving_workers()),
            (Who::Sidecar, sidecar),
            (Who::Pm2, stand.pm2.daemon().into_iter().collect()),
        ] {
            let look = Look {
                kb: pids.iter().filter_map(|&pid| process::resident(pid)).sum(),
                files: pids.iter().map(|&pid| files(pid)).sum(),
            };
            self.0.entry(who).or_default().push(look);
        }
    }

    pub fn course(&self, who: Who) -> Option<Course> {
        let looks = self.0.get(&who)?;
        let third = looks.len() / 3;
        let (second, last) = (looks.get(third..2 * third)?, looks.get(2 * third..)?);
        Some(Course { kb: (median(second)?, median(last)?) })
    }

    /// Who holds more and more. Of a short time nothing can be said.
    pub fn grown(&self) -> Vec<String> {
        let judged = [Who::Master, Who::Workers, Who::Sidecar];
        let grown = judged.into_iter().filter_map(|who| Some((who, self.growth(who)?)));
        let grown = grown.filter(|&(_, kb)| kb > GROWTH_KB);
        grown.map(|(who, kb)| format!("{who}: {kb} kB more in each half minute")).collect()
    }

    /// What is held more after half a minute, by the median, in kB. The first third of the time is left out.
    pub fn growth(&self, who: Who) -> Option<u64> {
        let looks = self.0.get(&who).filter(|looks| looks.len() >= LOOKS)?;
        let held = looks.get(looks.len() / 3..)?.chunks_exact(HALF_MINUTE).filter_map(median);
        let held: Vec<u64> = held.collect();
        let mut more: Vec<u64> =
            held.iter().zip(held.iter().skip(1)).map(|(a, b)| b.saturating_sub(*a)).collect();
        more.sort_unstable();
        more.get(more.len() / 2).copied()
    }
}

// === impl Rest ===

impl Rest {
    pub fn now(stand: &Stand) -> Self {
        let mut held = Held::default();
        held.look(stand);
        let looks = held.0.into_iter().filter_map(|(who, looks)| Some((who, looks.first().copied()?)));
        Self(looks.filter(|(who, _)| *who != Who::Pm2).collect())
    }

    pub fn files(&self, who: Who) -> u64 {
        self.0.get(&who).map_or(0, |look| look.files)
    }

    /// Who kept what the deploys had brought.
    pub fn kept(&self, before: &Self) -> Vec<String> {
        let pairs = self.0.iter().filter_map(|(who, after)| Some((who, before.0.get(who)?, after)));
        let kept = pairs.filter(|(_, before, after)| {
            after.files > before.files + FILES || after.kb > before.kb + KEPT_KB
        });
        kept.map(|(who, before, after)| {
            format!(
                "{who} had {} files and {} kB before, and has {} and {} after",
                before.files, before.kb, after.files, after.kb
            )
        })
        .collect()
    }
}

fn median(looks: &[Look]) -> Option<u64> {
    let mut all: Vec<u64> = looks.iter().map(|look| look.kb).collect();
    all.sort_unstable();
    all.get(all.len() / 2).copied()
}

fn files(pid: u32) -> u64 {
    let open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten().count();
    u64::try_from(open).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looked at 600 times; `of` says how many kB there were.
    fn held(of: fn(u64) -> u64) -> Held {
        let looks = (0..600).map(of).map(|kb| Look { kb, files: 20 }).collect();
        Held([(Who::Sidecar, looks)].into())
    }

    #[test]
    fn who_warms_up_and_then_wavers_has_not_grown() {
        assert!(held(|at| 8_000 + at.min(190) * 100 + at % 7 * 300).grown().is_empty());
        assert!(held(|at| if at == 500 { 90_000 } else { 8_000 }).grown().is_empty());
    }

    #[test]
    fn who_keeps_what_the_most_that_was_under_way_took_has_not_grown() {
        assert!(held(|at| 8_000 + at / 100 * 700 + at / 40 * 4).grown().is_empty());
    }

    #[test]
    fn who_takes_a_little_each_time_has() {
        assert_eq!(held(|at| 8_000 + at * 2).grown().len(), 1);
        assert_eq!(held(|at| 8_000 + at / 12 * 24 + at % 7 * 20).grown().len(), 1);
    }

    #[test]
    fn of_a_short_time_nothing_is_said() {
        let looks = (0..359).map(|at| Look { kb: at * 10_000, files: 1 }).collect();
        assert!(Held([(Who::Sidecar, looks)].into()).grown().is_empty());
    }

    #[test]
    fn what_is_not_given_back_is_found() {
        let rest = |files, kb| Rest([(Who::Workers, Look { kb, files })].into());
        let kept = |files, kb| rest(files, kb).kept(&rest(20, 8_000)).len();
        assert_eq!([kept(20, 8_000), kept(28, 24_000), kept(29, 8_000), kept(20, 25_000)], [0, 0, 1, 1]);
    }
}
