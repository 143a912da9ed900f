//! From its addition to the end of its last request, a peer that was added is a peer like any other.

use crate::stage::{Peers, app, refused, shares, visits};
use anyhow::{Context, Result};
use e2e::{
    crowd::{self, Ask},
    farm::{self, Farm},
    marker::Marker,
    ports,
    site::{PATIENCE, Site, VERSIONS},
    wait,
};
use handoff_wire::{Code, Owner, PeerAdd, PeerState, Span, State, path};
use hyper::Method;
use std::collections::{BTreeMap, BTreeSet};
use tokio::spawn;

#[tokio::test]
async fn a_peer_that_is_added_is_a_peer_like_any_other() -> Result<()> {
    let unix = e2e::place::Place::new()?;
    let unix = format!("unix:{}", unix.file("peer.sock").display());
    let [v4, port] = [farm::addresses(1)?.remove(0), farm::addresses(1)?.remove(0)];
    let v6 = format!("[::1]:{}", port.rsplit(':').next().context("a port")?);
    let all = [v4.as_str(), &v6, &unix];
    let farm = Farm::at(all.map(str::to_owned).to_vec()).await?;
    for version in VERSIONS {
        // No server is named at all.
        let site = app(version, "handoff_slots 4; keepalive 8;").await?;
        let peers = Peers::of(&site);
        assert_eq!(site.visitors().get("/").await?.status, 502, "as stock without live upstreams");
        for peer in all {
            let ack = peers.add(peer).await?;
            assert_eq!((ack.peer.as_str(), ack.changed, ack.state), (peer, true, State::Up));
        }
        let again = peers.add(all[1]).await?;
        assert!(!again.changed, "the same again is the same");
        assert_eq!(peers.taken().await?, (3, 0));

        let served = shares(&site, 30).await?;
        assert_eq!(served, all.map(|peer| (peer.to_owned(), 10)).into());
        let view = peers.find(&v6).await?.context("a peer")?;
        assert_eq!((view.state, view.configured, view.dynamic), (PeerState::Up, true, true));
        assert_eq!((view.requests, view.responses.success, view.weight), (10, 10, 1));
        // nginx's logs have the peer's own name, and its connections are kept.
        farm.arrivals().await?;
        let answers = visits(&site, 60).await?;
        assert!(answers.iter().all(|answer| answer.tried == answer.peer), "{answers:?}");
        let connections: BTreeSet<_> = answers.iter().map(|answer| answer.connection).collect();
        assert!(connections.len() < 60, "no connection was used twice");

        // It is marked as any other.
        let operator = Marker::operator(&site, "app");
        operator.says(State::Draining, &[&v6]).await?;
        // A choice that is refused is made again, and another process may have chosen in between.
        let served = shares(&site, 20).await?;
        assert!(
            served.keys().eq([&v4, &unix]) && served.values().all(|share| (8..=12).contains(share)),
            "{served:?}"
        );
        let queue = peers.view().await?.queue.context("a queue")?;
        assert_eq!((queue.held, queue.resumed), (0, 0), "nobody waits while others are up");
        operator.says(State::Up, &[&v6]).await?;
        assert_eq!(shares(&site, 30).await?.len(), 3);

        // To say it otherwise changes it.
        let heavy = PeerAdd { weight: 3, ..PeerAdd::new(Owner::operator(), &v4) };
        assert!(peers.adds(&heavy).await?.json::<handoff_wire::PeerAck>()?.changed);
        let served = shares(&site, 50).await?;
        assert!((28..=32).contains(&served[&v4]), "{served:?}");

        for peer in all {
            let ack = peers.remove(peer, "?timeout=5s").await?;
            assert_eq!((ack.changed, ack.state, ack.in_flight), (true, State::Down, 0));
            assert_eq!(peers.find(peer).await?, None);
        }
        assert_eq!(peers.taken().await?, (0, 0));
        assert_eq!(site.visitors().get("/").await?.status, 502);
        let told = site.told();
        let line = format!("add of operator: peer {v4} in upstream \"app\" down -> up, 0 in flight ()");
        assert!(told.contains(&line), "{told:?}");
        let line =
            format!("remove of operator: peer {v4} in upstream \"app\" up -> down, 0 in flight (a test)");
        assert!(told.contains(&line), "{told:?}");
        let counts = site.overview().await?.events;
        assert_eq!((counts.add, counts.remove), (4, 3));
        site.end().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_request_outlives_the_removal_of_its_peer_and_keeps_its_slot() -> Result<()> {
    let farm = Farm::start(2).await?;
    let [one, two] = farm.peers()[..] else { unreachable!() };
    for version in VERSIONS {
        let site = app(version, "handoff_slots 1; keepalive 8;").await?;
        let peers = Peers::of(&site);
        peers.add(one).await?;
        let door = site.visitors();
        let held = spawn(async move { door.get("/hold").await });
        farm.holds(&[one]).await?;

        let ack = peers.remove(one, "").await?;
        assert_eq!((ack.state, ack.in_flight), (State::Down, 1));
        assert!(!peers.remove(one, "?timeout=20ms").await?.changed, "it is on its way already");
        assert_eq!(peers.taken().await?, (0, 1));
        let full = peers.adds(&PeerAdd::new(Owner::operator(), two)).await?;
        refused(
            &full,
            Code::SlotsFull,
            "all 1 slots of the upstream \"app\" are taken; 1 of them by peers that were removed",
        )?;
        assert_eq!(peers.view().await?.slots.context("slots")?.refused, 1);
        site.says("handoff: all 1 slots of the upstream \"app\" are taken").await?;
        assert_eq!(site.visitors().get("/").await?.status, 502, "nobody gets there any more");

        // Whoever comes back before that is the same peer; then it goes for good.
        assert_eq!(peers.add(one).await?.in_flight, 1);
        assert_eq!(site.visitors().get("/").await?.header("x-peer"), Some(one));
        peers.remove(one, "").await?;
        let (site_door, path) = (site.control(), path::peer("app", one) + "?timeout=10s");
        let gone = spawn(async move { site_door.ask(Method::DELETE, &path, "").await });
        farm.release().await?;
        let reply = held.await??;
        assert_eq!((reply.status, reply.header("x-peer")), (200, Some(one)));
        assert_eq!(reply.header("x-tried"), Some(one), "it is logged where it was");
        assert_eq!(gone.await??.json::<handoff_wire::PeerAck>()?.in_flight, 0);

        // The connection was nobody's any more, and is not used for the next.
        peers.add(two).await?;
        assert_eq!(shares(&site, 10).await?, BTreeMap::from([(two.to_owned(), 10)]));
        peers.remove(two, "").await?;
        peers.add(one).await?;
        assert_eq!(shares(&site, 10).await?, BTreeMap::from([(one.to_owned(), 10)]));
        site.end().await?;
    }
    Ok(())
}

/// An upstream with one peer has nobody else to go to, and stock nginx does not leave it out.
#[tokio::test]
async fn an_only_peer_is_not_left_out_for_its_failures() -> Result<()> {
    let farm = Farm::start(2).await?;
    let [one, two] = farm.peers()[..] else { unreachable!() };
    for version in VERSIONS {
        for lines in ["handoff_slots 2;".to_owned(), format!("server {one}; handoff_slots 2;")] {
            let site = app(version, &lines).await?;
            let peers = Peers::of(&site);
            if !lines.contains("server") {
                peers.add(one).await?;
            }
            let dies = Ask::get("/").with("x-die", one);
            let fails = async || crowd::ask(ports::address(site.port()), [dies.clone()]).await;
            assert_eq!(fails().await?[0].status, 502);
            assert_eq!(peers.find(one).await?.context("a peer")?.state, PeerState::Up, "{lines}");
            visits(&site, 4).await?;

            // With another beside it it is, and the other serves meanwhile.
            peers.add(two).await?;
            for _ in 0..2 {
                assert_eq!(fails().await?[0].status, 200);
            }
            assert_eq!(peers.find(one).await?.context("a peer")?.state, PeerState::Unavail);
            assert_eq!(shares(&site, 4).await?, BTreeMap::from([(two.to_owned(), 4)]));
            peers.remove(two, "").await?;
            assert_eq!(shares(&site, 4).await?, BTreeMap::from([(one.to_owned(), 4)]));
            site.end().await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn what_cannot_be_added_or_removed_is_refused_with_the_reason() -> Result<()> {
    let farm = Farm::start(3).await?;
    let [one, two, three] = farm.peers()[..] else { unreachable!() };
    for version in VERSIONS {
        let site = app(version, &format!("server {one}; handoff_slots 1;")).await?;
        let peers = Peers::of(&site);
        let add = |peer: &str| PeerAdd::new(Owner::operator(), peer);
        for (peer, words) in [
            ("", "it is empty"),
            ("localhost:3000", "it is no address"),
            ("10.0.0.1", "it has no port"),
            ("10.0.0.1:0", "its port is not between"),
            ("0.0.0.0:80", "nobody can be reached"),
            ("unix:app.sock", "begins with a slash"),
        ] {
            refused(&peers.adds(&add(peer)).await?, Code::BadRequest, words)?;
        }
        let odd = [
            (PeerAdd { weight: 0, ..add(two) }, "the weight 0 of"),
            (PeerAdd { weight: 1001, ..add(two) }, "the weight 1001 of"),
            (PeerAdd { fail_timeout: Span::from_millis(1500), ..add(two) }, "whole seconds"),
            (PeerAdd { reason: "x".repeat(200), ..add(two) }, "one line of at most"),
        ];
        for (add, words) in odd {
            refused(&peers.adds(&add).await?, Code::BadRequest, words)?;
        }
        for (body, words) in [
            ("", "EOF while parsing"),
            ("[]", "the body is not understood"),
            ("{\"owner\":\"operator\"}", "missing field `peer`"),
            ("{\"owner\":\"operator\",\"peer\":\"10.0.0.1:1\",\"backup\":true}", "unknown field `backup`"),
            ("{\"owner\":\"operator\",\"peer\":\"10.0.0.1:1\",\"weight\":-1}", "invalid value"),
            ("\u{0}\u{1}{{{", "the body is not understood"),
        ] {
            let reply = site.ask(Method::POST, &path::peers("app"), body.to_owned()).await?;
            refused(&reply, Code::BadRequest, words)?;
        }
        let flood = site.ask(Method::POST, &path::peers("app"), "x".repeat(70_000)).await?;
        refused(&flood, Code::TooLarge, "larger than")?;
        refused(&peers.adds(&add(one)).await?, Code::Configured, "nginx.conf names the peer")?;
        refused(&peers.removes(one, "", "").await?, Code::Configured, "take its server out there")?;
        refused(&peers.removes(two, "", "").await?, Code::PeerNotFound, "has no peer")?;
        refused(&peers.removes("garbage", "", "").await?, Code::PeerNotFound, "has no peer")?;
        refused(&peers.removes(two, "?timeout=1h", "").await?, Code::BadRequest, "more than 30s")?;
        refused(&peers.removes(two, "", "{").await?, Code::BadRequest, "the body is not understood")?;
        let nobody = Peers { upstream: "nobody", ..peers };
        refused(&nobody.adds(&add(two)).await?, Code::UpstreamNotFound, "there is no upstream")?;
        let got = site.ask(Method::GET, &path::peers("app"), String::new()).await?;
        refused(&got, Code::MethodNotAllowed, "use POST")?;

        // The floor: nobody else would be left.
        peers.add(two).await?;
        refused(&peers.adds(&add(three)).await?, Code::SlotsFull, "remove a peer, or say more")?;
        Marker::pm2(&site, "app").says(State::Down, &[one]).await?;
        refused(&peers.removes(two, "", "").await?, Code::Floor, "nobody would be left")?;
        assert_eq!(shares(&site, 4).await?, BTreeMap::from([(two.to_owned(), 4)]));
        let fact = "{\"owner\":\"pm2:test\"}";
        assert_eq!(peers.removes(two, "", fact).await?.status, 200, "a fact is no choice");
        site.end().await?;
    }
    Ok(())
}

#[tokio::test]
async fn an_upstream_without_slots_says_where_they_come_from() -> Result<()> {
    let farm = Farm::start(1).await?;
    for version in VERSIONS {
        let site = app(version, &format!("server {};", farm.peers()[0])).await?;
        let add = PeerAdd::new(Owner::operator(), "10.0.0.1:3000");
        let reply = Peers::of(&site).adds(&add).await?;
        refused(&reply, Code::NoSlots, "say \"handoff_slots 8;\" in it, and reload nginx")?;
        assert_eq!(Peers::of(&site).view().await?.slots, None);
        site.end().await?;
    }
    Ok(())
}

/// Whoever had the slot before.
#[tokio::test]
async fn a_peer_that_was_added_resumes_its_own_tls_sessions() -> Result<()> {
    let farm = Farm::with_tls(2).await?;
    let [one, two] = farm.peers()[..] else { unreachable!() };
    for version in VERSIONS {
        let mut site = Site::new(version).await?;
        site.write(&format!(
            "upstream app {{ zone app 256k; handoff_slots 1; handoff; }}\n{}\n{}",
            site.front("proxy_pass https://app;").replace(
                "proxy_set_header Connection",
                "proxy_ssl_session_reuse on; proxy_set_header Connection"
            ),
            site.api("write=on")
        ))?;
        site.start().await?;
        let peers = Peers::of(&site);
        farm.arrivals().await?;
        for peer in [one, two, one] {
            peers.add(peer).await?;
            visits(&site, 3 * usize::from(crowd::SIZE)).await?;
            let resumed = farm.arrivals().await?.iter().filter(|arrival| arrival.resumed).count();
            assert!(resumed > 0, "each was a new session");
            peers.remove(peer, "?timeout=5s").await?;
        }
        site.end().await?;
    }
    Ok(())
}

/// nginx from 1.27.3 on gives nobody to a request that began before its list changed.
#[tokio::test]
async fn a_request_whose_peer_fails_goes_on_though_others_came_meanwhile() -> Result<()> {
    let farm = Farm::start(3).await?;
    let [one, two, three] = farm.peers()[..] else { unreachable!() };
    for version in VERSIONS {
        for balancer in
            ["", "least_conn;", "random two;", "hash $request_id;", "hash $request_id consistent;"]
        {
            let lines = format!("{balancer} server {one}; server {two}; handoff_slots 2;");
            let site = app(version, &lines).await?;
            let peers = Peers::of(&site);
            let door = site.visitors();
            let held = spawn(async move { door.get("/hold").await });
            let first = wait::until("a request to be held", PATIENCE, async || {
                let held = peers.view().await.ok()?.peers.into_iter().find(|peer| peer.in_flight == 1)?;
                farm.holds(&[&held.address]).await.ok().map(|()| held.address)
            });
            let first = first.await?;
            peers.add(three).await?;
            farm.disconnect(&first).await?;
            let second = wait::until("another to have it", PATIENCE, async || {
                let mut all = peers.view().await.ok()?.peers.into_iter();
                let other = all.find(|peer| peer.in_flight == 1 && peer.address != first)?;
                farm.holds(&[&other.address]).await.ok().map(|()| other.address)
            });
            let second = second.await.with_context(|| format!("{version} {balancer}: it failed"))?;
            farm.release().await?;
            let reply = held.await??;
            assert_eq!((reply.status, reply.header("x-peer")), (200, Some(second.as_str())));
            site.end().await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn who_waits_for_a_peer_goes_to_one_that_is_added() -> Result<()> {
    let farm = Farm::start(2).await?;
    let [one, two] = farm.peers()[..] else { unreachable!() };
    for version in VERSIONS {
        let site = app(version, &format!("server {one}; handoff_slots 1;")).await?;
        let peers = Peers::of(&site);
        let down = serde_json::json!({"owner": "pm2:test", "lease": "60s", "marks": [
            {"upstream": "app", "peer": one, "state": "down", "expect": "back"}]});
        site.put(down).await?.json::<handoff_wire::Ack>()?;
        let door = site.visitors();
        let waits = spawn(async move { door.get("/").await });
        wait::until("the request to wait", PATIENCE, async || {
            let queue = peers.view().await.ok()?.queue?;
            (queue.held == 1).then_some(())
        })
        .await?;
        peers.add(two).await?;
        let reply = waits.await??;
        assert_eq!((reply.status, reply.header("x-peer")), (200, Some(two)));
        site.end().await?;
    }
    Ok(())
}
