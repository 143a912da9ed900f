//! The control: as many Node processes start as in a deploy, beside calm traffic, and nothing is deployed.
//!
//! Starting Node takes a good part of a small machine; what that alone does to the visitors, no proxy can undo.

use crate::{app::App, clock::Moment, command, http, ports, scenario::Action, wait};
use anyhow::Result;
use std::time::Duration;
use tokio::process::Child;

const PATIENCE: Duration = Duration::from_secs(10);

/// How a deploy of four starts Node.
struct Starts {
    workers_at_a_time: usize,
    command_lines: CommandLines,
}

#[derive(PartialEq, Eq)]
enum CommandLines {
    None,
    One,
    /// PM2's, before each worker.
    OneEach,
}

/// Starts one worker for each of the app's, and for each that stands in for one, on ports that nobody visits, in the manner of
/// this deploy. Comes back when the last one listens: from when to when that was.
pub async fn play(app: &App, deploy: Action, spares: u16) -> Result<(Moment, Moment)> {
    let Starts { workers_at_a_time, command_lines } = Starts::of(deploy);
    let began = Moment::now();
    if command_lines == CommandLines::One {
        start_command_line().await?;
    }
    let workers = app.workers + if deploy == Action::SafeReload { spares } else { 0 };
    let first = ports::row(workers)?;
    let ports: Vec<u16> = (first..).take(workers.into()).collect();
    for together in ports.chunks(workers_at_a_time) {
        if command_lines == CommandLines::OneEach {
            start_command_line().await?;
        }
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

// === impl Starts ===

impl Starts {
    fn of(deploy: Action) -> Self {
        let (workers_at_a_time, command_lines) = match deploy {
            Action::SafeReload => (1, CommandLines::None),
            Action::DrainScript => (1, CommandLines::OneEach),
            Action::Interrupt => (1, CommandLines::None),
            Action::StopAndStart | Action::Scale => (1, CommandLines::OneEach),
            Action::Reload | Action::Restart | Action::RestartAtOnce | Action::Kill | Action::Crash => {
                (2, CommandLines::One)
            }
        };
        Self { workers_at_a_time, command_lines }
    }
}

async fn start_command_line() -> Result<()> {
    command::succeed(command::clean("node").args(["-e", "require(process.argv[1])", "node:http"])).await?;
    Ok(())
}

/// Killed when it is dropped.
fn start(app: &App, port: u16) -> Result<Child> {
    let mut node = command::clean("node");
    node.arg(app.script()).env("NODE_ENV", "production").env("PORT", port.to_string());
    Ok(node.spawn()?)
}
