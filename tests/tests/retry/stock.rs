//! What nginx alone does is done, and counted by its reason.

use crate::stage::{Ask, Outcome, Stage};
use anyhow::{Context, Result, ensure};
use e2e::site::VERSIONS;
use handoff_wire::{GrantedView, RefusedView};
use std::time::Duration;
use tokio::{io::AsyncWriteExt, time::sleep};

const LOCATIONS: &str = "
    location /off { proxy_next_upstream off; proxy_pass http://app; }
    location /error { proxy_next_upstream error; proxy_pass http://app; }
    location /twice { proxy_next_upstream error http_503 non_idempotent; proxy_pass http://app; }
    location /one { proxy_next_upstream_tries 1; proxy_pass http://app; }
    location /moment { proxy_next_upstream_timeout 50ms; proxy_pass http://app; }
    location /unbuffered { proxy_request_buffering off; proxy_pass http://app; }";

/// The same with and without what we add: there are other peers to go to.
#[tokio::test]
async fn with_several_peers_it_is_as_in_nginx_alone() -> Result<()> {
    for version in VERSIONS {
        for lines in ["", "handoff_retry off;"] {
            let stage = Stage::new(version, 3, lines, LOCATIONS).await?;
            let answered = Outcome::answered;
            // With `off` nobody looks at an answer that is passed on.
            let looks = |word| if lines.is_empty() { word } else { "-" };
            for (what, ask, outcome) in [
                ("nothing happens", Ask::get(""), answered(200, 1, "-")),
                ("one breaks", Ask::get("").dies("1"), answered(200, 2, "next")),
                ("two refuse", Ask::get("").refused("503", "2"), answered(200, 3, "next")),
                ("an order is refused", Ask::post("").refused("503", "1"), answered(503, 1, looks("sent"))),
                ("an order breaks", Ask::post("").dies("1"), Outcome::failed(502, 1, "sent")),
                ("it may be repeated", Ask::post("/twice").dies("1"), answered(200, 2, "next")),
                ("off", Ask::get("/off").dies("1"), Outcome::failed(502, 1, "off")),
                ("not named", Ask::get("/error").refused("503", "1"), answered(503, 1, "-")),
                ("one try", Ask::get("/one").dies("1"), Outcome::failed(502, 1, "tries")),
                ("one try, refused", Ask::get("/one").refused("503", "1"), answered(503, 1, looks("tries"))),
            ] {
                stage.meets(what, ask, outcome).await?;
            }
            let retry = stage.retry().await?;
            let granted = GrantedView { next: 4, ..GrantedView::default() };
            let more = u64::from(lines.is_empty());
            let refused = RefusedView { off: 1, sent: 1 + more, tries: 1 + more, ..RefusedView::default() };
            ensure!((&retry.granted, &retry.refused) == (&granted, &refused), "{retry:?}");
            ensure!(retry.allowed == if lines.is_empty() { 10 } else { 0 }, "{retry:?}");
            stage.end().await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn what_is_late_is_not_repeated() -> Result<()> {
    for version in VERSIONS {
        let stage = Stage::new(version, 3, "", LOCATIONS).await?;
        let visit = stage.begin(Ask::get("/moment").held())?;
        stage.farm.holds_so_many(1).await?;
        sleep(Duration::from_millis(60)).await;
        for peer in stage.farm.peers() {
            stage.farm.disconnect(peer).await?;
        }
        ensure!(stage.end_of(visit).await? == Outcome::failed(502, 1, "timeout"));
        stage.end().await?;
    }
    Ok(())
}

/// Half of the body is with a peer that breaks, and nobody has kept it.
#[tokio::test]
async fn a_body_that_was_passed_on_is_not_repeated() -> Result<()> {
    for version in VERSIONS {
        let stage = Stage::new(version, 3, "", LOCATIONS).await?;
        let mut visitor = stage.door().open().await?;
        let head = "PUT /unbuffered/x HTTP/1.1\r\nHost: x\r\nX-Die: *\r\nContent-Length: 10\r\n\r\nhalf.";
        visitor.write_all(head.as_bytes()).await?;
        let line = stage.logged("/unbuffered/x").await.context("it goes on")?;
        ensure!(line == "1 unbuffered" && stage.arrived("/unbuffered/x").await? == 1, "{line}");
        drop(visitor);
        stage.end().await?;
    }
    Ok(())
}

/// One address, and nothing that we add.
#[tokio::test]
async fn off_is_nginx_alone() -> Result<()> {
    for version in VERSIONS {
        let stage = Stage::new(version, 1, "handoff_retry off;", "").await?;
        stage.are_shared().await?;
        let failed = Outcome::failed(502, 1, "tries");
        stage.meets("another worker", Ask::get("").dies("1"), failed).await?;
        for later in ["0", "1"] {
            let ask = Ask::get("").refused("503", "1").later(later);
            stage.meets("come again", ask, Outcome::answered(503, 1, "-")).await?;
        }
        stage.says("up", &stage.farm.peers()).await?;
        stage.meets("nobody knows", Ask::get("").dies("1"), Outcome::failed(502, 1, "tries")).await?;
        stage.end().await?;
    }
    Ok(())
}
