//! nginx, spoken to over its control socket: the client side of `handoff_wire`.
//!
//! One connection is kept open, so that a drain costs one write and one read. nginx closes it now and then (when it is
//! idle, after a thousand requests, when its worker retires): everything that is asked here may be asked twice, so a
//! request that fails on a used connection is repeated once on a fresh one.

mod address;
mod error;

pub use address::{Address, AddressError};
pub use error::ControlError;

use bytes::Bytes;
use handoff_wire::{
    Ack, Code, Drained, ErrorBody, Events, MarkSet, OrphanSet, Overview, Pause, PauseAck, PeerAck, PeerAdd,
    PeerRemove, PeerView, Quiet, Renew, Resume, ResumeAck, Span, Timeline, UpstreamView, Upstreams, path,
    store::{Left, StoreView, VIEW},
};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{Method, Request, StatusCode, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use std::time::{Duration, Instant};
use tokio::{net::UnixStream, time};

/// nginx answers within a millisecond or two; one that needs longer is stuck, and its lease rules take over.
const PATIENCE: Duration = Duration::from_secs(2);
/// So long a choice waits until every nginx in the store has it: for one that died, until its lease is over.
const EVERYWHERE: Duration = Duration::from_secs(30);
const BUSY_TRIES: u32 = 20;
const WAITING_PAUSE: Duration = Duration::from_millis(100);
const BUSY_PAUSE: Duration = Duration::from_millis(1);
/// Ten thousand peers with all their marks stay below this.
const MAX_ANSWER: usize = 32 << 20;

#[derive(Debug)]
pub struct Control {
    address: Address,
    connection: Option<http1::SendRequest<Full<Bytes>>>,
}

impl Control {
    pub fn new(address: Address) -> Self {
        Self { address, connection: None }
    }

    pub fn address(&self) -> &Address {
        &self.address
    }

    /// The next request opens a connection of its own.
    pub fn disconnect(&mut self) {
        self.connection = None;
    }

    /// Sees to it that the next request finds an open connection.
    pub async fn warm(&mut self) -> Result<(), ControlError> {
        self.connected().await.map(|_| ())
    }

    pub async fn overview(&mut self) -> Result<Overview, ControlError> {
        self.get(path::OVERVIEW, PATIENCE).await
    }

    /// None: one nginx answers, for itself.
    pub async fn store(&mut self) -> Result<Option<StoreView>, ControlError> {
        match self.get(VIEW, PATIENCE).await {
            Ok(view) => Ok(Some(view)),
            Err(error) if error.code() == Some(Code::PathNotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// This host brings nothing to any nginx any more.
    pub async fn leave(&mut self) -> Result<Left, ControlError> {
        self.until_done(Method::DELETE, VIEW, json(&())?).await
    }

    pub async fn upstreams(&mut self) -> Result<Upstreams, ControlError> {
        self.get(path::UPSTREAMS, PATIENCE).await
    }

    pub async fn upstream(&mut self, name: &str) -> Result<UpstreamView, ControlError> {
        self.until_done(Method::GET, &path::upstream(name), Bytes::new()).await
    }

    pub async fn peer(&mut self, upstream: &str, peer: &str) -> Result<PeerView, ControlError> {
        self.get(&path::peer(upstream, peer), PATIENCE).await
    }

    pub async fn events(&mut self, after: u64) -> Result<Events, ControlError> {
        self.get(&format!("{}?after={after}", path::EVENTS), PATIENCE).await
    }

    pub async fn timeline(&mut self) -> Result<Timeline, ControlError> {
        self.get(path::TIMELINE, PATIENCE).await
    }

    /// Waits in nginx until the peer is drained, or for so long.
    pub async fn drained(&mut self, upstream: &str, peer: &str, wait: Span) -> Result<Drained, ControlError> {
        let path = format!("{}?timeout={wait}", path::drained(upstream, peer));
        self.get(&path, wait.duration() + PATIENCE).await
    }

    /// Waits in nginx until the upstream is quiet or its pause is over, or for so long.
    pub async fn quiet(&mut self, upstream: &str, wait: Span) -> Result<Quiet, ControlError> {
        let path = format!("{}?timeout={wait}", path::quiet(upstream));
        self.get(&path, wait.duration() + PATIENCE).await
    }

    pub async fn pause(&mut self, pause: &Pause) -> Result<PauseAck, ControlError> {
        self.send(Method::PUT, path::PAUSE, pause).await
    }

    pub async fn resume(&mut self, resume: &Resume) -> Result<ResumeAck, ControlError> {
        self.send(Method::POST, path::RESUME, resume).await
    }

    pub async fn add(&mut self, upstream: &str, add: &PeerAdd) -> Result<PeerAck, ControlError> {
        self.send(Method::POST, &path::peers(upstream), add).await
    }

    /// Waits in nginx until nothing of the peer is in flight, or for so long.
    pub async fn remove(
        &mut self,
        upstream: &str,
        peer: &str,
        remove: &PeerRemove,
        wait: Span,
    ) -> Result<PeerAck, ControlError> {
        let path = format!("{}?timeout={wait}", path::peer(upstream, peer));
        self.exchange(Method::DELETE, &path, json(remove)?, wait.duration() + PATIENCE).await
    }

    pub async fn mark(&mut self, marks: &MarkSet) -> Result<Ack, ControlError> {
        match marks.owner.kind().is_choice() {
            true => self.until_done(Method::PUT, path::MARKS, json(marks)?).await,
            false => self.send(Method::PUT, path::MARKS, marks).await,
        }
    }

    pub async fn orphans(&mut self, orphans: &OrphanSet) -> Result<Ack, ControlError> {
        self.send(Method::POST, path::ORPHANS, orphans).await
    }

    pub async fn renew(&mut self, renew: &Renew) -> Result<Ack, ControlError> {
        match renew.marks {
            Some(_) => self.until_done(Method::POST, path::RENEW, json(renew)?).await,
            None => self.send(Method::POST, path::RENEW, renew).await,
        }
    }

    async fn get<T: DeserializeOwned>(&mut self, path: &str, patience: Duration) -> Result<T, ControlError> {
        self.exchange(Method::GET, path, Bytes::new(), patience).await
    }

    async fn send<T: DeserializeOwned>(
        &mut self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ControlError> {
        self.exchange(method, path, json(body)?, PATIENCE).await
    }

    /// As often as it is not done, or not known, everywhere yet: where nginx is many, that takes as long as the slowest of
    /// them.
    async fn until_done<T: DeserializeOwned>(
        &mut self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<T, ControlError> {
        let until = Instant::now() + EVERYWHERE;
        loop {
            match self.exchange(method.clone(), path, body.clone(), PATIENCE).await {
                Err(error) if error.code() == Some(Code::Waiting) && Instant::now() < until => {
                    time::sleep(WAITING_PAUSE).await;
                }
                answer => return answer,
            }
        }
    }

    async fn exchange<T: DeserializeOwned>(
        &mut self,
        method: Method,
        path: &str,
        body: Bytes,
        patience: Duration,
    ) -> Result<T, ControlError> {
        for _ in 0..BUSY_TRIES {
            let (status, answer) = self.ask(&method, path, &body, patience).await?;
            match read(status, &answer) {
                // Somebody else changes a mark at this very moment: it takes microseconds.
                Err(error) if error.code() == Some(Code::Busy) => time::sleep(BUSY_PAUSE).await,
                answer => return answer,
            }
        }
        let (status, answer) = self.ask(&method, path, &body, patience).await?;
        read(status, &answer)
    }

    async fn ask(
        &mut self,
        method: &Method,
        path: &str,
        body: &Bytes,
        patience: Duration,
    ) -> Result<(StatusCode, Bytes), ControlError> {
        let was_open = self.connection.is_some();
        match self.attempt(method, path, body, patience).await {
            Err(ControlError::Failed(_)) if was_open => self.attempt(method, path, body, patience).await,
            answer => answer,
        }
    }

    async fn attempt(
        &mut self,
        method: &Method,
        path: &str,
        body: &Bytes,
        patience: Duration,
    ) -> Result<(StatusCode, Bytes), ControlError> {
        let answer = time::timeout(patience, self.round_trip(method, path, body))
            .await
            .unwrap_or_else(|_| Err(ControlError::TimedOut(self.address.clone())));
        if answer.is_err() {
            // Whatever is still to come on it, it is not the answer to the next question.
            self.connection = None;
        }
        answer
    }

    async fn round_trip(
        &mut self,
        method: &Method,
        path: &str,
        body: &Bytes,
    ) -> Result<(StatusCode, Bytes), ControlError> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "handoff")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body.clone()))
            .map_err(|error| ControlError::Failed(error.to_string()))?;
        let failed = |error: hyper::Error| ControlError::Failed(error.to_string());
        let answer = self.connected().await?.send_request(request).await.map_err(failed)?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MAX_ANSWER)
            .collect()
            .await
            .map_err(|error| ControlError::Failed(error.to_string()))?;
        Ok((status, body.to_bytes()))
    }

    async fn connected(&mut self) -> Result<&mut http1::SendRequest<Full<Bytes>>, ControlError> {
        let mut open = self.connection.take();
        if let Some(connection) = &mut open
            && connection.ready().await.is_err()
        {
            open = None;
        }
        let open = match open {
            Some(open) => open,
            None => self.connect().await?,
        };
        Ok(self.connection.insert(open))
    }

    async fn connect(&self) -> Result<http1::SendRequest<Full<Bytes>>, ControlError> {
        let path = self.address.path();
        let socket = UnixStream::connect(path)
            .await
            .map_err(|error| ControlError::connecting(&self.address, error))?;
        let (sender, connection) = http1::handshake(TokioIo::new(socket))
            .await
            .map_err(|error| ControlError::Failed(error.to_string()))?;
        tokio::spawn(connection);
        Ok(sender)
    }
}

fn json(value: &impl Serialize) -> Result<Bytes, ControlError> {
    let text = serde_json::to_vec(value).map_err(|error| ControlError::Failed(error.to_string()))?;
    Ok(text.into())
}

fn read<T: DeserializeOwned>(status: StatusCode, body: &[u8]) -> Result<T, ControlError> {
    if status.is_success() {
        return serde_json::from_slice(body).map_err(|_| ControlError::NotOurs(status.as_u16()));
    }
    Err(match serde_json::from_slice::<ErrorBody>(body) {
        Ok(ErrorBody { error }) => ControlError::Refused(error),
        Err(_) => ControlError::NotOurs(status.as_u16()),
    })
}
