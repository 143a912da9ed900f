//! Looks around for one PM2 daemon: asks PM2 for its workers, and the kernel for their sockets.
//!
//! Seldom when all is calm, every few milliseconds while a worker is about to be there or about to listen, and at once
//! when it is told that something happened. It runs beside the agent, so that a look never delays a drain.

use crate::{
    host::{Proc, Process, Processes},
    look::{self, Look},
    pm2::{PmId, home::Home, rpc::Rpc, rpc::RpcError, trust::Daemon},
    roster::Attention,
    telemetry::Changes,
};
use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    sync::{Notify, mpsc, watch},
    task, time,
};

/// A full look without any reason: what events did not tell is found out so late.
const CALM: Duration = Duration::from_secs(3);
/// Who is whose child is read anew so often while a worker starts; reading it is the dear part of a look.
const FAMILY: Duration = Duration::from_millis(50);

#[derive(Debug)]
pub struct Scout {
    home: Home,
    proc: Proc,
    rpc: Option<Rpc>,
    daemon: Option<Daemon>,
    family: Option<(Instant, Arc<Processes>)>,
    attention: watch::Receiver<Attention>,
    hurry: Arc<Notify>,
    looks: mpsc::Sender<Look>,
    log: Changes,
}

enum Kind {
    Full,
    /// Only whether those who start are listening.
    Starting,
}

impl Scout {
    pub fn new(
        home: Home,
        attention: watch::Receiver<Attention>,
        hurry: Arc<Notify>,
        looks: mpsc::Sender<Look>,
    ) -> Self {
        Self {
            home,
            proc: Proc::default(),
            rpc: None,
            daemon: None,
            family: None,
            attention,
            hurry,
            looks,
            log: Changes::default(),
        }
    }

    /// Looks for ever; ends when nobody wants to know any more.
    pub async fn run(mut self) {
        let mut last_full: Option<Instant> = None;
        let mut kind = Kind::Full;
        loop {
            let attention = self.attention.borrow_and_update().clone();
            let began = Instant::now();
            let look = match kind {
                Kind::Full => {
                    last_full = Some(began);
                    self.full(began, &attention).await
                }
                Kind::Starting => self.examine(began, attention.starting.clone(), FAMILY).await,
            };
            match look {
                Ok(look) => {
                    if self.looks.send(look).await.is_err() {
                        return;
                    }
                }
                Err(error) => self.log.warn(format!("cannot look at this host's processes: {error}")),
            }
            kind = self.pause(last_full.unwrap_or(began), began.elapsed()).await;
        }
    }

    /// Waits until the next look is due, and says which one it is.
    async fn pause(&mut self, last_full: Instant, took: Duration) -> Kind {
        // Looking may be dear on a big host: never more than a third of the time is spent on it.
        let breath = took * 2;
        let started = Instant::now();
        loop {
            let (pace, ask) = {
                let attention = self.attention.borrow_and_update();
                (attention.pace, attention.ask)
            };
            let full_at = (last_full + ask.unwrap_or(CALM).min(CALM)).max(started + breath);
            let starting_at = pace.map(|pace| started + pace.max(breath));
            let (at, kind) = match starting_at {
                Some(starting_at) if starting_at < full_at => (starting_at, Kind::Starting),
                _ => (full_at, Kind::Full),
            };
            tokio::select! {
                () = self.hurry.notified() => return Kind::Full,
                changed = self.attention.changed() => if changed.is_err() { return Kind::Full },
                () = time::sleep_until(at.into()) => return kind,
            }
        }
    }

    async fn full(&mut self, began: Instant, attention: &Attention) -> io::Result<Look> {
        let listed = match self.list().await {
            Ok(listed) => {
                self.log.info(format!("PM2 at {} lists its workers", self.home));
                Some(listed)
            }
            Err(error) => {
                self.rpc = None;
                self.log.warn(error.to_string());
                None
            }
        };
        let roots = listed.as_ref().map_or_else(|| attention.known.clone(), |list| look::roots(&self.proc, list));
        let mut look = self.examine(began, roots, Duration::ZERO).await?;
        look.listed = listed;
        Ok(look)
    }

    async fn list(&mut self) -> Result<Vec<crate::pm2::monitor::Listed>, RpcError> {
        let mut rpc = match self.rpc.take() {
            Some(rpc) => rpc,
            None => Rpc::connect(&self.home).await?,
        };
        let listed = rpc.list().await?;
        self.daemon = Some(rpc.daemon());
        self.rpc = Some(rpc);
        Ok(listed)
    }

    async fn examine(
        &mut self,
        began: Instant,
        roots: Vec<(PmId, Process)>,
        family_age: Duration,
    ) -> io::Result<Look> {
        let proc = self.proc.clone();
        let known = self.family.take().filter(|(read, _)| read.elapsed() < family_age);
        // Without a daemon that we know there is no worker that it could speak for.
        let daemon = self.daemon.unwrap_or(Daemon { pid: 0, uid: u32::MAX });
        let (look, family) = task::spawn_blocking(move || {
            let family = known.unwrap_or_else(|| (Instant::now(), Arc::new(Processes::read(&proc))));
            (Look::take(&proc, began, daemon, &family.1, &roots), family)
        })
        .await
        .map_err(io::Error::other)?;
        self.family = Some(family);
        look
    }
}
