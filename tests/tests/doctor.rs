//! `handoff doctor` finds the mistakes of real set-ups, and whoever does what it says has none of them any more.

use anyhow::{Context, Result, ensure};
use e2e::{
    command,
    nginx::Binary,
    place,
    pm2::{NEWEST, Pm2},
    ports,
    sidecar::{self, Sidecar},
    site::{PATIENCE, Site},
    wait,
};
use serde_json::Value;
use std::{
    collections::BTreeSet,
    env, fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};
use tokio::process::Command;

/// Other daemons on this host are none of ours.
const OTHERS: [&str; 2] = ["--ignore", "pm2-other-home"];
const LISTENS_EVERYWHERE: &str = "app-listens-everywhere";

/// A set-up of tests/apps that runs: its nginx, its PM2, and the folder in which its files are.
struct Practice {
    /// What it is protected against as soon as Handoff is there.
    level: &'static str,
    sidecar: Option<Sidecar>,
    _pm2: Pm2,
    site: Site,
    folder: PathBuf,
}

struct Diagnosis {
    code: Option<i32>,
    text: String,
    stderr: String,
}

// === impl Practice ===

impl Practice {
    async fn open(version: &str, name: &str, level: &'static str) -> Result<Self> {
        let mut site = Site::new(version).await?;
        let folder = site.file("app");
        let sites = site.place().nginx_prefix().join("sites");
        fs::create_dir(&folder)?;
        fs::create_dir(&sites)?;
        let port = ports::row(3)?;
        let from = place::root().join("tests/apps").join(name);
        let fill = |file: &str, to: &Path| -> Result<()> {
            let text = fs::read_to_string(from.join(file)).context(from.display().to_string())?;
            let text = text
                .replace("@port@", &port.to_string())
                .replace("@second@", &(port + 1).to_string())
                .replace("@listen@", &site.port().to_string())
                .replace("@preload@", &site.file("runtime/preload.sock").display().to_string())
                .replace("@prefix@", &site.place().nginx_prefix().display().to_string());
            Ok(fs::write(to, text)?)
        };
        for file in ["server.js", "ecosystem.config.js"] {
            fill(file, &folder.join(file))?;
        }
        fill("nginx.conf", &site.conf())?;
        fill("site.conf", &sites.join("site.conf"))?;
        place::server_js()?;
        symlink(place::root().join("tests/apps/node_modules"), folder.join("node_modules"))?;
        let pm2 = Pm2::start_in(NEWEST, &site.place().pm2_home(), &folder).await?;
        site.start().await?;
        Ok(Self { level, sidecar: None, _pm2: pm2, site, folder })
    }

    async fn doctor(&self, arguments: &[&str]) -> Result<Diagnosis> {
        let mut handoff = command::clean(place::handoff()?);
        handoff.current_dir(&self.folder).arg("doctor").arg("--conf").arg(self.site.conf()).args(arguments);
        Diagnosis::of(handoff.envs(sidecar::environment(self.site.place()))).await
    }

    async fn diagnose(&self, arguments: &[&str]) -> Result<Diagnosis> {
        self.doctor(&[&OTHERS[..], &["--json"], arguments].concat()).await
    }

    /// Does what is said: first every change of a file, then each command, once.
    async fn follow(
        &mut self,
        diagnosis: &Diagnosis,
        change: impl Fn(&str, &Path) -> Result<()>,
    ) -> Result<()> {
        let findings = diagnosis.findings()?;
        let mut edits = Vec::new();
        let mut commands: Vec<String> = Vec::new();
        for finding in &findings {
            let steps = finding.get("mend").and_then(Value::as_array).context("no mend")?;
            ensure!(!steps.is_empty(), "no mend: {finding}");
            for step in steps.iter().take_while(|step| word(step, "do") != "or") {
                match word(step, "do") {
                    "run" if commands.iter().any(|command| *command == word(step, "command")) => {}
                    "run" => commands.push(word(step, "command").to_owned()),
                    "see" => {
                        ensure!(findings.iter().any(|other| word(other, "id") == word(step, "id")), "{step}")
                    }
                    "change" => change(word(finding, "id"), &self.folder)?,
                    _ => edits.push(step.clone()),
                }
            }
        }
        // From the last line to the first one, so that no line is another one when its turn comes.
        edits.sort_by_key(|step| std::cmp::Reverse(step.get("line").and_then(Value::as_u64)));
        edits.iter().try_for_each(edit)?;
        for command in commands {
            self.run(&command).await.with_context(|| command.clone())?;
        }
        Ok(())
    }

    async fn run(&mut self, line: &str) -> Result<()> {
        if line == "handoff run" {
            let sidecar = self.sidecar.insert(Sidecar::launch(self.site.place())?);
            return sidecar.protects("myapp", self.level).await;
        }
        let mut shell = command::clean("sh");
        let dist = place::handoff()?.parent().context("no folder")?.to_path_buf();
        let path = [dist, place::root().join("tests/pm2/node_modules/.bin")];
        let own = env::var_os("PATH").unwrap_or_default();
        let path = env::join_paths(path.into_iter().chain(env::split_paths(&own)))?;
        shell.args(["-c", line]).env("PATH", path);
        command::succeed(shell.envs(sidecar::environment(self.site.place()))).await?;
        if line.ends_with("-s reload") {
            // nginx is told, and takes its time.
            let there = wait::until("the new configuration", PATIENCE, async || {
                self.site.overview().await.ok().filter(|view| view.zone.peers > 0).map(drop)
            });
            there.await?;
        }
        Ok(())
    }
}

/// One change of a file, to the letter.
fn edit(step: &Value) -> Result<()> {
    let file = word(step, "file");
    let text = fs::read_to_string(file).context(file.to_owned())?;
    let line = usize::try_from(step.get("line").and_then(Value::as_u64).unwrap_or(1))?;
    let from: usize = text.split_inclusive('\n').take(line - 1).map(str::len).sum();
    let (before, rest) = text.split_at_checked(from).context("no such line")?;
    let begins = |words: &str| -> Result<()> {
        let first = words.lines().next().unwrap_or_default();
        ensure!(rest.lines().next().is_some_and(|line| line.contains(first)), "{file}:{line} has no {first}");
        Ok(())
    };
    let new = match word(step, "do") {
        "replace" => {
            begins(word(step, "old"))?;
            before.to_owned() + &rest.replacen(word(step, "old"), word(step, "new"), 1)
        }
        "insert" => {
            begins(word(step, "block"))?;
            let block = word(step, "block");
            before.to_owned() + &rest.replacen(block, &format!("{block} {}", word(step, "text")), 1)
        }
        "prepend" => format!("{}\n{text}", word(step, "text")),
        "set" => set(&text, word(step, "key"), word(step, "value")),
        other => anyhow::bail!("no such step: {other}"),
    };
    Ok(fs::write(file, new)?)
}

/// A key of the only app of an ecosystem file.
fn set(text: &str, key: &str, value: &str) -> String {
    let is_it = |line: &&str| line.trim_start().starts_with(&format!("{key}:"));
    let name = if text.lines().any(|line| is_it(&line)) { key } else { "name" };
    let lines = text.lines().map(|line| {
        let own = format!("    {key}: {value},");
        match line.trim_start().starts_with(&format!("{name}:")) {
            true if name == key => own,
            true => format!("{line}\n{own}"),
            false => line.to_owned(),
        }
    });
    lines.collect::<Vec<_>>().join("\n") + "\n"
}

fn word<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

// === impl Diagnosis ===

impl Diagnosis {
    async fn of(handoff: &mut Command) -> Result<Self> {
        let output = handoff.output().await?;
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        Ok(Self { code: output.status.code(), text: text(&output.stdout), stderr: text(&output.stderr) })
    }

    fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.text).with_context(|| format!("{}{}", self.text, self.stderr))
    }

    fn findings(&self) -> Result<Vec<Value>> {
        Ok(self.json()?.get("findings").and_then(Value::as_array).context("no findings")?.clone())
    }

    fn finds(&self, wanted: &[&str]) -> Result<()> {
        let findings = self.findings()?;
        let found: BTreeSet<&str> = findings.iter().map(|finding| word(finding, "id")).collect();
        let wanted: BTreeSet<&str> = wanted.iter().copied().collect();
        ensure!(found == wanted, "found {found:?}, not {wanted:?}: {}", self.text);
        Ok(())
    }

    /// All is well, and all was looked at.
    fn is_healthy(&self) -> Result<()> {
        self.finds(&[])?;
        ensure!(self.code == Some(0), "ended with {:?}: {}{}", self.code, self.text, self.stderr);
        Ok(())
    }
}

/// Whether this host has an address for others.
fn is_reachable() -> bool {
    let addresses = std::process::Command::new("hostname").arg("-I").output();
    addresses.is_ok_and(|output| !output.stdout.trim_ascii().is_empty())
}

fn replace_in(file: &Path, old: &str, new: &str) -> Result<()> {
    let text = fs::read_to_string(file)?;
    ensure!(text.contains(old), "no {old:?} in {}", file.display());
    Ok(fs::write(file, text.replace(old, new))?)
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_follows_it_has_none_of_the_guides_mistakes_any_more() -> Result<()> {
    let mut practice = Practice::open("1.28.3", "article", "L0").await?;
    let asked = ["--health", "/health", "--probe"];
    let first = practice.diagnose(&asked).await?;
    let mut wanted = vec![
        "handoff-not-loaded",
        "nginx-balancer-of-one",
        "nginx-keepalive-timeout",
        "nginx-keepalive-unused",
        "nginx-one-server",
        "pm2-env-not-applied",
        "pm2-gives-up",
        "pm2-two-at-once",
    ];
    wanted.extend(is_reachable().then_some(LISTENS_EVERYWHERE));
    first.finds(&wanted)?;
    ensure!(first.code == Some(21), "{:?}", first.code);
    let answer = first.json()?;
    ensure!(answer["exit"] == 21 && answer["errors"] == 1, "{answer}");
    let kept = first.findings()?.into_iter().find(|finding| finding["id"] == "nginx-keepalive-timeout");
    let kept = kept.context("no keepalive")?;
    ensure!(word(&kept, "found").contains("after 5 s, it says"), "not as it was measured: {kept}");
    ensure!(word(&kept, "file").ends_with("/sites/site.conf") && kept["line"] == 2, "{kept}");

    practice
        .follow(&first, |id, folder| {
            ensure!(id == LISTENS_EVERYWHERE, "{id} cannot be followed");
            replace_in(
                &folder.join("server.js"),
                ", () => {\n    if (process.send)",
                ", '127.0.0.1', () => {\n    if (process.send)",
            )
        })
        .await?;
    practice.diagnose(&asked).await?.is_healthy()?;
    let said = practice.doctor(&OTHERS).await?;
    ensure!(said.text.contains("myapp  cluster mode, 4 workers: L0"), "{}", said.text);
    practice.site.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_follows_it_has_none_of_the_threads_mistakes_any_more() -> Result<()> {
    let mut practice = Practice::open("1.22.1", "careless", "L1").await?;
    let asked = ["--health", "/health"];
    let first = practice.diagnose(&asked).await?;
    first.finds(&[
        "handoff-not-loaded",
        "health-any-path",
        "nginx-address",
        "nginx-keepalive-timeout",
        "nginx-next-upstream",
        "nginx-non-idempotent",
        "nginx-passive-bans",
        "nginx-tries",
        "nginx-zone",
        "pm2-cron-restart",
        "pm2-kill-timeout",
        "pm2-not-reached",
        "pm2-ready-not-said",
        "pm2-treekill",
        "pm2-two-at-once",
    ])?;
    for answer in [&first.text, &practice.doctor(&asked).await?.text] {
        ensure!(!answer.contains("planted-secret"), "an app's environment is shown: {answer}");
    }
    practice
        .follow(&first, |id, folder| {
            ensure!(id == "health-any-path", "{id} cannot be followed");
            let file = folder.join("server.js");
            replace_in(
                &file,
                "res.end('ok')",
                "res.writeHead(req.url === '/health' ? 200 : 404).end(`${process.pid} ${Date.now()}`)",
            )
        })
        .await?;
    practice.diagnose(&asked).await?.is_healthy()?;
    let said = practice.doctor(&OTHERS).await?;
    ensure!(said.text.contains("myapp  fork mode, 3 workers: L2"), "{}", said.text);
    practice.site.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_nginx_that_would_not_start_is_known_before_it_is_installed() -> Result<()> {
    for (present, other) in [("1.22.1", "1.28.3"), ("1.28.3", "1.22.1")] {
        let mut site = Site::new(present).await?;
        site.write(&site.api("write=on"))?;
        site.start().await?;
        let conf = site.conf().display().to_string();
        let ask = async |version: &str| -> Result<Diagnosis> {
            let nginx = Binary::find(Some(version)).await?.path.display().to_string();
            let mut handoff = command::clean(place::handoff()?);
            handoff.args(["doctor", "--json", "--conf", &conf, "--nginx", &nginx]);
            handoff.args(["--only", "upgrade-module", "--only", "upgrade-refused"]);
            Diagnosis::of(handoff.envs(sidecar::environment(site.place()))).await
        };
        let wrong = ask(other).await?;
        wrong.finds(&["upgrade-module"])?;
        ensure!(wrong.code == Some(21), "{:?}", wrong.code);
        let found = word(&wrong.findings()?[0], "found").to_owned();
        ensure!(found.contains(&format!("made for nginx {present}")), "{found}");
        ensure!(found.contains(&format!("is nginx {other}")), "{found}");

        // Nothing is wrong with it; of PM2, which is not here, nothing is known.
        let right = ask(present).await?;
        right.finds(&[])?;
        ensure!(right.code == Some(22), "{:?}: {}", right.code, right.text);

        // What is written is not what runs, and would not start.
        site.write(&format!(
            "{}\nupstream x {{ server 127.0.0.1:1; no_such_directive; }}",
            site.api("write=on")
        ))?;
        let refused = ask(present).await?;
        refused.finds(&["upgrade-refused"])?;
        let found = word(&refused.findings()?[0], "found").to_owned();
        ensure!(found.contains("unknown directive \"no_such_directive\""), "{found}");
        site.end_but_for(&["no_such_directive"]).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_looked_at_is_said_and_not_called_well() -> Result<()> {
    let mut site = Site::new("1.22.1").await?;
    site.write(&site.front("return 204;"))?;
    site.start().await?;
    let sys = site.file("sys");
    fs::create_dir_all(sys.join("fs/selinux/booleans"))?;
    fs::write(sys.join("fs/selinux/enforce"), "1")?;
    let run = async |arguments: &[&str]| -> Result<Diagnosis> {
        let mut handoff = command::clean(place::handoff()?);
        handoff.arg("doctor").args(OTHERS).args(arguments).env("HANDOFF_SYS", &sys);
        Diagnosis::of(handoff.envs(sidecar::environment(site.place()))).await
    };
    let conf = site.conf().display().to_string();
    let said = run(&["--conf", &conf]).await?;
    ensure!(said.code == Some(22), "{:?}: {}", said.code, said.text);
    for words in
        ["PM2 does not run", "httpd_can_network_connect: No such file", "0 errors, 0 warnings, 0 notes"]
    {
        ensure!(said.text.contains(words), "no {words:?} in {}", said.text);
    }
    let nowhere = run(&["--conf", "/nowhere/nginx.conf"]).await?;
    ensure!(nowhere.code == Some(21) && nowhere.text.contains("nginx-refused"), "{}", nowhere.text);
    let wrong = run(&["--only", "nginx-pasive-bans"]).await?;
    ensure!(wrong.code == Some(2) && wrong.stderr.contains("docs/api/doctor.md"), "{}", wrong.stderr);
    site.end().await
}
