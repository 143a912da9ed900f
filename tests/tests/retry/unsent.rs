//! A request of which no byte was written was not executed, whatever its method.

use crate::stage::{Ask, Outcome, Stage};
use anyhow::{Context, Result, ensure};
use e2e::{
    farm::Farm,
    place::Place,
    process,
    site::{PATIENCE, Site, VERSIONS},
    wait,
};
use rustix::process::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// An order rides a connection of the cache however old it is.
const LINES: &str = "keepalive 4; handoff_reuse always;";

/// The peer closes its connections before nginx, which is stopped, can see it; and before that comes an order. Over a unix
/// socket nginx finds out when it writes.
async fn order_over_a_closed_connection(stage: &Stage, path: &str) -> Result<u16> {
    stage.meets("a connection is kept", Ask::get(""), Outcome::answered(200, 1, "-")).await?;
    let peer = stage.peer();
    let worker = *stage.site.serving_workers().first().context("no worker")?;
    let mut visitor = stage.door().open().await?;
    let (begin, end) = ("POST ", format!("{path} HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\norder"));
    visitor.write_all(begin.as_bytes()).await?;
    // nginx has taken the visitor's connection when it has answered one that came later.
    stage.meets("it is accepted", Ask::get(""), Outcome::answered(200, 1, "-")).await?;
    process::signal(worker, Signal::STOP);
    wait::until("nginx to stop", PATIENCE, async || process::is_stopped(worker).then_some(())).await?;
    visitor.write_all(end.as_bytes()).await?;
    stage.farm.disconnect(&peer).await?;
    wait::until("the peer to close", PATIENCE, async || {
        stage.farm.open().await.ok()?.values().all(|open| open.is_empty()).then_some(())
    })
    .await?;
    process::signal(worker, Signal::CONT);
    let mut status = [0; 12];
    visitor.read_exact(&mut status).await?;
    Ok(std::str::from_utf8(&status)?.trim_start_matches("HTTP/1.1 ").parse()?)
}

#[tokio::test]
async fn an_order_of_which_nothing_was_written_goes_again() -> Result<()> {
    for version in VERSIONS {
        for (lines, status, line, arrived) in
            [("", 200, "2 unsent", 1), ("handoff_retry off;", 502, "1 sent", 0)]
        {
            let place = Place::new()?;
            let farm = Farm::at(vec![format!("unix:{}", place.file("app.sock").display())]).await?;
            let site = Site::new(version).await?.workers(1);
            let stage = Stage::of(site, farm, &format!("{LINES} {lines}"), "").await?;
            let answer = order_over_a_closed_connection(&stage, "/order").await?;
            let logged = stage.logged("/order").await?;
            let came = stage.arrived("/order").await?;
            ensure!((answer, &*logged, came) == (status, line, arrived), "{answer}, {logged}, {came}");
            stage.end().await?;
        }
    }
    Ok(())
}

/// Over TCP nginx asks the socket before it first writes, and so has not begun.
#[tokio::test]
async fn over_tcp_nginx_finds_out_by_itself() -> Result<()> {
    for version in VERSIONS {
        let stage = Stage::new(version, 1, &format!("{LINES} handoff_retry off;"), "").await?;
        let answer = order_over_a_closed_connection(&stage, "/order").await?;
        let (logged, came) = (stage.logged("/order").await?, stage.arrived("/order").await?);
        ensure!((answer, &*logged, came) == (200, "2 next", 1), "{answer}, {logged}, {came}");
        stage.end().await?;
    }
    Ok(())
}
