//! PM2 sends the whole environment of every app with each word. None of it comes out anywhere.

mod house;

use anyhow::{Result, ensure};
use house::House;
use std::{fs, path::Path};

/// Nobody says this by chance.
const CANARY: &str = "yellow-4711-canary";

/// Every way to ask.
const COMMANDS: [&[&str]; 6] = [
    &["status"],
    &["status", "--json"],
    &["doctor", "--json"],
    &["reload", "myapp", "--json", "--drain-timeout", "5s"],
    &["reload", "nobody"],
    &["events", "--json"],
];

const PATHS: [&str; 6] = ["/v1", "/v1/upstreams", "/v1/events", "/v1/timeline", "/metrics", "/"];

#[tokio::test(flavor = "multi_thread")]
async fn an_apps_environment_is_told_nowhere() -> Result<()> {
    let mut house = House::new(&[]).await?;
    house.start_sidecar_with(&["--log", "trace"]).await?;
    house.peers("myapp", 2).await?;
    // PM2 hands on whatever the shell of who typed this had.
    house.pm2.run_with(&[("DB_PASSWORD", CANARY)], &["reload", "myapp", "--update-env"]).await?;
    ensure!(house.pm2.run(&["jlist"]).await?.contains(CANARY), "PM2 does not know it either");
    for arguments in COMMANDS {
        let ended = house.handoff(arguments).await?;
        ensure!(!format!("{ended:?}").contains(CANARY), "`handoff {}` tells it", arguments.join(" "));
        ensure!(
            !ended.stdout.is_empty() || !ended.stderr.is_empty() || ended.code == Some(0),
            "{arguments:?} {ended:?}"
        );
    }
    for path in PATHS {
        let reply = house.site.control().get(path).await?;
        ensure!(reply.status == 200 && !reply.text().contains(CANARY), "{path} tells it");
    }
    let (mut read, mut size) = (0, 0);
    search(house.site.place().path(), &mut |path, bytes| {
        read += 1;
        size += bytes.len();
        ensure!(
            !bytes.windows(CANARY.len()).any(|window| window == CANARY.as_bytes()),
            "{} tells it",
            path.display()
        );
        Ok(())
    })?;
    ensure!(read >= 3 && size > 1000, "only {read} files of {size} bytes were looked at");
    Ok(())
}

/// Every file of ours and of nginx: what PM2 and its apps write is theirs.
fn search(folder: &Path, look: &mut dyn FnMut(&Path, &[u8]) -> Result<()>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() && entry.file_name() != "pm2" {
            search(&entry.path(), look)?;
        } else if kind.is_file() {
            look(&entry.path(), &fs::read(entry.path())?)?;
        }
    }
    Ok(())
}
