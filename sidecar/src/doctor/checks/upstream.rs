//! The upstreams of an app's workers.

use super::super::{
    catalogue::*,
    facts::Facts,
    finding::{Finding, Step},
    nginx::{Queue, Reuse, Sent, Server, Upstream},
};
use super::{cover, list, seconds};
use crate::{
    mapping::Behind,
    peer::Peer,
    pm2::monitor::{KILL_TIMEOUT, LISTEN_TIMEOUT},
};
use std::time::Duration;

/// Where an app does not say otherwise, Node closes an idle connection so late.
const NODE_KEEP_ALIVE: Duration = Duration::from_secs(5);
/// Where an upstream does not say otherwise, nginx does.
const NGINX_KEEPALIVE: Duration = Duration::from_secs(60);
const IDLE: &str = "keepalive_timeout 4s;";

pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let mut findings: Vec<Finding> = facts
        .upstreams()
        .flat_map(|upstream| {
            let checks = [one_server, balancer, bans, zone, keepalive, reuse, queue, slow_start];
            checks.into_iter().filter_map(|check| check(facts, upstream)).chain(servers(facts, upstream))
        })
        .collect();
    findings.extend(process(facts));
    findings
}

fn one_server(facts: &Facts, upstream: &Upstream) -> Option<Finding> {
    if has_handoff(facts, upstream) || upstream.primary_peers() != 1 || upstream.servers.len() > 1 {
        return None;
    }
    let found =
        format!("upstream {:?} has {} and no other", upstream.name, upstream.primaries().next()?.address);
    Some(Finding::nginx(ONE_SERVER, &upstream.at, found).with_all(cover::cure(facts)).with(Step::or(
        "with nginx alone, a port for each worker (fork mode, increment_var: 'PORT'), each a server with max_fails=0",
    )))
}

fn balancer(_: &Facts, upstream: &Upstream) -> Option<Finding> {
    let at = upstream
        .balancer
        .as_ref()
        .filter(|_| upstream.servers.len() == 1 && upstream.primary_peers() == 1)?;
    let found = format!("{} in upstream {:?}, which has one server", at.source, upstream.name);
    Some(Finding::nginx(BALANCER_OF_ONE, at, found).with(Step::replace(at, "")))
}

/// With one server nginx takes no notice of them.
fn bans(facts: &Facts, upstream: &Upstream) -> Option<Finding> {
    let banned =
        |server: &&Server| server.max_fails != Some(0) && server.fail_timeout.as_deref() != Some("0");
    let servers: Vec<&Server> = upstream.primaries().filter(banned).collect();
    let first = servers.first().filter(|_| upstream.primary_peers() > 1)?;
    let found = format!(
        "upstream {:?}: {} with max_fails={}",
        upstream.name,
        list(servers.iter().map(|server| &server.address)),
        first.max_fails.unwrap_or(1)
    );
    let steps =
        servers.iter().map(|server| Step::replace(&server.at, server.with("max_fails=", "max_fails=0")));
    let finding = Finding::nginx(BANS, &first.at, found).with_all(steps);
    Some(if has_handoff(facts, upstream) { finding.as_note() } else { finding })
}

fn zone(_: &Facts, upstream: &Upstream) -> Option<Finding> {
    let is_wrong = !upstream.zone && upstream.primary_peers() > 1 && !upstream.handoff;
    let found = format!("upstream {:?} has {} servers and no zone", upstream.name, upstream.primary_peers());
    is_wrong.then(|| {
        let step = Step::insert(&upstream.at, format!("zone {} 256k;", upstream.name));
        Finding::nginx(ZONE, &upstream.at, found).with(step)
    })
}

fn keepalive(facts: &Facts, upstream: &Upstream) -> Option<Finding> {
    let is_kept = |sent: Sent| sent != Sent::Close;
    let nginx = facts.nginx.as_ref()?;
    let mut keeps = nginx
        .passes_to(&upstream.name)
        .map(|pass| pass.connection.as_ref().is_some_and(|(_, sent)| is_kept(*sent)));
    if !upstream.keepalive || has_handoff(facts, upstream) || !keeps.any(|keeps| keeps) {
        return None;
    }
    let ours = upstream.keepalive_timeout.as_ref().map_or(NGINX_KEEPALIVE, |(_, time)| *time);
    let told = shortest(facts, upstream);
    if ours < told.unwrap_or(NODE_KEEP_ALIVE) {
        return None;
    }
    let theirs = match told {
        Some(told) => format!("the app closes them after {}, it says", seconds(told)),
        None => {
            "Node closes them after 5 s, unless server.keepAliveTimeout says otherwise (--probe asks the app)"
                .to_owned()
        }
    };
    let found =
        format!("upstream {:?}: nginx keeps idle connections for {}; {theirs}", upstream.name, seconds(ours));
    let text = match told.filter(|told| *told <= Duration::from_secs(4)) {
        Some(told) => format!("keepalive_timeout {}ms;", told.as_millis() / 2),
        None => IDLE.to_owned(),
    };
    let (at, step) = match &upstream.keepalive_timeout {
        Some((at, _)) => (at, Step::replace(at, text)),
        None => (&upstream.at, Step::insert(&upstream.at, text)),
    };
    Some(Finding::nginx(KEEPALIVE_LONG, at, found).with(step))
}

/// What the app's workers said.
fn shortest(facts: &Facts, upstream: &Upstream) -> Option<Duration> {
    let peers: Vec<&str> = upstream.peers().collect();
    let apps = facts.apps_behind(&upstream.name, &peers);
    apps.flat_map(|app| &app.workers).filter_map(|worker| worker.keep_alive).min()
}

fn reuse(facts: &Facts, upstream: &Upstream) -> Option<Finding> {
    let (at, reuse) = upstream.reuse.as_ref()?;
    let told = shortest(facts, upstream).unwrap_or(NODE_KEEP_ALIVE);
    let idle = upstream.keepalive_timeout.as_ref().map_or(NGINX_KEEPALIVE, |(_, time)| *time);
    let longest = match *reuse {
        Reuse::Always => idle,
        Reuse::Idle(time) => time.min(idle),
    };
    let found = format!(
        "{} in upstream {:?}, and connections are closed after {}",
        at.source,
        upstream.name,
        seconds(told)
    );
    (longest >= told)
        .then(|| Finding::nginx(REUSE, at, found).with(Step::replace(at, "handoff_reuse idle=1s;")))
}

fn queue(facts: &Facts, upstream: &Upstream) -> Option<Finding> {
    let (at, queue) = upstream.queue.as_ref().filter(|_| has_handoff(facts, upstream))?;
    let peers: Vec<&str> = upstream.peers().collect();
    let alone = facts.apps_behind(&upstream.name, &peers).find(|app| app.workers.len() == 1)?;
    let wait_ready = alone.any(|settings| settings.wait_ready);
    let listen =
        alone.workers.iter().find_map(|worker| worker.settings.listen_timeout).unwrap_or(LISTEN_TIMEOUT);
    let needs =
        alone.kill_timeout().unwrap_or(KILL_TIMEOUT) + if wait_ready { listen } else { Duration::ZERO };
    let has = match *queue {
        Queue::Off => Duration::ZERO,
        Queue::Timeout(time) => time,
    };
    let found = format!(
        "{}: PM2 may take {} to replace the only worker of {}",
        at.source,
        seconds(needs),
        alone.name
    );
    let text = format!("handoff_queue 4096 timeout={}s;", (needs.as_secs() + 1).max(30));
    (has < needs).then(|| Finding::nginx(QUEUE, at, found).with(Step::replace(at, text)))
}

fn slow_start(facts: &Facts, upstream: &Upstream) -> Option<Finding> {
    let at = upstream.slow_start.as_ref().filter(|_| has_handoff(facts, upstream))?;
    let peers: Vec<&str> = upstream.peers().collect();
    let cluster = facts.apps_behind(&upstream.name, &peers).find(|app| app.is_cluster());
    let why = match cluster {
        Some(app) => format!("the workers of {}, which is in cluster mode, share an address", app.name),
        None if upstream.primary_peers() == 1 => "there is one server".to_owned(),
        None => return None,
    };
    let found = format!("{} in upstream {:?}: {why}", at.source, upstream.name);
    Some(Finding::nginx(SLOW_START, at, found).with(Step::replace(at, "")))
}

/// Those on which nobody listens.
fn servers(facts: &Facts, upstream: &Upstream) -> Vec<Finding> {
    let is_empty =
        |peer: &String| facts.behind.get(&Peer::new(&upstream.name, peer)).is_some_and(Behind::is_nobody);
    let spares = spares(facts, upstream);
    let mut findings = Vec::new();
    for server in upstream.servers.iter().filter(|server| !server.down) {
        let (empty, taken): (Vec<&String>, Vec<&String>) =
            server.peers.iter().partition(|peer| is_empty(peer));
        let Some(first) = empty.first() else { continue };
        if let Some(to) = taken.first() {
            let found = format!("{} is {}; on {first} nobody listens", server.address, list(&server.peers));
            let new = server.at.source.replacen(&server.address, to, 1);
            findings.push(Finding::nginx(LOCALHOST, &server.at, found).with(Step::replace(&server.at, new)));
        } else if !spares {
            let found = format!("{} in upstream {:?}", server.address, upstream.name);
            let finding = Finding::nginx(NOBODY, &server.at, found).with(Step::replace(&server.at, ""));
            let finding = finding.with(Step::or("start the worker that should listen there"));
            findings.push(if has_handoff(facts, upstream) { finding.as_note() } else { finding });
        }
    }
    findings
}

/// For the only worker of an app a port to spare is no mistake.
fn spares(facts: &Facts, upstream: &Upstream) -> bool {
    let peers: Vec<&str> = upstream.peers().collect();
    has_handoff(facts, upstream)
        && facts.apps_behind(&upstream.name, &peers).any(|app| app.workers.len() == 1 && !app.is_cluster())
}

/// nginx's processes as a whole.
fn process(facts: &Facts) -> Vec<Finding> {
    let Some(nginx) = facts.nginx.as_ref().filter(|_| facts.upstreams().next().is_some()) else {
        return Vec::new();
    };
    let mut findings = Vec::new();
    if let Some((at, timeout)) = &nginx.shutdown_timeout {
        let waits =
            facts.upstreams().filter(|upstream| has_handoff(facts, upstream)).map(|upstream| match upstream
                .queue
                .as_ref()
                .map(|(_, queue)| *queue)
            {
                Some(Queue::Off) => Duration::ZERO,
                Some(Queue::Timeout(time)) => time,
                None => Duration::from_secs(30),
            });
        let needs = waits.chain(facts.asked.slowest).max().unwrap_or_default();
        if *timeout < needs {
            let found = format!("{}, and requests may take or wait {}", at.source, seconds(needs));
            let text = format!("worker_shutdown_timeout {}s;", needs.as_secs() * 2);
            findings.push(Finding::nginx(SHUTDOWN, at, found).with(Step::replace(at, text)));
        }
    }
    let open_files = facts.running.as_ref().and_then(|running| running.open_files);
    let connections = nginx.worker_connections.as_ref().map_or(512, |(_, connections)| *connections);
    let limit = nginx.rlimit_nofile.as_ref().map(|(_, limit)| *limit).or(open_files);
    if let Some(limit) = limit.filter(|limit| *limit < connections) {
        let found = format!("worker_connections {connections}, and {limit} open files");
        let text = format!("worker_rlimit_nofile {};", connections * 2);
        let step = match (&nginx.rlimit_nofile, &nginx.first) {
            (Some((at, _)), _) => Some(Step::replace(at, text)),
            (None, Some(first)) => Some(Step::Prepend { file: first.file.to_path_buf(), text }),
            (None, None) => None,
        };
        let at = nginx.worker_connections.as_ref().map(|(at, _)| at.clone());
        let about = super::super::finding::About::Nginx;
        findings.push(Finding::new(OPEN_FILES, about, found).at(at).with_all(step));
    }
    findings
}

fn has_handoff(facts: &Facts, upstream: &Upstream) -> bool {
    upstream.handoff && facts.has_module()
}

#[cfg(test)]
mod tests {
    use super::super::{
        super::{facts::Running, finding::Severity},
        stage::{GOOD, facts, good, only_in, stock},
    };
    use super::*;

    fn one() -> String {
        stock().replace("        server 127.0.0.1:3001 max_fails=0;\n", "")
    }

    fn stocked() -> Facts {
        facts(&stock())
    }

    #[test]
    fn one_server_is_the_last_one_but_with_handoff() {
        only_in("nginx-one-server", &facts(&one()), &stocked());
        let handoff = GOOD.replace("        server 127.0.0.1:3001 max_fails=0;\n", "");
        only_in("nginx-one-server", &facts(&one()), &facts(&handoff));
        let backup = one().replace("keepalive 32;", "server 127.0.0.1:3001 backup; keepalive 32;");
        only_in("nginx-one-server", &facts(&one()), &facts(&backup));
    }

    #[test]
    fn a_balancer_over_one_server_does_nothing() {
        let least = |text: &str| facts(&text.replace("zone shop", "least_conn; zone shop"));
        let finding = only_in("nginx-balancer-of-one", &least(&one()), &least(&stock()));
        assert!(finding.mend[0].to_string().ends_with("remove  least_conn;"), "{}", finding.mend[0]);
    }

    #[test]
    fn bans_are_a_warning_and_with_handoff_a_note() {
        let banned = |text: &str| facts(&text.replace(" max_fails=0", ""));
        let finding = only_in("nginx-passive-bans", &banned(&stock()), &stocked());
        assert_eq!((finding.severity, finding.mend.len()), (Severity::Warning, 2));
        assert!(
            matches!(&finding.mend[0], Step::Replace { new, .. } if new == "server 127.0.0.1:3000 max_fails=0;")
        );
        assert_eq!(only_in("nginx-passive-bans", &banned(GOOD), &good()).severity, Severity::Note);
        only_in("nginx-passive-bans", &banned(&stock()), &banned(&one()));
    }

    #[test]
    fn several_servers_need_a_zone() {
        let without = |text: &str| facts(&text.replace("zone shop 256k;", ""));
        only_in("nginx-zone", &without(&stock()), &stocked());
        only_in("nginx-zone", &without(&stock()), &without(&one()));
    }

    #[test]
    fn nginx_must_let_go_of_a_connection_first() {
        let long = |text: &str| text.replace("keepalive_timeout 4s;", "");
        let finding = only_in("nginx-keepalive-timeout", &facts(&long(&stock())), &stocked());
        assert!(finding.found.contains("60 s") && finding.found.contains("--probe"), "{}", finding.found);
        only_in("nginx-keepalive-timeout", &facts(&long(&stock())), &facts(&long(GOOD)));
        let told = |seconds: u64| {
            let mut facts = stocked();
            facts.apps[0].workers[0].keep_alive = Some(Duration::from_secs(seconds));
            facts
        };
        let finding = only_in("nginx-keepalive-timeout", &told(4), &told(5));
        assert!(
            matches!(&finding.mend[..], [Step::Replace { new, .. }] if new == "keepalive_timeout 2000ms;")
        );
        let closes = long(&stock()).replace("proxy_set_header Connection \"\";", "");
        only_in("nginx-keepalive-timeout", &facts(&long(&stock())), &facts(&closes));
    }

    #[test]
    fn a_reuse_without_a_bound_is_found() {
        let with = |words: &str| facts(&GOOD.replace("keepalive_timeout 4s;", words));
        only_in("nginx-reuse", &with("handoff_reuse always;"), &with("handoff_reuse idle=2s;"));
        only_in(
            "nginx-reuse",
            &with("handoff_reuse idle=6s;"),
            &with("handoff_reuse always; keepalive_timeout 4s;"),
        );
    }

    #[test]
    fn whoever_waits_for_the_only_worker_waits_long_enough() {
        let with = |words: &str| {
            let mut facts = facts(&GOOD.replace("        handoff;", &format!("        handoff; {words}")));
            facts.apps[0].workers.truncate(1);
            facts
        };
        let finding =
            only_in("handoff-queue", &with("handoff_queue 10 timeout=10s;"), &with("handoff_queue 10;"));
        assert!(finding.found.contains("11 s"), "{}", finding.found);
        only_in("handoff-queue", &with("handoff_queue off;"), &good());
    }

    #[test]
    fn a_slow_start_needs_another_address() {
        let with = |text: &str| text.replace("        handoff;", "        handoff; handoff_slow_start 30s;");
        let single = GOOD.replace("        server 127.0.0.1:3001 max_fails=0;\n", "");
        let finding = only_in("handoff-slow-start", &facts(&with(&single)), &facts(&with(GOOD)));
        assert!(finding.found.ends_with("there is one server"), "{}", finding.found);
        let off = with(&single).replace("30s", "off");
        only_in("handoff-slow-start", &facts(&with(&single)), &facts(&off));
        let mut cluster = facts(&with(GOOD));
        cluster.apps[0].workers.iter_mut().for_each(|worker| worker.settings.cluster = true);
        let finding = only_in("handoff-slow-start", &cluster, &facts(&with(GOOD)));
        assert!(finding.found.contains("share an address"), "{}", finding.found);
    }

    #[test]
    fn a_server_on_which_nobody_listens_is_found_unless_it_is_to_spare() {
        let empty = |text: &str, workers: usize| {
            let mut facts = facts(text);
            facts.behind.insert(Peer::new("shop", "127.0.0.1:3001"), Behind::Refused);
            facts.apps[0].workers.truncate(workers);
            facts
        };
        assert_eq!(
            only_in("nginx-nobody-listens", &empty(&stock(), 2), &stocked()).severity,
            Severity::Warning
        );
        assert_eq!(
            only_in("nginx-nobody-listens", &empty(GOOD, 2), &empty(GOOD, 1)).severity,
            Severity::Note
        );
    }

    #[test]
    fn localhost_is_two_servers() {
        let local = |behind: Behind| {
            let mut facts = facts(&GOOD.replace("server 127.0.0.1:3000", "server localhost:3000"));
            facts.behind.insert(Peer::new("shop", "[::1]:3000"), behind);
            facts
        };
        let finding = only_in("nginx-localhost", &local(Behind::Nobody), &local(Behind::Stranger));
        assert!(
            matches!(&finding.mend[..], [Step::Replace { new, .. }] if new == "server 127.0.0.1:3000 max_fails=0;")
        );
    }

    #[test]
    fn old_processes_may_finish_what_they_have() {
        let with = |time: &str| facts(&format!("worker_shutdown_timeout {time};{GOOD}"));
        only_in("nginx-shutdown-timeout", &with("10s"), &with("30s"));
    }

    #[test]
    fn open_files_are_compared_with_connections() {
        let with = |files| Facts {
            running: Some(Running { open_files: Some(files), ..Running::default() }),
            ..good()
        };
        only_in("nginx-open-files", &with(1023), &with(1024));
        let said = |files: &str| facts(&format!("worker_rlimit_nofile {files};{GOOD}"));
        only_in("nginx-open-files", &said("512"), &said("2048"));
    }
}
