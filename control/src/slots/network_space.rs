//! The subnet and the number that a new network gets.
//!
//! Pure. The caller writes the [`NetworkCursor`] that it gets with them, under a compare on the
//! cursor in the snapshot, so two managers can't give one subnet or number twice.
//!
//! Invariants: a subnet given here overlaps neither with another network's, nor with the task
//! subnets of nodes, nor with a member's address, nor does it contain a network that a node's host
//! has reported. One that a larger network of a host covers is given if no other is free. Subnets
//! of the pool and numbers are given in turn, so those of a removed network are reused as late as
//! possible: a node that has not noticed the removal yet can't confuse the two networks.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use mesh_state::cluster::Cluster;
use mesh_state::network::{ENCRYPTED, NUMBER_MAX, NetworkCursor};
use thiserror::Error;

use super::host_overlap;
use super::subnets6::Subnets6;
use crate::feed::snapshot::ClusterSnapshot;

/// The subnet, the number and the cursor for a new network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NetworkSpace {
    /// The network's subnet.
    pub subnet: Ipv4Net,
    /// The network's IPv6 subnet, if it is to have IPv6.
    pub subnet6: Option<Ipv6Net>,
    /// The network's number.
    pub number: u32,
    /// The cursor to write together with the network.
    pub cursor: NetworkCursor,
}

/// What a user asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Wanted {
    /// The subnet; `None` if the cluster is to choose one.
    pub subnet: Option<Ipv4Net>,
    /// Whether the network is to have IPv6.
    pub has_ipv6: bool,
    /// The IPv6 subnet; `None` if the cluster is to choose one.
    pub subnet6: Option<Ipv6Net>,
}

/// Why a network can't be given a subnet or a number. The first words are those of Docker's engine.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SpaceError {
    /// The requested subnet overlaps with addresses in use.
    #[error(
        "Pool overlaps with other one on this address space: {subnet} overlaps {other}; choose another --subnet"
    )]
    Overlap {
        /// The requested subnet.
        subnet: IpNet,
        /// The user of the overlapping addresses.
        other: String,
    },
    /// The pool has no free subnet.
    #[error(
        "could not find an available, non-overlapping IPv4 address pool among the defaults to assign to the network: \
         the pool {pool} has no free /{prefix}; remove a network, or give this one a --subnet outside of the pool"
    )]
    PoolUsedUp {
        /// The cluster's pool for networks.
        pool: Ipv4Net,
        /// The prefix length of each network's subnet.
        prefix: u8,
    },
    /// The cluster has as many networks as there are numbers.
    #[error("the cluster has {NUMBER_MAX} networks, and can have no more: remove one")]
    NumbersUsedUp,
}

/// Gives a new network the subnets that its user requested, or free ones, and the next free number.
///
/// # Errors
/// [`SpaceError`] if the subnet overlaps, or no subnet or number is free.
pub fn give(
    snapshot: &ClusterSnapshot,
    cluster: &Cluster,
    wanted: &Wanted,
) -> Result<NetworkSpace, SpaceError> {
    let mut cursor = snapshot.network_cursor.as_ref().map(|cursor| cursor.value).unwrap_or_default();
    let subnet = if let Some(subnet) = wanted.subnet {
        free(snapshot, cluster, subnet)?
    } else {
        *cursor.subnet.insert(next_subnet(snapshot, cluster, cursor.subnet)?)
    };
    let known = Subnets6::new(snapshot, cluster);
    if let Some(subnet) = wanted.subnet6
        && let Some(other) = known.user_of(subnet)
    {
        return Err(SpaceError::Overlap { subnet: subnet.into(), other: other.to_owned() });
    }
    let chooses6 = wanted.has_ipv6 && wanted.subnet6.is_none();
    let fits = |number: u32| !chooses6 || known.user_of(known.of_number(number)).is_none();
    cursor.number = next_number(snapshot, cursor.number, fits)?;
    let subnet6 = if chooses6 { Some(known.of_number(cursor.number)) } else { wanted.subnet6 };
    Ok(NetworkSpace { subnet, subnet6, number: cursor.number, cursor })
}

/// The requested subnet, if it overlaps with no addresses in use.
fn free(snapshot: &ClusterSnapshot, cluster: &Cluster, subnet: Ipv4Net) -> Result<Ipv4Net, SpaceError> {
    let known = in_use(snapshot, cluster).find(|(used, _)| overlap(*used, subnet)).map(|(_, other)| other);
    let other = known.or_else(|| Some(host_overlap::of_any(snapshot, subnet)?.to_string()));
    match other {
        Some(other) => Err(SpaceError::Overlap { subnet: subnet.into(), other }),
        None => Ok(subnet),
    }
}

/// The subnets and addresses in use, with the name of each user for messages.
fn in_use<'a>(
    snapshot: &'a ClusterSnapshot,
    cluster: &'a Cluster,
) -> impl Iterator<Item = (Ipv4Net, String)> + use<'a> {
    let pool = cluster.subnet_pool;
    let tasks = std::iter::once((pool, format!("{pool}, the addresses of tasks on their nodes")));
    let networks = snapshot.networks.values().filter(|network| !network.ingress);
    let networks = networks
        .map(|network| (network.subnet, format!("{} of the network {}", network.subnet, network.name)));
    let members = snapshot.nodes.values().filter_map(|node| {
        let IpAddr::V4(address) = node.address? else { return None };
        let name = &node.description.hostname;
        Some((Ipv4Net::from(address), format!("the address {address} of the node {name}")))
    });
    tasks.chain(networks).chain(members)
}

fn overlap(one: Ipv4Net, other: Ipv4Net) -> bool {
    one.contains(&other) || other.contains(&one)
}

/// The first free subnet of the pool after the one given last; after the end of the pool, the first
/// free one.
fn next_subnet(
    snapshot: &ClusterSnapshot,
    cluster: &Cluster,
    last: Option<Ipv4Net>,
) -> Result<Ipv4Net, SpaceError> {
    let (pool, prefix) = (cluster.network_pool, cluster.network_prefix);
    let used_up = || SpaceError::PoolUsedUp { pool, prefix };
    let subnets = || pool.subnets(prefix).map_err(|_| used_up());
    let behind = |subnet: &Ipv4Net| last.is_none_or(|last| subnet.network() > last.network());
    let hosts = || host_overlap::all(snapshot).flat_map(|(_, networks)| networks.iter().copied());
    // First without the networks of hosts at all, then without those that fit into a subnet.
    for shortest in [0, prefix] {
        let of_hosts = hosts().filter(|network| network.prefix_len() >= shortest);
        let taken = merged(in_use(snapshot, cluster).map(|(used, _)| used).chain(of_hosts));
        let is_free = |subnet: &Ipv4Net| {
            let below = taken.partition_point(|(first, _)| *first <= u32::from(subnet.broadcast()));
            let nearest = below.checked_sub(1).and_then(|index| taken.get(index));
            nearest.is_none_or(|(_, end)| *end < u32::from(subnet.network()))
        };
        let later = subnets()?.filter(behind).find(is_free);
        if let Some(found) = later.or(subnets()?.find(is_free)) {
            return Ok(found);
        }
    }
    Err(used_up())
}

/// The first and last addresses of the used ranges, ascending, merged where they overlap.
fn merged(used: impl Iterator<Item = Ipv4Net>) -> Vec<(u32, u32)> {
    let ends = |address: Ipv4Addr| u32::from(address);
    let mut ranges: Vec<_> = used.map(|used| (ends(used.network()), ends(used.broadcast()))).collect();
    ranges.sort_unstable();
    let mut merged: Vec<(u32, u32)> = Vec::with_capacity(ranges.len());
    for (first, end) in ranges {
        match merged.last_mut() {
            Some(last) if first <= last.1 => last.1 = last.1.max(end),
            _ => merged.push((first, end)),
        }
    }
    merged
}

/// The first free number after `last` that `fits`; after the highest, from 1 on.
fn next_number(snapshot: &ClusterSnapshot, last: u32, fits: impl Fn(u32) -> bool) -> Result<u32, SpaceError> {
    let mut used = vec![false; NUMBER_MAX as usize + 1];
    for network in snapshot.networks.values() {
        if let Some(used) = used.get_mut((network.number & !ENCRYPTED) as usize) {
            *used = true;
        }
    }
    let is_free = |number: &u32| used.get(*number as usize) == Some(&false) && fits(*number);
    let later = (last.saturating_add(1)..=NUMBER_MAX).find(is_free);
    later.or_else(|| (1..=NUMBER_MAX).find(is_free)).ok_or(SpaceError::NumbersUsedUp)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use mesh_state::Timestamp;
    use mesh_state::keys;
    use mesh_state::network::{Network, NetworkSpec};

    use super::*;
    use crate::fixtures::{World, node};

    fn given(world: &World, wanted: Option<&str>) -> Result<NetworkSpace, SpaceError> {
        let cluster = &world.snapshot.cluster.as_ref().unwrap().value;
        let subnet = wanted.map(|subnet| subnet.parse().unwrap());
        give(&world.snapshot, cluster, &Wanted { subnet, ..Wanted::default() })
    }

    /// Makes a network as the API does.
    fn make(world: &mut World, name: &str, wanted: Option<&str>) -> (String, u32) {
        let space = given(world, wanted).unwrap();
        let network = Network {
            id: name.into(),
            name: name.to_owned(),
            ingress: false,
            subnet: space.subnet,
            subnet6: None,
            number: space.number,
            node_addresses: BTreeMap::new(),
            created_at: Timestamp::default(),
            spec: NetworkSpec::default(),
        };
        world.put(keys::network(&network.id), &network);
        world.put(keys::NETWORK_CURSOR.to_owned(), &space.cursor);
        (space.subnet.to_string(), space.number)
    }

    fn with_pool(pool: &str, prefix: u8) -> World {
        let mut world = World::new();
        let mut cluster = world.snapshot.cluster.as_ref().unwrap().value.clone();
        (cluster.network_pool, cluster.network_prefix) = (pool.parse().unwrap(), prefix);
        world.put_cluster(&cluster);
        world
    }

    #[test]
    fn subnets_and_numbers_are_given_in_turn_and_not_again_at_once() {
        let mut world = with_pool("10.0.0.0/22", 24);
        assert_eq!(make(&mut world, "a", None), ("10.0.0.0/24".to_owned(), 1));
        assert_eq!(make(&mut world, "b", None), ("10.0.1.0/24".to_owned(), 2));
        world.delete(keys::network(&"b".into()));
        assert_eq!(make(&mut world, "c", None), ("10.0.2.0/24".to_owned(), 3), "b's rest");
        assert_eq!(make(&mut world, "d", None), ("10.0.3.0/24".to_owned(), 4));
        assert_eq!(make(&mut world, "e", None), ("10.0.1.0/24".to_owned(), 5), "b's, and no other is free");
        let refused = given(&world, None).unwrap_err();
        assert_eq!(refused, SpaceError::PoolUsedUp { pool: "10.0.0.0/22".parse().unwrap(), prefix: 24 });
    }

    #[test]
    fn numbers_begin_again_at_the_first_free_one() {
        let mut world = World::new();
        make(&mut world, "a", None);
        world.put(keys::NETWORK_CURSOR.to_owned(), &NetworkCursor { subnet: None, number: NUMBER_MAX - 1 });
        assert_eq!(make(&mut world, "b", None).1, NUMBER_MAX);
        assert_eq!(make(&mut world, "c", None).1, 2, "1 is in use");
    }

    #[test]
    fn what_others_have_is_left_out() {
        let mut world = with_pool("10.0.0.0/8", 24);
        let mut member = node("a");
        member.address = Some("10.0.1.7".parse().unwrap());
        world.add_node(&member);
        make(&mut world, "own", Some("10.0.2.0/23"));
        assert_eq!(make(&mut world, "first", None).0, "10.0.0.0/24");
        assert_eq!(make(&mut world, "second", None).0, "10.0.4.0/24", "behind a member and a network");
        let cursor = NetworkCursor { subnet: "10.127.255.0/24".parse().ok(), number: 9 };
        world.put(keys::NETWORK_CURSOR.to_owned(), &cursor);
        assert_eq!(make(&mut world, "third", None).0, "10.144.0.0/24", "behind the pool of tasks");
    }

    fn report(world: &mut World, node: &str, networks: &[&str]) {
        let networks: Vec<Ipv4Net> = networks.iter().map(|network| network.parse().unwrap()).collect();
        world.put(keys::host_networks(&node.into()), &networks);
    }

    #[test]
    fn networks_of_hosts_are_left_out() {
        let mut world = with_pool("10.0.0.0/22", 24);
        world.add_node(&node("a"));
        world.add_node(&node("b"));
        report(&mut world, "a", &["10.0.0.0/24", "10.0.0.7/32", "192.168.0.0/16"]);
        report(&mut world, "b", &["10.0.2.0/26"]);
        report(&mut world, "gone", &["10.0.1.0/24"]);
        assert_eq!(make(&mut world, "first", None).0, "10.0.1.0/24");
        assert_eq!(make(&mut world, "second", None).0, "10.0.3.0/24");
        assert!(given(&world, None).is_err(), "the rest is the hosts'");
        for (wanted, other) in [
            ("10.0.2.0/24", "10.0.2.0/26 of the host of node host-b"),
            ("192.0.0.0/8", "192.168.0.0/16 of the host of node host-a"),
        ] {
            let refused = given(&world, Some(wanted)).unwrap_err().to_string();
            assert!(refused.contains(other), "for {wanted}: {refused}");
        }
        assert!(given(&world, Some("192.168.9.0/24")).is_ok(), "a route that covers it may lead anywhere");
    }

    #[test]
    fn a_route_that_covers_the_pool_does_not_use_it_up() {
        let mut world = with_pool("10.0.0.0/22", 24);
        world.add_node(&node("a"));
        report(&mut world, "a", &["10.0.0.0/8", "10.0.0.0/24"]);
        assert_eq!(make(&mut world, "first", None).0, "10.0.1.0/24");
        report(&mut world, "a", &["10.0.0.0/23"]);
        assert_eq!(make(&mut world, "second", None).0, "10.0.2.0/24", "before those that are covered");
    }

    #[test]
    fn a_users_subnet_may_be_outside_of_the_pool_and_overlaps_nothing() {
        let mut world = World::new();
        let mut member = node("a");
        member.address = Some("192.168.7.1".parse().unwrap());
        world.add_node(&member);
        assert_eq!(make(&mut world, "app", Some("172.30.0.0/16")), ("172.30.0.0/16".to_owned(), 1));
        for (wanted, other) in [
            ("172.30.5.0/24", "172.30.0.0/16 of the network app"),
            ("172.0.0.0/8", "172.30.0.0/16 of the network app"),
            ("10.128.9.0/24", "10.128.0.0/12, the addresses of tasks"),
            ("192.168.0.0/16", "the address 192.168.7.1 of the node"),
        ] {
            let refused = given(&world, Some(wanted)).unwrap_err().to_string();
            assert!(
                refused.starts_with("Pool overlaps with other one on this address space")
                    && refused.contains(other),
                "for {wanted}: {refused}"
            );
        }
        let cursor = world.snapshot.network_cursor.as_ref().unwrap();
        assert_eq!(cursor.subnet, None, "the pool's turn is as it was");
    }
}
