//! `handoff status --watch`: the dashboard's twin in a terminal, while workers are really replaced under load.

mod house;

use anyhow::{Context, Result, ensure};
use e2e::{
    app::{Mode, NAME},
    load::Load,
    place, ports, sidecar,
    site::PATIENCE,
    terminal::Terminal,
    wait,
};
use handoff_wire::Timeline;
use house::House;
use std::{ffi::OsString, fs};
use tokio::spawn;

const WIDE: (u16, u16) = (140, 44);

async fn watch(
    house: &House,
    name: &str,
    more: &[(&'static str, OsString)],
    size: (u16, u16),
) -> Result<Terminal> {
    let environment = [&sidecar::environment(house.site.place())[..], more].concat();
    let shell = format!("{} status --watch", place::handoff()?.display());
    Terminal::run(house.site.place(), name, &shell, &environment, size).await
}

/// The words of the row of a peer.
fn row<'a>(screen: &'a str, peer: &str) -> Vec<&'a str> {
    let row = screen.lines().find(|line| line.trim_start().starts_with(peer));
    row.unwrap_or_default().split_whitespace().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deploy_is_seen_in_place_and_nothing_is_written_twice() -> Result<()> {
    let mut house = House::of(Mode::Fork, &[]).await?;
    house.start_sidecar().await?;
    let peers: Vec<String> = house.app.addresses().iter().map(ToString::to_string).collect();
    let load = Load::start(ports::address(house.site.port()), 50);
    let terminal = watch(&house, "wide", &[], WIDE).await?;
    let calm = |screen: &str| {
        screen.contains("2 of 2 up") && peers.iter().all(|peer| row(screen, peer).get(1) == Some(&"up"))
    };
    let screen = terminal.until("both peers to be up", calm).await?;
    ensure!(
        row(&screen, &peers[0]).contains(&"myapp:0") && row(&screen, &peers[1]).contains(&"myapp:1"),
        "{screen}"
    );
    ensure!(screen.contains("myapp: L0"), "{screen}");
    let rate = |screen: &str| {
        screen
            .lines()
            .find_map(|line| line.split_once("2 of 2 up")?.1.split_whitespace().next()?.parse().ok())
    };
    terminal
        .until("the rate", |screen| rate(screen).is_some_and(|rate: f64| (30.0..70.0).contains(&rate)))
        .await?;

    // So many are slow that a drain takes its time.
    let door = house.site.visitors();
    let visitors: Vec<_> = (0..12)
        .map(|_| {
            let door = door.clone();
            spawn(async move { door.get("/slow?ms=2500").await })
        })
        .collect();
    wait::until("the slow ones to be there", PATIENCE, async || {
        let peers = house.site.app().await.ok()?;
        peers.iter().all(|peer| peer.in_flight >= 5).then_some(())
    })
    .await?;
    let during = async {
        let draining = |screen: &str| peers.iter().any(|peer| row(screen, peer).get(1) == Some(&"draining"));
        let screen = terminal.until("a draining peer", draining).await?;
        let timeline: Timeline = house.site.read("/v1/timeline").await?;
        let track = timeline.deploys.last().and_then(|deploy| deploy.peers.last()).context("no deploy")?;
        ensure!(row(&screen, &track.peer).get(1) == Some(&"draining"), "not {track:?}:\n{screen}");
        ensure!(screen.contains("1 of 2 up"), "{screen}");
        terminal
            .until("the deploy under way", |screen| screen.contains("handoff reload  app  under way, "))
            .await
    };
    let (ended, during) = tokio::join!(house.handoff(&["reload", NAME]), during);
    during?;
    let ended = ended?;
    ensure!(ended.code == Some(0), "{ended:?}");
    for visitor in visitors {
        ensure!(visitor.await??.status == 200);
    }
    let over = |screen: &str| {
        calm(screen) && !screen.contains("under way") && screen.matches("trial → up").count() == 2
    };
    let screen = terminal.until("the deploy to be over", over).await?;
    for peer in &peers {
        let bar =
            screen.lines().filter(|line| line.trim_start().starts_with(peer)).nth(1).context("no bar")?;
        for glyph in ['█', '▒', '░'] {
            ensure!(bar.contains(glyph), "no {glyph} in {bar}");
        }
    }
    ensure!(screen.contains("█ up"), "{screen}");

    // Nothing was cleared, and what did not change was written once.
    let bytes = terminal.bytes()?;
    ensure!(!bytes.contains("\x1b[2J") && !bytes.contains("\x1b[H"), "the screen was cleared");
    let written = bytes.matches("upstreams with `handoff`").count();
    ensure!(written == 1, "a line that never changed was written {written} times");
    ensure!(terminal.shows_in_colour().await?.contains("\x1b[32m"), "no colour");

    // Its size may change: what it showed is not left behind.
    for (columns, rows) in [(60, 30), (100, 12), (30, 8), WIDE] {
        terminal.resize(columns, rows).await?;
        let fits = |screen: &str| {
            screen.matches("2 of 2 up").count() == 1
                && screen.lines().all(|line| line.chars().count() <= usize::from(columns))
                && (rows >= 30 || screen.contains("more lines in a"))
        };
        terminal.until(&format!("{columns}x{rows} to be filled"), fits).await?;
    }
    terminal.until("all of it again", |screen| calm(screen) && screen.contains("myapp: L0")).await?;
    // The last picture stays.
    terminal.press("C-c").await?;
    let screen = terminal.shows().await?;
    ensure!(calm(&screen), "{screen}");

    let visits = load.stop().await;
    ensure!(visits.iter().all(|visit| !visit.failed()), "somebody failed");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn without_colour_or_without_a_terminal_it_is_plain_and_an_nginx_that_is_away_is_told() -> Result<()> {
    let mut house = House::of(Mode::Fork, &[]).await?;
    house.start_sidecar().await?;
    let terminal = watch(&house, "plain", &[("NO_COLOR", "1".into())], WIDE).await?;
    terminal.until("both peers to be up", |screen| screen.contains("2 of 2 up")).await?;
    let drawn = terminal.bytes()?;
    ensure!(!drawn.contains("\x1b[3"), "colours: {drawn:?}");

    let environment = sidecar::environment(house.site.place());
    let file = house.site.file("watched");
    let mut handoff = std::process::Command::new(place::handoff()?);
    handoff.args(["status", "--watch"]).envs(environment).stdout(fs::File::create(&file)?);
    let mut handoff = handoff.spawn()?;
    let written = || fs::read_to_string(&file).unwrap_or_default();
    let first = wait::until("the status to be written", PATIENCE, async || {
        Some(written()).filter(|text| text.contains("myapp: L0"))
    });
    ensure!(first.await?.matches("APP ").count() >= 1);
    house.site.kill().await?;
    let told = "nginx is not running";
    let away = wait::until("that nginx is away", PATIENCE, async || written().contains(told).then_some(()));
    let away = away.await;
    e2e::process::end(&mut handoff, PATIENCE);
    away.with_context(written)?;
    ensure!(!written().contains('\x1b'), "{}", written());
    terminal.until("that nginx is away", |screen| screen.contains("not reached")).await?;
    Ok(())
}
