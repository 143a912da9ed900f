//! Other ways to deploy, and what is refused.

use crate::stage::{APP, QUICK, Stage, git};
use anyhow::{Context, Result, ensure};
use e2e::{app::Mode, command, pm2::NEWEST};
use serde_json::{Value, json};
use std::fs;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "what `make deploys` runs"]
async fn two_at_once_are_one_and_whoever_has_it_is_named() -> Result<()> {
    let stage = Stage::serving("1.22.1", Mode::Fork, NEWEST).await?;
    stage.commit("good").await?;
    let mut first = stage.begin(&[])?;
    first.reaches("measure").await?;
    let (code, text) = stage.says(&[&["deploy", APP], &QUICK[..]].concat()).await?;
    ensure!(
        code == Some(14) && text.contains("by tester since") && text.contains("(pid "),
        "{code:?} {text}"
    );
    first.reaches("bake").await?;
    // Nor does a reload come in between, ours or PM2's.
    let (code, text) = stage.says(&["reload", APP]).await?;
    ensure!(code == Some(14) && text.contains("under way"), "{code:?} {text}");
    first.ended().await?.is(0, "done", &[])?;
    stage.end().await
}

/// What that costs users is PM2's doing. That no mix is left is ours.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "what `make deploys` runs"]
async fn a_restart_by_somebody_else_leaves_no_mix() -> Result<()> {
    let stage = Stage::serving("1.22.1", Mode::Fork, NEWEST).await?;
    let old = stage.current()?;
    // A restart of the very worker that is in hand looks like a crash.
    for (when, codes) in [("reload", [10, 15]), ("bake", [10, 10])] {
        stage.commit("good").await?;
        let mut deploy = stage.begin(&["--bake", "30s"])?;
        match when {
            "reload" => deploy.reaches_step(2, "draining").await?,
            _ => deploy.reaches(when).await?,
        }
        let (restarted, ended) = tokio::join!(stage.pm2.run(&["restart", APP]), deploy.ended());
        restarted?;
        let ended = ended?;
        let code =
            ended.code.filter(|code| codes.contains(code)).or(codes.last().copied()).context("a code")?;
        ended.is(code, "rolled-back", &["the old release"]).context(when)?;
        stage.runs(&old).await.context(when)?;
    }
    stage.end().await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "what `make deploys` runs"]
async fn somebody_is_told_and_whatever_comes_of_that_changes_nothing() -> Result<()> {
    let stage = Stage::serving("1.22.1", Mode::Fork, NEWEST).await?;
    let file = |name: &str| stage.site.file(name).display().to_string();
    stage.configure(&format!(
        "on_start = \"cat > {}\"\non_success = \"cat > {}; exit 1\"\non_failure = \"(cat; env) > {}\"",
        file("started"),
        file("done"),
        file("failed")
    ))?;
    stage.commit("good").await?;
    stage.deploy(&[]).await?.is(0, "done", &[])?;
    for (name, exit) in [("started", 0), ("done", 0)] {
        let told: Value = serde_json::from_str(&fs::read_to_string(file(name))?)?;
        ensure!(told.get("exit") == Some(&json!(exit)) && told.get("release").is_some(), "{told}");
    }
    stage.commit("crash").await?;
    stage.deploy(&[]).await?.is(10, "rolled-back", &[])?;
    let told = fs::read_to_string(file("failed"))?;
    ensure!(told.contains("\"outcome\":\"rolled-back\"") && told.contains("HANDOFF_EXIT=10"), "{told}");
    ensure!(!told.contains(crate::stage::SECRET), "a secret is told");
    stage.end().await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "what `make deploys` runs"]
async fn a_directory_and_a_tarball_are_releases_too() -> Result<()> {
    let stage = Stage::serving("1.22.1", Mode::Fork, NEWEST).await?;
    let (directory, ball) = (stage.site.file("files"), stage.site.file("files.tar.gz"));
    fs::create_dir(&directory)?;
    for name in ["server.js", "release", "install.sh", "build.sh", "ecosystem.config.js"] {
        fs::copy(stage.source().join(name), directory.join(name))?;
    }
    let mut tar = command::clean("tar");
    command::succeed(tar.arg("-czf").arg(&ball).arg("-C").arg(&directory).arg(".")).await?;
    let visits = stage.visited()?;
    for from in [&directory, &ball] {
        let before = stage.current()?;
        stage.deploy(&["--from", &from.display().to_string()]).await?.is(0, "done", &["-files"])?;
        ensure!(stage.current()? != before, "nothing is new");
        stage.runs(&stage.current()?).await?;
    }
    // Five have been, three are kept.
    stage.deploy(&["--from", &ball.display().to_string()]).await?.is(0, "done", &[])?;
    stage.deploy(&["--from", &ball.display().to_string()]).await?.is(0, "done", &[])?;
    ensure!(stage.releases()?.len() == 3, "{:?}", stage.releases()?);
    let first = stage.releases()?.first().cloned().context("a release")?;
    stage.deploy(&["--release", &first]).await?.is(0, "done", &[&first])?;
    stage.runs(&first).await?;
    visits.end_well().await?;
    stage.end().await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "what `make deploys` runs"]
async fn an_app_that_would_not_notice_is_refused_with_the_mend() -> Result<()> {
    let stage = Stage::set("1.22.1", Mode::Fork, NEWEST).await?;
    stage.commit("good").await?;
    // As PM2 keeps it when it is started in a directory: the link is followed, once and for all.
    let mut ecosystem = stage.ecosystem();
    let app = ecosystem.pointer_mut("/apps/0").and_then(Value::as_object_mut).context("an app")?;
    app.insert("cwd".to_owned(), json!(stage.source()));
    app.insert("script".to_owned(), json!("server.js"));
    let file = stage.site.file("elsewhere.json");
    fs::write(&file, ecosystem.to_string())?;
    stage.pm2.run(&["start", &file.display().to_string()]).await?;
    let (code, text) = stage.says(&[&["deploy", APP], &QUICK[..]].concat()).await?;
    let cwd = format!("Set cwd: '{}'", stage.path().join("current").display());
    ensure!(code == Some(1) && text.contains(&cwd) && text.contains("pm2 delete shop"), "{code:?} {text}");
    ensure!(!stage.path().join("releases").exists(), "something was made");
    stage.end().await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "what `make deploys` runs"]
async fn in_place_a_working_tree_goes_forth_and_back() -> Result<()> {
    let stage = Stage::set("1.22.1", Mode::Fork, NEWEST).await?;
    let first = stage.commit("good").await?;
    let tree = stage.site.file("tree");
    git(&stage.source(), &["clone", "--quiet", ".", &tree.display().to_string()]).await?;
    let text = format!(
        "[deploy.shop]\npath = {tree:?}\nin_place = true\nref = \"main\"\nhealth = \"/health\"\n\
                        bake = \"4s\"\ninstall = \"sh install.sh\"\nbuild = \"sh build.sh\"\n"
    );
    fs::write(stage.config(), text)?;
    let mut ecosystem = stage.ecosystem();
    let app = ecosystem.pointer_mut("/apps/0").and_then(Value::as_object_mut).context("an app")?;
    app.insert("cwd".to_owned(), json!(tree));
    let file = stage.site.file("in-place.json");
    fs::write(&file, ecosystem.to_string())?;
    fs::create_dir(tree.join("dist"))?;
    fs::copy(tree.join("server.js"), tree.join("dist/server.js"))?;
    stage.pm2.run(&["start", &file.display().to_string()]).await?;
    stage.is_whole().await?;
    let head = async || git(&tree, &["rev-parse", "HEAD"]).await;

    let visits = stage.visited()?;
    let second = stage.commit("good, pale 10").await?;
    stage.deploy(&[]).await?.is(0, "done", &["on every worker"])?;
    ensure!(head().await? == second && first != second, "{}", head().await?);

    // Its build fails, and what was built before is built again.
    let build = fs::read(stage.source().join("build.sh"))?;
    fs::write(stage.source().join("build.sh"), "echo broken > dist/server.js; exit 1\n")?;
    fs::write(stage.source().join("added"), "by the bad release")?;
    stage.commit_all().await?;
    stage.deploy(&[]).await?.is(16, "rolled-back", &["sh build.sh", "No worker had left the old release"])?;
    let is_built = fs::read(tree.join("dist/server.js"))? == fs::read(tree.join("server.js"))?;
    ensure!(head().await? == second && is_built && !tree.join("added").exists(), "{}", head().await?);

    fs::write(stage.source().join("build.sh"), build)?;
    let third = stage.commit("crash, only 2").await?;
    stage.deploy(&[]).await?.is(10, "rolled-back", &["3 workers were moved back"])?;
    ensure!(head().await? == second && third != second, "{}", head().await?);
    ensure!(git(&tree, &["status", "--porcelain", "--untracked-files=no"]).await?.is_empty(), "it is dirty");
    stage.is_whole().await?;

    // What no commit has would be lost.
    fs::write(tree.join("release"), "mended by hand")?;
    stage.deploy(&[]).await?.is(16, "failed", &["changes that no commit has"])?;
    git(&tree, &["checkout", "--quiet", "--", "."]).await?;
    visits.end_well().await?;
    stage.end().await
}
