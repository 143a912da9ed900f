//! Peers that were added outlive a reload, whether it succeeds or fails, and the death of a worker; not nginx itself.

use crate::stage::{Peers, app, http, shares, visits};
use anyhow::{Context, Result};
use e2e::{
    farm::Farm,
    marker::Marker,
    process,
    site::{PATIENCE, Site, VERSIONS},
    wait,
};
use handoff_wire::{PeerState, State};
use rustix::process::Signal;
use std::collections::BTreeMap;
use tokio::spawn;

fn even(peers: &[&str], each: usize) -> BTreeMap<String, usize> {
    peers.iter().map(|&peer| (peer.to_owned(), each)).collect()
}

#[tokio::test]
async fn peers_that_were_added_outlive_reloads_good_and_bad() -> Result<()> {
    let farm = Farm::start(4).await?;
    let [one, two, three, four] = farm.peers()[..] else { unreachable!() };
    for version in VERSIONS {
        let lines = |slots: usize| format!("server {one}; handoff_slots {slots}; keepalive 8;");
        let site = app(version, &lines(2)).await?;
        let peers = Peers::of(&site);
        peers.add(two).await?;
        peers.add(three).await?;
        Marker::operator(&site, "app").says(State::Draining, &[three]).await?;
        let door = site.visitors();
        let held: Vec<_> = (0..2)
            .map(|_| {
                let door = door.clone();
                spawn(async move { door.get("/hold").await })
            })
            .collect();
        farm.holds(&[one, two]).await?;

        // The requests of old workers are counted, and the mark is kept.
        site.reload().await?;
        assert_eq!(shares(&site, 20).await?, even(&[one, two], 10));
        let view = peers.find(two).await?.context("a peer")?;
        assert_eq!((view.in_flight, view.dynamic, view.state), (1, true, PeerState::Up));
        assert_eq!(peers.find(three).await?.context("a peer")?.state, PeerState::Draining);

        // More slots, and a peer for the new one.
        site.write(&http(&site, &lines(3)))?;
        site.reload().await?;
        peers.add(four).await?;
        assert_eq!(shares(&site, 30).await?, even(&[one, two, four], 10));

        // Fewer than there are peers is refused, and nothing has changed.
        site.write(&http(&site, &lines(1)))?;
        site.reload_in_vain("upstream \"app\" has 3 peers that were added, and \"handoff_slots\" for 1")
            .await?;
        assert_eq!(shares(&site, 30).await?, even(&[one, two, four], 10));
        site.write(&http(&site, &format!("server {one};")))?;
        site.reload_in_vain("upstream \"app\" has 3 peers that were added, and \"handoff_slots\" for 0")
            .await?;
        site.write(&http(&site, &format!("{} bad directive;", lines(3))))?;
        site.reload_in_vain("unknown directive \"bad\"").await?;
        assert_eq!(shares(&site, 30).await?, even(&[one, two, four], 10));
        assert_eq!(peers.taken().await?, (3, 0));

        // As many as there are will do; whoever is leaving needs none.
        assert_eq!(peers.remove(two, "").await?.in_flight, 1);
        peers.remove(three, "").await?;
        site.write(&http(&site, &lines(1)))?;
        site.reload().await?;
        assert_eq!(shares(&site, 20).await?, even(&[one, four], 10));
        assert_eq!(peers.find(two).await?.map(|view| view.in_flight), Some(1));
        farm.release().await?;
        for visit in held {
            assert_eq!(visit.await??.status, 200);
        }
        site.end_but_for(&["that were added", "unknown directive"]).await?;
    }
    Ok(())
}

/// nginx.conf has the last word: what it names is its own, and what it does not name is not.
#[tokio::test]
async fn a_peer_that_was_added_and_is_then_named_is_as_any_other() -> Result<()> {
    let farm = Farm::start(3).await?;
    let [one, two, three] = farm.peers()[..] else { unreachable!() };
    for version in VERSIONS {
        let site = app(version, "handoff_slots 2;").await?;
        let peers = Peers::of(&site);
        peers.add(one).await?;
        peers.add(two).await?;
        Marker::operator(&site, "app").says(State::Draining, &[two]).await?;
        site.write(&http(&site, &format!("server {one}; server {two}; handoff_slots 2;")))?;
        site.reload().await?;
        site.says("handoff: 2 peers that were added are named by the configuration now").await?;
        assert_eq!(shares(&site, 8).await?, even(&[one], 8), "the mark is kept");
        Marker::operator(&site, "app").says(State::Up, &[two]).await?;
        assert_eq!(shares(&site, 8).await?, even(&[one, two], 4));
        assert!(!peers.find(one).await?.context("a peer")?.dynamic);
        assert_eq!(peers.taken().await?, (0, 0));
        peers.add(three).await?;
        assert_eq!(shares(&site, 9).await?, even(&[one, two, three], 3));

        // It goes as it came: by nginx.conf.
        site.write(&http(&site, &format!("server {one}; handoff_slots 2;")))?;
        site.reload().await?;
        assert_eq!(shares(&site, 8).await?, even(&[one, three], 4));
        peers.add(two).await?;
        assert_eq!(shares(&site, 9).await?, even(&[one, two, three], 3));
        site.end().await?;
    }
    Ok(())
}

/// A worker that is killed in the middle of it all leaves nothing half done that the next one would not finish.
#[tokio::test]
async fn workers_that_are_killed_while_peers_come_and_go_leave_no_harm() -> Result<()> {
    let farm = Farm::start(3).await?;
    let [one, two, three] = farm.peers()[..] else { unreachable!() };
    for version in VERSIONS {
        let site = app(version, &format!("server {one}; handoff_slots 2; keepalive 8;")).await?;
        let peers = Peers::of(&site);
        for turn in 0..20_u32 {
            let workers = site.serving(&[]).await?;
            let victim = workers[turn as usize % workers.len()];
            // Whoever answers may be the one: then nobody answers.
            let killer = spawn(async move {
                tokio::time::sleep(std::time::Duration::from_micros(u64::from(turn) * 150)).await;
                process::signal(victim, Signal::KILL);
            });
            for peer in [two, three] {
                _ = peers.add(peer).await;
                _ = peers.remove(peer, "").await;
            }
            killer.await?;
            process::death(victim).await?;
            site.serving(&[victim]).await?;
        }
        peers.add(two).await?;
        peers.add(three).await?;
        assert_eq!(shares(&site, 30).await?, even(&[one, two, three], 10));
        peers.remove(two, "?timeout=5s").await?;
        assert_eq!(shares(&site, 20).await?, even(&[one, three], 10));
        // nginx's master frees the lock of the control path if its holder dies, and says so.
        site.end_but_for(&["exited on signal 9", "was locked by"]).await?;
    }
    Ok(())
}

/// Another master has another zone. Whoever added peers adds them again; `instance` says that it is time to.
#[tokio::test]
async fn a_new_nginx_knows_nobody_who_was_added() -> Result<()> {
    let farm = Farm::start(2).await?;
    let [one, two] = farm.peers()[..] else { unreachable!() };
    for version in VERSIONS {
        let mut site = app(version, &format!("server {one}; handoff_slots 2;")).await?;
        Peers::of(&site).add(two).await?;
        let instance = site.overview().await?.instance;
        site.kill().await?;
        site.start().await?;
        assert_ne!(site.overview().await?.instance, instance);
        let peers = Peers::of(&site);
        assert_eq!((peers.taken().await?, peers.find(two).await?), ((0, 0), None));
        assert_eq!(shares(&site, 4).await?, even(&[one], 4));
        peers.add(two).await?;
        wait::until("both to serve", PATIENCE, async || {
            let served = shares(&site, 4).await.ok()?;
            (served == even(&[one, two], 2)).then_some(())
        })
        .await?;
        visits(&site, 4).await?;
        site.end().await?;
    }
    Ok(())
}

/// The new binary has a zone of its own. If it is taken back, the old one's is as it was.
#[tokio::test]
async fn a_new_binary_knows_nobody_who_was_added() -> Result<()> {
    let farm = Farm::start(2).await?;
    let [one, two] = farm.peers()[..] else { unreachable!() };
    for version in VERSIONS {
        let mut site = Site::new(version).await?;
        site.write(&http(&site, &format!("server {one}; handoff_slots 2;")))?;
        site.start_daemon().await?;
        Peers::of(&site).add(two).await?;
        let new = site.upgraded().await?;
        process::signal(new, Signal::QUIT);
        process::death(new).await?;
        assert_eq!(shares(&site, 8).await?, even(&[one, two], 4));

        let (old, new) = (site.master(), site.upgraded().await?);
        site.signal(Signal::QUIT);
        process::death(old).await?;
        site.follow(new);
        assert_eq!(shares(&site, 8).await?, even(&[one], 8));
        Peers::of(&site).add(two).await?;
        assert_eq!(shares(&site, 8).await?, even(&[one, two], 4));
        site.end().await?;
    }
    Ok(())
}
