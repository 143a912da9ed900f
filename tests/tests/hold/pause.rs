//! An upstream that is paused: nobody begins a request there, whoever is up, and everybody is served afterwards, once.

use crate::{
    basics::all_are,
    stage::{Stage, Visit},
};
use anyhow::{Context, Result, ensure};
use e2e::{
    clock::Moment,
    command,
    farm::{Arrival, Farm},
    load::Load,
    place, ports, process, sidecar,
    site::{PATIENCE, Site, VERSIONS},
    wait,
};
use handoff_wire::{Code, EventKind, PauseAck, PauseView, Quiet, ResumeAck, UpstreamView, Was, path};
use hyper::Method;
use rustix::process::Signal;
use serde_json::{Value, json};
use std::time::Duration;

impl Stage {
    pub(crate) async fn pauses(&self, more: Value) -> Result<PauseAck> {
        let mut pause = json!({ "owner": "operator", "upstreams": ["app"], "reason": "schema 42" });
        let fields = pause.as_object_mut().context("an object")?;
        fields.extend(more.as_object().context("an object")?.clone());
        self.site.ask(Method::PUT, path::PAUSE, pause.to_string()).await?.json()
    }

    pub(crate) async fn resumes(&self) -> Result<Was> {
        let resume = json!({ "owner": "operator", "upstreams": ["app"] }).to_string();
        let ack: ResumeAck = self.site.ask(Method::POST, path::RESUME, resume).await?.json()?;
        Ok(ack.upstreams.first().context("an upstream")?.was)
    }

    async fn pause(&self) -> Result<Option<PauseView>> {
        Ok(self.site.read::<UpstreamView>(&path::upstream("app")).await?.pause)
    }

    async fn quiet(&self, timeout: &str) -> Result<Quiet> {
        self.site.read(&format!("{}?timeout={timeout}", path::quiet("app"))).await
    }

    async fn paths(&self) -> Result<Vec<String>> {
        Ok(self.farm.arrivals().await?.into_iter().map(|arrival| arrival.path).collect())
    }
}

/// One pause under load, by the clock of everybody.
struct Pause {
    acknowledged: Moment,
    in_flight: u64,
    quiet: Moment,
    /// Just before it was resumed.
    over: Moment,
    held: u64,
}

async fn pause(stage: &Stage) -> Result<Pause> {
    let ack = stage.pauses(json!({ "max": "20s" })).await?;
    let acknowledged = Moment::now();
    let in_flight = ack.upstreams.first().context("an upstream")?.in_flight;
    ensure!(stage.quiet("10s").await?.quiet);
    let quiet = Moment::now();
    let mut held = 0;
    wait::until("requests to wait", PATIENCE, async || {
        held = stage.queue().await.ok()?.held;
        (held >= 20).then_some(())
    })
    .await?;
    let over = Moment::now();
    ensure!(stage.resumes().await? == Was::Paused);
    stage.holds(0).await?;
    Ok(Pause { acknowledged, in_flight, quiet, over, held })
}

impl Pause {
    /// Whoever came to an end after the acknowledgement was counted in it, and who arrived when all was quiet should not have.
    fn is_a_barrier(&self, arrivals: &[Arrival]) -> Result<()> {
        let before = arrivals.iter().filter(|arrival| arrival.at < self.over);
        let after = before.filter(|arrival| arrival.answered.is_none_or(|at| at > self.acknowledged));
        let after: Vec<_> = after.collect();
        ensure!(after.len() as u64 <= self.in_flight, "{} in flight, and {after:?}", self.in_flight);
        let late: Vec<_> = after.into_iter().filter(|arrival| arrival.at > self.quiet).collect();
        ensure!(late.is_empty(), "all was quiet, and {late:?}");
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn under_load_a_pause_is_a_barrier_and_every_request_is_served_once() -> Result<()> {
    for version in VERSIONS {
        let site = Site::new(version).await?.workers(4);
        let stage = Stage::of(site, Farm::start(3).await?, "keepalive 16;", "").await?;
        let load = Load::start(ports::address(stage.site.port()), 400);
        let mut pauses = Vec::new();
        for _ in 0..20 {
            pauses.push(pause(&stage).await?);
        }
        let visits = load.stop().await;
        let failed: Vec<_> = visits.iter().filter(|visit| visit.failed()).collect();
        assert!(failed.is_empty(), "{failed:?}");
        let arrivals = stage.farm.arrivals().await?;
        assert_eq!(arrivals.len(), visits.len(), "each is served, and none twice");
        let counted: u64 = pauses.iter().map(|pause| pause.in_flight).sum();
        assert!(counted > 0, "nothing was ever in flight");
        pauses.iter().try_for_each(|pause| pause.is_a_barrier(&arrivals))?;
        let held: u64 = pauses.iter().map(|pause| pause.held).sum();
        eprintln!("{} requests, {counted} in flight at 20 pauses, {held} waited", visits.len());
        let (waiting, [resumed, others @ ..]) = stage.counts().await?;
        assert!(waiting == 0 && resumed >= held && others == [0; 4], "{resumed} {others:?}");
        stage.end().await?;
    }
    Ok(())
}

#[tokio::test]
async fn who_waits_goes_on_in_order_when_it_is_resumed() -> Result<()> {
    for version in VERSIONS {
        let stage = Stage::single(version, "", "").await?;
        stage.pauses(json!({})).await?;
        let visits = stage.line_up(10).await?;
        assert!(stage.paths().await?.is_empty());
        assert_eq!(stage.resumes().await?, Was::Paused);
        all_are(200, visits).await?;
        assert_eq!(stage.paths().await?, (0..10).map(|number| format!("/{number}")).collect::<Vec<_>>());
        assert_eq!(stage.counts().await?, (0, [10, 0, 0, 0, 0]));
        all_are(200, vec![stage.get("/later")]).await?;
        assert_eq!(stage.counts().await?, (0, [10, 0, 0, 0, 0]));
        stage.end().await?;
    }
    Ok(())
}

/// Whoever paused it is dead, and no sidecar has ever run here.
#[tokio::test]
async fn one_that_is_forgotten_ends_by_itself() -> Result<()> {
    for version in VERSIONS {
        let stage = Stage::new(version, 2, "", "").await?;
        let began = Moment::now();
        stage.pauses(json!({ "max": "1s" })).await?;
        let mut visits: Vec<Visit> = (0..10).map(|_| stage.get("/")).collect();
        visits.extend((0..10).map(|_| stage.visit(Method::POST, "/", "order")));
        stage.holds(20).await?;
        let view = stage.pause().await?.context("a pause")?;
        assert_eq!((view.owner.as_str(), view.reason.as_str()), ("operator", "schema 42"));
        all_are(200, visits).await?;
        let took = Moment::now().since(began);
        assert!(took > Duration::from_millis(990) && took < Duration::from_secs(3), "{took:?}");
        assert_eq!(stage.pause().await?, None);
        stage.site.says("handoff: lapse of operator: upstream \"app\"").await?;
        let kinds: Vec<_> = stage.site.events(0).await?.events.iter().map(|event| event.kind).collect();
        assert_eq!(kinds, [EventKind::Pause, EventKind::Lapse]);
        assert!(
            stage
                .site
                .error_log()
                .lines()
                .any(|line| line.contains("[warn]") && line.contains("its pause was over"))
        );
        assert_eq!((stage.resumes().await?, stage.resumes().await?), (Was::Lapsed, Was::Running));
        assert_eq!(stage.paths().await?.len(), 20);
        stage.end().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_reload_changes_nothing_of_it() -> Result<()> {
    for version in VERSIONS {
        let stage = Stage::new(version, 2, "", "").await?;
        stage.pauses(json!({})).await?;
        let mut visits: Vec<_> = (0..10).map(|_| stage.get("/")).collect();
        stage.holds(10).await?;
        let before = stage.pause().await?.context("a pause")?;
        for round in 1..=2 {
            stage.site.reload().await?;
            visits.extend((0..10).map(|_| stage.get("/")));
            stage.holds(10 + 10 * round).await?;
        }
        let after = stage.pause().await?.context("a pause")?;
        assert!(after.age > before.age && after.left < before.left, "{before:?} {after:?}");
        assert!(stage.paths().await?.is_empty());
        assert_eq!(stage.resumes().await?, Was::Paused);
        all_are(200, visits).await?;
        assert_eq!(stage.counts().await?, (0, [30, 0, 0, 0, 0]));
        stage.end().await?;
    }
    Ok(())
}

#[tokio::test]
async fn what_is_in_flight_finishes_and_what_fails_is_not_tried_elsewhere_before_the_end() -> Result<()> {
    for version in VERSIONS {
        let stage = Stage::new(version, 2, "", "").await?;
        let [one, _] = stage.farm.peers()[..] else { panic!("two peers") };
        let visits = [stage.get("/hold"), stage.get("/hold")];
        stage.farm.holds_so_many(2).await?;
        let ack = stage.pauses(json!({})).await?;
        assert_eq!(ack.upstreams.first().map(|paused| paused.in_flight), Some(2));
        assert_eq!(stage.quiet("0s").await?.in_flight, 2);
        // One of them breaks: it may be tried at the other peer, but not now.
        stage.farm.stop(one).await?;
        stage.holds(1).await?;
        stage.farm.restart(one).await?;
        let quiet = stage.quiet("0s").await?;
        assert_eq!((quiet.quiet, quiet.in_flight), (false, 1));
        assert_eq!(stage.paths().await?.len(), 2);
        stage.farm.release().await?;
        assert!(stage.quiet("10s").await?.quiet, "a call that waits hears of it");
        assert_eq!(stage.resumes().await?, Was::Paused);
        stage.farm.holds_so_many(1).await?;
        stage.farm.release().await?;
        all_are(200, visits.into()).await?;
        assert_eq!(stage.counts().await?, (0, [1, 0, 0, 0, 0]));
        stage.end().await?;
    }
    Ok(())
}

/// Where nginx alone would not try again, a pause is no reason to.
#[tokio::test]
async fn a_pause_gives_no_try_more() -> Result<()> {
    for version in VERSIONS {
        let stage = Stage::single(version, "", "").await?;
        let visits = [stage.get("/hold"), stage.visit(Method::POST, "/hold", "order")];
        stage.farm.holds_so_many(2).await?;
        stage.pauses(json!({})).await?;
        stage.farm.stop(&stage.peer()).await?;
        all_are(502, visits.into()).await?;
        assert_eq!(stage.counts().await?, (0, [0; 5]));
        stage.farm.restart(&stage.peer()).await?;
        assert_eq!(stage.resumes().await?, Was::Paused);
        stage.end().await?;
    }
    Ok(())
}

#[tokio::test]
async fn the_marks_may_say_what_they_like_until_it_is_over() -> Result<()> {
    for version in VERSIONS {
        let stage = Stage::new(version, 2, "", "").await?;
        let peers = stage.farm.peers();
        stage.says_as("operator", "down", "gone").await?;
        stage.pauses(json!({})).await?;
        let visits: Vec<_> = (0..4).map(|_| stage.get("/")).collect();
        stage.holds(4).await?;
        for state in ["draining", "up", "changing", "trial", "down"] {
            stage.says(state, "gone", &peers).await?;
            assert_eq!(stage.queue().await?.held, 4);
        }
        assert_eq!(stage.resumes().await?, Was::Paused);
        all_are(502, visits).await?;
        assert_eq!(stage.counts().await?, (0, [0, 4, 0, 0, 0]), "nobody is expected: as in nginx alone");
        assert!(stage.paths().await?.is_empty());
        stage.end().await?;
    }
    Ok(())
}

#[tokio::test]
async fn who_waits_longer_than_the_queue_lets_anybody_is_told_to_come_again() -> Result<()> {
    for version in VERSIONS {
        let stage = Stage::new(version, 1, "handoff_queue 5 timeout=1s;", "").await?;
        let long = json!({ "owner": "operator", "upstreams": ["app"], "max": "2s" }).to_string();
        let refused = stage.site.ask(Method::PUT, path::PAUSE, long).await?;
        assert!(refused.is(Code::TooLong) && refused.text().contains("503 after 1s"), "{refused:?}");
        stage.pauses(json!({ "max": "2s", "force": true })).await?;
        let visits: Vec<_> = (0..5).map(|_| stage.get("/")).collect();
        stage.holds(5).await?;
        all_are(503, vec![stage.get("/")]).await?;
        all_are(503, visits).await?;
        assert_eq!(stage.counts().await?, (0, [0, 0, 5, 0, 1]));
        all_are(200, vec![stage.get("/")]).await?;
        stage.end().await?;
    }
    Ok(())
}

#[tokio::test]
async fn what_cannot_be_paused_is_refused_in_words() -> Result<()> {
    for version in VERSIONS {
        let stage = Stage::new(version, 1, "handoff_queue off;", "").await?;
        for (body, code, says) in [
            (
                r#"{"owner":"operator","upstreams":["app"]}"#,
                Code::NoQueue,
                "nobody can wait for the upstream",
            ),
            (
                r#"{"owner":"operator","upstreams":["nowhere"]}"#,
                Code::UpstreamNotFound,
                "no upstream \"nowhere\"",
            ),
            (r#"{"owner":"operator","upstreams":[]}"#, Code::BadRequest, "must name 1 to"),
            (r#"{"owner":"operator","upstream":"app"}"#, Code::BadRequest, "unknown field `upstream`"),
            (
                r#"{"owner":"operator","upstreams":["app"],"max":"1h"}"#,
                Code::BadRequest,
                "between 1s and 600s",
            ),
        ] {
            let refused = stage.site.ask(Method::PUT, path::PAUSE, body.to_owned()).await?;
            assert!(refused.is(code) && refused.refusal()?.text.contains(says), "{refused:?}");
        }
        for (method, path, allow) in [(Method::GET, path::PAUSE, "PUT"), (Method::PUT, path::RESUME, "POST")]
        {
            let refused = stage.site.ask(method, path, String::new()).await?;
            assert!(
                refused.is(Code::MethodNotAllowed) && refused.header("allow") == Some(allow),
                "{refused:?}"
            );
        }
        let quiet = stage.site.control().get(&path::quiet("nowhere")).await?;
        assert!(quiet.is(Code::UpstreamNotFound), "{quiet:?}");
        assert_eq!(stage.quiet("5s").await?, Quiet { quiet: false, in_flight: 0, left: None }, "at once");
        all_are(200, vec![stage.get("/")]).await?;
        stage.site.end().await?;
    }
    Ok(())
}

/// A mirror waits for nobody, and goes nowhere either.
#[tokio::test]
async fn what_nginx_does_beside_a_request_does_not_get_past_it() -> Result<()> {
    let locations = "location /page { mirror /mirror; proxy_pass http://app; }
        location = /mirror { internal; proxy_pass http://app; }";
    for version in VERSIONS {
        let stage = Stage::new(version, 2, "", locations).await?;
        stage.pauses(json!({})).await?;
        let visit = stage.get("/page");
        stage.holds(1).await?;
        // nginx has finished the mirror when it takes the next request of the same client.
        assert!(stage.paths().await?.is_empty());
        assert_eq!(stage.resumes().await?, Was::Paused);
        all_are(200, vec![visit]).await?;
        assert_eq!(stage.paths().await?, ["/page"]);
        stage.end().await?;
    }
    Ok(())
}

#[tokio::test]
async fn an_operator_pauses_and_resumes_by_hand() -> Result<()> {
    for version in VERSIONS {
        let stage = Stage::new(version, 2, "", "").await?;
        let handoff = async |arguments: &[&str]| {
            let mut handoff = command::clean(place::handoff()?);
            handoff.args(arguments).envs(sidecar::environment(stage.site.place()));
            let output = handoff.output().await?;
            let [said, complained] =
                [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
            anyhow::Ok((output.status.code(), said, complained))
        };
        let (code, said, _) =
            handoff(&["pause", "app", "--max", "20s", "--wait", "--reason", "schema 42"]).await?;
        assert_eq!(code, Some(0));
        assert!(said.starts_with("app: paused for 20s at most, 0 in flight\napp: quiet, "), "{said}");
        let visits: Vec<_> = (0..3).map(|_| stage.visit(Method::POST, "/", "order")).collect();
        stage.holds(3).await?;
        let (_, said, _) = handoff(&["status"]).await?;
        assert!(
            said.contains("paused app  by operator (schema 42), for 1") && said.contains(", 3 waiting"),
            "{said}"
        );
        let (code, said, _) = handoff(&["resume", "app"]).await?;
        assert_eq!((code, said.as_str()), (Some(0), "app: resumed, 3 waited\n"));
        all_are(200, visits).await?;
        let (code, _, complained) = handoff(&["resume", "app"]).await?;
        assert!(code == Some(1) && complained.contains("app is not paused"), "{complained}");
        let (_, said, _) = handoff(&["events"]).await?;
        assert!(said.contains("pause   app  operator  0 in flight  schema 42"), "{said}");

        // What does not finish is not waited for: nothing is paused any more.
        let busy = stage.get("/hold");
        stage.farm.holds_so_many(1).await?;
        let (code, _, complained) = handoff(&["pause", "app", "--wait", "--timeout", "300ms"]).await?;
        assert!(
            code == Some(3) && complained.contains("app still has 1 in flight after 300ms"),
            "{complained}"
        );
        all_are(200, vec![stage.get("/")]).await?;

        // Nor by whoever does not want to wait any more.
        let mut waits = command::clean(place::handoff()?);
        waits.args(["pause", "app", "--wait"]).envs(sidecar::environment(stage.site.place()));
        let mut waits = waits.kill_on_drop(true).spawn()?;
        let paused = async || stage.pause().await.ok().flatten();
        wait::until("the pause to begin", PATIENCE, paused).await?;
        process::signal(waits.id().context("it runs")?, Signal::INT);
        assert_eq!(waits.wait().await?.code(), Some(130));
        all_are(200, vec![stage.get("/")]).await?;
        stage.farm.release().await?;
        all_are(200, vec![busy]).await?;
        stage.end().await?;
    }
    Ok(())
}
