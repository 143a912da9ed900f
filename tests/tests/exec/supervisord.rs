//! The real supervisord, by the configuration that docs/operations/exec.md shows.

use crate::stage::{Stage, clean};
use anyhow::{Context, Result};
use e2e::{
    alone, command, process,
    site::{PATIENCE, VERSIONS},
    wait,
};
use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
};

/// Ends, with what it runs, when it is dropped.
struct Supervisord {
    child: Child,
    conf: PathBuf,
}

impl Supervisord {
    /// With two workers.
    async fn start(stage: &Stage, with_handoff: bool) -> Result<Self> {
        let file = |name: &str| stage.site.file(name).display().to_string();
        let (socket, conf) = (file("supervisor.sock"), stage.site.file("supervisord.conf"));
        let mut text = format!(
            "[supervisord]\nnodaemon=true\nlogfile={}\npidfile={}\nchildlogdir={}\n\n[unix_http_server]\nfile={socket}\n\n\
             [rpcinterface:supervisor]\nsupervisor.rpcinterface_factory = \
             supervisor.rpcinterface:make_main_rpcinterface\n\n[supervisorctl]\nserverurl=unix://{socket}\n",
            file("supervisord.log"),
            file("supervisord.pid"),
            file(""),
        );
        for worker in [0, 1] {
            let options = ["--health", "/health", "--drain-timeout", "20s"];
            text += &program(worker, &stage.app(worker, with_handoff, &options)?);
        }
        fs::write(&conf, text)?;
        let mut supervisord = clean("supervisord");
        supervisord.arg("--configuration").arg(&conf).stderr(Stdio::null());
        let child = supervisord.spawn().context("cannot run supervisord: run `build/setup`")?;
        let supervisord = Self { child, conf };
        let answers = async || supervisord.ctl(&["pid"]).await.ok();
        wait::until("supervisord to answer", PATIENCE, answers).await?;
        Ok(supervisord)
    }

    async fn ctl(&self, arguments: &[&str]) -> Result<String> {
        let mut supervisorctl = command::clean("supervisorctl");
        command::succeed(supervisorctl.arg("--configuration").arg(&self.conf).args(arguments)).await
    }
}

impl Drop for Supervisord {
    fn drop(&mut self) {
        process::end(&mut self.child, PATIENCE);
    }
}

/// The command, in its words.
fn program(worker: u16, command: &Command) -> String {
    let text = |word: &std::ffi::OsStr| word.to_string_lossy().replace('%', "%%");
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<String> = words.map(|word| format!("\"{}\"", text(word))).collect();
    let environment = command.get_envs().filter_map(|(name, value)| Some((text(name), text(value?))));
    let environment: Vec<String> = environment.map(|(name, value)| format!("{name}=\"{value}\"")).collect();
    format!(
        "\n[program:worker-{worker}]\ncommand={}\nenvironment={}\nstopwaitsecs=30\n",
        words.join(" "),
        environment.join(",")
    )
}

/// How many of how many visits failed while each worker was restarted.
async fn restart_each(version: &str, with_handoff: bool) -> Result<(Vec<String>, usize)> {
    let stage = Stage::set(version).await?;
    let supervisord = Supervisord::start(&stage, with_handoff).await?;
    let serves = async |worker| match with_handoff {
        true => stage.serves(worker).await,
        false => stage.listens(worker).await,
    };
    for worker in [0, 1] {
        serves(worker).await?;
    }
    let load = stage.load();
    for worker in [0, 1] {
        let said = supervisord.ctl(&["restart", &format!("worker-{worker}")]).await?;
        assert!(said.contains(&format!("worker-{worker}: stopped")), "{said}");
        serves(worker).await?;
    }
    let visits = load.stop().await;
    let failed = stage.judge(&visits)?;
    drop(supervisord);
    stage.site.end().await?;
    Ok((failed, visits.len()))
}

#[tokio::test(flavor = "multi_thread")]
async fn supervisorctl_restarts_a_worker_that_handles_no_signal_and_nobody_notices() -> Result<()> {
    let _alone = alone::take()?;
    let [_, version] = VERSIONS;
    let (failed, all) = restart_each(version, true).await?;
    println!("nginx {version}, with handoff exec: {} of {all} failed", failed.len());
    assert_eq!(failed, [""; 0], "of {all}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "make exec-test"]
async fn without_handoff_exec_visitors_notice_what_supervisord_does() -> Result<()> {
    let _alone = alone::take()?;
    let [version, _] = VERSIONS;
    let (failed, all) = restart_each(version, false).await?;
    println!("nginx {version}, without handoff exec: {} of {all} failed", failed.len());
    assert!(!failed.is_empty(), "then the test above shows nothing");
    Ok(())
}
