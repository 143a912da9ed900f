//! Visitors: an open loop that sends at a constant rate, however slow the answers are, and forgets none of them.
//!
//! A visit is due at its moment, and its latency counts from there. Connections are kept alive and used again, the last
//! one first, as a browser or a balancer in front would; never one that has been idle so long that nginx may be closing
//! it just then. A request that was not sent because its pooled connection had gone is sent on another.

use crate::clock::Moment;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{
    Method, Request, StatusCode,
    body::Incoming,
    client::conn::http1::{self, SendRequest},
    header::{CONTENT_TYPE, HOST},
};
use hyper_util::rt::TokioIo;
use std::{
    fmt,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    net::TcpStream,
    spawn,
    sync::{Mutex, mpsc, watch},
    task::JoinHandle,
    time::timeout,
};

const PATIENCE: Duration = Duration::from_secs(20);
/// Well below nginx's keepalive_timeout of 75 s.
const IDLE_MAX: Duration = Duration::from_secs(30);

/// 12 of 20 are fast, 3 slow, 5 orders.
const MIX: [Kind; 20] = {
    use Kind::{Fast as F, Order as O, Slow as S};
    [F, O, F, F, S, F, O, F, F, O, F, S, F, O, F, F, S, F, O, F]
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Fast,
    Slow,
    Order,
}

/// One request of one visitor, and what came of it.
#[derive(Clone, Debug)]
pub struct Visit {
    pub number: u64,
    pub target: SocketAddr,
    pub kind: Kind,
    pub due: Moment,
    pub latency: Duration,
    pub answer: Answer,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Status {
        code: StatusCode,
        worker: Option<u32>,
    },
    /// No connection.
    Refused,
    /// The connection ended before an answer began.
    Reset,
    /// The connection ended before the answer did.
    Incomplete,
    /// No answer within 20 s.
    Hung,
}

/// Sends until it is stopped.
#[derive(Debug)]
pub struct Load {
    ticking: JoinHandle<()>,
    stop: watch::Sender<()>,
    sent: Arc<AtomicU64>,
    visits: mpsc::UnboundedReceiver<Visit>,
    /// Of so many somebody was told.
    told: u64,
}

/// Those who come to one address.
struct Visitors {
    target: SocketAddr,
    pool: Mutex<Vec<Pooled>>,
}

struct Pooled {
    sender: Sender,
    since: Moment,
}

type Sender = SendRequest<Full<Bytes>>;

// === impl Visit ===

impl Visit {
    pub fn failed(&self) -> bool {
        match self.answer {
            Answer::Status { code, .. } => !(code.is_success() || code.is_redirection()),
            _ => true,
        }
    }

    pub fn order(&self) -> Option<String> {
        (self.kind == Kind::Order).then(|| order_id(self.number))
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status { code, .. } => f.write_str(code.as_str()),
            Self::Refused => f.write_str("refused"),
            Self::Reset => f.write_str("reset"),
            Self::Incomplete => f.write_str("incomplete"),
            Self::Hung => f.write_str("hung"),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fast => "GET /fast",
            Self::Slow => "GET /slow",
            Self::Order => "POST /orders",
        })
    }
}

// === impl Load ===

impl Load {
    /// `rate` visits a second to `target`, from now on.
    pub fn start(target: SocketAddr, rate: u32) -> Self {
        Self::over(&[target], rate)
    }

    /// The same to several addresses by turns: each is sent as many of every kind.
    pub fn over(targets: &[SocketAddr], rate: u32) -> Self {
        let visitors = targets.iter().map(|&target| Arc::new(Visitors { target, pool: Mutex::default() }));
        let visitors = visitors.collect();
        let (stop, stopped) = watch::channel(());
        let (report, visits) = mpsc::unbounded_channel();
        let sent = Arc::<AtomicU64>::default();
        let ticking = spawn(tick(visitors, rate, sent.clone(), stopped, report));
        Self { ticking, stop, sent, visits, told: 0 }
    }

    /// The visits that ended since this was asked last: who asks often keeps none of them for long.
    pub fn ended(&mut self) -> Vec<Visit> {
        let visits: Vec<Visit> = std::iter::from_fn(|| self.visits.try_recv().ok()).collect();
        self.told += visits.len() as u64;
        visits
    }

    /// The same, when all who were sent so far have ended. Others come meanwhile: a worker that has new ones shows whom it never
    /// had.
    pub async fn all_ended(&mut self) -> Vec<Visit> {
        let sent = self.sent.load(Ordering::Relaxed);
        let (mut visits, mut waits) = (Vec::new(), sent.saturating_sub(self.told));
        while waits > 0
            && let Some(visit) = self.visits.recv().await
        {
            waits -= u64::from(visit.number < sent);
            visits.push(visit);
        }
        self.told += visits.len() as u64;
        visits
    }

    /// Sends no more, waits for the answers that are due, and tells of every visit that nobody was told of, in order.
    pub async fn stop(mut self) -> Vec<Visit> {
        drop(self.stop);
        let mut visits = Vec::new();
        while let Some(visit) = self.visits.recv().await {
            visits.push(visit);
        }
        _ = self.ticking.await;
        visits.sort_by_key(|visit| visit.number);
        visits
    }
}

async fn tick(
    visitors: Vec<Arc<Visitors>>,
    rate: u32,
    sent: Arc<AtomicU64>,
    mut stopped: watch::Receiver<()>,
    report: mpsc::UnboundedSender<Visit>,
) {
    let began = Moment::now();
    let gap = Duration::from_secs(1) / rate;
    let mut due = began;
    for (number, &kind) in (0..).zip(MIX.iter().cycle()) {
        tokio::select! {
            _ = stopped.changed() => break,
            () = due.reached() => {}
        }
        // From round to round of the mix, all move on to the next address.
        let turn = usize::try_from(number).unwrap_or(0);
        let place = turn % MIX.len() + turn / MIX.len();
        let Some(visitors) = visitors.get(place % visitors.len().max(1)) else { break };
        let (visitors, report) = (visitors.clone(), report.clone());
        spawn(async move {
            let answer = timeout(PATIENCE, visitors.visit(number, kind)).await.unwrap_or(Answer::Hung);
            let latency = Moment::now().since(due);
            // Nobody listens when the stage was dropped in mid-run.
            _ = report.send(Visit { number, target: visitors.target, kind, due, latency, answer });
        });
        sent.store(number + 1, Ordering::Relaxed);
        due = due + gap;
    }
}

// === impl Visitors ===

impl Visitors {
    async fn visit(&self, number: u64, kind: Kind) -> Answer {
        let Ok(mut request) = request(self.target, number, kind) else { return Answer::Refused };
        while let Some(mut sender) = self.pooled().await {
            match sender.try_send_request(request).await {
                Ok(response) => return self.answer(sender, response).await,
                Err(mut error) => match error.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Answer::Reset,
                },
            }
        }
        let Some(mut sender) = self.connect().await else { return Answer::Refused };
        match sender.send_request(request).await {
            Ok(response) => self.answer(sender, response).await,
            Err(_) => Answer::Reset,
        }
    }

    async fn answer(&self, sender: Sender, response: hyper::Response<Incoming>) -> Answer {
        let (head, body) = response.into_parts();
        if body.collect().await.is_err() {
            return Answer::Incomplete;
        }
        self.pool.lock().await.push(Pooled { sender, since: Moment::now() });
        let worker = head.headers.get("x-worker-pid").and_then(|pid| pid.to_str().ok()?.parse().ok());
        Answer::Status { code: head.status, worker }
    }

    /// A connection that is free and still open.
    async fn pooled(&self) -> Option<Sender> {
        loop {
            let Pooled { mut sender, since } = self.pool.lock().await.pop()?;
            if Moment::now().since(since) < IDLE_MAX && sender.ready().await.is_ok() {
                return Some(sender);
            }
        }
    }

    async fn connect(&self) -> Option<Sender> {
        let stream = TcpStream::connect(self.target).await.ok()?;
        stream.set_nodelay(true).ok()?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.ok()?;
        // How it ends, the request that rides on it tells.
        spawn(async move { _ = connection.await });
        Some(sender)
    }
}

fn request(target: SocketAddr, number: u64, kind: Kind) -> hyper::http::Result<Request<Full<Bytes>>> {
    let (method, path, body) = match kind {
        Kind::Fast => (Method::GET, "/fast", String::new()),
        Kind::Slow => (Method::GET, "/slow?ms=300", String::new()),
        Kind::Order => (Method::POST, "/orders", format!("{{\"id\":\"{}\"}}", order_id(number))),
    };
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header(HOST, target.to_string())
        .header("x-visit", number)
        .body(Full::from(body))?;
    if kind == Kind::Order {
        request
            .headers_mut()
            .insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static("application/json"));
    }
    Ok(request)
}

fn order_id(number: u64) -> String {
    format!("order-{number}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mix_is_the_one_that_the_scenarios_prescribe() {
        let count = |kind| MIX.iter().filter(|&&other| other == kind).count();
        assert_eq!((count(Kind::Fast), count(Kind::Slow), count(Kind::Order)), (12, 3, 5));
    }

    #[test]
    fn what_is_not_the_apps_answer_failed() {
        let visit = |answer| Visit {
            number: 0,
            target: crate::ports::address(80),
            kind: Kind::Fast,
            due: Moment::from_nanos(0),
            latency: Duration::ZERO,
            answer,
        };
        let status = |code| Answer::Status { code, worker: None };
        assert!(!visit(status(StatusCode::CREATED)).failed());
        assert!(!visit(status(StatusCode::FOUND)).failed());
        assert!(visit(status(StatusCode::NOT_FOUND)).failed());
        assert!(visit(status(StatusCode::BAD_GATEWAY)).failed());
        assert!(visit(Answer::Hung).failed());
    }
}
