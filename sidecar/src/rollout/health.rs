//! Whether a worker says of itself that it is well, asked at its own address, or on a connection of its own, and past
//! nginx.

use crate::peer::{Peer, Place};
use bytes::Bytes;
use http_body_util::Empty;
use hyper::{Request, StatusCode, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use std::{fmt, future::Future, str::FromStr, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    time,
};

/// A path on the worker, as a URI.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path(hyper::Uri);

/// A worker that needs longer is not well.
const PATIENCE: Duration = Duration::from_secs(2);

impl FromStr for Path {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let uri: hyper::Uri = text.parse().map_err(|error| format!("{error}"))?;
        if text.starts_with('/') && uri.authority().is_none() {
            Ok(Self(uri))
        } else {
            Err("write a path that begins with a slash, such as /health".to_owned())
        }
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Error: what is wrong, to be read after the path.
pub async fn check(peer: &Peer, path: &Path) -> Result<(), String> {
    in_time(get(peer, path)).await
}

/// Whoever is at the other end of this connection.
pub async fn check_on(socket: TcpStream, host: &str, path: &Path) -> Result<(), String> {
    in_time(async { ask(socket, path, host).await.map_err(|error| failed(&error)) }).await
}

async fn in_time(answer: impl Future<Output = Result<StatusCode, String>>) -> Result<(), String> {
    let status = time::timeout(PATIENCE, answer)
        .await
        .unwrap_or_else(|_| Err(format!("gives no answer within {} s", PATIENCE.as_secs())))?;
    if status.is_success() || status.is_redirection() {
        Ok(())
    } else {
        Err(format!("answers {}", status.as_u16()))
    }
}

fn failed(error: &dyn fmt::Display) -> String {
    format!("cannot be asked: {error}")
}

async fn get(peer: &Peer, path: &Path) -> Result<StatusCode, String> {
    match peer.place() {
        Some(Place::Tcp(address)) => {
            let socket = TcpStream::connect(address).await.map_err(|error| failed(&error))?;
            ask(socket, path, &peer.address).await.map_err(|error| failed(&error))
        }
        Some(Place::Unix(file)) => {
            let socket = UnixStream::connect(file).await.map_err(|error| failed(&error))?;
            ask(socket, path, "localhost").await.map_err(|error| failed(&error))
        }
        None => Err(failed(&"its address is neither an IP address nor a path")),
    }
}

async fn ask<S>(
    socket: S,
    path: &Path,
    host: &str,
) -> Result<StatusCode, Box<dyn std::error::Error + Send + Sync>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(socket)).await?;
    let connection = tokio::spawn(connection);
    let request = Request::get(path.0.clone())
        .header(header::HOST, host)
        .header(header::USER_AGENT, "handoff")
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())?;
    let status = sender.send_request(request).await?.status();
    connection.abort();
    Ok(status)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    async fn worker(answer: &'static str) -> Peer {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            _ = socket.read(&mut [0; 1024]).await;
            _ = socket.write_all(answer.as_bytes()).await;
        });
        Peer::new("shop", address.to_string())
    }

    async fn says(answer: &'static str) -> Result<(), String> {
        check(&worker(answer).await, &"/health?deep=1".parse().unwrap()).await
    }

    #[tokio::test]
    async fn two_and_three_hundreds_are_well() {
        assert_eq!(says("HTTP/1.1 204 No Content\r\n\r\n").await, Ok(()));
        assert_eq!(says("HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n").await, Ok(()));
        let ill = says("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n").await;
        assert_eq!(ill, Err("answers 503".to_owned()));
        assert!(says("").await.unwrap_err().starts_with("cannot be asked: "));
    }

    #[test]
    fn a_path_begins_with_a_slash() {
        assert!("/health".parse::<Path>().is_ok());
        for wrong in ["health", "http://127.0.0.1/health", "", "/a b"] {
            assert!(wrong.parse::<Path>().is_err(), "{wrong}");
        }
    }
}
