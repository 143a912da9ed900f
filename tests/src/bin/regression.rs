//! nginx's own test suite, test by test: whether nginx with the module does what stock nginx does.
//!
//! Each test of the suite that passes requests on runs five times: with stock nginx; with the module loaded and unused;
//! and, after every address was given an upstream block of its own with a zone, with stock nginx again, with `handoff` in
//! every block, and with `handoff_reuse always`, too. What the lines of a test say must not differ.

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use e2e::{command, nginx::Binary, place, process, site::VERSIONS};
use rustix::process::{Pid, Signal, kill_process_group};
use std::{
    collections::BTreeMap,
    fs,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};
use tempfile::TempDir;
use tokio::{sync::Semaphore, task::JoinSet, time::timeout};

#[derive(Parser)]
#[command(about = "Runs nginx's own tests with and without the module, and compares")]
struct Arguments {
    /// A checkout of github.com/nginx/nginx-tests
    #[arg(long)]
    suite: PathBuf,
    /// nginx's version or path, as often as there are nginx to try; all that the build makes if absent
    #[arg(long)]
    nginx: Vec<String>,
    /// Only tests whose names begin so
    #[arg(long)]
    only: Vec<String>,
    /// How many run at a time
    #[arg(long, default_value_t = 4)]
    jobs: usize,
}

/// What nginx is when a test runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Setup {
    Stock,
    /// The module is there, and nobody uses it.
    Loaded,
    /// Stock nginx, with an upstream block and a zone wherever requests are passed to an address.
    Named,
    /// The same, with `handoff` in every block.
    Handoff,
    /// The same, where connections are used again as by stock nginx.
    Always,
}

/// Each, and what it is compared with.
const PAIRS: [(Setup, Setup); 3] =
    [(Setup::Stock, Setup::Loaded), (Setup::Named, Setup::Handoff), (Setup::Named, Setup::Always)];

const SETUPS: [Setup; 5] = [Setup::Stock, Setup::Loaded, Setup::Named, Setup::Handoff, Setup::Always];

/// What passes requests on. Mail and stream have no upstream blocks of ours.
const PASSES: [&str; 6] =
    ["proxy_pass", "fastcgi_pass", "scgi_pass", "uwsgi_pass", "grpc_pass", "memcached_pass"];

/// Where two differ: so often they run again, alone, before that is believed.
const AGAIN: usize = 3;
const PATIENCE: Duration = Duration::from_secs(120);

/// What stands before each test of the suite.
const HOOK: &str = include_str!("../regression/Handoff.pm");

/// What one run of a test said, without the words that are only for people.
type Said = Vec<String>;

struct Suite {
    folder: PathBuf,
    hook: PathBuf,
}

/// One nginx, as the suite is to run it.
struct Bench {
    suite: Suite,
    nginx: Binary,
    module: PathBuf,
}

#[tokio::main(flavor = "multi_thread")]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let versions: Vec<String> = match arguments.nginx.as_slice() {
        [] => VERSIONS.map(str::to_owned).to_vec(),
        some => some.to_vec(),
    };
    let mut differ = 0;
    for version in versions {
        differ += compare(&arguments, &version).await?;
    }
    ensure!(differ == 0, "{differ} tests say something else with the module");
    Ok(())
}

/// How many tests of the suite differ over this nginx.
async fn compare(arguments: &Arguments, version: &str) -> Result<usize> {
    let nginx = Binary::find(Some(version)).await?;
    let suite = Suite::at(&arguments.suite)?;
    let tests = suite.tests(&arguments.only)?;
    let bench = Arc::new(Bench { module: place::module(&nginx.version)?, suite, nginx });
    println!("nginx {}: {} tests of the suite pass requests on", bench.nginx.version, tests.len());
    let begun = Instant::now();
    let said = bench.all(&tests, arguments.jobs).await?;
    println!("{:30} {:>8} {:>8} {:>8} {:>8} {:>8}", "", "tests", "skipped", "passed", "lines", "failed");
    for setup in SETUPS {
        let of_setup = || said.iter().filter(|((of, _), _)| *of == setup).map(|(_, said)| said);
        let lines = || of_setup().flatten().filter(|line| line.starts_with("ok") || is_failure(line));
        println!(
            "{:30} {:8} {:8} {:8} {:8} {:8}",
            format!("{setup:?}").to_lowercase(),
            of_setup().count(),
            of_setup().filter(is_skipped).count(),
            of_setup().filter(has_passed).count(),
            lines().count(),
            lines().filter(|line| is_failure(line)).count(),
        );
    }
    // Two that fail alike prove nothing. The suite asks for more than an older nginx can.
    let stock = said.iter().filter(|((of, _), _)| *of == Setup::Stock).map(|(_, said)| said);
    let (run, passed) =
        (stock.clone().filter(|said| !is_skipped(said)).count(), stock.filter(has_passed).count());
    ensure!(passed * 3 >= run * 2, "of {run} tests stock nginx passes only {passed}: what do they lack?");
    let (mut differ, mut unsteady) = (0, 0);
    for test in &tests {
        for (stock, ours) in PAIRS {
            if said.get(&(stock, test.clone())) == said.get(&(ours, test.clone())) {
                continue;
            }
            match bench.differs(test, stock, ours).await? {
                Some(lines) => {
                    differ += 1;
                    println!("{test}: {ours:?} is not {stock:?}\n{lines}");
                }
                None => {
                    unsteady += 1;
                    println!(
                        "{test}: {ours:?} was not {stock:?} once, among others; alone, {AGAIN} times, it is"
                    );
                }
            }
        }
    }
    println!(
        "nginx {}: {differ} differ, {unsteady} did once, {} s\n",
        bench.nginx.version,
        begun.elapsed().as_secs()
    );
    Ok(differ)
}

fn is_skipped(said: &&Said) -> bool {
    said.iter().any(|line| line.starts_with("1..0"))
}

fn has_passed(said: &&Said) -> bool {
    !is_skipped(said) && said.iter().any(|line| line == "exit 0")
}

fn is_failure(line: &str) -> bool {
    line.starts_with("not ok") && !line.contains("# TODO")
}

// === impl Suite ===

impl Suite {
    fn at(folder: &Path) -> Result<Self> {
        let folder = folder.canonicalize().with_context(|| format!("no {}", folder.display()))?;
        let hook = place::target("regression");
        fs::create_dir_all(&hook)?;
        fs::write(hook.join("Handoff.pm"), HOOK)?;
        Ok(Self { folder, hook })
    }

    /// The tests that pass requests on.
    fn tests(&self, only: &[String]) -> Result<Vec<String>> {
        let mut tests = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let wanted = only.is_empty() || only.iter().any(|begin| name.starts_with(begin.as_str()));
            if !wanted
                || !name.ends_with(".t")
                || ["stream_", "mail_"].iter().any(|kind| name.starts_with(kind))
            {
                continue;
            }
            let text = String::from_utf8_lossy(&fs::read(entry.path())?).into_owned();
            if PASSES.iter().any(|directive| text.contains(directive)) {
                tests.push(name);
            }
        }
        tests.sort();
        ensure!(!tests.is_empty(), "{} holds no such test", self.folder.display());
        Ok(tests)
    }
}

// === impl Bench ===

impl Bench {
    /// Every test in every set-up, some at a time.
    async fn all(self: &Arc<Self>, tests: &[String], jobs: usize) -> Result<BTreeMap<(Setup, String), Said>> {
        let places = Arc::new(Semaphore::new(jobs));
        let mut runs = JoinSet::new();
        // The set-ups of one test one after the other: what the machine does beside befalls them alike.
        for test in tests {
            for setup in SETUPS {
                let (bench, places, test) = (Arc::clone(self), Arc::clone(&places), test.clone());
                runs.spawn(async move {
                    let _place = places.acquire().await?;
                    anyhow::Ok(((setup, test.clone()), bench.run(&test, setup).await?))
                });
            }
        }
        let mut said = BTreeMap::new();
        while let Some(run) = runs.join_next().await {
            let (what, lines) = run??;
            said.insert(what, lines);
        }
        Ok(said)
    }

    /// The lines in which they differ when each runs alone, if they do.
    async fn differs(&self, test: &str, stock: Setup, ours: Setup) -> Result<Option<String>> {
        for _ in 0..AGAIN {
            let (before, after) = (self.run(test, stock).await?, self.run(test, ours).await?);
            if before != after {
                return Ok(Some(difference(&before, &after)));
            }
        }
        Ok(None)
    }

    async fn run(&self, test: &str, setup: Setup) -> Result<Said> {
        // The master is root where we are, and the suite's folder is its own user's only.
        let user = if rustix::process::geteuid().is_root() { "user root; " } else { "" };
        let module = match setup {
            Setup::Stock | Setup::Named => String::new(),
            _ => format!("load_module {}; ", self.module.display()),
        };
        let mut perl = command::clean("perl");
        perl.arg("-Ilib").arg("-I").arg(&self.suite.hook).args(["-MHandoff", test]);
        perl.current_dir(&self.suite.folder)
            .env("TEST_NGINX_BINARY", &self.nginx.path)
            .env("TEST_NGINX_MODULES", "/usr/lib/nginx/modules")
            .env("TEST_NGINX_GLOBALS", format!("{user}{module}"))
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        match setup {
            Setup::Stock | Setup::Loaded => {}
            Setup::Named => _ = perl.env("HANDOFF_UPSTREAM", ""),
            Setup::Handoff => _ = perl.env("HANDOFF_UPSTREAM", "handoff;"),
            Setup::Always => _ = perl.env("HANDOFF_UPSTREAM", "handoff; handoff_reuse always;"),
        }
        let place = TempDir::with_prefix("suite-")?;
        let child = perl.env("TMPDIR", place.path()).process_group(0).spawn()?;
        let group = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
        if let Ok(output) = timeout(PATIENCE, child.wait_with_output()).await {
            return said(&output?);
        }
        // nginx is in a session of its own.
        for entry in fs::read_dir(place.path())? {
            let master = fs::read_to_string(entry?.path().join("nginx.pid")).ok();
            if let Some(master) = master.and_then(|pid| pid.trim().parse().ok()) {
                process::signal(master, Signal::TERM);
            }
        }
        if let Some(group) = group {
            _ = kill_process_group(group, Signal::KILL);
        }
        Ok(vec![format!("did not end within {} s", PATIENCE.as_secs())])
    }
}

/// The lines of a test's outcome; what follows a `#` alone is for people.
fn said(output: &Output) -> Result<Said> {
    if let Some(signal) = output.status.signal() {
        bail!("perl was ended by signal {signal}");
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let tells =
        |line: &&str| ["ok ", "not ok ", "1..", "Bail out!"].iter().any(|begin| line.starts_with(begin));
    let mut said: Said = text.lines().filter(tells).map(str::to_owned).collect();
    said.push(format!("exit {}", output.status.code().unwrap_or_default()));
    Ok(said)
}

fn difference(before: &Said, after: &Said) -> String {
    let only = |sign: char, these: &Said, those: &Said| -> Vec<String> {
        these.iter().filter(|line| !those.contains(line)).map(|line| format!("  {sign} {line}")).collect()
    };
    [only('-', before, after), only('+', after, before)].concat().join("\n")
}
