//! A question to a worker, at its own address and past nginx: only where the command was told to ask.

use super::facts::{Answer, Health};
use crate::peer::Place;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{HeaderMap, Request, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use std::time::Duration;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    time,
};

/// A worker that needs longer is not well.
const PATIENCE: Duration = Duration::from_secs(2);
/// No health says more.
const MAX_BODY: usize = 64 << 10;
/// A longer answer that stays the same may have been found out each time.
const SHORT: usize = 64;
/// No app has this route.
const NOWHERE: &str = "/handoff-doctor/no-such-path-6f1d";

#[derive(Clone, Debug, PartialEq, Eq)]
struct Reply {
    status: u16,
    body: Bytes,
    keep_alive: Option<Duration>,
}

/// How well it says it is, and whether that says anything.
pub async fn health(place: Place<'_>, path: &str) -> Health {
    let first = match get(place, path).await {
        Ok(first) => first,
        Err(why) => return Health { answer: Answer::Failed(why), ..Health::default() },
    };
    let second = get(place, path).await.ok();
    let is_constant = first.body.len() < SHORT && second.is_some_and(|second| second.body == first.body);
    let anywhere = get(place, NOWHERE).await.ok().map(|reply| reply.status);
    Health { answer: Answer::Status(first.status), is_constant, anywhere }
}

/// For how long it keeps an idle connection, by its own word.
pub async fn keep_alive(place: Place<'_>, path: &str) -> Option<Duration> {
    get(place, path).await.ok()?.keep_alive
}

async fn get(place: Place<'_>, path: &str) -> Result<Reply, String> {
    let failed = |error: std::io::Error| format!("cannot be asked: {error}");
    let answer = async {
        match place {
            Place::Tcp(address) => {
                let socket = TcpStream::connect(address).await.map_err(failed)?;
                exchange(socket, path, &address.to_string()).await
            }
            Place::Unix(file) => {
                let socket = UnixStream::connect(file).await.map_err(failed)?;
                exchange(socket, path, "localhost").await
            }
        }
    };
    let late = || Err(format!("gives no answer within {} s", PATIENCE.as_secs()));
    time::timeout(PATIENCE, answer).await.unwrap_or_else(|_| late())
}

async fn exchange<S>(socket: S, path: &str, host: &str) -> Result<Reply, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let failed = |error: &dyn std::fmt::Display| format!("cannot be asked: {error}");
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(socket)).await.map_err(|error| failed(&error))?;
    let connection = tokio::spawn(connection);
    // Not `close`: then it would not say for how long it keeps the connection.
    let request = Request::get(path)
        .header(header::HOST, host)
        .header(header::USER_AGENT, "handoff")
        .body(Empty::<Bytes>::new())
        .map_err(|error| failed(&error))?;
    let answer = sender.send_request(request).await.map_err(|error| failed(&error))?;
    let (status, keep_alive) = (answer.status().as_u16(), kept(answer.headers()));
    let body = Limited::new(answer.into_body(), MAX_BODY).collect().await;
    connection.abort();
    Ok(Reply { status, body: body.map(|body| body.to_bytes()).unwrap_or_default(), keep_alive })
}

/// `Keep-Alive: timeout=5`
fn kept(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("keep-alive")?.to_str().ok()?;
    let timeout = text.split(',').find_map(|part| part.trim().strip_prefix("timeout="))?;
    timeout.parse().ok().map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    /// Answers every request so; `no-such` with 404.
    async fn app(answer: &'static str) -> std::net::SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let mut text = [0; 1024];
                let len = socket.read(&mut text).await.unwrap();
                let is_nowhere = String::from_utf8_lossy(&text[..len]).contains("no-such");
                let not_found = "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n";
                _ = socket.write_all(if is_nowhere { not_found } else { answer }.as_bytes()).await;
            }
        });
        address
    }

    #[tokio::test]
    async fn an_answer_is_weighed() {
        let ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nKeep-Alive: timeout=5, max=100\r\n\r\nok";
        let place = Place::Tcp(app(ok).await);
        let said = health(place, "/health").await;
        assert_eq!(said, Health { answer: Answer::Status(200), is_constant: true, anywhere: Some(404) });
        assert_eq!(keep_alive(place, "/").await, Some(Duration::from_secs(5)));
        let ill = app("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n").await;
        assert_eq!(health(Place::Tcp(ill), "/health").await.answer, Answer::Status(503));
        let gone = health(Place::Unix("/nowhere/app.sock"), "/health").await.answer;
        assert!(matches!(gone, Answer::Failed(why) if why.starts_with("cannot be asked: ")));
    }
}
