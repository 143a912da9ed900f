//! Many deploys in a row: no user fails, and nothing grows.

use crate::stage::{PATIENCE, Plan, Stage};
use anyhow::{Context, Result, ensure};
use e2e::{alone, wait};
use std::{collections::BTreeMap, fs};

const RATE: u32 = 150;
/// How much more memory may be held at the end, in kB. PM2's daemon is a Node program, and takes before it gives back.
const GROWTH: u64 = 16 * 1024;
const GROWTH_OF_PM2: u64 = 64 * 1024;

/// What the processes that live through all deploys hold.
#[derive(Debug)]
struct Held(BTreeMap<String, Process>);

#[derive(Debug)]
struct Process {
    /// Open ones, sockets too.
    files: usize,
    /// In kB.
    memory: u64,
}

// === impl Held ===

impl Held {
    fn now(stage: &Stage) -> Result<Self> {
        let daemon: u32 = fs::read_to_string(stage.site.file("pm2/pm2.pid"))?.trim().parse()?;
        let named = |name: &str, pid: u32| Ok((format!("{name} {pid}"), Process::now(pid)?));
        let workers = stage.site.serving_workers().into_iter().map(|pid| named("nginx", pid));
        let others = [named("nginx's master", stage.site.master()), named("PM2", daemon)];
        let sidecar = stage.sidecar().map(|pid| named("handoff run", pid));
        workers.chain(others).chain(sidecar).collect::<Result<_>>().map(Self)
    }

    /// After a deploy that nobody visits: connections to the workers before it are gone, and there are no new ones.
    async fn at_rest(stage: &Stage) -> Result<Self> {
        stage.reload(&["shop"]).await?.is(0, &[])?;
        stage.is_whole().await?;
        Self::now(stage)
    }

    fn files(&self) -> BTreeMap<&str, usize> {
        self.0.iter().map(|(name, process)| (name.as_str(), process.files)).collect()
    }

    fn has_not_grown_to(&self, later: &Self) -> Result<()> {
        for (name, before) in &self.0 {
            let after = later.0.get(name).with_context(|| format!("{name} is gone"))?;
            let limit = if name.starts_with("PM2") { GROWTH_OF_PM2 } else { GROWTH };
            eprintln!("{name}: {} files, {} kB, then {} kB", before.files, before.memory, after.memory);
            ensure!(after.memory <= before.memory + limit, "{name}: {before:?}, then {after:?}");
        }
        Ok(())
    }
}

// === impl Process ===

impl Process {
    fn now(pid: u32) -> Result<Self> {
        // PM2 has those of /proc, of workers whose load it measured, open for a while after.
        let is_kept = |entry: &fs::DirEntry| {
            fs::read_link(entry.path()).is_ok_and(|target| !target.starts_with("/proc"))
        };
        let files = fs::read_dir(format!("/proc/{pid}/fd"))?.flatten().filter(is_kept).count();
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let memory = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        Ok(Self { files, memory: memory.trim().trim_end_matches(" kB").parse()? })
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "minutes; `make every-case` runs it"]
async fn a_hundred_deploys_in_a_row_fail_nobody_and_leave_nothing_behind() -> Result<()> {
    const COUNT: u32 = 100;
    let _alone = alone::take()?;
    let stage = Plan::workers(2).with_sidecar().set().await?;
    let first = stage.workers().await?;
    let visits = stage.visited(RATE);
    stage.reload(&["shop"]).await?.is(0, &[])?;
    visits.end_well().await?;
    let before = Held::at_rest(&stage).await?;

    // The next visitors' orders have the same names.
    fs::write(stage.orders(), "")?;
    let visits = stage.visited(RATE);
    for _ in 0..COUNT {
        stage.reload(&["shop"]).await?.is(0, &["all 2 workers of shop are new, and nothing was cut"])?;
    }
    visits.end_well().await?;

    let after = Held::at_rest(&stage).await?;
    before.has_not_grown_to(&after)?;
    // Fewer, where a connection of the stage's own was about to end.
    wait::until("as few open files as before", PATIENCE, async || {
        let (was, is) = (before.files(), Held::now(&stage).ok()?);
        is.files().iter().all(|(name, files)| was.get(name) >= Some(files)).then_some(())
    })
    .await
    .with_context(|| format!("{:?}, then {:?}", before.files(), after.files()))?;
    stage.is_as_before(&first).await?;
    let restarts = |workers: &crate::listing::Workers| -> u32 { workers.values().map(|w| w.restarts).sum() };
    let counted = restarts(&stage.workers().await?) - restarts(&first);
    ensure!(counted == 2 * (COUNT + 3), "PM2 counted {counted} restarts");
    stage.end().await
}
