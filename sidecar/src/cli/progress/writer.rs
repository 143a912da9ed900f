//! Writes on a thread of its own: a terminal that was halted (Ctrl-S) or a reader that sleeps holds up what is shown, and
//! nothing else.

use rustix::{
    event::{PollFd, PollFlags, poll},
    io::{Errno, write},
};
use std::{
    io,
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Sender, channel},
    },
    thread::{self, JoinHandle},
};

pub(super) struct Writer {
    texts: Option<Sender<String>>,
    /// How many texts wait.
    waiting: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

// === impl Writer ===

impl Writer {
    pub(super) fn new(out: impl AsFd + Send + 'static) -> Self {
        let (texts, queue) = channel::<String>();
        let waiting = Arc::new(AtomicUsize::new(0));
        let left = waiting.clone();
        let work = move || {
            let mut is_read = true;
            for text in queue {
                is_read = is_read && write_all(&out, text.as_bytes()).is_ok();
                left.fetch_sub(1, Ordering::Relaxed);
            }
        };
        // Without a thread nothing is shown: that is no reason not to roll out.
        let thread = thread::Builder::new().name("progress".to_owned()).spawn(work).ok();
        Self { texts: Some(texts), waiting, thread }
    }

    pub(super) fn write(&self, text: String) {
        if text.is_empty() {
            return;
        }
        self.waiting.fetch_add(1, Ordering::Relaxed);
        _ = self.texts.as_ref().map(|texts| texts.send(text));
    }

    /// Whether all that was given has been written.
    pub(super) fn is_idle(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) == 0
    }
}

impl Drop for Writer {
    /// What is left is written: by now there is nothing else that would have to wait.
    fn drop(&mut self) {
        self.texts = None;
        _ = self.thread.take().map(JoinHandle::join);
    }
}

fn write_all(out: &impl AsFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match write(out, bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            // Whoever shares the terminal or the pipe with us may have made it so.
            Err(Errno::AGAIN) => _ = poll(&mut [PollFd::new(out, PollFlags::OUT)], None),
            Err(gone) => return Err(gone.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{io::Read as _, os::unix::net::UnixStream};

    /// More than a socket holds.
    fn long(text: &str) -> String {
        text.repeat(1 << 20)
    }

    #[test]
    fn a_reader_that_sleeps_holds_nothing_up_and_gets_everything() {
        for is_nonblocking in [false, true] {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            ours.set_nonblocking(is_nonblocking).unwrap();
            let writer = Writer::new(ours);
            writer.write(long("a"));
            writer.write("the end".into());
            assert!(!writer.is_idle());
            let reader = thread::spawn(move || {
                let mut got = String::new();
                theirs.read_to_string(&mut got).map(|_| got)
            });
            drop(writer);
            assert!(reader.join().unwrap().unwrap() == long("a") + "the end");
        }
    }

    #[test]
    fn a_reader_that_is_gone_is_no_matter() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        let writer = Writer::new(ours);
        writer.write("a".into());
        writer.write(long("b"));
        drop(writer);
    }
}
