//! An etcd of a test's own: its own data, its own ports, never the system's service.

use crate::{command, place::Place, ports, process, wait};
use anyhow::{Context, Result};
use rustix::process::Signal;
use std::{
    ffi::OsString,
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

const PATIENCE: Duration = Duration::from_secs(15);

/// Ends when it is dropped.
#[derive(Debug)]
pub struct Etcd {
    child: Option<Child>,
    folder: PathBuf,
    port: u16,
    tls: Option<Tls>,
    /// What it is started with besides.
    options: Vec<String>,
    /// What its command line says besides who asks.
    login: Vec<OsString>,
}

/// An authority, and what it signed: PEM files.
#[derive(Clone, Debug)]
pub struct Tls {
    folder: PathBuf,
}

impl Etcd {
    pub async fn start(place: &Place) -> Result<Self> {
        Self::start_with(place, None).await
    }

    /// One that wants a certificate of everybody.
    pub async fn start_with(place: &Place, tls: Option<Tls>) -> Result<Self> {
        Self::start_as(place, tls, &[]).await
    }

    pub async fn start_as(place: &Place, tls: Option<Tls>, options: &[&str]) -> Result<Self> {
        let (folder, port) = (place.file("etcd"), ports::row(2)?);
        let options = options.iter().map(|option| (*option).to_owned()).collect();
        let mut etcd = Self { child: None, folder, port, tls, options, login: Vec::new() };
        etcd.run().await?;
        Ok(etcd)
    }

    /// Starts it, with what it had.
    pub async fn run(&mut self) -> Result<()> {
        let (client, peer) = (self.url(), format!("http://127.0.0.1:{}", self.port + 1));
        let mut etcd = Command::new("etcd");
        etcd.args(["--name", "test", "--logger", "zap", "--log-level", "warn"])
            .arg("--data-dir")
            .arg(&self.folder);
        for (option, url) in [
            ("--listen-client-urls", &client),
            ("--advertise-client-urls", &client),
            ("--listen-peer-urls", &peer),
            ("--initial-advertise-peer-urls", &peer),
        ] {
            etcd.arg(option).arg(url);
        }
        etcd.args(["--initial-cluster", &format!("test={peer}")]);
        if let Some(tls) = &self.tls {
            etcd.arg("--client-cert-auth").arg("--trusted-ca-file").arg(tls.ca());
            etcd.arg("--cert-file").arg(tls.cert("etcd")).arg("--key-file").arg(tls.key("etcd"));
        }
        etcd.args(&self.options);
        let log = fs::File::options().create(true).append(true).open(self.folder.with_extension("log"))?;
        let child = etcd.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn();
        self.child = Some(child.context("cannot run etcd: is Debian's etcd-server installed?")?);
        wait::until("etcd to answer", PATIENCE, async || self.ctl(&["endpoint", "health"]).await.ok())
            .await?;
        Ok(())
    }

    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Ends it without a word; what it had is on its disk.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            process::signal(child.id(), Signal::KILL);
            _ = child.wait();
        }
    }

    pub fn url(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}", self.port)
    }

    /// What its own command line client answers.
    pub async fn ctl(&self, arguments: &[&str]) -> Result<String> {
        let mut etcdctl = command::clean("etcdctl");
        etcdctl.env("ETCDCTL_API", "3").arg("--endpoints").arg(self.url()).arg("--command-timeout=2s");
        if let Some(tls) = &self.tls {
            etcdctl.arg("--cacert").arg(tls.ca()).arg("--cert").arg(tls.cert("root"));
            etcdctl.arg("--key").arg(tls.key("root"));
        }
        command::succeed(etcdctl.args(&self.login).args(arguments)).await
    }

    /// From here on it is asked as this user.
    pub fn login(&mut self, user_and_password: &str) {
        self.login = vec!["--user".into(), user_and_password.into()];
    }

    /// Every key, with what it has.
    pub async fn dump(&self) -> Result<String> {
        self.ctl(&["get", "--prefix", "/handoff/"]).await
    }

    /// Forgets all that was, and keeps what is.
    pub async fn compact(&self) -> Result<()> {
        let status: serde_json::Value =
            serde_json::from_str(&self.ctl(&["endpoint", "status", "--write-out", "json"]).await?)?;
        let revision = status.pointer("/0/Status/header/revision").context("no revision")?.to_string();
        self.ctl(&["compact", "--physical", &revision]).await.map(drop)
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
    }
}

// === impl Tls ===

impl Tls {
    /// An authority, and a certificate for each name, all of them for 127.0.0.1.
    pub async fn new(place: &Place, names: &[&str]) -> Result<Self> {
        let tls = Self { folder: place.file("tls") };
        fs::create_dir(&tls.folder)?;
        let mut authority = tls.openssl(&["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]);
        authority.args(["-subj", "/CN=authority", "-keyout", "ca.key", "-out", "ca.pem"]);
        command::succeed(&mut authority).await?;
        fs::write(
            tls.folder.join("san"),
            "subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n",
        )?;
        for name in names {
            let subject = format!("/CN={name}");
            let mut request = tls.openssl(&["req", "-newkey", "rsa:2048", "-nodes", "-subj", &subject]);
            request.args(["-keyout", &format!("{name}.key"), "-out", &format!("{name}.csr")]);
            command::succeed(&mut request).await?;
            let mut sign = tls.openssl(&["x509", "-req", "-days", "2", "-CA", "ca.pem", "-CAkey", "ca.key"]);
            sign.args(["-CAcreateserial", "-extfile", "san", "-in", &format!("{name}.csr")]);
            command::succeed(sign.args(["-out", &format!("{name}.pem")])).await?;
        }
        Ok(tls)
    }

    fn openssl(&self, arguments: &[&str]) -> tokio::process::Command {
        let mut openssl = command::clean("openssl");
        openssl.args(arguments).current_dir(&self.folder);
        openssl
    }

    pub fn ca(&self) -> PathBuf {
        self.folder.join("ca.pem")
    }

    pub fn cert(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.pem"))
    }

    pub fn key(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.key"))
    }
}
