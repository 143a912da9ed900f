//! The least of an HTTP client: one request, one answer, over TCP or a unix socket.

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, StatusCode, client::conn::http1, header::HOST};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use std::{net::SocketAddr, path::Path};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    spawn,
};

/// The status of a GET, if there is an answer.
pub async fn status(address: SocketAddr, path: &str) -> Option<StatusCode> {
    let stream = TcpStream::connect(address).await.ok()?;
    Some(get(stream, path).await.ok()?.status())
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
