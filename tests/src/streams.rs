//! Streams that last: server-sent events, and WebSockets over which every word is echoed. So many are always open.
//!
//! Each is accounted for: it was whole, it was cut, or it never began.

use crate::{clock::Moment, scenario::Streaming};
use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http_body_util::{BodyExt, Empty};
use hyper::{HeaderMap, Request, StatusCode, client::conn::http1, header::HOST};
use hyper_util::rt::TokioIo;
use std::{fmt, net::SocketAddr, time::Duration};
use tokio::{
    net::TcpStream,
    spawn,
    sync::{mpsc, watch},
    time::{sleep, timeout},
};
use tokio_tungstenite::{client_async, tungstenite::Message};

/// From one pulse to the next, as in server.js.
const PULSE: Duration = Duration::from_millis(200);
/// Nothing comes any more.
const PATIENCE: Duration = Duration::from_secs(20);
/// Before somebody who was refused comes again.
const PAUSE: Duration = Duration::from_millis(200);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `GET /stream`: whole with every event in order and a clean end.
    Events,
    /// A WebSocket: whole with every echo and a close of its own.
    Echo,
}

/// One of them, and what came of it.
#[derive(Clone, Debug)]
pub struct Stream {
    pub kind: Kind,
    pub began: Moment,
    pub ended: Moment,
    /// Whom it was with.
    pub worker: Option<u32>,
    /// How many events or echoes came.
    pub pulses: u32,
    pub ending: Ending,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    Complete,
    Cut,
    /// It never began.
    Refused,
}

/// Keeps them open until it is stopped.
#[derive(Debug)]
pub struct Streams {
    stop: watch::Sender<()>,
    ended: mpsc::UnboundedReceiver<Stream>,
}

/// What is known of a stream while it lasts.
#[derive(Default)]
struct Course {
    opened: bool,
    worker: Option<u32>,
    pulses: u32,
}

// === impl Streams ===

impl Streams {
    /// Their beginnings are spread over the time that one of them lasts.
    pub fn start(target: SocketAddr, Streaming { each, pulses }: Streaming) -> Self {
        let (stop, stopped) = watch::channel(());
        let (report, ended) = mpsc::unbounded_channel();
        let began = Moment::now();
        for number in 0..each {
            for kind in [Kind::Events, Kind::Echo] {
                let first = began + PULSE * pulses * u32::from(number) / u32::from(each);
                spawn(again_and_again(kind, target, pulses, first, stopped.clone(), report.clone()));
            }
        }
        Self { stop, ended }
    }

    /// Opens no more, waits for those that are open, and tells of each, in the order in which they ended.
    pub async fn stop(mut self) -> Vec<Stream> {
        drop(self.stop);
        let mut streams = Vec::new();
        while let Some(stream) = self.ended.recv().await {
            streams.push(stream);
        }
        streams
    }
}

async fn again_and_again(
    kind: Kind,
    target: SocketAddr,
    pulses: u32,
    first: Moment,
    mut stopped: watch::Receiver<()>,
    report: mpsc::UnboundedSender<Stream>,
) {
    tokio::select! {
        _ = stopped.changed() => return,
        () = first.reached() => {}
    }
    // The channel has no values: it is an error as soon as the other end is gone.
    while stopped.has_changed().is_ok() {
        let stream = follow(kind, target, pulses).await;
        if stream.ending == Ending::Refused {
            sleep(PAUSE).await;
        }
        // Nobody listens when the stage was dropped in mid-run.
        _ = report.send(stream);
    }
}

async fn follow(kind: Kind, target: SocketAddr, pulses: u32) -> Stream {
    let began = Moment::now();
    let mut course = Course::default();
    let whole = match kind {
        Kind::Events => course.events(target, pulses).await,
        Kind::Echo => course.echoes(target, pulses).await,
    };
    let Course { opened, worker, pulses } = course;
    let ending = match whole {
        Ok(()) => Ending::Complete,
        Err(_) if opened => Ending::Cut,
        Err(_) => Ending::Refused,
    };
    Stream { kind, began, ended: Moment::now(), worker, pulses, ending }
}

// === impl Course ===

impl Course {
    async fn events(&mut self, target: SocketAddr, pulses: u32) -> Result<()> {
        let stream = TcpStream::connect(target).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        spawn(connection);
        let request = Request::get(format!("/stream?events={pulses}")).header(HOST, target.to_string());
        let response = timeout(PATIENCE, sender.send_request(request.body(Empty::<Bytes>::new())?)).await??;
        ensure!(response.status() == StatusCode::OK, "{}", response.status());
        self.open(response.headers());
        let mut body = response.into_body();
        let mut text = Vec::new();
        while let Some(frame) = timeout(PATIENCE, body.frame()).await? {
            text.extend_from_slice(frame?.data_ref().context("a trailer")?);
            self.pulses = count(&text)?;
        }
        ensure!(self.pulses == pulses, "it ended after {} of {pulses}", self.pulses);
        Ok(())
    }

    async fn echoes(&mut self, target: SocketAddr, pulses: u32) -> Result<()> {
        let stream = TcpStream::connect(target).await?;
        let opening = client_async(format!("ws://{target}/echo"), stream);
        let (mut socket, response) = timeout(PATIENCE, opening).await??;
        self.open(response.headers());
        let mut due = Moment::now();
        for number in 1..=pulses {
            let word = Message::text(number.to_string());
            socket.send(word.clone()).await?;
            let echo = timeout(PATIENCE, socket.next()).await?.context("it was closed")??;
            ensure!(echo == word, "{echo} is no echo of {word}");
            self.pulses = number;
            due = due + PULSE;
            due.reached().await;
        }
        socket.close(None).await?;
        while let Some(last) = timeout(PATIENCE, socket.next()).await? {
            last?;
        }
        Ok(())
    }

    fn open(&mut self, headers: &HeaderMap) {
        self.opened = true;
        self.worker = headers.get("x-worker-pid").and_then(|pid| pid.to_str().ok()?.parse().ok());
    }
}

/// How many events there are, if they are numbered from 1 on.
fn count(text: &[u8]) -> Result<u32> {
    let text = std::str::from_utf8(text)?;
    let Some((whole, _)) = text.rsplit_once("\n\n") else { return Ok(0) };
    (1..).zip(whole.split("\n\n")).try_fold(0, |_, (number, event)| {
        ensure!(event.starts_with(&format!("id: {number}\n")), "not event {number}: {event}");
        Ok(number)
    })
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Events => "GET /stream",
            Self::Echo => "WebSocket",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };
    use tokio_tungstenite::accept_async;

    const HEAD: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-Worker-PID: 7\r\n\r\n";
    const EVENT_1: &str = "f\r\nid: 1\ndata: 7\n\n\r\n";
    const EVENT_2: &str = "f\r\nid: 2\ndata: 7\n\n\r\n";
    const END: &str = "0\r\n\r\n";

    /// What becomes of a stream of two events, if this is what is answered before the connection closes.
    async fn events(answer: String) -> Stream {
        let listener = TcpListener::bind(ports::address(0)).await.unwrap();
        let target = listener.local_addr().unwrap();
        spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            _ = stream.read(&mut [0; 4096]).await;
            stream.write_all(answer.as_bytes()).await.unwrap();
        });
        follow(Kind::Events, target, 2).await
    }

    /// What becomes of a WebSocket of two words, if so many are echoed, and then the connection breaks or its end is awaited.
    async fn echo(words: usize, then_breaks: bool) -> Stream {
        let listener = TcpListener::bind(ports::address(0)).await.unwrap();
        let target = listener.local_addr().unwrap();
        spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let mut socket = accept_async(stream).await.unwrap();
            for _ in 0..words {
                let word = socket.next().await.unwrap().unwrap();
                socket.send(word).await.unwrap();
            }
            while !then_breaks && socket.next().await.is_some() {}
        });
        follow(Kind::Echo, target, 2).await
    }

    #[tokio::test]
    async fn a_stream_is_whole_with_every_event_and_a_clean_end() {
        let stream = events([HEAD, EVENT_1, EVENT_2, END].concat()).await;
        assert_eq!((stream.ending, stream.pulses, stream.worker), (Ending::Complete, 2, Some(7)));
    }

    #[tokio::test]
    async fn anything_less_is_cut() {
        for (answer, pulses) in [
            ([HEAD, EVENT_1].concat(), 1),
            ([HEAD, EVENT_1, END].concat(), 1),
            ([HEAD, EVENT_1, EVENT_2].concat(), 2),
            ([HEAD, EVENT_2, EVENT_1, END].concat(), 0),
        ] {
            let stream = events(answer.clone()).await;
            assert_eq!((stream.ending, stream.pulses), (Ending::Cut, pulses), "{answer}");
        }
    }

    #[tokio::test]
    async fn another_answer_or_none_is_a_refusal() {
        let bad_gateway = "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n";
        assert_eq!(events(bad_gateway.to_owned()).await.ending, Ending::Refused);
        let nobody = ports::address(ports::row(1).unwrap());
        for kind in [Kind::Events, Kind::Echo] {
            assert_eq!(follow(kind, nobody, 2).await.ending, Ending::Refused, "{kind}");
        }
    }

    #[tokio::test]
    async fn a_websocket_is_whole_with_every_echo_and_its_own_close() {
        for (words, then_breaks, ending) in
            [(1, true, Ending::Cut), (2, true, Ending::Cut), (2, false, Ending::Complete)]
        {
            let stream = echo(words, then_breaks).await;
            assert_eq!((stream.ending, stream.pulses), (ending, u32::try_from(words).unwrap()));
        }
    }

    #[test]
    fn events_count_once_they_are_whole() {
        assert_eq!(count(b"").unwrap(), 0);
        assert_eq!(count(b"id: 1\ndata: 7\n\nid: 2\nda").unwrap(), 1);
        assert_eq!(count(b"id: 1\ndata: 7\n\nid: 2\ndata: 7\n\n").unwrap(), 2);
    }

    #[test]
    fn an_event_that_is_missing_is_an_error() {
        assert!(count(b"id: 1\ndata: 7\n\nid: 3\ndata: 7\n\n").is_err());
    }
}
