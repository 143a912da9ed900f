//! What `handoff run` costs beside a hundred workers: memory, CPU at rest, and how fast it tells nginx while apps flood PM2
//! with their logs; without a store and with one. Real PM2, real nginx, real etcd.

use anyhow::{Context, Result};
use clap::Parser;
use e2e::{
    etcd::Etcd,
    place::{self, Place},
    pm2::{NEWEST, Pm2},
    ports,
    sidecar::{self, Sidecar},
    site::Site,
    stage, wait,
};
use serde_json::{Value, json};
use std::{
    fs,
    net::SocketAddr,
    process::{Child, Command, ExitCode, Stdio},
    time::Duration,
};
use tokio::time::sleep;

#[derive(Debug, Parser)]
#[command(about)]
struct Options {
    #[arg(long, default_value_t = 100)]
    workers: u16,
    /// How long it is watched at rest
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// How many workers are restarted while logs flood
    #[arg(long, default_value_t = 30)]
    restarts: u16,
}

/// The smallest app there is.
const APP: &str =
    "require('node:http').createServer((q, s) => s.end('ok')).listen(process.env.PORT, '127.0.0.1');";
/// 10 MB a second, in lines of a kilobyte: what PM2's daemon passes on to whoever listens.
const FLOOD: &str = "setInterval(() => process.stdout.write(('x'.repeat(999) + '\\n').repeat(100)), 10);";
const PATIENCE: Duration = Duration::from_secs(300);
/// Until what it does only at first is over.
const SETTLES: Duration = Duration::from_secs(10);
const TICKS_A_SECOND: u64 = 100;

/// An edge, ended when it is dropped.
struct Edge(Child);

impl Drop for Edge {
    fn drop(&mut self) {
        e2e::process::end(&mut self.0, Duration::from_secs(10));
    }
}

fn main() -> ExitCode {
    stage::enter(play(Options::parse()))
}

async fn play(options: Options) -> Result<()> {
    let mut site = Site::new("1.22.1").await?;
    let first = ports::row(options.workers)?;
    let addresses: Vec<SocketAddr> = (first..).take(options.workers.into()).map(ports::address).collect();
    let servers: String = addresses.iter().map(|address| format!("server {address}; ")).collect();
    site.write(&format!("upstream app {{ zone app 1m; {servers} handoff; }}\n{}", site.api("write=on")))?;
    site.start().await?;
    let place = site.place();
    let (app, flood) = (place.file("app.js"), place.file("flood.js"));
    fs::write(&app, APP)?;
    fs::write(&flood, FLOOD)?;
    let apps = json!({ "apps": [
        { "name": "app", "script": app, "instances": options.workers, "exec_mode": "fork", "increment_var": "PORT",
          "env": { "PORT": first } },
        { "name": "flood", "script": flood, "autostart": false, "out_file": "/dev/null", "error_file": "/dev/null" },
    ]});
    let pm2 = Pm2::start_file(NEWEST, &place.pm2_home(), &apps, &[]).await?;
    println!("{} workers; sidecar: {}", options.workers, place::handoff()?.display());
    println!(
        "{:14} {:>9} {:>9} {:>8} {:>11} {:>24} {:>24}",
        "", "RSS", "of it own", "threads", "CPU at rest", "told at rest", "told in a flood"
    );

    let sidecar = Sidecar::launch(place)?;
    row("no store", &options, place, &pm2, &sidecar).await?;
    sidecar.stop()?;

    let etcd = Etcd::start(place).await?;
    let store = ["--store".to_owned(), etcd.url()];
    let mut edge = Command::new(place::handoff()?);
    edge.arg("run").args(&store).args(["--role", "edge", "--store-name", "edge1"]);
    edge.envs(sidecar::environment(place)).stdin(Stdio::null()).stderr(Stdio::null());
    let edge = Edge(edge.spawn().context("cannot run handoff")?);
    // The app host answers where commands look for it.
    let gateway = place.file("gateway.sock");
    let more = ["--store-name", "app1", "--store-address", "127.0.0.1", "--control"].map(str::to_owned);
    let more = more.into_iter().chain([format!("unix:{}", gateway.display())]);
    let arguments: Vec<String> = store.into_iter().chain(more).collect();
    let sidecar = Sidecar::launch_on(&Default::default(), place, &arguments)?;
    row("with a store", &options, place, &pm2, &sidecar).await?;
    println!("{:14} {}", "an edge", memory(edge.0.id())?);
    sidecar.stop()?;
    drop(edge);
    site.end().await
}

async fn row(name: &str, options: &Options, place: &Place, pm2: &Pm2, sidecar: &Sidecar) -> Result<()> {
    knows(place, options.workers).await?;
    sleep(SETTLES).await;
    let (before, memory) = (ticks(sidecar.pid())?, memory(sidecar.pid())?);
    sleep(Duration::from_secs(options.seconds)).await;
    let spent = ticks(sidecar.pid())? - before;
    let share = spent as f64 / TICKS_A_SECOND as f64 / options.seconds as f64 * 100.0;
    let calm = restarts(options, place, pm2, 0).await?;
    pm2.run(&["start", "flood"]).await?;
    let flooded = restarts(options, place, pm2, options.restarts).await?;
    pm2.run(&["stop", "flood"]).await?;
    knows(place, options.workers).await?;
    println!("{name:14} {memory} {share:>9.2} % {calm:>24} {flooded:>24}");
    println!("{:14} {}", "… after that", self::memory(sidecar.pid())?);
    Ok(())
}

/// Each of so many workers is restarted: how long it took from PM2's notice until nginx had it.
async fn restarts(options: &Options, place: &Place, pm2: &Pm2, first: u16) -> Result<String> {
    let before = latencies(place)?;
    for worker in first..(first + options.restarts).min(options.workers) {
        pm2.run(&["restart", &worker.to_string()]).await?;
    }
    let after = latencies(place)?;
    let of = |report: &Value, what: &str| report.pointer(&format!("/latency/{what}")).and_then(Value::as_u64);
    let count = of(&after, "count").unwrap_or(0) - of(&before, "count").unwrap_or(0);
    // The last 512: those before are in it, but for the first line.
    let millis = |what| of(&after, what).unwrap_or(0) as f64 / 1000.0;
    Ok(format!("{count}: {:.1} / {:.1} ms", millis("p50"), millis("p99")))
}

/// What the sidecar says of itself.
fn latencies(place: &Place) -> Result<Value> {
    let reports = fs::read_dir(place.file("runtime"))?.flatten().map(|entry| entry.path());
    let mut ours = reports.filter(|path| path.to_string_lossy().contains("/pm2:"));
    Ok(serde_json::from_str(&fs::read_to_string(ours.next().context("no report of the sidecar")?)?)?)
}

/// Until it knows every worker, by its peer.
async fn knows(place: &Place, workers: u16) -> Result<()> {
    wait::until("the sidecar to know every worker", PATIENCE, async || {
        let report = latencies(place).ok()?;
        let all = report.get("workers")?.as_array()?;
        let known = all.iter().filter(|worker| {
            let phase = worker.get("phase").and_then(Value::as_str).unwrap_or_default();
            worker.pointer("/peers/0").is_some() && phase == "serving"
        });
        (known.count() == usize::from(workers)).then_some(())
    })
    .await
}

fn memory(pid: u32) -> Result<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let of = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|line| line.split_ascii_whitespace().next())
            .and_then(|number| number.parse::<u64>().ok())
    };
    let kilobytes = |name| of(name).map(|kb| format!("{:.1} MiB", kb as f64 / 1024.0)).unwrap_or_default();
    let threads = of("Threads:").unwrap_or(0);
    Ok(format!("{:>9} {:>9} {threads:>8}", kilobytes("VmRSS:"), kilobytes("RssAnon:")))
}

/// User and system, of all its threads.
fn ticks(pid: u32) -> Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, after) = stat.rsplit_once(") ").context("no state")?;
    let of = |field: usize| after.split(' ').nth(field).and_then(|ticks| ticks.parse::<u64>().ok());
    Ok(of(11).context("utime")? + of(12).context("stime")?)
}
