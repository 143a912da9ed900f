//! The access log of nginx-conf/access-log.conf: each line is JSON, and says what became of the request.

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use e2e::{
    backend::Backend,
    place,
    site::{PATIENCE, Site, VERSIONS},
    wait,
};
use handoff_wire::UpstreamView;
use hyper::Request;
use serde_json::Value;
use std::{fs, time::Duration};
use tokio::{spawn, time::sleep};

const LOG: &str = "access_log /var/log/nginx/access.json handoff_json;";

/// The file as it is; but its log is written for one server, since the stage has logs off for all.
fn conf() -> Result<String> {
    let text = fs::read_to_string(place::root().join("nginx-conf/access-log.conf"))?;
    ensure!(text.contains(LOG), "{text}");
    Ok(text.replace(LOG, ""))
}

async fn lines_of(site: &Site, wanted: usize) -> Result<Vec<Value>> {
    let text = wait::until("every request to be logged", PATIENCE, async || {
        let text = fs::read_to_string(site.file("access.json")).ok()?;
        (text.lines().count() == wanted).then_some(text)
    });
    let text = text.await?;
    text.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
}

#[tokio::test]
async fn each_line_is_json_and_tells_what_became_of_the_request() -> Result<()> {
    let backend = Backend::start(2).await?;
    let (one, two) = (backend.peer(0), backend.peer(1));
    for version in VERSIONS {
        let mut site = Site::new(version).await?;
        site.write(&format!(
            "{}\nupstream app {{ zone app 256k; {} handoff; }}\n\
             server {{ listen 127.0.0.1:{}; {} location / {{ proxy_pass http://app; }} location /none {{ return 204; }} }}\n{}",
            conf()?,
            backend.servers(),
            site.port(),
            LOG.replace("/var/log/nginx/access.json", &site.file("access.json").display().to_string()),
            site.api("write=on"),
        ))?;
        site.start().await?;
        // Whatever a visitor writes stays in its string.
        let request =
            Request::get("/?q=%22,%22x").header("host", "localhost").header("user-agent", "a\"b\\c\td");
        site.visitors().send(request.body(Bytes::new())?).await?;
        site.visitors().get("/none").await?;
        // Both are asked first, one after the other; one of them hangs up.
        let port = one.rsplit(':').next().context("a port")?;
        for _ in 0..2 {
            ensure!(
                site.visitors().get(&format!("/hangup/{port}")).await?.status == 200,
                "it was not sent on"
            );
        }

        let lines = lines_of(&site, 4).await?;
        let [plain, none, last @ ..] = &lines[..] else { bail!("{lines:?}") };
        ensure!(plain["agent"] == "a\"b\\c\td" && plain["uri"] == "/?q=%22,%22x", "{plain}");
        ensure!(plain["handoff_tries"] == 1 && plain["handoff_held"] == 0.0, "{plain}");
        ensure!(plain["handoff_state"] == "up" && plain["handoff_retry"] == "", "{plain}");
        ensure!(plain["status"] == 200 && plain["method"] == "GET", "{plain}");
        ensure!(none["handoff_tries"] == Value::Null && none["handoff_held"] == Value::Null, "{none}");
        ensure!(none["handoff_state"] == "" && none["status"] == 204, "{none}");
        let tried = last.iter().find(|line| line["handoff_tries"] == 2).context("nobody was sent on")?;
        ensure!(
            tried["upstream_addr"] == format!("{one}, {two}") && tried["handoff_retry"] == "next",
            "{tried}"
        );

        // Somebody who waited, in seconds.
        site.control()
            .ask("PUT".parse()?, "/v1/pause", r#"{"owner":"operator","upstreams":["app"]}"#)
            .await?;
        let door = site.visitors();
        let waits = spawn(async move { door.get("/").await });
        wait::until("somebody to wait", PATIENCE, async || {
            let view: UpstreamView = site.read("/v1/upstreams/app").await.ok()?;
            view.queue.is_some_and(|queue| queue.held == 1).then_some(())
        })
        .await?;
        sleep(Duration::from_millis(50)).await;
        site.control()
            .ask("POST".parse()?, "/v1/resume", r#"{"owner":"operator","upstreams":["app"]}"#)
            .await?;
        waits.await??;
        let waited = lines_of(&site, 5).await?.pop().context("a line")?;
        ensure!(waited["handoff_held"].as_f64().is_some_and(|held| (0.05..10.0).contains(&held)), "{waited}");
        site.end().await?;
    }
    Ok(())
}
