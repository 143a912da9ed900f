//! One roll-out at a time, and no `pm2 reload` beside it.
//!
//! Our own lock is a `flock` on a file in PM2's home: the kernel lets go of it when we die, however that happens. PM2's
//! `reload.lock` is a moment written into a file, which keeps every `pm2 reload` away for 30 s; it is written anew in
//! good time. What we wrote there is noted in our own file, so that the next roll-out knows a stamp that a killed one
//! left behind from one of PM2's.

use crate::pm2::home::Home;
use rustix::{
    fs::{FlockOperation, Mode, OFlags},
    io::Errno,
};
use std::{
    fs::File,
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

#[derive(Debug)]
pub struct Lock {
    own: File,
    reload: PathBuf,
    /// What we wrote into PM2's file.
    stamp: String,
}

#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error("another `handoff reload` is under way in {home}{}", pid(.holder))]
    Busy { home: Home, holder: String },
    #[error(
        "a `pm2 reload` is under way in {home}, or was cut off less than {} s ago: try again in {} s",
        PM2_RESPECTS.as_secs(), left.as_secs() + 1
    )]
    Pm2 { home: Home, left: Duration },
    #[error("cannot lock {}: {error}", path.display())]
    Io { path: PathBuf, error: io::Error },
}

/// How often the stamp in PM2's file is written anew.
pub const REFRESH: Duration = Duration::from_secs(10);
/// How long PM2 respects a stamp (its RELOAD_LOCK_TIMEOUT).
const PM2_RESPECTS: Duration = Duration::from_secs(30);
/// Whatever else stands there is not ours.
const MAX_NOTE: u64 = 64 * 1024;

impl Lock {
    pub fn take(home: &Home) -> Result<Self, LockError> {
        let path = home.path().join("handoff.lock");
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |error: io::Error| LockError::Io { path, error }
        };
        let owner = home.path().metadata().map_err(failed(home.path()))?.uid();
        let mut own = open(&path, owner).map_err(failed(&path))?;
        match rustix::fs::flock(&own, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let holder = read(&mut own).unwrap_or_default();
                return Err(LockError::Busy { home: home.clone(), holder });
            }
            Err(errno) => return Err(failed(&path)(errno.into())),
        }
        let left_behind = read(&mut own).map_err(failed(&path))?;
        let reload = home.path().join("reload.lock");
        let theirs = read(&mut open(&reload, owner).map_err(failed(&reload))?).map_err(failed(&reload))?;
        if let Some(left) = respected(&theirs, now())
            && stamp_of(&left_behind) != theirs
        {
            return Err(LockError::Pm2 { home: home.clone(), left });
        }
        let mut lock = Self { own, reload, stamp: String::new() };
        lock.stamp().map_err(failed(&path))?;
        Ok(lock)
    }

    /// Keeps every `pm2 reload` away for another while. False: somebody else wrote there meanwhile.
    pub fn refresh(&mut self) -> io::Result<bool> {
        let is_ours = self.read_stamp()? == self.stamp;
        if is_ours {
            self.stamp()?;
        }
        Ok(is_ours)
    }

    fn stamp(&mut self) -> io::Result<()> {
        self.stamp = now().as_millis().to_string();
        // First the note: a stamp of ours without one would look like PM2's.
        write(&mut self.own, &format!("{} {}", std::process::id(), self.stamp))?;
        write(&mut self.pm2s_file()?, &self.stamp)
    }

    fn read_stamp(&self) -> io::Result<String> {
        read(&mut self.pm2s_file()?)
    }

    fn pm2s_file(&self) -> io::Result<File> {
        open(&self.reload, self.own.metadata()?.uid())
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // What cannot be taken away expires.
        if self.read_stamp().is_ok_and(|stamp| stamp == self.stamp) {
            _ = self.pm2s_file().and_then(|mut file| write(&mut file, ""));
        }
    }
}

/// Opens or makes a file of PM2's user. In a directory that is somebody else's, a link is not followed.
pub(super) fn open(path: &Path, owner: u32) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::from_raw_mode(0o644))?);
    if file.metadata()?.uid() != owner {
        rustix::fs::fchown(&file, Some(rustix::fs::Uid::from_raw(owner)), None)?;
    }
    Ok(file)
}

pub(super) fn read(file: &mut File) -> io::Result<String> {
    let mut text = String::new();
    file.rewind()?;
    file.take(MAX_NOTE).read_to_string(&mut text)?;
    Ok(text)
}

pub(super) fn write(file: &mut File, text: &str) -> io::Result<()> {
    file.rewind()?;
    file.set_len(0)?;
    file.write_all(text.as_bytes())
}

/// How long PM2 still respects a stamp.
fn respected(stamp: &str, now: Duration) -> Option<Duration> {
    let age = now.saturating_sub(Duration::from_millis(stamp.trim().parse().ok()?));
    PM2_RESPECTS.checked_sub(age).filter(|left| !left.is_zero())
}

/// The second word of our note.
fn stamp_of(note: &str) -> &str {
    note.split_once(' ').map_or("", |(_, stamp)| stamp)
}

fn pid(note: &str) -> String {
    note.split_once(' ').map(|(pid, _)| format!(" (pid {pid})")).unwrap_or_default()
}

fn now() -> Duration {
    SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn one_roll_out_at_a_time() {
        let dir = crate::scratch::Dir::new();
        let home = Home::new(&dir);
        let lock = Lock::take(&home).unwrap();
        let refused = Lock::take(&home).unwrap_err().to_string();
        assert!(refused.contains(&format!("(pid {})", std::process::id())), "{refused}");
        drop(lock);
        Lock::take(&home).unwrap();
    }

    #[test]
    fn pm2_sees_a_reload_and_sees_when_it_is_over() {
        let dir = crate::scratch::Dir::new();
        let lock = Lock::take(&Home::new(&dir)).unwrap();
        let stamp = || fs::read_to_string(dir.join("reload.lock")).unwrap();
        assert!(respected(&stamp(), now()).is_some());
        drop(lock);
        assert_eq!(stamp(), "");
    }

    #[test]
    fn a_reload_of_pm2_is_respected_as_long_as_pm2_would() {
        let dir = crate::scratch::Dir::new();
        let home = Home::new(&dir);
        let ago = |age: u64| (now() - Duration::from_secs(age)).as_millis().to_string();
        fs::write(dir.join("reload.lock"), ago(10)).unwrap();
        assert!(matches!(Lock::take(&home), Err(LockError::Pm2 { .. })));
        fs::write(dir.join("reload.lock"), ago(31)).unwrap();
        Lock::take(&home).unwrap();
    }

    #[test]
    fn what_a_killed_roll_out_left_behind_is_no_obstacle() {
        let dir = crate::scratch::Dir::new();
        let home = Home::new(&dir);
        let mut lock = Lock::take(&home).unwrap();
        assert!(lock.refresh().unwrap());
        // A killed process drops its files and nothing else.
        let Lock { own, .. } = &lock;
        rustix::fs::flock(own, FlockOperation::Unlock).unwrap();
        std::mem::forget(lock);
        Lock::take(&home).unwrap();
    }

    #[test]
    fn somebody_elses_stamp_is_noticed_and_left() {
        let dir = crate::scratch::Dir::new();
        let mut lock = Lock::take(&Home::new(&dir)).unwrap();
        fs::write(dir.join("reload.lock"), "17").unwrap();
        assert!(!lock.refresh().unwrap());
        drop(lock);
        assert_eq!(fs::read_to_string(dir.join("reload.lock")).unwrap(), "17");
    }

    #[test]
    fn a_link_is_not_followed() {
        let dir = crate::scratch::Dir::new();
        std::os::unix::fs::symlink("/etc/hostname", dir.join("reload.lock")).unwrap();
        assert!(matches!(Lock::take(&Home::new(&dir)), Err(LockError::Io { .. })));
    }
}
