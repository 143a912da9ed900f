//! A machine with nginx: where the visitors come in.

use super::Told;
use crate::{
    access_log::AccessLog,
    net::{Machine, Realm},
    nginx::Binary,
    peers,
    place::{self, Place},
    process,
    scenario::Setup,
    sidecar::Sidecar,
    wait,
};
use anyhow::{Context, Result, ensure};
use handoff_wire::{PeerState, UpstreamView};
use rustix::process::Signal;
use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    process::{Child, Stdio},
    time::Duration,
};

const CONF: &str = include_str!("edge.conf");
const PATIENCE: Duration = Duration::from_secs(20);
/// What nginx writes when something is broken, and not only unusual.
const TROUBLE: [&str; 4] = ["[alert]", "[emerg]", "[crit]", "exited on signal"];

/// Fields are dropped in this order.
#[derive(Debug)]
pub struct Edge {
    pub sidecar: Option<Sidecar>,
    nginx: Option<Child>,
    /// What its sidecar was told.
    arguments: Vec<String>,
    is_gone: bool,
    binary: Binary,
    place: Place,
    machine: Machine,
}

impl Edge {
    /// nginx runs, and passes to these servers.
    pub async fn start(
        machine: Machine,
        binary: &Binary,
        servers: &[SocketAddr],
        setup: Setup,
    ) -> Result<Self> {
        let place = Place::new()?;
        let prefix = place.nginx_prefix();
        fs::create_dir(&prefix)?;
        let servers: Vec<String> =
            servers.iter().map(|server| format!("        server {server} max_fails=0;")).collect();
        let text = CONF
            .replace("@module@", &place::module(&binary.version)?.display().to_string())
            .replace("@prefix@", &prefix.display().to_string())
            .replace("@control@", &place.control_socket().display().to_string())
            .replace("@servers@", &servers.join("\n"))
            .replace("@handoff@", if setup == Setup::Handoff { "handoff;" } else { "" });
        fs::write(prefix.join("nginx.conf"), text)?;
        let mut edge = Self {
            sidecar: None,
            nginx: None,
            arguments: vec![],
            is_gone: false,
            binary: binary.clone(),
            place,
            machine,
        };
        edge.start_nginx().await?;
        Ok(edge)
    }

    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Where visitors find it.
    pub fn address(&self) -> SocketAddr {
        self.machine.address(80)
    }

    fn realm(&self) -> Realm {
        self.machine.realm()
    }

    /// Comes back when every socket is bound.
    pub async fn start_nginx(&mut self) -> Result<()> {
        let prefix = self.place.nginx_prefix();
        let pid_file = prefix.join("nginx.pid");
        _ = fs::remove_file(&pid_file);
        let mut nginx = self.realm().command(&self.binary.path);
        nginx.args(["-g", "daemon off;", "-e", "stderr", "-p"]).arg(&prefix);
        nginx.arg("-c").arg(prefix.join("nginx.conf")).stdin(Stdio::null()).stdout(Stdio::null());
        nginx.stderr(fs::File::create(prefix.join("stderr"))?);
        let child = self.nginx.insert(nginx.spawn().context("cannot run nginx")?);
        let listens = wait::until("nginx to listen", PATIENCE, async || match child.try_wait() {
            Ok(Some(status)) => Some(Err(anyhow::anyhow!("nginx ended with {status}"))),
            _ => fs::read_to_string(&pid_file).is_ok_and(|text| text.ends_with('\n')).then_some(Ok(())),
        });
        listens.await?.with_context(|| fs::read_to_string(prefix.join("stderr")).unwrap_or_default())
    }

    /// Without a word: the master, and its workers.
    pub async fn kill_nginx(&mut self) -> Result<()> {
        let mut child = self.nginx.take().context("nginx does not run")?;
        let all = process::descendants(child.id());
        for pid in std::iter::once(child.id()).chain(all.iter().copied()) {
            process::signal(pid, Signal::KILL);
        }
        child.wait()?;
        for pid in all {
            process::death(pid).await?;
        }
        Ok(())
    }

    pub fn start_sidecar(&mut self, arguments: &[String]) -> Result<()> {
        self.arguments = arguments.to_vec();
        self.start_sidecar_again()
    }

    pub fn start_sidecar_again(&mut self) -> Result<()> {
        self.sidecar = Some(Sidecar::launch_on(&self.realm(), &self.place, &self.arguments)?);
        Ok(())
    }

    pub fn kill_sidecar(&mut self) -> Result<()> {
        self.sidecar.take().context("it has no sidecar")?.kill();
        Ok(())
    }

    /// All that runs there dies, and nobody hears of it any more.
    pub async fn pull_the_plug(&mut self) -> Result<()> {
        self.is_gone = true;
        self.machine.pull_the_plug().await
    }

    pub fn is_gone(&self) -> bool {
        self.is_gone
    }

    /// What its nginx holds of every peer.
    pub async fn upstream(&self) -> Result<UpstreamView> {
        let all = peers::upstreams(&self.place.control_socket()).await?;
        all.upstreams.into_iter().next().context("no upstream")
    }

    /// Peers that do not serve, or that anybody says something of.
    pub async fn not_as_ever(&self) -> Result<Vec<Told>> {
        let peers = self.upstream().await?.peers.into_iter();
        let odd = peers.filter(|peer| peer.state != PeerState::Up || !peer.marks.is_empty());
        Ok(odd
            .map(|peer| Told {
                peer: peer.address.clone(),
                what: format!("{:?} {:?}", peer.state, peer.marks),
            })
            .collect())
    }

    /// What nginx logged is complete only when it has ended; one that was killed wrote what it had a moment before.
    pub async fn strike(mut self) -> Result<AccessLog> {
        if self.is_gone {
            return AccessLog::read(&self.file("access.log"));
        }
        if let Some(sidecar) = self.sidecar.take() {
            sidecar.stop()?;
        }
        if let Some(mut child) = self.nginx.take() {
            process::signal(child.id(), Signal::QUIT);
            let status =
                wait::until("nginx to end", PATIENCE, async || child.try_wait().ok().flatten()).await?;
            ensure!(status.success(), "nginx ended with {status}");
        }
        let log = fs::read_to_string(self.file("error.log")).unwrap_or_default();
        let trouble: Vec<&str> =
            log.lines().filter(|line| TROUBLE.iter().any(|word| line.contains(word))).collect();
        ensure!(trouble.is_empty(), "nginx complains:\n{}", trouble.join("\n"));
        AccessLog::read(&self.file("access.log"))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.place.nginx_prefix().join(name)
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        if let Some(child) = &mut self.nginx {
            process::end(child, Duration::from_secs(5));
        }
    }
}
