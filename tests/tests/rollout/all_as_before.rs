//! While workers are replaced, two at a time, PM2's list tells the truth; afterwards all is as it was, but new.

use crate::{
    listing::{Listing, Workers},
    stage::{LIGHT, PATIENCE, Plan},
};
use anyhow::{Result, ensure};
use e2e::wait;
use std::{collections::BTreeSet, time::Duration};
use tokio::{sync::watch, task::JoinHandle, time::sleep};

const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Looks at PM2's list all the while.
struct Lookout {
    looking: JoinHandle<Result<Vec<Workers>>>,
    stop: watch::Sender<()>,
}

// === impl Lookout ===

impl Lookout {
    fn new(listing: Listing) -> Self {
        let (stop, stopped) = watch::channel(());
        let looking = tokio::spawn(async move {
            let mut looks = Vec::new();
            while stopped.has_changed().is_ok() {
                looks.push(listing.workers().await?);
                sleep(LOOK_EVERY).await;
            }
            Ok(looks)
        });
        Self { looking, stop }
    }

    async fn end(self) -> Result<Vec<Workers>> {
        drop(self.stop);
        self.looking.await?
    }
}

/// Workers that were said to be online twice in a row with the same dead process.
fn lies(looks: &[Workers]) -> Vec<String> {
    let is_lie = |look: &Workers, id: u32| {
        let worker = look.get(&id)?;
        (worker.status == "online" && !worker.is_alive).then_some(worker.process())
    };
    let ids: BTreeSet<u32> = looks.iter().flat_map(|look| look.keys().copied()).collect();
    let twice = |pair: &[Workers], id: u32| match pair {
        [one, two] => is_lie(one, id).is_some() && is_lie(one, id) == is_lie(two, id),
        _ => false,
    };
    looks
        .windows(2)
        .flat_map(|pair| ids.iter().filter(|&&id| twice(pair, id)).map(move |id| format!("{id}: {pair:?}")))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_goes_alone_then_two_at_a_time_and_pm2s_list_is_true_at_every_moment() -> Result<()> {
    let stage = Plan::workers(4).set().await?;
    let visits = stage.visited(LIGHT);
    let before = stage.workers().await?;
    stage.pm2.run(&["stop", "2"]).await?;
    wait::until("worker 2 to be stopped", PATIENCE, async || {
        (stage.workers().await.ok()?.get(&2)?.status == "stopped").then_some(())
    })
    .await?;

    let lookout = Lookout::new(stage.listing());
    let ended =
        stage.reload(&["shop", "--parallel", "2"]).await?.is(0, &["all 4 workers of shop are new"])?;
    let looks = lookout.end().await?;

    ensure!(ended.planned() == [2, 0, 1, 3], "who does not serve goes first: {:?}", ended.planned());
    let at = |worker: u32, step: &str| {
        ended.events.iter().position(|event| {
            event.get("worker") == Some(&worker.into()) && event.get("step") == Some(&step.into())
        })
    };
    ensure!(
        at(2, "done").is_some() && at(2, "done") < at(0, "draining"),
        "the first is not alone: {ended:?}"
    );
    ensure!(at(1, "draining").is_some() && at(1, "draining") < at(0, "done"), "two at a time: {ended:?}");
    let at_once = |look: &Workers| look.values().filter(|worker| !worker.is_online()).count();
    ensure!(
        looks.len() > 20 && looks.iter().any(|look| at_once(look) > 0),
        "it looked {} times",
        looks.len()
    );
    ensure!(looks.iter().map(at_once).max() <= Some(2), "more than two were away at once");
    ensure!(lies(&looks).is_empty(), "{:?}", lies(&looks));

    let after = stage.workers().await?;
    stage.is_as_before(&before).await?;
    stage.kept(&before, &[]).await?;
    let counted = |id: u32| Some(after.get(&id)?.restarts - before.get(&id)?.restarts);
    // A start of a stopped worker is no restart.
    ensure!([0, 1, 2, 3].map(counted) == [Some(1), Some(1), Some(0), Some(1)], "{before:?} {after:?}");
    stage.is_whole().await?;
    visits.end_well().await?;
    stage.end().await
}
