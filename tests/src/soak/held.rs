//! What the processes hold that live through all deploys, looked at again and again: memory, and open files.

use crate::{process, stand::Stand};
use std::{collections::BTreeMap, fmt, fs};

/// So much more may be held in the last third of the time than in the second, by the median of each. nginx and the
/// allocator take memory by the page and the arena, at moments that chance chooses; who loses a kilobyte with each of a
/// thousand requests, or a descriptor with every tenth deploy, is far beyond it.
const MEMORY_KB: u64 = 1_024;
const FILES: u64 = 8;

/// Below so many looks a third of them says nothing.
const LOOKS: usize = 30;

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

#[derive(Clone, Copy, Debug)]
struct Look {
    kb: u64,
    files: u64,
}

/// The medians of the second third of the looks, and of the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Course {
    pub kb: (u64, u64),
    pub files: (u64, u64),
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
        let both = |what: fn(&Look) -> u64| Some((median(second, what)?, median(last, what)?));
        Some(Course { kb: both(|look| look.kb)?, files: both(|look| look.files)? })
    }

    /// Who holds more and more. Of a short time nothing can be said.
    pub fn grown(&self) -> Vec<String> {
        let judged = [Who::Master, Who::Workers, Who::Sidecar];
        judged.into_iter().filter_map(|who| self.has_grown(who)).collect()
    }

    fn has_grown(&self, who: Who) -> Option<String> {
        if self.0.get(&who)?.len() < LOOKS {
            return None;
        }
        let Course { kb, files } = self.course(who)?;
        let grown = kb.1 > kb.0 + MEMORY_KB || files.1 > files.0 + FILES;
        grown.then(|| {
            format!("{who} holds more and more: {} -> {} kB, {} -> {} files", kb.0, kb.1, files.0, files.1)
        })
    }
}

fn median(looks: &[Look], what: fn(&Look) -> u64) -> Option<u64> {
    let mut all: Vec<u64> = looks.iter().map(what).collect();
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

    /// Looked at 300 times; `of` says how many kB and files there were.
    fn held(of: fn(u64) -> (u64, u64)) -> Held {
        let looks = (0..300).map(of).map(|(kb, files)| Look { kb, files }).collect();
        Held([(Who::Sidecar, looks)].into())
    }

    #[test]
    fn who_warms_up_and_then_wavers_has_not_grown() {
        let wavers = held(|at| (8_000 + at.min(90) * 100 + at % 7 * 300, 20 + at % 5));
        assert_eq!(wavers.grown(), Vec::<String>::new());
        let once = held(|at| (if at == 250 { 90_000 } else { 8_000 }, 20));
        assert_eq!(once.grown(), Vec::<String>::new());
    }

    #[test]
    fn who_takes_a_little_each_time_has() {
        assert_eq!(held(|at| (8_000 + at * 11, 20)).grown().len(), 1);
        assert_eq!(held(|at| (8_000, 20 + at / 10)).grown().len(), 1);
    }

    #[test]
    fn of_a_short_time_nothing_is_said() {
        let looks = (0..29).map(|at| Look { kb: at * 10_000, files: 1 }).collect();
        assert!(Held([(Who::Sidecar, looks)].into()).grown().is_empty());
    }
}
