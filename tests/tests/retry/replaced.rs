//! One address, and another worker behind it.

use crate::stage::{Ask, Outcome, Stage};
use anyhow::{Result, ensure};
use e2e::site::VERSIONS;

const LOCATIONS: &str = "
    location /off { proxy_next_upstream off; proxy_pass http://app; }
    location /answers { proxy_next_upstream http_503; proxy_pass http://app; }
    location /twice { proxy_next_upstream error non_idempotent; proxy_pass http://app; }
    location /one { proxy_next_upstream_tries 1; proxy_pass http://app; }
    location /two { proxy_next_upstream_tries 2; proxy_pass http://app; }
    location /silent { proxy_read_timeout 200ms; proxy_pass http://app; }";

#[tokio::test]
async fn what_one_worker_breaks_another_one_answers() -> Result<()> {
    for version in VERSIONS {
        for lines in ["", "keepalive 4;"] {
            let stage = Stage::new(version, 1, lines, LOCATIONS).await?;
            stage.are_shared().await?;
            let (answered, failed) = (Outcome::answered, Outcome::failed);
            for (what, ask, outcome) in [
                ("one breaks", Ask::get("").dies("1"), answered(200, 2, "replaced")),
                ("two tries", Ask::get("/two").dies("1"), answered(200, 2, "replaced")),
                ("an order", Ask::post("").dies("1"), failed(502, 1, "sent")),
                ("it may be repeated", Ask::post("/twice").dies("1"), answered(200, 2, "replaced")),
                ("off", Ask::get("/off").dies("1"), failed(502, 1, "off")),
                ("not named", Ask::get("/answers").dies("1"), failed(502, 1, "off")),
                ("one try", Ask::get("/one").dies("1"), failed(502, 1, "tries")),
                ("a query of death", Ask::get("").dies("9"), failed(502, 2, "broke")),
                ("two that refuse", Ask::get("").refused("503", "9"), answered(503, 2, "tries")),
                ("another one breaks", Ask::get("").refused("503", "1"), answered(200, 2, "replaced")),
            ] {
                stage.meets(what, ask, outcome).await?;
            }
            stage.end().await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn who_answers_nothing_in_time_is_asked_no_more() -> Result<()> {
    for version in VERSIONS {
        let stage = Stage::new(version, 1, "", LOCATIONS).await?;
        stage.meets("nobody else", Ask::get("/silent").held(), Outcome::failed(504, 1, "same")).await?;
        stage.are_shared().await?;
        stage.meets("another one", Ask::get("/silent").held(), Outcome::failed(504, 2, "broke")).await?;
        stage.end().await?;
    }
    Ok(())
}

/// The connection broke because its worker was replaced, and that is over.
#[tokio::test]
async fn a_worker_that_came_meanwhile_is_another_one() -> Result<()> {
    for version in VERSIONS {
        let stage = Stage::new(version, 1, "", "").await?;
        let peer = stage.peer();
        for (ask, outcome) in [
            (Ask::get("").held(), Outcome::answered(200, 2, "replaced")),
            (Ask::post("").held(), Outcome::failed(502, 1, "sent")),
        ] {
            let visit = stage.begin(ask)?;
            stage.farm.holds_so_many(1).await?;
            stage.says("draining", &[&peer]).await?;
            stage.says("up", &[&peer]).await?;
            stage.farm.disconnect(&peer).await?;
            // The broken one is held, too, until it is released.
            if outcome.status == 200 {
                stage.farm.holds_so_many(2).await?;
            }
            stage.farm.release().await?;
            let met = stage.end_of(visit).await?;
            ensure!(met == outcome, "{met:?}");
        }
        stage.end().await?;
    }
    Ok(())
}

/// There are others; of these nginx has asked all that it would.
#[tokio::test]
async fn where_others_serve_nobody_is_asked_twice() -> Result<()> {
    for version in VERSIONS {
        let stage = Stage::new(version, 2, "handoff_queue off;", "").await?;
        stage.are_shared().await?;
        stage.meets("all of them", Ask::get("").dies("9"), Outcome::failed(502, 2, "broke")).await?;
        stage
            .meets("all refuse", Ask::get("").refused("503", "9"), Outcome::answered(503, 2, "tries"))
            .await?;
        // One of the two is gone: the other is the only one.
        let [one, other] = stage.farm.peers()[..] else { anyhow::bail!("two peers") };
        stage.says("down", &[one]).await?;
        stage.meets("the only one", Ask::get("").dies("1"), Outcome::answered(200, 2, "replaced")).await?;
        ensure!(stage.farm.arrivals().await?.iter().rev().take(2).all(|arrival| arrival.peer == other));
        stage.says("up", &[other]).await?;
        // nginx thinks that it could ask the one that is gone, and would throw the answer away.
        let refused = Ask::get("").refused("503", "1");
        stage.meets("nobody else", refused, Outcome::answered(503, 1, "same")).await?;
        stage.says("up", &[one]).await?;
        stage.end().await?;
    }
    Ok(())
}
