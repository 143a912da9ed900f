//! The new process of a worker in cluster mode, from the moment when PM2 is asked for it until it has proved itself.
//!
//! Node gives it connections as soon as it listens, whatever it is like. So it is not kept from users: it is found out as
//! early as can be.

use super::{
    arrival::{self, Checks},
    fitness::Expected,
    grip::{Call, Grip},
    health,
    reach::Way,
    stop::{How, Stop},
    toll::Toll,
    verdict::Answers,
    window::Window,
};
use crate::host::Process;
use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};
use tokio::{net::TcpStream, time};

#[derive(Debug)]
pub struct Newcomer<'a> {
    pub grip: &'a Grip,
    pub expected: Expected,
    /// Whether it may be given up for a reason that is not its own.
    pub may_halt: bool,
}

/// How long it is watched if nobody said how long.
pub const WATCH: Duration = Duration::from_secs(1);
const WATCH_PAUSE: Duration = Duration::from_millis(40);
/// So long one attempt to reach it lasts before we look whether it lives.
const REACH: Duration = Duration::from_millis(200);

impl Newcomer<'_> {
    /// Waits until it is ready, takes connections and is well. `toll`: the process that it replaces ends meanwhile.
    pub async fn proves_itself<T: Send + 'static>(
        &mut self,
        call: &mut Call<T>,
        mut toll: Option<&mut Toll>,
        window: &mut Window,
    ) -> Result<(), Stop> {
        let until = Instant::now() + self.grip.options().start_timeout.duration();
        self.fit(call, toll.as_deref_mut(), window, until).await?;
        for address in window.addresses() {
            let listens = self.reached(address, until, toll.as_deref_mut(), window).await?;
            listens
                .ok_or_else(|| self.grip.broken(How::NotReady, unreached(address, self.start_timeout())))?;
        }
        self.well(toll, window).await
    }

    /// Watches for so long whether it lives on, and whether the app answers users with more errors than it did `before`,
    /// from that moment `since` when PM2 was asked: node gives it connections before we know that it listens.
    pub async fn watched(
        &mut self,
        window: &mut Window,
        (before, since): (Answers, Answers),
        long: Duration,
    ) -> Result<(), Stop> {
        let until = Instant::now() + long;
        loop {
            self.still_lives()?;
            let now = Answers::of(&window.views().await?).since(since);
            if now.is_worse_than(before) {
                let text = format!(
                    "since it serves, {} of {} requests to the app were answered with an error ({} of {} before)",
                    now.errors, now.all, before.errors, before.all
                );
                return Err(self.grip.broken(How::Errors, text));
            }
            if Instant::now() >= until {
                return Ok(());
            }
            time::sleep(WATCH_PAUSE).await;
        }
    }

    pub fn still_lives(&mut self) -> Result<(), Stop> {
        if self.may_halt {
            self.grip.go_on()?;
        }
        arrival::still_lives(&mut self.expected, self.grip)
    }

    /// Waits until it is ready, as far as PM2 knows.
    async fn fit<T: Send + 'static>(
        &mut self,
        call: &mut Call<T>,
        mut toll: Option<&mut Toll>,
        window: &mut Window,
        until: Instant,
    ) -> Result<(), Stop> {
        loop {
            if self.may_halt {
                self.grip.go_on()?;
            }
            if let Some(toll) = toll.as_deref_mut() {
                toll.look(window).await;
            }
            if arrival::is_fit(&mut self.expected, self.grip, call, until, |_| None).await? {
                return Ok(());
            }
        }
    }

    /// A connection to it. None: it does not listen, or never has a turn.
    async fn reached(
        &mut self,
        address: SocketAddr,
        until: Instant,
        mut toll: Option<&mut Toll>,
        window: &mut Window,
    ) -> Result<Option<TcpStream>, Stop> {
        loop {
            if let Some(toll) = toll.as_deref_mut() {
                toll.look(window).await;
            }
            self.still_lives()?;
            let Some(worker) = self.process() else { return Ok(None) };
            let way = Way { address, worker, daemon: self.grip.world()?.daemon.pid };
            if let Some(socket) = way.go(time::Instant::now() + REACH).await {
                return Ok(Some(socket));
            }
            if Instant::now() >= until {
                return Ok(None);
            }
        }
    }

    /// Waits until its health checks pass, each on a connection that is its own.
    async fn well(&mut self, mut toll: Option<&mut Toll>, window: &mut Window) -> Result<(), Stop> {
        let Some(mut checks) = Checks::begin(self.grip) else { return Ok(()) };
        loop {
            let mut answers = Vec::new();
            for address in window.addresses() {
                let answer = match self.reached(address, checks.until, toll.as_deref_mut(), window).await? {
                    Some(socket) => {
                        let answer = health::check_on(socket, &address.to_string(), &checks.path).await;
                        answer.map_err(|what| format!("{address} {what}"))
                    }
                    // The time is over. What it said before tells more.
                    None => Err(checks
                        .ill
                        .take()
                        .unwrap_or_else(|| format!("{address} cannot be asked: no connection reached it"))),
                };
                answers.push(answer);
            }
            self.still_lives()?;
            if checks.count(self.grip, &answers).await? {
                return Ok(());
            }
        }
    }

    fn process(&self) -> Option<Process> {
        self.expected.met()
    }

    fn start_timeout(&self) -> handoff_wire::Span {
        self.grip.options().start_timeout
    }
}

fn unreached(address: SocketAddr, after: handoff_wire::Span) -> String {
    format!("no connection to {address} reached it within {after}: it does not listen there")
}
