//! Handoff in nginx: whether it is there, whether it covers every way to a worker, and whether it can be told anything.

use super::super::{
    catalogue::*,
    facts::{Facts, Reached, Seen, User},
    finding::{About, Finding, Step},
    nginx::{ControlLocation, Nginx, Target, Upstream},
};
use super::list;

pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some(says) = &facts.refused {
        findings.push(
            Finding::new(NGINX_REFUSED, About::Nginx, says)
                .with(Step::change(format!("mend what it says: {says}"))),
        );
    }
    let Some(nginx) = &facts.nginx else { return findings };
    if facts.upstreams().next().is_none() && !facts.has_module() {
        // Nothing is known to be an app's, unless one is passed to directly.
        let passes_to_app = nginx.passes.iter().any(|pass| is_apps(facts, &pass.target));
        findings.extend(passes_to_app.then(|| not_loaded(facts, nginx)).flatten());
        return findings;
    }
    if !facts.has_module() {
        findings.extend(not_loaded(facts, nginx));
        return findings;
    }
    findings.extend(missing(facts));
    findings.extend(uncovered(facts, nginx));
    findings.extend(control(facts, nginx));
    findings.extend(answers(facts));
    findings
}

fn is_apps(facts: &Facts, target: &Target) -> bool {
    match target {
        Target::Address(to, peers) => {
            facts.is_apps(to, &peers.iter().map(String::as_str).collect::<Vec<_>>())
        }
        Target::Upstream(_) | Target::Variable => false,
    }
}

/// The upstreams that take part.
pub(super) fn covered(facts: &Facts) -> impl Iterator<Item = &Upstream> {
    let has_module = facts.has_module();
    facts.upstreams().filter(move |upstream| upstream.handoff && has_module)
}

/// What makes an upstream take part.
pub(super) fn cure(facts: &Facts) -> Vec<Step> {
    vec![Step::See { id: if facts.has_module() { MISSING.id } else { NOT_LOADED.id } }]
}

fn takes_part(upstream: &Upstream) -> Vec<Step> {
    let zone = (!upstream.zone).then(|| Step::insert(&upstream.at, format!("zone {} 256k;", upstream.name)));
    zone.into_iter().chain([Step::insert(&upstream.at, "handoff;")]).collect()
}

fn not_loaded(facts: &Facts, nginx: &Nginx) -> Option<Finding> {
    let binary = facts.binary.as_ref()?;
    let file = &nginx.first.as_ref()?.file;
    let mut steps = Vec::new();
    let module = match &binary.module {
        Some(module) => module.display().to_string(),
        None => {
            steps.push(Step::change(format!("install Handoff's module for nginx {}", binary.version)));
            "modules/ngx_http_handoff_module.so".to_owned()
        }
    };
    let main = if binary.conf.as_os_str().is_empty() { file.to_path_buf() } else { binary.conf.clone() };
    steps.push(Step::Prepend { file: main, text: format!("load_module {module};") });
    // What has several servers and no zone is told so by itself.
    for upstream in facts.upstreams() {
        let has_zone_step = upstream.primary_peers() > 1;
        steps.extend(takes_part(upstream).into_iter().filter(|step| {
            !(has_zone_step && matches!(step, Step::Insert { text, .. } if text.starts_with("zone ")))
        }));
    }
    steps.extend(control_server(facts, nginx));
    steps.push(Step::run(reload(facts)));
    steps.push(Step::run("handoff run"));
    let found = format!("nginx {} ({}) has no load_module for it", binary.version, binary.path.display());
    Some(Finding::new(NOT_LOADED, About::Handoff, found).with_all(steps))
}

fn control_server(facts: &Facts, nginx: &Nginx) -> Option<Step> {
    let user = users(facts).find(|user| user.uid != 0).map(|user| format!(" user={}", user.name));
    let text = format!(
        "server {{ listen {}; access_log off; location / {{ handoff_api write=on{}; }} }}",
        facts.asked.control,
        user.unwrap_or_default()
    );
    nginx.http.as_ref().map(|http| Step::insert(http, text))
}

fn reload(facts: &Facts) -> String {
    let command = facts.binary.as_ref().map_or("nginx", |binary| &binary.command);
    format!("{command} -t && {command} -s reload")
}

/// Those as whom PM2's daemons run.
fn users(facts: &Facts) -> impl Iterator<Item = &User> {
    facts.daemons.iter().filter_map(|daemon| match &daemon.seen {
        Seen::Running { user, .. } => user.as_ref(),
        _ => None,
    })
}

fn missing(facts: &Facts) -> Vec<Finding> {
    let is_missing = |upstream: &&Upstream| {
        // Where the address has marks elsewhere, it is reached past them: that is said, and is worse.
        !upstream.handoff && !covered(facts).any(|covered| shares(covered, upstream))
    };
    let finding = |upstream: &Upstream| {
        let found = format!(
            "upstream {:?}: {}",
            upstream.name,
            list(upstream.servers.iter().map(|server| &server.address))
        );
        Finding::nginx(MISSING, &upstream.at, found)
            .with_all(takes_part(upstream))
            .with(Step::run(reload(facts)))
    };
    facts.upstreams().filter(is_missing).map(finding).collect()
}

fn shares(one: &Upstream, other: &Upstream) -> bool {
    one.peers().any(|peer| other.peers().any(|its| its == peer))
}

fn uncovered(facts: &Facts, nginx: &Nginx) -> Vec<Finding> {
    let cover = |peers: &[&str]| {
        let mut all = covered(facts);
        all.find_map(|upstream| Some((upstream, upstream.peers().find(|peer| peers.contains(peer))?)))
    };
    let mut findings = Vec::new();
    for upstream in nginx.upstreams.iter().filter(|upstream| !upstream.handoff) {
        let peers: Vec<&str> = upstream.peers().collect();
        let Some((by, peer)) = cover(&peers) else { continue };
        let kind = if upstream.is_stream { "stream upstream" } else { "upstream" };
        let found =
            format!("{kind} {:?} has {peer}, too, which is in {:?} with `handoff`", upstream.name, by.name);
        let finding = Finding::nginx(UNCOVERED, &upstream.at, found);
        findings.push(if upstream.is_stream {
            finding
                .with(Step::change("pass these requests to it over http, or give them workers of their own"))
        } else {
            finding.with_all(takes_part(upstream)).with(Step::run(reload(facts)))
        });
    }
    for pass in &nginx.passes {
        let Target::Address(to, peers) = &pass.target else { continue };
        let peers: Vec<&str> = peers.iter().map(String::as_str).collect();
        let Some((by, peer)) = cover(&peers) else { continue };
        let found = format!("{} leads to {peer}, which is in {:?} with `handoff`", pass.at.source, by.name);
        let finding = Finding::nginx(UNCOVERED, &pass.at, found);
        findings.push(if pass.is_stream {
            finding
                .with(Step::change("pass these requests to it over http, or give them workers of their own"))
        } else {
            finding
                .with(Step::replace(&pass.at, pass.at.source.replacen(to, &by.name, 1)))
                .with(Step::run(reload(facts)))
        });
    }
    findings
}

fn control(facts: &Facts, nginx: &Nginx) -> Vec<Finding> {
    let writes = |control: &&ControlLocation| control.args.iter().any(|arg| arg == "write=on");
    let mut findings = Vec::new();
    let tcp = |control: &&ControlLocation| control.listens.iter().any(|listen| !listen.starts_with("unix:"));
    for control in nginx.controls.iter().filter(writes).filter(tcp) {
        let found = format!("{} on {}", control.at.source, list(&control.listens));
        let kept: Vec<&str> = control
            .args
            .iter()
            .map(String::as_str)
            .filter(|arg| !matches!(*arg, "write=on" | "tcp=allow"))
            .collect();
        let text = format!("handoff_api {};", kept.join(" ")).replace(" ;", ";");
        let finding = Finding::nginx(CONTROL_TCP, &control.at, found).with(Step::replace(&control.at, text));
        let has_socket = nginx.controls.iter().filter(writes).any(|control| !tcp(&control));
        findings.push(finding.with_all((!has_socket).then(|| control_server(facts, nginx)).flatten()));
    }
    if covered(facts).next().is_some() && nginx.controls.iter().find(writes).is_none() {
        let found =
            format!("{} `handoff_api` in all of the configuration, none with write=on", nginx.controls.len());
        let step = match nginx.controls.first() {
            Some(control) if !tcp(&control) => Some(Step::replace(
                &control.at,
                format!("handoff_api write=on {};", control.args.join(" ")).replace(" ;", ";"),
            )),
            _ => control_server(facts, nginx),
        };
        findings
            .push(Finding::new(CONTROL, About::Handoff, found).with_all(step).with(Step::run(reload(facts))));
    }
    // nginx's own users may write anyway.
    let master = facts.running.as_ref().and_then(|running| running.user);
    for user in users(facts)
        .filter(|user| user.uid != 0 && master != Some(user.uid) && nginx.user.as_deref() != Some(&user.name))
    {
        let may = |control: &ControlLocation| {
            control.args.iter().any(|arg| match arg.split_once('=') {
                Some(("user", name)) => name == user.name || name == user.uid.to_string(),
                Some(("group", name)) => user.groups.contains(name),
                _ => false,
            })
        };
        let own = nginx
            .controls
            .iter()
            .filter(writes)
            .find(|control| control.listens.contains(&facts.asked.control));
        if let Some(control) = own.filter(|control| !may(control)) {
            let found = format!("PM2 runs as {}, and {} does not name it", user.name, control.at.source);
            let text = format!("handoff_api {} user={};", control.args.join(" "), user.name);
            let finding = Finding::new(CONTROL_DENIED, About::Handoff, found).at(Some(control.at.clone()));
            findings.push(finding.with(Step::replace(&control.at, text)).with(Step::run(reload(facts))));
        }
    }
    findings
}

/// What the running nginx says.
fn answers(facts: &Facts) -> Vec<Finding> {
    let handoff = |kind, found: String| Finding::new(kind, About::Handoff, found);
    let mut findings = Vec::new();
    if let Some(says) = facts.running.as_ref().and_then(|running| running.stale_module.as_ref()) {
        let command = facts.binary.as_ref().map_or("nginx", |binary| &binary.command);
        let found = format!("nginx has {says} mapped, and that file is another one now");
        findings
            .push(handoff(MODULE_REPLACED, found).with(Step::run(format!("{command} -s quit; {command}"))));
    }
    let Some(control) = &facts.control else { return findings };
    let own = &facts.asked.version;
    match &control.answer {
        Reached::No(why) if covered(facts).next().is_some() => {
            let elsewhere =
                facts.nginx.iter().flat_map(|nginx| &nginx.controls).flat_map(|control| &control.listens);
            let elsewhere = elsewhere
                .filter(|listen| listen.starts_with("unix:"))
                .find(|listen| **listen != facts.asked.control);
            let step = match elsewhere {
                Some(listen) => {
                    Step::change(format!("--control {listen}, here and for `handoff run` (HANDOFF_CONTROL)"))
                }
                None => Step::run(reload(facts)),
            };
            findings.push(handoff(CONTROL_UNREACHED, why.clone()).with(step));
        }
        Reached::Denied(why) => {
            findings.push(handoff(CONTROL_DENIED, why.clone()).with(Step::change(why.clone())))
        }
        _ => {}
    }
    if control.answer != Reached::Yes {
        return findings;
    }
    let unknown: Vec<&str> = covered(facts)
        .map(|upstream| upstream.name.as_str())
        .filter(|name| !control.upstreams.contains(*name))
        .collect();
    if !unknown.is_empty() {
        findings.push(
            handoff(NOT_RELOADED, format!("upstream {}", list(unknown))).with(Step::run(reload(facts))),
        );
    }
    if let Some(module) = control.version.as_ref().filter(|version| *version != own) {
        findings.push(
            handoff(VERSIONS, format!("the module is {module}, this command {own}"))
                .with(Step::change(format!("install the module of {own} and restart nginx"))),
        );
    }
    if control.peers_without_room > 0 {
        let found = format!("{} peers have no room", control.peers_without_room);
        findings.push(
            handoff(ZONE_FULL, found)
                .with(Step::change("handoff_zone 16m; in the http block (4m holds 1257 peers)")),
        );
    }
    if control.lapsed > 0 {
        let found = format!("{} of the last 256 changes", control.lapsed);
        findings.push(handoff(LAPSED, found).with(Step::change(
            "run `handoff run` as a service with Restart=always (docs/operations/sidecar.md)",
        )));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::{
        super::facts::{Control, Running},
        stage::{GOOD, facts, good, only_in, stock},
    };
    use super::*;

    #[test]
    fn the_way_to_handoff_is_every_step_of_it() {
        let finding = only_in("handoff-not-loaded", &facts(&stock()), &good());
        let steps: Vec<String> = finding.mend.iter().map(ToString::to_string).collect();
        assert!(steps[0].ends_with("add  load_module /m/ngx_http_handoff_module.so;"), "{steps:?}");
        assert!(steps[1].ends_with("add  handoff;"), "{steps:?}");
        assert!(
            steps[2].contains("listen unix:/run/handoff/nginx.sock;") && steps[2].contains("user=shop"),
            "{steps:?}"
        );
        assert_eq!(steps[3..], ["run  nginx -t && nginx -s reload", "run  handoff run"]);
        let mut bare = facts(&stock());
        bare.binary.as_mut().unwrap().module = None;
        let finding = only_in("handoff-not-loaded", &bare, &good());
        assert_eq!(finding.mend[0].to_string(), "install Handoff's module for nginx 1.22.1");
    }

    #[test]
    fn where_no_app_is_behind_nginx_it_is_not_missed() {
        let other = facts(&stock().replace("300", "900"));
        let other = Facts { apps: Vec::new(), ..other };
        only_in("handoff-not-loaded", &facts(&stock()), &other);
    }

    #[test]
    fn an_upstream_that_does_not_take_part_is_found() {
        let other = "upstream other { server 127.0.0.1:3000; } server { listen 81; location / { proxy_pass http://other; } }";
        let lone = GOOD.replace("        handoff;\n", "");
        let finding = only_in("handoff-missing", &facts(&lone), &good());
        assert_eq!(finding.mend.len(), 2, "it has a zone");
        let shared = GOOD.replace("http {", &format!("http {{ {other}"));
        let finding = only_in("handoff-uncovered", &facts(&shared), &good());
        assert!(finding.found.starts_with("upstream \"other\" has 127.0.0.1:3000"), "{}", finding.found);
        only_in("handoff-missing", &facts(&lone), &facts(&shared));
    }

    #[test]
    fn a_way_past_the_marks_is_led_to_the_upstream() {
        let direct =
            GOOD.replace("listen 80;", "listen 80; location /x { proxy_pass http://127.0.0.1:3001/y; }");
        let finding = only_in("handoff-uncovered", &facts(&direct), &good());
        assert!(matches!(&finding.mend[0], Step::Replace { new, .. } if new == "proxy_pass http://shop/y;"));
        let stream = format!("{GOOD} stream {{ server {{ listen 99; proxy_pass 127.0.0.1:3000; }} }}");
        only_in("handoff-uncovered", &facts(&stream), &good());
    }

    #[test]
    fn who_asks_for_one_app_is_told_of_what_is_in_front_of_it() {
        let mut other = facts(&GOOD.replace(" max_fails=0", "").replace("300", "900"));
        other.apps[0].workers.clear();
        let one = Facts {
            asked: super::super::super::facts::Asked { app: Some("shop".into()), ..other.asked.clone() },
            ..other.clone()
        };
        only_in("nginx-passive-bans", &other, &one);
    }

    #[test]
    fn nginx_must_be_told_and_not_by_everybody() {
        let with = |args: &str| facts(&GOOD.replace("write=on user=shop", args));
        let finding = only_in("control-missing", &with("user=shop"), &good());
        assert!(
            matches!(&finding.mend[0], Step::Replace { new, .. } if new == "handoff_api write=on user=shop;")
        );
        let tcp = GOOD
            .replace("listen unix:/run/handoff/nginx.sock", "listen 127.0.0.1:8000")
            .replace("user=shop", "tcp=allow");
        let finding = only_in("control-tcp", &facts(&tcp), &good());
        assert_eq!(finding.mend.len(), 2);
        let finding = only_in("control-denied", &with("write=on"), &good());
        assert!(
            matches!(&finding.mend[0], Step::Replace { new, .. } if new == "handoff_api write=on user=shop;")
        );
        only_in("control-denied", &with("write=on group=other"), &with("write=on group=shop"));
        let own = Running { user: Some(1000), ..Running::default() };
        only_in("control-denied", &with("write=on"), &Facts { running: Some(own), ..with("write=on") });
        only_in(
            "control-denied",
            &with("write=on"),
            &facts(&format!("user shop;{}", GOOD.replace(" user=shop", ""))),
        );
    }

    #[test]
    fn what_the_running_nginx_says_is_compared() {
        let says = |control: Control| Facts { control: Some(control), ..good() };
        let control = || good().control.unwrap();
        let absent = Reached::No("no socket".into());
        only_in("control-unreached", &says(Control { answer: absent, ..control() }), &good());
        only_in(
            "control-denied",
            &says(Control { answer: Reached::Denied("no".into()), ..control() }),
            &good(),
        );
        only_in(
            "nginx-not-reloaded",
            &says(Control { upstreams: ["x".to_owned()].into(), ..control() }),
            &good(),
        );
        only_in("version-differs", &says(Control { version: Some("0.0.9".into()), ..control() }), &good());
        only_in("handoff-zone-full", &says(Control { peers_without_room: 1, ..control() }), &good());
        only_in("leases-lapsed", &says(Control { lapsed: 2, ..control() }), &good());
        let stale = Running { stale_module: Some("/m.so".into()), ..Running::default() };
        only_in("nginx-module-replaced", &Facts { running: Some(stale), ..good() }, &good());
        only_in("nginx-refused", &Facts { refused: Some("[emerg] x".into()), ..good() }, &good());
    }
}
