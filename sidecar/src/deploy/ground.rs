//! Where an app lies.
//!
//! ```text
//! /srv/shop/
//!   current -> releases/20261127T100530Z-1a2b3c4    PM2 starts the app from here
//!   releases/                                       each whole, and nothing but its shared parts links out of it
//!   shared/                                         what all of them have in common
//!   repo/                                           a copy of the repository
//!   logs/  deploys.jsonl  deploy.lock
//! ```
//!
//! In place there is a working tree and nothing else; what is ours is in its `.git/handoff`.

use crate::{
    host::{Proc, Process},
    pm2::monitor::Listed,
};
use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    time::SystemTime,
};

#[derive(Clone, Debug)]
pub struct Ground {
    path: PathBuf,
    /// What is ours.
    state: PathBuf,
    is_in_place: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum GroundError {
    #[error("{} is no link to a release: move it away, or name another path", .0.display())]
    NoLink(PathBuf),
    #[error("{} is no working tree of git, so that nothing can be deployed in place there", .0.display())]
    NoTree(PathBuf),
    #[error("{0:?} is not shared yet: make {1} ({2}) first", .name, .path.display(), .what)]
    NotShared { name: String, path: PathBuf, what: &'static str },
    #[error("{}: {error}", path.display())]
    Io { path: PathBuf, error: io::Error },
}

/// How the app was started, if not from where releases come and go.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Elsewhere {
    #[error(
        "{app} was started from {}, a release of its own, and PM2 never forgets that: it would start that one for ever. Set \
         cwd: '{}' in its ecosystem file, and a script that begins there; then, once: pm2 delete {app} && pm2 start FILE --only \
         {app}", from.display(), through.display()
    )]
    Release { app: String, from: PathBuf, through: PathBuf },
    #[error(
        "{app} runs {}, which is not in {}: a new release there would change nothing. Set cwd: '{}' in its ecosystem file, \
         and a script that begins there; then, once: pm2 delete {app} && pm2 start FILE --only {app}",
        from.display(), through.display(), through.display()
    )]
    Outside { app: String, from: PathBuf, through: PathBuf },
}

// === impl Ground ===

impl Ground {
    pub fn of(path: &Path, is_in_place: bool) -> Result<Self, GroundError> {
        let (path, mut state) = (path.to_owned(), path.to_owned());
        if is_in_place {
            state.push(".git");
            if !state.is_dir() {
                return Err(GroundError::NoTree(path));
            }
            state.push("handoff");
        }
        Ok(Self { path, state, is_in_place })
    }

    /// Makes what is not there yet.
    pub fn lay(&self) -> Result<(), GroundError> {
        let own = [self.state.clone(), self.state.join("logs")];
        let others =
            if self.is_in_place { Vec::new() } else { vec![self.releases(), self.path.join("shared")] };
        own.into_iter().chain(others).try_for_each(|path| fs::create_dir_all(&path).map_err(at(&path)))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn state(&self) -> &Path {
        &self.state
    }

    pub fn is_in_place(&self) -> bool {
        self.is_in_place
    }

    /// Where PM2 starts the app.
    pub fn through(&self) -> PathBuf {
        if self.is_in_place { self.path.clone() } else { self.path.join("current") }
    }

    pub fn repo(&self) -> PathBuf {
        self.path.join("repo")
    }

    pub fn release(&self, id: &str) -> PathBuf {
        if self.is_in_place { self.path.clone() } else { self.releases().join(id) }
    }

    fn releases(&self) -> PathBuf {
        self.path.join("releases")
    }

    /// The release that the link leads to.
    pub fn current(&self) -> Result<Option<String>, GroundError> {
        let link = self.through();
        match fs::read_link(&link) {
            Ok(to) => {
                let is_there =
                    link.parent().and_then(|parent| parent.join(&to).parent()?.canonicalize().ok());
                let id = to.file_name().and_then(|id| id.to_str()).map(ToOwned::to_owned);
                let is_release = is_there.is_some() && is_there == self.releases().canonicalize().ok();
                id.filter(|_| is_release).map(Some).ok_or(GroundError::NoLink(link))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => Err(GroundError::NoLink(link)),
            Err(error) => Err(at(&link)(error)),
        }
    }

    /// A name that sorts by time, and no other release has.
    pub fn new_id(&self, commit: Option<&str>) -> String {
        let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string().replace(['-', ':'], "");
        let what = commit.and_then(|commit| commit.get(..7)).unwrap_or("files");
        let id = format!("{now}-{what}");
        let is_free = |id: &String| !self.release(id).exists();
        let mut ids = std::iter::once(id.clone()).chain((2..).map(|number| format!("{id}-{number}")));
        ids.find(is_free).unwrap_or(id)
    }

    pub fn make(&self, id: &str) -> Result<PathBuf, GroundError> {
        let path = self.release(id);
        fs::create_dir(&path).map_err(at(&path))?;
        Ok(path)
    }

    pub fn remove(&self, id: &str) -> Result<(), GroundError> {
        let path = self.release(id);
        fs::remove_dir_all(&path).or_else(|error| match error.kind() {
            io::ErrorKind::NotFound => Ok(()),
            _ => Err(at(&path)(error)),
        })
    }

    /// From now on whatever starts is this one. The link is another one at once, and never none.
    pub fn switch(&self, id: Option<&str>) -> Result<(), GroundError> {
        let link = self.through();
        let Some(id) = id else {
            return fs::remove_file(&link).or_else(|error| match error.kind() {
                io::ErrorKind::NotFound => Ok(()),
                _ => Err(at(&link)(error)),
            });
        };
        let next = self.path.join("current.next");
        _ = fs::remove_file(&next);
        symlink(Path::new("releases").join(id), &next).map_err(at(&next))?;
        fs::rename(&next, &link).map_err(at(&link))?;
        // A host that loses its power does not go back by itself.
        fs::File::open(&self.path).and_then(|directory| directory.sync_all()).map_err(at(&self.path))
    }

    /// Links what is shared into a release, in the place of what it has there itself.
    pub fn share(&self, id: &str, names: &[String]) -> Result<(), GroundError> {
        for name in names {
            let (from, to) =
                (self.path.join("shared").join(name), self.release(id).join(name.trim_end_matches('/')));
            match (from.exists(), name.ends_with('/')) {
                (true, _) => {}
                (false, true) => fs::create_dir_all(&from).map_err(at(&from))?,
                (false, false) => {
                    let what = "a directory is made by itself, if its name ends with a slash";
                    return Err(GroundError::NotShared { name: name.clone(), path: from, what });
                }
            }
            let from = from.canonicalize().map_err(at(&from))?;
            if fs::read_link(&to).is_ok_and(|link| link == from) {
                continue;
            }
            if let Some(parent) = to.parent() {
                fs::create_dir_all(parent).map_err(at(parent))?;
            }
            let removed =
                if to.is_dir() && !to.is_symlink() { fs::remove_dir_all(&to) } else { fs::remove_file(&to) };
            match removed {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(&to)(error)),
                _ => symlink(&from, &to).map_err(at(&to))?,
            }
        }
        Ok(())
    }

    /// All that are there, oldest first.
    pub fn all(&self) -> Vec<String> {
        let entries = fs::read_dir(self.releases()).into_iter().flatten().flatten();
        let directories = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        let mut all: Vec<String> =
            directories.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        all.sort();
        all
    }

    /// Removes all but the newest so many, those that are needed, and those in which a process is. Returns what went.
    pub fn prune(&self, keep: usize, needed: &[&str]) -> Vec<String> {
        let mut all = self.all();
        all.retain(|id| !needed.contains(&id.as_str()));
        let old = all.len().saturating_sub(keep.saturating_sub(needed.len()));
        all.truncate(old);
        let in_use = if all.is_empty() { BTreeSet::new() } else { directories_in_use() };
        let is_free = |id: &String| {
            let path = self.release(id).canonicalize().unwrap_or_else(|_| self.release(id));
            !in_use.iter().any(|used| used.starts_with(&path))
        };
        all.retain(|id| is_free(id) && self.remove(id).is_ok());
        all
    }

    /// Whether whatever this link leads to is what PM2 starts.
    pub fn is_where_it_starts(&self, worker: &Listed) -> Result<(), Elsewhere> {
        let (script, cwd) = (worker.settings.script.clone(), worker.settings.cwd.clone());
        let real = |path: &Path| self.path.canonicalize().map(|root| root.join(path)).ok();
        let under = |path: &Path, name: &str| {
            path.starts_with(self.path.join(name))
                || real(Path::new(name)).is_some_and(|real| path.starts_with(real))
        };
        let app = || worker.app.clone();
        if !self.is_in_place
            && let Some(from) = [&script, &cwd].into_iter().flatten().find(|path| under(path, "releases"))
        {
            return Err(Elsewhere::Release { app: app(), from: from.clone(), through: self.through() });
        }
        let name = if self.is_in_place { "" } else { "current" };
        if [&script, &cwd].into_iter().flatten().any(|path| under(path, name)) {
            return Ok(());
        }
        let from = script.or(cwd).unwrap_or_default();
        Err(Elsewhere::Outside { app: app(), from, through: self.through() })
    }

    /// The release that a process was started in, as far as it shows.
    pub fn release_of(&self, process: Process) -> Option<String> {
        let cwd = fs::read_link(format!("/proc/{}/cwd", process.pid)).ok()?;
        let inside = cwd.strip_prefix(self.releases().canonicalize().ok()?).ok()?.to_owned();
        let id = inside.components().next()?.as_os_str().to_str()?.to_owned();
        process.is_alive(&Proc::default()).then_some(id)
    }
}

fn at(path: &Path) -> impl Fn(io::Error) -> GroundError {
    move |error| GroundError::Io { path: path.to_owned(), error }
}

fn directories_in_use() -> BTreeSet<PathBuf> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes.filter_map(|process| fs::read_link(process.path().join("cwd")).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pm2::{
        PmId,
        monitor::{Settings, Status},
    };

    fn ground(dir: &Path) -> Ground {
        let ground = Ground::of(dir, false).unwrap();
        ground.lay().unwrap();
        ground
    }

    #[test]
    fn the_link_leads_to_one_release_after_the_other() {
        let dir = crate::scratch::Dir::new();
        let ground = ground(&dir);
        assert_eq!(ground.current().unwrap(), None);
        for id in ["a", "b"] {
            ground.make(id).unwrap();
            ground.switch(Some(id)).unwrap();
            assert_eq!(ground.current().unwrap().as_deref(), Some(id));
        }
        ground.switch(None).unwrap();
        assert_eq!(ground.current().unwrap(), None);
    }

    #[test]
    fn a_current_that_is_no_link_of_ours_is_refused() {
        let dir = crate::scratch::Dir::new();
        let ground = ground(&dir);
        symlink("/etc", dir.join("current")).unwrap();
        assert!(matches!(ground.current(), Err(GroundError::NoLink(_))));
        fs::remove_file(dir.join("current")).unwrap();
        fs::create_dir(dir.join("current")).unwrap();
        assert!(matches!(ground.current(), Err(GroundError::NoLink(_))));
    }

    #[test]
    fn what_is_shared_is_linked_and_what_is_missing_is_said() {
        let dir = crate::scratch::Dir::new();
        let ground = ground(&dir);
        let release = ground.make("a").unwrap();
        fs::create_dir(release.join("uploads")).unwrap();
        let names = [".env".to_owned(), "uploads/".to_owned(), "a/b/".to_owned()];
        let missing = ground.share("a", &names).unwrap_err().to_string();
        assert!(missing.contains("shared/.env"), "{missing}");
        fs::write(dir.join("shared/.env"), "A=1").unwrap();
        for _ in 0..2 {
            ground.share("a", &names).unwrap();
            fs::write(dir.join("shared/uploads/x"), "x").unwrap();
            assert_eq!(fs::read_to_string(release.join(".env")).unwrap(), "A=1");
            assert!(release.join("uploads/x").exists() && release.join("a/b").is_symlink());
        }
        ground.remove("a").unwrap();
        assert!(dir.join("shared/uploads/x").exists(), "what is shared outlives a release");
    }

    #[test]
    fn old_releases_go_and_those_that_are_needed_stay() {
        let dir = crate::scratch::Dir::new();
        let ground = ground(&dir);
        ["1", "2", "3", "4", "5"].iter().for_each(|id| _ = ground.make(id).unwrap());
        assert_eq!(ground.prune(3, &["1", "5"]), ["2", "3"]);
        assert_eq!(ground.all(), ["1", "4", "5"]);
        assert_eq!(ground.prune(1, &["5"]), ["1", "4"]);
    }

    #[test]
    fn an_app_that_would_not_notice_is_told_from_one_that_does() {
        let dir = crate::scratch::Dir::new();
        let ground = ground(&dir);
        let check = |script: &str, cwd: &str| {
            let at = |path: &str| Some(PathBuf::from(path.replace('~', &dir.display().to_string())));
            let settings = Settings { script: at(script), cwd: at(cwd), ..Settings::default() };
            let worker =
                Listed { id: PmId(0), app: "shop".into(), pid: None, status: Status::Online, settings };
            ground.is_where_it_starts(&worker)
        };
        assert_eq!(check("~/current/server.js", "~/current"), Ok(()));
        assert_eq!(check("/usr/bin/npm", "~/current"), Ok(()));
        assert_eq!(check("~/current/dist/a.js", "/"), Ok(()));
        assert!(matches!(check("~/releases/a/server.js", "~/releases/a"), Err(Elsewhere::Release { .. })));
        assert!(matches!(check("~/current/server.js", "~/releases/a"), Err(Elsewhere::Release { .. })));
        let outside = check("/opt/shop/server.js", "/opt/shop").unwrap_err().to_string();
        assert!(outside.contains("cwd: '") && outside.contains("pm2 delete shop"), "{outside}");
    }

    #[test]
    fn names_sort_by_time_and_none_is_given_twice() {
        let dir = crate::scratch::Dir::new();
        let ground = ground(&dir);
        let id = ground.new_id(Some("1a2b3c4d5e"));
        assert!(id.ends_with("Z-1a2b3c4") && id.len() == 24, "{id}");
        ground.make(&id).unwrap();
        assert_ne!(ground.new_id(Some("1a2b3c4d5e")), id);
    }
}
