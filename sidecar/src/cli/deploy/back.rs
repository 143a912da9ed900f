//! The way back of a deploy, its own or that of one that was killed.

use super::{
    super::exit::{Exit, Failure},
    account::End,
    course::Course,
    moves::LOOK,
    release::{Release, short},
    trouble::Trouble,
};
use crate::{
    cli::work::hold,
    control::Control,
    deploy::{
        event::Stage,
        journal::{Journal, Journals},
        record::{Outcome, Record, Records},
    },
    host::Process,
    rollout::{brake::Brake, lock::Lock},
};
use handoff_wire::{DEFAULT_LEASE, OwnerKind};
use std::time::{Duration, Instant};

/// So often it is tried to move the workers back while somebody else changes the app.
const TRIES: u32 = 4;
const FOREIGN_PAUSE: Duration = Duration::from_secs(3);

impl Course<'_> {
    /// Before anybody could notice.
    pub(super) fn unmade(&self, release: &Release, trouble: Trouble) -> End {
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

    pub(super) async fn back(&mut self, release: &mut Release, trouble: Trouble) -> End {
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
    pub(super) async fn mend(&mut self) -> Result<(), Failure> {
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
}
