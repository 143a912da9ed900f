//! An upstream that takes part: its peers, and the way in for every request.

use crate::address::{Addresses, inet};
use crate::closed::Closed;
use crate::conf::MainConf;
use crate::hold::Hold;
use crate::nginx::{global, moment, rc, text};
use crate::peer;
use crate::seat::{Seats, is_seat};
use crate::turnstiles::Turnstiles;
use crate::zone::Zone;
use handoff_core::hold::{Outlook, Queue};
use handoff_core::plus::Server;
use handoff_core::retry::Budget;
use handoff_core::reuse::Reuse;
use handoff_core::slow_start::Share;
use handoff_core::table::{RowId, SlotId};
use handoff_core::{Moment, Standing, Table, Turnstile};
use handoff_wire::Span;
use nginx_sys::{
    ngx_http_request_t, ngx_http_upstream_init_peer_pt, ngx_http_upstream_rr_peer_t,
    ngx_http_upstream_rr_peers_t, ngx_http_upstream_srv_conf_t, ngx_int_t, ngx_str_t, ngx_time,
};
use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashSet;
use std::ffi::c_void;
use std::ptr::NonNull;

pub(crate) struct Upstream {
    pub(crate) name: String,
    pub(crate) addresses: Addresses,
    pub(crate) seats: Seats,
    pub(crate) reuse: Reuse,
    pub(crate) hold: Hold,
    pub(crate) closed: Closed,
    pub(crate) retry: Option<Budget>,
    pub(crate) slow_start: Option<Span>,
    /// Known from the moment that nothing of this configuration can fail any more.
    peers: RefCell<Vec<Peer>>,
    us: NonNull<ngx_http_upstream_srv_conf_t>,
    original: ngx_http_upstream_init_peer_pt,
    place: OnceCell<Place>,
    /// The last planned return of a peer that this process has seen.
    seen: Cell<u64>,
    /// The last number of [changes](handoff_core::table::Header::changes) that it knows of; it begins with what is none.
    changes: Cell<u64>,
    /// Something has to be minded beside the peer that the balancer chooses.
    is_unusual: Cell<bool>,
}

/// A peer as nginx keeps it, in the shared memory of its cycle.
///
/// It is read and forgiven without the lock that nginx's balancers take: that lock has no owner, so if a worker were
/// stopped or killed while it held it, every other worker would spin at its next request. Each field is one word; what is
/// read may be a moment old.
struct Peer {
    /// Its place in nginx's lists.
    number: u32,
    slot: SlotId,
    backup: bool,
    /// Whether it is a peer only while somebody sits there.
    is_seat: bool,
    /// What the configuration says.
    weight: usize,
    at: NonNull<ngx_http_upstream_rr_peer_t>,
}

/// The place of a field of a peer, or of a list.
macro_rules! word {
    ($at:expr, $field:ident) => {
        // SAFETY: lists and the peers of the configuration live as long as their cycle.
        unsafe { &raw mut (*$at.as_ptr()).$field }
    };
}
pub(crate) use word;

/// What a block says of its requests.
pub(crate) struct Rules {
    pub(crate) reuse: Reuse,
    pub(crate) queue: Option<Queue>,
    pub(crate) retry: Option<Budget>,
    pub(crate) slow_start: Option<Span>,
}

/// Where a process counts the requests of an upstream.
pub(crate) struct Place {
    pub(crate) zone: Zone,
    pub(crate) configuration: u64,
    pub(crate) row: RowId,
    turnstiles: Turnstiles,
}

impl Upstream {
    /// Puts us outermost: whatever else wrapped the balancer did so before postconfiguration.
    pub(crate) fn wrap(
        name: String,
        us: &mut ngx_http_upstream_srv_conf_t,
        addresses: Vec<(String, *const libc::sockaddr)>,
        seats: Seats,
        rules: Rules,
        keepalive: *const c_void,
    ) -> Option<Self> {
        let original = us.peer.init.replace(init);
        original?;
        let us = NonNull::from(us);
        Some(Self {
            name,
            addresses: Addresses::new(addresses),
            seats,
            reuse: rules.reuse,
            hold: Hold::new(rules.queue),
            closed: Closed::new(keepalive),
            retry: rules.retry,
            slow_start: rules.slow_start,
            peers: RefCell::default(),
            us,
            original,
            place: OnceCell::new(),
            seen: Cell::new(0),
            changes: Cell::new(u64::MAX),
            is_unusual: Cell::new(true),
        })
    }

    /// A process takes its place, once.
    pub(crate) fn join(&self, zone: Zone, configuration: u64, row: RowId) {
        let peers = self.peers.borrow();
        let turnstile = |peer: &Peer| Some((peer_address(peer.at), zone.table.turnstile(row, peer.slot)?));
        let listed: Vec<_> = peers.iter().filter_map(turnstile).collect();
        let slots = self.addresses.slots().into_iter();
        let all = slots.filter_map(|slot| zone.table.turnstile(row, slot));
        let turnstiles = Turnstiles::new(&listed, all);
        _ = self.place.set(Place { zone, configuration, row, turnstiles });
    }

    pub(crate) fn place(&self) -> Option<&Place> {
        self.place.get()
    }

    /// Where a request to the peer that a balancer chose begins. A peer that a resolver found has its address wherever nginx had
    /// memory for it, and one that has no slot is none of ours.
    #[inline]
    pub(crate) fn turnstile<'a>(
        &self,
        place: &'a Place,
        at: *const libc::sockaddr,
    ) -> Option<&'a Turnstile<'static>> {
        place.turnstiles.at(at).or_else(|| place.turnstiles.of(self.addresses.slot(at)?))
    }

    /// nginx's name for it, for the log lines that want one.
    pub(crate) fn host(&self) -> *mut ngx_str_t {
        // SAFETY: the block lives as long as its cycle.
        unsafe { &raw mut (*self.us.as_ptr()).host }
    }

    /// A peer is not punished for failures of the worker that was replaced, and nginx's list has those peers that were added; the
    /// balancer is told of those that marks keep requests away from. Of the processes that share a list of peers one clears and writes them; those of an older cycle, which has a list of its own,
    /// each look for themselves.
    #[inline]
    pub(crate) fn refresh(&self, zone: &Zone) {
        let changes = zone.table.header.changes();
        if changes != self.changes.get() {
            self.catch_up(zone, changes);
        }
    }

    #[cold]
    fn catch_up(&self, zone: &Zone, changes: u64) {
        let before = self.changes.replace(changes);
        let readied = zone.table.header.readied();
        let since = self.seen.replace(readied);
        if readied != since {
            self.forgive(zone, since);
            if !self.seats.follow(&zone.table) {
                self.seen.set(since);
                self.changes.set(before);
            }
        }
        self.closed.look(&zone.table);
        let may_be_paused = self.hold.room().is_some_and(|room| room.pause.is_there());
        self.is_unusual.set(self.seats.count > 0 || self.closed.is_any() || may_be_paused);
    }

    /// What this process knows of.
    pub(crate) fn changes(&self) -> u64 {
        self.changes.get()
    }

    fn forgive(&self, zone: &Zone, since: u64) {
        let is_running =
            self.place.get().is_some_and(|place| zone.table.header.is_running(place.configuration));
        let is_due = |peer: &&Peer| {
            let back = zone.table.slot(peer.slot).filter(|slot| slot.readied() > since);
            back.is_some_and(|slot| !is_running || slot.forgive())
        };
        self.peers.borrow().iter().filter(is_due).for_each(Peer::forgive);
    }

    /// nginx has replaced its lists by the shared copies, and there are no workers of this configuration yet: the lists
    /// are ours alone.
    pub(crate) fn meet_peers(&self, zone: &Zone) {
        let mut met = Vec::new();
        let groups = self.groups().enumerate();
        let all = groups.flat_map(|(group, peers)| listed(peers).map(move |at| (group > 0, at)));
        for (number, (backup, at)) in (0..).zip(all.filter(|&(_, at)| is_lasting(at))) {
            let address = peer_address(at);
            if let Some(slot) = self.addresses.slot(address) {
                let is_seat = self.seats.count > 0 && is_seat(address);
                let weight = usize::try_from(read(word!(at, weight))).unwrap_or(1);
                met.push(Peer { number, slot, backup, is_seat, weight, at });
            }
        }
        self.peers.replace(met);
        self.seats.meet(self.groups().next(), |at| self.addresses.slot(at));
        self.closed.meet(self.groups(), |peer| self.addresses.slot(peer_address(peer)));
        self.seats.follow(&zone.table);
    }

    /// Those that are there: a seat is a peer while somebody sits in it.
    fn members<'a>(&'a self, zone: &'a Zone, peers: &'a [Peer]) -> impl Iterator<Item = &'a Peer> + Clone {
        let is_there = |peer: &&Peer| !peer.is_seat || self.seats.occupant(&zone.table, peer.slot).is_some();
        peers.iter().filter(is_there)
    }

    /// Whether a connection to this address leads to that peer.
    pub(crate) fn leads_to(&self, table: &Table<'_>, at: *const libc::sockaddr, id: SlotId) -> bool {
        let is_added = || {
            let peer = self.seats.slots().contains(&id).then(|| self.seats.occupant(table, id)).flatten();
            peer.and_then(|slot| slot.tenancy.inet()).is_some_and(|peer| inet(at) == Some(peer))
        };
        self.addresses.slot(at) == Some(id) || is_added()
    }

    /// Gives each peer the weight that is due to it now. Every process does so, again and again: of two that do so at the same
    /// time, or beside a balancer, one may write what is a moment old.
    pub(crate) fn weigh(&self, zone: &Zone, now: Moment) {
        let Some(length) = self.slow_start else { return };
        let peers = self.peers.borrow();
        let slots =
            || self.members(zone, &peers).filter_map(|peer| Some((peer, zone.table.slot(peer.slot)?)));
        // nginx asks the backups when none of the others is left.
        for backup in [false, true] {
            let group = || slots().filter(move |(peer, _)| peer.backup == backup);
            let serving =
                group().filter(|(peer, slot)| slot.gate.state().serves() && peer.standing(zone).available);
            let most = serving.map(|(_, slot)| slot.ramp.share(length, now)).max().unwrap_or(Share::WHOLE);
            group().for_each(|(peer, slot)| {
                let share = slot.ramp.share(length, now).beside(most);
                peer.weigh(share.of(peer.weight(zone)));
            });
        }
    }

    /// Whether there are others, and marks keep requests away from all of these. nginx thinks that it could go there.
    pub(crate) fn others_are_closed(&self, zone: &Zone, id: SlotId) -> bool {
        let peers = self.peers.borrow();
        let serves = |slot| zone.table.slot(slot).is_some_and(|slot| slot.gate.state().serves());
        // An address may be there twice.
        let members = || self.members(zone, &peers);
        let others = || members().map(|peer| peer.slot).filter(|&slot| slot != id);
        let count = members().count();
        others().count().saturating_add(1) == count && count > 1 && !others().any(serves)
    }

    /// How many other peers could serve now.
    pub(crate) fn serving_beside(&self, zone: &Zone, id: SlotId) -> usize {
        let is_open = |id| zone.table.slot(id).is_some_and(|slot| slot.gate.state().serves());
        let serves = |peer: &&Peer| peer.slot != id && is_open(peer.slot) && peer.standing(zone).available;
        self.members(zone, &self.peers.borrow()).filter(serves).count()
    }

    /// Whether nothing has to be minded but the peer that the balancer chooses, as far as this process knows.
    #[inline]
    pub(crate) fn is_plain(&self) -> bool {
        !self.is_unusual.get() && !self.hold.flows()
    }

    /// Whether nobody may begin a request here, whatever the marks of its peers say.
    #[inline]
    pub(crate) fn is_paused(&self) -> bool {
        self.hold.is_paused(|| global!(ngx_current_msec) as u64)
    }

    /// Whether this peer may serve, and no other one. `after_failing`: once more, and nginx does not leave it out for that.
    pub(crate) fn is_alone(&self, zone: &Zone, id: SlotId, after_failing: bool) -> bool {
        let peers = self.peers.borrow();
        let is_single = self.members(zone, &peers).nth(1).is_none();
        let serves = |peer: &Peer| {
            let standing = peer.standing(zone);
            let stays = !after_failing || is_single || read(word!(peer.at, max_fails)) == 0;
            standing.available && !standing.full && stays
        };
        zone.table.slot(id).is_some_and(|slot| slot.gate.state().serves())
            && self.members(zone, &peers).filter(|peer| peer.slot == id).any(serves)
            && self.serving_beside(zone, id) == 0
    }

    /// How many requests are with its peers.
    pub(crate) fn active(&self, zone: &Zone) -> u64 {
        let peers = self.peers.borrow();
        zone.table.active(peers.iter().map(|peer| peer.slot))
    }

    /// What those may expect who wait.
    pub(crate) fn outlook(&self, zone: &Zone, now: Moment) -> Outlook {
        if self.hold.is_paused(|| now.mono) { Outlook::Paused } else { self.outlook_of_peers(zone, now) }
    }

    pub(crate) fn outlook_of_peers(&self, zone: &Zone, now: Moment) -> Outlook {
        let peers = self.peers.borrow();
        let members = self.members(zone, &peers);
        Outlook::of(members.filter_map(|peer| Some((peer.standing(zone), zone.table.slot(peer.slot)?))), now)
    }

    /// Lets the balancer begin with a request.
    pub(crate) fn begin(&self, r: *mut ngx_http_request_t) -> ngx_int_t {
        let Some(original) = self.original else { return rc::ERROR };
        // SAFETY: called as nginx would have called it.
        unsafe { original(r, self.us.as_ptr()) }
    }

    /// Its peers, each address once.
    pub(crate) fn servers(&self, zone: &Zone) -> Vec<Server> {
        let peers = self.peers.borrow();
        let mut met = HashSet::new();
        let members = self.members(zone, &peers).filter(|peer| met.insert(peer.slot));
        members.filter_map(|peer| self.server(zone, peer)).collect()
    }

    /// Where nginx keeps its peers.
    pub(crate) fn zone_name(&self) -> String {
        // SAFETY: the block lives as long as its cycle.
        let zone = unsafe { self.us.as_ref() }.shm_zone;
        // SAFETY: `handoff` demands one; it lives as long.
        unsafe { zone.as_ref() }.map(|zone| text(&zone.shm.name).into_owned()).unwrap_or_default()
    }

    /// As the configuration says, and those who added peers.
    fn server(&self, zone: &Zone, peer: &Peer) -> Option<Server> {
        let mut server = peer.server(zone, self.slow_start.unwrap_or_default())?;
        if peer.is_seat {
            let slot = self.seats.occupant(&zone.table, peer.slot)?;
            server.name.clone_from(&server.address);
            server.max_fails = slot.tenancy.terms().max_fails.into();
        } else if let Some(max_fails) = self.seats.max_fails(peer.at) {
            server.max_fails = max_fails as u64;
        }
        Some(server)
    }

    pub(crate) fn standings(&self, zone: &Zone) -> Vec<Standing> {
        self.members(zone, &self.peers.borrow()).map(|peer| peer.standing(zone)).collect()
    }

    /// The primary peers, then the backups. With a `zone`, which `handoff` demands, nginx itself takes this data for
    /// round robin's, whatever balancer stands on top of it.
    fn groups(&self) -> impl Iterator<Item = NonNull<ngx_http_upstream_rr_peers_t>> + Clone {
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
    // A worker that could not take its place serves as nginx alone would.
    let Some(place) = upstream.place() else { return upstream.begin(r) };
    let mut version = 0;
    if upstream.seats.count > 0 {
        upstream.refresh(&place.zone);
        version = upstream.seats.version();
    }
    let status = upstream.begin(r);
    if status != rc::OK {
        return status;
    }
    // SAFETY: nginx passes a valid request.
    peer::wrap(unsafe { &*r }, upstream, place, version)
}

// === impl Peer ===

impl Peer {
    fn standing(&self, zone: &Zone) -> Standing {
        let checked = read(word!(self.at, checked));
        let rested = ngx_time().saturating_sub(checked) > read(word!(self.at, fail_timeout));
        let max_fails = read(word!(self.at, max_fails));
        let unavail = max_fails > 0 && read(word!(self.at, fails)) >= max_fails && !rested;
        let weight = u32::try_from(self.weight(zone)).unwrap_or_default();
        let available = read(word!(self.at, down)) == 0 && !unavail;
        let max_conns = read(word!(self.at, max_conns));
        let full = max_conns > 0 && read(word!(self.at, conns)) >= max_conns;
        Standing { slot: self.slot, backup: self.backup, weight, available, unavail, full }
    }

    /// As the configuration says, or whoever added it: what nginx has is less while a slow start lasts.
    fn weight(&self, zone: &Zone) -> usize {
        let slot = zone.table.slot(self.slot).filter(|_| self.is_seat);
        slot.map_or(self.weight, |slot| slot.tenancy.terms().weight as usize)
    }

    fn server(&self, zone: &Zone, slow_start: Span) -> Option<Server> {
        let number = |count| u64::try_from(count).unwrap_or_default();
        Some(Server {
            id: self.number,
            address: zone.table.slot(self.slot)?.address(),
            name: text(&read(word!(self.at, server))).into_owned(),
            weight: u32::try_from(self.weight(zone)).unwrap_or_default(),
            max_conns: read(word!(self.at, max_conns)) as u64,
            max_fails: read(word!(self.at, max_fails)) as u64,
            fail_timeout: Span::from_secs(number(read(word!(self.at, fail_timeout)))),
            slow_start,
            backup: self.backup,
            down: read(word!(self.at, down)) != 0,
        })
    }

    fn forgive(&self) {
        write(word!(self.at, fails), 0);
        write(word!(self.at, accessed), 0);
        write(word!(self.at, checked), 0);
        write(word!(self.at, effective_weight), read(word!(self.at, weight)));
    }

    /// What nginx has taken off the weight for failures stays off: it gives it back itself, choice by choice.
    fn weigh(&self, due: usize) {
        let due = ngx_int_t::try_from(due).unwrap_or(ngx_int_t::MAX);
        let (was, effective) = (read(word!(self.at, weight)), read(word!(self.at, effective_weight)));
        if due != was {
            write(word!(self.at, weight), due);
        }
        if due != effective && (effective >= was || effective > due) {
            write(word!(self.at, effective_weight), due);
        }
    }
}

pub(crate) fn read<T: Copy>(at: *const T) -> T {
    // SAFETY: a word of a peer, which other processes write as a whole.
    unsafe { at.read_volatile() }
}

pub(crate) fn write<T: Copy>(at: *mut T, value: T) {
    // SAFETY: as above, and they read it as a whole.
    unsafe { at.write_volatile(value) };
}

/// The peers of a list, which is of a cycle that still lives.
pub(crate) fn listed(
    peers: NonNull<ngx_http_upstream_rr_peers_t>,
) -> impl Iterator<Item = NonNull<ngx_http_upstream_rr_peer_t>> {
    // SAFETY: lists are never freed while their cycle lives.
    let first = NonNull::new(unsafe { peers.as_ref() }.peer);
    // SAFETY: each peer links to the next.
    std::iter::successors(first, |peer| NonNull::new(unsafe { peer.as_ref() }.next))
}

/// A peer that a resolver found may be freed at any time; those that the configuration names stay.
#[cfg(nginx1_27_3)]
fn is_lasting(peer: NonNull<ngx_http_upstream_rr_peer_t>) -> bool {
    // SAFETY: a peer of a list.
    unsafe { peer.as_ref() }.host.is_null()
}

#[cfg(not(nginx1_27_3))]
fn is_lasting(_: NonNull<ngx_http_upstream_rr_peer_t>) -> bool {
    true
}

fn peer_address(peer: NonNull<ngx_http_upstream_rr_peer_t>) -> *const libc::sockaddr {
    // SAFETY: a peer of a list.
    unsafe { peer.as_ref() }.sockaddr.cast_const().cast()
}

impl MainConf {
    pub(crate) fn upstream(&self, name: &str) -> Option<&Upstream> {
        self.upstreams().find(|upstream| upstream.name == name)
    }

    pub(crate) fn weigh(&self, zone: &Zone) {
        let now = moment();
        self.upstreams().for_each(|upstream| upstream.weigh(zone, now));
    }
}
