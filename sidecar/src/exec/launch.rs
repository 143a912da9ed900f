//! How the child begins: as this very program, which becomes the command.
//!
//! Between fork and exec only code of a kind may run that we do not write. So what must be done there is done after it, by
//! `handoff launch`, in the process that will be the child: it asks to be told to end should its supervisor be killed, puts
//! its own number where the service manager wrote the supervisor's, and becomes the command. Signals that were caught are
//! as they are by default again, and every descriptor that was inherited (systemd's sockets, Node's channel) stays.

use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};
use std::{
    env,
    ffi::{OsStr, OsString},
    io,
    os::unix::process::CommandExt as _,
    process::Command,
};

/// Whoever reads these compares them with its own number.
const OWN_NUMBERS: [&str; 3] = ["LISTEN_PID", "WATCHDOG_PID", "SYSTEMD_EXEC_PID"];
/// Should we be killed, our child is told to end as it would be by most service managers: nobody else would tell it.
const ORPHANED: Signal = Signal::TERM;

/// Why there is no command to be; its exit code is what a shell's would be.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    #[error("there is no command to run: handoff exec -- COMMAND…")]
    Nothing,
    #[error("cannot run {}: {error}", command.display())]
    Run { command: OsString, error: io::Error },
    #[error("handoff exec has ended before its command began")]
    Orphan,
}

/// Starts this program anew, to become the command; in a process group of its own, so that what a terminal sends to ours
/// (Ctrl-C) comes to the supervisor alone.
pub fn begin(command: &[OsString], environment: &[(&str, OsString)]) -> io::Result<Pid> {
    let own = std::process::id();
    let child = Command::new("/proc/self/exe")
        .arg("launch")
        .arg(own.to_string())
        .arg("--")
        .args(command)
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .process_group(0)
        .spawn()?;
    i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or_else(|| io::Error::other("no number"))
}

/// Becomes the command. Comes back only if it cannot.
pub fn become_command(supervisor: u32, command: &[OsString]) -> LaunchError {
    let Some((program, arguments)) = command.split_first() else { return LaunchError::Nothing };
    // A kernel without it has no orphan told.
    _ = set_parent_process_death_signal(Some(ORPHANED));
    // It may have ended before we asked.
    if getppid().is_none_or(|parent| parent.as_raw_nonzero().get().unsigned_abs() != supervisor) {
        return LaunchError::Orphan;
    }
    let own = std::process::id().to_string();
    let theirs = supervisor.to_string();
    let is_theirs = |name: &&str| env::var_os(name).is_some_and(|value| value == OsStr::new(&theirs));
    let numbers = OWN_NUMBERS.into_iter().filter(is_theirs).map(|name| (name, &own));
    let error = Command::new(program).args(arguments).envs(numbers).exec();
    LaunchError::Run { command: program.clone(), error }
}

// === impl LaunchError ===

impl LaunchError {
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Run { error, .. } if error.kind() == io::ErrorKind::NotFound => 127,
            _ => 126,
        }
    }
}
