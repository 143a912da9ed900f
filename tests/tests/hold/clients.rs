//! Whoever asks, however they ask, and whenever they leave.

use crate::stage::Stage;
use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use e2e::{command, door::Stream, site::VERSIONS};
use hyper::Method;
use std::time::Duration;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::Child,
    time::{sleep, timeout},
};

async fn send(stage: &Stage, text: &str) -> Result<Box<dyn Stream>> {
    let mut stream = stage.door().open().await?;
    stream.write_all(text.as_bytes()).await?;
    Ok(stream)
}

async fn rest(mut stream: Box<dyn Stream>) -> Result<String> {
    let mut text = String::new();
    timeout(Duration::from_secs(20), stream.read_to_string(&mut text)).await.context("no end")??;
    Ok(text)
}

/// A second server, for HTTP/2 in clear text.
fn http2(site: &e2e::site::Site) -> String {
    format!(
        "}} server {{ listen 127.0.0.1:{} http2; location / {{ proxy_pass http://app; }}",
        site.port() + 1
    )
}

fn curl(stage: &Stage, arguments: &[&str]) -> Result<Child> {
    let mut curl = command::clean("curl");
    curl.args(["-sS", "--http2-prior-knowledge", "-o", "/dev/null", "-w", "%{http_code}\\n"]);
    curl.args(arguments).stdout(std::process::Stdio::piped());
    let url = format!("http://127.0.0.1:{}/", stage.site.port() + 1);
    Ok(curl.arg(url).spawn()?)
}

#[tokio::test]
async fn a_client_that_leaves_is_forgotten_at_once() -> Result<()> {
    for version in VERSIONS {
        let site = e2e::site::Site::new(version).await?;
        let locations = format!(
            "location /patient {{ proxy_ignore_client_abort on; proxy_pass http://app; }} {}",
            http2(&site)
        );
        let stage = Stage::of(site, e2e::farm::Farm::start(1).await?, "", &locations).await?;
        stage.goes().await?;
        let mut leaving = Vec::new();
        for _ in 0..10 {
            leaving.push(send(&stage, "GET / HTTP/1.1\r\nHost: x\r\n\r\n").await?);
        }
        leaving.push(send(&stage, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody").await?);
        let mut h2: Vec<_> = (0..5).map(|_| curl(&stage, &[])).collect::<Result<_>>()?;
        let stays = stage.get("/stays");
        let patient = send(&stage, "GET /patient HTTP/1.1\r\nHost: x\r\n\r\n").await?;
        stage.holds(18).await?;
        drop(leaving);
        drop(patient);
        for curl in &mut h2 {
            curl.kill().await?;
        }
        stage.holds(2).await?;
        stage.comes_back().await?;
        assert_eq!(stays.await??.status, 200);
        stage.holds(0).await?;
        let mut arrived: Vec<_> = stage.farm.arrivals().await?.into_iter().map(|at| at.path).collect();
        arrived.sort();
        assert_eq!(arrived, ["/patient", "/stays"]);
        assert_eq!(stage.counts().await?, (0, [2, 0, 0, 16, 0]));
        stage.end().await?;
    }
    Ok(())
}

#[tokio::test]
async fn what_is_asked_in_one_breath_is_answered_in_order() -> Result<()> {
    for version in VERSIONS {
        let stage = Stage::single(version, "", "location = /here { return 200 here; }").await?;
        stage.goes().await?;
        let all = "GET /1 HTTP/1.1\r\nHost: x\r\n\r\nPOST /2 HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody\
                   GET /here HTTP/1.1\r\nHost: x\r\n\r\nGET /3 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        let stream = send(&stage, all).await?;
        stage.holds(1).await?;
        stage.comes_back().await?;
        let text = rest(stream).await?;
        assert_eq!(text.matches("HTTP/1.1 200 OK").count(), 4, "{text}");
        let arrived: Vec<_> = stage.farm.arrivals().await?.into_iter().map(|at| at.path).collect();
        assert_eq!(arrived, ["/1", "/2", "/3"]);
        stage.end().await?;
    }
    Ok(())
}

#[tokio::test]
async fn http2_clients_wait_with_and_without_a_body() -> Result<()> {
    for version in VERSIONS {
        let site = e2e::site::Site::new(version).await?;
        let locations = http2(&site);
        let lines = "handoff_queue 9 timeout=2s;";
        let stage = Stage::of(site, e2e::farm::Farm::start(1).await?, lines, &locations).await?;
        let body = stage.site.file("body");
        std::fs::write(&body, vec![b'x'; 300_000])?;
        let file = format!("@{}", body.display());
        for (arguments, comes_back) in [
            (&[][..], true),
            (&["-X", "POST", "--data-binary", &file], true),
            (&["-X", "POST", "--data-binary", &file], false),
        ] {
            stage.goes().await?;
            let curls: Vec<_> = (0..4).map(|_| curl(&stage, arguments)).collect::<Result<_>>()?;
            stage.holds(4).await?;
            if comes_back {
                stage.comes_back().await?;
            }
            for curl in curls {
                let said = curl.wait_with_output().await?;
                let said = String::from_utf8_lossy(&said.stdout).into_owned();
                ensure!(said == if comes_back { "200\n" } else { "503\n" }, "{arguments:?}: {said}");
            }
        }
        stage.comes_back().await?;
        stage.end().await?;
    }
    Ok(())
}

#[tokio::test]
async fn bodies_wait_whole_or_as_they_come() -> Result<()> {
    let locations = "client_max_body_size 0;
        location /unbuffered/ { proxy_request_buffering off; proxy_pass http://app/; }
        location /sized/ { proxy_request_buffering off; proxy_pass http://app/; }";
    for version in VERSIONS {
        let stage = Stage::new(version, 1, "", locations).await?;
        stage.goes().await?;
        let large = Bytes::from(vec![b'x'; 3_000_000]);
        let whole: Vec<_> =
            ["/", "/sized/"].map(|path| stage.visit(Method::POST, path, large.clone())).into_iter().collect();
        // One that still comes while it waits.
        let head = "POST /unbuffered/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n";
        let mut slow = send(&stage, head).await?;
        stage.holds(3).await?;
        for _ in 0..20 {
            slow.write_all(b"a\r\n0123456789\r\n").await?;
            sleep(Duration::from_millis(5)).await;
        }
        stage.comes_back().await?;
        for _ in 0..20 {
            slow.write_all(b"a\r\n0123456789\r\n").await?;
            sleep(Duration::from_millis(5)).await;
        }
        slow.write_all(b"0\r\n\r\n").await?;
        assert!(rest(slow).await?.starts_with("HTTP/1.1 200 "));
        for visit in whole {
            assert_eq!(visit.await??.status, 200);
        }
        assert_eq!(stage.counts().await?, (0, [3, 0, 0, 0, 0]));
        stage.end().await?;
    }
    Ok(())
}
