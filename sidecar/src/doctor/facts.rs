//! What was seen. Checks look at nothing else, so that each can be shown what it is about.

use super::{finding::Unseen, nginx::Nginx};
use crate::{
    mapping::Behind,
    peer::Peer,
    pm2::{
        PmId,
        home::Home,
        monitor::{Settings, Status},
    },
    store::{Role, report::StoreReport, standing::Database},
};
use handoff_wire::store::Name;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The configuration; absent if it could not be read.
    pub nginx: Option<Nginx>,
    pub binary: Option<Binary>,
    /// What nginx says if it does not take its configuration.
    pub refused: Option<String>,
    pub running: Option<Running>,
    pub upgrade: Option<Upgrade>,
    pub daemons: Vec<Daemon>,
    pub apps: Vec<App>,
    /// Who listens at each address that nginx passes to. A peer of no `upstream` block has its address for a name.
    pub behind: BTreeMap<Peer, Behind>,
    pub file: Option<EcosystemFile>,
    pub control: Option<Control>,
    /// One for each sidecar that has one.
    pub stores: Vec<Store>,
    pub host: Host,
    pub asked: Asked,
    pub unseen: Vec<Unseen>,
}

/// What the command was told.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    /// One app, and what is in front of it.
    pub app: Option<String>,
    pub slowest: Option<Duration>,
    pub health: Option<String>,
    /// Where this command looks for nginx.
    pub control: String,
    pub version: String,
}

/// The nginx whose configuration was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Binary {
    pub path: PathBuf,
    /// `1.22.1`
    pub version: String,
    pub conf: PathBuf,
    /// How to reach the one that runs: `/usr/sbin/nginx -c …`.
    pub command: String,
    /// A module for this version, if one is where it would be.
    pub module: Option<PathBuf>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Running {
    pub pid: u32,
    /// Whose process the master is.
    pub user: Option<u32>,
    /// The module that it has mapped is not the file any more that had its name.
    pub stale_module: Option<String>,
    /// That its workers may have open.
    pub open_files: Option<u64>,
    /// What AppArmor or SELinux calls it.
    pub label: Option<String>,
}

/// What the nginx given with `--nginx` says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Upgrade {
    pub path: PathBuf,
    pub version: String,
    pub misfits: Vec<Misfit>,
    /// It does not take the configuration, and says why.
    pub refused: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misfit {
    pub module: String,
    pub why: Unfit,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// It was made for this one.
    Version(String),
    /// The version is right, the way that it was built is not.
    Signature,
    /// It cannot be loaded at all.
    Unloadable(String),
}

#[derive(Clone, Debug)]
pub struct Daemon {
    pub home: Home,
    pub seen: Seen,
    pub sidecar: Option<Sidecar>,
    /// Of the same home, without the sockets.
    pub twins: Vec<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    Running {
        pid: u32,
        uid: u32,
        user: Option<User>,
        /// Its PM2_LOG_DATE_FORMAT is empty. None: that could not be seen.
        has_no_dates: Option<bool>,
    },
    /// Its socket is not believed, or not open to us.
    Refused(String),
    Absent(String),
    /// It runs, and was not asked to be looked at.
    Other {
        pid: u32,
    },
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub uid: u32,
    /// Names of all its groups.
    pub groups: BTreeSet<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sidecar {
    pub pid: u32,
    pub uid: Option<u32>,
    pub version: String,
    pub hangs: bool,
    /// It was announced no stop in time, and some too late.
    pub is_deaf: bool,
    /// Workers in cluster mode that PM2 has forgotten: their pids.
    pub forgotten: Vec<u32>,
}

#[derive(Clone, Debug, Default)]
pub struct App {
    pub name: String,
    pub home: Option<Home>,
    pub uid: u32,
    pub workers: Vec<Worker>,
    pub level: Option<String>,
    /// Of the file it names in `node_args`, if it names one.
    pub preload: Option<Preload>,
    pub log: PmLog,
    /// What was answered, by whom: in cluster mode nobody can say.
    pub health: Vec<(Option<PmId>, Health)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Preload {
    pub path: PathBuf,
    pub file: PreloadFile,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PreloadFile {
    Ours,
    Other,
    Gone,
    Unreadable,
}

/// What PM2's log says of the app.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PmLog {
    /// Workers that were taken for ready when `listen_timeout` was over, at their last start.
    pub unready: BTreeSet<PmId>,
    /// How many workers were stopped, and how many of them ended with SIGKILL or an error when they last were.
    pub stops: usize,
    pub killed: usize,
}

#[derive(Clone, Debug)]
pub struct Worker {
    pub id: PmId,
    pub status: Status,
    pub settings: Settings,
    pub listens: Vec<SocketAddr>,
    /// The peers of nginx that it is behind.
    pub peers: BTreeSet<Peer>,
    /// Why its processes could not be looked at.
    pub unknown: Option<String>,
    /// Whether it speaks with the sidecar. None: no sidecar says so.
    pub speaks: Option<bool>,
    /// From `Keep-Alive: timeout=` of its answer.
    pub keep_alive: Option<Duration>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    pub answer: Answer,
    /// The second answer was the same, and short.
    pub is_constant: bool,
    /// What a path that cannot be there is answered.
    pub anywhere: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Status(u16),
    Failed(String),
}

impl Default for Answer {
    fn default() -> Self {
        Self::Status(200)
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EcosystemFile {
    pub path: PathBuf,
    pub apps: Vec<FileApp>,
    /// In PM2's words.
    pub refused: Option<String>,
}

/// An app as the file describes it; what the file does not say is absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(default)]
pub struct FileApp {
    pub name: String,
    pub exec_mode: Option<String>,
    pub wait_ready: Option<bool>,
    pub treekill: Option<bool>,
    pub listen_timeout: Option<u64>,
    pub kill_timeout: Option<u64>,
    pub min_uptime: Option<u64>,
    pub max_restarts: Option<u64>,
    pub increment_var: Option<String>,
    /// By the name of the block, `env` or `env_production`: its PORT.
    pub ports: BTreeMap<String, u16>,
    /// Names of the `env_…` blocks.
    pub envs: Vec<String>,
}

/// Where app hosts and nginx hosts meet: what it says, and who is there.
#[derive(Clone, Debug)]
pub struct Store {
    pub name: Name,
    pub role: Role,
    pub cluster: Name,
    /// The user of etcd that was given.
    pub user: Option<String>,
    /// Endpoints to which everything goes in the clear.
    pub unguarded: Vec<String>,
    pub members: Vec<Member>,
    pub login: Login,
    /// The names of the nginx hosts that are there. None: nobody answered that.
    pub edges: Option<BTreeSet<Name>>,
    /// What those say that they have.
    pub acks: Vec<AckSeen>,
    /// What the sidecar says that runs.
    pub report: Option<StoreReport>,
}

/// Of etcd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub endpoint: String,
    pub answer: MemberAnswer,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemberAnswer {
    Status {
        version: String,
        database: Database,
        /// In its words.
        errors: Vec<String>,
    },
    /// It lost the others.
    NoLeader,
    /// Nobody is there, or answers.
    Unreached(String),
    /// Somebody is there, and does not speak with us.
    Unspoken(String),
    /// What is needed to ask it cannot be read.
    File(String),
}

/// Whether we may do there what our role needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Login {
    #[default]
    Untried,
    Refused(String),
    /// In the words of `etcdctl role grant-permission`; empty: all is allowed.
    Lacks(Vec<String>),
}

/// What the nginx of an edge has of the peers of a host, by upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AckSeen {
    pub host: Name,
    pub edge: Name,
    pub upstreams: BTreeMap<String, BTreeSet<String>>,
}

/// What nginx's control socket says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Control {
    pub answer: Reached,
    /// The module's.
    pub version: Option<String>,
    pub upstreams: BTreeSet<String>,
    pub peers_without_room: u32,
    /// Marks of sidecars that ran out, of the last 256 changes.
    pub lapsed: usize,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Reached {
    #[default]
    Yes,
    /// And why.
    No(String),
    /// We may not write to it.
    Denied(String),
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    pub has_ps: bool,
    /// It has an address that others reach.
    pub is_reachable: bool,
    /// Enforcing, and what `httpd_can_network_connect` is. None: SELinux does not enforce here.
    pub selinux: Option<bool>,
    /// Why the sidecar could not keep its state.
    pub state: Option<(PathBuf, String)>,
}

// === impl Facts ===

impl Facts {
    /// Whether nginx has the module.
    pub fn has_module(&self) -> bool {
        self.nginx.as_ref().is_some_and(|nginx| {
            nginx.speaks_handoff || nginx.modules.iter().any(|(_, file)| is_our_module(file))
        })
    }

    /// The apps behind an address or an upstream: those that listen there, and those that would.
    pub fn apps_behind<'a>(&'a self, name: &'a str, peers: &'a [&'a str]) -> impl Iterator<Item = &'a App> {
        self.apps.iter().filter(move |app| {
            let listens =
                app.workers.iter().any(|worker| worker.peers.iter().any(|peer| peer.upstream == name));
            let would = |worker: &Worker| {
                worker.settings.port.is_some_and(|port| peers.iter().any(|peer| is_here(peer, port)))
            };
            listens || app.workers.iter().any(would)
        })
    }

    /// Whether that is where an app's requests go: seen, or, where PM2 was not seen, because it is this host.
    pub fn is_apps(&self, name: &str, peers: &[&str]) -> bool {
        let has_seen = self.daemons.iter().any(|daemon| matches!(daemon.seen, Seen::Running { .. }));
        if has_seen {
            return self.apps_behind(name, peers).next().is_some();
        }
        peers
            .iter()
            .any(|peer| peer.starts_with("unix:") || address(peer).is_some_and(|at| at.ip().is_loopback()))
    }

    /// The upstreams over HTTP that are some app's.
    pub fn upstreams(&self) -> impl Iterator<Item = &super::nginx::Upstream> {
        let all = self.nginx.iter().flat_map(|nginx| &nginx.upstreams);
        all.filter(|upstream| {
            let peers: Vec<&str> = upstream.peers().collect();
            let is_wanted = upstream.handoff && self.asked.app.is_none();
            !upstream.is_stream && (is_wanted || self.is_apps(&upstream.name, &peers))
        })
    }

    /// The settings of an app's file.
    pub fn file_of(&self, app: &str) -> Option<(&EcosystemFile, &FileApp)> {
        let file = self.file.as_ref()?;
        Some((file, file.apps.iter().find(|of| of.name == app)?))
    }

    /// What makes a changed file count.
    pub fn reload_command(&self, app: &str) -> String {
        match self.file_of(app) {
            Some((file, of)) => file.reload(match &of.envs[..] {
                [only] => Some(only),
                _ => None,
            }),
            None => "handoff reload ECOSYSTEM_FILE".to_owned(),
        }
    }
}

// === impl EcosystemFile ===

impl EcosystemFile {
    /// From its own directory: what it says of paths is relative to where PM2 is called.
    pub fn reload(&self, env: Option<&str>) -> String {
        let dir = self.path.parent().unwrap_or(Path::new("/")).display();
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        let env = env.map(|env| format!(" --env {env}")).unwrap_or_default();
        format!("cd {dir} && handoff reload {name}{env}")
    }
}

pub fn is_our_module(file: &str) -> bool {
    file.contains("ngx_http_handoff_module")
}

pub fn address(peer: &str) -> Option<SocketAddr> {
    peer.parse().ok()
}

fn is_here(peer: &str, port: u16) -> bool {
    address(peer).is_some_and(|address| address.ip().is_loopback() && address.port() == port)
}

// === impl App ===

impl App {
    pub fn is_cluster(&self) -> bool {
        self.workers.iter().any(|worker| worker.settings.cluster)
    }

    pub fn any(&self, is: impl Fn(&Settings) -> bool) -> bool {
        self.workers.iter().any(|worker| is(&worker.settings))
    }

    /// Each of its workers speaks for itself.
    pub fn has_preload(&self) -> bool {
        !self.workers.is_empty() && self.workers.iter().all(|worker| worker.speaks == Some(true))
    }

    /// The upstreams that it is behind.
    pub fn upstreams(&self) -> BTreeSet<&str> {
        self.workers.iter().flat_map(|worker| &worker.peers).map(|peer| peer.upstream.as_str()).collect()
    }

    pub fn kill_timeout(&self) -> Option<Duration> {
        self.workers.iter().find_map(|worker| worker.settings.kill_timeout)
    }
}
