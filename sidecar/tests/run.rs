//! `handoff run`, between an nginx and a PM2 that do what they are told. The workers are real processes that listen.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod support;

use handoff_wire::State;
use rustix::process::Signal;
use serde_json::json;
use std::{
    env, fs,
    io::{BufRead as _, BufReader, Write as _},
    net::TcpListener,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};
use support::{Dir, SECRET, Sidecar, free_address, nginx::Nginx, pm2::Pm2, until};

/// Not a test: what a worker's process does. The tests start this very binary with a port to listen on.
#[test]
fn a_worker() {
    let Ok(port) = env::var("WORKER_PORT") else { return };
    let _listener = TcpListener::bind(format!("127.0.0.1:{port}")).unwrap();
    println!("listening");
    std::io::stdout().flush().unwrap();
    thread::sleep(Duration::from_secs(60));
}

struct Worker {
    child: Child,
}

impl Worker {
    fn start(address: &str) -> Self {
        let port = address.rsplit(':').next().unwrap();
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "a_worker", "--nocapture"])
            .env("WORKER_PORT", port)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.map_while(Result::ok).any(|line| line.contains("listening")));
        Self { child }
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// Two workers of one app, with everything around them.
struct Stage {
    nginx: Nginx,
    pm2: Pm2,
    peers: [String; 2],
    workers: [Worker; 2],
    sidecar: Option<Sidecar>,
    dir: Dir,
}

impl Stage {
    fn new() -> Self {
        let dir = Dir::new();
        let peers = [free_address(), free_address()];
        let workers = [Worker::start(&peers[0]), Worker::start(&peers[1])];
        let pm2 = Pm2::start(&dir);
        for (id, worker) in (0..).zip(&workers) {
            pm2.list(id, "shop", worker.pid(), "online", json!({}));
        }
        let nginx = Nginx::start(&dir, &peers);
        let mut stage = Self { nginx, pm2, peers, workers, sidecar: None, dir };
        stage.start();
        stage
    }

    fn start(&mut self) {
        self.sidecar = Some(Sidecar::start(&self.dir));
        until("the sidecar to know both workers", || {
            let reports = fs::read_dir(self.dir.join("run")).into_iter().flatten().flatten();
            let knows = |report: &str| self.peers.iter().all(|peer| report.contains(peer));
            reports.filter_map(|file| fs::read_to_string(file.path()).ok()).any(|report| knows(&report))
        });
    }

    fn mark(&self, worker: usize) -> Option<State> {
        self.nginx.pm2_mark(&self.peers[worker])
    }

    fn until_mark(&self, worker: usize, state: Option<State>) {
        until(&format!("worker {worker} to be {state:?}"), || self.mark(worker) == state);
    }

    /// PM2 begins to stop a worker, as the real one does it.
    fn stops(&self, worker: usize) {
        let id = u32::try_from(worker).unwrap();
        self.pm2.list(id, "shop", self.workers[worker].pid(), "stopping", json!({}));
        self.pm2.says(&format!("Stopping app:shop id:{id}"));
    }

    fn log(&self) -> String {
        self.sidecar.as_ref().unwrap().log()
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let files = fs::read_dir(self.dir.join("run")).into_iter().flatten().flatten();
        let written: String = files.filter_map(|file| fs::read_to_string(file.path()).ok()).collect();
        assert!(!written.contains(SECRET) && !self.log().contains(SECRET), "the secret was told");
        if thread::panicking() {
            eprintln!("{}", self.log());
        }
    }
}

#[test]
fn a_worker_is_drained_replaced_and_back() {
    let mut stage = Stage::new();
    stage.stops(0);
    stage.until_mark(0, Some(State::Draining));
    stage.pm2.list(0, "shop", 0, "stopped", json!({}));
    stage.workers[0].kill();
    stage.until_mark(0, Some(State::Down));
    stage.workers[0] = Worker::start(&stage.peers[0]);
    stage.pm2.list(0, "shop", stage.workers[0].pid(), "online", json!({}));
    stage.until_mark(0, None);
    assert_eq!(stage.mark(1), None);
    let states: Vec<State> =
        stage.nginx.puts().iter().flat_map(|set| &set.marks).map(|mark| mark.state).collect();
    assert_eq!(states.first(), Some(&State::Draining));
    assert_eq!(states.last(), Some(&State::Up));
}

#[test]
fn a_worker_that_says_ready_is_not_up_before_it_does() {
    let mut stage = Stage::new();
    stage.stops(0);
    stage.workers[0].kill();
    stage.until_mark(0, Some(State::Down));
    stage.workers[0] = Worker::start(&stage.peers[0]);
    stage.pm2.list(0, "shop", stage.workers[0].pid(), "launching", json!({"wait_ready": true}));
    stage.until_mark(0, Some(State::Checking));
    thread::sleep(Duration::from_millis(300));
    assert_eq!(stage.mark(0), Some(State::Checking));
    stage.pm2.is_ready(0);
    stage.until_mark(0, None);
}

#[test]
fn a_death_that_nobody_ordered_is_told_at_once_and_trust_comes_back_slowly() {
    let mut stage = Stage::new();
    let died = Instant::now();
    stage.workers[1].kill();
    stage.until_mark(1, Some(State::Down));
    let told = died.elapsed();
    stage.workers[1] = Worker::start(&stage.peers[1]);
    stage.pm2.list(1, "shop", stage.workers[1].pid(), "online", json!({}));
    let back = Instant::now();
    stage.until_mark(1, Some(State::Checking));
    stage.until_mark(1, None);
    assert!(back.elapsed() > Duration::from_millis(900), "{:?}", back.elapsed());
    assert!(told < Duration::from_millis(500), "{told:?}");
}

#[test]
fn a_notice_that_comes_late_drains_nobody() {
    let stage = Stage::new();
    stage.pm2.said_long_ago("Stopping app:shop id:0\n");
    stage.stops(1);
    stage.until_mark(1, Some(State::Draining));
    assert_eq!(stage.mark(0), None);
    // PM2 lists worker 1 as online after all: a look takes the mark back.
    stage.pm2.list(1, "shop", stage.workers[1].pid(), "online", json!({}));
    stage.until_mark(1, None);
}

#[test]
fn a_restarted_nginx_is_told_again_also_what_the_operator_said() {
    let mut stage = Stage::new();
    stage.nginx.set_mark(&stage.peers[1], "operator", State::Draining);
    stage.workers[0].kill();
    stage.until_mark(0, Some(State::Down));
    let remembered = stage.dir.join("state/operator-marks.json");
    until("the operator's mark to be remembered", || {
        fs::read_to_string(&remembered).is_ok_and(|text| text.contains(&stage.peers[1]))
    });
    stage.nginx.restart();
    stage.until_mark(0, Some(State::Down));
    until("the operator's mark to be back", || {
        stage.nginx.mark(&stage.peers[1], "operator") == Some(State::Draining)
    });
}

#[test]
fn a_restarted_sidecar_takes_back_its_stale_marks_within_a_second() {
    let mut stage = Stage::new();
    let owner = handoff::pm2::home::Home::new(&stage.dir.join("pm2")).owner().unwrap();
    stage.sidecar.as_ref().unwrap().signal(Signal::KILL);
    stage.nginx.set_mark(&stage.peers[0], owner.as_str(), State::Draining);
    let started = Instant::now();
    stage.sidecar = Some(Sidecar::start(&stage.dir));
    stage.until_mark(0, None);
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
}

#[test]
fn a_stopped_sidecar_leaves_facts_to_their_lease() {
    let mut stage = Stage::new();
    stage.workers[0].kill();
    stage.until_mark(0, Some(State::Down));
    let sidecar = stage.sidecar.take().unwrap();
    assert_eq!(sidecar.stop(), Some(0));
    assert_eq!(stage.mark(0), Some(State::Down));
    assert_eq!(fs::read_dir(stage.dir.join("run")).unwrap().count(), 0, "the report is gone with it");
    stage.sidecar = Some(Sidecar::start(&stage.dir));
}

#[test]
fn garbage_on_the_bus_is_answered_by_a_new_connection_and_a_look() {
    let mut stage = Stage::new();
    stage.pm2.send(b"HTTP/1.1 400 Bad Request\r\n\r\n");
    stage.workers[0].kill();
    stage.until_mark(0, Some(State::Down));
    until("a new connection", || stage.log().matches("listening to PM2").count() >= 2);
    stage.stops(1);
    stage.until_mark(1, Some(State::Draining));
}

#[test]
fn the_environment_is_never_told() {
    let stage = Stage::new();
    for event in ["exit", "online", "restart", "stop"] {
        stage.pm2.event(0, event);
    }
    stage.pm2.publish("process:msg", &json!({"at": 1, "raw": {"secret": SECRET}, "process": {"pm_id": 0}}));
    stage.pm2.publish("log:out", &json!({"data": SECRET}));
    stage.pm2.publish("process:event", &json!({"event": {"secret": SECRET}, "process": 5, "at": SECRET}));
    stage.pm2.list(7, "broken", 0, "online", json!({"treekill": SECRET, "PORT": SECRET, "status": SECRET}));
    stage.stops(1);
    stage.until_mark(1, Some(State::Draining));
    let (_, status, _) = support::end(&mut support::handoff(&stage.dir, &["status", "--json"]));
    assert!(status.contains("broken"));
    // The log and the report are searched when the stage is left.
}

#[test]
fn nobody_there_is_no_reason_to_end() {
    let dir = Dir::new();
    let sidecar = Sidecar::start(&dir);
    until("both to be missed", || {
        let log = sidecar.log();
        log.contains("does not exist: is nginx running") && log.contains("PM2 does not run")
    });
    thread::sleep(Duration::from_millis(1500));
    let log = sidecar.log();
    assert_eq!(log.matches("does not exist: is nginx running").count(), 1, "{log}");
    assert_eq!(sidecar.stop(), Some(0));
}

#[test]
fn a_name_that_would_steer_a_terminal_steers_none() {
    let stage = Stage::new();
    // Cleared, renamed, and a line of its own: what it takes to deceive who looks.
    let name = "evil\u{1b}[2J\u{1b}]0;owned\u{7}\nhandoff: all is well\u{202e}";
    stage.pm2.list(8, name, 0, "online", json!({}));
    stage
        .pm2
        .publish("process:event", &json!({"at": 1, "event": "exit", "process": {"pm_id": 8, "name": name}}));
    stage.pm2.says(&format!("Stopping app:{name} id:8"));
    let steers = |text: &str| text.chars().any(|c| (c.is_control() && c != '\n') || c == '\u{202e}');
    until("the app to be listed", || {
        let (_, status, complaint) = support::end(&mut support::handoff(&stage.dir, &["status"]));
        assert!(!steers(&status) && !steers(&complaint), "{status:?} {complaint:?}");
        assert!(!status.lines().any(|line| line.starts_with("handoff: ")), "{status}");
        status.contains("evil")
    });
    stage.stops(1);
    stage.until_mark(1, Some(State::Draining));
    let log = stage.log();
    assert!(!steers(&log.replace("\u{1b}[", "")), "{log:?}");
    assert!(!log.lines().any(|line| line.starts_with("handoff: ")), "{log}");
}

#[test]
fn it_has_one_heap_and_is_still_called_handoff() {
    let dir = Dir::new();
    let sidecar = Sidecar::start(&dir);
    let read = |name: &str| fs::read(format!("/proc/{}/{name}", sidecar.pid())).unwrap_or_default();
    until("it to run", || sidecar.log().contains(" runs"));
    let environment = read("environ");
    assert!(environment.split(|&byte| byte == 0).any(|entry| entry == b"MALLOC_ARENA_MAX=1"));
    assert_eq!(
        (read("comm"), read("cmdline").ends_with(b"\0run\0--log\0trace\0")),
        (b"handoff\n".to_vec(), true)
    );
    assert_eq!(sidecar.stop(), Some(0));
}
