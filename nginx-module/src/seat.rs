//! Places in nginx's list of an upstream, for peers that are added while nginx runs.
//!
//! nginx's lists do not grow: their balancers have counted the peers, made tables of them and walk them under a lock that has no
//! owner. So `handoff_slots` puts that many servers into the upstream as its configuration is read, each `down`, of no weight and
//! at an address that leads nowhere. A peer that is added gets a slot in our zone, and every slot has its seat in the list. What
//! nginx knows of the seat is whether somebody sits there, and how much of the traffic is his; where he listens it never
//! learns: the request path puts that in the place of the seat's own address, for one attempt, out of a slot that cannot change
//! hands meanwhile ([`peer`](crate::peer)).
//!
//! The zone is the truth, and the list follows: each process compares the two when [news](handoff_core::table::Header::readied)
//! of any peer has come, and whoever comes first writes. That is the one road for a peer that is added, for a reload, whose new
//! list nginx makes from nothing, for an old worker, which has a list of its own, and for a process that died halfway.
//!
//! nginx's lock is tried and not waited for. What is done while it is held is some words of shared memory; a process that is
//! killed within leaves the lock as one does that is killed while nginx chooses a peer.

#[cfg(not(nginx1_27_3))]
use crate::nginx::conf_of;
use crate::upstream::{listed, read, word, write};
use handoff_core::Table;
use handoff_core::slot::{MAX_NAME, Slot};
use handoff_core::table::SlotId;
use handoff_core::tenancy::{Tenure, Terms};
use nginx_sys::{
    ngx_addr_t, ngx_array_push, ngx_array_t, ngx_conf_t, ngx_http_upstream_rr_peer_t,
    ngx_http_upstream_rr_peers_t, ngx_http_upstream_server_t, ngx_http_upstream_srv_conf_t, ngx_int_t,
    ngx_palloc, ngx_pcalloc, ngx_pool_t, ngx_str_t, ngx_uint_t, sockaddr, socklen_t, time_t,
};
use std::cell::{OnceCell, RefCell};
use std::ffi::{c_char, c_void};
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// A path that is not absolute: should ever a request get there, it finds nobody at once.
const NOWHERE: &[u8] = b"handoff_slots/";

const UNIX: &str = "unix:";
/// The bytes that the name of a peer has at most, in nginx's list and here.
const NAME: usize = UNIX.len() + SUN_PATH;
const SUN_PATH: usize = 108;

/// How often nginx's lock is tried. Its holders need microseconds.
const ATTEMPTS: usize = 200;

/// The seats of an upstream.
#[derive(Default)]
pub(crate) struct Seats {
    pub(crate) count: usize,
    weights: Weights,
    /// Known since the configuration has its place in the zone.
    reserved: OnceCell<Reserved>,
    list: RefCell<Option<List>>,
}

/// What the weights of the peers that come are to nginx.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Weights {
    #[default]
    Heeded,
    /// The balancer made tables of them when the configuration was read, and never again.
    Fixed,
    /// They grow: a [slow start](handoff_core::slow_start) gives them out.
    Grown,
}

struct Reserved {
    /// The slot of each seat.
    slots: Vec<SlotId>,
    /// Those of the peers that nginx.conf names.
    named: Vec<SlotId>,
}

/// nginx's list of the primary peers, as it is known from the moment that nothing of this configuration can fail any more.
struct List {
    at: NonNull<ngx_http_upstream_rr_peers_t>,
    seats: Vec<Seat>,
    /// Those that nginx.conf names.
    others: Vec<Other>,
    has_backups: bool,
}

struct Seat {
    slot: SlotId,
    at: NonNull<ngx_http_upstream_rr_peer_t>,
}

struct Other {
    at: NonNull<ngx_http_upstream_rr_peer_t>,
    /// As nginx.conf says.
    max_fails: ngx_uint_t,
}

/// What nginx's list should say of a peer.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Words {
    down: ngx_uint_t,
    weight: ngx_int_t,
    max_fails: ngx_uint_t,
    max_conns: ngx_uint_t,
    fail_timeout: time_t,
}

/// nginx's lock of a list, held for writing.
struct Locked(&'static AtomicUsize);

/// An address as `connect()` takes it, and its name. One block of a request's pool, and good for as long as that.
pub(crate) struct Occupant {
    /// Where the balancer thinks that the attempt goes.
    pub(crate) seat: (*mut sockaddr, socklen_t),
    pub(crate) name: ngx_str_t,
    pub(crate) len: socklen_t,
    pub(crate) address: Address,
    text: [u8; MAX_NAME],
}

#[repr(C)]
pub(crate) union Address {
    v4: libc::sockaddr_in,
    v6: libc::sockaddr_in6,
    unix: libc::sockaddr_un,
}

/// Whether this is the address of a seat, and not of a peer.
#[inline]
pub(crate) fn is_seat(at: *const libc::sockaddr) -> bool {
    crate::address::unix(at).is_some_and(|path| path.starts_with(NOWHERE))
}

/// Puts `count` seats into the servers of an upstream whose block is being read. `None`: there is no memory.
pub(crate) fn place(cf: &ngx_conf_t, servers: *mut ngx_array_t, count: usize) -> Option<()> {
    (0..count).try_for_each(|number| {
        let path = path(number);
        let address: *mut libc::sockaddr_un = new(cf.pool)?;
        // SAFETY: fresh and zeroed.
        let address = unsafe { &mut *address };
        address.sun_family = libc::AF_UNIX as libc::sa_family_t;
        for (place, byte) in address.sun_path.iter_mut().zip(&path) {
            *place = *byte as c_char;
        }
        let addrs: *mut ngx_addr_t = new(cf.pool)?;
        let name = [UNIX.as_bytes(), path.as_slice()].concat();
        // SAFETY: fresh and zeroed.
        let addr = unsafe { &mut *addrs };
        addr.sockaddr = ptr::from_mut(address).cast();
        addr.socklen = size_of::<libc::sockaddr_un>() as socklen_t;
        addr.name = string(cf.pool, &name, 0)?;
        // SAFETY: the servers of a block that is being read; null when there is no memory.
        let server = unsafe { ngx_array_push(servers) }.cast::<ngx_http_upstream_server_t>();
        if server.is_null() {
            return None;
        }
        // SAFETY: all of its fields may be zero; nginx zeroes its own.
        unsafe { server.write_bytes(0, 1) };
        // SAFETY: the fresh element.
        let server = unsafe { &mut *server };
        // nginx makes a copy just as long, and a peer's own name must fit there.
        server.name = string(cf.pool, &name, MAX_NAME)?;
        server.addrs = addrs;
        server.naddrs = 1;
        server.weight = 1;
        server.max_fails = 1;
        server.fail_timeout = 10;
        server.down = 1;
        Some(())
    })
}

/// Zeroed, from a pool.
fn new<T>(pool: *mut ngx_pool_t) -> Option<*mut T> {
    // SAFETY: null when there is no memory.
    let memory = unsafe { ngx_pcalloc(pool, size_of::<T>()) };
    (!memory.is_null()).then(|| memory.cast())
}

/// A text, followed by spaces if it is shorter than that.
fn string(pool: *mut ngx_pool_t, bytes: &[u8], len: usize) -> Option<ngx_str_t> {
    let len = len.max(bytes.len());
    // SAFETY: null when there is no memory.
    let data = unsafe { ngx_pcalloc(pool, len) }.cast::<u8>();
    if data.is_null() {
        return None;
    }
    // SAFETY: fresh, zeroed and of this size.
    let text = unsafe { std::slice::from_raw_parts_mut(data, len) };
    text.fill(b' ');
    for (place, byte) in text.iter_mut().zip(bytes) {
        *place = *byte;
    }
    Some(ngx_str_t { len, data })
}

// === impl Seats ===

impl Seats {
    pub(crate) fn new(count: usize, weights: Weights) -> Self {
        Self { count, weights, ..Self::default() }
    }

    pub(crate) fn reserve(&self, slots: Vec<SlotId>, named: Vec<SlotId>) {
        // nginx initializes the zone of a cycle once.
        _ = self.reserved.set(Reserved { slots, named });
    }

    pub(crate) fn slots(&self) -> &[SlotId] {
        self.reserved.get().map(|reserved| reserved.slots.as_slice()).unwrap_or_default()
    }

    /// Whether the balancer minds the weights of those who come.
    pub(crate) fn weighs(&self) -> bool {
        self.weights != Weights::Fixed
    }

    /// The seat of each slot, as nginx calls it.
    pub(crate) fn paths(&self) -> impl Iterator<Item = (Box<[u8]>, SlotId)> {
        self.slots().iter().enumerate().map(|(number, &slot)| (path(number).into(), slot))
    }

    /// The peer that has a seat's slot, if it is one that this configuration does not name. One that it names is in the list as
    /// any other; a list that is older may have no other place for it.
    pub(crate) fn occupant<'a>(&self, table: &Table<'a>, id: SlotId) -> Option<&'a Slot> {
        let slot = table.slot(id)?;
        let is_named = || self.reserved.get().is_some_and(|reserved| reserved.named.contains(&id));
        match slot.tenancy.tenure() {
            Tenure::Taken => Some(slot),
            Tenure::Configured if !is_named() => Some(slot),
            Tenure::Configured | Tenure::Vacant | Tenure::Leaving => None,
        }
    }

    /// Learns nginx's list, which no worker knows yet.
    pub(crate) fn meet(
        &self,
        first: Option<NonNull<ngx_http_upstream_rr_peers_t>>,
        slot: impl Fn(*const libc::sockaddr) -> Option<SlotId>,
    ) {
        let Some(at) = first.filter(|_| self.count > 0) else { return };
        let (seats, others): (Vec<_>, Vec<_>) = listed(at).partition(|&peer| is_seat(address(peer)));
        let seats = seats.into_iter().filter_map(|at| Some(Seat { slot: slot(address(at))?, at }));
        let others = others.into_iter().map(|at| Other { at, max_fails: read(word!(at, max_fails)) });
        // SAFETY: lists are never freed while their cycle lives.
        let has_backups = !unsafe { at.as_ref() }.next.is_null();
        self.list.replace(Some(List { at, seats: seats.collect(), others: others.collect(), has_backups }));
    }

    /// Lets nginx's list follow the zone. False: nginx's lock was busy, and it is to be tried again.
    pub(crate) fn follow(&self, table: &Table<'_>) -> bool {
        let list = self.list.borrow();
        let Some(list) = list.as_ref() else { return true };
        let occupant = |seat: &Seat| self.occupant(table, seat.slot);
        if !list.is_due(&occupant, self.weights) {
            return true;
        }
        // Nothing asks for memory while the lock is held.
        let mut sessions = Vec::with_capacity(list.seats.len());
        let Some(locked) = Locked::take(list.at) else { return false };
        list.follow(&occupant, self.weights, &mut sessions);
        drop(locked);
        sessions.into_iter().for_each(|session| list.free(session));
        true
    }

    /// How many failures nginx.conf lets a peer have; nginx's list may say otherwise.
    pub(crate) fn max_fails(&self, at: NonNull<ngx_http_upstream_rr_peer_t>) -> Option<ngx_uint_t> {
        let list = self.list.borrow();
        list.as_ref()?.others.iter().find(|other| other.at == at).map(|other| other.max_fails)
    }

    /// The number of nginx's list: it changes with the peers, and nginx lets no request go on that began with another.
    #[cfg(nginx1_27_3)]
    pub(crate) fn version(&self) -> ngx_uint_t {
        if self.count == 0 {
            return 0;
        }
        let list = self.list.borrow();
        // SAFETY: lists are never freed while their cycle lives.
        let version = list.as_ref().map(|list| unsafe { list.at.as_ref() }.config);
        version.filter(|version| !version.is_null()).map_or(0, |version| read(version))
    }

    #[cfg(not(nginx1_27_3))]
    pub(crate) fn version(&self) -> ngx_uint_t {
        0
    }
}

fn path(number: usize) -> Vec<u8> {
    [NOWHERE, number.to_string().as_bytes()].concat()
}

fn address(peer: NonNull<ngx_http_upstream_rr_peer_t>) -> *const libc::sockaddr {
    // SAFETY: a peer of a list.
    unsafe { peer.as_ref() }.sockaddr.cast_const().cast()
}

// === impl List ===

impl List {
    fn is_due<'a>(&self, occupant: &impl Fn(&Seat) -> Option<&'a Slot>, weights: Weights) -> bool {
        let is_single = self.is_single(occupant);
        let is_empty = self.others.is_empty() && self.taken(occupant) == 0;
        let is_due = |(number, seat): (usize, &Seat)| {
            let slot = occupant(seat);
            let was = Words::read(seat.at);
            let mut words = Words::of_seat(slot, is_single, weights, was.weight);
            words.weight = words.weight.max(ngx_int_t::from(is_empty && number == 0));
            was != words || slot.is_some_and(|slot| !is_called(seat.at, slot))
        };
        self.seats.iter().enumerate().any(is_due)
            || self.others.iter().any(|other| read(word!(other.at, max_fails)) != other.max_fails(is_single))
    }

    fn taken<'a>(&self, occupant: &impl Fn(&Seat) -> Option<&'a Slot>) -> usize {
        self.seats.iter().filter(|seat| occupant(seat).is_some()).count()
    }

    /// Whether there is one peer only. nginx does not leave such a one out for its failures, and would not know that it is one.
    fn is_single<'a>(&self, occupant: &impl Fn(&Seat) -> Option<&'a Slot>) -> bool {
        !self.has_backups && self.others.len().saturating_add(self.taken(occupant)) == 1
    }

    /// Writes what is to be, and gives away the TLS sessions of peers that are gone. The caller holds the lock, and room for as
    /// many sessions as there are seats.
    fn follow<'a>(
        &self,
        occupant: &impl Fn(&Seat) -> Option<&'a Slot>,
        weights: Weights,
        sessions: &mut Vec<NonNull<c_void>>,
    ) {
        let is_single = self.is_single(occupant);
        for seat in &self.seats {
            let slot = occupant(seat);
            if let Some(slot) = slot.filter(|slot| !is_called(seat.at, slot)) {
                call(seat.at, slot);
                forgive(seat.at);
                write(word!(seat.at, current_weight), 0);
                if weights == Weights::Grown {
                    write(word!(seat.at, weight), 1);
                    write(word!(seat.at, effective_weight), 1);
                }
                sessions.extend(session(seat.at));
            }
            let weight = read(word!(seat.at, weight));
            Words::of_seat(slot, is_single, weights, weight).write(seat.at);
        }
        for other in &self.others {
            let max_fails = other.max_fails(is_single);
            if read(word!(other.at, max_fails)) != max_fails {
                write(word!(other.at, max_fails), max_fails);
                forgive(other.at);
            }
        }
        self.sum(weights);
    }

    /// Balancers divide by the sum of the weights, and walk the list until they have passed a share of it: it is never 0, and
    /// never more than there is.
    fn sum(&self, weights: Weights) {
        let mut total = 0;
        let mut tries = 0;
        for peer in listed(self.at) {
            total += read(word!(peer, weight)).unsigned_abs();
            tries += usize::from(read(word!(peer, down)) == 0);
        }
        if total == 0
            && let Some(first) = self.seats.first()
        {
            write(word!(first.at, weight), 1);
            total = 1;
        }
        let list = self.at;
        if weights != Weights::Fixed {
            write(word!(list, total_weight), total);
        }
        write(word!(list, tries), tries);
        #[cfg(nginx1_27_3)]
        {
            let version = read(word!(list, config));
            if !version.is_null() {
                write(version, read(version).wrapping_add(1));
            }
        }
    }

    /// A session is of no use to another peer.
    fn free(&self, session: NonNull<c_void>) {
        // SAFETY: the pool of the zone that the list is in.
        let pool = unsafe { self.at.as_ref() }.shpool;
        // SAFETY: nginx allocated it there, and nothing leads to it any more.
        unsafe { nginx_sys::ngx_slab_free(pool, session.as_ptr()) };
    }
}

/// Whether nginx's list calls the seat by the name of this peer.
fn is_called(at: NonNull<ngx_http_upstream_rr_peer_t>, slot: &Slot) -> bool {
    let mut room = [0; NAME];
    let len = slot.copy_address(&mut room);
    let name = read(word!(at, name));
    if name.data.is_null() || name.len != len {
        return false;
    }
    // SAFETY: a name has so many bytes, and room for NAME; other processes write there only while they hold the list's lock.
    let called = unsafe { std::slice::from_raw_parts(name.data, len.min(NAME)) };
    room.get(..len) == Some(called)
}

/// Nobody takes a request's name for its peer from there; `hash … consistent` places a peer by its server.
fn call(at: NonNull<ngx_http_upstream_rr_peer_t>, slot: &Slot) {
    let mut room = [0; NAME];
    let len = slot.copy_address(&mut room);
    put(word!(at, name), &room, len);
    #[cfg(nginx1_27_3)]
    put(word!(at, server), &room, len);
}

/// There is room for NAME bytes in both: nginx has as many for each name, and as many as `place()` asked for in a server.
fn put(string: *mut ngx_str_t, bytes: &[u8; NAME], len: usize) {
    let ngx_str_t { data, .. } = read(string);
    if !data.is_null() {
        // SAFETY: see above; the caller holds the lock of the list.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), data, len.min(NAME)) };
        write(string, ngx_str_t { len, data });
    }
}

fn forgive(at: NonNull<ngx_http_upstream_rr_peer_t>) {
    write(word!(at, fails), 0);
    write(word!(at, accessed), 0);
    write(word!(at, checked), 0);
}

/// Takes the TLS session of a peer away from it.
#[cfg(any(ngx_feature = "http_ssl", ngx_feature = "compat"))]
fn session(at: NonNull<ngx_http_upstream_rr_peer_t>) -> Option<NonNull<c_void>> {
    let session = NonNull::new(read(word!(at, ssl_session)));
    write(word!(at, ssl_session), ptr::null_mut());
    write(word!(at, ssl_session_len), 0);
    session
}

#[cfg(not(any(ngx_feature = "http_ssl", ngx_feature = "compat")))]
fn session(_: NonNull<ngx_http_upstream_rr_peer_t>) -> Option<NonNull<c_void>> {
    None
}

// === impl Other ===

impl Other {
    fn max_fails(&self, is_single: bool) -> ngx_uint_t {
        if is_single { 0 } else { self.max_fails }
    }
}

// === impl Words ===

impl Words {
    /// Of nobody, or of the peer that has the seat's slot. `was`: the weight of the seat.
    fn of_seat(slot: Option<&Slot>, is_single: bool, weights: Weights, was: ngx_int_t) -> Self {
        let grown = (weights == Weights::Grown).then_some(was);
        let Some(slot) = slot else {
            return Self {
                down: 1,
                weight: grown.unwrap_or((weights == Weights::Fixed).into()),
                max_fails: 1,
                max_conns: 0,
                fail_timeout: 10,
            };
        };
        let Terms { weight, max_fails, max_conns, fail_timeout } = slot.tenancy.terms();
        Self {
            down: 0,
            weight: grown.or(weight.try_into().ok()).unwrap_or(1),
            max_fails: if is_single { 0 } else { max_fails as ngx_uint_t },
            max_conns: max_conns as ngx_uint_t,
            fail_timeout: fail_timeout.try_into().unwrap_or(time_t::MAX),
        }
    }

    fn read(at: NonNull<ngx_http_upstream_rr_peer_t>) -> Self {
        Self {
            down: read(word!(at, down)),
            weight: read(word!(at, weight)),
            max_fails: read(word!(at, max_fails)),
            max_conns: read(word!(at, max_conns)),
            fail_timeout: read(word!(at, fail_timeout)),
        }
    }

    fn write(self, at: NonNull<ngx_http_upstream_rr_peer_t>) {
        let was = Self::read(at);
        if self == was {
            return;
        }
        if self.max_fails != was.max_fails {
            forgive(at);
        }
        if self.weight != was.weight {
            write(word!(at, weight), self.weight);
            write(word!(at, effective_weight), self.weight);
        }
        write(word!(at, max_fails), self.max_fails);
        write(word!(at, max_conns), self.max_conns);
        write(word!(at, fail_timeout), self.fail_timeout);
        write(word!(at, down), self.down);
    }
}

// === impl Locked ===

impl Locked {
    fn take(list: NonNull<ngx_http_upstream_rr_peers_t>) -> Option<Self> {
        let lock = word!(list, rwlock).cast::<usize>();
        // SAFETY: a word that every process of the cycle knows as nginx's lock, in memory that lives as long as the cycle.
        let lock = unsafe { AtomicUsize::from_ptr(lock) };
        for attempt in 0..ATTEMPTS {
            // As ngx_rwlock_wlock(): free is 0, a writer all ones, anything else so many readers.
            if lock.compare_exchange(0, usize::MAX, Ordering::Acquire, Ordering::Relaxed).is_ok() {
                return Some(Self(lock));
            }
            if attempt % 8 == 7 {
                thread::yield_now();
            } else {
                std::hint::spin_loop();
            }
        }
        None
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        self.0.store(0, Ordering::Release);
    }
}

// === impl Occupant ===

impl Occupant {
    /// Of a peer to which a request was admitted: nobody else gets its slot until that request is over. `None`: there is no memory.
    pub(crate) fn read(
        slot: &Slot,
        seat: (*mut sockaddr, socklen_t),
        pool: *mut ngx_pool_t,
    ) -> Option<NonNull<Self>> {
        // SAFETY: the pool of the request; null when there is no memory.
        let memory = unsafe { ngx_palloc(pool, size_of::<Self>()) }.cast::<Self>();
        let at = NonNull::new(memory)?;
        let mut text = [0; MAX_NAME];
        let len = slot.copy_address(&mut text);
        let (address, socklen) = match slot.tenancy.inet() {
            Some(SocketAddr::V4(address)) => Address::v4(address),
            Some(SocketAddr::V6(address)) => Address::v6(address),
            None => Address::unix(text.get(UNIX.len()..len).unwrap_or_default()),
        };
        // SAFETY: a field of fresh memory of this size.
        let data = unsafe { &raw mut (*memory).text }.cast::<u8>();
        let name = ngx_str_t { len, data };
        // SAFETY: fresh memory of this size; pools align for any type.
        unsafe { memory.write(Self { seat, name, len: socklen, address, text }) };
        Some(at)
    }
}

impl Address {
    fn v4(address: SocketAddrV4) -> (Self, socklen_t) {
        let v4 = libc::sockaddr_in {
            sin_family: libc::AF_INET as libc::sa_family_t,
            sin_port: address.port().to_be(),
            sin_addr: libc::in_addr { s_addr: address.ip().to_bits().to_be() },
            sin_zero: [0; 8],
        };
        (Self { v4 }, size_of::<libc::sockaddr_in>() as socklen_t)
    }

    fn v6(address: SocketAddrV6) -> (Self, socklen_t) {
        let v6 = libc::sockaddr_in6 {
            sin6_family: libc::AF_INET6 as libc::sa_family_t,
            sin6_port: address.port().to_be(),
            sin6_flowinfo: 0,
            sin6_addr: libc::in6_addr { s6_addr: address.ip().octets() },
            sin6_scope_id: 0,
        };
        (Self { v6 }, size_of::<libc::sockaddr_in6>() as socklen_t)
    }

    fn unix(path: &[u8]) -> (Self, socklen_t) {
        let mut unix =
            libc::sockaddr_un { sun_family: libc::AF_UNIX as libc::sa_family_t, sun_path: [0; SUN_PATH] };
        // The last byte stays 0.
        for (place, byte) in unix.sun_path.iter_mut().take(SUN_PATH - 1).zip(path) {
            *place = *byte as c_char;
        }
        (Self { unix }, size_of::<libc::sockaddr_un>() as socklen_t)
    }
}

/// `random` and `hash … consistent` of these versions make tables of the weights when the configuration is read.
#[cfg(not(nginx1_27_3))]
pub(crate) fn is_fixed(cf: &ngx_conf_t, us: &ngx_http_upstream_srv_conf_t) -> bool {
    /// The configurations of both, which did not change before 1.27.3 and are no part of nginx's headers.
    #[repr(C)]
    struct Random {
        two: ngx_uint_t,
        ranges: *const c_void,
    }
    #[repr(C)]
    struct Hash {
        key: nginx_sys::ngx_http_complex_value_t,
        points: *const c_void,
    }
    // SAFETY: made by that module for this upstream.
    let random = unsafe { conf_of(cf, us, c"ngx_http_upstream_random_module").cast::<Random>().as_ref() };
    // SAFETY: as above.
    let hash = unsafe { conf_of(cf, us, c"ngx_http_upstream_hash_module").cast::<Hash>().as_ref() };
    random.is_some_and(|random| !random.ranges.is_null()) || hash.is_some_and(|hash| !hash.points.is_null())
}

#[cfg(nginx1_27_3)]
pub(crate) fn is_fixed(_: &ngx_conf_t, _: &ngx_http_upstream_srv_conf_t) -> bool {
    false
}
