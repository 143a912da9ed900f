//! One run of a scenario with one setup, from an empty directory to all that was seen.

use crate::{
    access_log::AccessLog,
    app::{App, NAME},
    caddy::{self, Caddy},
    clock::Moment,
    conf::{Conf, Tuning},
    control, drain_script,
    front::Front,
    haproxy::{self, Haproxy},
    lives::{self, Life},
    load::{Load, Visit},
    nginx::{Binary, Nginx},
    orders::Orders,
    peers,
    place::{self, Place},
    pm2::{self, Pm2},
    ports, process,
    reload::{self, Reload},
    scenario::{Action, Level, SETTLING, Scenario, Setup, Trouble},
    sidecar::Sidecar,
    streams::{Stream, Streams},
    wait,
};
use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use std::{fs, time::Duration};
use tokio::{sync::Mutex, time::sleep, try_join};

const PATIENCE: Duration = Duration::from_secs(20);
/// Longer than any proxy's ban of a peer that failed.
const CRASHING: Duration = Duration::from_secs(12);
/// PM2's number of the worker that it started first.
const FIRST: &str = "0";
/// Shorter than a worker needs to be replaced.
const AWHILE: Duration = Duration::from_millis(500);

#[derive(Clone, Debug)]
pub struct Plan {
    pub scenario: Scenario,
    pub setup: Setup,
    pub nginx: Binary,
    /// Whether to measure, at the end, what starting as many Node processes costs without a deploy.
    pub control: bool,
}

/// Everything that was seen in one run.
#[derive(Clone, Debug)]
pub struct Run {
    pub scenario: Scenario,
    pub setup: Setup,
    pub pm2: String,
    pub began: Moment,
    pub ended: Moment,
    pub visits: Vec<Visit>,
    pub streams: Vec<Stream>,
    pub orders: Orders,
    /// What nginx logged; without nginx, nothing.
    pub log: AccessLog,
    pub lives: Vec<Life>,
    pub changes: Vec<peers::Change>,
    pub done: Vec<Done>,
    /// How each `handoff reload` ended.
    pub reloads: Vec<Reload>,
    /// From when to when the control was played.
    pub control: Option<(Moment, Moment)>,
}

/// An action, from the start of its command to the end.
#[derive(Clone, Copy, Debug)]
pub struct Done {
    pub action: Action,
    pub began: Moment,
    pub ended: Moment,
    /// When the last worker that it replaced was ready again, if that came later.
    pub settled: Moment,
    /// Whom it killed.
    pub victim: Option<u32>,
}

/// What stands while a run is on. Fields are dropped in this order: first those who ask, last those who answer.
struct Stage {
    sidecar: Mutex<Option<Sidecar>>,
    front: Front,
    reloads: Mutex<Vec<Reload>>,
    pm2: Pm2,
    app: App,
    place: Place,
}

// === impl Plan ===

impl Plan {
    /// Whether everything is here that it needs.
    pub fn check(&self) -> Result<()> {
        place::server_js()?;
        place::pm2_cli(pm2::NEWEST)?;
        match self.setup {
            Setup::Stock | Setup::Tuned => {}
            Setup::Handoff => {
                place::handoff()?;
                place::module(&self.nginx.version)?;
            }
            Setup::Haproxy => {
                let Scenario { name, action, .. } = self.scenario;
                ensure!(action == Action::Reload, "{name} has no deploy: HAProxy does not play it");
                haproxy::binary()?;
            }
            Setup::Caddy => _ = caddy::binary()?,
        }
        Ok(())
    }

    pub async fn play(&self) -> Result<Run> {
        self.check()?;
        let stage = Stage::set(self).await?;
        let lives = lives::Watch::new(&stage.app.lives());
        let peers = (self.setup == Setup::Handoff).then(|| peers::Watch::new(&stage.place.control_socket()));

        // The scenarios prescribe this pause.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let began = Moment::now();
        let target = ports::address(stage.front.port());
        let load = Load::start(target, self.scenario.rate);
        let streams = self.scenario.streaming.map(|streaming| Streams::start(target, streaming));
        let done = self.act(&stage, began).await?;
        let control = if self.control {
            Some(stage.play_control(self.scenario.action_with(self.setup), self.scenario.spares).await?)
        } else {
            None
        };
        let ended = Moment::now();
        let visits = load.stop().await;
        let streams = match streams {
            Some(streams) => streams.stop().await,
            None => Vec::new(),
        };

        let changes = match peers {
            Some(peers) => peers.finish().await?,
            None => Vec::new(),
        };
        let run = Run {
            scenario: self.scenario,
            setup: self.setup,
            pm2: stage.pm2.version().await?,
            began,
            ended,
            visits,
            streams,
            orders: Orders::read(&stage.app.orders())?,
            log: AccessLog::default(),
            lives: lives.finish().await?,
            changes,
            done,
            reloads: stage.reloads.lock().await.clone(),
            control,
        };
        Ok(Run { log: stage.strike().await?, ..run })
    }

    async fn act(&self, stage: &Stage, began: Moment) -> Result<Vec<Done>> {
        let pace = self.scenario.pace;
        let mut done = Vec::new();
        let mut last = began;
        for &at in pace.actions {
            (began + at).max(last + pace.gap).reached().await;
            let this = stage.act(&self.scenario, self.setup).await?;
            last = this.settled;
            done.push(this);
        }
        (began + pace.at_least).max(last + pace.after).reached().await;
        Ok(done)
    }
}

// === impl Stage ===

impl Stage {
    async fn set(plan: &Plan) -> Result<Self> {
        let Plan { scenario, setup, .. } = plan;
        let place = Place::new()?;
        let mut app = App::new(scenario.behaviour, scenario.mode, scenario.workers, place.path())?;
        app.wait_ready = scenario.wait_ready;
        let has_preload = scenario.level == Level::L2 && *setup == Setup::Handoff;
        app.preload = has_preload.then(|| place.file("runtime/preload.sock"));
        let pm2 = Pm2::start(pm2::NEWEST, &place.pm2_home(), &app).await?;
        app.answers().await?;
        let front = Self::front(plan, &place, &app).await?;
        let sidecar = match setup {
            Setup::Stock | Setup::Tuned | Setup::Haproxy | Setup::Caddy => None,
            Setup::Handoff => Some(Sidecar::start(&place, &app.addresses()).await?),
        };
        if let Some(sidecar) = sidecar.as_ref().filter(|_| has_preload) {
            sidecar.protects(NAME, "L2").await?;
        }
        Ok(Self { sidecar: Mutex::new(sidecar), front, reloads: Mutex::default(), pm2, app, place })
    }

    async fn front(Plan { scenario, setup, nginx, .. }: &Plan, place: &Place, app: &App) -> Result<Front> {
        let (port, mut servers) = (ports::row(1)?, app.addresses());
        if scenario.action_with(*setup) == Action::SafeReload && scenario.spares > 0 {
            let first = ports::row(scenario.spares)?;
            servers.extend((first..).take(scenario.spares.into()).map(ports::address));
        }
        let tuning = match setup {
            Setup::Stock => Tuning::Stock,
            Setup::Tuned => Tuning::Tuned,
            Setup::Handoff => {
                Tuning::Handoff { module: place::module(&nginx.version)?, control: place.control_socket() }
            }
            Setup::Haproxy => {
                let haproxy = Haproxy::start(&place.haproxy_prefix(), port, &servers).await?;
                return Ok(Front::Haproxy(haproxy));
            }
            Setup::Caddy => {
                return Ok(Front::Caddy(Caddy::start(&place.caddy_prefix(), port, &servers).await?));
            }
        };
        // With Handoff it is not needed.
        let non_idempotent = scenario.non_idempotent && *setup != Setup::Handoff;
        let conf = Conf { port, servers, tuning, non_idempotent };
        Ok(Front::Nginx(Nginx::start(nginx, &place.nginx_prefix(), &conf).await?))
    }

    async fn act(&self, scenario: &Scenario, setup: Setup) -> Result<Done> {
        let action = scenario.action_with(setup);
        let began = Moment::now();
        let victim = match action {
            Action::Reload => {
                try_join!(self.pm2.reload(), self.befall(scenario.trouble))?;
                None
            }
            Action::Restart => {
                try_join!(self.pm2.run(&["restart", NAME]), self.befall(scenario.trouble))?;
                None
            }
            Action::RestartAtOnce => {
                let all = self.app.workers.to_string();
                self.pm2.run(&["restart", NAME, "--parallel", &all]).await?;
                None
            }
            Action::SafeReload => {
                try_join!(self.safe_reload(scenario.options), self.befall(scenario.trouble))?;
                None
            }
            Action::DrainScript => {
                let haproxy = self.front.haproxy().context("no HAProxy to drain")?;
                drain_script::run(haproxy, &self.pm2, &self.app).await?;
                None
            }
            Action::StopAndStart => {
                self.pm2.run(&["stop", FIRST]).await?;
                self.pm2.run(&["start", FIRST]).await?;
                None
            }
            Action::Scale => {
                for workers in [self.app.workers - 1, self.app.workers] {
                    self.pm2.run(&["scale", NAME, &workers.to_string()]).await?;
                }
                None
            }
            Action::Interrupt => Some(self.signal_one(Signal::INT)?),
            Action::Kill => Some(self.signal_one(Signal::KILL)?),
            Action::Crash => {
                self.crash().await?;
                None
            }
        };
        let ended = Moment::now();
        let settled = match action {
            // One that was refused or stopped leaves workers as they were.
            Action::SafeReload if self.fell_short().await => ended,
            Action::Reload
            | Action::Restart
            | Action::RestartAtOnce
            | Action::SafeReload
            | Action::DrainScript => self.ready_again(self.app.workers.into(), began).await?.max(ended),
            Action::StopAndStart | Action::Scale | Action::Interrupt | Action::Kill => {
                self.ready_again(1, began).await?.max(ended)
            }
            Action::Crash => self.crashes_no_more().await?.max(ended),
        };
        Ok(Done { action, began, ended, settled, victim })
    }

    /// However it ends: that is for the verdict.
    async fn safe_reload(&self, options: &[&str]) -> Result<()> {
        let reload = reload::run(&self.place, options).await?;
        self.reloads.lock().await.push(reload);
        Ok(())
    }

    /// Whether the last `handoff reload` did not replace every worker.
    async fn fell_short(&self) -> bool {
        self.reloads.lock().await.last().is_none_or(|reload| !reload.replaced_all())
    }

    async fn befall(&self, trouble: Option<Trouble>) -> Result<()> {
        let Some(trouble) = trouble else { return Ok(()) };
        let control = self.place.control_socket();
        wait::until("a worker to drain", PATIENCE, async || {
            (!peers::all_up(&control, &self.app.addresses()).await).then_some(())
        })
        .await?;
        let mut sidecar = self.sidecar.lock().await;
        match trouble {
            Trouble::SidecarDies => sidecar.take().into_iter().for_each(Sidecar::kill),
            Trouble::SidecarRestarts => {
                sidecar.take().into_iter().for_each(Sidecar::kill);
                *sidecar = Some(Sidecar::launch(&self.place)?);
            }
            Trouble::SidecarFreezes => {
                let pid = sidecar.as_ref().map(Sidecar::pid).context("no sidecar to stop")?;
                process::signal(pid, Signal::STOP);
                sleep(AWHILE).await;
                process::signal(pid, Signal::CONT);
            }
            Trouble::NginxReloads => {
                let nginx = self.front.nginx().context("no nginx to reload")?;
                process::signal(nginx.pid(), Signal::HUP);
            }
            Trouble::Pm2Vanishes => {
                let (here, away) = (self.place.pm2_home(), self.place.file("away"));
                fs::create_dir(&away)?;
                let both = ["pub.sock", "rpc.sock"];
                both.iter().try_for_each(|name| fs::rename(here.join(name), away.join(name)))?;
                sidecar.take().into_iter().for_each(Sidecar::kill);
                *sidecar = Some(Sidecar::launch(&self.place)?);
                sleep(AWHILE).await;
                both.iter().try_for_each(|name| fs::rename(away.join(name), here.join(name)))?;
                fs::remove_dir(&away)?;
            }
        }
        Ok(())
    }

    /// Lets a worker throw each time it has listened for a while.
    async fn crash(&self) -> Result<()> {
        let file = self.app.crash_file();
        fs::write(&file, "")?;
        tokio::time::sleep(CRASHING).await;
        Ok(fs::remove_file(file)?)
    }

    /// Signals the worker that has lived longest.
    fn signal_one(&self, signal: Signal) -> Result<u32> {
        let lives = lives::read(&self.app.lives())?;
        let serving = lives.iter().filter(|life| process::is_alive(life.worker));
        let victim = serving.min_by_key(|life| life.booted).context("no worker to kill")?.worker;
        process::signal(victim, signal);
        Ok(victim)
    }

    /// When so many workers that booted since then have listened.
    async fn ready_again(&self, workers: usize, since: Moment) -> Result<Moment> {
        wait::until("every replaced worker to listen", PATIENCE, async || {
            let lives = lives::read(&self.app.lives()).ok()?;
            let new = lives.iter().filter(|life| life.booted > since);
            let listened: Vec<Moment> = new.filter_map(|life| life.listened).collect();
            listened.iter().max().copied().filter(|_| listened.len() >= workers)
        })
        .await
    }

    /// When the first worker listens and lives on.
    async fn crashes_no_more(&self) -> Result<Moment> {
        const THROWN_BY_NOW: Duration = Duration::from_millis(500);
        wait::until("the first worker to stay", PATIENCE, async || {
            let lives = lives::read(&self.app.lives()).ok()?;
            let last = lives.iter().rfind(|life| life.port == self.app.first_port)?;
            let listened = last.listened?;
            let stays = Moment::now().since(listened) > THROWN_BY_NOW && process::is_alive(last.worker);
            stays.then_some(listened)
        })
        .await
    }

    /// Between two pauses, so that nothing else is in what is measured.
    async fn play_control(&self, deploy: Action, spares: u16) -> Result<(Moment, Moment)> {
        let control = control::play(&self.app, deploy, spares).await?;
        (control.1 + SETTLING).reached().await;
        Ok(control)
    }

    /// Takes all down in order.
    async fn strike(self) -> Result<AccessLog> {
        if let Some(sidecar) = self.sidecar.into_inner() {
            sidecar.stop()?;
        }
        self.front.quit().await
    }
}

// === impl Done ===

impl Done {
    /// What counts as deploying: until the last worker was ready, and a while more. A visit that was under way when it
    /// began counts too.
    pub fn touches(&self, visit: &Visit) -> bool {
        visit.due < self.settled + SETTLING && visit.due + visit.latency >= self.began
    }
}
