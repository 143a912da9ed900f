//! Requests that wait for a peer.
//!
//! The order of events: the balancer has nobody, or is not asked because the upstream is paused, core says that the request waits, and nginx is told that its connection to
//! a peer is not there yet (`NGX_AGAIN`). That connection is one of ours, without a descriptor; nothing happens on it by
//! itself. nginx sets its timer for connecting, which [`held`] takes away before this turn of the event loop is over. From
//! then on a timer of ours, the only one of the process, looks every few milliseconds at all who wait ([`turn`]). For whoever
//! may go on that connection breaks, as far as nginx can tell: nginx then asks for another peer, all by its own code, and
//! finds a balancer that begins anew. Who has waited for too long is answered 503.
//!
//! Whatever else ends a request that waits (its client, nginx when it goes, a lack of memory) ends in `peer.free`, as it does
//! for a request that is with a peer. While somebody waits the timer keeps a worker that quits: what becomes `up` after a
//! reload reaches those who wait in old workers, too.

mod burst;
mod held;
mod request;
mod rest;
mod wait;

pub(crate) use held::Held;

use crate::conf::MainConf;
use crate::nginx::{global, rc};
use crate::upstream::Upstream;
use crate::worker;
use burst::Burst;
use handoff_core::Moment;
use handoff_core::hold::{BATCH, Full, Pace, Queue, Turn};
use handoff_core::line::Line;
use handoff_core::room::{Ending, Room};
use held::{Phase, end};
use nginx_sys::{
    NGX_HTTP_CLIENT_CLOSED_REQUEST, NGX_HTTP_SERVICE_UNAVAILABLE, ngx_add_timer, ngx_connection_t,
    ngx_event_t, ngx_int_t, ngx_log_t, ngx_msec_t,
};
use std::cell::{Cell, RefCell};
use std::mem;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicPtr, Ordering};

/// How often a process looks while somebody waits. It costs some reads of shared memory.
const TURN_MS: ngx_msec_t = 2;

/// What an upstream's requests wait in, in one process.
pub(crate) struct Hold {
    pub(crate) queue: Option<Queue>,
    room: Cell<Option<&'static Room>>,
    line: RefCell<Line<NonNull<Held>>>,
    /// Those that failed, and wait a moment before they are tried again.
    resting: RefCell<Line<NonNull<Held>>>,
    pace: Cell<Pace>,
    /// Whether somebody was sent on, and has not come to the balancer yet.
    is_sending: Cell<bool>,
    burst: Burst,
}

/// The timer of this process.
struct Timer {
    event: ngx_event_t,
    /// nginx's debug log asks every event for the descriptor of its connection.
    connection: ngx_connection_t,
}

static TIMER: AtomicPtr<Timer> = AtomicPtr::new(ptr::null_mut());

/// Once in each process.
pub(crate) fn begin(log: *mut ngx_log_t) {
    // SAFETY: all of their fields may be zero; nginx makes its own with ngx_pcalloc.
    let zeroed: Timer = unsafe { mem::zeroed() };
    let timer = Box::leak(Box::new(zeroed));
    timer.connection.fd = -1;
    timer.event.data = (&raw mut timer.connection).cast();
    timer.event.handler = Some(turn);
    timer.event.log = log;
    TIMER.store(timer, Ordering::Relaxed);
}

fn start_timer() {
    // SAFETY: null, or made by `begin` and never freed.
    if let Some(timer) = unsafe { TIMER.load(Ordering::Relaxed).as_mut() }
        && timer.event.timer_set() == 0
    {
        // SAFETY: the event lives for ever.
        unsafe { ngx_add_timer(&raw mut timer.event, TURN_MS) };
    }
}

unsafe extern "C" fn turn(_: *mut ngx_event_t) {
    let Some(conf) = worker::current() else { return };
    let mut somebody_waits = false;
    for upstream in conf.upstreams() {
        upstream.hold.turn(upstream);
        upstream.hold.look_at_resting();
        somebody_waits |=
            !upstream.hold.line.borrow().is_empty() || !upstream.hold.resting.borrow().is_empty();
    }
    if somebody_waits {
        start_timer();
    }
}

/// One line for each burst that is over; with `all` for those that are not, too.
pub(crate) fn tell(conf: &MainConf, log: *mut ngx_log_t, all: bool) {
    for upstream in conf.upstreams() {
        let hold = &upstream.hold;
        let is_over = all || hold.line.borrow().is_empty();
        if is_over {
            hold.burst.tell(&upstream.name, if all { u64::MAX } else { now().mono }, log);
        }
    }
}

pub(crate) fn now() -> Moment {
    Moment { mono: global!(ngx_current_msec) as u64, unix: 0 }
}

// === impl Hold ===

impl Hold {
    pub(crate) fn new(queue: Option<Queue>) -> Self {
        Self {
            queue,
            room: Cell::default(),
            line: RefCell::default(),
            resting: RefCell::default(),
            pace: Cell::default(),
            is_sending: Cell::default(),
            burst: Burst::default(),
        }
    }

    /// False: there was no room for one.
    pub(crate) fn set_room(&self, room: Option<&'static Room>) -> bool {
        self.room.set(room);
        room.is_some()
    }

    /// Whether those who wait are on their way: who comes goes behind them.
    #[inline]
    pub(crate) fn flows(&self) -> bool {
        self.pace.get().flows()
    }

    #[inline]
    pub(crate) fn is_paused(&self, now: impl FnOnce() -> u64) -> bool {
        self.room().is_some_and(|room| room.pause.holds(now))
    }

    #[inline]
    pub(crate) fn room(&self) -> Option<&'static Room> {
        self.room.get()
    }

    fn turn(&self, upstream: &Upstream) {
        if self.line.borrow().is_empty() {
            self.pace.take();
            return;
        }
        let Some(place) = upstream.place() else { return };
        upstream.refresh(&place.zone);
        let now = now();
        let outlook = upstream.outlook(&place.zone, now);
        let mut pace = self.pace.get();
        let granted = pace.grant(outlook, now.mono);
        let gone = self.send_on(granted);
        let outlooks = [outlook, upstream.outlook(&place.zone, now)];
        pace.done(Turn { outlooks, granted, gone, left: self.line.borrow().len() }, now.mono);
        self.pace.set(pace);
        self.answer_those_that_are_over(now.mono);
    }

    /// Sends on so many of those who came first; fewer if one of them finds nobody.
    fn send_on(&self, granted: usize) -> usize {
        for gone in 0..granted {
            // nginx runs in between, and may change the line as it likes: nothing of it is held on to.
            let Some(first) = self.front() else { return gone };
            self.wake(first);
            if self.front() == Some(first) {
                return gone;
            }
        }
        granted
    }

    fn front(&self) -> Option<NonNull<Held>> {
        self.line.borrow().front()
    }

    /// Makes nginx ask for a peer for this request. It may be gone after this.
    fn wake(&self, mut at: NonNull<Held>) {
        // SAFETY: who stands in the line lives: `free` takes it out.
        let held = unsafe { at.as_mut() };
        let Phase::Waits(ticket) = held.phase else { return };
        // nginx has set it when it was told of the connection.
        let handler = held.read.handler.filter(|_| held.lets_nginx_go_on());
        let Some(handler) = handler else { return end(at, rc::ERROR, Ending::Left) };
        held.phase = Phase::Wakes(ticket);
        let (place, bytes) = (held.place, held.bytes);
        self.is_sending.set(true);
        // SAFETY: called as nginx would call it for an event of this connection.
        unsafe { handler(&raw mut held.read) };
        // nginx ended it before it asked. That is not to be expected, but its place is not to be lost.
        if self.is_sending.take()
            && let Some(room) = self.room()
        {
            room.leave(place.row, bytes);
            self.count(room, Ending::Left, 0);
        }
    }

    fn answer_those_that_are_over(&self, now: u64) {
        let is_over = |held: NonNull<Held>, until: u64| {
            // SAFETY: who stands in the line lives: `free` takes it out.
            now >= until || unsafe { held.as_ref() }.is_forsaken()
        };
        for _ in 0..BATCH {
            let found = self.line.borrow().find(is_over);
            let Some(at) = found else { return };
            // SAFETY: as above.
            if unsafe { at.as_ref() }.is_forsaken() {
                end(at, NGX_HTTP_CLIENT_CLOSED_REQUEST as ngx_int_t, Ending::Left);
            } else {
                end(at, NGX_HTTP_SERVICE_UNAVAILABLE as ngx_int_t, Ending::TimedOut);
            }
        }
    }

    fn count(&self, room: &Room, ending: Ending, waited: u64) {
        room.count(ending);
        self.burst.ends(ending, waited, now().mono);
    }

    /// There was no room for a request.
    fn turn_away(&self, name: &str, room: &Room, why: Full, log: *mut ngx_log_t) {
        room.count_overflow();
        self.burst.overflows(name, why, now().mono, log);
    }
}
