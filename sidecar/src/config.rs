//! The configuration file. In the plain case there is none.
//!
//! ```toml
//! control = "unix:/run/handoff/nginx.sock"
//! state_dir = "/var/lib/handoff"
//! preload_socket = "/run/handoff/preload.sock"
//!
//! [store]                       # several hosts: docs/operations/many-hosts.md
//! endpoints = ["http://10.0.0.2:2379"]
//!
//! [[store.peer]]                # what this host adds to every nginx that has room for it
//! upstream = "shop"
//! port = 3000
//!
//! [[pm2]]                       # several daemons; absent: the one that PM2_HOME names
//! home = "/home/shop/.pm2"
//!
//! [[worker]]                    # where the processes cannot be seen: what they are to nginx
//! app = "shop"
//! instance = 0                  # or port = 3000, or neither: every worker of the app
//! peers = ["10.0.0.5:3000"]
//!
//! [deploy.shop]                 # what `handoff deploy shop` brings out, and where
//! path = "/srv/shop"
//! repository = "git@git.example.com:shop.git"
//! ```

use crate::{
    control::Address,
    deploy::settings::Settings,
    peer::Place,
    pm2::monitor::Listed,
    store::Role,
    telemetry::{Format, Level},
};
use handoff_wire::{Span, store::Name};
use serde::{Deserialize, Deserializer, Serialize, de};
use std::{
    collections::BTreeMap,
    fs, io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    pub control: Option<Address>,
    pub log: Option<Level>,
    pub log_format: Option<Format>,
    pub state_dir: Option<PathBuf>,
    pub preload_socket: Option<PathBuf>,
    #[serde(default)]
    pub store: Store,
    #[serde(default)]
    pub pm2: Vec<Pm2>,
    #[serde(default, rename = "worker")]
    pub overrides: Vec<Override>,
    /// By app.
    #[serde(default)]
    pub deploy: BTreeMap<String, Settings>,
}

/// Where app hosts and nginx hosts meet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Store {
    #[serde(default)]
    pub endpoints: Vec<String>,
    pub role: Option<Role>,
    pub cluster: Option<Name>,
    pub name: Option<Name>,
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
    #[serde(skip_serializing)]
    pub socket: Option<Address>,
    /// Where Prometheus is told.
    #[serde(skip_serializing)]
    pub metrics: Option<SocketAddr>,
    pub ca: Option<PathBuf>,
    pub cert: Option<PathBuf>,
    pub key: Option<PathBuf>,
    pub user: Option<String>,
    pub password_file: Option<PathBuf>,
    /// How long the peers of this host stay when it has fallen silent.
    #[serde(skip_serializing)]
    pub grace: Option<Span>,
    #[serde(default, rename = "peer", skip_serializing)]
    pub peers: Vec<StorePeer>,
}

/// A peer that this host brings; what nginx's `server` would say of it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StorePeer {
    pub upstream: String,
    pub address: Option<String>,
    /// At the one address of this host.
    pub port: Option<u16>,
    #[serde(default = "one")]
    pub weight: u32,
    #[serde(default = "one")]
    pub max_fails: u32,
    #[serde(default = "fail_timeout")]
    pub fail_timeout: Span,
    #[serde(default)]
    pub max_conns: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pm2 {
    pub home: PathBuf,
}

/// The peers of a worker, given because they cannot be found.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Override {
    pub app: String,
    pub instance: Option<u32>,
    pub port: Option<u16>,
    #[serde(deserialize_with = "addresses")]
    pub peers: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration {}: {error}", path.display())]
    Read { path: PathBuf, error: io::Error },
    #[error("{}:{line}:{column}: {text}. {mend}", path.display())]
    Wrong { path: PathBuf, line: usize, column: usize, text: String, mend: &'static str },
}

// === impl File ===

impl File {
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text =
            fs::read_to_string(path).map_err(|error| ConfigError::Read { path: path.into(), error })?;
        Self::parse(path, &text)
    }

    /// `path`: what it is called in a refusal.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        toml::from_str(text).map_err(|error| {
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            let line = before.matches('\n').count() + 1;
            let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
            let what = error.message().replace('\n', " ");
            let mend = mend(&what);
            ConfigError::Wrong { path: path.into(), line, column, text: what, mend }
        })
    }
}

fn one() -> u32 {
    1
}

fn fail_timeout() -> Span {
    Span::from_secs(10)
}

fn mend(text: &str) -> &'static str {
    if text.starts_with("unknown field") {
        "Correct the spelling or remove it; docs/operations/sidecar.md lists what there is"
    } else if text.starts_with("missing field") {
        "Add it; docs/operations/sidecar.md shows an example"
    } else {
        "Correct this line; docs/operations/sidecar.md shows an example"
    }
}

fn addresses<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<String>, D::Error> {
    let peers = Vec::<String>::deserialize(d)?;
    match peers.iter().find(|peer| Place::parse(peer).is_none()) {
        Some(wrong) => Err(de::Error::custom(format!(
            "{wrong:?} is not a peer: write an address with its port, such as 127.0.0.1:3000, [::1]:3000 or \
             unix:/run/app.sock"
        ))),
        None if peers.is_empty() => Err(de::Error::custom("peers is empty: name at least one")),
        None => Ok(peers),
    }
}

// === impl Override ===

impl Override {
    pub fn is_for(&self, worker: &Listed) -> bool {
        let matches_instance = self.instance.is_none() || self.instance == worker.settings.instance;
        let matches_port = self.port.is_none() || self.port == worker.settings.port;
        self.app == worker.app && matches_instance && matches_port
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<File, String> {
        File::parse(Path::new("/etc/handoff.toml"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn every_key_is_read() {
        let file = parse(
            r#"
            control = "unix:/run/nginx.sock"
            log = "debug"
            log_format = "json"
            state_dir = "/srv/state"
            preload_socket = "/run/shop/preload.sock"
            [store]
            endpoints = ["https://10.0.0.2:2379", "https://10.0.0.3:2379"]
            role = "both"
            cluster = "prod"
            name = "app1"
            addresses = ["10.0.0.5"]
            socket = "unix:/run/store.sock"
            metrics = "127.0.0.1:9911"
            ca = "/etc/handoff/ca.pem"
            cert = "/etc/handoff/app1.pem"
            key = "/etc/handoff/app1.key"
            user = "app1"
            password_file = "/etc/handoff/password"
            grace = "30m"
            [[store.peer]]
            upstream = "shop"
            address = "10.0.0.5:3000"
            weight = 2
            max_fails = 3
            fail_timeout = "30s"
            max_conns = 100
            [[store.peer]]
            upstream = "shop"
            port = 3001
            [[pm2]]
            home = "/home/a/.pm2"
            [[pm2]]
            home = "/home/b/.pm2"
            [[worker]]
            app = "shop"
            instance = 1
            port = 3001
            peers = ["127.0.0.1:3001", "unix:/run/a.sock"]
            [deploy.shop]
            path = "/srv/shop"
            in_place = false
            repository = "git@git.example.com:shop.git"
            ref = "main"
            keep = 3
            shared = [".env", "node_modules/.cache/"]
            install = "npm ci"
            build = "npm run build"
            hook_timeout = "5m"
            ecosystem = "ecosystem.config.js"
            env = "production"
            health = "/health"
            watch = "3s"
            bake = "1m"
            limits = { errors = 1, slower = 3, slower_by = "100ms" }
            on_start = "a"
            on_success = "b"
            on_failure = "c"
            "#,
        )
        .unwrap();
        assert_eq!(file.control.unwrap().to_string(), "unix:/run/nginx.sock");
        assert_eq!((file.log, file.log_format), (Some(Level::Debug), Some(Format::Json)));
        assert_eq!(file.preload_socket.as_deref(), Some(Path::new("/run/shop/preload.sock")));
        assert_eq!((file.pm2.len(), file.overrides.len()), (2, 1));
        assert_eq!(parse("").unwrap(), File::default());
    }

    #[test]
    fn a_wrong_configuration_is_refused_with_its_place_and_the_mend() {
        for (text, place, says) in [
            ("controll = \"unix:/a\"", ":1:1:", "unknown field `controll`"),
            ("\n\ncontrol = \"/a\"", ":3:11:", "write it as in nginx's listen directive"),
            ("log = \"loud\"", ":1:7:", "unknown variant `loud`"),
            ("[[worker]]\napp = \"a\"", ":1:1:", "missing field `peers`"),
            ("[[worker]]\napp = \"a\"\npeers = [\"a:1\"]", ":3:9:", "\"a:1\" is not a peer"),
            ("[[worker]]\napp = \"a\"\npeers = []", ":3:9:", "name at least one"),
            ("[[worker]]\napp = \"a\"\nport = 70000\npeers = [\"127.0.0.1:1\"]", ":3:8:", "70000"),
            ("[deploy.shop]\npath = \"srv\"", ":2:8:", "\"srv\" is not absolute"),
            ("[deploy.shop]\npath = \"/srv\"\nshared = [\"../a\"]", ":3:10:", "\"../a\" is not in a release"),
            ("[deploy.shop]\npath = \"/srv\"\nhealth = \"well\"", ":3:10:", "begins with a slash"),
            ("[deploy.shop]\nrepository = \"a\"", ":1:1:", "missing field `path`"),
            ("[deploy.shop]\npath = \"/srv\"\nlimits = { error = 1 }", ":3:12:", "unknown field `error`"),
            ("[store]\nname = \"a b\"", ":2:8:", "\"a b\" is not a name"),
            ("[store]\nendpoint = \"a\"", ":2:1:", "unknown field `endpoint`"),
            ("[[pm2]]\nhom = 1", ":2:1:", "unknown field `hom`"),
            ("x", ":1:2:", "key"),
        ] {
            let error = parse(text).unwrap_err();
            let begins = format!("/etc/handoff.toml{place} ");
            assert!(error.starts_with(&begins) && error.contains(says), "{text:?}: {error}");
            assert!(error.contains("docs/operations/sidecar.md"), "{error}");
        }
    }
}
