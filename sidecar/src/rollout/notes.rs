//! The canaries that are about, noted in PM2's home: one that a killed roll-out left behind is thereby told from a worker
//! of somebody else's.
//!
//! Written before PM2 is asked for a canary, and again when its number is known. Whoever has the [lock](super::lock)
//! reads and writes.

use super::lock;
use crate::host::{Proc, Process};
use crate::pm2::{
    PmId,
    home::Home,
    monitor::{Listed, Status},
};
use serde::{Deserialize, Serialize};
use std::{
    fs::File,
    io,
    path::PathBuf,
    time::{Duration, SystemTime},
};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    app: String,
    /// Whose canary it is.
    #[serde(default)]
    by: Option<Process>,
    /// When PM2 was asked, in milliseconds since 1970.
    asked: u64,
    /// No number was higher then. PM2 counts on.
    highest: PmId,
    #[serde(default)]
    found: Option<Found>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Found {
    id: PmId,
    created_at: Option<u64>,
}

#[derive(Clone, Debug)]
pub struct Notes(PathBuf, Option<u32>);

/// Within this time after it was asked, PM2 has made the worker.
const AT_ONCE: Duration = Duration::from_secs(3);

// === impl Notes ===

impl Notes {
    pub fn of(home: &Home) -> Self {
        let owner = home.path().metadata().ok().map(|meta| std::os::unix::fs::MetadataExt::uid(&meta));
        Self(home.path().join("handoff.canaries"), owner)
    }

    pub fn get(&self, app: &str) -> Option<Note> {
        self.read().into_iter().find(|note| note.app == app)
    }

    pub fn put(&self, note: Note) -> io::Result<()> {
        let mut notes = self.read();
        notes.retain(|other| other.app != note.app);
        notes.push(note);
        self.write(&notes)
    }

    pub fn strike(&self, app: &str) -> io::Result<()> {
        let mut notes = self.read();
        notes.retain(|note| note.app != app);
        if notes.is_empty() {
            return std::fs::remove_file(&self.0).or_else(|error| match error.kind() {
                io::ErrorKind::NotFound => Ok(()),
                _ => Err(error),
            });
        }
        self.write(&notes)
    }

    /// What cannot be read is no claim to anybody's worker.
    fn read(&self) -> Vec<Note> {
        let text = File::open(&self.0).and_then(|mut file| lock::read(&mut file));
        text.ok().and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default()
    }

    fn write(&self, notes: &[Note]) -> io::Result<()> {
        let owner = self.1.ok_or(io::ErrorKind::NotFound)?;
        lock::write(&mut lock::open(&self.0, owner)?, &serde_json::to_string(notes)?)
    }
}

// === impl Note ===

impl Note {
    /// PM2, which lists these, is about to be asked.
    pub fn asking<'a>(app: &str, listed: impl Iterator<Item = &'a Listed>) -> Self {
        let highest = listed.map(|listed| listed.id).max().unwrap_or(PmId(0));
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        let asked = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        Self { app: app.to_owned(), by: Process::own(), asked, highest, found: None }
    }

    pub fn found(self, listed: &Listed) -> Self {
        let found = Found { id: listed.id, created_at: listed.settings.created_at };
        Self { found: Some(found), ..self }
    }

    /// Whoever started it is gone.
    pub fn is_left(&self) -> bool {
        self.by.is_none_or(|by| !by.is_alive(&Proc::default()))
    }

    /// The worker that it speaks of, if that is certain: one that somebody restarted meanwhile is theirs.
    pub fn find<'a>(&self, listed: impl Iterator<Item = &'a Listed>) -> Option<PmId> {
        let mut meant = listed.filter(|listed| listed.app == self.app && self.means(listed));
        meant.next().filter(|_| meant.next().is_none()).map(|listed| listed.id)
    }

    fn means(&self, Listed { id, status, settings, .. }: &Listed) -> bool {
        let at_once = self.asked..=self.asked.saturating_add(AT_ONCE.as_millis() as u64);
        match self.found {
            Some(found) if found.id == *id => {
                // PM2 forgets the moment when it gives a worker up.
                settings.created_at == found.created_at || *status == Status::Errored
            }
            Some(_) => false,
            None => *id > self.highest && settings.created_at.is_some_and(|at| at_once.contains(&at)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pm2::monitor::Settings;

    fn listed(id: u32, app: &str, created_at: Option<u64>) -> Listed {
        let settings = Settings { created_at, ..Settings::default() };
        Listed { id: PmId(id), app: app.into(), pid: Some(1), status: Status::Online, settings }
    }

    fn find(note: &Note, workers: &[Listed]) -> Option<u32> {
        note.find(workers.iter()).map(|id| id.0)
    }

    #[test]
    fn a_canary_is_known_by_its_number_and_the_moment_it_was_made() {
        let canary = listed(4, "shop", Some(7000));
        let note = Note::asking("shop", [listed(3, "shop", Some(1))].iter()).found(&canary);
        assert_eq!(find(&note, &[listed(3, "shop", Some(1)), canary.clone()]), Some(4));
        assert_eq!(find(&note, &[listed(4, "shop", Some(9000))]), None, "somebody restarted it");
        assert_eq!(find(&note, &[listed(4, "blog", Some(7000))]), None, "its number is another app's");
        let given_up = Listed { status: Status::Errored, ..listed(4, "shop", None) };
        assert_eq!(find(&note, &[given_up]), Some(4));
    }

    #[test]
    fn one_whose_number_was_not_noted_is_known_if_it_can_be_no_other() {
        let note = Note { asked: 7000, ..Note::asking("shop", [listed(3, "blog", None)].iter()) };
        let canary = listed(4, "shop", Some(7010));
        assert_eq!(find(&note, &[listed(2, "shop", Some(7010)), canary.clone()]), Some(4));
        assert_eq!(find(&note, &[listed(4, "shop", Some(17_010))]), None, "later");
        assert_eq!(find(&note, &[canary, listed(5, "shop", Some(7020))]), None, "which of them?");
    }

    #[test]
    fn a_canary_is_left_when_its_roll_out_is_gone() {
        let note = Note::asking("shop", [].iter());
        assert!(!note.is_left());
        let gone = note.by.map(|by| Process { start: by.start + 1, ..by });
        assert!(Note { by: gone, ..note.clone() }.is_left());
        assert!(Note { by: None, ..note }.is_left());
    }

    #[test]
    fn notes_are_kept_per_app_until_they_are_struck() {
        let dir = crate::scratch::Dir::new();
        let notes = Notes::of(&Home::new(&dir));
        assert_eq!(notes.get("shop"), None);
        let note = |app: &str| Note::asking(app, [].iter());
        notes.put(note("shop")).unwrap();
        notes.put(note("blog")).unwrap();
        let found = note("shop").found(&listed(4, "shop", Some(1)));
        notes.put(found.clone()).unwrap();
        assert_eq!(notes.get("shop"), Some(found));
        notes.strike("shop").unwrap();
        assert!(notes.get("shop").is_none() && notes.get("blog").is_some());
        notes.strike("blog").unwrap();
        notes.strike("blog").unwrap();
        assert!(!dir.join("handoff.canaries").exists());
    }
}
