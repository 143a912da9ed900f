//! What an operator wrote in nginx.conf stays in force, whatever marks come and go: backups, limits, retries, weights.

use anyhow::{Result, anyhow, ensure};
use e2e::{
    blocks::{self, Block, servers},
    crowd::{self, Answer, Ask},
    farm::Farm,
    marker::Marker,
    ports,
    site::{PATIENCE, Site, VERSIONS},
    wait,
};
use handoff_wire::{PeerState, State};
use std::collections::BTreeMap;

const KEEPALIVE: [&str; 3] = ["handoff;", "keepalive 8; handoff;", "handoff; keepalive 8;"];

const ASKS: usize = 2 * crowd::SIZE as usize;

/// An nginx with some upstreams in front of a farm of `N` peers.
struct Stage<const N: usize> {
    farm: Farm,
    site: Site,
}

/// What came of a number of questions, and where nginx went with them.
struct Outcome {
    answers: Vec<Answer>,
    arrived: BTreeMap<String, usize>,
}

// === impl Stage ===

impl<const N: usize> Stage<N> {
    async fn new(version: &str, blocks: impl FnOnce([&str; N]) -> Vec<Block>) -> Result<Self> {
        let farm = Farm::start(u16::try_from(N)?).await?;
        let blocks = blocks(peers(&farm)?);
        let site = blocks::site(version, &blocks).await?;
        Ok(Self { farm, site })
    }

    fn peers(&self) -> Result<[&str; N]> {
        peers(&self.farm)
    }

    async fn ask(&self, ask: Ask) -> Result<Outcome> {
        self.farm.arrivals().await?;
        let answers = crowd::ask(ports::address(self.site.port()), vec![ask; ASKS]).await?;
        let mut arrived = BTreeMap::new();
        for arrival in self.farm.arrivals().await? {
            *arrived.entry(arrival.peer).or_default() += 1;
        }
        Ok(Outcome { answers, arrived })
    }

    async fn get(&self, upstream: &str) -> Result<Outcome> {
        self.ask(Ask::get(format!("/{upstream}/"))).await
    }

    /// Everybody is answered, and by all of these and nobody else.
    async fn is_served_by(&self, upstream: &str, peers: &[&str]) -> Result<()> {
        let Outcome { answers, arrived } = self.get(upstream).await?;
        ensure!(answers.iter().all(|answer| answer.status == 200), "{upstream}: {answers:?}");
        let arrived: Vec<&str> = arrived.keys().map(String::as_str).collect();
        ensure!(arrived == peers, "{arrived:?} serve {upstream}, not {peers:?}");
        Ok(())
    }

    /// A request that its peer keeps until it is released.
    async fn held(&self, upstream: &str, peer: &str) -> Result<tokio::task::JoinHandle<Result<Answer>>> {
        let held = tokio::spawn(crowd::one(ports::address(self.site.port()), format!("/{upstream}/hold")));
        self.farm.holds(&[peer]).await?;
        Ok(held)
    }

    fn operator<'a>(&'a self, upstream: &'a str) -> Marker<'a> {
        Marker::operator(&self.site, upstream)
    }
}

fn peers<const N: usize>(farm: &Farm) -> Result<[&str; N]> {
    farm.peers().try_into().map_err(|peers| anyhow!("{N} peers, not {peers:?}"))
}

// === impl Outcome ===

impl Outcome {
    fn count(&self, status: u16) -> usize {
        self.answers.iter().filter(|answer| answer.status == status).count()
    }

    fn at(&self, peer: &str) -> usize {
        self.arrived.get(peer).copied().unwrap_or_default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn backups_serve_while_no_primary_may_and_not_a_request_longer() -> Result<()> {
    for version in VERSIONS {
        let cases =
            || ["", "least_conn;"].into_iter().flat_map(|it| KEEPALIVE.map(|keepalive| (it, keepalive)));
        let stage = Stage::new(version, |[one, two, three, four]| {
            let (primary, backup) = (servers([one, two], ""), servers([three, four], "backup"));
            let lines =
                cases().map(|(balancer, keepalive)| format!("{balancer} {primary} {backup} {keepalive}"));
            (0..).zip(lines).map(|(number, lines)| Block::new(format!("u{number}"), lines)).collect()
        });
        let stage = stage.await?;
        let [one, two, three, four] = stage.peers()?;
        for number in 0..cases().count() {
            let name = &format!("u{number}");
            let operator = stage.operator(name);
            stage.is_served_by(name, &[one, two]).await?;
            operator.says(State::Draining, &[one]).await?;
            stage.is_served_by(name, &[two]).await?;
            operator.says(State::Down, &[two]).await?;
            stage.is_served_by(name, &[three, four]).await?;
            operator.says(State::Draining, &[three]).await?;
            stage.is_served_by(name, &[four]).await?;
            operator.says(State::Up, &[two]).await?;
            stage.is_served_by(name, &[two]).await?;
            operator.says(State::Up, &[one, three]).await?;
            stage.is_served_by(name, &[one, two]).await?;
        }
        stage.site.end().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn where_everybody_is_marked_nginx_answers_as_where_everybody_is_down() -> Result<()> {
    for version in VERSIONS {
        let stage = Stage::new(version, |[one, two, three]| {
            let kinds = [
                servers([one], ""),
                servers([one, two, three], ""),
                servers([one, two], "") + &servers([three], "backup"),
            ];
            let lines =
                kinds.iter().flat_map(|servers| KEEPALIVE.map(|keepalive| format!("{servers} {keepalive}")));
            let ours = (0..).zip(lines).map(|(number, lines)| Block::new(format!("u{number}"), lines));
            ours.chain([Block::new("stock", servers([one, two, three], "down"))]).collect()
        });
        let stage = stage.await?;
        let [one, two, three] = stage.peers()?;
        let stock = stage.get("stock").await?.answers;
        // Of each kind of upstream: its peers, and how many of them are primaries.
        let kinds = [(&[one][..], 1), (&[one, two, three], 3), (&[one, two, three], 2)];
        let cases = kinds.into_iter().flat_map(|kind| KEEPALIVE.map(|_| kind));
        for (number, (peers, primaries)) in (0..).zip(cases) {
            let name = &format!("u{number}");
            let primaries: Vec<&str> = peers.iter().take(primaries).copied().collect();
            stage.is_served_by(name, &primaries).await?;
            stage.operator(name).says(State::Draining, peers).await?;
            let outcome = stage.get(name).await?;
            ensure!(outcome.answers == stock, "{name}: {:?}, and not {stock:?}", outcome.answers);
            ensure!(outcome.arrived.is_empty(), "{name}: {:?}", outcome.arrived);
            let log = stage.site.error_log();
            let url = format!("http://{name}/");
            let told = log.lines().any(|line| line.contains("no live upstreams") && line.contains(&url));
            ensure!(told, "nginx does not say why: {log}");
            stage.operator(name).says(State::Up, peers).await?;
            stage.is_served_by(name, &primaries).await?;
        }
        stage.site.end().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn weights_and_down_are_the_operators() -> Result<()> {
    for version in VERSIONS {
        let stage = Stage::new(version, |[heavy, light, down]| {
            let lines = format!("server {heavy} weight=3; server {light}; server {down} down; handoff;");
            vec![Block::new("app", lines)]
        });
        let stage = stage.await?;
        let all @ [heavy, light, down] = stage.peers()?;
        let operator = stage.operator("app");
        for peers in [&[][..], &[heavy], &[light], &[down], &[heavy, down], &all] {
            if !peers.is_empty() {
                operator.says(State::Draining, peers).await?;
                let outcome = stage.get("app").await?;
                ensure!(peers.iter().all(|peer| outcome.at(peer) == 0), "{:?}", outcome.arrived);
                operator.says(State::Up, peers).await?;
            }
            let outcome = stage.get("app").await?;
            let got = all.map(|peer| outcome.at(peer));
            // One more or less: an earlier round may have ended in the middle.
            ensure!(
                got.iter().sum::<usize>() == ASKS && got[0].abs_diff(ASKS * 3 / 4) <= 1 && got[2] == 0,
                "{got:?}"
            );
            for (peer, weight, state) in
                [(heavy, 3, PeerState::Up), (light, 1, PeerState::Up), (down, 1, PeerState::Down)]
            {
                let view = operator.view(peer).await?;
                ensure!((view.weight, view.state) == (weight, state), "{view:?}");
            }
        }
        stage.site.end().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_at_its_max_conns_is_full_and_a_refused_choice_takes_no_place() -> Result<()> {
    for version in VERSIONS {
        let stage = Stage::new(version, |peers| {
            vec![Block::new("app", format!("{} handoff;", servers(peers, "max_conns=1")))]
        });
        let stage: Stage<2> = stage.await?;
        let [full, drained] = stage.peers()?;
        let operator = stage.operator("app");
        operator.says(State::Draining, &[drained]).await?;
        let held = stage.held("app", full).await?;
        let outcome = stage.get("app").await?;
        ensure!(outcome.count(502) == ASKS && outcome.arrived.is_empty(), "{:?}", outcome.arrived);
        let refused = operator.view(drained).await?.refused;
        ensure!(refused > 0, "the balancer never chose the peer that is draining");

        // One at a time: there is one place.
        operator.says(State::Up, &[drained]).await?;
        for _ in 0..3 {
            let answer = crowd::one(ports::address(stage.site.port()), "/app/").await?;
            ensure!(answer.peer.as_deref() == Some(drained), "after {refused} refusals: {answer:?}");
        }
        stage.farm.release().await?;
        ensure!(held.await??.peer.as_deref() == Some(full), "the held request was moved");
        stage.site.end().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_choice_is_no_try_and_grants_none() -> Result<()> {
    for version in VERSIONS {
        let stage = Stage::new(version, |peers| {
            let lines = format!("{} handoff;", servers(peers, "max_fails=0"));
            let block = |name, location| Block::new(name, &*lines).passed_with(location);
            vec![
                block("off", "proxy_next_upstream off;"),
                block("once", "proxy_next_upstream_tries 1;"),
                block("twice", "proxy_next_upstream_tries 2;"),
                block("any", ""),
            ]
        });
        let stage: Stage<3> = stage.await?;
        let [marked, dying, fine] = stage.peers()?;
        for (upstream, retries) in [("off", false), ("once", false), ("twice", true), ("any", true)] {
            stage.operator(upstream).says(State::Draining, &[marked]).await?;
            stage.is_served_by(upstream, &[dying, fine]).await?;
            let outcome = stage.ask(Ask::get(format!("/{upstream}/")).with("x-die", dying)).await?;
            let (died, served) = (outcome.at(dying), outcome.at(fine));
            ensure!(outcome.at(marked) == 0 && died > 0, "{upstream}: {:?}", outcome.arrived);
            let (good, bad) = if retries { (ASKS, 0) } else { (ASKS - died, died) };
            ensure!(
                (outcome.count(200), outcome.count(502)) == (good, bad),
                "{upstream}: {:?}",
                outcome.answers
            );
            ensure!(served == good, "{upstream}: {:?}", outcome.arrived);

            // An order that its worker may have executed is not repeated, marks or not.
            let outcome = stage.ask(Ask::post(format!("/{upstream}/")).with("x-die", dying)).await?;
            ensure!(
                outcome.count(502) == outcome.at(dying) && outcome.at(marked) == 0,
                "{upstream}: {:?}",
                outcome.arrived
            );
        }
        stage.site.end().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_during_a_drain_is_forgiven_when_it_is_over() -> Result<()> {
    for version in VERSIONS {
        let stage = Stage::new(version, |peers| {
            let lines = format!("{} handoff;", servers(peers, "max_fails=1 fail_timeout=1h"));
            vec![Block::new("app", lines)]
        });
        let stage: Stage<2> = stage.await?;
        let [peer, other] = stage.peers()?;
        let operator = stage.operator("app");
        // Only this one can have it.
        operator.says(State::Draining, &[other]).await?;
        let held = stage.held("app", peer).await?;
        operator.says(State::Up, &[other]).await?;

        operator.says(State::Draining, &[peer]).await?;
        stage.farm.stop(peer).await?;
        wait::until("nginx to see the failure", PATIENCE, async || {
            (operator.view(peer).await.ok()?.fails > 0).then_some(())
        })
        .await?;
        stage.farm.holds(&[other]).await?;
        stage.farm.release().await?;
        ensure!(held.await??.peer.as_deref() == Some(other), "a GET goes on elsewhere");
        operator.drained(peer).await?;

        stage.farm.restart(peer).await?;
        operator.says(State::Up, &[peer]).await?;
        stage.is_served_by("app", &[peer, other]).await?;
        stage.site.end().await?;
    }
    Ok(())
}
