//! What a fleet asks of etcd: 1 000 app hosts, 50 edges and 20 000 workers, unless it is told others.
//!
//! One real etcd and one process that is all the hosts and edges (`fleet`), on this machine: what they take of each other is
//! in every number, so both are told.

use anyhow::{Context, Result, ensure};
use clap::Parser;
use e2e::{
    clock::Moment,
    door::Door,
    fleet::{self, Drained, Fleet, Shape},
    lab::store::Store,
    net::{Inside, Realm},
    place::Place,
    process,
    sidecar::Sidecar,
    site::Site,
    stage,
};
use std::{collections::BTreeMap, fs, net::SocketAddr, process::ExitCode, time::Duration};
use tokio::{task::JoinSet, time::sleep};

#[derive(Parser)]
#[command(about = "Measures what a fleet asks of etcd")]
struct Arguments {
    #[arg(long, default_value_t = 1_000)]
    hosts: usize,
    #[arg(long, default_value_t = 50)]
    edges: usize,
    /// Of each host
    #[arg(long, default_value_t = 20)]
    workers: usize,
    /// How many hosts deploy at once; several times, one after the other
    #[arg(long, value_delimiter = ',', default_value = "1,10,50,100")]
    deploying: Vec<usize>,
    /// One edge more, a real one: nginx of this version with all the workers, and its sidecar
    #[arg(long, default_value = "1.22.1")]
    nginx: String,
    /// How often an edge says how a host that deploys is answered, in milliseconds; 0: never
    #[arg(long, default_value_t = 200)]
    counts: u64,
    /// Edges hear all that is there before they answer any of it
    #[arg(long)]
    gathers: bool,
    /// Of each line
    #[arg(long, default_value_t = 20)]
    seconds: u64,
}

/// What etcd has counted, and what it has taken of the machine.
#[derive(Clone, Debug)]
struct Reading {
    at: Moment,
    counters: BTreeMap<String, f64>,
    cpu: Duration,
    own_cpu: Duration,
    resident: u64,
}

/// From draining to up again: as long as a Node worker needs to start.
const RESTART: Duration = Duration::from_secs(1);
const IN_FLIGHT: Duration = Duration::from_millis(300);

fn main() -> ExitCode {
    stage::enter(measure(Arguments::parse()))
}

async fn measure(arguments: Arguments) -> Result<()> {
    let Arguments { hosts, edges, workers, .. } = arguments;
    let counts = (arguments.counts > 0).then(|| Duration::from_millis(arguments.counts));
    let shape = Shape { hosts, edges, workers, in_flight: IN_FLIGHT, counts, gathers: arguments.gathers };
    let place = Place::new()?;
    let etcd = Store::alone(place.path()).await?;
    let member = etcd.members().first().context("no member")?;
    let (address, pid) = (member.address(), member.pid().context("it does not run")?);
    let read = || Reading::take(address, pid);
    println!("etcd, one member; {hosts} app hosts, {edges} edges, {} workers", hosts * workers);
    println!(
        "{:34} {:>8} {:>8} {:>9} {:>9} {:>9} {:>7} {:>7} {:>8} {:>8}",
        "", "puts/s", "events/s", "beats/s", "in kB/s", "out kB/s", "etcd %", "they %", "RSS MB", "db MB"
    );

    let before = read().await?;
    let mut fleet = Fleet::start(&etcd.endpoints(), shape).await?;
    let after = read().await?;
    row(&format!("they come, in {:.1} s", after.at.since(before.at).as_secs_f64()), &before, &after);

    let before = read().await?;
    let (site, sidecar) = real_edge(&arguments, &shape, &etcd.endpoints()).await?;
    fleet.knows(edges + 1).await?;
    let after = read().await?;
    row(&format!("a real edge, in {:.1} s", after.at.since(before.at).as_secs_f64()), &before, &after);
    let own = |what: &str, before: (Moment, Duration)| {
        let (now, cpu) = (Moment::now(), cpu(sidecar.pid())?);
        let share = cpu.saturating_sub(before.1).as_secs_f64() / now.since(before.0).as_secs_f64();
        let resident = process::resident(sidecar.pid()).context("the sidecar is gone")? as f64 / 1024.0;
        println!(
            "  the sidecar of the real edge, {what}: RSS {resident:.1} MB, {:.0} % of a processor",
            100.0 * share
        );
        anyhow::Ok(())
    };
    let mark = || anyhow::Ok((Moment::now(), cpu(sidecar.pid())?));

    let (before, began) = (read().await?, mark()?);
    sleep(Duration::from_secs(arguments.seconds)).await;
    row("at rest", &before, &read().await?);
    own("at rest", began)?;

    for &together in &arguments.deploying {
        ensure!(together <= hosts, "{together} of {hosts} hosts");
        let (before, began) = (read().await?, mark()?);
        let until = Moment::now() + Duration::from_secs(arguments.seconds);
        let drains = deploy(&mut fleet, together, workers, until).await?;
        row(&format!("{together} hosts deploy, {} drains", drains.len()), &before, &read().await?);
        spread("  to the last acknowledgement", drains.iter().map(|drained| drained.acknowledged));
        spread("  to in flight 0 and the fence", drains.iter().map(|drained| drained.fenced));
        own("meanwhile", began)?;
    }
    drop(sidecar);
    site.end().await?;
    println!("the db file of etcd: {:.0} MB", member_size(&etcd).await?);
    Ok(())
}

/// nginx and the sidecar as they are installed, with every worker of the fleet for a peer.
async fn real_edge(arguments: &Arguments, shape: &Shape, endpoints: &str) -> Result<(Site, Sidecar)> {
    let mut site = Site::new(&arguments.nginx).await?;
    // 4m hold 1 191 peers.
    let zone = shape.hosts * shape.workers / 250 + 4;
    let upstreams = fleet::upstreams(shape, "handoff;");
    site.write(&format!("handoff_zone {zone}m;\n{upstreams}\n{}", site.api("write=on")))?;
    site.start().await?;
    let told =
        ["--store", endpoints, "--store-cluster", "scale", "--role", "edge", "--store-name", "edge-real"];
    let sidecar = Sidecar::launch_on(&Realm::default(), site.place(), &told.map(str::to_owned))?;
    Ok((site, sidecar))
}

/// So many hosts replace one worker after the other, again and again.
async fn deploy(fleet: &mut Fleet, together: usize, workers: usize, until: Moment) -> Result<Vec<Drained>> {
    let mut deploying = JoinSet::new();
    for mut host in fleet.hosts.drain(..together) {
        deploying.spawn(async move {
            let mut drains = Vec::new();
            for worker in (0..workers).cycle() {
                if Moment::now() >= until {
                    break;
                }
                drains.push(host.replace(worker, RESTART).await?);
            }
            anyhow::Ok((host, drains))
        });
    }
    let mut all = Vec::new();
    while let Some(done) = deploying.join_next().await {
        let (host, drains) = done??;
        fleet.hosts.push(host);
        all.extend(drains);
    }
    Ok(all)
}

async fn member_size(etcd: &Store) -> Result<f64> {
    let size = etcd.members().first().context("no member")?.db_size(&Inside::here()).await?;
    Ok(megabytes(size as f64))
}

fn row(title: &str, before: &Reading, after: &Reading) {
    let seconds = after.at.since(before.at).as_secs_f64();
    let rate = |name: &str| (after.counter(name) - before.counter(name)) / seconds;
    let percent = |from: Duration, to: Duration| 100.0 * (to.saturating_sub(from)).as_secs_f64() / seconds;
    println!(
        "{title:34} {:>8.0} {:>8.0} {:>9.0} {:>9.0} {:>9.0} {:>7.0} {:>7.0} {:>8.0} {:>8.0}",
        rate("etcd_debugging_mvcc_put_total"),
        rate("etcd_debugging_mvcc_events_total"),
        rate("grpc_server_msg_received_total{LeaseKeepAlive}"),
        rate("etcd_network_client_grpc_received_bytes_total") / 1e3,
        rate("etcd_network_client_grpc_sent_bytes_total") / 1e3,
        percent(before.cpu, after.cpu),
        percent(before.own_cpu, after.own_cpu),
        after.resident as f64 / 1024.0,
        megabytes(after.counter("etcd_mvcc_db_total_size_in_bytes")),
    );
}

fn spread(title: &str, of: impl Iterator<Item = Duration>) {
    let mut all: Vec<Duration> = of.collect();
    all.sort_unstable();
    let at = |share: f64| {
        let place = ((all.len() as f64 - 1.0) * share).round() as usize;
        all.get(place).copied().unwrap_or_default().as_secs_f64() * 1e3
    };
    println!("{title:34} p50 {:.1} ms, p99 {:.1} ms, longest {:.1} ms", at(0.5), at(0.99), at(1.0));
}

fn megabytes(bytes: f64) -> f64 {
    bytes / f64::from(1 << 20)
}

// === impl Reading ===

impl Reading {
    async fn take(address: SocketAddr, pid: u32) -> Result<Self> {
        let text = Door::Tcp(address).get("/metrics").await?.text();
        let mut counters = BTreeMap::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let Some((name, value)) = line.rsplit_once(' ') else { continue };
            let name = match name.split_once('{') {
                Some((name, labels)) if labels.contains("\"LeaseKeepAlive\"") => {
                    format!("{name}{{LeaseKeepAlive}}")
                }
                Some((name, _)) => name.to_owned(),
                None => name.to_owned(),
            };
            *counters.entry(name).or_default() += value.parse().unwrap_or(0.0);
        }
        Ok(Self {
            at: Moment::now(),
            counters,
            cpu: cpu(pid)?,
            own_cpu: cpu(std::process::id())?,
            resident: process::resident(pid).context("etcd is gone")?,
        })
    }

    fn counter(&self, name: &str) -> f64 {
        self.counters.get(name).copied().unwrap_or_default()
    }
}

/// What a process has had of the processors.
fn cpu(pid: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after = stat.rsplit_once(')').context("no name in stat")?.1;
    let mut words = after.split_whitespace().skip(11);
    let ticks = |word: Option<&str>| word.and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
    // Linux has told user space of a hundred ticks a second for as long as there is /proc.
    Ok(Duration::from_millis(10 * (ticks(words.next()) + ticks(words.next()))))
}
