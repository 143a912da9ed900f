//! What `handoff run` costs beside a hundred workers: memory, CPU at rest, and how fast it tells nginx while apps flood PM2
//! with their logs; without a store and with one. Real PM2, real nginx, real etcd.

use anyhow::{Context, Result};
use clap::Parser;
use e2e::{
    etcd::Etcd,
    place::{self, Place},
    pm2::{NEWEST, Pm2},
    ports, process,
    sidecar::{self, Sidecar},
    site::Site,
    speed::figures::Table,
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
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// How many workers are restarted, and as many while logs flood
    #[arg(long, default_value_t = 10)]
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
    let mut table = Table::new(&[
        &format!("{} workers", options.workers),
        "RSS, MiB",
        "of it its own",
        "used in that time",
        "RSS after restarts",
        "CPU at rest, of one",
        "told, ms: p50 / p99",
        "in a flood of logs",
    ]);
    for name in ["no store", "no store, again"] {
        row(&mut table, name, &options, place, &pm2, &[]).await?;
    }

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
    row(&mut table, "with a store", &options, place, &pm2, &arguments).await?;
    let [rss, own] = memory(edge.0.id())?;
    table.row(["an edge".to_owned(), mebibytes(rss), mebibytes(own)]);
    println!("{table}");
    drop(edge);
    site.end().await
}

async fn row(
    table: &mut Table,
    name: &str,
    options: &Options,
    place: &Place,
    pm2: &Pm2,
    arguments: &[String],
) -> Result<()> {
    eprintln!("{name}");
    let sidecar = Sidecar::launch_on(&Default::default(), place, arguments)?;
    knows(place, options.workers).await?;
    sleep(SETTLES).await;
    let pid = sidecar.pid();
    let (before, [rss, own]) = (ticks(pid)?, memory(pid)?);
    forget_uses(pid)?;
    sleep(Duration::from_secs(options.seconds)).await;
    let (spent, used) = (ticks(pid)? - before, used(pid)?);
    let share = spent as f64 / TICKS_A_SECOND as f64 / options.seconds as f64 * 100.0;
    let calm = restarts(options, place, pm2).await?;
    let [after, _] = memory(pid)?;
    sidecar.stop()?;

    // Another one, so that it has told nobody of anything before.
    pm2.run(&["start", "flood"]).await?;
    let sidecar = Sidecar::launch_on(&Default::default(), place, arguments)?;
    knows(place, options.workers).await?;
    let flooded = restarts(options, place, pm2).await?;
    pm2.run(&["stop", "flood"]).await?;
    sidecar.stop()?;

    let share = format!("{share:.2} %");
    let sizes = [rss, own, used, after].map(mebibytes);
    table.row([name.to_owned()].into_iter().chain(sizes).chain([share, calm, flooded]));
    Ok(())
}

/// Workers are restarted: how long it took from PM2's notice until nginx had it, as the sidecar says of itself.
async fn restarts(options: &Options, place: &Place, pm2: &Pm2) -> Result<String> {
    for worker in 0..options.restarts.min(options.workers) {
        pm2.run(&["restart", &worker.to_string()]).await?;
    }
    knows(place, options.workers).await?;
    // It says so once a second.
    sleep(Duration::from_secs(2)).await;
    let report = report(place)?;
    let of = |what: &str| report.pointer(&format!("/latency/{what}")).and_then(Value::as_u64).unwrap_or(0);
    let millis = |what| of(what) as f64 / 1000.0;
    Ok(format!("{:.1} / {:.1} (of {})", millis("p50"), millis("p99"), of("count")))
}

/// What the sidecar says of itself.
fn report(place: &Place) -> Result<Value> {
    let reports = fs::read_dir(place.file("runtime"))?.flatten().map(|entry| entry.path());
    let mut ours = reports.filter(|path| path.to_string_lossy().contains("/pm2:"));
    Ok(serde_json::from_str(&fs::read_to_string(ours.next().context("no report of the sidecar")?)?)?)
}

/// Until it knows every worker, by its peer.
async fn knows(place: &Place, workers: u16) -> Result<()> {
    wait::until("the sidecar to know every worker", PATIENCE, async || {
        let report = report(place).ok()?;
        let all = report.get("workers")?.as_array()?;
        let known = all.iter().filter(|worker| {
            let phase = worker.get("phase").and_then(Value::as_str).unwrap_or_default();
            worker.pointer("/peers/0").is_some() && phase == "serving"
        });
        (known.count() == usize::from(workers)).then_some(())
    })
    .await
}

/// All that is mapped in, and of it what no file has; in kB.
fn memory(pid: u32) -> Result<[u64; 2]> {
    process::kilobytes(pid, "status", ["VmRSS:", "RssAnon:"])
}

/// From now on the kernel notes which pages are used.
fn forget_uses(pid: u32) -> Result<()> {
    Ok(fs::write(format!("/proc/{pid}/clear_refs"), "1")?)
}

/// In kB. The kernel maps more of a file than is asked for: that counts as resident, and is not in this.
fn used(pid: u32) -> Result<u64> {
    let [used] = process::kilobytes(pid, "smaps_rollup", ["Referenced:"])?;
    Ok(used)
}

fn mebibytes(kilobytes: u64) -> String {
    format!("{:.1}", kilobytes as f64 / 1024.0)
}

/// User and system, of all its threads.
fn ticks(pid: u32) -> Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, after) = stat.rsplit_once(") ").context("no state")?;
    let of = |field: usize| after.split(' ').nth(field).and_then(|ticks| ticks.parse::<u64>().ok());
    Ok(of(11).context("utime")? + of(12).context("stime")?)
}
