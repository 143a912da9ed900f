//! What a running sidecar says of the store: one small file, written each second beside its other reports, read by
//! `handoff status` and the doctor; metrics are made of the same.

use super::{Settings, edge::Shown, gateway::Desk, lag::Histogram, session, standing::Stand};
use crate::{
    config,
    host::{Proc, Process},
    report,
    telemetry::Changes,
};
use handoff_wire::store::Name;
use serde::{Deserialize, Serialize};
use std::{
    fs,
    net::IpAddr,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::time;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StoreReport {
    /// Who writes it.
    pub sidecar: Option<Process>,
    pub version: String,
    /// Milliseconds since 1970.
    pub at: u64,
    /// How the store is reached.
    pub store: config::Store,
    pub requests: u64,
    pub failures: u64,
    /// Workers run here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostReport>,
    /// nginx runs here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub edge: Option<EdgeReport>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostReport {
    #[serde(flatten)]
    pub stand: Stand,
    /// The nginx hosts that are there.
    pub edges: Vec<EdgeLine>,
    /// From a write to the answer of an nginx host, of all of them.
    pub acknowledgements: Histogram,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EdgeLine {
    pub name: Name,
    /// Since when this host has known it, in milliseconds since 1970.
    pub since: u64,
    /// How many changes of the store there are between what it has and what this host said last.
    pub behind: i64,
    /// For how long that has been so.
    #[serde(default)]
    pub behind_ms: u64,
    /// How long it took to have what it answered last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acknowledged_us: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EdgeReport {
    #[serde(flatten)]
    pub stand: Stand,
    /// The app hosts that are there.
    pub hosts: Vec<HostLine>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostLine {
    pub name: Name,
    pub addresses: Vec<IpAddr>,
    /// How many peers nginx has at these.
    pub peers: usize,
}

/// Who is asked for it.
#[derive(Clone, Debug)]
pub struct Source {
    pub store: config::Store,
    pub host: Option<Arc<Desk>>,
    pub edge: Option<Arc<Shown>>,
}

const PACE: Duration = Duration::from_secs(1);
/// What the files' names begin and end with.
const NAME: (&str, &str) = ("store.", ".json");

// === impl Source ===

impl Source {
    pub fn new(settings: &Settings) -> Self {
        Self { store: settings.into(), host: None, edge: None }
    }

    pub fn report(&self) -> StoreReport {
        let (requests, failures) = session::requests();
        StoreReport {
            sidecar: Process::own(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            at: super::standing::millis(SystemTime::now()),
            store: self.store.clone(),
            requests,
            failures,
            host: self.host.as_ref().map(|desk| desk.report()),
            edge: self.edge.as_ref().map(|shown| shown.report()),
        }
    }

    /// Writes it, each second, for as long as this is polled.
    pub async fn publish(self) {
        let mut log = Changes::default();
        loop {
            let report = self.report();
            let written = tokio::task::spawn_blocking(move || {
                let dir = report::writable_place()?;
                report::replace(&dir.join(report.file()), &report)
            });
            if let Ok(Err(error)) = written.await {
                log.warn(format!("`handoff status` cannot be told of the store: {error}"));
            }
            time::sleep(PACE).await;
        }
    }

    /// It ends, and says nothing more.
    pub fn withdraw(&self) {
        let file = self.report().file();
        report::places().into_iter().for_each(|dir| _ = fs::remove_file(dir.join(&file)));
    }
}

// === impl StoreReport ===

impl StoreReport {
    fn file(&self) -> String {
        let name = self.store.name.as_ref().map_or("", Name::as_str);
        format!("{}{name}{}", NAME.0, NAME.1)
    }

    fn read(path: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(path).ok()?).ok()
    }

    fn is_live(&self) -> bool {
        self.sidecar.is_some_and(|sidecar| sidecar.is_alive(&Proc::default()))
    }

    pub fn age(&self) -> Duration {
        let now = super::standing::millis(SystemTime::now());
        Duration::from_millis(now.saturating_sub(self.at))
    }

    pub fn name(&self) -> &str {
        self.store.name.as_ref().map_or("?", Name::as_str)
    }
}

/// What living sidecars say of the store, one of which `handoff run --store` made each.
pub fn live() -> Vec<StoreReport> {
    let files = report::places().into_iter().filter_map(|dir| fs::read_dir(dir).ok()).flatten().flatten();
    let is_ours = |name: &str| name.starts_with(NAME.0) && name.ends_with(NAME.1);
    let ours = files.filter(|file| file.file_name().to_str().is_some_and(is_ours));
    let mut reports: Vec<StoreReport> =
        ours.filter_map(|file| StoreReport::read(&file.path())).filter(StoreReport::is_live).collect();
    reports.sort_by(|one, other| one.name().cmp(other.name()));
    reports
}

#[cfg(test)]
pub(crate) mod stage {
    //! Reports for the tests of those who read them.

    use super::*;
    use crate::store::standing::Database;

    pub(crate) fn connected() -> Stand {
        Stand {
            connected: true,
            since: super::super::standing::millis(SystemTime::now()) - 60_000,
            member: Some("http://10.0.0.2:2379".into()),
            lease_ms: 8_000,
            revision: 7,
            database: Some(Database { size: 1 << 20, in_use: 1 << 19, quota: None }),
            ..Stand::default()
        }
    }

    pub(crate) fn report() -> StoreReport {
        let mut acknowledgements = Histogram::default();
        acknowledgements.add(Duration::from_millis(8));
        let name = |text: &str| text.parse().unwrap();
        let edge = EdgeLine {
            name: name("edge1"),
            since: connected().since,
            behind: 0,
            behind_ms: 0,
            acknowledged_us: Some(8_100),
        };
        StoreReport {
            sidecar: Process::own(),
            version: "0.1.0".into(),
            at: super::super::standing::millis(SystemTime::now()),
            store: config::Store {
                endpoints: vec!["http://10.0.0.2:2379".into()],
                name: Some(name("app1")),
                ..config::Store::default()
            },
            requests: 12,
            failures: 1,
            host: Some(HostReport { stand: connected(), edges: vec![edge], acknowledgements }),
            edge: Some(EdgeReport {
                stand: connected(),
                hosts: vec![HostLine {
                    name: name("app1"),
                    addresses: vec!["10.0.0.5".parse().unwrap()],
                    peers: 4,
                }],
            }),
        }
    }

    #[test]
    fn a_report_is_read_as_it_was_written() {
        let dir = crate::scratch::Dir::new();
        let written = report();
        let path = dir.join(written.file());
        report::replace(&path, &written).unwrap();
        let read = StoreReport::read(&path).unwrap();
        assert_eq!((read.host, read.edge, read.store), (written.host, written.edge, written.store));
        assert!(path.ends_with("store.app1.json"));
    }
}
