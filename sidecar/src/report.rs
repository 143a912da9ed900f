//! What a running sidecar says of itself: one small file a daemon, written each second, read by `handoff status`.
//!
//! A file and not a socket: there is nothing to ask, nobody can keep us waiting, and it is there to read when we hang.

use crate::{
    host::{Proc, Process},
    peer::Peer,
    pm2::{PmId, home::Home},
    roster::{Notices, Roster},
};
use handoff_wire::Owner;
use serde::{Deserialize, Serialize};
use std::{
    collections::VecDeque,
    env, fs,
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// Who writes it; absent while it has not begun.
    pub sidecar: Option<Process>,
    pub version: String,
    pub home: String,
    pub owner: String,
    /// Milliseconds since 1970.
    pub at: u64,
    pub notices: Notices,
    pub latency: LatencyView,
    /// Where preloads are heard.
    #[serde(default)]
    pub preload: Option<PathBuf>,
    pub workers: Vec<WorkerReport>,
    /// Workers in cluster mode that PM2 has forgotten: their pids.
    #[serde(default)]
    pub forgotten: Vec<u32>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WorkerReport {
    pub id: PmId,
    pub app: String,
    pub phase: String,
    pub peers: Vec<Peer>,
    /// It has the preload, which speaks with us.
    #[serde(default)]
    pub preload: bool,
}

/// From PM2's notice of a stop to nginx's acknowledgement, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LatencyView {
    pub count: u64,
    pub p50: u64,
    pub p99: u64,
    pub max: u64,
    pub last: u64,
}

#[derive(Debug, Default)]
pub struct Latency {
    recent: VecDeque<u64>,
    count: u64,
    max: u64,
}

/// Percentiles are of so many.
const RECENT: usize = 512;
/// A report older than this is one of a sidecar that hangs.
pub const STALE: Duration = Duration::from_secs(5);

// === impl Report ===

impl Report {
    pub fn new(
        home: &Home,
        owner: &Owner,
        roster: &Roster,
        latency: &Latency,
        preload: Option<&Path>,
    ) -> Self {
        let workers = roster.workers().map(|(id, worker)| WorkerReport {
            id,
            app: worker.app().to_owned(),
            phase: worker.phase().to_string(),
            peers: worker.claims().iter().cloned().collect(),
            preload: roster.has_preload(id, worker),
        });
        Self {
            sidecar: Process::own(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            home: home.to_string(),
            owner: owner.to_string(),
            at: now(),
            notices: roster.notices(),
            latency: latency.view(),
            preload: preload.map(Path::to_owned),
            workers: workers.collect(),
            forgotten: roster.forgotten(Instant::now()).iter().map(|process| process.pid).collect(),
        }
    }

    /// Whether the process that wrote it still runs.
    pub fn is_live(&self) -> bool {
        self.sidecar.is_some_and(|sidecar| sidecar.is_alive(&Proc::default()))
    }

    pub fn age(&self) -> Duration {
        Duration::from_millis(now().saturating_sub(self.at))
    }

    pub fn write(&self, dir: &Path) -> io::Result<()> {
        replace(&file(dir, &self.owner), self)
    }

    pub fn read(dir: &Path, owner: &Owner) -> Option<Self> {
        serde_json::from_slice(&fs::read(file(dir, owner.as_str())).ok()?).ok()
    }

    pub fn remove(dir: &Path, owner: &Owner) {
        _ = fs::remove_file(file(dir, owner.as_str()));
    }
}

/// Replaces the file as a whole: a reader never sees half of it.
pub fn replace(path: &Path, report: &impl Serialize) -> io::Result<()> {
    let new = path.with_extension(format!("{}.new", std::process::id()));
    // Left over from a sidecar that was killed here with our number.
    _ = fs::remove_file(&new);
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o640).open(&new)?;
    // At once: a call for each word would be all that is done at rest.
    file.write_all(&serde_json::to_vec(report)?)?;
    fs::rename(&new, path)
}

/// What is to be done about workers that PM2 has forgotten.
pub fn of_forgotten(pids: &[u32]) -> Option<String> {
    let pids: Vec<String> = pids.iter().map(u32::to_string).collect();
    (!pids.is_empty()).then(|| {
        format!(
            "PM2 has forgotten in cluster mode: pid {}. No reload replaces what serves on there with old code; `kill -INT {}` \
             ends it",
            pids.join(", "),
            pids.join(" ")
        )
    })
}

fn file(dir: &Path, owner: &str) -> PathBuf {
    dir.join(format!("{}.json", owner.replace('/', "_")))
}

fn now() -> u64 {
    let since = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Where reports may be: the place of a service, those of services for one user each (`handoff@USER`), and that of a user.
pub fn places() -> Vec<PathBuf> {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(dir) = set("HANDOFF_RUNTIME_DIR") {
        return vec![dir];
    }
    let own = set("XDG_RUNTIME_DIR").map(|dir| dir.join("handoff"));
    let run = fs::read_dir("/run").into_iter().flatten().flatten();
    let is_ours = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().starts_with("handoff-");
    let each = run.filter(is_ours).map(|entry| entry.path());
    ["/run/handoff".into()].into_iter().chain(each).chain(own).collect()
}

/// What living sidecars say of a daemon.
pub fn live(home: &Home) -> impl Iterator<Item = Report> {
    let owner = home.owner();
    places().into_iter().filter_map(move |dir| Report::read(&dir, owner.as_ref()?)).filter(Report::is_live)
}

/// The first place where we may write.
pub fn writable_place() -> io::Result<PathBuf> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for dir in places() {
        match fs::DirBuilder::new().recursive(true).mode(0o750).create(&dir).and_then(|()| may_write(&dir)) {
            Ok(()) => return Ok(dir),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn may_write(dir: &Path) -> io::Result<()> {
    rustix::fs::access(dir, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK).map_err(Into::into)
}

// === impl Latency ===

impl Latency {
    pub fn add(&mut self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.count += 1;
        self.max = self.max.max(micros);
        self.recent.push_back(micros);
        if self.recent.len() > RECENT {
            self.recent.pop_front();
        }
    }

    pub fn view(&self) -> LatencyView {
        let mut sorted: Vec<u64> = self.recent.iter().copied().collect();
        sorted.sort_unstable();
        let percentile = |percent: usize| {
            let rank = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
            sorted.get(rank).copied().unwrap_or(0)
        };
        LatencyView {
            count: self.count,
            p50: percentile(50),
            p99: percentile(99),
            max: self.max,
            last: self.recent.back().copied().unwrap_or(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_last_ones_and_the_maximum_of_all() {
        let mut latency = Latency::default();
        assert_eq!(latency.view(), LatencyView::default());
        for micros in (1..=1000).rev() {
            latency.add(Duration::from_micros(micros));
        }
        assert_eq!(latency.view(), LatencyView { count: 1000, p50: 256, p99: 507, max: 1000, last: 1 });
    }

    #[test]
    fn a_report_is_read_as_it_was_written() {
        let dir = crate::scratch::Dir::new();
        let owner: Owner = "pm2:/home/shop/.pm2".parse().unwrap();
        let report =
            Report { owner: owner.to_string(), sidecar: Process::own(), at: now(), ..Report::default() };
        report.write(&dir).unwrap();
        report.write(&dir).unwrap();
        let read = Report::read(&dir, &owner).unwrap();
        assert_eq!(read.sidecar, Process::own());
        assert!(read.age() < STALE);
        Report::remove(&dir, &owner);
        assert!(Report::read(&dir, &owner).is_none());
    }
}
