//! Where the store is, and what this process is to it.

use crate::{
    config,
    control::Address,
    host::{Locals, Proc},
};
use handoff_wire::store::Name;
use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

/// What this process does with the store.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Workers run here: says what becomes of them
    #[default]
    Host,
    /// nginx runs here: does what app hosts say
    Edge,
    /// Both
    Both,
}

#[derive(Clone, Debug)]
pub struct Settings {
    pub endpoints: Vec<String>,
    pub cluster: Name,
    /// Of this host, this edge, or both.
    pub name: Name,
    pub role: Role,
    /// By which nginx reaches the workers of this host.
    pub addresses: Vec<IpAddr>,
    /// Where the gateway listens.
    pub socket: Address,
    /// Where Prometheus is told. None: nowhere.
    pub metrics: Option<SocketAddr>,
    pub tls: Option<Tls>,
    /// The name, and the file with the password.
    pub user: Option<(String, PathBuf)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    pub ca: PathBuf,
    /// Our own certificate and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// Where the gateway listens on a host with an nginx of its own.
pub const SOCKET: &str = "unix:/run/handoff/store.sock";
const CLUSTER: &str = "default";

// === impl Settings ===

impl Settings {
    /// None: no store is named. Err: what is missing, and the mend. `control`: nginx's socket, or on an app host without one
    /// where nginx's would be.
    pub fn of(store: config::Store, control: &Address) -> Result<Option<Self>, String> {
        if store.endpoints.is_empty() {
            return match (store.role, store.metrics) {
                (Some(_), _) => Err("a role needs a store: name it with --store http://HOST:2379".to_owned()),
                (_, Some(_)) => {
                    Err("--store-metrics needs a store: name it with --store http://HOST:2379".to_owned())
                }
                (None, None) => Ok(None),
            };
        }
        let role = store.role.unwrap_or_default();
        for endpoint in &store.endpoints {
            check(endpoint, store.ca.is_some())?;
        }
        let identity = match (store.cert, store.key) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            _ => return Err("--store-cert and --store-key go together".to_owned()),
        };
        let tls = match (store.ca, identity) {
            (Some(ca), identity) => Some(Tls { ca, identity }),
            (None, None) => None,
            (None, Some(_)) => return Err("--store-cert needs --store-ca: whom to believe".to_owned()),
        };
        let user = match (store.user, store.password_file) {
            (Some(user), Some(file)) => Some((user, file)),
            (None, None) => None,
            _ => return Err("--store-user and --store-password-file go together".to_owned()),
        };
        let name = store.name.map_or_else(host_name, Ok)?;
        let cluster = store.cluster.map_or_else(|| parse(CLUSTER), Ok)?;
        let addresses = if store.addresses.is_empty() && role.is_host() {
            Locals::read(&Proc::default()).reachable()
        } else {
            store.addresses
        };
        if addresses.is_empty() && role.is_host() {
            return Err(
                "this host has no address that another one could reach: name it with --store-address"
                    .to_owned(),
            );
        }
        let default = if role.is_edge() {
            SOCKET.parse().map_err(|error| format!("{error}"))
        } else {
            Ok(control.clone())
        };
        let socket = store.socket.map_or(default, Ok)?;
        if role.is_edge() && socket == *control {
            return Err(format!("--store-socket {socket} is nginx's own socket: name another one"));
        }
        let (endpoints, metrics) = (store.endpoints, store.metrics);
        Ok(Some(Self { endpoints, cluster, name, role, addresses, socket, metrics, tls, user }))
    }

    /// Endpoints to which everything goes in the clear, past this host.
    pub fn unguarded(&self) -> impl Iterator<Item = &str> {
        let is_plain =
            |endpoint: &&String| endpoint.strip_prefix("http://").is_some_and(|rest| !is_loopback(rest));
        self.endpoints.iter().filter(is_plain).map(String::as_str)
    }
}

/// As it would be written down, so that others can do as we do.
impl From<&Settings> for config::Store {
    fn from(settings: &Settings) -> Self {
        let tls = settings.tls.as_ref();
        let identity = tls.and_then(|tls| tls.identity.clone());
        Self {
            endpoints: settings.endpoints.clone(),
            role: Some(settings.role),
            cluster: Some(settings.cluster.clone()),
            name: Some(settings.name.clone()),
            addresses: settings.addresses.clone(),
            socket: None,
            metrics: None,
            ca: tls.map(|tls| tls.ca.clone()),
            cert: identity.clone().map(|(cert, _)| cert),
            key: identity.map(|(_, key)| key),
            user: settings.user.clone().map(|(user, _)| user),
            password_file: settings.user.clone().map(|(_, file)| file),
        }
    }
}

fn check(endpoint: &str, has_ca: bool) -> Result<(), String> {
    match endpoint.split_once("://") {
        Some(("http", rest)) if !rest.is_empty() && !has_ca => Ok(()),
        Some(("https", rest)) if !rest.is_empty() && has_ca => Ok(()),
        Some(("http", _)) => {
            Err(format!("{endpoint} is not https, and there is --store-ca: write https://…"))
        }
        Some(("https", _)) => Err(format!(
            "{endpoint} needs --store-ca: the certificate of the authority that etcd's own is from"
        )),
        _ => Err(format!("{endpoint:?} is no store: write http://HOST:2379 or https://HOST:2379")),
    }
}

fn is_loopback(authority: &str) -> bool {
    let authority = authority.split('/').next().unwrap_or_default();
    let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn host_name() -> Result<Name, String> {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    parse(name.trim()).map_err(|error| format!("{error}; name this host with --store-name"))
}

fn parse(text: &str) -> Result<Name, String> {
    text.parse().map_err(|error| format!("{error}"))
}

// === impl Role ===

impl Role {
    pub fn is_host(self) -> bool {
        matches!(self, Self::Host | Self::Both)
    }

    pub fn is_edge(self) -> bool {
        matches!(self, Self::Edge | Self::Both)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(text: &str) -> config::Store {
        toml::from_str(text).unwrap()
    }

    fn control() -> Address {
        "unix:/run/nginx.sock".parse().unwrap()
    }

    #[test]
    fn without_a_store_there_is_none() {
        assert!(Settings::of(store(""), &control()).unwrap().is_none());
    }

    #[test]
    fn an_app_host_answers_where_nginx_would() {
        let text = "endpoints = [\"http://127.0.0.1:2379\"]\nname = \"a\"\naddresses = [\"10.0.0.5\"]";
        let host = Settings::of(store(text), &control()).unwrap().unwrap();
        assert_eq!((host.role, host.socket), (Role::Host, control()));
        let both = Settings::of(store(&format!("{text}\nrole = \"both\"")), &control()).unwrap().unwrap();
        assert_eq!(both.socket.to_string(), SOCKET);
    }

    #[test]
    fn what_is_reported_is_what_was_given() {
        let text = "endpoints = [\"https://a:1\"]\nname = \"a\"\nrole = \"edge\"\nca = \"/ca\"\ncert = \"/c\"\nkey = \"/k\"\n\
                    cluster = \"prod\"\nuser = \"u\"\npassword_file = \"/p\"";
        let settings = Settings::of(store(text), &control()).unwrap().unwrap();
        assert_eq!(config::Store::from(&settings), store(text));
    }

    #[test]
    fn what_is_wrong_is_said_with_its_mend() {
        for (text, says) in [
            ("role = \"edge\"", "name it with --store"),
            ("metrics = \"127.0.0.1:1\"", "name it with --store"),
            ("endpoints = [\"etcd:2379\"]", "write http://HOST:2379"),
            ("endpoints = [\"https://etcd:2379\"]", "needs --store-ca"),
            ("endpoints = [\"http://etcd:2379\"]\nca = \"/ca\"", "write https://"),
            ("endpoints = [\"http://etcd:2379\"]\ncert = \"/c\"", "go together"),
            ("endpoints = [\"http://etcd:2379\"]\ncert = \"/c\"\nkey = \"/k\"", "needs --store-ca"),
            ("endpoints = [\"http://etcd:2379\"]\nuser = \"a\"", "go together"),
            (
                "endpoints = [\"http://etcd:2379\"]\nrole = \"both\"\nname = \"a\"\nsocket = \"unix:/run/nginx.sock\"\n\
                 addresses = [\"10.0.0.5\"]",
                "nginx's own socket",
            ),
        ] {
            let error = Settings::of(store(text), &control()).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn what_leaves_the_host_in_the_clear_is_known() {
        let text = "endpoints = [\"http://localhost:1\", \"http://[::1]:1\", \"http://10.0.0.2:1\"]\nname = \"a\"\n\
                    addresses = [\"10.0.0.5\"]";
        let settings = Settings::of(store(text), &control()).unwrap().unwrap();
        assert_eq!(settings.unguarded().collect::<Vec<_>>(), ["http://10.0.0.2:1"]);
    }
}
