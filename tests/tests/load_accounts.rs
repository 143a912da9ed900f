//! The load forgets no visit, and tells apart the ways in which one can fail.

use anyhow::Result;
use e2e::{
    load::{Answer, Load, Visit},
    ports,
};
use std::{net::SocketAddr, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    spawn,
    time::sleep,
};

/// A server that reads one request on each connection, says the same to all, and closes after a while.
async fn server(says: &'static str, after: Duration) -> Result<SocketAddr> {
    let listener = TcpListener::bind(ports::address(0)).await?;
    let address = listener.local_addr()?;
    spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            spawn(async move {
                let mut request = [0; 4096];
                _ = stream.read(&mut request).await;
                _ = stream.write_all(says.as_bytes()).await;
                sleep(after).await;
            });
        }
    });
    Ok(address)
}

async fn visit(target: SocketAddr) -> Vec<Visit> {
    let load = Load::start(target, 50);
    sleep(Duration::from_millis(500)).await;
    let visits = load.stop().await;
    assert!(visits.len() > 10, "{} visits in half a second", visits.len());
    let numbers: Vec<u64> = visits.iter().map(|visit| visit.number).collect();
    assert_eq!(numbers, (0..visits.len() as u64).collect::<Vec<_>>(), "each is told of, once");
    visits
}

async fn all_end_as(target: SocketAddr, answer: Answer) {
    for visit in visit(target).await {
        assert_eq!(visit.answer, answer);
        assert!(visit.failed());
    }
}

#[tokio::test]
async fn nobody_there_is_refused() {
    all_end_as(ports::address(ports::row(1).unwrap()), Answer::Refused).await;
}

#[tokio::test]
async fn a_connection_that_ends_without_an_answer_is_reset() {
    all_end_as(server("", Duration::ZERO).await.unwrap(), Answer::Reset).await;
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_incomplete() {
    let half = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf";
    all_end_as(server(half, Duration::ZERO).await.unwrap(), Answer::Incomplete).await;
}

#[tokio::test]
async fn no_answer_within_twenty_seconds_is_hung_and_slows_nobody() {
    all_end_as(server("", Duration::from_secs(60)).await.unwrap(), Answer::Hung).await;
}

#[tokio::test]
async fn a_kept_connection_that_the_server_closed_while_idle_fails_nobody() {
    let empty = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    let visits = visit(server(empty, Duration::ZERO).await.unwrap()).await;
    assert!(visits.iter().all(|visit| !visit.failed()), "{visits:?}");
}
