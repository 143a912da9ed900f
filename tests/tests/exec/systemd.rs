//! The real systemd, and the units that docs/operations/exec.md shows, with Node, gunicorn and puma. `make exec-test`.

use anyhow::{Context, Result};
use e2e::{
    alone,
    door::Door,
    load::{Load, Visit},
    machine::Machine,
    orders::Orders,
    place, wait,
};
use std::{fs, time::Duration};

const PAGE: &str = "docs/operations/exec.md";
const RATE: u32 = 100;
const PATIENCE: Duration = Duration::from_secs(30);

/// An app of the page: its unit, where nginx serves it, and how one of its workers is asked directly.
struct App {
    name: &'static str,
    port: u16,
    direct: &'static str,
}

const APPS: [App; 3] = [
    App { name: "shop", port: 8001, direct: "http://127.0.0.1:300%i/health" },
    App { name: "books", port: 8002, direct: "http://127.0.0.1:310%i/health" },
    App {
        name: "music",
        port: 8003,
        direct: "--unix-socket /run/music-%i/puma.sock http://localhost/health",
    },
];

/// The text of the file of this name, as the page shows it.
fn file(name: &str) -> Result<String> {
    let page = fs::read_to_string(place::root().join(PAGE))?;
    let (_, rest) =
        page.split_once(&format!(" {name}\n")).with_context(|| format!("{PAGE} has no {name}"))?;
    let (text, _) = rest.split_once("```").context("a block that does not end")?;
    Ok(text.to_owned())
}

/// With the packages, three apps, and nginx in front of them; none of them started.
async fn server() -> Result<Machine> {
    let machine = Machine::boot().await?;
    machine
        .succeeds(
            "apt-get install ./handoff_*.deb ./libnginx-mod-http-handoff_*.deb
             useradd --system shop
             mkdir -p /srv/shop /srv/books /srv/music
             cp -r /stage/apps/server.js /stage/apps/node_modules /srv/shop/
             cp /stage/apps/app.py /srv/books/
             cp /stage/apps/config.ru /srv/music/
             touch /srv/orders && chown shop /srv/orders",
        )
        .await?;
    let conf = file("/etc/nginx/conf.d/shop.conf")?;
    for App { name, port, .. } in APPS {
        let unit = format!("/etc/systemd/system/{name}@.service");
        fs::write(machine.file(&unit), file(&unit)?)?;
        with(&machine, name, "")?;
        let servers = match name {
            "shop" => conf.clone(),
            "books" => conf.replace("300", "310"),
            _ => [1, 2].iter().fold(conf.clone(), |conf, number| {
                conf.replace(
                    &format!("127.0.0.1:300{number}"),
                    &format!("unix:/run/music-{number}/puma.sock"),
                )
            }),
        };
        // The control server stands in one of them.
        let servers = if name == "shop" { servers } else { servers.replace("include", "# include") };
        let servers = servers.replace("8001", &port.to_string());
        let servers = servers.replace("upstream shop", &format!("upstream {name}"));
        let servers =
            servers.replace("zone shop", &format!("zone {name}")).replace("//shop", &format!("//{name}"));
        fs::write(machine.file(&format!("/etc/nginx/conf.d/{name}.conf")), servers)?;
    }
    machine.succeeds("systemctl daemon-reload && nginx -t && systemctl restart nginx").await?;
    Ok(machine)
}

/// What the test adds to a unit: where orders are written, and an app that handles no signal.
fn with(machine: &Machine, app: &str, more: &str) -> Result<()> {
    let folder = machine.file(&format!("/etc/systemd/system/{app}@.service.d"));
    fs::create_dir_all(&folder)?;
    let text = format!("[Service]\nEnvironment=ORDERS=/srv/orders BEHAVIOUR=naive\n{more}");
    fs::write(folder.join("test.conf"), text)?;
    Ok(())
}

fn failed(machine: &Machine, visits: &[Visit]) -> Result<Vec<String>> {
    let orders = Orders::read(&machine.file("/srv/orders"))?;
    assert_eq!(orders.executed_twice(), 0);
    let failed = visits.iter().filter(|visit| visit.failed());
    Ok(failed.map(|visit| format!("{} {}: {}", visit.number, visit.kind, visit.answer)).collect())
}

async fn answers(machine: &Machine, App { direct, .. }: &App, worker: u16) -> Result<()> {
    let ask = format!("curl --fail --silent {}", direct.replace("%i", &worker.to_string()));
    wait::until("a worker to answer", PATIENCE, async || {
        machine.run(None, &ask).await.ok().filter(|said| said.code == Some(0))
    })
    .await
    .map(drop)
}

/// Orders are numbered anew by each load.
async fn begin(machine: &Machine, app: &App) -> Result<Load> {
    machine.succeeds("truncate --size 0 /srv/orders").await?;
    Ok(Load::start(machine.address(app.port), RATE))
}

async fn restart_each(machine: &Machine, app: &App) -> Result<(Vec<String>, usize)> {
    let load = begin(machine, app).await?;
    for worker in [1, 2] {
        machine.succeeds(&format!("systemctl restart {}@{worker}", app.name)).await?;
        answers(machine, app, worker).await?;
    }
    let visits = load.stop().await;
    Ok((failed(machine, &visits)?, visits.len()))
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a Debian of its own; `make exec-test` runs it"]
async fn systemctl_restarts_each_worker_and_nobody_notices() -> Result<()> {
    let _alone = alone::take()?;
    let machine = server().await?;
    for app in APPS {
        let name = app.name;
        // They are started when nginx may send requests to them, and not before.
        machine.succeeds(&format!("systemctl start {name}@1 {name}@2")).await?;
        let status = machine.succeeds("handoff events").await?;
        println!("{}", status.lines().filter(|line| line.contains(name)).collect::<Vec<_>>().join("\n"));
        let (with_handoff, all) = restart_each(&machine, &app).await?;
        println!("{name}: systemctl restart of each worker: {} of {all} failed", with_handoff.len());
        assert_eq!(with_handoff, [""; 0], "{name}, of {all}");
        let says = machine.succeeds(&format!("journalctl --unit {name}@1 --output cat")).await?;
        assert!(says.contains("nginx has nothing left with it"), "{says}");
        assert!(!says.contains("WARN"), "{says}");

        // The same units, and nginx, without handoff.
        let unit = file(&format!("/etc/systemd/system/{name}@.service"))?;
        let start =
            unit.lines().find_map(|line| Some(line.strip_prefix("ExecStart=")?.split_once(" -- ")?.1));
        let start = start.context("no ExecStart")?;
        with(&machine, name, &format!("Type=exec\nExecStart=\nExecStart=/usr/bin/env {start}\n"))?;
        machine
            .succeeds(&format!(
                "sed -i 's/^    handoff;//' /etc/nginx/conf.d/{name}.conf && systemctl restart nginx
                 systemctl daemon-reload && systemctl restart {name}@1 {name}@2"
            ))
            .await?;
        answers(&machine, &app, 1).await?;
        answers(&machine, &app, 2).await?;
        let (without, all) = restart_each(&machine, &app).await?;
        println!("{name}: the same without handoff: {} of {all} failed", without.len());
        machine.succeeds(&format!("systemctl stop {name}@1 {name}@2")).await?;
        if name == "shop" {
            assert!(!without.is_empty(), "then the test shows nothing");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a Debian of its own; `make exec-test` runs it"]
async fn a_reload_of_gunicorn_where_it_stands_passes_and_a_death_is_seen() -> Result<()> {
    let _alone = alone::take()?;
    let machine = server().await?;
    let [_, books, _] = &APPS;
    machine.succeeds("systemctl start books@1 books@2").await?;
    let pid = "systemctl show --property MainPID --value books@1";
    let before = machine.succeeds(pid).await?;
    let load = begin(&machine, books).await?;
    machine.succeeds("systemctl reload books@1").await?;
    wait::until("gunicorn to have replaced its workers", PATIENCE, async || {
        let log = machine.succeeds("journalctl --unit books@1 --output cat").await.ok()?;
        (log.contains("Handling signal: hup") && log.matches("Booting worker").count() == 2).then_some(())
    })
    .await?;
    assert_eq!(machine.succeeds(pid).await?, before);
    let events = machine.succeeds("handoff events").await?;
    assert!(!events.contains("draining"), "{events}");
    // Its master dies, and systemd starts another one.
    machine
        .succeeds("kill -KILL $(pgrep --parent $(systemctl show --property MainPID --value books@1))")
        .await?;
    wait::until("systemd to have started another one", PATIENCE, async || {
        let state = machine.succeeds("systemctl show --property NRestarts,ActiveState books@1").await.ok()?;
        (state.contains("NRestarts=1\n") && state.contains("ActiveState=active\n")).then_some(())
    })
    .await?;
    let visits = load.stop().await;
    let failed = failed(&machine, &visits)?;
    println!("gunicorn reloaded, and then killed: {} of {} failed: {failed:?}", failed.len(), visits.len());
    let events = machine.succeeds("handoff events").await?;
    assert!(events.contains("it died"), "{events}");
    // Only what the dead one was executing, and nginx may not repeat.
    assert!(failed.iter().all(|visit| visit.contains("POST")), "{failed:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a Debian of its own; `make exec-test` runs it"]
async fn behind_a_socket_unit_a_restart_is_noticed_by_nobody_and_a_visitor_starts_a_worker() -> Result<()> {
    let _alone = alone::take()?;
    let machine = server().await?;
    let ink = App { name: "ink", port: 8004, direct: "http://127.0.0.1:320%i/health" };
    for unit in ["/etc/systemd/system/ink@.socket", "/etc/systemd/system/ink@.service"] {
        fs::write(machine.file(unit), file(unit)?)?;
    }
    with(&machine, ink.name, "")?;
    let conf = file("/etc/nginx/conf.d/shop.conf")?.replace("include", "# include");
    let conf = conf.replace("300", "320").replace("8001", "8004").replace("shop", "ink");
    fs::write(machine.file("/etc/nginx/conf.d/ink.conf"), conf)?;
    machine
        .succeeds(
            "systemctl daemon-reload && systemctl restart nginx && systemctl start ink@1.socket ink@2.socket",
        )
        .await?;
    let state = async |worker: u16| {
        // It ends with 3 if it is not active.
        let said = machine.run(None, &format!("systemctl is-active ink@{worker}.service || true")).await?;
        anyhow::Ok(said.text.trim().to_owned())
    };
    assert_eq!((state(1).await?, state(2).await?), ("inactive".to_owned(), "inactive".to_owned()));
    // nginx knows nothing of them, and connects.
    assert_eq!(Door::Tcp(machine.address(ink.port)).get("/").await?.status, 200);
    for worker in [1, 2] {
        answers(&machine, &ink, worker).await?;
        assert_eq!(state(worker).await?, "active");
    }
    let (failed, all) = restart_each(&machine, &ink).await?;
    println!("ink, gunicorn behind a socket unit: {} of {all} failed", failed.len());
    assert_eq!(failed, [""; 0]);
    let events = machine.succeeds("handoff events").await?;
    for worker in [1, 2] {
        let drained =
            |line: &str| line.contains(&format!("127.0.0.1:320{worker}")) && line.contains("draining");
        assert!(events.lines().any(drained), "{events}");
    }
    machine.succeeds("systemctl stop ink@1.service").await?;
    assert_eq!(state(1).await?, "inactive");
    answers(&machine, &ink, 1).await?;
    assert_eq!(state(1).await?, "active");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a Debian of its own; `make exec-test` runs it"]
async fn a_stop_that_takes_longer_than_systemd_waits_is_given_the_time() -> Result<()> {
    let machine = server().await?;
    with(&machine, "shop", "TimeoutStopSec=2\n")?;
    machine.succeeds("systemctl daemon-reload && systemctl start shop@1").await?;
    let visitor = Door::Tcp(machine.address(8001));
    let slow = tokio::spawn(async move { visitor.get("/slow?ms=6000").await });
    wait::until("the request to be there", PATIENCE, async || {
        let view = "curl --silent --unix-socket /run/handoff/nginx.sock http://nginx/v1/upstreams/shop";
        machine.succeeds(view).await.ok()?.contains("\"in_flight\":1").then_some(())
    })
    .await?;
    machine.succeeds("systemctl stop shop@1").await?;
    assert_eq!(slow.await??.status, 200);
    let result = machine.succeeds("systemctl show --property Result shop@1").await?;
    assert_eq!(result.trim(), "Result=success");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a Debian of its own; `make exec-test` runs it"]
async fn a_reload_of_a_template_replaces_each_unit_and_a_broken_release_meets_nobody() -> Result<()> {
    let _alone = alone::take()?;
    let machine = server().await?;
    let [shop, ..] = &APPS;
    // So that systemd remembers them when they are stopped.
    machine.succeeds("systemctl enable --now shop@1 shop@2").await?;
    let pids = "systemctl show --property MainPID --value shop@1 shop@2";
    let before = machine.succeeds(pids).await?;
    let said = machine.succeeds("handoff reload shop@ --dry-run").await?;
    assert!(said.contains("would be drained and replaced: 127.0.0.1:3001 in shop"), "{said}");
    let load = begin(&machine, shop).await?;
    let said = machine.succeeds("handoff reload shop@ --health /health").await?;
    println!("{said}");
    assert!(said.contains("all 2 workers of shop@ are new, and nothing was cut"), "{said}");
    let after = machine.succeeds(pids).await?;
    assert!(
        before.lines().zip(after.lines()).all(|(old, new)| old.is_empty() || old != new),
        "{before}{after}"
    );

    // Three releases that are not fit: one crashes, one never listens, one is not well.
    let health = "const h = require('http'); h.createServer((q, s) => { s.statusCode = 503; s.end(); }).listen(process.env.PORT, '127.0.0.1')";
    for (release, exit, options) in [
        ("throw new Error('broken')", 10, ""),
        ("setInterval(() => {}, 1000)", 11, "--start-timeout 3s"),
        (health, 12, "--health /ready --health-timeout 2s"),
    ] {
        machine.succeeds("cp /srv/shop/server.js /srv/shop/good.js").await?;
        fs::write(machine.file("/srv/shop/server.js"), release)?;
        if exit == 12 {
            // Of itself it is not asked, so that it comes up for exec.
            with(
                &machine,
                "shop",
                &format!(
                    "ExecStart=\nExecStart={}\n",
                    without_health(&file("/etc/systemd/system/shop@.service")?)?
                ),
            )?;
        }
        machine.succeeds("systemctl daemon-reload").await?;
        let untouched = machine.succeeds("systemctl show --property MainPID --value shop@2").await?;
        let said = machine.run(None, &format!("handoff reload shop@ {options}")).await?;
        println!("{}", said.text);
        assert_eq!(said.code, Some(exit), "{}", said.text);
        let state = machine.succeeds("systemctl show --property ActiveState,MainPID --value shop@2").await?;
        assert!(state.contains(untouched.trim()) && !state.contains("inactive"), "{state}");
        // Mended, and reloaded again: it begins with the one that was stopped.
        machine.succeeds("mv /srv/shop/good.js /srv/shop/server.js").await?;
        with(&machine, "shop", "")?;
        let said =
            machine.succeeds("systemctl daemon-reload && handoff reload shop@ --health /health").await?;
        assert!(said.contains("all 2 workers of shop@ are new"), "{said}");
    }
    let visits = load.stop().await;
    let failed = failed(&machine, &visits)?;
    println!(
        "a reload of shop@, three broken releases and three mended: {} of {} failed",
        failed.len(),
        visits.len()
    );
    assert_eq!(failed, [""; 0]);
    let said = machine.run(None, "handoff reload shop@7").await?;
    assert_eq!(said.code, Some(6), "{}", said.text);
    let said = machine.run(None, "handoff reload shop@ --update-env").await?;
    assert_eq!(said.code, Some(2), "{}", said.text);
    Ok(())
}

fn without_health(unit: &str) -> Result<String> {
    let start = unit.lines().find_map(|line| line.strip_prefix("ExecStart="));
    Ok(start.context("no ExecStart")?.replace("--health /health ", ""))
}
