//! All workers are new: whether they stay well, and how they serve users, for a while.

use super::{course::Course, moves::LOOK, trouble::Trouble};
use crate::{
    cli::exit::Exit,
    deploy::{
        settings::BAKE,
        traffic::{ENOUGH, Verdict},
    },
    host::{Proc, Process},
    pm2::{PmId, monitor::Status},
    rollout::{brake::Brake, health, verdict::Worse},
};
use std::{collections::BTreeMap, time::Instant};
use tokio::time;

/// So often in a row a worker is not well before that counts: one answer that comes late is none.
const ILL: u32 = 3;

impl Course<'_> {
    /// Returns what was seen.
    pub(super) async fn baked(&mut self, guard: &Brake) -> Result<String, Trouble> {
        self.look().await;
        if self.has_shared_peers() {
            self.tally.begin_anew();
        }
        let until = Instant::now() + self.settings.bake.unwrap_or(BAKE).duration();
        let all = self.processes().await?;
        let mut ill = BTreeMap::new();
        loop {
            if let Some(halt) = guard.pulled() {
                return Err(halt.into());
            }
            self.look().await;
            let verdict = self.verdict();
            if let Verdict::Worse(how, text) = verdict {
                let exit = if how == Worse::Errors { Exit::Errors } else { Exit::Slow };
                return Err(Trouble::new(exit, format!("the new release serves users worse: {text}")));
            }
            self.lives(&all).await?;
            self.is_well(&mut ill).await?;
            if Instant::now() >= until {
                let (new, old) = (self.tally.new, self.tally.old);
                return Ok(match verdict {
                    Verdict::Well => format!("{new} (the old release: {old})"),
                    _ => format!(
                        "{new} (the old release: {old}): too few to judge, {ENOUGH} of either are enough"
                    ),
                });
            }
            time::sleep(LOOK).await;
        }
    }

    /// Cluster mode: until the last worker was new, some of the answers were the old release's.
    fn has_shared_peers(&self) -> bool {
        let mut places = self.places.values().filter(|peers| !peers.is_empty());
        let first = places.next();
        places.next().is_some_and(|second| Some(second) == first)
    }

    async fn processes(&self) -> Result<BTreeMap<PmId, Option<Process>>, Trouble> {
        let workers = self.listed().await?;
        let of = |pid: Option<u32>| Process::find(&Proc::default(), pid?);
        Ok(workers
            .into_iter()
            .map(|worker| (worker.id, of(worker.pid).filter(|_| worker.status == Status::Online)))
            .collect())
    }

    async fn lives(&self, all: &BTreeMap<PmId, Option<Process>>) -> Result<(), Trouble> {
        let now = self.processes().await?;
        let is_other = |(id, process): &(&PmId, &Option<Process>)| {
            now.get(id).copied().flatten() != **process || process.is_none()
        };
        match all.iter().find(is_other) {
            None => Ok(()),
            Some((id, _)) => {
                let text = format!("{}:{id} did not stay up: it crashed, or somebody restarted it", self.app);
                Err(Trouble::new(Exit::Crashed, text))
            }
        }
    }

    async fn is_well(&self, ill: &mut BTreeMap<String, u32>) -> Result<(), Trouble> {
        let Some(path) = &self.options.health else { return Ok(()) };
        for peer in self.places.values().flatten() {
            let times = ill.entry(peer.address.clone()).or_default();
            match health::check(peer, path).await {
                Ok(()) => *times = 0,
                Err(what) => {
                    *times += 1;
                    if *times >= ILL {
                        let text = format!("{path} of {} {what}", peer.address);
                        return Err(Trouble::new(Exit::Unhealthy, text));
                    }
                }
            }
        }
        Ok(())
    }
}
