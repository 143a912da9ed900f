//! PM2's bus, read as fast as it comes.
//!
//! The daemon queues without bound for a slow reader, so the reader waits on nothing but its socket: it hands over what
//! it understands without ever blocking, and where there is no room it leaves a note that something was missed. Whoever
//! finds that note looks at everything, as after every (re)connection, because the bus repeats nothing.

use super::{
    event::{self, Event},
    frame::{Argument, Decoder, FrameError, Policy},
    home::Home,
    trust::{self, PathError},
};
use crate::telemetry::Changes;
use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncBufRead, AsyncBufReadExt as _, BufReader},
    sync::{Notify, mpsc},
    time,
};

/// PM2's own clients wait up to 5 s, in which a daemon that is back could stop workers unheard, and those that it has started are
/// kept from users for as long. To try costs nothing.
const RETRY: Duration = Duration::from_millis(100);

const MAX_TOPIC: u32 = 64;
/// A payload with a very large environment; a longer one is skipped and counts as missed.
const MAX_PAYLOAD: u32 = 4 << 20;
const ROOM: usize = 512;

/// One event, and when its bytes were there to be read.
#[derive(Clone, Debug)]
pub struct Notice {
    pub event: Event,
    /// By the daemon's clock, in milliseconds since 1970.
    pub at: u64,
    pub read: Instant,
}

/// What the reader has for us.
#[derive(Debug)]
pub enum Item {
    Notice(Notice),
    /// Connected anew, or something was missed: events alone do not tell the truth any more.
    Resync,
}

/// The reader's end of the queue.
#[derive(Debug)]
pub struct Bus {
    notices: mpsc::Sender<Notice>,
    missed: Arc<Missed>,
}

/// The other end.
#[derive(Debug)]
pub struct Notices {
    notices: mpsc::Receiver<Notice>,
    missed: Arc<Missed>,
}

#[derive(Debug, Default)]
struct Missed {
    any: AtomicBool,
    wake: Notify,
}

#[derive(Debug, thiserror::Error)]
pub enum BusError {
    #[error(transparent)]
    Path(#[from] PathError),
    #[error("PM2 closed its bus: the daemon ended or restarts")]
    Closed,
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("reading PM2's bus failed: {0}")]
    Io(#[from] io::Error),
}

struct Wanted;

pub fn channel() -> (Bus, Notices) {
    let (sender, receiver) = mpsc::channel(ROOM);
    let missed = Arc::new(Missed::default());
    (Bus { notices: sender, missed: missed.clone() }, Notices { notices: receiver, missed })
}

// === impl Bus ===

impl Bus {
    /// Reads for ever: a daemon that is away is waited for.
    pub async fn run(self, home: &Home) {
        let mut log = Changes::default();
        loop {
            let error = match trust::connect(&home.bus()).await {
                Ok((socket, daemon)) => {
                    log.info(format!("listening to PM2 at {home} (pid {})", daemon.pid));
                    self.missed.note();
                    self.read(BufReader::with_capacity(256 * 1024, socket)).await
                }
                Err(error) => error.into(),
            };
            log.warn(error.to_string());
            time::sleep(RETRY).await;
        }
    }

    /// Reads until the socket ends, or sends what PM2 would not.
    pub async fn read(&self, mut socket: impl AsyncBufRead + Unpin) -> BusError {
        let mut decoder = Decoder::new(Wanted);
        loop {
            match socket.fill_buf().await {
                Ok([]) => return BusError::Closed,
                Ok(mut input) => {
                    let (available, read) = (input.len(), Instant::now());
                    while let Some(message) = match decoder.feed(&mut input) {
                        Ok(message) => message,
                        Err(error) => return error.into(),
                    } {
                        self.hand_over(&message, read);
                    }
                    socket.consume(available);
                }
                Err(error) => return error.into(),
            }
        }
    }

    fn hand_over(&self, message: &[Argument], read: Instant) {
        let [topic, payload, ..] = message else { return };
        let Some(topic) = topic.text(b's').filter(|topic| event::is_wanted(topic)) else { return };
        let Some(payload) = payload.text(b'j') else { return self.missed.note() };
        if let Some((event, at)) = event::parse(topic, payload)
            && self.notices.try_send(Notice { event, at, read }).is_err()
        {
            self.missed.note();
        }
    }
}

// === impl Notices ===

impl Notices {
    /// None: the reader is gone.
    pub async fn next(&mut self) -> Option<Item> {
        if self.missed.any.swap(false, Ordering::AcqRel) {
            return Some(Item::Resync);
        }
        tokio::select! {
            biased;
            notice = self.notices.recv() => notice.map(Item::Notice),
            () = self.missed.wake.notified() => {
                self.missed.any.store(false, Ordering::Release);
                Some(Item::Resync)
            }
        }
    }

    /// What is there without waiting.
    pub fn try_next(&mut self) -> Option<Notice> {
        self.notices.try_recv().ok()
    }
}

// === impl Missed ===

impl Missed {
    fn note(&self) {
        self.any.store(true, Ordering::Release);
        self.wake.notify_one();
    }
}

// === impl Wanted ===

impl Policy for Wanted {
    fn keeps(&self, before: &[Argument], len: u32) -> bool {
        match before {
            [] => len <= MAX_TOPIC,
            [topic] => len <= MAX_PAYLOAD && topic.text(b's').is_some_and(event::is_wanted),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pm2::{PmId, frame::encode};

    fn stopping(id: usize) -> Vec<u8> {
        let payload =
            format!(r#"j:{{"at":5,"data":"Stopping app:myapp id:{id}\n","process":{{"pm_id":"PM2"}}}}"#);
        encode(&[b"s:log:PM2", payload.as_bytes()])
    }

    fn reader(bytes: &[u8]) -> Notices {
        let (bus, notices) = channel();
        let mut decoder = Decoder::new(Wanted);
        let mut input = bytes;
        while let Some(message) = decoder.feed(&mut input).unwrap() {
            bus.hand_over(&message, Instant::now());
        }
        notices
    }

    async fn items(mut notices: Notices) -> (Vec<Event>, usize) {
        let (mut events, mut resyncs) = (Vec::new(), 0);
        while let Some(item) = notices.next().await {
            match item {
                Item::Notice(notice) => events.push(notice.event),
                Item::Resync => resyncs += 1,
            }
        }
        (events, resyncs)
    }

    #[tokio::test]
    async fn the_output_of_apps_is_passed_over() {
        let noise = encode(&[b"s:log:out", &vec![b'x'; 100_000]]);
        let bytes = [noise.clone(), stopping(3), noise].concat();
        assert_eq!(items(reader(&bytes)).await, (vec![Event::Stopping(PmId(3))], 0));
    }

    #[tokio::test]
    async fn where_there_is_no_room_the_reader_leaves_a_note_and_reads_on() {
        let bytes: Vec<u8> = (0..ROOM * 3).flat_map(stopping).collect();
        let (events, resyncs) = items(reader(&bytes)).await;
        assert_eq!(events.len(), ROOM);
        assert!(resyncs >= 1);
    }

    #[tokio::test]
    async fn a_payload_too_long_to_be_read_counts_as_missed() {
        let long = vec![b'x'; 5 << 20];
        let bytes = [encode(&[b"s:process:event", &long]), stopping(1)].concat();
        let (events, resyncs) = items(reader(&bytes)).await;
        assert_eq!(events, [Event::Stopping(PmId(1))]);
        assert_eq!(resyncs, 1);
    }
}
