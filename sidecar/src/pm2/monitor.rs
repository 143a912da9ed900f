//! What PM2 says of its workers (`getMonitorData`), reduced to what we need.
//!
//! The answer holds every environment variable of every app, and PM2 mixes them with its own settings: a field may have
//! any type. What is not named here is passed over and never stored.

use super::{PmId, orders::Sealed};
use crate::harmless::harmless;
use serde::{Deserialize, Deserializer, de};
use std::{fmt, path::PathBuf, time::Duration};

/// One worker as PM2 lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    pub id: PmId,
    pub app: String,
    /// The process that runs now, if one does.
    pub pid: Option<u32>,
    pub status: Status,
    pub settings: Settings,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Launching,
    Online,
    Stopping,
    Stopped,
    /// PM2 has given up.
    Errored,
    /// Waiting for its turn to restart, or a word of a newer PM2.
    Other,
}

/// PM2's own, where an app does not say otherwise: how long it waits for the end of a worker, and for its `ready`.
pub const KILL_TIMEOUT: Duration = Duration::from_millis(1600);
pub const LISTEN_TIMEOUT: Duration = Duration::from_secs(3);

/// How the app was told to run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    pub cluster: bool,
    pub wait_ready: bool,
    /// PM2 looks for children before it sends the signal: that is the lead that makes its notice useful.
    pub treekill: bool,
    /// A module of PM2's own (pm2-logrotate and its like), which `all` does not mean.
    pub module: bool,
    /// PM2 starts it again when it ends by itself.
    pub autorestart: bool,
    /// PM2 restarts it at certain times.
    pub cron_restart: bool,
    /// PM2 restarts it when a file changes.
    pub watch: bool,
    /// From the signal to SIGKILL. None: PM2's default.
    pub kill_timeout: Option<Duration>,
    /// How long PM2 waits for `ready`. None: PM2's default.
    pub listen_timeout: Option<Duration>,
    /// What is started, and in which directory: as PM2 was told, links not followed.
    pub script: Option<PathBuf>,
    pub cwd: Option<PathBuf>,
    /// An exit before that is one too many. None: PM2's default.
    pub min_uptime: Option<Duration>,
    /// After so many of these it is given up. None: PM2's default.
    pub max_restarts: Option<u32>,
    /// What node itself is given.
    pub node_args: Vec<String>,
    pub out_log: Option<PathBuf>,
    pub err_log: Option<PathBuf>,
    /// How often PM2 has replaced the process.
    pub restarts: u32,
    /// When PM2 was last told to start or replace it, in milliseconds since 1970.
    pub created_at: Option<u64>,
    /// `NODE_APP_INSTANCE`, or what `instance_var` says instead.
    pub instance: Option<u32>,
    /// `PORT`, or what PM2 counts up instead.
    pub port: Option<u16>,
    /// The variable that says it.
    pub port_var: Option<String>,
    /// The variable that PM2 counts up from worker to worker; mostly `PORT`.
    pub increment_var: Option<String>,
}

/// The arguments of the reply to `getMonitorData`.
#[derive(Deserialize)]
pub struct Reply(#[serde(deserialize_with = "list")] pub Vec<Listed>);

/// The same, each with all that PM2 has of it, unread.
#[derive(Deserialize)]
pub(super) struct Sealeds(Vec<RawSealed>);

#[derive(Deserialize)]
struct RawSealed {
    #[serde(default)]
    pm_id: Loose,
    pm2_env: Sealed,
}

#[derive(Deserialize)]
struct RawListed {
    pm_id: Loose,
    #[serde(default)]
    name: Loose,
    #[serde(default)]
    pid: Loose,
    pm2_env: RawEnv,
}

/// The settings we read, and under any other name only numbers: one of them is the worker's instance.
#[derive(Default)]
struct RawEnv {
    status: Loose,
    exec_mode: Loose,
    wait_ready: Loose,
    treekill: Loose,
    module: Loose,
    autorestart: Loose,
    cron_restart: Loose,
    watch: Loose,
    kill_timeout: Loose,
    listen_timeout: Loose,
    script: Loose,
    cwd: Loose,
    min_uptime: Loose,
    max_restarts: Loose,
    node_args: Loose,
    out_log: Loose,
    err_log: Loose,
    restarts: Loose,
    created_at: Loose,
    increment_var: Loose,
    instance_var: Loose,
    port: Loose,
    numbers: Vec<(String, u32)>,
}

/// A JavaScript value of which we know only what it should be.
#[derive(Debug, Default, PartialEq)]
enum Loose {
    #[default]
    Nothing,
    Bool(bool),
    Number(u64),
    Text(String),
    List(Vec<Loose>),
    /// An object.
    Many,
}

fn list<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<Listed>, D::Error> {
    let raw = Vec::<RawListed>::deserialize(d)?;
    Ok(raw.into_iter().filter_map(RawListed::checked).collect())
}

// === impl Sealeds ===

impl Sealeds {
    pub(super) fn of(self, id: PmId) -> Option<Sealed> {
        let its = |raw: &RawSealed| raw.pm_id.number() == Some(id.0);
        self.0.into_iter().find(its).map(|raw| raw.pm2_env)
    }
}

// === impl RawListed ===

impl RawListed {
    /// None: a worker without a number, which PM2 lists only in the middle of a reload in cluster mode.
    fn checked(self) -> Option<Listed> {
        let id = PmId(self.pm_id.number()?);
        let env = self.pm2_env;
        Some(Listed {
            id,
            // It is shown and logged, perhaps to root, and whoever runs an app gave it its name.
            app: harmless(&self.name.text().unwrap_or_default()),
            pid: self.pid.number().filter(|&pid: &u32| pid != 0),
            status: env.status.as_text().map_or(Status::Other, Status::from),
            settings: env.settings(),
        })
    }
}

// === impl RawEnv ===

impl RawEnv {
    fn settings(mut self) -> Settings {
        let (port_var, port) = self.port().unzip();
        let instance = self.instance();
        let node_args = std::mem::take(&mut self.node_args).words();
        Settings {
            cluster: self.exec_mode.as_text() == Some("cluster_mode"),
            wait_ready: self.wait_ready.is_truthy(),
            // Strictly true, as PM2 compares it.
            treekill: self.treekill == Loose::Bool(true),
            module: self.module.is_truthy(),
            autorestart: self.autorestart != Loose::Bool(false)
                && self.autorestart.as_text() != Some("false"),
            // PM2 takes `0` for no time at all.
            cron_restart: self.cron_restart.is_truthy() && self.cron_restart.as_text() != Some("0"),
            watch: self.watch.is_truthy(),
            kill_timeout: self.kill_timeout.duration(),
            listen_timeout: self.listen_timeout.duration(),
            min_uptime: self.min_uptime.duration(),
            max_restarts: self.max_restarts.number(),
            node_args,
            restarts: self.restarts.number().unwrap_or_default(),
            created_at: self.created_at.number(),
            instance,
            port,
            port_var,
            script: self.script.text().map(PathBuf::from),
            cwd: self.cwd.text().map(PathBuf::from),
            out_log: self.out_log.text().map(PathBuf::from),
            err_log: self.err_log.text().map(PathBuf::from),
            increment_var: self.increment_var.text().filter(|name| !name.is_empty()),
        }
    }

    fn port(&self) -> Option<(String, u16)> {
        let counted = || {
            let name = self.increment_var.as_text()?;
            let number = self.numbers.iter().find(|(key, _)| key == name)?.1;
            Some((name.to_owned(), u16::try_from(number).ok()?))
        };
        self.port.number().map(|port| ("PORT".to_owned(), port)).or_else(counted)
    }

    fn instance(&self) -> Option<u32> {
        let name = self.instance_var.as_text().unwrap_or("NODE_APP_INSTANCE");
        self.numbers.iter().find(|(key, _)| key == name).map(|&(_, number)| number)
    }

    fn field(&mut self, key: &str) -> Option<&mut Loose> {
        Some(match key {
            "status" => &mut self.status,
            "exec_mode" => &mut self.exec_mode,
            "wait_ready" => &mut self.wait_ready,
            "treekill" => &mut self.treekill,
            "pmx_module" => &mut self.module,
            "autorestart" => &mut self.autorestart,
            "cron_restart" => &mut self.cron_restart,
            "watch" => &mut self.watch,
            "kill_timeout" => &mut self.kill_timeout,
            "listen_timeout" => &mut self.listen_timeout,
            "pm_exec_path" => &mut self.script,
            "pm_cwd" => &mut self.cwd,
            "min_uptime" => &mut self.min_uptime,
            "max_restarts" => &mut self.max_restarts,
            "node_args" => &mut self.node_args,
            "pm_out_log_path" => &mut self.out_log,
            "pm_err_log_path" => &mut self.err_log,
            "restart_time" => &mut self.restarts,
            "created_at" => &mut self.created_at,
            "increment_var" => &mut self.increment_var,
            "instance_var" => &mut self.instance_var,
            "PORT" => &mut self.port,
            _ => return None,
        })
    }
}

impl<'de> Deserialize<'de> for RawEnv {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = RawEnv;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the settings of an app")
            }

            fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<RawEnv, A::Error> {
                let mut env = RawEnv::default();
                while let Some(key) = map.next_key::<String>()? {
                    let value: Loose = map.next_value()?;
                    if let Some(field) = env.field(&key) {
                        *field = value;
                    } else if let Some(number) = value.number() {
                        env.numbers.push((key, number));
                    }
                }
                Ok(env)
            }
        }
        d.deserialize_map(Visitor)
    }
}

// === impl Status ===

impl From<&str> for Status {
    fn from(text: &str) -> Self {
        match text {
            "launching" => Self::Launching,
            "online" => Self::Online,
            "stopping" => Self::Stopping,
            "stopped" => Self::Stopped,
            "errored" => Self::Errored,
            _ => Self::Other,
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Launching => "launching",
            Self::Online => "online",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Errored => "errored",
            Self::Other => "waiting",
        })
    }
}

// === impl Loose ===

impl Loose {
    fn number<T: TryFrom<u64>>(&self) -> Option<T> {
        let number = match self {
            Self::Number(number) => *number,
            Self::Text(text) => text.trim().parse().ok()?,
            Self::Nothing | Self::Bool(_) | Self::List(_) | Self::Many => return None,
        };
        T::try_from(number).ok()
    }

    fn text(self) -> Option<String> {
        match self {
            Self::Text(text) => Some(text),
            Self::Number(number) => Some(number.to_string()),
            Self::Nothing | Self::Bool(_) | Self::List(_) | Self::Many => None,
        }
    }

    fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Of a list, or of a text that PM2 would take apart.
    fn words(self) -> Vec<String> {
        match self {
            Self::Text(text) => text.split_whitespace().map(str::to_owned).collect(),
            Self::List(list) => list.into_iter().filter_map(Self::text).collect(),
            _ => Vec::new(),
        }
    }

    /// Of milliseconds; PM2 takes 0 for its default.
    fn duration(&self) -> Option<Duration> {
        self.number().filter(|&millis| millis != 0).map(Duration::from_millis)
    }

    fn is_truthy(&self) -> bool {
        match self {
            Self::Nothing => false,
            Self::Bool(value) => *value,
            Self::Number(number) => *number != 0,
            Self::Text(text) => !text.is_empty(),
            Self::List(_) | Self::Many => true,
        }
    }
}

impl<'de> Deserialize<'de> for Loose {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Loose;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("anything")
            }

            fn visit_bool<E: de::Error>(self, value: bool) -> Result<Loose, E> {
                Ok(Loose::Bool(value))
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Loose, E> {
                Ok(Loose::Number(value))
            }

            fn visit_i64<E: de::Error>(self, _: i64) -> Result<Loose, E> {
                Ok(Loose::Nothing)
            }

            fn visit_f64<E: de::Error>(self, _: f64) -> Result<Loose, E> {
                Ok(Loose::Nothing)
            }

            fn visit_str<E: de::Error>(self, value: &str) -> Result<Loose, E> {
                Ok(Loose::Text(value.to_owned()))
            }

            fn visit_unit<E: de::Error>(self) -> Result<Loose, E> {
                Ok(Loose::Nothing)
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<Loose, A::Error> {
                let mut list = Vec::new();
                while let Some(value) = seq.next_element()? {
                    list.push(value);
                }
                Ok(Loose::List(list))
            }

            fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Loose, A::Error> {
                while map.next_entry::<de::IgnoredAny, de::IgnoredAny>()?.is_some() {}
                Ok(Loose::Many)
            }
        }
        d.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(worker: &str) -> Listed {
        let mut list = serde_json::from_str::<(Reply,)>(&format!("[[{worker}]]")).unwrap().0.0;
        assert_eq!(list.len(), 1);
        list.remove(0)
    }

    #[test]
    fn a_worker_is_read_and_its_environment_is_not() {
        let worker =
            one(r#"{"pid":812,"name":"shop","pm_id":3,"monit":{"cpu":1.5},"pm2_env":{"status":"online",
                "exec_mode":"fork_mode","treekill":true,"wait_ready":true,"NODE_APP_INSTANCE":2,"PORT":"3002",
                "kill_timeout":1600,"listen_timeout":"9000","min_uptime":3000,"max_restarts":5,
                "node_args":["-r","/a.cjs"],"restart_time":4,"created_at":1795365000000,
                "pm_exec_path":"/srv/shop/current/server.js","pm_cwd":"/srv/shop/current",
                "pm_out_log_path":"/var/log/shop-out-3.log","pm_err_log_path":"/var/log/shop-error-3.log",
                "increment_var":"PORT","instance_var":"NODE_APP_INSTANCE",
                "DB_PASSWORD":"planted-secret","env":{"DB_PASSWORD":"planted-secret"}}}"#);
        assert_eq!((worker.id, worker.pid, worker.status), (PmId(3), Some(812), Status::Online));
        assert_eq!(
            worker.settings,
            Settings {
                cluster: false,
                wait_ready: true,
                treekill: true,
                module: false,
                autorestart: true,
                cron_restart: false,
                watch: false,
                kill_timeout: Some(Duration::from_millis(1600)),
                listen_timeout: Some(Duration::from_secs(9)),
                script: Some("/srv/shop/current/server.js".into()),
                cwd: Some("/srv/shop/current".into()),
                min_uptime: Some(Duration::from_secs(3)),
                max_restarts: Some(5),
                node_args: vec!["-r".into(), "/a.cjs".into()],
                out_log: Some("/var/log/shop-out-3.log".into()),
                err_log: Some("/var/log/shop-error-3.log".into()),
                restarts: 4,
                created_at: Some(1_795_365_000_000),
                instance: Some(2),
                port: Some(3002),
                port_var: Some("PORT".into()),
                increment_var: Some("PORT".into()),
            }
        );
        assert!(!format!("{worker:?}").contains("planted-secret"));
    }

    #[test]
    fn settings_of_any_type_are_read_as_pm2_reads_them() {
        let worker = one(
            r#"{"pid":0,"name":7,"pm_id":"4","pm2_env":{"status":"waiting restart","exec_mode":"cluster_mode",
                "treekill":"true","wait_ready":"yes","NODE_APP_INSTANCE":null,"PORT":{"a":[1]},"kill_timeout":0,
                "autorestart":"false","listen_timeout":null,"pm_out_log_path":null,"created_at":null}}"#,
        );
        assert_eq!((worker.app.as_str(), worker.pid, worker.status), ("7", None, Status::Other));
        assert_eq!(worker.settings, Settings { cluster: true, wait_ready: true, ..Settings::default() });
    }

    #[test]
    fn a_name_that_would_steer_a_terminal_is_made_harmless() {
        let worker = one(r#"{"pm_id":1,"name":"shop\u001b[2J\nhandoff: all is well","pm2_env":{}}"#);
        assert_eq!(worker.app, "shop\u{fffd}[2J\u{fffd}handoff: all is well");
    }

    #[test]
    fn a_port_is_what_port_says_or_what_is_counted_up() {
        let port = |more: &str| {
            let settings = one(&format!(r#"{{"pm_id":1,"pm2_env":{{{more}}}}}"#)).settings;
            settings.port_var.zip(settings.port)
        };
        let counted = r#""increment_var":"HTTP_PORT","HTTP_PORT":4000"#;
        assert_eq!(port(counted), Some(("HTTP_PORT".to_owned(), 4000)));
        assert_eq!(port(&format!(r#"{counted},"PORT":"3000""#)), Some(("PORT".to_owned(), 3000)));
        assert_eq!(port(r#""HTTP_PORT":4000"#), None);
    }

    #[test]
    fn what_restarts_it_by_itself_is_known() {
        let settings = |more: &str| one(&format!(r#"{{"pm_id":1,"pm2_env":{{{more}}}}}"#)).settings;
        for set in [r#""* * * * *""#, "7"] {
            assert!(settings(&format!(r#""cron_restart":{set}"#)).cron_restart, "{set}");
        }
        for unset in [r#""0""#, "0", "null", r#""""#] {
            assert!(!settings(&format!(r#""cron_restart":{unset}"#)).cron_restart, "{unset}");
        }
        for set in ["true", "[]", r#"["src"]"#, r#""src""#] {
            assert!(settings(&format!(r#""watch":{set}"#)).watch, "{set}");
        }
        assert!(!settings(r#""watch":false"#).watch);
    }

    #[test]
    fn the_number_of_an_instance_is_where_instance_var_says() {
        let env = r#""INSTANCE_ID":5,"NODE_APP_INSTANCE":2,"OTHER":7"#;
        let instance =
            |more: &str| one(&format!(r#"{{"pm_id":1,"pm2_env":{{{env}{more}}}}}"#)).settings.instance;
        assert_eq!(instance(""), Some(2));
        assert_eq!(instance(r#","instance_var":"INSTANCE_ID""#), Some(5));
        assert_eq!(instance(r#","instance_var":"NONE""#), None);
    }

    #[test]
    fn a_worker_without_a_number_is_passed_over() {
        let text =
            r#"[[{"pm_id":"_old_0","pm2_env":{}},{"pm_id":-1,"pm2_env":{}},{"pm_id":1,"pm2_env":{}}]]"#;
        let list = serde_json::from_str::<(Reply,)>(text).unwrap().0.0;
        assert_eq!(list.iter().map(|worker| worker.id).collect::<Vec<_>>(), [PmId(1)]);
    }
}
