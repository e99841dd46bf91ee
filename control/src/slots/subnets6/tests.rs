//! Tests of IPv6 subnets that users and the cluster choose.

use mesh_state::network::Network;

use super::*;
use crate::fixtures::{World, network};
use crate::slots::network_space::{Wanted, give};

fn wanted(subnet6: Option<&str>) -> Wanted {
    Wanted { has_ipv6: true, subnet6: subnet6.map(|subnet| subnet.parse().unwrap()), ..Wanted::default() }
}

fn given(world: &World, subnet6: Option<&str>) -> Result<(u32, String), String> {
    let cluster = &world.snapshot.cluster.as_ref().unwrap().value;
    let space = give(&world.snapshot, cluster, &wanted(subnet6)).map_err(|error| error.to_string())?;
    Ok((space.number, space.subnet6.expect("a network with IPv6").to_string()))
}

fn put(world: &mut World, id: &str, subnet6: &str, number: u32) {
    let subnet6 = subnet6.parse().ok();
    let network = Network { subnet6, ..network(id, &format!("10.0.{number}.0/24"), number) };
    world.put_network(&network);
}

#[test]
fn a_network_gets_the_subnet_of_its_number_in_the_clusters_own_prefix() {
    let mut world = World::new();
    let (number, subnet) = given(&world, None).unwrap();
    assert!(number == 1 && subnet.starts_with("fd") && subnet.ends_with(":1::/64"), "{subnet}");
    let third = subnet.replace(":1::/64", ":3::/64");
    put(&mut world, "a", &subnet, 1);
    assert_eq!(given(&world, None).unwrap(), (2, subnet.replace(":1::/64", ":2::/64")));
    put(&mut world, "b", &third, 2);
    assert_eq!(given(&world, None).unwrap().0, 4, "a user has asked for the third's");
    let other = prefix_of(&ClusterId::from("another"));
    assert_ne!(other, prefix_of(&world.snapshot.cluster.as_ref().unwrap().id));
}

#[test]
fn a_users_subnet_overlaps_nothing() {
    let mut world = World::new();
    put(&mut world, "app", "fd00:55::/64", 1);
    assert_eq!(given(&world, Some("fd00:56::/64")), Ok((2, "fd00:56::/64".to_owned())));
    for (asked, other) in [
        ("fd00:55::/80", "fd00:55::/64 of the network app"),
        ("fd00::/16", "fd00:55::/64 of the network app"),
        ("fd6d:6573:68::/64", "the addresses of tasks"),
    ] {
        let refused = given(&world, Some(asked)).unwrap_err();
        assert!(
            refused.starts_with("Pool overlaps with other one") && refused.contains(other),
            "for {asked}: {refused}"
        );
    }
}
