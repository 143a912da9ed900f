//! A supervisor restarts one worker after the other, under load, as `systemctl restart` and supervisord do: a signal, a wait, a
//! start.

use crate::stage::Stage;
use anyhow::{Context, Result};
use e2e::{alone, site::VERSIONS};
use rustix::process::Signal;

async fn restart_each(version: &str, with_handoff: bool) -> Result<()> {
    let stage = Stage::set(version).await?;
    let start = |worker: u16| {
        let app = stage.app(worker, with_handoff, &["--health", "/health"])?;
        stage.start(app, &format!("worker-{worker}"))
    };
    let mut workers = [start(0)?, start(1)?];
    let restart = async |number: u16| {
        let worker = workers.get_mut(usize::from(number)).context("a worker")?;
        worker.signal(Signal::TERM);
        worker.ended().await?;
        *worker = start(number)?;
        Ok(())
    };
    stage.restarts(with_handoff, restart).await?.is_as_it_should(version);
    for worker in &mut workers {
        worker.signal(Signal::TERM);
        worker.ended().await?;
    }
    stage.site.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_handles_no_signal_is_restarted_and_nobody_notices() -> Result<()> {
    let _alone = alone::take()?;
    for version in VERSIONS {
        restart_each(version, true).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn without_handoff_exec_visitors_notice() -> Result<()> {
    let _alone = alone::take()?;
    let [version, _] = VERSIONS;
    restart_each(version, false).await
}
