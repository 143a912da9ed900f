//! Requests that wait for a peer.
//!
//! The order of events: the balancer has nobody, core says that the request waits, and nginx is told that its connection to
//! a peer is not there yet (`NGX_AGAIN`). That connection is one of ours, without a descriptor; nothing happens on it by
//! itself. nginx sets its timer for connecting, which [`settle`] takes away before this turn of the event loop is over. From
//! then on a timer of ours, the only one of the process, looks every few milliseconds at all who wait ([`turn`]). For whoever
//! may go on that connection breaks, as far as nginx can tell: nginx then asks for another peer, all by its own code, and
//! finds a balancer that begins anew. Who has waited for too long is answered 503.
//!
//! Whatever else ends a request that waits (its client, nginx when it goes, a lack of memory) ends in `peer.free`, as it does
//! for a request that is with a peer. While somebody waits the timer keeps a worker that quits: what becomes `up` after a
//! reload reaches those who wait in old workers, too.

use crate::conf::MainConf;
use crate::nginx::{PeerConnection, global, is_broken, log_of, rc};
use crate::peer::PeerData;
use crate::reply;
use crate::upstream::{Place, Upstream};
use crate::worker;
use crate::zone::Zone;
use handoff_core::Moment;
use handoff_core::hold::{BATCH, Full, Outlook, Queue, RETRY_AFTER, Ramp, Verdict, Visitor};
use handoff_core::line::{End, Line, Ticket};
use handoff_core::room::{Ending, Room};
use handoff_core::table::RoomId;
use nginx_sys::{
    NGX_HTTP_CLIENT_CLOSED_REQUEST, NGX_HTTP_SERVICE_UNAVAILABLE, NGX_HTTP_UPSTREAM_FT_ERROR, NGX_LOG_NOTICE,
    NGX_LOG_WARN, ngx_add_timer, ngx_connection_t, ngx_del_timer, ngx_delete_posted_event, ngx_event_t,
    ngx_http_finalize_request, ngx_http_request_t, ngx_http_run_posted_requests, ngx_http_upstream_conf_t,
    ngx_http_upstream_t, ngx_int_t, ngx_log_t, ngx_msec_t, ngx_palloc, ngx_pcalloc, ngx_post_event,
    ngx_uint_t, sockaddr, u_char,
};
use ngx::ngx_log_error;
use std::cell::{Cell, RefCell};
use std::mem;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicPtr, Ordering};

/// How often a process looks while somebody waits. It costs some reads of shared memory.
const TURN_MS: ngx_msec_t = 2;
/// After a balancer that had nobody, though somebody is up.
const PAUSE_MS: u64 = 100;
/// A pause that ends a burst of requests that wait.
const BURST_MS: u64 = 1000;

/// What an upstream's requests wait in, in one process.
pub(crate) struct Hold {
    pub(crate) queue: Option<Queue>,
    room: Cell<Option<RoomId>>,
    line: RefCell<Line<NonNull<Held>>>,
    ramp: Cell<Ramp>,
    /// Whether those who wait are on their way, only not all at once.
    flows: Cell<bool>,
    not_before: Cell<u64>,
    /// Who was sent on, and has not come to the balancer yet.
    sent_on: Cell<Option<NonNull<Held>>>,
    burst: Cell<Burst>,
}

/// What one line of the log tells.
#[derive(Clone, Copy, Default)]
struct Burst {
    requests: u32,
    endings: [u32; Ending::ALL.len()],
    overflowed: u32,
    longest: u64,
    last: u64,
}

/// A request that waits, or has waited, in its pool. The connection comes first: nginx's events lead to nothing else.
#[repr(C)]
pub(crate) struct Held {
    /// What nginx takes for a connection to a peer that is not there yet.
    connection: ngx_connection_t,
    read: ngx_event_t,
    write: ngx_event_t,
    settling: ngx_event_t,
    /// nginx calls `free` only for a peer that has an address.
    address: sockaddr,
    request: NonNull<ngx_http_request_t>,
    upstream: &'static Upstream,
    place: Place,
    phase: Phase,
    /// What it takes of the room.
    bytes: u64,
    since: u64,
    until: u64,
    /// How long it waited before.
    waited: u64,
    /// The location's own configuration, while nginx reads another.
    own: *mut ngx_http_upstream_conf_t,
}

#[derive(Clone, Copy)]
enum Phase {
    Away,
    Waits(Ticket),
    /// To be answered 503 in this turn of the event loop.
    TurnedAway,
    /// nginx is about to find that its connection broke.
    Wakes(Ticket),
    /// nginx is about to ask for a peer.
    SentOn,
    /// It is being answered.
    Ends,
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
        somebody_waits |= !upstream.hold.line.borrow().is_empty();
    }
    if somebody_waits {
        start_timer();
    }
}

/// One line for each burst that is over; with `all` for those that are not, too.
pub(crate) fn tell(conf: &MainConf, log: *mut ngx_log_t, all: bool) {
    for upstream in conf.upstreams() {
        upstream.hold.tell(&upstream.name, log, all);
    }
}

fn now() -> Moment {
    Moment { mono: global!(ngx_current_msec) as u64, unix: 0 }
}

// === impl Hold ===

impl Hold {
    pub(crate) fn new(queue: Option<Queue>) -> Self {
        Self {
            queue,
            room: Cell::default(),
            line: RefCell::default(),
            ramp: Cell::default(),
            flows: Cell::default(),
            not_before: Cell::default(),
            sent_on: Cell::default(),
            burst: Cell::default(),
        }
    }

    /// False: there was no room for one.
    pub(crate) fn set_room(&self, room: Option<RoomId>) -> bool {
        self.room.set(room);
        room.is_some()
    }

    fn room(&self, zone: &Zone) -> Option<&'static Room> {
        zone.table.room(self.room.get()?)
    }

    fn turn(&self, upstream: &Upstream) {
        if self.line.borrow().is_empty() {
            self.ramp.take();
            self.flows.set(false);
            return;
        }
        let Some(place) = upstream.place() else { return };
        upstream.refresh(&place.zone);
        let now = now();
        let outlook = upstream.outlook(&place.zone, now);
        let mut ramp = self.ramp.get();
        let granted = if now.mono < self.not_before.get() { 0 } else { ramp.turn(outlook) };
        let gone = self.send_on(granted);
        ramp.spend(gone);
        self.ramp.set(ramp);
        let is_left = !self.line.borrow().is_empty();
        let is_serving = |outlook| matches!(outlook, Outlook::Serving(_));
        self.flows.set(is_left && is_serving(outlook) && gone == granted);
        if is_left && gone < granted && is_serving(upstream.outlook(&place.zone, now)) {
            self.not_before.set(now.mono.saturating_add(PAUSE_MS));
        }
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
        self.sent_on.set(Some(at));
        // SAFETY: called as nginx would call it for an event of this connection.
        unsafe { handler(&raw mut held.read) };
        // nginx ended it before it asked. That is not to be expected, but its place is not to be lost.
        if self.sent_on.take().is_some()
            && let Some(room) = self.room(&place.zone)
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
        self.in_burst(|burst| {
            if let Some(counter) = burst.endings.get_mut(ending as usize) {
                *counter = counter.saturating_add(1);
            }
            burst.longest = burst.longest.max(waited);
        });
    }

    fn in_burst(&self, change: impl FnOnce(&mut Burst)) {
        let mut burst = self.burst.get();
        change(&mut burst);
        burst.last = now().mono;
        self.burst.set(burst);
    }

    fn turn_away(&self, name: &str, room: &Room, why: Full, log: *mut ngx_log_t) {
        room.count_overflow();
        if self.burst.get().overflowed == 0 {
            let why = match why {
                Full::Requests => "as many requests wait as handoff_queue allows",
                Full::Bytes => "those that wait are as large as handoff_queue allows",
                Full::Connections => "half of this process's connections are in use",
            };
            ngx_log_error!(
                NGX_LOG_WARN,
                log,
                "handoff: nobody is up in upstream \"{name}\", and {why}: answering 503"
            );
        }
        self.in_burst(|burst| burst.overflowed = burst.overflowed.saturating_add(1));
    }

    fn tell(&self, name: &str, log: *mut ngx_log_t, all: bool) {
        let burst = self.burst.get();
        let is_over = self.line.borrow().is_empty() && now().mono.saturating_sub(burst.last) >= BURST_MS;
        if burst.last == 0 || !(is_over || all) {
            return;
        }
        self.burst.take();
        let Burst { requests, endings: [resumed, released, timed_out, left], overflowed, longest, .. } =
            burst;
        ngx_log_error!(
            NGX_LOG_NOTICE,
            log,
            "handoff: {requests} requests waited for upstream \"{name}\", at most {longest} ms: {resumed} went on, \
             {released} released, {timed_out} timed out, {left} left; {overflowed} found no room"
        );
    }
}

// === impl PeerData ===

impl PeerData {
    /// How long the request has waited, in milliseconds.
    pub(crate) fn waited(&self) -> u64 {
        // SAFETY: in the pool of the request, and nobody changes it now.
        self.held.map_or(0, |held| unsafe { held.as_ref() }.waited())
    }

    fn held(&mut self) -> Option<&mut Held> {
        // SAFETY: in the pool of the request; nobody else holds a reference between two calls of nginx.
        self.held.map(|mut held| unsafe { held.as_mut() })
    }

    /// Whether the request was sent on from where it waited, and nginx asks for a peer now. Its balancer is to begin anew.
    pub(crate) fn was_sent_on(&mut self) -> bool {
        let hold = &self.upstream.hold;
        let Some(held) = self.held().filter(|held| matches!(held.phase, Phase::SentOn)) else { return false };
        hold.sent_on.take();
        held.give_back_configuration();
        true
    }

    /// A request that comes while others are on their way goes behind them.
    pub(crate) fn joins(&mut self, pc: PeerConnection) -> bool {
        self.upstream.hold.flows.get()
            && self.visitor(false, false).joins(true)
            && self.enter(pc, End::Back).is_ok()
    }

    /// The balancer has nobody.
    #[cold]
    pub(crate) fn wait(&mut self, pc: PeerConnection, was_refused: bool, was_sent_on: bool) -> ngx_int_t {
        let visitor = self.visitor(was_refused, was_sent_on);
        let outlook = self.upstream.outlook(&self.place.zone, now());
        let waits = visitor.verdict(outlook) == Verdict::Wait;
        if was_sent_on {
            return self.wait_on(pc, waits);
        }
        if !waits || self.upstream.hold.queue.is_none() {
            return rc::BUSY;
        }
        match self.enter(pc, End::Back) {
            Ok(()) => rc::AGAIN,
            Err(Some(full)) => self.turn_away(pc, full),
            Err(None) => rc::BUSY,
        }
    }

    /// It was sent on, and found nobody. It keeps its place.
    fn wait_on(&mut self, pc: PeerConnection, waits: bool) -> ngx_int_t {
        if waits && self.stand(pc, End::Front) {
            return rc::AGAIN;
        }
        self.goes(Ending::Released);
        rc::BUSY
    }

    /// It waits no more.
    pub(crate) fn goes(&mut self, ending: Ending) {
        let (hold, place) = (&self.upstream.hold, self.place);
        let Some(held) = self.held() else { return };
        held.phase = Phase::Away;
        held.leave_room(hold, place, ending);
    }

    /// A peer failed the request. Whether it would wait for another, if nginx asked for one more.
    pub(crate) fn would_wait(&self) -> bool {
        // SAFETY: the request lives while its upstream calls us.
        let Some(u) = (unsafe { self.upstream().as_ref() }) else { return false };
        // SAFETY: null, or the configuration of the location.
        let Some(conf) = (unsafe { u.conf.as_ref() }) else { return false };
        let tries = conf.next_upstream_tries;
        self.upstream.hold.queue.is_some()
            && (tries == 0 || (self.tries as usize) < tries)
            && self.visitor(true, false).verdict(self.upstream.outlook(&self.place.zone, now()))
                == Verdict::Wait
    }

    fn visitor(&self, was_refused: bool, was_sent_on: bool) -> Visitor {
        // SAFETY: the request lives while its upstream calls us.
        let r = unsafe { self.request.as_ref() };
        Visitor {
            was_sent_on,
            was_refused,
            tried: self.tries,
            broke: self.broke,
            is_background: is_background(r),
            has_stale: has_stale(r),
        }
    }

    /// Takes a place in the room and in the line. `Err(None)`: there is no memory.
    fn enter(&mut self, pc: PeerConnection, end: End) -> Result<(), Option<Full>> {
        let (hold, place) = (&self.upstream.hold, self.place);
        let (Some(queue), Some(room)) = (hold.queue, hold.room(&place.zone)) else { return Err(None) };
        if !spares_a_connection() {
            return Err(Some(Full::Connections));
        }
        let bytes = self.bytes();
        room.enter(place.row, bytes, &queue).map_err(Some)?;
        let held = self.have();
        let is_there = held.is_some();
        if let Some(held) = held {
            held.bytes = bytes;
            held.since = now().mono;
            held.until = held.since.saturating_add(queue.timeout.saturating_sub(held.waited));
        }
        if !is_there || !self.stand(pc, end) {
            room.leave(place.row, bytes);
            return Err(None);
        }
        hold.in_burst(|burst| burst.requests = burst.requests.saturating_add(1));
        Ok(())
    }

    /// Stands in the line. False: there is no memory.
    fn stand(&mut self, pc: PeerConnection, end: End) -> bool {
        let (hold, host) = (&self.upstream.hold, self.upstream.host());
        let Some(held) = self.held() else { return false };
        let at = NonNull::from(&mut *held);
        let Some(ticket) = hold.line.borrow_mut().enter(at, held.until, end) else { return false };
        held.phase = Phase::Waits(ticket);
        pc.forget(host);
        held.give(pc);
        start_timer();
        true
    }

    fn turn_away(&mut self, pc: PeerConnection, why: Full) -> ngx_int_t {
        let (upstream, place) = (self.upstream, self.place);
        // SAFETY: the request lives while its upstream calls us.
        let log = log_of(unsafe { self.request.as_ref() });
        if let Some(room) = upstream.hold.room(&place.zone) {
            upstream.hold.turn_away(&upstream.name, room, why, log);
        }
        let Some(held) = self.have() else { return rc::BUSY };
        held.phase = Phase::TurnedAway;
        pc.forget(upstream.host());
        held.give(pc);
        rc::AGAIN
    }

    /// What the client sent, as far as it has come. A request that is part of another holds nothing of its own.
    fn bytes(&self) -> u64 {
        // SAFETY: the request lives while its upstream calls us.
        let r = unsafe { self.request.as_ref() };
        let is_main = ptr::eq(r.main, self.request.as_ptr());
        if is_main { u64::try_from(r.request_length).unwrap_or_default() } else { 0 }
    }

    fn have(&mut self) -> Option<&mut Held> {
        if self.held.is_none() {
            self.held = Held::new(self.request, self.upstream, self.place);
        }
        self.held()
    }

    /// Nginx gives the connection back that it was given; true if it was one of ours.
    pub(crate) fn free_held(&mut self, pc: PeerConnection) -> bool {
        let (hold, place) = (&self.upstream.hold, self.place);
        let Some(held) = self.held() else { return false };
        match held.phase {
            Phase::Away | Phase::SentOn => return false,
            Phase::Wakes(ticket) => {
                hold.line.borrow_mut().leave(ticket);
                held.phase = Phase::SentOn;
                held.let_nginx_ask(pc);
            }
            Phase::Waits(ticket) => {
                hold.line.borrow_mut().leave(ticket);
                held.leave_room(hold, place, Ending::Left);
                held.phase = Phase::Away;
            }
            Phase::TurnedAway | Phase::Ends => held.phase = Phase::Away,
        }
        held.take_back(pc);
        true
    }
}

// === impl Held ===

impl Held {
    fn new(
        request: NonNull<ngx_http_request_t>,
        upstream: &'static Upstream,
        place: Place,
    ) -> Option<NonNull<Self>> {
        // SAFETY: the request lives while its upstream calls us.
        let pool = unsafe { request.as_ref() }.pool;
        // SAFETY: the pool of the request; null when there is no memory.
        let memory = NonNull::new(unsafe { ngx_pcalloc(pool, size_of::<Self>()) })?.cast::<Self>();
        // SAFETY: all of their fields may be zero; nginx makes its own with ngx_pcalloc.
        let connection: ngx_connection_t = unsafe { mem::zeroed() };
        // SAFETY: as above.
        let event: ngx_event_t = unsafe { mem::zeroed() };
        // SAFETY: as above.
        let address: sockaddr = unsafe { mem::zeroed() };
        let held = Self {
            connection,
            read: event,
            write: event,
            settling: event,
            address,
            request,
            upstream,
            place,
            phase: Phase::Away,
            bytes: 0,
            since: 0,
            until: 0,
            waited: 0,
            own: ptr::null_mut(),
        };
        // SAFETY: fresh memory of this size; pools align for any type.
        unsafe { memory.write(held) };
        Some(memory)
    }

    /// Gives nginx our connection.
    fn give(&mut self, pc: PeerConnection) {
        // SAFETY: the request lives while its upstream calls us.
        let r = unsafe { self.request.as_ref() };
        let at = &raw mut self.connection;
        let log = log_of(r);
        for event in [&mut self.read, &mut self.write, &mut self.settling] {
            event.data = at.cast();
            event.log = log;
        }
        self.write.set_write(1);
        self.settling.handler = Some(settle);
        let connection = &mut self.connection;
        connection.fd = -1;
        connection.data = self.request.as_ptr().cast();
        connection.read = &raw mut self.read;
        connection.write = &raw mut self.write;
        // Or nginx would make it one.
        connection.pool = r.pool;
        connection.recv = Some(broken);
        connection.log = log;
        pc.give(at, &raw mut self.address);
        let queue = &raw mut nginx_sys::ngx_posted_events;
        // SAFETY: this process's own queue; `take_back` takes the event from it before the event goes.
        unsafe { ngx_post_event(&raw mut self.settling, queue) };
    }

    fn take_back(&mut self, pc: PeerConnection) {
        self.stop_timers();
        if self.settling.posted() != 0 {
            // SAFETY: it is in the queue of posted events.
            unsafe { ngx_delete_posted_event(&raw mut self.settling) };
        }
        pc.give(ptr::null_mut(), ptr::null_mut());
    }

    fn stop_timers(&mut self) {
        for event in [&mut self.read, &mut self.write] {
            if event.timer_set() != 0 {
                // SAFETY: the timer is set.
                unsafe { ngx_del_timer(event) };
            }
        }
    }

    fn waited(&self) -> u64 {
        match self.phase {
            Phase::Away | Phase::TurnedAway => self.waited,
            _ => self.waited.saturating_add(now().mono.saturating_sub(self.since)),
        }
    }

    fn leave_room(&mut self, hold: &Hold, place: Place, ending: Ending) {
        self.waited = self.waited.saturating_add(now().mono.saturating_sub(self.since));
        if let Some(room) = hold.room(&place.zone) {
            room.leave(place.row, self.bytes);
            hold.count(room, ending, self.waited);
        }
    }

    fn upstream_of_request(&self) -> *mut ngx_http_upstream_t {
        // SAFETY: the request lives for as long as it is held.
        unsafe { (*self.request.as_ptr()).upstream }
    }

    /// Nobody is there any more to whom it could be answered. nginx ends most of these by itself, but not those whose answer it
    /// would put into its cache.
    fn is_forsaken(&self) -> bool {
        // SAFETY: the request lives for as long as it is held.
        let r = unsafe { self.request.as_ref() };
        is_broken(r) && !patient(r)
    }

    /// nginx tries again only after what the configuration names as a reason. That nobody was up is none of these. False: there is
    /// no memory.
    fn lets_nginx_go_on(&mut self) -> bool {
        // SAFETY: the upstream of the request, which waits in it.
        let Some(u) = (unsafe { self.upstream_of_request().as_mut() }) else { return false };
        // SAFETY: the configuration of the location.
        let Some(conf) = (unsafe { u.conf.as_ref() }) else { return false };
        let error = NGX_HTTP_UPSTREAM_FT_ERROR as ngx_uint_t;
        if conf.next_upstream & error == 0 {
            // SAFETY: the request lives for as long as it is held.
            let pool = unsafe { self.request.as_ref() }.pool;
            // SAFETY: the pool of the request; null when there is no memory.
            let memory = unsafe { ngx_palloc(pool, size_of::<ngx_http_upstream_conf_t>()) };
            let Some(copy) = NonNull::new(memory.cast::<ngx_http_upstream_conf_t>()) else { return false };
            // SAFETY: fresh memory of this size; pools align for any type.
            unsafe {
                copy.write(ngx_http_upstream_conf_t { next_upstream: conf.next_upstream | error, ..*conf })
            };
            self.own = mem::replace(&mut u.conf, copy.as_ptr());
        }
        // Or nginx would ask the descriptor, which there is none of, whether it is connected.
        u.set_request_sent(1);
        true
    }

    fn give_back_configuration(&mut self) {
        let own = mem::replace(&mut self.own, ptr::null_mut());
        // SAFETY: the upstream of the request.
        if let Some(u) = unsafe { self.upstream_of_request().as_mut() }
            && !own.is_null()
        {
            u.conf = own;
        }
    }

    /// nginx looks whether it may try again: nothing was sent, and the time for tries has not gone on.
    fn let_nginx_ask(&mut self, pc: PeerConnection) {
        // SAFETY: the request lives for as long as it is held.
        let r = unsafe { self.request.as_ref() };
        // SAFETY: the upstream of the request.
        if let Some(u) = unsafe { r.upstream.as_mut() } {
            u.set_request_sent(0);
        }
        // SAFETY: nginx has added an entry for the attempt that this was; the next one gets its place.
        if let Some(states) = unsafe { r.upstream_states.as_mut() } {
            states.nelts = states.nelts.saturating_sub(1);
        }
        let waited = now().mono.saturating_sub(self.since);
        pc.set_started(pc.started().wrapping_add(waited as ngx_msec_t));
        pc.set_tries(1);
    }
}

/// Ends a request that is held, with a status. It may be gone after this.
fn end(mut at: NonNull<Held>, status: ngx_int_t, ending: Ending) {
    // SAFETY: who is held lives; nobody else holds a reference now.
    let held = unsafe { at.as_mut() };
    if let Phase::Waits(ticket) = held.phase {
        let (hold, place) = (&held.upstream.hold, held.place);
        hold.line.borrow_mut().leave(ticket);
        held.leave_room(hold, place, ending);
    }
    held.phase = Phase::Ends;
    finalize(held.request, status);
}

/// nginx calls this in the turn of the event loop in which it was given our connection.
unsafe extern "C" fn settle(event: *mut ngx_event_t) {
    // SAFETY: nginx passes our event, whose data is our connection.
    let connection = unsafe { (*event).data };
    // The connection is the first field of what is held.
    let Some(mut at) = NonNull::new(connection.cast::<Held>()) else { return };
    // SAFETY: it lives: `take_back` takes the event away.
    let held = unsafe { at.as_mut() };
    held.stop_timers();
    if let Phase::TurnedAway = held.phase {
        end(at, NGX_HTTP_SERVICE_UNAVAILABLE as ngx_int_t, Ending::Left);
    }
}

/// What nginx reads from our connection.
unsafe extern "C" fn broken(_: *mut ngx_connection_t, _: *mut u_char, _: usize) -> isize {
    rc::ERROR
}

/// As nginx itself ends what is passed to an upstream when something else is to become of it.
fn finalize(mut request: NonNull<ngx_http_request_t>, status: ngx_int_t) {
    // SAFETY: the request lives: it is being held.
    let r = unsafe { request.as_mut() };
    let connection = r.connection;
    // SAFETY: the upstream of the request.
    let Some(u) = (unsafe { r.upstream.as_mut() }) else { return };
    if status == NGX_HTTP_SERVICE_UNAVAILABLE as ngx_int_t {
        reply::retry_after(r, RETRY_AFTER);
        // SAFETY: the entry for this attempt, for the access log.
        if let Some(state) = unsafe { u.state.as_mut() } {
            state.status = NGX_HTTP_SERVICE_UNAVAILABLE as ngx_uint_t;
        }
    }
    // SAFETY: a request belongs to a main request.
    let main = unsafe { &mut *r.main };
    main.set_count(main.count().wrapping_add(1));
    // SAFETY: null, or the place of the handler that ends the upstream.
    if let Some(cleanup) = unsafe { u.cleanup.as_ref() }.copied().flatten() {
        // SAFETY: called as nginx would call it; it gives back one count of the request.
        unsafe { cleanup(request.as_ptr().cast()) };
    }
    // SAFETY: the count that was added above kept the request; it may be gone after this.
    unsafe { ngx_http_finalize_request(request.as_ptr(), status) };
    // SAFETY: a connection outlives its requests until the event that closed it is over.
    unsafe { ngx_http_run_posted_requests(connection) };
}

fn spares_a_connection() -> bool {
    let cycle = global!(ngx_cycle);
    // SAFETY: the cycle of this process, which lives as long as the process.
    let Some(cycle) = (unsafe { cycle.as_ref() }) else { return false };
    // Those that only wait for a next request nginx closes when it needs them.
    let free = cycle.free_connection_n.saturating_add(cycle.reusable_connections_n);
    Queue::spares(free, cycle.connection_n)
}

/// Whether it is a request that no other one waits for, though its client's next one does. nginx keeps the others in a list of
/// the request that they are part of. Not by the bit: see `is_unread` in peer.rs.
fn is_background(r: &ngx_http_request_t) -> bool {
    // SAFETY: null, or the request that this one is part of.
    let Some(parent) = (unsafe { r.parent.as_ref() }) else { return false };
    // SAFETY: null, or a list in the pool of the main request.
    let first = unsafe { parent.postponed.as_ref() };
    // SAFETY: as above.
    let mut parts = std::iter::successors(first, |part| unsafe { part.next.as_ref() });
    !parts.any(|part| ptr::eq(part.request, r))
}

/// Whether nginx goes on for a client that is gone.
fn patient(r: &ngx_http_request_t) -> bool {
    // SAFETY: null, or the upstream of the request.
    let u = unsafe { r.upstream.as_ref() };
    // SAFETY: null, or the configuration of the location.
    u.and_then(|u| unsafe { u.conf.as_ref() }).is_some_and(|conf| conf.ignore_client_abort != 0)
}

#[cfg(ngx_feature = "http_cache")]
fn has_stale(r: &ngx_http_request_t) -> bool {
    // SAFETY: null, or the upstream of the request.
    let Some(u) = (unsafe { r.upstream.as_ref() }) else { return false };
    // SAFETY: null, or the configuration of the location.
    let Some(conf) = (unsafe { u.conf.as_ref() }) else { return false };
    // SAFETY: null, or what nginx's cache has for the request.
    let may_be_told = unsafe { r.cache.as_ref() }.is_some_and(|cache| cache.stale_error() != 0);
    let nobody = nginx_sys::NGX_HTTP_UPSTREAM_FT_NOLIVE as ngx_uint_t;
    u.cache_status() == nginx_sys::NGX_HTTP_CACHE_EXPIRED
        && (may_be_told || conf.cache_use_stale & nobody != 0)
}

#[cfg(not(ngx_feature = "http_cache"))]
fn has_stale(_: &ngx_http_request_t) -> bool {
    false
}
