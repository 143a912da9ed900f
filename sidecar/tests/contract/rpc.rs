//! What PM2 answers.

use crate::{
    pm2::{Pm2, until},
    tap::ask,
};
use handoff::pm2::{PmId, monitor::Status, rpc::RpcError};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};
use tokio::time::timeout;

fn refusal(result: Result<(), RpcError>) -> String {
    match result.unwrap_err() {
        RpcError::Refused { text, .. } => text,
        error => panic!("{error}"),
    }
}

pub async fn answers(pm2: &Pm2) {
    let shop = json!({ "name": "shop", "instances": 2, "exec_mode": "fork", "increment_var": "PORT",
                       "wait_ready": true, "listen_timeout": 20000, "kill_timeout": "5000",
                       "env": { "PORT": "21000" } });
    pm2.start_apps(json!([shop])).await;
    let mut rpc = pm2.rpc().await;
    assert_eq!(rpc.version().await.unwrap(), pm2.cell.version);
    let report = rpc.report().await.unwrap();
    assert_eq!(report.version, pm2.cell.version);
    assert_eq!(Path::new(&report.argv[0]), pm2.cell.node());
    assert_eq!(Path::new(&report.argv[1]), pm2.cell.pm2().join("lib/Daemon.js"));

    let before = pm2.list().await;
    let settings = &before[1].settings;
    assert_eq!((before[1].id, before[1].app.as_str(), before[1].status), (PmId(1), "shop", Status::Online));
    assert_eq!((settings.port, settings.instance), (Some(21001), Some(1)));
    assert_eq!(settings.increment_var.as_deref(), Some("PORT"));
    let timeouts = [settings.kill_timeout, settings.listen_timeout].map(Option::unwrap);
    assert_eq!(timeouts, [Duration::from_secs(5), Duration::from_secs(20)]);
    assert!(settings.wait_ready && settings.treekill && settings.autorestart && !settings.cluster);
    assert!(settings.out_log.as_ref().unwrap().is_file() && settings.err_log.as_ref().unwrap().is_file());
    assert_eq!((settings.restarts, settings.created_at.is_some()), (0, true));

    rpc.reload(PmId(1), None).await.unwrap();
    let after = pm2.list().await;
    assert_eq!(after[1].settings.restarts, 1);
    assert!(after[1].settings.created_at > before[1].settings.created_at);
    assert_ne!(after[1].pid, before[1].pid);
    assert_eq!(after[0], before[0], "the other one is left alone");
    assert_eq!(pm2.life(PmId(1)).port.as_deref(), Some("21001"));

    rpc.stop(PmId(1)).await.unwrap();
    let stopped = &pm2.list().await[1];
    assert_eq!((stopped.status, stopped.pid), (Status::Stopped, None));
    rpc.stop(PmId(1)).await.expect("what is stopped may be stopped");
    rpc.reload(PmId(1), None).await.expect("what is stopped may be reloaded");
    assert_eq!(pm2.list().await[1].status, Status::Online);

    assert_eq!(refusal(rpc.reload(PmId(99), None).await), "PM2 ID unknown");
    assert_eq!(refusal(rpc.stop(PmId(99)).await), "99 : id unknown");
    let socket = pm2.home().rpc();
    assert_eq!(ask(&socket, "nosuch", json!([]))["error"], "method \"nosuch\" does not exist");

    let copy: Value = ask(&socket, "duplicateProcessId", json!([0]));
    assert_eq!(copy["args"][0]["pm2_env"]["pm_id"], 2);
    assert_eq!(pm2.list().await[2].settings.port, Some(21002));
    assert!(ask(&socket, "deleteProcessId", json!([2]))["error"].is_null());
    assert_eq!(pm2.list().await.len(), 2);

    // As one is started that stands in for another: PM2 counts on nothing but its number.
    let settings = rpc.settings(PmId(0)).await.unwrap().unwrap().at_port("PORT", 21007).unwrap();
    assert_eq!(rpc.start_one(&settings).await.unwrap(), PmId(3));
    let one_more = pm2.list().await.pop().unwrap();
    assert_eq!((one_more.id, one_more.app.as_str(), one_more.settings.restarts), (PmId(3), "shop", 0));
    assert_eq!((one_more.settings.port, one_more.settings.instance), (Some(21007), Some(1)));
    let life = pm2.life(PmId(3));
    assert_eq!((life.port.as_deref(), life.instance.as_deref()), (Some("21007"), Some("1")));
    assert!(one_more.settings.out_log != before[0].settings.out_log && one_more.settings.wait_ready);
    assert_eq!(pm2.list().await[0], before[0], "whose settings they are is left alone");
    rpc.delete(PmId(3)).await.unwrap();
    assert_eq!(pm2.list().await.len(), 2);
}

pub async fn notices_a_death(pm2: &Pm2) {
    pm2.start_apps(json!([{ "name": "shop", "kill_timeout": 60000, "env": { "STUBBORN": "yes" } }])).await;
    let mut rpc = pm2.rpc().await;
    // An order that nobody waits for goes on, and the connection is good for the next question.
    assert!(timeout(Duration::from_millis(100), rpc.reload(PmId(0), None)).await.is_err());
    until("the app got its signal", || pm2.facts("SIGINT").len() == 1);
    assert_eq!(rpc.list().await.unwrap()[0].status, Status::Stopping);

    let daemon = Pid::from_raw(rpc.daemon().pid.cast_signed()).unwrap();
    let answer = tokio::spawn(async move { rpc.stop(PmId(0)).await });
    until("PM2 was asked again", || pm2.facts("SIGINT").len() == 2);
    kill_process(daemon, Signal::KILL).unwrap();
    let error = answer.await.unwrap().unwrap_err();
    assert!(matches!(error, RpcError::Closed) && error.is_absence(), "{error}");
}

/// A build that ends before it is ready. No PM2 says so in its answer.
pub async fn does_not_tell_of_a_broken_build(pm2: &Pm2) {
    let patience = Duration::from_secs(2);
    let shop = json!({ "name": "shop", "wait_ready": true, "listen_timeout": 2000, "env": {} });
    pm2.start_apps(json!([shop])).await;
    fs::write(pm2.path("facts.broken"), "").unwrap();
    let started = Instant::now();
    pm2.rpc().await.reload(PmId(0), None).await.unwrap();
    assert!(pm2.facts("start").len() >= 2);
    // PM2 7 answers at the first death; before, it starts the build again and again, and answers after all that time.
    assert!(pm2.is_7() || started.elapsed() >= patience, "answered after {:?}", started.elapsed());
}

/// `pm2 stop` of a worker that runs and is not ready yet.
pub async fn stops_what_is_not_ready(pm2: &Pm2) {
    let shop = json!({ "name": "shop", "wait_ready": true, "listen_timeout": 60000, "env": {} });
    pm2.start_apps(json!([shop])).await;
    fs::write(pm2.path("facts.mute"), "").unwrap();
    let mut rpc = pm2.rpc().await;
    assert!(timeout(Duration::from_millis(10), rpc.reload(PmId(0), None)).await.is_err());
    until("the new process runs", || pm2.facts("start").len() == 2);
    rpc.stop(PmId(0)).await.unwrap();
    if pm2.is_7() {
        // It takes the end of a process that was not ready for a crash, even if it was asked for.
        until("PM2 starts it again", || pm2.facts("start").len() == 3);
    } else {
        assert_eq!(pm2.list().await[0].status, Status::Stopped);
    }
}

/// Two reloads of one worker at once, as two operators would order them.
pub async fn refuses_a_second_reload(pm2: &Pm2) {
    let shop = json!({ "name": "shop", "exec_mode": "cluster", "wait_ready": true, "listen_timeout": 3000, "env": {} });
    pm2.start_apps(json!([shop])).await;
    fs::write(pm2.path("facts.mute"), "").unwrap();
    let mut first = pm2.rpc().await;
    let first = tokio::spawn(async move { first.reload(PmId(0), None).await });
    until("the new process runs", || pm2.facts("start").len() == 2);
    let second = pm2.rpc().await.reload(PmId(0), None).await;
    if pm2.is_7() {
        assert_eq!(refusal(second), "Reload already in progress for process id 0, retry later");
    } else {
        second.expect("PM2 5 and 6 do it, and lose sight of the first process");
    }
    first.await.unwrap().unwrap();
}

/// A build that ends again and again before it is ready, and that PM2 7 would not stop: frozen until PM2 waits no longer
/// for `ready`, it is.
pub async fn stops_what_was_frozen(pm2: &Pm2) {
    let shop = json!({ "name": "shop", "wait_ready": true, "listen_timeout": 2000, "env": {} });
    pm2.start_apps(json!([shop])).await;
    fs::write(pm2.path("facts.mute"), "").unwrap();
    fs::write(pm2.path("facts.dying"), "").unwrap();
    let mut rpc = pm2.rpc().await;
    rpc.reload(PmId(0), None).await.unwrap();
    // It may be between two lives.
    while rpc.signal(PmId(0), "SIGSTOP").await.is_err() {}
    let starts = pm2.facts("start").len();
    while pm2.list().await[0].status != Status::Online {}
    rpc.stop(PmId(0)).await.unwrap();
    let stopped = &pm2.list().await[0];
    assert_eq!((stopped.status, stopped.pid), (Status::Stopped, None));
    assert!(pm2.facts("start").len() <= starts + 1, "at most the life that was just beginning");
}

/// In cluster mode PM2 waits for `ready` from when Node says that the worker is online: one that is frozen before that neither
/// becomes online nor can be stopped, until it goes on.
pub async fn waits_for_what_was_frozen_too_early(pm2: &Pm2) {
    let shop = json!({ "name": "shop", "exec_mode": "cluster", "wait_ready": true, "listen_timeout": 500, "env": {} });
    pm2.start_apps(json!([shop])).await;
    // It may have ended meanwhile.
    let signal = |pid: u32, signal| _ = kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), signal);
    let shop = async || pm2.list().await.remove(0);
    let mut frozen = shop().await.pid.unwrap();
    loop {
        signal(frozen, Signal::KILL);
        let before = frozen;
        while frozen == before {
            frozen = shop().await.pid.unwrap_or(before);
        }
        signal(frozen, Signal::STOP);
        let stopped = timeout(Duration::from_secs(2), pm2.rpc().await.stop(PmId(0))).await;
        if stopped.is_err() && shop().await.status == Status::Launching {
            break;
        }
        // Node was faster, and PM2 ends it, or gave it up.
        while pm2.rpc().await.reload(PmId(0), None).await.is_err() {}
        frozen = shop().await.pid.unwrap();
    }
    let waits = shop().await;
    assert_eq!((waits.status, waits.pid), (Status::Launching, Some(frozen)));
    signal(frozen, Signal::CONT);
    while shop().await.status == Status::Launching {}
}
