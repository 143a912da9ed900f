//! Which peers marks keep requests away from, as nginx's balancers understand it.
//!
//! A balancer that chose such a peer chooses again, and the more of them there are, the more often; most balancers walk their
//! whole list each time. But whom a request has tried they pass by, as they pass those that are `down`: every stock balancer has
//! a bit for each peer of its list, in round robin's record of the request, with which its own data begin. For as long as it
//! chooses, the bits of those whose gate is closed are set there, too.
//!
//! They only spare choices that would be refused. Who was chosen has still to pass the gate, and that nobody is left is believed
//! only after a look at the gates themselves. Where the record is not found, because the balancer is of another kind, or if peers
//! come and go with what a resolver says, or if there are [few](FEW), there are no such bits.

use crate::hooks::Hooks;
use crate::upstream::{listed, read, word};
use handoff_core::Table;
use handoff_core::table::SlotId;
use nginx_sys::{
    ngx_http_request_t, ngx_http_upstream_rr_peer_data_t as Record, ngx_http_upstream_rr_peer_t,
    ngx_http_upstream_rr_peers_t,
};
use std::cell::{Cell, OnceCell};
use std::ffi::c_void;
use std::ptr::{self, NonNull};

/// Among so many peers choosing again costs no more than knowing better.
const FEW: usize = 8;

/// How many peers one word has bits for.
const BITS: usize = usize::BITS as usize;

/// Of one upstream, as this process last saw it.
pub(crate) struct Closed {
    lists: OnceCell<Vec<List>>,
    /// What nginx's `keepalive` keeps of the upstream; null if this nginx has none.
    keepalive: *const c_void,
    is_any: Cell<bool>,
}

type Peer = (NonNull<ngx_http_upstream_rr_peer_t>, Option<SlotId>);

/// The primary peers, or the backups.
struct List {
    at: NonNull<ngx_http_upstream_rr_peers_t>,
    peers: Vec<Peer>,
    words: Vec<Word>,
}

/// The bits of so many peers.
#[derive(Default)]
struct Word {
    closed: Cell<usize>,
    /// Those that are set in a request's record now.
    set: Cell<usize>,
}

/// Bits that are set in a request's record.
pub(crate) struct Told<'a> {
    record: NonNull<Record>,
    tried: NonNull<usize>,
    list: &'a List,
}

/// The data of `keepalive` for a request, as all of its releases have them. They are no part of nginx's headers.
#[repr(C)]
struct Keepalive {
    conf: *const c_void,
    upstream: *const c_void,
    data: *mut c_void,
}

// === impl Closed ===

impl Closed {
    pub(crate) fn new(keepalive: *const c_void) -> Self {
        Self { lists: OnceCell::new(), keepalive, is_any: Cell::new(false) }
    }

    /// Learns nginx's lists, which no worker knows yet.
    pub(crate) fn meet(
        &self,
        lists: impl Iterator<Item = NonNull<ngx_http_upstream_rr_peers_t>> + Clone,
        slot: impl Fn(NonNull<ngx_http_upstream_rr_peer_t>) -> Option<SlotId>,
    ) {
        let are_many = lists.clone().any(|list| listed(list).nth(FEW).is_some());
        if !are_many || lists.clone().any(changes) {
            return;
        }
        let lists = lists.map(|at| {
            let peers: Vec<_> = listed(at).map(|peer| (peer, slot(peer))).collect();
            let words = peers.chunks(BITS).map(|_| Word::default()).collect();
            List { at, peers, words }
        });
        _ = self.lists.set(lists.collect());
    }

    /// Looks at the gates.
    #[cold]
    pub(crate) fn look(&self, table: &Table<'_>) {
        let lists = self.lists.get().map(Vec::as_slice).unwrap_or_default();
        lists.iter().for_each(|list| list.look(table));
        self.is_any.set(lists.iter().flat_map(|list| &list.words).any(|word| word.closed.get() != 0));
    }

    #[inline]
    pub(crate) fn is_any(&self) -> bool {
        self.is_any.get()
    }

    /// Tells the balancer behind these hooks, for the time that it chooses. `None`: there is nothing to tell, or nobody to tell it
    /// to.
    #[cold]
    pub(crate) fn tell(&self, r: &ngx_http_request_t, hooks: &Hooks) -> Option<Told<'_>> {
        let lists = self.lists.get()?;
        let record = self.record(r, hooks)?;
        // SAFETY: in the pool of the request. It is round robin's record if it leads to one of these lists.
        let Record { peers, tried, .. } = unsafe { record.read() };
        let list = lists.iter().find(|list| ptr::eq(list.at.as_ptr(), peers))?;
        let told = Told { record, tried: NonNull::new(tried)?, list };
        told.set().then_some(told)
    }

    /// What round robin keeps of the request.
    fn record(&self, r: &ngx_http_request_t, hooks: &Hooks) -> Option<NonNull<Record>> {
        let keepalive = NonNull::new(hooks.data.cast::<Keepalive>())?;
        // SAFETY: a balancer's data are in the pool of the request, which ends behind none of them so early.
        let Keepalive { conf, upstream, data } = unsafe { keepalive.read() };
        let is_keepalives = !conf.is_null() && conf == self.keepalive && ptr::eq(upstream, r.upstream.cast());
        NonNull::new(if is_keepalives { data } else { hooks.data }).map(NonNull::cast)
    }
}

/// Whether peers may come and go in a list.
#[cfg(nginx1_27_3)]
fn changes(list: NonNull<ngx_http_upstream_rr_peers_t>) -> bool {
    // SAFETY: lists are never freed while their cycle lives.
    !unsafe { list.as_ref() }.resolve.is_null() || listed(list).any(|peer| !read(word!(peer, host)).is_null())
}

#[cfg(not(nginx1_27_3))]
fn changes(_: NonNull<ngx_http_upstream_rr_peers_t>) -> bool {
    false
}

// === impl List ===

impl List {
    fn look(&self, table: &Table<'_>) {
        let is_closed = |&(peer, slot): &Peer| {
            let slot = slot.and_then(|slot| table.slot(slot));
            // Whoever is `down` to nginx is passed by anyhow.
            slot.is_some_and(|slot| !slot.gate.state().begins_requests()) && read(word!(peer, down)) == 0
        };
        for (word, peers) in self.words.iter().zip(self.peers.chunks(BITS)) {
            let bits = peers.iter().enumerate().filter(|(_, peer)| is_closed(peer));
            word.closed.set(bits.fold(0, |word, (number, _)| word | 1 << number));
        }
    }
}

// === impl Told ===

impl Told<'_> {
    /// The words of the record, and ours.
    fn words(&self) -> impl Iterator<Item = (NonNull<usize>, &Word)> {
        // SAFETY: nginx has a word for each BITS peers of the longer list.
        let tried = |number| unsafe { self.tried.add(number) };
        self.list.words.iter().enumerate().map(move |(number, word)| (tried(number), word))
    }

    /// Whether there was anything to set. What the balancer itself has set stays its own.
    fn set(&self) -> bool {
        let mut is_any = false;
        for (tried, word) in self.words() {
            // SAFETY: a word of the record.
            let was = unsafe { tried.read() };
            let set = word.closed.get() & !was;
            word.set.set(set);
            // SAFETY: as above.
            unsafe { tried.write(was | set) };
            is_any |= set != 0;
        }
        is_any
    }

    /// The balancer has chosen.
    pub(crate) fn end(&self) {
        // SAFETY: round robin's record of the request.
        let peers = unsafe { (*self.record.as_ptr()).peers };
        // A balancer that goes over to the backups forgets all bits.
        if !ptr::eq(peers, self.list.at.as_ptr()) {
            return;
        }
        for (tried, word) in self.words() {
            // SAFETY: a word of the record.
            let is = unsafe { tried.read() };
            // SAFETY: as above.
            unsafe { tried.write(is & !word.set.get()) };
        }
    }

    /// Whether one of those that the balancer was told of is open, as far as this process knows by now.
    pub(crate) fn was_wrong(&self) -> bool {
        self.list.words.iter().any(|word| word.set.get() & !word.closed.get() != 0)
    }
}
