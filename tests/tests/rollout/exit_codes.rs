//! What is refused, by its exit code, with the reason and the mend in the text. Nothing is done then.

use crate::stage::{self, Plan, Setup, Stage};
use anyhow::{Context, Result, ensure};
use e2e::{ports, site::Site};
use serde_json::{Value, json};
use std::{fs, os::unix::fs::symlink};

/// Beside the shop: an app with one worker, for which nobody waits and whose address has a way past Handoff too; one in cluster mode; one that
/// listens where no upstream looks.
fn neighbours(site: &Site, setup: &mut Setup) -> Result<()> {
    let [solo, pair, hidden] = [ports::row(1)?, ports::row(1)?, ports::row(1)?];
    let one = Plan::workers(1);
    let mut cluster = stage::app(site, "pair", Plan::workers(2), json!({ "PORT": pair }))?;
    cluster.as_object_mut().context("an object")?.insert("exec_mode".to_owned(), "cluster".into());
    let apps = setup.ecosystem.pointer_mut("/apps").and_then(Value::as_array_mut).context("apps")?;
    apps.push(stage::app(site, "solo", one, json!({ "PORT": solo }))?);
    apps.push(cluster);
    apps.push(stage::app(site, "hidden", one, json!({ "PORT": hidden }))?);
    setup.http += &format!(
        "\nupstream solo {{ zone solo 256k; server 127.0.0.1:{solo}; handoff; handoff_queue off; }}
        upstream past {{ server 127.0.0.1:{solo}; }}
        upstream pair {{ zone pair 256k; server 127.0.0.1:{pair}; handoff; }}
        server {{ listen unix:{}; location / {{ handoff_api; }} }}",
        site.file("read.sock").display()
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_done_safely_is_refused_with_its_reason() -> Result<()> {
    let stage = Stage::set(Plan::workers(2), neighbours).await?;
    let before = stage.all_workers().await?;
    let solo = before.values().find(|worker| worker.name == "solo").and_then(|worker| worker.port);
    let solo = format!("127.0.0.1:{}", solo.context("a port")?);
    let (elsewhere, linked) = (stage.site.file("elsewhere"), stage.site.file("linked"));
    fs::create_dir(&elsewhere)?;
    fs::create_dir(&linked)?;
    symlink(stage.site.file("pm2/rpc.sock"), linked.join("rpc.sock"))?;
    let path = |name: &str| stage.site.file(name).display().to_string();
    let (elsewhere, linked) = (path("elsewhere"), path("linked"));
    let (nowhere, read) = (format!("unix:{}", path("no.sock")), format!("unix:{}", path("read.sock")));

    let refusals: [(&[&str], i32, &[&str]); 13] = [
        (&["solo"], 1, &["nobody but solo:2 serves the upstream \"solo\"", "--force"]),
        (&["solo", "--force"], 1, &["requests reach solo:2 past Handoff", &solo, "past", "--uncovered-ok"]),
        (&["pair"], 1, &["pair counts PORT up", "increment_var", "fork mode"]),
        (&["hidden"], 1, &["hidden:5 listens on", "no upstream with `handoff`", "--uncovered-ok"]),
        (&[], 2, &["TARGET"]),
        (&["shop", "--on-deadline", "perhaps"], 2, &["stop, wait, cut"]),
        (&["shop", "--only", "shop"], 2, &["--only chooses from an ecosystem file"]),
        (&["shop", "--health", "health"], 2, &["begins with a slash"]),
        (&["--pm2-home", &elsewhere, "shop"], 5, &[&elsewhere]),
        (&["shot"], 6, &["PM2 knows no shot", "hidden, pair, shop, solo"]),
        (&["--pm2-home", &linked, "shop"], 7, &[&linked, "link"]),
        (&["--control", &read, "shop"], 7, &["write"]),
        (&["--control", &nowhere, "shop"], 9, &["no.sock"]),
    ];
    for (arguments, code, words) in refusals {
        let ended = stage.reload(arguments).await?;
        eprintln!("handoff reload {}: {code}, {}", arguments.join(" "), ended.text());
        ended.is(code, words).with_context(|| arguments.join(" "))?;
        ensure!(stage.all_workers().await? == before, "{arguments:?} did something");
        ensure!(stage.marked().await?.is_empty(), "{arguments:?} left a mark");
    }

    stage.reload(&["solo", "--force", "--uncovered-ok"]).await?.is(0, &["all 1 worker of solo are new"])?;
    stage.reload(&["hidden", "--uncovered-ok"]).await?.is(0, &["all 1 worker of hidden are new"])?;
    stage.kept(&before, &[0, 1]).await?;
    stage.is_as_before(&before).await?;
    stage.end().await
}
