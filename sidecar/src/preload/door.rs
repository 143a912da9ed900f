//! The socket on which preloads call.
//!
//! Everybody on this host may connect, but is heard only if the kernel says that it is root, our own user, or the user of
//! one of our PM2 daemons. What it says is believed of its own process only, as the kernel names it. A word costs the door
//! a hand-over and no more: nobody can keep another one waiting.

use super::message::{Said, Told};
use crate::{
    host::{Proc, Process},
    pm2::home::Home,
    telemetry::Changes,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    io::{AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream, unix::OwnedWriteHalf},
    sync::{Semaphore, mpsc, watch},
    task::JoinSet,
    time,
};

/// What one process says; every agent hears it, and only its own knows who it is.
#[derive(Clone, Debug)]
pub struct Heard {
    pub process: Process,
    pub what: What,
}

#[derive(Clone, Debug)]
pub enum What {
    Came(Line),
    /// It listens on so many addresses.
    Listens(usize),
    /// It was told to go.
    Stopping,
    Left,
}

/// The way back to a process.
#[derive(Clone, Debug)]
pub struct Line(mpsc::Sender<Told>);

#[derive(Debug)]
pub struct Door {
    path: PathBuf,
    users: BTreeSet<u32>,
    agents: Vec<mpsc::Sender<Heard>>,
    guests: Guests,
    room: Arc<Semaphore>,
}

/// Those who are connected.
#[derive(Clone, Debug, Default)]
struct Guests(Arc<Mutex<BTreeMap<Process, Guest>>>);

#[derive(Clone, Debug)]
struct Guest {
    user: u32,
    line: Line,
    in_flight: watch::Receiver<Option<u64>>,
}

/// Who calls.
#[derive(Clone, Copy, Debug)]
struct Caller {
    process: Process,
    user: u32,
}

/// More than a host has workers.
const MOST_GUESTS: usize = 1024;
/// Nobody of ours falls so far behind.
const MOST_WORDS: usize = 16;
const RETRY: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(1);
/// How often to look whether the socket is still there for others to find.
const ROUND: Duration = Duration::from_secs(5);

// === impl Door ===

impl Door {
    pub fn new(path: PathBuf, homes: &[Home], agents: Vec<mpsc::Sender<Heard>>) -> Self {
        let owners = homes.iter().filter_map(|home| Some(fs::metadata(home.path()).ok()?.uid()));
        let own = rustix::process::geteuid().as_raw();
        let users = owners.chain([0, own]).collect();
        Self { path, users, agents, guests: Guests::default(), room: Arc::new(Semaphore::new(MOST_GUESTS)) }
    }

    /// Open for ever, or as soon as it can be.
    pub async fn run(self) {
        let (mut log, mut guests) = (Changes::default(), JoinSet::new());
        loop {
            match open(&self.path).await {
                Ok(listener) => {
                    log.info(format!("preloads are heard on {}", self.path.display()));
                    self.attend(&listener, &mut guests).await;
                }
                Err(error) => log.warn(format!("no preload is heard: {}: {error}", self.path.display())),
            }
            time::sleep(RETRY).await;
        }
    }

    /// Comes back when nobody can find the socket any more.
    async fn attend(&self, listener: &UnixListener, guests: &mut JoinSet<()>) {
        let file = Open::at(&self.path);
        let mut round = time::interval(ROUND);
        while file.as_ref().is_some_and(Open::is_there) {
            tokio::select! {
                accepted = listener.accept() => {
                    let Ok((socket, _)) = accepted else { return };
                    let Ok(room) = self.room.clone().try_acquire_owned() else { continue };
                    let Some(caller) = Caller::of(&socket).filter(|caller| self.users.contains(&caller.user))
                    else {
                        continue;
                    };
                    let visit =
                        Visit { caller, agents: self.agents.clone(), guests: self.guests.clone() };
                    guests.spawn(async move {
                        visit.lasts(socket).await;
                        drop(room);
                    });
                }
                Some(_) = guests.join_next(), if !guests.is_empty() => {}
                _ = round.tick() => {}
            }
        }
    }
}

/// The file of a socket that is open; it goes with it.
#[derive(Debug)]
struct Open {
    path: PathBuf,
    inode: (u64, u64),
}

async fn open(path: &Path) -> io::Result<UnixListener> {
    if let Some(dir) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o755).create(dir)?;
    }
    let listener = match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            // A plain file refuses connections, too, and is somebody's.
            if !fs::symlink_metadata(path)?.file_type().is_socket() {
                return Err(io::Error::other("it is not a socket; give another path with --preload-socket"));
            }
            let another = time::timeout(PATIENCE, UnixStream::connect(path)).await;
            match another {
                Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                _ => {
                    return Err(io::Error::other(
                        "another sidecar listens there; give this one its own with --preload-socket",
                    ));
                }
            }
            fs::remove_file(path)?;
            UnixListener::bind(path)?
        }
        listener => listener?,
    };
    fs::set_permissions(path, fs::Permissions::from_mode(0o666))?;
    Ok(listener)
}

// === impl Open ===

impl Open {
    fn at(path: &Path) -> Option<Self> {
        Some(Self { path: path.to_owned(), inode: inode(path)? })
    }

    fn is_there(&self) -> bool {
        inode(&self.path) == Some(self.inode)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if self.is_there() {
            _ = fs::remove_file(&self.path);
        }
    }
}

fn inode(path: &Path) -> Option<(u64, u64)> {
    let file = fs::symlink_metadata(path).ok()?;
    Some((file.dev(), file.ino()))
}

// === impl Caller ===

impl Caller {
    /// None: it ended, or is in another PID namespace.
    fn of(socket: &UnixStream) -> Option<Self> {
        let peer = socket.peer_cred().ok()?;
        let pid = u32::try_from(peer.pid()?).ok()?;
        Some(Self { process: Process::find(&Proc::default(), pid)?, user: peer.uid() })
    }
}

/// One connection.
#[derive(Debug)]
struct Visit {
    caller: Caller,
    agents: Vec<mpsc::Sender<Heard>>,
    guests: Guests,
}

// === impl Visit ===

impl Visit {
    async fn lasts(self, socket: UnixStream) {
        let (read, write) = socket.into_split();
        let (told, words) = mpsc::channel(MOST_WORDS);
        let (counts, in_flight) = watch::channel(None);
        let line = Line(told);
        let writer = tokio::spawn(write_all(words, write));
        let mut reader = BufReader::new(read);
        let mut is_guest = false;
        while let Ok(Some(said)) = Said::read(&mut reader).await {
            match said {
                Said::Hello { listens } => {
                    if !is_guest {
                        is_guest = true;
                        let user = self.caller.user;
                        self.guests.add(
                            self.caller.process,
                            Guest { user, line: line.clone(), in_flight: in_flight.clone() },
                        );
                        self.tell(What::Came(line.clone())).await;
                    }
                    self.tell(What::Listens(listens.len())).await;
                }
                Said::Listening { listens } if is_guest => self.tell(What::Listens(listens.len())).await,
                Said::Stopping {} if is_guest => self.tell(What::Stopping).await,
                Said::InFlight { n } if is_guest => _ = counts.send_replace(Some(n)),
                Said::Drain { worker, deadline_ms } if !is_guest => {
                    self.drain(worker, deadline_ms, &line).await;
                    break;
                }
                _ => {}
            }
        }
        if is_guest && self.guests.remove(self.caller.process, &line) {
            self.tell(What::Left).await;
        }
        // What was said last may be on its way. Nobody waits for this connection any more.
        drop((line, counts));
        drop(self);
        _ = writer.await;
    }

    async fn tell(&self, what: What) {
        for agent in &self.agents {
            _ = agent.send(Heard { process: self.caller.process, what: what.clone() }).await;
        }
    }

    /// Says to a worker what a roll-out wants, and to the roll-out how many requests it has left, until it has ended.
    async fn drain(&self, worker: Process, deadline_ms: u64, back: &Line) {
        let Some(guest) = self.guests.get(worker) else { return };
        let may = [0, guest.user, rustix::process::geteuid().as_raw()].contains(&self.caller.user);
        if !may || !guest.line.say(Told::Drain { worker: None, deadline_ms }) {
            return;
        }
        let mut in_flight = guest.in_flight;
        in_flight.mark_unchanged();
        loop {
            tokio::select! {
                changed = in_flight.changed() => if changed.is_err() { return },
                () = back.0.closed() => return,
            }
            let n = *in_flight.borrow_and_update();
            if let Some(n) = n {
                // Who reads slowly is told the latest.
                _ = back.0.send(Told::InFlight { n }).await;
            }
        }
    }
}

/// Ends when nobody has anything to say any more, or the other side does not listen.
async fn write_all(mut words: mpsc::Receiver<Told>, mut write: OwnedWriteHalf) {
    while let Some(told) = words.recv().await {
        let line = told.line();
        if !matches!(time::timeout(PATIENCE, write.write_all(&line)).await, Ok(Ok(()))) {
            return;
        }
    }
}

// === impl Line ===

impl Line {
    /// False: it is gone, or does not listen.
    pub fn say(&self, told: Told) -> bool {
        self.0.try_send(told).is_ok()
    }

    /// Nobody is at the other end.
    #[cfg(test)]
    pub fn dead() -> Self {
        Self(mpsc::channel(1).0)
    }

    fn is(&self, other: &Self) -> bool {
        self.0.same_channel(&other.0)
    }
}

// === impl Guests ===

impl Guests {
    /// A process that calls again is the one that called last.
    fn add(&self, process: Process, guest: Guest) {
        self.lock().insert(process, guest);
    }

    /// False: it has called again since.
    fn remove(&self, process: Process, line: &Line) -> bool {
        let mut guests = self.lock();
        let is_last = guests.get(&process).is_some_and(|guest| guest.line.is(line));
        if is_last {
            guests.remove(&process);
        }
        is_last
    }

    fn get(&self, process: Process) -> Option<Guest> {
        self.lock().get(&process).cloned()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<Process, Guest>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[tokio::test]
    async fn only_a_socket_that_nobody_listens_on_is_removed() {
        let dir = crate::scratch::Dir::new();
        let (file, link, stale) = (dir.join("file"), dir.join("link"), dir.join("stale"));
        fs::write(&file, "mine").unwrap();
        symlink(&file, &link).unwrap();
        for path in [&file, &link] {
            assert!(open(path).await.unwrap_err().to_string().contains("not a socket"));
        }
        assert_eq!(fs::read_to_string(&link).unwrap(), "mine");
        drop(UnixListener::bind(&stale).unwrap());
        let listener = open(&stale).await.unwrap();
        assert!(open(&stale).await.unwrap_err().to_string().contains("another sidecar"));
        drop(listener);
    }
}
