//! What is written down of a deploy, and who is told.

use super::{
    super::exit::Exit,
    course::Course,
    release::{Goal, Release},
    trouble::Trouble,
    voice::seconds,
};
use crate::deploy::{
    event::Stage,
    hook::Hook,
    journal::{Journal, Journals},
    record::{Numbers, Outcome, Record, Traffic},
};
use std::time::Duration;

/// How it came out.
#[derive(Debug)]
pub(super) struct End {
    pub(super) outcome: Outcome,
    pub(super) exit: Exit,
    pub(super) text: String,
}

const ALERT_TIMEOUT: Duration = Duration::from_secs(10);

impl Course<'_> {
    pub(super) fn note_down(&self, release: &mut Release, stage: Stage) -> Result<(), Trouble> {
        release.journal.stage = stage;
        let written = Journals::of(self.ground.state()).write(&release.journal);
        written.map_err(|error| {
            Trouble::new(Exit::Failed, format!("cannot write in {}: {error}", self.ground.state().display()))
        })
    }

    pub(super) fn strike(&self) {
        if let Err(error) = Journals::of(self.ground.state()).strike() {
            self.voice.note(format!("the next deploy is going to take this one for killed: {error}"));
        }
    }

    pub(super) fn record(&self, release: &Release, end: &End) -> Record {
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
    pub(super) async fn alert(&self, command: &Option<String>, record: &Record) {
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
}

// === impl End ===

impl End {
    pub(super) fn done(text: String, cut: u64) -> Self {
        let exit = if cut > 0 { Exit::Cut } else { Exit::Done };
        let cut = if cut > 0 { format!(", and {cut} requests were cut") } else { String::new() };
        Self { outcome: Outcome::Done, exit, text: format!("{text}{cut}") }
    }

    pub(super) fn begun() -> Self {
        Self { outcome: Outcome::Done, exit: Exit::Done, text: "it begins".to_owned() }
    }
}
