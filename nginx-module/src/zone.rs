//! The shared zone, and THE cast: from here on the rest of the module sees a [`Table`], safe Rust over atomics.
//!
//! The zone outlives a reload as long as its size and the module that made it are the same. nginx then hands us the same
//! memory again, in the master, while old workers go on using it: nothing in it is moved or freed here.

use crate::conf::MainConf;
use crate::nginx::{global, main_conf, moment, rc};
use crate::socket;
use crate::world::alive;
use handoff_core::event::{EVENTS, Entry};
use handoff_core::room::Room;
use handoff_core::slot::Slot;
use handoff_core::table::{Header, PROCESSES, Row};
use handoff_core::{InFlight, Plan, Table};
use nginx_sys::{
    NGX_LOG_EMERG, NGX_LOG_NOTICE, NGX_LOG_WARN, ngx_cycle_t, ngx_int_t, ngx_shm_zone_t, ngx_shmtx_t,
    ngx_shmtx_trylock, ngx_shmtx_unlock, ngx_slab_calloc, ngx_slab_pool_t,
};
use ngx::ngx_log_error;
use rustix::rand::GetRandomFlags;
use std::ffi::c_void;
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::thread;
use std::time::Duration;

/// A mapped zone. The memory stays mapped for as long as any cycle that names it, and with it any request of that cycle.
#[derive(Clone, Copy)]
pub(crate) struct Zone {
    pub(crate) table: Table<'static>,
    pool: NonNull<ngx_slab_pool_t>,
}

/// The control lock, held. It is the zone's slab mutex: if its holder dies, nginx's master opens it.
pub(crate) struct Locked {
    mutex: NonNull<ngx_shmtx_t>,
    /// Released by the process that took it.
    not_send: PhantomData<*const ()>,
}

/// More peers were added than a configuration has slots for.
struct TooFewSlots {
    upstream: String,
    taken: usize,
    slots: usize,
}

/// How often a busy lock is tried before a control call gives up. Its holders need microseconds; one that is stopped
/// right inside must not stop the event loops of the others.
const ATTEMPTS: usize = 200;

/// nginx calls this for each configuration that is read. `old` is null for new memory.
pub(crate) unsafe extern "C" fn init(shm_zone: *mut ngx_shm_zone_t, old: *mut c_void) -> ngx_int_t {
    // SAFETY: nginx passes the zone that conf::complete() declared.
    let shm_zone = unsafe { &mut *shm_zone };
    // SAFETY: conf::complete() stored the main configuration there, which lives as long as its cycle.
    let conf = unsafe { &mut *shm_zone.data.cast::<MainConf>() };
    let log = shm_zone.shm.log;
    let Some(pool) = NonNull::new(shm_zone.shm.addr.cast::<ngx_slab_pool_t>()) else { return rc::ERROR };

    let plan = Plan::for_bytes(room(pool));
    let is_new = old.is_null() && shm_zone.shm.exists == 0;
    let memory =
        plan.and_then(|plan| if is_new { allocate(pool, plan) } else { found(pool) }.map(|at| (at, plan)));
    let Some((memory, plan)) = memory else {
        ngx_log_error!(NGX_LOG_EMERG, log, "handoff_zone has no room for its table: make it larger");
        return rc::ERROR;
    };
    let table = carve(memory, plan);
    if is_new {
        table.header.found(random(), moment());
    } else if !table.header.is_ours() {
        ngx_log_error!(
            NGX_LOG_EMERG,
            log,
            "handoff_zone was made by another version: restart nginx, do not reload it"
        );
        return rc::ERROR;
    }
    let zone = Zone { table, pool };
    {
        let locked = zone.lock_patiently();
        if locked.is_none() {
            ngx_log_error!(
                NGX_LOG_WARN,
                log,
                "handoff_zone is held by a process that does not go on: going on without"
            );
        }
        if let Err(TooFewSlots { upstream, taken, slots }) = conf.adopt(zone) {
            ngx_log_error!(
                NGX_LOG_EMERG,
                log,
                "upstream \"{upstream}\" has {taken} peers that were added, and \"handoff_slots\" for {slots}: remove some with \
                 \"handoff peers remove\" first, or leave room for them"
            );
            return rc::ERROR;
        }
    }
    if conf.without_slot.get() > 0 {
        ngx_log_error!(
            NGX_LOG_WARN,
            log,
            "handoff_zone is full: {} peers are served as if they had no \"handoff\"; make it larger and restart nginx",
            conf.without_slot.get()
        );
    }
    if conf.without_room.get() > 0 {
        ngx_log_error!(
            NGX_LOG_WARN,
            log,
            "handoff_zone is full: for {} upstreams nobody waits, and nothing is repeated but by nginx alone; make it larger \
             and restart nginx",
            conf.without_room.get()
        );
    }
    if is_new {
        let (instance, slots) = (table.header.instance(), table.slots.len());
        ngx_log_error!(NGX_LOG_NOTICE, log, "handoff: new instance {instance}, room for {slots} peers");
    }
    rc::OK
}

/// Nothing can fail any more: the new configuration is the running one.
pub(crate) unsafe extern "C" fn commit(cycle: *mut ngx_cycle_t) -> ngx_int_t {
    if let Some(conf) = main_conf(cycle)
        && let Some(zone) = conf.zone()
    {
        let named = {
            let _locked = zone.lock_patiently();
            zone.table.commit(conf.configuration.get(), moment())
        };
        if named > 0 {
            // SAFETY: nginx passes a cycle, which has a log.
            let log = unsafe { (*cycle).log };
            ngx_log_error!(
                NGX_LOG_NOTICE,
                log,
                "handoff: {named} peers that were added are named by the configuration now"
            );
        }
        conf.upstreams().for_each(|upstream| upstream.meet_peers(zone));
        conf.weigh(zone);
        // SAFETY: nginx passes the cycle that it has just made.
        socket::restore(&conf.sockets, unsafe { &*cycle });
    }
    rc::OK
}

/// The bytes that one allocation in a fresh pool can have.
fn room(pool: NonNull<ngx_slab_pool_t>) -> usize {
    // SAFETY: nginx initialized the pool at the beginning of the zone.
    let pool = unsafe { pool.as_ref() };
    let page = global!(ngx_pagesize);
    // One page less: whether the last one is whole depends on the alignment of the first.
    (pool.end as usize).saturating_sub(pool.start as usize).saturating_sub(page)
}

fn allocate(pool: NonNull<ngx_slab_pool_t>, plan: Plan) -> Option<NonNull<u8>> {
    // SAFETY: the pool is initialized; it answers null when it is too small.
    let memory = NonNull::new(unsafe { ngx_slab_calloc(pool.as_ptr(), plan.bytes) })?;
    // SAFETY: `data` of a zone's pool belongs to the module that declared the zone.
    unsafe { (*pool.as_ptr()).data = memory.as_ptr().cast() };
    Some(memory.cast())
}

fn found(pool: NonNull<ngx_slab_pool_t>) -> Option<NonNull<u8>> {
    // SAFETY: the pool is initialized, by an earlier cycle.
    NonNull::new(unsafe { pool.as_ref() }.data.cast())
}

/// THE cast.
fn carve(memory: NonNull<u8>, plan: Plan) -> Table<'static> {
    /// The next `len` elements of `T`.
    fn take<T>(at: &mut NonNull<u8>, len: usize) -> &'static [T] {
        let here = at.cast::<T>();
        // SAFETY: the plan has room for it; all of them are made of atomics, for which any bytes of a table are valid and
        // zero is a valid beginning; each part's size is a multiple of its alignment, so the next one is aligned too. The
        // memory stays mapped for as long as the cycle that this table is given to.
        let slice = unsafe { std::slice::from_raw_parts(here.as_ptr(), len) };
        // SAFETY: within the plan, or one past its end.
        *at = unsafe { here.add(len) }.cast();
        slice
    }
    let mut at = memory;
    // SAFETY: as in take(): the plan begins with a header.
    let header: &'static Header = unsafe { at.cast().as_ref() };
    take::<Header>(&mut at, 1);
    Table {
        header,
        slots: take::<Slot>(&mut at, plan.slots),
        rooms: take::<Room>(&mut at, plan.rooms),
        rows: take::<Row>(&mut at, PROCESSES),
        events: take::<Entry>(&mut at, EVENTS),
        in_flight: take::<InFlight>(&mut at, plan.slots.saturating_mul(PROCESSES)),
    }
}

fn random() -> u64 {
    let mut bytes = [0u8; 8];
    if rustix::rand::getrandom(&mut bytes, GetRandomFlags::empty()) == Ok(bytes.len()) {
        return u64::from_ne_bytes(bytes);
    }
    // Only to tell one instance from the next: the clock and the pid do too.
    moment().unix ^ (u64::from(std::process::id()) << 40)
}

// === impl Zone ===

impl Zone {
    /// For the request and control path of a worker: a few tries, never a wait.
    pub(crate) fn lock(&self) -> Option<Locked> {
        let mutex = self.mutex();
        for attempt in 0..ATTEMPTS {
            // SAFETY: the mutex of an initialized pool.
            if unsafe { ngx_shmtx_trylock(mutex.as_ptr()) } != 0 {
                return Some(Locked { mutex, not_send: PhantomData });
            }
            if attempt % 8 == 7 {
                thread::yield_now();
            } else {
                std::hint::spin_loop();
            }
        }
        None
    }

    /// For the master and for a worker that begins: no request waits for them, so they may wait a second. Not longer: the
    /// holder may have been stopped, and what they do then, alone of their kind, harms no reader.
    pub(crate) fn lock_patiently(&self) -> Option<Locked> {
        let patience = (0..1000).map(|_| thread::sleep(Duration::from_millis(1)));
        self.lock().or_else(|| patience.into_iter().find_map(|()| self.lock()))
    }

    fn mutex(&self) -> NonNull<ngx_shmtx_t> {
        // SAFETY: a field of the pool, at the same address in every process.
        let mutex = unsafe { &raw mut (*self.pool.as_ptr()).mutex };
        // SAFETY: a field of what is not null.
        unsafe { NonNull::new_unchecked(mutex) }
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        // SAFETY: this process took it.
        unsafe { ngx_shmtx_unlock(self.mutex.as_ptr()) };
    }
}

impl MainConf {
    /// Finds or makes the slots of this configuration's peers.
    fn adopt(&mut self, zone: Zone) -> Result<(), TooFewSlots> {
        let configuration = zone.table.header.next_configuration();
        self.configuration.set(configuration);
        let mut without_slot = 0u32;
        for upstream in self.upstreams() {
            upstream.addresses.fill(|name| {
                let slot = zone.table.register(&upstream.name, name, configuration, alive);
                without_slot = without_slot.saturating_add(u32::from(slot.is_none()));
                slot
            });
        }
        for upstream in self.upstreams() {
            let named = upstream.addresses.slots();
            let count = upstream.seats.count;
            let reserved = zone.table.reserve(&upstream.name, count, configuration, alive);
            let slots = reserved.map_err(|taken| TooFewSlots {
                upstream: upstream.name.clone(),
                taken,
                slots: count,
            })?;
            let missing = count.saturating_sub(slots.len());
            without_slot = without_slot.saturating_add(u32::try_from(missing).unwrap_or(u32::MAX));
            upstream.seats.reserve(slots, named);
            upstream.addresses.seat(&upstream.seats);
        }
        self.without_slot.set(without_slot);
        let room = |name| zone.table.room(zone.table.open_room(name, configuration, alive)?);
        self.without_room
            .set(self.upstreams().filter(|upstream| !upstream.hold.set_room(room(&upstream.name))).count());
        self.set_zone(zone);
        Ok(())
    }
}
