//! Commands of the user: what installs and builds a release, and who is told of it.
//!
//! Each is run by `sh -c` in a group of processes of its own, so that it ends as a whole, with none of our environment but
//! what every program needs, and what it is told about the deploy.

use rustix::process::{Pid, Signal, kill_process_group};
use std::{
    collections::VecDeque,
    env,
    ffi::OsString,
    fs::File,
    io::{self, BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};
use tokio::{
    io::AsyncWriteExt as _,
    process::{Child, Command},
    time,
};

#[derive(Clone, Debug)]
pub struct Hook<'a> {
    pub command: &'a str,
    pub directory: &'a Path,
    /// What it is told.
    pub told: &'a [(&'static str, OsString)],
    pub timeout: Duration,
}

#[derive(Debug, thiserror::Error)]
pub enum HookError {
    #[error("`{command}` ended with {status}")]
    Failed { command: String, status: ExitStatus },
    #[error("`{command}` took longer than {timeout:?}")]
    TimedOut { command: String, timeout: Duration },
    #[error("`{command}` cannot be run: {error}")]
    Io { command: String, error: io::Error },
}

/// What a program needs to find its way: a home for its cache, a language, the agent that has the keys.
const NEEDED: [&str; 13] = [
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "LANG",
    "LC_ALL",
    "TZ",
    "TMPDIR",
    "SSH_AUTH_SOCK",
    "NVM_DIR",
    "VOLTA_HOME",
    "NODE_EXTRA_CA_CERTS",
];
/// From the first signal to the second.
const GRACE: Duration = Duration::from_secs(3);
const SHOWN: usize = 15;

// === impl Hook ===

impl Hook<'_> {
    /// Runs it to its end. All that it writes goes into this file. Dropped, it is killed.
    pub async fn run(&self, log: &Path) -> Result<(), HookError> {
        let io = |error| HookError::Io { command: self.command.to_owned(), error };
        let mut file = File::options().create(true).append(true).open(log).map_err(io)?;
        writeln!(file, "$ {}", self.command).map_err(io)?;
        let mut command = self.command();
        command.stdin(Stdio::null()).stdout(file.try_clone().map_err(io)?).stderr(file);
        let child = command.spawn().map_err(io)?;
        self.ended(&mut Group(child)).await
    }

    /// Runs it with this on its standard input. What it writes is nobody's.
    pub async fn tell(&self, text: &str) -> Result<(), HookError> {
        let io = |error| HookError::Io { command: self.command.to_owned(), error };
        let mut command = self.command();
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut group = Group(command.spawn().map_err(io)?);
        let stdin = group.0.stdin.take();
        let written = async {
            if let Some(mut stdin) = stdin {
                // It need not read.
                _ = stdin.write_all(text.as_bytes()).await;
            }
        };
        // One that never reads must not hold us up past its time.
        let (_, ended) = tokio::join!(time::timeout(self.timeout, written), self.ended(&mut group));
        ended
    }

    fn command(&self) -> Command {
        let mut command = Command::new("sh");
        command.arg("-c").arg(self.command).current_dir(self.directory).env_clear();
        command.envs(NEEDED.iter().filter_map(|name| Some((name, env::var_os(name)?))));
        command.env("PWD", self.directory).envs(self.told.iter().map(|(name, value)| (name, value)));
        command.process_group(0).kill_on_drop(true);
        command
    }

    async fn ended(&self, group: &mut Group) -> Result<(), HookError> {
        let command = self.command.to_owned();
        match time::timeout(self.timeout, group.0.wait()).await {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(status)) => Err(HookError::Failed { command, status }),
            Ok(Err(error)) => Err(HookError::Io { command, error }),
            Err(_) => {
                group.signal(Signal::TERM);
                _ = time::timeout(GRACE, group.0.wait()).await;
                Err(HookError::TimedOut { command, timeout: self.timeout })
            }
        }
    }
}

/// A command and all that it started, ended with this.
struct Group(Child);

impl Group {
    fn signal(&self, signal: Signal) {
        let pid = self.0.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        _ = pid.map(|pid| kill_process_group(pid, signal));
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Known only while it has not been waited for: its number may be another one's by then.
        self.signal(Signal::KILL);
    }
}

/// The last lines of a log.
pub fn last_lines(log: &Path) -> Vec<String> {
    let Ok(file) = File::open(log) else { return Vec::new() };
    let mut last = VecDeque::with_capacity(SHOWN);
    for line in BufReader::new(file).split(b'\n').map_while(Result::ok) {
        if last.len() == SHOWN {
            last.pop_front();
        }
        last.push_back(String::from_utf8_lossy(&line).into_owned());
    }
    last.into()
}

/// Where the output of a release's hooks is.
pub fn log(state: &Path, release: &str) -> PathBuf {
    state.join("logs").join(format!("{release}.log"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook<'a>(command: &'a str, directory: &'a Path, told: &'a [(&'static str, OsString)]) -> Hook<'a> {
        Hook { command, directory, told, timeout: Duration::from_secs(5) }
    }

    #[tokio::test]
    async fn its_output_is_kept_and_its_environment_is_what_it_is_told() {
        let dir = crate::scratch::Dir::new();
        let (log, told) = (dir.join("log"), [("HANDOFF_APP", OsString::from("shop"))]);
        let command = "echo $HANDOFF_APP; env | cut -d= -f1; echo oh >&2; exit 3";
        let error = hook(command, &dir, &told).run(&log).await.unwrap_err();
        assert!(error.to_string().contains("exit status: 3"), "{error}");
        let lines = last_lines(&log);
        assert!(lines.contains(&"shop".to_owned()) && lines.contains(&"oh".to_owned()), "{lines:?}");
        assert!(!lines.contains(&"CARGO_MANIFEST_DIR".to_owned()), "{lines:?}");
    }

    #[tokio::test]
    async fn one_that_takes_too_long_ends_with_all_that_it_started() {
        let dir = crate::scratch::Dir::new();
        let hook =
            Hook { timeout: Duration::from_millis(200), ..hook("sleep 60 & echo $! > pid; wait", &dir, &[]) };
        assert!(matches!(hook.run(&dir.join("log")).await, Err(HookError::TimedOut { .. })));
        let pid: u32 = std::fs::read_to_string(dir.join("pid")).unwrap().trim().parse().unwrap();
        let is_gone = || crate::host::Process::find(&crate::host::Proc::default(), pid).is_none();
        for _ in 0..100 {
            if is_gone() {
                return;
            }
            time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{pid} lives on");
    }

    #[tokio::test]
    async fn who_is_told_need_not_listen() {
        let dir = crate::scratch::Dir::new();
        hook("true", &dir, &[]).tell(&"x".repeat(1 << 20)).await.unwrap();
        hook("cat > told", &dir, &[]).tell("{}").await.unwrap();
        assert_eq!(std::fs::read_to_string(dir.join("told")).unwrap(), "{}");
    }
}
