//! The addresses of one network: which are in use, owed and promised, and which is given next.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use mesh_state::ids::{AttachmentId, NodeId};
use mesh_state::network::Network;

use super::gateway;

/// One network's addresses.
#[derive(Debug)]
pub(super) struct Pool<'a> {
    /// The first and the last address that may be given; `last` is below `first` if there are none.
    first: u32,
    last: u32,
    /// The addresses in this range that have a holder.
    pub(super) used: BTreeSet<u32>,
    /// The other addresses of the subnet that have one: users may choose them.
    used_outside: BTreeSet<u32>,
    /// The addresses that users chose for containers that have none yet, if they were free.
    promised: BTreeMap<u32, &'a AttachmentId>,
    newest: u32,
    /// Nodes that have a task on the network and no bridge of it yet.
    pub(super) nodes_owed: BTreeSet<&'a NodeId>,
    /// The number of services that are to get a virtual IP.
    pub(super) services_owed: usize,
}

impl<'a> Pool<'a> {
    /// The addresses of a network of which none but its own are in use.
    pub(super) fn new(network: &Network, newest: Option<Ipv4Addr>) -> Self {
        let (mut first, mut last) = hosts(network.subnet);
        let range = network.asked().and_then(|config| config.ip_range.parse::<Ipv4Net>().ok());
        if let Some(range) = range {
            first = first.max(range.network().into());
            last = last.min(range.broadcast().into());
        }
        let newest = newest.map_or(0, u32::from);
        let mut pool = Self {
            first,
            last,
            used: BTreeSet::new(),
            used_outside: BTreeSet::new(),
            promised: BTreeMap::new(),
            newest,
            nodes_owed: BTreeSet::new(),
            services_owed: 0,
        };
        pool.hold(gateway(network));
        // The IPv4 address whose IPv6 address is the gateway's, if there is one.
        if let Some(gateway) = network.gateway6() {
            let [.., a, b, c, d] = gateway.octets();
            let twin = Ipv4Addr::new(a, b, c, d);
            if network.address6(twin) == Some(gateway) {
                pool.hold(twin);
            }
        }
        network.node_addresses.values().for_each(|address| pool.hold(*address));
        pool
    }

    /// Notes that an address has a holder.
    pub(super) fn hold(&mut self, address: Ipv4Addr) {
        let address = u32::from(address);
        if (self.first..=self.last).contains(&address) {
            self.used.insert(address);
        } else {
            self.used_outside.insert(address);
        }
    }

    /// Whether an address has a holder, or is promised to one.
    pub(super) fn is_held(&self, address: Ipv4Addr) -> bool {
        let address = u32::from(address);
        self.used.contains(&address) || self.used_outside.contains(&address)
    }

    /// Keeps an address for the container whose user chose it, unless somebody has it.
    pub(super) fn promise(&mut self, address: Ipv4Addr, container: &'a AttachmentId) {
        if !self.is_held(address) {
            self.hold(address);
            self.promised.insert(address.into(), container);
        }
    }

    /// Whether an address is kept for this container.
    pub(super) fn is_promised(&self, address: Ipv4Addr, container: &AttachmentId) -> bool {
        self.promised.get(&address.into()).is_some_and(|id| *id == container)
    }

    /// The number of addresses that may be given.
    pub(super) fn free(&self) -> usize {
        let all = (u64::from(self.last) + 1).saturating_sub(self.first.into());
        usize::try_from(all).unwrap_or(usize::MAX).saturating_sub(self.used.len())
    }

    /// The number of addresses that the network owes.
    pub(super) fn owed(&self) -> usize {
        self.nodes_owed.len() + self.services_owed
    }

    /// Takes the next free address.
    pub(super) fn take(&mut self) -> Option<u32> {
        let after = self.newest.saturating_add(1).max(self.first);
        let free = self.first_free(after, self.last).or_else(|| self.first_free(self.first, self.last))?;
        self.used.insert(free);
        self.newest = free;
        Some(free)
    }

    /// The first free address in `from..=to`.
    fn first_free(&self, from: u32, to: u32) -> Option<u32> {
        if from > to {
            return None;
        }
        let mut candidate = from;
        for used in self.used.range(from..=to) {
            if *used != candidate {
                break;
            }
            candidate = candidate.checked_add(1)?;
        }
        (candidate <= to).then_some(candidate)
    }
}

/// The first and the last host address of a subnet.
pub(super) fn hosts(subnet: Ipv4Net) -> (u32, u32) {
    let (network, broadcast) = (u32::from(subnet.network()), u32::from(subnet.broadcast()));
    (network.saturating_add(1), broadcast.saturating_sub(1))
}
