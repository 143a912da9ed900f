//! Visitors who ask as fast as they are answered, some at a time.
//!
//! Each has one connection and a network of its own, so that a balancer which goes by the client's address tells them
//! apart.

use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, client::conn::http1, header::HOST};
use hyper_util::rt::TokioIo;
use std::{collections::BTreeMap, net::SocketAddr, time::Duration};
use tokio::{net::TcpSocket, spawn, task::JoinSet, time::timeout};

/// How many there are.
pub const SIZE: u8 = 24;

const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Clone, Debug)]
pub struct Ask {
    pub method: Method,
    pub path: String,
    pub headers: Vec<(&'static str, String)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    /// Which of the backends answered; nginx itself has no name.
    pub peer: Option<String>,
    /// The number of the connection between nginx and the backend.
    pub connection: Option<u64>,
    /// What nginx says of its tries, where a test has it say so.
    pub tried: Option<String>,
    pub body: String,
}

/// The answers, in the order of the questions. Question by question goes to the next visitor.
pub async fn ask(target: SocketAddr, asks: impl IntoIterator<Item = Ask>) -> Result<Vec<Answer>> {
    let mut turns: BTreeMap<u8, Vec<(usize, Ask)>> = BTreeMap::new();
    for ((number, ask), visitor) in asks.into_iter().enumerate().zip((0..SIZE).cycle()) {
        turns.entry(visitor).or_default().push((number, ask));
    }
    let mut visitors = JoinSet::new();
    for (visitor, asks) in turns {
        visitors.spawn(timeout(PATIENCE, visit(target, visitor, asks)));
    }
    let mut answers = BTreeMap::new();
    while let Some(visit) = visitors.join_next().await {
        answers.extend(visit?.context("an answer did not come")??);
    }
    Ok(answers.into_values().collect())
}

/// Asks once.
pub async fn one(target: SocketAddr, path: impl Into<String>) -> Result<Answer> {
    let answers = ask(target, [Ask::get(path)]).await?;
    answers.into_iter().next().context("one question, no answer")
}

async fn visit(target: SocketAddr, visitor: u8, asks: Vec<(usize, Ask)>) -> Result<Vec<(usize, Answer)>> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from(([127, 0, visitor, 1], 0)))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(socket.connect(target).await?)).await?;
    spawn(connection);
    let mut answers = Vec::new();
    for (number, ask) in asks {
        let what = format!("{} {}", ask.method, ask.path);
        sender.ready().await?;
        let response = sender.send_request(ask.request()?).await.context(what)?;
        let (head, body) = response.into_parts();
        let header = |name| Some(head.headers.get(name)?.to_str().ok()?.to_owned());
        let answer = Answer {
            status: head.status.as_u16(),
            peer: header("x-peer"),
            connection: header("x-connection").and_then(|number| number.parse().ok()),
            tried: header("x-tried"),
            body: String::from_utf8_lossy(&body.collect().await?.to_bytes()).into_owned(),
        };
        answers.push((number, answer));
    }
    Ok(answers)
}

// === impl Ask ===

impl Ask {
    pub fn get(path: impl Into<String>) -> Self {
        Self { method: Method::GET, path: path.into(), headers: Vec::new() }
    }

    pub fn post(path: impl Into<String>) -> Self {
        Self { method: Method::POST, ..Self::get(path) }
    }

    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    fn request(self) -> hyper::http::Result<Request<Full<Bytes>>> {
        let request = Request::builder().method(self.method).uri(self.path).header(HOST, "localhost");
        let request =
            self.headers.into_iter().fold(request, |request, (name, value)| request.header(name, value));
        request.body(Full::default())
    }
}
