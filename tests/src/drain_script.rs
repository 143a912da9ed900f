//! The deploy of a team that has HAProxy: one worker after the other is drained, restarted by PM2, and let in again.

use crate::{
    app::App,
    haproxy::{self, Haproxy, State},
    http,
    pm2::Pm2,
    wait,
};
use anyhow::{Context, Result};
use hyper::StatusCode;
use std::{net::SocketAddr, time::Duration};

/// The limits of `handoff reload`.
const DRAIN: Duration = Duration::from_secs(30);
const START: Duration = Duration::from_secs(30);

/// Stops at the first thing that goes wrong, as a script with `set -e` would.
pub async fn run(haproxy: &Haproxy, pm2: &Pm2, app: &App) -> Result<()> {
    for (id, address) in app.addresses().into_iter().enumerate() {
        let server = haproxy::server(id);
        replace(haproxy, pm2, &server, id, address).await.with_context(|| format!("deploy of {server}"))?;
    }
    Ok(())
}

async fn replace(haproxy: &Haproxy, pm2: &Pm2, server: &str, id: usize, address: SocketAddr) -> Result<()> {
    haproxy.set(server, State::Drain).await?;
    wait::until("its sessions to end", DRAIN, async || {
        (haproxy.shows(server).await.ok()?.sessions == 0).then_some(())
    })
    .await?;
    pm2.run(&["restart", &id.to_string()]).await?;
    wait::until("it to answer", START, async || {
        http::status(address, "/health").await.filter(StatusCode::is_success)
    })
    .await?;
    haproxy.set(server, State::Ready).await?;
    // Its checks may not have noticed yet, and the next one would be the second that is away.
    wait::until("HAProxy to take it for up", START, async || {
        (haproxy.shows(server).await.ok()?.status == "UP").then_some(())
    })
    .await
}
