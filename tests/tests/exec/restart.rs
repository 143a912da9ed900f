//! A supervisor restarts one worker after the other, under load, as `systemctl restart` and supervisord do: a signal, a wait, a
//! start.

use crate::stage::Stage;
use anyhow::Result;
use e2e::{alone, site::VERSIONS};
use rustix::process::Signal;

/// How many of how many visits failed while each of two workers was restarted.
async fn restart_each(version: &str, with_handoff: bool) -> Result<(Vec<String>, usize)> {
    let stage = Stage::set(version).await?;
    let options = ["--health", "/health"];
    let start = |worker| stage.start(stage.app(worker, with_handoff, &options)?, &format!("worker-{worker}"));
    let is_back = async |number| match with_handoff {
        true => stage.serves(number).await,
        false => stage.listens(number).await,
    };
    let mut workers = [start(0)?, start(1)?];
    for number in [0, 1] {
        is_back(number).await?;
    }
    let load = stage.load();
    for (number, worker) in (0..).zip(&mut workers) {
        worker.signal(Signal::TERM);
        worker.ended().await?;
        *worker = start(number)?;
        is_back(number).await?;
    }
    let visits = load.stop().await;
    let failed = stage.judge(&visits)?;
    for worker in &mut workers {
        worker.signal(Signal::TERM);
        worker.ended().await?;
    }
    stage.site.end().await?;
    Ok((failed, visits.len()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_handles_no_signal_is_restarted_and_nobody_notices() -> Result<()> {
    let _alone = alone::take()?;
    for version in VERSIONS {
        let (failed, all) = restart_each(version, true).await?;
        println!("nginx {version}, with handoff exec: {} of {all} failed", failed.len());
        assert_eq!(failed, [""; 0], "of {all}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn without_handoff_exec_visitors_notice() -> Result<()> {
    let _alone = alone::take()?;
    let [version, _] = VERSIONS;
    let (failed, all) = restart_each(version, false).await?;
    println!("nginx {version}, without handoff exec: {} of {all} failed", failed.len());
    assert!(!failed.is_empty(), "then the test above shows nothing");
    Ok(())
}
