//! An nginx with a configuration of a test's own, and all that a test may want to do to it.

use crate::{
    backend::Backend,
    door::{Door, Reply},
    net::Realm,
    nginx::Binary,
    place::{self, Place},
    ports, process, wait,
};
use anyhow::{Context, Result, bail, ensure};
use handoff_wire::{Ack, Code, Events, Overview, PeerView, Span, State, UpstreamView, path};
use hyper::Method;
use rustix::process::Signal;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::{
    fs,
    os::unix::{fs::chown, process::CommandExt},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

/// The nginx versions that every build has.
pub const VERSIONS: [&str; 2] = ["1.22.1", "1.28.3"];

/// A user and a group with no rights at all, on every system.
pub const NOBODY: u32 = 65534;

pub const PATIENCE: Duration = Duration::from_secs(10);

/// What nginx writes when something is broken, and not only unusual.
const TROUBLE: [&str; 4] = ["[alert]", "[emerg]", "[crit]", "exited on signal"];

/// Ends with its nginx when it is dropped.
#[derive(Debug)]
pub struct Site {
    binary: Binary,
    module: PathBuf,
    place: Place,
    port: u16,
    workers: usize,
    connections: usize,
    user: Option<u32>,
    realm: Realm,
    child: Option<Child>,
    /// The master: another process than the child after an upgrade.
    master: u32,
}

/// What an owner says of some peers.
#[derive(Clone, Debug)]
pub struct Say {
    pub owner: &'static str,
    pub state: State,
    pub lease: Option<Span>,
    pub reason: &'static str,
    pub force: bool,
}

impl Site {
    pub async fn new(version: &str) -> Result<Self> {
        // A test that fails shows this.
        eprintln!("nginx {version}");
        let binary = Binary::find(Some(version)).await?;
        let place = Place::new()?;
        fs::create_dir(place.nginx_prefix())?;
        Ok(Self {
            module: place::module(&binary.version)?,
            binary,
            place,
            port: ports::row(3)?,
            workers: 2,
            connections: 1024,
            user: None,
            realm: Realm::default(),
            child: None,
            master: 0,
        })
    }

    /// One upstream `app` that takes part, one server that passes to it, and the control socket; then it is started.
    pub async fn with(version: &str, backend: &Backend) -> Result<Self> {
        let mut site = Self::new(version).await?;
        site.write(&site.usual(backend))?;
        site.start().await?;
        Ok(site)
    }

    pub fn usual(&self, backend: &Backend) -> String {
        self.usual_with(&format!("{} keepalive 8;", backend.servers()))
    }

    /// This stands in the upstream.
    pub fn usual_with(&self, upstream: &str) -> String {
        format!(
            "upstream app {{ zone app 256k; {upstream} handoff; }}\n{}\n{}",
            self.front("proxy_pass http://app;"),
            self.api("write=on")
        )
    }

    /// A server whose location `/` says this.
    pub fn front(&self, location: &str) -> String {
        format!(
            "server {{\n    listen 127.0.0.1:{};\n    location / {{\n        proxy_http_version 1.1;\n        \
             proxy_set_header Connection \"\";\n        {location}\n    }}\n}}",
            self.port
        )
    }

    /// The control server.
    pub fn api(&self, parameters: &str) -> String {
        format!(
            "server {{ listen unix:{}; access_log off; location / {{ handoff_api {parameters}; }} }}",
            self.socket().display()
        )
    }

    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = workers;
        self
    }

    /// Of each worker.
    pub fn connections(mut self, connections: usize) -> Self {
        self.connections = connections;
        self
    }

    pub fn in_realm(mut self, realm: Realm) -> Self {
        self.realm = realm;
        self
    }

    /// Loads another build of the module.
    pub fn loads(mut self, module: PathBuf) -> Self {
        self.module = module;
        self
    }

    /// All of it runs as another user, to whom the place then belongs.
    pub fn run_as(mut self, user: u32) -> Result<Self> {
        // What the build made may lie where that user cannot go.
        let binary = self.file("nginx-binary");
        fs::copy(&self.binary.path, &binary)?;
        fs::copy(&self.module, self.file("module.so"))?;
        self.binary.path = binary;
        self.module = self.file("module.so");
        for path in [self.place.path().to_path_buf(), self.place.nginx_prefix()] {
            chown(path, Some(user), Some(user))?;
        }
        self.user = Some(user);
        Ok(self)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its directory, for whoever stands beside nginx.
    pub fn place(&self) -> &Place {
        &self.place
    }

    pub fn socket(&self) -> PathBuf {
        self.place.control_socket()
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.place.file(name)
    }

    pub fn conf(&self) -> PathBuf {
        self.place.nginx_prefix().join("nginx.conf")
    }

    pub fn visitors(&self) -> Door {
        Door::Tcp(ports::address(self.port))
    }

    pub fn control(&self) -> Door {
        Door::Unix(self.socket())
    }

    /// What stands in the http block; all around it is as it is everywhere.
    pub fn write(&self, http: &str) -> Result<()> {
        self.write_whole(http, "")
    }

    pub fn write_whole(&self, http: &str, main: &str) -> Result<()> {
        let prefix = self.place.nginx_prefix().display().to_string();
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("{kind}_temp_path {prefix}/{kind};"))
            .join(" ");
        let text = format!(
            "load_module {};\nworker_processes {};\nerror_log {prefix}/error.log info;\npid {prefix}/nginx.pid;\n{main}\n\
             events {{ worker_connections {}; }}\nhttp {{\naccess_log off;\n{temporary}\n{http}\n}}\n",
            self.module.display(),
            self.workers,
            self.connections
        );
        fs::write(self.conf(), text)?;
        Ok(())
    }

    /// The number of the line of nginx.conf in which these words end.
    pub fn line_of(&self, words: &str) -> Result<usize> {
        let text = fs::read_to_string(self.conf())?;
        let at = text.find(words).with_context(|| format!("{words:?} is not in {text}"))?;
        let before = text.get(..at + words.len()).unwrap_or_default();
        Ok(before.matches('\n').count() + 1)
    }

    fn command(&self) -> Command {
        let mut command = self.realm.command(&self.binary.path);
        command.args(["-e", "stderr", "-p"]).arg(self.place.nginx_prefix()).arg("-c").arg(self.conf());
        command.stdin(Stdio::null()).stdout(Stdio::null());
        if let Some(user) = self.user {
            command.uid(user).gid(user);
        }
        command
    }

    /// `nginx -t`: whether it takes the configuration, and what it says.
    pub async fn check(&self) -> Result<(bool, String)> {
        let output = tokio::process::Command::from(self.command()).arg("-t").output();
        let output = tokio::time::timeout(PATIENCE, output).await.context("nginx -t hangs")??;
        Ok((output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned()))
    }

    /// Starts, and comes back when it listens.
    pub async fn start(&mut self) -> Result<()> {
        self.start_with("daemon off;").await
    }

    /// As a system starts it. Only such an nginx takes an upgrade of its binary.
    pub async fn start_daemon(&mut self) -> Result<()> {
        self.start_with("daemon on;").await
    }

    async fn start_with(&mut self, directives: &str) -> Result<()> {
        let stderr = self.place.nginx_prefix().join("stderr");
        _ = fs::remove_file(self.pid_file());
        let mut command = self.command();
        command.args(["-g", directives]).stderr(fs::File::create(&stderr)?);
        let child = command.spawn().with_context(|| format!("cannot run {}", self.binary.path.display()))?;
        let child = self.child.insert(child);
        self.master = child.id();
        let pid_file = self.place.nginx_prefix().join("nginx.pid");
        let listens = wait::until("nginx to listen", PATIENCE, async || match child.try_wait() {
            Ok(Some(status)) if !status.success() => Some(Err(status)),
            // The master writes it when every socket is bound and every zone is made.
            _ => Some(Ok(fs::read_to_string(&pid_file).ok()?.trim().parse().ok()?)),
        });
        match listens.await? {
            Ok(master) => self.master = master,
            Err(status) => {
                bail!("nginx ended with {status}: {}", fs::read_to_string(stderr)? + &self.error_log())
            }
        }
        self.serving(&[]).await?;
        Ok(())
    }

    /// The pid that nginx wrote down last.
    pub fn written_pid(&self) -> Option<u32> {
        fs::read_to_string(self.pid_file()).ok()?.trim().parse().ok()
    }

    fn pid_file(&self) -> PathBuf {
        self.place.nginx_prefix().join("nginx.pid")
    }

    pub fn master(&self) -> u32 {
        self.master
    }

    pub fn signal(&self, signal: Signal) {
        process::signal(self.master, signal);
    }

    /// Its workers, without those that only finish what they have.
    pub fn serving_workers(&self) -> Vec<u32> {
        let all = process::descendants(self.master).into_iter();
        // A worker has this title when it has begun.
        all.filter(|&pid| title(pid).is_some_and(|title| title.trim() == "nginx: worker process")).collect()
    }

    /// Waits for a whole set of workers, none of them among `old`.
    pub async fn serving(&self, old: &[u32]) -> Result<Vec<u32>> {
        wait::until("nginx to have all its workers", PATIENCE, async || {
            let workers = self.serving_workers();
            (workers.len() == self.workers && !workers.iter().any(|pid| old.contains(pid))).then_some(workers)
        })
        .await
    }

    /// Reloads, and comes back when only new workers take requests.
    pub async fn reload(&self) -> Result<Vec<u32>> {
        let old = self.serving(&[]).await?;
        self.signal(Signal::HUP);
        self.serving(&old).await
    }

    /// A reload that nginx refuses, with these words in its error log.
    pub async fn reload_in_vain(&self, says: &str) -> Result<()> {
        let before = self.error_log().len();
        self.signal(Signal::HUP);
        self.says_after(before, says).await
    }

    /// USR2: the master that is to take over from this one, beside it.
    pub async fn upgraded(&self) -> Result<u32> {
        let old = self.master();
        self.signal(Signal::USR2);
        wait::until("a second master", PATIENCE, async || {
            let pid = self.written_pid()?;
            // It has begun when its workers have.
            (pid != old && process::descendants(pid).len() >= 2).then_some(pid)
        })
        .await
    }

    /// The master was replaced by another.
    pub fn follow(&mut self, master: u32) {
        self.master = master;
    }

    /// Killed as an operator or the kernel kills: without a chance to clean up. Its workers go too.
    pub async fn kill(&mut self) -> Result<()> {
        let all = process::descendants(self.master);
        self.signal(Signal::KILL);
        for &pid in &all {
            process::signal(pid, Signal::KILL);
        }
        if let Some(mut child) = self.child.take() {
            child.wait()?;
        }
        for pid in all {
            process::death(pid).await?;
        }
        Ok(())
    }

    pub fn error_log(&self) -> String {
        fs::read_to_string(self.place.nginx_prefix().join("error.log")).unwrap_or_default()
    }

    /// The lines of the error log in which the module speaks.
    pub fn told(&self) -> Vec<String> {
        let log = self.error_log();
        let told = log.lines().filter_map(|line| Some(line.split_once("handoff: ")?.1));
        // nginx adds what it was doing at the time.
        told.map(|line| line.split(", client: ").next().unwrap_or_default().to_owned()).collect()
    }

    pub async fn says(&self, words: &str) -> Result<()> {
        self.says_after(0, words).await
    }

    async fn says_after(&self, before: usize, words: &str) -> Result<()> {
        let what = format!("nginx to say {words:?}");
        let said = async || self.error_log().get(before..)?.contains(words).then_some(());
        wait::until(&what, PATIENCE, said).await.with_context(|| self.error_log())
    }

    /// Whether nginx complains of nothing, but of what the test did to it itself.
    pub fn is_sound_but_for(&self, expected: &[&str]) -> Result<()> {
        let log = self.error_log();
        let is_trouble = |line: &&str| TROUBLE.iter().any(|word| line.contains(word));
        let is_expected = |line: &&str| expected.iter().any(|word| line.contains(word));
        let trouble: Vec<&str> = log.lines().filter(is_trouble).filter(|line| !is_expected(line)).collect();
        ensure!(trouble.is_empty(), "nginx complains:\n{}", trouble.join("\n"));
        Ok(())
    }

    /// Lets it finish what it has; then nothing must have gone wrong in it.
    pub async fn end(self) -> Result<()> {
        self.end_but_for(&[]).await
    }

    pub async fn end_but_for(mut self, expected: &[&str]) -> Result<()> {
        self.signal(Signal::QUIT);
        process::death(self.master).await?;
        if let Some(mut child) = self.child.take() {
            child.wait()?;
        }
        self.is_sound_but_for(expected)
    }

    // === what the API says ===

    /// Asks, and again if it is told that another process was at it.
    pub async fn ask(&self, method: Method, path: &str, body: String) -> Result<Reply> {
        wait::until("the API not to be busy", PATIENCE, async || {
            let reply = self.control().ask(method.clone(), path, body.clone()).await;
            let busy = reply.as_ref().is_ok_and(|reply| reply.is(Code::Busy));
            (!busy).then_some(reply)
        })
        .await?
    }

    pub async fn read<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.ask(Method::GET, path, String::new()).await?.json()
    }

    pub async fn overview(&self) -> Result<Overview> {
        self.read(path::OVERVIEW).await
    }

    /// The peers of the upstream `app`.
    pub async fn app(&self) -> Result<Vec<PeerView>> {
        Ok(self.read::<UpstreamView>(&path::upstream("app")).await?.peers)
    }

    pub async fn events(&self, after: u64) -> Result<Events> {
        self.read(&format!("{}?after={after}", path::EVENTS)).await
    }

    /// A peer of the upstream `app`.
    pub async fn peer(&self, peer: &str) -> Result<PeerView> {
        self.read(&path::peer("app", peer)).await
    }

    pub async fn say(&self, say: &Say, peers: &[&str]) -> Result<Ack> {
        self.put(say.of(peers)).await?.json()
    }

    pub async fn put(&self, marks: Value) -> Result<Reply> {
        self.ask(Method::PUT, path::MARKS, marks.to_string()).await
    }

    /// Waits until nginx has so many requests with a peer.
    pub async fn has_in_flight(&self, peer: &str, wanted: u64) -> Result<()> {
        let mut last = None;
        let counted = wait::until("the count of requests in flight", PATIENCE, async || {
            last = self.peer(peer).await.ok().map(|view| view.in_flight);
            (last == Some(wanted)).then_some(())
        });
        counted.await.with_context(|| format!("{wanted} at {peer}, not {last:?}"))
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        // After an upgrade the master is a child of nobody here.
        if self.child.as_ref().is_none_or(|child| child.id() != self.master) && self.master != 0 {
            let all = process::descendants(self.master);
            // A master that is not ours to wait for may be gone, and its number somebody else's.
            if title(self.master).is_some_and(|title| title.contains("nginx: master process")) {
                process::signal(self.master, Signal::KILL);
                all.into_iter().for_each(|pid| process::signal(pid, Signal::KILL));
            }
        }
        if let Some(child) = &mut self.child {
            // A worker that a test has stopped cannot end.
            process::descendants(child.id()).into_iter().for_each(|pid| process::signal(pid, Signal::CONT));
            process::end(child, PATIENCE);
        }
    }
}

/// Whether a test can be somebody else. Says so if it cannot.
pub fn can_be_anybody() -> bool {
    let can = rustix::process::geteuid().is_root();
    if !can {
        eprintln!("SKIPPED: only root can be somebody else");
    }
    can
}

/// What nginx calls a process of its own.
fn title(pid: u32) -> Option<String> {
    let text = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    Some(String::from_utf8_lossy(&text).replace('\0', " "))
}

// === impl Say ===

impl Say {
    pub const DRAIN: Self =
        Self { owner: "operator", state: State::Draining, lease: None, reason: "", force: false };
    pub const READY: Self =
        Self { owner: "operator", state: State::Up, lease: None, reason: "", force: false };

    pub fn of(&self, peers: &[&str]) -> Value {
        let marks: Vec<Value> = peers
            .iter()
            .map(|peer| json!({ "peer": peer, "state": self.state, "reason": self.reason }))
            .collect();
        let mut set = json!({ "owner": self.owner, "force": self.force, "marks": marks });
        if let (Some(lease), Some(set)) = (self.lease, set.as_object_mut()) {
            set.insert("lease".to_owned(), lease.to_string().into());
        }
        set
    }
}
