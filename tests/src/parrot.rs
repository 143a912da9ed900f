//! A peer that says the same to everybody, in whatever protocol.

use anyhow::Result;
use std::net::SocketAddr;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    spawn,
};

/// An answer in FastCGI's records: its output, and its end.
pub fn fastcgi(output: &str) -> Vec<u8> {
    let [.., high, low] = output.len().to_be_bytes();
    let end = [1, 3, 0, 1, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    [&[1, 6, 0, 1, high, low, 0, 0], output.as_bytes(), &end].concat()
}

/// A peer that has one answer to everything.
pub async fn parrot(address: SocketAddr, answer: Vec<u8>) -> Result<()> {
    let listener = TcpListener::bind(address).await?;
    spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 4096];
            _ = stream.read(&mut request).await;
            _ = stream.write_all(&answer).await;
            _ = stream.shutdown().await;
            // Closed with unread bytes it would be reset, and what was sent might be lost.
            _ = stream.read_to_end(&mut Vec::new()).await;
        }
    });
    Ok(())
}
