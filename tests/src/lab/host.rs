//! A machine with the app: PM2, its workers, and a sidecar without an nginx.

use crate::{
    app::{App, Behaviour, Mode},
    http,
    lives::{self, Life},
    net::Machine,
    orders::Orders,
    peers,
    place::Place,
    pm2::{self, Pm2},
    reload::{self, Reload},
    sidecar::Sidecar,
};
use anyhow::{Context, Result};
use handoff_wire::{Overview, path};
use std::{fs, net::SocketAddr};

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
    pub fn at(machine: &Machine, workers: u16) -> Vec<SocketAddr> {
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

    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.app.addresses()
    }

    /// How many nginx it hands over to.
    pub async fn edges(&self) -> Result<usize> {
        let overview: Overview = http::json(&self.place.control_socket(), path::OVERVIEW).await?;
        let count = overview.nginx.split(' ').next().unwrap_or_default();
        count.parse().with_context(|| overview.nginx.clone())
    }

    /// As every nginx has it.
    pub async fn is_all_up(&self) -> bool {
        peers::all_up(&self.place.control_socket(), &self.app.addresses()).await
    }

    pub fn said(&self) -> String {
        fs::read_to_string(self.place.file("handoff.log")).unwrap_or_default()
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
