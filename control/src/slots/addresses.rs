//! The addresses of users' networks: which are in use, and which is given next.
//!
//! There is no table of addresses. A holder bears its address in its own record: a task in its
//! attachments, a service in its virtual IPs, an attached container in its attachment, a network
//! for the nodes that have a bridge of it. An
//! address that no record bears is free, so that none can be left behind by a holder that is gone.
//! A task that has ended keeps its address in its record, for people to read, and holds it no
//! longer.
//!
//! The next address is the first free one after the newest that was given in its network, and from
//! the first one again after the last. So an address rests before somebody else gets it: a client
//! that still knows it from a name reaches nobody, and not another service. Which one is the newest
//! is not stored. Every manager notes it as it follows the store.
//!
//! Tasks leave the addresses that the network owes: one to each node that has a task on it and no
//! bridge yet, and one to each service that is to have a virtual IP there. Without them a task
//! would have an address, and no node to use it on.
//!
//! Invariants: pure; within one plan no address is given twice; nothing outside the network's
//! range is given, nor its first and last address, nor its gateway.
//!
//! Left to others: writing what was given. Only the leader gives addresses, so that no two do at a
//! time.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use mesh_state::ids::{NetworkId, NodeId};
use mesh_state::network::{Attachment, IpamConfig, Network};
use mesh_state::service::Service;
use thiserror::Error;

use super::networks::{has_virtual_ips, named_by};
use crate::feed::snapshot::ClusterSnapshot;

/// Why there is no address. What a user reads at a task that waits for one.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NoAddress {
    /// All addresses of the network are in use, or owed.
    #[error("no address left in network {name} ({subnet})")]
    Exhausted {
        /// The network's name.
        name: String,
        /// Its subnet.
        subnet: Ipv4Net,
    },
    /// The network was made by an older version, and waits for its subnet.
    #[error("network {0} has no subnet yet")]
    NoSubnet(String),
    /// There is no such network: a rollback names one that was removed meanwhile.
    #[error("network {0} not found")]
    NotFound(NetworkId),
}

/// The addresses of all networks, for the length of one plan.
#[derive(Debug)]
pub struct Addresses<'a> {
    snapshot: &'a ClusterSnapshot,
    /// Read from the snapshot when the first address is asked for.
    pools: Option<BTreeMap<&'a NetworkId, Pool<'a>>>,
}

/// One network's addresses.
#[derive(Debug)]
struct Pool<'a> {
    /// The first and the last that may be given; the last is below the first if there are none.
    first: u32,
    last: u32,
    /// Those of them that somebody holds.
    used: BTreeSet<u32>,
    newest: u32,
    /// Nodes that have a task on the network and no bridge of it yet.
    nodes_owed: BTreeSet<&'a NodeId>,
    /// Services that are to have a virtual IP.
    services_owed: usize,
}

/// Whether a network is one of users' that has its subnet already.
pub fn is_served(network: &Network) -> bool {
    !network.ingress && network.number != 0
}

/// The address of a network that is its gateway for clients to read: its user's, else the first.
/// Nobody gets it.
pub fn gateway(network: &Network) -> Ipv4Addr {
    let asked = ipam(network).and_then(|config| config.gateway.parse().ok());
    asked.unwrap_or_else(|| Ipv4Addr::from(u32::from(network.subnet.network()).saturating_add(1)))
}

fn ipam(network: &Network) -> Option<&IpamConfig> {
    network.spec.ipam.as_ref()?.config.as_ref()?.first()
}

/// Virtual IPs that a service is to have, by network.
pub fn virtual_ips_wanted(snapshot: &ClusterSnapshot, service: &Service) -> Vec<NetworkId> {
    if !has_virtual_ips(&service.spec) {
        return Vec::new();
    }
    let networks = named_by(&service.spec).into_iter().map(|named| named.id);
    networks.filter(|id| snapshot.networks.get(id).is_some_and(|network| is_served(network))).collect()
}

impl<'a> Addresses<'a> {
    /// The addresses as `snapshot` has them.
    pub fn new(snapshot: &'a ClusterSnapshot) -> Self {
        Self { snapshot, pools: None }
    }

    /// An address on each of a task's networks, in their order.
    ///
    /// # Errors
    /// [`NoAddress`], and then none is taken.
    pub fn for_task(&mut self, attachments: &[Attachment]) -> Result<Vec<Ipv4Addr>, NoAddress> {
        let mut given = Vec::with_capacity(attachments.len());
        for attachment in attachments {
            match self.next(&attachment.network_id, |pool| pool.free() > pool.owed()) {
                Ok(address) => given.push(address),
                Err(error) => {
                    self.give_back(attachments, &given);
                    return Err(error);
                }
            }
        }
        Ok(given)
    }

    /// Takes back what [`Self::for_task`] gave for a task that found no node.
    pub fn give_back(&mut self, attachments: &[Attachment], given: &[Ipv4Addr]) {
        for (attachment, address) in attachments.iter().zip(given) {
            if let Ok(pool) = self.pool(&attachment.network_id) {
                pool.used.remove(&u32::from(*address));
            }
        }
    }

    /// Sees to it that `node`, which is to have a task with these attachments, can have an address
    /// on each of the networks.
    ///
    /// # Errors
    /// [`NoAddress`] if there is none left for the node.
    pub fn owe(&mut self, node: &'a NodeId, attachments: &[Attachment]) -> Result<(), NoAddress> {
        let snapshot = self.snapshot;
        for attachment in attachments {
            let network = &attachment.network_id;
            let has_address = |network: &Network| network.node_addresses.contains_key(node);
            if snapshot.networks.get(network).is_some_and(|network| has_address(network)) {
                continue;
            }
            let pool = self.pool(network)?;
            let is_new = pool.nodes_owed.insert(node);
            if pool.free() < pool.owed() {
                if is_new {
                    pool.nodes_owed.remove(node);
                }
                return Err(exhausted(snapshot, network));
            }
        }
        Ok(())
    }

    /// The address of a network's bridge on `node`.
    ///
    /// # Errors
    /// [`NoAddress`]
    pub fn for_node(&mut self, network: &NetworkId, node: &NodeId) -> Result<Ipv4Addr, NoAddress> {
        self.pool(network)?.nodes_owed.remove(node);
        self.next(network, |pool| pool.free() > 0)
    }

    /// A virtual IP of a service that is owed one.
    ///
    /// # Errors
    /// [`NoAddress`]
    pub fn for_service(&mut self, network: &NetworkId) -> Result<Ipv4Addr, NoAddress> {
        let pool = self.pool(network)?;
        pool.services_owed = pool.services_owed.saturating_sub(1);
        self.next(network, |pool| pool.free() > pool.nodes_owed.len())
    }

    /// The address of a container that is no task.
    ///
    /// # Errors
    /// [`NoAddress`]
    pub fn for_container(&mut self, network: &NetworkId) -> Result<Ipv4Addr, NoAddress> {
        self.next(network, |pool| pool.free() > pool.owed())
    }

    /// Networks on which nodes have tasks or attached containers and no address yet.
    pub fn owed_to_nodes(&mut self) -> Vec<(&'a NetworkId, BTreeSet<&'a NodeId>)> {
        let snapshot = self.snapshot;
        let pools = self.pools.get_or_insert_with(|| pools(snapshot));
        let owing = pools.iter().filter(|(_, pool)| !pool.nodes_owed.is_empty());
        owing.map(|(network, pool)| (*network, pool.nodes_owed.clone())).collect()
    }

    fn next(
        &mut self,
        network: &NetworkId,
        is_enough: impl FnOnce(&Pool<'_>) -> bool,
    ) -> Result<Ipv4Addr, NoAddress> {
        let snapshot = self.snapshot;
        let pool = self.pool(network)?;
        let given = if is_enough(pool) { pool.take() } else { None };
        given.map(Ipv4Addr::from).ok_or_else(|| exhausted(snapshot, network))
    }

    fn pool(&mut self, network: &NetworkId) -> Result<&mut Pool<'a>, NoAddress> {
        let snapshot = self.snapshot;
        let pools = self.pools.get_or_insert_with(|| pools(snapshot));
        pools.get_mut(network).ok_or_else(|| match snapshot.networks.get(network) {
            Some(stored) => NoAddress::NoSubnet(stored.name.clone()),
            None => NoAddress::NotFound(network.clone()),
        })
    }
}

fn exhausted(snapshot: &ClusterSnapshot, network: &NetworkId) -> NoAddress {
    match snapshot.networks.get(network) {
        Some(stored) => NoAddress::Exhausted { name: stored.name.clone(), subnet: stored.subnet },
        None => NoAddress::NotFound(network.clone()),
    }
}

/// Everything in use and owed: one pass over tasks and services.
fn pools(snapshot: &ClusterSnapshot) -> BTreeMap<&NetworkId, Pool<'_>> {
    let served = snapshot.networks.iter().filter(|(_, network)| is_served(network));
    let mut pools: BTreeMap<&NetworkId, Pool<'_>> =
        served.map(|(id, network)| (id, Pool::new(network, snapshot.newest_address(id)))).collect();
    for service in snapshot.services.values() {
        for held in &service.virtual_ips {
            if let Some(pool) = pools.get_mut(&held.network_id) {
                pool.hold(held.address);
            }
        }
        for network in virtual_ips_wanted(snapshot, service) {
            let is_given = service.virtual_ips.iter().any(|held| held.network_id == network);
            if let Some(pool) = pools.get_mut(&network).filter(|_| !is_given) {
                pool.services_owed += 1;
            }
        }
    }
    for task in snapshot.tasks.values().filter(|task| !task.attachments.is_empty()) {
        if snapshot.state_of(task).is_terminal() {
            continue;
        }
        let node = task.node_id.as_ref().filter(|node| snapshot.nodes.contains_key(node));
        for attachment in &task.attachments {
            let Some(pool) = pools.get_mut(&attachment.network_id) else { continue };
            if let Some(address) = attachment.address {
                pool.hold(address);
            }
            let network = snapshot.networks.get(&attachment.network_id);
            if let Some(node) = node
                && network.is_some_and(|network| !network.node_addresses.contains_key(node))
            {
                pool.nodes_owed.insert(node);
            }
        }
    }
    for container in snapshot.attachments.values() {
        let Some(pool) = pools.get_mut(&container.network_id) else { continue };
        if let Some(address) = container.address {
            pool.hold(address);
        }
        let network = snapshot.networks.get(&container.network_id);
        let has_address = |network: &Network| network.node_addresses.contains_key(&container.node_id);
        if snapshot.nodes.contains_key(&container.node_id)
            && network.is_some_and(|network| !has_address(network))
        {
            pool.nodes_owed.insert(&container.node_id);
        }
    }
    pools
}

impl Pool<'_> {
    fn new(network: &Network, newest: Option<Ipv4Addr>) -> Self {
        let (mut first, mut last) = hosts(network.subnet);
        let range = ipam(network).and_then(|config| config.ip_range.parse::<Ipv4Net>().ok());
        if let Some(range) = range {
            first = first.max(range.network().into());
            last = last.min(range.broadcast().into());
        }
        let newest = newest.map_or(0, u32::from);
        let mut pool = Self {
            first,
            last,
            used: BTreeSet::new(),
            newest,
            nodes_owed: BTreeSet::new(),
            services_owed: 0,
        };
        pool.hold(gateway(network));
        network.node_addresses.values().for_each(|address| pool.hold(*address));
        pool
    }

    fn hold(&mut self, address: Ipv4Addr) {
        let address = u32::from(address);
        if (self.first..=self.last).contains(&address) {
            self.used.insert(address);
        }
    }

    fn free(&self) -> usize {
        let all = (u64::from(self.last) + 1).saturating_sub(self.first.into());
        usize::try_from(all).unwrap_or(usize::MAX).saturating_sub(self.used.len())
    }

    fn owed(&self) -> usize {
        self.nodes_owed.len() + self.services_owed
    }

    fn take(&mut self) -> Option<u32> {
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

/// The first and the last address of a subnet that a host may have.
fn hosts(subnet: Ipv4Net) -> (u32, u32) {
    let (network, broadcast) = (u32::from(subnet.network()), u32::from(subnet.broadcast()));
    (network.saturating_add(1), broadcast.saturating_sub(1))
}

#[cfg(test)]
mod tests;
