//! Addresses on users' networks: which are in use, and which is given next.
//!
//! There is no table of addresses. Each holder has its address in its own record: a task in its
//! attachments, a service in its virtual IPs, an attached container in its attachment, a network
//! those of the nodes that have a bridge of it. An address in no record is free, so a holder that
//! is gone can't leave one behind. A task that has ended keeps its address in its record for people
//! to read, and no longer holds it.
//!
//! The next address is the first free one after the newest that was given in its network, and after
//! the last address the first one again. So an address rests before another holder gets it: a
//! client that still has it from an old DNS answer reaches nobody instead of another service. The
//! newest address is not stored. Each manager notes it as it follows the store.
//!
//! Tasks leave the addresses that the network owes: one to each node that has a task on it and no
//! bridge yet, and one to each service that is to get a virtual IP there. Otherwise a task could
//! get an address on a node that has none left for its bridge, and could not use it.
//!
//! Invariants: pure; within one plan no address is given twice; an address outside of the network's
//! range, its first and last address, and its gateway are never given.
//!
//! Left to others: writing the records. Only the leader gives addresses, so two managers never give
//! at the same time.

mod pool;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use mesh_state::attachment::AttachedContainer;
use mesh_state::ids::{NetworkId, NodeId};
use mesh_state::network::{Attachment, Network};
use mesh_state::service::Service;
use thiserror::Error;

use self::pool::{Pool, hosts};
use super::networks::{has_virtual_ips, ids_named_by, named_by};
use crate::feed::snapshot::ClusterSnapshot;

/// Why there is no address. Users read it at the task that waits.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NoAddress {
    /// All addresses of the network are in use or owed.
    #[error("no address left in network {name} ({subnet})")]
    Exhausted {
        /// The network's name.
        name: String,
        /// The network's subnet, of which every address is taken.
        subnet: Ipv4Net,
    },
    /// The network was stored by an older version, and has no subnet yet.
    #[error("network {0} has no subnet yet")]
    NoSubnet(String),
    /// There is no such network, for example because a rollback names one that was removed
    /// meanwhile.
    #[error("network {0} not found")]
    NotFound(NetworkId),
    /// Somebody has the address that a user chose.
    #[error("Address already in use: {address} on network {name}")]
    Taken {
        /// The address that was asked for.
        address: Ipv4Addr,
        /// The network's name.
        name: String,
    },
    /// The address that a user chose is no host's of the network.
    #[error("requested address is out of range: {address} is no host's of network {name} ({subnet})")]
    OutOfRange {
        /// The address that was asked for.
        address: Ipv4Addr,
        /// The network's name.
        name: String,
        /// The network's subnet, whose hosts may be asked for.
        subnet: Ipv4Net,
    },
}

/// The addresses of all networks during one plan.
#[derive(Debug)]
pub struct Addresses<'a> {
    snapshot: &'a ClusterSnapshot,
    /// Read from the snapshot when the first address is requested.
    pools: Option<BTreeMap<&'a NetworkId, Pool<'a>>>,
}

/// Whether this is a user's network that has its subnet already.
pub fn is_served(network: &Network) -> bool {
    !network.ingress && network.number != 0
}

/// The address that clients see as the network's gateway: the one that its user named, else the
/// first. No holder gets it.
pub fn gateway(network: &Network) -> Ipv4Addr {
    let asked = network.asked().and_then(|config| config.gateway.parse().ok());
    asked.unwrap_or_else(|| Ipv4Addr::from(u32::from(network.subnet.network()).saturating_add(1)))
}

/// The networks on which a service is to have a virtual IP.
pub fn virtual_ips_wanted(snapshot: &ClusterSnapshot, service: &Service) -> Vec<NetworkId> {
    if !has_virtual_ips(&service.spec) {
        return Vec::new();
    }
    let networks = named_by(&service.spec).into_iter().map(|named| named.id);
    networks.filter(|id| snapshot.networks.get(id).is_some_and(|network| is_served(network))).collect()
}

/// Whether a service has virtual IPs on exactly [`virtual_ips_wanted`], in that order. It allocates
/// nothing for a service that does, as most always do.
pub fn has_virtual_ips_wanted(snapshot: &ClusterSnapshot, service: &Service) -> bool {
    let held = &service.virtual_ips;
    if !has_virtual_ips(&service.spec) {
        return held.is_empty();
    }
    let is_served = |id: &NetworkId| snapshot.networks.get(id).is_some_and(|network| is_served(network));
    let mut found = 0;
    for id in ids_named_by(&service.spec) {
        // The spec may name a network twice.
        if held[..found].iter().any(|known| known.network_id.as_str() == id) {
            continue;
        }
        match held.get(found) {
            Some(next) if next.network_id.as_str() == id && is_served(&next.network_id) => found += 1,
            _ if is_served(&NetworkId::from(id)) => return false,
            _ => {}
        }
    }
    found == held.len()
}

impl<'a> Addresses<'a> {
    /// The addresses in use in `snapshot`.
    pub fn new(snapshot: &'a ClusterSnapshot) -> Self {
        Self { snapshot, pools: None }
    }

    /// Takes an address on each of a task's networks, in the order of its attachments.
    ///
    /// # Errors
    /// [`NoAddress`] if one of the networks has none left; then none is taken.
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

    /// Frees the addresses that [`Self::for_task`] gave to a task that found no node.
    pub fn give_back(&mut self, attachments: &[Attachment], given: &[Ipv4Addr]) {
        for (attachment, address) in attachments.iter().zip(given) {
            if let Ok(pool) = self.pool(&attachment.network_id) {
                pool.used.remove(&u32::from(*address));
            }
        }
    }

    /// Reserves an address for `node` on each network of these attachments on which it has none,
    /// before it gets a task with them.
    ///
    /// # Errors
    /// [`NoAddress`] if a network has none left for the node.
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

    /// Takes an address for a network's bridge on `node`.
    ///
    /// # Errors
    /// [`NoAddress`] if the network has none left.
    pub fn for_node(&mut self, network: &NetworkId, node: &NodeId) -> Result<Ipv4Addr, NoAddress> {
        self.pool(network)?.nodes_owed.remove(node);
        self.next(network, |pool| pool.free() > 0)
    }

    /// Takes a virtual IP for a service that is owed one.
    ///
    /// # Errors
    /// [`NoAddress`] if the network has none left.
    pub fn for_service(&mut self, network: &NetworkId) -> Result<Ipv4Addr, NoAddress> {
        let pool = self.pool(network)?;
        pool.services_owed = pool.services_owed.saturating_sub(1);
        self.next(network, |pool| pool.free() > pool.nodes_owed.len())
    }

    /// Takes an address for a container that is no task: the one that its user chose, if any.
    ///
    /// # Errors
    /// [`NoAddress`] if the network has none left, or somebody has the chosen one.
    pub fn for_container(&mut self, container: &AttachedContainer) -> Result<Ipv4Addr, NoAddress> {
        let network = &container.network_id;
        let Some(address) = container.wanted else {
            return self.next(network, |pool| pool.free() > pool.owed());
        };
        let is_promised = self.pool(network)?.is_promised(address, &container.id);
        match self.check_free(network, address) {
            Err(NoAddress::Taken { .. }) if is_promised => {}
            checked => {
                checked?;
                self.pool(network)?.hold(address);
            }
        }
        let pool = self.pool(network)?;
        if pool.free() >= pool.owed() { Ok(address) } else { Err(exhausted(self.snapshot, network)) }
    }

    /// Checks that a user may choose an address.
    ///
    /// # Errors
    /// [`NoAddress`] if it is no host's of the network, or has a holder.
    pub fn check_free(&mut self, network: &NetworkId, address: Ipv4Addr) -> Result<(), NoAddress> {
        let snapshot = self.snapshot;
        let is_held = self.pool(network)?.is_held(address);
        let Some(stored) = snapshot.networks.get(network) else {
            return Err(NoAddress::NotFound(network.clone()));
        };
        let (first, last) = hosts(stored.subnet);
        if !(first..=last).contains(&u32::from(address)) {
            let (name, subnet) = (stored.name.clone(), stored.subnet);
            return Err(NoAddress::OutOfRange { address, name, subnet });
        }
        if is_held { Err(NoAddress::Taken { address, name: stored.name.clone() }) } else { Ok(()) }
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

/// The nodes that have tasks or attached containers on a network and no address there yet, by
/// network.
pub fn owed_to_nodes(snapshot: &ClusterSnapshot) -> BTreeMap<&NetworkId, BTreeSet<&NodeId>> {
    let mut owed: BTreeMap<&NetworkId, BTreeSet<&NodeId>> = BTreeMap::new();
    let mut note = |network, node| {
        let stored = snapshot.networks.get_key_value(network).filter(|(_, network)| is_served(network));
        if let Some((network, stored)) = stored
            && snapshot.nodes.contains_key(node)
            && !stored.node_addresses.contains_key(node)
        {
            owed.entry(network).or_default().insert(node);
        }
    };
    let with_networks = snapshot.tasks.values().filter(|task| !task.attachments.is_empty());
    for task in with_networks.filter(|task| !snapshot.state_of(task).is_terminal()) {
        for attachment in &task.attachments {
            task.node_id.iter().for_each(|node| note(&attachment.network_id, node));
        }
    }
    for container in snapshot.attachments.values() {
        note(&container.network_id, &container.node_id);
    }
    owed
}

/// All addresses in use and owed: one pass over tasks and services.
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
        for attachment in &task.attachments {
            let Some(pool) = pools.get_mut(&attachment.network_id) else { continue };
            if let Some(address) = attachment.address {
                pool.hold(address);
            }
        }
    }
    for container in snapshot.attachments.values() {
        let Some(pool) = pools.get_mut(&container.network_id) else { continue };
        if let Some(address) = container.address {
            pool.hold(address);
        }
    }
    for (network, nodes) in owed_to_nodes(snapshot) {
        if let Some(pool) = pools.get_mut(network) {
            pool.nodes_owed = nodes;
        }
    }
    // Who holds an address already is known now.
    for container in snapshot.attachments.values().filter(|container| container.address.is_none()) {
        let (pool, wanted) = (pools.get_mut(&container.network_id), container.wanted);
        if let (Some(pool), Some(wanted)) = (pool, wanted) {
            pool.promise(wanted, &container.id);
        }
    }
    pools
}

#[cfg(test)]
mod tests;
