//! What the running app answers, where it was asked, and where it listens.

use super::super::{
    catalogue::*,
    facts::{Answer, App, Facts},
    finding::{About, Finding, Step},
};
use super::list;
use std::{collections::BTreeSet, net::SocketAddr};

pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    for app in &facts.apps {
        findings.extend(everywhere(facts, app));
        findings.extend(health(facts, app));
    }
    findings
}

/// Only where nginx is in front of it, and somebody else could reach it.
fn everywhere(facts: &Facts, app: &App) -> Option<Finding> {
    let open: BTreeSet<SocketAddr> = app
        .workers
        .iter()
        .flat_map(|worker| &worker.listens)
        .filter(|at| at.ip().is_unspecified())
        .copied()
        .collect();
    let first = open.first().filter(|_| facts.host.is_reachable && !app.upstreams().is_empty())?;
    let found = format!("it listens on {}", list(&open));
    let port = if open.len() > 1 { "port".to_owned() } else { first.port().to_string() };
    // In cluster mode the daemon holds the old address until its last worker is gone, and the new one is taken until then.
    let name = &app.name;
    let again = if app.is_cluster() {
        format!("handoff pause {name} && pm2 stop {name} && pm2 start {name}; handoff resume {name}")
    } else {
        format!("handoff reload {name}")
    };
    Some(
        Finding::of(EVERYWHERE, name, found)
            .with(Step::change(format!("app.listen({port}, '127.0.0.1', …)")))
            .with(Step::run(again))
            .with(Step::or("a packet filter that lets nobody in from outside")),
    )
}

fn health(facts: &Facts, app: &App) -> Vec<Finding> {
    let Some(path) = &facts.asked.health else { return Vec::new() };
    let mut findings = Vec::new();
    let mut said = BTreeSet::new();
    for (worker, health) in &app.health {
        let about = About::App(app.name.clone(), *worker);
        let failed = match &health.answer {
            Answer::Status(200..=299) => None,
            Answer::Status(status @ 300..=399) => {
                if said.insert(HEALTH_REDIRECT.id) {
                    let found = format!("{path} answers {status}");
                    let step = Step::change("--health with a path that answers by itself");
                    findings.push(Finding::of(HEALTH_REDIRECT, &app.name, found).with(step));
                }
                continue;
            }
            Answer::Status(status) => Some(format!("answers {status}")),
            Answer::Failed(why) => Some(why.clone()),
        };
        if let Some(why) = failed {
            let (who, logs) = match worker {
                Some(id) => (format!("worker {id}"), id.to_string()),
                None => ("one of its workers".to_owned(), app.name.clone()),
            };
            let step = Step::run(format!("pm2 logs {logs} --err --nostream"));
            findings.push(Finding::new(HEALTH_FAILS, about, format!("{who}: {path} {why}")).with(step));
            continue;
        }
        let mend = Step::change(format!(
            "a route of its own for {path}: ask there what the app needs (a database: SELECT 1), and answer 503 if that \
             fails"
        ));
        match health.anywhere {
            Some(status @ 200..=299) if said.insert(HEALTH_ANY.id) => {
                let found = format!("{path} and a path that is not there both answer 2xx ({status})");
                findings.push(Finding::of(HEALTH_ANY, &app.name, found).with(mend));
            }
            Some(200..=299) => {}
            _ if health.is_constant && said.insert(HEALTH_SAME.id) => {
                let found = format!("{path} gives the same answer each time");
                findings.push(Finding::of(HEALTH_SAME, &app.name, found).with(mend));
            }
            _ => {}
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::{
        super::facts::Health,
        stage::{good, only_in, well},
    };
    use super::*;
    use crate::pm2::PmId;

    fn says(health: Health) -> Facts {
        let mut facts = good();
        facts.asked.health = Some("/health".into());
        facts.apps[0].health = [0, 1].map(|id| (Some(PmId(id)), health.clone())).to_vec();
        facts
    }

    #[test]
    fn an_app_behind_nginx_listens_for_nginx() {
        let open = |is_reachable| {
            let mut facts = good();
            facts.apps[0].workers[0].listens = vec!["[::]:3000".parse().unwrap()];
            facts.host.is_reachable = is_reachable;
            facts
        };
        let finding = only_in("app-listens-everywhere", &open(true), &open(false));
        assert_eq!(finding.mend[0], Step::change("app.listen(3000, '127.0.0.1', …)"));
    }

    #[test]
    fn health_says_something() {
        let failed = Answer::Failed("gives no answer within 2 s".into());
        for answer in [Answer::Status(503), failed] {
            let finding = only_in("health-fails", &says(Health { answer, ..well() }), &says(well()));
            assert!(finding.found.starts_with("worker 0: /health "), "{}", finding.found);
        }
        only_in("health-any-path", &says(Health { anywhere: Some(200), ..well() }), &says(well()));
        only_in("health-constant", &says(Health { is_constant: true, ..well() }), &says(well()));
        only_in("health-redirects", &says(Health { answer: Answer::Status(302), ..well() }), &says(well()));
        assert_eq!(
            super::check(&says(Health { anywhere: Some(204), is_constant: true, ..well() })).len(),
            1,
            "once an app"
        );
    }
}
