//! `handoff doctor [APP]`

use super::{Context, Exit, Failure, hosts::StoreArgs, say, status};
use crate::{
    doctor::{
        catalogue, checks,
        facts::{App, Facts, Seen},
        finding::{About, Finding, Severity, Step, Unseen},
        gather::{self, Request},
        security::Sys,
    },
    harmless::harmless,
    rollout::health,
    store,
};
use handoff_wire::Span;
use rustix::termios::isatty;
use serde::Serialize;
use std::{env, fmt::Write as _, io, path::PathBuf};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// One app [default: every one that PM2 has]
    app: Option<String>,
    /// Another nginx: would it start with what is configured?
    #[arg(long, value_name = "PATH")]
    nginx: Option<PathBuf>,
    /// nginx's configuration [default: that of the nginx that runs]
    #[arg(long, value_name = "FILE")]
    conf: Option<PathBuf>,
    /// The ecosystem file; code in it is run, as PM2 does [default: the one in this directory]
    #[arg(long, value_name = "FILE")]
    ecosystem: Option<PathBuf>,
    /// Ask each worker for its health there
    #[arg(long, value_name = "PATH")]
    health: Option<health::Path>,
    /// Ask each app, with a GET, for how long it keeps idle connections
    #[arg(long, value_name = "PATH", num_args = 0..=1, default_missing_value = "/")]
    probe: Option<health::Path>,
    /// How long the slowest request takes
    #[arg(long, value_name = "TIME")]
    slowest: Option<Span>,
    /// This finding and no other; may be given more than once
    #[arg(long, value_name = "ID", value_parser = id)]
    only: Vec<String>,
    /// Every finding but this; may be given more than once
    #[arg(long, value_name = "ID", value_parser = id)]
    ignore: Vec<String>,
    /// As JSON
    #[arg(long)]
    json: bool,
    /// Where the sidecar keeps its state
    #[arg(long, env = "HANDOFF_STATE_DIR", value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// /sys, or what stands for it
    #[arg(long, env = "HANDOFF_SYS", value_name = "DIR", hide = true)]
    sys: Option<PathBuf>,
    #[command(flatten)]
    store: StoreArgs,
}

/// The whole answer, as docs/api/doctor.md describes it.
#[derive(Debug, Serialize)]
struct Answer<'a> {
    version: u32,
    handoff: &'a str,
    nginx: Option<NginxAnswer<'a>>,
    upgrade: Option<NginxAnswer<'a>>,
    apps: Vec<AppAnswer<'a>>,
    findings: &'a [Finding],
    not_looked_at: &'a [Unseen],
    errors: usize,
    warnings: usize,
    notes: usize,
    exit: u8,
}

#[derive(Debug, Serialize)]
struct NginxAnswer<'a> {
    path: &'a std::path::Path,
    version: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    conf: Option<&'a std::path::Path>,
}

#[derive(Debug, Serialize)]
struct AppAnswer<'a> {
    app: &'a str,
    home: Option<String>,
    mode: &'static str,
    workers: usize,
    /// As `handoff status` says it.
    level: Option<&'a str>,
}

/// A line is no longer than this, however wide the terminal is.
const WIDEST: usize = 100;
const INDENT: usize = 9;

fn id(text: &str) -> Result<String, String> {
    if catalogue::ALL.iter().any(|kind| kind.id == text) {
        return Ok(text.to_owned());
    }
    Err("nothing is called so: docs/api/doctor.md lists what can be found".to_owned())
}

pub(super) async fn run(context: &Context, args: &Args) -> Result<Exit, Failure> {
    let mut facts = gather::look(&args.request(context)?).await;
    known(&facts, args.app.as_deref())?;
    let status = status::collect(context).await;
    for (home, name, says) in status.levels() {
        let its =
            |app: &&mut App| app.name == name && app.home.as_ref().is_some_and(|own| own.to_string() == home);
        if let Some(app) = facts.apps.iter_mut().find(its) {
            app.level = Some(says.to_owned());
        }
    }
    let findings: Vec<Finding> =
        checks::all(&facts).into_iter().filter(|finding| args.is_wanted(finding.kind.id)).collect();
    let exit = exit(&findings, &facts.unseen);
    let text =
        if args.json { json(&facts, &findings, exit)? } else { text(&facts, &findings, Paper::of_stdout()) };
    _ = say(text);
    Ok(exit)
}

/// An app that is not there has nothing wrong with it: that must not pass for well.
fn known(facts: &Facts, app: Option<&str>) -> Result<(), Failure> {
    let has_seen = facts.daemons.iter().any(|daemon| matches!(daemon.seen, Seen::Running { .. }));
    match app {
        Some(app) if has_seen && facts.apps.is_empty() => Err(Failure::new(
            Exit::UnknownTarget,
            format!("PM2 has no app {app:?}: `handoff status` shows those it has"),
        )),
        _ => Ok(()),
    }
}

fn exit(findings: &[Finding], unseen: &[Unseen]) -> Exit {
    match findings.iter().map(|finding| finding.severity).max() {
        Some(Severity::Error) => Exit::Ill,
        Some(Severity::Warning) => Exit::Warnings,
        _ if unseen.iter().any(|unseen| !unseen.by_choice) => Exit::Unseen,
        _ => Exit::Done,
    }
}

// === impl Args ===

impl Args {
    fn request(&self, context: &Context) -> Result<Request, Failure> {
        let store = self.store.clone().over(context.store.clone());
        let store =
            store::Settings::of(store, &context.control).map_err(|text| Failure::new(Exit::Usage, text))?;
        Ok(Request {
            store,
            homes: context.homes.clone(),
            control: context.control.clone(),
            overrides: context.overrides.clone(),
            state_dir: self.state_dir.clone().or_else(|| context.state_dir.clone()),
            app: self.app.clone(),
            conf: self.conf.clone().map(|conf| std::path::absolute(&conf).unwrap_or(conf)),
            upgrade: self.nginx.clone(),
            ecosystem: self.ecosystem.clone(),
            health: self.health.as_ref().map(ToString::to_string),
            probe: self.probe.as_ref().map(ToString::to_string),
            slowest: self.slowest.map(Span::duration),
            sys: self.sys.as_deref().map(Sys::at).unwrap_or_default(),
        })
    }

    fn is_wanted(&self, id: &str) -> bool {
        let has = |ids: &[String]| ids.iter().any(|own| own == id);
        (self.only.is_empty() || has(&self.only)) && !has(&self.ignore)
    }
}

fn json(facts: &Facts, findings: &[Finding], exit: Exit) -> Result<String, Failure> {
    let answer = Answer {
        version: 1,
        handoff: &facts.asked.version,
        nginx: facts.binary.as_ref().map(|nginx| NginxAnswer {
            path: &nginx.path,
            version: &nginx.version,
            conf: Some(&nginx.conf),
        }),
        upgrade: facts.upgrade.as_ref().map(|nginx| NginxAnswer {
            path: &nginx.path,
            version: &nginx.version,
            conf: None,
        }),
        apps: facts.apps.iter().map(AppAnswer::of).collect(),
        findings,
        not_looked_at: &facts.unseen,
        errors: count(findings, Severity::Error),
        warnings: count(findings, Severity::Warning),
        notes: count(findings, Severity::Note),
        exit: exit as u8,
    };
    serde_json::to_string_pretty(&answer).map_err(|error| Failure::new(Exit::Failed, error.to_string()))
}

fn count(findings: &[Finding], severity: Severity) -> usize {
    findings.iter().filter(|finding| finding.severity == severity).count()
}

// === impl AppAnswer ===

impl<'a> AppAnswer<'a> {
    fn of(app: &'a App) -> Self {
        Self {
            app: &app.name,
            home: app.home.as_ref().map(ToString::to_string),
            mode: if app.is_cluster() { "cluster" } else { "fork" },
            workers: app.workers.len(),
            level: app.level.as_deref(),
        }
    }
}

/// What is written on.
#[derive(Clone, Copy, Debug)]
struct Paper {
    columns: usize,
    has_colour: bool,
}

// === impl Paper ===

impl Paper {
    fn of_stdout() -> Self {
        let is_terminal = isatty(io::stdout());
        let size = rustix::termios::tcgetwinsize(io::stdout()).ok();
        let columns = size.map_or(0, |size| usize::from(size.ws_col));
        let has_colour = is_terminal && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        // As narrow as a word is no use to anybody.
        let columns = if columns == 0 { WIDEST } else { (columns - 1).clamp(40, WIDEST) };
        Self { columns, has_colour }
    }

    fn severity(self, severity: Severity) -> String {
        let code = match severity {
            Severity::Error => "31",
            Severity::Warning => "33",
            Severity::Note => "2",
        };
        let word = format!("{severity:<8}");
        if self.has_colour { format!("\x1b[{code}m{word}\x1b[0m") } else { word }
    }

    /// In as many lines as it takes, each moved to the right.
    fn wrapped(self, text: &str) -> String {
        let room = self.columns.saturating_sub(INDENT);
        let mut lines: Vec<String> = Vec::new();
        for word in pieces(text) {
            match lines.last_mut().filter(|line| line.chars().count() + word.chars().count() < room) {
                Some(line) => _ = write!(line, " {word}"),
                None => lines.push(word),
            }
        }
        lines.iter().map(|line| format!("{:INDENT$}{line}\n", "")).collect()
    }

    fn step(self, step: &Step) -> String {
        let text = harmless(&step.to_string());
        let text = match step {
            // What is to be copied stays in one piece.
            Step::Change { .. } | Step::Or { .. } | Step::See { .. } => self.wrapped(&text),
            _ => format!("{:INDENT$}{text}\n", ""),
        };
        text.replacen("         ", "      →  ", 1)
    }

    fn finding(self, finding: &Finding) -> String {
        let place = finding.at.as_ref().map(|at| format!("  {}:{}", at.file.display(), at.line));
        let head = format!(
            "{}{}{}\n",
            self.severity(finding.severity) + " ",
            finding.kind.id,
            place.unwrap_or_default()
        );
        let steps: String = finding.mend.iter().map(|step| self.step(step)).collect();
        head + &self.wrapped(&harmless(&finding.found)) + &self.wrapped(finding.kind.why) + &steps
    }
}

/// Words; `4 160` is one.
fn pieces(text: &str) -> Vec<String> {
    let mut pieces: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        let is_digit = |c: char| c.is_ascii_digit();
        match pieces.last_mut().filter(|last| last.ends_with(is_digit) && word.starts_with(is_digit)) {
            Some(last) => _ = write!(last, " {word}"),
            None => pieces.push(word.to_owned()),
        }
    }
    pieces
}

fn text(facts: &Facts, findings: &[Finding], paper: Paper) -> String {
    let mut text = String::new();
    if let Some(nginx) = &facts.binary {
        _ = writeln!(text, "nginx  {} ({}), {}", nginx.version, nginx.path.display(), nginx.conf.display());
    }
    for app in &facts.apps {
        let AppAnswer { app, mode, workers, level, .. } = AppAnswer::of(app);
        let level = level.map(|level| format!(": {level}")).unwrap_or_default();
        let plural = if workers == 1 { "" } else { "s" };
        _ = writeln!(text, "{}  {mode} mode, {workers} worker{plural}{level}", harmless(app));
    }
    let mut about = None;
    for finding in findings {
        let group = heading(&finding.about);
        if about.as_ref() != Some(&group) {
            _ = writeln!(text, "\n{group}");
            about = Some(group);
        }
        text.push('\n');
        text.push_str(&paper.finding(finding));
    }
    if !facts.unseen.is_empty() {
        text.push_str("\nnot looked at\n\n");
        for unseen in &facts.unseen {
            text.push_str(&paper.wrapped(&harmless(&format!("{}: {}", unseen.what, unseen.why))));
        }
    }
    let some = |severity: Severity| match count(findings, severity) {
        1 => format!("1 {severity}"),
        count => format!("{count} {severity}s"),
    };
    let all = [Severity::Error, Severity::Warning, Severity::Note].map(some).join(", ");
    _ = write!(text, "\n{all}");
    if !findings.is_empty() {
        text.push_str("; docs/api/doctor.md has more of each");
    }
    text
}

fn heading(about: &About) -> String {
    match about {
        About::Nginx => "nginx".to_owned(),
        About::Handoff => "Handoff".to_owned(),
        About::Host => "this host".to_owned(),
        About::App(app, _) => format!("app {}", harmless(app)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(kind: &'static crate::doctor::finding::Kind) -> Finding {
        Finding::new(kind, About::Nginx, "it is\x1b[2J so")
    }

    #[test]
    fn the_worst_finding_decides_and_what_was_not_seen_is_not_well() {
        let (error, warning) = (found(catalogue::NON_IDEMPOTENT), found(catalogue::BANS));
        let unseen = [Unseen::new("nginx", "no rights")];
        assert_eq!(exit(&[warning.clone(), error], &unseen), Exit::Ill);
        assert_eq!(exit(std::slice::from_ref(&warning), &unseen), Exit::Warnings);
        assert_eq!(exit(&[warning.clone().as_note()], &unseen), Exit::Unseen);
        assert_eq!(exit(&[warning.as_note()], &[Unseen::unasked("health", "not asked")]), Exit::Done);
    }

    #[test]
    fn an_answer_for_people_fits_and_steers_no_terminal() {
        let finding = found(catalogue::BANS)
            .with(Step::run("a command that is longer than forty columns, and in one piece"));
        let facts = Facts { unseen: vec![Unseen::new("nginx", "no rights")], ..Facts::default() };
        let text = text(&facts, &[finding], Paper { columns: 40, has_colour: false });
        assert!(!text.contains('\x1b'), "{text}");
        assert!(
            text.starts_with("\nnginx\n\nwarning  nginx-passive-bans\n         it is\u{fffd}[2J so\n"),
            "{text}"
        );
        assert!(
            text.contains("\n      →  run  a command that is longer than forty columns, and in one piece\n"),
            "{text}"
        );
        assert!(
            text.lines()
                .filter(|line| !line.contains('→'))
                .all(|line| line.chars().count() <= 40 || !line.starts_with(' ')),
            "{text}"
        );
        assert!(text.contains("\nnot looked at\n\n         nginx: no rights\n"), "{text}");
        assert!(
            text.ends_with("0 errors, 1 warning, 0 notes; docs/api/doctor.md has more of each"),
            "{text}"
        );
    }

    #[test]
    fn only_what_can_be_found_is_asked_for() {
        assert_eq!(pieces("of 4 160 and 12 more"), ["of", "4 160", "and", "12", "more"]);
        assert!(id("nginx-passive-bans").is_ok() && id("nginx-pasive-bans").is_err());
    }
}
