//! Stand-ins for nginx and PM2, for what the real ones do not do on demand.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]

pub mod nginx;
pub mod pm2;

use std::{
    env, fs, iter,
    net::TcpListener,
    ops::Range,
    path::{Path, PathBuf},
    process::{self, Child, Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

/// What must never be seen in anything that we write.
pub const SECRET: &str = "planted-secret-4711";

#[path = "../../src/scratch.rs"]
mod scratch;

pub(crate) use scratch::Dir;

/// `handoff`, seeing nothing but this directory: nginx.sock, pm2/ and its own files are there.
pub fn handoff(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_handoff"));
    command
        .args(args)
        .env_clear()
        .env("PATH", env::var_os("PATH").unwrap_or_default())
        .env("HOME", dir)
        .env("PM2_HOME", dir.join("pm2"))
        .env("HANDOFF_CONTROL", format!("unix:{}", dir.join("nginx.sock").display()))
        .env("HANDOFF_RUNTIME_DIR", dir.join("run"))
        .env("HANDOFF_STATE_DIR", dir.join("state"));
    command
}

/// Runs a command to its end: exit code, standard output, standard error.
pub fn end(command: &mut Command) -> (i32, String, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let (stdout, stderr) = (text(stdout), text(stderr));
    assert!(!stdout.contains(SECRET) && !stderr.contains(SECRET), "{stdout}{stderr}");
    (status.code().unwrap_or(-1), stdout, stderr)
}

/// `handoff run`, ended with the test.
pub struct Sidecar {
    child: Child,
    log: PathBuf,
}

impl Sidecar {
    pub fn start(dir: &Path) -> Self {
        Self::logging_to(dir, dir.join("sidecar.log"))
    }

    pub fn logging_to(dir: &Path, log: PathBuf) -> Self {
        let file = fs::File::create(&log).unwrap();
        let mut command = handoff(dir, &["run", "--log", "trace"]);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file).spawn().unwrap();
        Self { child, log }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Ends it as a service manager does, and returns its exit code.
    pub fn stop(mut self) -> Option<i32> {
        self.signal(rustix::process::Signal::TERM);
        let started = Instant::now();
        let status = self.child.wait().unwrap();
        assert!(started.elapsed() < Duration::from_secs(2), "it took {:?} to end", started.elapsed());
        status.code()
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// Waits until something is so.
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < Duration::from_secs(10), "waited in vain for {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Below the ports that the kernel gives to connections, so that none of these takes it before it is used; processes that run
/// side by side look in different places.
pub fn free_address() -> String {
    const PORTS: Range<u16> = 12_000..16_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let begin = process::id().wrapping_mul(37);
    let offset =
        || begin.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % u32::from(PORTS.end - PORTS.start);
    let addresses = iter::repeat_with(|| format!("127.0.0.1:{}", u32::from(PORTS.start) + offset()));
    addresses.take(PORTS.len()).find(|address| TcpListener::bind(address).is_ok()).expect("a free port")
}
