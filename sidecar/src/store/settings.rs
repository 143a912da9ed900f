//! Where the store is, and what this process is to it.

use crate::{
    config,
    control::Address,
    host::{Locals, Proc},
};
use handoff_wire::{
    Span,
    store::{Member, Name},
};
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
    pub brings: Brings,
    /// Where the gateway listens.
    pub socket: Address,
    /// Where Prometheus is told. None: nowhere.
    pub metrics: Option<SocketAddr>,
    pub tls: Option<Tls>,
    /// The name, and the file with the password.
    pub user: Option<(String, PathBuf)>,
}

/// The peers that this host adds to every nginx whose upstream has room for them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Brings {
    pub peers: Vec<Member>,
    /// How long they stay there when this host has fallen silent.
    pub grace: Span,
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
/// A host that is cut off, or rebooted, is back before that.
const GRACE: Span = Span::from_secs(3600);
/// Less is no grace: a lease is that long.
const MIN_GRACE: Span = Span::from_secs(10);
/// As nginx's module has it.
const MAX_WEIGHT: u32 = 1000;

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
        let brings = brings(&store.peers, store.grace, &addresses, role)?;
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
        Ok(Some(Self { endpoints, cluster, name, role, addresses, brings, socket, metrics, tls, user }))
    }

    /// Endpoints to which everything goes in the clear, past this host.
    pub fn unguarded(&self) -> impl Iterator<Item = &str> {
        let is_plain =
            |endpoint: &&String| endpoint.strip_prefix("http://").is_some_and(|rest| !is_loopback(rest));
        self.endpoints.iter().filter(is_plain).map(String::as_str)
    }
}

/// Checked here as nginx would: it is far away, and there are many of it.
fn brings(
    peers: &[config::StorePeer],
    grace: Option<Span>,
    addresses: &[IpAddr],
    role: Role,
) -> Result<Brings, String> {
    let grace = grace.unwrap_or(GRACE);
    if grace < MIN_GRACE {
        return Err(format!(
            "the grace of {grace} is shorter than {MIN_GRACE}, in which a host may be restarted"
        ));
    }
    if !peers.is_empty() && !role.is_host() {
        return Err("[[store.peer]] is for hosts with workers: an edge brings none".to_owned());
    }
    let mut members = Vec::<Member>::new();
    for peer in peers {
        let address = address(peer, addresses)?;
        let (upstream, weight) = (peer.upstream.clone(), peer.weight);
        if upstream.is_empty() {
            return Err(format!(
                "the store.peer {address} has an empty upstream: name the one in nginx.conf"
            ));
        }
        if !(1..=MAX_WEIGHT).contains(&weight) {
            return Err(format!("the weight {weight} of {address} is not between 1 and {MAX_WEIGHT}"));
        }
        if !peer.fail_timeout.as_millis().is_multiple_of(1000) {
            return Err(format!(
                "the fail_timeout {} of {address} is not one of whole seconds",
                peer.fail_timeout
            ));
        }
        if members.iter().any(|member| (&member.upstream, &member.address) == (&upstream, &address)) {
            return Err(format!("{address} is named twice in {upstream}"));
        }
        members.push(Member {
            upstream,
            address,
            weight,
            max_fails: peer.max_fails,
            fail_timeout: peer.fail_timeout,
            max_conns: peer.max_conns,
        });
    }
    members.sort();
    Ok(Brings { peers: members, grace })
}

/// As nginx writes it.
fn address(peer: &config::StorePeer, addresses: &[IpAddr]) -> Result<String, String> {
    let all = || addresses.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(", ");
    match (&peer.address, peer.port, addresses) {
        (Some(text), None, _) => {
            let parsed = text.parse::<SocketAddr>().ok().filter(|address| address.port() != 0);
            let address = parsed.ok_or_else(|| {
                format!("{text:?} is not where nginx reaches a worker: write an address with its port, 10.0.0.5:3000")
            })?;
            if !addresses.iter().any(|own| own.to_canonical() == address.ip().to_canonical()) {
                return Err(format!(
                    "{text} is not at an address of this host ({}): name that one with --store-address",
                    all()
                ));
            }
            Ok(SocketAddr::new(address.ip().to_canonical(), address.port()).to_string())
        }
        (None, Some(port), [own]) => Ok(SocketAddr::new(own.to_canonical(), port).to_string()),
        (None, Some(port), _) => Err(format!(
            "this host has several addresses ({}): name one with --store-address, or write address = \"ADDRESS:{port}\"",
            all()
        )),
        _ => Err(format!("a store.peer of {:?} needs either address or port", peer.upstream)),
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
            grace: None,
            peers: Vec::new(),
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
    fn peers_are_named_by_their_address_or_by_their_port() {
        let text = "endpoints = [\"http://[::1]:1\"]\nname = \"a\"\naddresses = [\"10.0.0.5\"]\ngrace = \"10m\"\n\
                    [[peer]]\nupstream = \"shop\"\nport = 3001\nweight = 2\n\
                    [[peer]]\nupstream = \"shop\"\naddress = \"[::ffff:10.0.0.5]:3000\"";
        let brings = Settings::of(store(text), &control()).unwrap().unwrap().brings;
        let peers: Vec<_> = brings.peers.iter().map(|peer| (&*peer.address, peer.weight)).collect();
        assert_eq!(
            (peers, brings.grace),
            (vec![("10.0.0.5:3000", 1), ("10.0.0.5:3001", 2)], Span::from_secs(600))
        );
    }

    #[test]
    fn a_peer_that_cannot_be_is_refused_with_the_mend() {
        for (addresses, peer, says) in [
            ("\"10.0.0.5\"", "port = 3000\naddress = \"10.0.0.5:3000\"", "either address or port"),
            ("\"10.0.0.5\"", "", "either address or port"),
            ("\"10.0.0.5\", \"10.0.0.6\"", "port = 3000", "several addresses (10.0.0.5, 10.0.0.6)"),
            ("\"10.0.0.5\"", "address = \"10.0.0.6:3000\"", "not at an address of this host (10.0.0.5)"),
            ("\"10.0.0.5\"", "address = \"app1:3000\"", "write an address with its port"),
            ("\"10.0.0.5\"", "address = \"unix:/run/a.sock\"", "write an address with its port"),
            ("\"10.0.0.5\"", "port = 3000\nweight = 0", "not between 1 and 1000"),
            ("\"10.0.0.5\"", "port = 3000\nfail_timeout = \"1500ms\"", "whole seconds"),
            ("\"10.0.0.5\"", "port = 3000\n[[peer]]\nupstream = \"shop\"\nport = 3000", "named twice"),
        ] {
            let text = format!(
                "endpoints = [\"http://[::1]:1\"]\nname = \"a\"\naddresses = [{addresses}]\n[[peer]]\nupstream = \"shop\"\n{peer}"
            );
            let error = Settings::of(store(&text), &control()).unwrap_err();
            assert!(error.contains(says), "{peer}: {error}");
        }
        let edge = "endpoints = [\"http://[::1]:1\"]\nname = \"a\"\nrole = \"edge\"\n[[peer]]\nupstream = \"a\"\nport = 1";
        assert!(Settings::of(store(edge), &control()).unwrap_err().contains("an edge brings none"));
        let hasty =
            "endpoints = [\"http://[::1]:1\"]\nname = \"a\"\naddresses = [\"10.0.0.5\"]\ngrace = \"1s\"";
        assert!(Settings::of(store(hasty), &control()).unwrap_err().contains("shorter than 10s"));
    }

    #[test]
    fn what_leaves_the_host_in_the_clear_is_known() {
        let text = "endpoints = [\"http://localhost:1\", \"http://[::1]:1\", \"http://10.0.0.2:1\"]\nname = \"a\"\n\
                    addresses = [\"10.0.0.5\"]";
        let settings = Settings::of(store(text), &control()).unwrap().unwrap();
        assert_eq!(settings.unguarded().collect::<Vec<_>>(), ["http://10.0.0.2:1"]);
    }
}
