//! A door to knock at: requests over TCP or a unix socket, well-formed or not.

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use handoff_wire::{Code, ErrorBody, Refusal};
use http_body_util::{BodyExt, Full};
use hyper::{HeaderMap, Method, Request, client::conn::http1, header::HOST};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use std::{
    io::ErrorKind,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UnixStream},
    spawn,
    time::{Instant, sleep, timeout},
};

/// Nothing that a test asks for takes longer.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Clone, Debug)]
pub enum Door {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

#[derive(Clone, Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
}

// === impl Door ===

impl Door {
    pub async fn get(&self, path: &str) -> Result<Reply> {
        self.ask(Method::GET, path, "").await
    }

    pub async fn ask(&self, method: Method, path: &str, body: impl Into<Bytes>) -> Result<Reply> {
        let request = Request::builder().method(method).uri(path).header(HOST, "localhost");
        self.send(request.body(body.into())?).await
    }

    pub async fn send(&self, request: Request<Bytes>) -> Result<Reply> {
        let what = format!("{} {}", request.method(), request.uri());
        let reply = timeout(PATIENCE, self.exchange(request.map(Full::new))).await;
        reply.with_context(|| format!("{what}: no answer in {PATIENCE:?}"))?.context(what)
    }

    /// Bytes as they are, and whatever comes back until the other side closes.
    pub async fn raw(&self, bytes: impl AsRef<[u8]>) -> Result<String> {
        let mut stream = self.open().await?;
        stream.write_all(bytes.as_ref()).await?;
        let mut answer = Vec::new();
        timeout(PATIENCE, stream.read_to_end(&mut answer)).await.context("it never closed")??;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }

    pub async fn open(&self) -> Result<Box<dyn Stream>> {
        Ok(match self {
            Self::Tcp(address) => Box::new(TcpStream::connect(address).await?),
            Self::Unix(path) => Box::new(enter(path).await?),
        })
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<Reply> {
        let (mut sender, connection) = http1::handshake(TokioIo::new(self.open().await?)).await?;
        spawn(connection);
        let (head, body) = sender.send_request(request).await?.into_parts();
        let body = body.collect().await?.to_bytes();
        Ok(Reply { status: head.status.as_u16(), headers: head.headers, body })
    }
}

/// Waits where a blocking connect() would: while nginx has not yet accepted those who came before.
async fn enter(path: &Path) -> Result<UnixStream> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match UnixStream::connect(path).await {
            Err(error) if error.kind() == ErrorKind::WouldBlock && Instant::now() < deadline => {
                sleep(Duration::from_millis(5)).await;
            }
            connected => return connected.with_context(|| format!("connect to {}", path.display())),
        }
    }
}

// === impl Reply ===

impl Reply {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json<T: DeserializeOwned>(&self) -> Result<T> {
        ensure!(self.status == 200, "{}: {}", self.status, self.text());
        serde_json::from_slice(&self.body).with_context(|| self.text())
    }

    /// A refusal says its status twice: to HTTP and in its body.
    pub fn refusal(&self) -> Result<Refusal> {
        let body: ErrorBody = serde_json::from_slice(&self.body).with_context(|| self.text())?;
        ensure!(body.error.status == self.status, "{} says {}", self.status, self.text());
        ensure!(self.header("content-type") == Some("application/json"), "{:?}", self.headers);
        Ok(body.error)
    }

    pub fn is(&self, code: Code) -> bool {
        self.refusal().is_ok_and(|refusal| refusal.code == code)
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}
