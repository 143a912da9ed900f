//! An answer that the configuration takes for a failure, where nginx has nobody else to ask.

use crate::stage::{Ask, Outcome, Stage};
use anyhow::{Result, ensure};
use e2e::{clock::Moment, site::VERSIONS};
use std::time::Duration;

const LOCATIONS: &str = "
    location /moment { proxy_next_upstream_timeout 900ms; proxy_pass http://app; }
    location /long { proxy_next_upstream_timeout 5s; proxy_pass http://app; }
    location /one { proxy_next_upstream_tries 1; proxy_pass http://app; }
    location /500 { proxy_next_upstream http_500 http_404 http_503; proxy_pass http://app; }";

#[tokio::test]
async fn another_worker_may_answer_better() -> Result<()> {
    for version in VERSIONS {
        let stage = Stage::new(version, 1, "", LOCATIONS).await?;
        for status in ["502", "503", "504", "429"] {
            let passed = Outcome::answered(status.parse()?, 1, "same");
            stage.meets("nobody else", Ask::get("").refused(status, "1"), passed).await?;
        }
        stage.are_shared().await?;
        for status in ["502", "503", "504", "429"] {
            let ask = Ask::get("").refused(status, "1");
            stage.meets("another one", ask.clone(), Outcome::answered(200, 2, "replaced")).await?;
            let order = Ask::post("").refused(status, "1");
            stage.meets("an order", order, Outcome::answered(status.parse()?, 1, "sent")).await?;
        }
        // That may be meant.
        for status in ["500", "404"] {
            let passed = Outcome::answered(status.parse()?, 1, "-");
            stage.meets("an answer", Ask::get("/500").refused(status, "1"), passed).await?;
        }
        stage.end().await?;
    }
    Ok(())
}

/// The worker says so as it goes; another one is expected.
#[tokio::test]
async fn who_is_told_503_by_one_that_goes_waits_for_the_next() -> Result<()> {
    for version in VERSIONS {
        let stage = Stage::new(version, 1, "", "").await?;
        let peer = stage.peer();
        let visit = stage.begin(Ask::get("").held().refused("503", "1"))?;
        let order = stage.begin(Ask::post("").held().refused("503", "1"))?;
        stage.farm.holds_so_many(2).await?;
        stage.says("draining", &[&peer]).await?;
        stage.farm.release().await?;
        stage.rest(1).await?;
        ensure!(stage.end_of(order).await? == Outcome::answered(503, 1, "sent"));
        stage.says("up", &[&peer]).await?;
        stage.farm.holds_so_many(1).await?;
        stage.farm.release().await?;
        ensure!(stage.end_of(visit).await? == Outcome::answered(200, 2, "held"));
        stage.end().await?;
    }
    Ok(())
}

#[tokio::test]
async fn who_is_told_to_come_again_soon_comes_then() -> Result<()> {
    for version in VERSIONS {
        let stage = Stage::new(version, 1, "keepalive 4;", LOCATIONS).await?;
        for (later, location, waits) in [("0", "", 0), ("1", "", 1000), ("1", "/long", 1000)] {
            let began = Moment::now();
            let ask = Ask::get(location).refused("503", "1").later(later);
            stage.meets("soon", ask, Outcome::answered(200, 2, "retry_after")).await?;
            let took = Moment::now().since(began);
            ensure!(took >= Duration::from_millis(waits), "it came after {took:?}");
        }
        for (what, ask) in [
            ("later", Ask::get("").later("3")),
            ("a date", Ask::get("").later("Wed, 21 Oct 2015 07:28:00 GMT")),
            ("nonsense", Ask::get("").later("soon")),
            ("past the time for tries", Ask::get("/moment").later("1")),
        ] {
            let passed = Outcome::answered(429, 1, "later");
            stage.meets(what, ask.refused("429", "1"), passed).await?;
        }
        let one = Ask::get("/one").refused("503", "1").later("0");
        stage.meets("one try", one, Outcome::answered(503, 1, "tries")).await?;
        let order = Ask::post("").refused("503", "1").later("0");
        stage.meets("an order", order, Outcome::answered(503, 1, "sent")).await?;
        let again = Ask::get("").refused("503", "9").later("0");
        stage.meets("once", again, Outcome::answered(503, 2, "tries")).await?;
        stage.end().await?;
    }
    Ok(())
}

#[tokio::test]
async fn where_nobody_waits_nobody_comes_again() -> Result<()> {
    for version in VERSIONS {
        let stage = Stage::new(version, 1, "handoff_queue off;", "").await?;
        let ask = Ask::get("").refused("503", "1").later("0");
        stage.meets("no room", ask, Outcome::answered(503, 1, "same")).await?;
        stage.meets("no room", Ask::get("").dies("1"), Outcome::failed(502, 1, "same")).await?;
        stage.end().await?;
    }
    Ok(())
}
