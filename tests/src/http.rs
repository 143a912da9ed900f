//! The least of an HTTP client: one request, one answer, over TCP or a unix socket.

use crate::wait;
use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, StatusCode, client::conn::http1, header::HOST};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use std::{net::SocketAddr, path::Path, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    spawn,
};

const PATIENCE: Duration = Duration::from_secs(60);

/// The status of a GET, if there is an answer.
pub async fn status(address: SocketAddr, path: &str) -> Option<StatusCode> {
    let stream = TcpStream::connect(address).await.ok()?;
    Some(get(stream, path).await.ok()?.status())
}

/// Whether an app says that it is well.
pub async fn is_well(address: SocketAddr) -> bool {
    status(address, "/health").await.is_some_and(|status| status.is_success())
}

/// Waits until it does. PM2 says `online` of one that does not listen yet, unless it waits for `ready`.
pub async fn answers(address: SocketAddr) -> Result<()> {
    let look = async || is_well(address).await.then_some(());
    wait::until("an app to answer", PATIENCE, look).await.with_context(|| address.to_string())
}

/// The JSON that a GET over a unix socket answers.
pub async fn json<T: DeserializeOwned>(socket: &Path, path: &str) -> Result<T> {
    let stream =
        UnixStream::connect(socket).await.with_context(|| format!("connect to {}", socket.display()))?;
    let response = get(stream, path).await?;
    ensure!(response.status().is_success(), "GET {path}: {} {:?}", response.status(), response.body());
    serde_json::from_slice(response.body()).with_context(|| format!("GET {path}: {:?}", response.body()))
}

async fn get(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    path: &str,
) -> Result<Response<Bytes>> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    spawn(connection);
    let request = Request::get(path).header(HOST, "localhost").body(Full::<Bytes>::default())?;
    let (head, body) = sender.send_request(request).await?.into_parts();
    Ok(Response::from_parts(head, body.collect().await?.to_bytes()))
}
