//! Whether we believe who listens on a PM2 socket.
//!
//! Anyone who may write to `PM2_HOME` could put a socket there. It is believed if the file is a socket and no link, if
//! the listener runs as the owner of that file, and if that is our own user (or we are root). What it then says is
//! believed about processes of its own user only; see [`Daemon::may_speak_for`].

use std::{
    io,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};
use tokio::net::UnixStream;

/// The process at the other end of a trusted socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Daemon {
    pub pid: u32,
    pub uid: u32,
}

#[derive(Debug, thiserror::Error)]
pub enum PathError {
    #[error("PM2 does not run: there is no {}. Start it (pm2 ping), or give its home with --pm2-home", .0.display())]
    Absent(PathBuf),
    #[error("PM2 does not answer: nobody listens on {}. Start it (pm2 ping)", .0.display())]
    Refused(PathBuf),
    #[error(
        "not allowed to use {} of user {owner}: run handoff as that user or as root", path.display()
    )]
    NotAllowed { path: PathBuf, owner: u32 },
    #[error("{} is a link: a PM2 socket that points elsewhere is not used. Give the real home with --pm2-home", .0.display())]
    Link(PathBuf),
    #[error("{} is not a socket: is --pm2-home right?", .0.display())]
    NotASocket(PathBuf),
    #[error(
        "{} belongs to user {owner}, but a process of user {listener} listens there: it is not believed. \
         Remove the file and start PM2 again", path.display()
    )]
    Impostor { path: PathBuf, owner: u32, listener: u32 },
    #[error(
        "{} is served by user {listener} and handoff runs as user {own}: run it as the same user, or as root", path.display()
    )]
    OtherUser { path: PathBuf, listener: u32, own: u32 },
    #[error(
        "the process behind {} is in another PID namespace: run handoff in the workers' container \
         (or share its PID and network namespaces)", .0.display()
    )]
    OtherNamespace(PathBuf),
    #[error("{}: {error}", path.display())]
    Io { path: PathBuf, error: io::Error },
}

/// Connects to a PM2 socket that can be believed.
pub async fn connect(path: &Path) -> Result<(UnixStream, Daemon), PathError> {
    let owner = examine(path)?;
    let socket = UnixStream::connect(path).await.map_err(|error| failed(path, error))?;
    let peer = socket.peer_cred().map_err(|error| failed(path, error))?;
    let pid = peer.pid().and_then(|pid| u32::try_from(pid).ok()).unwrap_or(0);
    let own = rustix::process::geteuid().as_raw();
    let daemon = judge(path, owner, own, Daemon { pid, uid: peer.uid() })?;
    Ok((socket, daemon))
}

/// What the file system says of a socket, before it is used. Returns its owner.
fn examine(path: &Path) -> Result<u32, PathError> {
    let meta = path.symlink_metadata().map_err(|error| failed(path, error))?;
    if meta.file_type().is_symlink() {
        return Err(PathError::Link(path.into()));
    }
    if !meta.file_type().is_socket() {
        return Err(PathError::NotASocket(path.into()));
    }
    Ok(meta.uid())
}

fn failed(path: &Path, error: io::Error) -> PathError {
    match error.kind() {
        io::ErrorKind::NotFound => PathError::Absent(path.into()),
        io::ErrorKind::ConnectionRefused => PathError::Refused(path.into()),
        io::ErrorKind::PermissionDenied => {
            PathError::NotAllowed { path: path.into(), owner: owner_of_nearest(path).unwrap_or_default() }
        }
        _ => PathError::Io { path: path.into(), error },
    }
}

/// The owner of the path, or of the nearest directory that we may look into.
fn owner_of_nearest(path: &Path) -> Option<u32> {
    path.ancestors().find_map(|path| path.symlink_metadata().ok()).map(|meta| meta.uid())
}

fn judge(path: &Path, owner: u32, own: u32, daemon: Daemon) -> Result<Daemon, PathError> {
    let path = path.to_path_buf();
    match daemon {
        Daemon { uid: listener, .. } if listener != owner => {
            Err(PathError::Impostor { path, owner, listener })
        }
        Daemon { uid: listener, .. } if own != 0 && listener != own => {
            Err(PathError::OtherUser { path, listener, own })
        }
        // The kernel translates the pid to our namespace: 0 is a process that we cannot see.
        Daemon { pid: 0, .. } => Err(PathError::OtherNamespace(path)),
        daemon => Ok(daemon),
    }
}

// === impl Daemon ===

impl Daemon {
    /// A daemon of root starts workers of any user; every other one only its own.
    pub fn may_speak_for(self, uid: u32) -> bool {
        self.uid == 0 || self.uid == uid
    }
}

// === impl PathError ===

impl PathError {
    /// Nothing is wrong but that PM2 does not run now.
    pub fn is_absence(&self) -> bool {
        matches!(self, Self::Absent(_) | Self::Refused(_))
    }

    pub fn is_refusal(&self) -> bool {
        !self.is_absence() && !matches!(self, Self::Io { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::net::UnixListener};

    const PATH: &str = "/home/shop/.pm2/pub.sock";

    fn says(owner: u32, own: u32, daemon: Daemon) -> String {
        judge(Path::new(PATH), owner, own, daemon).map_or_else(|error| error.to_string(), |_| "yes".into())
    }

    #[test]
    fn a_daemon_of_our_own_user_is_believed_and_root_believes_every_honest_one() {
        assert_eq!(says(1000, 1000, Daemon { pid: 7, uid: 1000 }), "yes");
        assert_eq!(says(1000, 0, Daemon { pid: 7, uid: 1000 }), "yes");
    }

    #[test]
    fn a_listener_that_is_not_the_owner_of_the_file_is_refused() {
        assert!(says(1000, 0, Daemon { pid: 7, uid: 1001 }).contains("it is not believed"));
        assert!(says(1000, 1001, Daemon { pid: 7, uid: 1000 }).contains("run it as the same user"));
        assert!(says(1000, 1000, Daemon { pid: 0, uid: 1000 }).contains("PID namespace"));
    }

    #[test]
    fn a_daemon_speaks_for_its_own_user() {
        assert!(Daemon { pid: 7, uid: 0 }.may_speak_for(33));
        assert!(Daemon { pid: 7, uid: 33 }.may_speak_for(33));
        assert!(!Daemon { pid: 7, uid: 33 }.may_speak_for(0));
    }

    #[test]
    fn a_link_and_a_plain_file_are_no_sockets() {
        let dir = crate::scratch::Dir::new();
        let (socket, link, file) = (dir.join("pub.sock"), dir.join("link.sock"), dir.join("file.sock"));
        let _listener = UnixListener::bind(&socket).unwrap();
        std::os::unix::fs::symlink(&socket, &link).unwrap();
        fs::write(&file, "").unwrap();
        assert_eq!(examine(&socket).unwrap(), rustix::process::geteuid().as_raw());
        assert!(matches!(examine(&link), Err(PathError::Link(_))));
        assert!(matches!(examine(&file), Err(PathError::NotASocket(_))));
        assert!(examine(&dir.join("none")).unwrap_err().is_absence());
    }
}
