//! Every exit code, and the sentence that goes with it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod support;

use handoff_wire::{Code, DEFAULT_PAUSE, State};
use serde_json::{Value, json};
use std::{
    fs,
    net::TcpListener,
    os::unix::{fs::symlink, net::UnixListener},
    process,
};
use support::{Dir, Sidecar, end, handoff, nginx::Nginx, pm2::Pm2, until};

/// One app with one worker, which is this very process, and one address of somebody else.
struct Stage {
    dir: Dir,
    nginx: Nginx,
    pm2: Pm2,
    peer: String,
    _listener: TcpListener,
}

impl Stage {
    fn new() -> Self {
        let dir = Dir::new();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let peer = listener.local_addr().unwrap().to_string();
        let nginx = Nginx::start(&dir, &[peer.clone(), "192.0.2.99:3000".into()]);
        let pm2 = Pm2::start(&dir);
        pm2.list(3, "shop", process::id(), "online", json!({}));
        pm2.list(4, "cron", 0, "stopped", json!({}));
        Self { dir, nginx, pm2, peer, _listener: listener }
    }

    fn end(&self, args: &[&str]) -> (i32, String, String) {
        end(&mut handoff(&self.dir, args))
    }
}

/// The exit code is this, and the error says that.
#[track_caller]
fn fails((code, stdout, stderr): (i32, String, String), wanted: i32, says: &[&str]) {
    assert_eq!(code, wanted, "{stdout}{stderr}");
    for words in says {
        assert!(stderr.contains(words), "{words:?} is not in {stderr:?}");
    }
}

#[test]
fn a_drain_is_the_operators_word_until_ready() {
    let stage = Stage::new();
    for target in ["shop", "shop:3", &stage.peer] {
        let (code, stdout, _) = stage.end(&["drain", target, "--reason", "disk"]);
        assert_eq!(code, 0);
        assert!(stdout.contains(&format!("{} in app: draining, 0 in flight", stage.peer)), "{stdout}");
        assert_eq!(stage.nginx.mark(&stage.peer, "operator"), Some(State::Draining));
        let (code, stdout, _) = stage.end(&["ready", target]);
        assert_eq!((code, stage.nginx.mark(&stage.peer, "operator")), (0, None), "{stdout}");
    }
    let set = stage.nginx.puts().remove(0);
    assert_eq!((set.lease, set.force, set.marks[0].reason.as_str()), (None, false, "disk"));
}

#[test]
fn down_and_force_and_all_are_passed_on() {
    let stage = Stage::new();
    assert_eq!(stage.end(&["drain", "shop", "--down", "--force"]).0, 0);
    assert_eq!(stage.nginx.mark(&stage.peer, "operator"), Some(State::Down));
    assert!(stage.nginx.puts()[0].force);
    stage.nginx.set_mark(&stage.peer, "pm2:x", State::Checking);
    let (_, stdout, _) = stage.end(&["ready", "shop"]);
    assert!(stdout.contains("checking by pm2:x"), "who else holds it back is said: {stdout}");
    assert_eq!(stage.end(&["ready", "shop", "--all"]).0, 0);
    assert!(stage.nginx.puts().last().unwrap().marks[0].all);
}

#[test]
fn waiting_ends_when_nothing_is_in_flight_or_with_3_at_the_deadline() {
    let stage = Stage::new();
    let (code, stdout, _) = stage.end(&["drain", "shop", "--wait"]);
    assert_eq!(code, 0);
    assert!(stdout.contains("drained"), "{stdout}");
    stage.nginx.set_in_flight(2);
    let ended = stage.end(&["drain", "shop", "--wait", "--timeout", "200ms"]);
    fails(ended, 3, &["still has 2 in flight after 200ms", "It stays draining", "handoff ready"]);
    assert_eq!(stage.nginx.mark(&stage.peer, "operator"), Some(State::Draining));
}

#[test]
fn an_upstream_is_paused_by_its_name_or_by_its_app_until_it_is_resumed() {
    let stage = Stage::new();
    for target in ["app", "shop"] {
        let (code, stdout, stderr) = stage.end(&["pause", target, "--max", "20s", "--reason", "schema 42"]);
        assert_eq!((code, stdout.as_str()), (0, "app: paused for 20s at most, 0 in flight\n"), "{stderr}");
        let pause = stage.nginx.paused().unwrap();
        assert_eq!(
            (pause.owner.as_str(), pause.reason.as_str(), pause.force),
            ("operator", "schema 42", false)
        );
        let (_, stdout, _) = stage.end(&["status"]);
        assert!(
            stdout.contains("paused app  by operator (schema 42), for 20s at most, 0 waiting"),
            "{stdout}"
        );
        assert_eq!(stage.end(&["resume", target]).1, "app: resumed, 7 waited\n");
        assert_eq!(stage.nginx.paused(), None);
    }
    assert_eq!(stage.end(&["pause", "app"]).0, 0);
    assert_eq!(stage.nginx.paused().unwrap().max, DEFAULT_PAUSE);
}

#[test]
fn a_pause_that_gets_no_quiet_is_taken_back() {
    let stage = Stage::new();
    let (code, stdout, _) = stage.end(&["pause", "app", "--wait"]);
    assert_eq!(code, 0);
    assert!(stdout.ends_with("app: quiet, paused for 30s more at most\n"), "{stdout}");
    stage.nginx.set_in_flight(2);
    let ended = stage.end(&["pause", "app", "--wait", "--timeout", "200ms"]);
    fails(ended, 3, &["app still has 2 in flight after 200ms", "Nothing is paused any more", "--timeout"]);
    assert_eq!(stage.nginx.paused(), None);
}

#[test]
fn who_resumes_what_is_not_paused_any_more_is_told() {
    let stage = Stage::new();
    fails(stage.end(&["resume", "app"]), 1, &["app is not paused"]);
    assert_eq!(stage.end(&["pause", "app"]).0, 0);
    stage.nginx.lapse();
    fails(stage.end(&["resume", "app"]), 3, &["the pause of app was over before", "requests since"]);
}

#[test]
fn a_pause_that_is_refused_says_what_would_help() {
    let stage = Stage::new();
    stage.nginx.refuse(Code::TooLong, "a pause of 60s is longer");
    fails(stage.end(&["pause", "app", "--max", "60s"]), 1, &["a pause of 60s is longer", "--force does it"]);
    assert_eq!(stage.end(&["pause", "app", "--max", "60s", "--force"]).0, 0);
    stage.nginx.refuse(Code::Paused, "paused by rollout:1");
    fails(stage.end(&["resume", "app"]), 1, &["paused by rollout:1", "--force does it"]);
    assert_eq!(stage.end(&["resume", "app", "--force"]).0, 0);
    stage.nginx.refuse(Code::NoQueue, "nobody can wait");
    fails(stage.end(&["pause", "app"]), 1, &["nobody can wait"]);
}

#[test]
fn a_refusal_is_1_and_says_what_would_help() {
    let stage = Stage::new();
    stage.nginx.refuse(Code::Floor, "nobody would be left");
    fails(stage.end(&["drain", "shop"]), 1, &["nobody would be left", "--force"]);
    assert_eq!(stage.end(&["drain", "shop", "--force"]).0, 0);
}

#[test]
fn wrong_arguments_and_wrong_configuration_are_2() {
    let dir = Dir::new();
    let ended = |args: &[&str]| end(&mut handoff(&dir, args));
    fails(ended(&["drian"]), 2, &["unrecognized subcommand 'drian'", "drain"]);
    fails(ended(&["drain"]), 2, &["<TARGET>"]);
    fails(ended(&["drain", "x", "--wait", "--timeout", "5"]), 2, &["write a whole number with its unit"]);
    fails(ended(&["--control", "/run/x", "status"]), 2, &["write it as in nginx's listen directive"]);
    let file = dir.join("handoff.toml");
    let path = file.to_str().unwrap();
    fails(ended(&["--config", path, "status"]), 2, &["cannot read the configuration", path]);
    fs::write(&file, "\ncontrol = \"unix:/a\"\npm2_home = \"/b\"\n").unwrap();
    fails(
        ended(&["--config", path, "run"]),
        2,
        &[":3:1: unknown field `pm2_home`", "docs/operations/sidecar.md"],
    );
}

#[test]
fn no_nginx_is_9() {
    let dir = Dir::new();
    fails(end(&mut handoff(&dir, &["events"])), 9, &["does not exist: is nginx running", "handoff_api"]);
    drop(UnixListener::bind(dir.join("nginx.sock")).unwrap());
    fails(end(&mut handoff(&dir, &["drain", "shop"])), 9, &["nginx is not running. Start it"]);
}

#[test]
fn no_pm2_is_5() {
    let dir = Dir::new();
    let _nginx = Nginx::start(&dir, &[]);
    fails(end(&mut handoff(&dir, &["drain", "shop"])), 5, &["PM2 does not run", "--pm2-home"]);
    fs::create_dir(dir.join("pm2")).unwrap();
    drop(UnixListener::bind(dir.join("pm2/rpc.sock")).unwrap());
    fails(end(&mut handoff(&dir, &["drain", "shop"])), 5, &["nobody listens on", "pm2 ping"]);
}

#[test]
fn an_unknown_target_is_6_and_says_what_there_is() {
    let stage = Stage::new();
    fails(stage.end(&["drain", "shoop"]), 6, &["PM2 knows no shoop", "cron:4, shop:3"]);
    fails(stage.end(&["drain", "shop:9"]), 6, &["PM2 knows no shop:9", "shop:3"]);
    fails(stage.end(&["ready", "127.0.0.1:1"]), 6, &["the peer 127.0.0.1:1", &stage.peer]);
    fails(
        stage.end(&["pause", "shoop"]),
        6,
        &["no upstream with `handoff` is named shoop", "app", "cron:4, shop:3"],
    );
    fails(
        stage.end(&["pause", "127.0.0.1:1"]),
        6,
        &["no upstream with `handoff` is named 127.0.0.1:1. There is: app"],
    );
    fails(stage.end(&["resume", "shop:3"]), 6, &["no upstream with `handoff` is named shop:3"]);
    fails(stage.end(&["drain", "cron"]), 1, &["no peer in nginx that is certain", "handoff status"]);
}

#[test]
fn a_socket_that_may_not_be_used_is_7() {
    let stage = Stage::new();
    stage.nginx.refuse(Code::Forbidden, "user 1000 may not write");
    fails(stage.end(&["drain", "shop"]), 7, &["user 1000 may not write", "handoff_api write=on user=NAME"]);
    let dir = Dir::new();
    let _nginx = Nginx::start(&dir, &[]);
    fs::create_dir(dir.join("pm2")).unwrap();
    symlink(stage.dir.join("pm2/rpc.sock"), dir.join("pm2/rpc.sock")).unwrap();
    fails(end(&mut handoff(&dir, &["drain", "shop"])), 7, &["is a link", "--pm2-home"]);
    fs::remove_file(dir.join("pm2/rpc.sock")).unwrap();
    fs::write(dir.join("pm2/rpc.sock"), "").unwrap();
    fails(end(&mut handoff(&dir, &["drain", "shop"])), 7, &["is not a socket"]);
}

#[test]
fn status_shows_what_it_can_and_ends_with_the_first_thing_that_is_missing() {
    let stage = Stage::new();
    let (code, stdout, stderr) = stage.end(&["status"]);
    assert_eq!(code, 8, "{stderr}");
    assert!(stderr.contains("no sidecar runs for") && stderr.contains("handoff run"), "{stderr}");
    for words in ["shop  3", &stage.peer, "serving", "cron: not protected: it does not run"] {
        assert!(stdout.contains(words), "{words:?} is not in\n{stdout}");
    }
    let sidecar = Sidecar::start(&stage.dir);
    until("a status that is content", || stage.end(&["status"]).0 == 0);
    let (_, stdout, _) = stage.end(&["status", "--json"]);
    let status: Value = serde_json::from_str(&stdout).unwrap();
    let shop = &status["daemons"][0]["apps"][1];
    assert_eq!(shop["workers"][0]["peers"][0]["address"], json!(stage.peer));
    assert!(shop["why_not"].as_str().unwrap().starts_with("one worker only"), "{shop}");
    sidecar.signal(rustix::process::Signal::KILL);
    until("the dead sidecar to be missed", || stage.end(&["status"]).0 == 8);
    let lonely = Dir::new();
    let (code, _, stderr) = end(&mut handoff(&lonely, &["status"]));
    assert_eq!(code, 9, "{stderr}");
    assert!(stderr.contains("PM2 does not run"), "everything that is missing is said: {stderr}");
}

#[test]
fn an_app_in_two_daemons_needs_a_home() {
    let stage = Stage::new();
    let other = Dir::new();
    let pm2 = Pm2::start(&other);
    pm2.list(0, "shop", 0, "online", json!({}));
    let homes = [stage.dir.join("pm2"), other.join("pm2")].map(|home| home.display().to_string());
    let args = ["--pm2-home", &homes[0], "--pm2-home", &homes[1], "drain", "shop"];
    fails(stage.end(&args), 6, &["shop runs under", "say which with --pm2-home"]);
    _ = &stage.pm2;
}

#[test]
fn an_answer_that_nobody_can_read_ends_nothing_otherwise() {
    let stage = Stage::new();
    // What is written there fails, as to a terminal that hung up.
    let deaf = || fs::File::options().write(true).open("/dev/full").unwrap();
    for (args, wanted) in
        [(["drain", "shop"], 0), (["ready", "shop"], 0), (["status", "-w"], 8), (["drain", "x"], 6)]
    {
        let mut command = handoff(&stage.dir, &args);
        let code = command.stdout(deaf()).stderr(deaf()).status().unwrap().code();
        assert_eq!(code, Some(wanted), "{args:?}");
    }
    let sidecar = Sidecar::logging_to(&stage.dir, "/dev/full".into());
    until("the sidecar to run", || stage.end(&["status"]).0 == 0);
    assert_eq!(sidecar.stop(), Some(0));
}

#[test]
fn help_lists_the_exit_codes() {
    let dir = Dir::new();
    let (code, stdout, _) = end(&mut handoff(&dir, &["--help"]));
    assert_eq!(code, 0);
    for line in ["0  done", "3  the deadline passed", "8  no sidecar runs"] {
        assert!(stdout.contains(line), "{stdout}");
    }
}

#[test]
fn the_preload_is_written_as_it_is_installed() {
    let (code, stdout, stderr) = end(&mut handoff(&Dir::new(), &["preload"]));
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert_eq!(stdout, include_str!("../preload/handoff.cjs"));
}
