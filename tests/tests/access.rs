//! Whoever may connect may read; who may write is said by the kernel and by nginx.conf.

use anyhow::{Context, Result};
use e2e::{
    door::Door,
    site::{NOBODY, Site, VERSIONS, can_be_anybody},
};
use handoff_wire::{Code, ErrorBody};
use hyper::{Method, Request};
use serde_json::json;
use std::{path::Path, process::Stdio};
use tokio::process::Command;

/// Users and groups that every Debian has.
const WWW_DATA: u32 = 33;
const GAMES: u32 = 5;
const VIDEO: u32 = 44;

/// Somebody on this machine.
#[derive(Clone, Copy, Debug)]
struct Caller {
    user: u32,
    group: u32,
    /// A supplementary group.
    also: Option<u32>,
}

const ROOT: Caller = Caller { user: 0, group: 0, also: None };
const WORKER: Caller = Caller { user: WWW_DATA, group: WWW_DATA, also: None };
const STRANGER: Caller = Caller { user: NOBODY, group: NOBODY, also: None };
const PLAYER: Caller = Caller { user: GAMES, group: NOBODY, also: None };
const WATCHER: Caller = Caller { user: NOBODY, group: VIDEO, also: None };
const MEMBER: Caller = Caller { user: NOBODY, group: NOBODY, also: Some(VIDEO) };

/// One request over a unix socket. Perl is on every Debian, and every user can run it.
const CLIENT: &str = "
    my $s = IO::Socket::UNIX->new(Peer => $ARGV[0]) or die \"connect: $!\";
    print $s $ARGV[1];
    shutdown($s, 1);
    print while <$s>;
";

impl Caller {
    async fn asks(self, socket: &Path, request: &str) -> Result<(u16, String)> {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", &self.user.to_string(), "--regid", &self.group.to_string()]);
        match self.also {
            Some(group) => command.args(["--groups", &group.to_string()]),
            None => command.arg("--clear-groups"),
        };
        command.args(["/usr/bin/perl", "-MIO::Socket::UNIX", "-e", CLIENT]).arg(socket).arg(request);
        let output = command.current_dir("/").stdin(Stdio::null()).output().await?;
        let answer = String::from_utf8_lossy(&output.stdout).into_owned();
        let (head, body) = answer
            .split_once("\r\n\r\n")
            .with_context(|| format!("{answer:?} {}", String::from_utf8_lossy(&output.stderr)))?;
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        Ok((status.with_context(|| head.to_owned())?, body.to_owned()))
    }

    async fn reads(self, socket: &Path) -> Result<(u16, String)> {
        self.asks(socket, "GET /v1 HTTP/1.0\r\n\r\n").await
    }

    async fn writes(self, socket: &Path) -> Result<(u16, String)> {
        let body = mark();
        let head = format!("PUT /v1/marks HTTP/1.0\r\nContent-Length: {}\r\n\r\n", body.len());
        self.asks(socket, &(head + &body)).await
    }
}

/// A client of the NGINX Plus API that wants nothing changed.
async fn patches(caller: Caller, socket: &Path) -> Result<(u16, String)> {
    let path = "/api/9/http/upstreams/app/servers/0";
    caller.asks(socket, &format!("PATCH {path} HTTP/1.0\r\nContent-Length: 2\r\n\r\n{{}}")).await
}

fn mark() -> String {
    json!({ "owner": "operator", "marks": [{ "peer": "127.0.0.1:1", "state": "draining" }] }).to_string()
}

const UPSTREAM: &str = "upstream app { zone app 64k; server 127.0.0.1:1; server 127.0.0.1:2; handoff; }";

#[tokio::test]
async fn only_root_nginx_itself_and_who_is_named_may_write_and_anybody_may_read() -> Result<()> {
    if !can_be_anybody() {
        return Ok(());
    }
    let all = [ROOT, WORKER, STRANGER, PLAYER, WATCHER, MEMBER];
    // What is said, and which of all these may write.
    let cases: [(&str, [bool; 6]); 7] = [
        ("", [false, false, false, false, false, false]),
        ("write=off", [false, false, false, false, false, false]),
        ("write=on", [true, true, false, false, false, false]),
        ("write=on user=games", [true, true, false, true, false, false]),
        ("write=on group=video", [true, true, false, false, true, true]),
        ("write=on user=games group=video", [true, true, false, true, true, true]),
        // Over a unix socket the kernel knows, whatever is said of TCP.
        ("write=on tcp=allow", [true, true, false, false, false, false]),
    ];
    for version in VERSIONS {
        let mut site = Site::new(version).await?;
        let socket = |number: usize| site.file(&format!("{number}.sock"));
        let servers: Vec<String> = (cases.iter().enumerate())
            .map(|(number, (api, _))| {
                let listen = socket(number).display().to_string();
                format!("server {{ listen unix:{listen}; location / {{ handoff_api {api}; }} }}")
            })
            .collect();
        let sockets: Vec<_> = (0..cases.len()).map(socket).collect();
        site.write_whole(&format!("{UPSTREAM}\n{}", servers.join("\n")), "user www-data;")?;
        site.start().await?;
        for ((api, may), socket) in cases.iter().zip(&sockets) {
            for (caller, may) in all.into_iter().zip(*may) {
                let what = format!("{caller:?} with \"handoff_api {api}\"");
                if api.is_empty() {
                    assert_eq!(caller.reads(socket).await?.0, 200, "{what}");
                }
                let (status, body) = caller.writes(socket).await?;
                assert_eq!(status, if may { 200 } else { 403 }, "{what}: {body}");
                if caller.user == NOBODY {
                    let (status, body) = patches(caller, socket).await?;
                    let code = if api.contains("write=on") { "Forbidden" } else { "MethodDisabled" };
                    let refused = if api.contains("write=on") { 403 } else { 405 };
                    assert_eq!(status, if may { 200 } else { refused }, "{what}: {body}");
                    assert!(may || body.contains(&format!("\"code\":\"{code}\"")), "{what}: {body}");
                }
                if !may {
                    let refusal = serde_json::from_str::<ErrorBody>(&body)?.error;
                    let says = if api.contains("write=on") {
                        format!(
                            "user {} may not write: be root or nginx's own user, or name a user= or group= in \
                             \"handoff_api write=on\"",
                            caller.user
                        )
                    } else {
                        "this location is read-only: say \"handoff_api write=on\" where you write".to_owned()
                    };
                    assert_eq!((refusal.code, refusal.text), (Code::Forbidden, says), "{what}");
                }
            }
        }
        site.end().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_stranger_cannot_even_enter_the_directory_that_is_made() -> Result<()> {
    if !can_be_anybody() {
        return Ok(());
    }
    for version in VERSIONS {
        let mut site = Site::new(version).await?;
        site.write(&format!("{UPSTREAM}\n{}", site.api("write=on")))?;
        site.start().await?;
        let error = STRANGER.reads(&site.socket()).await.unwrap_err().to_string();
        assert!(error.contains("connect: Permission denied"), "{error}");
        site.end().await?;
    }
    Ok(())
}

#[tokio::test]
async fn reading_and_writing_are_allowed_apart() -> Result<()> {
    for version in VERSIONS {
        let mut site = Site::new(version).await?;
        let listen = site.socket().display().to_string();
        site.write(&format!(
            "{UPSTREAM}\nserver {{ listen unix:{listen}; location / {{ handoff_api; }} \
             location /write/ {{ handoff_api write=on; }} }}"
        ))?;
        site.start().await?;
        let control = site.control();
        for (path, status) in [("/v1", 200), ("/write/v1", 200)] {
            assert_eq!(control.get(path).await?.status, status, "{path}");
        }
        for (path, status) in [("/v1/marks", 403), ("/write/v1/marks", 200)] {
            assert_eq!(control.ask(Method::PUT, path, mark()).await?.status, status, "{path}");
        }
        // Who may not write is told so whatever the body says, and even if there is none.
        let refusal = control.ask(Method::PUT, "/v1/marks", "garbage").await?.refusal()?;
        assert_eq!(refusal.code, Code::Forbidden);
        let refusal = control.ask(Method::POST, "/v1/renew", "").await?.refusal()?;
        assert_eq!(refusal.code, Code::Forbidden);
        site.end().await?;
    }
    Ok(())
}

#[tokio::test]
async fn tcp_passwords_and_addresses_are_guarded_as_in_any_location() -> Result<()> {
    for version in VERSIONS {
        let mut site = Site::new(version).await?;
        let passwords = site.file("passwords");
        std::fs::write(&passwords, "deploy:{PLAIN}secret\n")?;
        site.write(&format!(
            "{UPSTREAM}\nserver {{ listen 127.0.0.1:{};\n\
             location /open/ {{ handoff_api write=on tcp=allow; }}\n\
             location /read/ {{ handoff_api; }}\n\
             location /denied/ {{ deny all; handoff_api write=on tcp=allow; }}\n\
             location /here/ {{ allow 127.0.0.0/8; deny all; handoff_api write=on tcp=allow; }}\n\
             location /secret/ {{ auth_basic handoff; auth_basic_user_file {}; handoff_api write=on tcp=allow; }}\n}}",
            site.port(),
            passwords.display()
        ))?;
        site.start().await?;
        // "deploy:secret" and "deploy:guess", as HTTP writes them.
        let (right, wrong) = ("Basic ZGVwbG95OnNlY3JldA==", "Basic ZGVwbG95Omd1ZXNz");
        for (place, password, reads, writes) in [
            ("open", None, 200, 200),
            ("read", None, 200, 403),
            ("denied", None, 403, 403),
            ("here", None, 200, 200),
            ("secret", None, 401, 401),
            ("secret", Some(wrong), 401, 401),
            ("secret", Some(right), 200, 200),
        ] {
            let what = format!("{place} {password:?}");
            let ask = async |method, path: &str, body: String| {
                let request = Request::builder().method(method).uri(format!("/{place}{path}"));
                let request = request.header("host", "localhost");
                let request = match password {
                    Some(password) => request.header("authorization", password),
                    None => request,
                };
                anyhow::Ok(site.visitors().send(request.body(body.into())?).await?.status)
            };
            assert_eq!(ask(Method::GET, "/v1", String::new()).await?, reads, "{what}");
            assert_eq!(ask(Method::PUT, "/v1/marks", mark()).await?, writes, "{what}");
        }
        site.end().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_page_from_elsewhere_cannot_write_with_its_readers_rights() -> Result<()> {
    for version in VERSIONS {
        let mut site = Site::new(version).await?;
        site.write(&format!("{UPSTREAM}\n{}", site.api("write=on")))?;
        site.start().await?;
        let ask = async |path: &str, method: Method, origin: &str| -> Result<u16> {
            let request = Request::builder()
                .method(method)
                .uri(path)
                .header("host", "nginx:81")
                .header("origin", origin);
            Ok(site.control().send(request.body(mark().into())?).await?.status)
        };
        for (origin, status) in [
            ("http://nginx:81", 200),
            ("http://evil", 403),
            ("http://nginx:81.evil", 403),
            ("null", 403),
            ("x", 403),
        ] {
            // A form can send what a page may not: POST, with a body of its choice.
            assert_eq!(
                ask("/v1/renew", Method::POST, origin).await?,
                if status == 200 { 400 } else { 403 },
                "{origin}"
            );
            assert_eq!(ask("/v1/marks", Method::PUT, origin).await?, status, "{origin}");
            let server = "/api/9/http/upstreams/app/servers/0";
            assert_eq!(ask(server, Method::PATCH, origin).await? == 403, status == 403, "{origin}");
            assert_eq!(
                ask("/v1", Method::GET, origin).await?,
                200,
                "{origin} reads what its browser does not show it"
            );
        }
        site.end().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_client_that_says_it_is_somebody_else_is_not_believed() -> Result<()> {
    for version in VERSIONS {
        let mut site = Site::new(version).await?;
        let listen = site.socket().display().to_string();
        // nginx takes the header's word for the address; a write needs the kernel's.
        site.write(&format!(
            "{UPSTREAM}\nset_real_ip_from unix:; real_ip_header X-Real-IP;\n\
             server {{ listen unix:{listen}; location / {{ handoff_api write=on; }} }}"
        ))?;
        site.start().await?;
        let request = Request::put("/v1/marks").header("host", "localhost").header("x-real-ip", "127.0.0.1");
        let reply = Door::Unix(site.socket()).send(request.body(mark().into())?).await?;
        assert_eq!(reply.refusal()?.code, Code::Forbidden);
        site.end().await?;
    }
    Ok(())
}
