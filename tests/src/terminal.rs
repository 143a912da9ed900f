//! A terminal of a given size, in which a program runs: tmux, on a socket of its own.

use crate::{command, place::Place, wait};
use anyhow::{Context, Result};
use std::{ffi::OsString, fs, path::PathBuf, process::Command, time::Duration};

const PATIENCE: Duration = Duration::from_secs(20);

/// Ends with what runs in it when it is dropped.
#[derive(Debug)]
pub struct Terminal {
    socket: PathBuf,
    bytes: PathBuf,
}

// === impl Terminal ===

impl Terminal {
    /// Runs a command that the shell understands.
    pub async fn run(
        place: &Place,
        name: &str,
        shell: &str,
        environment: &[(&'static str, OsString)],
        (columns, rows): (u16, u16),
    ) -> Result<Self> {
        let terminal =
            Self { socket: place.file(&format!("{name}.tmux")), bytes: place.file(&format!("{name}.bytes")) };
        fs::write(&terminal.bytes, "")?;
        let mut tmux = command::clean("tmux");
        tmux.envs(environment.iter().cloned()).env("TERM", "xterm-256color").env("LANG", "C.UTF-8");
        tmux.args(["-f", "/dev/null", "-u", "-S"]).arg(&terminal.socket);
        tmux.args(["new-session", "-d", "-x", &columns.to_string(), "-y", &rows.to_string()]);
        // It begins when every byte of it is written down.
        // What the program shows last is there when it was interrupted, too.
        tmux.arg(format!("trap : INT; read -r go; {shell}; read -r end"));
        command::succeed(&mut tmux).await?;
        terminal.tmux(&["pipe-pane", "-o", &format!("cat >> {}", terminal.bytes.display())]).await?;
        terminal.tmux(&["send-keys", "Enter"]).await?;
        Ok(terminal)
    }

    /// What it shows, without colours.
    pub async fn shows(&self) -> Result<String> {
        self.tmux(&["capture-pane", "-p"]).await
    }

    /// With what colours it.
    pub async fn shows_in_colour(&self) -> Result<String> {
        self.tmux(&["capture-pane", "-p", "-e"]).await
    }

    /// All that the program has written.
    pub fn bytes(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&fs::read(&self.bytes)?).into_owned())
    }

    pub async fn resize(&self, columns: u16, rows: u16) -> Result<()> {
        self.tmux(&["resize-window", "-x", &columns.to_string(), "-y", &rows.to_string()]).await.map(drop)
    }

    pub async fn press(&self, key: &str) -> Result<()> {
        self.tmux(&["send-keys", key]).await.map(drop)
    }

    /// Waits until it shows something.
    pub async fn until(&self, what: &str, is: impl Fn(&str) -> bool) -> Result<String> {
        let mut last = String::new();
        let shown = wait::until(what, PATIENCE, async || {
            last = self.shows().await.ok()?;
            is(&last).then(|| last.clone())
        });
        shown.await.with_context(|| format!("it shows:\n{last}"))
    }

    async fn tmux(&self, arguments: &[&str]) -> Result<String> {
        command::succeed(command::clean("tmux").arg("-S").arg(&self.socket).args(arguments)).await
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It may have ended by itself.
        _ = Command::new("tmux").arg("-S").arg(&self.socket).arg("kill-server").output();
    }
}
