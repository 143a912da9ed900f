//! The control socket never keeps nginx down.
//!
//! After a boot /run is empty, and a master that was killed leaves its socket behind: nginx would refuse to start in both
//! cases. So before it binds, the missing directory is made, and a socket on which nobody answers is removed. Whatever is
//! there and answers, or is not a socket, is left alone: nginx then says itself what is wrong.
//!
//! Nor is it lost for good: if somebody removed its file, nginx would listen on, through every reload, where nobody can
//! come. A reload makes the file anew.

use crate::address;
use crate::conf::group;
use crate::nginx::{array, global};
use nginx_sys::{NGX_LOG_NOTICE, NGX_LOG_WARN, NGX_PROCESS_MASTER, ngx_cycle_t, ngx_listening_t, ngx_log_t};
use ngx::ngx_log_error;
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::ffi::OsStr;
use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt, chown};
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

/// A reload has succeeded, and nginx goes on with the sockets it had: those whose file is gone are bound anew.
pub(crate) fn restore(sockets: &[PathBuf], cycle: &ngx_cycle_t) {
    // At a start and in `nginx -t` nginx has just bound them itself.
    if global!(ngx_process) != NGX_PROCESS_MASTER as usize {
        return;
    }
    // SAFETY: nginx keeps all sockets of a cycle in this array, complete by now.
    let listening: &[ngx_listening_t] = unsafe { array(&raw const cycle.listening) };
    for socket in listening.iter().filter(|socket| socket.fd != -1) {
        let Some(path) = path(socket.sockaddr.cast()).filter(|path| sockets.contains(path)) else { continue };
        if !fs::symlink_metadata(&path).is_err_and(|error| error.kind() == ErrorKind::NotFound) {
            continue;
        }
        match bind_anew(&path, socket) {
            Ok(()) => {
                ngx_log_error!(
                    NGX_LOG_NOTICE,
                    cycle.log,
                    "handoff: the socket {} had been removed: made it anew",
                    path.display()
                );
            }
            Err(error) => {
                ngx_log_error!(
                    NGX_LOG_WARN,
                    cycle.log,
                    "handoff: cannot make the socket {} anew: {error}",
                    path.display()
                );
            }
        }
    }
}

/// The new socket takes the place of the old one behind nginx's descriptor. Workers of before keep what they have.
fn bind_anew(path: &Path, socket: &ngx_listening_t) -> io::Result<()> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let new = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    net::bind(&new, &SocketAddrUnix::new(path)?)?;
    // As nginx leaves them: who may do what is the directory's affair, and that of `handoff_api`.
    fs::set_permissions(path, Permissions::from_mode(0o666))?;
    net::listen(&new, socket.backlog)?;
    // SAFETY: both are open sockets of ours. What stood behind the second is closed; nginx's workers are given it with fork().
    if unsafe { libc::dup2(new.as_raw_fd(), socket.fd) } == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Never waits: the queue of an nginx that hangs may be full, and this is its master, or an operator who mends it.
fn connect(path: &Path) -> io::Result<()> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    Ok(net::connect(socket, &SocketAddrUnix::new(path)?)?)
}
