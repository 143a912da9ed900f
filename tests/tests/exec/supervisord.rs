//! The real supervisord, by the configuration that docs/operations/exec.md shows.

use crate::stage::{Stage, clean};
use anyhow::{Context, Result, ensure};
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

async fn restart_each(version: &str, with_handoff: bool) -> Result<()> {
    let stage = Stage::set(version).await?;
    let supervisord = Supervisord::start(&stage, with_handoff).await?;
    let restart = async |worker: u16| {
        let said = supervisord.ctl(&["restart", &format!("worker-{worker}")]).await?;
        ensure!(said.contains(&format!("worker-{worker}: stopped")), "{said}");
        Ok(())
    };
    stage.restarts(with_handoff, restart).await?.is_as_it_should(version);
    drop(supervisord);
    stage.site.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn supervisorctl_restarts_a_worker_that_handles_no_signal_and_nobody_notices() -> Result<()> {
    let _alone = alone::take()?;
    let [_, version] = VERSIONS;
    restart_each(version, true).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "make exec-test"]
async fn without_handoff_exec_visitors_notice_what_supervisord_does() -> Result<()> {
    let _alone = alone::take()?;
    let [version, _] = VERSIONS;
    restart_each(version, false).await
}
