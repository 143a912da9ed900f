//! The control socket never keeps nginx down.
//!
//! After a boot /run is empty, and a master that was killed leaves its socket behind: nginx would refuse to start in both
//! cases. So before it binds, the missing directory is made, and a socket on which nobody answers is removed. Whatever is
//! there and answers, or is not a socket, is left alone: nginx then says itself what is wrong.

use crate::address;
use crate::conf::group;
use nginx_sys::{NGX_LOG_NOTICE, NGX_LOG_WARN, ngx_log_t};
use ngx::ngx_log_error;
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::ffi::OsStr;
use std::fs::{self, DirBuilder};
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, chown};
use std::path::{Path, PathBuf};

/// The group that may enter a directory we make, if nobody names another.
const GROUP: &str = "handoff";

/// The file of a unix socket; `None` for any other address, and for one without a file.
pub(crate) fn path(at: *const libc::sockaddr) -> Option<PathBuf> {
    let path = address::unix(at).filter(|path| !path.is_empty())?;
    Some(PathBuf::from(OsStr::from_bytes(path)))
}

/// Makes the way free. What cannot be done is logged, and nginx's own bind() decides.
pub(crate) fn prepare(path: &Path, group: Option<&str>, log: *mut ngx_log_t) {
    if let Err(error) = make_parent(path, group, log) {
        ngx_log_error!(
            NGX_LOG_WARN,
            log,
            "handoff: cannot make the directory of {}: {error}",
            path.display()
        );
    }
    if let Err(error) = remove_stale(path, log) {
        ngx_log_error!(
            NGX_LOG_WARN,
            log,
            "handoff: cannot remove the stale socket {}: {error}",
            path.display()
        );
    }
}

fn make_parent(path: &Path, named: Option<&str>, log: *mut ngx_log_t) -> io::Result<()> {
    let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) else { return Ok(()) };
    match DirBuilder::new().mode(0o750).create(parent) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => return Ok(()),
        made => made?,
    }
    if let Some(gid) = group(named.unwrap_or(GROUP)) {
        chown(parent, None, Some(gid))?;
    }
    ngx_log_error!(NGX_LOG_NOTICE, log, "handoff: made the directory {}", parent.display());
    Ok(())
}

fn remove_stale(path: &Path, log: *mut ngx_log_t) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(file) if file.file_type().is_socket() => {}
        _ => return Ok(()),
    }
    match connect(path) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => fs::remove_file(path)?,
        _ => return Ok(()),
    }
    ngx_log_error!(NGX_LOG_NOTICE, log, "handoff: removed the stale socket {}", path.display());
    Ok(())
}

/// Never waits: the queue of an nginx that hangs may be full, and this is its master, or an operator who mends it.
fn connect(path: &Path) -> io::Result<()> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    Ok(net::connect(socket, &SocketAddrUnix::new(path)?)?)
}
