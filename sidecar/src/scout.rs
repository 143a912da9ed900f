//! Looks around for one PM2 daemon: asks PM2 for its workers, and the kernel for their sockets.
//!
//! Two walk around, beside the agent, so that a look never delays a drain. The [`Scout`] looks at everything: seldom when
//! all is calm, often while a worker is missing, and at once when it is told that something happened. The [`Lookout`]
//! looks only whether those who start are listening yet, every few milliseconds, and never waits for PM2.

use crate::{
    host::{Proc, Process, Processes},
    look::{self, Before, Look},
    pm2::{
        PmId,
        home::Home,
        monitor::{Listed, Status},
        rpc::{Rpc, RpcError},
        trust::Daemon,
        update,
    },
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
/// Hints come in swarms; so long is waited for the rest of one.
const SWARM: Duration = Duration::from_millis(5);
/// Looking may be dear on a big host, and PM2's answer is never free: it is rested twice as long as was looked, but no longer than
/// this. A look takes long because PM2 did not answer, too, or because this process itself was stopped meanwhile; then the next
/// one is due all the more.
const REST: Duration = Duration::from_millis(500);
/// Who is whose child is read anew so often while a worker starts; reading it is the dear part of a look.
const FAMILY: Duration = Duration::from_millis(250);

/// Looks at everything.
#[derive(Debug)]
pub struct Scout {
    home: Home,
    rpc: Option<Rpc>,
    daemons: watch::Sender<Option<Daemon>>,
    attention: watch::Receiver<Attention>,
    hurry: Arc<Notify>,
    looks: mpsc::Sender<Look>,
    /// Nothing has happened that anybody told of since the last look.
    is_calm: bool,
    before: Option<Before>,
    log: Changes,
}

/// Looks at those who start.
#[derive(Debug)]
pub struct Lookout {
    daemons: watch::Receiver<Option<Daemon>>,
    attention: watch::Receiver<Attention>,
    hurry: Arc<Notify>,
    family: Option<(Instant, Arc<Processes>)>,
    looks: mpsc::Sender<Look>,
}

/// Asks them to look now.
#[derive(Clone, Debug, Default)]
pub struct Hurry {
    pub all: Arc<Notify>,
    pub starting: Arc<Notify>,
}

/// Both, for one daemon.
pub fn pair(
    home: Home,
    attention: watch::Receiver<Attention>,
    hurry: Hurry,
    looks: mpsc::Sender<Look>,
) -> (Scout, Lookout) {
    let (daemons, daemon) = watch::channel(None);
    let lookout = Lookout {
        daemons: daemon,
        attention: attention.clone(),
        hurry: hurry.starting,
        family: None,
        looks: looks.clone(),
    };
    let (hurry, log) = (hurry.all, Changes::default());
    let scout =
        Scout { home, rpc: None, daemons, attention, hurry, looks, is_calm: false, before: None, log };
    (scout, lookout)
}

pub fn rest(looked: Duration) -> Duration {
    (looked * 2).min(REST)
}

// === impl Scout ===

impl Scout {
    /// Looks for ever; ends when nobody wants to know any more.
    pub async fn run(mut self) {
        loop {
            let began = Instant::now();
            let look = self.look(began).await;
            tracing::trace!(us = began.elapsed().as_micros(), "looked at everything");
            match look {
                Ok(look) => {
                    if self.looks.send(look).await.is_err() {
                        return;
                    }
                }
                Err(error) => self.log.warn(format!("cannot look at this host's processes: {error}")),
            }
            match self.pause(began).await {
                Ok(is_calm) => self.is_calm = is_calm,
                Err(_) => return,
            }
        }
    }

    async fn look(&mut self, began: Instant) -> io::Result<Look> {
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
        let Attention { known, doubtful, .. } = self.attention.borrow_and_update().clone();
        let daemon = *self.daemons.borrow();
        let home = self.home.clone();
        let is_calm = self.is_calm && listed.is_some();
        let mut before = self.before.take().filter(|_| is_calm);
        let (look, before) = task::spawn_blocking(move || -> io::Result<_> {
            let proc = Proc::default();
            let processes = Processes::read(&proc);
            let roots = listed.as_ref().map_or(known, |listed| look::roots(&proc, listed));
            let again = match &mut before {
                Some(before) => before.look_again(&proc, began, daemon, &processes, &roots)?,
                None => None,
            };
            let is_again = again.is_some();
            let mut look = match again {
                Some(look) => look,
                None => {
                    let look = Look::take(&proc, began, daemon, &processes, &roots)?;
                    before = Before::new(&look, &processes, roots);
                    look
                }
            };
            look.try_each(&doubtful);
            // To read every command line is dear, and calm is the rule.
            let is_calm = listed.as_ref().is_some_and(|listed| {
                !listed.is_empty() && listed.iter().all(|worker| worker.status == Status::Online)
            });
            let updating = !is_calm && !is_again && update::is_running(&proc, &processes, &home);
            // As long as somebody is at it, every look is a whole one.
            let before = before.filter(|_| !updating);
            Ok((Look { listed, updating: Some(updating), ..look }, before))
        })
        .await
        .map_err(io::Error::other)??;
        self.before = before;
        Ok(look)
    }

    async fn list(&mut self) -> Result<Vec<Listed>, RpcError> {
        let mut rpc = match self.rpc.take() {
            Some(rpc) => rpc,
            None => Rpc::connect(&self.home).await?,
        };
        let listed = rpc.list().await?;
        self.daemons.send_replace(Some(rpc.daemon()));
        self.rpc = Some(rpc);
        Ok(listed)
    }

    /// Waits until the next look is due, and says whether that was only a matter of time. Error: nobody wants it.
    async fn pause(&mut self, began: Instant) -> Result<bool, watch::error::RecvError> {
        let rested = Instant::now() + rest(began.elapsed());
        loop {
            let ask = self.attention.borrow_and_update().ask;
            let pause = ask.map_or(CALM, |ask| ask.min(CALM));
            tokio::select! {
                () = self.hurry.notified() => {
                    time::sleep_until((Instant::now() + SWARM).max(rested).into()).await;
                    return Ok(false);
                }
                changed = self.attention.changed() => changed?,
                () = time::sleep_until((began + pause).max(rested).into()) => return Ok(ask.is_none()),
            }
        }
    }
}

// === impl Lookout ===

impl Lookout {
    /// Looks for ever; ends when nobody wants to know any more.
    pub async fn run(mut self) {
        while self.due().await.is_ok() {
            let began = Instant::now();
            let roots = self.attention.borrow_and_update().starting.clone();
            // What cannot be read is told by the scout.
            let look = self.look(began, roots).await;
            tracing::trace!(us = began.elapsed().as_micros(), "looked at those who start");
            if let Ok(look) = look
                && self.looks.send(look).await.is_err()
            {
                return;
            }
            time::sleep(rest(began.elapsed())).await;
        }
    }

    /// Waits while nobody starts. Error: nobody wants to know.
    async fn due(&mut self) -> Result<(), watch::error::RecvError> {
        let last = Instant::now();
        loop {
            let pace = self.attention.borrow_and_update().pace;
            let Some(pace) = pace else {
                self.attention.changed().await?;
                continue;
            };
            tokio::select! {
                () = self.hurry.notified() => return Ok(()),
                changed = self.attention.changed() => changed?,
                () = time::sleep_until((last + pace).into()) => return Ok(()),
            }
        }
    }

    async fn look(&mut self, began: Instant, roots: Vec<(PmId, Process)>) -> io::Result<Look> {
        let daemon = *self.daemons.borrow();
        let family = self.family.take().filter(|(read, _)| read.elapsed() < FAMILY);
        let (look, family) = task::spawn_blocking(move || {
            let proc = Proc::default();
            let family = family.unwrap_or_else(|| (Instant::now(), Arc::new(Processes::read(&proc))));
            (Look::take(&proc, began, daemon, &family.1, &roots), family)
        })
        .await
        .map_err(io::Error::other)?;
        self.family = Some(family);
        look
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_that_took_long_is_soon_followed_by_another() {
        assert_eq!(rest(Duration::from_millis(10)), Duration::from_millis(20));
        // This process was stopped in the middle of it, or PM2 was.
        assert_eq!(rest(Duration::from_secs(13)), REST);
    }
}
