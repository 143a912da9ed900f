//! `handoff_slow_start`: a new worker gets its share little by little, as far as its balancer knows weights; and nobody is
//! answered worse for it.

use anyhow::{Context, Result, ensure};
use e2e::{
    blocks::{self, Block},
    clock::Moment,
    crowd::{self, Answer, Ask},
    farm::{Arrival, Farm},
    marker::Marker,
    ports,
    site::{PATIENCE, Site, VERSIONS},
    wait,
};
use handoff_wire::{PeerState, SlowStartView, Span, State, UpstreamView, path};
use std::{iter, time::Duration};

/// The steps of a ramp: nginx's processes look every 250 ms, and not to the millisecond on a busy machine.
const STEP: Duration = Duration::from_millis(500);

/// Weights of the four peers; the first of them is the new worker.
const WEIGHTS: [(&str, [u32; 4]); 2] = [("even", [1; 4]), ("weighted", [4, 2, 1, 1])];

const RAMP: Duration = Duration::from_secs(3);

/// Which part of the requests is due to a peer of this weight, so long after it came up.
fn due([weight, others @ ..]: [u32; 4], after: Duration) -> f64 {
    let share = (after.as_secs_f64() / RAMP.as_secs_f64()).clamp(0.01, 1.0);
    let weight = f64::from(weight) * share;
    weight / (weight + others.iter().map(|&weight| f64::from(weight)).sum::<f64>())
}

/// A worker is replaced there: it was away, and another one serves.
async fn comes_anew(marker: &Marker<'_>, peer: &str) -> Result<()> {
    marker.says(State::Checking, &[peer]).await?;
    marker.says(State::Up, &[peer]).await?;
    Ok(())
}

async fn asks(site: &Site, name: &str, count: usize) -> Result<Vec<Answer>> {
    let asks = iter::repeat_n(Ask::get(format!("/{name}/")), count);
    crowd::ask(ports::address(site.port()), asks).await
}

/// One after the other, so that no peer has a request when the next one is chosen.
async fn asks_calmly(site: &Site, name: &str, count: usize) -> Result<Vec<Answer>> {
    let mut answers = Vec::new();
    for _ in 0..count {
        answers.push(crowd::one(ports::address(site.port()), format!("/{name}/")).await?);
    }
    Ok(answers)
}

fn of<'a>(answers: &'a [Answer], peer: &'a str) -> impl Iterator<Item = &'a Answer> {
    answers.iter().filter(move |answer| answer.peer.as_deref() == Some(peer))
}

fn all_are_answered(answers: &[Answer]) -> Result<()> {
    let failed: Vec<_> = answers.iter().filter(|answer| answer.status != 200).collect();
    ensure!(failed.is_empty(), "{failed:?}");
    Ok(())
}

/// What arrived at the peer in a part of the time is what was due to it at each of the moments at which requests were made.
/// Round robin strays from that by less than chance would.
fn is_due(arrivals: &[&Arrival], peer: &str, weights: [u32; 4], up: [Moment; 2]) -> Result<()> {
    let [earliest, latest] = up;
    let chances = |ago: Moment, before: Duration| {
        arrivals.iter().map(move |arrival| due(weights, (arrival.at - before).since(ago)))
    };
    let bound = |chances: &[f64], sign: f64| {
        let variance: f64 = chances.iter().map(|chance| chance * (1.0 - chance)).sum();
        chances.iter().sum::<f64>() + sign * (4.0 * variance.sqrt() + 2.0)
    };
    let least = bound(&chances(latest, STEP).collect::<Vec<_>>(), -1.0);
    let most = bound(&chances(earliest, Duration::ZERO).collect::<Vec<_>>(), 1.0);
    let got = arrivals.iter().filter(|arrival| arrival.peer == peer).count() as f64;
    println!("    {got} of {}, due {least:.0} to {most:.0}", arrivals.len());
    ensure!((least..=most).contains(&got), "{got} of {}, not {least:.0} to {most:.0}", arrivals.len());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_share_of_a_new_worker_grows_with_the_time() -> Result<()> {
    for version in VERSIONS {
        let farm = Farm::start(4).await?;
        let block = |(name, weights): (&str, [u32; 4])| {
            let servers = farm.peers().into_iter().zip(weights);
            let servers: String =
                servers.map(|(peer, weight)| format!("server {peer} weight={weight};")).collect();
            Block::new(
                name,
                format!("{servers} keepalive 32; handoff; handoff_slow_start {}s;", RAMP.as_secs()),
            )
        };
        let site = blocks::site(version, &WEIGHTS.map(block)).await?;
        let new = farm.peers().first().copied().context("a peer")?;
        let marker = Marker::pm2(&site, "even").everywhere();
        marker.says(State::Checking, &[new]).await?;

        let ask = async |until: Moment| {
            while Moment::now() < until {
                for (name, _) in WEIGHTS {
                    all_are_answered(&asks(&site, name, 96).await?)?;
                }
            }
            anyhow::Ok(())
        };
        ask(Moment::now()).await?;
        let earliest = Moment::now();
        marker.says(State::Up, &[new]).await?;
        let up = [earliest, Moment::now()];
        ask(up[1] + RAMP + RAMP / 4 + STEP).await?;

        let arrivals = farm.all_arrivals().await?;
        for (name, weights) in WEIGHTS {
            let of_it = || arrivals.iter().filter(|arrival| arrival.path == format!("/{name}/"));
            for quarter in 0..5 {
                println!("{version}, {name}, quarter {quarter}:");
                let [from, to] = [quarter, quarter + 1].map(|quarter| up[1] + RAMP * quarter / 4);
                // After the last one nothing steps any more.
                let from = if quarter == 4 { from + STEP } else { from };
                let to = if quarter == 4 { to + STEP } else { to };
                let part: Vec<_> = of_it().filter(|arrival| (from..to).contains(&arrival.at)).collect();
                ensure!(part.len() > 100, "only {} requests", part.len());
                is_due(&part, new, weights, up).with_context(|| format!("{version}, {name}, {quarter}"))?;
            }
        }
        site.end().await?;
    }
    Ok(())
}

/// So long that nothing changes while a test lasts.
const LONG: &str = "handoff; handoff_slow_start 1h;";

fn view(share: u32, left: Span) -> Option<SlowStartView> {
    Some(SlowStartView { share, left })
}

async fn upstream(site: &Site, name: &str) -> Result<UpstreamView> {
    site.read(&path::upstream(name)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn least_conn_gives_a_new_worker_its_share_of_what_is_open_and_one_request_at_least() -> Result<()> {
    for version in VERSIONS {
        let farm = Farm::start(4).await?;
        let servers = blocks::servers(farm.peers(), "");
        let site =
            blocks::site(version, &[Block::new("app", format!("least_conn; {servers} {LONG}"))]).await?;
        let new = farm.peers().first().copied().context("a peer")?;
        comes_anew(&Marker::pm2(&site, "app"), new).await?;

        let answers = asks_calmly(&site, "app", 150).await?;
        let calm = of(&answers, new).count();
        ensure!(calm <= 1, "{calm} of 150 when nobody has anything to do");

        let held = asks_held(&site, &farm, 24).await?;
        let at_new = of(&held, new).count();
        ensure!(at_new == 1, "{at_new} of 24 that are open at the same time");
        site.end().await?;
    }
    Ok(())
}

/// So many at the same time.
async fn asks_held(site: &Site, farm: &Farm, count: usize) -> Result<Vec<Answer>> {
    let target = ports::address(site.port());
    let asked = tokio::spawn(crowd::ask(target, vec![Ask::get("/app/hold"); count]));
    farm.holds_so_many(count).await?;
    farm.release().await?;
    asked.await?
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_worker_serves_all_that_nobody_else_can_serve() -> Result<()> {
    for version in VERSIONS {
        let farm = Farm::start(4).await?;
        let peers = farm.peers();
        let (new, others) = peers.split_first().context("a peer")?;
        let block = |name: &str, servers: String| {
            Block::new(name, format!("{servers} {LONG}")).passed_with("proxy_next_upstream error timeout;")
        };
        let all = blocks::servers(farm.peers(), "max_fails=0");
        let site = blocks::site(
            version,
            &[block("app", all.clone()), block("other", all), block("single", format!("server {new};"))],
        )
        .await?;
        let sidecar = Marker::pm2(&site, "app").everywhere();
        comes_anew(&sidecar, new).await?;
        let calm = asks(&site, "app", 96).await?;
        ensure!(of(&calm, new).count() <= 2, "it is new, and got {}", of(&calm, new).count());

        // It is the only one of its upstream.
        all_are_answered(&asks(&site, "single", 48).await?)?;
        // Marks keep the others away.
        Marker::operator(&site, "app").says(State::Draining, others).await?;
        let alone = asks(&site, "app", 48).await?;
        all_are_answered(&alone)?;
        ensure!(of(&alone, new).count() == 48, "{alone:?}");
        let queue = upstream(&site, "app").await?.queue.context("a queue")?;
        ensure!(queue.resumed + queue.overflowed == 0, "somebody waited: {queue:?}");
        Marker::operator(&site, "app").says(State::Up, others).await?;
        // The others are dead, and nobody has said so.
        for other in others {
            farm.stop(other).await?;
        }
        all_are_answered(&asks(&site, "other", 96).await?)?;
        for other in others {
            farm.restart(other).await?;
        }
        // All of them are new: each has as much as any other.
        for peer in &peers {
            comes_anew(&sidecar, peer).await?;
        }
        let even = asks(&site, "app", 200).await?;
        all_are_answered(&even)?;
        for peer in &peers {
            let got = of(&even, peer).count();
            ensure!((40..=60).contains(&got), "{peer} got {got} of 200");
        }
        site.end().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_goes_on_where_the_ramp_was_and_off_ends_it() -> Result<()> {
    for version in VERSIONS {
        let farm = Farm::start(4).await?;
        let servers = blocks::servers(farm.peers(), "weight=2");
        let http = |site: &Site, rest: &str| {
            let block = Block::new("app", format!("{servers} {rest}"));
            format!("{}\n{}", blocks::http(site.port(), &[block]), site.api("write=on"))
        };
        let mut site = Site::new(version).await?;
        site.write(&http(&site, LONG))?;
        site.start().await?;
        let new = farm.peers().first().copied().context("a peer")?;
        comes_anew(&Marker::pm2(&site, "app"), new).await?;
        let shown = async || Marker::pm2(&site, "app").view(new).await;
        let before = shown().await?;
        let left = before.slow_start.context("a ramp")?.left;
        ensure!(before.slow_start == view(1, left) && left > Span::from_secs(3500), "{before:?}");
        ensure!(before.weight == 2, "not the weight of nginx.conf: {before:?}");

        site.reload().await?;
        // Nothing that the old processes had is left: the first request of the new ones meets it.
        let answers = asks(&site, "app", 96).await?;
        ensure!(of(&answers, new).count() <= 2, "{} after the reload", of(&answers, new).count());
        let after = shown().await?;
        ensure!(after.slow_start.is_some_and(|ramp| ramp.left <= left), "{after:?}");
        ensure!(after.weight == 2, "{after:?}");

        site.write(&http(&site, "handoff; handoff_slow_start off;"))?;
        site.reload().await?;
        let answers = asks(&site, "app", 96).await?;
        ensure!(of(&answers, new).count() >= 20, "{} of 96", of(&answers, new).count());
        ensure!(shown().await?.slow_start.is_none() && upstream(&site, "app").await?.slow_start.is_none());
        site.end().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn whom_nginx_itself_left_out_begins_anew_too() -> Result<()> {
    for version in VERSIONS {
        let farm = Farm::start(4).await?;
        let servers = blocks::servers(farm.peers(), "max_fails=1 fail_timeout=1s");
        let site = blocks::site(version, &[Block::new("app", format!("{servers} {LONG}"))]).await?;
        let new = farm.peers().first().copied().context("a peer")?;
        let marker = Marker::pm2(&site, "app");
        let dies = iter::repeat_n(Ask::get("/app/").with("x-die", new), 24);
        all_are_answered(&crowd::ask(ports::address(site.port()), dies).await?)?;
        wait::until("nginx to leave it out, and to take it back", PATIENCE, async || {
            let view = marker.view(new).await.ok()?;
            (view.state == PeerState::Up && view.outage.unavail == 1 && view.slow_start.is_some())
                .then_some(())
        })
        .await?;
        let answers = asks(&site, "app", 96).await?;
        all_are_answered(&answers)?;
        ensure!(of(&answers, new).count() <= 2, "{} of 96", of(&answers, new).count());
        site.end().await?;
    }
    Ok(())
}
