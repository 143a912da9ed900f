//! A worker in a user namespace of its own (`unshare -Ur`), as rootless containers have it.

use crate::stage::Stage;
use anyhow::Result;
use e2e::{alone, site::VERSIONS};
use rustix::process::Signal;
use std::process::Command;

/// The same command, with `unshare -Ur` before all of it, or before what `handoff exec` runs.
fn in_namespace(command: &Command, with_handoff: bool) -> Command {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let mut words: Vec<_> = words.map(ToOwned::to_owned).collect();
    let at = if with_handoff { 0 } else { words.iter().position(|word| word == "--").map_or(0, |at| at + 1) };
    words.splice(at..at, ["unshare", "-Ur"].map(Into::into));
    let mut inside = crate::stage::clean(words.remove(0));
    inside.args(words).envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    inside
}

async fn restart(version: &str, with_handoff: bool) -> Result<()> {
    let stage = Stage::set(version).await?;
    let start = |worker| {
        let command = stage.app(worker, true, &["--health", "/health"])?;
        stage.start(in_namespace(&command, with_handoff), &format!("worker-{worker}"))
    };
    let mut workers = [start(0)?, start(1)?];
    for number in [0, 1] {
        stage.serves(number).await?;
    }
    let load = stage.load();
    for (number, worker) in (0..).zip(&mut workers) {
        worker.signal(Signal::TERM);
        worker.ended().await?;
        *worker = start(number)?;
        stage.serves(number).await?;
    }
    let visits = load.stop().await;
    let failed = stage.judge(&visits)?;
    println!("nginx {version}, handoff inside: {with_handoff}: {} of {} failed", failed.len(), visits.len());
    assert_eq!(failed, [""; 0], "of {}", visits.len());
    for worker in &mut workers {
        worker.signal(Signal::TERM);
        worker.ended().await?;
    }
    stage.site.end().await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "make exec-test"]
async fn a_worker_in_a_user_namespace_is_restarted_and_nobody_notices() -> Result<()> {
    let _alone = alone::take()?;
    let [old, new] = VERSIONS;
    restart(old, false).await?;
    restart(new, true).await
}
