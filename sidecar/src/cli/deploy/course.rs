//! The course of a deploy, forth and back.
//!
//! | it ends in | undone by |
//! |---|---|
//! | fetch, release, install, build, measure | removing the directory that was made |
//! | switch, reload, bake | the link goes back; then every worker whose process is not as it was is replaced, by the same roll-out |
//!
//! The link goes back first: whatever starts from then on, of itself or because we ask for it, is the old release. In place
//! the working tree goes back instead of a link, and is installed and built anew before a worker is touched.

use super::{
    super::{
        Context,
        exit::{Exit, Failure},
        work::hold,
    },
    Args, Ready,
    moves::LOOK,
    voice::{Voice, seconds},
};
use crate::{
    control::Control,
    deploy::{
        event::{Stage, Told, What},
        git::{Git, GitError},
        ground::{Ground, GroundError},
        hook::{self, Hook, HookError},
        journal::{Journal, Journals},
        record::{self, Numbers, Outcome, Record, Records, Traffic},
        settings::{HOOK_TIMEOUT, KEEP, Settings},
        tally::Tally,
        traffic::Limits,
    },
    host::{Proc, Process},
    peer::Peer,
    pm2::{
        PmId,
        home::Home,
        monitor::Listed,
        rpc::{Rpc, RpcError},
    },
    rollout::{
        Broken, Options, Stop,
        brake::{Brake, Halt},
        lock::Lock,
        stop::Role,
    },
};
use handoff_wire::{DEFAULT_LEASE, OwnerKind};
use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use tokio::{process::Command, sync::mpsc::UnboundedSender};

/// What is to serve.
#[derive(Clone, Debug)]
pub(super) enum Goal {
    Reference { repository: String, reference: Option<String> },
    Files(PathBuf),
    Release(String),
}

/// Why it went no further.
#[derive(Clone, Debug)]
pub(super) struct Trouble {
    pub(super) exit: Exit,
    pub(super) text: String,
    pub(super) log: Vec<String>,
}

pub(super) struct Course<'a> {
    pub(super) context: &'a Context,
    pub(super) app: String,
    pub(super) settings: Settings,
    pub(super) ground: Ground,
    pub(super) options: Options,
    pub(super) limits: Limits,
    goal: Goal,
    again: bool,
    pub(super) home: Home,
    /// As they were before.
    was: Vec<Listed>,
    pub(super) signals: Brake,
    pub(super) voice: Voice,
    pub(super) tally: Tally,
    /// Where each worker serves.
    pub(super) places: BTreeMap<PmId, BTreeSet<Peer>>,
    pub(super) cut: u64,
    began: Instant,
    began_at: String,
}

/// The release in hand.
#[derive(Debug)]
struct Release {
    journal: Journal,
    commit: Option<String>,
}

/// How it came out.
#[derive(Debug)]
struct End {
    outcome: Outcome,
    exit: Exit,
    text: String,
}

/// So often it is tried to move the workers back while somebody else changes the app.
const TRIES: u32 = 4;
const FOREIGN_PAUSE: Duration = Duration::from_secs(3);
const ALERT_TIMEOUT: Duration = Duration::from_secs(10);
/// In a release: the commit that it is.
const REVISION: &str = "REVISION";

// === impl Course ===

impl<'a> Course<'a> {
    #[expect(clippy::too_many_arguments, reason = "it is put together in one place")]
    pub(super) fn new(
        context: &'a Context,
        args: &Args,
        settings: Settings,
        ground: Ground,
        options: Options,
        goal: Goal,
        ready: Ready,
        signals: Brake,
        told: UnboundedSender<Told>,
    ) -> Self {
        Self {
            context,
            app: args.app.clone(),
            limits: settings.limits(),
            settings,
            ground,
            options,
            goal,
            again: args.again,
            home: ready.home,
            was: ready.workers,
            signals,
            voice: Voice::new(&args.app, told),
            tally: Tally::default(),
            places: BTreeMap::new(),
            cut: 0,
            began: Instant::now(),
            began_at: record::now(),
        }
    }

    pub(super) async fn run(mut self) -> Result<Exit, Failure> {
        // Who is busy with this PM2 is better known now than after the build.
        drop(Lock::take(&self.home)?);
        self.mend().await?;
        self.look_around().await?;
        let from = self.serving().await.map_err(Failure::from)?;
        let mut release = match self.named(from).await {
            Ok(release) => release,
            Err(exit) => return Ok(exit),
        };
        self.alert(&self.settings.on_start, &self.record(&release, &End::begun())).await;
        let made = self.made(&mut release).await;
        let end = match made {
            Ok(()) => self.brought_out(&mut release).await,
            Err(trouble) => self.unmade(&release, trouble),
        };
        Ok(self.conclude(release, end).await)
    }

    /// From here on somebody may notice.
    async fn brought_out(&mut self, release: &mut Release) -> End {
        let mut lock = match Lock::take(&self.home) {
            Ok(lock) => lock,
            Err(error) => return self.unmade(release, Failure::from(error).into()),
        };
        let guard = Brake::default();
        let course = async {
            match self.moved(release, &guard).await {
                Ok(text) => End::done(text, self.cut),
                Err(trouble) => self.back(release, trouble).await,
            }
        };
        tokio::select! {
            biased;
            end = course => end,
            never = hold(&mut lock, &guard) => match never {
                Ok(exit) => End { outcome: Outcome::Mixed, exit, text: String::new() },
                Err(Failure { exit, text }) => End { outcome: Outcome::Mixed, exit, text },
            },
        }
    }

    async fn conclude(&self, release: Release, end: End) -> Exit {
        let record = self.record(&release, &end);
        if let Err(error) = Records::of(self.ground.state()).add(&record) {
            self.voice.note(format!("this deploy could not be recorded: {error}"));
        }
        // What could not be moved back is the next one's first work.
        if end.outcome != Outcome::Mixed {
            self.strike();
        }
        if end.outcome == Outcome::Done && !self.ground.is_in_place() {
            let needed = [Some(release.journal.to.as_str()), release.journal.from.as_deref()];
            let needed: Vec<&str> = needed.into_iter().flatten().collect();
            for gone in self.ground.prune(self.settings.keep.unwrap_or(KEEP).max(1), &needed) {
                _ = std::fs::remove_file(hook::log(self.ground.state(), &gone));
            }
        }
        let hook =
            if end.outcome == Outcome::Done { &self.settings.on_success } else { &self.settings.on_failure };
        self.alert(hook, &record).await;
        let End { outcome, exit, text } = end;
        self.voice.tell(What::Deployed { exit: exit as u8, outcome, seconds: record.seconds, text });
        exit
    }

    // --- before

    /// Where each worker serves, and what nginx has counted until now.
    async fn look_around(&mut self) -> Result<(), Failure> {
        if self.was.is_empty() {
            return Ok(());
        }
        let rollout = self.prepared(None, Brake::default(), self.options.clone(), false).await?;
        self.places = rollout.plan().turns.iter().map(|turn| (turn.id, turn.peers.clone())).collect();
        self.tally = Tally::of(self.places.values().flatten().cloned());
        self.look().await;
        Ok(())
    }

    /// The release that serves now; in place, the commit.
    async fn serving(&self) -> Result<Option<String>, Trouble> {
        if self.ground.is_in_place() {
            return Ok(Some(self.tree().run(["rev-parse", "HEAD"]).await?));
        }
        Ok(self.ground.current()?)
    }

    /// Fetches, and gives the release its name. Error: it is over, in this way.
    async fn named(&mut self, from: Option<String>) -> Result<Release, Exit> {
        let voice = self.voice.clone();
        let mut commit = None;
        if let Goal::Reference { repository, reference } = &self.goal {
            let fetch = async {
                let found = self.fetched(repository, reference.as_deref()).await?;
                let text = format!("{} is {}", reference.as_deref().unwrap_or("HEAD"), short(&found));
                commit = Some(found);
                Ok(text)
            };
            if let Err(trouble) = voice.stage(Stage::Fetch, Some(&self.signals), fetch).await {
                // A deploy that ends here has a record, too.
                let to = reference.clone().unwrap_or_else(|| "HEAD".to_owned());
                let release = Release { journal: self.journal(to, from), commit: None };
                let end = self.unmade(&release, trouble);
                return Err(self.conclude(release, end).await);
            }
        }
        let serves = match (&self.goal, &from) {
            (Goal::Release(id), Some(from)) => id == from,
            (Goal::Reference { .. }, Some(from)) => commit.is_some() && commit == self.commit_of(from),
            _ => false,
        };
        if serves && !self.again {
            let what = commit
                .as_deref()
                .map_or_else(|| from.clone().unwrap_or_default(), |commit| short(commit).to_owned());
            let text = format!("nothing is new: {} serves {what} already", self.app);
            let seconds = seconds(self.began);
            voice.tell(What::Deployed { exit: 0, outcome: Outcome::Done, seconds, text });
            return Err(Exit::Done);
        }
        let to = match &self.goal {
            Goal::Release(id) => id.clone(),
            _ if self.ground.is_in_place() => commit.clone().unwrap_or_default(),
            _ => self.ground.new_id(commit.as_deref()),
        };
        let commit = commit.or_else(|| self.commit_of(&to));
        Ok(Release { journal: self.journal(to, from), commit })
    }

    fn journal(&self, to: String, from: Option<String>) -> Journal {
        let old = self.was.iter().filter_map(|worker| Process::find(&Proc::default(), worker.pid?)).collect();
        let (began, who) = (self.began_at.clone(), record::who());
        Journal { to, from, stage: Stage::Fetch, is_made: false, old, began, who }
    }

    async fn fetched(&self, repository: &str, reference: Option<&str>) -> Result<String, Trouble> {
        if !self.ground.is_in_place() {
            let git = Git::mirror(&self.ground.repo(), repository).await?;
            return Ok(git.commit(repository, reference).await?);
        }
        let changed = self.tree().run(["status", "--porcelain", "--untracked-files=no"]).await?;
        if !changed.is_empty() {
            let text = format!(
                "{} has changes that no commit has, and they would be lost: commit or undo them first\n{changed}",
                self.ground.path().display()
            );
            return Err(Trouble::new(Exit::NotMade, text));
        }
        self.tree().run(["fetch", "--quiet", "--tags", "origin"]).await?;
        Ok(self.tree().commit("origin", reference).await?)
    }

    fn tree(&self) -> Git {
        Git::at(self.ground.path())
    }

    fn commit_of(&self, id: &str) -> Option<String> {
        if self.ground.is_in_place() {
            return Some(id.to_owned());
        }
        let text = std::fs::read_to_string(self.ground.release(id).join(REVISION)).ok()?;
        Some(text.trim().to_owned())
    }

    /// Makes the release. Nothing that runs is touched.
    async fn made(&mut self, release: &mut Release) -> Result<(), Trouble> {
        let (voice, signals) = (self.voice.clone(), self.signals.clone());
        if !self.ground.is_in_place() && !matches!(self.goal, Goal::Release(_)) {
            release.journal.is_made = true;
            self.note_down(release, Stage::Release)?;
            voice.stage(Stage::Release, Some(&signals), self.laid_down(release)).await?;
            self.hooks(release, Some(&signals)).await?;
        }
        if !self.ground.is_in_place() && !self.was.is_empty() {
            self.measured(Some(&signals)).await?;
        }
        Ok(())
    }

    async fn laid_down(&self, release: &Release) -> Result<String, Trouble> {
        let id = &release.journal.to;
        let path = self.ground.make(id)?;
        match (&self.goal, &release.commit) {
            (Goal::Reference { .. }, Some(commit)) => {
                Git::at(&self.ground.repo()).export(commit, &path).await?;
                let file = path.join(REVISION);
                std::fs::write(&file, format!("{commit}\n"))
                    .map_err(|error| GroundError::Io { path: file, error })?;
            }
            (Goal::Files(from), _) => copied(from, &path).await?,
            _ => {}
        }
        self.ground.share(id, &self.settings.shared)?;
        Ok(path.display().to_string())
    }

    /// Installs and builds. What is shared may lie in what was installed.
    async fn hooks(&self, release: &Release, signals: Option<&Brake>) -> Result<(), Trouble> {
        for (stage, command) in
            [(Stage::Install, &self.settings.install), (Stage::Build, &self.settings.build)]
        {
            let Some(command) = command else { continue };
            let run = async {
                self.hook(release, command).await?;
                if !self.ground.is_in_place() {
                    self.ground.share(&release.journal.to, &self.settings.shared)?;
                }
                Ok(command.clone())
            };
            self.voice.stage(stage, signals, run).await?;
        }
        Ok(())
    }

    async fn hook(&self, release: &Release, command: &str) -> Result<(), Trouble> {
        let Journal { to, from, .. } = &release.journal;
        let directory = self.ground.release(to);
        let directory = directory.canonicalize().unwrap_or(directory);
        let told = self.told(&directory, from.as_deref(), release.commit.as_deref());
        let timeout = self.settings.hook_timeout.unwrap_or(HOOK_TIMEOUT).duration();
        let log = hook::log(self.ground.state(), to);
        let run = Hook { command, directory: &directory, told: &told, timeout }.run(&log).await;
        run.map_err(|error| Trouble { log: hook::last_lines(&log), ..Trouble::from(error) })
    }

    fn told(
        &self,
        release: &Path,
        from: Option<&str>,
        commit: Option<&str>,
    ) -> Vec<(&'static str, OsString)> {
        let from =
            from.map(
                |from| if self.ground.is_in_place() { from.into() } else { self.ground.release(from).into() },
            );
        let all = [
            ("HANDOFF_APP", Some(self.app.clone().into())),
            ("HANDOFF_PATH", Some(self.ground.path().into())),
            ("HANDOFF_RELEASE", Some(release.into())),
            ("HANDOFF_PREVIOUS", from),
            ("HANDOFF_COMMIT", commit.map(Into::into)),
        ];
        all.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
    }

    // --- forth

    async fn moved(&mut self, release: &mut Release, guard: &Brake) -> Result<String, Trouble> {
        let (voice, signals) = (self.voice.clone(), self.signals.clone());
        self.note_down(release, Stage::Switch)?;
        // Not to be ended in the middle: what follows it undoes it.
        voice.stage(Stage::Switch, None, self.switched(&release.journal.to)).await?;
        if self.ground.is_in_place() {
            self.hooks(release, Some(&signals)).await?;
            if !self.was.is_empty() {
                self.measured(Some(&signals)).await?;
            }
        }
        if self.was.is_empty() && self.settings.ecosystem.is_none() {
            let (path, app) = (self.ground.through(), &self.app);
            return Ok(format!(
                "the first release is in {}. Start it once: pm2 start FILE --only {app}, with cwd: '{0}' in its ecosystem file",
                path.display()
            ));
        }
        voice.stage(Stage::Reload, None, self.replaced(&[&signals, guard])).await?;
        let mut text = String::new();
        voice
            .stage(Stage::Bake, Some(&signals), async {
                text = self.baked(guard).await?;
                Ok(text.clone())
            })
            .await?;
        let Journal { to, .. } = &release.journal;
        let name = if self.ground.is_in_place() { short(to) } else { to };
        Ok(format!("{} serves {name} on every worker; {text}", self.app))
    }

    async fn switched(&self, to: &str) -> Result<String, Trouble> {
        if self.ground.is_in_place() {
            self.tree().run(["checkout", "--quiet", "--detach", to]).await?;
            return Ok(format!("{} is {}", self.ground.path().display(), short(to)));
        }
        self.ground.switch(Some(to))?;
        Ok(format!("{} is {to}", self.ground.through().display()))
    }

    // --- back

    /// Before anybody could notice.
    fn unmade(&self, release: &Release, trouble: Trouble) -> End {
        let mut text = trouble.text;
        if release.journal.is_made
            && let Err(error) = self.ground.remove(&release.journal.to)
        {
            text = format!("{text} (and what was made of the release is still there: {error})");
        }
        let serves =
            release.journal.from.as_ref().map_or("", |_| ". Nothing was changed: the old release serves");
        End { outcome: Outcome::Failed, exit: trouble.exit, text: format!("{text}{serves}") }
    }

    async fn back(&mut self, release: &mut Release, trouble: Trouble) -> End {
        let Trouble { exit, text, .. } = trouble;
        let Some(from) = release.journal.from.clone() else {
            let text = format!("{text}. There is no release before it to go back to");
            return End { outcome: Outcome::Failed, exit, text };
        };
        if self.signals.pulled().is_some() {
            self.voice.note("what was begun is undone first; once more leaves at once");
        }
        _ = self.note_down(release, Stage::Back);
        let voice = self.voice.clone();
        let old = release.journal.old.clone();
        let mut said = String::new();
        let done = voice
            .stage(Stage::Back, None, async {
                said = self.returned(release, &from, &old).await?;
                Ok(said.clone())
            })
            .await;
        match done {
            Ok(()) => End { outcome: Outcome::RolledBack, exit, text: format!("{text}. {said}") },
            Err(Trouble { text: why, .. }) => {
                let text = format!(
                    "{text}. AND NOT EVERY WORKER COULD BE MOVED BACK: {why}. What starts now is the old release; look at `handoff \
                     status`, and deploy again, which begins by undoing this one"
                );
                End { outcome: Outcome::Mixed, exit: Exit::Mixed, text }
            }
        }
    }

    async fn returned(&mut self, release: &Release, from: &str, old: &[Process]) -> Result<String, Trouble> {
        self.switched(from).await?;
        if self.ground.is_in_place() {
            let journal = Journal { to: from.to_owned(), ..release.journal.clone() };
            self.hooks(&Release { journal, commit: Some(from.to_owned()) }, None).await?;
        }
        let mut tries = 1;
        let replaced = loop {
            match self.moved_back(from, old).await {
                // Whoever else is at it comes to an end.
                Err(trouble) if trouble.exit == Exit::Foreign && tries < TRIES => {
                    self.voice.note(trouble.text);
                    tries += 1;
                    tokio::time::sleep(FOREIGN_PAUSE).await;
                }
                replaced => break replaced?,
            }
        };
        let name = if self.ground.is_in_place() { short(from) } else { from };
        Ok(match replaced {
            0 => format!("No worker had left the old release, {name}: it serves on every one"),
            1 => format!("1 worker was moved back: the old release, {name}, serves on every one"),
            more => format!("{more} workers were moved back: the old release, {name}, serves on every one"),
        })
    }

    /// What a killed deploy left half done is undone first.
    async fn mend(&mut self) -> Result<(), Failure> {
        let Some(journal) = Journals::of(self.ground.state()).left() else { return Ok(()) };
        let Journal { to, from, stage, .. } = &journal;
        self.voice.note(format!(
            "the deploy of {to} by {} at {} did not come to its end: what it left in `{stage}` is undone first",
            journal.who, journal.began
        ));
        let mut release = Release { commit: self.commit_of(to), journal: journal.clone() };
        let end = match from {
            Some(_) if *stage >= Stage::Switch => {
                let mut lock = Lock::take(&self.home)?;
                self.nobody_holds().await;
                let guard = Brake::default();
                let trouble = Trouble::new(Exit::Failed, format!("the deploy of {to} was killed"));
                let end = tokio::select! {
                    biased;
                    end = self.back(&mut release, trouble) => end,
                    never = hold(&mut lock, &guard) => return never.map(drop),
                };
                if end.outcome == Outcome::Mixed {
                    return Err(Failure::new(Exit::Mixed, end.text));
                }
                // It was ended before it was tried, and is nobody's way back.
                if journal.is_made {
                    _ = self.ground.remove(to);
                }
                end
            }
            _ if *stage >= Stage::Switch => {
                End { outcome: Outcome::Failed, exit: Exit::Failed, text: String::new() }
            }
            _ => self.unmade(&release, Trouble::new(Exit::Failed, format!("the deploy of {to} was killed"))),
        };
        let record = self.record(&release, &End { outcome: Outcome::Killed, ..end });
        _ = Records::of(self.ground.state()).add(&Record {
            who: journal.who,
            began: journal.began,
            ..record
        });
        self.strike();
        self.was = self.listed().await.map_err(Failure::from)?;
        Ok(())
    }

    /// Waits until the marks of the killed one have run out: a worker that it holds back does not get up.
    async fn nobody_holds(&self) {
        let mut control = Control::new(self.context.control.clone());
        let until = Instant::now() + DEFAULT_LEASE.duration() + Duration::from_secs(1);
        while Instant::now() < until {
            let Ok(upstreams) = control.upstreams().await else { return };
            let mut marks =
                upstreams.upstreams.iter().flat_map(|upstream| &upstream.peers).flat_map(|peer| &peer.marks);
            if !marks.any(|mark| mark.owner.kind() == OwnerKind::Rollout) {
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    // --- what is written down

    fn note_down(&self, release: &mut Release, stage: Stage) -> Result<(), Trouble> {
        release.journal.stage = stage;
        let written = Journals::of(self.ground.state()).write(&release.journal);
        written.map_err(|error| {
            Trouble::new(Exit::Failed, format!("cannot write in {}: {error}", self.ground.state().display()))
        })
    }

    fn strike(&self) {
        if let Err(error) = Journals::of(self.ground.state()).strike() {
            self.voice.note(format!("the next deploy is going to take this one for killed: {error}"));
        }
    }

    fn record(&self, release: &Release, end: &End) -> Record {
        let Journal { to, from, who, .. } = &release.journal;
        let has_traffic = self.tally.old.answers.all + self.tally.new.answers.all > 0;
        let reference = match &self.goal {
            Goal::Reference { reference, .. } => reference.clone(),
            Goal::Files(_) | Goal::Release(_) => None,
        };
        Record {
            app: self.app.clone(),
            release: to.clone(),
            commit: release.commit.clone(),
            reference,
            previous: from.clone(),
            who: who.clone(),
            began: self.began_at.clone(),
            seconds: seconds(self.began),
            outcome: end.outcome,
            exit: end.exit as u8,
            text: end.text.clone(),
            steps: self.voice.steps(),
            cut: self.cut,
            traffic: has_traffic.then(|| Traffic {
                old: Numbers::from(&self.tally.old),
                new: Numbers::from(&self.tally.new),
            }),
        }
    }

    /// Somebody is told. Whatever comes of that changes nothing.
    async fn alert(&self, command: &Option<String>, record: &Record) {
        let Some(command) = command else { return };
        let directory = self.ground.release(&record.release);
        let mut told = self.told(&directory, record.previous.as_deref(), record.commit.as_deref());
        told.push(("HANDOFF_EXIT", record.exit.to_string().into()));
        told.push(("HANDOFF_OUTCOME", record.outcome.as_str().into()));
        let text = serde_json::to_string(record).unwrap_or_default();
        let hook = Hook { command, directory: self.ground.path(), told: &told, timeout: ALERT_TIMEOUT };
        if let Err(error) = hook.tell(&text).await {
            self.voice.note(format!("nobody was told: {error}"));
        }
    }

    // --- PM2

    pub(super) async fn listed(&self) -> Result<Vec<Listed>, Trouble> {
        let mut rpc = Rpc::connect(&self.home).await.map_err(RpcError::from)?;
        let mut workers = rpc.list().await?;
        workers.retain(|worker| worker.app == self.app);
        Ok(workers)
    }
}

fn short(commit: &str) -> &str {
    commit.get(..7).unwrap_or(commit)
}

/// A directory or a tarball.
async fn copied(from: &Path, to: &Path) -> Result<(), Trouble> {
    let mut command = if from.is_dir() {
        let mut copy = Command::new("cp");
        copy.arg("-a").arg("--").arg(from.join(".")).arg(to);
        copy
    } else {
        let mut unpack = Command::new("tar");
        unpack.arg("-xf").arg(from).arg("-C").arg(to);
        unpack
    };
    let failed =
        |text: String| Trouble::new(Exit::NotMade, format!("{} cannot be unpacked: {text}", from.display()));
    let output = command.kill_on_drop(true).output().await.map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        Ok(())
    } else {
        Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
    }
}

// === impl End ===

impl End {
    fn done(text: String, cut: u64) -> Self {
        let exit = if cut > 0 { Exit::Cut } else { Exit::Done };
        let cut = if cut > 0 { format!(", and {cut} requests were cut") } else { String::new() };
        Self { outcome: Outcome::Done, exit, text: format!("{text}{cut}") }
    }

    fn begun() -> Self {
        Self { outcome: Outcome::Done, exit: Exit::Done, text: "it begins".to_owned() }
    }
}

// === impl Trouble ===

impl Trouble {
    pub(super) fn new(exit: Exit, text: impl Into<String>) -> Self {
        Self { exit, text: text.into(), log: Vec::new() }
    }
}

impl From<Failure> for Trouble {
    fn from(Failure { exit, text }: Failure) -> Self {
        Self::new(exit, text)
    }
}

impl From<Trouble> for Failure {
    fn from(Trouble { exit, text, .. }: Trouble) -> Self {
        Self::new(exit, text)
    }
}

impl From<Stop> for Trouble {
    fn from(stop: Stop) -> Self {
        let exit = stop.exit();
        match stop {
            // What is to be done about it is said by what is done.
            Stop::Broken(Broken { worker, text, role, .. }) => {
                let which = match role {
                    Role::Successor => format!("the new {worker}"),
                    Role::Canary => format!("the new release: its canary {worker}"),
                    Role::StandIn => format!("the new release: its stand-in {worker}"),
                };
                Self::new(exit, format!("{which} is not fit to serve: {text}"))
            }
            stop => Self::new(exit, stop.to_string()),
        }
    }
}

impl From<Halt> for Trouble {
    fn from(halt: Halt) -> Self {
        Stop::from(halt).into()
    }
}

impl From<RpcError> for Trouble {
    fn from(error: RpcError) -> Self {
        Failure::from(error).into()
    }
}

impl From<GroundError> for Trouble {
    fn from(error: GroundError) -> Self {
        Self::new(Exit::NotMade, error.to_string())
    }
}

impl From<GitError> for Trouble {
    fn from(error: GitError) -> Self {
        Self::new(Exit::NotMade, error.to_string())
    }
}

impl From<HookError> for Trouble {
    fn from(error: HookError) -> Self {
        Self::new(Exit::NotMade, error.to_string())
    }
}
