//! The zone: a header, the peers, one row per nginx process, and the recent events.
//!
//! Order of events: the master makes the table when the zone is new, and [registers](Table::register) the peers of a
//! configuration each time it reads one; it [commits](Header::commit) the configuration once nothing can fail any more.
//! Each worker then [joins](Table::join) with a row of its own and counts there, alone. Nothing is freed when a
//! configuration goes: the reload may yet fail, and old workers go on for as long as their requests do. A slot is given to
//! another peer only when no living process can know it any more. Those that are [reserved](Table::reserve) for peers that come
//! at run time change hands while processes know them, by the rules of [`tenancy`](crate::tenancy).

use crate::admission::{self, Admission, InFlight};
use crate::control::Moment;
use crate::event::{EVENTS, Entry, KINDS};
use crate::orphan::Orphans;
use crate::room::Room;
use crate::slot::Slot;
use crate::sync::{AtomicU32, AtomicU64, Ordering};
use crate::tenancy::Tenure;
use handoff_wire::{Event, EventCounts, Events};

/// How many nginx processes can have a row: the workers of a running nginx and of those still finishing after reloads.
/// Whoever finds none shares the last row, which is never dropped.
pub const PROCESSES: usize = 128;

pub const SHARED_ROW: RowId = RowId(PROCESSES - 1);

/// Bumped whenever the layout changes, so that a module never reads another's table.
const LAYOUT: u64 = 12;

#[derive(Debug, Default)]
#[repr(C)]
pub struct Header {
    layout: AtomicU64,
    instance: AtomicU64,
    /// When the instance began, in milliseconds since 1970.
    started: AtomicU64,
    generation: AtomicU64,
    epochs: AtomicU64,
    events: AtomicU64,
    /// How many there were of each kind.
    told: [AtomicU64; KINDS.len()],
    configurations: AtomicU64,
    committed: AtomicU64,
    loads: AtomicU64,
    loaded_at: AtomicU64,
    deaths: AtomicU64,
    readied: AtomicU64,
    /// How often a gate turned, a pause began or was ended, or `readied` was written. Counted afterwards.
    changes: AtomicU64,
    swept_at: AtomicU64,
    dirty: AtomicU32,
    used: AtomicU32,
    rooms: AtomicU32,
    pub orphans: Orphans,
}

/// One nginx process.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Row {
    pid: AtomicU32,
    start: AtomicU64,
    configuration: AtomicU64,
}

/// A process is its pid *and* its start time: pids come again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Process {
    pub pid: u32,
    /// As the kernel tells it, in any unit.
    pub start: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SlotId(u32);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowId(usize);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoomId(u32);

/// A peer's slot, and where one process counts what it has there: all that the request path needs of the table.
#[derive(Clone, Copy, Debug)]
pub struct Turnstile<'a> {
    pub id: SlotId,
    pub slot: &'a Slot,
    in_flight: &'a InFlight,
}

/// Where everything is. Cheap to copy; the shell casts it from the zone once per process.
#[derive(Clone, Copy, Debug)]
pub struct Table<'a> {
    pub header: &'a Header,
    pub slots: &'a [Slot],
    pub rooms: &'a [Room],
    pub rows: &'a [Row],
    /// `rows.len()` × `slots.len()`, a row after the other: a process writes to its own cache lines.
    pub in_flight: &'a [InFlight],
    pub events: &'a [Entry],
}

/// How the memory of a zone is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    pub slots: usize,
    pub rooms: usize,
    pub bytes: usize,
}

// === impl Plan ===

impl Plan {
    const FIXED: usize = size_of::<Header>() + PROCESSES * size_of::<Row>() + EVENTS * size_of::<Entry>();
    const PER_SLOT: usize = size_of::<Slot>() + PROCESSES * size_of::<InFlight>();
    /// So many peers are thought to share an upstream, and a room.
    const SLOTS_A_ROOM: usize = 8;

    /// As many peers as fit into `bytes`, and rooms for their upstreams; `None` if not even one does.
    pub fn for_bytes(bytes: usize) -> Option<Self> {
        // The words of the ledger are smaller than the alignment of what may follow: leave it last, and room for it.
        let share = Self::PER_SLOT + size_of::<Room>().div_ceil(Self::SLOTS_A_ROOM);
        let slots = bytes.checked_sub(Self::FIXED + size_of::<Room>())?.checked_div(share)?;
        let slots = u32::try_from(slots).map_or(u32::MAX as usize, |_| slots);
        let rooms = slots / Self::SLOTS_A_ROOM + 1;
        let bytes = Self::FIXED + slots * Self::PER_SLOT + rooms * size_of::<Room>();
        (slots > 0).then_some(Self { slots, rooms, bytes })
    }
}

// === impl Header ===

impl Header {
    /// Whether this is a table of this module's layout.
    pub fn is_ours(&self) -> bool {
        self.layout.load(Ordering::Acquire) == LAYOUT
    }

    /// Makes a zeroed zone a table. Epochs begin where no earlier instance can have come: a client that was frozen since then
    /// must not match one by chance. They stay below 2^53, which every reader of JSON can hold.
    pub fn found(&self, instance: u64, now: Moment) {
        self.instance.store(instance, Ordering::Relaxed);
        self.epochs.store((now.unix / 1000) << 20, Ordering::Relaxed);
        self.started.store(now.unix, Ordering::Relaxed);
        self.layout.store(LAYOUT, Ordering::Release);
    }

    pub fn instance(&self) -> String {
        format!("{:016x}", self.instance.load(Ordering::Relaxed))
    }

    pub fn started(&self) -> u64 {
        self.started.load(Ordering::Relaxed)
    }

    /// How many events there were.
    pub fn told(&self) -> EventCounts {
        let [mark, ready, lapse, pause, resume, add, remove] =
            self.told.each_ref().map(|counter| counter.load(Ordering::Relaxed));
        EventCounts { mark, ready, lapse, pause, resume, add, remove }
    }

    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    pub(crate) fn bump(&self) -> u64 {
        self.generation.fetch_add(1, Ordering::AcqRel).wrapping_add(1)
    }

    pub(crate) fn next_epoch(&self) -> u64 {
        self.epochs.fetch_add(1, Ordering::AcqRel).wrapping_add(1)
    }

    /// The last change that every process is to look at: it brought a peer back from a planned replacement, and nginx's passive
    /// failures are to be cleared; or a peer was added or removed, and nginx's lists are to follow.
    pub fn readied(&self) -> u64 {
        self.readied.load(Ordering::Acquire)
    }

    pub(crate) fn ready(&self, change: u64) {
        self.readied.store(change, Ordering::Release);
        self.changed();
    }

    /// A number that is another one whenever a gate, a pause or [`readied`](Self::readied) is. The request path compares it with what it
    /// saw last: whoever reads it before the gates knows of none less than it says.
    #[inline]
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    pub(crate) fn changed(&self) {
        self.changes.fetch_add(1, Ordering::AcqRel);
    }

    /// A number for a configuration that is being read.
    pub fn next_configuration(&self) -> u64 {
        self.configurations.fetch_add(1, Ordering::AcqRel).wrapping_add(1)
    }

    /// The configuration is the running one now.
    pub fn commit(&self, configuration: u64, now: Moment) {
        self.loads.fetch_add(1, Ordering::Relaxed);
        self.loaded_at.store(now.unix, Ordering::Relaxed);
        self.committed.store(configuration, Ordering::Release);
        self.bump();
        self.changed();
    }

    /// How many configurations were the running one since the instance began, this one included.
    pub fn loads(&self) -> u64 {
        self.loads.load(Ordering::Relaxed)
    }

    /// Since when this one is, in milliseconds since 1970.
    pub fn loaded_at(&self) -> u64 {
        self.loaded_at.load(Ordering::Relaxed)
    }

    /// How many processes ended without leaving their row.
    pub fn deaths(&self) -> u64 {
        self.deaths.load(Ordering::Relaxed)
    }

    /// Whether this is the running configuration, and not one that old workers still finish.
    pub fn is_running(&self, configuration: u64) -> bool {
        self.committed.load(Ordering::Acquire) == configuration
    }

    /// Whether a sweep is due; answers yes to one process in each interval.
    pub fn due(&self, now: u64, interval: u64) -> bool {
        let last = self.swept_at.load(Ordering::Relaxed);
        // The clock of another process may be a moment ahead.
        now.saturating_sub(last) >= interval
            && self.swept_at.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Says that marks are being changed; true if the last writer died before it was done.
    pub(crate) fn begin(&self) -> bool {
        self.dirty.swap(1, Ordering::AcqRel) != 0
    }

    pub(crate) fn end(&self) {
        self.dirty.store(0, Ordering::Release);
    }
}

// === impl SlotId ===

impl SlotId {
    pub(crate) fn of(number: u32) -> Self {
        Self(number)
    }

    pub(crate) fn number(self) -> u32 {
        self.0
    }
}

// === impl Turnstile ===

impl Turnstile<'_> {
    /// Asks to begin a request on the peer. Whoever is admitted owes one [`release`](Self::release).
    #[inline]
    pub fn claim(&self, is_paused: impl FnOnce() -> bool, is_fit: impl FnOnce() -> bool) -> Admission {
        admission::claim(&self.slot.gate, self.in_flight, is_paused, is_fit)
    }

    #[inline]
    pub fn release(&self) {
        self.in_flight.release();
    }
}

// === impl RowId ===

impl RowId {
    pub(crate) fn of(number: usize) -> Self {
        Self(number)
    }

    pub(crate) fn number(self) -> usize {
        self.0
    }
}

// === impl Row ===

impl Row {
    pub fn process(&self) -> Option<Process> {
        let pid = self.pid.load(Ordering::Acquire);
        (pid != 0).then(|| Process { pid, start: self.start.load(Ordering::Acquire) })
    }

    fn configuration(&self) -> u64 {
        self.configuration.load(Ordering::Relaxed)
    }

    /// Of the shared row: the oldest configuration of all who ever shared it.
    fn shared(&self) -> Option<u64> {
        Some(self.configuration()).filter(|&configuration| configuration != 0)
    }

    fn is_alive(&self, alive: impl Fn(Process) -> bool) -> bool {
        self.process().is_some_and(alive)
    }
}

// === impl Table ===

impl<'a> Table<'a> {
    /// Finds or makes the slot of a peer that a new configuration names. `None`: the zone is full.
    pub fn register(
        &self,
        upstream: &str,
        address: &str,
        configuration: u64,
        alive: impl Fn(Process) -> bool,
    ) -> Option<SlotId> {
        if let Some(id) = self.find(upstream, address) {
            let slot = self.slot(id)?;
            slot.see(configuration);
            slot.tenancy.name(configuration);
            return Some(id);
        }
        let id = self.free_slot(alive)?;
        self.slot(id)?.take(upstream, address, configuration);
        Some(id)
    }

    /// So many slots for peers that come at run time; those that a peer has come first. Fewer: the zone is full. Refused: so many
    /// peers are there, besides those that the configuration names itself.
    pub fn reserve(
        &self,
        upstream: &str,
        count: usize,
        configuration: u64,
        alive: impl Fn(Process) -> bool,
    ) -> Result<Vec<SlotId>, usize> {
        let tenure = |id: SlotId| self.slot(id).map(|slot| slot.tenancy.tenure());
        let is_its = |slot: &Slot| {
            slot.is_of(upstream)
                && slot.tenancy.tenure() != Tenure::Configured
                && slot.tenancy.named() != configuration
        };
        let ids = || self.ids().filter(|&id| self.slot(id).is_some_and(is_its));
        let (taken, others): (Vec<_>, Vec<_>) = ids().partition(|&id| tenure(id) == Some(Tenure::Taken));
        if taken.len() > count {
            return Err(taken.len());
        }
        let mut reserved = taken;
        reserved.extend(others);
        reserved.truncate(count);
        for slot in reserved.iter().filter_map(|&id| self.slot(id)) {
            slot.see(configuration);
        }
        while reserved.len() < count {
            let Some(id) = self.free_slot(&alive) else { break };
            let Some(slot) = self.slot(id) else { break };
            slot.reserve(upstream, configuration);
            reserved.push(id);
        }
        Ok(reserved)
    }

    /// A slot that nobody can know. `None`: the zone is full.
    fn free_slot(&self, alive: impl Fn(Process) -> bool) -> Option<SlotId> {
        let used = self.used();
        if (used as usize) < self.slots.len() {
            self.header.used.store(used.wrapping_add(1), Ordering::Release);
            return Some(SlotId(used));
        }
        let oldest = self.oldest_configuration(alive);
        self.ids().find(|&id| self.slot(id).is_some_and(|slot| slot.seen() < oldest))
    }

    /// The configuration is the running one now. Peers that were added before, and that it names, are as any other that it names;
    /// how many they are. Alone in the control lock.
    pub fn commit(&self, configuration: u64, now: Moment) -> usize {
        let slots = self.ids().filter_map(|id| self.slot(id));
        let named = slots.filter(|slot| slot.tenancy.is_dynamic() && slot.tenancy.named() == configuration);
        let named = named.map(|slot| {
            slot.tenancy.configure();
            slot.gate.set(slot.effective());
        });
        let named = named.count();
        self.header.commit(configuration, now);
        named
    }

    /// Finds or makes the room of an upstream that a new configuration names. `None`: the zone is full.
    pub fn open_room(
        &self,
        upstream: &str,
        configuration: u64,
        alive: impl Fn(Process) -> bool,
    ) -> Option<RoomId> {
        let used = self.header.rooms.load(Ordering::Acquire);
        let ids = || (0..used).map(RoomId);
        if let Some(id) = ids().find(|&id| self.room(id).is_some_and(|room| room.is(upstream))) {
            self.room(id)?.see(configuration);
            return Some(id);
        }
        let id = if (used as usize) < self.rooms.len() {
            self.header.rooms.store(used.wrapping_add(1), Ordering::Release);
            RoomId(used)
        } else {
            let oldest = self.oldest_configuration(alive);
            ids().find(|&id| self.room(id).is_some_and(|room| room.seen() < oldest))?
        };
        self.room(id)?.take(upstream, configuration);
        Some(id)
    }

    #[inline]
    pub fn room(&self, id: RoomId) -> Option<&'a Room> {
        self.rooms.get(id.0 as usize)
    }

    pub fn room_of(&self, upstream: &str) -> Option<&'a Room> {
        self.used_rooms().find(|room| room.is(upstream))
    }

    /// What processes that died without a word kept waiting waits no more. Alone in the control lock.
    pub(crate) fn vacate_dead(&self, living: &[RowId]) {
        for room in self.used_rooms() {
            room.holders().filter(|row| !living.contains(row)).for_each(|row| room.vacate(row));
        }
    }

    fn vacate(&self, row: RowId) {
        self.used_rooms().for_each(|room| room.vacate(row));
    }

    pub(crate) fn used_rooms(&self) -> impl Iterator<Item = &'a Room> {
        self.rooms.iter().take(self.header.rooms.load(Ordering::Acquire) as usize)
    }

    pub fn find(&self, upstream: &str, address: &str) -> Option<SlotId> {
        self.ids().find(|&id| self.slot(id).is_some_and(|slot| slot.is(upstream, address)))
    }

    pub fn ids(&self) -> impl Iterator<Item = SlotId> + 'a {
        (0..self.used()).map(SlotId)
    }

    fn used(&self) -> u32 {
        self.header.used.load(Ordering::Acquire)
    }

    #[inline]
    pub fn slot(&self, id: SlotId) -> Option<&'a Slot> {
        self.slots.get(id.0 as usize)
    }

    /// Gives a process its row. Alone in the control lock.
    pub fn join(&self, process: Process, configuration: u64, alive: impl Fn(Process) -> bool) -> RowId {
        let rows = || self.rows.iter().take(SHARED_ROW.0);
        for row in rows().filter(|row| row.process().is_some() && !row.is_alive(&alive)) {
            // Nobody counts a row whose pid is 0.
            row.pid.store(0, Ordering::Release);
            self.header.deaths.fetch_add(1, Ordering::Relaxed);
        }
        let own = rows().position(|row| row.process().is_none());
        let Some((id, row)) = own.and_then(|id| Some((RowId(id), self.rows.get(id)?))) else {
            self.share(configuration);
            return SHARED_ROW;
        };
        // What its dead owner had in flight went with it.
        self.ledger(id).iter().for_each(InFlight::reset);
        self.vacate(id);
        row.start.store(process.start, Ordering::Relaxed);
        row.configuration.store(configuration, Ordering::Relaxed);
        row.pid.store(process.pid, Ordering::Release);
        id
    }

    /// Nobody can tell when the last process without a row of its own is gone: what they know is never forgotten.
    fn share(&self, configuration: u64) {
        if let Some(row) = self.rows.get(SHARED_ROW.0) {
            let oldest = row.shared().map_or(configuration, |shared| shared.min(configuration));
            row.configuration.store(oldest, Ordering::Relaxed);
        }
    }

    /// The process ends, and what it had in flight or kept waiting ends with it.
    pub fn leave(&self, id: RowId) {
        if id != SHARED_ROW
            && let Some(row) = self.rows.get(id.0)
        {
            row.pid.store(0, Ordering::Release);
            self.vacate(id);
        }
    }

    fn ledger(&self, id: RowId) -> &'a [InFlight] {
        let width = self.slots.len();
        let begin = id.0.saturating_mul(width);
        self.in_flight.get(begin..begin.saturating_add(width)).unwrap_or_default()
    }

    fn cell(&self, row: RowId, slot: SlotId) -> Option<&'a InFlight> {
        self.in_flight.get(row.0.saturating_mul(self.slots.len()).saturating_add(slot.0 as usize))
    }

    /// Where the requests of one process begin and end with a peer. Ids come from this table, so there is one.
    pub fn turnstile(&self, row: RowId, id: SlotId) -> Option<Turnstile<'a>> {
        Some(Turnstile { id, slot: self.slot(id)?, in_flight: self.cell(row, id)? })
    }

    /// Rows that count: living processes, and the one that processes without a row share.
    pub fn living(&self, alive: impl Fn(Process) -> bool) -> Vec<RowId> {
        let own = self.rows.iter().take(SHARED_ROW.0).enumerate();
        own.filter(|(_, row)| row.is_alive(&alive)).map(|(id, _)| RowId(id)).chain([SHARED_ROW]).collect()
    }

    /// Requests in flight on a peer, so that every later claim sees the gate as it is now.
    pub fn settle(&self, id: SlotId, living: &[RowId]) -> u64 {
        living.iter().filter_map(|&row| self.cell(row, id)).map(|cell| u64::from(cell.settle())).sum()
    }

    /// Requests in flight on all peers of an upstream, those that the configuration names no longer included; so that every later
    /// claim sees what was written before.
    pub fn settle_all(&self, upstream: &str, living: &[RowId]) -> u64 {
        let is_its = |id: &SlotId| self.slot(*id).is_some_and(|slot| slot.is_of(upstream));
        self.ids().filter(is_its).map(|id| self.settle(id, living)).sum()
    }

    /// Requests in flight in one process.
    pub fn row_in_flight(&self, id: RowId) -> u64 {
        let used = self.used() as usize;
        self.ledger(id).iter().take(used).map(|cell| u64::from(cell.get())).sum()
    }

    /// Requests in flight on these peers, at a glance.
    pub fn active(&self, slots: impl Iterator<Item = SlotId> + Clone) -> u64 {
        let is_used = |&(id, row): &(usize, &Row)| id == SHARED_ROW.0 || row.process().is_some();
        let rows = self.rows.iter().enumerate().filter(is_used).map(|(id, _)| RowId(id));
        let cells = rows.flat_map(|row| slots.clone().filter_map(move |slot| self.cell(row, slot)));
        cells.map(|cell| u64::from(cell.get())).sum()
    }

    pub fn row_process(&self, id: RowId) -> Option<Process> {
        self.rows.get(id.0)?.process()
    }

    /// The oldest configuration that any living process may still serve.
    pub fn oldest_configuration(&self, alive: impl Fn(Process) -> bool) -> u64 {
        let own = self.rows.iter().filter(|row| row.is_alive(&alive)).map(Row::configuration);
        let shared = self.rows.get(SHARED_ROW.0).and_then(Row::shared);
        let committed = self.header.committed.load(Ordering::Acquire);
        own.chain(shared).fold(committed, u64::min)
    }

    pub(crate) fn remember(&self, mut event: Event) -> Event {
        event.seq = self.header.events.fetch_add(1, Ordering::AcqRel).wrapping_add(1);
        let kind = KINDS.iter().position(|&kind| kind == event.kind);
        if let Some(counter) = kind.and_then(|kind| self.header.told.get(kind)) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
        let place = usize::try_from(event.seq).unwrap_or_default().checked_rem(self.events.len());
        if let Some(entry) = place.and_then(|place| self.events.get(place)) {
            entry.write(&event);
        }
        event
    }

    /// What happened after the event `after`, as far as it is remembered.
    pub fn recall(&self, after: u64) -> Events {
        let mut events: Vec<Event> =
            self.events.iter().filter_map(Entry::read).filter(|event| event.seq > after).collect();
        events.sort_unstable_by_key(|event| event.seq);
        let next = events.last().map_or(after, |event| event.seq);
        Events { instance: self.header.instance(), events, next }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_layout_that_changed_has_a_number_of_its_own() {
        let sizes =
            [size_of::<Header>(), size_of::<Slot>(), size_of::<Room>(), size_of::<Row>(), size_of::<Entry>()];
        assert_eq!((LAYOUT, sizes), (12, [704, 2704, 2584, 24, 504]), "bump LAYOUT, then change this");
    }

    #[test]
    fn the_table_of_another_layout_is_not_ours() {
        let header = Header::default();
        assert!(!header.is_ours(), "a zone that nobody made a table");
        header.found(1, Moment { mono: 0, unix: 0 });
        assert!(header.is_ours());
        header.layout.store(LAYOUT - 1, Ordering::Relaxed);
        assert!(!header.is_ours());
    }
}
