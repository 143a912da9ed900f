//! Instructions that an nginx needs for a request, in user space, as callgrind counts them.
//!
//! One process of nginx serves all that is to be compared, one stretch of requests after the other. Between two stretches a
//! request goes to a place of its own, [`MARK`], for which nginx calls a function that no other request calls; callgrind then
//! writes down what it has counted, and begins at 0. What such a request costs is known from two in a row.
//!
//! nginx takes a request's memory in blocks of 4 KB, and whoever needs the last bytes of one pays for the next, about 1 000
//! instructions. So the requests of a stretch come over 48 servers, which send the peers a header of 48 lengths: the end of a
//! block is met as often as in a long row of requests of all sizes. They come from 48 addresses, too.
//!
//! What glibc's malloc needs for a block depends on how the heap happens to look, by as much as 2 % of a request. So nginx has
//! jemalloc here, with the module and without: it needs as much for a block as for the last one of that size.

use crate::{command, door::Door, nginx::Binary, ports, process, wait};
use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use handoff_wire::{Expect, MarkRequest, MarkSet, Owner, PeerAdd, State, path};
use http_body_util::{BodyExt, Empty};
use hyper::{Method, Request, client::conn::http1, header::HOST};
use hyper_util::rt::TokioIo;
use rustix::process::Signal;
use std::{
    fmt::Write as _,
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{net::TcpSocket, process::Child, spawn};

const SERVERS: u8 = 48;
/// By so many bytes the header of a server is longer than that of the one before.
const STEP: usize = 80;
/// Requests of each server before a stretch, and in it.
const WARM: usize = 4;
const COUNTED: usize = 10;
/// By its name alone: the loader looks for it.
const JEMALLOC: &str = "LD_PRELOAD=libjemalloc.so.2";
const MARK: &str = "/mark";
const PATIENCE: Duration = Duration::from_secs(120);
/// More would not fit into the body of a request.
const MARKS_AT_ONCE: usize = 200;

/// Not counted: what a worker does four times a second, whatever the requests. Under callgrind a second has few of them.
const FLAGS: [&str; 5] = [
    "--tool=callgrind",
    "--quiet",
    "--dump-before=ngx_http_named_location",
    "--toggle-collect=*worker::tick*",
    "--collect-atstart=yes",
];

pub const COMMON: &str = "error_log @prefix@/error.log; pid @prefix@/pid; events { worker_connections 8192; }
http { access_log off; keepalive_requests 1000000000;
client_body_temp_path @prefix@/a; proxy_temp_path @prefix@/b; fastcgi_temp_path @prefix@/c;
uwsgi_temp_path @prefix@/d; scgi_temp_path @prefix@/e;";

/// Its name is the path that leads there.
#[derive(Clone, Debug)]
pub struct Upstream {
    pub name: String,
    pub balancer: String,
    pub peers: Vec<Peer>,
    /// `handoff;` and what else is ours.
    pub rules: String,
}

#[derive(Clone, Copy, Debug)]
pub struct Peer {
    pub address: SocketAddr,
    pub weight: usize,
    /// nginx.conf says `down`.
    pub is_down: bool,
    /// A mark says `draining`.
    pub is_draining: bool,
    /// It is added while nginx runs: nginx.conf does not name it.
    pub is_added: bool,
}

/// Peers that answer 204, behind one port.
pub struct Backend {
    _child: Child,
    port: u16,
}

type Visitor = http1::SendRequest<Empty<Bytes>>;

// === impl Backend ===

impl Backend {
    pub async fn start(nginx: &Binary, place: &Path, peers: usize) -> Result<Self> {
        let port = ports::row(1)?;
        let listens = (0..peers).fold(String::new(), |mut listens, peer| {
            _ = writeln!(listens, "listen {};", address(port, peer));
            listens
        });
        let conf = format!("{COMMON} server {{ {listens} location / {{ return 204; }} }} }}");
        let child = start(nginx, &place.join("backend"), &[], &conf).await?;
        Ok(Self { _child: child, port })
    }

    pub fn peers(&self, count: usize) -> Vec<Peer> {
        let peer = |number| Peer {
            address: address(self.port, number),
            weight: 1,
            is_down: false,
            is_draining: false,
            is_added: false,
        };
        (0..count).map(peer).collect()
    }
}

/// Any address of 127.0.0.0/8 is this machine's own.
fn address(port: u16, peer: usize) -> SocketAddr {
    let [.., high, low] = peer.to_be_bytes();
    SocketAddr::from((Ipv4Addr::new(127, 1, high, low), port))
}

/// Instructions that a request needs in each of these upstreams.
pub async fn count(
    nginx: &Binary,
    place: &Path,
    module: Option<&Path>,
    upstreams: &[Upstream],
) -> Result<Vec<f64>> {
    let prefix = place.join(format!("counted-{}", ports::row(1)?));
    let out = prefix.join("callgrind.out");
    let file = format!("--callgrind-out-file={}", out.display());
    let valgrind: Vec<&str> =
        ["env", JEMALLOC, "valgrind"].into_iter().chain(FLAGS).chain([file.as_str()]).collect();
    let first = ports::row(SERVERS.into())?;
    let mut child = start(nginx, &prefix, &valgrind, &conf(module, upstreams, first)).await?;
    let mut visitors = Vec::new();
    for number in 0..SERVERS {
        visitors.push(connect(first, number).await?);
    }
    prepare(&Door::Unix(prefix.join("control.sock")), upstreams).await?;

    let mut number = 0;
    for upstream in upstreams {
        number = visit(&mut visitors, &upstream.name, WARM, number).await?;
        mark(&mut visitors).await?;
        number = visit(&mut visitors, &upstream.name, COUNTED, number).await?;
        mark(&mut visitors).await?;
    }
    mark(&mut visitors).await?;
    process::signal(child.id().context("nginx is gone")?, Signal::QUIT);
    child.wait().await?;

    let dumps = 1..=2 * upstreams.len() + 1;
    let totals: Vec<f64> = dumps.map(|dump| total(&out, dump)).collect::<Result<_>>()?;
    fs::remove_dir_all(&prefix)?;
    let (&of_mark, stretches) = totals.split_last().context("nothing was counted")?;
    let counted = stretches.chunks_exact(2).filter_map(|pair| pair.last());
    Ok(counted.map(|total| (total - of_mark) / (usize::from(SERVERS) * COUNTED) as f64).collect())
}

fn total(out: &Path, dump: usize) -> Result<f64> {
    let file = format!("{}.{dump}", out.display());
    let text = fs::read_to_string(&file)
        .with_context(|| format!("no {file}: are valgrind and libjemalloc2 installed?"))?;
    let totals = text.lines().find_map(|line| line.strip_prefix("totals: "));
    Ok(totals.with_context(|| format!("no total in {file}"))?.trim().parse()?)
}

fn conf(module: Option<&Path>, upstreams: &[Upstream], first: u16) -> String {
    let load = module.map(|module| format!("load_module {};\n", module.display())).unwrap_or_default();
    let blocks: String = upstreams.iter().map(Upstream::block).collect();
    let locations: String = upstreams
        .iter()
        .map(|Upstream { name, .. }| format!("location /{name} {{ proxy_pass http://{name}; }}\n"))
        .collect();
    let servers: String = (0..SERVERS)
        .map(|number| {
            let (port, header) = (first + u16::from(number), "h".repeat(usize::from(number) * STEP + 1));
            format!(
                "server {{ listen 127.0.0.1:{port}; proxy_http_version 1.1; proxy_set_header Connection \"\";\n\
                 proxy_set_header X-Length\n{header};\n\
                 location = {MARK} {{ try_files /nobody @marked; }} location @marked {{ return 204; }}\n\
                 {locations} }}\n"
            )
        })
        .collect();
    let has_rules = upstreams.iter().any(|upstream| !upstream.rules.is_empty());
    let control = if has_rules {
        "handoff_zone 32m; server { listen unix:@prefix@/control.sock; location / { handoff_api write=on; } }"
    } else {
        ""
    };
    format!(
        "{load}{COMMON} proxy_headers_hash_bucket_size 128; variables_hash_max_size 4096;\n{blocks}{control}{servers} }}"
    )
}

/// Marks and adds those peers that are to be.
async fn prepare(control: &Door, upstreams: &[Upstream]) -> Result<()> {
    for upstream in upstreams {
        let marks = upstream.peers.iter().filter(|peer| peer.is_draining).map(|peer| MarkRequest {
            upstream: Some(upstream.name.clone()),
            peer: peer.address.to_string(),
            state: State::Draining,
            expect: Expect::Gone,
            reason: String::new(),
            all: false,
        });
        for marks in marks.collect::<Vec<_>>().chunks(MARKS_AT_ONCE) {
            let set = MarkSet { owner: Owner::operator(), lease: None, force: true, marks: marks.to_vec() };
            let reply = control.ask(Method::PUT, path::MARKS, serde_json::to_string(&set)?).await?;
            ensure!(reply.status == 200, "{}", reply.text());
        }
        for peer in upstream.peers.iter().filter(|peer| peer.is_added) {
            let add = serde_json::to_string(&PeerAdd::new(Owner::operator(), peer.address.to_string()))?;
            let reply = control.ask(Method::POST, &path::peers(&upstream.name), add).await?;
            ensure!(reply.status == 200, "{}", reply.text());
        }
    }
    Ok(())
}

/// Each server is asked so often in turn; answers the number of the next request.
async fn visit(visitors: &mut [Visitor], name: &str, rounds: usize, first: usize) -> Result<usize> {
    let mut number = first;
    for _ in 0..rounds {
        for visitor in &mut *visitors {
            ask(visitor, &format!("/{name}?visitor={number}")).await?;
            number += 1;
        }
    }
    Ok(number)
}

async fn mark(visitors: &mut [Visitor]) -> Result<()> {
    ask(visitors.first_mut().context("nobody visits")?, MARK).await
}

pub async fn ask(visitor: &mut Visitor, path: &str) -> Result<()> {
    visitor.ready().await?;
    let request = Request::get(path).header(HOST, "localhost").body(Empty::new())?;
    let response = visitor.send_request(request).await?;
    ensure!(response.status() == 204, "the answer to {path} is {}", response.status());
    response.into_body().collect().await?;
    Ok(())
}

/// `ip_hash` looks at three of the four numbers of an address.
async fn connect(first: u16, number: u8) -> Result<Visitor> {
    let (from, to) = (Ipv4Addr::new(127, 0, number, 1), ports::address(first + u16::from(number)));
    let open = async || {
        let socket = TcpSocket::new_v4().ok()?;
        socket.bind(SocketAddr::from((from, 0))).ok()?;
        socket.connect(to).await.ok()
    };
    let stream = wait::until("nginx to listen", PATIENCE, open).await?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    spawn(connection);
    Ok(sender)
}

/// One process, so that there is one to count.
pub async fn start(nginx: &Binary, prefix: &Path, under: &[&str], conf: &str) -> Result<Child> {
    fs::create_dir_all(prefix)?;
    let file: PathBuf = prefix.join("nginx.conf");
    fs::write(&file, conf.replace("@prefix@", &prefix.display().to_string()))?;
    let path = nginx.path.display().to_string();
    let line: Vec<&str> = under.iter().copied().chain([path.as_str()]).collect();
    let (program, arguments) = line.split_first().context("nothing to run")?;
    let mut command = command::clean(program);
    command.args(arguments).args(["-e", "stderr", "-g", "daemon off; master_process off;"]);
    command.arg("-p").arg(prefix).arg("-c").arg(&file);
    command.spawn().with_context(|| format!("cannot run {program}"))
}

// === impl Upstream ===

impl Upstream {
    pub fn block(&self) -> String {
        let Self { name, balancer, peers, rules } = self;
        let servers = peers.iter().filter(|peer| !peer.is_added).fold(String::new(), |mut servers, peer| {
            let down = if peer.is_down { " down" } else { "" };
            _ = writeln!(servers, "server {} weight={}{down};", peer.address, peer.weight);
            servers
        });
        format!(
            "upstream {name} {{ zone {name} 2m; {balancer}\n{servers}keepalive 64; keepalive_requests 1000000000; {rules} }}\n"
        )
    }
}
