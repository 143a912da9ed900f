//! What owners said survives a reload, whether it succeeds or fails; what cannot survive is seen to be new.

use anyhow::{Context, Result};
use e2e::{
    backend::Backend,
    site::{PATIENCE, Say, Site, VERSIONS},
    wait,
};
use handoff_wire::{MarkView, Overview, PeerState, PeerView, Renew, RenewMark, Span, State, path};
use hyper::Method;
use rustix::process::Signal;
use std::{collections::BTreeMap, fs, net::TcpListener};
use tokio::spawn;

const ROLLOUT: Say =
    Say { owner: "rollout:7", lease: Some(Span::from_secs(600)), reason: "release 7", ..Say::DRAIN };
const OPERATOR: Say = Say { state: State::Down, reason: "a new disk", ..Say::DRAIN };

/// All that an owner relies on: of each peer its state and marks, but for what the clock does to them.
async fn memory(site: &Site) -> Result<(String, BTreeMap<String, (PeerState, Vec<MarkView>)>)> {
    let ageless = |mark: MarkView| MarkView {
        age: Span::default(),
        lease: mark.lease.map(|_| Span::default()),
        ..mark
    };
    let peers = site
        .app()
        .await?
        .into_iter()
        .map(|peer| (peer.address, (peer.state, peer.marks.into_iter().map(ageless).collect())));
    Ok((site.overview().await?.instance, peers.collect()))
}

async fn generation(site: &Site) -> Result<u64> {
    Ok(site.overview().await?.generation)
}

/// Sixteen visits: who served how many.
async fn served(site: &Site) -> Result<BTreeMap<String, usize>> {
    let mut served = BTreeMap::new();
    for _ in 0..16 {
        let reply = site.visitors().get("/").await?;
        *served.entry(format!("127.0.0.1:{}", reply.text().trim())).or_default() += 1;
    }
    Ok(served)
}

#[tokio::test]
async fn marks_epochs_and_instance_survive_reloads() -> Result<()> {
    let backend = Backend::start(3).await?;
    let (one, two, three) = (backend.peer(0), backend.peer(1), backend.peer(2));
    for version in VERSIONS {
        let site = Site::with(version, &backend).await?;
        let ack = site.say(&ROLLOUT, &[&one]).await?;
        let epoch = ack.marks.first().context("a mark")?.epoch;
        site.say(&OPERATOR, &[&one, &two]).await?;
        let before = memory(&site).await?;
        let events = site.events(0).await?;
        let mut last = generation(&site).await?;
        for _ in 0..3 {
            site.reload().await?;
            assert_eq!(memory(&site).await?, before);
            let now = generation(&site).await?;
            assert!(now > last, "a reload is a change: {last} {now}");
            last = now;
            assert_eq!(served(&site).await?, BTreeMap::from([(three.clone(), 16)]));
        }
        assert_eq!(site.events(0).await?, events, "the past is the same");
        // The epoch is still good for fencing, and the owners' words still count.
        let renew = Renew {
            owner: ROLLOUT.owner.parse()?,
            lease: None,
            marks: Some(vec![RenewMark { upstream: "app".into(), peer: one.clone(), epoch }]),
        };
        assert_eq!(site.ask(Method::POST, path::RENEW, serde_json::to_string(&renew)?).await?.status, 200);
        site.say(&Say { owner: ROLLOUT.owner, ..Say::READY }, &[&one]).await?;
        assert_eq!(site.peer(&one).await?.state, PeerState::Down, "the operator's mark is another one");
        site.say(&Say::READY, &[&one, &two]).await?;
        assert_eq!(served(&site).await?.len(), 3);
        site.end().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_reload_in_the_middle_of_a_drain_may_add_and_remove_servers() -> Result<()> {
    let all = Backend::start(3).await?;
    let [one, two, three] = [all.peer(0), all.peer(1), all.peer(2)];
    for version in VERSIONS {
        let mut site = Site::new(version).await?;
        let conf = |peers: &[&String]| {
            let servers: String = peers.iter().map(|peer| format!("server {peer}; ")).collect();
            site.usual(&all).replace(&all.servers(), &servers)
        };
        let (both, moved) = (conf(&[&one, &two]), conf(&[&two, &three]));
        site.write(&both)?;
        site.start().await?;
        let find = async |address: &String| {
            anyhow::Ok(site.app().await?.into_iter().find(|peer: &PeerView| peer.address == *address))
        };

        // One request each, and the first peer is drained while it has it.
        let visits: Vec<_> = (0..2)
            .map(|_| {
                let door = site.visitors();
                spawn(async move { door.get("/hold").await })
            })
            .collect();
        all.holds(2).await?;
        site.say(&Say::DRAIN, &[&one]).await?;
        let instance = site.overview().await?.instance;
        site.write(&moved)?;
        site.reload().await?;

        assert_eq!(site.overview().await?.instance, instance);
        let gone = find(&one).await?.context("a removed peer stays while it matters")?;
        assert_eq!((gone.configured, gone.in_flight, gone.state), (false, 1, PeerState::Draining));
        let stays = find(&two).await?.context("a peer")?;
        assert_eq!((stays.configured, stays.in_flight, stays.state), (true, 1, PeerState::Up));
        let new = find(&three).await?.context("a new peer has its place at once")?;
        assert_eq!((new.configured, new.in_flight, new.state), (true, 0, PeerState::Up));
        assert_eq!(served(&site).await?.keys().collect::<Vec<_>>(), [&two, &three]);

        // The new one can be drained, the old one's drain completes, and then it is gone.
        site.say(&Say::DRAIN, &[&three]).await?;
        assert_eq!(served(&site).await?.keys().collect::<Vec<_>>(), [&two]);
        site.say(&Say::READY, &[&three]).await?;
        all.release().await?;
        for visit in visits {
            assert_eq!(visit.await??.status, 200);
        }
        let drained = path::drained("app", &one) + "?timeout=10s";
        assert!(site.read::<handoff_wire::Drained>(&drained).await?.drained);
        site.say(&Say::READY, &[&one]).await?;
        assert_eq!(find(&one).await?, None);

        // And back again, as new.
        site.write(&both)?;
        site.reload().await?;
        let back = find(&one).await?.context("it is back")?;
        assert_eq!((back.configured, back.state, back.marks.len()), (true, PeerState::Up, 0));
        assert_eq!(served(&site).await?.keys().collect::<Vec<_>>(), [&one, &two]);
        site.end().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_reload_that_fails_leaves_all_as_it_was() -> Result<()> {
    // nginx tries to bind five times, half a second apart.
    let [one, other] = VERSIONS;
    tokio::try_join!(a_reload_fails(one), a_reload_fails(other))?;
    Ok(())
}

async fn a_reload_fails(version: &str) -> Result<()> {
    let backend = Backend::start(3).await?;
    let (one, two, three) = (backend.peer(0), backend.peer(1), backend.peer(2));
    let site = Site::with(version, &backend).await?;
    site.say(&ROLLOUT, &[&one]).await?;
    let visit = {
        let door = site.visitors();
        spawn(async move { door.get("/hold").await })
    };
    backend.holds(1).await?;
    let before = (memory(&site).await?, generation(&site).await?);
    let workers = site.serving(&[]).await?;
    let taken = TcpListener::bind(("127.0.0.1", site.port() + 1))?;
    let taken_at = taken.local_addr()?;
    let good = site.usual(&backend);
    for (conf, says) in [
        (format!("{good}\nthis is no directive;"), "unknown directive \"this\"".to_owned()),
        (good.replace("zone app 256k;", ""), "has \"handoff\" but no \"zone\"".to_owned()),
        // The configuration is good, the zone is initialized, other servers stand in it: and then a port is taken.
        (
            format!(
                "{}\nserver {{ listen {taken_at}; }}",
                good.replace(&format!("server {one};"), "server 127.0.0.1:1;")
            ),
            "still could not bind()".to_owned(),
        ),
        (
            format!("handoff_zone 1m;\n{good}\nserver {{ listen {taken_at}; }}"),
            "still could not bind()".to_owned(),
        ),
    ] {
        site.write(&conf)?;
        site.reload_in_vain(&says).await?;
        assert_eq!((memory(&site).await?, generation(&site).await?), before, "{says}");
        assert_eq!(site.serving_workers(), workers);
        assert_eq!(served(&site).await?.keys().collect::<Vec<_>>(), [&two, &three]);
    }
    drop(taken);
    // And a reload that succeeds goes on from there.
    site.write(&good)?;
    site.reload().await?;
    assert_eq!(memory(&site).await?, before.0);
    backend.release().await?;
    assert_eq!(visit.await??.status, 200);
    site.end_but_for(&["unknown directive", "but no \"zone\"", "bind()"]).await?;
    Ok(())
}

#[tokio::test]
async fn what_cannot_be_kept_is_a_new_instance() -> Result<()> {
    let backend = Backend::start(2).await?;
    let one = backend.peer(0);
    for version in VERSIONS {
        let mut site = Site::with(version, &backend).await?;
        let mut known: Vec<String> = Vec::new();
        let mut is_new = async |site: &Site| {
            let Overview { instance, .. } = site.overview().await?;
            assert_eq!(instance.len(), 16);
            assert!(!known.contains(&instance), "{instance} again");
            // The operator sees it in the log, an owner in each answer.
            let said = format!("new instance {instance}, room for ");
            assert_eq!(
                site.told().iter().filter(|line| line.starts_with(&said)).count(),
                1,
                "{:?}",
                site.told()
            );
            assert_eq!(site.peer(&one).await?.marks, []);
            let ack = site.say(&Say::DRAIN, &[&one]).await?;
            assert_eq!(ack.instance, instance);
            known.push(instance);
            anyhow::Ok(())
        };
        is_new(&site).await?;
        for size in ["1m", "600k"] {
            site.write(&format!("handoff_zone {size};\n{}", site.usual(&backend)))?;
            site.reload().await?;
            is_new(&site).await?;
        }
        site.signal(Signal::QUIT);
        e2e::process::death(site.master()).await?;
        site.start().await?;
        is_new(&site).await?;
        site.kill().await?;
        site.start().await?;
        is_new(&site).await?;
        site.end().await?;
    }
    Ok(())
}

#[tokio::test]
async fn the_access_log_tells_the_peers_state_and_the_tries() -> Result<()> {
    let backend = Backend::start(2).await?;
    let gone = e2e::ports::address(e2e::ports::row(1)?);
    for version in VERSIONS {
        let mut site = Site::new(version).await?;
        let log = site.file("visits.log");
        let one = backend.peer(0);
        let two = backend.peer(1);
        let port = one.rsplit(':').next().unwrap_or_default();
        let locations = format!(
            "location / {{ proxy_pass http://app; }}
             location /static {{ return 204; }}
             location /direct/ {{ proxy_pass http://127.0.0.1:{port}/; }}
             location /plain/ {{ proxy_pass http://plain/; }}
             location /dead/ {{ proxy_pass http://dead/; }}
             location /rescued/ {{ error_page 502 = @app; proxy_pass http://dead/; }}
             location @app {{ proxy_pass http://app; }}
             location /told/ {{ error_page 502 /static; proxy_pass http://dead/; }}
             location /away/ {{ proxy_intercept_errors on; error_page 503 = @plain; proxy_pass http://app/; }}
             location @plain {{ proxy_pass http://plain; }}"
        );
        site.write(&format!(
            "log_format told \"$uri $handoff_state $handoff_tries $status\";\n\
             upstream app {{ zone app 256k; server {one}; server {two}; handoff; }}\n\
             upstream dead {{ zone dead 256k; server {gone} max_fails=0; server {gone} max_fails=0; handoff; }}\n\
             upstream plain {{ server {two}; }}\n\
             server {{ listen 127.0.0.1:{}; access_log {} told; {locations} }}\n{}",
            site.port(), log.display(), site.api("write=on")
        ))?;
        site.start().await?;
        let mut lines = 0;
        let mut logged = async |path: &str| {
            site.visitors().get(path).await?;
            lines += 1;
            wait::until("a line in the access log", PATIENCE, async || {
                let text = fs::read_to_string(&log).ok()?;
                let line = text.lines().nth(lines - 1).map(str::to_owned)?;
                (text.ends_with('\n')).then_some(line)
            })
            .await
        };
        assert_eq!(logged("/x").await?, "/x up 1 200");
        assert_eq!(logged("/status/404").await?, "/status/404 up 1 404");
        for (path, says) in [
            ("/static", "/static - - 204"),
            ("/direct/x", "/direct/x - - 200"),
            ("/plain/x", "/plain/x - - 200"),
            ("/nothing/../static", "/static - - 204"),
            // Two servers, both tried.
            ("/dead/x", "/dead/x up 2 502"),
            // The last upstream is what counts.
            ("/rescued/x", "/rescued/x up 1 200"),
            ("/told/x", "/static up 2 502"),
            ("/away/status/503", "/away/status/503 - - 200"),
        ] {
            assert_eq!(logged(path).await?, says, "{path}");
        }
        // A peer that hangs up, and another that serves.
        let path = format!("/hangup/{port}");
        let mut seen = [logged(&path).await?, logged(&path).await?];
        seen.sort();
        assert_eq!(seen, [format!("{path} up 1 200"), format!("{path} up 2 200")]);

        // The state is that of the moment: what was drained under a request is seen in its line.
        for (say, state) in [
            (Say::DRAIN, "draining"),
            (OPERATOR, "down"),
            (Say { owner: "health", state: State::Unhealthy, ..ROLLOUT }, "unhealthy"),
        ] {
            let visit = {
                let door = site.visitors();
                spawn(async move { door.get("/hold").await })
            };
            backend.holds(1).await?;
            let peers = site.app().await?;
            let busy = peers.iter().find(|peer| peer.in_flight == 1).context("a peer")?;
            // The other peer is out for having hung up.
            site.say(&Say { force: true, ..say.clone() }, &[&busy.address]).await?;
            backend.release().await?;
            assert_eq!(visit.await??.status, 200);
            lines += 1;
            let line = wait::until("a line in the access log", PATIENCE, async || {
                fs::read_to_string(&log).ok()?.lines().nth(lines - 1).map(str::to_owned)
            })
            .await?;
            assert_eq!(line, format!("/hold {state} 1 200"));
            site.say(&Say { owner: say.owner, ..Say::READY }, &[&busy.address]).await?;
        }
        // With nobody to pass it to there is no try.
        site.say(&Say { force: true, ..Say::DRAIN }, &[&one, &two]).await?;
        site.visitors().get("/x").await?;
        lines += 1;
        let line = wait::until("a line in the access log", PATIENCE, async || {
            fs::read_to_string(&log).ok()?.lines().nth(lines - 1).map(str::to_owned)
        })
        .await?;
        assert_eq!(line, "/x - 0 502");
        site.end().await?;
    }
    Ok(())
}
