//! Plans the map entries of users' networks: the holders of addresses, the identity of each veth,
//! and the addresses that tasks must not reach through `mesh`.
//!
//! Invariants: only networks that this node takes part in have entries. An address is written
//! before the veth that may send as it, and removed after it; an exception is written before the
//! wider network that contains it, and removed after it. A veth keeps the address and MAC with
//! which it was first known, and has an entry only while the address belongs to a member on this
//! node: all other packets from it are dropped.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};
use mesh_ebpf::abi::{Address, Endpoint, ISOLATED, Link, Mac, REACHABLE, Subnet6, endpoint_flag, names};
use mesh_state::ids::{BackendId, NetworkId};

use super::{Plan, Refusal};
use crate::datapath::contents::{Contents, NetworkAddress, Write};
use crate::datapath::facts::Facts;
use crate::task::bridge::subnet6_of;
use crate::view::{AttachmentView, MemberView, NetworkView, NodeView, ServiceView};

/// The desired entries of users' networks.
#[derive(Debug, Default)]
pub(super) struct Networks<'a> {
    /// The networks that this node takes part in.
    joined: BTreeMap<&'a NetworkId, &'a NetworkView>,
    links: BTreeMap<u32, Link>,
    endpoints: BTreeMap<NetworkAddress, Endpoint>,
    isolated: BTreeMap<IpNet, u32>,
    subnets6: BTreeMap<u32, Subnet6>,
}

impl<'a> Networks<'a> {
    /// The entries that follow from the view and the node's own facts. `nodes` has the indexes of
    /// the other member nodes.
    pub(super) fn new(
        contents: &Contents,
        view: &'a NodeView,
        facts: &Facts,
        nodes: &BTreeMap<Address, u32>,
    ) -> Self {
        let joined = joined(view, facts);
        let holders = holders(view, &joined);
        let node_of = |member: &MemberView| {
            let node = view.nodes.get(&member.node_id)?;
            if member.node_id == view.node_id { Some(0) } else { nodes.get(&node.address.into()).copied() }
        };
        let mut endpoints: BTreeMap<NetworkAddress, Endpoint> = holders
            .iter()
            .filter_map(|(place, holder)| {
                let backend = holder.attachment.backend_id.map_or(0, BackendId::get);
                Some((*place, Endpoint { node: node_of(holder.member)?, backend, ..Endpoint::default() }))
            })
            .collect();
        let mut links = BTreeMap::new();
        for (ifindex, place, mac) in cables(contents, facts) {
            let (Some(holder), Some(endpoint)) = (holders.get(&place), endpoints.get_mut(&place)) else {
                continue;
            };
            if endpoint.is_local() && !endpoint.is_connected() {
                (endpoint.ifindex, endpoint.mac) = (ifindex, mac);
                links.insert(ifindex, holder.link(mac));
            }
        }
        for network in joined.values() {
            if let Some(address) = network.node_address {
                let place = NetworkAddress { network: network.number, address };
                let bridge = Endpoint { flags: endpoint_flag::BRIDGE, ..Endpoint::default() };
                endpoints.insert(place, bridge);
            }
        }
        let subnets6 = subnets6(&joined);
        Self { joined, links, endpoints, isolated: isolated(view), subnets6 }
    }

    /// The number of a network in packets, if this node takes part in it.
    pub(super) fn number(&self, network: &NetworkId) -> Option<u32> {
        self.joined.get(network).map(|network| network.number)
    }

    /// Whether packets can be delivered to an address: it is on another node, or its container's
    /// veth is known.
    pub(super) fn is_reachable(&self, place: NetworkAddress) -> bool {
        let endpoint = self.endpoints.get(&place);
        endpoint.is_some_and(|endpoint| !endpoint.is_local() || endpoint.is_connected())
    }

    /// The virtual IPs on the networks that this node takes part in.
    pub(super) fn virtual_ips(
        &self,
        view: &'a NodeView,
    ) -> impl Iterator<Item = (NetworkAddress, &'a ServiceView)> {
        let places = view.services.values().flat_map(|service| {
            service.networks.iter().map(move |network| (&network.network_id, network.virtual_ip, service))
        });
        places.filter_map(|(network, virtual_ip, service)| {
            let place = NetworkAddress { network: self.number(network)?, address: virtual_ip? };
            Some((place, service))
        })
    }
}

impl Plan {
    /// Removes veths that may no longer send, and adds the missing entries of networks.
    pub(super) fn connect(&mut self, contents: &Contents, networks: &Networks<'_>) {
        let links = contents.links.keys().filter(|ifindex| !networks.links.contains_key(ifindex));
        self.writes.extend(links.map(|ifindex| Write::RemoveLink(*ifindex)));
        // Exceptions are written first.
        for value in [REACHABLE, ISOLATED] {
            let wanted = networks.isolated.iter().filter(|(_, found)| **found == value);
            // Keep room for the exceptions, which are written first.
            let free = room(names::ISOLATED_MAX, contents.isolated.len() + EXCEPTIONS_MAX);
            self.put(&contents.isolated, wanted, free, Refusal::Isolated, Write::Isolate);
        }
        let free = room(names::SUBNETS6_MAX, contents.subnets6.len());
        self.put(&contents.subnets6, networks.subnets6.iter(), free, Refusal::Subnet6, Write::Subnet6);
        let free = room(names::ENDPOINTS_MAX, contents.endpoints.len());
        self.put(&contents.endpoints, networks.endpoints.iter(), free, Refusal::Endpoint, Write::Endpoint);
        let free = room(names::LINKS_MAX, contents.links.len());
        self.put(&contents.links, networks.links.iter(), free, Refusal::Link, Write::Link);
    }

    /// Writes the `wanted` entries that `present` lacks. The map has room for `free` more entries;
    /// those beyond are refused.
    fn put<'b, K: Copy + Ord + 'b, V: Copy + PartialEq + 'b>(
        &mut self,
        present: &BTreeMap<K, V>,
        wanted: impl Iterator<Item = (&'b K, &'b V)>,
        mut room: usize,
        refusal: impl Fn(K) -> Refusal,
        write: impl Fn(K, V) -> Write,
    ) {
        for (key, value) in wanted {
            match present.get(key) {
                Some(found) if found == value => {}
                Some(_) => self.writes.push(write(*key, *value)),
                None if room == 0 => self.refused.push(refusal(*key)),
                None => {
                    room -= 1;
                    self.writes.push(write(*key, *value));
                }
            }
        }
    }

    /// Removes entries of networks that are no longer wanted.
    pub(super) fn disconnect(&mut self, contents: &Contents, networks: &Networks<'_>) {
        let endpoints = contents.endpoints.keys().filter(|place| !networks.endpoints.contains_key(place));
        self.writes.extend(endpoints.map(|place| Write::RemoveEndpoint(*place)));
        let subnets6 = contents.subnets6.keys().filter(|number| !networks.subnets6.contains_key(number));
        self.writes.extend(subnets6.map(|number| Write::RemoveSubnet6(*number)));
        for value in [ISOLATED, REACHABLE] {
            let gone = contents
                .isolated
                .iter()
                .filter(|(network, found)| **found == value && !networks.isolated.contains_key(network));
            self.writes.extend(gone.map(|(network, _)| Write::RemoveIsolated(*network)));
        }
    }
}

/// The networks on which this node has a bridge, a member or a veth.
fn joined<'a>(view: &'a NodeView, facts: &Facts) -> BTreeMap<&'a NetworkId, &'a NetworkView> {
    let numbers: BTreeSet<u32> = facts.cables.values().map(|cable| cable.network).collect();
    let local = view.members.values().filter(|member| member.node_id == view.node_id);
    let places: BTreeSet<&NetworkId> =
        local.flat_map(|member| member.attachments.iter().map(|place| &place.network_id)).collect();
    let networks = view.networks.iter().filter(|(id, network)| {
        network.node_address.is_some() || places.contains(id) || numbers.contains(&network.number)
    });
    networks.collect()
}

/// The most entries of `ISOLATED` with the value `REACHABLE`: this node's IPv4 and IPv6 address on
/// `mesh`.
const EXCEPTIONS_MAX: usize = 2;

/// The number of entries that fit into a map of at most `max` entries besides `present`.
fn room(max: u32, present: usize) -> usize {
    usize::try_from(max).unwrap_or(usize::MAX).saturating_sub(present)
}

/// The holder of an address.
struct Holder<'a> {
    network: &'a NetworkView,
    member: &'a MemberView,
    attachment: &'a AttachmentView,
}

impl Holder<'_> {
    /// The entry of a veth whose container has this MAC.
    fn link(&self, mac: Mac) -> Link {
        Link {
            network: self.network.number,
            address: word(self.attachment.address),
            subnet: word(self.network.subnet.network()),
            mask: word(self.network.subnet.netmask()),
            mac,
            backend: self.attachment.backend_id.map_or(0, BackendId::get),
            ..Link::default()
        }
    }
}

/// The holder of each address. If two members claim one, the one that serves has it.
fn holders<'a>(
    view: &'a NodeView,
    joined: &BTreeMap<&'a NetworkId, &'a NetworkView>,
) -> BTreeMap<NetworkAddress, Holder<'a>> {
    let mut holders: BTreeMap<NetworkAddress, Holder<'a>> = BTreeMap::new();
    for member in view.members.values() {
        for attachment in &member.attachments {
            let Some(network) = joined.get(&attachment.network_id) else { continue };
            let place = NetworkAddress { network: network.number, address: attachment.address };
            let is_better = |other: &Holder<'_>| other.member.state.is_none() && member.state.is_some();
            if holders.get(&place).is_none_or(is_better) {
                holders.insert(place, Holder { network, member, attachment });
            }
        }
    }
    holders
}

/// The veths of containers whose other end is known: index, address there, and MAC. Veths that have
/// an entry come first, with the identity in their entry.
fn cables(contents: &Contents, facts: &Facts) -> Vec<(u32, NetworkAddress, Mac)> {
    let (mut known, mut new) = (Vec::new(), Vec::new());
    for (ifindex, cable) in &facts.cables {
        let network = cable.network;
        match contents.links.get(ifindex).filter(|link| link.network == network) {
            Some(link) => {
                let address = Ipv4Addr::from(link.address.to_ne_bytes());
                known.push((*ifindex, NetworkAddress { network, address }, link.mac));
            }
            None => new.extend(
                cable.end.map(|end| (*ifindex, NetworkAddress { network, address: end.address }, end.mac)),
            ),
        }
    }
    known.append(&mut new);
    known
}

/// The addresses to which tasks must not send by their veth on `mesh`: those of tasks on `mesh` and
/// all users' networks. This node's own address on `mesh` is excepted, as it answers names.
fn isolated(view: &NodeView) -> BTreeMap<IpNet, u32> {
    let own = view.subnet.or_else(|| view.nodes.get(&view.node_id)?.subnet);
    let tasks = view.nodes.values().filter_map(|node| node.subnet).chain(own);
    let tasks: BTreeSet<Ipv4Net> = tasks.collect();
    let networks = view.networks.values().flat_map(|network| {
        [Some(IpNet::V4(network.subnet)), network.subnet6.map(IpNet::V6)].into_iter().flatten()
    });
    let mut isolated: BTreeMap<IpNet, u32> = tasks
        .iter()
        .flat_map(|subnet| both_versions(*subnet))
        .chain(networks)
        .map(|network| (network.trunc(), ISOLATED))
        .collect();
    // The engine gives the first address of a subnet to the bridge.
    if let Some(address) = own.and_then(|subnet| subnet.hosts().next()) {
        isolated.extend(both_versions(Ipv4Net::from(address)).map(|network| (network, REACHABLE)));
    }
    isolated
}

/// The IPv6 addresses of the networks that have some.
fn subnets6(joined: &BTreeMap<&NetworkId, &NetworkView>) -> BTreeMap<u32, Subnet6> {
    let with_ipv6 = joined.values().filter_map(|network| {
        let subnet = IpAddr::V6(network.subnet6?.network());
        Some((network.number, Subnet6::of(&Address::from(subnet))))
    });
    with_ipv6.collect()
}

/// A node's task subnet, and the IPv6 subnet that belongs to it.
fn both_versions(subnet: Ipv4Net) -> impl Iterator<Item = IpNet> {
    [Some(IpNet::V4(subnet)), subnet6_of(subnet).map(IpNet::V6)].into_iter().flatten()
}

fn word(address: Ipv4Addr) -> u32 {
    u32::from_ne_bytes(address.octets())
}
