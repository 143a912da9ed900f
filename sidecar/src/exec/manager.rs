//! Who started us, as far as the environment tells: what it calls the worker, and what it allows.

use std::{env, fs, time::Duration};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manager {
    /// What the worker is called from one process to the next.
    pub name: Option<String>,
    /// How long it waits for an end that it asked for, if it says so.
    pub patience: Option<Duration>,
    /// It tells the child itself to stop, without waiting for us.
    pub goes_past: bool,
}

/// PM2's own.
const KILL_TIMEOUT: Duration = Duration::from_millis(1600);

impl Manager {
    pub fn find() -> Self {
        let of = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
        Self::of(of, || fs::read_to_string("/proc/self/cgroup").ok())
    }

    fn of(variable: impl Fn(&str) -> Option<String>, cgroup: impl Fn() -> Option<String>) -> Self {
        if let (Some(name), Some(id)) = (variable("name"), variable("pm_id")) {
            let timeout = variable("kill_timeout").and_then(|ms| ms.parse().ok());
            let has = |name, value: &str| variable(name).is_some_and(|of| of == value);
            return Self {
                name: Some(format!("{name}:{id}")),
                patience: Some(timeout.map_or(KILL_TIMEOUT, Duration::from_millis)),
                goes_past: !has("treekill", "false") && !has("shutdown_with_message", "true"),
            };
        }
        // Set for the process that systemd started, and for it alone.
        let is_systemd =
            variable("SYSTEMD_EXEC_PID").is_some_and(|pid| pid == std::process::id().to_string());
        let unit = cgroup().filter(|_| is_systemd).and_then(|text| {
            let path = text.lines().next()?.rsplit(':').next()?;
            path.rsplit('/').find(|part| part.ends_with(".service")).map(str::to_owned)
        });
        Self { name: unit, ..Self::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)]) -> Manager {
        let variable = |name: &str| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        };
        Manager::of(variable, || Some("0::/system.slice/system-app.slice/app@1.service\n".to_owned()))
    }

    #[test]
    fn pm2_says_what_it_calls_it_and_how_long_it_waits() {
        let shop = [("name", "shop"), ("pm_id", "3"), ("treekill", "true"), ("kill_timeout", "8000")];
        let seen = of(&shop);
        assert_eq!(seen.name.as_deref(), Some("shop:3"));
        assert_eq!((seen.patience, seen.goes_past), (Some(Duration::from_secs(8)), true));
        let seen = of(&[("name", "shop"), ("pm_id", "3"), ("treekill", "false")]);
        assert_eq!((seen.patience, seen.goes_past), (Some(KILL_TIMEOUT), false));
    }

    #[test]
    fn systemd_calls_it_by_its_unit() {
        let own = std::process::id().to_string();
        assert_eq!(of(&[("SYSTEMD_EXEC_PID", &own)]).name.as_deref(), Some("app@1.service"));
        assert_eq!(of(&[("SYSTEMD_EXEC_PID", "1")]), Manager::default(), "it started somebody above us");
    }
}
