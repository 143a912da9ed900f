//! One deploy of an app at a time. The lock is a `flock`: the kernel lets go of it however its holder ends.

use super::record;
use rustix::{fs::FlockOperation, io::Errno};
use serde::{Deserialize, Serialize};
use std::{
    fs::File,
    io::{self, Read as _, Seek as _, Write as _},
    path::{Path, PathBuf},
};

#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// Who has it.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Holder {
    pid: u32,
    who: String,
    since: String,
}

#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error("a deploy in {} is under way{holder}", path.display())]
    Busy { path: PathBuf, holder: String },
    #[error("cannot lock {}: {error}", path.display())]
    Io { path: PathBuf, error: io::Error },
}

/// Whatever else stands there is not ours.
const MAX_NOTE: u64 = 4096;

// === impl Lock ===

impl Lock {
    pub fn take(state: &Path) -> Result<Self, LockError> {
        let path = state.join("deploy.lock");
        let failed = |error: io::Error| LockError::Io { path: path.clone(), error };
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(failed)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                return Err(LockError::Busy { path: state.to_owned(), holder: holder(&mut file) });
            }
            Err(errno) => return Err(failed(errno.into())),
        }
        let own = Holder { pid: std::process::id(), who: record::who(), since: record::now() };
        file.set_len(0).map_err(failed)?;
        file.write_all(&serde_json::to_vec(&own).unwrap_or_default()).map_err(failed)?;
        Ok(Self { _file: file })
    }
}

fn holder(file: &mut File) -> String {
    let mut text = String::new();
    _ = file.rewind();
    _ = file.take(MAX_NOTE).read_to_string(&mut text);
    match serde_json::from_str::<Holder>(&text) {
        Ok(Holder { pid, who, since }) => format!(": by {who} since {since} (pid {pid})"),
        Err(_) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_deploy_at_a_time_and_it_is_said_whose() {
        let dir = crate::scratch::Dir::new();
        let lock = Lock::take(&dir).unwrap();
        let refused = Lock::take(&dir).unwrap_err().to_string();
        assert!(refused.contains(&format!("(pid {})", std::process::id())), "{refused}");
        assert!(refused.contains(&record::who()), "{refused}");
        drop(lock);
        Lock::take(&dir).unwrap();
    }
}
