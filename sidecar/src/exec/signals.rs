//! What a signal means for the child: that it is to go, or something that it does where it stands.
//!
//! Some are asked to stop by it, everywhere (`TERM`, `INT`, `QUIT`). Any other is the child's own business, if it handles it:
//! gunicorn and puma replace their workers behind the same socket on `HUP` or `USR1`, and there is nothing to drain. If it
//! does not, the kernel would end it, and that is a stop, too. Which of them it handles the kernel says.

use crate::host::Proc;
use rustix::process::{Pid, Signal, kill_process};
use std::{fmt, io, str::FromStr};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// It will end: nginx is to know before.
    Stop,
    /// Something that it does where it stands.
    Word,
}

/// A signal by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Name(pub Signal);

const NAMES: [(&str, Signal); 12] = [
    ("HUP", Signal::HUP),
    ("INT", Signal::INT),
    ("QUIT", Signal::QUIT),
    ("USR1", Signal::USR1),
    ("USR2", Signal::USR2),
    ("ALRM", Signal::ALARM),
    ("TERM", Signal::TERM),
    ("CONT", Signal::CONT),
    ("TTIN", Signal::TTIN),
    ("TTOU", Signal::TTOU),
    ("WINCH", Signal::WINCH),
    ("PWR", Signal::POWER),
];
pub const STOPS: &str = "TERM,INT,QUIT";
/// Those that end a process which does not handle them.
const FATAL: [Signal; 8] = [
    Signal::HUP,
    Signal::INT,
    Signal::QUIT,
    Signal::USR1,
    Signal::USR2,
    Signal::ALARM,
    Signal::TERM,
    Signal::POWER,
];

/// Every signal that is passed on, from now on.
pub fn listen() -> io::Result<mpsc::Receiver<Name>> {
    let (sender, receiver) = mpsc::channel(16);
    for (_, raw) in NAMES {
        let mut stream = signal(SignalKind::from_raw(raw.as_raw()))?;
        let sender = sender.clone();
        tokio::spawn(async move {
            while stream.recv().await.is_some() && sender.send(Name(raw)).await.is_ok() {}
        });
    }
    Ok(receiver)
}

/// What it means for this process.
pub fn meaning(proc: &Proc, child: Pid, name: Name, stops: &[Name]) -> Meaning {
    let is_stop = stops.contains(&name) || (FATAL.contains(&name.0) && !is_handled(proc, child, name.0));
    if is_stop { Meaning::Stop } else { Meaning::Word }
}

/// To a process that may be gone already.
pub fn pass(child: Pid, Name(signal): Name) {
    if let Err(errno) = kill_process(child, signal) {
        tracing::debug!("{} was not passed on: {errno}", Name(signal));
    }
}

/// Whether it catches or ignores it. One that we cannot look at does.
fn is_handled(proc: &Proc, child: Pid, signal: Signal) -> bool {
    let pid = child.as_raw_nonzero().get().unsigned_abs();
    proc.read(pid, "status").map_or(true, |status| is_in(&status, signal))
}

fn is_in(status: &str, signal: Signal) -> bool {
    let bit = 1_u64.checked_shl(signal.as_raw().unsigned_abs().saturating_sub(1)).unwrap_or(0);
    let masks = status.lines().filter_map(|line| {
        let (name, mask) = line.split_once(':')?;
        let is_mask = matches!(name, "SigIgn" | "SigCgt");
        is_mask.then(|| u64::from_str_radix(mask.trim(), 16).ok()).flatten()
    });
    masks.fold(0, |all, mask| all | mask) & bit != 0
}

// === impl Name ===

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let upper = text.to_ascii_uppercase();
        let wanted = upper.strip_prefix("SIG").unwrap_or(&upper);
        let found = NAMES.iter().find(|(name, _)| *name == wanted);
        found.map(|&(_, signal)| Self(signal)).ok_or_else(|| {
            let names: Vec<&str> = NAMES.iter().map(|&(name, _)| name).collect();
            format!("write signals that are passed on, separated by commas: {}", names.join(", "))
        })
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = NAMES.iter().find(|(_, signal)| *signal == self.0);
        match known {
            Some((name, _)) => write!(f, "SIG{name}"),
            None => write!(f, "signal {}", self.0.as_raw()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_has_a_name() {
        for text in ["TERM", "sigterm", "SIGTERM"] {
            assert_eq!(text.parse::<Name>().unwrap().to_string(), "SIGTERM");
        }
        for wrong in ["KILL", "STOP", "", "15", "SIGFOO"] {
            assert!(wrong.parse::<Name>().unwrap_err().contains("HUP, INT"), "{wrong}");
        }
    }

    #[test]
    fn the_kernel_says_what_a_process_handles() {
        // HUP (bit 0) is ignored, USR1 (bit 9) is caught.
        let status =
            "Name:\tnode\nSigBlk:\t0000000000000008\nSigIgn:\t0000000000000001\nSigCgt:\t0000000000000200\n";
        assert!(is_in(status, Signal::HUP) && is_in(status, Signal::USR1));
        assert!(!is_in(status, Signal::USR2) && !is_in(status, Signal::ALARM));
    }

    #[test]
    fn what_would_end_it_is_a_stop() {
        // Nobody of ours handles USR2; cargo's test runner catches nothing.
        let own = rustix::process::getpid();
        let stops = [Name(Signal::TERM)];
        let of = |signal| meaning(&Proc::default(), own, Name(signal), &stops);
        assert_eq!(of(Signal::TERM), Meaning::Stop);
        assert_eq!(of(Signal::USR2), Meaning::Stop);
        assert_eq!(of(Signal::WINCH), Meaning::Word, "nobody ends by it");
        let gone = Pid::from_raw(i32::MAX).unwrap();
        assert_eq!(meaning(&Proc::default(), gone, Name(Signal::USR2), &stops), Meaning::Word);
    }
}
