//! What a process wrote to PM2's log files before it failed.

use std::{
    fs::{self, File},
    io::{self, Read as _, Seek as _, SeekFrom},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

/// The log files of one worker, and how long they were before.
#[derive(Clone, Debug, Default)]
pub struct Logs(Vec<(PathBuf, u64)>);

/// So many are shown.
pub const MOST_LINES: usize = 12;
const MOST_BYTES: u64 = 16 * 1024;

impl Logs {
    /// What stands in these files now is passed over later.
    pub fn note(files: impl IntoIterator<Item = PathBuf>) -> Self {
        let length = |path: &Path| fs::metadata(path).map_or(0, |meta| meta.len());
        Self(files.into_iter().map(|path| (path.clone(), length(&path))).collect())
    }

    /// The last lines since then, of the first file that has any. `owner`: the files of other users are not read.
    pub fn last_lines(&self, owner: u32) -> Vec<String> {
        let tails = self.0.iter().filter_map(|(path, from)| tail(path, *from, owner).ok());
        tails.map(|text| last(&text)).find(|lines| !lines.is_empty()).unwrap_or_default()
    }
}

fn tail(path: &Path, from: u64, owner: u32) -> io::Result<String> {
    let nofollow = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
    let mut file = File::options().read(true).custom_flags(nofollow).open(path)?;
    let meta = file.metadata()?;
    if meta.uid() != owner || !meta.is_file() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    // A file that became shorter was turned over.
    let from = if meta.len() < from { 0 } else { from };
    file.seek(SeekFrom::Start(from.max(meta.len().saturating_sub(MOST_BYTES))))?;
    let mut bytes = Vec::new();
    file.take(MOST_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn last(text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let from = lines.len().saturating_sub(MOST_LINES);
    lines.into_iter().skip(from).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_new_is_shown_and_errors_come_first() {
        let dir = crate::scratch::Dir::new();
        let (err, out) = (dir.join("err.log"), dir.join("out.log"));
        fs::write(&err, "of yesterday\n").unwrap();
        fs::write(&out, "").unwrap();
        let own = rustix::process::geteuid().as_raw();
        let logs = Logs::note([err.clone(), out.clone()]);
        assert!(logs.last_lines(own).is_empty());
        fs::write(&out, "listening\n").unwrap();
        assert_eq!(logs.last_lines(own), ["listening"]);
        fs::write(&err, "of yesterday\nError: no database\n\n    at start\n").unwrap();
        assert_eq!(logs.last_lines(own), ["Error: no database", "    at start"]);
        assert!(logs.last_lines(own + 1).is_empty());
        fs::write(&err, "anew\n").unwrap();
        assert_eq!(logs.last_lines(own), ["anew"]);
    }
}
