//! The safe reload, as an operator types it: `handoff reload`.

use crate::{
    app,
    net::Realm,
    place::{self, Place},
    sidecar,
};
use anyhow::{Context, Result};
use serde::Deserialize;

/// How it ended, in its own words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reload {
    pub exit: i32,
    /// How many requests it cut.
    pub cut: usize,
    pub text: String,
}

const DONE: i32 = 0;
const DONE_BUT_CUT: i32 = 4;

/// The last of the lines that `--json` writes.
#[derive(Deserialize)]
struct End {
    cut: usize,
    text: String,
}

// === impl Reload ===

impl Reload {
    pub fn replaced_all(&self) -> bool {
        matches!(self.exit, DONE | DONE_BUT_CUT)
    }
}

/// Comes back when it ends, however it does.
pub async fn run(place: &Place, options: &[&str]) -> Result<Reload> {
    run_on(&Realm::default(), place, options).await
}

/// The same on another machine.
pub async fn run_on(realm: &Realm, place: &Place, options: &[&str]) -> Result<Reload> {
    let mut handoff = realm.clean(place::handoff()?);
    handoff.args(["reload", app::NAME, "--json"]).args(options).envs(sidecar::environment(place));
    let output = handoff.output().await.context("cannot run handoff")?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    let (said, complaint) = (text(&output.stdout), text(&output.stderr));
    let exit = output.status.code().with_context(|| format!("handoff reload: {}", output.status))?;
    // One that is refused has not begun.
    let end = end(&said).unwrap_or(End { cut: 0, text: complaint });
    Ok(Reload { exit, cut: end.cut, text: end.text })
}

fn end(said: &str) -> Option<End> {
    serde_json::from_str(said.lines().last()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_it_says_last_counts() {
        let said = "{\"at\":1,\"app\":\"myapp\",\"event\":\"begin\",\"workers\":[0]}\n\
            {\"at\":2,\"app\":\"myapp\",\"event\":\"end\",\"exit\":4,\"seconds\":2.5,\"replaced\":[0],\"cut\":3,\"text\":\"done\"}";
        let end = end(said).unwrap();
        assert_eq!((end.cut, end.text.as_str()), (3, "done"));
    }

    #[test]
    fn a_reload_that_never_began_has_no_end() {
        assert!(end("").is_none());
    }
}
