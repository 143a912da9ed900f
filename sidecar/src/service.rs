//! What the service manager (systemd, or whoever gives us a `NOTIFY_SOCKET`) is told.
//!
//! **Ready**: nginx and every PM2 were looked at once, whether they were there or not. What is missing is waited for by us;
//! a boot must not wait with us. **Alive**: every agent has gone round since the last word. An agent that hangs says
//! nothing, so nothing is said for it, and its watchdog ends us; a timer here would only prove that timers work. **Going**:
//! we were asked to end.

use crate::report::Report;
use std::{
    env,
    ffi::OsStr,
    fmt, io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            net::{SocketAddr, UnixDatagram},
        },
    },
    time::Duration,
};
use tokio::{sync::watch, time};

/// What an agent shows of itself each time that it goes round.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pulse {
    pub rounds: u64,
    pub has_seen_nginx: bool,
    pub has_seen_pm2: bool,
    pub nginx_answers: bool,
}

/// One agent, from outside.
#[derive(Debug)]
pub struct Patient {
    pub pulse: watch::Receiver<Pulse>,
    pub report: watch::Receiver<Report>,
}

/// A line of the protocol (sd_notify(3)).
#[derive(Clone, Debug, PartialEq, Eq)]
enum Word {
    Ready,
    Status(String),
    Watchdog,
    Stopping,
}

const SOCKET: &str = "NOTIFY_SOCKET";
/// An agent goes round once a second at least; `WatchdogSec=` is ten of these.
const BEAT: Duration = Duration::from_secs(1);

/// Tells it until an agent ends. Without a service manager, or without an agent, there is nothing to tell.
pub async fn tell(agents: Vec<Patient>) {
    if env::var_os(SOCKET).is_some() && !agents.is_empty() {
        watch(agents, notify).await;
    }
}

async fn watch(mut agents: Vec<Patient>, notify: impl Fn(Word)) {
    for agent in &mut agents {
        if agent.pulse.wait_for(Pulse::is_ready).await.is_err() {
            return;
        }
    }
    notify(Word::Ready);
    let mut last = String::new();
    loop {
        let status: Vec<String> = agents.iter().map(Patient::status).collect();
        let status = status.join("; ");
        if status != last {
            notify(Word::Status(status.clone()));
            last = status;
        }
        for agent in &mut agents {
            agent.pulse.mark_unchanged();
            if agent.pulse.changed().await.is_err() {
                return;
            }
        }
        notify(Word::Watchdog);
        time::sleep(BEAT).await;
    }
}

pub fn leaves() {
    notify(Word::Stopping);
}

/// Nobody listens: so be it.
fn notify(word: Word) {
    let Some(socket) = env::var_os(SOCKET) else { return };
    if let Err(error) = send(&socket, &word) {
        tracing::debug!("the service manager was not told {word}: {error}");
    }
}

/// Never waits: a manager that does not read must not stop us.
fn send(socket: &OsStr, word: &Word) -> io::Result<()> {
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(socket)?,
    };
    let sender = UnixDatagram::unbound()?;
    sender.set_nonblocking(true)?;
    sender.send_to_addr(word.to_string().as_bytes(), &address)?;
    Ok(())
}

// === impl Word ===

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready => f.write_str("READY=1"),
            // A home is a path, and may hold what would begin another line.
            Self::Status(text) => write!(f, "STATUS={}", text.replace('\n', " ")),
            Self::Watchdog => f.write_str("WATCHDOG=1"),
            Self::Stopping => f.write_str("STOPPING=1"),
        }
    }
}

// === impl Pulse ===

impl Pulse {
    fn is_ready(&self) -> bool {
        self.has_seen_nginx && self.has_seen_pm2
    }
}

// === impl Patient ===

impl Patient {
    /// For `systemctl status`.
    fn status(&self) -> String {
        let report = self.report.borrow();
        let nginx = if self.pulse.borrow().nginx_answers { "" } else { ", nginx does not answer" };
        let behind = report.workers.iter().filter(|worker| !worker.peers.is_empty()).count();
        format!("{}: {} workers, {behind} behind nginx{nginx}", report.home, report.workers.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::mpsc;

    struct Agent {
        pulse: watch::Sender<Pulse>,
        _report: watch::Sender<Report>,
    }

    impl Agent {
        fn new() -> (Self, Patient) {
            let (pulse, pulses) = watch::channel(Pulse::default());
            let (report, reports) = watch::channel(Report::default());
            (Self { pulse, _report: report }, Patient { pulse: pulses, report: reports })
        }

        fn goes_round(&self) {
            self.pulse.send_modify(|pulse| {
                *pulse =
                    Pulse { rounds: pulse.rounds + 1, has_seen_nginx: true, has_seen_pm2: true, ..*pulse };
            });
        }
    }

    async fn hears(words: &mut mpsc::UnboundedReceiver<Word>, word: &Word) -> bool {
        let heard = async { while words.recv().await.is_some_and(|heard| &heard != word) {} };
        time::timeout(BEAT * 2, heard).await.is_ok()
    }

    #[tokio::test]
    async fn one_agent_that_hangs_silences_the_watchdog() {
        let ((one, first), (other, second)) = (Agent::new(), Agent::new());
        let (say, mut words) = mpsc::unbounded_channel();
        let telling = tokio::spawn(watch(vec![first, second], move |word| _ = say.send(word)));
        one.goes_round();
        other.pulse.send_modify(|pulse| pulse.has_seen_nginx = true);
        assert!(!hears(&mut words, &Word::Ready).await, "the other one has not seen its PM2 yet");
        other.goes_round();
        assert!(hears(&mut words, &Word::Ready).await);

        let alive = tokio::spawn(async move {
            loop {
                one.goes_round();
                time::sleep(BEAT / 20).await;
            }
        });
        assert!(!hears(&mut words, &Word::Watchdog).await, "nobody speaks for an agent that hangs");
        other.goes_round();
        assert!(hears(&mut words, &Word::Watchdog).await);
        assert!(!hears(&mut words, &Word::Watchdog).await, "nor does what it did before");
        alive.abort();
        telling.abort();
    }
}
