//! An app host and two nginx hosts that know of each other through etcd: here they are three sidecars on one machine, and
//! each has nothing of the others' but what stands in the store.

#![allow(dead_code, unreachable_pub)]

use anyhow::{Context, Result, ensure};
use e2e::{
    app::{App, Behaviour, Mode},
    command,
    etcd::{Etcd, Tls},
    load::{Load, Visit},
    orders::Orders,
    place,
    pm2::{NEWEST, Pm2},
    ports, process,
    site::{PATIENCE, Site, VERSIONS},
    wait,
};
use handoff_wire::{PeerState, State, Upstreams};
use rustix::process::Signal;
use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

pub const EDGES: [&str; 2] = ["edge1", "edge2"];
const RATE: u32 = 60;

pub struct Fleet {
    // Ends first: who stands in the store leaves before it does.
    host: Option<Child>,
    pub edges: Vec<Option<Child>>,
    pub etcd: Etcd,
    pub sites: Vec<Site>,
    pub pm2: Pm2,
    pub app: App,
    tls: Option<Tls>,
    /// Where the first sidecar's metrics are, then the next one's.
    metrics: u16,
    /// What the app host's sidecar is told besides.
    arguments: Vec<String>,
    /// An nginx of its own on the app host.
    is_both: bool,
}

/// What a fleet is made of.
pub struct Plan {
    pub tls: bool,
    pub mode: Mode,
    pub workers: u16,
    /// Without signal handlers, and with the preload instead.
    pub preload: bool,
    /// What stands in the upstream: `@servers@` is every worker of the app host.
    pub upstream: String,
}

impl Default for Plan {
    fn default() -> Self {
        let upstream = "@servers@ keepalive 8;".to_owned();
        Self { tls: false, mode: Mode::Fork, workers: 2, preload: false, upstream }
    }
}

/// How a command ended.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Fleet {
    /// Everybody is there, and nginx has every worker up.
    pub async fn new() -> Result<Self> {
        let mut fleet = Self::silent(false).await?;
        fleet.begin().await?;
        Ok(fleet)
    }

    /// nginx, PM2 and etcd, and nobody who tells them of each other.
    pub async fn silent(tls: bool) -> Result<Self> {
        Self::of(Plan { tls, ..Plan::default() }).await
    }

    pub async fn of(plan: Plan) -> Result<Self> {
        let mut sites = Vec::new();
        for version in VERSIONS {
            sites.push(Site::new(version).await?);
        }
        let first = sites.first().context("a site")?;
        let tls = match plan.tls {
            true => Some(Tls::new(first.place(), &["etcd", "root", "app1", "edge1", "edge2"]).await?),
            false => None,
        };
        let etcd = Etcd::start_with(first.place(), tls.clone()).await?;
        let behaviour = if plan.preload { Behaviour::Naive } else { Behaviour::Graceful };
        let mut app = App::new(behaviour, plan.mode, plan.workers, &first.file(""))?;
        app.preload = plan.preload.then(|| first.file("runtime/preload.sock"));
        let pm2 = Pm2::start(NEWEST, &first.file("pm2"), &app).await?;
        app.answers().await?;
        let servers: String = app.addresses().iter().map(|address| format!("server {address}; ")).collect();
        for site in &mut sites {
            site.write(&site.usual_with(&plan.upstream.replace("@servers@", &servers)))?;
            site.start().await?;
        }
        let (edges, arguments, metrics) = (vec![None, None], Vec::new(), ports::row(3)?);
        Ok(Self { host: None, edges, etcd, sites, pm2, app, tls, metrics, arguments, is_both: false })
    }

    pub async fn begin(&mut self) -> Result<()> {
        for edge in usize::from(self.is_both)..EDGES.len() {
            self.start_edge(edge)?;
        }
        self.start_host()?;
        self.is_whole().await
    }

    /// Both nginx are in the store, and the app host knows its workers at both.
    pub async fn is_whole(&self) -> Result<()> {
        let whole = wait::until("the app host to know its workers at both nginx", PATIENCE * 2, async || {
            let status = self.handoff(&["status", "--json"]).await.ok()?;
            let status: serde_json::Value = serde_json::from_str(&status.stdout).ok()?;
            let level = status.pointer("/daemons/0/apps/0/level")?.as_str()?.to_owned();
            let keys = self.etcd.dump().await.ok()?;
            let is_in = |edge: &&str| keys.contains(&format!("/edges/{edge}\n"));
            let wanted = if self.app.preload.is_some() { "L2" } else { "L0" };
            let is_heard = self.view().await.is_ok();
            (level == wanted && is_heard && EDGES.iter().all(is_in) && self.all_up().await).then_some(())
        });
        whole.await.with_context(|| self.logs())
    }

    pub async fn all_up(&self) -> bool {
        for site in &self.sites {
            let Ok(peers) = site.app().await else { return false };
            if peers.len() != self.app.addresses().len()
                || peers.iter().any(|peer| peer.state != PeerState::Up)
            {
                return false;
            }
        }
        true
    }

    pub fn site(&self, edge: usize) -> Result<&Site> {
        self.sites.get(edge).context("a site")
    }

    /// Waits until a worker is that at an nginx.
    pub async fn sees(&self, edge: usize, state: PeerState) -> Result<()> {
        let site = self.site(edge)?;
        wait::until("nginx to be told", PATIENCE, async || {
            site.app().await.ok()?.iter().any(|peer| peer.state == state).then_some(())
        })
        .await
        .with_context(|| self.logs())
    }

    /// The processes of the workers, as PM2 has them.
    pub async fn pids(&self) -> Result<Vec<u64>> {
        let list: serde_json::Value = serde_json::from_str(&self.pm2.run(&["jlist"]).await?)?;
        let apps = list.as_array().context("a list")?.iter();
        Ok(apps.filter_map(|app| app.get("pid")?.as_u64()).collect())
    }

    pub fn control(&self, edge: usize) -> Result<String> {
        Ok(format!("unix:{}", self.site(edge)?.socket().display()))
    }

    /// What an owner that chooses says through the app host.
    pub async fn mark(&self, peer: &str, state: State) -> Result<()> {
        let marks = serde_json::json!({"owner": "rollout:test", "marks": [{"peer": peer, "state": state}]});
        let door = e2e::door::Door::Unix(self.gateway()?);
        let reply = door.ask(hyper::Method::PUT, handoff_wire::path::MARKS, marks.to_string()).await?;
        reply.json::<handoff_wire::Ack>().map(drop)
    }

    pub fn host_rss(&self) -> Option<u64> {
        process::resident(self.host.as_ref()?.id())
    }

    pub fn edge_rss(&self, edge: usize) -> Option<u64> {
        process::resident(self.edges.get(edge)?.as_ref()?.id())
    }

    /// The roles of docs/operations/many-hosts.md.
    pub async fn enable_users(&mut self) -> Result<()> {
        let root = "/handoff/v1/default";
        let roles = [
            (
                "app1",
                vec![
                    ("readwrite", format!("{root}/hosts/app1"), false),
                    ("readwrite", format!("{root}/members/app1"), false),
                    ("readwrite", format!("{root}/workers/app1/"), true),
                    ("read", format!("{root}/edges/"), true),
                    ("read", format!("{root}/acks/app1/"), true),
                ],
            ),
            (
                "edge",
                vec![
                    ("readwrite", format!("{root}/acks/"), true),
                    ("readwrite", format!("{root}/edges/"), true),
                    ("readwrite", format!("{root}/members/"), true),
                    ("read", format!("{root}/hosts/"), false),
                ],
            ),
        ];
        for (role, permissions) in roles {
            self.etcd.ctl(&["role", "add", role]).await?;
            for (what, key, is_prefix) in permissions {
                let mut grant = vec!["role", "grant-permission", role, what, &key];
                let end = format!("{root}/workers0");
                match (is_prefix, what) {
                    (true, _) => grant.push("--prefix=true"),
                    // All that app hosts say is one range.
                    (false, "read") => grant.push(&end),
                    _ => {}
                }
                self.etcd.ctl(&grant).await?;
            }
        }
        for (user, role) in [("root", "root"), ("app1", "app1"), ("edge1", "edge"), ("edge2", "edge")] {
            self.etcd.ctl(&["user", "add", &format!("{user}:{user}{user}")]).await?;
            if user == "root" {
                // It may be there already.
                _ = self.etcd.ctl(&["role", "add", "root"]).await;
            }
            self.etcd.ctl(&["user", "grant-role", user, role]).await?;
        }
        self.etcd.ctl(&["auth", "enable"]).await?;
        self.etcd.login("root:rootroot");
        Ok(())
    }

    pub fn start_edge(&mut self, edge: usize) -> Result<()> {
        let name = EDGES.get(edge).context("an edge")?;
        let site = self.site(edge)?;
        let control = format!("unix:{}", site.socket().display());
        let child = self.spawn(site, name, &["--role", "edge", "--control", &control])?;
        *self.edges.get_mut(edge).context("an edge")? = Some(child);
        Ok(())
    }

    pub fn start_host(&mut self) -> Result<()> {
        let mut arguments = vec!["--store-address", "127.0.0.1"];
        arguments.extend(self.arguments.iter().map(String::as_str));
        let site = self.site(0)?;
        let (control, gateway) = (self.control(0)?, format!("unix:{}", self.gateway()?.display()));
        let name = if self.is_both { EDGES[0] } else { "app1" };
        if self.is_both {
            arguments.extend(["--role", "both", "--control", &control, "--store-socket", &gateway]);
        }
        self.host = Some(self.spawn(site, name, &arguments)?);
        Ok(())
    }

    /// From here on one process is both the app host and the first nginx's edge.
    pub fn be_both(&mut self) {
        self.is_both = true;
    }

    /// The app host brings its workers, instead of nginx.conf naming them.
    pub fn bring(&mut self, more: &[&str]) -> Result<()> {
        let file = bring(self.site(0)?, "app1", &self.app)?;
        self.arguments = vec!["--config".into(), file.display().to_string()];
        self.arguments.extend(more.iter().map(|&word| word.to_owned()));
        Ok(())
    }

    /// The app host's sidecar as it would be without a store: beside the first nginx.
    pub fn start_alone(&mut self) -> Result<()> {
        let control = format!("unix:{}", self.site(0)?.socket().display());
        let mut handoff = Command::new(place::handoff()?);
        handoff.arg("run").envs(self.environment()).env("HANDOFF_CONTROL", control);
        self.host = Some(self.logged("app1", &mut handoff)?);
        Ok(())
    }

    fn spawn(&self, site: &Site, name: &str, arguments: &[&str]) -> Result<Child> {
        let mut handoff = Command::new(place::handoff()?);
        handoff.arg("run").args(["--store", &self.etcd.url(), "--store-name", name]).args(arguments);
        handoff.arg("--store-metrics").arg(self.metrics(name).to_string());
        if let Some(tls) = &self.tls {
            handoff.arg("--store-ca").arg(tls.ca());
            handoff.arg("--store-cert").arg(tls.cert(name)).arg("--store-key").arg(tls.key(name));
            handoff.args(["--store-user", name, "--store-password-file"]).arg(self.password(name)?);
        }
        handoff.envs(self.environment()).env("HANDOFF_STATE_DIR", site.file("state"));
        self.logged(name, &mut handoff)
    }

    /// Where a sidecar tells them.
    pub fn metrics(&self, name: &str) -> SocketAddr {
        let after = EDGES.iter().position(|edge| *edge == name).map_or(0, |edge| edge as u16 + 1);
        ports::address(self.metrics + after)
    }

    pub fn edge(&self, edge: usize) -> Result<u32> {
        Ok(self.edges.get(edge).and_then(Option::as_ref).context("an edge that runs")?.id())
    }

    /// A file with the password of a user: the name, twice.
    fn password(&self, name: &str) -> Result<PathBuf> {
        let file = self.site(0)?.file(&format!("{name}.password"));
        fs::write(&file, format!("{name}{name}\n"))?;
        Ok(file)
    }

    fn logged(&self, name: &str, handoff: &mut Command) -> Result<Child> {
        let log = self.site(0)?.file(&format!("{name}.log"));
        let log = fs::File::options().create(true).append(true).open(log)?;
        Ok(handoff.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn()?)
    }

    pub fn log(&self, name: &str) -> String {
        let log = self.site(0).map(|site| site.file(&format!("{name}.log")));
        log.ok().and_then(|log| fs::read_to_string(log).ok()).unwrap_or_default()
    }

    pub fn logs(&self) -> String {
        ["app1", "app2", "app3", "edge1", "edge2"]
            .map(|name| format!("--- {name}\n{}", self.log(name)))
            .concat()
    }

    fn gateway(&self) -> Result<PathBuf> {
        Ok(self.site(0)?.file("gateway.sock"))
    }

    fn environment(&self) -> Vec<(&'static str, OsString)> {
        let file = |name: &str| self.site(0).map(|site| site.file(name)).unwrap_or_default();
        vec![
            ("PM2_HOME", file("pm2").into()),
            ("HANDOFF_CONTROL", format!("unix:{}", file("gateway.sock").display()).into()),
            ("HANDOFF_RUNTIME_DIR", file("runtime").into()),
            ("HANDOFF_STATE_DIR", file("state").into()),
        ]
    }

    /// A command as an operator types it on the app host.
    pub async fn handoff(&self, arguments: &[&str]) -> Result<Ended> {
        run(arguments, self.environment()).await
    }

    /// Starts a command on the app host.
    pub fn begin_handoff(&self, arguments: &[&str]) -> Result<tokio::process::Child> {
        let mut handoff = command::clean(place::handoff()?);
        handoff.args(arguments).envs(self.environment());
        Ok(handoff.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?)
    }

    /// What the app host's end says of all nginx.
    pub async fn view(&self) -> Result<Upstreams> {
        let door = e2e::door::Door::Unix(self.gateway()?);
        let reply = door.ask(hyper::Method::GET, handoff_wire::path::UPSTREAMS, String::new()).await?;
        reply.json()
    }

    pub fn kill_edge(&mut self, edge: usize) -> Result<()> {
        kill(self.edges.get_mut(edge).and_then(Option::take))
    }

    pub fn kill_host(&mut self) -> Result<()> {
        kill(self.host.take())
    }

    /// Visitors of both nginx.
    pub fn load(&self) -> Vec<Load> {
        self.sites.iter().map(|site| Load::start(ports::address(site.port()), RATE)).collect()
    }

    pub fn orders(&self) -> Result<Orders> {
        Orders::read(&self.app.orders())
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        for child in self.edges.iter_mut().flatten().chain(&mut self.host) {
            process::end(child, PATIENCE);
        }
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
    }
}

/// A configuration that names the workers of an app.
fn bring(site: &Site, name: &str, app: &App) -> Result<PathBuf> {
    let peer = |address| format!("[[store.peer]]\nupstream = \"app\"\naddress = \"{address}\"\n");
    let file = site.file(&format!("{name}.toml"));
    fs::write(&file, app.addresses().iter().map(peer).collect::<String>())?;
    Ok(file)
}

/// An app host that comes later, and of which no nginx.conf knows.
pub struct Guest {
    child: Option<Child>,
    pub pm2: Pm2,
    pub app: App,
    name: &'static str,
    folder: PathBuf,
}

impl Guest {
    /// Its workers run; nobody has been told of them. They write down orders where the fleet's do.
    pub async fn new(fleet: &Fleet, name: &'static str, host: Ipv4Addr) -> Result<Self> {
        let site = fleet.site(0)?;
        let mut app = App::new(Behaviour::Graceful, Mode::Fork, 2, &site.file(""))?;
        app.host = host;
        let folder = site.file(name);
        let pm2 = Pm2::start(NEWEST, &folder.join("pm2"), &app).await?;
        Ok(Self { child: None, pm2, app, name, folder })
    }

    pub fn start(&mut self, fleet: &Fleet, more: &[&str]) -> Result<()> {
        let file = bring(fleet.site(0)?, self.name, &self.app)?;
        self.start_with(fleet, &file, more)
    }

    pub fn start_with(&mut self, fleet: &Fleet, file: &Path, more: &[&str]) -> Result<()> {
        let mut handoff = Command::new(place::handoff()?);
        handoff.arg("run").arg("--config").arg(file).args(["--store", &fleet.etcd.url()]);
        handoff.args(["--store-name", self.name, "--store-address", &self.app.host.to_string()]).args(more);
        handoff.envs(self.environment());
        self.child = Some(fleet.logged(self.name, &mut handoff)?);
        Ok(())
    }

    pub fn kill(&mut self) -> Result<()> {
        kill(self.child.take())
    }

    pub async fn handoff(&self, arguments: &[&str]) -> Result<Ended> {
        run(arguments, self.environment()).await
    }

    pub fn addresses(&self) -> Vec<String> {
        self.app.addresses().iter().map(SocketAddr::to_string).collect()
    }

    fn environment(&self) -> Vec<(&'static str, OsString)> {
        let file = |name: &str| self.folder.join(name);
        vec![
            ("PM2_HOME", file("pm2").into()),
            ("HANDOFF_CONTROL", format!("unix:{}", file("gateway.sock").display()).into()),
            ("HANDOFF_RUNTIME_DIR", file("runtime").into()),
            ("HANDOFF_STATE_DIR", file("state").into()),
        ]
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            process::end(child, PATIENCE);
        }
    }
}

async fn run(arguments: &[&str], environment: Vec<(&'static str, OsString)>) -> Result<Ended> {
    let mut handoff = command::clean(place::handoff()?);
    let output = handoff.args(arguments).envs(environment).output().await?;
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    Ok(Ended { code: output.status.code(), stdout: text(&output.stdout), stderr: text(&output.stderr) })
}

fn kill(child: Option<Child>) -> Result<()> {
    let mut child = child.context("one that runs")?;
    process::signal(child.id(), Signal::KILL);
    child.wait()?;
    Ok(())
}

/// Every visit, by nginx.
pub async fn visits(load: Vec<Load>) -> Result<Vec<Vec<Visit>>> {
    let mut all = Vec::new();
    for load in load {
        let visits = load.stop().await;
        ensure!(visits.len() as u64 > u64::from(RATE), "only {} visits", visits.len());
        all.push(visits);
    }
    Ok(all)
}

/// Each visit was answered, and each order executed once. Visitors of both nginx give their orders the same names.
pub fn all_is_well(visits: &[Vec<Visit>], orders: &Orders) -> Result<()> {
    let failed: Vec<_> =
        visits.iter().map(|visits| visits.iter().filter(|visit| visit.failed()).collect()).collect();
    ensure!(failed.iter().all(Vec::is_empty), "failed: {failed:?}");
    let mut sent = BTreeMap::<String, usize>::new();
    for order in visits.iter().flatten().filter_map(Visit::order) {
        *sent.entry(order).or_default() += 1;
    }
    ensure!(sent.len() > 10, "only {} orders", sent.len());
    let others: Vec<_> = sent.iter().filter(|(id, count)| orders.executions(id).len() != **count).collect();
    ensure!(others.is_empty(), "executed more or less often than sent: {others:?}");
    Ok(())
}

/// Long enough for visitors to be there before something happens.
pub const WARM: Duration = Duration::from_millis(500);
