//! The sidecar's end of the preload's socket, between an nginx and a PM2 that do what they are told. Those who call are real
//! processes, as the kernel names them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod support;

use handoff::{
    host::{Proc, Process},
    preload::drain::Drain,
};
use handoff_wire::{Code, State};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::{
    env, fs,
    io::{BufRead as _, BufReader, Write as _},
    net::TcpListener,
    os::unix::net::UnixStream,
    path::PathBuf,
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::Duration,
};
use support::{Dir, Sidecar, free_address, nginx::Nginx, pm2::Pm2, until};

const LONG: Duration = Duration::from_secs(10);
/// Long enough for what must not come.
const A_WHILE: Duration = Duration::from_millis(400);

/// Not a test: a worker that listens, calls, says what it is given to say, and writes down what it is told.
#[test]
fn a_worker() {
    let (Ok(port), Ok(socket)) = (env::var("WORKER_PORT"), env::var("WORKER_SOCKET")) else { return };
    let _listener = TcpListener::bind(format!("127.0.0.1:{port}")).unwrap();
    let mut out = std::io::stdout();
    out.write_all(b"\nlistening\n").unwrap();
    let call = loop {
        match UnixStream::connect(&socket) {
            Ok(call) => break call,
            Err(_) => thread::sleep(Duration::from_millis(20)),
        }
    };
    let told = BufReader::new(call.try_clone().unwrap()).lines();
    thread::spawn(move || {
        for line in told.map_while(Result::ok) {
            println!("{line}");
        }
        println!("{{\"type\":\"closed\"}}");
    });
    for line in std::io::stdin().lines().map_while(Result::ok) {
        // Who was hung up on goes on living.
        _ = (&call).write_all(format!("{line}\n").as_bytes());
    }
}

struct Worker {
    child: Child,
    says: ChildStdin,
    told: Receiver<Value>,
}

impl Worker {
    fn start(address: &str, socket: &std::path::Path) -> Self {
        let port = address.rsplit(':').next().unwrap();
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "a_worker", "--nocapture"])
            .env("WORKER_PORT", port)
            .env("WORKER_SOCKET", socket)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let says = child.stdin.take().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        assert!(lines.any(|line| line.contains("listening")));
        let (tell, told) = channel();
        thread::spawn(move || {
            for line in lines {
                _ = serde_json::from_str(&line).map(|told: Value| tell.send(told));
            }
        });
        Self { child, says, told }
    }

    fn process(&self) -> Process {
        Process::find(&Proc::default(), self.child.id()).unwrap()
    }

    fn say(&mut self, word: &str) {
        writeln!(self.says, "{word}").unwrap();
    }

    fn hello(&mut self) {
        self.say(
            r#"{"type":"hello","v":1,"pid":1,"mode":"fork","listens":[{"address":"127.0.0.1","port":1}]}"#,
        );
    }

    fn stopping(&mut self) {
        self.say(r#"{"type":"stopping","signal":"SIGINT","in_flight":0,"wait_ms":400}"#);
    }

    /// Waits for the next thing that it is told, names aside.
    fn is_told(&self, long: Duration) -> Option<String> {
        loop {
            let told = self.told.recv_timeout(long).ok()?;
            if told["type"] != "name" {
                return told["type"].as_str().map(str::to_owned);
            }
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// Two workers of one app that call.
struct Stage {
    nginx: Nginx,
    pm2: Pm2,
    peers: [String; 2],
    workers: [Worker; 2],
    sidecar: Sidecar,
    dir: Dir,
}

impl Stage {
    fn new() -> Self {
        let dir = Dir::new();
        let peers = [free_address(), free_address()];
        let workers = [0, 1].map(|index: usize| Worker::start(&peers[index], &socket(&dir)));
        let pm2 = Pm2::start(&dir);
        for (id, worker) in (0..).zip(&workers) {
            pm2.list(id, "shop", worker.child.id(), "online", json!({}));
        }
        let nginx = Nginx::start(&dir, &peers);
        let sidecar = Sidecar::start(&dir);
        let mut stage = Self { nginx, pm2, peers, workers, sidecar, dir };
        stage.workers.iter_mut().for_each(Worker::hello);
        stage.knows_both();
        stage
    }

    fn knows_both(&self) {
        until("the sidecar to know both", || {
            let preloads = self.report()["workers"]
                .as_array()
                .map_or(0, |workers| workers.iter().filter(|worker| worker["preload"] == true).count());
            preloads == 2
        });
    }

    fn report(&self) -> Value {
        let files = fs::read_dir(self.dir.join("run")).into_iter().flatten().flatten();
        let mut reports = files.filter(|file| file.path().extension().is_some_and(|ext| ext == "json"));
        let text = reports.find_map(|file| fs::read_to_string(file.path()).ok());
        text.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default()
    }

    fn mark(&self, worker: usize) -> Option<State> {
        self.nginx.pm2_mark(&self.peers[worker])
    }

    fn restart_sidecar(&mut self) {
        self.sidecar.signal(Signal::KILL);
        let log = self.dir.join("again.log");
        self.sidecar = Sidecar::logging_to(&self.dir, log);
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", self.sidecar.log());
        }
    }
}

fn socket(dir: &Dir) -> PathBuf {
    dir.join("run/preload.sock")
}

#[test]
fn a_goodbye_is_answered_when_nginx_sends_nothing_there() {
    let mut stage = Stage::new();
    stage.workers[0].stopping();
    assert_eq!(stage.workers[0].is_told(LONG).as_deref(), Some("ack"));
    assert_eq!(stage.mark(0), Some(State::Draining));
    assert_eq!(stage.mark(1), None);
    // PM2 does not know of it, and says that it is online: the worker's own word counts.
    thread::sleep(A_WHILE);
    stage.pm2.event(0, "online");
    thread::sleep(A_WHILE);
    assert_eq!(stage.mark(0), Some(State::Draining));
    assert_eq!(stage.workers[1].is_told(Duration::ZERO), None);
}

#[test]
fn one_that_goes_on_all_the_same_serves_again() {
    let mut stage = Stage::new();
    stage.pm2.list(0, "shop", stage.workers[0].child.id(), "online", json!({"kill_timeout": 500}));
    stage.pm2.event(0, "online");
    thread::sleep(A_WHILE);
    stage.workers[0].stopping();
    assert_eq!(stage.workers[0].is_told(LONG).as_deref(), Some("ack"));
    until("nginx to send requests there again", || stage.mark(0).is_none());
}

#[test]
fn while_nginx_refuses_nobody_is_told_that_it_knows() {
    let mut stage = Stage::new();
    stage.nginx.refuse(Code::Forbidden, "no");
    stage.workers[0].stopping();
    assert_eq!(stage.workers[0].is_told(A_WHILE), None);
}

#[test]
fn who_has_no_peer_is_not_kept_waiting() {
    let stage = Stage::new();
    let other = free_address();
    let mut worker = Worker::start(&other, &socket(&stage.dir));
    stage.pm2.list(2, "jobs", worker.child.id(), "online", json!({}));
    worker.hello();
    let named = worker.told.recv_timeout(LONG).unwrap();
    assert_eq!(named, json!({"type": "name", "name": "jobs:2"}));
    worker.stopping();
    assert_eq!(worker.is_told(LONG).as_deref(), Some("nack"));
}

#[test]
fn the_last_one_that_serves_waits_for_another_one() {
    let mut stage = Stage::new();
    stage.pm2.says("Stopping app:shop id:1");
    stage.pm2.list(1, "shop", 0, "launching", json!({}));
    stage.workers[1].child.kill().unwrap();
    stage.workers[1].child.wait().unwrap();
    until("worker 1 to be gone", || stage.mark(1) == Some(State::Down));
    stage.pm2.list(0, "shop", stage.workers[0].child.id(), "online", json!({"kill_timeout": 20_000}));
    stage.pm2.event(0, "online");
    thread::sleep(A_WHILE);
    stage.workers[0].stopping();
    assert_eq!(stage.workers[0].is_told(LONG).as_deref(), Some("wait"));
    assert_eq!(stage.mark(0), None);
    stage.workers[1] = Worker::start(&stage.peers[1], &socket(&stage.dir));
    stage.pm2.list(1, "shop", stage.workers[1].child.id(), "online", json!({}));
    assert_eq!(stage.workers[0].is_told(LONG).as_deref(), Some("ack"));
    assert_eq!((stage.mark(0), stage.mark(1)), (Some(State::Draining), None));
}

#[test]
fn nobody_waits_where_nobody_is_to_come() {
    let mut stage = Stage::new();
    stage.pm2.says("Stopping app:shop id:1");
    stage.pm2.list(1, "shop", 0, "errored", json!({}));
    stage.workers[1].child.kill().unwrap();
    stage.workers[1].child.wait().unwrap();
    until("worker 1 to be gone", || stage.mark(1) == Some(State::Down));
    thread::sleep(A_WHILE);
    stage.workers[0].stopping();
    assert_eq!(stage.workers[0].is_told(LONG).as_deref(), Some("ack"));
}

#[test]
fn a_stranger_is_not_believed_and_garbage_harms_nobody() {
    let mut stage = Stage::new();
    // This test's own process is no worker.
    let stranger = UnixStream::connect(socket(&stage.dir)).unwrap();
    // Whoever talks garbage is hung up on: it comes last.
    for line in
        [r#"{"type":"hello","listens":[]}"#, r#"{"type":"sings"}"#, r#"{"type":"stopping"}"#, "garbage"]
    {
        (&stranger).write_all(format!("{line}\n").as_bytes()).unwrap();
    }
    let long = UnixStream::connect(socket(&stage.dir)).unwrap();
    (&long).write_all(&[b'x'; 5000]).unwrap();
    assert_eq!(BufReader::new(long).lines().map_while(Result::ok).count(), 0, "it is hung up on");
    let silent: Vec<UnixStream> =
        (0..200).map(|_| UnixStream::connect(socket(&stage.dir)).unwrap()).collect();
    stage.workers[0].stopping();
    assert_eq!(stage.workers[0].is_told(LONG).as_deref(), Some("ack"));
    assert_eq!(stage.mark(1), None);
    drop(silent);
}

#[test]
fn a_restarted_sidecar_is_called_where_the_killed_one_was() {
    let mut stage = Stage::new();
    stage.restart_sidecar();
    for worker in 0..2 {
        assert_eq!(stage.workers[worker].is_told(LONG).as_deref(), Some("closed"));
        stage.workers[worker] = Worker::start(&free_address(), &socket(&stage.dir));
        let id = u32::try_from(worker).unwrap();
        stage.pm2.list(id, "shop", stage.workers[worker].child.id(), "online", json!({}));
        stage.workers[worker].hello();
    }
    stage.knows_both();
}

#[test]
fn a_second_sidecar_leaves_the_socket_to_the_first() {
    let mut stage = Stage::new();
    let second = Sidecar::logging_to(&stage.dir, stage.dir.join("second.log"));
    until("it to say so", || second.log().contains("another sidecar listens there"));
    drop(second);
    stage.workers[0].stopping();
    assert_eq!(stage.workers[0].is_told(LONG).as_deref(), Some("ack"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_roll_out_has_a_worker_count_down() {
    let mut stage = Stage::new();
    let (socket, process) = (socket(&stage.dir), stage.workers[0].process());
    let drain = tokio::spawn({
        let socket = socket.clone();
        async move { Drain::begin(&socket, process, Duration::from_secs(30)).await }
    });
    let told = tokio::task::block_in_place(|| stage.workers[0].is_told(LONG));
    assert_eq!(told.as_deref(), Some("drain"));
    stage.workers[0].say(r#"{"type":"in_flight","n":2}"#);
    let (mut drain, first) = drain.await.unwrap().unwrap().unwrap();
    assert_eq!(first, 2);
    stage.workers[0].say(r#"{"type":"in_flight","n":0}"#);
    assert_eq!(drain.next().await, Some(0));
    stage.workers[0].child.kill().unwrap();
    assert_eq!(drain.next().await, None);
    let dead = Process { start: process.start + 1, ..stage.workers[1].process() };
    assert!(Drain::begin(&socket, dead, Duration::from_secs(30)).await.unwrap().is_none());
}
