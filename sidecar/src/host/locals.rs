//! Which addresses are this host's own (`/proc/net/{fib_trie,if_inet6}`).

use super::Proc;
use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Locals {
    v4: Vec<(Ipv4Addr, u32)>,
    v6: Vec<Ipv6Addr>,
}

impl Locals {
    pub fn read(proc: &Proc) -> Self {
        let read = |table: &str| fs::read_to_string(proc.path().join("net").join(table)).unwrap_or_default();
        Self::parse(&read("fib_trie"), &read("if_inet6"))
    }

    #[cfg(test)]
    pub(crate) fn of(addresses: &[&str]) -> Self {
        let mut locals = Self { v4: Vec::new(), v6: Vec::new() };
        for address in addresses {
            match address.parse().unwrap() {
                IpAddr::V4(v4) => locals.v4.push((v4, 32)),
                IpAddr::V6(v6) => locals.v6.push(v6),
            }
        }
        locals
    }

    fn parse(fib_trie: &str, if_inet6: &str) -> Self {
        // A leaf (`|-- 10.0.0.5`) is followed by what it is in each prefix (`/32 host LOCAL`).
        let mut leaf = None;
        let v4 = fib_trie.lines().filter_map(|line| {
            let line = line.trim();
            if let Some(address) = line.strip_prefix("|-- ") {
                leaf = address.parse().ok();
                return None;
            }
            let prefix = line.strip_prefix('/')?.strip_suffix(" host LOCAL")?.parse().ok()?;
            Some((leaf?, prefix))
        });
        let v6 = if_inet6.lines().filter_map(|line| {
            let bits = u128::from_str_radix(line.split_ascii_whitespace().next()?, 16).ok()?;
            Some(Ipv6Addr::from_bits(bits))
        });
        Self { v4: v4.collect(), v6: v6.collect() }
    }

    /// Some address that is not for this host alone.
    pub fn is_reachable(&self) -> bool {
        self.v4.iter().any(|(address, _)| !address.is_loopback())
            || self.v6.iter().any(|address| !address.is_loopback())
    }

    /// The addresses by which another host reaches this one.
    pub fn reachable(&self) -> Vec<IpAddr> {
        let v4 = self.v4.iter().filter(|&&(address, prefix)| prefix == 32 && !address.is_loopback());
        let v4 = v4.map(|&(address, _)| IpAddr::V4(address));
        let v6 = self.v6.iter().filter(|address| !address.is_loopback() && !address.is_unicast_link_local());
        let mut all: Vec<IpAddr> = v4.chain(v6.map(|&address| IpAddr::V6(address))).collect();
        all.sort();
        all.dedup();
        all
    }

    pub fn has(&self, address: IpAddr) -> bool {
        match address.to_canonical() {
            // True whatever the tables say: they may be out of our sight.
            address if address.is_loopback() => true,
            IpAddr::V4(v4) => self.v4.iter().any(|&(network, prefix)| {
                let mask = u32::MAX.checked_shl(32 - prefix.min(32)).unwrap_or(0);
                v4.to_bits() & mask == network.to_bits() & mask
            }),
            IpAddr::V6(v6) => self.v6.contains(&v6),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIB_TRIE: &str = "Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     +-- 192.0.2.0/24 2 0 2
        |-- 192.0.2.0
           /24 link UNICAST
        |-- 192.0.2.2
           /32 host LOCAL
        |-- 192.0.2.255
           /32 link BROADCAST
";

    #[test]
    fn an_address_of_an_interface_is_ours_and_its_neighbour_is_not() {
        let locals = Locals::parse(FIB_TRIE, "fd000000000000000000000000000002 04 40 00 82     eth0\n");
        for ours in ["192.0.2.2", "::ffff:192.0.2.2", "127.0.0.1", "127.8.8.8", "::1", "fd00::2"] {
            assert!(locals.has(ours.parse().unwrap()), "{ours}");
        }
        for foreign in ["192.0.2.3", "192.0.2.255", "192.0.2.0", "10.0.0.1", "fd00::3", "0.0.0.0"] {
            assert!(!locals.has(foreign.parse().unwrap()), "{foreign}");
        }
    }

    #[test]
    fn another_host_reaches_it_by_what_is_not_its_own_alone() {
        let inet6 = "fd000000000000000000000000000002 04 40 00 82     eth0\n\
                     fe800000000000000000000000000002 04 40 20 80     eth0\n\
                     00000000000000000000000000000001 01 80 10 80       lo\n";
        let reachable: Vec<String> =
            Locals::parse(FIB_TRIE, inet6).reachable().iter().map(ToString::to_string).collect();
        assert_eq!(reachable, ["192.0.2.2", "fd00::2"]);
    }

    #[test]
    fn this_hosts_tables_can_be_read() {
        assert!(Locals::read(&Proc::default()).has("127.0.0.1".parse().unwrap()));
    }
}
