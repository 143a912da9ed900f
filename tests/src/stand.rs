//! A stand: one app under PM2, nginx with the block that the README recommends, the sidecar, and visitors for as long as it
//! is there. Upon it deploy follows deploy, and whatever else is to happen.

use crate::{
    app::{App, Behaviour, Mode, NAME},
    clock::Moment,
    load::Load,
    net::Realm,
    place::{self, Place},
    pm2::{NEWEST, Pm2},
    ports, reload,
    scenario::Level,
    sidecar::{self, Sidecar},
    site::Site,
    wait,
};
use anyhow::{Context, Result};
use handoff_wire::{PeerState, UpstreamView, path};
use serde::Deserialize;
use serde_json::{Value, json};
use std::{fmt, fs, ops::RangeInclusive, path::PathBuf, time::Duration};

/// Also for whoever must wait until a lease is over, or PM2's lock.
pub const PATIENCE: Duration = Duration::from_secs(60);

const CONNECTIONS: usize = 4_096;

/// `handoff reload`: another one, or `pm2 reload`, is under way or was cut off.
const LOCKED: i32 = 14;
const STILL_ENDS: &str = "PM2 still ends what an earlier reload has replaced";
/// It says why the new release is not good.
const BROKEN: RangeInclusive<i32> = 10..=13;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    pub nginx: &'static str,
    pub mode: Mode,
    pub level: Level,
    pub workers: u16,
    /// Whether nginx guesses from a failure that a peer is dead, as it does unless it is told not to.
    pub guesses: bool,
}

/// What the operator types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// `pm2 reload`
    Pm2,
    /// `handoff reload`
    Handoff,
}

#[derive(Clone, Debug)]
pub struct Deploy {
    pub how: How,
    pub began: Moment,
    pub ended: Moment,
    /// `None`: it had not come to an end when nobody had any more patience.
    pub exit: Option<i32>,
    /// The end of what it said.
    pub text: String,
}

/// Fields are dropped in this order: first those who ask, last those who answer.
#[derive(Debug)]
pub struct Stand {
    pub load: Option<Load>,
    pub sidecar: Option<Sidecar>,
    pub pm2: Pm2,
    pub app: App,
    pub site: Site,
    realm: Realm,
    sidecar_realm: Realm,
    pub plan: Plan,
}

/// An entry of PM2's list, of which nothing else is read: it holds whole environments.
#[derive(Deserialize)]
struct Listed {
    pid: u32,
    pm2_env: Env,
}

#[derive(Deserialize)]
struct Env {
    status: String,
}

// === impl Plan ===

impl Plan {
    /// The careless app where the level takes care of it.
    pub fn behaviour(&self) -> Behaviour {
        match (self.level, self.mode) {
            (Level::L2, _) | (Level::L1, Mode::Fork) => Behaviour::Naive,
            (Level::L0, _) | (Level::L1, Mode::Cluster) => Behaviour::Graceful,
        }
    }

    /// What this level has the operator type.
    pub fn how(&self) -> How {
        match self.level {
            Level::L0 | Level::L2 => How::Pm2,
            Level::L1 => How::Handoff,
        }
    }

    /// `adapt` may put some of it elsewhere, before anybody is there.
    pub async fn set(self, realm: &Realm, adapt: impl AsyncFnOnce(&Place) -> Result<()>) -> Result<Stand> {
        // On a starved machine hundreds wait: nginx must not take idle connections away from their visitors for them.
        let site = Site::new(self.nginx).await?.connections(CONNECTIONS).in_realm(realm.clone());
        adapt(site.place()).await?;
        let mut app = App::new(self.behaviour(), self.mode, self.workers, site.place().path())?;
        app.preload = (self.level == Level::L2).then(|| site.file("runtime/preload.sock"));
        let pm2 = Pm2::start_on(realm.clone(), NEWEST, &site.place().pm2_home(), &app).await?;
        app.answers().await?;
        site.write(&self.conf(&site, &app))?;
        let (realm, sidecar_realm) = (realm.clone(), realm.clone());
        let mut stand = Stand { load: None, sidecar: None, pm2, app, site, realm, sidecar_realm, plan: self };
        stand.site.start_daemon().await?;
        stand.start_sidecar()?;
        wait::until("the sidecar to know its workers", PATIENCE, async || {
            let log = fs::read_to_string(stand.site.file("handoff.log")).ok()?;
            log.contains("lists its workers").then_some(())
        })
        .await?;
        stand.is_whole().await?;
        if let Some(sidecar) = stand.sidecar.as_ref().filter(|_| self.level == Level::L2) {
            sidecar.protects(NAME, "L2").await?;
        }
        Ok(stand)
    }

    fn conf(&self, site: &Site, app: &App) -> String {
        let guesses = if self.guesses { "" } else { " max_fails=0" };
        let servers: String =
            app.addresses().iter().map(|address| format!("server {address}{guesses}; ")).collect();
        // Who plays for an hour keeps only what has to be explained.
        let which = if self.guesses { " if=$is_odd" } else { "" };
        let front = site.front(&format!(
            "proxy_pass http://app;\n        access_log {} visits{which};\n        \
             proxy_next_upstream error timeout http_502 http_503 http_504;\n        \
             proxy_next_upstream_tries 0;\n        proxy_next_upstream_timeout 10s;",
            site.file(ACCESS_LOG).display(),
        ));
        format!(
            "log_format visits \"$http_x_visit|$upstream_addr|$upstream_status|$handoff_held|$handoff_retry|$handoff_state|$upstream_connect_time\";\n\
             map $status $is_odd {{ ~^[23] 0; default 1; }}\n\
             upstream app {{ zone app 256k; least_conn; {servers}keepalive 32; keepalive_timeout 4s; handoff; }}\n\
             {front}\n{}",
            site.api("write=on"),
        )
    }
}

const ACCESS_LOG: &str = "access.log";

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mode = match self.mode {
            Mode::Fork => "fork",
            Mode::Cluster => "cluster",
        };
        write!(f, "nginx {} {mode} {:?}", self.nginx, self.level)
    }
}

impl fmt::Display for How {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pm2 => "pm2 reload",
            Self::Handoff => "handoff reload",
        })
    }
}

// === impl Deploy ===

impl Deploy {
    pub fn is_done(&self) -> bool {
        self.exit == Some(0)
    }

    /// `handoff reload` took the new release for a broken one: its first worker is not replaced, or stopped.
    pub fn is_broken(&self) -> bool {
        self.how == How::Handoff && self.exit.is_some_and(|exit| BROKEN.contains(&exit))
    }

    pub fn seconds(&self) -> f64 {
        self.ended.since(self.began).as_secs_f64()
    }
}

// === impl Stand ===

impl Stand {
    pub fn visit(&mut self, rate: u32) {
        self.load = Some(Load::start(ports::address(self.site.port()), rate));
    }

    pub fn start_sidecar(&mut self) -> Result<()> {
        self.sidecar = Some(self.another_sidecar()?);
        Ok(())
    }

    /// One beside whatever is left of the last.
    pub fn another_sidecar(&self) -> Result<Sidecar> {
        Sidecar::launch_on(&self.sidecar_realm, self.site.place(), &[])
    }

    /// From now on the sidecar runs there, unlike all others.
    pub fn move_sidecar(&mut self, realm: Realm) -> Result<()> {
        self.sidecar_realm = realm;
        if let Some(sidecar) = self.sidecar.take() {
            sidecar.stop()?;
        }
        self.start_sidecar()
    }

    pub fn access_log(&self) -> PathBuf {
        self.site.file(ACCESS_LOG)
    }

    pub async fn deploy(&self, how: How) -> Result<Deploy> {
        let began = Moment::now();
        let (exit, text) = match how {
            How::Pm2 => match self.pm2.attempt(&["reload", NAME], PATIENCE).await? {
                Some(output) => (output.status.code(), last_line(&[output.stdout, output.stderr].concat())),
                None => (None, String::new()),
            },
            How::Handoff => {
                let reload = reload::run_on(&self.realm, self.site.place(), &[]);
                match tokio::time::timeout(PATIENCE, reload).await {
                    Ok(reload) => reload.map(|reload| (Some(reload.exit), reload.text))?,
                    Err(_) => (None, String::new()),
                }
            }
        };
        Ok(Deploy { how, began, ended: Moment::now(), exit, text })
    }

    /// One that waits its turn, behind another that was cut off or a worker that PM2 has yet to end, as its message says.
    pub async fn deploy_in_turn(&self, how: How) -> Result<Deploy> {
        wait::until("a deploy's turn", PATIENCE, async || match self.deploy(how).await {
            Ok(deploy) if deploy.exit == Some(LOCKED) || deploy.text.contains(STILL_ENDS) => None,
            deploy => Some(deploy),
        })
        .await?
    }

    /// Waits until nginx gives requests to every worker, no mark is left and nobody waits.
    pub async fn is_whole(&self) -> Result<()> {
        let addresses: Vec<String> = self.app.addresses().iter().map(ToString::to_string).collect();
        let mut last = String::new();
        wait::until("every worker to serve, with no mark", PATIENCE, async || {
            let view: Result<UpstreamView> = self.site.read(&path::upstream("app")).await;
            last = format!("{view:?}");
            let view = view.ok()?;
            let is_up = |address: &String| {
                let mut peers = view.peers.iter().filter(|peer| peer.address == *address);
                peers.any(|peer| peer.state == PeerState::Up && peer.marks.is_empty())
            };
            let waits = view.queue.as_ref().is_some_and(|queue| queue.held > 0);
            (addresses.iter().all(is_up) && !waits).then_some(())
        })
        .await
        .with_context(|| last)
    }

    /// Waits until PM2 has as many workers as ever, and each of them is online.
    pub async fn list_is_whole(&self) -> Result<()> {
        let mut last = String::new();
        wait::until("PM2's list to be whole", PATIENCE, async || {
            let listed = self.listed().await.ok()?;
            last =
                listed.iter().map(|worker| format!("{} {}; ", worker.pid, worker.pm2_env.status)).collect();
            let is_online = |worker: &Listed| worker.pm2_env.status == "online" && worker.pid != 0;
            (listed.len() == usize::from(self.plan.workers) && listed.iter().all(is_online)).then_some(())
        })
        .await
        .with_context(|| last)
    }

    /// Whether PM2 will not start anew by itself what ended: its daemon is another one, or has given a worker up.
    pub async fn is_given_up(&self) -> bool {
        let Ok(listed) = self.listed().await else { return true };
        let is_given_up = |worker: &Listed| matches!(worker.pm2_env.status.as_str(), "errored" | "stopped");
        listed.len() != usize::from(self.plan.workers) || listed.iter().any(is_given_up)
    }

    /// The workers that PM2 has forgotten, as `handoff status` says.
    pub async fn forgotten(&self) -> Result<Vec<u32>> {
        let mut handoff = self.realm.clean(place::handoff()?);
        handoff.args(["status", "--json"]).envs(sidecar::environment(self.site.place()));
        let status: Value = serde_json::from_slice(&handoff.output().await?.stdout)?;
        // While PM2's daemon or the sidecar is away nobody knows.
        let pids = status.pointer("/daemons/0/forgotten").cloned().unwrap_or_else(|| json!([]));
        Ok(serde_json::from_value(pids)?)
    }

    async fn listed(&self) -> Result<Vec<Listed>> {
        let list = self.pm2.attempt(&["jlist"], PATIENCE).await?.context("`pm2 jlist` hangs")?;
        let list = String::from_utf8_lossy(&list.stdout).into_owned();
        serde_json::from_str(list.lines().last().context("no list")?)
            .ok()
            .context("PM2's list cannot be read")
    }

    /// Takes all down in order; nginx complains of nothing but of what was done to it.
    pub async fn strike(self, expected: &[&str]) -> Result<()> {
        if let Some(sidecar) = self.sidecar {
            sidecar.stop()?;
        }
        drop(self.pm2);
        let log = self.site.error_log();
        self.site.end_but_for(expected).await.with_context(|| tail(&log))
    }

    /// What the sidecar, nginx, PM2 and the workers that complained said last.
    pub fn said(&self) -> String {
        let read = |path: PathBuf| tail(&fs::read_to_string(path).unwrap_or_default());
        let home = self.site.place().pm2_home();
        let of_workers = fs::read_dir(home.join("logs")).into_iter().flatten().flatten();
        let errors = of_workers.filter(|file| file.file_name().to_string_lossy().contains("-error"));
        let workers: Vec<String> = errors.map(|file| read(file.path())).collect();
        let (sidecar, nginx) = (read(self.site.file("handoff.log")), self.site.error_log());
        let is_trouble = |line: &&str| !["[info]", "[notice]"].iter().any(|level| line.contains(level));
        let trouble: Vec<&str> = nginx.lines().filter(is_trouble).collect();
        [sidecar, tail(&nginx), tail(&trouble.join("\n")), read(home.join("pm2.log")), workers.join("\n")]
            .join("\n")
    }
}

fn last_line(text: &[u8]) -> String {
    String::from_utf8_lossy(text).trim().lines().last().unwrap_or_default().to_owned()
}

/// Without what nginx says of every connection.
fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().filter(|line| !line.contains("[info]")).collect();
    let from = lines.len().saturating_sub(40);
    lines.get(from..).unwrap_or_default().join("\n")
}
