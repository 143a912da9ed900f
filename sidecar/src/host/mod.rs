//! This host as the kernel shows it: processes, who listens where, which addresses are ours.
//!
//! Everything here reads `/proc`; nothing decides. What could not be read is said ([`Unknown`]) and never guessed.

pub mod connections;
pub mod death;
mod diag;
pub mod listeners;
pub mod locals;
pub mod process;
pub mod tree;

pub use listeners::Listeners;
pub use locals::Locals;
pub use process::Process;
pub use tree::Processes;

use std::{
    fs::{self, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
};

/// `/proc`, or what a test puts in its place.
#[derive(Clone, Debug)]
pub struct Proc(PathBuf);

/// Why a worker's processes could not be examined.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unknown {
    #[error("its process {0} belongs to user {1}, which PM2's daemon of user {2} does not speak for")]
    OtherUser(u32, u32, u32),
    #[error("its process {0} is in another network namespace: map it by configuration")]
    OtherNamespace(u32),
    #[error("the open files of its process {0} cannot be read: run handoff as the same user or as root")]
    NotAllowed(u32),
}

impl Default for Proc {
    fn default() -> Self {
        Self("/proc".into())
    }
}

impl Proc {
    pub fn at(path: &Path) -> Self {
        Self(path.into())
    }

    fn path(&self) -> &Path {
        &self.0
    }

    fn of(&self, pid: u32) -> PathBuf {
        self.0.join(pid.to_string())
    }

    /// A file of text that the kernel has of a process.
    pub fn read(&self, pid: u32, name: &str) -> io::Result<String> {
        Ok(String::from_utf8_lossy(&fs::read(self.of(pid).join(name))?).into_owned())
    }

    /// The beginning of such a file, in one call: at every look it is asked of every process, and its end would be another two.
    fn head(&self, pid: u32, name: &str) -> io::Result<String> {
        let mut head = [0; 1024];
        let length = File::open(self.of(pid).join(name))?.read(&mut head)?;
        Ok(String::from_utf8_lossy(head.get(..length).unwrap_or_default()).into_owned())
    }

    /// The file that a process runs, if it is still there.
    pub fn program(&self, pid: u32) -> Option<PathBuf> {
        fs::read_link(self.of(pid).join("exe")).ok().filter(|path| path.is_file())
    }

    /// A process's words, each with a NUL behind it.
    pub fn command_line(&self, pid: u32) -> io::Result<Vec<u8>> {
        fs::read(self.of(pid).join("cmdline"))
    }

    /// The environment that it was started with, in the same form. It holds secrets.
    pub fn environment(&self, pid: u32) -> io::Result<Vec<u8>> {
        fs::read(self.of(pid).join("environ"))
    }
}
