//! Clients of the NGINX Plus API find what they ask for, over a real nginx: what its Go client sends, word by word, and
//! Debian's own `prometheus-nginx-exporter`.

use anyhow::{Context, Result, ensure};
use e2e::{
    backend::Backend,
    blocks::servers,
    command,
    door::{Door, Reply},
    farm::Farm,
    load::Load,
    ports, process,
    site::{PATIENCE, Site, VERSIONS},
    wait,
};
use handoff_wire::{Owner, State};
use hyper::Method;
use rustix::process::Signal;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;

const HREF: &str = "https://nginx.org/en/docs/http/ngx_http_api_module.html";

/// nginx with an upstream `app` and one that does not take part; the API over the unix socket, and over TCP for reading only,
/// at a location as NGINX Plus users call theirs.
async fn site(version: &str, servers: &str) -> Result<Site> {
    let mut site = Site::new(version).await?;
    site.write(&format!(
        "upstream app {{ zone app 256k; {servers} keepalive 8; handoff; }}\n\
         upstream plain {{ server 127.0.0.1:9; }}\n{}\n{}\n\
         server {{ listen {}; access_log off; location /api {{ handoff_api; }} }}",
        site.front("proxy_pass http://app;"),
        site.api("write=on"),
        api(&site),
    ))?;
    site.start().await?;
    Ok(site)
}

/// The API over TCP, where clients look for it.
fn api(site: &Site) -> std::net::SocketAddr {
    ports::address(site.port() + 1)
}

fn json(reply: &Reply) -> Result<Value> {
    ensure!(reply.header("content-type") == Some("application/json"), "{:?} {}", reply.headers, reply.text());
    serde_json::from_slice(&reply.body).with_context(|| reply.text())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ErrorBody {
    error: Error,
    request_id: String,
    href: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Error {
    status: u16,
    text: String,
    code: String,
}

/// The status, the code and the text of an error, whose body must be whole.
fn error(reply: &Reply) -> Result<(u16, String, String)> {
    let ErrorBody { error: Error { status, text, code }, request_id: id, href } =
        serde_json::from_value(json(reply)?)?;
    ensure!(status == reply.status, "{} says {status}", reply.status);
    ensure!(href == HREF, "{href}");
    ensure!(id.len() == 32 && id.chars().all(|c| c.is_ascii_hexdigit()), "{id}");
    Ok((status, code, text))
}

#[tokio::test]
async fn every_request_of_the_go_client_is_answered_as_it_must_be() -> Result<()> {
    // What GetStats asks for: each of them must be answered with 200, or the client has nothing.
    let stats = [
        "/",
        "nginx",
        "http/caches",
        "processes",
        "slabs",
        "http/requests",
        "ssl",
        "http/server_zones",
        "http/upstreams",
        "http/location_zones",
        "resolvers",
        "http/limit_reqs",
        "http/limit_conns",
        "workers",
        "connections",
    ];
    let backend = Backend::start(2).await?;
    for version in VERSIONS {
        let site = site(version, &backend.servers()).await?;
        let door = Door::Tcp(api(&site));
        for path in ["/api", "/api/"] {
            assert_eq!(json(&door.get(path).await?)?, json!([3, 4, 5, 6, 7, 8, 9]));
            assert_eq!(json(&site.control().get(path).await?)?, json!([3, 4, 5, 6, 7, 8, 9]));
        }
        for number in [3, 8, 9] {
            for path in stats {
                let path = format!("/api/{number}/{}", path.trim_matches('/'));
                let path = path.trim_end_matches('/');
                for path in [path.to_owned(), format!("{path}/")] {
                    let got = door.get(&path).await?;
                    assert_eq!(got.status, 200, "{path}: {}", got.text());
                    json(&got)?;
                    let head = door.ask(Method::HEAD, &path, "").await?;
                    assert_eq!((head.status, head.body.len()), (200, 0), "HEAD {path}");
                    assert_eq!(head.header("content-type"), Some("application/json"));
                }
            }
            // A client of version 8 asks these always, and forgives this one code.
            for path in ["server_zones", "upstreams", "limit_conns", "zone_sync"] {
                let got = door.get(&format!("/api/{number}/stream/{path}")).await?;
                assert_eq!(error(&got)?, (404, "PathNotFound".into(), "path not found".into()));
            }
        }
        let nginx = json(&door.get("/api/9/nginx").await?)?;
        assert_eq!((&nginx["version"], &nginx["address"]), (&json!(version), &json!("127.0.0.1")));
        assert_eq!(nginx["ppid"], site.master());
        assert!(site.serving_workers().iter().any(|pid| nginx["pid"] == *pid), "{nginx}");
        assert!(nginx["build"].as_str().is_some_and(|build| build.starts_with("handoff-")), "{nginx}");

        // CheckIfUpstreamExists, GetHTTPServers, UpdateHTTPServer, and what is not to be had.
        let servers = json(&door.get("/api/9/http/upstreams/app/servers").await?)?;
        let wanted = |id: u32| {
            json!({"id": id, "server": backend.peer(id as usize), "weight": 1, "max_conns": 0, "max_fails": 1,
                   "fail_timeout": "10s", "slow_start": "0s", "route": "", "backup": false, "down": false})
        };
        assert_eq!(servers, json!([wanted(0), wanted(1)]));
        let update = json!({"server": backend.peer(1), "weight": 1, "fail_timeout": "10s"}).to_string();
        let patched =
            site.control().ask(Method::PATCH, "/api/9/http/upstreams/app/servers/1/", update).await?;
        assert_eq!((patched.status, json(&patched)?), (200, wanted(1)));
        let disabled = |text: &str| (405, "MethodDisabled".to_owned(), format!("method disabled{text}"));
        for (method, path, says) in [
            (
                "POST",
                "/api/9/http/upstreams/app/servers/",
                disabled(": the upstream has no \"handoff_slots\", servers are added in nginx.conf"),
            ),
            (
                "DELETE",
                "/api/9/http/upstreams/app/servers/0/",
                (
                    400,
                    "UpstreamServerImmutable".into(),
                    "server \"0\" is immutable: remove it in nginx.conf, and reload".into(),
                ),
            ),
            ("DELETE", "/api/9/http/upstreams/app", disabled("")),
            ("DELETE", "/api/9/connections", disabled("")),
            ("GET", "/api/2/nginx", (404, "UnknownVersion".into(), "unknown version".into())),
            (
                "GET",
                "/api/9/http/upstreams/none",
                (404, "UpstreamNotFound".into(), "upstream not found".into()),
            ),
            (
                "GET",
                "/api/9/http/upstreams/plain/servers",
                (
                    400,
                    "UpstreamStatic".into(),
                    "upstream is static: nginx.conf has no \"handoff\" in it".into(),
                ),
            ),
            (
                "PATCH",
                "/api/9/http/upstreams/app/servers/7/",
                (404, "UpstreamServerNotFound".into(), "server with ID \"7\" does not exist".into()),
            ),
        ] {
            let got = site.control().ask(method.parse()?, path, "{}").await?;
            assert_eq!(error(&got)?, says, "{method} {path}");
            assert_eq!(got.header("allow").is_some(), got.status == 405, "{method} {path}");
        }
        // Where nobody may write there is no such method.
        let got = door.ask(Method::PATCH, "/api/9/http/upstreams/app/servers/0", r#"{"drain":true}"#).await?;
        assert_eq!(error(&got)?, disabled(": the location has no \"write=on\""));
        assert_eq!(got.header("allow"), Some("GET, HEAD"));
        assert_eq!(site.peer(&backend.peer(0)).await?.marks, []);
        // What is ours stays ours, below a location of this name too.
        assert_eq!(door.get("/api/v1/upstreams/app").await?.status, 200);
        site.end().await?;
    }
    Ok(())
}

#[tokio::test]
async fn after_a_drain_by_patch_nobody_begins_until_it_is_taken_back() -> Result<()> {
    const SERVER: &str = "/api/9/http/upstreams/app/servers/1";
    let farm = Farm::start(3).await?;
    for version in VERSIONS {
        let site = site(version, &servers(farm.peers(), "")).await?;
        let peer = farm.peers()[1].to_owned();
        let patch = async |body: &str| site.ask(Method::PATCH, SERVER, body.to_owned()).await;
        let requests = async || anyhow::Ok(site.peer(&peer).await?.requests);
        let passed = async |more: u64| {
            wait::until("visits to pass by", PATIENCE, async || {
                let all: u64 = site.app().await.ok()?.iter().map(|peer| peer.requests).sum();
                (all >= more).then_some(all)
            })
            .await
        };
        let load = Load::start(ports::address(site.port()), 400);
        let mut all = passed(100).await?;
        for (body, back, shows) in [
            (r#"{"drain":true}"#, r#"{"drain":false}"#, "draining"),
            (r#"{"down":true}"#, r#"{"down":false}"#, "down"),
        ] {
            let got = patch(body).await?;
            let begun = requests().await?;
            assert_eq!(got.status, 200, "{}", got.text());
            all = passed(all + 200).await?;
            assert_eq!(requests().await?, begun, "somebody began there after {body}");
            let status = json(&site.control().get("/api/9/http/upstreams/app").await?)?;
            assert_eq!(status["peers"][1]["state"], shows);
            // It is a mark as any other, of an owner of its own.
            let marks = site.peer(&peer).await?.marks;
            let states: Vec<_> = marks.iter().map(|mark| (&mark.owner, mark.state.as_str())).collect();
            assert_eq!(states, [(&Owner::plus(), shows)]);
            assert_eq!(marks[0].lease, None);
            assert_eq!(json(&site.control().get(SERVER).await?)?[shows.replace("ing", "")], true);
            // The client in Go leaves `false` out, and means nothing by it.
            assert_eq!(patch("{}").await?.status, 200);
            assert_eq!(site.peer(&peer).await?.state.to_string(), shows);
            let got = patch(back).await?;
            assert_eq!(got.status, 200, "{}", got.text());
            wait::until("it to get requests again", PATIENCE, async || {
                (site.peer(&peer).await.ok()?.requests > begun).then_some(())
            })
            .await?;
            all = passed(all).await?;
        }
        let visits = load.stop().await;
        let failed: Vec<_> = visits.iter().filter(|visit| visit.failed()).collect();
        assert!(failed.is_empty(), "of {}: {failed:?}", visits.len());

        for id in [0, 2] {
            let path = format!("/api/9/http/upstreams/app/servers/{id}");
            let got = site.ask(Method::PATCH, &path, r#"{"drain":true}"#.into()).await?;
            assert_eq!(got.status, 200);
        }
        let (status, code, text) = error(&patch(r#"{"drain":true}"#).await?)?;
        assert_eq!((status, code.as_str()), (409, "Floor"));
        assert!(text.contains("nobody would be left"), "{text}");
        site.reload().await?;
        let servers = json(&site.control().get("/api/9/http/upstreams/app/servers").await?)?;
        let drained = [0, 1, 2].map(|id| servers[id]["drain"] == true);
        assert_eq!(drained, [true, false, true], "a reload changes nothing");
        site.end().await?;
    }
    Ok(())
}

#[tokio::test]
async fn what_nginx_counts_is_told_and_what_it_did_to_its_processes() -> Result<()> {
    let backend = Backend::start(2).await?;
    for version in VERSIONS {
        let site = site(version, &backend.servers()).await?;
        let read = async |path: &str| json(&site.control().get(&format!("/api/9/{path}")).await?);
        for _ in 0..5 {
            site.visitors().get("/status/200").await?;
        }
        let (idle, stats) = (site.visitors().open().await?, read("connections").await?);
        assert!(stats["accepted"].as_u64() >= Some(6) && stats["dropped"] == 0, "{stats}");
        let requests = read("http/requests").await?;
        assert!(
            requests["total"].as_u64() >= Some(6) && requests["current"].as_u64() >= Some(1),
            "{requests}"
        );
        drop(idle);

        let before = read("nginx").await?;
        assert_eq!((&before["generation"], read("processes").await?), (&json!(1), json!({"respawned": 0})));
        let old = site.reload().await?;
        let after = read("nginx").await?;
        assert_eq!((&after["generation"], read("processes").await?), (&json!(2), json!({"respawned": 0})));
        assert!(after["load_timestamp"].as_str() > before["load_timestamp"].as_str(), "{before} {after}");
        let killed = *old.first().context("a worker")?;
        process::signal(killed, Signal::KILL);
        site.serving(&[killed]).await?;
        wait::until("the death to be counted", PATIENCE, async || {
            (read("processes").await.ok()? == json!({"respawned": 1})).then_some(())
        })
        .await?;
        site.end_but_for(&["exited on signal 9"]).await?;
    }
    Ok(())
}

#[tokio::test]
async fn no_path_and_no_body_is_answered_otherwise_than_in_json() -> Result<()> {
    let backend = Backend::start(2).await?;
    for version in VERSIONS {
        let site = site(version, &backend.servers()).await?;
        let workers = site.serving_workers();
        let ask = async |line: &str, body: &str| {
            let bytes = format!("{line} HTTP/1.0\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            let answer = site.control().raw(bytes).await?;
            let (head, body) = answer.split_once("\r\n\r\n").with_context(|| format!("{line}: {answer}"))?;
            ensure!(head.contains("Content-Type: application/json"), "{line}: {answer}");
            let json: Value = serde_json::from_str(body).with_context(|| format!("{line}: {answer}"))?;
            let status: u64 = head.split(' ').nth(1).unwrap_or_default().parse()?;
            ensure!((status == 200) == json.get("error").is_none(), "{line}: {answer}");
            ensure!(status == 200 || json["error"]["status"] == status, "{line}: {answer}");
            anyhow::Ok((status, json))
        };
        // What is no URI at all nginx itself refuses, in its own words.
        for path in [
            "",
            "/",
            "//",
            "/9?fields",
            "/9/http/upstreams/%2e%2e",
            "/9/http/upstreams/app/servers/0x0",
            "/9/http/upstreams/app/servers/0/../1",
            "/9/http/upstreams/\u{e9}",
            "/9/http/upstreams?fields=%zz,&fields=",
            "/8/stream",
            "/99999999999999999999",
            "/9/http/upstreams/app;x",
        ] {
            for method in ["GET", "PATCH", "POST", "PUT", "DELETE", "OPTIONS", "BREW"] {
                ask(&format!("{method} /api{path}"), "x").await?;
            }
        }
        let deep = format!("{}{}", "[".repeat(20_000), "]".repeat(20_000));
        let long = format!("{{\"drain\":\"{}\"}}", "x".repeat(60_000));
        let larger = format!("{{\"drain\":\"{}\"}}", "x".repeat(70_000));
        for (body, status, code) in [
            ("", 415, "JsonError"),
            ("\0", 415, "JsonError"),
            ("{\"drain\":tru", 415, "JsonError"),
            ("{\"drain\":1e999}", 415, "JsonError"),
            (&deep, 415, "JsonError"),
            (&long, 400, "UpstreamConfFormatError"),
            (&larger, 413, "TooLarge"),
            ("{\"drain\":true}{}", 415, "JsonError"),
            ("{\"Drain\":true}", 400, "UpstreamConfFormatError"),
        ] {
            let (got, json) = ask("PATCH /api/9/http/upstreams/app/servers/0", body).await?;
            assert_eq!((got, &json["error"]["code"]), (status, &json!(code)), "{:.40}", body);
        }
        assert_eq!(site.peer(&backend.peer(0)).await?.marks, []);
        assert_eq!(site.serving_workers(), workers, "a worker died");
        site.end().await?;
    }
    Ok(())
}

/// What an exporter says, by name and labels.
async fn metrics(door: &Door) -> Result<BTreeMap<String, f64>> {
    let text = door.get("/metrics").await?.text();
    let lines = text.lines().filter(|line| line.starts_with("nginxplus_"));
    let number = |line: &str| {
        let (name, value) = line.rsplit_once(' ').with_context(|| line.to_owned())?;
        Ok((name.to_owned(), value.parse()?))
    };
    lines.map(number).collect()
}

#[tokio::test]
async fn debians_exporter_sees_what_the_load_did_and_a_drain() -> Result<()> {
    let backend = Backend::start(2).await?;
    for version in VERSIONS {
        let site = site(version, &backend.servers()).await?;
        let address = ports::address(site.port() + 2);
        let _exporter = command::clean("prometheus-nginx-exporter")
            .arg("-nginx.plus")
            .arg(format!("-nginx.scrape-uri=http://{}/api", api(&site)))
            .arg(format!("-web.listen-address={address}"))
            .spawn()
            .context("prometheus-nginx-exporter is missing: build/setup installs it")?;
        let door = Door::Tcp(address);
        for status in [200, 200, 200, 404, 500, 201, 204, 302] {
            site.visitors().get(&format!("/status/{status}")).await?;
        }
        wait::until("every attempt to end", PATIENCE, async || {
            site.app().await.ok()?.iter().all(|peer| peer.in_flight == 0).then_some(())
        })
        .await?;
        let seen =
            wait::until("the exporter to answer", PATIENCE, async || metrics(&door).await.ok()).await?;
        assert_eq!(seen["nginxplus_up"], 1.0);
        assert_eq!(seen["nginxplus_connections_dropped"], 0.0);
        assert_eq!(seen["nginxplus_upstream_zombies{upstream=\"app\"}"], 0.0);
        let of = |name: &str, labels: &str| seen[&format!("nginxplus_upstream_server_{name}{{{labels}}}")];
        let views = site.app().await?;
        for view in &views {
            let labels = format!("server=\"{}\",upstream=\"app\"", view.address);
            let counts = [
                ("requests", view.requests),
                ("active", 0),
                ("fails", view.fails),
                ("unavail", 0),
                ("sent", view.timing.sent),
                ("received", view.timing.received),
                ("state", 1),
            ];
            for (name, wanted) in counts {
                assert_eq!(of(name, &labels), wanted as f64, "{name} of {labels}");
            }
            for (code, wanted) in [
                ("2xx", view.responses.success),
                ("4xx", view.responses.client_error),
                ("5xx", view.responses.server_error),
                ("3xx", view.responses.redirection),
            ] {
                assert_eq!(
                    of("responses", &format!("code=\"{code}\",{labels}")),
                    wanted as f64,
                    "{code} of {labels}"
                );
            }
        }
        assert_eq!(views.iter().map(|view| view.responses.total()).sum::<u64>(), 8);
        assert!(views.iter().all(|view| view.timing.sent > 0 && view.timing.received > 0));

        let patch = async |body: &str| {
            site.ask(Method::PATCH, "/api/9/http/upstreams/app/servers/0/", body.to_owned()).await
        };
        let state =
            format!("nginxplus_upstream_server_state{{server=\"{}\",upstream=\"app\"}}", backend.peer(0));
        for (body, wanted) in
            [(r#"{"drain":true}"#, 2.0), (r#"{"down":true}"#, 3.0), (r#"{"down":false,"drain":false}"#, 1.0)]
        {
            assert_eq!(patch(body).await?.status, 200);
            assert_eq!(metrics(&door).await?[&state], wanted, "{body}");
        }
        site.put(json!({"owner": "pm2:1", "marks": [{"peer": backend.peer(0), "state": State::Checking}]}))
            .await?;
        assert_eq!(metrics(&door).await?[&state], 5.0);
        site.end().await?;
    }
    Ok(())
}

/// AddHTTPServer and DeleteHTTPServer of the Go client, and what they may not do.
#[tokio::test]
async fn servers_come_and_go_where_there_are_slots() -> Result<()> {
    let backend = Backend::start(3).await?;
    let [one, two, three] = [0, 1, 2].map(|number| backend.peer(number));
    for version in VERSIONS {
        let mut site = Site::new(version).await?;
        let servers = format!("server {one};");
        let lines = site.usual(&backend).replace(&backend.servers(), &servers);
        site.write(&lines.replace("handoff;", "handoff; handoff_slots 1;"))?;
        site.start().await?;
        let all = "/api/9/http/upstreams/app/servers";
        let post =
            async |body: Value| site.control().ask(Method::POST, &format!("{all}/"), body.to_string()).await;
        let made = post(json!({"server": two, "weight": 2, "fail_timeout": "5s"})).await?;
        let wanted = json!({"id": 1, "server": two, "weight": 2, "max_conns": 0, "max_fails": 1, "fail_timeout": "5s",
                            "slow_start": "0s", "route": "", "backup": false, "down": false});
        assert_eq!((made.status, serde_json::from_slice::<Value>(&made.body)?), (201, wanted.clone()));
        let listed = json(&site.control().get(all).await?)?;
        assert_eq!((listed.as_array().map(Vec::len), &listed[1]), (Some(2), &wanted));
        let peer = site.peer(&two).await?;
        assert_eq!((peer.dynamic, peer.weight), (true, 2));

        for (body, status, code) in [
            (json!({"server": two, "id": 1}), 400, "UpstreamConfFormatError"),
            (json!({"server": one}), 409, "EntryExists"),
            (json!({"server": three}), 400, "UpstreamOutOfMemory"),
            (json!({"server": "app.internal:80"}), 400, "UpstreamBadAddress"),
            (json!({"server": three, "weight": 0}), 400, "UpstreamBadWeight"),
            (json!({"server": three, "slow_start": "5s"}), 400, "UpstreamBadSlowStart"),
            (json!({"server": three, "backup": true}), 400, "UpstreamNoBackup"),
            (json!({"server": three, "down": true}), 400, "UpstreamConfFormatError"),
            (json!({"server": three, "surplus": 1}), 400, "UpstreamConfFormatError"),
            (json!({"weight": 1}), 400, "UpstreamConfFormatError"),
        ] {
            let (got, said, _) = error(&post(body.clone()).await?)?;
            assert_eq!((got, said.as_str()), (status, code), "{body}");
        }
        let again = post(json!({"server": two, "weight": 2, "fail_timeout": "5s"})).await?;
        assert_eq!(error(&again)?.1, "EntryExists");

        let left = site.control().ask(Method::DELETE, &format!("{all}/1/"), "").await?;
        let left = json(&left)?;
        assert_eq!((left.as_array().map(Vec::len), &left[0]["server"]), (Some(1), &json!(one)));
        let gone = site.control().ask(Method::DELETE, &format!("{all}/1/"), "").await?;
        assert_eq!(error(&gone)?.1, "UpstreamServerNotFound");
        assert_eq!(post(json!({"server": three})).await?.status, 201);
        site.end().await?;
    }
    Ok(())
}
