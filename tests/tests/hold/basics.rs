//! Who waits, who does not, and in which order they go on.

use crate::stage::{Stage, Visit};
use anyhow::{Context, Result, ensure};
use e2e::{
    clock::Moment,
    farm::Farm,
    ports,
    site::{Site, VERSIONS},
};
use hyper::Method;
use std::{collections::BTreeMap, time::Duration};
use tokio::time::sleep;

pub(crate) async fn all_are(status: u16, visits: Vec<Visit>) -> Result<()> {
    for visit in visits {
        let reply = visit.await??;
        ensure!(reply.status == status, "{reply:?}");
    }
    Ok(())
}

async fn arrived(stage: &Stage) -> Result<Vec<String>> {
    Ok(stage.farm.arrivals().await?.into_iter().map(|arrival| arrival.path).collect())
}

fn numbers(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("/{number}")).collect()
}

#[tokio::test]
async fn who_comes_while_nobody_is_up_goes_on_in_order_when_somebody_is() -> Result<()> {
    for version in VERSIONS {
        let stage = Stage::single(version, "", "").await?;
        stage.goes().await?;
        let visits = stage.line_up(10).await?;
        assert!(arrived(&stage).await?.is_empty());
        stage.comes_back().await?;
        all_are(200, visits).await?;
        assert_eq!(arrived(&stage).await?, numbers(10));
        assert_eq!(stage.counts().await?, (0, [10, 0, 0, 0, 0]));
        // Each waited as long as it says, and nginx shows one attempt.
        for line in stage.log(10).await? {
            let fields: Vec<&str> = line.split(' ').collect();
            let [_, status, held, tries, address, upstream_status] = fields[..] else { panic!("{line}") };
            assert_eq!(
                [status, tries, address, upstream_status],
                ["200", "1", &stage.peer(), "200"],
                "{line}"
            );
            let (seconds, millis) = held.split_once('.').context("a time")?;
            assert!(millis.len() == 3 && seconds == "0" && millis != "000", "{line}");
        }
        // Whoever comes later does not wait.
        all_are(200, vec![stage.get("/later")]).await?;
        let log = stage.log(11).await?;
        assert!(log.iter().any(|line| line.starts_with("/later 200 0.000 1 ")), "{log:?}");
        stage.site.says("10 requests waited for upstream \"app\"").await?;
        let told = stage.site.told();
        let lines: Vec<_> = told.iter().filter(|line| line.contains("waited")).collect();
        assert_eq!(lines.len(), 1, "one line a burst: {told:?}");
        assert!(
            lines[0].contains("10 went on, 0 released, 0 timed out, 0 left; 0 found no room"),
            "{lines:?}"
        );
        stage.end().await?;
    }
    Ok(())
}

#[tokio::test]
async fn where_nobody_is_expected_it_is_as_in_nginx_alone() -> Result<()> {
    for version in VERSIONS {
        let stage = Stage::new(version, 2, "", "").await?;
        for (owner, state, expect) in
            [("operator", "draining", "gone"), ("pm2:1", "down", "gone"), ("operator", "down", "gone")]
        {
            stage.says_as(owner, state, expect).await?;
            all_are(502, vec![stage.get("/"), stage.get("/")]).await?;
        }
        // Who expects somebody back is not all who keep requests away.
        stage.goes().await?;
        all_are(502, vec![stage.get("/")]).await?;
        assert_eq!(stage.counts().await?, (0, [0; 5]));
        assert!(stage.farm.arrivals().await?.is_empty());
        stage.end().await?;
    }
    Ok(())
}

#[tokio::test]
async fn while_somebody_is_up_nobody_waits() -> Result<()> {
    for version in VERSIONS {
        let stage = Stage::new(version, 3, "", "").await?;
        let [one, two, three] = stage.farm.peers()[..] else { panic!("three peers") };
        stage.says("draining", "back", &[one, two]).await?;
        all_are(200, (0..20).map(|_| stage.get("/")).collect()).await?;
        assert!(stage.farm.arrivals().await?.iter().all(|arrival| arrival.peer == three));
        assert_eq!(stage.counts().await?, (0, [0; 5]));
        stage.end().await?;
    }
    Ok(())
}

#[tokio::test]
async fn off_is_nginx_alone() -> Result<()> {
    for version in VERSIONS {
        let stage = Stage::new(version, 2, "handoff_queue off;", "").await?;
        stage.goes().await?;
        all_are(502, vec![stage.get("/"), stage.get("/")]).await?;
        assert!(stage.queue().await.is_err(), "there is none");
        stage.comes_back().await?;
        stage.site.end().await?;
    }
    Ok(())
}

#[tokio::test]
async fn who_is_merely_full_keeps_nobody_waiting_but_those_who_wait_already() -> Result<()> {
    for version in VERSIONS {
        let farm = Farm::start(1).await?;
        let peer = farm.peers()[0].to_owned();
        let site = Site::new(version).await?.workers(1);
        site.write(&site.usual_with(&format!("server {peer} max_conns=1;")))?;
        let stage = Stage::with(site, farm).await?;
        let busy = stage.get("/hold");
        stage.farm.holds(&[&peer]).await?;
        all_are(502, vec![stage.get("/full")]).await?;
        stage.farm.release().await?;
        all_are(200, vec![busy]).await?;
        assert_eq!(arrived(&stage).await?, ["/hold"]);

        stage.goes().await?;
        let visits = stage.line_up(10).await?;
        stage.comes_back().await?;
        all_are(200, visits).await?;
        assert_eq!(arrived(&stage).await?, numbers(10), "one after the other");
        assert_eq!(stage.counts().await?, (0, [10, 0, 0, 0, 0]));
        stage.end().await?;
    }
    Ok(())
}

#[tokio::test]
async fn those_who_wait_are_spread_over_all_who_come_up() -> Result<()> {
    for version in VERSIONS {
        let stage = Stage::new(version, 4, "", "").await?;
        stage.goes().await?;
        let visits: Vec<_> = (0..80).map(|_| stage.get("/hold")).collect();
        stage.holds(80).await?;
        stage.comes_back().await?;
        stage.farm.holds_so_many(80).await?;
        let mut shares = BTreeMap::<String, usize>::new();
        for arrival in stage.farm.arrivals().await? {
            *shares.entry(arrival.peer).or_default() += 1;
        }
        assert!(shares.len() == 4 && shares.values().all(|&share| share.abs_diff(20) <= 2), "{shares:?}");
        stage.farm.release().await?;
        all_are(200, visits).await?;
        stage.end().await?;
    }
    Ok(())
}

#[tokio::test]
async fn who_waits_for_too_long_is_told_to_come_again() -> Result<()> {
    let locations = "location /own/ { error_page 503 /sorry; proxy_pass http://app/; }
        location /elsewhere/ { error_page 503 = @other; proxy_pass http://app/; }
        location @other { return 200 'from elsewhere'; }
        location /sorry { return 503 'sorry'; }";
    for version in VERSIONS {
        let stage = Stage::new(version, 1, "handoff_queue 100 timeout=400ms;", locations).await?;
        stage.goes().await?;
        for (path, status, body, comes_again) in [
            ("/", 503, "503 Service", true),
            ("/own/", 503, "sorry", true),
            ("/elsewhere/", 200, "from", false),
        ] {
            let began = Moment::now();
            let reply = stage.get(path).await??;
            let waited = Moment::now().since(began);
            assert!(waited >= Duration::from_millis(395) && waited < Duration::from_secs(3), "{waited:?}");
            assert_eq!(reply.status, status, "{path}: {reply:?}");
            assert!(reply.text().contains(body), "{path}: {reply:?}");
            assert!(!comes_again || reply.header("retry-after") == Some("5"), "{path}: {reply:?}");
        }
        // As a POST, too.
        assert_eq!(stage.visit(Method::POST, "/own/", "a body").await??.status, 503);
        assert_eq!(stage.counts().await?, (0, [0, 0, 4, 0, 0]));
        let log = stage.log(4).await?;
        assert!(log[0].starts_with("/ 503 0.4") && log[0].ends_with(" 0 app 503"), "{log:?}");
        stage.comes_back().await?;
        all_are(200, vec![stage.get("/")]).await?;
        assert_eq!(arrived(&stage).await?.len(), 1, "nothing of what timed out arrives later");
        stage.end().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_request_that_failed_waits_if_it_may_be_repeated() -> Result<()> {
    for version in VERSIONS {
        let stage = Stage::single(version, "", "").await?;
        let peer = stage.peer();
        let get = stage.get("/hold");
        let post = stage.visit(Method::POST, "/hold", "order");
        stage.farm.holds_so_many(2).await?;
        // The worker ends with what it has, as one does that handles no signal.
        stage.goes().await?;
        stage.farm.stop(&peer).await?;
        all_are(502, vec![post]).await?;
        stage.holds(1).await?;
        stage.farm.release().await?;
        stage.farm.restart(&peer).await?;
        stage.farm.arrivals().await?;
        stage.comes_back().await?;
        stage.farm.holds(&[&peer]).await?;
        assert_eq!(arrived(&stage).await?, ["/hold"], "the POST was not repeated");
        stage.farm.release().await?;
        all_are(200, vec![get]).await?;
        let log = stage.log(2).await?;
        let line = log.iter().find(|line| line.starts_with("/hold 200")).context("its line")?;
        assert!(line.ends_with(&format!(" 2 {peer}, {peer} 502, 200")), "{line}");
        stage.end().await?;
    }
    Ok(())
}

#[tokio::test]
async fn what_the_location_says_of_tries_is_respected() -> Result<()> {
    let locations = "location /off/ { proxy_next_upstream off; proxy_pass http://app/; }
        location /one/ { proxy_next_upstream_tries 1; proxy_pass http://app/; }
        location /timeout/ { proxy_next_upstream_timeout 50ms; proxy_pass http://app/; }";
    for version in VERSIONS {
        let stage = Stage::single(version, "", locations).await?;
        let peer = stage.peer();
        // What was tried and may not be tried again fails, as ever.
        let tried = vec![stage.get("/off/hold"), stage.get("/one/hold"), stage.get("/timeout/hold")];
        stage.farm.holds_so_many(3).await?;
        sleep(Duration::from_millis(60)).await;
        stage.goes().await?;
        stage.farm.stop(&peer).await?;
        all_are(502, tried).await?;
        stage.farm.restart(&peer).await?;
        // What nobody has tried yet waits: that is no second try, and its time does not count.
        let new: Vec<_> = ["/off/", "/one/", "/timeout/"].map(|path| stage.get(path)).into();
        stage.holds(3).await?;
        sleep(Duration::from_millis(100)).await;
        stage.comes_back().await?;
        all_are(200, new).await?;
        assert_eq!(stage.counts().await?, (0, [3, 0, 0, 0, 0]));
        // And what it says holds afterwards.
        stage.farm.arrivals().await?;
        stage.goes().await?;
        let reply = ["/off/", "/one/"].map(|path| stage.get(path));
        stage.holds(2).await?;
        stage.farm.stop(&peer).await?;
        stage.comes_back().await?;
        all_are(502, reply.into()).await?;
        let log = stage.log(8).await?;
        assert!(log[6..].iter().all(|line| line.ends_with(&format!(" 1 {peer} 502"))), "{log:?}");
        stage.farm.restart(&peer).await?;
        stage.end().await?;
    }
    Ok(())
}

#[tokio::test]
async fn when_nobody_is_expected_any_more_those_who_wait_are_let_go() -> Result<()> {
    for version in VERSIONS {
        let stage = Stage::new(version, 2, "", "").await?;
        stage.goes().await?;
        let visits: Vec<_> = (0..10).map(|_| stage.get("/")).collect();
        stage.holds(10).await?;
        let began = Moment::now();
        stage.says("down", "gone", &stage.farm.peers()).await?;
        all_are(502, visits).await?;
        assert!(Moment::now().since(began) < Duration::from_secs(1));
        assert_eq!(stage.counts().await?, (0, [0, 10, 0, 0, 0]));
        stage.end().await?;
    }
    Ok(())
}

/// The sidecar is killed, or stopped: after three seconds it is as if it had said nothing.
#[tokio::test]
async fn an_owner_that_falls_silent_ends_the_hold() -> Result<()> {
    for version in VERSIONS {
        for is_there in [true, false] {
            let stage = Stage::new(version, 2, "", "").await?;
            let peers = stage.farm.peers();
            stage.says_as("pm2:silent", "draining", "back").await?;
            if !is_there {
                for peer in &peers {
                    stage.farm.stop(peer).await?;
                }
            }
            let began = Moment::now();
            let visits: Vec<_> = (0..10).map(|_| stage.get("/")).collect();
            stage.holds(10).await?;
            all_are(if is_there { 200 } else { 502 }, visits).await?;
            let took = Moment::now().since(began);
            assert!(took > Duration::from_millis(2500) && took < Duration::from_secs(5), "{took:?}");
            for peer in peers.iter().filter(|_| !is_there) {
                stage.farm.restart(peer).await?;
            }
            stage.end().await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn an_address_where_nobody_listens_yet_is_tried_and_waited_for_again() -> Result<()> {
    for version in VERSIONS {
        let gone = ports::address(ports::row(1)?).to_string();
        let farm = Farm::start(1).await?;
        let site = Site::new(version).await?;
        let up = farm.peers()[0].to_owned();
        site.write(&site.usual_with(&format!("server {gone}; server {up};")))?;
        let stage = Stage::with(site, farm).await?;
        stage.says("draining", "back", &[&gone, &up]).await?;
        let visits: Vec<_> = (0..10).map(|_| stage.get("/")).collect();
        stage.holds(10).await?;
        // One comes back that is not there: nginx finds out, and leaves it out by itself.
        stage.says("up", "", &[&gone]).await?;
        stage.holds(10).await?;
        stage.says("up", "", &[&up]).await?;
        all_are(200, visits).await?;
        stage.end().await?;
    }
    Ok(())
}
