//! The network of a lab is one that can be cut, and that says nothing when it is.

use anyhow::{Context, Result};
use e2e::net::{self, Net};
use std::{net::SocketAddr, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

const AWHILE: Duration = Duration::from_millis(500);
/// Until TCP has sent again what was lost.
const PATIENCE: Duration = Duration::from_secs(10);

/// Whether a connection comes about, is refused, or is never heard of again.
async fn connect(to: SocketAddr) -> Option<std::io::Result<TcpStream>> {
    timeout(AWHILE, TcpStream::connect(to)).await.ok()
}

#[tokio::test]
async fn a_wire_that_is_cut_loses_all_and_tells_nobody() -> Result<()> {
    if !net::possible() {
        return Ok(());
    }
    let mut net = Net::new().await?;
    let (here, there, third) = (net.machine().await?, net.machine().await?, net.machine().await?);
    let (inside, beyond, beside) = (here.enter().await?, there.enter().await?, third.enter().await?);
    let address = there.address(80);
    let listener = beyond.run(TcpListener::bind(address)).await??;

    assert!(matches!(inside.run(connect(there.address(81))).await?, Some(Err(_))), "nobody listens there");
    let mut stream = inside.run(connect(address)).await?.context("no answer")??;
    let (mut accepted, _) = beyond
        .run(async move { (listener.accept().await, listener) })
        .await
        .map(|(accepted, listener)| accepted.map(|(stream, _)| (stream, listener)))??;

    net::cut(&here, &there).await?;
    assert!(inside.run(connect(address)).await?.is_none(), "it was refused, or there was a way around");
    assert!(beside.run(connect(address)).await?.is_some(), "a third one was cut off, too");
    stream.write_all(b"late").await?;
    let mut heard = [0; 4];
    assert!(timeout(AWHILE, accepted.read_exact(&mut heard)).await.is_err(), "it was heard");

    net::heal(&here, &there).await?;
    timeout(PATIENCE, accepted.read_exact(&mut heard)).await.context("it is still cut")??;
    assert_eq!(&heard, b"late");
    assert!(inside.run(connect(address)).await?.is_some());
    Ok(())
}
