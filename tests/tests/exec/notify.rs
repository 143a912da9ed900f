//! The service manager's socket, by its exact words (sd_notify(3)).

use crate::stage::{Stage, how};
use anyhow::{Context, Result};
use e2e::{
    crowd, ports,
    site::{PATIENCE, Site, VERSIONS},
    wait,
};
use handoff_wire::PeerState;
use rustix::process::Signal;
use std::{os::unix::net::UnixDatagram, process::Command};

/// A service manager's ear.
struct Manager {
    socket: UnixDatagram,
    path: std::path::PathBuf,
    heard: std::cell::RefCell<Vec<String>>,
}

impl Manager {
    fn new(site: &Site) -> Result<Self> {
        let path = site.file("notify");
        let socket = UnixDatagram::bind(&path)?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket, path, heard: Vec::default().into() })
    }

    fn heard(&self) -> Vec<String> {
        let mut buffer = [0; 4096];
        while let Ok(length) = self.socket.recv(&mut buffer) {
            let text = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).into_owned();
            self.heard.borrow_mut().extend(text.lines().map(str::to_owned));
        }
        self.heard.borrow().clone()
    }

    async fn hears(&self, wanted: &str) -> Result<()> {
        let heard = async || self.heard().iter().any(|line| line == wanted).then_some(());
        wait::until(wanted, PATIENCE, heard).await.with_context(|| format!("{:?}", self.heard()))
    }
}

/// Listens, answers nobody, and says what it is told to: a line of its standard input is a word for the service manager.
const SPEAKER: &str = r#"
use Socket;
socket(my $server, PF_INET, SOCK_STREAM, 0); setsockopt($server, SOL_SOCKET, SO_REUSEADDR, 1);
bind($server, sockaddr_in($ENV{PORT}, INADDR_LOOPBACK)) or die; listen($server, 5);
socket(my $notify, PF_UNIX, SOCK_DGRAM, 0);
(my $address = $ENV{NOTIFY_SOCKET}) =~ s/^@/\0/;
while (my $line = <STDIN>) { chomp $line; $line =~ s/PID/$$/; send($notify, $line, 0, sockaddr_un($address)) or die $!; }
"#;

fn speaker(mut command: Command, manager: &Manager, options: &[&str]) -> Command {
    command.env("NOTIFY_SOCKET", &manager.path).stdin(std::process::Stdio::piped());
    command.args(options).args(["--", "perl", "-e", SPEAKER]);
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn the_manager_hears_that_it_is_ready_when_nginx_may_send_requests() -> Result<()> {
    let stage = Stage::set(VERSIONS[0]).await?;
    let manager = Manager::new(&stage.site)?;
    let mut worker = stage.start(speaker(stage.exec(0)?, &manager, &["--notify"]), "worker")?;
    let mut says = worker.input()?;
    let mut say = |word: &str| std::io::Write::write_all(&mut says, format!("{word}\n").as_bytes());
    // It listens; but it has not said that it is ready.
    wait::until("it to listen", PATIENCE, async || {
        std::net::TcpStream::connect(ports::address(stage.port(0))).ok()
    })
    .await?;
    say("STATUS=warming up")?;
    manager.hears("STATUS=warming up").await?;
    assert_eq!(stage.is(0, PeerState::Checking).await?.state, PeerState::Checking);
    assert!(!manager.heard().contains(&"READY=1".to_owned()));
    say("READY=1")?;
    manager.hears("READY=1").await?;
    assert_eq!(stage.peer(0).await?.state, PeerState::Up, "before the manager heard it");
    say("MAINPID=PID")?;
    say("WATCHDOG=1")?;
    manager.hears("WATCHDOG=1").await?;
    assert!(!manager.heard().iter().any(|line| line.starts_with("MAINPID")), "{:?}", manager.heard());
    // It goes by itself, and nobody told it to.
    say("STOPPING=1")?;
    manager.hears("STOPPING=1").await?;
    stage.is(0, PeerState::Draining).await?;
    drop(says);
    assert_eq!(how(worker.ended().await?), (Some(0), None));
    let peer = stage.peer(0).await?;
    assert_eq!(peer.state, PeerState::Checking, "another one follows: {peer:?}");
    stage.site.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_manager_is_asked_for_time_while_requests_finish() -> Result<()> {
    let stage = Stage::set(VERSIONS[1]).await?;
    let manager = Manager::new(&stage.site)?;
    let mut command = stage.app(0, true, &["--health", "/health"])?;
    command.env("NOTIFY_SOCKET", &manager.path);
    let mut worker = stage.start(command, "worker")?;
    // The app knows nothing of all this.
    manager.hears("READY=1").await?;
    assert_eq!(stage.peer(0).await?.state, PeerState::Up);
    let slow = tokio::spawn(crowd::one(ports::address(stage.site.port()), "/slow?ms=500"));
    stage.site.has_in_flight(&stage.peer_name(0), 1).await?;
    worker.signal(Signal::TERM);
    for word in ["STOPPING=1", "EXTEND_TIMEOUT_USEC=10000000", "STATUS=goes, 1 in flight"] {
        manager.hears(word).await?;
    }
    assert_eq!(slow.await??.status, 200);
    assert_eq!(how(worker.ended().await?), (None, Some(15)));
    stage.site.end().await
}
