//! Looking, and saying what could not be looked at.

use super::{
    ask,
    binary::{self, Chosen, Dump},
    conf::{self, Directive},
    ecosystem::{self, Pm2Code},
    facts::{
        App, Asked, Control as Told, Daemon, Facts, Host, Preload, PreloadFile, Reached, Seen, Sidecar,
        Worker,
    },
    finding::Unseen,
    nginx::{self, Names, Nginx, Target},
    pm2_log,
    security::Sys,
    store,
    users::Users,
};
use crate::{
    cli::preload::PRELOAD,
    config::Override,
    control::{Address, Control},
    host::{Locals, Proc, Processes, process},
    level,
    mapping::Behind,
    memory,
    peer::{Peer, Place},
    pm2::{
        PmId,
        home::Home,
        monitor::{LISTEN_TIMEOUT, Listed, Settings},
        rpc::RpcError,
    },
    report::{self, Report},
    store::{self as meeting, Role},
    survey::{self, Survey, SurveyError},
};
use handoff_wire::{EventKind, Renew};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::{SocketAddr, TcpStream, ToSocketAddrs as _},
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{task, time};

/// What the command was told to look at.
#[derive(Clone, Debug)]
pub struct Request {
    pub homes: Vec<Home>,
    pub control: Address,
    pub overrides: Vec<Override>,
    pub state_dir: Option<PathBuf>,
    /// As it was given. None: as the sidecars that run have it.
    pub store: Option<meeting::Settings>,
    /// One app, or all.
    pub app: Option<String>,
    pub conf: Option<PathBuf>,
    /// Another nginx.
    pub upgrade: Option<PathBuf>,
    pub ecosystem: Option<PathBuf>,
    pub health: Option<String>,
    /// The app may be asked for how long it keeps connections.
    pub probe: Option<String>,
    pub slowest: Option<Duration>,
    pub sys: Sys,
}

/// A resolver that does not answer must not hang us; nginx itself would wait for longer.
const RESOLVING: Duration = Duration::from_secs(5);
const CONNECTING: Duration = Duration::from_millis(200);

pub async fn look(request: &Request) -> Facts {
    let proc = Proc::default();
    let processes = Processes::read(&proc);
    let mut facts = Facts {
        asked: Asked {
            app: request.app.clone(),
            slowest: request.slowest,
            health: request.health.clone(),
            control: request.control.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        },
        host: host(request, &proc),
        ..Facts::default()
    };
    let chosen = look_at_nginx(&mut facts, request, &proc, &processes).await;
    if let Some(program) = &request.upgrade {
        let conf = facts.binary.as_ref().map(|binary| binary.conf.clone()).or_else(|| request.conf.clone());
        let conf = conf.filter(|conf| !conf.as_os_str().is_empty());
        let unseen = &mut facts.unseen;
        match binary::upgrade(program, chosen.as_ref(), facts.nginx.as_ref(), conf.as_deref(), unseen).await {
            Ok(upgrade) => facts.upgrade = Some(upgrade),
            Err(error) => unseen.push(Unseen::new(format!("--nginx {}", program.display()), error)),
        }
    }
    let mut code = None;
    for home in &request.homes {
        code = look_at_pm2(&mut facts, request, &proc, home).await.or(code);
    }
    others(&mut facts, &proc, &processes);
    // Of another user's state nothing can be said.
    let own = rustix::process::geteuid().as_raw();
    let is_own = |daemon: &Daemon| matches!(daemon.seen, Seen::Running { uid, .. } if uid == own);
    facts.host.state = facts.host.state.take().filter(|_| facts.daemons.iter().any(is_own));
    look_at_file(&mut facts, request, code.as_ref()).await;
    look_at_control(&mut facts, request).await;
    look_at_security(&mut facts, request);
    look_at_stores(&mut facts, request).await;
    if let Some(app) = &request.app {
        facts.apps.retain(|of| of.name == *app);
    }
    look_at_answers(&mut facts, request).await;
    if request.slowest.is_none() {
        facts.unseen.push(Unseen::unasked(
            "kill_timeout and proxy_read_timeout",
            "--slowest TIME says how long requests take",
        ));
    }
    facts
}

fn host(request: &Request, proc: &Proc) -> Host {
    let dir = request.state_dir.clone().unwrap_or_else(memory::default_dir);
    Host {
        has_ps: level::has_ps(),
        is_reachable: Locals::read(proc).is_reachable(),
        selinux: None,
        state: may_write(&dir).err().map(|error| (dir, error.to_string())),
    }
}

/// Into it, or where it would be made.
fn may_write(dir: &Path) -> io::Result<()> {
    let nearest = dir.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("/"));
    rustix::fs::access(nearest, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK)
        .map_err(Into::into)
}

// === nginx ===

async fn look_at_nginx(
    facts: &mut Facts,
    request: &Request,
    proc: &Proc,
    processes: &Processes,
) -> Option<Chosen> {
    let chosen = match binary::choose(proc, processes.pids(), request.conf.as_deref()) {
        Ok(chosen) => chosen,
        Err(error) => {
            facts.unseen.push(Unseen::new("nginx", error));
            return None;
        }
    };
    match &chosen.master {
        Some(master) => facts.running = Some(master.running(proc, processes.of(master.pid))),
        None => facts.unseen.push(Unseen::new(
            "the running nginx",
            "none runs here with that configuration; only what is written was looked at",
        )),
    }
    let directives = match chosen.dump().await {
        Ok(Dump::Text(dump)) => {
            facts.binary = describe(facts, &chosen, Some(&binary::main_file(&dump))).await;
            match conf::parse(&dump) {
                Ok(directives) => directives,
                Err(error) => {
                    facts.unseen.push(Unseen::new("nginx's configuration", error));
                    return Some(chosen);
                }
            }
        }
        Ok(Dump::Refused(says)) => {
            facts.binary = describe(facts, &chosen, request.conf.as_deref()).await;
            facts.refused = Some(says);
            facts
                .unseen
                .push(Unseen::new("nginx's configuration", "nginx itself does not read it (nginx-refused)"));
            return Some(chosen);
        }
        Err(error) => {
            facts.unseen.push(Unseen::new("nginx's configuration", error));
            return Some(chosen);
        }
    };
    let names = resolve(&directives, &mut facts.unseen).await;
    facts.nginx = Some(Nginx::of(&directives, &names));
    Some(chosen)
}

async fn describe(facts: &mut Facts, chosen: &Chosen, conf: Option<&Path>) -> Option<super::facts::Binary> {
    match chosen.describe(conf).await {
        Ok(binary) => Some(binary),
        Err(error) => {
            facts.unseen.push(Unseen::new("nginx's version", error));
            None
        }
    }
}

/// As nginx does when it starts.
async fn resolve(directives: &[Directive], unseen: &mut Vec<Unseen>) -> Names {
    let mut names = Names::new();
    for host in nginx::hosts(directives) {
        let name = host.clone();
        let found = task::spawn_blocking(move || {
            (name.as_str(), 0).to_socket_addrs().map(Iterator::collect::<Vec<_>>)
        });
        match time::timeout(RESOLVING, found).await {
            Ok(Ok(Ok(found))) => {
                let mut ips: Vec<_> = found.into_iter().map(|address| address.ip()).collect();
                ips.dedup();
                names.insert(host, ips);
            }
            Ok(Ok(Err(error))) => unseen.push(Unseen::new(format!("the address of {host}"), error)),
            Ok(Err(_)) | Err(_) => {
                unseen.push(Unseen::new(format!("the address of {host}"), "no answer in time"))
            }
        }
    }
    names
}

/// Every address that nginx passes to. What has no `upstream` block is called as it is written.
fn peers(nginx: Option<&Nginx>) -> BTreeSet<Peer> {
    let mut peers = BTreeSet::new();
    let Some(nginx) = nginx else { return peers };
    for upstream in nginx.upstreams.iter().filter(|upstream| !upstream.is_stream) {
        peers.extend(upstream.peers().map(|peer| Peer::new(&upstream.name, peer)));
    }
    for pass in nginx.passes.iter().filter(|pass| !pass.is_stream) {
        if let Target::Address(to, all) = &pass.target {
            peers.extend(all.iter().map(|peer| Peer::new(to, peer)));
        }
    }
    peers
}

// === PM2 ===

async fn look_at_pm2(facts: &mut Facts, request: &Request, proc: &Proc, home: &Home) -> Option<Pm2Code> {
    let peers = peers(facts.nginx.as_ref());
    let survey = match survey::take(home, &request.overrides, peers).await {
        Ok(survey) => survey,
        Err(error) => {
            let is_refusal = matches!(&error, SurveyError::Pm2(RpcError::Path(path)) if path.is_refusal());
            let seen = if is_refusal {
                Seen::Refused(error.to_string())
            } else {
                facts.unseen.push(Unseen::new(format!("PM2 ({home})"), &error));
                Seen::Absent(error.to_string())
            };
            facts.daemons.push(Daemon { home: home.clone(), seen, sidecar: None, twins: Vec::new() });
            return None;
        }
    };
    let daemon = survey.daemon;
    let report = report::live(home).next();
    let has_no_dates = proc.environment(daemon.pid).ok().map(|environment| {
        environment.split(|&byte| byte == 0).any(|entry| entry == b"PM2_LOG_DATE_FORMAT=")
    });
    facts.daemons.push(Daemon {
        home: home.clone(),
        seen: Seen::Running {
            pid: daemon.pid,
            uid: daemon.uid,
            user: Users::read().user(daemon.uid),
            has_no_dates,
        },
        sidecar: report.as_ref().map(|report| sidecar(proc, report)),
        twins: Vec::new(),
    });
    let log = home.path().join("pm2.log");
    let log = plain(&log).and_then(|()| pm2_log::read(&log));
    if let Err(error) = &log {
        facts.unseen.push(Unseen::new(format!("PM2's log ({home})"), error));
    }
    facts.apps.extend(apps(&survey, home, report.as_ref(), log.ok().as_deref()));
    let behind: Vec<(Peer, Behind)> =
        survey.roster.all_behind().map(|(peer, behind)| (peer.clone(), behind.clone())).collect();
    facts.behind.extend(tried(behind).await);
    Pm2Code::of(home).await
}

fn sidecar(proc: &Proc, report: &Report) -> Sidecar {
    let pid = report.sidecar.map_or(0, |sidecar| sidecar.pid);
    Sidecar {
        pid,
        uid: process::user(proc, pid),
        version: report.version.clone(),
        hangs: report.age() > report::STALE,
        is_deaf: report.notices.late > 0 && report.notices.in_time == 0,
        forgotten: report.forgotten.clone(),
    }
}

fn apps(survey: &Survey, home: &Home, report: Option<&Report>, log: Option<&str>) -> Vec<App> {
    let mut apps = BTreeMap::<&str, Vec<&Listed>>::new();
    for listed in survey.look.listed.iter().flatten().filter(|listed| !listed.settings.module) {
        apps.entry(&listed.app).or_default().push(listed);
    }
    let of = |(name, workers): (&str, Vec<&Listed>)| {
        let first = workers.first().map(|worker| &worker.settings);
        let ready = first
            .filter(|settings| settings.wait_ready)
            .map(|settings| settings.listen_timeout.unwrap_or(LISTEN_TIMEOUT));
        App {
            name: name.to_owned(),
            home: Some(home.clone()),
            uid: survey.daemon.uid,
            preload: first.and_then(preload),
            workers: workers.iter().map(|listed| worker(survey, listed, report)).collect(),
            log: log.map(|log| pm2_log::of(log, name, ready)).unwrap_or_default(),
            ..App::default()
        }
    };
    apps.into_iter().map(of).collect()
}

fn worker(survey: &Survey, listed: &Listed, report: Option<&Report>) -> Worker {
    let claims =
        survey.roster.workers().find(|(id, _)| *id == listed.id).map(|(_, worker)| worker.claims().clone());
    let peers = claims.unwrap_or_default();
    let reported = report.and_then(|report| {
        report.workers.iter().find(|known| known.id == listed.id && known.app == listed.app)
    });
    Worker {
        id: listed.id,
        status: listed.status,
        settings: listed.settings.clone(),
        listens: listens(survey, listed.id, &peers),
        peers,
        unknown: survey
            .look
            .examined
            .get(&listed.id)
            .and_then(|examined| examined.held.as_ref().err())
            .map(ToString::to_string),
        speaks: reported.map(|known| known.preload),
        keep_alive: None,
    }
}

/// In cluster mode the daemon listens for it.
fn listens(survey: &Survey, id: PmId, peers: &BTreeSet<Peer>) -> Vec<SocketAddr> {
    let listeners = &survey.look.listeners;
    let held = survey.look.examined.get(&id).and_then(|examined| examined.held.as_ref().ok());
    let own: BTreeSet<u64> = held.iter().flat_map(|held| held.sockets.keys().copied()).collect();
    let shared: BTreeSet<u64> = peers
        .iter()
        .filter_map(Peer::place)
        .flat_map(|place| match place {
            Place::Tcp(address) => listeners.tcp(address),
            Place::Unix(_) => Vec::new(),
        })
        .collect();
    let all = listeners.describe(|inode| own.contains(&inode) || shared.contains(&inode));
    all.iter().filter_map(|address| address.parse().ok()).collect()
}

fn preload(settings: &Settings) -> Option<Preload> {
    let names = |word: &&String| word.rsplit('/').next() == Some("handoff.cjs");
    let words =
        settings.node_args.iter().flat_map(|arg| arg.split('=')).map(str::to_owned).collect::<Vec<_>>();
    let path = PathBuf::from(words.iter().find(names)?);
    let file = match plain(&path).and_then(|()| fs::read(&path)) {
        Ok(text) if text.trim_ascii_end() == PRELOAD.trim_end().as_bytes() => PreloadFile::Ours,
        Ok(_) => PreloadFile::Other,
        Err(error) if error.kind() == io::ErrorKind::NotFound => PreloadFile::Gone,
        Err(_) => PreloadFile::Unreadable,
    };
    Some(Preload { path, file })
}

/// Nothing that would keep us waiting.
fn plain(path: &Path) -> io::Result<()> {
    if fs::metadata(path)?.is_file() { Ok(()) } else { Err(io::Error::other("no plain file")) }
}

/// Where nobody is seen to listen a connection tells: a packet filter may lead on.
async fn tried(behind: Vec<(Peer, Behind)>) -> Vec<(Peer, Behind)> {
    let all = task::spawn_blocking(move || {
        let tried = |(peer, behind): (Peer, Behind)| {
            let Some(Place::Tcp(address)) = peer.place().filter(|_| behind.is_nobody()) else {
                return (peer, behind);
            };
            let answer = TcpStream::connect_timeout(&address, CONNECTING);
            let is_refused = answer.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
            (peer, behind.tried(Some(is_refused)))
        };
        behind.into_iter().map(tried).collect()
    });
    all.await.unwrap_or_default()
}

/// Daemons that nobody named, and those that have lost their sockets to another one.
fn others(facts: &mut Facts, proc: &Proc, processes: &Processes) {
    for pid in processes.pids() {
        let Some(home) = daemon(proc, pid) else { continue };
        match facts.daemons.iter_mut().find(|daemon| daemon.home == home) {
            Some(Daemon { seen: Seen::Running { pid: known, uid, .. }, twins, .. }) => {
                // Anybody can call a process so.
                let is_twin = *known != pid && process::user(proc, pid) == Some(*uid);
                twins.extend(is_twin.then_some(pid));
            }
            Some(_) => {}
            None => {
                let seen = Seen::Other { pid };
                facts.daemons.push(Daemon { home, seen, sidecar: None, twins: Vec::new() });
            }
        }
    }
}

/// `PM2 v7.0.4: God Daemon (/home/shop/.pm2)`
fn daemon(proc: &Proc, pid: u32) -> Option<Home> {
    let title = proc.command_line(pid).ok()?;
    let title = String::from_utf8_lossy(&title);
    let home = title.strip_prefix("PM2 v")?.split_once(": God Daemon (")?.1;
    Some(Home::new(Path::new(home.trim_end_matches(['\0', ' ']).strip_suffix(')')?)))
}

async fn look_at_file(facts: &mut Facts, request: &Request, code: Option<&Pm2Code>) {
    let found = || ecosystem::find(code.map(|code| code.uid));
    let Some(path) = request.ecosystem.clone().or_else(found) else {
        let why = "none of PM2's user is here; --ecosystem FILE names it";
        facts.unseen.push(Unseen::unasked("the ecosystem file", why));
        return;
    };
    let what = format!("the ecosystem file {}", path.display());
    let Some(code) = code else {
        facts
            .unseen
            .push(Unseen::new(what, "it takes PM2's own code to read it, and no daemon says where that is"));
        return;
    };
    match ecosystem::read(&path, code).await {
        Ok(file) => facts.file = Some(file),
        Err(error) => facts.unseen.push(Unseen::new(what, error)),
    }
}

// === Handoff ===

async fn look_at_control(facts: &mut Facts, request: &Request) {
    if facts.nginx.is_some() && !facts.has_module() {
        return;
    }
    let mut control = Control::new(request.control.clone());
    let mut told = Told::default();
    match (control.overview().await, control.upstreams().await) {
        (Ok(overview), Ok(upstreams)) => {
            told.version = Some(overview.version);
            told.peers_without_room = overview.zone.peers_uncovered;
            told.upstreams = upstreams.upstreams.into_iter().map(|upstream| upstream.name).collect();
        }
        (Err(error), _) | (_, Err(error)) => {
            let why = error.to_string();
            told.answer = if error.is_forbidden() { Reached::Denied(why) } else { Reached::No(why) };
            if facts.nginx.is_none() {
                facts.unseen.push(Unseen::new("nginx's control socket", error));
            }
            facts.control = Some(told);
            return;
        }
    }
    if let Ok(events) = control.events(0).await {
        let is_lapse = |event: &&handoff_wire::Event| {
            event.kind == EventKind::Lapse && event.owner.as_str().starts_with("pm2:")
        };
        told.lapsed = events.events.iter().filter(is_lapse).count();
    }
    // Nobody has marks by that name: nothing is changed by it.
    if let Ok(owner) = format!("worker:{}", std::process::id()).parse() {
        let renew = Renew { owner, lease: None, marks: None };
        if let Some(error) =
            control.renew(&renew).await.err().filter(crate::control::ControlError::is_forbidden)
        {
            told.answer = Reached::Denied(error.to_string());
        }
    }
    facts.control = Some(told);
}

async fn look_at_stores(facts: &mut Facts, request: &Request) {
    let reports = meeting::report::live();
    let mut wanted: Vec<(meeting::Settings, Option<meeting::report::StoreReport>)> = Vec::new();
    match &request.store {
        Some(settings) => {
            let own = reports.into_iter().find(|report| report.store.name.as_ref() == Some(&settings.name));
            wanted.push((settings.clone(), own));
        }
        None => {
            for report in reports {
                match meeting::Settings::of(report.store.clone(), &request.control) {
                    Ok(Some(settings)) => wanted.push((settings, Some(report))),
                    Ok(None) => {}
                    Err(error) => facts.unseen.push(Unseen::new("the store", error)),
                }
            }
        }
    }
    for (settings, report) in wanted {
        let store = store::look(&settings, report, &mut facts.unseen).await;
        facts.stores.push(store);
    }
    // What is on other hosts is looked at there.
    let is_all = |role: Role| !facts.stores.is_empty() && facts.stores.iter().all(|store| store.role == role);
    let (no_nginx, no_pm2) = (is_all(Role::Host), is_all(Role::Edge));
    for unseen in &mut facts.unseen {
        if no_nginx && unseen.what == "nginx" {
            *unseen = Unseen::unasked("nginx", "it is on other hosts: `handoff doctor` there");
        } else if no_pm2 && unseen.what.starts_with("PM2 (") {
            *unseen = Unseen::unasked("PM2", "it is on other hosts: `handoff doctor` there");
        }
    }
}

fn look_at_security(facts: &mut Facts, request: &Request) {
    match request.sys.nginx_may_connect() {
        Ok(may) => {
            // Another domain than httpd_t is not bound by that boolean.
            let label = facts.running.as_ref().and_then(|running| running.label.as_deref());
            let is_confined = label.is_none_or(|label| !label.contains(':') || label.contains(":httpd_t"));
            facts.host.selinux = may.filter(|_| is_confined);
        }
        Err(error) => facts.unseen.push(Unseen::new("SELinux's httpd_can_network_connect", error)),
    }
}

// === the app ===

async fn look_at_answers(facts: &mut Facts, request: &Request) {
    let asked = (&request.health, &request.probe);
    if asked.0.is_none() {
        facts.unseen.push(Unseen::unasked("health", "--health PATH asks each worker"));
    }
    if asked.1.is_none() {
        let why = "--probe sends each app a GET, for how long it keeps idle connections";
        facts.unseen.push(Unseen::unasked("the apps' keep-alive", why));
    }
    for app in &mut facts.apps {
        let is_cluster = app.is_cluster();
        let mut is_probed = false;
        for worker in &mut app.workers {
            // Only what nginx would ask, too: another app may be no web server.
            let Some(place) = worker.peers.iter().find_map(Peer::place) else { continue };
            if let Some(path) = asked.0 {
                let who = Some(worker.id).filter(|_| !is_cluster);
                app.health.push((who, ask::health(place, path).await));
            }
            if let Some(path) = asked.1.as_ref().filter(|_| !is_probed) {
                worker.keep_alive = ask::keep_alive(place, path).await;
                is_probed = worker.keep_alive.is_some();
            }
        }
        if asked.1.is_some() && !is_probed && !app.upstreams().is_empty() {
            let why = "no Keep-Alive header in its answer";
            facts.unseen.push(Unseen::new(format!("the keep-alive of {}", app.name), why));
        }
    }
}
