//! How PM2 was told to run the apps.

use super::super::{
    catalogue::*,
    facts::{App, EcosystemFile, Facts, FileApp, Worker},
    finding::{About, Finding, Step},
};
use super::{cover, list, seconds};
use crate::{
    danger::{self, Danger},
    mapping::Behind,
    pm2::{
        PmId,
        monitor::{KILL_TIMEOUT, LISTEN_TIMEOUT, Status},
    },
};
use std::{collections::BTreeSet, path::Path, time::Duration};

/// PM2's own, where an app does not say otherwise.
const MAX_RESTARTS: u32 = 16;

pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    for app in &facts.apps {
        let checks = [
            env,
            running,
            ready,
            ready_unsaid,
            kill_timeout,
            killed,
            gives_up,
            two_at_once,
            one_worker,
            treekill,
            dangers,
            not_mapped,
            not_reached,
            file,
        ];
        findings.extend(checks.into_iter().flat_map(|check| check(facts, app)));
    }
    if let Some((file, says)) = facts.file.as_ref().and_then(|file| Some((file, file.refused.as_ref()?))) {
        let found = format!("{}: {says}", file.path.display());
        findings.push(
            Finding::new(ECOSYSTEM_REFUSED, About::Host, found)
                .with(Step::change(format!("mend what PM2 says: {says}"))),
        );
    }
    if !facts.host.has_ps && facts.apps.iter().any(|app| !app.has_preload()) {
        let found = "no `ps` in /bin, /usr/bin, /usr/local/bin and PATH";
        findings.push(Finding::new(NO_PS, About::Host, found).with(Step::run("apt-get install procps")));
    }
    findings
}

fn set(facts: &Facts, app: &App, key: &str, value: &str) -> Step {
    let file = facts.file_of(&app.name).map(|(file, _)| file.path.clone());
    Step::Set { file, app: app.name.clone(), key: key.to_owned(), value: value.to_owned() }
}

/// The finding, with what makes a changed file count.
fn then_reload(facts: &Facts, app: &App, finding: Finding) -> Vec<Finding> {
    vec![finding.with(Step::run(facts.reload_command(&app.name)))]
}

fn is_covered(facts: &Facts, app: &App) -> bool {
    let its = app.upstreams();
    cover::covered(facts).any(|upstream| its.contains(upstream.name.as_str()))
}

fn running(_: &Facts, app: &App) -> Vec<Finding> {
    let is_down = |worker: &&Worker| matches!(worker.status, Status::Errored | Status::Stopped);
    let down = app.workers.iter().filter(is_down).map(|worker| {
        let about = About::App(app.name.clone(), Some(worker.id));
        Finding::new(NOT_RUNNING, about, format!("worker {} is {}", worker.id, worker.status))
            .with(Step::run(format!("pm2 logs {} --err --nostream", worker.id)))
            .with(Step::run(format!("pm2 restart {}", worker.id)))
    });
    down.collect()
}

fn ready(facts: &Facts, app: &App) -> Vec<Finding> {
    let is_wrong = !app.is_cluster() && app.workers.len() > 1 && app.any(|settings| !settings.wait_ready);
    if !is_wrong || app.has_preload() {
        return Vec::new();
    }
    let found = format!("fork mode, {} workers, wait_ready off", app.workers.len());
    let finding = Finding::of(NO_READY, &app.name, found)
        .with(Step::change("process.send('ready') when the app listens, or the preload, which says it"))
        .with(set(facts, app, "wait_ready", "true"));
    then_reload(facts, app, finding)
}

fn ready_unsaid(facts: &Facts, app: &App) -> Vec<Finding> {
    if app.log.unready.is_empty() || !app.any(|settings| settings.wait_ready) || app.has_preload() {
        return Vec::new();
    }
    let listen =
        app.workers.iter().find_map(|worker| worker.settings.listen_timeout).unwrap_or(LISTEN_TIMEOUT);
    let found = format!(
        "worker {}: taken for ready {} after its start, no sooner",
        list(&app.log.unready),
        seconds(listen)
    );
    then_reload(facts, app, Finding::of(READY_UNSAID, &app.name, found).with_all(with_preload(facts, app)))
        .into_iter()
        .map(|finding| finding.with(Step::or("process.send('ready') in the callback of listen()")))
        .collect()
}

/// The preload, beside the ecosystem file.
fn with_preload(facts: &Facts, app: &App) -> Vec<Step> {
    let dir = facts.file_of(&app.name).and_then(|(file, _)| file.path.parent());
    let path =
        dir.map_or("/path/to/handoff.cjs".to_owned(), |dir| dir.join("handoff.cjs").display().to_string());
    let own = app.workers.first().map(|worker| worker.settings.node_args.join(" ")).unwrap_or_default();
    let args = format!("{own} -r {path}");
    vec![
        Step::run(format!("handoff preload > {path}")),
        set(facts, app, "node_args", &format!("'{}'", args.trim_start())),
    ]
}

fn kill_timeout(facts: &Facts, app: &App) -> Vec<Finding> {
    let has = app.kill_timeout().unwrap_or(KILL_TIMEOUT);
    let (found, needs) = match facts.asked.slowest {
        Some(slowest) if has <= slowest => (
            format!("kill_timeout {}, and requests take up to {}", seconds(has), seconds(slowest)),
            slowest * 2,
        ),
        None if has <= KILL_TIMEOUT => (format!("kill_timeout {}", seconds(has)), Duration::from_secs(8)),
        _ => return Vec::new(),
    };
    let finding = Finding::of(KILL_TIMEOUT_SHORT, &app.name, found);
    then_reload(facts, app, finding.with(set(facts, app, "kill_timeout", &needs.as_millis().to_string())))
}

fn killed(facts: &Facts, app: &App) -> Vec<Finding> {
    if app.log.killed == 0 || app.has_preload() {
        return Vec::new();
    }
    let found =
        format!("{} of {} workers ended so when PM2 last stopped them", app.log.killed, app.log.stops);
    then_reload(facts, app, Finding::of(KILLED, &app.name, found).with_all(with_preload(facts, app)))
}

fn gives_up(facts: &Facts, app: &App) -> Vec<Finding> {
    let set_to = app.workers.iter().find_map(|worker| worker.settings.max_restarts);
    let Some(few) = set_to.filter(|&max| max < MAX_RESTARTS) else { return Vec::new() };
    let young =
        app.workers.iter().find_map(|worker| worker.settings.min_uptime).unwrap_or(Duration::from_secs(1));
    let found =
        format!("max_restarts {few}, min_uptime {}: given up after {few} exits that young", seconds(young));
    let finding = Finding::of(GIVES_UP, &app.name, found)
        .with(set(facts, app, "max_restarts", "16"))
        .with(set(facts, app, "exp_backoff_restart_delay", "100"));
    then_reload(facts, app, finding)
}

fn two_at_once(facts: &Facts, app: &App) -> Vec<Finding> {
    if app.workers.len() < 3 || app.upstreams().is_empty() || is_covered(facts, app) {
        return Vec::new();
    }
    let mode = if app.is_cluster() { "cluster" } else { "fork" };
    let found = format!("{mode} mode, {} workers", app.workers.len());
    let or = Step::or(format!("pm2 reload {} --parallel 1", app.name));
    vec![Finding::of(TWO_AT_ONCE, &app.name, found).with_all(cover::cure(facts)).with(or)]
}

fn one_worker(facts: &Facts, app: &App) -> Vec<Finding> {
    if app.workers.len() != 1 || app.is_cluster() || app.upstreams().is_empty() {
        return Vec::new();
    }
    let its = app.upstreams();
    let upstreams = facts.upstreams().filter(|upstream| its.contains(upstream.name.as_str()));
    let upstreams: Vec<_> = upstreams.collect();
    let is_covered = is_covered(facts, app);
    // Another one stands in there meanwhile.
    if is_covered && upstreams.iter().all(|upstream| upstream.primaries().count() > 1) {
        return Vec::new();
    }
    let finding = Finding::of(ONE_WORKER, &app.name, "fork mode, one worker");
    let port =
        app.workers.iter().find_map(|worker| worker.settings.port).and_then(|port| port.checked_add(1));
    let spare = upstreams.iter().zip(port.into_iter().cycle());
    let spare = spare.map(|(upstream, port)| Step::insert(&upstream.at, format!("server 127.0.0.1:{port};")));
    vec![if is_covered {
        finding.as_note().with_all(spare)
    } else {
        finding.with_all(cover::cure(facts)).with(Step::or(
            "two workers: instances: 2, increment_var: 'PORT', and a second server in the upstream",
        ))
    }]
}

fn treekill(facts: &Facts, app: &App) -> Vec<Finding> {
    if app.has_preload() || !app.any(|settings| !settings.treekill) {
        return Vec::new();
    }
    let finding = Finding::of(TREEKILL, &app.name, "treekill: false");
    then_reload(facts, app, finding.with(set(facts, app, "treekill", "true")))
}

/// What `status` warns of, too.
fn dangers(facts: &Facts, app: &App) -> Vec<Finding> {
    let settings: Vec<_> = app.workers.iter().map(|worker| &worker.settings).collect();
    let dangers = danger::of_settings(&settings);
    let finding = |danger: Danger| {
        let (kind, key, value) = match danger {
            // The number 0 PM2 passes over.
            Danger::Cron => (CRON, "cron_restart", "'0'"),
            Danger::Watch | Danger::WatchAll => (WATCH, "watch", "false"),
            Danger::SamePort => {
                let ports: BTreeSet<u16> = settings.iter().filter_map(|settings| settings.port).collect();
                let found = format!("{} workers, port {}", settings.len(), list(ports));
                return vec![Finding::of(SAME_PORT, &app.name, found).with_all(own_ports(app))];
            }
        };
        let finding = Finding::of(kind, &app.name, danger.to_string());
        then_reload(facts, app, finding.with(set(facts, app, key, value)))
    };
    dangers.into_iter().flat_map(finding).collect()
}

/// Those that have the port of another one get the next that is nobody's.
fn own_ports(app: &App) -> Vec<Step> {
    let mut taken: BTreeSet<u16> = app.workers.iter().filter_map(|worker| worker.settings.port).collect();
    let first = taken.first().copied().unwrap_or_default();
    let mut seen = BTreeSet::new();
    let mut steps = Vec::new();
    for worker in &app.workers {
        if worker.settings.port.is_some_and(|port| seen.insert(port)) {
            continue;
        }
        if let Some(free) = (first..).find(|port| taken.insert(*port)) {
            steps.push(Step::run(format!("PORT={free} pm2 restart {} --update-env", worker.id)));
        }
    }
    steps
}

/// Who is behind which peer must be certain before nginx is told.
fn not_mapped(facts: &Facts, app: &App) -> Vec<Finding> {
    let mut findings = Vec::new();
    let unknown = app.workers.iter().find_map(|worker| Some((worker.id, worker.unknown.as_ref()?)));
    if let Some((id, why)) = unknown {
        let step =
            Step::change("run handoff as PM2's user, in its namespaces; or a [[worker]] table (--config)");
        findings.push(Finding::of(NOT_MAPPED, &app.name, format!("worker {id}: {why}")).with(step));
    }
    let is_own = |workers: &BTreeSet<PmId>| app.workers.iter().any(|worker| workers.contains(&worker.id));
    let shared = facts.behind.iter().find_map(|(peer, behind)| match behind {
        Behind::Several(workers) if is_own(workers) => Some(peer),
        _ => None,
    });
    if let Some(peer) = shared.filter(|_| !app.is_cluster()) {
        let found = format!("several workers share {}", peer.address);
        let step =
            Step::change("a port for each worker (increment_var: 'PORT'), each a server in the upstream");
        findings.push(Finding::of(NOT_MAPPED, &app.name, found).with(step));
    }
    findings
}

/// Only of an app that nginx knows at all: another one may be no web server.
fn not_reached(facts: &Facts, app: &App) -> Vec<Finding> {
    let its = app.upstreams();
    let mut findings = Vec::new();
    for worker in app.workers.iter().filter(|worker| worker.peers.is_empty()) {
        let Some(listens) = worker.listens.first().filter(|_| !its.is_empty()) else { continue };
        let about = About::App(app.name.clone(), Some(worker.id));
        let found = format!("worker {} listens on {}", worker.id, list(&worker.listens));
        let ip = if listens.ip().is_unspecified() { [127, 0, 0, 1].into() } else { listens.ip() };
        let server = std::net::SocketAddr::new(ip, listens.port());
        let upstreams = facts.upstreams().filter(|upstream| its.contains(upstream.name.as_str()));
        let steps =
            upstreams.map(|upstream| Step::insert(&upstream.at, format!("server {server} max_fails=0;")));
        findings.push(Finding::new(NOT_REACHED, about, found).with_all(steps));
    }
    findings
}

fn env(facts: &Facts, app: &App) -> Vec<Finding> {
    let Some((file, of)) = facts.file_of(&app.name) else { return Vec::new() };
    let running: BTreeSet<u16> = app.workers.iter().filter_map(|worker| worker.settings.port).collect();
    let applied = of.ports.values().any(|port| running.contains(port));
    let unused = of.ports.iter().find(|(block, port)| *block != "env" && !running.contains(port));
    let Some((block, port)) = unused.filter(|_| !applied) else { return Vec::new() };
    let name = block.strip_prefix("env_").unwrap_or(block);
    let has = if running.is_empty() { "none".to_owned() } else { list(running) };
    let found = format!("{block} has PORT {port}, the app's is {has}");
    vec![Finding::of(ENV_UNUSED, &app.name, found).with(Step::run(with_env(app, file, name)))]
}

/// A `handoff reload` never gives a worker another port, and a `pm2 reload` gives all of them the same one.
fn with_env(app: &App, file: &EcosystemFile, env: &str) -> String {
    let dir = file.path.parent().unwrap_or(Path::new("/")).display();
    let file = file.path.file_name().unwrap_or_default().to_string_lossy();
    if app.is_cluster() {
        return format!("cd {dir} && pm2 reload {file} --env {env}");
    }
    let start = format!("cd {dir} && pm2 delete {} && pm2 start {file} --env {env}", app.name);
    match app.upstreams().first() {
        Some(upstream) => format!("handoff pause {upstream} && {start}; handoff resume {upstream}"),
        None => start,
    }
}

fn file(facts: &Facts, app: &App) -> Vec<Finding> {
    let (Some((_, of)), Some(worker)) = (facts.file_of(&app.name), app.workers.first()) else {
        return Vec::new();
    };
    let differing = differing(of, worker);
    if differing.is_empty() {
        return Vec::new();
    }
    then_reload(facts, app, Finding::of(FILE_DIFFERS, &app.name, list(differing)))
}

fn differing(of: &FileApp, worker: &Worker) -> Vec<String> {
    let has = &worker.settings;
    let millis =
        |time: Option<Duration>| time.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
    let mode = if has.cluster { "cluster" } else { "fork" };
    let own = of.exec_mode.as_deref().map(|own| own.trim_end_matches("_mode"));
    let text = |said: Option<&str>, has: &str, key: &str| {
        said.filter(|said| *said != has).map(|said| format!("{key} {said}, not {has}"))
    };
    let flag = |said: Option<bool>, has: bool, key: &str| {
        said.filter(|said| *said != has).map(|said| format!("{key} {said}, not {has}"))
    };
    let number = |said: Option<u64>, has: Option<u64>, key: &str| {
        let has = has.map_or("PM2's default".to_owned(), |has| has.to_string());
        said.filter(|said| *said != 0 && said.to_string() != has)
            .map(|said| format!("{key} {said}, not {has}"))
    };
    [
        text(own, mode, "exec_mode"),
        flag(of.wait_ready, has.wait_ready, "wait_ready"),
        flag(of.treekill, has.treekill, "treekill"),
        number(of.kill_timeout, millis(has.kill_timeout), "kill_timeout"),
        number(of.listen_timeout, millis(has.listen_timeout), "listen_timeout"),
        number(of.min_uptime, millis(has.min_uptime), "min_uptime"),
        number(of.max_restarts, has.max_restarts.map(u64::from), "max_restarts"),
    ]
    .into_iter()
    .flatten()
    .collect()
}

#[cfg(test)]
mod tests {
    use super::super::{
        super::finding::Severity,
        stage::{GOOD, facts, good, only_in, stock, worker},
    };
    use super::*;
    use crate::{peer::Peer, pm2::monitor::Settings};

    fn with(change: impl Fn(&mut Settings)) -> Facts {
        let mut facts = good();
        facts.apps[0].workers.iter_mut().for_each(|worker| change(&mut worker.settings));
        facts
    }

    fn speaking(mut facts: Facts) -> Facts {
        facts.apps[0].workers.iter_mut().for_each(|worker| worker.speaks = Some(true));
        facts
    }

    fn described(of: FileApp) -> Facts {
        let file =
            EcosystemFile { path: "/srv/shop/ecosystem.config.js".into(), apps: vec![of], refused: None };
        Facts { file: Some(file), ..good() }
    }

    fn shop() -> FileApp {
        FileApp { name: "shop".into(), ..FileApp::default() }
    }

    #[test]
    fn every_worker_runs() {
        let mut down = good();
        down.apps[0].workers[1].status = Status::Errored;
        assert_eq!(only_in("pm2-not-running", &down, &good()).found, "worker 1 is errored");
    }

    #[test]
    fn in_fork_mode_pm2_waits_for_ready() {
        let hasty = with(|settings| settings.wait_ready = false);
        let finding = only_in("pm2-wait-ready", &hasty, &good());
        assert!(
            matches!(&finding.mend[1], Step::Set { key, value, .. } if key == "wait_ready" && value == "true")
        );
        only_in("pm2-wait-ready", &hasty, &speaking(hasty.clone()));
        only_in(
            "pm2-wait-ready",
            &hasty,
            &with(|settings| {
                settings.wait_ready = false;
                settings.cluster = true;
            }),
        );
    }

    #[test]
    fn ready_that_nobody_says_is_found_in_pm2s_log() {
        let mut late = described(shop());
        late.apps[0].log.unready = [PmId(0), PmId(1)].into();
        let finding = only_in("pm2-ready-not-said", &late, &good());
        assert_eq!(finding.found, "worker 0, 1: taken for ready 3 s after its start, no sooner");
        let steps: Vec<String> = finding.mend.iter().map(ToString::to_string).collect();
        assert_eq!(steps[0], "run  handoff preload > /srv/shop/handoff.cjs");
        assert!(steps[1].ends_with("write  node_args: '-r /srv/shop/handoff.cjs',"), "{steps:?}");
        assert_eq!(steps[2], "run  cd /srv/shop && handoff reload ecosystem.config.js");
        only_in("pm2-ready-not-said", &late, &speaking(late.clone()));
    }

    #[test]
    fn kill_timeout_is_above_the_slowest_request() {
        let short = with(|settings| settings.kill_timeout = None);
        only_in("pm2-kill-timeout", &short, &good());
        let mut asked = good();
        asked.asked.slowest = Some(Duration::from_secs(10));
        let finding = only_in("pm2-kill-timeout", &asked, &good());
        assert!(matches!(&finding.mend[0], Step::Set { value, .. } if value == "20000"));
        let mut quick = short.clone();
        quick.asked.slowest = Some(Duration::from_secs(1));
        only_in("pm2-kill-timeout", &short, &quick);
    }

    #[test]
    fn workers_end_by_themselves() {
        let mut killed = good();
        (killed.apps[0].log.stops, killed.apps[0].log.killed) = (4, 3);
        assert!(only_in("pm2-killed", &killed, &good()).found.starts_with("3 of 4 workers"));
        only_in("pm2-killed", &killed, &speaking(killed.clone()));
    }

    #[test]
    fn pm2_does_not_give_up_soon() {
        let soon = with(|settings| {
            settings.max_restarts = Some(5);
            settings.min_uptime = Some(Duration::from_secs(3));
        });
        only_in("pm2-gives-up", &soon, &with(|settings| settings.max_restarts = Some(16)));
    }

    #[test]
    fn two_workers_at_a_time_hurt_where_nginx_is_not_told() {
        let four = |text: &str| {
            let mut facts = facts(text);
            facts.apps[0].workers.extend([worker(2, 3002), worker(3, 3003)]);
            facts
        };
        only_in("pm2-two-at-once", &four(&stock()), &facts(&stock()));
        only_in("pm2-two-at-once", &four(&stock()), &four(GOOD));
    }

    #[test]
    fn an_only_worker_has_another_one_or_requests_wait() {
        let alone = |text: &str| {
            let mut facts = facts(text);
            facts.apps[0].workers.truncate(1);
            facts
        };
        let one = |text: &str| text.replace("        server 127.0.0.1:3001 max_fails=0;\n", "");
        assert_eq!(only_in("pm2-one-worker", &alone(&stock()), &facts(&stock())).severity, Severity::Warning);
        let finding = only_in("pm2-one-worker", &alone(&one(GOOD)), &alone(GOOD));
        assert_eq!(finding.severity, Severity::Note);
        assert!(matches!(&finding.mend[..], [Step::Insert { text, .. }] if text == "server 127.0.0.1:3001;"));
    }

    #[test]
    fn what_takes_pm2s_notice_away_is_found() {
        let hasty = with(|settings| settings.treekill = false);
        only_in("pm2-treekill", &hasty, &good());
        only_in("pm2-treekill", &hasty, &speaking(hasty.clone()));
        let mut bare = good();
        bare.host.has_ps = false;
        only_in("pm2-no-ps", &bare, &good());
        only_in("pm2-no-ps", &bare, &speaking(bare.clone()));
    }

    #[test]
    fn what_restarts_by_itself_is_found() {
        only_in("pm2-cron-restart", &with(|settings| settings.cron_restart = true), &good());
        only_in("pm2-watch", &with(|settings| settings.watch = true), &good());
        let finding = only_in("pm2-same-port", &with(|settings| settings.port = Some(3000)), &good());
        assert_eq!(finding.mend, [Step::run("PORT=3001 pm2 restart 1 --update-env")]);
    }

    #[test]
    fn a_worker_that_nginx_does_not_know_is_found() {
        let mut third = good();
        third.apps[0].workers.push(Worker { peers: BTreeSet::new(), ..worker(2, 3002) });
        let finding = only_in("pm2-not-reached", &third, &good());
        assert!(
            matches!(&finding.mend[..], [Step::Insert { text, .. }] if text == "server 127.0.0.1:3002 max_fails=0;")
        );
        let mut jobs = good();
        jobs.apps[0].name = "jobs".into();
        jobs.apps[0].workers = vec![Worker { peers: BTreeSet::new(), ..worker(0, 9000) }];
        only_in("pm2-not-reached", &third, &jobs);
    }

    #[test]
    fn a_worker_of_which_nothing_is_certain_is_found() {
        let mut hidden = good();
        hidden.apps[0].workers[1].unknown = Some("its process 7 is in another network namespace".into());
        let finding = only_in("pm2-not-mapped", &hidden, &good());
        assert_eq!(finding.found, "worker 1: its process 7 is in another network namespace");
        let mut shared = good();
        let both = Behind::Several([PmId(0), PmId(1)].into());
        shared.behind.insert(Peer::new("shop", "127.0.0.1:3000"), both);
        only_in("pm2-not-mapped", &shared, &good());
    }

    #[test]
    fn a_block_of_environment_that_is_not_used_is_found() {
        let port = |block: &str, port| FileApp { ports: [(block.to_owned(), port)].into(), ..shop() };
        let finding = only_in(
            "pm2-env-not-applied",
            &described(port("env_production", 4000)),
            &described(port("env", 4000)),
        );
        let start = "cd /srv/shop && pm2 delete shop && pm2 start ecosystem.config.js --env production";
        assert_eq!(finding.mend, [Step::run(format!("handoff pause shop && {start}; handoff resume shop"))]);
        let mut cluster = described(port("env_production", 4000));
        cluster.apps[0].workers.iter_mut().for_each(|worker| worker.settings.cluster = true);
        let finding = only_in("pm2-env-not-applied", &cluster, &good());
        let reload = "cd /srv/shop && pm2 reload ecosystem.config.js --env production";
        assert_eq!(finding.mend, [Step::run(reload)]);
        only_in(
            "pm2-env-not-applied",
            &described(port("env_production", 4000)),
            &described(port("env_production", 3000)),
        );
    }

    #[test]
    fn a_file_that_is_not_in_force_is_found() {
        let kill = |kill_timeout| FileApp { kill_timeout, ..shop() };
        let finding = only_in("pm2-file-differs", &described(kill(Some(9000))), &described(kill(Some(8000))));
        assert_eq!(finding.found, "kill_timeout 9000, not 8000");
        only_in("pm2-file-differs", &described(kill(Some(9000))), &described(kill(None)));
        only_in(
            "pm2-file-differs",
            &described(FileApp { exec_mode: Some("cluster".into()), ..shop() }),
            &good(),
        );
        let mut refused = described(shop());
        refused.file.as_mut().unwrap().refused = Some("malformed".into());
        only_in("ecosystem-refused", &refused, &described(shop()));
    }
}
