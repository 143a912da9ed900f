//! What nginx's configuration means, as far as it matters here: upstreams, who passes to them with what settings, and the
//! control API.

use super::conf::{Directive, Spot};
use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

/// The addresses of host names. A name that is not in it was not resolved.
pub type Names = BTreeMap<String, Vec<IpAddr>>;

#[derive(Clone, Debug, Default)]
pub struct Nginx {
    pub upstreams: Vec<Upstream>,
    pub passes: Vec<Pass>,
    pub controls: Vec<ControlLocation>,
    /// Where a server can be added.
    pub http: Option<Spot>,
    /// The files of `load_module`, as they are written.
    pub modules: Vec<(Spot, String)>,
    pub user: Option<String>,
    pub worker_connections: Option<(Spot, u64)>,
    pub rlimit_nofile: Option<(Spot, u64)>,
    pub shutdown_timeout: Option<(Spot, Duration)>,
    /// Where what is of the main context stands.
    pub first: Option<Spot>,
    /// Some directive is Handoff's.
    pub speaks_handoff: bool,
}

#[derive(Clone, Debug)]
pub struct Upstream {
    pub name: String,
    pub at: Spot,
    pub servers: Vec<Server>,
    /// `least_conn` and its like.
    pub balancer: Option<Spot>,
    pub zone: bool,
    pub keepalive: bool,
    pub keepalive_timeout: Option<(Spot, Duration)>,
    pub handoff: bool,
    pub reuse: Option<(Spot, Reuse)>,
    pub queue: Option<(Spot, Queue)>,
    pub slow_start: Option<Spot>,
    /// It is in a `stream` block.
    pub is_stream: bool,
}

#[derive(Clone, Debug)]
pub struct Server {
    pub at: Spot,
    /// As it is written.
    pub address: String,
    /// What nginx makes of it; several for some names.
    pub peers: Vec<String>,
    pub max_fails: Option<u64>,
    pub fail_timeout: Option<String>,
    pub backup: bool,
    pub down: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reuse {
    Always,
    Idle(Duration),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queue {
    Off,
    Timeout(Duration),
}

/// `proxy_pass` or one of its kin.
#[derive(Clone, Debug)]
pub struct Pass {
    pub at: Spot,
    pub directive: String,
    pub target: Target,
    /// The innermost block in which settings may stand.
    pub block: Spot,
    /// The block whose `proxy_set_header` lines hold here; none: that of the location.
    pub headers: Option<Spot>,
    /// The `Connection` header that is set.
    pub connection: Option<(Spot, Sent)>,
    /// Others, by name: where they stand, and their arguments.
    pub settings: BTreeMap<String, (Spot, Vec<String>)>,
    pub is_stream: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// An `upstream` block.
    Upstream(String),
    /// As it is written, and what nginx makes of it.
    Address(String, Vec<String>),
    /// Known only when a request is there.
    Variable,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// Nothing, for a request that is no upgrade: the connection is kept.
    Empty,
    Close,
    Unknown,
}

#[derive(Clone, Debug)]
pub struct ControlLocation {
    pub at: Spot,
    pub args: Vec<String>,
    pub listens: Vec<String>,
}

const BALANCERS: [&str; 6] = ["least_conn", "ip_hash", "hash", "random", "least_time", "sticky"];
const PASSES: [&str; 6] =
    ["proxy_pass", "grpc_pass", "fastcgi_pass", "uwsgi_pass", "scgi_pass", "memcached_pass"];
const INHERITED: [&str; 6] = [
    "proxy_next_upstream",
    "proxy_next_upstream_tries",
    "proxy_next_upstream_timeout",
    "proxy_http_version",
    "proxy_read_timeout",
    "proxy_request_buffering",
];

/// What holds in a block, from itself and those around it.
#[derive(Clone, Default)]
struct Scope {
    settings: BTreeMap<String, (Spot, Vec<String>)>,
    block: Option<Spot>,
    headers: Option<Spot>,
    connection: Option<(Spot, Vec<String>)>,
    listens: Vec<String>,
    is_stream: bool,
}

struct Walk<'a> {
    names: &'a Names,
    /// By variable: what it is while there is no `Upgrade`.
    maps: BTreeMap<String, Sent>,
    found: Nginx,
}

// === impl Nginx ===

impl Nginx {
    pub fn of(directives: &[Directive], names: &Names) -> Self {
        let mut walk = Walk { names, maps: BTreeMap::new(), found: Self::default() };
        walk.blocks(directives, &Scope::default());
        walk.passes(directives, &Scope::default());
        let mut found = walk.found;
        found.first = directives.first().map(|first| first.spot.clone());
        found.speaks_handoff = any(directives, &|directive| directive.name.starts_with("handoff"));
        found
    }

    pub fn upstream(&self, name: &str) -> Option<&Upstream> {
        self.upstreams.iter().find(|upstream| upstream.name == name && !upstream.is_stream)
    }

    /// Those who pass to an upstream over HTTP.
    pub fn passes_to<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Pass> {
        self.passes.iter().filter(move |pass| matches!(&pass.target, Target::Upstream(to) if to == name))
    }
}

/// Host names that stand where nginx resolves them as it starts.
pub fn hosts(directives: &[Directive]) -> Vec<String> {
    let mut hosts = Vec::new();
    collect_hosts(directives, &mut hosts);
    let is_upstream = |name: &String| {
        any(directives, &|directive| directive.name == "upstream" && directive.args.first() == Some(name))
    };
    hosts.retain(|host| !is_upstream(host));
    hosts.sort();
    hosts.dedup();
    hosts
}

fn collect_hosts(directives: &[Directive], hosts: &mut Vec<String>) {
    for directive in directives {
        let address = match (directive.name.as_str(), directive.args.first()) {
            ("server", Some(address)) if directive.block.is_empty() => Some(address.as_str()),
            (name, Some(url)) if PASSES.contains(&name) && !url.contains('$') => Some(host_of(url)),
            _ => None,
        };
        let host = address.filter(|address| !address.starts_with("unix:")).map(|address| split(address).0);
        hosts.extend(host.filter(|host| host.parse::<IpAddr>().is_err()).map(str::to_owned));
        collect_hosts(&directive.block, hosts);
    }
}

fn any(directives: &[Directive], is_it: &impl Fn(&Directive) -> bool) -> bool {
    directives.iter().any(|directive| is_it(directive) || any(&directive.block, is_it))
}

// === impl Walk ===

impl Walk<'_> {
    /// Everything but the passes, which need to know all upstreams.
    fn blocks(&mut self, directives: &[Directive], scope: &Scope) {
        for directive in directives {
            let first = directive.args.first().map(String::as_str).unwrap_or_default();
            let spot = || directive.spot.clone();
            match directive.name.as_str() {
                "http" => self.found.http = Some(spot()),
                "upstream" => {
                    let upstream = upstream(directive, first, self.names, scope.is_stream);
                    self.found.upstreams.push(upstream);
                    continue;
                }
                "map" => {
                    self.map(directive);
                    continue;
                }
                "load_module" => self.found.modules.push((spot(), first.to_owned())),
                "user" => self.found.user = Some(first.to_owned()),
                "worker_connections" => {
                    self.found.worker_connections = first.parse().ok().map(|n| (spot(), n))
                }
                "worker_rlimit_nofile" => self.found.rlimit_nofile = first.parse().ok().map(|n| (spot(), n)),
                "worker_shutdown_timeout" => {
                    self.found.shutdown_timeout = time(first).map(|time| (spot(), time))
                }
                _ => {}
            }
            let is_stream = scope.is_stream || directive.name == "stream";
            self.blocks(&directive.block, &Scope { is_stream, ..Scope::default() });
        }
    }

    fn map(&mut self, directive: &Directive) {
        let Some(variable) = directive.args.get(1) else { return };
        let value = |name: &str| {
            let entry = directive.block.iter().find(|entry| entry.name == name)?;
            Some(entry.args.first().map(String::as_str).unwrap_or_default())
        };
        let sent = match value("").or_else(|| value("default")).unwrap_or_default() {
            "" => Sent::Empty,
            "close" => Sent::Close,
            _ => Sent::Unknown,
        };
        self.maps.insert(variable.clone(), sent);
    }

    fn passes(&mut self, directives: &[Directive], outer: &Scope) {
        let mut scope = outer.clone();
        let own_headers = directives.iter().filter(|directive| directive.name == "proxy_set_header");
        let mut own_headers = own_headers.peekable();
        if own_headers.peek().is_some() {
            scope.headers.clone_from(&scope.block);
            let is_connection = |header: &&Directive| {
                header.args.first().is_some_and(|name| name.eq_ignore_ascii_case("connection"))
            };
            let connection = own_headers.find(is_connection);
            scope.connection = connection.map(|header| (header.spot.clone(), header.args.clone()));
        }
        for directive in directives {
            if INHERITED.contains(&directive.name.as_str()) {
                scope
                    .settings
                    .insert(directive.name.clone(), (directive.spot.clone(), directive.args.clone()));
            }
            if directive.name == "listen" {
                scope.listens.extend(directive.args.first().cloned());
            }
        }
        for directive in directives {
            match directive.name.as_str() {
                "handoff_api" => self.found.controls.push(ControlLocation {
                    at: directive.spot.clone(),
                    args: directive.args.clone(),
                    listens: scope.listens.clone(),
                }),
                name if PASSES.contains(&name) => self.pass(directive, &scope),
                "upstream" | "map" | "types" | "geo" | "split_clients" => {}
                _ if !directive.block.is_empty() => {
                    let mut inner = scope.clone();
                    inner.is_stream |= directive.name == "stream";
                    // In these no setting may stand.
                    if !matches!(directive.name.as_str(), "if" | "limit_except") {
                        inner.block = Some(directive.spot.clone());
                    }
                    self.passes(&directive.block, &inner);
                }
                _ => {}
            }
        }
    }

    fn pass(&mut self, directive: &Directive, scope: &Scope) {
        let Some((to, block)) = directive.args.first().zip(scope.block.clone()) else { return };
        let connection = scope.connection.as_ref().map(|(spot, args)| (spot.clone(), self.sent(args)));
        let pass = Pass {
            at: directive.spot.clone(),
            directive: directive.name.clone(),
            target: self.target(&directive.name, to, scope.is_stream),
            block,
            headers: scope.headers.clone(),
            connection,
            settings: scope.settings.clone(),
            is_stream: scope.is_stream,
        };
        self.found.passes.push(pass);
    }

    fn sent(&self, args: &[String]) -> Sent {
        match args.get(1).map(String::as_str).unwrap_or_default() {
            "" => Sent::Empty,
            "close" => Sent::Close,
            value => self.maps.get(value).copied().unwrap_or(Sent::Unknown),
        }
    }

    fn target(&self, directive: &str, to: &str, is_stream: bool) -> Target {
        let host = host_of(to);
        let is_upstream =
            |name: &str| self.found.upstreams.iter().any(|up| up.name == name && up.is_stream == is_stream);
        if is_upstream(host) {
            return Target::Upstream(host.to_owned());
        }
        // `http://myapp$request_uri`
        if let Some((host, _)) = host.split_once('$') {
            return if is_upstream(host) { Target::Upstream(host.to_owned()) } else { Target::Variable };
        }
        let port = match (directive, to.starts_with("https:") || to.starts_with("grpcs:")) {
            ("proxy_pass" | "grpc_pass", true) => 443,
            ("memcached_pass", _) => 11211,
            _ => 80,
        };
        Target::Address(host.to_owned(), peers(host, port, self.names))
    }
}

fn upstream(directive: &Directive, name: &str, names: &Names, is_stream: bool) -> Upstream {
    let inner = |name: &str| directive.block.iter().find(|inner| inner.name == name);
    let first = |inner: &Directive| inner.args.first().cloned().unwrap_or_default();
    let servers = directive.block.iter().filter(|inner| inner.name == "server");
    Upstream {
        name: name.to_owned(),
        at: directive.spot.clone(),
        servers: servers.map(|server| Server::of(server, names)).collect(),
        balancer: BALANCERS.iter().find_map(|name| inner(name)).map(|inner| inner.spot.clone()),
        zone: inner("zone").is_some(),
        keepalive: inner("keepalive").is_some_and(|keepalive| first(keepalive) != "0"),
        keepalive_timeout: inner("keepalive_timeout")
            .and_then(|inner| Some((inner.spot.clone(), time(&first(inner))?))),
        handoff: inner("handoff").is_some(),
        reuse: inner("handoff_reuse").and_then(|inner| {
            let arg = first(inner);
            let reuse = match arg.strip_prefix("idle=") {
                Some(idle) => Reuse::Idle(time(idle)?),
                None => Reuse::Always,
            };
            Some((inner.spot.clone(), reuse))
        }),
        slow_start: inner("handoff_slow_start")
            .filter(|inner| first(inner) != "off")
            .map(|inner| inner.spot.clone()),
        queue: inner("handoff_queue").map(|inner| {
            let timeout = inner.args.iter().find_map(|arg| time(arg.strip_prefix("timeout=")?));
            let queue = match first(inner).as_str() {
                "off" => Queue::Off,
                _ => Queue::Timeout(timeout.unwrap_or(Duration::from_secs(30))),
            };
            (inner.spot.clone(), queue)
        }),
        is_stream,
    }
}

// === impl Upstream ===

impl Upstream {
    /// The servers that nginx chooses from while one of them can serve.
    pub fn primaries(&self) -> impl Iterator<Item = &Server> {
        self.servers.iter().filter(|server| !server.backup && !server.down)
    }

    /// How many addresses these are.
    pub fn primary_peers(&self) -> usize {
        self.primaries().map(|server| server.peers.len().max(1)).sum()
    }

    pub fn peers(&self) -> impl Iterator<Item = &str> {
        self.servers.iter().flat_map(|server| server.peers.iter().map(String::as_str))
    }
}

// === impl Server ===

impl Server {
    fn of(directive: &Directive, names: &Names) -> Self {
        let address = directive.args.first().cloned().unwrap_or_default();
        let value = |name: &str| directive.args.iter().find_map(|arg| arg.strip_prefix(name));
        let has = |name: &str| directive.args.iter().any(|arg| arg == name);
        Self {
            at: directive.spot.clone(),
            peers: peers(&address, 80, names),
            address,
            max_fails: value("max_fails=").and_then(|number| number.parse().ok()),
            fail_timeout: value("fail_timeout=").map(str::to_owned),
            backup: has("backup"),
            down: has("down"),
        }
    }

    /// The same line, with these words instead of what begins with `name`.
    pub fn with(&self, name: &str, word: &str) -> String {
        let line = self.at.source.trim_end().trim_end_matches(';').trim_end();
        let kept: Vec<&str> = line.split_whitespace().filter(|part| !part.starts_with(name)).collect();
        format!("{} {word};", kept.join(" "))
    }
}

// === impl Pass ===

impl Pass {
    pub fn setting(&self, name: &str) -> Option<(&Spot, &[String])> {
        self.settings.get(name).map(|(spot, args)| (spot, args.as_slice()))
    }

    pub fn first(&self, name: &str) -> Option<(&Spot, &str)> {
        let (spot, args) = self.setting(name)?;
        Some((spot, args.first().map(String::as_str).unwrap_or_default()))
    }
}

/// Without its scheme and its path.
fn host_of(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    if let Some(path) = rest.strip_prefix("unix:") {
        let end = path.find(':').unwrap_or(path.len());
        return rest.get(.."unix:".len() + end).unwrap_or(rest);
    }
    rest.split('/').next().unwrap_or(rest)
}

/// Host and port.
fn split(address: &str) -> (&str, Option<u16>) {
    let (host, port) = match address.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => (host, port.parse().ok()),
        _ => (address, None),
    };
    (host.trim_start_matches('[').trim_end_matches(']'), port)
}

/// An address as nginx names its peers.
fn peers(address: &str, port: u16, names: &Names) -> Vec<String> {
    if address.starts_with("unix:") {
        return vec![address.to_owned()];
    }
    let (host, own) = split(address);
    let port = own.unwrap_or(port);
    let ips = match host.parse::<IpAddr>() {
        Ok(ip) => vec![ip],
        Err(_) => names.get(host).cloned().unwrap_or_default(),
    };
    ips.into_iter().map(|ip| SocketAddr::new(ip, port).to_string()).collect()
}

/// A time as nginx reads it: `60`, `60s`, `1m 30s`, `500ms`.
pub fn time(text: &str) -> Option<Duration> {
    let mut total = Duration::ZERO;
    let mut rest = text.trim();
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (number, tail) = rest.split_at_checked(digits)?;
        let number: u64 = number.parse().ok()?;
        let (millis, unit) = match tail {
            tail if tail.starts_with("ms") => (1, 2),
            tail if tail.starts_with('s') => (1_000, 1),
            tail if tail.starts_with('m') => (60_000, 1),
            tail if tail.starts_with('h') => (3_600_000, 1),
            tail if tail.starts_with('d') => (86_400_000, 1),
            "" => (1_000, 0),
            _ => return None,
        };
        total += Duration::from_millis(number.checked_mul(millis)?);
        rest = tail.get(unit..)?.trim_start();
    }
    (!text.trim().is_empty()).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::conf;

    fn of(http: &str) -> Nginx {
        let text = format!("# configuration file /n.conf:\nhttp {{ {http} }}\n");
        let names = [("localhost".to_owned(), vec!["127.0.0.1".parse().unwrap(), "::1".parse().unwrap()])];
        Nginx::of(&conf::parse(&text).unwrap(), &names.into())
    }

    #[test]
    fn settings_are_inherited_as_by_nginx() {
        let nginx = of("proxy_read_timeout 5s; proxy_set_header Connection '';
            server { proxy_set_header Host x; location / { proxy_pass http://a; } }
            server { location / { proxy_read_timeout 7s; if ($x) { proxy_pass http://127.0.0.1:1; } } }
            upstream a { server 127.0.0.1:3000; }");
        let [one, two] = &nginx.passes[..] else { panic!("{:?}", nginx.passes) };
        assert_eq!(one.target, Target::Upstream("a".into()));
        assert_eq!(one.first("proxy_read_timeout").unwrap().1, "5s");
        assert_eq!(one.connection, None, "a header of its own replaces those around it");
        assert_eq!(one.headers.as_ref().unwrap().source, "server {");
        assert_eq!(one.block.source, "location / {");
        assert_eq!(two.first("proxy_read_timeout").unwrap().1, "7s");
        assert_eq!(two.connection.as_ref().unwrap().1, Sent::Empty);
        assert_eq!(two.block.source, "location / {", "in an `if` no setting may stand");
    }

    #[test]
    fn the_target_of_a_pass_is_an_upstream_an_address_or_not_known() {
        let nginx = of("upstream a { server 127.0.0.1:3000; } server { location / {
            proxy_pass http://a; proxy_pass http://a/path; proxy_pass http://a$uri; proxy_pass http://$host;
            proxy_pass http://127.0.0.1:3000/; proxy_pass https://127.0.0.1; proxy_pass http://localhost:3000;
            proxy_pass http://unix:/run/a.sock:/x; fastcgi_pass unix:/run/b.sock; proxy_pass http://a:81; } }");
        let targets: Vec<Target> = nginx.passes.into_iter().map(|pass| pass.target).collect();
        let a = || Target::Upstream("a".into());
        let address = |host: &str, peers: &[&str]| {
            Target::Address(host.into(), peers.iter().map(ToString::to_string).collect())
        };
        assert_eq!(
            targets,
            [
                a(),
                a(),
                a(),
                Target::Variable,
                address("127.0.0.1:3000", &["127.0.0.1:3000"]),
                address("127.0.0.1", &["127.0.0.1:443"]),
                address("localhost:3000", &["127.0.0.1:3000", "[::1]:3000"]),
                address("unix:/run/a.sock", &["unix:/run/a.sock"]),
                address("unix:/run/b.sock", &["unix:/run/b.sock"]),
                address("a:81", &[]),
            ]
        );
    }

    #[test]
    fn an_upstream_is_read() {
        let nginx = of("upstream a { least_conn; zone a 64k; server localhost:3000 max_fails=0 fail_timeout=5s;
            server 127.0.0.1:3001 backup; keepalive 8; keepalive_timeout 4s; handoff; handoff_reuse idle=2s;
            handoff_queue 10 timeout=500ms; } upstream b { server unix:/a; handoff_reuse always; handoff_queue off; }");
        let (a, b) = (nginx.upstream("a").unwrap(), nginx.upstream("b").unwrap());
        assert!(a.zone && a.keepalive && a.handoff && a.balancer.is_some() && nginx.speaks_handoff);
        assert_eq!((a.servers[0].max_fails, a.servers[0].fail_timeout.as_deref()), (Some(0), Some("5s")));
        assert_eq!((a.servers.len(), a.primary_peers()), (2, 2));
        assert_eq!(a.keepalive_timeout.as_ref().unwrap().1, Duration::from_secs(4));
        assert_eq!(a.reuse.as_ref().unwrap().1, Reuse::Idle(Duration::from_secs(2)));
        assert_eq!(a.queue.as_ref().unwrap().1, Queue::Timeout(Duration::from_millis(500)));
        assert_eq!(b.reuse.as_ref().unwrap().1, Reuse::Always);
        assert_eq!(b.queue.as_ref().unwrap().1, Queue::Off);
        assert_eq!(
            a.servers[0].with("max_fails=", "max_fails=1"),
            "server localhost:3000 fail_timeout=5s max_fails=1;"
        );
    }

    #[test]
    fn a_connection_header_from_a_map_is_what_it_is_without_an_upgrade() {
        let sent = |map: &str| {
            let nginx = of(&format!(
                "map $http_upgrade $c {{ {map} }} server {{ location / {{ proxy_set_header Connection $c; proxy_pass http://127.0.0.1; }} }}"
            ));
            nginx.passes[0].connection.clone().unwrap().1
        };
        assert_eq!(sent("default upgrade; '' '';"), Sent::Empty);
        assert_eq!(sent("default upgrade; '' close;"), Sent::Close);
        assert_eq!(sent("default upgrade;"), Sent::Unknown);
        assert_eq!(sent("a b;"), Sent::Empty);
    }

    #[test]
    fn control_servers_and_streams_are_found() {
        let nginx = of("server { listen unix:/run/n.sock; location / { handoff_api write=on user=shop; } }");
        assert_eq!(nginx.controls[0].listens, ["unix:/run/n.sock"]);
        assert_eq!(nginx.controls[0].args, ["write=on", "user=shop"]);
        let text = "# configuration file /n.conf:\nstream { upstream a { server 127.0.0.1:1; } server { proxy_pass a; } }";
        let nginx = Nginx::of(&conf::parse(text).unwrap(), &Names::new());
        assert!(nginx.upstreams[0].is_stream && nginx.passes[0].is_stream && nginx.upstream("a").is_none());
    }

    #[test]
    fn times_are_nginxs() {
        for (text, millis) in
            [("60", 60_000), ("1m 30s", 90_000), ("500ms", 500), ("2h", 7_200_000), ("0", 0)]
        {
            assert_eq!(time(text), Some(Duration::from_millis(millis)), "{text}");
        }
        assert!(time("").is_none() && time("x").is_none() && time("5x").is_none());
    }

    #[test]
    fn host_names_are_collected() {
        let text = "# configuration file /n.conf:\nhttp { upstream a { server app.local:1; server 127.0.0.1; server [::1]:2; }
                    server { location / { proxy_pass http://a; proxy_pass http://other/; proxy_pass http://$x; proxy_pass http://unix:/a:/; } } }";
        assert_eq!(hosts(&conf::parse(text).unwrap()), ["app.local", "other"]);
    }
}
