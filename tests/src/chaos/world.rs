//! What a fault takes hold of besides the site: the clock that its processes read, and the disk that they write to.

use crate::{command, lives, net::Realm, place::Place, pm2::Pm2};
use anyhow::{Context, Result, ensure};
use std::{
    cell::Cell,
    fs,
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

/// Debian's libfaketime, for programs with threads.
const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";

#[derive(Debug)]
pub(super) struct World {
    pub(super) lives: PathBuf,
    pub(super) disk: Option<Disk>,
    pub(super) clock: Option<Clock>,
}

/// What is added to the time, in a file that libfaketime reads each second.
#[derive(Debug)]
pub(super) struct Clock {
    file: PathBuf,
    ahead: Cell<i64>,
    keeper: Keeper,
}

/// Keeps what libfaketime shares between processes. Without it that is the first process's, and goes with it: one that starts just
/// then is ended by libfaketime.
#[derive(Debug)]
struct Keeper(Child);

/// Small file systems in memory, where `handoff` and PM2 write. Unmounted when it is dropped.
#[derive(Debug)]
pub(super) struct Disk {
    own: Vec<PathBuf>,
    pm2: PathBuf,
}

// === impl World ===

impl World {
    pub(super) fn disk(&self) -> Result<&Disk> {
        self.disk.as_ref().context("the disk is not ours")
    }

    pub(super) fn clock(&self) -> Result<&Clock> {
        self.clock.as_ref().context("the clock is not ours")
    }

    /// The workers of the app that listen: none that is somebody else's by now, who has the number of one that died.
    pub(super) fn workers(&self, pm2: &Pm2) -> Vec<u32> {
        let (lives, living) = (lives::read(&self.lives).unwrap_or_default(), pm2.processes());
        let serving = lives.iter().filter(|life| life.listened.is_some() && living.contains(&life.worker));
        serving.map(|life| life.worker).collect()
    }
}

// === impl Clock ===

impl Clock {
    pub(super) fn new(folder: &Path) -> Result<Self> {
        ensure!(Path::new(FAKETIME).exists(), "libfaketime is missing: run `build/setup libfaketime`");
        let clock = Self { file: folder.join("clock"), ahead: Cell::new(0), keeper: Keeper::new()? };
        clock.jumps(0)?;
        Ok(clock)
    }

    /// Where the wall clock is ours, and the monotonic one the kernel's.
    pub(super) fn wall(&self) -> Realm {
        let mut environment = self.environment();
        environment.push(("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()));
        Realm::with(environment)
    }

    /// Where both are ours.
    pub(super) fn both(&self) -> Realm {
        Realm::with(self.environment())
    }

    fn environment(&self) -> Vec<(&'static str, String)> {
        vec![
            ("LD_PRELOAD", FAKETIME.to_owned()),
            ("FAKETIME_TIMESTAMP_FILE", self.file.display().to_string()),
            ("FAKETIME_CACHE_DURATION", "1".to_owned()),
            ("FAKETIME_SHARED", self.keeper.shared()),
        ]
    }

    pub(super) fn jumps(&self, seconds: i64) -> Result<()> {
        self.ahead.set(self.ahead.get() + seconds);
        let new = self.file.with_extension("new");
        fs::write(&new, format!("{:+}\n", self.ahead.get()))?;
        // Nobody reads half of it.
        Ok(fs::rename(&new, &self.file)?)
    }
}

// === impl Keeper ===

impl Keeper {
    fn new() -> Result<Self> {
        let mut cat = Command::new("cat");
        cat.env("LD_PRELOAD", FAKETIME).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = cat.spawn().context("cannot run cat")?;
        let (stdin, stdout) =
            (child.stdin.as_mut().context("no input")?, child.stdout.as_mut().context("no output")?);
        stdin.write_all(b"-")?;
        // It has begun, and libfaketime in it before it.
        stdout.read_exact(&mut [0])?;
        Ok(Self(child))
    }

    fn shared(&self) -> String {
        let pid = self.0.id();
        format!("/faketime_sem_{pid} /faketime_shm_{pid}")
    }
}

impl Drop for Keeper {
    /// It ends with its input, and libfaketime takes away what it made.
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        _ = self.0.wait();
    }
}

// === impl Disk ===

const FILLER: &str = "filler";

impl Disk {
    pub(super) async fn new(place: &Place) -> Result<Self> {
        let disk = Self { own: vec![place.file("runtime"), place.file("state")], pm2: place.pm2_home() };
        for (path, size) in disk.all().zip(["1m", "1m", "16m"]) {
            fs::create_dir(path)?;
            let options = format!("size={size},mode=0755");
            let path = path.display().to_string();
            mount(&["-t", "tmpfs", "-o", &options, "handoff-chaos", &path]).await?;
        }
        Ok(disk)
    }

    fn all(&self) -> impl Iterator<Item = &PathBuf> {
        self.own.iter().chain([&self.pm2])
    }

    pub(super) fn fill(&self) -> Result<()> {
        for path in self.all() {
            let mut file = fs::File::create(path.join(FILLER))?;
            for size in [64 * 1024, 1] {
                while file.write(&vec![0; size]).is_ok_and(|written| written > 0) {}
            }
        }
        Ok(())
    }

    pub(super) fn empty(&self) -> Result<()> {
        self.all().try_for_each(|path| Ok(fs::remove_file(path.join(FILLER))?))
    }

    /// PM2 has its logs open, so that its own cannot be closed.
    pub(super) async fn close(&self) -> Result<()> {
        self.remount("remount,ro").await
    }

    pub(super) async fn open(&self) -> Result<()> {
        self.remount("remount,rw").await
    }

    async fn remount(&self, how: &str) -> Result<()> {
        for path in &self.own {
            mount(&["-o", how, &path.display().to_string()]).await?;
        }
        Ok(())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        for path in self.all() {
            _ = Command::new("umount").arg("--lazy").arg(path).status();
        }
    }
}

async fn mount(arguments: &[&str]) -> Result<()> {
    command::succeed(command::clean("mount").args(arguments)).await.map(drop)
}
