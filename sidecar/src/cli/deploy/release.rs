//! The release: what is to serve, its name, and how it is made. Nothing that runs is touched.

use super::{super::exit::Exit, course::Course, trouble::Trouble, voice::seconds};
use crate::{
    deploy::{
        event::{Stage, What},
        git::Git,
        ground::GroundError,
        hook::{self, Hook},
        journal::Journal,
        record::{self, Outcome},
        settings::HOOK_TIMEOUT,
    },
    host::{Proc, Process},
    rollout::brake::Brake,
};
use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};
use tokio::process::Command;

/// What is to serve.
#[derive(Clone, Debug)]
pub(super) enum Goal {
    Reference { repository: String, reference: Option<String> },
    Files(PathBuf),
    Release(String),
}

/// The release in hand.
#[derive(Debug)]
pub(super) struct Release {
    pub(super) journal: Journal,
    pub(super) commit: Option<String>,
}

/// In a release: the commit that it is.
const REVISION: &str = "REVISION";

impl Course<'_> {
    /// The release that serves now; in place, the commit.
    pub(super) async fn serving(&self) -> Result<Option<String>, Trouble> {
        if self.ground.is_in_place() {
            return Ok(Some(self.tree().run(["rev-parse", "HEAD"]).await?));
        }
        Ok(self.ground.current()?)
    }

    /// Fetches, and gives the release its name. Error: it is over, in this way.
    pub(super) async fn named(&mut self, from: Option<String>) -> Result<Release, Exit> {
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

    pub(super) fn tree(&self) -> Git {
        Git::at(self.ground.path())
    }

    pub(super) fn commit_of(&self, id: &str) -> Option<String> {
        if self.ground.is_in_place() {
            return Some(id.to_owned());
        }
        let text = std::fs::read_to_string(self.ground.release(id).join(REVISION)).ok()?;
        Some(text.trim().to_owned())
    }

    /// Makes the release. Nothing that runs is touched.
    pub(super) async fn made(&mut self, release: &mut Release) -> Result<(), Trouble> {
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
    pub(super) async fn hooks(&self, release: &Release, signals: Option<&Brake>) -> Result<(), Trouble> {
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

    pub(super) fn told(
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
}

pub(super) fn short(commit: &str) -> &str {
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
