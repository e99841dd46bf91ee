//! Whether a network's subnet overlaps with networks of nodes' hosts, as their agents report them.
//! Pure.
//!
//! A network of a host that is *inside* a subnet, or equal to it, is in the way: the host has an
//! address there, or reaches others there, and on a node with a bridge of the subnet the host loses
//! them. A larger network of a host that *covers* a subnet need not have anybody there (10.0.0.0/8
//! by way of a gateway, say).
//!
//! Invariant: the list of each node is sorted ([`mesh_state::report`] refuses others).

use std::fmt;

use ipnet::Ipv4Net;
use mesh_state::ids::NodeId;

use crate::feed::snapshot::ClusterSnapshot;

/// A network of a node's host. Its `Display` is for messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostNetwork {
    /// A network that is on-link at the host, or that the host has a route to.
    pub network: Ipv4Net,
    /// The node's hostname.
    pub hostname: String,
}

impl fmt::Display for HostNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of the host of node {}", self.network, self.hostname)
    }
}

/// The networks of all nodes' hosts.
pub fn all(snapshot: &ClusterSnapshot) -> impl Iterator<Item = (&NodeId, &[Ipv4Net])> {
    let of_members = snapshot.host_networks.iter().filter(|(node, _)| snapshot.nodes.contains_key(node));
    of_members.map(|(node, networks)| (node, networks.value.as_slice()))
}

/// A network of this node's host that is inside `subnet`.
pub fn of_node(snapshot: &ClusterSnapshot, node: &NodeId, subnet: Ipv4Net) -> Option<HostNetwork> {
    let networks = &snapshot.host_networks.get(node)?.value;
    inside(networks, subnet).map(|network| shown(snapshot, node, network))
}

/// A network of any node's host that is inside `subnet`.
pub fn of_any(snapshot: &ClusterSnapshot, subnet: Ipv4Net) -> Option<HostNetwork> {
    all(snapshot)
        .find_map(|(node, networks)| inside(networks, subnet).map(|network| shown(snapshot, node, network)))
}

/// A larger network of any node's host that covers `subnet`.
pub fn covering(snapshot: &ClusterSnapshot, subnet: Ipv4Net) -> Option<HostNetwork> {
    let covers = |network: &&Ipv4Net| network.contains(&subnet) && **network != subnet;
    all(snapshot).find_map(|(node, networks)| {
        networks.iter().find(covers).map(|network| shown(snapshot, node, *network))
    })
}

/// The first of these networks, which are sorted, that is inside `subnet`.
pub fn inside(networks: &[Ipv4Net], subnet: Ipv4Net) -> Option<Ipv4Net> {
    let first = networks.partition_point(|network| *network < subnet);
    networks.get(first).copied().filter(|network| subnet.contains(network))
}

fn shown(snapshot: &ClusterSnapshot, node: &NodeId, network: Ipv4Net) -> HostNetwork {
    let hostname = snapshot.nodes.get(node).map(|stored| stored.description.hostname.clone());
    HostNetwork { network, hostname: hostname.unwrap_or_else(|| node.to_string()) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_network() -> impl Strategy<Value = Ipv4Net> {
        (0_u32..=0xffff, 16_u8..=32)
            .prop_map(|(low, prefix)| Ipv4Net::new((0x0a00_0000 | low).into(), prefix).unwrap().trunc())
    }

    proptest! {
        #[test]
        fn the_search_finds_what_a_comparison_with_each_finds(
            mut networks in proptest::collection::vec(any_network(), 0..12), subnet in any_network(),
        ) {
            networks.sort();
            let found = inside(&networks, subnet);
            let expected = networks.iter().any(|network| subnet.contains(network));
            prop_assert_eq!(found.is_some(), expected, "{:?} in {}: {:?}", networks, subnet, found);
        }
    }
}
