//! The control API says exactly what it means, and nothing that is sent to it harms nginx.

use anyhow::{Context, Result, ensure};
use e2e::{
    backend::Backend,
    clock::Moment,
    door::Reply,
    process,
    site::{PATIENCE, Say, Site, VERSIONS},
    wait,
};
use handoff_wire::{Ack, Code, Drained, MAX_BODY, Overview, State, path};
use hyper::Method;
use rustix::process::Signal;
use std::{fs, time::Duration};
use tokio::{io::AsyncWriteExt, spawn, task::JoinHandle};

const UPSTREAM: &str = "upstream app { zone app 64k; server 127.0.0.1:1; server 127.0.0.1:2; handoff; }";
const PEER: &str = "/v1/upstreams/app/peers/127.0.0.1:1";

/// nginx with an upstream that nobody uses, and with one worker, so that whatever blocks it is seen.
async fn site(version: &str) -> Result<Site> {
    let mut site = Site::new(version).await?.workers(1);
    let listen = site.socket().display().to_string();
    site.write(&format!(
        "{UPSTREAM}\nserver {{ listen unix:{listen}; lingering_timeout 200ms; location / {{ handoff_api write=on; }}\n\
         location /handoff/ {{ handoff_api; }} }}"
    ))?;
    site.start().await?;
    Ok(site)
}

/// The same workers still serve.
async fn is_unharmed(site: &Site, workers: &[u32]) -> Result<()> {
    let _: Overview = site.control().get("/v1").await?.json()?;
    ensure!(site.serving_workers() == workers, "a worker died");
    site.is_sound_but_for(&[])
}

fn marks(marks: &str) -> String {
    format!("{{\"owner\":\"operator\",\"marks\":[{marks}]}}")
}

#[tokio::test]
async fn paths_methods_and_parameters_are_exact() -> Result<()> {
    let nothing = |at: &str| format!("there is nothing at {at}: begin at /v1");
    let no_upstream = |name: &str| {
        format!("there is no upstream \"{name}\" with the directive \"handoff\" in nginx's configuration")
    };
    let refused: Vec<(&str, &str, Code, String)> = vec![
        ("GET", "/index.html", Code::PathNotFound, nothing("/index.html")),
        ("GET", "/v2", Code::PathNotFound, nothing("/v2")),
        ("GET", "/v1x", Code::PathNotFound, nothing("/v1x")),
        ("GET", "/V1", Code::PathNotFound, nothing("/V1")),
        ("GET", "/v1/nothing?x=1", Code::PathNotFound, nothing("/v1/nothing")),
        ("GET", "/v1//upstreams", Code::PathNotFound, nothing("/v1//upstreams")),
        ("GET", "/v1/../v1", Code::PathNotFound, nothing("/v1/../v1")),
        ("GET", "/handoff/v2", Code::PathNotFound, nothing("/handoff/v2")),
        ("GET", "/handoff/metrics/1", Code::PathNotFound, nothing("/handoff/metrics/1")),
        ("GET", "/?x=1", Code::BadRequest, "this path takes no parameters, not \"x=1\"".into()),
        ("POST", "/", Code::MethodNotAllowed, "POST is not for this path: use GET, HEAD".into()),
        ("GET", "/v1/upstreams/app/peers", Code::MethodNotAllowed, "GET is not for this path: use POST".into()),
        ("GET", "/v1/upstreams/app/peer", Code::PathNotFound, nothing("/v1/upstreams/app/peer")),
        ("GET", "/v1/upstreams/%FF", Code::PathNotFound, nothing("/v1/upstreams/%FF")),
        ("GET", "/v1/upstreams/other", Code::UpstreamNotFound, no_upstream("other")),
        ("GET", "/v1/upstreams/APP", Code::UpstreamNotFound, no_upstream("APP")),
        ("GET", "/v1/upstreams/a%22b", Code::UpstreamNotFound, no_upstream("a\\\"b")),
        ("GET", "/v1/upstreams/app/peers/127.0.0.1:3", Code::PeerNotFound,
            "the upstream \"app\" has no peer \"127.0.0.1:3\"".into()),
        ("GET", "/v1/upstreams/app/peers/127.0.0.1:3/drained", Code::PeerNotFound,
            "the upstream \"app\" has no peer \"127.0.0.1:3\"".into()),
        ("GET", "/v1/upstreams/other/peers/127.0.0.1:1", Code::UpstreamNotFound, no_upstream("other")),
        ("GET", "/v1?x=1", Code::BadRequest, "this path takes no parameters, not \"x=1\"".into()),
        ("GET", "/v1/upstreams?", Code::Unknown, String::new()),
        ("GET", "/v1/events?after=x", Code::BadRequest, "after=x: invalid digit found in string".into()),
        ("GET", "/v1/events?after=-1", Code::BadRequest, "after=-1: invalid digit found in string".into()),
        ("GET", "/v1/events?after=1&x=2", Code::BadRequest, "after=1&x=2: invalid digit found in string".into()),
        ("GET", "/v1/events?since=1", Code::BadRequest, "\"since=1\" is not after=…".into()),
        ("GET", "/v1/upstreams/app/peers/127.0.0.1:1/drained?timeout=5", Code::BadRequest,
            "timeout=5: \"5\" is not a time: write a whole number with its unit, such as 500ms, 10s, 5m or 1h".into()),
        ("GET", "/v1/upstreams/app/peers/127.0.0.1:1/drained?timeout=31s", Code::BadRequest,
            "\"timeout\" is 31s, more than 30s: ask again when that has passed".into()),
        ("GET", "/v1/upstreams/app/peers/127.0.0.1:1/drained?wait=1s", Code::BadRequest,
            "\"wait=1s\" is not timeout=…".into()),
        ("DELETE", "/v1", Code::MethodNotAllowed, "DELETE is not for this path: use GET, HEAD".into()),
        ("POST", PEER, Code::MethodNotAllowed, "POST is not for this path: use GET, HEAD, DELETE".into()),
        ("BREW", "/v1/events", Code::MethodNotAllowed, "BREW is not for this path: use GET, HEAD".into()),
        ("GET", "/v1/marks", Code::MethodNotAllowed, "GET is not for this path: use PUT".into()),
        ("PATCH", "/v1/marks", Code::MethodNotAllowed, "PATCH is not for this path: use PUT".into()),
        ("PUT", "/v1/renew", Code::MethodNotAllowed, "PUT is not for this path: use POST".into()),
        ("PUT", "/v1/marks?force=true", Code::BadRequest, "this path takes no parameters, not \"force=true\"".into()),
    ];
    for version in VERSIONS {
        let site = site(version).await?;
        for (method, path, code, text) in &refused {
            let what = format!("{method} {path}");
            let reply = site.control().ask(method.parse()?, path, "").await?;
            if *code == Code::Unknown {
                assert_eq!(reply.status, 200, "{what}");
                continue;
            }
            let refusal = reply.refusal().context(what.clone())?;
            assert_eq!((refusal.status, refusal.code, &refusal.text), (code.status(), *code, text), "{what}");
            let allow =
                text.split_once(": use ").map(|(_, methods)| methods).filter(|_| code.status() == 405);
            assert_eq!(reply.header("allow"), allow, "{what}");
        }
        for path in [
            "/v1",
            "/v1/",
            "/v1?",
            "/handoff/v1",
            "/v1/upstreams/",
            "/v1/upstreams/%61pp/",
            "/v1/events/",
            "/v1/upstreams/app/peers/127.0.0.1%3A1",
            "/v1/upstreams/app/peers/127.0.0.1:1/drained/?timeout=0s",
        ] {
            let got = site.control().get(path).await?;
            assert_eq!((got.status, got.header("content-type")), (200, Some("application/json")), "{path}");
            assert_eq!(got.header("content-length"), Some(got.body.len().to_string().as_str()), "{path}");
            assert!(got.text().ends_with("}\n"), "{path}");
            // HEAD answers the same, but for the body.
            let head = site.control().ask(Method::HEAD, path, "").await?;
            assert_eq!((head.status, head.header("content-type")), (200, Some("application/json")), "{path}");
            assert!(head.body.is_empty() && head.header("content-length").is_some(), "{path}");
        }
        let head = site.control().ask(Method::HEAD, "/v1/marks", "").await?;
        assert_eq!((head.status, head.header("allow"), head.body.len()), (405, Some("PUT"), 0));
        site.end().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_body_is_understood_or_refused_with_its_line_and_column() -> Result<()> {
    let not = |why: &str| format!("the body is not understood: {why}");
    let deep = "[".repeat(30_000);
    let long = "x".repeat(129);
    let many = vec!["{\"peer\":\"127.0.0.1:1\",\"state\":\"up\"}"; 257].join(",");
    let mark = |rest: &str| marks(&format!("{{\"peer\":\"127.0.0.1:1\",{rest}}}"));
    let one_line = "the reason for \"127.0.0.1:1\" must be one line of at most 128 bytes";
    let cases: Vec<(Vec<u8>, Code, String)> = vec![
        ("".into(), Code::BadRequest, not("EOF while parsing a value at line 1 column 0")),
        ("garbage".into(), Code::BadRequest, not("expected value at line 1 column 1")),
        (
            "{\"owner\":\"operator\",\n\"marks\":[".into(),
            Code::BadRequest,
            not("EOF while parsing a list at line 2 column 9"),
        ),
        ("{}".into(), Code::BadRequest, not("missing field `owner` at line 1 column 2")),
        (
            "null".into(),
            Code::BadRequest,
            not("invalid type: null, expected struct MarkSet at line 1 column 4"),
        ),
        (
            "{\"owner\":\"operator\",\n \"mark\":[]}".into(),
            Code::BadRequest,
            not(
                "unknown field `mark`, expected one of `owner`, `lease`, `force`, `marks` at line 2 column 7",
            ),
        ),
        (
            mark("\"state\":\"down\",\"weight\":1").into(),
            Code::BadRequest,
            not(
                "unknown field `weight`, expected one of `upstream`, `peer`, `state`, `expect`, `reason`, `all` at line 1 column 74",
            ),
        ),
        (
            "{\"owner\":\"operator\",\"owner\":\"plus\"}".into(),
            Code::BadRequest,
            not("duplicate field `owner` at line 1 column 27"),
        ),
        ((marks("") + "x").into(), Code::BadRequest, not("trailing characters at line 1 column 32")),
        (
            "{\"owner\":7,\"marks\":[]}".into(),
            Code::BadRequest,
            not("invalid type: integer `7`, expected a string at line 1 column 10"),
        ),
        (
            "{\"owner\":\"me\",\"marks\":[]}".into(),
            Code::BadRequest,
            not("unknown owner: use operator, plus, health, pm2:<daemon>, worker:<pid> or rollout:<id> \
                 at line 1 column 13"),
        ),
        (
            format!("{{\"owner\":\"operator\",\"marks\":{deep}").into(),
            Code::BadRequest,
            not("invalid type: sequence, expected a string at line 1 column 30"),
        ),
        (
            deep.clone().into(),
            Code::BadRequest,
            not("invalid type: sequence, expected a string at line 1 column 1"),
        ),
        (
            mark("\"state\":\"upp\"").into(),
            Code::BadRequest,
            not(
                "unknown variant `upp`, expected one of `up`, `changing`, `trial`, `checking`, `unhealthy`, `draining`, `down` \
                 at line 1 column 64",
            ),
        ),
        (
            mark("\"state\":\"unavail\"").into(),
            Code::BadRequest,
            not(
                "unknown variant `unavail`, expected one of `up`, `changing`, `trial`, `checking`, `unhealthy`, `draining`, `down` at line 1 column 68",
            ),
        ),
        (mark("\"state\":[\"up\"]").into(), Code::BadRequest, not("expected value at line 1 column 60")),
        (
            "{\"owner\":\"operator\",\"lease\":10,\"marks\":[]}".into(),
            Code::BadRequest,
            not("invalid type: integer `10`, expected a string at line 1 column 30"),
        ),
        (
            "{\"owner\":\"operator\",\"lease\":\"10\",\"marks\":[]}".into(),
            Code::BadRequest,
            not("\"10\" is not a time: write a whole number with its unit, such as 500ms, 10s, 5m or 1h \
                 at line 1 column 32"),
        ),
        (
            "{\"owner\":\"operator\",\"lease\":\"99999999999999999999s\",\"marks\":[]}".into(),
            Code::BadRequest,
            not(
                "\"99999999999999999999s\" is not a time: write a whole number with its unit, such as 500ms, 10s, \
                 5m or 1h at line 1 column 51",
            ),
        ),
        (
            "{\"owner\":\"operator\",\"lease\":\"999ms\",\"marks\":[]}".into(),
            Code::BadRequest,
            "the lease 999ms is not between 1s and 600s".into(),
        ),
        (
            "{\"owner\":\"operator\",\"lease\":\"601s\",\"marks\":[]}".into(),
            Code::BadRequest,
            "the lease 601s is not between 1s and 600s".into(),
        ),
        (
            b"{\"owner\":\"oper\xfftor\"}".to_vec(),
            Code::BadRequest,
            not("invalid unicode code point at line 1 column 15"),
        ),
        (
            b"{\"owner\":\"oper\0tor\"}".to_vec(),
            Code::BadRequest,
            not("control character (\\u0000-\\u001F) found while parsing a string at line 1 column 15"),
        ),
        (vec![0; 100], Code::BadRequest, not("expected value at line 1 column 1")),
        (marks("").into(), Code::BadRequest, "\"marks\" must name 1 to 256 peers".into()),
        (marks(&many).into(), Code::BadRequest, "\"marks\" must name 1 to 256 peers".into()),
        (mark("\"state\":\"down\",\"reason\":\"a\\u0000b\"").into(), Code::BadRequest, one_line.into()),
        (mark("\"state\":\"down\",\"reason\":\"a\\nb\"").into(), Code::BadRequest, one_line.into()),
        (mark("\"state\":\"down\",\"reason\":\"a\\u009bb\"").into(), Code::BadRequest, one_line.into()),
        (
            mark(&format!("\"state\":\"down\",\"reason\":\"{long}\"")).into(),
            Code::BadRequest,
            one_line.into(),
        ),
        (
            mark("\"state\":\"down\",\"all\":true").into(),
            Code::BadRequest,
            "\"all\" for \"127.0.0.1:1\" goes with \"state\":\"up\" only".into(),
        ),
        (
            mark("\"state\":\"up\",\"expect\":\"back\"").into(),
            Code::BadRequest,
            "\"expect\" for \"127.0.0.1:1\" does not go with \"state\":\"up\"".into(),
        ),
        (
            marks("{\"peer\":\"127.0.0.1:3\",\"state\":\"down\"}").into(),
            Code::PeerNotFound,
            "no upstream with the directive \"handoff\" has a peer \"127.0.0.1:3\"".into(),
        ),
        (
            marks("{\"peer\":\"127.0.0.1:1\\u0000\",\"state\":\"down\"}").into(),
            Code::PeerNotFound,
            "no upstream with the directive \"handoff\" has a peer \"127.0.0.1:1\\0\"".into(),
        ),
        (
            marks("{\"upstream\":\"app\",\"peer\":\"\",\"state\":\"down\"}").into(),
            Code::PeerNotFound,
            "the upstream \"app\" has no peer \"\"".into(),
        ),
        (
            mark("\"state\":\"down\",\"upstream\":\"other\"").into(),
            Code::UpstreamNotFound,
            "there is no upstream \"other\" with the directive \"handoff\" in nginx's configuration".into(),
        ),
        (
            marks(
                "{\"peer\":\"127.0.0.1:1\",\"state\":\"down\"},{\"peer\":\"127.0.0.1:1\",\"state\":\"up\"}",
            )
            .into(),
            Code::BadRequest,
            "\"marks\" names the peer 127.0.0.1:1 twice".into(),
        ),
        (
            marks(
                "{\"peer\":\"127.0.0.1:1\",\"state\":\"down\"},{\"peer\":\"127.0.0.1:2\",\"state\":\"down\"}",
            )
            .into(),
            Code::Floor,
            "nobody would be left to serve the upstream \"app\": wait until another of its peers is up, or \
                say \"force\":true if that is what you want"
                .into(),
        ),
    ];
    for version in VERSIONS {
        let site = site(version).await?;
        let workers = site.serving(&[]).await?;
        let before = site.overview().await?;
        for (body, code, says) in &cases {
            let shown = String::from_utf8_lossy(body.get(..200).unwrap_or(body)).into_owned();
            let reply = site.control().ask(Method::PUT, path::MARKS, body.clone()).await?;
            let refusal = reply.refusal().context(shown.clone())?;
            assert_eq!((refusal.status, refusal.code), (code.status(), *code), "{shown}: {refusal}");
            assert_eq!(&refusal.text, says, "{shown}");
        }
        for (body, code, says) in [
            ("", Code::BadRequest, not("EOF while parsing a value at line 1 column 0")),
            (
                "{\"owner\":\"operator\",\"marks\":[{\"upstream\":\"app\",\"peer\":\"127.0.0.1:1\",\
                \"epoch\":18446744073709551616}]}",
                Code::BadRequest,
                not("invalid type: floating point `1.8446744073709552e+19`, expected u64 at line 1 column 96"),
            ),
            (
                "{\"owner\":\"operator\",\"marks\":[{\"upstream\":\"app\",\"peer\":\"127.0.0.1:1\",\"epoch\":-1}]}",
                Code::BadRequest,
                not("invalid value: integer `-1`, expected u64 at line 1 column 78"),
            ),
            (
                "{\"owner\":\"operator\",\"marks\":[{\"upstream\":\"app\",\"peer\":\"127.0.0.1:1\",\"epoch\":1e999}]}",
                Code::BadRequest,
                not("number out of range at line 1 column 81"),
            ),
            (
                "{\"owner\":\"operator\",\"marks\":[{\"upstream\":\"app\",\"peer\":\"127.0.0.1:1\",\"epoch\":1}]}",
                Code::Lapsed,
                "the mark of operator on 127.0.0.1:1 in upstream app is not the one it set: it lapsed or was removed, and nginx may have used the peer since; drain it again before you stop its worker".into(),
            ),
        ] {
            let refusal = site.control().ask(Method::POST, path::RENEW, body).await?.refusal()?;
            assert_eq!(refusal.code, code, "{body}: {refusal}");
            assert_eq!(refusal.text, says, "{body}");
        }
        // None of it did anything.
        let after = site.overview().await?;
        assert_eq!((after.generation, after.instance), (before.generation, before.instance));
        assert_eq!(site.events(0).await?.events, []);
        is_unharmed(&site, &workers).await?;
        site.end().await?;
    }
    Ok(())
}

/// A body in chunks of 1000 bytes.
fn chunked(method: &str, path: &str, body: &str) -> Vec<u8> {
    let mut bytes = format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    );
    for chunk in body.as_bytes().chunks(1000) {
        bytes += &format!("{:x}\r\n{}\r\n", chunk.len(), String::from_utf8_lossy(chunk));
    }
    (bytes + "0\r\n\r\n").into_bytes()
}

#[tokio::test]
async fn a_body_is_bounded_however_it_comes() -> Result<()> {
    // A valid body of just so many bytes: JSON does not mind spaces.
    let of = |len: usize| {
        let body = marks("{\"peer\":\"127.0.0.1:1\",\"state\":\"up\"}");
        " ".repeat(len - body.len()) + &body
    };
    let says = "the body is larger than 65536 bytes: send fewer marks at a time";
    for version in VERSIONS {
        let site = site(version).await?;
        let workers = site.serving(&[]).await?;
        for (len, status) in [(1000, 200), (MAX_BODY, 200), (MAX_BODY + 1, 413), (500_000, 413)] {
            let reply = site.control().ask(Method::PUT, path::MARKS, of(len)).await?;
            assert_eq!(reply.status, status, "{len}: {}", reply.text());
            let answer = site.control().raw(chunked("PUT", path::MARKS, &of(len))).await?;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{len}: {answer}");
            if status == 413 {
                assert_eq!((reply.refusal()?.code, reply.refusal()?.text.as_str()), (Code::TooLarge, says));
                assert!(answer.contains(says), "{answer}");
            }
        }
        // Beyond client_max_body_size nginx itself refuses; announced is enough.
        for len in ["70000", "2000000", "9223372036854775807"] {
            let head = format!(
                "PUT /v1/marks HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len}\r\n\r\n"
            );
            let answer = site.control().raw(head).await?;
            assert!(answer.starts_with("HTTP/1.1 413 "), "{len}: {answer}");
        }
        let answer = site.control().raw(chunked("PUT", path::MARKS, &of(1_200_000))).await;
        // nginx may close before it has taken all of it.
        assert!(answer.as_ref().map_or(true, |answer| answer.starts_with("HTTP/1.1 413 ")), "{answer:?}");
        is_unharmed(&site, &workers).await?;
        site.end().await?;
    }
    Ok(())
}

#[tokio::test]
async fn what_is_no_http_is_refused_by_nginx() -> Result<()> {
    for version in VERSIONS {
        let site = site(version).await?;
        let workers = site.serving(&[]).await?;
        for (bytes, status) in [
            ("GET /v1 HTTP/1.0\r\n\r\n", "HTTP/1.1 200 "),
            ("GET http://localhost/v1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "HTTP/1.1 200 "),
            ("GET /v1 HTTP/1.1\r\n\r\n", "HTTP/1.1 400 "),
            ("GET /v1/%zz HTTP/1.0\r\n\r\n", "HTTP/1.1 400 "),
            ("GET /v1/%00 HTTP/1.0\r\n\r\n", "HTTP/1.1 400 "),
            ("get /v1 HTTP/1.0\r\n\r\n", "HTTP/1.1 400 "),
            ("PUT /v1/marks HTTP/1.0\r\nContent-Length: -1\r\n\r\n", "HTTP/1.1 400 "),
            ("\0\0\0\0\r\n\r\n", "HTTP/1.1 400 "),
            // A body where none belongs.
            ("GET /v1 HTTP/1.0\r\nContent-Length: 3\r\n\r\nabc", "HTTP/1.1 200 "),
            ("DELETE /v1 HTTP/1.0\r\nContent-Length: 3\r\n\r\nabc", "HTTP/1.1 405 "),
            // The body breaks off.
            (
                "PUT /v1/marks HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
                "HTTP/1.1 400 ",
            ),
        ] {
            let answer = site.control().raw(bytes).await?;
            assert!(answer.starts_with(status), "{bytes:?}: {answer}");
        }
        is_unharmed(&site, &workers).await?;
        site.end().await?;
    }
    Ok(())
}

#[tokio::test]
async fn requests_in_one_connection_are_answered_in_order() -> Result<()> {
    let body = marks("{\"peer\":\"127.0.0.1:1\",\"state\":\"draining\"}");
    let put = format!("PUT /v1/marks HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
    // All at once, a long poll among them, and then goodbye.
    let all = get("/v1")
        + &get("/nothing")
        + &put
        + &get(&format!("{PEER}/drained?timeout=5s"))
        + &get("/v1/upstreams/app/peers/127.0.0.1:2/drained?timeout=100ms")
        + &put.replace("draining", "drainin9")
        + "GET /v1/upstreams HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    for version in VERSIONS {
        let site = site(version).await?;
        let workers = site.serving(&[]).await?;
        for _ in 0..5 {
            let answer = site.control().raw(&all).await?;
            let statuses: Vec<&str> =
                answer.lines().filter_map(|line| line.strip_prefix("HTTP/1.1 ")?.split(' ').next()).collect();
            assert_eq!(statuses, ["200", "404", "200", "200", "200", "400", "200"], "{answer}");
            assert_eq!(answer.matches("\"drained\":true").count(), 1, "{answer}");
        }
        is_unharmed(&site, &workers).await?;
        site.end().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_client_that_takes_its_time_delays_nobody() -> Result<()> {
    let body = marks("{\"peer\":\"127.0.0.1:1\",\"state\":\"draining\"}");
    let head = format!("PUT /v1/marks HTTP/1.0\r\nContent-Length: {}\r\n\r\n", body.len());
    for version in VERSIONS {
        let site = site(version).await?;
        let workers = site.serving(&[]).await?;
        let mut slow = site.control().open().await?;
        let all = head.clone() + &body;
        let (last, all) = all.as_bytes().split_last().context("a body")?;
        for byte in all {
            slow.write_all(&[*byte]).await?;
            let began = Moment::now();
            assert_eq!(site.peer("127.0.0.1:1").await?.marks, [], "before all of it was said");
            let took = Moment::now().since(began);
            assert!(took < Duration::from_secs(1), "another call took {took:?}");
        }
        slow.write_all(&[*last]).await?;
        wait::until("the slow mark", PATIENCE, async || {
            (site.peer("127.0.0.1:1").await.ok()?.state == State::Draining.into()).then_some(())
        })
        .await?;
        is_unharmed(&site, &workers).await?;
        drop(slow);
        site.end().await?;
    }
    Ok(())
}

/// How many files a process has open.
fn open_files(pid: u32) -> Result<usize> {
    Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

#[tokio::test]
async fn clients_that_go_away_leave_nothing_behind() -> Result<()> {
    let body = marks("{\"peer\":\"127.0.0.1:1\",\"state\":\"draining\"}");
    let cases = [
        format!("GET {PEER}/drained?timeout=30s HTTP/1.1\r\nHost: x\r\n\r\n"),
        format!("GET {PEER}/drained?timeout=30s HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nab"),
        format!("PUT /v1/marks HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{{\"owner\"", body.len()),
        "PUT /v1/marks HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nff\r\n{".to_owned(),
        format!(
            "PUT /v1/marks HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: {}\r\n\r\n",
            body.len()
        ),
        "POST /v1/ren".to_owned(),
        String::new(),
    ];
    for version in VERSIONS {
        let site = site(version).await?;
        let workers = site.serving(&[]).await?;
        let worker = *workers.first().context("a worker")?;
        is_unharmed(&site, &workers).await?;
        let nothing_left = async |before: usize| {
            wait::until("the worker to close what was left", PATIENCE, async || {
                (open_files(worker).ok()? <= before).then_some(())
            })
            .await
        };
        // Whatever is not closed yet of the questions so far.
        let before = settled(worker).await?;
        for case in &cases {
            let mut streams = Vec::new();
            for _ in 0..20 {
                let mut stream = site.control().open().await?;
                stream.write_all(case.as_bytes()).await?;
                streams.push(stream);
            }
            wait::until("the worker to have them all", PATIENCE, async || {
                (open_files(worker).ok()? >= before + 20).then_some(())
            })
            .await?;
            is_unharmed(&site, &workers).await?;
            drop(streams);
            nothing_left(before).await.context(case.clone())?;
        }
        assert_eq!(site.events(0).await?.events, [], "half a body did something");
        is_unharmed(&site, &workers).await?;
        site.end().await?;
    }
    Ok(())
}

/// The number of files that a worker has open when nobody asks anything.
async fn settled(worker: u32) -> Result<usize> {
    let mut last = (0, 0);
    wait::until("the worker to be at rest", PATIENCE, async || {
        let now = open_files(worker).ok()?;
        last = if now == last.0 { (now, last.1 + 1) } else { (now, 0) };
        (last.1 > 5).then_some(now)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn hundreds_of_calls_at_once_are_all_answered() -> Result<()> {
    const CALLS: usize = 400;
    for version in VERSIONS {
        let mut site = Site::new(version).await?;
        site.write(&format!("{UPSTREAM}\n{}", site.api("write=on")))?;
        site.start().await?;
        let workers = site.serving(&[]).await?;
        let calls: Vec<JoinHandle<Result<Reply>>> = (0..CALLS)
            .map(|number| {
                let control = site.control();
                spawn(async move {
                    let say = if number % 2 == 0 { Say::DRAIN } else { Say::READY };
                    match number % 4 {
                        0 | 1 => {
                            control.ask(Method::PUT, path::MARKS, say.of(&["127.0.0.1:1"]).to_string()).await
                        }
                        2 => control.get("/v1/upstreams").await,
                        _ => control.get(&format!("{PEER}/drained?timeout=200ms")).await,
                    }
                })
            })
            .collect();
        let mut busy = 0;
        for call in calls {
            let reply = call.await??;
            if reply.status != 200 {
                assert_eq!(reply.refusal()?.code, Code::Busy);
                busy += 1;
            }
        }
        eprintln!("{busy} of {CALLS} calls were told to try again");
        // The lock is held for microseconds; to find it held for all of one's attempts is rare.
        assert!(busy < CALLS / 4, "{busy} of {CALLS} calls were told to try again");
        is_unharmed(&site, &workers).await?;
        site.end().await?;
    }
    Ok(())
}

#[tokio::test]
async fn drained_is_answered_when_it_is_so_or_when_waiting_is_over() -> Result<()> {
    let backend = Backend::start(2).await?;
    let (peer, other) = (backend.peer(0), backend.peer(1));
    for version in VERSIONS {
        let site = Site::with(version, &backend).await?;
        let drained = |peer: &str, timeout: &str| {
            let (control, path) =
                (site.control(), format!("{}?timeout={timeout}", path::drained("app", peer)));
            async move {
                let began = Moment::now();
                let drained: Drained = control.get(&path).await?.json()?;
                anyhow::Ok((drained, began, Moment::now()))
            }
        };
        let is = |drained, state, in_flight| Drained { drained, state, in_flight };

        // Nobody drained it: it never is, however little it has to do.
        let (answer, began, ended) = drained(&peer, "0s").await?;
        assert_eq!(answer, is(false, State::Up, 0));
        assert!(ended.since(began) < Duration::from_secs(1));
        let (answer, began, ended) = drained(&peer, "300ms").await?;
        assert_eq!(answer, is(false, State::Up, 0));
        assert!(ended.since(began) >= Duration::from_millis(295));

        // At once.
        site.say(&Say::DRAIN, &[&other]).await?;
        let (answer, began, ended) = drained(&other, "20s").await?;
        assert_eq!(answer, is(true, State::Draining, 0));
        assert!(ended.since(began) < Duration::from_secs(1));

        // In time: when the last of its requests ends.
        let visitors = site.visitors();
        let visit = spawn(async move { visitors.get("/hold").await });
        backend.holds(1).await?;
        site.say(&Say::READY, &[&other]).await?;
        site.say(&Say::DRAIN, &[&peer]).await?;
        let (answer, began, ended) = drained(&peer, "300ms").await?;
        assert_eq!(answer, is(false, State::Draining, 1));
        assert!(ended.since(began) >= Duration::from_millis(295));
        let waiting = spawn(drained(&peer, "20s"));
        let released = async {
            // Two answers later, nginx has long begun with the call that came before.
            for _ in 0..2 {
                site.overview().await?;
            }
            let at = Moment::now();
            backend.release().await?;
            anyhow::Ok(at)
        };
        let released = released.await?;
        let (answer, _, ended) = waiting.await??;
        assert_eq!(answer, is(true, State::Draining, 0));
        assert!(ended >= released && ended.since(released) < Duration::from_secs(1));
        assert_eq!(visit.await??.status, 200);
        site.end().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_worker_that_is_to_go_keeps_nobody_waiting() -> Result<()> {
    let backend = Backend::start(2).await?;
    let peer = backend.peer(0);
    for version in VERSIONS {
        for signal in [Signal::HUP, Signal::QUIT] {
            let site = Site::with(version, &backend).await?;
            let visitors = site.visitors();
            let visit = spawn(async move { visitors.get("/hold").await });
            backend.holds(1).await?;
            site.say(&Say::DRAIN, &[&peer]).await?;
            let workers = site.serving(&[]).await?;
            let open = || workers.iter().filter_map(|&pid| sockets_of(pid, &site).ok()).sum::<usize>();
            // Each worker listens; whatever is more is a call.
            wait::until("earlier calls to end", PATIENCE, async || (open() == workers.len()).then_some(()))
                .await?;
            let (control, path) = (site.control(), path::drained("app", &peer) + "?timeout=30s");
            let waiting = spawn(async move { control.get(&path).await });
            wait::until("the call to begin", PATIENCE, async || (open() > workers.len()).then_some(()))
                .await?;
            let began = Moment::now();
            site.signal(signal);
            let answer: Drained = waiting.await??.json()?;
            assert_eq!(answer, Drained { drained: false, state: State::Draining, in_flight: 1 });
            assert!(Moment::now().since(began) < Duration::from_secs(5));
            backend.release().await?;
            assert_eq!(visit.await??.status, 200);
            if signal == Signal::QUIT {
                process::death(site.master()).await?;
                site.is_sound_but_for(&[])?;
            } else {
                site.end().await?;
            }
        }
    }
    Ok(())
}

/// The control socket itself counts too.
fn sockets_of(pid: u32, site: &Site) -> Result<usize> {
    let name = site.socket().display().to_string();
    let known = fs::read_to_string("/proc/net/unix")?;
    let inodes: Vec<String> = known
        .lines()
        .filter(|line| line.ends_with(&name))
        .filter_map(|line| Some(format!("socket:[{}]", line.split_whitespace().nth(6)?)))
        .collect();
    let open = fs::read_dir(format!("/proc/{pid}/fd"))?;
    let links = open.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    Ok(links.filter(|link| inodes.iter().any(|inode| link.to_string_lossy() == *inode)).count())
}

#[tokio::test]
async fn marks_of_one_call_are_all_set_or_none() -> Result<()> {
    for version in VERSIONS {
        let site = site(version).await?;
        let one = "{\"peer\":\"127.0.0.1:1\",\"state\":\"draining\"}";
        for rest in
            ["{\"peer\":\"127.0.0.1:3\",\"state\":\"down\"}", "{\"peer\":\"127.0.0.1:2\",\"state\":\"down\"}"]
        {
            let reply = site.control().ask(Method::PUT, path::MARKS, marks(&format!("{one},{rest}"))).await?;
            reply.refusal()?;
            assert_eq!(site.peer("127.0.0.1:1").await?.marks, [], "half of it was done");
        }
        let ack: Ack = site.control().ask(Method::PUT, path::MARKS, marks(one)).await?.json()?;
        let [mark] = &ack.marks[..] else { panic!("{ack:?}") };
        assert_eq!(
            (mark.upstream.as_str(), mark.peer.as_str(), mark.state),
            ("app", "127.0.0.1:1", State::Draining)
        );
        assert_eq!((ack.instance, ack.generation), {
            let now = site.overview().await?;
            (now.instance, now.generation)
        });
        site.end().await?;
    }
    Ok(())
}
