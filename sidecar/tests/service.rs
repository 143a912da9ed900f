//! What systemd hears of `handoff run`, on a `NOTIFY_SOCKET` as it has them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod support;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use std::{
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixDatagram},
    },
    process::{self, Child, Stdio},
    time::{Duration, Instant},
};
use support::{Dir, handoff, nginx::Nginx, pm2::Pm2};

/// As in the units.
const WATCHDOG: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(10);

struct Service {
    manager: UnixDatagram,
    child: Child,
}

impl Service {
    fn start(dir: &Dir, name: &str) -> Self {
        // In a file's place or, like systemd in a container, without one.
        let manager = match name.strip_prefix('@') {
            Some(name) => UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(name).unwrap()).unwrap(),
            None => UnixDatagram::bind(name).unwrap(),
        };
        let mut command = handoff(dir, &["run"]);
        command.env("NOTIFY_SOCKET", name).stdin(Stdio::null()).stderr(Stdio::null());
        Self { manager, child: command.spawn().unwrap() }
    }

    /// The next thing that is said within that time.
    fn says(&self, within: Duration) -> Option<String> {
        self.manager.set_read_timeout(Some(within)).unwrap();
        let mut buffer = [0; 4096];
        let length = self.manager.recv(&mut buffer).ok()?;
        Some(String::from_utf8(buffer[..length].to_vec()).unwrap().trim_end().to_owned())
    }

    /// Waits until that is said; returns what else was.
    fn until(&self, word: &str) -> Vec<String> {
        let (began, mut others) = (Instant::now(), Vec::new());
        while began.elapsed() < PATIENCE {
            match self.says(PATIENCE) {
                Some(said) if said.starts_with(word) => return others,
                said => others.extend(said),
            }
        }
        panic!("it never said {word}, but {others:?}");
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

#[test]
fn it_is_ready_when_it_has_looked_and_alive_while_it_goes_round() {
    let dir = Dir::new();
    let _nginx = Nginx::start(&dir, &["127.0.0.1:9".into()]);
    let pm2 = Pm2::start(&dir);
    pm2.list(3, "shop", process::id(), "online", json!({}));
    let service = Service::start(&dir, dir.join("notify").to_str().unwrap());
    assert_eq!(service.until("READY=1"), [""; 0], "nothing is said before");
    service.until(&format!("STATUS={}: 1 workers, 0 behind nginx", dir.join("pm2").display()));
    for _ in 0..3 {
        let began = Instant::now();
        service.until("WATCHDOG=1");
        assert!(began.elapsed() < WATCHDOG / 3, "{:?}", began.elapsed());
    }
    service.signal(Signal::TERM);
    service.until("STOPPING=1");
}

#[test]
fn it_is_ready_though_neither_nginx_nor_pm2_is_there_yet() {
    let dir = Dir::new();
    let service = Service::start(&dir, &format!("@handoff-{}", process::id()));
    service.until("READY=1");
    service.until("STATUS=");
    service.until("WATCHDOG=1");
    service.until("WATCHDOG=1");
}

#[test]
fn one_that_is_frozen_says_nothing() {
    let dir = Dir::new();
    let service = Service::start(&dir, dir.join("notify").to_str().unwrap());
    service.until("WATCHDOG=1");
    service.signal(Signal::STOP);
    // What was on its way.
    while service.says(Duration::from_millis(200)).is_some() {}
    assert_eq!(service.says(Duration::from_secs(3)), None);
    service.signal(Signal::CONT);
    service.until("WATCHDOG=1");
}
