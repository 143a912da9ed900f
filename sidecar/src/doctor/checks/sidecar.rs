//! What stands beside PM2: the sidecar, its state, and PM2's daemons themselves.

use super::super::{
    catalogue::*,
    facts::{Daemon, Facts, PreloadFile, Seen, Sidecar},
    finding::{About, Finding, Step},
};
use super::{cover, list};
use std::collections::BTreeMap;

pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let mut findings: Vec<Finding> = facts.daemons.iter().flat_map(|daemon| of(facts, daemon)).collect();
    findings.extend(twice(facts));
    findings.extend(preload(facts));
    if let Some((dir, why)) = facts.host.state.as_ref().filter(|_| cover::covered(facts).next().is_some()) {
        let found = format!("{}: {why}", dir.display());
        findings.push(
            Finding::new(STATE, About::Handoff, found)
                .with(Step::change("handoff run --state-dir DIR, one that PM2's user may write")),
        );
    }
    findings
}

fn of(facts: &Facts, daemon: &Daemon) -> Vec<Finding> {
    let handoff = |kind, found: String| Finding::new(kind, About::Handoff, found);
    let mut findings = Vec::new();
    if !daemon.twins.is_empty() {
        let found = format!("{}: {} besides", daemon.home, list(&daemon.twins));
        let kill = format!("kill {}", list(&daemon.twins).replace(", ", " "));
        findings.push(Finding::new(DAEMON_TWICE, About::Host, found).with(Step::run(kill)));
    }
    let (pid, uid, has_no_dates) =
        match &daemon.seen {
            Seen::Running { pid, uid, has_no_dates, .. } => (*pid, *uid, *has_no_dates),
            Seen::Refused(why) => {
                findings.push(Finding::new(PM2_SOCKET, About::Host, why).with(Step::change(
                    "run handoff as PM2's user or as root, with its real home (--pm2-home)",
                )));
                return findings;
            }
            Seen::Other { pid } => {
                let found = format!("{} (pid {pid})", daemon.home);
                let step = Step::change(format!("--pm2-home {}, here and for `handoff run`", daemon.home));
                findings.push(Finding::new(OTHER_HOME, About::Host, found).with(step));
                return findings;
            }
            Seen::Absent(_) => return findings,
        };
    let is_deaf = daemon.sidecar.as_ref().is_some_and(|sidecar| sidecar.is_deaf);
    if has_no_dates == Some(true) || is_deaf {
        let found = match has_no_dates {
            Some(true) => format!("PM2's daemon (pid {pid}) has PM2_LOG_DATE_FORMAT="),
            _ => "the sidecar was told of stops, and never in time".to_owned(),
        };
        findings.push(
            Finding::new(LOG_FORMAT, About::Host, found)
                .with(Step::change("unset PM2_LOG_DATE_FORMAT where PM2's daemon is started"))
                .with(Step::run("pm2 update")),
        );
    }
    let forgotten = daemon.sidecar.iter().flat_map(|sidecar| &sidecar.forgotten);
    findings.extend(forgotten.map(|pid| {
        Finding::new(
            FORGOTTEN,
            About::Host,
            format!("pid {pid}, a child of PM2's daemon for {}", daemon.home),
        )
        .with(Step::run(format!("kill -INT {pid}")))
    }));
    if cover::covered(facts).next().is_none() {
        return findings;
    }
    match &daemon.sidecar {
        None => findings
            .push(handoff(SIDECAR, format!("none for {}", daemon.home)).with(Step::run("handoff run"))),
        Some(Sidecar { hangs: true, pid, .. }) => {
            let step = Step::run(format!("kill -9 {pid}; handoff run"));
            findings.push(handoff(SIDECAR_HANGS, format!("pid {pid}, for {}", daemon.home)).with(step));
        }
        Some(sidecar) => {
            if let Some(own) = sidecar.uid.filter(|own| *own != 0 && *own != uid) {
                let found = format!("the sidecar (pid {}) runs as user {own}, PM2 as {uid}", sidecar.pid);
                findings.push(
                    handoff(SIDECAR_USER, found)
                        .with(Step::change(format!("run `handoff run` as user {uid}"))),
                );
            }
            let own = &facts.asked.version;
            if sidecar.version != *own {
                let found =
                    format!("the sidecar (pid {}) is {}, this command {own}", sidecar.pid, sidecar.version);
                findings.push(handoff(VERSIONS, found).with(Step::change("restart `handoff run`")));
            }
        }
    }
    findings
}

fn twice(facts: &Facts) -> Vec<Finding> {
    let mut homes = BTreeMap::<&str, Vec<String>>::new();
    for app in &facts.apps {
        homes.entry(&app.name).or_default().extend(app.home.as_ref().map(ToString::to_string));
    }
    let twice = homes.into_iter().filter(|(_, homes)| homes.len() > 1);
    twice
        .map(|(app, homes)| {
            let step = Step::change("delete it in one of them (pm2 delete), or give it another name there");
            Finding::of(APP_TWICE, app, list(homes)).with(step)
        })
        .collect()
}

fn preload(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    for app in &facts.apps {
        let Some(preload) = &app.preload else { continue };
        let path = preload.path.display();
        let write = Step::run(format!("handoff preload > {path}"));
        let again = Step::run(format!("handoff reload {}", app.name));
        let found = path.to_string();
        match preload.file {
            PreloadFile::Gone => findings.push(Finding::of(PRELOAD_GONE, &app.name, found).with(write)),
            PreloadFile::Other => {
                findings.push(Finding::of(PRELOAD_OLD, &app.name, found).with(write).with(again))
            }
            PreloadFile::Ours | PreloadFile::Unreadable => {
                let silent: Vec<_> = app
                    .workers
                    .iter()
                    .filter(|worker| worker.speaks == Some(false) && !worker.listens.is_empty())
                    .collect();
                if !silent.is_empty() {
                    let found = format!("worker {}", list(silent.iter().map(|worker| worker.id)));
                    findings.push(Finding::of(PRELOAD_SILENT, &app.name, found).with(again));
                }
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::{
        super::facts::Preload,
        stage::{facts, good, only_in, stock},
    };
    use super::*;
    use crate::pm2::home::Home;
    use std::path::Path;

    fn with(change: impl FnOnce(&mut Daemon)) -> Facts {
        let mut facts = good();
        change(&mut facts.daemons[0]);
        facts
    }

    fn sidecar(change: impl FnOnce(&mut Sidecar)) -> Facts {
        with(|daemon| change(daemon.sidecar.as_mut().unwrap()))
    }

    #[test]
    fn a_sidecar_runs_as_pm2s_user_and_answers() {
        only_in("sidecar-not-running", &with(|daemon| daemon.sidecar = None), &good());
        only_in("sidecar-hangs", &sidecar(|sidecar| sidecar.hangs = true), &good());
        only_in(
            "sidecar-user",
            &sidecar(|sidecar| sidecar.uid = Some(33)),
            &sidecar(|sidecar| sidecar.uid = Some(0)),
        );
        only_in("version-differs", &sidecar(|sidecar| sidecar.version = "0.0.9".into()), &good());
        let mut alone = facts(&stock());
        alone.daemons[0].sidecar = None;
        only_in("sidecar-not-running", &with(|daemon| daemon.sidecar = None), &alone);
    }

    #[test]
    fn its_state_can_be_kept() {
        let mut wrong = good();
        wrong.host.state = Some(("/var/lib/handoff".into(), "Permission denied".into()));
        only_in("state-not-kept", &wrong, &good());
    }

    #[test]
    fn daemons_are_believed_and_known() {
        only_in("pm2-socket", &with(|daemon| daemon.seen = Seen::Refused("a link".into())), &good());
        only_in("pm2-daemon-twice", &with(|daemon| daemon.twins = vec![9]), &good());
        only_in("pm2-other-home", &with(|daemon| daemon.seen = Seen::Other { pid: 9 }), &good());
        let dates = |empty| {
            with(|daemon| match &mut daemon.seen {
                Seen::Running { has_no_dates, .. } => *has_no_dates = empty,
                seen => panic!("{seen:?}"),
            })
        };
        only_in("pm2-log-format", &dates(Some(true)), &dates(None));
        only_in("pm2-log-format", &sidecar(|sidecar| sidecar.is_deaf = true), &good());
    }

    #[test]
    fn pm2_forgets_no_worker() {
        let finding =
            only_in("pm2-worker-forgotten", &sidecar(|sidecar| sidecar.forgotten = vec![9]), &good());
        assert_eq!(finding.mend, [Step::run("kill -INT 9")]);
    }

    #[test]
    fn an_app_of_two_daemons_is_ambiguous() {
        let mut twice = good();
        let mut other = twice.apps[0].clone();
        other.home = Some(Home::new(Path::new("/root/.pm2")));
        twice.apps.push(other);
        only_in("pm2-app-twice", &twice, &good());
    }

    #[test]
    fn the_preload_is_there_is_ours_and_speaks() {
        let with = |file, speaks| {
            let mut facts = good();
            facts.apps[0].preload = Some(Preload { path: "/srv/handoff.cjs".into(), file });
            facts.apps[0].workers.iter_mut().for_each(|worker| worker.speaks = speaks);
            facts
        };
        let right = with(PreloadFile::Ours, Some(true));
        let finding = only_in("preload-gone", &with(PreloadFile::Gone, Some(true)), &right);
        assert_eq!(finding.mend, [Step::run("handoff preload > /srv/handoff.cjs")]);
        only_in("preload-old", &with(PreloadFile::Other, Some(true)), &right);
        only_in("preload-silent", &with(PreloadFile::Ours, Some(false)), &right);
        only_in("preload-silent", &with(PreloadFile::Ours, Some(false)), &with(PreloadFile::Ours, None));
    }
}
