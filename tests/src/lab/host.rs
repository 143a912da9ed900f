//! A machine with the app: PM2, its workers, and a sidecar without an nginx.

use crate::{
    app::{App, Behaviour, Mode},
    lives::{self, Life},
    net::Machine,
    orders::Orders,
    place::Place,
    pm2::{self, Pm2},
    reload::{self, Reload},
    sidecar::Sidecar,
};
use anyhow::{Context, Result};
use std::net::SocketAddr;

const FIRST_PORT: u16 = 3000;

/// Fields are dropped in this order.
#[derive(Debug)]
pub struct AppHost {
    pub sidecar: Option<Sidecar>,
    lives: lives::Watch,
    pm2: Pm2,
    app: App,
    place: Place,
    machine: Machine,
}

/// What it leaves behind.
#[derive(Debug)]
pub struct Left {
    pub orders: Orders,
    pub lives: Vec<Life>,
}

impl AppHost {
    /// So many workers in fork mode, each on a port of its own. Comes back when PM2 says that they are up.
    pub async fn start(machine: Machine, behaviour: Behaviour, workers: u16) -> Result<Self> {
        let place = Place::new()?;
        let mut app = App::new(behaviour, Mode::Fork, workers, place.path())?;
        (app.host, app.first_port) = (machine.ip(), FIRST_PORT);
        let lives = lives::Watch::new(&app.lives());
        let pm2 = Pm2::start_on(machine.realm(), pm2::NEWEST, &place.pm2_home(), &app).await?;
        Ok(Self { sidecar: None, lives, pm2, app, place, machine })
    }

    /// Where the workers of a machine will listen.
    pub fn addresses(machine: &Machine, workers: u16) -> Vec<SocketAddr> {
        (FIRST_PORT..).take(workers.into()).map(|port| machine.address(port)).collect()
    }

    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    pub fn place(&self) -> &Place {
        &self.place
    }

    pub fn start_sidecar(&mut self, arguments: &[String]) -> Result<()> {
        self.sidecar = Some(Sidecar::launch_on(&self.machine.realm(), &self.place, arguments)?);
        Ok(())
    }

    pub fn kill_sidecar(&mut self) -> Result<()> {
        self.sidecar.take().context("it has no sidecar")?.kill();
        Ok(())
    }

    /// `pm2 reload`
    pub async fn pm2_reload(&self) -> Result<()> {
        self.pm2.reload().await
    }

    /// `handoff reload`
    pub async fn reload(&self, options: &[&str]) -> Result<Reload> {
        reload::run_on(&self.machine.realm(), &self.place, options).await
    }

    pub async fn strike(mut self) -> Result<Left> {
        if let Some(sidecar) = self.sidecar.take() {
            sidecar.stop()?;
        }
        Ok(Left { orders: Orders::read(&self.app.orders())?, lives: self.lives.finish().await? })
    }
}
