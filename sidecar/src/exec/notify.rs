//! Between the child and the service manager: sd_notify(3).
//!
//! The child is given a `NOTIFY_SOCKET` of our own, and all that it says there is passed on, with the descriptors that come
//! with it, but for three things. `READY=1` waits until nginx may send requests. `MAINPID=` stays with us: the process that
//! the manager signals is this one. `STOPPING=1`, which is passed on, too, tells us that it goes by itself. A manager need
//! not be there: whoever speaks is understood all the same.

use crate::host::{Proc, process};
use rustix::{
    io::Errno,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, SocketAddrUnix, recvmsg, sendmsg_addr, sockopt,
    },
};
use std::{
    env,
    ffi::OsString,
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::{
        fd::{AsFd as _, OwnedFd},
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::{OsStrExt as _, OsStringExt as _},
            net::{SocketAddr, UnixDatagram as StdDatagram},
        },
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::{io::Interest, net::UnixDatagram};

pub const SOCKET: &str = "NOTIFY_SOCKET";

/// Where the child speaks.
#[derive(Debug)]
pub struct Ear {
    socket: UnixDatagram,
    name: Vec<u8>,
}

/// What it said.
#[derive(Debug, Default)]
pub struct Said {
    pub ready: bool,
    pub stopping: bool,
    pub main: Option<u32>,
    /// All else, to be passed on.
    pub rest: Vec<u8>,
    pub files: Vec<OwnedFd>,
}

/// The service manager, if there is one.
#[derive(Debug)]
pub struct Manager(Option<(StdDatagram, SocketAddrUnix)>);

/// What the manager takes at most.
const LONGEST: usize = 4096;
/// And so many descriptors (SCM_MAX_FD).
const MOST_FILES: usize = 253;
/// A manager that does not read must not stop us.
const PATIENCE: Duration = Duration::from_secs(1);

// === impl Ear ===

impl Ear {
    pub fn open() -> io::Result<Self> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let name = format!("handoff/exec/{}/{:x}", std::process::id(), now.as_nanos()).into_bytes();
        let socket = StdDatagram::bind_addr(&SocketAddr::from_abstract_name(&name)?)?;
        socket.set_nonblocking(true)?;
        sockopt::set_socket_passcred(&socket, true)?;
        Ok(Self { socket: UnixDatagram::from_std(socket)?, name })
    }

    /// As the environment has it.
    pub fn address(&self) -> OsString {
        OsString::from_vec([b"@", self.name.as_slice()].concat())
    }

    /// The next thing that one of ours says.
    pub async fn hear(&self) -> Said {
        loop {
            let heard = self.socket.async_io(Interest::READABLE, || receive(&self.socket)).await;
            match heard {
                Ok(Some(said)) => return said,
                Ok(None) => {}
                Err(error) => {
                    tracing::debug!("what the command says to its service manager is not heard: {error}");
                    tokio::time::sleep(PATIENCE).await;
                }
            }
        }
    }
}

/// None: whoever it was is no business of ours.
fn receive(socket: &UnixDatagram) -> io::Result<Option<Said>> {
    let mut text = [0; LONGEST];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FILES), ScmCredentials(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::TRUNC;
    let got = recvmsg(socket, &mut [IoSliceMut::new(&mut text)], &mut ancillary, flags)?;
    let (mut files, mut sender) = (Vec::new(), None);
    for message in ancillary.drain() {
        match message {
            RecvAncillaryMessage::ScmRights(rights) => files.extend(rights),
            RecvAncillaryMessage::ScmCredentials(credentials) => sender = Some(credentials),
            _ => {}
        }
    }
    let is_ours = sender.is_some_and(|sender| {
        let own = rustix::process::geteuid();
        let pid = sender.pid.as_raw_nonzero().get().unsigned_abs();
        sender.uid.is_root()
            || sender.uid == own
            || process::is_below(&Proc::default(), pid, std::process::id())
    });
    if !is_ours || got.flags.contains(ReturnFlags::TRUNC) {
        return Ok(None);
    }
    Ok(Some(Said::parse(text.get(..got.bytes).unwrap_or_default(), files)))
}

// === impl Said ===

impl Said {
    fn parse(text: &[u8], files: Vec<OwnedFd>) -> Self {
        let mut said = Self { files, ..Self::default() };
        for line in text.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
            if line == b"READY=1" {
                said.ready = true;
                continue;
            }
            if let Some(pid) = line.strip_prefix(b"MAINPID=") {
                said.main = std::str::from_utf8(pid).ok().and_then(|pid| pid.parse().ok());
                continue;
            }
            said.stopping |= line == b"STOPPING=1";
            said.rest.extend_from_slice(line);
            said.rest.push(b'\n');
        }
        said
    }
}

// === impl Manager ===

impl Manager {
    /// Of our own environment.
    pub fn find() -> Self {
        let socket = env::var_os(SOCKET).filter(|socket| !socket.is_empty());
        Self(socket.and_then(|socket| match Self::at(socket.as_bytes()) {
            Ok(manager) => Some(manager),
            Err(error) => {
                tracing::warn!(
                    "the service manager at {} cannot be told anything: {error}",
                    socket.display()
                );
                None
            }
        }))
    }

    fn at(address: &[u8]) -> io::Result<(StdDatagram, SocketAddrUnix)> {
        let address = match address {
            [b'@', name @ ..] => SocketAddrUnix::new_abstract_name(name)?,
            [b'/', ..] => SocketAddrUnix::new(address)?,
            _ => return Err(io::Error::other("it is no unix socket")),
        };
        let socket = StdDatagram::unbound()?;
        socket.set_write_timeout(Some(PATIENCE))?;
        Ok((socket, address))
    }

    pub fn is_there(&self) -> bool {
        self.0.is_some()
    }

    pub fn say(&self, text: &str) {
        self.pass_on(text.as_bytes(), &[]);
    }

    pub fn pass_on(&self, text: &[u8], files: &[OwnedFd]) {
        let Some((socket, address)) = &self.0 else { return };
        if text.is_empty() && files.is_empty() {
            return;
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FILES))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let files: Vec<_> = files.iter().map(OwnedFd::as_fd).collect();
        if !files.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(&files));
        }
        let text = [IoSlice::new(text)];
        let sent = loop {
            match sendmsg_addr(socket, address, &text, &mut ancillary, SendFlags::NOSIGNAL) {
                Err(Errno::INTR) => {}
                sent => break sent,
            }
        };
        if let Err(errno) = sent {
            tracing::debug!("the service manager was not told: {errno}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs::File, io::Read as _};

    #[test]
    fn what_concerns_us_is_told_apart_from_what_is_passed_on() {
        let said = Said::parse(b"READY=1\nSTATUS=up\nMAINPID=17\nWATCHDOG=1\n", Vec::new());
        assert!(said.ready && !said.stopping);
        assert_eq!((said.main, said.rest.as_slice()), (Some(17), b"STATUS=up\nWATCHDOG=1\n".as_slice()));
        let said = Said::parse(b"STOPPING=1", Vec::new());
        assert!(said.stopping && said.rest == b"STOPPING=1\n");
    }

    #[tokio::test]
    async fn descriptors_go_through() {
        let (child, outer) = (Ear::open().unwrap(), Ear::open().unwrap());
        let (mut reads, writes) = std::io::pipe().unwrap();
        let of = |ear: &Ear| Manager(Some(Manager::at(ear.address().as_bytes()).unwrap()));
        of(&child).pass_on(b"FDSTORE=1\nFDNAME=x\n", &[writes.into()]);
        let said = child.hear().await;
        of(&outer).pass_on(&said.rest, &said.files);
        drop(said);
        let said = outer.hear().await;
        assert_eq!(said.rest, b"FDSTORE=1\nFDNAME=x\n");
        let [file] = <[OwnedFd; 1]>::try_from(said.files).unwrap();
        std::io::Write::write_all(&mut File::from(file), b"through").unwrap();
        let mut text = String::new();
        reads.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
    }
}
