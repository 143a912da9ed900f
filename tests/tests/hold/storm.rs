//! Everything at once: marks that come and go, visitors of every kind, and some who leave. Whoever stays is answered, and in the
//! end nothing is left.

use crate::stage::Stage;
use anyhow::{Context, Result, ensure};
use e2e::{
    clock::Moment,
    door::{Door, Reply},
    site::{PATIENCE, VERSIONS},
    wait,
};
use handoff_wire::QueueView;
use hyper::Method;
use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};
use tokio::{
    io::AsyncWriteExt,
    task::JoinSet,
    time::{sleep, timeout},
};

const LASTS: Duration = Duration::from_secs(5);
const VISITORS: usize = 16;

const LINES: &str = "keepalive 4; handoff_queue 30 bytes=200k timeout=150ms;";

const LOCATIONS: &str = "client_max_body_size 0;
    location /off/ { proxy_next_upstream off; proxy_pass http://app/; }
    location /unbuffered/ { proxy_request_buffering off; proxy_pass http://app/; }
    location /patient/ { proxy_ignore_client_abort on; proxy_pass http://app/; }
    location /mirrored/ { mirror /mirror; proxy_pass http://app/; }
    location = /mirror { internal; proxy_pass http://app; }
    location /again/ { error_page 502 503 = @again; proxy_pass http://app/; }
    location @again { proxy_pass http://app; }
    location /page { ssi on; ssi_types text/plain; default_type text/plain;
        return 200 '<!--# include virtual=\"/1\" --><!--# include virtual=\"/2\" -->'; }";

const PATHS: [&str; 8] =
    ["/", "/off/x", "/unbuffered/x", "/patient/x", "/mirrored/x", "/again/x", "/page", "/slow"];

/// splitmix64: the same storm each time, as far as the visitors go.
fn chance(end: u64) -> u64 {
    static STATE: AtomicU64 = AtomicU64::new(7);
    let z = STATE.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ (z >> 31)) % end
}

fn pick<T: Copy>(from: &[T]) -> Result<T> {
    from.get(chance(from.len() as u64) as usize).copied().context("nothing to choose from")
}

async fn visit(door: Door) -> Result<Option<Reply>> {
    let path = pick(&PATHS)?;
    let method = if path == "/page" {
        Method::GET
    } else {
        pick(&[Method::GET, Method::POST, Method::PUT].each_ref())?.clone()
    };
    let body = if method == Method::GET { 0 } else { pick(&[0, 10, 30_000])? };
    if chance(4) > 0 {
        return Ok(Some(door.ask(method, path, vec![b'x'; body]).await?));
    }
    // This one leaves: in the middle of its body, or while it waits.
    let mut stream = door.open().await?;
    let head = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {body}\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(&vec![b'x'; pick(&[0, body / 2, body])?]).await?;
    sleep(Duration::from_millis(chance(300))).await;
    Ok(None)
}

async fn storm(stage: &Stage) -> Result<BTreeMap<u16, usize>> {
    let end = Moment::now() + LASTS;
    let mut visitors = JoinSet::new();
    for _ in 0..VISITORS {
        let door = stage.door();
        visitors.spawn(async move {
            let mut replies = Vec::new();
            while Moment::now() < end {
                replies.extend(timeout(PATIENCE, visit(door.clone())).await.context("a visit hangs")??);
            }
            anyhow::Ok(replies)
        });
    }
    while Moment::now() < end {
        let peers = stage.farm.peers();
        let (one, others) = peers.split_at(1);
        let some = pick(&[one, others, &peers, &peers])?;
        let state = pick(&["draining", "down", "checking", "trial", "up", "up", "up"])?;
        stage.says(state, pick(&["back", "back", "back", "gone"])?, some).await?;
        sleep(Duration::from_millis(chance(200))).await;
    }
    stage.comes_back().await?;
    let mut statuses = BTreeMap::new();
    while let Some(replies) = visitors.join_next().await {
        for reply in replies?? {
            *statuses.entry(reply.status).or_default() += 1;
        }
    }
    Ok(statuses)
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_storm_everybody_who_stays_is_answered() -> Result<()> {
    for version in VERSIONS {
        let stage = Stage::new(version, 3, LINES, LOCATIONS).await?;
        let statuses = storm(&stage).await?;
        eprintln!("{statuses:?}");
        ensure!(statuses.keys().all(|status| [200, 502, 503].contains(status)), "{statuses:?}");
        ensure!(statuses.get(&200) > Some(&100), "{statuses:?}");
        stage.holds(0).await?;
        for peer in stage.farm.peers() {
            stage.site.has_in_flight(peer, 0).await?;
        }
        wait::until("everything to be counted", PATIENCE, async || {
            let QueueView { bytes, resumed, timed_out, left, .. } = stage.queue().await.ok()?;
            (bytes == 0 && resumed > 0 && timed_out > 0 && left > 0).then_some(())
        })
        .await?;
        stage.end().await?;
    }
    Ok(())
}
