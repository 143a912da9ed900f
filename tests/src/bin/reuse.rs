//! What `handoff_reuse` takes from the keepalive cache: connections that are opened, local ports that wait, and GETs that
//! find a connection, under the default and under `always`, which is nginx alone.
//!
//! The peers are on another machine (a network namespace), over TCP and over TLS, and close idle connections as Node does by
//! default. Both upstreams are asked the same at the same moments. Needs root.

use anyhow::{Result, ensure};
use clap::Parser;
use e2e::{
    blocks::{self, Block, servers},
    clock::Moment,
    crowd::{self, Ask},
    farm::Farm,
    namespace::Namespace,
    ports,
    site::Site,
};
use std::{collections::BTreeSet, fs, net::SocketAddrV4, time::Duration};
use tokio::task::JoinSet;

#[derive(Parser)]
#[command(about = "Measures what handoff_reuse takes from the keepalive cache")]
struct Arguments {
    /// nginx's version
    #[arg(long, default_value = "1.22.1")]
    nginx: String,
    /// Seconds for each line; below 60, so that every port that has to wait is still waiting at the end
    #[arg(long, default_value_t = 30)]
    seconds: u32,
}

const POLICIES: [&str; 2] = ["always", "idle=1s"];
/// Node's `keepAliveTimeout`; Node adds a second.
const IDLE: Duration = Duration::from_secs(5);

/// Of a socket, in the kernel's table.
const TIME_WAIT: &str = "06";

/// So many requests at once, each so often, and how many of a hundred are POSTs.
struct Load {
    title: &'static str,
    at_once: u32,
    each: Duration,
}

const LOADS: [Load; 3] = [
    Load { title: "200 a second", at_once: 1, each: Duration::from_millis(5) },
    Load { title: "2 a second", at_once: 1, each: Duration::from_millis(500) },
    // The worst for it: all are used at once, after a pause that makes all of them old.
    Load { title: "64 at once, each 1.1 s", at_once: 64, each: Duration::from_millis(1_100) },
];

/// What became of one upstream.
#[derive(Default)]
struct Kept {
    gets: u32,
    /// Those that rode a connection which had been used before.
    found: u32,
    opened: usize,
    waiting: usize,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let machine = Namespace::new().await?;
    println!(
        "nginx {}, two processes, one peer, keepalive 64, {} s a line",
        arguments.nginx, arguments.seconds
    );
    println!("{:32} {:>16} {:>18} {:>22}", "", "opened", "ports that wait", "GETs that find one");
    for tls in [false, true] {
        for posts in [25, 100] {
            for load in &LOADS {
                let [always, idle] = measure(&arguments, &machine, tls, posts, load).await?;
                let found = |kept: &Kept| f64::from(kept.found) / f64::from(kept.gets);
                println!(
                    "{:32} {:>16} {:>18} {:>22}",
                    format!("{}, {posts} % POST, {}", if tls { "TLS" } else { "TCP" }, load.title),
                    format!("{} / {}", always.opened, idle.opened),
                    format!("{} / {}", always.waiting, idle.waiting),
                    match always.gets {
                        0 => "-".to_owned(),
                        _ => format!("{:.4} / {:.4}", found(&always), found(&idle)),
                    },
                );
            }
        }
    }
    Ok(())
}

async fn measure(
    arguments: &Arguments,
    machine: &Namespace,
    tls: bool,
    posts: u32,
    load: &Load,
) -> Result<[Kept; 2]> {
    let farm = Farm::on(machine, 2, IDLE, tls).await?;
    let mut site = Site::new(&arguments.nginx).await?;
    let upstreams = POLICIES.iter().zip(farm.peers()).map(|(policy, peer)| {
        let name = policy.trim_end_matches("=1s");
        let lines =
            format!("{} keepalive 64; handoff; handoff_reuse {policy};", servers([peer], "max_fails=0"));
        let block = Block::new(name, lines);
        if tls { block.tls() } else { block }
    });
    let blocks: Vec<Block> = upstreams.collect();
    site.write(&blocks::http(site.port(), &blocks))?;
    site.start().await?;

    let target = ports::address(site.port());
    let mut visitors = JoinSet::new();
    let rounds = Duration::from_secs(arguments.seconds.into()).as_millis() / load.each.as_millis();
    let mut due = Moment::now();
    let mut number = 0;
    for _ in 0..rounds {
        due.reached().await;
        due = due + load.each;
        for _ in 0..load.at_once {
            // 37 has no factor in common with 100, so that POSTs are spread evenly.
            let is_post = number * 37 % 100 < posts;
            number += 1;
            for block in &blocks {
                let path = format!("/{}/{}", block.name(), if is_post { "post" } else { "get" });
                let ask = if is_post { Ask::post(path) } else { Ask::get(path) };
                visitors.spawn(async move { crowd::ask(target, [ask]).await });
            }
        }
    }
    while let Some(answers) = visitors.join_next().await {
        ensure!(answers??.iter().all(|answer| answer.status == 200), "somebody was answered by nginx");
    }

    let arrivals = farm.arrivals().await?;
    let mut kept = [Kept::default(), Kept::default()];
    for (kept, peer) in kept.iter_mut().zip(farm.peers()) {
        let mut seen = BTreeSet::new();
        for arrival in arrivals.iter().filter(|arrival| arrival.peer == peer) {
            let is_first = seen.insert(arrival.connection);
            if arrival.path.ends_with("/get") {
                kept.gets += 1;
                kept.found += u32::from(!is_first);
            }
        }
        kept.opened = seen.len();
        kept.waiting = waiting(peer)?;
    }
    site.end().await?;
    Ok(kept)
}

/// Local ports that wait (TIME_WAIT) since a connection to this peer was closed from our side.
fn waiting(peer: &str) -> Result<usize> {
    let peer: SocketAddrV4 = peer.parse()?;
    let remote = format!("{:08X}:{:04X}", u32::from_ne_bytes(peer.ip().octets()), peer.port());
    let table = fs::read_to_string("/proc/net/tcp")?;
    let is_waiting = |line: &&str| {
        let mut words = line.split_whitespace().skip(2);
        words.next() == Some(&remote) && words.next() == Some(TIME_WAIT)
    };
    Ok(table.lines().filter(is_waiting).count())
}
