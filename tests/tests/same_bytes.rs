//! Whatever the protocol: with the module, and with `handoff` in every upstream, visitors get the bytes that they get from
//! stock nginx, and peers get the bytes that they get from it.

use anyhow::{Context, Result, ensure};
use e2e::{
    command,
    parrot::fastcgi,
    ports,
    site::{PATIENCE, Site, VERSIONS},
    wait,
};
use std::{
    fs,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    spawn,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Setup {
    Stock,
    Loaded,
    Handoff,
    Always,
}

/// What a location says, what a visitor sends there on one connection, and what its peer says to each request.
struct Case {
    location: &'static str,
    request: &'static str,
    answer: Vec<u8>,
}

/// With this every request ends: so a peer knows, whatever its protocol, when to answer.
const LAST: &str = "last words";

/// A peer that writes down what it gets.
#[derive(Clone)]
struct Recorder {
    answer: Arc<Vec<u8>>,
    heard: Arc<Mutex<Vec<Heard>>>,
}

/// What came over one connection.
#[derive(Default)]
struct Heard {
    bytes: Vec<u8>,
    is_over: bool,
}

/// The answer after which a peer leaves the connection open.
const KEPT: &[u8] =
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-One: 1\r\nSet-Cookie: a=b; Path=/up\r\n\r\nok";

fn cases() -> Vec<Case> {
    let case = |location, request, answer: &[u8]| Case { location, request, answer: answer.to_vec() };
    let once = "POST /N/a%20b?c=d HTTP/1.1\r\nHost: x\r\nX-Own: yes\r\nCookie: e=f\r\nConnection: close\r\n\
                Content-Length: 10\r\n\r\nlast words";
    let twice = "POST /N/1 HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nlast words\
                 POST /N/2 HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 10\r\n\r\nlast words";
    let chunked = "PUT /N/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n\
                   3\r\nthe\r\n0b\r\n last words\r\n0\r\n\r\n";
    let upgrade =
        "GET /N/ HTTP/1.1\r\nHost: x\r\nUpgrade: echo\r\nConnection: upgrade\r\nX-Last: last words\r\n\r\n";
    let grpc = [&[0, 0, 0, 4, 0, 0, 0, 0, 0][..], &[0, 0, 1, 1, 5, 0, 0, 0, 1, 0x88]].concat();
    vec![
        case("proxy_pass http://app;", once, KEPT),
        case("proxy_pass http://app/up/; proxy_cookie_path /up /down; proxy_hide_header X-One;", once, KEPT),
        // Twice over the same connection, where the peer leaves it open.
        case("proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_pass http://app;", twice, KEPT),
        case("proxy_http_version 1.1; proxy_pass http://app;", chunked, KEPT),
        case(
            "proxy_pass http://app;",
            once,
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        ),
        // It breaks off, it makes no sense, it is an error, it leads elsewhere.
        case("proxy_pass http://app;", once, b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok"),
        case("proxy_pass http://app;", once, b"HTTP/1.1 200 OK\r\nA\0: b\r\n\r\n"),
        case(
            "proxy_pass http://app; proxy_intercept_errors on;",
            once,
            b"HTTP/1.1 503 No\r\nRetry-After: 1\r\n\r\n",
        ),
        case("proxy_pass http://app;", once, b"HTTP/1.1 200 OK\r\nX-Accel-Redirect: /gone\r\n\r\n"),
        // Of two requests one reaches the peer.
        case(
            "proxy_cache c; proxy_cache_methods POST; add_header X-Cache $upstream_cache_status; proxy_pass http://app;",
            "POST /N/ HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nlast words\
             POST /N/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 10\r\n\r\nlast words",
            b"HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 2\r\n\r\nok",
        ),
        case(
            "proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade; \
              proxy_set_header X-Last $http_x_last; proxy_pass http://app;",
            upgrade,
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\nConnection: upgrade\r\n\r\nhello",
        ),
        case(
            "fastcgi_param REQUEST_METHOD $request_method; fastcgi_param QUERY_STRING $query_string; fastcgi_pass app;",
            once,
            &fastcgi("Status: 201 Made\r\nX-Two: 2\r\n\r\nok"),
        ),
        case(
            "scgi_param SCGI 1; scgi_param CONTENT_LENGTH $content_length; scgi_pass app;",
            once,
            b"Status: 404 None\r\n\r\nok",
        ),
        case("uwsgi_param REQUEST_URI $request_uri; uwsgi_pass app;", once, b"HTTP/1.1 200 OK\r\n\r\nok"),
        case("grpc_pass grpc://app;", once, &grpc),
    ]
}

/// What visitors got, and what each peer got.
type Seen = Vec<(String, Vec<Vec<u8>>)>;

async fn seen(version: &str, setup: Setup, first: u16, recorders: &[Recorder]) -> Result<Seen> {
    let mut site = Site::new(version).await?.workers(1);
    let folder = site.place().path().display().to_string();
    let handoff = match setup {
        Setup::Stock | Setup::Loaded => "",
        Setup::Handoff => "handoff;",
        Setup::Always => "handoff; handoff_reuse always;",
    };
    let (mut upstreams, mut locations) = (String::new(), String::new());
    for (number, Case { location, .. }) in (0..).zip(cases()) {
        let (name, peer) = (format!("app{number}"), ports::address(first + number));
        upstreams +=
            &format!("upstream {name} {{ zone {name} 64k; server {peer}; keepalive 2; {handoff} }}\n");
        let location = location.replace("//app", &format!("//{name}")).replace(" app;", &format!(" {name};"));
        locations += &format!("location /{number}/ {{ {location} }}\n");
    }
    certificate(&folder).await?;
    let secure = ports::address(site.port() + 1);
    site.write(&format!(
        "proxy_cache_path {folder}/cache keys_zone=c:1m; proxy_next_upstream_tries 1;\n\
         {upstreams}upstream tls {{ zone tls 64k; server {secure}; keepalive 2; {handoff} }}\n\
         server {{ listen 127.0.0.1:{}; {locations} location = /gone {{ return 410; }}\n\
         location /tls/ {{ proxy_http_version 1.1; proxy_set_header Connection \"\"; \
         proxy_ssl_trusted_certificate {folder}/cert.pem; proxy_ssl_verify on; proxy_ssl_name localhost; \
         proxy_ssl_server_name on; proxy_pass https://tls/; }} }}\n\
         server {{ listen {secure} ssl; ssl_certificate {folder}/cert.pem; ssl_certificate_key {folder}/key.pem;\n\
         location / {{ return 200 \"$request $http_host $ssl_server_name $ssl_session_reused $connection_requests\\n\"; }} }}",
        site.port()
    ))?;
    if setup == Setup::Stock {
        let conf = fs::read_to_string(site.conf())?;
        fs::write(site.conf(), conf.split_once('\n').context("no line")?.1)?;
    }
    site.start().await?;
    let mut seen = Vec::new();
    for (number, (Case { request, .. }, recorder)) in cases().into_iter().zip(recorders).enumerate() {
        let answer = visit(site.port(), &request.replace("/N/", &format!("/{number}/"))).await?;
        seen.push((answer, recorder.take().await?));
    }
    let twice =
        "GET /tls/a HTTP/1.1\r\nHost: x\r\n\r\nGET /tls/b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    seen.push((visit(site.port(), twice).await?, Vec::new()));
    site.end().await?;
    Ok(seen)
}

async fn certificate(folder: &str) -> Result<()> {
    let mut openssl = command::clean("openssl");
    openssl.args([
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
    ]);
    openssl.args(["-subj", "/CN=localhost", "-keyout", "key.pem", "-out", "cert.pem"]).current_dir(folder);
    command::succeed(&mut openssl).await.map(drop)
}

/// All that comes back, but for the time of day.
async fn visit(port: u16, request: &str) -> Result<String> {
    let mut stream = TcpStream::connect(ports::address(port)).await?;
    stream.write_all(request.as_bytes()).await?;
    if request.contains("Upgrade") {
        // No request any more: then the peer leaves.
        stream.write_all(b" and ").await?;
        stream.write_all(LAST.as_bytes()).await?;
    }
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    let text = String::from_utf8_lossy(&answer).into_owned();
    Ok(text.lines().filter(|line| !line.starts_with("Date: ")).collect::<Vec<_>>().join("\n"))
}

#[tokio::test(flavor = "multi_thread")]
async fn visitors_and_peers_get_the_bytes_that_they_get_from_stock_nginx() -> Result<()> {
    let count = u16::try_from(cases().len())?;
    let first = ports::row(count)?;
    let mut recorders = Vec::new();
    for (port, Case { answer, .. }) in (first..).zip(cases()) {
        recorders.push(Recorder::start(ports::address(port), answer).await?);
    }
    for version in VERSIONS {
        let stock = seen(version, Setup::Stock, first, &recorders).await?;
        for (number, (answer, asked)) in stock.iter().enumerate().take(usize::from(count)) {
            ensure!(!answer.is_empty() && !asked.is_empty(), "{number} is no question: {answer:?} {asked:?}");
        }
        for setup in [Setup::Loaded, Setup::Handoff, Setup::Always] {
            let ours = seen(version, setup, first, &recorders).await?;
            for (number, (ours, stock)) in ours.into_iter().zip(&stock).enumerate() {
                let text = |peer: &[Vec<u8>]| {
                    peer.iter().map(|all| all.escape_ascii().to_string()).collect::<Vec<_>>()
                };
                assert_eq!(ours.0, stock.0, "nginx {version}, {setup:?}: the answer to {number}");
                assert_eq!(
                    text(&ours.1),
                    text(&stock.1),
                    "nginx {version}, {setup:?}: what the peer of {number} got"
                );
            }
        }
    }
    Ok(())
}

// === impl Recorder ===

impl Recorder {
    async fn start(address: SocketAddr, answer: Vec<u8>) -> Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let recorder = Self { answer: Arc::new(answer), heard: Arc::default() };
        let each = recorder.clone();
        spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let number = each.with(|heard| {
                    heard.push(Heard::default());
                    heard.len() - 1
                });
                let one = each.clone();
                spawn(async move {
                    _ = one.serve(stream, number).await;
                    one.with(|heard| heard.get_mut(number).map(|heard| heard.is_over = true));
                });
            }
        });
        Ok(recorder)
    }

    async fn serve(&self, mut stream: TcpStream, number: usize) -> Result<()> {
        let is_upgrade = self.answer.starts_with(b"HTTP/1.1 101");
        let (mut answered, mut piece) = (0, [0; 4096]);
        loop {
            let length = stream.read(&mut piece).await?;
            let bytes = piece.get(..length).filter(|bytes| !bytes.is_empty()).context("it is over")?;
            let asked = self.with(|heard| {
                let heard = heard.get_mut(number)?;
                heard.bytes.extend_from_slice(bytes);
                Some(heard.bytes.windows(LAST.len()).filter(|window| *window == LAST.as_bytes()).count())
            });
            // A request may come at once, or byte by byte.
            while asked.is_some_and(|asked| asked > answered) {
                answered += 1;
                if answered == 1 || !is_upgrade {
                    stream.write_all(&self.answer).await?;
                }
                if *self.answer != KEPT && (!is_upgrade || answered == 2) {
                    stream.shutdown().await?;
                }
            }
        }
    }

    /// What came over each connection, in the order in which they began; and forgets it.
    async fn take(&self) -> Result<Vec<Vec<u8>>> {
        wait::until("nginx to leave its peer", PATIENCE, async || {
            self.with(|heard| {
                let is_done = *self.answer == KEPT || heard.iter().all(|heard| heard.is_over);
                is_done.then(|| std::mem::take(heard).into_iter().map(|heard| heard.bytes).collect())
            })
        })
        .await
    }

    fn with<T>(&self, of: impl FnOnce(&mut Vec<Heard>) -> T) -> T {
        of(&mut self.heard.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
