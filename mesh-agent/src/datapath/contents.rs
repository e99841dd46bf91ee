//! The contents of the maps, and one write to them: the model on which planning works.
//!
//! Invariants: [`Contents::apply`] changes the model exactly as the same [`Write`] changes the
//! maps, so a mirror to which every write is applied stays equal to them.
//!
//! Left to others: reading and writing the kernel's maps ([`super::maps`]), deciding what to write
//! ([`super::diff`]).

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use mesh_ebpf::abi::{
    Address, AllowedKey, Backend, BackendState, Config, Endpoint, Link, Member, Node, Service, Subnet6, names,
};

mod front;
mod isolated;

pub use front::{Front, Frontend, NetworkAddress};
pub use isolated::{isolated_key, isolated_network};

/// A network whose clients may open flows to a published port: a key of the trie, so that it can be
/// sorted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Allowed {
    service_index: u32,
    /// Prefix length of the network, including the IPv4 mapping's bits.
    prefix: u32,
    network: [u8; 16],
}

/// Bits of a key before the network's address.
const INDEX_BITS: u32 = u32::BITS;

impl Allowed {
    /// Allows `network` for the published port with this index.
    pub fn new(service_index: u32, network: IpNet) -> Self {
        let mapping = if network.addr().is_ipv4() { 96 } else { 0 };
        let prefix = mapping + u32::from(network.prefix_len());
        Self { service_index, prefix, network: Address::from(network.network()).0 }
    }

    /// The map's key, and how many of its bits count.
    pub const fn key(self) -> (u32, AllowedKey) {
        let key = AllowedKey { service_index_be: self.service_index.to_be_bytes(), network: self.network };
        (INDEX_BITS + self.prefix, key)
    }

    /// Converts a key of the map.
    pub const fn from_key(bits: u32, key: AllowedKey) -> Self {
        let service_index = u32::from_be_bytes(key.service_index_be);
        Self { service_index, prefix: bits.saturating_sub(INDEX_BITS), network: key.network }
    }
}

/// The maps that userspace writes, without their unset entries.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contents {
    /// Key 0 of `CONFIG`.
    pub config: Config,
    /// `ADDRESSES`: address of this node → its index.
    pub addresses: BTreeMap<Address, u32>,
    /// `SERVICES` and `VIRTUAL_IPS`.
    pub services: BTreeMap<Front, Service>,
    /// `SLOTS`: slot → backend id. Slots that no service names may be missing.
    pub slots: BTreeMap<u32, u32>,
    /// `BACKENDS`, by id.
    pub backends: BTreeMap<u32, Backend>,
    /// `NODES`, by index.
    pub nodes: BTreeMap<u32, Node>,
    /// `MEMBERS`, by index.
    pub members: BTreeMap<u32, Member>,
    /// `PEERS`: address of a member node → its index.
    pub peers: BTreeMap<Address, u32>,
    /// `ALLOWED`: networks whose clients a service admits.
    pub allowed: BTreeSet<Allowed>,
    /// `LINKS`, by ifindex.
    pub links: BTreeMap<u32, Link>,
    /// `ENDPOINTS`, by the address on its network.
    pub endpoints: BTreeMap<NetworkAddress, Endpoint>,
    /// `ISOLATED`: where tasks may not send, and what is excepted.
    pub isolated: BTreeMap<IpNet, u32>,
    /// `SUBNETS6`, by the network's number.
    pub subnets6: BTreeMap<u32, Subnet6>,
}

/// One change of one map, or the reset of one entry's counters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// Replaces the configuration.
    Config(Config),
    /// Gives an address of this node its index.
    Address(Address, u32),
    /// Removes an address.
    RemoveAddress(Address),
    /// Replaces a node; all zeros removes it.
    Node(u32, Node),
    /// Replaces the conditions on a node's tunnel packets; all zeros removes them.
    Member(u32, Member),
    /// Lets a member node send through the tunnel.
    Peer(Address, u32),
    /// Refuses that node's tunnel packets from now on.
    RemovePeer(Address),
    /// Lets the clients of a network open flows to a published port.
    Allow(Allowed),
    /// Refuses those clients from now on.
    Disallow(Allowed),
    /// Replaces the entry of a veth.
    Link(u32, Link),
    /// Removes the entry of a veth: its packets are dropped.
    RemoveLink(u32),
    /// Replaces the entry of an address of a network.
    Endpoint(NetworkAddress, Endpoint),
    /// Removes the entry of an address of a network.
    RemoveEndpoint(NetworkAddress),
    /// Says whether tasks may send to the addresses of a network by their veth on `mesh`.
    Isolate(IpNet, u32),
    /// Removes that entry: a wider network's counts, or none.
    RemoveIsolated(IpNet),
    /// Replaces the IPv6 addresses of a network.
    Subnet6(u32, Subnet6),
    /// Removes these: the network carries no IPv6.
    RemoveSubnet6(u32),
    /// Resets the counters of a backend's id to zero.
    ResetBackend(u32),
    /// Replaces a backend.
    Backend(u32, Backend),
    /// Fills a range of slots.
    Slots {
        /// The first slot.
        base: u32,
        /// The backend ids, in order.
        backends: Vec<u32>,
    },
    /// Resets the counters of a service index to zero.
    ResetFrontend(u32),
    /// Replaces a service, and with it the range of slots in use: the swap.
    Service(Front, Service),
    /// Removes a service's published port or virtual IP.
    RemoveService(Front),
}

impl Write {
    /// The map that this writes first; a failure is counted under its name.
    pub const fn map(&self) -> &'static str {
        match self {
            Self::Config(_) => names::CONFIG,
            Self::Address(..) | Self::RemoveAddress(_) => names::ADDRESSES,
            Self::Node(..) => names::NODES,
            Self::Member(..) => names::MEMBERS,
            Self::Peer(..) | Self::RemovePeer(_) => names::PEERS,
            Self::Allow(_) | Self::Disallow(_) => names::ALLOWED,
            Self::ResetBackend(_) => names::BACKEND_STATS,
            Self::Backend(..) => names::BACKENDS,
            Self::Slots { .. } => names::SLOTS,
            Self::ResetFrontend(_) => names::FRONTEND_STATS,
            Self::Service(front, _) | Self::RemoveService(front) => service_map(*front),
            Self::Link(..) | Self::RemoveLink(_) => names::LINKS,
            Self::Endpoint(..) | Self::RemoveEndpoint(_) => names::ENDPOINTS,
            Self::Isolate(..) | Self::RemoveIsolated(_) => names::ISOLATED,
            Self::Subnet6(..) | Self::RemoveSubnet6(_) => names::SUBNETS6,
        }
    }
}

/// The map of a service's entry.
pub const fn service_map(front: Front) -> &'static str {
    match front {
        Front::Port(_) => names::SERVICES,
        Front::VirtualIp(_) => names::VIRTUAL_IPS,
    }
}

impl Contents {
    /// Changes the model as `write` changes the maps.
    pub fn apply(&mut self, write: &Write) {
        match write {
            Write::Config(config) => self.config = *config,
            Write::Address(address, index) => {
                self.addresses.insert(*address, *index);
            }
            Write::RemoveAddress(address) => {
                self.addresses.remove(address);
            }
            Write::Node(index, node) if *node == Node::default() => {
                self.nodes.remove(index);
            }
            Write::Node(index, node) => {
                self.nodes.insert(*index, *node);
            }
            Write::Member(index, member) if *member == Member::default() => {
                self.members.remove(index);
            }
            Write::Member(index, member) => {
                self.members.insert(*index, *member);
            }
            Write::Peer(address, index) => {
                self.peers.insert(*address, *index);
            }
            Write::RemovePeer(address) => {
                self.peers.remove(address);
            }
            Write::Allow(allowed) => {
                self.allowed.insert(*allowed);
            }
            Write::Disallow(allowed) => {
                self.allowed.remove(allowed);
            }
            Write::Backend(id, backend) => {
                self.backends.insert(*id, *backend);
            }
            Write::Slots { base, backends } => {
                self.slots.extend((*base..).zip(backends.iter().copied()));
            }
            Write::Service(front, service) => {
                self.services.insert(*front, *service);
            }
            Write::RemoveService(front) => {
                self.services.remove(front);
            }
            Write::Link(ifindex, link) => _ = self.links.insert(*ifindex, *link),
            Write::RemoveLink(ifindex) => _ = self.links.remove(ifindex),
            Write::Endpoint(place, endpoint) => _ = self.endpoints.insert(*place, *endpoint),
            Write::RemoveEndpoint(place) => _ = self.endpoints.remove(place),
            Write::Isolate(network, value) => _ = self.isolated.insert(*network, *value),
            Write::RemoveIsolated(network) => _ = self.isolated.remove(network),
            Write::Subnet6(network, subnet) => _ = self.subnets6.insert(*network, *subnet),
            Write::RemoveSubnet6(network) => _ = self.subnets6.remove(network),
            Write::ResetBackend(_) | Write::ResetFrontend(_) => {}
        }
    }

    /// The backend ids in a service's slots, in order; 0 for a slot that was never written.
    pub fn members<'a>(&'a self, service: &Service) -> impl Iterator<Item = u32> + 'a {
        let end = service.slot_base.saturating_add(service.slot_count);
        (service.slot_base..end).map(|slot| self.slots.get(&slot).copied().unwrap_or_default())
    }

    /// The maps in which the two differ; in `SLOTS`, only slots that a service names count.
    pub fn differing(&self, other: &Self) -> Vec<&'static str> {
        let members_of = |contents: &Self| -> Vec<u32> {
            contents.services.values().flat_map(|service| contents.members(service)).collect()
        };
        let services_of = |contents: &Self, map| -> Vec<(Front, Service)> {
            let services = contents.services.iter().map(|(front, service)| (*front, *service));
            services.filter(|(front, _)| service_map(*front) == map).collect()
        };
        let same_services = |map| services_of(self, map) == services_of(other, map);
        let maps = [
            (names::CONFIG, self.config == other.config),
            (names::ADDRESSES, self.addresses == other.addresses),
            (names::SERVICES, same_services(names::SERVICES)),
            (names::VIRTUAL_IPS, same_services(names::VIRTUAL_IPS)),
            (names::SLOTS, members_of(self) == members_of(other)),
            (names::BACKENDS, self.backends == other.backends),
            (names::NODES, self.nodes == other.nodes),
            (names::PEERS, self.peers == other.peers),
            (names::ALLOWED, self.allowed == other.allowed),
            (names::LINKS, self.links == other.links),
            (names::ENDPOINTS, self.endpoints == other.endpoints),
            (names::ISOLATED, self.isolated == other.isolated),
            (names::SUBNETS6, self.subnets6 == other.subnets6),
        ];
        maps.into_iter().filter(|(_, same)| !same).map(|(map, _)| map).collect()
    }

    /// The backends whose flows go on.
    pub fn alive(&self) -> impl Iterator<Item = (u32, &Backend)> {
        self.backends.iter().filter(|(_, backend)| backend.is_alive()).map(|(id, backend)| (*id, backend))
    }
}

/// The entry of `backend` once its flows are to end.
pub fn taken_down(backend: &Backend) -> Backend {
    Backend { state: BackendState::Down as u8, ..*backend }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_map_that_was_changed_is_named() {
        let front = Front::Port(Frontend { protocol: 6, port: 80 });
        let service = Service { slot_base: 4, slot_count: 2, ..Service::default() };
        let ours = Contents {
            services: BTreeMap::from([(front, service)]),
            slots: BTreeMap::from([(4, 7), (5, 8), (99, 1)]),
            ..Contents::default()
        };
        let mut found = ours.clone();
        found.slots.remove(&99);
        assert_eq!(ours.differing(&found), [""; 0], "no service names the slot");
        found.slots.insert(5, 9);
        found.peers.insert(Address::from(std::net::Ipv4Addr::LOCALHOST), 3);
        found.nodes.insert(1, Node { ifindex: 3, ..Node::default() });
        assert_eq!(ours.differing(&found), [names::SLOTS, names::NODES, names::PEERS]);
    }
}
