//! A repository, a place for releases, PM2 with nothing of ours in it yet, and nginx in front.

#![allow(unreachable_pub, reason = "a module of a test is nobody else's")]

use crate::{
    listing::{Listing, Workers},
    visits::{Account, Visits},
};
use anyhow::{Context, Result, bail, ensure};
use e2e::{
    app::Mode,
    clock::Moment,
    command,
    load::{Answer, Visit},
    place,
    pm2::Pm2,
    ports, process, sidecar,
    site::Site,
    wait,
};
use handoff_wire::PeerState;
use rustix::process::Signal;
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    task::JoinHandle,
    time::timeout,
};

pub const PATIENCE: Duration = Duration::from_secs(60);
/// In the environment of whoever deploys and of the app, and nowhere else.
pub const SECRET: &str = "rosebud-is-a-sledge";
pub const APP: &str = "shop";
pub const WORKERS: u16 = 4;
/// Visits a second.
pub const RATE: u32 = 100;
/// Short, so that a test is.
pub const QUICK: [&str; 6] = ["--watch", "500ms", "--health-timeout", "3s", "--start-timeout", "5s"];

/// Fields are dropped in this order: first those who ask, last those who answer.
pub struct Stage {
    listing: Listing,
    pub pm2: Pm2,
    pub site: Site,
    first_port: u16,
    mode: Mode,
}

/// A deploy while it runs.
#[derive(Debug)]
pub struct Deploy {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    seen: Vec<Value>,
    stderr: JoinHandle<String>,
}

/// How it ended.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub events: Vec<Value>,
    pub stderr: String,
}

// === impl Stage ===

impl Stage {
    pub async fn set(version: &str, mode: Mode, pm2: &'static str) -> Result<Self> {
        let mut site = Site::new(version).await?;
        let ports = if mode == Mode::Fork { WORKERS } else { 1 };
        let first_port = ports::row(ports)?;
        let servers: String =
            (first_port..).take(ports.into()).map(|port| format!("server 127.0.0.1:{port}; ")).collect();
        site.write(&site.usual_with(&format!("{servers} keepalive 16;")))?;
        // Another app of the same PM2, which nobody may touch.
        let other = json!({ "apps": [{
            "name": "other",
            "script": place::root().join("tests/apps/release.js"),
            "env": { "RELEASE": site.file("other"), "ORDERS": site.file("other-orders") },
        }]});
        fs::write(site.file("other"), "good")?;
        let pm2 = Pm2::start_file(pm2, &site.file("pm2"), &other, &[("PM2_CONCURRENT_ACTIONS", "1")]).await?;
        site.start().await?;
        let listing = Listing::new(&site.file("pm2"))?;
        let stage = Self { listing, pm2, site, first_port, mode };
        stage.lay().await?;
        Ok(stage)
    }

    /// With a first release that serves.
    pub async fn serving(version: &str, mode: Mode, pm2: &'static str) -> Result<Self> {
        let stage = Self::set(version, mode, pm2).await?;
        stage.commit("good").await?;
        stage.deploy(&[]).await?.is(0, "done", &[])?;
        stage.is_whole().await?;
        Ok(stage)
    }

    async fn lay(&self) -> Result<()> {
        let source = self.source();
        fs::create_dir_all(&source)?;
        fs::copy(place::root().join("tests/apps/release.js"), source.join("server.js"))?;
        fs::write(source.join("install.sh"), "echo installing; mkdir -p node_modules/.cache\n")?;
        fs::write(source.join("build.sh"), "echo building; mkdir -p dist && cp server.js dist/server.js\n")?;
        fs::write(source.join("ecosystem.config.js"), format!("module.exports = {}\n", self.ecosystem()))?;
        git(&source, &["init", "--quiet", "--initial-branch=main"]).await?;
        fs::create_dir_all(self.path().join("shared"))?;
        fs::write(self.path().join("shared/.env"), format!("PASSWORD={SECRET}\n"))?;
        self.configure("")
    }

    /// With these lines besides.
    pub fn configure(&self, more: &str) -> Result<()> {
        let text = format!(
            "[deploy.shop]\npath = {:?}\nrepository = {:?}\nref = \"main\"\nkeep = 3\n\
             shared = [\".env\", \"node_modules/.cache/\"]\ninstall = \"sh install.sh\"\nbuild = \"sh build.sh\"\n\
             ecosystem = \"ecosystem.config.js\"\nhealth = \"/health\"\nbake = \"4s\"\n{more}\n",
            self.path(),
            self.source()
        );
        Ok(fs::write(self.config(), text)?)
    }

    pub fn config(&self) -> PathBuf {
        self.site.file("handoff.toml")
    }

    pub fn ecosystem(&self) -> Value {
        let mut app = json!({
            "name": APP,
            "cwd": self.path().join("current"),
            "script": "dist/server.js",
            "exec_mode": if self.mode == Mode::Fork { "fork" } else { "cluster" },
            "instances": WORKERS,
            "wait_ready": true,
            "listen_timeout": 4_000,
            "kill_timeout": 8_000,
            "min_uptime": 2_000,
            "max_restarts": 5,
            "env": {
                // In the directory that it was started in.
                "RELEASE": "release",
                "ORDERS": self.site.file("orders"),
                "TROUBLE": self.trouble(),
                "SECRET": SECRET,
                "PORT": self.first_port,
            },
        });
        if let (Mode::Fork, Some(app)) = (self.mode, app.as_object_mut()) {
            app.insert("increment_var".to_owned(), "PORT".into());
        }
        json!({ "apps": [app] })
    }

    pub fn path(&self) -> PathBuf {
        self.site.file("srv")
    }

    pub fn source(&self) -> PathBuf {
        self.site.file("source")
    }

    pub fn trouble(&self) -> PathBuf {
        self.site.file("trouble")
    }

    /// From now on the branch is this release.
    pub async fn commit(&self, words: &str) -> Result<String> {
        fs::write(self.source().join("release"), words)?;
        self.commit_all().await
    }

    pub async fn commit_all(&self) -> Result<String> {
        let source = self.source();
        git(&source, &["add", "."]).await?;
        let name = ["-c", "user.name=a", "-c", "user.email=a@localhost"];
        git(&source, &[&name[..], &["commit", "--quiet", "--allow-empty", "-m", "next"]].concat()).await?;
        git(&source, &["rev-parse", "HEAD"]).await
    }

    pub fn handoff(&self, arguments: &[&str]) -> Result<Command> {
        let mut handoff = command::clean(place::handoff()?);
        handoff
            .args(arguments)
            .arg("--config")
            .arg(self.config())
            .envs(sidecar::environment(self.site.place()));
        handoff.env("USER", "tester").env("SECRET", SECRET);
        Ok(handoff)
    }

    pub fn begin(&self, arguments: &[&str]) -> Result<Deploy> {
        Deploy::start(self.handoff(&[&["deploy", APP, "--json"], &QUICK[..], arguments].concat())?)
    }

    pub async fn deploy(&self, arguments: &[&str]) -> Result<Ended> {
        self.begin(arguments)?.ended().await
    }

    /// What it writes for people.
    pub async fn says(&self, arguments: &[&str]) -> Result<(Option<i32>, String)> {
        let output = self.handoff(arguments)?.output().await?;
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        ensure!(!text.contains(SECRET), "it tells a secret");
        Ok((output.status.code(), text))
    }

    /// Their orders have the same names each time.
    pub fn visited(&self) -> Result<Visits> {
        fs::File::create(self.site.file("orders"))?;
        Ok(Visits::begin(self.site.port(), RATE, &self.site.file("orders")))
    }

    // --- what stands

    pub async fn workers(&self) -> Result<Workers> {
        let all = self.listing.workers().await?;
        Ok(all.into_iter().filter(|(_, worker)| worker.name == APP).collect())
    }

    /// Numbers, instances and ports: what no deploy may change.
    pub async fn identities(&self) -> Result<Vec<String>> {
        Ok(self.workers().await?.values().map(|worker| format!("{:?}", worker.identity())).collect())
    }

    pub async fn other(&self) -> Result<(u32, u64)> {
        let all = self.listing.workers().await?;
        Ok(all.values().find(|worker| worker.name == "other").context("the other app")?.process())
    }

    /// The release that the link leads to.
    pub fn current(&self) -> Result<String> {
        let link = fs::read_link(self.path().join("current"))?;
        Ok(link.file_name().context("a name")?.to_string_lossy().into_owned())
    }

    pub fn releases(&self) -> Result<BTreeSet<String>> {
        let entries = fs::read_dir(self.path().join("releases"))?;
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }

    /// Waits until every worker runs and nginx gives requests to each.
    pub async fn is_whole(&self) -> Result<()> {
        let mut last = None;
        let whole = wait::until("all workers to serve", PATIENCE, async || {
            let (workers, peers) = (self.workers().await.ok()?, self.site.app().await.ok()?);
            let is_whole = workers.len() == usize::from(WORKERS)
                && workers.values().all(|worker| worker.is_online())
                && peers.iter().all(|peer| peer.state == PeerState::Up && peer.marks.is_empty());
            last = Some((workers, peers));
            is_whole.then_some(())
        });
        whole.await.with_context(|| format!("{last:#?}"))
    }

    /// Every worker runs this release, says the kernel, and the link leads there.
    pub async fn runs(&self, release: &str) -> Result<()> {
        self.is_whole().await?;
        ensure!(self.current()? == release, "the link leads to {}, not {release}", self.current()?);
        for (id, worker) in self.workers().await? {
            let cwd = fs::read_link(format!("/proc/{}/cwd", worker.pid))?;
            ensure!(
                cwd.ends_with(Path::new("releases").join(release)),
                "worker {id} runs in {}",
                cwd.display()
            );
        }
        Ok(())
    }

    /// The last of the records.
    pub fn record(&self) -> Result<Value> {
        let text = fs::read_to_string(self.path().join("deploys.jsonl"))?;
        ensure!(!text.contains(SECRET), "a secret is on record");
        Ok(serde_json::from_str(text.lines().last().context("no record")?)?)
    }

    /// What is there, but for the copy of the repository.
    pub async fn tree(&self) -> Result<String> {
        let mut find = command::clean("find");
        find.arg(self.path()).args(["-printf", "%p %y %l %T@ %s\n"]);
        let mut lines: Vec<String> =
            command::succeed(&mut find).await?.lines().map(ToOwned::to_owned).collect();
        lines.sort();
        Ok(lines.join("\n"))
    }

    pub async fn end(self) -> Result<()> {
        drop(self.pm2);
        self.site.end().await
    }
}

pub async fn git(directory: &Path, arguments: &[&str]) -> Result<String> {
    let mut git = command::clean("git");
    git.arg("-C").arg(directory).args(arguments).env("GIT_CONFIG_GLOBAL", "/dev/null");
    Ok(command::succeed(&mut git).await?.trim().to_owned())
}

// === impl Deploy ===

impl Deploy {
    fn start(mut command: Command) -> Result<Self> {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let lines = BufReader::new(child.stdout.take().context("no output")?).lines();
        let mut stderr = child.stderr.take().context("no output")?;
        let stderr = tokio::spawn(async move {
            let mut text = String::new();
            _ = stderr.read_to_string(&mut text).await;
            text
        });
        Ok(Self { child, lines, seen: Vec::new(), stderr })
    }

    pub fn signal(&self, signal: Signal) {
        self.child.id().into_iter().for_each(|pid| process::signal(pid, signal));
    }

    /// Reads on until a stage has begun.
    pub async fn reaches(&mut self, stage: &str) -> Result<()> {
        self.tells(|event| is(event, "stage", stage) && is(event, "state", "begun"))
            .await
            .context(stage.to_owned())
    }

    /// Reads on until it tells of a worker that has come so far.
    pub async fn reaches_step(&mut self, worker: u32, step: &str) -> Result<()> {
        self.tells(|event| is(event, "worker", worker) && is(event, "step", step))
            .await
            .context(step.to_owned())
    }

    async fn tells(&mut self, wanted: impl Fn(&Value) -> bool) -> Result<()> {
        loop {
            let Some(event) = self.next().await? else { bail!("it ended before that: {:#?}", self.seen) };
            if wanted(&event) {
                return Ok(());
            }
        }
    }

    pub async fn ended(mut self) -> Result<Ended> {
        while self.next().await?.is_some() {}
        let status = timeout(PATIENCE, self.child.wait()).await.context("it does not end")??;
        let ended = Ended { code: status.code(), events: self.seen, stderr: self.stderr.await? };
        ensure!(!format!("{ended:?}").contains(SECRET), "it tells a secret");
        Ok(ended)
    }

    async fn next(&mut self) -> Result<Option<Value>> {
        let line = timeout(PATIENCE, self.lines.next_line()).await;
        let line = line.with_context(|| format!("it says nothing more after {:#?}", self.seen))??;
        let event: Option<Value> = line.map(|line| serde_json::from_str(&line)).transpose()?;
        self.seen.extend(event.clone());
        Ok(event)
    }
}

fn is(event: &Value, name: &str, wanted: impl Into<Value>) -> bool {
    event.get(name) == Some(&wanted.into())
}

// === impl Ended ===

impl Ended {
    /// It ended in this way and says all of these words.
    pub fn is(self, code: i32, outcome: &str, words: &[&str]) -> Result<Self> {
        let shown = || {
            let told = self.events.iter().filter(|event| !is(event, "event", "traffic"));
            told.map(|event| format!("{event}\n")).collect::<String>() + &self.stderr
        };
        ensure!(self.code == Some(code), "exit {:?}, not {code}: {}", self.code, shown());
        let end = self.end().cloned().unwrap_or_default();
        ensure!(is(&end, "outcome", outcome), "it is not {outcome}: {}", shown());
        for word in words {
            ensure!(self.text().contains(word), "{word:?} is not said: {}", shown());
        }
        eprintln!("exit {code}, {outcome}: {}", self.text());
        Ok(self)
    }

    pub fn end(&self) -> Option<&Value> {
        self.events.iter().find(|event| is(event, "event", "deployed"))
    }

    pub fn text(&self) -> &str {
        self.end().and_then(|end| end.get("text")?.as_str()).unwrap_or(&self.stderr)
    }

    /// The stages that it went through, in this order, and whether each went well.
    pub fn stages(&self) -> Vec<(String, bool)> {
        let stages =
            self.events.iter().filter(|event| is(event, "event", "stage") && !is(event, "state", "begun"));
        stages
            .filter_map(|event| Some((event.get("stage")?.as_str()?.to_owned(), is(event, "state", "done"))))
            .collect()
    }

    /// What it shows of the output of a hook that failed.
    pub fn log(&self) -> String {
        let failed = self.events.iter().find(|event| is(event, "state", "failed"));
        failed.and_then(|failed| failed.get("log")).map(Value::to_string).unwrap_or_default()
    }
}

// === impl Account ===

impl Account {
    /// Every visit is accounted for: what failed is what the app itself answered, in this time, and not more often than so.
    pub fn failed_by_the_app(&self, since: Moment, until: Moment, most: usize) -> Result<usize> {
        self.print();
        let failed: Vec<&Visit> = self.failed().collect();
        let is_the_apps = |visit: &&&Visit| {
            let by_app =
                matches!(visit.answer, Answer::Status { code, worker: Some(_) } if code.as_u16() == 500);
            by_app && visit.due + visit.latency >= since && visit.due <= until
        };
        let others: Vec<&&Visit> = failed.iter().filter(|visit| !is_the_apps(visit)).collect();
        ensure!(others.is_empty(), "not the app's: {others:#?}");
        ensure!(failed.len() <= most, "{} failed, more than {most}", failed.len());
        self.every_order_once()?;
        Ok(failed.len())
    }
}
