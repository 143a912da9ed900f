//! What Handoff costs a request: instructions, and throughput in interleaved pairs, each with an A/A control.
//!
//! Five set-ups of one nginx: stock, stock again (what differs between these two is noise), the module loaded but unused,
//! and an upstream with `handoff` and no marks, without and with a slow start. Four peers, a `zone`, keepalive on both sides; the backend is another nginx.

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use clap::Parser;
use e2e::{command, door::Door, nginx::Binary, place, place::Place, ports, process, wait};
use handoff_wire::{Owner, PeerAdd, path};
use http_body_util::{BodyExt, Empty};
use hyper::{Method, Request, client::conn::http1, header::HOST};
use hyper_util::rt::TokioIo;
use rustix::process::Signal;
use std::{
    fs,
    net::SocketAddr,
    path::Path,
    time::{Duration, Instant},
};
use tokio::{net::TcpStream, process::Child, spawn, task::JoinSet};

#[derive(Parser)]
#[command(about = "Measures what Handoff costs a request")]
struct Arguments {
    /// nginx's version or path; the first that is found if absent
    #[arg(long)]
    nginx: Option<String>,
    /// Rounds of each set-up
    #[arg(long, default_value_t = 24)]
    rounds: usize,
    /// Seconds a round
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
}

const SETUPS: [&str; 5] =
    ["stock", "stock again", "module loaded, unused", "handoff, no marks", "handoff, slow start"];
/// Of these the instructions are enough.
const SLOTS: [&str; 3] = ["handoff, 16 slots", "handoff, 64 slots", ADDED];
/// No server is named, and the peers are added.
const ADDED: &str = "handoff, its peers added";
const CONNECTIONS: usize = 16;
/// Instructions are counted as the difference of two runs: what nginx needs to start and to end is in both.
const FEW: usize = 500;
const MANY: usize = 2_500;
const PATIENCE: Duration = Duration::from_secs(60);

/// One nginx, in one process, in front of the backend.
struct Proxy {
    child: Child,
    address: SocketAddr,
}

/// What one round measured.
#[derive(Clone, Copy)]
struct Round {
    requests_a_second: f64,
    /// Nanoseconds of nginx's CPU time a request.
    cpu: f64,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let nginx = Binary::find(arguments.nginx.as_deref()).await?;
    let place = Place::new()?;
    let first = ports::row(4)?;
    let peers: Vec<SocketAddr> = (first..).take(4).map(ports::address).collect();
    let backend = start(&nginx, &place, "backend", &[], &backend_conf(&peers)).await?;
    println!("nginx {}, 4 peers, {CONNECTIONS} connections", nginx.version);

    println!("\n{:24} {:>14} {:>8}", "", "instructions", "ratio");
    let mut stock = None;
    for setup in SETUPS.into_iter().chain(SLOTS) {
        let count = instructions(&nginx, &place, setup, &peers).await?;
        println!("{setup:24} {count:14.0} {:8.4}", count / *stock.get_or_insert(count));
    }

    let rounds = throughput(&nginx, &place, &peers, &arguments).await?;
    println!(
        "\n{:24} {:>14} {:>12} {:>14} {:>10}",
        "median of pairs", "requests/s", "ratio", "CPU µs", "ratio"
    );
    for (setup, of_setup) in SETUPS.iter().zip(&rounds) {
        let median = |of: &dyn Fn(&Round, &Round) -> f64| {
            let values =
                rounds.first().into_iter().flatten().zip(of_setup).map(|(stock, round)| of(stock, round));
            middle(values.collect())
        };
        println!(
            "{setup:24} {:14.0} {:12.4} {:14.2} {:10.4}",
            median(&|_, round| round.requests_a_second),
            median(&|stock, round| round.requests_a_second / stock.requests_a_second),
            median(&|_, round| round.cpu / 1e3),
            median(&|stock, round| round.cpu / stock.cpu),
        );
    }
    drop(backend);
    Ok(())
}

/// Instructions a request, in user space.
async fn instructions(nginx: &Binary, place: &Place, setup: &str, peers: &[SocketAddr]) -> Result<f64> {
    let few = callgrind(nginx, place, setup, peers, FEW).await?;
    let many = callgrind(nginx, place, setup, peers, MANY).await?;
    Ok((many - few) / (MANY - FEW) as f64)
}

async fn callgrind(
    nginx: &Binary,
    place: &Place,
    setup: &str,
    peers: &[SocketAddr],
    requests: usize,
) -> Result<f64> {
    let out = place.file("callgrind.out");
    let file = format!("--callgrind-out-file={}", out.display());
    let valgrind = ["valgrind", "--tool=callgrind", "--quiet", &file];
    let mut proxy = proxy(nginx, place, setup, peers, &valgrind).await?;
    let mut connection = connect(proxy.address).await?;
    for _ in 0..requests {
        visit(&mut connection).await?;
    }
    let pid = proxy.child.id().context("nginx is gone")?;
    process::signal(pid, Signal::QUIT);
    proxy.child.wait().await?;
    let text = fs::read_to_string(&out).context("valgrind wrote nothing: is it installed?")?;
    let total =
        text.lines().find_map(|line| line.strip_prefix("summary: ").or(line.strip_prefix("totals: ")));
    Ok(total.context("no total in callgrind's output")?.trim().parse()?)
}

/// Each round visits every set-up once, each time in another order.
async fn throughput(
    nginx: &Binary,
    place: &Place,
    peers: &[SocketAddr],
    arguments: &Arguments,
) -> Result<Vec<Vec<Round>>> {
    let mut proxies = Vec::new();
    for setup in SETUPS {
        proxies.push(proxy(nginx, place, setup, peers, &[]).await?);
    }
    let time = Duration::from_secs_f64(arguments.seconds);
    let mut rounds = vec![Vec::new(); SETUPS.len()];
    for number in 0..arguments.rounds {
        let mut order: Vec<_> = proxies.iter().zip(&mut rounds).collect();
        order.rotate_left(number % SETUPS.len());
        for (proxy, rounds) in order {
            rounds.push(round(proxy, time).await?);
        }
    }
    Ok(rounds)
}

async fn round(proxy: &Proxy, time: Duration) -> Result<Round> {
    let pid = proxy.child.id().context("nginx is gone")?;
    let began = Instant::now();
    let before = cpu(pid)?;
    let mut visitors = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let mut connection = connect(proxy.address).await?;
        visitors.spawn(async move {
            let mut visits = 0u32;
            while began.elapsed() < time {
                visit(&mut connection).await?;
                visits += 1;
            }
            anyhow::Ok(visits)
        });
    }
    let mut visits = 0;
    while let Some(done) = visitors.join_next().await {
        visits += done??;
    }
    let visits = f64::from(visits);
    Ok(Round {
        requests_a_second: visits / began.elapsed().as_secs_f64(),
        cpu: (cpu(pid)? - before) / visits,
    })
}

/// The median.
fn middle(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Nanoseconds that a process has run.
fn cpu(pid: u32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/schedstat"))?;
    Ok(text.split_whitespace().next().context("an empty schedstat")?.parse()?)
}

type Connection = http1::SendRequest<Empty<Bytes>>;

async fn connect(address: SocketAddr) -> Result<Connection> {
    let (sender, connection) = http1::handshake(TokioIo::new(TcpStream::connect(address).await?)).await?;
    spawn(connection);
    Ok(sender)
}

async fn visit(connection: &mut Connection) -> Result<()> {
    connection.ready().await?;
    let request = Request::get("/").header(HOST, "localhost").body(Empty::new())?;
    let response = connection.send_request(request).await?;
    ensure!(response.status() == 204, "the answer is {}", response.status());
    response.into_body().collect().await?;
    Ok(())
}

async fn proxy(
    nginx: &Binary,
    place: &Place,
    setup: &str,
    peers: &[SocketAddr],
    under: &[&str],
) -> Result<Proxy> {
    let address = ports::address(ports::row(1)?);
    let conf = proxy_conf(setup, &nginx.version, address, peers)?;
    let name = format!("proxy-{}", address.port());
    let child = start(nginx, place, &name, under, &conf).await?;
    if setup == ADDED {
        add(&Door::Unix(place.file(&name).join("control.sock")), peers).await?;
    }
    wait::until("the proxy to answer", PATIENCE, async || {
        let mut connection = connect(address).await.ok()?;
        visit(&mut connection).await.ok()
    })
    .await?;
    Ok(Proxy { child, address })
}

async fn add(control: &Door, peers: &[SocketAddr]) -> Result<()> {
    wait::until("the control socket", PATIENCE, async || control.get(path::OVERVIEW).await.ok()).await?;
    for peer in peers {
        let add = serde_json::to_string(&PeerAdd::new(Owner::operator(), peer.to_string()))?;
        let reply = control.ask(Method::POST, &path::peers("app"), add).await?;
        ensure!(reply.status == 200, "{}", reply.text());
    }
    Ok(())
}

/// One process, so that there is one to count.
async fn start(nginx: &Binary, place: &Place, name: &str, under: &[&str], conf: &str) -> Result<Child> {
    let prefix = place.file(name);
    fs::create_dir_all(&prefix)?;
    let file = prefix.join("nginx.conf");
    fs::write(&file, conf.replace("@prefix@", &prefix.display().to_string()))?;
    let path = nginx.path.display().to_string();
    let line: Vec<&str> = under.iter().copied().chain([path.as_str()]).collect();
    let (program, arguments) = line.split_first().context("nothing to run")?;
    let mut command = command::clean(program);
    command.args(arguments).args(["-e", "stderr", "-g", "daemon off; master_process off;"]);
    command.arg("-p").arg(&prefix).arg("-c").arg(Path::new(&file));
    command.spawn().with_context(|| format!("cannot run {program}"))
}

const COMMON: &str = "error_log @prefix@/error.log; pid @prefix@/pid; events { worker_connections 512; }
http { access_log off; keepalive_requests 1000000000;
client_body_temp_path @prefix@/a; proxy_temp_path @prefix@/b; fastcgi_temp_path @prefix@/c;
uwsgi_temp_path @prefix@/d; scgi_temp_path @prefix@/e;";

fn backend_conf(peers: &[SocketAddr]) -> String {
    let listens: String = peers.iter().map(|peer| format!("listen {peer}; ")).collect();
    format!("{COMMON} server {{ {listens} location / {{ return 204; }} }} }}")
}

fn proxy_conf(setup: &str, version: &str, address: SocketAddr, peers: &[SocketAddr]) -> Result<String> {
    let load = match setup {
        "stock" | "stock again" => String::new(),
        _ => format!("load_module {};", place::module(version)?.display()),
    };
    let handoff = match setup {
        "handoff, slow start" => "handoff; handoff_slow_start 30s;",
        _ if setup.starts_with("handoff") => "handoff;",
        _ => "",
    };
    let slots = setup.strip_suffix(" slots").and_then(|setup| setup.rsplit(' ').next());
    let slots = slots.map(|count| format!("handoff_slots {count};")).unwrap_or_default();
    let servers: String = peers.iter().map(|peer| format!("server {peer}; ")).collect();
    let (servers, slots, control) = match setup {
        ADDED => (
            String::new(),
            format!("handoff_slots {};", peers.len()),
            "server { listen unix:@prefix@/control.sock; location / { handoff_api write=on; } }",
        ),
        _ => (servers, slots, ""),
    };
    Ok(format!(
        "{load} {COMMON}
upstream app {{ zone app 256k; {servers} keepalive 32; keepalive_requests 1000000000; {handoff} {slots} }}
{control}
server {{ listen {address}; location / {{ proxy_pass http://app; proxy_http_version 1.1;
proxy_set_header Connection \"\"; }} }} }}"
    ))
}
