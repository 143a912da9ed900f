//! The control: as many Node processes start as in a deploy, beside calm traffic, and nothing is deployed.
//!
//! Starting Node takes a good part of a small machine; what that alone does to the visitors, no proxy can undo.

use crate::{app::App, clock::Moment, command, http, ports, wait};
use anyhow::Result;
use std::time::Duration;
use tokio::process::Child;

/// PM2 replaces two workers at a time.
const AT_A_TIME: usize = 2;
const PATIENCE: Duration = Duration::from_secs(10);

/// Starts a command line and then one worker for each of the app's, two at a time, on ports that nobody visits. Comes
/// back when the last one listens: from when to when that was.
pub async fn play(app: &App) -> Result<(Moment, Moment)> {
    let began = Moment::now();
    command::succeed(command::clean("node").args(["-e", "require(process.argv[1])", "node:http"])).await?;
    let first = ports::row(app.workers)?;
    let ports: Vec<u16> = (first..).take(app.workers.into()).collect();
    for together in ports.chunks(AT_A_TIME) {
        let started: Vec<Child> = together.iter().map(|&port| start(app, port)).collect::<Result<_>>()?;
        for &port in together {
            wait::until("a worker to listen", PATIENCE, async || {
                http::status(ports::address(port), "/health").await
            })
            .await?;
        }
        drop(started);
    }
    Ok((began, Moment::now()))
}

/// Killed when it is dropped.
fn start(app: &App, port: u16) -> Result<Child> {
    let mut node = command::clean("node");
    node.arg(app.script()).env("NODE_ENV", "production").env("PORT", port.to_string());
    Ok(node.spawn()?)
}
