//! The packages where nobody has heard of Handoff: a Debian of its own, with systemd, nginx and PM2. `make packages-test`.

use anyhow::{Context, Result, ensure};
use e2e::{
    alone,
    clock::Moment,
    guide::{self, Does},
    load::{Answer, Load, Visit},
    machine::{Machine, Said},
    orders::Orders,
    place, wait,
};
use std::{fs, path::Path, time::Duration};

const GUIDE: &str = "docs/operations/ten-minutes.md";
const RATE: u32 = 100;
const PATIENCE: Duration = Duration::from_secs(30);
/// An nginx that was told to go waits for its `client_header_timeout` (60 s) where a connection has not been used yet.
const RETIRES: Duration = Duration::from_secs(90);

/// A server as it is before the guide: the article's.
async fn server() -> Result<Machine> {
    let machine = Machine::boot().await?;
    machine.succeeds("/stage/clean/before").await?;
    Ok(machine)
}

/// Installed, and in use.
async fn installed() -> Result<Machine> {
    let machine = server().await?;
    machine.succeeds("apt-get install ./handoff_*.deb ./libnginx-mod-http-handoff_*.deb").await?;
    machine.succeeds("adduser deploy handoff").await?;
    edit(&machine, "/etc/nginx/sites-available/myapp.conf", &block("nginx", 0)?)?;
    machine.succeeds("nginx -t && systemctl reload nginx && systemctl enable --now handoff@deploy").await?;
    is_at_level(&machine, "L0").await?;
    Ok(machine)
}

/// The nth block of the guide that edits such a file.
fn block(kind: &str, nth: usize) -> Result<String> {
    let blocks = guide::blocks(&fs::read_to_string(place::root().join(GUIDE))?)?;
    let is_one = |does: &Does| matches!(does, Does::Edit { file } if file.contains(kind));
    let block = blocks.into_iter().filter(|block| is_one(&block.does)).nth(nth);
    Ok(block.context("no such block")?.text)
}

fn edit(machine: &Machine, file: &str, block: &str) -> Result<()> {
    let path = machine.file(file);
    let text = fs::read_to_string(&path).with_context(|| file.to_owned())?;
    fs::write(&path, guide::edited(&text, block)?)?;
    Ok(())
}

async fn status(machine: &Machine) -> Result<Said> {
    machine.run(Some("deploy"), "handoff status").await
}

async fn is_at_level(machine: &Machine, level: &str) -> Result<()> {
    let line = format!("myapp: {level}");
    wait::until(&format!("status to say {line}"), PATIENCE, async || {
        status(machine).await.ok().filter(|said| said.text.lines().any(|said| said == line))
    })
    .await
    .map(drop)
}

/// When nginx was told to reload, by us or by dpkg: from, until. It then closes the idle connections of clients, with Handoff
/// or without, and a request that is on its way on one of them is reset, and executed by nobody.
type Reload = (Moment, Moment);

/// Those that failed, but for such resets.
fn failed(visits: &[Visit], orders: &Orders, reloads: &[Reload]) -> Vec<String> {
    let is_reset = |visit: &Visit| {
        let executed = visit.order().is_some_and(|order| !orders.executions(&order).is_empty());
        let reload = reloads.iter().any(|(from, until)| visit.due >= *from && visit.due <= *until);
        visit.answer == Answer::Reset && !executed && reload
    };
    let resets = visits.iter().filter(|visit| is_reset(visit)).count();
    println!("{resets} resets of {} visits, by nginx's own reloads", visits.len());
    let failed = visits.iter().filter(|visit| visit.failed() && !is_reset(visit));
    failed.map(|visit| format!("{} {}: {}", visit.number, visit.kind, visit.answer)).collect()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a Debian of its own; `make packages-test` runs it"]
async fn whoever_follows_the_guide_deploys_and_nobody_notices() -> Result<()> {
    let _alone = alone::take()?;
    let machine = server().await?;
    let page = fs::read_to_string(place::root().join(GUIDE))?;
    let load = Load::start(machine.address(80), RATE);
    let (mut answer, mut reloads) = (String::new(), Vec::new());
    for block in guide::blocks(&page)? {
        let place = format!("{GUIDE}:{}", block.line);
        match block.does {
            Does::Type { user } => {
                let began = Moment::now();
                let said = machine.run(user.as_deref(), &block.text).await?;
                if block.text.contains("reload nginx") || block.text.contains("apt-get") {
                    reloads.push((began, Moment::now() + Duration::from_secs(1)));
                }
                let prompt = if user.is_some() { "$" } else { "#" };
                for line in block.text.lines() {
                    println!("{prompt} {line}");
                }
                println!("{}", said.text);
                ensure!(said.code == Some(0), "{place}: {} ended with {:?}", block.text, said.code);
                answer = said.text;
            }
            Does::Edit { file } => {
                edit(&machine, &file, &block.text).with_context(|| place)?;
                println!("(edits {file})\n{}", block.text);
            }
            // A worker that has just started may not be known yet.
            Does::Answers => {
                let mut last = answer.clone();
                wait::until(&format!("{place} to be true"), PATIENCE, async || {
                    if guide::missing(&block.text, &last).is_empty() {
                        return Some(());
                    }
                    last = status(&machine).await.ok()?.text;
                    None
                })
                .await
                .with_context(|| format!("the page says {:?}, it said:\n{answer}", block.text))?;
            }
        }
    }
    let visits = load.stop().await;
    println!("{} visits, from before the installation until after the removal", visits.len());
    let orders = Orders::read(&machine.file("/var/log/myapp/orders"))?;
    assert_eq!(failed(&visits, &orders, &reloads), [""; 0], "of {}", visits.len());
    let ordered = visits.iter().filter(|visit| !visit.failed()).filter_map(Visit::order);
    let lost: Vec<String> = ordered.filter(|order| orders.executions(order).len() != 1).collect();
    assert_eq!(lost, [""; 0], "each is executed once");

    for left in ["/usr/bin/handoff", "/etc/handoff", "/var/lib/handoff", "/run/handoff-deploy"] {
        assert!(!machine.file(left).exists(), "{left} is left");
    }
    let links = machine.succeeds("ls /etc/nginx/modules-enabled /etc/systemd/system/*.wants").await?;
    assert!(!links.contains("handoff"), "{links}");
    machine.succeeds("systemctl restart nginx && systemctl is-active nginx").await?;
    machine.succeeds("test \"$(systemctl is-system-running)\" = running").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a Debian of its own; `make packages-test` runs it"]
async fn a_module_that_is_needed_is_not_removed() -> Result<()> {
    let machine = installed().await?;
    // All the places where a directive may stand, and some where it does not.
    let more = r#"
log_format mine "$remote_addr
    ${handoff_worker}";
upstream other { zone other 64k; server 127.0.0.1:3999; handoff; } # handoff;
server { listen 127.0.0.1:8081; location /handoff { return 200 "; handoff; \" handoff;"; } }
"#;
    fs::write(machine.file("/etc/nginx/conf.d/more.conf"), more)?;
    machine.succeeds("nginx -t").await?;
    let said = machine.run(None, "apt-get remove libnginx-mod-http-handoff").await?;
    assert_ne!(said.code, Some(0));
    let places: Vec<&str> =
        said.text.lines().filter(|line| line.starts_with("    /etc/")).map(str::trim).collect();
    let expected = [
        "/etc/nginx/conf.d/more.conf:3: $handoff_…",
        "/etc/nginx/conf.d/more.conf:4: handoff",
        "/etc/nginx/sites-enabled/myapp.conf:2: include snippets/handoff-control.conf",
        "/etc/nginx/sites-enabled/myapp.conf:9: handoff",
        "/etc/nginx/snippets/handoff-control.conf:10: handoff_api",
    ];
    assert_eq!(places, expected, "{}", said.text);
    assert!(said.text.contains("HANDOFF_FORCE_REMOVE=yes"), "{}", said.text);
    machine.succeeds("nginx -t && systemctl restart nginx").await?;
    machine.succeeds("dpkg-query -W -f '${db:Status-Abbrev}' libnginx-mod-http-handoff | grep ii").await?;

    // With nginx itself on its way out, it does not stand in the way.
    machine.succeeds("apt-get remove --simulate nginx").await?;
    fs::remove_file(machine.file("/etc/nginx/conf.d/more.conf"))?;
    edit(&machine, "/etc/nginx/sites-available/myapp.conf", &block("nginx", 1)?)?;
    machine.succeeds("nginx -t && systemctl reload nginx").await?;
    machine.succeeds("apt-get remove libnginx-mod-http-handoff").await?;
    machine.succeeds("nginx -t && systemctl restart nginx").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a Debian of its own; `make packages-test` runs it"]
async fn nginx_itself_may_go_and_who_insists_may_remove_the_module() -> Result<()> {
    let machine = installed().await?;
    machine.succeeds("HANDOFF_FORCE_REMOVE=yes apt-get remove libnginx-mod-http-handoff").await?;
    assert_ne!(machine.run(None, "nginx -t").await?.code, Some(0), "which is what it warned of");
    machine.succeeds("apt-get install ./libnginx-mod-http-handoff_*.deb && nginx -t").await?;
    machine.succeeds("apt-get remove nginx").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a Debian of its own; `make packages-test` runs it"]
async fn an_upgrade_fails_no_request_and_keeps_what_runs() -> Result<()> {
    let _alone = alone::take()?;
    let machine = installed().await?;
    let pid = "systemctl show --property MainPID --value";
    let (nginx, sidecar) = (
        machine.succeeds(&format!("{pid} nginx")).await?,
        machine.succeeds(&format!("{pid} handoff@deploy")).await?,
    );
    let load = Load::start(machine.address(80), RATE);
    let began = Moment::now();
    let said = machine
        .succeeds("cd /packages-next && apt-get install ./handoff_*.deb ./libnginx-mod-http-handoff_*.deb")
        .await?;
    assert!(said.contains("a running nginx keeps the old module"), "{said}");
    assert_eq!(machine.succeeds(&format!("{pid} nginx")).await?, nginx, "nginx is not restarted");
    assert_ne!(machine.succeeds(&format!("{pid} handoff@deploy")).await?, sidecar, "the new sidecar runs");
    is_at_level(&machine, "L0").await?;
    // The upgrade in place that it speaks of.
    let maps = format!("grep handoff_module /proc/{}/maps", nginx.trim());
    assert!(machine.succeeds(&maps).await?.contains("(deleted)"), "the old module is still loaded");
    machine.succeeds("service nginx upgrade").await?;
    wait::until("the old nginx to be gone", RETIRES, async || {
        let gone = machine.run(None, &format!("test ! -e /proc/{}", nginx.trim())).await.ok()?;
        (gone.code == Some(0)).then_some(())
    })
    .await?;
    let maps = "grep handoff_module /proc/$(cat /run/nginx.pid)/maps";
    assert!(!machine.succeeds(maps).await?.contains("(deleted)"));
    is_at_level(&machine, "L0").await?;
    let reload = (began, Moment::now());
    machine.succeeds("su - deploy -c 'pm2 reload myapp'").await?;
    let visits = load.stop().await;
    let orders = Orders::read(&machine.file("/var/log/myapp/orders"))?;
    assert_eq!(failed(&visits, &orders, &[reload]), [""; 0], "of {}", visits.len());
    println!("{} visits over an upgrade of both packages, of nginx in place, and a pm2 reload", visits.len());
    Ok(())
}

/// An nginx that the module does not fit, in a repository of its own.
fn another_nginx(machine: &Machine) -> Result<()> {
    let package = machine.file("/repository/nginx/DEBIAN");
    fs::create_dir_all(&package)?;
    let control = "Package: nginx\nVersion: 1.28.3-1\nArchitecture: all\nProvides: nginx-abi-1.28.3-1\n\
                   Maintainer: nobody <nobody@localhost>\nDescription: an nginx that no module of ours fits\n";
    fs::write(package.join("control"), control)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a Debian of its own; `make packages-test` runs it"]
async fn an_nginx_that_the_module_does_not_fit_is_kept_back() -> Result<()> {
    let machine = installed().await?;
    another_nginx(&machine)?;
    machine
        .succeeds(
            "cd /repository && dpkg-deb --build nginx nginx_1.28.3-1_all.deb && \
             (dpkg-deb --field nginx_1.28.3-1_all.deb; echo Filename: ./nginx_1.28.3-1_all.deb; \
             echo Size: $(stat -c %s nginx_1.28.3-1_all.deb); echo SHA256: $(sha256sum < nginx_1.28.3-1_all.deb | cut -d' ' -f1)) > Packages && \
             rm -rf /etc/apt/sources.list* && mkdir /etc/apt/sources.list.d && \
             echo 'deb [trusted=yes] file:/repository ./' > /etc/apt/sources.list && apt-get update",
        )
        .await?;
    let upgrade = machine.succeeds("apt-get upgrade").await?;
    assert!(upgrade.contains("kept back:\n  nginx"), "{upgrade}");
    machine.succeeds("nginx -v 2>&1 | grep 1.22.1 && nginx -t && systemctl restart nginx").await?;
    // By force it would take the module with it, which does not let itself be taken.
    let forced = machine.run(None, "apt-get install nginx=1.28.3-1").await?;
    assert_ne!(forced.code, Some(0), "{}", forced.text);
    assert!(forced.text.contains("libnginx-mod-http-handoff stays"), "{}", forced.text);
    machine.succeeds("nginx -t && systemctl restart nginx").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a Debian of its own; `make packages-test` runs it"]
async fn systemd_starts_it_before_pm2_and_again_when_it_hangs() -> Result<()> {
    let machine = Machine::boot().await?;
    machine.succeeds("useradd --create-home deploy").await?;
    machine.succeeds("apt-get install ./handoff_*.deb ./libnginx-mod-http-handoff_*.deb").await?;
    let enabled = machine.run(None, "systemctl is-enabled handoff.service").await?;
    assert_eq!(enabled.text.trim(), "disabled", "nobody said whom it is to serve");
    // Neither a PM2 nor a control socket is there.
    machine.succeeds("systemctl enable --now handoff@deploy handoff.service").await?;
    for unit in ["handoff@deploy", "handoff"] {
        let text = machine.succeeds(&format!("systemctl show --property StatusText {unit}")).await?;
        assert!(text.contains("0 workers, 0 behind nginx, nginx does not answer"), "{text}");
        let pid = machine.succeeds(&format!("systemctl show --property MainPID --value {unit}")).await?;
        machine.succeeds(&format!("kill -STOP {pid}")).await?;
        wait::until("the watchdog to bite", PATIENCE, async || {
            let state = format!("systemctl show --property NRestarts,ActiveState {unit}");
            let state = machine.succeeds(&state).await.ok()?;
            (state.contains("NRestarts=1\n") && state.contains("ActiveState=active\n")).then_some(())
        })
        .await?;
    }
    let directory = machine.succeeds("stat -c '%a %U %G' /run/handoff").await?;
    assert_eq!(directory.trim(), "750 root handoff");
    // The directory in which nginx listens stays when the sidecar goes.
    machine.succeeds("systemctl stop handoff handoff@deploy && test -d /run/handoff").await?;
    assert!(!Path::new(&machine.file("/run/handoff-deploy")).exists());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a Debian of its own; `make packages-test` runs it"]
async fn in_whatever_order_they_start_they_find_each_other() -> Result<()> {
    let machine = installed().await?;
    // The unit has the group; that the user has it, too, is for hands.
    machine.succeeds("deluser deploy handoff").await?;
    for order in [["handoff@deploy", "pm2-deploy", "nginx"], ["nginx", "pm2-deploy", "handoff@deploy"]] {
        // As after a boot: /run is empty.
        machine
            .succeeds(
                "systemctl stop nginx handoff@deploy pm2-deploy && (su - deploy -c 'pm2 kill' || true) && \
                 rm -r /run/handoff",
            )
            .await?;
        for unit in order {
            machine.succeeds(&format!("systemctl start {unit}")).await?;
        }
        wait::until("each to know of the others", PATIENCE, async || {
            let status = "systemctl show --property StatusText handoff@deploy; \
                          handoff status --pm2-home /home/deploy/.pm2";
            let text = machine.run(None, status).await.ok()?.text;
            (text.contains(": 2 workers, 2 behind nginx\n") && text.contains("myapp: L0\n")).then_some(())
        })
        .await?;
        let directory = machine.succeeds("stat -c '%a %U %G' /run/handoff").await?;
        assert_eq!(directory.trim(), "750 root handoff");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a Debian of its own; `make packages-test` runs it"]
async fn the_service_of_root_serves_the_pm2_of_a_user() -> Result<()> {
    let machine = installed().await?;
    machine.succeeds("systemctl disable --now handoff@deploy").await?;
    let file = machine.file("/etc/handoff/handoff.toml");
    let text = fs::read_to_string(&file)?;
    // As the file itself suggests.
    fs::write(&file, text.replace("# [[pm2]]", "[[pm2]]").replace("# home =", "home ="))?;
    machine.succeeds("systemctl enable --now handoff").await?;
    let status = "handoff status --config /etc/handoff/handoff.toml";
    wait::until("the app to be protected", PATIENCE, async || {
        let said = machine.run(None, status).await.ok()?;
        said.text.contains("myapp: L0\n").then_some(())
    })
    .await?;
    machine.succeeds("su - deploy -c 'pm2 reload myapp'").await?;
    let said = machine.succeeds("handoff events").await?;
    assert!(said.contains("up → changing  pm2:") && said.contains("/home/deploy/.pm2"), "{said}");
    let said = machine.succeeds("systemctl show --property StatusText handoff").await?;
    assert!(said.contains("/home/deploy/.pm2: 2 workers, 2 behind nginx\n"), "{said}");
    Ok(())
}
