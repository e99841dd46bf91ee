//! The IPv6 subnets of networks: which are in use, and which a network gets whose user names none.
//!
//! The cluster has a prefix of its own, a unique local one of /48 (RFC 4193): `fd`, and 40 bits of
//! a hash of the cluster's id. A network gets the /64 of it that has the network's number. So
//! networks of two clusters don't meet by chance, and no record of subnets is needed beside the
//! numbers.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::Ipv6Net;
use mesh_state::cluster::Cluster;
use mesh_state::ids::ClusterId;
use sha2::{Digest as _, Sha256};

use crate::feed::snapshot::ClusterSnapshot;

/// The IPv6 addresses of tasks on their nodes, as agents form them: `fd6d:6573:68::/96`.
const TASKS: Ipv6Addr = Ipv6Addr::new(0xfd6d, 0x6573, 0x68, 0, 0, 0, 0, 0);
const TASKS_BITS: u8 = 96;
/// The prefix length of a subnet that the cluster chooses.
const BITS: u8 = 64;
/// The first octet of unique local addresses that their user forms.
const LOCAL: u8 = 0xfd;

/// The IPv6 subnets in use, with the name of each user for messages.
#[derive(Debug)]
pub(super) struct Subnets6 {
    in_use: Vec<(Ipv6Net, String)>,
    /// The cluster's own prefix, as a number.
    prefix: u128,
}

impl Subnets6 {
    /// Those in `snapshot`.
    pub(super) fn new(snapshot: &ClusterSnapshot, cluster: &Cluster) -> Self {
        let tasks = Ipv6Net::new_assert(TASKS, TASKS_BITS);
        let tasks = (tasks, format!("{tasks}, the addresses of tasks on their nodes"));
        let networks = snapshot.networks.values().filter_map(|network| {
            let subnet = network.subnet6?;
            Some((subnet, format!("{subnet} of the network {}", network.name)))
        });
        let members = snapshot.nodes.values().filter_map(|node| {
            let IpAddr::V6(address) = node.address? else { return None };
            let name = &node.description.hostname;
            Some((Ipv6Net::from(address), format!("the address {address} of the node {name}")))
        });
        let in_use = std::iter::once(tasks).chain(networks).chain(members).collect();
        Self { in_use, prefix: prefix_of(&cluster.id) }
    }

    /// Who uses addresses of `subnet`; `None` if nobody does.
    pub(super) fn user_of(&self, subnet: Ipv6Net) -> Option<&str> {
        let overlaps = |used: &Ipv6Net| used.contains(&subnet) || subnet.contains(used);
        self.in_use.iter().find(|(used, _)| overlaps(used)).map(|(_, user)| user.as_str())
    }

    /// The subnet of the network with this number, if its user names none.
    pub(super) fn of_number(&self, number: u32) -> Ipv6Net {
        Ipv6Net::new_assert(Ipv6Addr::from(self.prefix | u128::from(number) << (128 - BITS)), BITS)
    }
}

/// The cluster's own prefix of 48 bits.
fn prefix_of(cluster: &ClusterId) -> u128 {
    let digest = Sha256::digest(cluster.as_str().as_bytes());
    let mut octets = [0; 16];
    octets[0] = LOCAL;
    octets[1..6].copy_from_slice(&digest[..5]);
    u128::from_be_bytes(octets)
}

#[cfg(test)]
mod tests;
