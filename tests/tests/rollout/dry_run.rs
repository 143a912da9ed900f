//! `--dry-run` finds out what would be done, or what forbids it, and does nothing.

use crate::stage::{Plan, Stage};
use anyhow::{Result, ensure};
use std::{collections::BTreeMap, fs, time::SystemTime};

/// All files of PM2's home but for its log and the sockets, and when they were written.
fn files(stage: &Stage) -> Result<BTreeMap<String, SystemTime>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(stage.site.file("pm2"))? {
        let entry = entry?;
        let meta = entry.metadata()?;
        if meta.is_file() {
            files.insert(entry.file_name().to_string_lossy().into_owned(), meta.modified()?);
        }
    }
    Ok(files)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_tells_all_and_changes_nothing() -> Result<()> {
    let stage = Plan::workers(3).set().await?;
    let file = stage.pm2.ecosystem().display().to_string();
    stage.pm2.run(&["stop", "1"]).await?;
    let before = (stage.workers().await?, stage.site.events(0).await?, files(&stage)?);
    for target in [vec!["shop"], vec!["shop:2"], vec!["all"], vec![&file], vec!["shop", "--update-env"]] {
        let (code, text) = stage.says(&[&["reload", "--dry-run"], target.as_slice()].concat()).await?;
        eprintln!("{target:?}: {text}");
        ensure!(code == Some(0), "{code:?} {text}");
        let lines: Vec<&str> = text.lines().collect();
        let drained = |worker: u16| {
            format!("shop:{worker} would be drained and replaced: {} in app", stage.address(worker))
        };
        let started =
            format!("shop:1 does not serve, and would be started anew: {} in app", stage.address(1));
        let all = [started, drained(0), drained(2)];
        let wanted = if target == ["shop:2"] { &all[2..] } else { &all[..] };
        ensure!(lines == wanted, "{text}, not {wanted:?}");
    }
    let (code, text) = stage.says(&["reload", "--dry-run", "shot"]).await?;
    ensure!(code == Some(6), "{code:?} {text}");
    let after = (stage.workers().await?, stage.site.events(0).await?, files(&stage)?);
    ensure!(before == after, "{before:?} became {after:?}");
    stage.end().await
}
