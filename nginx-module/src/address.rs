//! Addresses as nginx has them, and which slot each of them is.

use crate::seat::Seats;
use handoff_core::table::SlotId;
use rustc_hash::FxHashMap;
use std::cell::RefCell;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

/// From the address that a balancer chose to its slot, in one step, however many peers there are.
pub(crate) struct Addresses {
    all: Vec<(String, Address)>,
    inet: RefCell<FxHashMap<SocketAddr, SlotId>>,
    unix: RefCell<FxHashMap<Box<[u8]>, SlotId>>,
}

enum Address {
    Inet(SocketAddr),
    Unix(Box<[u8]>),
}

// === impl Addresses ===

impl Addresses {
    pub(crate) fn new(all: Vec<(String, *const libc::sockaddr)>) -> Self {
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

    /// Gives each seat its slot.
    pub(crate) fn seat(&self, seats: &Seats) {
        self.unix.borrow_mut().extend(seats.paths());
    }

    /// The slots of the peers that the configuration names.
    pub(crate) fn slots(&self) -> Vec<SlotId> {
        let (inet, unix) = (self.inet.borrow(), self.unix.borrow());
        inet.values().chain(unix.values()).copied().collect()
    }

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

pub(crate) fn inet(at: *const libc::sockaddr) -> Option<SocketAddr> {
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

/// The file of a unix socket; empty if it has none.
pub(crate) fn unix<'a>(at: *const libc::sockaddr) -> Option<&'a [u8]> {
    if family(at) != libc::AF_UNIX {
        return None;
    }
    // SAFETY: an address of this family is of this size.
    let path = unsafe { &(*at.cast::<libc::sockaddr_un>()).sun_path };
    // SAFETY: bytes are bytes, signed or not.
    let path = unsafe { std::slice::from_raw_parts(path.as_ptr().cast::<u8>(), path.len()) };
    path.split(|byte| *byte == 0).next()
}
