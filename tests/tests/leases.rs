//! Who falls silent, dies or freezes harms nobody: its marks lapse, its locks open, and its late word is refused.

use anyhow::{Context, Result, ensure};
use e2e::{
    backend::Backend,
    clock::Moment,
    door::{Door, Reply},
    process,
    site::{PATIENCE, Say, Site, VERSIONS},
    wait,
};
use handoff_wire::{Ack, Code, EventKind, PeerState, Renew, RenewMark, Span, State, UpstreamView, path};
use hyper::Method;
use rustix::process::Signal;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{task::JoinSet, time::timeout};

const SHORT: Span = Span::from_secs(1);
const ROLLOUT: Say = Say { owner: "rollout:7", lease: Some(SHORT), reason: "release 7", ..Say::DRAIN };
const PM2: Say =
    Say { owner: "pm2:1", lease: Some(Span::from_secs(10)), reason: "PM2 stops it", ..Say::DRAIN };

/// What nginx says of workers that were killed: the second, that it opened their lock.
const KILLED_BY_US: [&str; 2] = ["exited on signal 9", "shared memory zone \"handoff\" was locked by"];

/// nginx looks at the leases four times a second.
const TICK: Duration = Duration::from_millis(250);
/// What a loaded machine may add.
const SLACK: Duration = Duration::from_secs(2);

async fn renew(site: &Site, owner: &str, marks: Option<Vec<RenewMark>>) -> Result<Reply> {
    let renew = Renew { owner: owner.parse()?, lease: None, marks };
    site.ask(Method::POST, path::RENEW, serde_json::to_string(&renew)?).await
}

fn fence(peer: &str, epoch: u64) -> Option<Vec<RenewMark>> {
    Some(vec![RenewMark { upstream: "app".into(), peer: peer.into(), epoch }])
}

fn epoch(ack: &Ack) -> Result<u64> {
    Ok(ack.marks.first().context("a mark")?.epoch)
}

async fn is_up(site: &Site, peer: &str) -> Result<Moment> {
    wait::until("the peer to be up", PATIENCE, async || {
        (site.peer(peer).await.ok()?.state == PeerState::Up).then(Moment::now)
    })
    .await
}

#[tokio::test]
async fn a_mark_that_nobody_renews_lapses_and_its_late_owner_is_fenced() -> Result<()> {
    let backend = Backend::start(2).await?;
    let (one, two) = (backend.peer(0), backend.peer(1));
    for version in VERSIONS {
        let site = Site::with(version, &backend).await?;
        let began = Moment::now();
        let first = epoch(&site.say(&ROLLOUT, &[&one]).await?)?;
        // Until then it is worth something.
        assert_eq!(renew(&site, ROLLOUT.owner, fence(&one, first)).await?.status, 200);
        let lapsed = is_up(&site, &one).await?.since(began);
        assert!(
            lapsed >= Duration::from_millis(950) && lapsed < SHORT.duration() + TICK + SLACK,
            "{lapsed:?}"
        );

        let event = site.events(0).await?.events.pop().context("an event")?;
        assert_eq!(
            (event.kind, event.from, event.to),
            (EventKind::Lapse, Some(State::Draining), Some(State::Up))
        );
        let line = format!(
            "lapse of rollout:7: peer {one} in upstream \"app\" draining -> up, 0 in flight (its lease ran out)"
        );
        assert_eq!(site.told().pop(), Some(line.clone()));
        assert!(site.error_log().lines().any(|log| log.contains("[warn]") && log.contains(&line)));
        let served: Vec<String> = {
            let mut served = Vec::new();
            for _ in 0..4 {
                served.push(site.visitors().get("/").await?.text().trim().to_owned());
            }
            served
        };
        assert!(served.iter().any(|port| one.ends_with(port)), "{served:?}");

        // Its owner was frozen, and now it would stop the worker.
        let refusal = renew(&site, ROLLOUT.owner, fence(&one, first)).await?.refusal()?;
        assert_eq!(refusal.code, Code::Lapsed);
        let ack: Ack = renew(&site, ROLLOUT.owner, None).await?.json()?;
        assert_eq!(ack.marks, [], "it holds nothing any more");
        // It drains again, and only the new epoch is good.
        let second = epoch(&site.say(&Say { lease: None, ..ROLLOUT }, &[&one]).await?)?;
        assert!(second > first);
        assert_eq!(renew(&site, ROLLOUT.owner, fence(&one, first)).await?.refusal()?.code, Code::Lapsed);
        assert_eq!(renew(&site, ROLLOUT.owner, fence(&one, second)).await?.status, 200);
        // Another's epoch is nobody else's, and one bad mark spoils the call.
        assert_eq!(renew(&site, "rollout:8", fence(&one, second)).await?.refusal()?.code, Code::Lapsed);
        let both = [fence(&one, second), fence(&two, second)].into_iter().flatten().flatten().collect();
        assert_eq!(renew(&site, ROLLOUT.owner, Some(both)).await?.refusal()?.code, Code::Lapsed);
        // What an operator removed is lapsed as well.
        let mut all = Say::READY.of(&[&one]);
        all["marks"][0]["all"] = true.into();
        site.put(all).await?.json::<Ack>()?;
        assert_eq!(renew(&site, ROLLOUT.owner, fence(&one, second)).await?.refusal()?.code, Code::Lapsed);
        site.end().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_mark_that_is_renewed_stays_and_takes_nothing_of_others_along() -> Result<()> {
    let backend = Backend::start(2).await?;
    let (one, two) = (backend.peer(0), backend.peer(1));
    for version in VERSIONS {
        let site = Site::with(version, &backend).await?;
        let kept = epoch(&site.say(&ROLLOUT, &[&one]).await?)?;
        // An owner that falls silent beside one that does not, and one that need not speak.
        site.say(&Say { owner: "health", state: State::Unhealthy, ..ROLLOUT }, &[&one]).await?;
        site.say(&Say { lease: None, ..Say::DRAIN }, &[&one]).await?;
        let silent =
            wait::until("the silent owner's mark to lapse, and a while more", PATIENCE, async || {
                let renewed = Renew {
                    owner: ROLLOUT.owner.parse().ok()?,
                    lease: Some(SHORT),
                    marks: fence(&one, kept),
                };
                let body = serde_json::to_string(&renewed).ok()?;
                let reply = site.ask(Method::POST, path::RENEW, body).await.ok()?;
                let marks = site.peer(&one).await.ok()?.marks;
                let of = |owner: &str| marks.iter().find(|mark| mark.owner.as_str() == owner);
                if reply.status != 200 || of("operator").is_none() || of(ROLLOUT.owner).is_none() {
                    return Some(Err(marks));
                }
                let old = of(ROLLOUT.owner).is_some_and(|mark| mark.age.duration() > SHORT.duration() * 2);
                (old && of("health").is_none()).then_some(Ok(()))
            })
            .await?;
        assert_eq!(silent, Ok(()));
        assert_eq!(site.peer(&two).await?.state, PeerState::Up);
        site.end().await?;
    }
    Ok(())
}

#[tokio::test]
async fn where_nobody_is_up_silence_of_three_seconds_is_enough() -> Result<()> {
    let backend = Backend::start(6).await?;
    let peers: Vec<String> = (0..6).map(|number| backend.peer(number)).collect();
    let [a, b, c, d, e, f] = &peers[..] else { panic!("six peers") };
    let of = async |version: &str| {
        let mut site = Site::new(version).await?;
        site.write(&format!(
            "upstream app {{ zone app 256k; server {a}; server {b}; handoff; }}\n\
             upstream manual {{ zone manual 256k; server {c}; server {d}; handoff; }}\n\
             upstream half {{ zone half 256k; server {e}; server {f}; handoff; }}\n{}\n{}",
            site.front("proxy_pass http://app;"),
            site.api("write=on")
        ))?;
        site.start().await?;
        let began = Moment::now();
        // Facts need not ask whether anybody is left; a person must insist.
        site.say(&PM2, &[a, b, e]).await?;
        site.say(&Say { force: true, ..Say::DRAIN }, &[c, d]).await?;
        assert_eq!(site.visitors().get("/").await?.status, 502);
        let lapsed = is_up(&site, a).await?.since(began);
        assert!(
            lapsed > Duration::from_millis(2900) && lapsed < Duration::from_secs(3) + TICK + SLACK,
            "{lapsed:?}"
        );
        assert_eq!(site.visitors().get("/").await?.status, 200);
        let reason = "its owner is silent and nobody is up";
        let told = site.told();
        for peer in [a, b] {
            let says = format!("lapse of pm2:1: peer {peer} in upstream \"app\"");
            let line = told.iter().find(|line| line.starts_with(&says)).context("a warning")?;
            // Once the first is back, the other waits for its lease: somebody is up.
            assert!(line.contains(reason) || line.contains("its lease ran out"), "{line}");
        }
        let states = async |name: &str| {
            let view: UpstreamView = site.read(&path::upstream(name)).await?;
            anyhow::Ok(view.peers.iter().map(|peer| peer.state).collect::<Vec<_>>())
        };
        assert_eq!(states("manual").await?, [PeerState::Draining; 2], "an operator's mark has no lease");
        assert_eq!(states("half").await?, [PeerState::Draining, PeerState::Up], "somebody serves there");
        site.end().await
    };
    let [one, other] = VERSIONS;
    tokio::try_join!(of(one), of(other))?;
    Ok(())
}

/// An upstream that takes long to go through: two that serve, and many that are down.
async fn crowded(version: &str, backend: &Backend) -> Result<(Site, Vec<String>)> {
    let mut site = Site::new(version).await?;
    let idle: Vec<String> = (1..=200).map(|port| format!("127.0.0.1:{port}")).collect();
    let servers: String = idle.iter().map(|peer| format!("server {peer} down; ")).collect();
    site.write(&site.usual(backend).replace("keepalive", &format!("{servers} keepalive")))?;
    site.start().await?;
    Ok((site, idle))
}

/// Calls of an operator, as many as fit. What becomes of them does not matter. They end with this.
struct Hammer(Arc<AtomicBool>, JoinSet<()>);

impl Hammer {
    fn start(site: &Site, peers: &[String]) -> Self {
        let of = |say: Say| say.of(&peers.iter().map(String::as_str).collect::<Vec<_>>()).to_string();
        let bodies = [of(Say::DRAIN), of(Say::READY)];
        let mut hammer = Self(Arc::default(), JoinSet::new());
        for body in bodies.iter().chain(&bodies) {
            let (control, stop, body) = (site.control(), Arc::clone(&hammer.0), body.clone());
            hammer.1.spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let call = control.ask(Method::PUT, path::MARKS, body.clone());
                    // One that waits for a frozen worker is given up.
                    _ = timeout(Duration::from_millis(50), call).await;
                }
            });
        }
        hammer
    }

    async fn stop(mut self) {
        self.0.store(true, Ordering::Relaxed);
        while self.1.join_next().await.is_some() {}
    }
}

impl Drop for Hammer {
    /// Where nothing listens any more each call fails at once: such a task never comes to a point where it could be aborted.
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// An answer, or word that another process is at it; in either case soon.
async fn answers(control: &Door) -> Result<bool> {
    let began = Moment::now();
    let reply = control.get(path::UPSTREAMS).await?;
    let took = Moment::now().since(began);
    ensure!(took < SLACK, "an API call took {took:?}");
    ensure!(reply.status == 200 || reply.is(Code::Busy), "{}: {}", reply.status, reply.text());
    Ok(reply.status == 200)
}

async fn serves(visitors: &Door) -> Result<()> {
    let began = Moment::now();
    let reply = visitors.get("/").await?;
    let took = Moment::now().since(began);
    ensure!(reply.status == 200 && took < SLACK, "a visit took {took:?}: {}", reply.status);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_freezes_in_mid_control_stops_nobody_else() -> Result<()> {
    let backend = Backend::start(2).await?;
    for version in VERSIONS {
        let (site, idle) = crowded(version, &backend).await?;
        let hammer = Hammer::start(&site, &idle);
        // Often enough that it was in the middle of a change several times.
        let (mut frozen, mut in_the_middle) = (0, 0);
        while in_the_middle < 3 {
            let workers = site.serving(&[]).await?;
            let victim = workers[frozen % workers.len()];
            process::signal(victim, Signal::STOP);
            // Until it has come to a halt it may still take somebody's connection, and keep it.
            wait::until("it to freeze", PATIENCE, async || process::is_stopped(victim).then_some(())).await?;
            frozen += 1;
            let answered = async {
                for _ in 0..3 {
                    serves(&site.visitors()).await?;
                }
                answers(&site.control()).await
            }
            .await;
            // Frozen for good, it is killed: then the others must be able to go on.
            let kill = answered.as_ref().is_ok_and(|answered| !answered);
            process::signal(victim, if kill { Signal::KILL } else { Signal::CONT });
            if !answered.with_context(|| format!("with a worker frozen for the {frozen}. time"))? {
                in_the_middle += 1;
                process::death(victim).await?;
                wait::until("the API to be free again", PATIENCE, async || {
                    answers(&site.control()).await.ok()?.then_some(())
                })
                .await?;
            }
            ensure!(frozen < 2000, "frozen {frozen} times, and never in the middle");
        }
        eprintln!("frozen {frozen} times");
        hammer.stop().await;
        site.overview().await?;
        site.end_but_for(&KILLED_BY_US).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_killed_in_mid_control_leaves_no_lock_held() -> Result<()> {
    const KILLED: usize = 25;
    let backend = Backend::start(2).await?;
    for version in VERSIONS {
        let (site, idle) = crowded(version, &backend).await?;
        let hammer = Hammer::start(&site, &idle);
        for killed in 0..KILLED {
            let workers = site.serving(&[]).await?;
            let victim = workers[killed % workers.len()];
            let before = site.overview().await?.generation;
            // In the middle of many changes.
            wait::until("changes", PATIENCE, async || {
                (site.overview().await.ok()?.generation > before + 200).then_some(())
            })
            .await?;
            process::signal(victim, Signal::KILL);
            process::death(victim).await?;
            let site = &site;
            wait::until("the API to answer", PATIENCE, async || {
                answers(&site.control()).await.ok()?.then_some(())
            })
            .await
            .with_context(|| format!("after the {killed}. death"))?;
            wait::until("a visit", PATIENCE, async || serves(&site.visitors()).await.ok()).await?;
        }
        hammer.stop().await;
        // Whatever was half done was finished or undone: marks and states agree.
        site.say(&Say::READY, &[&backend.peer(0)]).await?;
        for peer in site.app().await? {
            let of_marks = peer.marks.iter().map(|mark| mark.state).max();
            let down = if idle.contains(&peer.address) { PeerState::Down } else { PeerState::Up };
            assert_eq!(peer.state, of_marks.map_or(down, Into::into), "{peer:?}");
        }
        site.end_but_for(&KILLED_BY_US).await?;
    }
    Ok(())
}
