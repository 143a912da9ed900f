//! Containers as an engine makes them, without an engine: PID, mount, UTS, IPC and network namespaces of their own, their
//! program as process 1, and a bridge between them. The files are those of the machine. Needs root, `ip`, and `unshare`.

use crate::{
    command,
    place::{self, Place},
    process, wait,
};
use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use std::{
    env, fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

const PATIENCE: Duration = Duration::from_secs(30);

/// The bridge, and where the containers' files are. Gone when it is dropped, with the networks; drop what runs in them before.
#[derive(Debug)]
pub struct Host {
    number: u32,
    subnet: Ipv4Addr,
    names: Vec<String>,
    place: Place,
}

/// One that runs. Killed when it is dropped, with all that is in it.
#[derive(Debug)]
pub struct Container {
    name: String,
    child: Child,
    /// Its process 1, as the machine sees it.
    init: u32,
}

/// One that shares namespaces with another. Killed when it is dropped.
#[derive(Debug)]
pub struct Beside(Child);

/// What it shares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shares {
    PidAndNetwork,
    Pid,
    Network,
}

/// Whether tests can have containers. Says so if they cannot.
pub fn can_be_made() -> bool {
    let can = rustix::process::geteuid().is_root();
    if !can {
        eprintln!("SKIPPED: containers need root");
    }
    can
}

// === impl Host ===

impl Host {
    /// Networks for containers of these names, the first of which has the address 2: 198.19.x.y/29 is set aside for
    /// measurements (RFC 2544).
    pub async fn new(names: &[&str]) -> Result<Self> {
        let number = std::process::id();
        let [.., high, low] = number.to_be_bytes();
        let subnet = Ipv4Addr::new(198, 19, high, low & !7);
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        let host = Self { number, subnet, names, place: Place::new()? };
        let bridge = host.bridge();
        ip(&format!("link add {bridge} type bridge")).await.context("a bridge needs root, and iproute2")?;
        ip(&format!("addr add {}/29 dev {bridge}", host.numbered(1))).await?;
        ip(&format!("link set {bridge} up")).await?;
        for (index, name) in host.names.iter().enumerate() {
            let (space, outside) = (host.space(name), format!("hc{number}.{index}"));
            for line in [
                format!("netns add {space}"),
                format!("link add {outside} type veth peer name eth0 netns {space}"),
                format!("link set {outside} master {bridge}"),
                format!("link set {outside} up"),
                format!("-n {space} addr add {}/29 dev eth0", host.address(name)),
                format!("-n {space} link set eth0 up"),
                format!("-n {space} link set lo up"),
            ] {
                ip(&line).await?;
            }
            fs::create_dir_all(host.file(&format!("of-{name}")))?;
        }
        fs::create_dir_all(host.own())?;
        Ok(host)
    }

    /// What all containers see under the same name.
    pub fn file(&self, name: &str) -> PathBuf {
        self.place.file(name)
    }

    /// What each container has for itself, like the file system of its image.
    pub fn own(&self) -> PathBuf {
        self.place.file("own")
    }

    pub fn address(&self, name: &str) -> Ipv4Addr {
        let index = self.names.iter().position(|known| known == name).unwrap_or_default();
        self.numbered(2 + u32::try_from(index).unwrap_or_default())
    }

    pub fn at(&self, name: &str, port: u16) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(self.address(name)), port)
    }

    /// Starts one with this as its process 1; a shell word for word, which is to end in `exec`.
    pub async fn start(&self, name: &str, script: &str) -> Result<Container> {
        let mut unshare = self.inside(name);
        unshare.args(["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--uts", "--ipc"]);
        unshare.args(["sh", "-c", &self.begun(name, script)]).stdin(Stdio::null());
        let log = fs::File::options().create(true).append(true).open(self.log(name))?;
        let child = unshare.stdout(log.try_clone()?).stderr(log).spawn().context("cannot run ip")?;
        let mut container = Container { name: name.to_owned(), child, init: 0 };
        container.init = wait::until("a container to begin", PATIENCE, async || {
            process::children(container.child.id()).first().copied()
        })
        .await?;
        Ok(container)
    }

    /// Starts one beside another, as `pid: "service:…"` and `network_mode: "service:…"` do. What it does not share it has for
    /// itself; a network of its own is the one of `beside`.
    pub fn beside(&self, other: &Container, shares: Shares, name: &str, script: &str) -> Result<Beside> {
        let target = format!("--target={}", other.init);
        let mut command = match shares {
            Shares::PidAndNetwork => bare("nsenter", &[&target, "--pid", "--net"]),
            Shares::Network => bare("nsenter", &[&target, "--net"]),
            Shares::Pid => {
                let mut command = self.inside("beside");
                command.args(["nsenter", &target, "--pid"]);
                command
            }
        };
        command.args(["unshare", "--mount", "--uts", "--ipc"]);
        if shares == Shares::Network {
            command.args(["--pid", "--fork", "--kill-child"]);
        }
        let script = format!("mount -t proc proc /proc\n{}", self.begun(&other.name, script));
        command.args(["sh", "-c", &script]).stdin(Stdio::null());
        let log = fs::File::create(self.log(name))?;
        command.stdout(log.try_clone()?).stderr(log).spawn().map(Beside).context("cannot run nsenter")
    }

    /// Whether its address answers: an engine takes the network of a container that was stopped away.
    pub async fn plug(&self, name: &str, in_or_out: bool) -> Result<()> {
        let way = if in_or_out { "up" } else { "down" };
        ip(&format!("-n {} link set eth0 {way}", self.space(name))).await.map(drop)
    }

    /// What it wrote.
    pub fn said(&self, name: &str) -> String {
        fs::read_to_string(self.log(name)).unwrap_or_default()
    }

    fn log(&self, name: &str) -> PathBuf {
        self.place.file(&format!("{name}.log"))
    }

    fn inside(&self, name: &str) -> Command {
        bare("ip", &["netns", "exec", &self.space(name)])
    }

    /// Its host name, its own files, and the programs that its image would have.
    fn begun(&self, name: &str, script: &str) -> String {
        let [files, own, bin] = [self.file(&format!("of-{name}")), self.own(), self.file("bin")];
        format!(
            "set -e\necho {name} >/proc/sys/kernel/hostname\nmount --bind {} {}\nexport PATH={}:$PATH\n{script}",
            files.display(),
            own.display(),
            bin.display()
        )
    }

    fn bridge(&self) -> String {
        format!("hc{}", self.number)
    }

    fn space(&self, name: &str) -> String {
        format!("handoff-{}-{name}", self.number)
    }

    fn numbered(&self, number: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.subnet.to_bits() + number)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let delete = |words: &[&str]| _ = Command::new("ip").args(words).stderr(Stdio::null()).status();
        self.names.iter().for_each(|name| delete(&["netns", "delete", &self.space(name)]));
        delete(&["link", "delete", &self.bridge()]);
    }
}

/// With an environment as small as that of a container.
fn bare(program: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.env_clear().args(arguments);
    command.envs(["PATH", "HOME"].into_iter().filter_map(|name| Some((name, env::var_os(name)?))));
    command
}

async fn ip(line: &str) -> Result<String> {
    command::succeed(command::clean("ip").args(line.split(' '))).await
}

// === impl Container ===

impl Container {
    /// `docker exec`
    pub async fn exec(&self, script: &str) -> Result<(Option<i32>, String)> {
        let mut command = command::clean("nsenter");
        command.arg(format!("--target={}", self.init)).args(["--pid", "--mount", "--uts", "--ipc", "--net"]);
        let environment = fs::read(format!("/proc/{}/environ", self.init))?;
        let environment = String::from_utf8_lossy(&environment).into_owned();
        command.envs(environment.split('\0').filter_map(|variable| variable.split_once('=')));
        let output = command.args(["sh", "-c", script]).output().await?;
        let text = [output.stdout, output.stderr].concat();
        Ok((output.status.code(), String::from_utf8_lossy(&text).into_owned()))
    }

    /// `docker stop`: SIGTERM to its process 1, and SIGKILL after the time of grace, which here is a failure.
    pub async fn stop(mut self, grace: Duration) -> Result<()> {
        process::signal(self.init, Signal::TERM);
        let ended = wait::until("a container to end", grace, async || self.child.try_wait().ok().flatten());
        ended.await.with_context(|| format!("{} outlives {grace:?}", self.name))?;
        ensure!(!process::is_alive(self.init), "process 1 of {} lives on", self.name);
        Ok(())
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if self.init != 0 && matches!(self.child.try_wait(), Ok(None)) {
            process::signal(self.init, Signal::KILL);
        }
        process::end(&mut self.child, PATIENCE);
    }
}

// === impl Beside ===

impl Beside {
    /// Waits for its end.
    pub fn ended(&mut self) {
        process::ended(&mut self.0, PATIENCE);
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        // Who enters a PID namespace does so as a child of whoever asked for it.
        process::descendants(self.0.id()).into_iter().for_each(|pid| process::signal(pid, Signal::KILL));
        process::end(&mut self.0, PATIENCE);
    }
}

/// A program under the name by which an image has it.
pub fn put(host: &Host, name: &str, text: &str) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::create_dir_all(host.file("bin"))?;
    let path = host.file("bin").join(name);
    fs::write(&path, text)?;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o755))?)
}

/// One of the files that docs/operations/containers.md shows.
pub fn documented(name: &str) -> Result<String> {
    let path = place::root().join("docs/operations/containers").join(name);
    fs::read_to_string(&path).with_context(|| path.display().to_string())
}
