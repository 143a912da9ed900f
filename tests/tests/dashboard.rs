//! The dashboard, as Chromium shows it while workers are really replaced under load.

mod house;

use anyhow::{Context, Result, ensure};
use e2e::{
    app::{App, Mode, NAME},
    backend::Backend,
    browser::{Browser, Page},
    door::Door,
    load::Load,
    place, ports,
    site::{PATIENCE, Say, Site, VERSIONS},
    wait,
};
use handoff_wire::{PeerState, State, Timeline};
use house::House;
use rustix::process::Signal;
use std::{env, fs, path::PathBuf};
use tokio::{spawn, task::JoinHandle};

const DESK: (u32, u32) = (1120, 920);
const PHONE: (u32, u32) = (360, 780);

/// What stands in the row of a peer.
const PEERS: &str = "[...document.querySelectorAll('tbody tr')].map(row => \
                     [row.querySelector('[data-is=address]').textContent, row.querySelector('.state').textContent])";
const LIVE: &str = "document.getElementById('live').textContent === 'live'";

/// The API for reading, over TCP, below a path of its own.
fn dashboard(site: &Site) -> String {
    format!("server {{ listen 127.0.0.1:{}; location /handoff/ {{ handoff_api; }} }}", site.port() + 1)
}

fn url(site: &Site) -> String {
    format!("http://127.0.0.1:{}/handoff/", site.port() + 1)
}

fn shop(site: &Site, app: &App) -> String {
    let servers: String = app.addresses().iter().map(|address| format!("server {address}; ")).collect();
    format!(
        "upstream shop {{ zone shop 256k; least_conn; {servers} keepalive 32; handoff; }}\n{}\n{}\n{}",
        site.front("proxy_pass http://shop;"),
        site.api("write=on"),
        dashboard(site)
    )
}

async fn peers(page: &Page<'_>) -> Result<Vec<(String, String)>> {
    page.eval(PEERS).await
}

/// Visitors who stay for as long as this, so that a drain is something to see.
fn slow_visitors(site: &Site, count: usize, ms: u32) -> Vec<JoinHandle<Result<u16>>> {
    let ask = move |door: Door| async move { Ok(door.get(&format!("/slow?ms={ms}")).await?.status) };
    (0..count).map(|_| spawn(ask(site.visitors()))).collect()
}

/// Where pictures are left: for whoever looks at a failure, and for the README.
fn pictures() -> Result<PathBuf> {
    let folder = env::var_os("HANDOFF_PICTURES").map_or_else(|| place::target("dashboard"), PathBuf::from);
    fs::create_dir_all(&folder)?;
    Ok(folder)
}

/// Counts what is built and torn down below `main`.
const OBSERVE: &str = "(() => { window.built = []; window.rows = [...document.querySelectorAll('tbody tr, h2')]; \
    new MutationObserver(all => all.filter(it => it.type === 'childList').forEach(it => \
        [...it.addedNodes, ...it.removedNodes].forEach(node => window.built.push(node.nodeName + ' in ' + it.target.nodeName)))) \
    .observe(document.querySelector('main'), { childList: true, subtree: true }); return true; })()";

#[tokio::test(flavor = "multi_thread")]
async fn a_deploy_is_seen_while_it_happens_and_afterwards() -> Result<()> {
    let mut house = House::with(Mode::Fork, 4, shop).await?;
    house.start_sidecar().await?;
    let load = Load::start(ports::address(house.site.port()), 100);
    let browser = Browser::start(house.site.place()).await?;
    let page = browser.open(&url(&house.site), DESK.0, DESK.1).await?;
    page.until(
        "all peers to be up",
        &format!("{LIVE} && {PEERS}.filter(([, state]) => state === 'up').length === 4"),
    )
    .await?;
    let title: String = page.eval("document.title").await?;
    assert_eq!(title, "Handoff: 4 of 4 up");
    assert_eq!(page.eval::<String>("document.querySelector('h2').textContent").await?, "shop");

    // Numbers change, and nothing is built anew for it.
    page.eval::<bool>(OBSERVE).await?;
    let before = page.requests();
    let looked = wait::until("the page to look again", PATIENCE, async || {
        (page.requests() >= before + 3).then_some(())
    });
    looked.await?;
    assert_eq!(
        page.eval::<Vec<String>>("window.built").await?,
        Vec::<String>::new(),
        "calm, and it flickers"
    );
    let rate = "parseFloat(document.querySelector('[data-is=facts] span:nth-child(2) b').textContent)";
    page.until("a rate to be shown", &format!("{rate} > 60 && {rate} < 140")).await?;

    let visitors = slow_visitors(&house.site, 24, 2500);
    let control = house.site.control();
    wait::until("the slow ones to be there", PATIENCE, async || {
        let view: handoff_wire::UpstreamView = control.get("/v1/upstreams/shop").await.ok()?.json().ok()?;
        view.peers.iter().all(|peer| peer.in_flight >= 4).then_some(())
    })
    .await?;
    // What the page shows as draining is draining, or was a second ago.
    let seen = async {
        page.until(
            "a draining peer to be shown",
            &format!("{PEERS}.some(([, state]) => state === 'draining')"),
        )
        .await?;
        let shown = peers(&page).await?;
        let view: handoff_wire::UpstreamView = control.get("/v1/upstreams/shop").await?.json()?;
        for (peer, state) in shown.iter().filter(|(_, state)| state == "draining") {
            let really = view.peers.iter().find(|view| view.address == *peer).context("no such peer")?;
            ensure!(
                really.state == PeerState::Draining,
                "{peer} is shown as {state}, and is {}",
                really.state
            );
        }
        let why: String =
            page.eval("[...document.querySelectorAll('.why')].find(it => !it.hidden).textContent").await?;
        ensure!(why.starts_with("draining by handoff reload: handoff reload replaces myapp:"), "{why}");
        let running: bool =
            page.eval("document.querySelector('.deploy').textContent.includes('under way')").await?;
        ensure!(running, "a deploy that is under way is not said to be");
        page.screenshot(&pictures()?.join("during.png")).await?;
        Ok(())
    };
    let (ended, seen) = tokio::join!(house.handoff(&["reload", NAME]), seen);
    seen?;
    let ended = ended?;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    for visitor in visitors {
        assert_eq!(visitor.await??, 200);
    }

    page.until(
        "all peers to be up again",
        &format!("{PEERS}.filter(([, state]) => state === 'up').length === 4"),
    )
    .await?;
    page.until(
        "the deploy to be over",
        "document.querySelectorAll('.deploy .track').length === 4 \
        && !document.querySelector('.deploy').textContent.includes('under way')",
    )
    .await?;
    let timeline: Timeline = house.site.read("/v1/timeline").await?;
    assert_eq!(timeline.deploys.len(), 1, "{timeline:?}");
    let text: String = page.eval("document.querySelector('.deploy .line').textContent").await?;
    for said in ["handoff reload", "4 peers", "0 cut", "0 5xx"] {
        assert!(text.contains(said), "no {said:?} in {text:?}");
    }
    for track in &timeline.deploys.first().context("no deploy")?.peers {
        let label = format!(
            "[...document.querySelectorAll('.track svg')].map(it => it.getAttribute('aria-label')).find(it => it.startsWith('{}: '))",
            track.peer
        );
        let label: String = page.eval(&label).await?;
        for step in &track.steps {
            assert!(label.contains(&format!("{} ", step.state)), "{label}: no {step:?}");
        }
    }
    // Whatever stood there before still is the same node.
    assert!(page.eval::<bool>("window.rows.every(node => node.isConnected)").await?, "rows were built anew");
    let built: Vec<String> = page.eval("window.built").await?;
    let elsewhere: Vec<&String> = built
        .iter()
        .filter(|it| it.ends_with("in TR") || it.ends_with("in TBODY") || it.ends_with("in TABLE"))
        .collect();
    assert!(elsewhere.is_empty(), "the table was touched: {elsewhere:?}");

    looks_well(&page).await?;
    assert_eq!(page.complaints(), Vec::<String>::new());
    let visits = load.stop().await;
    let failed: Vec<_> = visits.iter().filter(|visit| visit.failed()).collect();
    assert!(failed.is_empty(), "{failed:?}");
    Ok(())
}

/// On a desk and on a phone, by day and by night.
async fn looks_well(page: &Page<'_>) -> Result<()> {
    let brightness = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).map(Number).reduce((a, b) => a + b) / 3";
    for (scheme, is_right) in [("light", 200.0..256.0), ("dark", 0.0..60.0)] {
        page.prefers("prefers-color-scheme", scheme).await?;
        let brightness: f64 = page.eval(brightness).await?;
        ensure!(is_right.contains(&brightness), "{scheme}: a brightness of {brightness}");
        let faint: Vec<String> = page.eval(FAINT).await?;
        ensure!(faint.is_empty(), "{scheme}: too faint to read: {faint:?}");
        for (name, (width, height)) in [("desk", DESK), ("phone", PHONE)] {
            page.resize(width, height).await?;
            let fits = "document.documentElement.scrollWidth <= innerWidth";
            ensure!(page.eval::<bool>(fits).await?, "{name}: wider than {width}");
            page.screenshot(&pictures()?.join(format!("{name}-{scheme}.png"))).await?;
        }
    }
    Ok(())
}

/// What has a contrast below 4.5 to what is behind it, by the rule of WCAG.
const FAINT: &str = r"(() => {
    const rgb = text => text.match(/[\d.]+/g).map(Number);
    const light = ([r, g, b]) => [r, g, b].map(it => it / 255).map(it => it <= .03928 ? it / 12.92 : ((it + .055) / 1.055) ** 2.4)
        .reduce((sum, it, at) => sum + it * [.2126, .7152, .0722][at], 0);
    const behind = element => { for (let at = element; at; at = at.parentElement) {
        const colour = rgb(getComputedStyle(at).backgroundColor); if (colour[3] !== 0) return colour; } return [255, 255, 255]; };
    return [...document.body.querySelectorAll('*')].filter(element => element.offsetParent
        && [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim())).filter(element => {
        const [a, b] = [light(rgb(getComputedStyle(element).color)), light(behind(element))].sort((a, b) => b - a);
        return (a + .05) / (b + .05) < 4.5;
    }).map(element => `${element.nodeName} ${element.textContent}`);
})()";

#[tokio::test(flavor = "multi_thread")]
async fn what_others_wrote_is_text_and_an_nginx_that_is_away_is_told() -> Result<()> {
    let backend = Backend::start(2).await?;
    for version in VERSIONS {
        let mut site = Site::new(version).await?;
        site.write(&format!("{}\n{}", site.usual(&backend), dashboard(&site)))?;
        site.start().await?;
        let browser = Browser::start(site.place()).await?;
        let page = browser.open(&url(&site), PHONE.0, PHONE.1).await?;
        let reason = "<b id=evil>& <img src=x onerror=fetch('/evil')></b>";
        site.say(&Say { reason, ..Say::DRAIN }, &[&backend.peer(0)]).await?;
        let shown = "document.querySelector('.why').textContent";
        page.until("the reason to be shown", &format!("{shown} === \"draining by operator: {reason}\""))
            .await?;
        let event = "document.querySelector('#events li').textContent";
        assert!(page.eval::<String>(event).await?.ends_with(reason));
        assert!(
            page.eval::<bool>("!document.querySelector('main b#evil, main img, #events img, #evil')").await?
        );
        let wide = "document.documentElement.scrollWidth <= innerWidth";
        assert!(page.eval::<bool>(wide).await?, "a long reason makes it wider than the phone");
        assert_eq!(page.complaints(), Vec::<String>::new());

        // What stands there stays, and is said to be old.
        page.eval::<bool>(OBSERVE).await?;
        site.signal(Signal::STOP);
        for worker in site.serving_workers() {
            e2e::process::signal(worker, Signal::STOP);
        }
        page.until(
            "that nginx is away",
            "document.getElementById('live').textContent.startsWith('nginx does not answer')",
        )
        .await?;
        assert_eq!(peers(&page).await?.len(), 2);
        for worker in site.serving_workers() {
            e2e::process::signal(worker, Signal::CONT);
        }
        site.signal(Signal::CONT);
        page.until("it to be live again", LIVE).await?;

        // An nginx that was started anew has forgotten everything, and the page with it.
        site.kill().await?;
        page.until("that nginx is away", "document.getElementById('live').dataset.is === 'away'").await?;
        site.start().await?;
        page.until("the new nginx", &format!("{LIVE} && {PEERS}.every(([, state]) => state === 'up')"))
            .await?;
        assert!(
            page.eval::<bool>("window.rows.every(node => node.isConnected)").await?,
            "rows were built anew"
        );
        site.end().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn it_works_behind_a_password_and_a_proxy_and_sends_what_a_browser_needs() -> Result<()> {
    let backend = Backend::start(1).await?;
    let mut site = Site::new("1.22.1").await?;
    fs::write(site.file("passwords"), "ops:{PLAIN}secret\n")?;
    site.write(&format!(
        "{}\nserver {{ listen 127.0.0.1:{}; auth_basic handoff; auth_basic_user_file {}; \
         location /admin/nginx/ {{ proxy_pass http://unix:{socket}:/; }} location /direct {{ handoff_api; }} }}\n\
         server {{ listen unix:{socket}; location / {{ handoff_api; }} }}",
        site.usual(&backend),
        site.port() + 1,
        site.file("passwords").display(),
        socket = site.file("reading.sock").display(),
    ))?;
    site.start().await?;
    let at = |path: &str| format!("http://ops:secret@127.0.0.1:{}{path}", site.port() + 1);
    let browser = Browser::start(site.place()).await?;
    for path in ["/admin/nginx/", "/direct", "/direct/"] {
        let page = browser.open(&at(path), DESK.0, DESK.1).await?;
        page.until("the peer", &format!("{LIVE} && {PEERS}.length === 1")).await?;
        assert_eq!(page.complaints(), Vec::<String>::new());
    }

    let reply = site.control().get("/").await?;
    assert_eq!(reply.header("content-type"), Some("text/html; charset=utf-8"));
    let policy = reply.header("content-security-policy").context("no policy")?;
    assert!(policy.starts_with("default-src 'none'; script-src 'sha256-"), "{policy}");
    assert!(!policy.contains("unsafe") && !reply.text().contains("style=\""), "{policy}");
    assert_eq!(reply.header("x-content-type-options"), Some("nosniff"));
    assert!(reply.body.len() < 32 << 10, "{} bytes", reply.body.len());
    let peer = site.peer(&backend.peer(0)).await?;
    assert_eq!(peer.state, PeerState::from(State::Up), "looking changes nothing");
    site.end().await
}
