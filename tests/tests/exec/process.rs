//! It is a process like the one that it runs: its status, its signals, its descriptors; with nginx or without.

use crate::stage::{Stage, Worker, clean, how};
use anyhow::{Context, Result};
use e2e::{
    crowd, place, ports, process,
    site::{PATIENCE, VERSIONS},
    wait,
};
use handoff_wire::PeerState;
use rustix::process::Signal;
use std::{
    fs,
    os::unix::process::ExitStatusExt as _,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};
use tempfile::TempDir;

const DRAIN: Duration = Duration::from_secs(30);

/// Without an nginx.
fn exec(words: &[&str]) -> Result<Command> {
    let mut command = clean(place::handoff()?);
    command.args(["--control", "unix:/nowhere/nginx.sock", "exec"]).args(words);
    Ok(command)
}

fn output(words: &[&str]) -> Result<Output> {
    Ok(exec(words)?.stdout(Stdio::piped()).stderr(Stdio::piped()).output()?)
}

#[test]
fn it_ends_as_its_command_does() -> Result<()> {
    for (words, code, signal) in [
        (&["--", "true"][..], Some(0), None),
        (&["--", "sh", "-c", "exit 7"], Some(7), None),
        (&["--", "sh", "-c", "kill -KILL $$"], None, Some(9)),
        (&["--", "sh", "-c", "kill -SEGV $$"], None, Some(11)),
        (&["--", "sh", "-c", "kill -HUP $$"], None, Some(1)),
        (&["--", "no-such-command"], Some(127), None),
        (&["--", "/etc/passwd"], Some(126), None),
    ] {
        let output = output(words)?;
        assert_eq!((output.status.code(), output.status.signal()), (code, signal), "{words:?}: {output:?}");
    }
    Ok(())
}

#[test]
fn wrong_words_are_refused_with_the_mend() -> Result<()> {
    for (words, says) in [
        (&["--stop-signals", "KILL", "--", "true"][..], "HUP, INT, QUIT"),
        (&["--socket", "app.sock", "--", "true"], "no absolute path"),
        (&["--health", "health", "--", "true"], "begins with a slash"),
        (&[], "<COMMAND>"),
    ] {
        let output = output(words)?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains(says), "{text}");
    }
    Ok(())
}

#[test]
fn without_nginx_it_says_what_is_missing_and_the_command_runs() -> Result<()> {
    let output = output(&["--", "echo", "it runs"])?;
    assert_eq!(output.stdout, b"it runs\n");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        text.contains("nginx's control socket unix:/nowhere/nginx.sock does not exist: is nginx running")
    );
    Ok(())
}

#[test]
fn numbers_that_mean_the_supervisor_mean_its_command() -> Result<()> {
    // What a shell writes there is its own number, which is that of what it becomes.
    let inner = "test $LISTEN_PID = $$ && test $WATCHDOG_PID = $$ && test $OTHER_PID != $$ && echo same";
    let handoff = place::handoff()?;
    let script = format!(
        "export LISTEN_PID=$$ WATCHDOG_PID=$$ OTHER_PID=$$; exec {} --log error exec -- sh -c '{inner}'",
        handoff.display()
    );
    let output = clean("sh").args(["-c", &script]).stdout(Stdio::piped()).output()?;
    assert_eq!(String::from_utf8_lossy(&output.stdout), "same\n");
    Ok(())
}

/// A supervisor's descriptors are its command's.
#[test]
fn sockets_that_were_opened_before_are_inherited() -> Result<()> {
    let directory = TempDir::new()?;
    let file = directory.path().join("third");
    let handoff = place::handoff()?;
    let script = format!(
        "exec 3>{}; exec {} --log error exec -- sh -c 'echo through >&3'",
        file.display(),
        handoff.display()
    );
    assert!(clean("sh").args(["-c", &script]).status()?.success());
    assert_eq!(fs::read_to_string(file)?, "through\n");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_passes_at_once_where_nginx_has_nothing_to_do_with_it() -> Result<()> {
    let stage = Stage::set(VERSIONS[0]).await?;
    // nginx is not there, or has no such peer.
    for words in [&["--control", "unix:/nowhere/nginx.sock", "exec"][..], &["exec", "--port", "1"]] {
        let mut command = clean(place::handoff()?);
        command.env("HANDOFF_CONTROL", format!("unix:{}", stage.site.socket().display()));
        command.args(words).args(["--", "sleep", "60"]);
        let mut worker = stage.start(command, "worker")?;
        let sleep = worker.command().await?;
        for signal in [Signal::WINCH, Signal::CONT] {
            worker.signal(signal);
        }
        let began = Instant::now();
        worker.signal(Signal::TERM);
        assert_eq!(how(worker.ended().await?), (None, Some(15)));
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
        assert!(!process::is_alive(sleep));
    }
    stage.site.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_it_does_not_handle_is_a_stop_and_what_it_handles_is_its_own_business() -> Result<()> {
    let stage = Stage::set(VERSIONS[0]).await?;
    let mut worker = stage.start(stage.app(0, true, &[])?, "worker")?;
    stage.serves(0).await?;
    // Node catches USR1 (its debugger), and nobody drains for it.
    worker.signal(Signal::USR1);
    worker.says("Debugger listening on").await?;
    assert_eq!(stage.peer(0).await?.state, PeerState::Up);
    // By HUP it would end.
    let slow = tokio::spawn(crowd::one(ports::address(stage.site.port()), "/slow?ms=700"));
    stage.site.has_in_flight(&stage.peer_name(0), 1).await?;
    worker.signal(Signal::HUP);
    stage.is(0, PeerState::Draining).await?;
    assert_eq!(slow.await??.status, 200);
    assert_eq!(how(worker.ended().await?), (None, Some(1)));
    stage.site.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_twice_does_not_want_to_wait() -> Result<()> {
    let stage = Stage::set(VERSIONS[1]).await?;
    let mut worker = stage.start(stage.app(0, true, &[])?, "worker")?;
    stage.serves(0).await?;
    let slow = tokio::spawn(crowd::one(ports::address(stage.site.port()), "/slow?ms=60000"));
    stage.site.has_in_flight(&stage.peer_name(0), 1).await?;
    worker.signal(Signal::TERM);
    stage.is(0, PeerState::Draining).await?;
    assert!(worker.is_running(), "nginx has a request with it");
    let began = Instant::now();
    worker.signal(Signal::INT);
    assert_eq!(how(worker.ended().await?), (None, Some(2)));
    assert!(began.elapsed() < DRAIN / 10);
    slow.abort();
    stage.site.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn past_the_deadline_it_is_told_all_the_same() -> Result<()> {
    let stage = Stage::set(VERSIONS[1]).await?;
    let mut worker = stage.start(stage.app(0, true, &["--drain-timeout", "500ms"])?, "worker")?;
    stage.serves(0).await?;
    let slow = tokio::spawn(crowd::one(ports::address(stage.site.port()), "/slow?ms=60000"));
    stage.site.has_in_flight(&stage.peer_name(0), 1).await?;
    worker.signal(Signal::TERM);
    assert_eq!(how(worker.ended().await?), (None, Some(15)));
    let said = worker.said();
    assert!(said.contains("nginx still has 1 in flight after 0.5 s: it is told to go"), "{said}");
    slow.abort();
    stage.site.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn orphans_of_its_command_are_no_zombies() -> Result<()> {
    let command = exec(&["--", "sh", "-c", "for i in 1 2 3; do (sleep 0.1 &) ; done; exec sleep 60"])?;
    let directory = TempDir::new()?;
    let worker = Worker::start(command, directory.path().join("log"))?;
    wait::until("the orphans to be gone", PATIENCE, async || {
        let children = process::children(worker.pid());
        let [only] = children.as_slice() else { return None };
        process::title(*only).filter(|title| title.trim() == "sleep 60").map(drop)
    })
    .await
    .with_context(|| format!("{:?}", process::children(worker.pid())))
}
