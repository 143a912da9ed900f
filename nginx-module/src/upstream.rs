//! An upstream that takes part: its peers, and the way in for every request.

use crate::conf::MainConf;
use crate::nginx::rc;
use crate::peer;
use crate::zone::Zone;
use handoff_core::Standing;
use handoff_core::table::{RowId, SlotId};
use nginx_sys::{
    ngx_atomic_t, ngx_http_request_t, ngx_http_upstream_init_peer_pt, ngx_http_upstream_rr_peer_t,
    ngx_http_upstream_rr_peers_t, ngx_http_upstream_srv_conf_t, ngx_int_t, ngx_rwlock_rlock,
    ngx_rwlock_unlock, ngx_rwlock_wlock, ngx_str_t, ngx_time,
};
use rustc_hash::FxHashMap;
use std::cell::{Cell, RefCell};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ptr::NonNull;

pub(crate) struct Upstream {
    pub(crate) name: String,
    pub(crate) addresses: Addresses,
    us: NonNull<ngx_http_upstream_srv_conf_t>,
    original: ngx_http_upstream_init_peer_pt,
    place: Cell<Option<Place>>,
    /// The last planned return of a peer that this process has seen.
    seen: Cell<u64>,
}

/// Where a process counts.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    pub(crate) zone: Zone,
    pub(crate) row: RowId,
}

/// From the address that a balancer chose to its slot, in one step, however many peers there are.
pub(crate) struct Addresses {
    all: Vec<(String, Address)>,
    inet: RefCell<FxHashMap<SocketAddr, SlotId>>,
    unix: RefCell<FxHashMap<Box<[u8]>, SlotId>>,
}

#[derive(Clone, PartialEq, Eq)]
enum Address {
    Inet(SocketAddr),
    Unix(Box<[u8]>),
}

impl Upstream {
    /// Puts us outermost: whatever else wrapped the balancer did so before postconfiguration.
    pub(crate) fn wrap(
        name: String,
        us: &mut ngx_http_upstream_srv_conf_t,
        addresses: Vec<(String, *const libc::sockaddr)>,
    ) -> Option<Self> {
        let original = us.peer.init.replace(init);
        original?;
        let place = Cell::new(None);
        let us = NonNull::from(us);
        Some(Self { name, addresses: Addresses::new(addresses), us, original, place, seen: Cell::new(0) })
    }

    pub(crate) fn join(&self, place: Place) {
        self.place.set(Some(place));
    }

    pub(crate) fn place(&self) -> Option<Place> {
        self.place.get()
    }

    /// nginx's name for it, for the log lines that want one.
    pub(crate) fn host(&self) -> *mut ngx_str_t {
        // SAFETY: the block lives as long as its cycle.
        unsafe { &raw mut (*self.us.as_ptr()).host }
    }

    /// A peer is not punished for failures of the worker that was replaced. Each process looks for itself: it may be of an
    /// older cycle, which has peers of its own.
    #[inline]
    pub(crate) fn refresh(&self, zone: &Zone) {
        let readied = zone.table.header.readied();
        if readied != self.seen.get() {
            self.forgive(zone, self.seen.replace(readied));
        }
    }

    #[cold]
    fn forgive(&self, zone: &Zone, since: u64) {
        let back = |id| zone.table.slot(id).is_some_and(|slot| slot.readied() > since);
        for peers in self.groups() {
            let peers = Peers::write(peers);
            for peer in peers.iter().filter(|peer| self.addresses.slot(peer_address(*peer)).is_some_and(back))
            {
                // SAFETY: a peer of a list that is locked for writing.
                let peer = unsafe { &mut *peer.as_ptr() };
                peer.fails = 0;
                peer.accessed = 0;
                peer.checked = 0;
                peer.effective_weight = peer.weight;
            }
        }
    }

    pub(crate) fn standings(&self) -> Vec<Standing> {
        let mut standings = Vec::new();
        for (backup, peers) in self.groups().enumerate() {
            let peers = Peers::read(peers);
            standings.extend(peers.iter().filter_map(|peer| self.standing(peer, backup > 0)));
        }
        standings
    }

    fn standing(&self, peer: NonNull<ngx_http_upstream_rr_peer_t>, backup: bool) -> Option<Standing> {
        let slot = self.addresses.slot(peer_address(peer))?;
        // SAFETY: a peer of a list that is locked.
        let peer = unsafe { peer.as_ref() };
        let rested = ngx_time().saturating_sub(peer.checked) > peer.fail_timeout;
        let unavail = peer.max_fails > 0 && peer.fails >= peer.max_fails && !rested;
        let weight = u32::try_from(peer.weight).unwrap_or_default();
        Some(Standing { slot, backup, weight, available: peer.down == 0 && !unavail, unavail })
    }

    /// The primary peers, then the backups. With a `zone`, which `handoff` demands, nginx itself takes this data for
    /// round robin's, whatever balancer stands on top of it.
    fn groups(&self) -> impl Iterator<Item = NonNull<ngx_http_upstream_rr_peers_t>> {
        // SAFETY: the block lives as long as its cycle; nginx replaced its data by the shared copy before workers began.
        let first = NonNull::new(unsafe { (*self.us.as_ptr()).peer.data }.cast());
        std::iter::successors(first, |peers: &NonNull<ngx_http_upstream_rr_peers_t>| {
            // SAFETY: lists are never freed while their cycle lives.
            NonNull::new(unsafe { peers.as_ref() }.next)
        })
    }
}

/// nginx calls this for each request that is to be passed to the upstream.
unsafe extern "C" fn init(r: *mut ngx_http_request_t, us: *mut ngx_http_upstream_srv_conf_t) -> ngx_int_t {
    // SAFETY: nginx passes the block of the upstream.
    let Some(upstream) = crate::conf::upstream_of(unsafe { &*us }) else { return rc::ERROR };
    let Some(original) = upstream.original else { return rc::ERROR };
    // SAFETY: called as nginx would have called it.
    let status = unsafe { original(r, us) };
    if status != rc::OK {
        return status;
    }
    peer::wrap(r, upstream)
}

/// A locked list of peers, with the lock that nginx's own balancers take. Nothing is called and nothing can fail while it
/// is held.
struct Peers {
    peers: NonNull<ngx_http_upstream_rr_peers_t>,
    lock: *mut ngx_atomic_t,
}

impl Peers {
    fn read(peers: NonNull<ngx_http_upstream_rr_peers_t>) -> Self {
        let lock = Self::lock(peers);
        // SAFETY: the lock of a list that lives as long as its cycle.
        unsafe { ngx_rwlock_rlock(lock) };
        Self { peers, lock }
    }

    fn write(peers: NonNull<ngx_http_upstream_rr_peers_t>) -> Self {
        let lock = Self::lock(peers);
        // SAFETY: as above.
        unsafe { ngx_rwlock_wlock(lock) };
        Self { peers, lock }
    }

    fn lock(peers: NonNull<ngx_http_upstream_rr_peers_t>) -> *mut ngx_atomic_t {
        // SAFETY: a field of a list that lives as long as its cycle.
        unsafe { &raw mut (*peers.as_ptr()).rwlock }
    }

    fn iter(&self) -> impl Iterator<Item = NonNull<ngx_http_upstream_rr_peer_t>> {
        // SAFETY: the list is locked.
        let first = NonNull::new(unsafe { self.peers.as_ref() }.peer);
        // SAFETY: as above; each peer links to the next.
        std::iter::successors(first, |peer| NonNull::new(unsafe { peer.as_ref() }.next))
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        // SAFETY: locked by this guard.
        unsafe { ngx_rwlock_unlock(self.lock) };
    }
}

fn peer_address(peer: NonNull<ngx_http_upstream_rr_peer_t>) -> *const libc::sockaddr {
    // SAFETY: a peer of a locked list.
    unsafe { peer.as_ref() }.sockaddr.cast_const().cast()
}

// === impl Addresses ===

impl Addresses {
    fn new(all: Vec<(String, *const libc::sockaddr)>) -> Self {
        let all = all.into_iter().filter_map(|(name, at)| Some((name, Address::read(at)?))).collect();
        Self { all, inet: RefCell::default(), unix: RefCell::default() }
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.all.iter().map(|(name, _)| name.as_str())
    }

    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }

    /// Gives each address its slot, in the master, before there are workers.
    pub(crate) fn fill(&self, mut register: impl FnMut(&str) -> Option<SlotId>) {
        let (mut inet, mut unix) = (self.inet.borrow_mut(), self.unix.borrow_mut());
        for (name, address) in &self.all {
            let Some(slot) = register(name) else { continue };
            match address {
                Address::Inet(address) => inet.insert(*address, slot),
                Address::Unix(path) => unix.insert(path.clone(), slot),
            };
        }
    }

    #[inline]
    pub(crate) fn slot(&self, at: *const libc::sockaddr) -> Option<SlotId> {
        if let Some(address) = inet(at) {
            return self.inet.borrow().get(&address).copied();
        }
        self.unix.borrow().get(unix(at)?).copied()
    }
}

impl Address {
    fn read(at: *const libc::sockaddr) -> Option<Self> {
        inet(at).map(Self::Inet).or_else(|| Some(Self::Unix(unix(at)?.into())))
    }
}

fn family(at: *const libc::sockaddr) -> libc::c_int {
    // SAFETY: null, or an address that a balancer or the configuration gave us.
    unsafe { at.as_ref() }.map_or(libc::AF_UNSPEC, |at| libc::c_int::from(at.sa_family))
}

#[inline]
fn inet(at: *const libc::sockaddr) -> Option<SocketAddr> {
    match family(at) {
        libc::AF_INET => {
            // SAFETY: an address of this family is of this size.
            let at = unsafe { &*at.cast::<libc::sockaddr_in>() };
            let ip = Ipv4Addr::from(u32::from_be(at.sin_addr.s_addr));
            Some(SocketAddr::from((ip, u16::from_be(at.sin_port))))
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let at = unsafe { &*at.cast::<libc::sockaddr_in6>() };
            Some(SocketAddr::from((Ipv6Addr::from(at.sin6_addr.s6_addr), u16::from_be(at.sin6_port))))
        }
        _ => None,
    }
}

fn unix<'a>(at: *const libc::sockaddr) -> Option<&'a [u8]> {
    if family(at) != libc::AF_UNIX {
        return None;
    }
    // SAFETY: an address of this family is of this size.
    let path = unsafe { &(*at.cast::<libc::sockaddr_un>()).sun_path };
    // SAFETY: bytes are bytes, signed or not.
    let path = unsafe { std::slice::from_raw_parts(path.as_ptr().cast::<u8>(), path.len()) };
    path.split(|byte| *byte == 0).next()
}

impl MainConf {
    pub(crate) fn upstream(&self, name: &str) -> Option<&Upstream> {
        self.upstreams().find(|upstream| upstream.name == name)
    }
}
