//! The files in nginx-conf/ are what users begin with: nginx takes them as they are, but for the places of this host.

use anyhow::{Context, Result, ensure};
use e2e::{
    backend::Backend,
    door::{Door, Reply},
    place, ports,
    site::{PATIENCE, Site, VERSIONS},
    wait,
};
use handoff_wire::{Code, UpstreamView, path};
use hyper::Method;
use std::{fs, net::SocketAddr, path::PathBuf, process::Command};

/// One of the files runs, in front of as many peers as it names.
struct Example {
    site: Site,
    backend: Backend,
}

impl Example {
    async fn start(version: &str, name: &str) -> Result<Self> {
        let mut site = Site::new(version).await?.workers(1);
        let backend = Backend::start(4).await?;
        let conf = place::root().join("nginx-conf");
        let text = fs::read_to_string(conf.join(name))?;
        for included in ["control.conf", "monitoring.conf"] {
            let text = fs::read_to_string(conf.join(included))?;
            fs::write(site.file(included), localized(&text, version, &site, &backend)?)?;
        }
        let prefix = site.place().nginx_prefix().display().to_string();
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("{kind}_temp_path {prefix}/{kind};"))
            .join(" ");
        let text = localized(&text, version, &site, &backend)?;
        // What it does not say itself is not to be where nginx was built for.
        let log = if text.contains("access_log /") { "" } else { "access_log off;" };
        let text = text.replacen("http {", &format!("http {{ {temporary} {log}"), 1);
        fs::write(
            site.conf(),
            format!("pid {prefix}/nginx.pid; error_log {prefix}/error.log info;\n{text}"),
        )?;
        let (fine, said) = site.check().await?;
        ensure!(fine && !said.contains("[warn]"), "{name}, nginx {version}: {said}");
        site.start().await?;
        Ok(Self { site, backend })
    }

    fn access_log(&self) -> PathBuf {
        self.site.file("access.log")
    }

    async fn ask(&self) -> Result<Reply> {
        self.site.visitors().get("/").await
    }
}

/// The text with this host's module, ports and folders.
fn localized(text: &str, version: &str, site: &Site, backend: &Backend) -> Result<String> {
    let ports = (0..4).map(|number| (format!("127.0.0.1:{}", 3000 + number), backend.peer(number)));
    let host = [
        ("modules/ngx_http_handoff_module.so", place::module(version)?.display().to_string()),
        ("listen 80", format!("listen 127.0.0.1:{}", site.port())),
        ("/etc/nginx/handoff-control.conf", site.file("control.conf").display().to_string()),
        ("/etc/nginx/handoff-monitoring.conf", site.file("monitoring.conf").display().to_string()),
        ("listen 127.0.0.1:8090", format!("listen {}", monitoring(site))),
        ("/run/handoff/nginx.sock", site.socket().display().to_string()),
        ("/var/log/nginx/access.log", site.file("access.log").display().to_string()),
        ("group=handoff", format!("group={}", own_group()?)),
    ];
    let host = host.map(|(theirs, ours)| (theirs.to_owned(), ours)).into_iter().chain(ports);
    let local = host.fold(text.to_owned(), |text, (theirs, ours)| text.replace(&theirs, &ours));
    let stranger = local
        .lines()
        .find(|line| !line.trim().starts_with('#') && (line.contains("/etc/") || line.contains("/var/")));
    ensure!(stranger.is_none(), "a place of another host: {stranger:?}");
    Ok(local)
}

/// One that whoever runs this may give a directory to.
fn own_group() -> Result<String> {
    let said = Command::new("id").arg("-gn").output()?;
    Ok(String::from_utf8(said.stdout)?.trim().to_owned())
}

/// Where people and Prometheus look.
fn monitoring(site: &Site) -> SocketAddr {
    ports::address(site.port() + 1)
}

#[tokio::test]
async fn the_least_that_is_needed_is_all_that_is_needed() {
    for version in VERSIONS {
        serves_its_first("minimal.conf", version, 2).await.unwrap();
    }
}

#[tokio::test]
async fn the_example_for_cluster_mode_has_one_peer_for_all() {
    for version in VERSIONS {
        serves_its_first("cluster.conf", version, 1).await.unwrap();
    }
}

async fn serves_its_first(name: &str, version: &str, peers: usize) -> Result<()> {
    let example = Example::start(version, name).await?;
    ensure!(example.ask().await?.status == 200, "{name}, nginx {version}");
    let upstream: UpstreamView = example.site.read(&path::upstream("myapp")).await?;
    let there: Vec<&str> = upstream.peers.iter().map(|peer| peer.address.as_str()).collect();
    let wanted: Vec<String> = (0..peers).map(|number| example.backend.peer(number)).collect();
    ensure!(there == wanted, "{name}, nginx {version}: {there:?}, not {wanted:?}");
    example.site.end().await
}

#[tokio::test]
async fn the_example_for_production_serves_and_logs_what_became_of_each_request() {
    for version in VERSIONS {
        let example = Example::start(version, "production.conf").await.unwrap();
        for _ in 0..8 {
            assert_eq!(example.ask().await.unwrap().status, 200);
        }
        let upstream: UpstreamView = example.site.read(&path::upstream("myapp")).await.unwrap();
        assert!(upstream.peers.iter().all(|peer| peer.requests == 2), "nginx {version}: {upstream:?}");
        assert!(upstream.queue.is_some() && upstream.retry.is_some(), "nginx {version}: {upstream:?}");
        let lines = wait::until("nginx to log eight requests", PATIENCE, async || {
            let log = fs::read_to_string(example.access_log()).ok()?;
            (log.lines().count() == 8).then_some(log)
        });
        for line in lines.await.unwrap().lines() {
            logged(line).with_context(|| format!("nginx {version}: {line}")).unwrap();
        }
        let monitoring = Door::Tcp(monitoring(&example.site));
        let page = monitoring.get("/").await.unwrap();
        assert!(page.header("content-type").is_some_and(|kind| kind.starts_with("text/html")), "{page:?}");
        assert!(monitoring.get("/metrics").await.unwrap().text().contains("\nhandoff_peer_requests_total{"));
        let written = monitoring.ask(Method::PUT, path::MARKS, "{}").await.unwrap();
        assert!(written.is(Code::Forbidden), "{written:?}");
        example.site.end().await.unwrap();
    }
}

fn logged(line: &str) -> Result<()> {
    for said in [" 200 ", " tries=1 ", " held=0.000 ", " state=up "] {
        ensure!(line.contains(said), "it does not say{said}");
    }
    Ok(())
}
