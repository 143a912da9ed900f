//! A whole house on one host: nginx, PM2 with the sample application and other apps beside it, and `handoff`.

#![allow(dead_code, unreachable_pub)]

use anyhow::{Context, Result};
use e2e::{
    app::{App, Behaviour, Mode},
    command, place,
    pm2::{NEWEST, Pm2},
    process,
    site::{PATIENCE, Site},
    wait,
};
use serde_json::{Value, json};
use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
};

pub struct House {
    pub site: Site,
    pub pm2: Pm2,
    pub app: App,
    sidecar: Option<Child>,
}

/// How a command ended.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// A Node program that listens where it is told.
const LISTENS: &str =
    "require('http').createServer((_, r) => r.end('ok')).listen(process.env.PORT, process.env.HOST);";

impl House {
    /// The sample application runs, with two workers. The upstream `app` has these servers besides.
    pub async fn new(servers: &[String]) -> Result<Self> {
        Self::of(Mode::Fork, servers).await
    }

    pub async fn of(mode: Mode, servers: &[String]) -> Result<Self> {
        Self::with(mode, 2, |site, app| {
            let own = app.addresses().into_iter().map(|address| address.to_string());
            let servers: String =
                own.chain(servers.iter().cloned()).map(|name| format!("server {name}; ")).collect();
            site.usual_with(&format!("{servers} keepalive 8;"))
        })
        .await
    }

    /// So many workers, and this in the http block.
    pub async fn with(mode: Mode, workers: u16, http: impl FnOnce(&Site, &App) -> String) -> Result<Self> {
        let mut site = Site::new("1.22.1").await?;
        let app = App::new(Behaviour::Graceful, mode, workers, &site.file(""))?;
        let pm2 = Pm2::start(NEWEST, &site.file("pm2"), &app).await?;
        site.write(&http(&site, &app))?;
        site.start().await?;
        Ok(Self { site, pm2, app, sidecar: None })
    }

    /// Starts an app beside it. `npm` says that it is started as `npm start`, so that a grandchild listens.
    pub async fn beside(&self, name: &str, npm: bool, env: Value) -> Result<()> {
        let folder = self.site.file(name);
        fs::create_dir(&folder)?;
        fs::write(folder.join("listens.js"), LISTENS)?;
        let package = json!({"name": name, "private": true, "scripts": {"start": "node listens.js"}});
        fs::write(folder.join("package.json"), package.to_string())?;
        let mut app = json!({"name": name, "cwd": folder, "exec_mode": "fork", "env": env});
        let how =
            if npm { json!({"script": "npm", "args": "start"}) } else { json!({"script": "listens.js"}) };
        app.as_object_mut().context("an object")?.extend(how.as_object().context("an object")?.clone());
        let file = folder.join("ecosystem.json");
        fs::write(&file, json!({ "apps": [app] }).to_string())?;
        self.pm2.run(&["start", &file.display().to_string()]).await.map(drop)
    }

    pub async fn handoff(&self, arguments: &[&str]) -> Result<Ended> {
        let mut handoff = command::clean(place::handoff()?);
        let output = handoff.args(arguments).envs(self.environment()).output().await?;
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        Ok(Ended { code: output.status.code(), stdout: text(&output.stdout), stderr: text(&output.stderr) })
    }

    pub async fn status(&self) -> Result<Value> {
        Ok(serde_json::from_str(&self.handoff(&["status", "--json"]).await?.stdout)?)
    }

    /// What `status` says of one app.
    pub async fn app(&self, name: &str) -> Result<Value> {
        let status = self.status().await?;
        let apps = status.pointer("/daemons/0/apps").and_then(Value::as_array).context("no apps")?.clone();
        apps.into_iter()
            .find(|app| app.get("app").is_some_and(|app| app == name))
            .with_context(|| format!("no {name} in {status}"))
    }

    /// The peers that `status` gives to an app, once it gives it so many.
    pub async fn peers(&self, name: &str, count: usize) -> Result<Vec<String>> {
        wait::until("the app to have its peers", PATIENCE, async || {
            let app = self.app(name).await.ok()?;
            let workers = app.get("workers")?.as_array()?.iter();
            let peers = workers.filter_map(|worker| worker.get("peers")?.as_array()).flatten();
            let peers: Vec<String> =
                peers.filter_map(|peer| Some(peer.get("address")?.as_str()?.to_owned())).collect();
            (peers.len() == count).then_some(peers)
        })
        .await
    }

    pub async fn start_sidecar(&mut self) -> Result<()> {
        self.start_sidecar_with(&[]).await
    }

    pub async fn start_sidecar_with(&mut self, arguments: &[&str]) -> Result<()> {
        let log = fs::File::create(self.site.file("handoff.log"))?;
        let mut handoff = Command::new(place::handoff()?);
        handoff
            .args(arguments)
            .arg("run")
            .envs(self.environment())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        self.sidecar = Some(handoff.spawn()?);
        wait::until("the sidecar to report", PATIENCE, async || {
            self.status().await.ok()?.pointer("/daemons/0/sidecar/pid")?.is_u64().then_some(())
        })
        .await
    }

    fn environment(&self) -> [(&'static str, PathBuf); 4] {
        let control = format!("unix:{}", self.site.socket().display());
        [
            ("PM2_HOME", self.site.file("pm2")),
            ("HANDOFF_CONTROL", control.into()),
            ("HANDOFF_RUNTIME_DIR", self.site.file("runtime")),
            ("HANDOFF_STATE_DIR", self.site.file("state")),
        ]
    }
}

impl Drop for House {
    fn drop(&mut self) {
        if let Some(sidecar) = &mut self.sidecar {
            process::end(sidecar, PATIENCE);
        }
    }
}
