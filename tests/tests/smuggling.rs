//! Of a request to the control API there is one reading: what hides in it is not taken for a request of its own.
//!
//! It matters where somebody else's proxy stands before it, which lets reads pass: behind it nobody may slip in a write.

use anyhow::{Context, Result, ensure};
use e2e::site::{Site, VERSIONS};
use handoff_wire::{Overview, path};

const UPSTREAM: &str = "upstream app { zone app 64k; server 127.0.0.1:1; server 127.0.0.1:2; handoff; }";

/// A command that would be seen: it takes a peer out.
fn hidden() -> String {
    let body = r#"{"owner":"operator","marks":[{"peer":"127.0.0.1:1","state":"draining"}]}"#;
    format!(
        "PUT /v1/marks HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// What is sent, the status of the only answer, and what may come instead.
fn cases() -> Vec<(String, &'static [u16])> {
    let hidden = hidden();
    let length = hidden.len();
    let get = |headers: &str, body: &str| format!("GET /v1 HTTP/1.1\r\nHost: x\r\n{headers}\r\n\r\n{body}");
    let post =
        |headers: &str, body: &str| format!("POST /v1/renew HTTP/1.1\r\nHost: x\r\n{headers}\r\n\r\n{body}");
    let chunked = "Transfer-Encoding: chunked";
    vec![
        // Two lengths, in every order and spelling.
        (post(&format!("Content-Length: 0\r\n{chunked}"), &hidden), &[400]),
        (post(&format!("{chunked}\r\nContent-Length: {length}"), &format!("0\r\n\r\n{hidden}")), &[400]),
        (post(&format!("Content-Length: 0\r\nContent-Length: {length}"), &hidden), &[400]),
        (post(&format!("Content-Length: {length}\r\nContent-Length: {length}"), &hidden), &[400]),
        (post(&format!("Content-Length: 0, {length}"), &hidden), &[400]),
        (post("Content-Length: +0", &hidden), &[400]),
        (post("Content-Length: 0x0", &hidden), &[400]),
        (post("Content-Length: -1", &hidden), &[400]),
        (post("Content-Length: 18446744073709551616", &hidden), &[400]),
        (post("Content-Length:", &hidden), &[400]),
        // Codings that somebody else might read otherwise.
        (post("Transfer-Encoding: xchunked", &hidden), &[501]),
        (post("Transfer-Encoding: chunked, identity", &hidden), &[501]),
        (post("Transfer-Encoding: identity", &hidden), &[501]),
        (post(&format!("{chunked}\r\n{chunked}"), &format!("0\r\n\r\n{hidden}")), &[400]),
        (format!("POST /v1/renew HTTP/1.0\r\n{chunked}\r\n\r\n0\r\n\r\n{hidden}"), &[400]),
        // Header lines that are folded, or end where none ends.
        (post(&format!("X: a\r\n Content-Length: {length}\r\nContent-Length: 0"), &hidden), &[400]),
        (post(&format!("X: a\r\n\t{chunked}"), &hidden), &[400]),
        (post(&format!("Content-Length : {length}"), &hidden), &[400]),
        (post(&format!("Content-Length: 0\rX: {hidden}"), ""), &[400]),
        (post("Content-Length: 0\0", &hidden), &[400]),
        // Chunks that are none.
        (post(chunked, &format!("-1\r\n{hidden}\r\n0\r\n\r\n")), &[400]),
        (post(chunked, &format!("0x0\r\n\r\n{hidden}")), &[400]),
        (post(chunked, &format!("ffffffffffffffffffff\r\n{hidden}")), &[400, 413]),
        (post(chunked, &format!("1\r\nab\r\n0\r\n\r\n{hidden}")), &[400]),
        // A body where none is wanted is passed over, not read as the next request.
        (get(&format!("Connection: close\r\nContent-Length: {length}"), &hidden), &[200]),
        (
            get(&format!("Connection: close\r\n{chunked}"), &format!("{length:x}\r\n{hidden}\r\n0\r\n\r\n")),
            &[200],
        ),
        // Nor is what follows a refusal.
        (post(&format!("Connection: close\r\nContent-Length: {length}"), &hidden), &[400]),
        ("GET /v1\r\n".to_owned() + &hidden, &[0, 400]),
        (format!("GET /v1 HTTP/1.1\r\n{hidden}"), &[400]),
        (format!("GET /v1 HTTP/9.9\r\nHost: x\r\n\r\n{hidden}"), &[400, 505]),
        // More than nginx reads of a header.
        (get(&format!("X: {}", "a".repeat(70_000)), &hidden), &[400]),
        (format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n{hidden}", "a".repeat(70_000)), &[414]),
        (get(&"X: a\r\n".repeat(9_000), &hidden), &[400]),
    ]
}

#[tokio::test]
async fn a_command_that_hides_in_another_request_is_not_carried_out() -> Result<()> {
    for version in VERSIONS {
        let mut site = Site::new(version).await?.workers(1);
        site.write(&format!(
            "{UPSTREAM}\n{}",
            site.api("write=on").replace("access_log", "lingering_timeout 200ms; access_log")
        ))?;
        site.start().await?;
        let workers = site.serving(&[]).await?;
        let before = site.overview().await?.generation;
        let mut unheard = 0;
        for (bytes, statuses) in cases() {
            let shown = bytes.get(..120.min(bytes.len())).unwrap_or_default().escape_debug().to_string();
            // nginx may hang up while it is still being told.
            let Ok(answer) = site.control().raw(&bytes).await else {
                unheard += 1;
                continue;
            };
            let said: Vec<u16> = (answer.lines())
                .filter_map(|line| line.strip_prefix("HTTP/1.1 ")?.split(' ').next()?.parse().ok())
                .collect();
            let one = *said.first().unwrap_or(&0);
            assert!(said.len() <= 1 && statuses.contains(&one), "nginx {version}: {shown}: {answer}");
        }
        ensure!(unheard * 2 < cases().len(), "{unheard} answers were lost");
        let after: Overview = site.read(path::OVERVIEW).await.context("it answers no more")?;
        assert_eq!((after.generation, site.events(0).await?.events.len()), (before, 0), "something was done");
        assert_eq!(site.serving_workers(), workers);
        // The same command, if it is sent as one, is one.
        let answer = site.control().raw(hidden()).await?;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert_eq!(site.events(0).await?.events.len(), 1);
        site.end().await?;
    }
    Ok(())
}
