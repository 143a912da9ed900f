//! What an app is protected against, and why not against more.
//!
//! L0 is what the sidecar gives without any change to the app: `pm2 reload` and `pm2 restart` as ever. It rests on PM2's
//! notice of a stop, on knowing the worker's peers, and on somebody else who serves meanwhile. L1, `handoff reload`, needs
//! the last two only; and in cluster mode room for its canary. L2 is every worker's own word, through the preload: whoever
//! tells it to go, it goes when nginx knows.

use crate::{mapping::Behind, peer::Peer, rollout::cluster, roster::Notices, worker::Worker};
use std::{collections::BTreeSet, env, fmt, path::PathBuf};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Level {
    L2,
    L0,
    /// And why not L0.
    L1(Why),
    None(Why),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    NotMapped(String),
    Treekill,
    NoPs,
    NoNotice,
    Alone,
    NoReady,
    NoSidecar,
}

/// What is known of the surroundings.
#[derive(Clone, Copy, Debug)]
pub struct Surroundings {
    /// PM2 finds `ps`, without which it signals at once.
    pub has_ps: bool,
    pub runs: bool,
    pub notices: Notices,
}

/// What is known of a worker.
#[derive(Clone, Debug)]
pub struct Known<'a> {
    pub worker: &'a Worker,
    pub peers: BTreeSet<Peer>,
    /// Why it has none.
    pub why_not_mapped: Option<String>,
    /// It speaks with the sidecar itself.
    pub preload: bool,
    /// While it is replaced and nobody else serves, requests wait.
    pub waits: bool,
    /// Another one could stand in for it.
    pub spare: bool,
}

pub fn level(workers: &[Known<'_>], around: Surroundings) -> Level {
    let any = |is: fn(&Worker) -> bool| workers.iter().any(|known| is(known.worker));
    let is_cluster = any(|worker| worker.settings().cluster);
    let why = if let Some(reason) = workers.iter().find_map(|known| known.why_not_mapped.clone()) {
        Why::NotMapped(reason)
    } else if is_alone(workers) && !workers.iter().all(|known| known.waits) {
        Why::Alone
    } else if around.runs && workers.iter().all(|known| known.preload) {
        return Level::L2;
    } else if any(|worker| !worker.settings().treekill) {
        Why::Treekill
    } else if !around.has_ps {
        Why::NoPs
    } else if around.notices.late > 0 && around.notices.in_time == 0 {
        Why::NoNotice
    } else if !is_cluster && workers.len() > 1 && any(|worker| !worker.settings().wait_ready) {
        Why::NoReady
    } else if !around.runs {
        Why::NoSidecar
    } else {
        return Level::L0;
    };
    let settings = workers.iter().map(|known| known.worker.settings());
    match why {
        Why::Alone if !is_cluster && matches!(workers, [Known { spare: true, .. }]) => Level::L1(why),
        Why::NotMapped(_) | Why::Alone => Level::None(why),
        _ if is_cluster && cluster::noticed("", settings).is_some() => Level::None(why),
        Why::Treekill | Why::NoPs | Why::NoNotice | Why::NoReady | Why::NoSidecar => Level::L1(why),
    }
}

/// What holds at every level where one worker serves alone.
pub fn alone(workers: &[Known<'_>]) -> Option<&'static str> {
    let is_fork = workers.iter().all(|known| !known.worker.settings().cluster);
    let waits = is_alone(workers) && is_fork && workers.iter().all(|known| known.waits);
    waits.then_some(match workers {
        [Known { spare: true, .. }] => {
            "one worker only: requests wait while PM2 replaces it; at `handoff reload` another one stands in"
        }
        _ => {
            "one worker only: requests wait while it is replaced; run two or more, or give its upstream a port to spare \
             for `handoff reload`"
        }
    })
}

/// Some upstream has one worker of the app only.
fn is_alone(workers: &[Known<'_>]) -> bool {
    let upstreams = |peers: &BTreeSet<Peer>| -> BTreeSet<String> {
        peers.iter().map(|peer| peer.upstream.clone()).collect()
    };
    let of: Vec<BTreeSet<String>> = workers.iter().map(|known| upstreams(&known.peers)).collect();
    of.iter().flatten().any(|name| of.iter().filter(|names| names.contains(name)).count() < 2)
}

/// Why a worker has no peer.
pub fn why_not_mapped<'a>(
    worker: &Worker,
    listens: &[String],
    behind: impl Iterator<Item = (&'a Peer, &'a Behind)>,
    is_one_of_several: impl Fn(&Behind) -> bool,
) -> String {
    if let Some(unknown) = worker.unknown() {
        return unknown.to_string();
    }
    if worker.process().is_none() {
        return "it does not run".into();
    }
    if let Some((peer, _)) = behind.into_iter().find(|(_, behind)| is_one_of_several(behind)) {
        return format!("several workers share {}", peer.address);
    }
    if listens.is_empty() {
        return "it listens on no port and no socket".into();
    }
    format!("it listens on {}, and no upstream with `handoff` has that address", listens.join(", "))
}

/// Whether `ps` is where PM2 would find it. The daemon's own PATH is in its environment, which we do not read.
pub fn has_ps() -> bool {
    let own = env::var_os("PATH").unwrap_or_default();
    let usual = ["/bin", "/usr/bin", "/usr/local/bin"].map(PathBuf::from);
    env::split_paths(&own).chain(usual).any(|dir| dir.join("ps").is_file())
}

impl Level {
    pub fn name(&self) -> Option<&'static str> {
        match self {
            Self::L2 => Some("L2"),
            Self::L0 => Some("L0"),
            Self::L1(_) => Some("L1"),
            Self::None(_) => None,
        }
    }

    /// What stands against more.
    pub fn why_not(&self) -> Option<&Why> {
        match self {
            Self::L2 | Self::L0 => None,
            Self::L1(why) | Self::None(why) => Some(why),
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::L2 => f.write_str("L2"),
            Self::L0 => f.write_str("L0"),
            Self::L1(why) => write!(f, "L1: `handoff reload` loses nothing, but `pm2 reload` may: {why}"),
            Self::None(why) => write!(f, "not protected: {why}"),
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotMapped(reason) => f.write_str(reason),
            Self::Treekill => {
                f.write_str("treekill is off, so PM2 signals before nginx can be told; turn it on")
            }
            Self::NoPs => {
                f.write_str("`ps` is not installed, so PM2 signals before nginx can be told; install procps")
            }
            Self::NoNotice => {
                f.write_str("PM2 gives no notice of a stop; is PM2_LOG_DATE_FORMAT empty in its environment?")
            }
            Self::Alone => f.write_str(
                "one worker only and handoff_queue off, so nobody serves while it is replaced; run two or more",
            ),
            Self::NoReady => f.write_str(
                "wait_ready is off, so PM2 stops the next worker before this one serves; turn it on, and send `ready` \
                 when the app listens",
            ),
            Self::NoSidecar => f.write_str("the sidecar does not run; start `handoff run`"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        host::Process,
        pm2::monitor::{Settings, Status},
        worker::Seen,
    };
    use std::time::Instant;

    fn worker(port: u16, settings: Settings) -> Worker {
        let now = Instant::now();
        let mut worker = Worker::new(now);
        worker.describe("shop", &settings);
        let open = Ok([Peer::new("shop", format!("127.0.0.1:{port}"))].into());
        let process = Some(Process { pid: u32::from(port), start: 1 });
        worker.look(&Seen { began: now, process, status: Some(Status::Online), open }, now);
        worker
    }

    fn known(worker: &Worker, preload: bool) -> Known<'_> {
        Known {
            worker,
            peers: worker.claims().clone(),
            why_not_mapped: None,
            preload,
            waits: false,
            spare: false,
        }
    }

    fn of(workers: &[Worker], around: Surroundings) -> Level {
        level(&workers.iter().map(|worker| known(worker, false)).collect::<Vec<_>>(), around)
    }

    const GOOD: Surroundings =
        Surroundings { has_ps: true, runs: true, notices: Notices { in_time: 0, late: 0 } };

    fn fork() -> Settings {
        Settings { treekill: true, wait_ready: true, ..Settings::default() }
    }

    #[test]
    fn two_forks_that_are_mapped_are_l0() {
        assert_eq!(of(&[worker(1, fork()), worker(2, fork())], GOOD), Level::L0);
    }

    #[test]
    fn what_pm2_does_too_early_a_roll_out_does_in_time() {
        let hasty = [1, 2].map(|port| worker(port, Settings { wait_ready: false, ..fork() }));
        assert_eq!(of(&hasty, GOOD), Level::L1(Why::NoReady));
        assert!(matches!(of(&hasty[..1], GOOD), Level::None(Why::Alone)));
    }

    #[test]
    fn another_one_stands_in_for_the_only_worker_in_fork_mode() {
        let of = |settings| level(&[Known { spare: true, ..known(&worker(1, settings), false) }], GOOD);
        assert_eq!(of(fork()), Level::L1(Why::Alone));
        assert_eq!(of(Settings { cluster: true, ..fork() }), Level::None(Why::Alone));
    }

    #[test]
    fn where_requests_wait_one_worker_is_as_good_as_two_and_that_they_wait_is_said() {
        let hasty = worker(1, Settings { wait_ready: false, ..fork() });
        let one = |preload, spare| [Known { waits: true, spare, ..known(&hasty, preload) }];
        assert_eq!(level(&one(false, false), GOOD), Level::L0);
        assert_eq!(level(&one(true, false), GOOD), Level::L2);
        assert!(alone(&one(false, false)).unwrap().contains("give its upstream a port to spare"));
        assert!(alone(&one(false, true)).unwrap().contains("another one stands in"));
        assert_eq!(alone(&[known(&hasty, false)]), None, "it is no protection");
        let two = [1, 2].map(|port| worker(port, fork()));
        assert_eq!(alone(&[0, 1].map(|index| Known { waits: true, ..known(&two[index], false) })), None);
    }

    #[test]
    fn in_cluster_mode_pm2_waits_for_the_new_worker_by_itself() {
        let cluster = Settings { cluster: true, wait_ready: false, instance: Some(0), ..fork() };
        let pair = |settings: &Settings| [1, 1].map(|port| worker(port, settings.clone()));
        assert_eq!(of(&pair(&cluster), GOOD), Level::L0);
        assert_eq!(of(&pair(&cluster)[..1], GOOD), Level::None(Why::Alone));
        let hasty = Settings { treekill: false, ..cluster };
        assert_eq!(of(&pair(&hasty), GOOD), Level::L1(Why::Treekill));
    }

    #[test]
    fn in_cluster_mode_there_is_no_l1_where_there_is_no_canary() {
        let cluster = Settings { cluster: true, treekill: false, instance: Some(0), ..fork() };
        let counted = Settings { increment_var: Some("PORT".into()), ..cluster.clone() };
        let headless = Settings { instance: Some(1), ..cluster };
        for settings in [counted, headless] {
            let pair = [1, 1].map(|port| worker(port, settings.clone()));
            assert_eq!(of(&pair, GOOD), Level::None(Why::Treekill));
        }
    }

    #[test]
    fn workers_that_speak_for_themselves_need_no_notice_of_pm2() {
        let hasty = [1, 2].map(|port| worker(port, Settings::default()));
        let of = |preloads: [bool; 2], around| {
            level(&[0, 1].map(|index| known(&hasty[index], preloads[index])), around)
        };
        assert_eq!(of([true, true], Surroundings { has_ps: false, ..GOOD }), Level::L2);
        assert_eq!(of([true, false], GOOD), Level::L1(Why::Treekill));
        assert_eq!(of([true, true], Surroundings { runs: false, ..GOOD }), Level::L1(Why::Treekill));
        assert_eq!(level(&[known(&hasty[0], true)], GOOD), Level::None(Why::Alone));
    }

    #[test]
    fn every_reason_against_it_is_given() {
        let two = [worker(1, fork()), worker(2, fork())];
        let why = |workers: &[Worker], around| match of(workers, around) {
            Level::L1(why) | Level::None(why) => why,
            level @ (Level::L2 | Level::L0) => panic!("{level}"),
        };
        let hasty = [1, 2].map(|port| worker(port, Settings::default()));
        assert_eq!(why(&hasty, GOOD), Why::Treekill);
        assert_eq!(why(&two, Surroundings { has_ps: false, ..GOOD }), Why::NoPs);
        let late = Notices { in_time: 0, late: 1 };
        assert_eq!(why(&two, Surroundings { notices: late, ..GOOD }), Why::NoNotice);
        assert_eq!(why(&two[..1], GOOD), Why::Alone);
        let hasty = Settings { wait_ready: false, ..fork() };
        assert_eq!(why(&[worker(1, hasty.clone()), worker(2, hasty)], GOOD), Why::NoReady);
        assert_eq!(why(&two, Surroundings { runs: false, ..GOOD }), Why::NoSidecar);
        let hidden =
            Known { peers: BTreeSet::new(), why_not_mapped: Some("it hides".into()), ..known(&two[0], true) };
        let lost = level(&[hidden], GOOD);
        assert_eq!(lost, Level::None(Why::NotMapped("it hides".into())));
    }
}
