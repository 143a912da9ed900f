//! `handoff status`: everything that can be known is shown, and what could not be is said in the end.

mod screen;
mod watch;

use super::{Context, Exit, Failure, complain, say, table, target};
use crate::{
    danger,
    level::{self, Known, Surroundings},
    mapping::Behind,
    peer::Peer,
    pm2::{PmId, home::Home},
    report::{self, LatencyView, Report, WorkerReport},
    rollout::{
        notes::{Note, Notes},
        spare::Spare,
    },
    roster::Notices,
    store::{
        self,
        report::{EdgeReport, HostReport, StoreReport},
        standing::Stand,
    },
    survey::{self, Survey},
    worker::Worker,
};
use handoff_wire::store::{AmissView, MemberView, StoreView};
use handoff_wire::{MarkView, PauseView, PeerState, SlowStartView, UpstreamView, Upstreams};
use serde::Serialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, SystemTime},
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// As JSON
    #[arg(long)]
    json: bool,
    /// Again each second
    #[arg(long, short)]
    watch: bool,
}

#[derive(Debug, Serialize)]
pub(super) struct Status {
    nginx: NginxStatus,
    /// What each sidecar here that has a store says of it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    store: Vec<StoreReport>,
    daemons: Vec<DaemonStatus>,
    problems: Vec<String>,
    #[serde(skip)]
    exit: Exit,
    #[serde(skip)]
    view: Option<Upstreams>,
}

#[derive(Debug, Serialize)]
struct NginxStatus {
    control: String,
    instance: Option<String>,
    upstreams: usize,
    /// Who is told through the store, if nginx is many.
    #[serde(skip_serializing_if = "Option::is_none")]
    store: Option<StoreView>,
    paused: Vec<PauseStatus>,
}

#[derive(Debug, Serialize)]
struct PauseStatus {
    upstream: String,
    held: u64,
    #[serde(flatten)]
    pause: PauseView,
}

#[derive(Debug, Serialize)]
struct DaemonStatus {
    home: String,
    pid: Option<u32>,
    sidecar: Option<SidecarStatus>,
    apps: Vec<AppStatus>,
    /// Workers in cluster mode that PM2 lists no longer, and that serve on: their pids.
    forgotten: Vec<u32>,
}

#[derive(Debug, Serialize)]
struct SidecarStatus {
    pid: u32,
    version: String,
    notices: Notices,
    latency_us: LatencyView,
}

#[derive(Debug, Serialize)]
struct AppStatus {
    app: String,
    /// `L0`, `L1`, `L2`, or nothing.
    level: Option<&'static str>,
    why_not: Option<String>,
    #[serde(skip)]
    says: String,
    /// What it costs that there is one worker only.
    alone: Option<&'static str>,
    dangers: Vec<String>,
    /// One worker more than the app has, which a `handoff reload` left behind that did not end.
    left_behind: Option<PmId>,
    workers: Vec<WorkerStatus>,
}

#[derive(Debug, Serialize)]
struct WorkerStatus {
    id: PmId,
    pid: Option<u32>,
    phase: String,
    /// It speaks with the sidecar itself.
    preload: bool,
    peers: Vec<PeerStatus>,
    why_not_mapped: Option<String>,
}

#[derive(Debug, Serialize)]
struct PeerStatus {
    upstream: String,
    address: String,
    state: PeerState,
    in_flight: u64,
    marks: Vec<MarkView>,
    /// Of its weight, while it has not the whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    slow_start: Option<SlowStartView>,
}

pub(super) async fn run(context: &Context, args: &Args) -> Result<Exit, Failure> {
    if args.watch {
        return watch::run(context, args.json).await;
    }
    let status = collect(context).await;
    // Whoever wanted it may have gone.
    _ = say(if args.json { status.json()? } else { status.text() });
    status.problems.iter().for_each(complain);
    Ok(status.exit)
}

pub(super) async fn collect(context: &Context) -> Status {
    let mut status = Status {
        nginx: NginxStatus {
            control: context.control.to_string(),
            instance: None,
            upstreams: 0,
            store: None,
            paused: Vec::new(),
        },
        store: store::report::live(),
        daemons: Vec::new(),
        problems: Vec::new(),
        exit: Exit::Done,
        view: None,
    };
    let view = match context.control().upstreams().await {
        Ok(view) => {
            status.nginx.instance = Some(view.instance.clone());
            status.nginx.upstreams = view.upstreams.len();
            status.nginx.paused = view.upstreams.iter().filter_map(PauseStatus::of).collect();
            Some(view)
        }
        Err(error) => {
            status.fail(error.into());
            None
        }
    };
    for report in status.store.clone() {
        status.judge(&report);
    }
    // An nginx host need not have a PM2.
    let is_edge = status.store.iter().any(|report| report.host.is_none());
    if view.is_some() {
        status.nginx.store = context.control().store().await.ok().flatten();
        if status.nginx.store.as_ref().is_some_and(|store| store.edges.is_empty()) {
            let text = "no nginx is in the store: start `handoff run --role edge` on the nginx hosts";
            status.fail(Failure::new(Exit::NoNginx, text.to_owned()));
        }
    }
    for home in &context.homes {
        let peers = view.iter().flat_map(target::peers).collect();
        let survey = survey::take(home, &context.overrides, peers).await;
        let report = report::live(home).next();
        if survey.is_err() && report.is_none() && is_edge {
            continue;
        }
        if report.is_none() {
            let text = format!("no sidecar runs for {home}: start `handoff run`, as a service beside PM2");
            status.fail(Failure::new(Exit::NoSidecar, text));
        }
        if let Some(report) = report.as_ref().filter(|report| report.age() > report::STALE) {
            let (pid, age) = (report.sidecar.map_or(0, |sidecar| sidecar.pid), report.age().as_secs());
            let text = format!("the sidecar (pid {pid}) hangs: it said nothing for {age} s. Restart it");
            status.fail(Failure::new(Exit::NoSidecar, text));
        }
        match survey {
            Ok(survey) => status.daemons.push(daemon(home, &survey, report, view.as_ref())),
            Err(error) => {
                status.fail(error.into());
                status.daemons.push(DaemonStatus {
                    home: home.to_string(),
                    pid: None,
                    forgotten: forgotten(report.as_ref()),
                    sidecar: report.map(SidecarStatus::from),
                    apps: Vec::new(),
                });
            }
        }
    }
    status.view = view;
    status
}

fn daemon(home: &Home, survey: &Survey, report: Option<Report>, view: Option<&Upstreams>) -> DaemonStatus {
    let around = Surroundings {
        has_ps: level::has_ps(),
        runs: report.as_ref().is_some_and(|report| report.age() <= report::STALE),
        notices: report.as_ref().map(|report| report.notices).unwrap_or_default(),
    };
    let mut apps = BTreeMap::<&str, Vec<(PmId, &Worker)>>::new();
    for (id, worker) in survey.roster.workers() {
        apps.entry(worker.app()).or_default().push((id, worker));
    }
    let seen = Scene { home, survey, view, report: report.as_ref() };
    let apps = apps.into_iter().map(|(app, workers)| seen.app(app, &workers, around));
    DaemonStatus {
        home: home.to_string(),
        pid: Some(survey.daemon.pid),
        apps: apps.collect(),
        forgotten: forgotten(report.as_ref()),
        sidecar: report.map(SidecarStatus::from),
    }
}

fn forgotten(report: Option<&Report>) -> Vec<u32> {
    report.map(|report| report.forgotten.clone()).unwrap_or_default()
}

/// What is known of one daemon.
#[derive(Clone, Copy)]
struct Scene<'a> {
    home: &'a Home,
    survey: &'a Survey,
    view: Option<&'a Upstreams>,
    report: Option<&'a Report>,
}

impl Scene<'_> {
    fn app(&self, app: &str, workers: &[(PmId, &Worker)], around: Surroundings) -> AppStatus {
        let known: Vec<Known<'_>> = workers
            .iter()
            .map(|&(id, worker)| {
                let claims = self.claims(id, worker);
                let why = if claims.is_empty() { Some(self.why_not_mapped(id, worker)) } else { None };
                Known {
                    worker,
                    why_not_mapped: why,
                    preload: self.has_preload(id, worker),
                    waits: self.waits(&claims),
                    spare: self.has_spare(worker, &claims),
                    peers: claims,
                }
            })
            .collect();
        let (level, alone) = (level::level(&known, around), level::alone(&known));
        let dangers = danger::dangers(&workers.iter().map(|&(_, worker)| worker).collect::<Vec<_>>());
        let status = |(&(id, worker), known): (&(PmId, &Worker), Known<'_>)| WorkerStatus {
            id,
            pid: worker.process().map(|process| process.pid),
            phase: worker.phase().to_string(),
            preload: known.preload,
            peers: self.peers(&known.peers),
            why_not_mapped: known.why_not_mapped,
        };
        AppStatus {
            app: app.to_owned(),
            says: level.to_string(),
            level: level.name(),
            why_not: level.why_not().map(ToString::to_string),
            alone,
            dangers: dangers.iter().map(ToString::to_string).collect(),
            left_behind: self.left_behind(app),
            workers: workers.iter().zip(known).map(status).collect(),
        }
    }

    fn left_behind(&self, app: &str) -> Option<PmId> {
        let note = Notes::of(self.home).get(app).filter(Note::is_left)?;
        note.find(self.survey.look.listed.iter().flatten())
    }

    /// The peers of a worker: those it listens on, and those that the sidecar remembers while it is replaced.
    fn claims(&self, id: PmId, worker: &Worker) -> BTreeSet<Peer> {
        let remembered = self.reported(id, worker).flat_map(|known| &known.peers);
        worker.claims().iter().chain(remembered).cloned().collect()
    }

    /// Each of its upstreams has a queue.
    fn waits(&self, claims: &BTreeSet<Peer>) -> bool {
        let upstreams = self.view.iter().flat_map(|view| &view.upstreams);
        let mut its = upstreams.filter(|upstream| claims.iter().any(|peer| peer.upstream == upstream.name));
        its.all(|upstream| upstream.queue.is_some())
    }

    /// Another worker could stand in for it.
    fn has_spare(&self, worker: &Worker, claims: &BTreeSet<Peer>) -> bool {
        let is_free = |peer: &Peer| self.survey.roster.behind(peer) == Some(&Behind::Nobody);
        let spare = |view| Spare::find("", worker.settings(), claims, view, is_free).is_ok();
        !claims.is_empty() && self.view.is_some_and(spare)
    }

    fn has_preload(&self, id: PmId, worker: &Worker) -> bool {
        self.reported(id, worker).any(|known| known.preload)
    }

    fn reported(&self, id: PmId, worker: &Worker) -> impl Iterator<Item = &WorkerReport> {
        let reported = self.report.iter().flat_map(|report| &report.workers);
        reported.filter(move |known| known.id == id && known.app == worker.app())
    }

    fn why_not_mapped(&self, id: PmId, worker: &Worker) -> String {
        if self.view.is_none() {
            return "nginx cannot be asked for its peers".into();
        }
        let held = self.survey.look.examined.get(&id).and_then(|examined| examined.held.as_ref().ok());
        let sockets: BTreeSet<u64> = held.iter().flat_map(|held| held.sockets.keys().copied()).collect();
        let listens = self.survey.look.listeners.describe(|inode| sockets.contains(&inode));
        let shares = |behind: &Behind| matches!(behind, Behind::Several(workers) if workers.contains(&id));
        level::why_not_mapped(worker, &listens, self.survey.roster.all_behind(), shares)
    }

    fn peers(&self, claims: &BTreeSet<Peer>) -> Vec<PeerStatus> {
        let upstreams = self.view.iter().flat_map(|view| &view.upstreams);
        let all = upstreams.flat_map(|up| up.peers.iter().map(move |peer| (up, peer)));
        let ours = all.filter(|(up, peer)| claims.contains(&Peer::new(&up.name, &peer.address)));
        let status = ours.map(|(up, peer)| PeerStatus {
            upstream: up.name.clone(),
            address: peer.address.clone(),
            state: peer.state,
            in_flight: peer.in_flight,
            marks: peer.marks.clone(),
            slow_start: peer.slow_start.filter(|_| peer.state.serves()),
        });
        status.collect()
    }
}

// === impl Status ===

impl Status {
    /// What each app is protected against, by its daemon's home and its name.
    pub(super) fn levels(&self) -> impl Iterator<Item = (&str, &str, &str)> {
        let apps = self.daemons.iter().flat_map(|daemon| daemon.apps.iter().map(move |app| (daemon, app)));
        apps.map(|(daemon, app)| (daemon.home.as_str(), app.app.as_str(), app.says.as_str()))
    }

    fn judge(&mut self, report: &StoreReport) {
        let name = report.name();
        if report.age() > report::STALE {
            let (pid, age) = (report.sidecar.map_or(0, |sidecar| sidecar.pid), report.age().as_secs());
            let text =
                format!("the sidecar of {name} (pid {pid}) hangs: it said nothing for {age} s. Restart it");
            return self.fail(Failure::new(Exit::NoSidecar, text));
        }
        // Of an app host that is known: its nginx is the store.
        if let Some(edge) = report.edge.as_ref().filter(|edge| !edge.stand.connected) {
            let why = edge.stand.problem.as_deref().unwrap_or("not yet reached");
            let text =
                format!("the store is out of reach, so that app hosts cannot hand over to this nginx: {why}");
            self.fail(Failure::new(Exit::Failed, text));
        }
    }

    /// The first failure decides how the command ends.
    fn fail(&mut self, failure: Failure) {
        if self.exit == Exit::Done {
            self.exit = failure.exit;
        }
        self.problems.push(failure.text);
    }

    fn json(&self) -> Result<String, Failure> {
        serde_json::to_string_pretty(self).map_err(|error| Failure::new(Exit::Failed, error.to_string()))
    }

    fn text(&self) -> String {
        let mut text = self.nginx.text() + "\n";
        text.extend(self.store.iter().map(store_text));
        text.extend(self.nginx.paused.iter().map(PauseStatus::text));
        for daemon in &self.daemons {
            text.push_str(&daemon.text());
        }
        text.trim_end().to_owned()
    }
}

// === impl NginxStatus ===

impl NginxStatus {
    fn text(&self) -> String {
        let nginx = self.instance.as_ref().map_or("not reached".to_owned(), |instance| {
            format!("instance {instance}, {} upstreams with `handoff`", self.upstreams)
        });
        let members: String = self.store.iter().flat_map(|store| &store.members).map(member).collect();
        format!("nginx  {}  {nginx}{members}", self.control)
    }
}

/// A peer that this host brings, if it is not where it should be.
fn member(member: &MemberView) -> String {
    let MemberView { upstream, address, brought, amiss, .. } = member;
    if !brought {
        return format!(
            "\n  {address} in {upstream} is not brought: it has left, or nobody has listened there yet"
        );
    }
    amiss.iter().map(|AmissView { edge, text }| format!("\n  at {edge}: {text}")).collect()
}

// === the store ===

fn store_text(report: &StoreReport) -> String {
    let name = report.name();
    let host = report.host.iter().map(|host| stand_text(name, &host.stand) + &host_text(host));
    let edge = report.edge.iter().map(|edge| stand_text(name, &edge.stand) + &edge_text(edge));
    host.chain(edge).collect()
}

fn stand_text(name: &str, stand: &Stand) -> String {
    let (is_in, long) = (if stand.connected { "in" } else { "not in" }, long(stand.since));
    let member = stand.member.as_ref().map_or_else(String::new, |member| format!(" ({member})"));
    let problem = stand.problem.as_ref().map_or_else(String::new, |problem| format!(": {problem}"));
    format!("store  {name}  {is_in} the store{member} for {long}{problem}\n")
}

fn host_text(host: &HostReport) -> String {
    let edges = host.edges.iter().map(|edge| {
        let last = match (edge.behind, edge.acknowledged_us) {
            (0, Some(micros)) => format!("acknowledged in {} ms", millis(micros)),
            (0, None) => "nothing had to be acknowledged".to_owned(),
            (behind, _) => format!("{behind} changes behind, for {} ms", edge.behind_ms),
        };
        format!("       nginx on {}, there for {}: {last}\n", edge.name, long(edge.since))
    });
    edges.collect()
}

fn edge_text(edge: &EdgeReport) -> String {
    let hosts = edge.hosts.iter().map(|host| {
        let addresses: Vec<String> = host.addresses.iter().map(ToString::to_string).collect();
        let peers = match host.peers {
            0 => "no peer of this nginx".to_owned(),
            1 => "1 peer of this nginx".to_owned(),
            peers => format!("{peers} peers of this nginx"),
        };
        format!("       app host {} ({}): {peers}\n", host.name, addresses.join(", "))
    });
    hosts.collect()
}

/// Since then, in whole seconds.
fn long(since: u64) -> humantime::FormattedDuration {
    let since = SystemTime::UNIX_EPOCH + Duration::from_millis(since);
    humantime::format_duration(Duration::from_secs(since.elapsed().unwrap_or_default().as_secs()))
}

// === impl PauseStatus ===

impl PauseStatus {
    fn of(upstream: &UpstreamView) -> Option<Self> {
        let held = upstream.queue.as_ref().map_or(0, |queue| queue.held);
        Some(Self { upstream: upstream.name.clone(), held, pause: upstream.pause.clone()? })
    }

    fn text(&self) -> String {
        let Self { upstream, held, pause: PauseView { owner, reason, left, .. } } = self;
        let reason = if reason.is_empty() { String::new() } else { format!(" ({reason})") };
        format!(
            "paused {upstream}  by {owner}{reason}, for {left} at most, {held} waiting: `handoff resume {upstream}`\n"
        )
    }
}

// === impl DaemonStatus ===

impl DaemonStatus {
    fn head(&self) -> String {
        let pid = self.pid.map_or("not reached".to_owned(), |pid| format!("pid {pid}"));
        let sidecar = self.sidecar.as_ref().map_or("no sidecar".to_owned(), SidecarStatus::text);
        format!("PM2    {}  {pid}, {sidecar}\n", self.home)
    }

    fn text(&self) -> String {
        let head = self.head();
        let forgotten = report::of_forgotten(&self.forgotten).map_or_else(String::new, |text| text + "\n");
        if self.apps.is_empty() {
            return head + &forgotten;
        }
        let heads = ["APP", "WORKER", "PID", "PHASE", "PEER", "UPSTREAM", "STATE", "IN FLIGHT", "MARKS"];
        let mut rows = vec![heads.map(String::from).to_vec()];
        rows.extend(self.apps.iter().flat_map(AppStatus::rows));
        let levels: String = self.apps.iter().map(AppStatus::level_lines).collect();
        format!("{head}\n{}\n{levels}{forgotten}", table::render(&rows))
    }
}

// === impl SidecarStatus ===

impl From<Report> for SidecarStatus {
    fn from(report: Report) -> Self {
        Self {
            pid: report.sidecar.map_or(0, |sidecar| sidecar.pid),
            version: report.version,
            notices: report.notices,
            latency_us: report.latency,
        }
    }
}

impl SidecarStatus {
    fn text(&self) -> String {
        let LatencyView { count, p50, max, .. } = self.latency_us;
        let latency = match count {
            0 => "no stop announced yet".to_owned(),
            _ => format!(
                "{count} stops acknowledged in {} ms (median), {} ms (longest)",
                millis(p50),
                millis(max)
            ),
        };
        format!("sidecar pid {}: {latency}", self.pid)
    }
}

fn millis(micros: u64) -> String {
    format!("{}.{}", micros / 1000, micros % 1000 / 100)
}

// === impl AppStatus ===

impl AppStatus {
    fn level_lines(&self) -> String {
        let dangers = self.dangers.iter().map(|danger| format!("beware: {danger}"));
        let left = self.left_behind.map(|id| {
            format!(
                "{0}:{id} was left behind by a `handoff reload` that did not end. `handoff reload {0}` deletes it",
                self.app
            )
        });
        let alone = self.alone.map(str::to_owned);
        let lines = [self.says.clone()].into_iter().chain(alone).chain(dangers).chain(left);
        lines.map(|line| format!("{}: {line}\n", self.app)).collect()
    }

    fn rows(&self) -> Vec<Vec<String>> {
        self.workers.iter().flat_map(|worker| worker.rows(&self.app)).collect()
    }
}

// === impl WorkerStatus ===

impl WorkerStatus {
    fn rows(&self, app: &str) -> Vec<Vec<String>> {
        let pid = self.pid.map_or("-".to_owned(), |pid| pid.to_string());
        let head = vec![app.to_owned(), self.id.to_string(), pid, self.phase.clone()];
        if self.peers.is_empty() {
            return vec![[head, vec!["-".to_owned()]].concat()];
        }
        self.peers.iter().map(|peer| [head.clone(), peer.cells()].concat()).collect()
    }
}

// === impl PeerStatus ===

impl PeerStatus {
    fn mark(mark: &MarkView) -> String {
        let reason = if mark.reason.is_empty() { String::new() } else { format!(" ({})", mark.reason) };
        format!("{} by {}{reason}", mark.state, mark.owner)
    }

    fn state(&self) -> String {
        let share = self.slow_start.map(|ramp| format!(" {} %", ramp.share)).unwrap_or_default();
        format!("{}{share}", self.state)
    }

    fn cells(&self) -> Vec<String> {
        let marks: Vec<String> = self.marks.iter().map(Self::mark).collect();
        vec![
            self.address.clone(),
            self.upstream.clone(),
            self.state(),
            self.in_flight.to_string(),
            marks.join(", "),
        ]
    }
}
