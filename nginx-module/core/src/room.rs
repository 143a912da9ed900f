//! What all nginx processes together hold of one upstream, what became of it, and whether it is paused.
//!
//! Claim, then look, as with the requests in flight: a request counts itself in the place of its process and then reads the
//! sum. So the bound holds however many come at once; two who meet at the last place may both be turned away.

use crate::hold::{Full, Queue};
use crate::pause::Pause;
use crate::slot::MAX_NAME;
use crate::sync::{AtomicU32, AtomicU64, Ordering};
use crate::table::{PROCESSES, RowId};
use crate::text::Text;
use handoff_wire::QueueView;
use std::array;

#[derive(Debug)]
#[repr(C)]
pub struct Room {
    /// The newest configuration that names the upstream; 0 is a free room.
    seen: AtomicU64,
    pub pause: Pause,
    counters: [AtomicU64; Ending::ALL.len()],
    overflowed: AtomicU64,
    bytes: [AtomicU64; PROCESSES],
    requests: [AtomicU32; PROCESSES],
    upstream: Text<MAX_NAME>,
}

/// How a request's waiting ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It was given to a peer.
    Resumed,
    /// Nobody was expected any more: it went as nginx alone would have sent it.
    Released,
    TimedOut,
    /// Its client was gone.
    Left,
}

impl Default for Room {
    fn default() -> Self {
        Self {
            seen: AtomicU64::default(),
            pause: Pause::default(),
            counters: array::from_fn(|_| AtomicU64::default()),
            overflowed: AtomicU64::default(),
            bytes: array::from_fn(|_| AtomicU64::default()),
            requests: array::from_fn(|_| AtomicU32::default()),
            upstream: Text::default(),
        }
    }
}

// === impl Ending ===

impl Ending {
    pub const ALL: [Self; 4] = [Self::Resumed, Self::Released, Self::TimedOut, Self::Left];
}

// === impl Room ===

impl Room {
    pub fn is(&self, upstream: &str) -> bool {
        self.seen() != 0 && self.upstream.is(upstream)
    }

    pub fn upstream(&self) -> String {
        self.upstream.get()
    }

    pub fn seen(&self) -> u64 {
        self.seen.load(Ordering::Acquire)
    }

    pub(crate) fn see(&self, configuration: u64) {
        self.seen.store(configuration, Ordering::Release);
    }

    /// Gives the room to an upstream that has none. `seen` is written last, as in a slot.
    pub(crate) fn take(&self, upstream: &str, configuration: u64) {
        self.see(0);
        self.pause.end();
        for counter in self.counters.iter().chain([&self.overflowed]).chain(&self.bytes) {
            counter.store(0, Ordering::Relaxed);
        }
        self.requests.iter().for_each(|cell| cell.store(0, Ordering::Relaxed));
        self.upstream.set(upstream);
        self.see(configuration);
    }

    /// Takes one more in, if it fits.
    pub fn enter(&self, row: RowId, bytes: u64, queue: &Queue) -> Result<(), Full> {
        let Some((own_requests, own_bytes)) = self.cells(row) else { return Err(Full::Requests) };
        own_requests.fetch_add(1, Ordering::AcqRel);
        own_bytes.fetch_add(bytes, Ordering::AcqRel);
        let full = if self.requests() > u64::from(queue.requests) {
            Full::Requests
        } else if self.bytes() > queue.bytes {
            Full::Bytes
        } else {
            return Ok(());
        };
        self.leave(row, bytes);
        Err(full)
    }

    pub fn leave(&self, row: RowId, bytes: u64) {
        if let Some((own_requests, own_bytes)) = self.cells(row) {
            own_requests.fetch_sub(1, Ordering::AcqRel);
            own_bytes.fetch_sub(bytes, Ordering::AcqRel);
        }
    }

    /// What a process that is gone held here.
    pub(crate) fn vacate(&self, row: RowId) {
        if let Some((requests, bytes)) = self.cells(row) {
            requests.store(0, Ordering::Release);
            bytes.store(0, Ordering::Release);
        }
    }

    /// The processes that hold something here. One that died halfway may have left either without the other.
    pub(crate) fn holders(&self) -> impl Iterator<Item = RowId> {
        let cells = self.requests.iter().zip(&self.bytes).enumerate();
        let holds = cells.filter(|(_, (requests, bytes))| {
            requests.load(Ordering::Acquire) != 0 || bytes.load(Ordering::Acquire) != 0
        });
        holds.map(|(row, _)| RowId::of(row))
    }

    fn cells(&self, row: RowId) -> Option<(&AtomicU32, &AtomicU64)> {
        Some((self.requests.get(row.number())?, self.bytes.get(row.number())?))
    }

    pub fn requests(&self) -> u64 {
        self.requests.iter().map(|cell| u64::from(cell.load(Ordering::Acquire))).sum()
    }

    pub fn bytes(&self) -> u64 {
        self.bytes.iter().map(|cell| cell.load(Ordering::Acquire)).sum()
    }

    pub fn count(&self, ending: Ending) {
        if let Some(counter) = self.counters.get(ending as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub fn count_overflow(&self) {
        self.overflowed.fetch_add(1, Ordering::Relaxed);
    }

    pub fn view(&self, queue: &Queue) -> QueueView {
        let [resumed, released, timed_out, left] =
            self.counters.each_ref().map(|counter| counter.load(Ordering::Relaxed));
        QueueView {
            held: self.requests(),
            held_max: u64::from(queue.requests),
            bytes: self.bytes(),
            bytes_max: queue.bytes,
            timeout: handoff_wire::Span::from_millis(queue.timeout),
            resumed,
            released,
            timed_out,
            left,
            overflowed: self.overflowed.load(Ordering::Relaxed),
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::table::SHARED_ROW;

    const QUEUE: Queue = Queue { requests: 3, bytes: 100, timeout: 1000 };

    #[test]
    fn there_is_room_for_so_many_and_no_more() {
        let room = Room::default();
        for row in [0, 1, 0] {
            assert_eq!(room.enter(RowId::of(row), 1, &QUEUE), Ok(()));
        }
        assert_eq!(room.enter(RowId::of(2), 1, &QUEUE), Err(Full::Requests));
        assert_eq!((room.requests(), room.bytes()), (3, 3), "who was turned away is not counted");
        room.leave(RowId::of(0), 1);
        assert_eq!(room.enter(SHARED_ROW, 1, &QUEUE), Ok(()));
    }

    #[test]
    fn there_is_room_for_so_many_bytes_and_no_more() {
        let room = Room::default();
        assert_eq!(room.enter(RowId::of(0), 60, &QUEUE), Ok(()));
        assert_eq!(room.enter(RowId::of(1), 41, &QUEUE), Err(Full::Bytes));
        assert_eq!(room.enter(RowId::of(1), 40, &QUEUE), Ok(()));
        assert_eq!(room.enter(RowId::of(1), 1, &QUEUE), Err(Full::Bytes));
        room.leave(RowId::of(0), 60);
        assert_eq!((room.requests(), room.bytes()), (1, 40));
    }

    #[test]
    fn what_a_process_held_goes_with_it() {
        let room = Room::default();
        room.enter(RowId::of(0), 10, &QUEUE).unwrap();
        room.enter(RowId::of(1), 20, &QUEUE).unwrap();
        room.vacate(RowId::of(0));
        assert_eq!((room.requests(), room.bytes()), (1, 20));
    }

    #[test]
    fn every_ending_has_a_counter_of_its_own() {
        let room = Room::default();
        for (times, ending) in (1..).zip(Ending::ALL) {
            (0..times).for_each(|_| room.count(ending));
        }
        room.count_overflow();
        let view = room.view(&QUEUE);
        assert_eq!((view.resumed, view.released, view.timed_out, view.left), (1, 2, 3, 4));
        assert_eq!(view.overflowed, 1);
    }
}
