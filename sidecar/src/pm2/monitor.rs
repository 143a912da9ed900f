//! What PM2 says of its workers (`getMonitorData`), reduced to what we need.
//!
//! The answer holds every environment variable of every app, and PM2 mixes them with its own settings: a field may have
//! any type. What is not named here is passed over and never stored.

use super::PmId;
use serde::{Deserialize, Deserializer, de};
use std::fmt;

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

/// How the app was told to run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    pub cluster: bool,
    pub wait_ready: bool,
    /// PM2 looks for children before it sends the signal: that is the lead that makes its notice useful.
    pub treekill: bool,
    pub instance: Option<u32>,
    pub port: Option<u16>,
}

/// The arguments of the reply to `getMonitorData`.
#[derive(Deserialize)]
pub(super) struct Reply(#[serde(deserialize_with = "list")] pub(super) Vec<Listed>);

#[derive(Deserialize)]
struct RawListed {
    pm_id: Loose,
    #[serde(default)]
    name: Loose,
    #[serde(default)]
    pid: Loose,
    pm2_env: RawEnv,
}

#[derive(Deserialize)]
struct RawEnv {
    #[serde(default)]
    status: Loose,
    #[serde(default)]
    exec_mode: Loose,
    #[serde(default)]
    wait_ready: Loose,
    #[serde(default)]
    treekill: Loose,
    #[serde(default, rename = "NODE_APP_INSTANCE")]
    instance: Loose,
    #[serde(default, rename = "PORT")]
    port: Loose,
}

/// A JavaScript value of which we know only what it should be.
#[derive(Debug, Default, PartialEq)]
enum Loose {
    #[default]
    Nothing,
    Bool(bool),
    Number(u64),
    Text(String),
}

fn list<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<Listed>, D::Error> {
    let raw = Vec::<RawListed>::deserialize(d)?;
    Ok(raw.into_iter().filter_map(RawListed::checked).collect())
}

// === impl RawListed ===

impl RawListed {
    /// None: a worker without a number, which PM2 lists only in the middle of a reload in cluster mode.
    fn checked(self) -> Option<Listed> {
        let id = PmId(self.pm_id.number()?);
        let env = self.pm2_env;
        Some(Listed {
            id,
            app: self.name.text().unwrap_or_default(),
            pid: self.pid.number().filter(|&pid: &u32| pid != 0),
            status: env.status.text().map_or(Status::Other, |text| Status::from(text.as_str())),
            settings: Settings {
                cluster: env.exec_mode == Loose::Text("cluster_mode".into()),
                wait_ready: env.wait_ready.is_truthy(),
                // Strictly true, as PM2 compares it.
                treekill: env.treekill == Loose::Bool(true),
                instance: env.instance.number(),
                port: env.port.number(),
            },
        })
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
            Self::Nothing | Self::Bool(_) => return None,
        };
        T::try_from(number).ok()
    }

    fn text(self) -> Option<String> {
        match self {
            Self::Text(text) => Some(text),
            Self::Number(number) => Some(number.to_string()),
            Self::Nothing | Self::Bool(_) => None,
        }
    }

    fn is_truthy(&self) -> bool {
        match self {
            Self::Nothing => false,
            Self::Bool(value) => *value,
            Self::Number(number) => *number != 0,
            Self::Text(text) => !text.is_empty(),
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
                while seq.next_element::<de::IgnoredAny>()?.is_some() {}
                Ok(Loose::Nothing)
            }

            fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Loose, A::Error> {
                while map.next_entry::<de::IgnoredAny, de::IgnoredAny>()?.is_some() {}
                Ok(Loose::Nothing)
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
                "DB_PASSWORD":"planted-secret","env":{"DB_PASSWORD":"planted-secret"}}}"#);
        assert_eq!((worker.id, worker.pid, worker.status), (PmId(3), Some(812), Status::Online));
        assert_eq!(
            worker.settings,
            Settings {
                cluster: false,
                wait_ready: true,
                treekill: true,
                instance: Some(2),
                port: Some(3002)
            }
        );
        assert!(!format!("{worker:?}").contains("planted-secret"));
    }

    #[test]
    fn settings_of_any_type_are_read_as_pm2_reads_them() {
        let worker = one(
            r#"{"pid":0,"name":7,"pm_id":"4","pm2_env":{"status":"waiting restart","exec_mode":"cluster_mode",
                "treekill":"true","wait_ready":"yes","NODE_APP_INSTANCE":null,"PORT":{"a":[1]}}}"#,
        );
        assert_eq!((worker.app.as_str(), worker.pid, worker.status), ("7", None, Status::Other));
        assert_eq!(
            worker.settings,
            Settings { cluster: true, wait_ready: true, treekill: false, instance: None, port: None }
        );
    }

    #[test]
    fn a_worker_without_a_number_is_passed_over() {
        let text =
            r#"[[{"pm_id":"_old_0","pm2_env":{}},{"pm_id":-1,"pm2_env":{}},{"pm_id":1,"pm2_env":{}}]]"#;
        let list = serde_json::from_str::<(Reply,)>(text).unwrap().0.0;
        assert_eq!(list.iter().map(|worker| worker.id).collect::<Vec<_>>(), [PmId(1)]);
    }
}
