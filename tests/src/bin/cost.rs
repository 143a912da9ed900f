//! What Handoff costs a request: instructions, and throughput in interleaved pairs, each with an A/A control.
//!
//! Stock again: what differs between these two is noise.

use anyhow::{Context, Result};
use bytes::Bytes;
use clap::Parser;
use e2e::{
    callgrind::{self, Backend, COMMON, Peer, Upstream},
    nginx::Binary,
    place,
    place::Place,
    ports, process, spread, wait,
};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use std::{
    net::SocketAddr,
    path::PathBuf,
    time::{Duration, Instant},
};
use tokio::{net::TcpStream, process::Child, spawn, task::JoinSet};

#[derive(Parser)]
#[command(about = "Measures what Handoff costs a request")]
struct Arguments {
    /// nginx's version or path; all that are found if absent
    #[arg(long)]
    nginx: Option<String>,
    /// Balancers and numbers of peers, too: some minutes
    #[arg(long)]
    table: bool,
    /// Throughput alone
    #[arg(long)]
    only_throughput: bool,
    /// Rounds of throughput of each set-up; 0: none
    #[arg(long, default_value_t = 24)]
    rounds: usize,
    /// Seconds a round
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
}

/// Whether the module is there, and what an upstream says.
struct Setup(&'static str, Option<&'static str>);

const STOCK: Setup = Setup("stock", None);
const AGAIN: Setup = Setup("stock again", None);
const HANDOFF: Setup = Setup("handoff", Some("handoff;"));
const SETUPS: [Setup; 5] = [
    STOCK,
    AGAIN,
    Setup("module loaded, unused", Some("")),
    HANDOFF,
    Setup("handoff_slow_start", Some("handoff; handoff_slow_start 30s;")),
];
/// Of these the instructions are enough.
const SLOTS: [Setup; 3] = [
    Setup("handoff_slots 16", Some("handoff; handoff_slots 16;")),
    Setup("handoff_slots 64", Some("handoff; handoff_slots 64;")),
    ADDED,
];
/// No server is named, and the peers are added.
const ADDED: Setup = Setup("all peers added", Some("handoff; handoff_slots 4;"));

const BALANCERS: [(&str, &str); 8] = [
    ("round robin", ""),
    ("weights 1 to 4", ""),
    ("least_conn", "least_conn;"),
    ("ip_hash", "ip_hash;"),
    ("hash", "hash $arg_visitor;"),
    ("hash consistent", "hash $arg_visitor consistent;"),
    ("random", "random;"),
    ("random two", "random two;"),
];
const COUNTS: [usize; 3] = [4, 64, 1000];

/// Which of so many peers are draining, or `down` in stock nginx.
#[derive(Clone, Copy)]
enum Draining {
    None,
    One,
    Half,
}

const CONNECTIONS: usize = 16;
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
    let all = match &arguments.nginx {
        Some(name) => vec![Binary::find(Some(name)).await?],
        None => Binary::all().await,
    };
    for nginx in all {
        let place = Place::new()?;
        let backend = Backend::start(&nginx, place.path(), COUNTS.into_iter().max().unwrap_or(4)).await?;
        println!("\nnginx {}", nginx.version);
        if !arguments.only_throughput {
            instructions(&nginx, &place, &backend).await?;
        }
        if arguments.table {
            table(&nginx, &place, &backend).await?;
        }
        if arguments.rounds > 0 {
            print(&throughput(&nginx, &place, &backend, &arguments).await?);
        }
    }
    Ok(())
}

/// Round robin over four peers.
async fn instructions(nginx: &Binary, place: &Place, backend: &Backend) -> Result<()> {
    println!("\n{:24} {:>14} {:>8}", "", "instructions", "ratio");
    let mut stock = None;
    for setup in SETUPS.iter().chain(&SLOTS) {
        let mut peers = backend.peers(4);
        peers.iter_mut().for_each(|peer| peer.is_added = setup.0 == ADDED.0);
        let counts = count(nginx, place, setup, vec![upstream("app", "", peers, setup)]).await?;
        let count = *counts.first().context("nothing was counted")?;
        println!("{:24} {count:14.0} {:8.4}", setup.0, count / *stock.get_or_insert(count));
    }
    Ok(())
}

/// Every balancer, with few peers and with many, none, one or half of them draining.
async fn table(nginx: &Binary, place: &Place, backend: &Backend) -> Result<()> {
    println!("\n| balancer | peers | draining | stock | stock again | handoff | more | ratio |");
    println!("|---|---|---|---|---|---|---|---|");
    let shapes = COUNTS
        .into_iter()
        .flat_map(|peers| [Draining::None, Draining::One, Draining::Half].map(|draining| (peers, draining)));
    let shapes: Vec<_> = shapes.collect();
    for (name, balancer) in BALANCERS {
        let mut columns = Vec::new();
        for setup in [STOCK, AGAIN, HANDOFF] {
            let upstreams = shapes.iter().enumerate().map(|(number, (count, draining))| {
                let mut peers = backend.peers(*count);
                for (number, peer) in peers.iter_mut().enumerate() {
                    let is_away = draining.includes(number);
                    (peer.is_down, peer.is_draining) =
                        (is_away && setup.1.is_none(), is_away && setup.1.is_some());
                    peer.weight = if name.starts_with("weights") { number % 4 + 1 } else { 1 };
                }
                upstream(&format!("u{number}"), balancer, peers, &setup)
            });
            columns.push(count(nginx, place, &setup, upstreams.collect()).await?);
        }
        let [stock, again, ours] = columns.as_slice() else { continue };
        for (((shape, stock), again), ours) in shapes.iter().zip(stock).zip(again).zip(ours) {
            let (count, draining) = shape;
            println!(
                "| {name} | {count} | {} | {stock:.0} | {:.4} | {ours:.0} | {:.0} | {:.4} |",
                draining.word(),
                again / stock,
                ours - stock,
                ours / stock
            );
        }
    }
    Ok(())
}

fn upstream(name: &str, balancer: &str, peers: Vec<Peer>, setup: &Setup) -> Upstream {
    let rules = setup.1.unwrap_or_default().to_owned();
    Upstream { name: name.to_owned(), balancer: balancer.to_owned(), peers, rules }
}

fn module(nginx: &Binary, setup: &Setup) -> Result<Option<PathBuf>> {
    setup.1.map(|_| place::module(&nginx.version)).transpose()
}

async fn count(nginx: &Binary, place: &Place, setup: &Setup, upstreams: Vec<Upstream>) -> Result<Vec<f64>> {
    let module = module(nginx, setup)?;
    callgrind::count(nginx, place.path(), module.as_deref(), &upstreams).await
}

fn print(rounds: &[Vec<Round>]) {
    println!(
        "\n{:24} {:>14} {:>12} {:>14} {:>10}",
        "median of pairs", "requests/s", "ratio", "CPU µs", "ratio"
    );
    for (setup, of_setup) in SETUPS.iter().zip(rounds) {
        let median = |of: &dyn Fn(&Round, &Round) -> f64| {
            let values =
                rounds.first().into_iter().flatten().zip(of_setup).map(|(stock, round)| of(stock, round));
            spread::median(&values.collect::<Vec<_>>()).unwrap_or(f64::NAN)
        };
        println!(
            "{:24} {:14.0} {:12.4} {:14.2} {:10.4}",
            setup.0,
            median(&|_, round| round.requests_a_second),
            median(&|stock, round| round.requests_a_second / stock.requests_a_second),
            median(&|_, round| round.cpu / 1e3),
            median(&|stock, round| round.cpu / stock.cpu),
        );
    }
}

/// Each round visits every set-up once, each time in another order.
async fn throughput(
    nginx: &Binary,
    place: &Place,
    backend: &Backend,
    arguments: &Arguments,
) -> Result<Vec<Vec<Round>>> {
    let mut proxies = Vec::new();
    for setup in &SETUPS {
        proxies.push(proxy(nginx, place, setup, backend).await?);
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
    let before = process::cpu(pid)?;
    let mut visitors = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let mut connection = connect(proxy.address).await?;
        visitors.spawn(async move {
            let mut visits = 0u32;
            while began.elapsed() < time {
                callgrind::ask(&mut connection, "/").await?;
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
        cpu: (process::cpu(pid)? - before) / visits,
    })
}

async fn connect(address: SocketAddr) -> Result<http1::SendRequest<Empty<Bytes>>> {
    let (sender, connection) = http1::handshake(TokioIo::new(TcpStream::connect(address).await?)).await?;
    spawn(connection);
    Ok(sender)
}

async fn proxy(nginx: &Binary, place: &Place, setup: &Setup, backend: &Backend) -> Result<Proxy> {
    let address = ports::address(ports::row(1)?);
    let load = module(nginx, setup)?;
    let load = load.map(|module| format!("load_module {};\n", module.display())).unwrap_or_default();
    let block = upstream("app", "", backend.peers(4), setup).block();
    let conf = format!(
        "{load}{COMMON}\n{block}server {{ listen {address}; location / {{ proxy_pass http://app; \
         proxy_http_version 1.1; proxy_set_header Connection \"\"; }} }} }}"
    );
    let prefix = place.file(&format!("proxy-{}", address.port()));
    let child = callgrind::start(nginx, &prefix, &[], &conf).await?;
    wait::until("the proxy to answer", PATIENCE, async || {
        let mut connection = connect(address).await.ok()?;
        callgrind::ask(&mut connection, "/").await.ok()
    })
    .await?;
    Ok(Proxy { child, address })
}

// === impl Draining ===

impl Draining {
    fn includes(self, number: usize) -> bool {
        match self {
            Self::None => false,
            Self::One => number == 0,
            Self::Half => number.is_multiple_of(2),
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::One => "one",
            Self::Half => "half",
        }
    }
}
