//! Commands that must succeed, and that see nothing of our environment but what they need.

use anyhow::{Context, Result, bail};
use std::{env, process::Stdio};
use tokio::process::Command;

/// PM2 hands its whole environment to the apps, and Cargo's and the shell's have no business there.
pub fn clean(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env_clear().stdin(Stdio::null()).kill_on_drop(true);
    for name in ["PATH", "HOME", "LANG", "TMPDIR"] {
        if let Some(value) = env::var_os(name) {
            command.env(name, value);
        }
    }
    command
}

/// Its output, or an error that shows all it wrote.
pub async fn succeed(command: &mut Command) -> Result<String> {
    let name = format!("{:?}", command.as_std());
    let output = command.output().await.with_context(|| format!("cannot run {name}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if !output.status.success() {
        bail!("{name}: {}\n{}{}", output.status, text(&output.stdout), text(&output.stderr));
    }
    Ok(text(&output.stdout))
}
