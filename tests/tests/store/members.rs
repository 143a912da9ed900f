//! App hosts that come and go: no nginx.conf names their workers, and every nginx has them.

use crate::fleet::{Fleet, Guest, Plan, WARM, all_is_well, visits};
use anyhow::{Context, Result, ensure};
use e2e::{alone, site::PATIENCE, wait};
use handoff_wire::{Owner, PeerAdd, PeerState, PeerView, path, store::bringer};
use hyper::Method;
use std::{
    collections::BTreeSet,
    net::Ipv4Addr,
    time::{Duration, Instant},
};
use tokio::time::sleep;

const ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
/// A lease and a grace, each with its share of chance.
const LONG: Duration = Duration::from_secs(40);

impl Fleet {
    /// Every nginx has exactly these peers, and all of them are up.
    async fn have(&self, wanted: &[String]) -> Result<()> {
        let wanted: BTreeSet<&String> = wanted.iter().collect();
        for edge in 0..self.sites.len() {
            let site = self.site(edge)?;
            let has = wait::until("nginx to have these peers", LONG, async || {
                let peers = site.app().await.ok()?;
                let all: BTreeSet<&String> =
                    peers.iter().filter(|it| it.configured).map(|it| &it.address).collect();
                let are_up = peers.iter().filter(|it| it.configured).all(|it| it.state == PeerState::Up);
                (all == wanted && are_up).then_some(())
            });
            has.await.with_context(|| format!("{wanted:?} at nginx {edge}; {}", self.logs()))?;
        }
        Ok(())
    }

    fn own(&self) -> Vec<String> {
        self.app.addresses().iter().map(ToString::to_string).collect()
    }

    async fn find(&self, edge: usize, peer: &str) -> Result<Option<PeerView>> {
        Ok(self.site(edge)?.app().await?.into_iter().find(|view| view.address == peer))
    }

    /// A fleet of which nginx knows nobody, and a host that brings its workers.
    async fn of_members(more: &[&str]) -> Result<Self> {
        let mut fleet =
            Self::of(Plan { upstream: "handoff_slots 8; keepalive 8;".to_owned(), ..Plan::default() })
                .await?;
        fleet.bring(more)?;
        fleet.begin().await?;
        Ok(fleet)
    }
}

fn and(some: &[String], others: &[String]) -> Vec<String> {
    some.iter().chain(others).cloned().collect()
}

/// Its workers get requests of every nginx, a deploy of it is handed over, and it goes: nobody notices anything of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_host_joins_under_load_and_leaves_in_good_order() -> Result<()> {
    let _alone = alone::take()?;
    let upstream = "@servers@ handoff_slots 4; keepalive 8;".to_owned();
    let mut fleet = Fleet::of(Plan { upstream, ..Plan::default() }).await?;
    fleet.begin().await?;
    let mut guest = Guest::new(&fleet, "app2", ADDRESS).await?;
    let load = fleet.load();
    sleep(WARM).await;
    guest.start(&fleet, &[])?;
    fleet.have(&and(&fleet.own(), &guest.addresses())).await?;
    for edge in 0..2 {
        for peer in guest.addresses() {
            let serves = wait::until("the new worker to serve", PATIENCE, async || {
                fleet.find(edge, &peer).await.ok()?.filter(|view| view.responses.success > 5)
            });
            let view = serves.await?;
            assert_eq!((view.dynamic, view.added_by), (true, bringer(&"app2".parse()?)));
        }
    }
    let knows = wait::until("the host to know its workers", PATIENCE, async || {
        let ended = guest.handoff(&["status"]).await.ok()?;
        (ended.code == Some(0) && ended.stdout.contains("L0")).then_some(())
    });
    knows.await.with_context(|| fleet.logs())?;
    let ended = guest.handoff(&["reload", "myapp"]).await?;
    assert_eq!(ended.code, Some(0), "{ended:?}");

    let ended = guest.handoff(&["peers", "leave"]).await?;
    let gone: String = guest.addresses().iter().map(|peer| format!("{peer} in app: gone\n")).collect();
    assert_eq!((ended.code, ended.stdout), (Some(0), gone), "{}", ended.stderr);
    // Answered is done: nobody begins a request there any more.
    for edge in 0..2 {
        for peer in guest.addresses() {
            ensure!(
                fleet.find(edge, &peer).await?.is_none_or(|view| !view.configured),
                "{peer} at nginx {edge}"
            );
        }
    }
    guest.pm2.run(&["delete", "all"]).await?;
    fleet.have(&fleet.own()).await?;
    all_is_well(&visits(load).await?, &fleet.orders()?)?;
    let keys = fleet.etcd.dump().await?;
    ensure!(!keys.contains("/members/"), "{keys}");
    Ok(())
}

/// A partition must not empty an upstream. Its sidecar is dead, its workers are not: they serve until the grace is over.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "make store"]
async fn a_host_that_falls_silent_is_kept_for_its_grace_and_the_last_one_for_ever() -> Result<()> {
    let _alone = alone::take()?;
    let mut fleet = Fleet::of_members(&["--store-grace", "10s"]).await?;
    let mut guest = Guest::new(&fleet, "app2", ADDRESS).await?;
    guest.start(&fleet, &["--store-grace", "10s"])?;
    let all = and(&fleet.own(), &guest.addresses());
    fleet.have(&all).await?;
    let load = fleet.load();
    sleep(WARM).await;
    guest.kill()?;
    let silent = wait::until("its lease to be over", PATIENCE * 2, async || {
        (!fleet.etcd.dump().await.ok()?.contains("/hosts/app2\n")).then(Instant::now)
    });
    let silent = silent.await?;
    wait::until("half of the grace to pass", PATIENCE, async || {
        (silent.elapsed() > Duration::from_secs(5)).then_some(())
    })
    .await?;
    fleet.have(&all).await?;
    fleet.have(&fleet.own()).await?;
    ensure!(silent.elapsed() > Duration::from_secs(9), "after {:?}", silent.elapsed());
    ensure!(fleet.log("edge1").contains("silent: the peers that it brings stay for 10s"), "{}", fleet.logs());
    // It is there again: nothing was lost but its peers.
    guest.start(&fleet, &["--store-grace", "10s"])?;
    fleet.have(&all).await?;
    guest.kill()?;
    fleet.have(&fleet.own()).await?;
    // The only one that is left.
    fleet.kill_host()?;
    wait::until("somebody to say that it stays", LONG, async || {
        fleet.log("edge1").contains("only 0 of the 1 hosts that bring peers to app are there").then_some(())
    })
    .await
    .with_context(|| fleet.logs())?;
    fleet.have(&fleet.own()).await?;
    all_is_well(&visits(load).await?, &fleet.orders()?)
}

/// nginx forgets them, and has them again; an edge forgets that it added them, and takes them out all the same; what a person
/// added stays.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "make store"]
async fn whoever_restarts_takes_up_what_was_added() -> Result<()> {
    let _alone = alone::take()?;
    let mut fleet = Fleet::of_members(&[]).await?;
    let mut guest = Guest::new(&fleet, "app2", ADDRESS).await?;
    guest.start(&fleet, &[])?;
    let all = and(&fleet.own(), &guest.addresses());
    fleet.have(&all).await?;
    for site in &mut fleet.sites {
        let before = site.overview().await?.instance;
        site.kill().await?;
        site.start().await?;
        assert_ne!(site.overview().await?.instance, before);
    }
    let began = Instant::now();
    fleet.have(&all).await?;
    eprintln!("both nginx have their peers again {:?} after their start", began.elapsed());
    // A reload keeps them.
    for site in &fleet.sites {
        site.reload().await?;
    }
    fleet.have(&all).await?;
    let load = fleet.load();
    sleep(WARM).await;
    // Its edge is away while the host leaves; nobody waits for it longer than its lease.
    let mine = "127.0.0.3:9";
    let add = serde_json::to_string(&PeerAdd { weight: 1, ..PeerAdd::new(Owner::operator(), mine) })?;
    fleet.kill_edge(0)?;
    let leaving = guest.handoff(&["peers", "leave"]).await?;
    assert_eq!(leaving.code, Some(0), "{leaving:?}");
    ensure!(fleet.find(0, &guest.addresses()[0]).await?.is_some(), "its edge is dead, who took it out?");
    fleet.start_edge(0)?;
    fleet.have(&fleet.own()).await?;
    all_is_well(&visits(load).await?, &fleet.orders()?)?;
    // Of what a person added nobody knows but nginx.
    fleet.site(0)?.ask(Method::POST, &path::peers("app"), add).await?.json::<handoff_wire::PeerAck>()?;
    fleet.kill_edge(0)?;
    fleet.start_edge(0)?;
    guest.kill()?;
    guest.start(&fleet, &[])?;
    let with_mine = wait::until("nginx 1 to have all of them", LONG, async || {
        let peers = fleet.site(0).ok()?.app().await.ok()?;
        (peers.len() == 5 && peers.iter().any(|peer| peer.address == mine)).then_some(())
    });
    with_mine.await.with_context(|| fleet.logs())
}

/// Nothing of it is silent: the edge warns once, and the host's status says it.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "make store"]
async fn what_cannot_be_added_is_said_where_it_is_looked_for() -> Result<()> {
    let _alone = alone::take()?;
    let mut fleet = Fleet::silent(false).await?;
    let mut guest = Guest::new(&fleet, "app2", ADDRESS).await?;
    let [named, added] = &guest.addresses()[..] else { unreachable!() };
    for site in &fleet.sites {
        site.write(&format!(
            "upstream app {{ zone app 256k; server {}; server {named}; handoff_slots 1; handoff; }}\n\
             upstream none {{ zone none 256k; server 127.0.0.1:9; handoff; }}\n{}\n{}",
            fleet.own()[0],
            site.front("proxy_pass http://app;"),
            site.api("write=on")
        ))?;
        site.reload().await?;
    }
    for edge in 0..2 {
        fleet.start_edge(edge)?;
    }
    fleet.start_host()?;
    let file = fleet.site(0)?.file("app2.toml");
    // `added` listens; nobody listens on port 9, so it is not brought.
    let upstreams = [("app", named), ("app", added), ("none", added), ("nowhere", added)];
    let peer = |(upstream, address): &(&str, &String)| {
        format!("[[store.peer]]\nupstream = \"{upstream}\"\naddress = \"{address}\"\n")
    };
    let text: String = upstreams.iter().map(peer).collect();
    let unheard = peer(&("app", &"127.0.0.2:9".to_owned()));
    std::fs::write(&file, text + &unheard)?;
    guest.start_with(&fleet, &file, &[])?;
    // Another one says that the same address is its own, and that it has one more.
    let mut other = Guest::new(&fleet, "app3", ADDRESS).await?;
    let file = fleet.site(0)?.file("app3.toml");
    std::fs::write(&file, peer(&("app", added)) + &peer(&("app", &other.addresses()[0])))?;
    other.start_with(&fleet, &file, &[])?;
    for (guest, words) in [
        (
            &guest,
            vec![
                format!(
                    "nginx.conf names {named} in app: it is not added for app2, and stays when app2 leaves"
                ),
                format!("{added} in none was not added for app2: the upstream has no slots"),
                format!("nginx has no upstream \"nowhere\" for {added}"),
                format!("{added} in app is brought by app2 and by app3: whose is it?"),
                "127.0.0.2:9 in app is not brought: it has left, or nobody has listened there yet".to_owned(),
            ],
        ),
        (
            &other,
            vec![
                format!("{} in app was not added for app3: all 1 slots are taken", other.addresses()[0]),
                format!("{added} in app is brought by app2 and by app3"),
            ],
        ),
    ] {
        let says = wait::until("the status to say so", LONG, async || {
            let ended = guest.handoff(&["status"]).await.ok()?;
            let says = |words: &String| {
                ["edge1", "edge2"]
                    .iter()
                    .filter(|edge| ended.stdout.contains(&format!("at {edge}: {words}")))
                    .count()
                    == 2
                    || ended.stdout.contains(&format!("\n  {words}"))
            };
            words.iter().all(says).then_some(())
        });
        let said = guest.handoff(&["status"]).await?.stdout;
        says.await.with_context(|| format!("{words:?}\n{said}\n{}", fleet.logs()))?;
    }
    // Once, though it is tried each second.
    let log = fleet.log("edge1");
    assert_eq!(log.matches("the upstream has no slots").count(), 1, "{log}");
    // With room it is there, and nobody need do more.
    for site in &fleet.sites {
        let text = std::fs::read_to_string(site.conf())?.replace("handoff_slots 1", "handoff_slots 2");
        std::fs::write(site.conf(), text)?;
        site.reload().await?;
    }
    fleet.have(&[fleet.own()[0].clone(), named.clone(), added.clone(), other.addresses()[0].clone()]).await?;
    // Who leaves is told what stays.
    let ended = guest.handoff(&["peers", "leave"]).await?;
    ensure!(
        ended.code == Some(1)
            && ended.stderr.contains(&format!("{named} in app stays at edge1: nginx.conf names it")),
        "{ended:?}"
    );
    Ok(())
}
