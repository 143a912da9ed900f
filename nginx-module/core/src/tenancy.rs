//! A slot that an upstream has for peers that come and go while nginx runs, and who has it.
//!
//! Order of events: `handoff_slots` [reserves](crate::Table::reserve) slots, which are vacant. A peer that is added takes one;
//! when it is removed its gate closes, and it is leaving until nothing of it is in flight in any living process. Claim, then
//! look: a request that was admitted has counted itself, so whoever finds the count at zero behind a closed gate may give the
//! slot to another peer, and what a request reads of its peer's address while it is counted is whole.
//!
//! The state is written last and cleared first: a writer that dies halfway leaves a slot vacant.

use crate::endpoint::Endpoint;
use crate::sync::{AtomicU32, AtomicU64, Ordering};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// All zero is a slot of a peer that nginx.conf names.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Tenancy {
    state: AtomicU32,
    weight: AtomicU32,
    max_fails: AtomicU32,
    max_conns: AtomicU32,
    /// Seconds.
    fail_timeout: AtomicU64,
    /// The newest configuration that names the peer itself.
    named: AtomicU64,
    /// 0: a unix socket, whose path is in the name of the peer.
    port: AtomicU32,
    is_v6: AtomicU32,
    ip: [AtomicU64; 2],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tenure {
    /// nginx.conf names the peer.
    Configured,
    /// Nobody has the slot.
    Vacant,
    /// A peer that was added.
    Taken,
    /// It was removed, and may have requests still.
    Leaving,
}

/// How a peer takes part, in nginx's terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    pub weight: u32,
    pub max_fails: u32,
    pub max_conns: u32,
    /// Seconds.
    pub fail_timeout: u64,
}

impl Tenancy {
    #[inline]
    pub fn tenure(&self) -> Tenure {
        match self.state.load(Ordering::Acquire) {
            0 => Tenure::Configured,
            2 => Tenure::Taken,
            3 => Tenure::Leaving,
            _ => Tenure::Vacant,
        }
    }

    fn set(&self, tenure: Tenure) {
        let state = match tenure {
            Tenure::Configured => 0,
            Tenure::Vacant => 1,
            Tenure::Taken => 2,
            Tenure::Leaving => 3,
        };
        self.state.store(state, Ordering::Release);
    }

    /// Whether the slot has a peer that may serve.
    pub fn is_here(&self) -> bool {
        matches!(self.tenure(), Tenure::Configured | Tenure::Taken)
    }

    /// Whether the peer came at run time.
    pub fn is_dynamic(&self) -> bool {
        matches!(self.tenure(), Tenure::Taken | Tenure::Leaving)
    }

    pub fn terms(&self) -> Terms {
        let load = |word: &AtomicU32| word.load(Ordering::Relaxed);
        Terms {
            weight: load(&self.weight),
            max_fails: load(&self.max_fails),
            max_conns: load(&self.max_conns),
            fail_timeout: self.fail_timeout.load(Ordering::Relaxed),
        }
    }

    pub(crate) fn change(&self, terms: &Terms) {
        self.weight.store(terms.weight, Ordering::Relaxed);
        self.max_fails.store(terms.max_fails, Ordering::Relaxed);
        self.max_conns.store(terms.max_conns, Ordering::Relaxed);
        self.fail_timeout.store(terms.fail_timeout, Ordering::Relaxed);
    }

    /// Where the peer listens; `None`: at a unix socket. Whoever was admitted reads what it was admitted to.
    #[inline]
    pub fn inet(&self) -> Option<SocketAddr> {
        let port = self.port.load(Ordering::Relaxed);
        let port = u16::try_from(port).ok().filter(|&port| port != 0)?;
        let [high, low] = self.ip.each_ref().map(|word| word.load(Ordering::Relaxed));
        let bits = u128::from(high) << 64 | u128::from(low);
        let ip = if self.is_v6.load(Ordering::Relaxed) == 0 {
            IpAddr::V4(Ipv4Addr::from(u32::try_from(bits).unwrap_or_default()))
        } else {
            IpAddr::V6(Ipv6Addr::from(bits))
        };
        Some(SocketAddr::from((ip, port)))
    }

    /// Nobody can read this now: the gate is closed, and nothing is in flight.
    pub(crate) fn take(&self, at: &Endpoint, terms: &Terms) {
        let (port, is_v6, bits) = match at {
            Endpoint::Unix(_) => (0, false, 0),
            Endpoint::Inet(address) => match address.ip() {
                IpAddr::V4(ip) => (address.port(), false, u128::from(ip.to_bits())),
                IpAddr::V6(ip) => (address.port(), true, ip.to_bits()),
            },
        };
        let [high, low] = &self.ip;
        high.store(u64::try_from(bits >> 64).unwrap_or_default(), Ordering::Relaxed);
        low.store(u64::try_from(bits & u128::from(u64::MAX)).unwrap_or_default(), Ordering::Relaxed);
        self.port.store(port.into(), Ordering::Relaxed);
        self.is_v6.store(is_v6.into(), Ordering::Relaxed);
        self.named.store(0, Ordering::Relaxed);
        self.change(terms);
        self.set(Tenure::Taken);
    }

    pub(crate) fn stay(&self, terms: &Terms) {
        self.change(terms);
        self.set(Tenure::Taken);
    }

    pub(crate) fn leave(&self) {
        self.set(Tenure::Leaving);
    }

    pub(crate) fn vacate(&self) {
        self.set(Tenure::Vacant);
    }

    /// The peer is as any that nginx.conf names.
    pub(crate) fn configure(&self) {
        self.set(Tenure::Configured);
    }

    /// A configuration that is being read names the peer.
    pub(crate) fn name(&self, configuration: u64) {
        self.named.store(configuration, Ordering::Relaxed);
    }

    pub(crate) fn named(&self) -> u64 {
        self.named.load(Ordering::Relaxed)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const TERMS: Terms = Terms { weight: 2, max_fails: 3, max_conns: 4, fail_timeout: 5 };

    #[test]
    fn whoever_takes_a_slot_is_found_there() {
        let tenancy = Tenancy::default();
        for text in ["10.0.0.1:3000", "[fd00::1:2]:65535", "255.255.255.255:1"] {
            let at = Endpoint::parse(text).unwrap();
            tenancy.vacate();
            tenancy.take(&at, &TERMS);
            assert_eq!(tenancy.inet().map(Endpoint::Inet), Some(at));
            assert_eq!((tenancy.terms(), tenancy.tenure()), (TERMS, Tenure::Taken));
        }
        tenancy.take(&Endpoint::parse("unix:/run/app.sock").unwrap(), &TERMS);
        assert_eq!(tenancy.inet(), None);
    }

    #[test]
    fn only_who_is_here_may_serve() {
        let tenancy = Tenancy::default();
        assert!(tenancy.is_here() && !tenancy.is_dynamic(), "all zero is a configured peer");
        tenancy.vacate();
        assert!(!tenancy.is_here() && !tenancy.is_dynamic());
        tenancy.stay(&TERMS);
        assert!(tenancy.is_here() && tenancy.is_dynamic());
        tenancy.leave();
        assert!(!tenancy.is_here() && tenancy.is_dynamic());
        tenancy.configure();
        assert!(tenancy.is_here() && !tenancy.is_dynamic());
    }
}
