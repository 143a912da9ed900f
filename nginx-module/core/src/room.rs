//! What all nginx processes together hold of one upstream, and repeat there, what became of it, and whether it is paused.
//!
//! Claim, then look, as with the requests in flight: a request counts itself in the place of its process and then reads the
//! sum. So the bound holds however many come at once; two who meet at the last place may both be turned away.

use crate::hold::{Full, Queue};
use crate::pause::Pause;
use crate::retry::{Budget, Tally};
use crate::slot::MAX_NAME;
use crate::sync::{AtomicU32, AtomicU64, Ordering};
use crate::table::{PROCESSES, RowId};
use crate::text::Text;
use handoff_wire::{QueueView, RetryView};
use std::array;

#[derive(Debug)]
#[repr(C)]
pub struct Room {
    /// The newest configuration that names the upstream; 0 is a free room.
    seen: AtomicU64,
    pub pause: Pause,
    counters: [AtomicU64; Ending::ALL.len()],
    overflowed: AtomicU64,
    /// Peers that found no slot.
    without_slot: AtomicU64,
    bytes: [AtomicU64; PROCESSES],
    requests: [AtomicU32; PROCESSES],
    /// Requests that are repeated though nginx alone would not have done so.
    repeats: [AtomicU32; PROCESSES],
    pub retries: Tally,
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
            without_slot: AtomicU64::default(),
            bytes: array::from_fn(|_| AtomicU64::default()),
            requests: array::from_fn(|_| AtomicU32::default()),
            repeats: array::from_fn(|_| AtomicU32::default()),
            retries: Tally::default(),
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
        let counters = self.counters.iter().chain([&self.overflowed, &self.without_slot]);
        for counter in counters.chain(&self.bytes) {
            counter.store(0, Ordering::Relaxed);
        }
        self.requests.iter().chain(&self.repeats).for_each(|cell| cell.store(0, Ordering::Relaxed));
        self.retries.reset();
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

    /// Whether one more would find room, at a glance.
    pub fn has_room(&self, bytes: u64, queue: &Queue) -> bool {
        self.requests() < u64::from(queue.requests) && self.bytes().saturating_add(bytes) <= queue.bytes
    }

    /// Takes a place for one more repeat, if the budget has one. Whoever gets one owes a [`done`](Self::done).
    pub fn repeat(&self, row: RowId, budget: &Budget, active: u64) -> bool {
        let Some(own) = self.repeats.get(row.number()) else { return false };
        own.fetch_add(1, Ordering::AcqRel);
        let is_in = self.repeats() <= budget.allowed(active);
        if !is_in {
            self.done(row);
        }
        is_in
    }

    /// A repeat is over.
    pub fn done(&self, row: RowId) {
        if let Some(own) = self.repeats.get(row.number()) {
            own.fetch_sub(1, Ordering::AcqRel);
        }
    }

    pub fn repeats(&self) -> u64 {
        self.repeats.iter().map(|cell| u64::from(cell.load(Ordering::Acquire))).sum()
    }

    /// What a process that is gone held here.
    pub(crate) fn vacate(&self, row: RowId) {
        if let Some((requests, bytes)) = self.cells(row) {
            requests.store(0, Ordering::Release);
            bytes.store(0, Ordering::Release);
        }
        if let Some(repeats) = self.repeats.get(row.number()) {
            repeats.store(0, Ordering::Release);
        }
    }

    /// The processes that hold or repeat something here. One that died halfway may have left any without the others.
    pub(crate) fn holders(&self) -> impl Iterator<Item = RowId> {
        let cells = self.requests.iter().zip(&self.repeats).zip(&self.bytes).enumerate();
        let holds = cells.filter(|(_, ((requests, repeats), bytes))| {
            let counts = [requests, repeats].map(|cell| cell.load(Ordering::Acquire));
            counts != [0, 0] || bytes.load(Ordering::Acquire) != 0
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

    pub(crate) fn count_without_slot(&self) {
        self.without_slot.fetch_add(1, Ordering::Relaxed);
    }

    pub fn without_slot(&self) -> u64 {
        self.without_slot.load(Ordering::Relaxed)
    }

    /// With so many requests at the peers. No budget: `handoff_retry off`.
    pub fn retry_view(&self, budget: Option<Budget>, active: u64) -> RetryView {
        RetryView {
            active: self.repeats(),
            allowed: budget.map_or(0, |budget| budget.allowed(active)),
            granted: self.retries.granted(),
            refused: self.retries.refused(),
        }
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
    fn repeats_are_bounded_over_all_processes_by_what_is_active() {
        let (room, budget) = (Room::default(), Budget { percent: 20, min: 3 });
        for row in [0, 1, 2] {
            assert!(room.repeat(RowId::of(row), &budget, 0), "three in any case");
        }
        assert!(!room.repeat(RowId::of(0), &budget, 19), "a fifth of 19 is 3");
        assert!(room.repeat(RowId::of(0), &budget, 20));
        assert_eq!(room.repeats(), 4, "who found none is not counted");
        room.done(RowId::of(1));
        assert!(room.repeat(SHARED_ROW, &budget, 20));
        room.vacate(RowId::of(0));
        assert_eq!(room.repeats(), 2, "what a process repeated goes with it");
        assert_eq!(room.holders().collect::<Vec<_>>(), [RowId::of(2), SHARED_ROW]);
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
