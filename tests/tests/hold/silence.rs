//! The owner of a mark dies while a peer is being replaced, and nobody says that it is back. Then the other peer goes, and nobody
//! says that either. nginx alone would have asked the first.

use crate::stage::Stage;
use anyhow::{Result, ensure};
use e2e::{
    blocks::servers,
    clock::Moment,
    farm::Farm,
    site::{PATIENCE, Site, VERSIONS},
    wait,
};
use handoff_wire::{PeerState, UpstreamView, path};
use hyper::Method;
use serde_json::json;
use std::{ops::RangeInclusive, time::Duration};
use tokio::time::sleep;

/// Three seconds, nginx's next look at the leases, and what a loaded machine may add.
const SILENCE: RangeInclusive<Duration> = Duration::from_millis(2_900)..=Duration::from_millis(5_250);

/// Three upstreams of two peers, of which nginx leaves none out by itself. The first of each is draining, of the first two by
/// somebody who says no more.
async fn half_gone(version: &str) -> Result<Stage> {
    let farm = Farm::start(6).await?;
    let site = Site::new(version).await?;
    let blocks: String = (["app", "off", "alive"].iter().zip(farm.peers().chunks(2)))
        .map(|(name, peers)| {
            let queue = if *name == "off" { "handoff_queue off; " } else { "" };
            let all = servers(peers.iter().copied(), "max_fails=0");
            format!("upstream {name} {{ zone {name} 256k; {all} {queue}handoff; }}\n")
        })
        .collect();
    site.write(&format!(
        "{blocks}{}\n{}",
        site.front(
            "location /off/ { proxy_pass http://off; } location /alive/ { proxy_pass http://alive; } \
                    location /app/ { proxy_pass http://app; }"
        ),
        site.api("write=on")
    ))?;
    Stage::with(site, farm).await
}

async fn view(stage: &Stage, upstream: &str) -> Option<UpstreamView> {
    stage.site.read(&path::upstream(upstream)).await.ok()
}

async fn nobody_fails(version: &str) -> Result<()> {
    let stage = half_gone(version).await?;
    let [a, b, c, d, e, f] = stage.farm.peers()[..] else { anyhow::bail!("six peers") };
    let began = Moment::now();
    let marks = [a, c].map(|peer| json!({ "peer": peer, "state": "draining", "expect": "back" }));
    let reply = stage.site.put(json!({ "owner": "pm2:silent", "marks": marks })).await?;
    ensure!(reply.status == 200, "{}", reply.text());
    stage.says("draining", "back", &[e]).await?;
    for peer in [b, d, f] {
        stage.farm.stop(peer).await?;
    }

    // They wait until nginx is sure, and are served by whoever is there.
    let waits = [stage.get("/app/get"), stage.visit(Method::POST, "/app/post", "an order")];
    stage.holds(2).await?;
    // Where nobody may wait nginx says so, and learns from it.
    ensure!(stage.get("/off/").await??.status == 502);
    // An owner that lives is believed, however long it takes.
    let waits_on = stage.get("/alive/get");
    for visit in waits {
        let reply = visit.await??;
        let took = Moment::now().since(began);
        ensure!(reply.status == 200 && SILENCE.contains(&took), "{} after {took:?}", reply.status);
        ensure!(reply.header("x-peer") == Some(a), "{:?}", reply.header("x-peer"));
    }
    wait::until("the other mark to lapse", PATIENCE, async || {
        (view(&stage, "off").await?.peers.first()?.state == PeerState::Up).then_some(())
    })
    .await?;
    let took = Moment::now().since(began);
    ensure!(SILENCE.contains(&took), "{took:?}");
    ensure!(stage.get("/off/").await??.status == 200);
    for (peer, upstream) in [(a, "app"), (c, "off")] {
        let line = format!(
            "lapse of pm2:silent: peer {peer} in upstream \"{upstream}\" draining -> up, 0 in flight (its owner is silent \
             and nobody is behind those that are up)"
        );
        ensure!(stage.site.told().contains(&line), "{:?}", stage.site.told());
    }

    sleep(Duration::from_millis(500)).await;
    ensure!(
        !waits_on.is_finished()
            && view(&stage, "alive").await.is_some_and(|alive| {
                alive
                    .peers
                    .first()
                    .is_some_and(|peer| peer.state == PeerState::Draining && peer.requests == 0)
            })
    );
    stage.farm.restart(f).await?;
    let reply = waits_on.await??;
    ensure!(reply.status == 200 && reply.header("x-peer") == Some(f), "{}", reply.status);
    stage.says("up", "", &[e]).await?;
    for peer in [b, d] {
        stage.farm.restart(peer).await?;
    }
    let arrivals = stage.farm.all_arrivals().await?;
    ensure!(arrivals.iter().filter(|arrival| arrival.path == "/app/post").count() == 1);
    stage.end().await
}

#[tokio::test]
async fn nobody_fails_for_the_mark_of_somebody_who_is_dead() -> Result<()> {
    let [one, other] = VERSIONS;
    tokio::try_join!(nobody_fails(one), nobody_fails(other))?;
    Ok(())
}
