//! systemd, by `systemctl`: the units of a template are the workers of an app, `shop@1.service` is worker 1 of `shop@`.
//!
//! It is asked by the command that every host with systemd has: it finds the manager, asks polkit where that decides, and
//! waits for the end of a job. What its jobs came to is not taken from them; it is looked at.

use super::{Answer, Manager};
use crate::pm2::{
    PmId, bus,
    monitor::{Listed, Settings, Status},
    orders::Sealed,
    trust::Daemon,
};
use std::{collections::BTreeMap, future::Future, io, pin::Pin, process::Output, time::Duration};
use tokio::{process::Command, time};

#[derive(Debug)]
pub struct Systemd {
    app: String,
    /// What each worker is called.
    units: BTreeMap<PmId, String>,
}

#[derive(Debug, thiserror::Error)]
pub enum SystemdError {
    #[error("`systemctl` cannot be run: {0}. Is systemd here?")]
    Absent(io::Error),
    #[error("`systemctl` does not answer: is systemd overloaded?")]
    Silent,
    #[error("systemd refuses: {0}")]
    Refused(String),
    #[error("{0} is no template with units or one of them: write shop@ or shop@1")]
    NoTemplate(String),
    #[error("systemd has no unit {0} at work. Start it: systemctl enable --now {0}")]
    Unknown(String),
}

const SHOWN: &str =
    "--property=Id,MainPID,ActiveState,SubState,NRestarts,TimeoutStopUSec,Environment,ExecStart";
const PATIENCE: Duration = Duration::from_secs(5);
/// The exit code of a job that was done and failed. Any other failure is a refusal.
const JOB_FAILED: i32 = 1;

impl Systemd {
    /// Whether an operator means units: `shop@`, `shop@1`, `shop@1.service`. An app in PM2 may be called as a package is,
    /// `@acme/shop`.
    pub fn is_meant(target: &str) -> bool {
        template(target).is_ok()
    }

    /// The units of a template that are there, and which of them the target means; all, if it is the template.
    pub async fn find(target: &str) -> Result<(Self, Option<PmId>), SystemdError> {
        let (app, instance) = template(target)?;
        let shown = show(&[&format!("{app}*.service")]).await?;
        let units = numbered(&app, shown.iter().filter_map(|unit| unit.get("Id").cloned()).collect());
        let only = match &instance {
            Some(instance) => {
                let wanted = format!("{app}{instance}.service");
                let found = units.iter().find(|(_, name)| **name == wanted).map(|(&id, _)| id);
                Some(found.ok_or(SystemdError::Unknown(wanted))?)
            }
            None if units.is_empty() => return Err(SystemdError::Unknown(format!("{app}….service"))),
            None => None,
        };
        Ok((Self { app, units }, only))
    }

    pub fn app(&self) -> &str {
        &self.app
    }

    fn unit(&self, id: PmId) -> &str {
        self.units.get(&id).map_or("", String::as_str)
    }

    fn listed(&self, id: PmId, shown: &Shown) -> Listed {
        let of = |name: &str| shown.get(name).map_or("", String::as_str);
        let pid = of("MainPID").parse().ok().filter(|&pid| pid != 0);
        let settings = Settings {
            kill_timeout: span(of("TimeoutStopUSec")),
            restarts: of("NRestarts").parse().unwrap_or_default(),
            autorestart: true,
            port: port(of("Environment"), of("ExecStart")),
            ..Settings::default()
        };
        Listed { id, app: self.app.clone(), pid, status: status(of("ActiveState"), of("SubState")), settings }
    }
}

/// A unit's properties.
type Shown = BTreeMap<String, String>;

fn template(target: &str) -> Result<(String, Option<String>), SystemdError> {
    let wrong = || SystemdError::NoTemplate(target.to_owned());
    let name = target.strip_suffix(".service").unwrap_or(target);
    let (app, instance) = name.split_once('@').ok_or_else(wrong)?;
    let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, ':' | '-' | '_' | '.' | '\\');
    if app.is_empty() || !app.chars().all(is_part) || !instance.chars().all(is_part) {
        return Err(wrong());
    }
    Ok((format!("{app}@"), (!instance.is_empty()).then(|| instance.to_owned())))
}

/// By their instances, if these are numbers; else in their order.
fn numbered(app: &str, mut names: Vec<String>) -> BTreeMap<PmId, String> {
    names.sort_unstable();
    names.dedup();
    let number = |name: &String| name.strip_prefix(app)?.strip_suffix(".service")?.parse().ok().map(PmId);
    let numbers: Option<BTreeMap<PmId, String>> =
        names.iter().map(|name| Some((number(name)?, name.clone()))).collect();
    let are_distinct = |numbers: &BTreeMap<PmId, String>| numbers.len() == names.len();
    let in_order = || (0..).map(PmId).zip(names.iter().cloned()).collect();
    numbers.filter(are_distinct).unwrap_or_else(in_order)
}

/// Those that are stopped, too.
async fn show(patterns: &[&str]) -> Result<Vec<Shown>, SystemdError> {
    let words = [&["show", "--all", SHOWN, "--"], patterns].concat();
    let output = time::timeout(PATIENCE, systemctl(&words)).await.map_err(|_| SystemdError::Silent)??;
    if !output.status.success() {
        return Err(refused(&output));
    }
    Ok(parse(&String::from_utf8_lossy(&output.stdout)))
}

/// A block for each unit, a line for each property.
fn parse(text: &str) -> Vec<Shown> {
    let blocks = text.split("\n\n").map(|block| {
        let pairs = block.lines().filter_map(|line| line.split_once('='));
        pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect::<Shown>()
    });
    blocks.filter(|shown| !shown.is_empty()).collect()
}

/// Where one that does not run will listen, as its environment says, or the words of `handoff exec`.
fn port(environment: &str, command: &str) -> Option<u16> {
    let by_variable = environment.split(' ').find_map(|word| word.strip_prefix("PORT="));
    let by_word = || command.split_once(" --port ").and_then(|(_, rest)| rest.split(' ').next());
    by_variable.or_else(by_word)?.parse().ok()
}

/// `1min 30s`, `infinity`
fn span(text: &str) -> Option<Duration> {
    humantime::parse_duration(text).ok()
}

fn status(active: &str, sub: &str) -> Status {
    match active {
        "active" | "reloading" | "refreshing" => Status::Online,
        // It ended, and is started again in a moment.
        "activating" if sub.starts_with("auto-restart") => Status::Other,
        "activating" => Status::Launching,
        "deactivating" => Status::Stopping,
        "inactive" => Status::Stopped,
        "failed" => Status::Errored,
        _ => Status::Other,
    }
}

async fn systemctl(words: &[&str]) -> Result<Output, SystemdError> {
    let mut command = Command::new("systemctl");
    command.args(words).env("LC_ALL", "C").env("SYSTEMD_PAGER", "").kill_on_drop(true);
    command.stdin(std::process::Stdio::null()).output().await.map_err(SystemdError::Absent)
}

/// Comes back when the job has ended.
async fn job(words: &[&str]) -> Result<(), SystemdError> {
    let output = systemctl(words).await?;
    match output.status.code() {
        Some(0 | JOB_FAILED) if !is_refusal(&output) => Ok(()),
        _ => Err(refused(&output)),
    }
}

fn is_refusal(output: &Output) -> bool {
    let text = String::from_utf8_lossy(&output.stderr);
    ["Access denied", "authentication required", "Failed to"].iter().any(|words| text.contains(words))
}

fn refused(output: &Output) -> SystemdError {
    SystemdError::Refused(String::from_utf8_lossy(&output.stderr).trim().to_owned())
}

// === impl Systemd ===

impl Manager for Systemd {
    fn called(&self) -> &'static str {
        "systemd"
    }

    fn name(&self, _app: &str, id: PmId) -> String {
        self.unit(id).to_owned()
    }

    fn list(&self) -> Answer<'_, (Daemon, Vec<Listed>)> {
        Box::pin(async {
            // By their names: one that is stopped may be forgotten by then, and is inactive then.
            let names: Vec<&str> = self.units.values().map(String::as_str).collect();
            let shown = show(&names).await?;
            let listed = self.units.iter().filter_map(|(&id, name)| {
                let shown = shown.iter().find(|shown| shown.get("Id") == Some(name))?;
                Some(self.listed(id, shown))
            });
            // It speaks for processes of every user. Sockets that it holds itself are for its units.
            Ok((Daemon { pid: 0, uid: 0 }, listed.collect()))
        })
    }

    fn tells(&self) -> bool {
        false
    }

    fn hear(&self, bus: bus::Bus) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(async move {
            std::future::pending::<()>().await;
            drop(bus);
        })
    }

    fn replace(&self, id: PmId, _env: Option<Sealed>) -> Answer<'_, ()> {
        Box::pin(async move { Ok(job(&["restart", "--", self.unit(id)]).await?) })
    }

    fn stop(&self, id: PmId) -> Answer<'_, ()> {
        Box::pin(async move { Ok(job(&["stop", "--", self.unit(id)]).await?) })
    }

    fn freeze(&self, _id: PmId) -> Answer<'_, ()> {
        // One that was stopped stays so.
        Box::pin(async { Ok(()) })
    }

    fn thaw(&self, _id: PmId) -> Answer<'_, ()> {
        Box::pin(async { Ok(()) })
    }

    fn forget(&self, _id: PmId) -> Answer<'_, ()> {
        Box::pin(async { Ok(()) })
    }

    fn announce(&self, _id: PmId, _action: &'static str) -> Answer<'_, ()> {
        // Whoever listens to systemd has heard of it.
        Box::pin(async { Ok(()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_and_its_units_are_told_from_apps_of_pm2() {
        for (target, app, instance) in [
            ("shop@", "shop@", None),
            ("shop@.service", "shop@", None),
            ("shop@1", "shop@", Some("1")),
            ("my-shop@blue.service", "my-shop@", Some("blue")),
        ] {
            assert_eq!(template(target).unwrap(), (app.to_owned(), instance.map(str::to_owned)), "{target}");
        }
        for pm2s in ["shop", "@acme/shop", "shop:1", "all", "ecosystem.config.js", "a/b@1", "shop@*", "@1"] {
            assert!(!Systemd::is_meant(pm2s), "{pm2s}");
        }
    }

    #[test]
    fn units_are_numbered_by_their_instances_or_in_their_order() {
        let of = |names: &[&str]| {
            let numbered =
                numbered("shop@", names.iter().map(|name| format!("shop@{name}.service")).collect());
            numbered.into_iter().map(|(id, name)| format!("{id} {name}")).collect::<Vec<_>>()
        };
        assert_eq!(of(&["10", "2"]), ["2 shop@2.service", "10 shop@10.service"]);
        assert_eq!(of(&["green", "blue"]), ["0 shop@blue.service", "1 shop@green.service"]);
        assert_eq!(of(&["1", "01"]), ["0 shop@01.service", "1 shop@1.service"]);
    }

    #[test]
    fn what_systemctl_shows_is_read() {
        let text = "MainPID=17\nNRestarts=2\nTimeoutStopUSec=1min 30s\nId=shop@1.service\nActiveState=active\nSubState=running\n\n\
                    MainPID=0\nNRestarts=0\nTimeoutStopUSec=infinity\nId=shop@2.service\nActiveState=failed\nSubState=failed\n";
        let shown = parse(text);
        let units: BTreeMap<PmId, String> = [(PmId(1), "shop@1.service".to_owned())].into();
        let systemd = Systemd { app: "shop@".to_owned(), units };
        let [one, two] =
            [(1, 0), (2, 1)].map(|(id, index): (u32, usize)| systemd.listed(PmId(id), &shown[index]));
        assert_eq!((one.pid, one.status, one.settings.restarts), (Some(17), Status::Online, 2));
        assert_eq!(one.settings.kill_timeout, Some(Duration::from_secs(90)));
        assert_eq!((two.pid, two.status, two.settings.kill_timeout), (None, Status::Errored, None));
        let exec = "{ path=/usr/bin/handoff ; argv[]=/usr/bin/handoff exec --port 3101 -- gunicorn ; }";
        assert_eq!(port("A=1 PORT=3001", exec), Some(3001));
        assert_eq!((port("", exec), port("", "/usr/bin/node server.js")), (Some(3101), None));
        assert_eq!(status("activating", "auto-restart"), Status::Other);
        assert_eq!(status("activating", "start"), Status::Launching);
    }
}
