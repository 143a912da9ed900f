//! Handoff where everything is in containers: `pm2-runtime` as process 1 with the sidecar beside it, nginx in another one, and
//! between them a network and a volume.

use anyhow::{Context, Result, ensure};
use e2e::{
    container::{self, Container, Host, Shares},
    door::Door,
    load::{Load, Visit},
    nginx::Binary,
    orders::Orders,
    place,
    pm2::NEWEST,
    site::VERSIONS,
    wait,
};
use handoff_wire::{Events, PeerState, PeerView, State, UpstreamView, path};
use serde_json::Value;
use std::{collections::BTreeMap, fs, time::Duration};

const PATIENCE: Duration = Duration::from_secs(30);
/// `stop_grace_period`
const GRACE: Duration = Duration::from_secs(15);
const RATE: u32 = 100;
const APPS: [&str; 2] = ["app1", "app2"];
/// What the documents call the network.
const DOCUMENTED: [(&str, &str); 3] =
    [("172.30.0.10", "web"), ("172.30.0.11", "app1"), ("172.30.0.12", "app2")];

/// Fields are dropped in this order.
struct Stage {
    apps: BTreeMap<&'static str, Container>,
    web: Option<Container>,
    host: Host,
}

// === impl Stage ===

impl Stage {
    /// All that the compose file starts.
    async fn up(version: &str, apps: &[&'static str]) -> Result<Self> {
        eprintln!("nginx {version}");
        let host = Host::new(&["web", "app1", "app2", "beside"]).await?;
        let mut stage = Self { apps: BTreeMap::new(), web: None, host };
        stage.put_files(&Binary::find(Some(version)).await?, apps)?;
        let nginx =
            format!("exec {} -g 'daemon off;' -c {}", "nginx", stage.host.file("nginx.conf").display());
        stage.web = Some(stage.host.start("web", &nginx).await?);
        for name in apps {
            stage.start(name).await?;
        }
        stage.serves(apps).await?;
        Ok(stage)
    }

    fn put_files(&self, nginx: &Binary, apps: &[&str]) -> Result<()> {
        let host = &self.host;
        let shown = |name: &str| host.file(name).display().to_string();
        fs::create_dir(host.file("control"))?;
        let mut conf = container::documented("nginx.conf")?
            .replace(
                "include /etc/nginx/modules-enabled/*.conf;",
                &format!("load_module {};", place::module(&nginx.version)?.display()),
            )
            .replace("/dev/stderr", &shown("error.log"))
            .replace(
                "access_log /dev/stdout;",
                &format!("access_log off; {}", temporary(&shown("temporary"))),
            )
            .replace("unix:/control/", &format!("unix:{}/", shown("control")))
            .replace("user www-data;", &format!("user root; pid {};", shown("nginx.pid")));
        for (address, name) in DOCUMENTED {
            conf = conf.replace(address, &host.address(name).to_string());
        }
        for absent in APPS.iter().filter(|name| !apps.contains(name)) {
            let servers = conf.lines().filter(|line| !line.contains(&host.address(absent).to_string()));
            conf = servers.collect::<Vec<_>>().join("\n");
        }
        fs::write(host.file("nginx.conf"), conf)?;
        let pm2 = place::pm2_cli(NEWEST)?.with_file_name("pm2-runtime");
        for (name, program) in [
            ("pm2-runtime", format!("#!/bin/sh\nexec node {} \"$@\"\n", pm2.display())),
            ("handoff", format!("#!/bin/sh\nexec {} \"$@\"\n", place::handoff()?.display())),
            (
                "nginx",
                format!(
                    "#!/bin/sh\nexec {} -e stderr -p {} \"$@\"\n",
                    nginx.path.display(),
                    host.file("").display()
                ),
            ),
            ("entrypoint.sh", container::documented("entrypoint.sh")?),
        ] {
            container::put(host, name, &program)?;
        }
        fs::create_dir(host.file("app"))?;
        let ecosystem = container::documented("ecosystem.config.js")?
            .replace("'server.js'", &format!("'{}'", place::server_js()?.display()))
            .replace("PORT: 3000,", &format!("PORT: 3000, ORDERS: '{}',", shown("orders")));
        Ok(fs::write(host.file("app/ecosystem.config.js"), ecosystem)?)
    }

    /// What every process of an app's container finds in its environment; the same in each of them.
    fn environment(&self) -> String {
        format!(
            "export HANDOFF_CONTROL=unix:{}/nginx.sock PM2_HOME={own}/pm2 HANDOFF_RUNTIME_DIR={own}/run HANDOFF_STATE_DIR={own}/state\n",
            self.host.file("control").display(),
            own = self.host.own().display(),
        )
    }

    async fn start(&mut self, name: &'static str) -> Result<()> {
        let script =
            format!("{}cd {}\nexec entrypoint.sh", self.environment(), self.host.file("app").display());
        let container = self.host.start(name, &script).await?;
        self.apps.insert(name, container);
        Ok(())
    }

    async fn stop(&mut self, name: &str) -> Result<()> {
        self.apps.remove(name).context("it does not run")?.stop(GRACE).await
    }

    fn app(&self, name: &str) -> Result<&Container> {
        self.apps.get(name).context("it does not run")
    }

    /// `docker exec NAME handoff …`, which must succeed.
    async fn handoff(&self, name: &str, arguments: &str) -> Result<String> {
        let (code, text) = self.app(name)?.exec(&format!("handoff {arguments}")).await?;
        ensure!(code == Some(0), "handoff {arguments}: {code:?}: {text}");
        Ok(text)
    }

    fn control(&self) -> Door {
        Door::Unix(self.host.file("control/nginx.sock"))
    }

    async fn peers(&self, name: &str) -> Result<Vec<PeerView>> {
        let view: UpstreamView = self.control().get(&path::upstream("shop")).await?.json()?;
        let address = format!("{}:", self.host.address(name));
        Ok(view.peers.into_iter().filter(|peer| peer.address.starts_with(&address)).collect())
    }

    /// Waits until every worker serves, with no mark on it, and its sidecar protects it.
    async fn serves(&self, apps: &[&str]) -> Result<()> {
        for name in apps {
            let mut last = String::new();
            wait::until("a container to serve", PATIENCE, async || {
                let peers = self.peers(name).await.ok()?;
                let are_up = peers.len() == 2
                    && peers.iter().all(|peer| peer.state == PeerState::Up && peer.marks.is_empty());
                last = format!("{peers:?}");
                let status = self.handoff(name, "status --json").await.ok().filter(|_| are_up)?;
                let status: Value = serde_json::from_str(&status).ok()?;
                last = status.to_string();
                let workers = status.pointer("/daemons/0/apps/0/workers")?.as_array()?;
                let is_known =
                    |worker: &&Value| worker["phase"] == "serving" && worker.pointer("/peers/0").is_some();
                let are_known = workers.iter().filter(is_known).count() == 2;
                (status.pointer("/daemons/0/apps/0/level")? == "L0" && are_known).then_some(())
            })
            .await
            .with_context(|| format!("{last}\n{}", self.host.said(name)))?;
        }
        Ok(())
    }

    async fn events(&self) -> Result<Events> {
        self.control().get(path::EVENTS).await?.json()
    }

    /// Their orders have the same numbers each time.
    fn visited(&self) -> Result<Load> {
        fs::write(self.host.file("orders"), "")?;
        Ok(Load::start(self.host.at("web", 80), RATE))
    }

    /// Nobody noticed anything, and nothing was done twice.
    async fn end_well(&self, load: Load) -> Result<()> {
        let visits = load.stop().await;
        let failed: Vec<&Visit> = visits.iter().filter(|visit| visit.failed()).collect();
        let slowest = visits.iter().map(|visit| visit.latency).max().unwrap_or_default();
        println!("    {} visits, {} failed, the slowest took {slowest:.1?}", visits.len(), failed.len());
        ensure!(
            failed.is_empty(),
            "{} of {} failed: {failed:#?}\n{:#?}",
            failed.len(),
            visits.len(),
            self.events().await?
        );
        let orders = Orders::read(&self.host.file("orders"))?;
        ensure!(orders.executed_twice() == 0, "{} were executed twice", orders.executed_twice());
        for order in visits.iter().filter_map(Visit::order) {
            ensure!(orders.executions(&order).len() == 1, "{order} was not executed");
        }
        Ok(())
    }

    /// `docker stop`, and `docker start` when what stands between is done.
    async fn is_replaced(
        &mut self,
        name: &'static str,
        between: impl AsyncFnOnce(&Self) -> Result<()>,
    ) -> Result<()> {
        self.stop(name).await?;
        self.host.plug(name, false).await?;
        between(self).await?;
        self.host.plug(name, true).await?;
        self.start(name).await
    }

    /// Both workers of a container that was stopped are known to be away.
    async fn are_down(&self, name: &str) -> Result<()> {
        let peers = self.peers(name).await?;
        let are_down = peers.iter().all(|peer| peer.state == PeerState::Down);
        ensure!(are_down, "somebody says that a worker serves: {peers:?}\n{:#?}", self.events().await?);
        Ok(())
    }
}

/// Where nginx keeps bodies.
fn temporary(folder: &str) -> String {
    let kinds = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
    kinds.map(|kind| format!("{kind}_temp_path {folder}.{kind};")).join(" ")
}

/// Each container's daemon has the same `PM2_HOME`, and its sidecar leaves the others' workers alone.
#[tokio::test(flavor = "multi_thread")]
async fn stopping_and_starting_one_of_two_containers_loses_nothing() -> Result<()> {
    if !container::can_be_made() {
        return Ok(());
    }
    let mut stage = Stage::up("1.28.3", &APPS).await?;
    let load = stage.visited()?;
    let other = stage.peers("app2").await?;
    stage
        .is_replaced("app1", async |stage| {
            stage.are_down("app1").await?;
            // The sidecar of the other one has looked at everything since: it does so every 3 s.
            let peers = other.iter().map(|peer| peer.requests).sum::<u64>();
            wait::until("the other container to have served for a while", PATIENCE, async || {
                let served: u64 = stage.peers("app2").await.ok()?.iter().map(|peer| peer.requests).sum();
                (served >= peers + 4 * u64::from(RATE)).then_some(())
            })
            .await?;
            stage.are_down("app1").await
        })
        .await?;
    stage.serves(&APPS).await?;
    let told = stage.events().await?.events;
    for peer in stage.peers("app1").await? {
        let is_it =
            |state: State| told.iter().any(|event| event.peer == peer.address && event.to == Some(state));
        ensure!(
            is_it(State::Draining) && is_it(State::Down),
            "{} went without a word: {told:#?}",
            peer.address
        );
    }
    stage.end_well(load).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_of_another_container_sees_the_workers_or_says_why_not() -> Result<()> {
    if !container::can_be_made() {
        return Ok(());
    }
    let mut stage = Stage::up("1.22.1", &["app1"]).await?;
    // The one that the entrypoint began ends; another container has its place.
    let (_, pid) = stage.app("app1")?.exec("pgrep -x handoff").await?;
    ensure!(pid.trim().parse::<u32>().is_ok(), "which is it? {pid}");
    stage.app("app1")?.exec(&format!("kill {}", pid.trim())).await?;
    let app = stage.app("app1")?;
    let run = format!("{}exec handoff run", stage.environment());
    {
        let _side = stage.host.beside(app, Shares::PidAndNetwork, "run", &run)?;
        stage.serves(&["app1"]).await?;
    }
    let says = async |shares: Shares, words: &str| {
        let _side = stage.host.beside(app, shares, "run", &run)?;
        let status = format!("{}handoff status", stage.environment());
        let said = wait::until("the sidecar to say what it does not see", PATIENCE, async || {
            stage.host.beside(app, shares, "status", &status).ok()?.ended();
            [stage.host.said("run"), stage.host.said("status")].concat().contains(words).then_some(())
        });
        said.await
            .with_context(|| format!("{shares:?}: {}{}", stage.host.said("run"), stage.host.said("status")))
    };
    says(Shares::Network, "is in another PID namespace: run handoff in the workers' container").await?;
    says(Shares::Pid, "is in another network namespace").await?;
    stage.apps.clear();
    Ok(())
}

/// Until the marks of a sidecar that is gone have run out.
async fn marks_lapse(stage: &Stage, name: &str) -> Result<()> {
    wait::until("the marks of its sidecar to run out", PATIENCE, async || {
        let peers = stage.peers(name).await.ok()?;
        let are_gone =
            peers.iter().flat_map(|peer| &peer.marks).all(|mark| mark.owner.to_string() == "operator");
        are_gone.then_some(())
    })
    .await
}

/// Each way in which docs/operations/containers.md has containers replaced. `make containers`
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a minute for each nginx: make containers"]
async fn every_way_to_replace_a_container_that_is_documented_loses_nothing() -> Result<()> {
    if !container::can_be_made() {
        return Ok(());
    }
    for version in VERSIONS {
        let mut stage = Stage::up(version, &APPS).await?;
        for name in APPS {
            println!("{version}: {name} is stopped and started");
            let load = stage.visited()?;
            stage.is_replaced(name, async |stage| stage.are_down(name).await).await?;
            stage.serves(&APPS).await?;
            stage.end_well(load).await?;
        }

        println!("{version}: app1 is away for longer than marks last, and was drained");
        let load = stage.visited()?;
        stage.handoff("app1", "drain shop --wait").await?;
        stage
            .is_replaced("app1", async |stage| {
                marks_lapse(stage, "app1").await?;
                let peers = stage.peers("app1").await?;
                ensure!(peers.iter().all(|peer| peer.state == PeerState::Draining), "{peers:?}");
                Ok(())
            })
            .await?;
        wait::until("its workers to be there", PATIENCE, async || {
            let status = stage.handoff("app1", "status --json").await.ok()?;
            let status: Value = serde_json::from_str(&status).ok()?;
            (status.pointer("/daemons/0/apps/0/level")? == "L0").then_some(())
        })
        .await?;
        stage.handoff("app1", "ready shop").await?;
        stage.serves(&APPS).await?;
        stage.end_well(load).await?;

        println!("{version}: the same, and nobody had said anything");
        let load = stage.visited()?;
        stage
            .is_replaced("app2", async |stage| {
                marks_lapse(stage, "app2").await?;
                wait::until("nginx to try an address that nobody has", PATIENCE, async || {
                    stage.peers("app2").await.ok()?.iter().any(|peer| peer.fails > 0).then_some(())
                })
                .await
            })
            .await?;
        stage.serves(&APPS).await?;
        stage.end_well(load).await?;

        println!("{version}: the only container, while requests wait");
        drop(stage);
        let mut stage = Stage::up(version, &["app1"]).await?;
        let load = stage.visited()?;
        stage.handoff("app1", "pause shop --wait --max 25s").await?;
        stage.is_replaced("app1", async |_| Ok(())).await?;
        stage.serves(&["app1"]).await?;
        stage.handoff("app1", "resume shop").await?;
        stage.end_well(load).await?;
    }
    Ok(())
}
