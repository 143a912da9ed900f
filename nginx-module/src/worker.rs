//! The life of one nginx worker, seen from the zone: it takes a row, watches over leases, and leaves.

use crate::conf::MainConf;
use crate::hold;
use crate::log;
use crate::nginx::{global, main_conf, moment, rc};
use crate::orphan;
use crate::reuse;
use crate::world;
use crate::zone::Zone;
use handoff_core::control::Control;
use handoff_core::outage;
use handoff_core::table::{RowId, SHARED_ROW};
use nginx_sys::{
    NGX_LOG_WARN, NGX_PROCESS_SINGLE, NGX_PROCESS_WORKER, ngx_add_timer, ngx_connection_t, ngx_cycle_t,
    ngx_event_t, ngx_int_t, ngx_log_t, ngx_msec_t,
};
use ngx::ngx_log_error;
use std::mem;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

/// How often leases are looked at. A lease is at least a second.
const TICK_MS: ngx_msec_t = 250;

/// The cycle that this process serves: its configuration for the timer, which outlives cycles where nginx runs without a
/// master.
static CURRENT: AtomicPtr<MainConf> = AtomicPtr::new(ptr::null_mut());
static TIMER: AtomicPtr<Timer> = AtomicPtr::new(ptr::null_mut());

struct Timer {
    event: ngx_event_t,
    /// nginx's debug log asks every event for the descriptor of its connection.
    connection: ngx_connection_t,
}

/// nginx calls this in each new process.
pub(crate) unsafe extern "C" fn begin(cycle: *mut ngx_cycle_t) -> ngx_int_t {
    let process = global!(ngx_process);
    if process != NGX_PROCESS_WORKER as usize && process != NGX_PROCESS_SINGLE as usize {
        return rc::OK;
    }
    let Some(conf) = main_conf(cycle) else { return rc::OK };
    let Some(zone) = conf.zone() else { return rc::OK };
    // SAFETY: nginx passes the cycle of this process, which has a log.
    let cycle_log = unsafe { (*cycle).log };
    orphan::begin(zone);
    let row = join(conf, zone, cycle_log);
    conf.row.set(Some(row));
    for upstream in conf.upstreams() {
        upstream.join(*zone, conf.configuration.get(), row);
    }
    reuse::begin(cycle);
    hold::begin(cycle_log);
    CURRENT.store(ptr::from_ref(conf).cast_mut(), Ordering::Relaxed);
    start_timer(cycle_log);
    rc::OK
}

/// nginx calls this before a process ends; what it still had in flight ends with it.
pub(crate) unsafe extern "C" fn end(cycle: *mut ngx_cycle_t) {
    if let Some(conf) = main_conf(cycle)
        && let Some(zone) = conf.zone()
        && let Some(row) = conf.row.take()
    {
        // SAFETY: nginx passes the cycle of this process, which has a log.
        hold::tell(conf, unsafe { (*cycle).log }, true);
        zone.table.leave(row);
    }
}

/// The configuration that this process serves.
pub(crate) fn current() -> Option<&'static MainConf> {
    // SAFETY: null, or the configuration of the cycle that this process serves.
    unsafe { CURRENT.load(Ordering::Relaxed).as_ref() }
}

fn join(conf: &MainConf, zone: &Zone, log: *mut ngx_log_t) -> RowId {
    if let Some(_locked) = zone.lock_patiently() {
        return zone.table.join(world::own(), conf.configuration.get(), world::alive);
    }
    ngx_log_error!(
        NGX_LOG_WARN,
        log,
        "handoff_zone is locked: this worker counts its requests in the shared row"
    );
    SHARED_ROW
}

fn start_timer(log: *mut ngx_log_t) {
    let mut timer = TIMER.load(Ordering::Relaxed);
    if timer.is_null() {
        // SAFETY: all of their fields may be zero; nginx makes its own with ngx_pcalloc.
        let zeroed: Timer = unsafe { mem::zeroed() };
        timer = Box::into_raw(Box::new(zeroed));
        TIMER.store(timer, Ordering::Relaxed);
    }
    // SAFETY: made above, once, and never freed.
    let timer = unsafe { &mut *timer };
    timer.connection.fd = -1;
    timer.event.data = (&raw mut timer.connection).cast();
    timer.event.handler = Some(tick);
    timer.event.log = log;
    // A worker that has nothing else to do may go.
    timer.event.set_cancelable(1);
    if timer.event.timer_set() == 0 {
        // SAFETY: the event lives for ever.
        unsafe { ngx_add_timer(&raw mut timer.event, TICK_MS) };
    }
}

unsafe extern "C" fn tick(event: *mut ngx_event_t) {
    if let Some(conf) = current() {
        // SAFETY: nginx passes our event, whose log is its cycle's.
        watch(conf, unsafe { (*event).log });
    }
    // SAFETY: nginx passes our event, which lives for ever.
    unsafe { ngx_add_timer(event, TICK_MS) };
}

fn watch(conf: &MainConf, log: *mut ngx_log_t) {
    let Some(zone) = conf.zone() else { return };
    for upstream in conf.upstreams() {
        upstream.refresh(zone);
    }
    hold::tell(conf, log, false);
    orphan::leave_those_that_are_new(conf, zone);
    let now = moment();
    if zone.table.header.due(now.mono, TICK_MS as u64)
        && let Some(_locked) = zone.lock()
    {
        log::tell(log, &Control::begin(zone.table, conf, now).sweep());
        if zone.table.header.is_running(conf.configuration.get()) {
            outage::watch(&zone.table, conf, now);
        }
    }
    conf.weigh(zone);
}
