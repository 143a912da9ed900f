//! What `pm2 reload` would send to the daemon, asked of PM2 itself.
//!
//! What an ecosystem file, `--env` or `--update-env` means is for PM2 to say, and differs from version to version. So the
//! daemon's own node runs the daemon's own PM2 (`orders.cjs`) with our arguments, directory and environment, and what it
//! is about to order is written down instead of done. PM2 would give all workers the one `PORT` of the file; in these
//! orders each keeps its own where PM2 counts it up, and its `NODE_APP_INSTANCE` always.
//!
//! An ecosystem file is its user's code, and the environment of whoever reloads goes into the app: nobody but the user
//! that PM2 runs as is served, not even root.

use super::{
    PmId,
    home::Home,
    rpc::{Report, Rpc, RpcError},
};
use serde::Deserialize;
use serde_json::{Map, Value, value::RawValue};
use std::{
    collections::BTreeMap,
    fmt, io,
    ops::Deref,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    process::Command,
    time,
};

const SCRIPT: &str = include_str!("orders.cjs");
/// PM2's command line starts in half a second; an ecosystem file may fetch what it needs.
const PATIENCE: Duration = Duration::from_secs(15);
/// Where PM2 counts its workers, if the app does not say otherwise.
const INSTANCE: &str = "NODE_APP_INSTANCE";
/// A thousand workers with large environments stay well below this.
const MAX_ANSWER: u64 = 64 << 20;

/// What the operator asks for, as of `pm2 reload`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Request<'a> {
    /// An app, `all`, or an ecosystem file.
    pub target: &'a str,
    /// With a file: these apps only, separated by commas.
    pub only: Option<&'a str>,
    /// With a file: what `env_NAME` says of each app.
    pub env: Option<&'a str>,
    /// Without a file: our environment goes into the app.
    pub update_env: bool,
}

#[derive(Debug)]
pub struct Orders {
    /// The environment that each worker's reload is sent with.
    pub reload: BTreeMap<PmId, Sealed>,
    /// By one worker of each app: what one more would be.
    pub surplus: BTreeMap<PmId, Sealed>,
    /// Apps of the file that PM2 does not know: it would start them.
    pub prepare: Vec<Prepare>,
    /// What PM2 would warn of, a line each.
    pub warnings: Vec<String>,
    moved: BTreeMap<PmId, (u16, u16)>,
}

#[derive(Debug, Deserialize)]
pub struct Prepare {
    pub name: String,
    pub app: Sealed,
}

/// JSON that passes through unread: it is full of secrets.
#[derive(Clone, Deserialize)]
#[serde(transparent)]
pub struct Sealed(Box<RawValue>);

#[derive(Debug, thiserror::Error)]
pub enum OrdersError {
    #[error(
        "PM2 runs as user {daemon} and handoff as user {own}: an ecosystem file is run as code, and your environment \
         would go into the app. Run it as that user: sudo -u '#{daemon}' handoff reload …"
    )]
    OtherUser { daemon: u32, own: u32 },
    #[error("the node that PM2 runs on is not here ({}): run handoff where PM2 runs", .0.display())]
    NoNode(PathBuf),
    #[error("PM2's own code is not here ({}): run handoff where PM2 runs", .0.display())]
    NoPm2(PathBuf),
    #[error("{0:?} begins with a dash: that is no app and no file")]
    Option(String),
    /// Nothing is known by that name.
    #[error("{0}")]
    Unknown(String),
    /// In PM2's words: the file is not there, malformed, …
    #[error("PM2: {0}")]
    Refused(String),
    #[error("PM2 did not say within {} s what a reload would do", PATIENCE.as_secs())]
    TimedOut,
    #[error("PM2 did not say what a reload would do (its node ended with {0})")]
    Garbled(String),
    #[error("running PM2's own code failed: {0}")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Rpc(#[from] RpcError),
}

#[derive(Deserialize)]
struct Answer {
    reload: Vec<RawReload>,
    prepare: Vec<Prepare>,
    warnings: Vec<String>,
    errors: Vec<String>,
}

#[derive(Deserialize)]
struct RawReload {
    id: PmId,
    env: Sealed,
    #[serde(default)]
    moved: Option<(String, String)>,
    #[serde(default)]
    surplus: Option<Sealed>,
}

// === impl Orders ===

impl Orders {
    /// Asks PM2; nothing is changed by it.
    pub async fn ask(home: &Home, rpc: &mut Rpc, request: &Request<'_>) -> Result<Self, OrdersError> {
        let daemon = rpc.daemon();
        same_user(daemon.uid, rustix::process::geteuid().as_raw())?;
        let arguments = request.arguments()?;
        let report = rpc.report().await?;
        let (node, root) = (node(&report, daemon.pid)?, root(&report)?);
        let mut command = Command::new(node);
        command.args(["--input-type=commonjs", "-"]).arg(root).arg(home.rpc()).args(arguments);
        command.env("PM2_HOME", home.path());
        time::timeout(PATIENCE, run(command)).await.unwrap_or(Err(OrdersError::TimedOut))
    }

    /// The port that a worker has now and the one that this order would give it, if they differ.
    pub fn moved_port(&self, id: PmId) -> Option<(u16, u16)> {
        self.moved.get(&id).copied()
    }

    fn parse(text: &[u8]) -> Option<Result<Self, OrdersError>> {
        // The file is code, and may have written whatever it likes before.
        let line = text.trim_ascii_end().rsplit(|&byte| byte == b'\n').next()?;
        let answer: Answer = serde_json::from_slice(line).ok()?;
        Some(match answer.errors.first() {
            None => Ok(Self::from(answer)),
            Some(error) if error.ends_with(" not found") && !error.starts_with("File ") => {
                Err(OrdersError::Unknown(error.clone()))
            }
            Some(_) => Err(OrdersError::Refused(answer.errors.join("; "))),
        })
    }
}

impl From<Answer> for Orders {
    fn from(answer: Answer) -> Self {
        let port = |text: &str| text.trim().parse().ok();
        let moved = answer.reload.iter().filter_map(|order| {
            let (before, after) = order.moved.as_ref()?;
            Some((order.id, (port(before)?, port(after)?)))
        });
        let mut orders = Self {
            moved: moved.collect(),
            reload: BTreeMap::new(),
            surplus: BTreeMap::new(),
            prepare: answer.prepare,
            warnings: answer.warnings,
        };
        for RawReload { id, env, surplus, .. } in answer.reload {
            orders.surplus.extend(surplus.map(|surplus| (id, surplus)));
            orders.reload.insert(id, env);
        }
        orders
    }
}

// === impl Request ===

impl<'a> Request<'a> {
    fn arguments(&self) -> Result<Vec<&'a str>, OrdersError> {
        let mut arguments = vec![self.target];
        for (option, value) in [("--only", self.only), ("--env", self.env)] {
            arguments.extend(value.into_iter().flat_map(|value| [option, value]));
        }
        if self.update_env {
            arguments.push("--update-env");
        }
        let values = [Some(self.target), self.only, self.env];
        match values.into_iter().flatten().find(|value| value.starts_with('-')) {
            Some(value) => Err(OrdersError::Option(value.to_owned())),
            None => Ok(arguments),
        }
    }
}

fn same_user(daemon: u32, own: u32) -> Result<(), OrdersError> {
    if daemon == own { Ok(()) } else { Err(OrdersError::OtherUser { daemon, own }) }
}

/// The node that PM2 says it runs on; if an upgrade removed it meanwhile, the one that still runs.
pub(crate) fn node(report: &Report, daemon: u32) -> Result<PathBuf, OrdersError> {
    let said = PathBuf::from(report.argv.first().map_or("", String::as_str));
    if said.is_file() {
        return Ok(said);
    }
    let running = PathBuf::from(format!("/proc/{daemon}/exe"));
    if running.metadata().is_ok() { Ok(running) } else { Err(OrdersError::NoNode(said)) }
}

/// The directory of PM2: its script is `lib/Daemon.js` there, or in a container `bin/pm2-runtime`, perhaps behind a link.
pub(crate) fn root(report: &Report) -> Result<PathBuf, OrdersError> {
    let script = PathBuf::from(report.argv.get(1).map_or("", String::as_str));
    let real = script.canonicalize().ok();
    let root = real.iter().flat_map(|script| script.ancestors()).find(|root| is_pm2(root));
    root.map(Path::to_path_buf).ok_or(OrdersError::NoPm2(script))
}

fn is_pm2(root: &Path) -> bool {
    root.join("lib/binaries/CLI.js").is_file() && root.join("constants.js").is_file()
}

async fn run(mut command: Command) -> Result<Orders, OrdersError> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    let mut child = command.spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(SCRIPT.as_bytes()).await?;
    }
    let mut text = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(MAX_ANSWER).read_to_end(&mut text).await?;
    }
    match Orders::parse(&text) {
        Some(orders) => orders,
        None => Err(OrdersError::Garbled(child.wait().await?.to_string())),
    }
}

// === impl Sealed ===

impl Sealed {
    /// The settings of one more worker, whose port is another one, and PM2's own choice nothing but its number. None: they
    /// are none.
    pub fn at_port(&self, variable: &str, port: u16) -> Option<Self> {
        let mut settings: Map<String, Value> = serde_json::from_str(self.0.get()).ok()?;
        for name in ["pm_id", "created_at", "unique_id", "status", "instances", "increment_var"] {
            settings.remove(name);
        }
        let instance_var =
            settings.get("instance_var").and_then(Value::as_str).unwrap_or(INSTANCE).to_owned();
        let instance = settings.get(&instance_var).and_then(Value::as_u64);
        let mut own = match settings.remove("env") {
            Some(Value::Object(own)) => own,
            _ => Map::new(),
        };
        for values in [&mut settings, &mut own] {
            values.insert(variable.to_owned(), port.to_string().into());
            // Never the first one, which may do what only one of them should.
            if let Some(instance) = instance {
                values.insert(instance_var.clone(), (instance + 1).into());
            }
        }
        settings.insert("env".to_owned(), own.into());
        Some(Self(serde_json::value::to_raw_value(&settings).ok()?))
    }
}

impl Deref for Sealed {
    type Target = RawValue;

    fn deref(&self) -> &RawValue {
        &self.0
    }
}

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.get().len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::symlink};

    fn parse(text: &str) -> Result<Orders, OrdersError> {
        Orders::parse(text.as_bytes()).unwrap()
    }

    fn report(argv: [&Path; 2]) -> Report {
        let argv = argv.map(|path| path.display().to_string()).to_vec();
        Report { version: "7.0.4".into(), argv }
    }

    #[test]
    fn orders_are_carried_and_never_shown() {
        let orders = parse(concat!(
            "the file says hello\n",
            r#"{"reload":[{"id":3,"env":{"DB":"planted-secret","current_conf":{}},"moved":["3000","4000"],"surplus":{"DB":"planted-secret"}},"#,
            r#"{"id":4,"env":{},"moved":["/run/a.sock","4000"]}],"#,
            r#""prepare":[{"name":"jobs","app":{"env":{"DB":"planted-secret"}}}],"warnings":["mind"],"errors":[]}"#,
        ))
        .unwrap();
        assert_eq!(orders.reload[&PmId(3)].get(), r#"{"DB":"planted-secret","current_conf":{}}"#);
        assert_eq!(orders.moved_port(PmId(3)), Some((3000, 4000)));
        assert_eq!(orders.moved_port(PmId(4)), None);
        assert_eq!(orders.surplus.keys().collect::<Vec<_>>(), [&PmId(3)]);
        assert_eq!(
            (orders.prepare[0].name.as_str(), orders.warnings.as_slice()),
            ("jobs", &["mind".into()][..])
        );
        let shown = format!("{orders:?}");
        assert!(shown.contains("jobs") && !shown.contains("planted-secret"), "{shown}");
    }

    #[test]
    fn one_more_worker_has_a_port_and_an_instance_of_its_own_and_all_else_as_the_other() {
        let sealed = |text: &str| Sealed(RawValue::from_string(text.to_owned()).unwrap());
        let settings = sealed(concat!(
            r#"{"name":"shop","pm_id":0,"created_at":1,"unique_id":"a","status":"online","instances":1,"#,
            r#""increment_var":"PORT","PORT":3000,"NODE_APP_INSTANCE":0,"wait_ready":true,"DB":"planted-secret","#,
            r#""env":{"PORT":3000,"DB":"planted-secret"}}"#,
        ));
        let one_more: Value = serde_json::from_str(settings.at_port("PORT", 3001).unwrap().get()).unwrap();
        let wanted = serde_json::json!({
            "name": "shop", "PORT": "3001", "NODE_APP_INSTANCE": 1, "wait_ready": true, "DB": "planted-secret",
            "env": {"PORT": "3001", "NODE_APP_INSTANCE": 1, "DB": "planted-secret"},
        });
        assert_eq!(one_more, wanted);
        let uncounted = sealed(r#"{"name":"shop","HTTP_PORT":"3000"}"#).at_port("HTTP_PORT", 3001).unwrap();
        let wanted = serde_json::json!({"name": "shop", "HTTP_PORT": "3001", "env": {"HTTP_PORT": "3001"}});
        assert_eq!(serde_json::from_str::<Value>(uncounted.get()).unwrap(), wanted);
        assert!(sealed("[]").at_port("PORT", 1).is_none());
    }

    #[test]
    fn a_refusal_is_in_the_words_of_pm2() {
        let error = |text: &str| {
            parse(&format!(r#"{{"reload":[],"prepare":[],"warnings":[],"errors":["{text}"]}}"#)).unwrap_err()
        };
        assert!(matches!(error("Process or Namespace shop not found"), OrdersError::Unknown(_)));
        assert!(matches!(error("File a.json not found"), OrdersError::Refused(_)));
        assert_eq!(error("File a.json malformated").to_string(), "PM2: File a.json malformated");
        assert!(Orders::parse(b"Segmentation fault\n").is_none());
        assert!(Orders::parse(b"").is_none());
    }

    #[test]
    fn not_even_root_asks_the_pm2_of_another_user() {
        assert!(same_user(1000, 1000).is_ok() && same_user(0, 0).is_ok());
        let error = same_user(1000, 0).unwrap_err().to_string();
        assert!(error.ends_with("Run it as that user: sudo -u '#1000' handoff reload …"), "{error}");
    }

    #[test]
    fn a_value_that_looks_like_an_option_is_refused() {
        let request =
            Request { target: "app.json", only: Some("a,b"), env: Some("production"), update_env: true };
        let arguments = ["app.json", "--only", "a,b", "--env", "production", "--update-env"];
        assert_eq!(request.arguments().unwrap(), arguments);
        assert!(Request { env: Some("--force"), ..request }.arguments().is_err());
        assert!(Request { target: "-f", ..request }.arguments().is_err());
    }

    #[test]
    fn pm2_is_found_from_its_script_even_behind_a_link() {
        let dir = crate::scratch::Dir::new();
        let pm2 = dir.join("lib/node_modules/pm2");
        for path in ["lib/Daemon.js", "lib/binaries/CLI.js", "bin/pm2-runtime", "constants.js"] {
            fs::create_dir_all(pm2.join(path).parent().unwrap()).unwrap();
            fs::write(pm2.join(path), "").unwrap();
        }
        let link = dir.join("pm2-runtime");
        symlink(pm2.join("bin/pm2-runtime"), &link).unwrap();
        let node = Path::new("/usr/bin/node");
        let pm2 = pm2.canonicalize().unwrap();
        assert_eq!(root(&report([node, &pm2.join("lib/Daemon.js")])).unwrap(), pm2);
        assert_eq!(root(&report([node, &link])).unwrap(), pm2);
        assert!(root(&report([node, &dir])).unwrap_err().to_string().contains("run handoff where PM2 runs"));
    }

    #[test]
    fn a_node_that_was_removed_may_still_run() {
        let nowhere = Path::new("/nowhere/node");
        let own = std::process::id();
        assert_eq!(
            node(&report([nowhere, nowhere]), own).unwrap(),
            PathBuf::from(format!("/proc/{own}/exe"))
        );
        assert!(matches!(node(&report([nowhere, nowhere]), u32::MAX), Err(OrdersError::NoNode(_))));
    }
}
