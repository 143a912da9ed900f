//! `$handoff_worker` is the name that a worker gave itself in `X-Handoff-Worker`, if its answer is what the visitor got; no
//! visitor sees that header, and who does not use Handoff keeps his.

use anyhow::{Context, Result, ensure};
use e2e::{
    command,
    parrot::fastcgi,
    place, ports,
    site::{PATIENCE, Say, Site, VERSIONS},
    wait,
};
use handoff_wire::State;
use std::{
    fs,
    net::SocketAddr,
    sync::{Arc, Mutex},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream, UnixListener},
    spawn,
};

const LOG: &str =
    "log_format worker '$request_method $request_uri|$handoff_worker|$upstream_http_x_handoff_worker|$uri';";

/// A peer whose answer the test chooses.
#[derive(Clone)]
struct Peer {
    address: SocketAddr,
    answer: Arc<Mutex<Vec<u8>>>,
}

impl Peer {
    async fn start(answer: impl Into<Vec<u8>>) -> Result<Self> {
        let address = ports::address(ports::row(1)?);
        let listener = TcpListener::bind(address).await?;
        let peer = Self { address, answer: Arc::new(Mutex::new(answer.into())) };
        let answers = peer.clone();
        spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                spawn(answers.clone().serve(stream));
            }
        });
        Ok(peer)
    }

    async fn serve(self, mut stream: TcpStream) {
        let mut request = [0; 8192];
        _ = stream.read(&mut request).await;
        let answer = self.answer.lock().map(|answer| answer.clone()).unwrap_or_default();
        _ = stream.write_all(&answer).await;
        _ = stream.shutdown().await;
        // Closed with unread bytes it would be reset, and what was sent might be lost.
        _ = stream.read_to_end(&mut Vec::new()).await;
    }

    fn now_says(&self, answer: impl Into<Vec<u8>>) {
        if let Ok(mut old) = self.answer.lock() {
            *old = answer.into();
        }
    }
}

/// An answer, with a body of two bytes.
fn http(status: &str, headers: &str) -> String {
    format!("HTTP/1.1 {status}\r\n{headers}Content-Length: 2\r\n\r\nok")
}

fn named(name: &str) -> String {
    http("200 OK", &format!("X-Handoff-Worker: {name}\r\n"))
}

/// A site whose requests are logged.
async fn site(version: &str, blocks: &str, locations: &str) -> Result<Site> {
    let mut site = Site::new(version).await?;
    configure(&site, blocks, locations)?;
    site.start().await?;
    Ok(site)
}

fn configure(site: &Site, blocks: &str, locations: &str) -> Result<()> {
    site.write(&format!(
        "{LOG}\nproxy_cache_path {} keys_zone=all:1m;\nproxy_http_version 1.1;\n{blocks}\n\
         server {{ listen 127.0.0.1:{}; access_log {} worker; {locations} }}\n{}",
        site.file("cache").display(),
        site.port(),
        site.file("access").display(),
        site.api("write=on")
    ))
}

fn upstream(name: &str, peers: &[&Peer], more: &str) -> String {
    let servers: String = peers.iter().map(|peer| format!("server {} max_fails=0; ", peer.address)).collect();
    format!("upstream {name} {{ zone {name} 64k; {servers}{more} }}\n")
}

/// The answer as it came, without its date.
async fn ask(site: &Site, method: &str, path: &str) -> Result<String> {
    let answer = site.visitors().raw(format!("{method} {path} HTTP/1.0\r\n\r\n")).await?;
    Ok(answer.split_inclusive('\n').filter(|line| !line.starts_with("Date: ")).collect())
}

fn says(answer: &str) -> bool {
    answer.to_ascii_lowercase().contains("handoff")
}

/// What is logged of a request, each of which has a URI of its own.
async fn logged(site: &Site, path: &str) -> Result<Vec<String>> {
    let what = format!("{path} to be logged");
    wait::until(&what, PATIENCE, async || {
        let log = fs::read_to_string(site.file("access")).ok()?;
        let line = log.lines().find(|line| line.split(['|', ' ']).nth(1) == Some(path))?;
        Some(line.split('|').skip(1).map(str::to_owned).collect())
    })
    .await
}

/// Asks; the visitor's answer begins like this and does not say what the log says.
async fn expect(site: &Site, path: &str, begins: &str, worker: &str) -> Result<String> {
    let answer = ask(site, "GET", path).await?;
    ensure!(answer.starts_with(begins), "{path}: {answer:?} does not begin with {begins:?}");
    ensure!(!says(&answer), "{path}: the visitor sees {answer:?}");
    let [seen, header, _] = &logged(site, path).await?[..] else { anyhow::bail!("a line is not whole") };
    ensure!(seen == worker, "{path}: {seen:?} instead of {worker:?}");
    ensure!(header == "-", "{path}: $upstream_http_x_handoff_worker is {header:?}");
    Ok(answer)
}

/// How a location passes a request, what it is answered, how the visitor's answer begins, and who is named.
type Case = (&'static str, Vec<u8>, &'static str, &'static str);

const LONG: &str =
    "%E5%BA%97%E5%BA%97%E5%BA%97%E5%BA%97%E5%BA%97%E5%BA%97%E5%BA%97%E5%BA%97%E5%BA%97%E5%BA%97:1234567890";

fn cases() -> Vec<Case> {
    let proxy = "proxy_pass http://$peer";
    let ok = "HTTP/1.1 200 OK\r\n";
    let one = |status: &str| http(status, "X-Handoff-Worker: shop:0\r\n").into_bytes();
    let bytes = |text: &str| text.as_bytes().to_vec();
    vec![
        (proxy, bytes(&named("shop:0")), ok, "shop:0"),
        (proxy, bytes(&named(LONG)), ok, LONG),
        (proxy, bytes(&named("my%20shop:0")), ok, "my%20shop:0"),
        (proxy, bytes("HTTP/1.1 200 OK\nx-hAndoff-wOrker:shop:0  \n\n"), ok, "shop:0"),
        // The first word counts, and all of them are kept from the visitor.
        (
            proxy,
            bytes(&http(
                "200 OK",
                "X-Handoff-Worker: a:0\r\nA: b\r\nX-HANDOFF-WORKER: b:1\r\nx-handoff-worker: c\r\n",
            )),
            ok,
            "a:0",
        ),
        (proxy, bytes(&http("200 OK", "X-Handoff-Worker:\r\nX-Handoff-Worker: b:1\r\n")), ok, "b:1"),
        // Nobody has said a name.
        (proxy, bytes(&http("200 OK", "")), ok, "-"),
        (proxy, bytes(&named("")), ok, "-"),
        (proxy, bytes(&http("200 OK", "X-Handoff-Workers: shop:0\r\n").replace("andoff", "and")), ok, "-"),
        (proxy, bytes("shop:0\r\n"), "shop:0\r\n", "-"),
        // Answers of every kind.
        (proxy, one("404 Not Found"), "HTTP/1.1 404 Not Found\r\n", "shop:0"),
        (proxy, one("500 Oh"), "HTTP/1.1 500 Oh\r\n", "shop:0"),
        (
            proxy,
            bytes("HTTP/1.1 304 Not Modified\r\nX-Handoff-Worker: shop:0\r\n\r\n"),
            "HTTP/1.1 304 ",
            "shop:0",
        ),
        (
            proxy,
            bytes("HTTP/1.1 204 No Content\r\nX-Handoff-Worker: shop:0\r\n\r\n"),
            "HTTP/1.1 204 ",
            "shop:0",
        ),
        (
            proxy,
            bytes("HTTP/1.1 200 OK\r\nX-Handoff-Worker: shop:0\r\nContent-Length: 9\r\n\r\nok"),
            ok,
            "shop:0",
        ),
        ("proxy_buffering off; proxy_pass http://$peer", one("200 OK"), ok, "shop:0"),
        ("proxy_hide_header X-Handoff-Worker; proxy_pass http://$peer", one("200 OK"), ok, "shop:0"),
        ("proxy_pass_header X-Handoff-Worker; proxy_pass http://$peer", one("200 OK"), ok, "shop:0"),
        ("set $to $peer; proxy_pass http://$to", one("200 OK"), ok, "shop:0"),
        // A worker whose header is not whole, or no good, has not answered.
        (proxy, bytes("HTTP/1.1 200 OK\r\nX-Handoff-Worker: shop:0\r\n"), "HTTP/1.1 502 ", "-"),
        (proxy, bytes("HTTP/1.1 200 OK\r\nX-Handoff-Worker: shop:0\r\nA\0: b\r\n\r\n"), "HTTP/1.1 502 ", "-"),
        (proxy, bytes(""), "HTTP/1.1 502 ", "-"),
        // It has answered, and nginx puts the answer in its own words.
        (
            proxy,
            bytes("HTTP/1.1 200 OK\r\nX-Handoff-Worker: shop:0\r\nX-Accel-Redirect: /gone\r\n\r\n"),
            "HTTP/1.1 410 ",
            "shop:0",
        ),
        (
            "proxy_intercept_errors on; error_page 500 =410 /gone; proxy_pass http://$peer",
            one("500 Oh"),
            "HTTP/1.1 410 ",
            "shop:0",
        ),
        (
            "scgi_pass $peer",
            bytes("Status: 404 No\r\nX-Handoff-Worker: shop:0\r\n\r\n"),
            "HTTP/1.1 404 ",
            "shop:0",
        ),
        ("uwsgi_pass $peer", bytes("HTTP/1.1 200 OK\r\nX-Handoff-Worker: shop:0\r\n\r\n"), ok, "shop:0"),
        (
            "fastcgi_pass $peer",
            fastcgi("Status: 403 No\r\nX-Handoff-Worker: shop:0\r\n\r\n"),
            "HTTP/1.1 403 ",
            "shop:0",
        ),
        ("set $memcached_key a; memcached_pass $peer", bytes("END\r\n"), "HTTP/1.1 404 ", "-"),
    ]
}

#[tokio::test]
async fn whatever_the_protocol_the_worker_is_named_in_the_log_and_to_nobody_else() -> Result<()> {
    for version in VERSIONS {
        let cases = cases();
        let (mut blocks, mut locations) = (String::new(), "location = /gone { return 410; }\n".to_owned());
        for (number, (pass, answer, ..)) in cases.iter().enumerate() {
            let (peer, name) = (Peer::start(answer.clone()).await?, format!("app{number}"));
            blocks += &upstream(&name, &[&peer], "handoff;");
            locations += &format!("location = /{number} {{ {}; }}\n", pass.replace("$peer", &name));
        }
        // Its peer is this nginx itself.
        let grpc = ports::address(ports::row(1)?);
        blocks += &format!("upstream grpc {{ zone grpc 64k; server {grpc}; handoff; }}\n");
        blocks += &format!(
            "server {{ listen {grpc} http2; location / {{ add_header X-Handoff-Worker g:0 always; return 503; }} }}\n"
        );
        locations += "location = /grpc { grpc_pass grpc://grpc; }\n";
        let site = site(version, &blocks, &locations).await?;
        for (number, (pass, _, begins, worker)) in cases.into_iter().enumerate() {
            let about = || format!("{number}: {pass}");
            let answer = expect(&site, &format!("/{number}"), begins, worker).await.with_context(about)?;
            // All else that the worker said is there.
            ensure!(
                !pass.starts_with("proxy_pass ") || worker != "a:0" || answer.contains("\r\nA: b\r\n"),
                "{answer}"
            );
            let head = ask(&site, "HEAD", &format!("/{number}?head")).await?;
            ensure!(!says(&head), "{}: {head:?}", about());
        }
        assert_eq!(logged(&site, "/0?head").await?[0], "shop:0");
        expect(&site, "/grpc", "HTTP/1.1 503 ", "g:0").await?;
        site.end().await?;
    }
    Ok(())
}

#[tokio::test]
async fn hints_before_an_answer_and_a_change_of_protocol_are_no_other_case() -> Result<()> {
    let hints = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
    let peer = Peer::start(hints.to_owned() + &named("shop:0")).await?;
    let socket = "HTTP/1.1 101 Go\r\nUpgrade: a\r\nConnection: Upgrade\r\nX-Handoff-Worker: shop:1\r\n\r\nhi";
    let sockets = Peer::start(socket).await?;
    for version in VERSIONS {
        let blocks = upstream("app", &[&peer], "handoff;") + &upstream("sockets", &[&sockets], "handoff;");
        let locations = "location / { proxy_pass http://app; }
            location /socket { proxy_set_header Upgrade a; proxy_set_header Connection upgrade; proxy_pass http://sockets; }";
        let site = site(version, &blocks, locations).await?;
        // What nginx makes of the hints is its own affair: such an nginx may take them for the answer.
        let answer = ask(&site, "GET", "/hints").await?;
        let head = answer.split("\r\n\r\n").next().unwrap_or_default();
        ensure!(!says(head), "{answer:?}");
        let upgrade = "GET /socket HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: a\r\n\r\n";
        let answer = site.visitors().raw(upgrade).await?;
        ensure!(
            answer.starts_with("HTTP/1.1 101 ") && answer.ends_with("\r\n\r\nhi") && !says(&answer),
            "{answer:?}"
        );
        assert_eq!(logged(&site, "/socket").await?[0], "shop:1");
        site.end().await?;
    }
    Ok(())
}

#[tokio::test]
async fn of_several_attempts_only_the_one_that_was_sent_is_named() -> Result<()> {
    let busy = http("503 Busy", "X-Handoff-Worker: a:0\r\n");
    let torn = "HTTP/1.1 200 OK\r\nX-Handoff-Worker: a:0\r\n".to_owned();
    let silent = http("200 OK", "");
    for version in VERSIONS {
        let (first, second) = (Peer::start("").await?, Peer::start("").await?);
        let blocks =
            upstream("app", &[&first], &format!("server {} max_fails=0 backup; handoff;", second.address));
        let locations = "location / { proxy_next_upstream error http_503; proxy_pass http://app; }
            location /once { proxy_next_upstream_tries 1; proxy_pass http://app; }
            location /worker { add_header X-Worker $handoff_worker; proxy_pass http://app; }";
        let site = site(version, &blocks, locations).await?;
        let turns = [
            (&busy, named("b:1"), "HTTP/1.1 200 ", "b:1"),
            (&torn, named("b:1"), "HTTP/1.1 200 ", "b:1"),
            (&busy, silent.clone(), "HTTP/1.1 200 ", "-"),
            (&torn, busy.replace("a:0", "b:1"), "HTTP/1.1 503 ", "b:1"),
            (&busy, torn.clone(), "HTTP/1.1 502 ", "-"),
            (&torn, torn.clone(), "HTTP/1.1 502 ", "-"),
        ];
        for (number, (one, two, begins, worker)) in turns.into_iter().enumerate() {
            first.now_says(one.as_str());
            second.now_says(two);
            expect(&site, &format!("/{number}"), begins, worker).await?;
        }
        first.now_says(busy.as_str());
        expect(&site, "/once", "HTTP/1.1 503 ", "a:0").await?;
        // Who wants to tell the visitor may.
        first.now_says(named("a:0"));
        let answer = expect(&site, "/worker", "HTTP/1.1 200 ", "a:0").await?;
        ensure!(answer.contains("\r\nX-Worker: a:0\r\n"), "{answer}");
        // A worker on trial that fails is not who answered; nor is one that nobody asked.
        second.now_says(named("b:1"));
        let peers = [first.address.to_string(), second.address.to_string()];
        site.say(&Say { state: State::Trial, force: true, ..Say::DRAIN }, &[&peers[0]]).await?;
        first.now_says(http("500 Oh", "X-Handoff-Worker: a:0\r\n"));
        expect(&site, "/trial", "HTTP/1.1 200 ", "b:1").await?;
        site.say(&Say { state: State::Down, force: true, ..Say::DRAIN }, &[&peers[0], &peers[1]]).await?;
        expect(&site, "/down", "HTTP/1.1 502 ", "-").await?;
        site.end().await?;
    }
    Ok(())
}

#[tokio::test]
async fn an_answer_from_the_cache_names_nobody() -> Result<()> {
    let fresh = http("200 OK", "X-Handoff-Worker: shop:0\r\nETag: \"1\"\r\nCache-Control: max-age=1\r\n");
    let oh = http("500 Oh", "X-Handoff-Worker: shop:0\r\n");
    let unchanged = "HTTP/1.1 304 Not Modified\r\nX-Handoff-Worker: shop:0\r\n\r\n".to_owned();
    let cache = "proxy_cache all; proxy_cache_key $uri; add_header X-Cache $upstream_cache_status always;";
    for version in VERSIONS {
        let peer = Peer::start(fresh.as_str()).await?;
        let locations = format!(
            "{cache} set $to app;
             location /stale {{ proxy_cache_use_stale error http_500; proxy_pass http://app; }}
             location /again {{ proxy_cache_revalidate on; proxy_pass http://app; }}
             location /later {{ proxy_cache_use_stale updating; proxy_cache_background_update on; proxy_pass http://app; }}
             location /variable {{ proxy_pass http://$to; }}
             location /passed {{ proxy_cache_bypass 1; proxy_pass http://app; }}
             location /error {{ proxy_cache_valid 404 1h; proxy_pass http://app; }}"
        );
        // What was cached while nobody took part is kept from visitors, too.
        let site = site(version, &upstream("app", &[&peer], ""), &locations).await?;
        for place in ["stale", "variable"] {
            let answer = ask(&site, "GET", &format!("/{place}?first")).await?;
            ensure!(
                answer.contains("X-Handoff-Worker: shop:0") && answer.contains("X-Cache: MISS"),
                "{answer}"
            );
            // Both are in the cache, and the file says who made them.
            assert_eq!(logged(&site, &format!("/{place}?first")).await?[..2], ["-", "shop:0"]);
        }
        configure(&site, &upstream("app", &[&peer], "handoff;"), &locations)?;
        site.reload().await?;

        let seen = async |path: &str, status: &str, worker: &str| {
            let answer = expect(&site, path, "HTTP/1.1 ", worker).await?;
            ensure!(answer.contains(&format!("\r\nX-Cache: {status}\r\n")), "{path}: {answer}");
            anyhow::Ok(())
        };
        // Whether the answer is still fresh is a matter of a second: both are right.
        let until = async |place: &str, status: &str, worker: &str| {
            let mut number = 0;
            wait::until(&format!("{place} to be {status}"), PATIENCE, async || {
                number += 1;
                let path = format!("/{place}?{status}{number}");
                let answer = ask(&site, "GET", &path).await.ok()?;
                assert!(!says(&answer), "{path}: {answer}");
                let is_it = answer.contains(&format!("\r\nX-Cache: {status}\r\n"));
                let named = logged(&site, &path).await.ok()?;
                let expected = if is_it { worker } else { "-" };
                (named[0] == expected && is_it).then_some(())
            })
            .await
        };
        for place in ["stale", "variable"] {
            until(place, "EXPIRED", "shop:0").await?;
            seen(&format!("/{place}?hit"), "HIT", "-").await?;
        }
        for (answer, again) in [(oh.as_str(), "500"), ("", "error")] {
            peer.now_says(answer);
            until("stale", "STALE", "-").await.context(again)?;
        }
        peer.now_says(fresh.as_str());
        for place in ["again", "later"] {
            seen(&format!("/{place}?miss"), "MISS", "shop:0").await?;
        }
        peer.now_says(unchanged.as_str());
        until("again", "REVALIDATED", "-").await?;
        peer.now_says(fresh.as_str());
        until("later", "STALE", "-").await?;
        seen("/passed", "BYPASS", "shop:0").await?;
        peer.now_says(http("404 No", "X-Handoff-Worker: shop:0\r\n"));
        seen("/error?1", "MISS", "shop:0").await?;
        seen("/error?2", "HIT", "-").await?;
        site.end().await?;
    }
    Ok(())
}

#[tokio::test]
async fn each_request_has_the_name_of_its_own_worker() -> Result<()> {
    let (page, gate) = (Peer::start(named("page:0")).await?, Peer::start(named("gate:1")).await?);
    let whole = Peer::start(
        "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nX-Handoff-Worker: whole:2\r\n\r\n\
         <!--# include virtual=\"/part\" -->.",
    )
    .await?;
    for version in VERSIONS {
        let blocks = upstream("page", &[&page], "handoff;")
            + &upstream("gate", &[&gate], "handoff;")
            + &upstream("whole", &[&whole], "handoff;");
        let locations = "log_subrequest on;
            location = /page { auth_request /gate; mirror /mirror; proxy_pass http://page; }
            location = /gate { internal; proxy_pass http://gate; }
            location = /mirror { internal; proxy_pass http://gate; }
            location = /whole { ssi on; proxy_pass http://whole; }
            location = /part { proxy_pass http://gate; }
            location = /fallback { error_page 502 = @gate; proxy_intercept_errors on; proxy_pass http://gone; }
            location @gate { proxy_pass http://gate; }
            location = /static { return 200 static; }
            location = /left { error_page 404 = /static; proxy_intercept_errors on; proxy_pass http://page; }";
        let nobody = Peer::start("").await?;
        let blocks = blocks + &upstream("gone", &[&nobody], "handoff;");
        let site = site(version, &blocks, locations).await?;
        let names = async |path: &str, wanted: &[(&str, &str)]| {
            let answer = ask(&site, "GET", path).await?;
            ensure!(answer.starts_with("HTTP/1.1 200 ") && !says(&answer), "{answer}");
            wait::until(&format!("{wanted:?}"), PATIENCE, async || {
                let log = fs::read_to_string(site.file("access")).ok()?;
                let seen = |(uri, name): &(&str, &str)| {
                    log.lines().any(|line| {
                        let line: Vec<_> = line.split(['|', ' ']).collect();
                        line.get(1..).is_some_and(|line| line == [path, name, "-", uri])
                    })
                };
                wanted.iter().all(seen).then_some(())
            })
            .await
            .with_context(|| fs::read_to_string(site.file("access")).unwrap_or_default())
        };
        names("/page", &[("/page", "page:0"), ("/gate", "gate:1"), ("/mirror", "gate:1")]).await?;
        names("/whole", &[("/whole", "whole:2"), ("/part", "gate:1")]).await?;
        names("/fallback", &[("/fallback", "gate:1")]).await?;
        names("/static", &[("/static", "-")]).await?;
        names("/left", &[("/left", "page:0")]).await?;
        site.end().await?;
    }
    Ok(())
}

#[tokio::test]
async fn who_does_not_take_part_keeps_the_header() -> Result<()> {
    let twice = "X-Handoff-Worker: a:0\r\nX-Other: b\r\nX-Handoff-Worker: b:1\r\n";
    let kept = format!("{twice}Cache-Control: max-age=60\r\n");
    let peer = Peer::start(http("200 OK", &kept)).await?;
    let redirects =
        Peer::start(format!("HTTP/1.1 200 OK\r\n{twice}X-Accel-Redirect: /static\r\n\r\n")).await?;
    let ours = Peer::start(named("ours:0")).await?;
    for version in VERSIONS {
        let locations = format!(
            "location /plain {{ proxy_pass http://plain; }}
             location /direct {{ proxy_pass http://{}; }}
             location /hidden {{ proxy_hide_header X-Handoff-Worker; proxy_pass http://plain; }}
             location /cached {{ proxy_cache all; proxy_pass http://plain; }}
             location /variable {{ set $to plain; proxy_cache all; proxy_pass http://$to; }}
             location /redirect {{ proxy_pass http://redirects; }}
             location /static {{ add_header X-Handoff-Worker mine; return 200 static; }}
             location /scgi {{ scgi_pass plain; }}",
            peer.address
        );
        let plain = upstream("plain", &[&peer], "") + &upstream("redirects", &[&redirects], "");
        let others = upstream("app", &[&ours], "handoff;");
        let added = "location /app { add_header X-Handoff-Worker mine; proxy_pass http://app; }";
        let questions = [
            "plain", "direct", "hidden", "cached", "cached", "variable", "variable", "redirect", "static",
            "scgi",
        ];
        let mut answers = Vec::new();
        for (blocks, more, is_stock) in
            [(plain.clone(), "", true), (plain.clone(), "", false), (plain + &others, added, false)]
        {
            let mut site = Site::new(version).await?;
            configure(&site, &blocks, &(locations.clone() + more))?;
            if is_stock {
                let conf = fs::read_to_string(site.conf())?;
                let alone = conf.replace("$handoff_worker", "-");
                let alone: Vec<_> = alone
                    .lines()
                    .filter(|line| !line.contains("load_module") && !line.contains("handoff_api"))
                    .collect();
                fs::write(site.conf(), alone.join("\n"))?;
            }
            site.start().await?;
            let mut all = Vec::new();
            for (number, place) in questions.iter().enumerate() {
                let path = format!("/{place}?{number}");
                all.push((place, ask(&site, "GET", &path).await?, logged(&site, &path).await?));
                assert_eq!(logged(&site, &path).await?[0], "-");
            }
            if !more.is_empty() {
                // What nginx itself is told to add is nobody's name.
                let answer = ask(&site, "GET", "/app").await?;
                assert_eq!(answer.matches("X-Handoff-Worker: mine").count(), 1, "{answer}");
                assert!(!answer.contains("ours"), "{answer}");
                assert_eq!(logged(&site, "/app").await?[0], "ours:0");
            }
            site.end().await?;
            answers.push(all);
        }
        let seen = |place: usize| answers[0][place].1.matches("X-Handoff-Worker").count();
        assert_eq!([0, 1, 2, 3, 4, 8].map(seen), [2, 2, 0, 2, 2, 1], "{:?}", answers[0]);
        assert_eq!(answers[1], answers[0], "nginx {version}, without an upstream that takes part");
        assert_eq!(answers[2], answers[0], "nginx {version}, beside an upstream that takes part");
    }
    Ok(())
}

/// The sidecar's part is played by the test.
#[tokio::test]
async fn a_worker_with_the_preload_is_named_as_the_sidecar_said() -> Result<()> {
    for version in VERSIONS {
        let mut site = Site::new(version).await?;
        let address = ports::address(ports::row(1)?);
        let socket = site.file("preload.sock");
        let sidecar = UnixListener::bind(&socket)?;
        let mut node = command::clean("node");
        node.arg("-r").arg(place::root().join("sidecar/preload/handoff.cjs"));
        node.arg(place::root().join("tests/apps/backend.js")).arg(address.port().to_string());
        node.env("pm_id", "0").env("HANDOFF_PRELOAD_SOCKET", &socket);
        let _node = node.spawn()?;
        let blocks = format!("upstream app {{ zone app 64k; server {address}; keepalive 8; handoff; }}");
        configure(&site, &blocks, "location / { proxy_set_header Connection \"\"; proxy_pass http://app; }")?;
        site.start().await?;

        let (stream, _) = tokio::time::timeout(PATIENCE, sidecar.accept()).await.context("no worker")??;
        let mut stream = BufReader::new(stream);
        stream.read_line(&mut String::new()).await?;
        expect(&site, "/before", "HTTP/1.1 200 ", "-").await?;
        let mut number = 0;
        for (word, worker) in [
            (r#"{"type":"name","name":"shop:0"}"#, "shop:0"),
            (r#"{"type":"name","name":"my \"shop:0"}"#, r"my%20\x22shop:0"),
            (r#"{"type":"name"}"#, "-"),
            (r#"{"type":"name","name":"shop:1"}"#, "shop:1"),
        ] {
            stream.write_all(format!("{word}\n").as_bytes()).await?;
            wait::until(&format!("{worker} to be named"), PATIENCE, async || {
                number += 1;
                let path = format!("/status/200?{number}");
                assert!(!says(&ask(&site, "GET", &path).await.ok()?));
                let line = logged(&site, &path).await.ok()?.join("|");
                line.starts_with(&format!("{worker}|")).then_some(())
            })
            .await?;
        }
        for status in [204, 304, 404, 500] {
            let path = format!("/status/{status}?last");
            expect(&site, &path, &format!("HTTP/1.1 {status} "), "shop:1").await?;
        }
        drop(stream);
        wait::until("nobody to be named", PATIENCE, async || {
            number += 1;
            let path = format!("/status/200?{number}");
            ask(&site, "GET", &path).await.ok()?;
            (logged(&site, &path).await.ok()?[0] == "-").then_some(())
        })
        .await?;
        site.end().await?;
    }
    Ok(())
}
