//! Who passes requests on, and with what settings.

use super::super::{
    catalogue::*,
    facts::Facts,
    finding::{Finding, Step},
    nginx::{Nginx, Pass, Sent, Target, Upstream, time},
};
use super::{list, seconds};

const RETRIES: &str = "proxy_next_upstream error timeout http_502 http_503 http_504;";

pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let Some(nginx) = &facts.nginx else { return Vec::new() };
    let mut findings = Vec::new();
    for pass in nginx.passes.iter().filter(|pass| pass.directive == "proxy_pass" && !pass.is_stream) {
        match &pass.target {
            Target::Upstream(name) => {
                let ours = facts.upstreams().find(|upstream| upstream.name == *name);
                findings.extend(ours.into_iter().flat_map(|upstream| settings(facts, pass, upstream)));
            }
            Target::Address(to, peers) => findings.extend(address(facts, nginx, pass, to, peers)),
            Target::Variable => {}
        }
    }
    // Where a setting is inherited, it is one mistake and not one a location.
    let mut seen = Vec::new();
    findings.retain(|finding| {
        let key = (finding.kind.id, finding.at.clone());
        let is_new = !seen.contains(&key);
        seen.push(key);
        is_new
    });
    findings
}

fn address(facts: &Facts, nginx: &Nginx, pass: &Pass, to: &str, peers: &[String]) -> Option<Finding> {
    let peers: Vec<&str> = peers.iter().map(String::as_str).collect();
    if !facts.is_apps(to, &peers) {
        return None;
    }
    // Past the marks of an upstream that takes part is worse, and said there.
    if super::cover::covered(facts).any(|upstream| upstream.peers().any(|peer| peers.contains(&peer))) {
        return None;
    }
    let has_it = |upstream: &&Upstream| upstream.peers().any(|peer| peers.contains(&peer));
    let found = Finding::nginx(ADDRESS, &pass.at, &pass.at.source);
    let name = match nginx.upstreams.iter().find(has_it) {
        Some(upstream) => upstream.name.clone(),
        None => {
            let app = facts.apps_behind(to, &peers).next().map_or("myapp", |app| &app.name);
            let block = format!(
                "upstream {app} {{ zone {app} 256k; server {to} max_fails=0; keepalive 32; keepalive_timeout 4s; }}"
            );
            let http = nginx.http.as_ref()?;
            return Some(
                found
                    .with(Step::insert(http, block))
                    .with(Step::replace(&pass.at, pass.at.source.replacen(to, app, 1))),
            );
        }
    };
    Some(found.with(Step::replace(&pass.at, pass.at.source.replacen(to, &name, 1))))
}

fn settings(facts: &Facts, pass: &Pass, upstream: &Upstream) -> Vec<Finding> {
    let has_handoff = upstream.handoff && facts.has_module();
    let mut findings = Vec::new();
    if let Some((at, conditions)) = pass.setting("proxy_next_upstream") {
        let has = |word: &str| conditions.iter().any(|condition| condition == word);
        if has("non_idempotent") {
            let kept: Vec<&str> = conditions
                .iter()
                .map(String::as_str)
                .filter(|condition| *condition != "non_idempotent")
                .collect();
            let new = if kept.is_empty() {
                RETRIES.to_owned()
            } else {
                format!("proxy_next_upstream {};", kept.join(" "))
            };
            findings.push(Finding::nginx(NON_IDEMPOTENT, at, &at.source).with(Step::replace(at, new)));
        } else if has("off") || !has("error") {
            findings.push(Finding::nginx(NEXT_OFF, at, &at.source).with(Step::replace(at, RETRIES)));
        }
    }
    if let Some((at, tries)) = pass.first("proxy_next_upstream_tries")
        && let Ok(tries) = tries.parse::<usize>()
        && !has_handoff
        && (1..upstream.primary_peers()).contains(&tries)
    {
        let found = format!("{} and {} servers in {:?}", at.source, upstream.primary_peers(), upstream.name);
        findings
            .push(Finding::nginx(TRIES, at, found).with(Step::replace(at, "proxy_next_upstream_tries 0;")));
    }
    if let Some(slowest) = facts.asked.slowest {
        let (at, read) = match pass.first("proxy_read_timeout") {
            Some((at, read)) => (Some(at), time(read).unwrap_or_default()),
            None => (None, std::time::Duration::from_secs(60)),
        };
        if read <= slowest {
            let text = format!("proxy_read_timeout {}s;", slowest.as_secs() * 2 + 1);
            let found = format!("{}, and requests take up to {}", seconds(read), seconds(slowest));
            let step = at.map_or_else(|| Step::insert(&pass.block, &text), |at| Step::replace(at, &text));
            findings.push(Finding::nginx(READ_TIMEOUT, at.unwrap_or(&pass.at), found).with(step));
        }
    }
    findings.extend(unused(facts, pass, upstream));
    findings
}

/// nginx keeps connections by itself from 1.29.7 on.
fn unused(facts: &Facts, pass: &Pass, upstream: &Upstream) -> Option<Finding> {
    let version = facts
        .binary
        .as_ref()?
        .version
        .split('.')
        .map(|part| part.parse::<u32>().ok())
        .collect::<Option<Vec<_>>>()?;
    if !upstream.keepalive || version >= vec![1, 29, 7] {
        return None;
    }
    let mut steps = Vec::new();
    let mut lacks = Vec::new();
    match pass.first("proxy_http_version") {
        Some((_, "1.1" | "2")) => {}
        Some((at, version)) => {
            lacks.push(format!("proxy_http_version is {version}"));
            steps.push(Step::replace(at, "proxy_http_version 1.1;"));
        }
        None => {
            lacks.push("no proxy_http_version 1.1".to_owned());
            steps.push(Step::insert(&pass.block, "proxy_http_version 1.1;"));
        }
    }
    match &pass.connection {
        Some((_, Sent::Empty | Sent::Unknown)) => {}
        Some((at, Sent::Close)) => {
            lacks.push("the Connection header says close".to_owned());
            steps.push(Step::replace(at, "proxy_set_header Connection \"\";"));
        }
        None => {
            lacks.push("no proxy_set_header Connection \"\"".to_owned());
            // Beside the other headers: a line of its own would take these away.
            let block = pass.headers.as_ref().unwrap_or(&pass.block);
            steps.push(Step::insert(block, "proxy_set_header Connection \"\";"));
        }
    }
    let found = format!("{}: {}", pass.at.source, list(&lacks));
    (!lacks.is_empty()).then(|| Finding::nginx(KEEPALIVE_UNUSED, &pass.at, found).with_all(steps))
}

#[cfg(test)]
mod tests {
    use super::super::stage::{GOOD, facts, good, only_in, stock};
    use super::*;
    use std::time::Duration;

    fn with(words: &str) -> Facts {
        facts(&GOOD.replace("proxy_pass http://shop;", &format!("proxy_pass http://shop; {words}")))
    }

    #[test]
    fn an_address_without_an_upstream_is_given_one() {
        let alone = stock().replace("proxy_pass http://shop;", "proxy_pass http://127.0.0.1:3000;");
        let finding = only_in("nginx-address", &facts(&alone), &facts(&stock()));
        assert_eq!(
            finding.mend,
            [Step::Replace {
                file: "/n.conf".into(),
                line: finding.at.unwrap().line,
                old: "proxy_pass http://127.0.0.1:3000;".into(),
                new: "proxy_pass http://shop;".into()
            }]
        );
        let bare = "http { server { location / { proxy_pass http://127.0.0.1:3000/a; } } }";
        let finding = only_in("nginx-address", &facts(bare), &facts(&bare.replace("3000", "9000")));
        assert!(matches!(&finding.mend[..], [Step::Insert { text, .. }, Step::Replace { new, .. }]
            if text.starts_with("upstream shop { zone shop 256k; server 127.0.0.1:3000 ") && new == "proxy_pass http://shop/a;"));
    }

    #[test]
    fn what_is_no_worker_s_is_nobody_s_mistake() {
        let other = stock().replace("http://shop", "http://127.0.0.1:9000");
        assert!(super::super::all(&facts(&other)).iter().all(|finding| finding.kind != ADDRESS));
    }

    #[test]
    fn posts_that_may_be_run_twice_are_an_error() {
        let wrong = with("proxy_next_upstream error timeout\n    non_idempotent;");
        let finding = only_in("nginx-non-idempotent", &wrong, &with("proxy_next_upstream error timeout;"));
        assert_eq!(finding.found, "proxy_next_upstream error timeout non_idempotent;");
        assert!(
            matches!(&finding.mend[..], [Step::Replace { new, .. }] if new == "proxy_next_upstream error timeout;")
        );
    }

    #[test]
    fn a_failure_that_is_never_given_to_another_worker_is_found() {
        for wrong in ["off", "http_502 timeout"] {
            only_in("nginx-next-upstream", &with(&format!("proxy_next_upstream {wrong};")), &good());
        }
    }

    #[test]
    fn too_few_tries_hurt_stock_nginx_only() {
        let stock = |tries: &str| {
            facts(&stock().replace(
                "proxy_pass http://shop;",
                &format!("proxy_pass http://shop; proxy_next_upstream_tries {tries};"),
            ))
        };
        only_in("nginx-tries", &stock("1"), &stock("2"));
        only_in("nginx-tries", &stock("1"), &with("proxy_next_upstream_tries 1;"));
        only_in("nginx-tries", &stock("1"), &stock("0"));
    }

    #[test]
    fn a_read_timeout_is_compared_with_what_the_operator_says() {
        let slow = |facts: Facts| Facts {
            asked: super::super::super::facts::Asked {
                slowest: Some(Duration::from_secs(90)),
                ..facts.asked.clone()
            },
            ..facts
        };
        let finding = only_in("nginx-read-timeout", &slow(good()), &slow(with("proxy_read_timeout 100s;")));
        assert!(
            matches!(&finding.mend[..], [Step::Insert { text, .. }] if text == "proxy_read_timeout 181s;")
        );
        only_in("nginx-read-timeout", &slow(with("proxy_read_timeout 90;")), &good());
    }

    #[test]
    fn a_pool_that_stays_empty_is_noted() {
        let without = |words: &str| facts(&GOOD.replace(words, ""));
        let finding =
            only_in("nginx-keepalive-unused", &without("proxy_set_header Connection \"\";"), &good());
        assert_eq!(finding.mend.len(), 1);
        only_in("nginx-keepalive-unused", &without("proxy_http_version 1.1;"), &good());
        let mut newer = without("proxy_http_version 1.1;");
        newer.binary.as_mut().unwrap().version = "1.29.7".into();
        only_in("nginx-keepalive-unused", &without("proxy_http_version 1.1;"), &newer);
    }

    #[test]
    fn a_header_goes_where_the_others_are() {
        let wrong = GOOD
            .replace("proxy_set_header Connection \"\";", "")
            .replace("listen 80;", "listen 80; proxy_set_header Host $host;");
        let finding = only_in("nginx-keepalive-unused", &facts(&wrong), &good());
        let line = |words: &str| wrong[..wrong.find(words).unwrap()].matches('\n').count();
        assert!(matches!(finding.mend[..], [Step::Insert { line: at, .. }] if at == line("listen 80")));
    }
}
