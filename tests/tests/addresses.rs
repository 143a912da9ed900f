//! A peer is an address in an upstream, of whatever kind, and a mark goes where it says.

use anyhow::{Result, ensure};
use e2e::{
    blocks::{self, Block, servers},
    crowd::{self, Ask},
    farm::{self, Farm},
    marker::Marker,
    place::Place,
    ports,
    site::{Site, VERSIONS},
};
use handoff_wire::State;
use std::{
    collections::BTreeSet,
    net::{Ipv6Addr, TcpListener, ToSocketAddrs},
};

/// Who is reached through an upstream.
async fn reached(site: &Site, farm: &Farm, upstream: &str) -> Result<BTreeSet<String>> {
    farm.arrivals().await?;
    let asks = (0..crowd::SIZE).map(|_| Ask::get(format!("/{upstream}/")));
    let answers = crowd::ask(ports::address(site.port()), asks).await?;
    let arrivals = farm.arrivals().await?;
    ensure!(
        answers.iter().all(|answer| answer.status == if arrivals.is_empty() { 502 } else { 200 }),
        "{answers:?}"
    );
    Ok(arrivals.into_iter().map(|arrival| arrival.peer).collect())
}

fn set(peers: &[&str]) -> BTreeSet<String> {
    peers.iter().map(|&peer| peer.to_owned()).collect()
}

/// Drains each peer in turn, and then all of them.
async fn each_can_be_drained(site: &Site, farm: &Farm, upstream: &str) -> Result<()> {
    let operator = Marker::operator(site, upstream);
    let all = farm.peers();
    ensure!(reached(site, farm, upstream).await? == set(&all), "not everybody serves");
    for peer in &all {
        let others: Vec<&str> = all.iter().filter(|other| other != &peer).copied().collect();
        operator.says(State::Draining, &[peer]).await?;
        operator.drained(peer).await?;
        ensure!(reached(site, farm, upstream).await? == set(&others), "{peer} is draining");
        operator.says(State::Up, &[peer]).await?;
        ensure!(reached(site, farm, upstream).await? == set(&all), "{peer} is up again");
    }
    operator.says(State::Down, &all).await?;
    ensure!(reached(site, farm, upstream).await?.is_empty(), "all are down");
    operator.says(State::Up, &all).await?;
    ensure!(reached(site, farm, upstream).await? == set(&all), "all are up again");
    Ok(())
}

async fn peers_can_be_drained(peers: &[String], servers: &str) -> Result<()> {
    for version in VERSIONS {
        let farm = Farm::at(peers.to_vec()).await?;
        let block = Block::new("app", format!("{servers} handoff;"));
        let site = blocks::site(version, &[block]).await?;
        each_can_be_drained(&site, &farm, "app").await?;
        site.end().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_of_ipv6_can_be_drained() {
    if TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_err() {
        eprintln!("not tested: this machine has no ::1");
        return;
    }
    let first = ports::row(2).unwrap();
    let peers = [first, first + 1].map(|port| format!("[::1]:{port}"));
    peers_can_be_drained(&peers, &servers(peers.iter().map(String::as_str), "")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_behind_unix_sockets_can_be_drained() {
    let place = Place::new().unwrap();
    let peers = ["a.sock", "b.sock"].map(|name| format!("unix:{}", place.file(name).display()));
    peers_can_be_drained(&peers, &servers(peers.iter().map(String::as_str), "")).await.unwrap();
}

/// `localhost` is what the machine says: often 127.0.0.1 and ::1.
#[tokio::test(flavor = "multi_thread")]
async fn a_name_with_two_addresses_is_two_peers() {
    let name = format!("localhost:{}", ports::row(1).unwrap());
    let peers: BTreeSet<String> =
        name.to_socket_addrs().unwrap().map(|address| address.to_string()).collect();
    let peers: Vec<String> = peers.into_iter().collect();
    eprintln!("{name} is {peers:?}");
    // A single one has a short cut in nginx, which is tested elsewhere: here is somebody who is left.
    let other = farm::addresses(1).unwrap();
    let all = [&peers[..], &other].concat();
    peers_can_be_drained(&all, &servers([name.as_str(), &other[0]], "")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mark_goes_to_one_upstream_if_it_names_it_and_else_to_all_that_have_the_peer() {
    for version in VERSIONS {
        let farm = Farm::start(2).await.unwrap();
        let [one, other] = farm.peers()[..] else { panic!("two peers") };
        let lines = format!("{} handoff;", servers([one, other], ""));
        let blocks = ["left", "right"].map(|name| Block::new(name, &lines));
        let site = blocks::site(version, &blocks).await.unwrap();
        let left = Marker::operator(&site, "left");
        for (marker, in_left, in_right) in
            [(left, set(&[other]), set(&[one, other])), (left.everywhere(), set(&[other]), set(&[other]))]
        {
            let ack = marker.says(State::Draining, &[one]).await.unwrap();
            let marked = ack.marks.iter().map(|mark| mark.upstream.as_str()).collect::<Vec<_>>();
            assert_eq!(reached(&site, &farm, "left").await.unwrap(), in_left, "nginx {version}: {marked:?}");
            assert_eq!(
                reached(&site, &farm, "right").await.unwrap(),
                in_right,
                "nginx {version}: {marked:?}"
            );
            marker.says(State::Up, &[one]).await.unwrap();
            for upstream in ["left", "right"] {
                let reached = reached(&site, &farm, upstream).await.unwrap();
                assert_eq!(reached, set(&[one, other]), "nginx {version}: {upstream}");
            }
        }
        site.end().await.unwrap();
    }
}
