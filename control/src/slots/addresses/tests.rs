//! Tests of addresses in small networks.

use mesh_state::network::{Ipam, IpamConfig, VirtualIp};
use mesh_state::task::TaskState;

use super::*;
use crate::fixtures::{World, join, network, service, task};

fn on(network: &str, address: Option<&str>) -> Attachment {
    let address = address.map(|text| text.parse().unwrap());
    Attachment { network_id: network.into(), address, backend_id: None }
}

/// Three nodes, and the network `n` of 10.0.5.0/29: five addresses besides the gateway.
fn world() -> World {
    let mut world = World::with_nodes(["a", "b", "c"]);
    world.put_network(&network("n", "10.0.5.0/29", 1));
    world
}

fn hold(world: &mut World, id: &str, address: &str) {
    let mut holder = task(id, "web", 1);
    holder.attachments = vec![on("n", Some(address))];
    world.put_task(&holder);
}

/// The last octets of the addresses that the given number of tasks get, until none is left.
fn given(world: &World, tasks: usize) -> Vec<u8> {
    let mut addresses = Addresses::new(&world.snapshot);
    let one = |addresses: &mut Addresses<'_>| addresses.for_task(&[on("n", None)]).ok();
    (0..tasks).filter_map(|_| one(&mut addresses)).map(|given| given[0].octets()[3]).collect()
}

#[test]
fn the_ends_of_a_subnet_and_its_gateway_are_nobodys() {
    let mut world = world();
    assert_eq!(given(&world, 9), [2, 3, 4, 5, 6]);
    let mut asked = network("n", "10.0.5.0/29", 1);
    let config = IpamConfig {
        subnet: "10.0.5.0/29".to_owned(),
        gateway: "10.0.5.4".to_owned(),
        ..IpamConfig::default()
    };
    asked.spec.ipam = Some(Ipam { config: Some(vec![config]), ..Ipam::default() });
    world.put_network(&asked);
    assert_eq!(given(&world, 9), [1, 2, 3, 5, 6], "the user's own gateway");
    asked.subnet6 = "fd00:55::/64".parse().ok();
    let config6 = IpamConfig {
        subnet: "fd00:55::/64".to_owned(),
        gateway: "fd00:55::a00:505".to_owned(),
        ..IpamConfig::default()
    };
    asked.spec.ipam.as_mut().unwrap().config.as_mut().unwrap().insert(0, config6);
    world.put_network(&asked);
    assert_eq!(given(&world, 9), [1, 2, 3, 6], "nor whose IPv6 address is the user's own gateway");
    let error = NoAddress::Exhausted { name: "n".into(), subnet: "10.0.5.0/29".parse().unwrap() };
    assert_eq!(error.to_string(), "no address left in network n (10.0.5.0/29)");
}

#[test]
fn a_range_of_the_users_is_kept_to() {
    let mut world = world();
    let mut asked = network("n", "10.0.5.0/24", 1);
    let config = IpamConfig {
        subnet: "10.0.5.0/24".to_owned(),
        ip_range: "10.0.5.128/30".to_owned(),
        ..IpamConfig::default()
    };
    asked.spec.ipam = Some(Ipam { config: Some(vec![config]), ..Ipam::default() });
    world.put_network(&asked);
    assert_eq!(given(&world, 9), [128, 129, 130, 131]);
    hold(&mut world, "t", "10.0.5.129");
    assert_eq!(given(&world, 9), [130, 131, 128]);
}

#[test]
fn every_holder_keeps_its_address_until_it_is_gone() {
    let mut world = world();
    let mut app = network("n", "10.0.5.0/29", 1);
    app.node_addresses.insert("a".into(), "10.0.5.2".parse().unwrap());
    world.put_network(&app);
    let mut web = service("web", 1);
    join(&mut web.spec, &["n"]);
    web.virtual_ips = vec![VirtualIp { network_id: "n".into(), address: "10.0.5.3".parse().unwrap() }];
    world.put_service(&web);
    hold(&mut world, "t", "10.0.5.5");
    assert_eq!(given(&world, 9), [6, 4]);
    world.report(&"t".into(), TaskState::Failed);
    assert_eq!(given(&world, 9), [6, 4, 5], "the task has ended, its record is still there");
    world.remove_service("web");
    assert_eq!(given(&world, 9), [6, 3, 4, 5]);
}

#[test]
fn an_address_rests_while_there_are_others_even_if_its_holder_is_forgotten() {
    let mut world = world();
    hold(&mut world, "t", "10.0.5.3");
    world.delete(mesh_state::keys::task(&"t".into()));
    assert_eq!(given(&world, 9), [4, 5, 6, 2, 3]);
}

#[test]
fn tasks_leave_what_nodes_and_services_are_owed() {
    let mut world = world();
    let mut web = service("web", 1);
    join(&mut web.spec, &["n"]);
    world.put_service(&web);
    assert_eq!(given(&world, 9), [2, 3, 4, 5], "one for the virtual IP");
    let mut placed = task("t", "web", 1);
    placed.node_id = Some("a".into());
    placed.attachments = vec![on("n", Some("10.0.5.2"))];
    world.put_task(&placed);
    assert_eq!(given(&world, 9), [3, 4], "and one for the bridge on a");
    let mut addresses = Addresses::new(&world.snapshot);
    let (a, b) = (NodeId::from("a"), NodeId::from("b"));
    let waiting = [on("n", None)];
    addresses.for_task(&waiting).unwrap();
    addresses.owe(&a, &waiting).unwrap();
    addresses.owe(&b, &waiting).unwrap();
    addresses.owe(&b, &waiting).unwrap();
    assert!(addresses.for_task(&waiting).is_err(), "b is owed the last but those for a and web");
    let others = ["a", "b"].map(|node| addresses.for_node(&"n".into(), &node.into()).unwrap());
    assert_eq!(others.map(|address| address.octets()[3]), [4, 5]);
    assert_eq!(addresses.for_service(&"n".into()).unwrap().octets()[3], 6);
    assert!(addresses.for_service(&"n".into()).is_err());
}

#[test]
fn a_node_that_could_have_no_address_is_refused() {
    let mut world = world();
    for number in 2..=5 {
        hold(&mut world, &format!("t{number}"), &format!("10.0.5.{number}"));
    }
    let mut addresses = Addresses::new(&world.snapshot);
    let (node, waiting) = (NodeId::from("a"), [on("n", None)]);
    let given = addresses.for_task(&waiting).unwrap();
    assert!(addresses.owe(&node, &waiting).is_err(), "its task has the last one");
    addresses.give_back(&waiting, &given);
    let owed = &addresses.pool(&"n".into()).unwrap().nodes_owed;
    assert!(owed.is_empty(), "a refused node is owed nothing");
    addresses.owe(&node, &waiting).unwrap();
}

#[test]
fn all_of_a_tasks_addresses_or_none() {
    let mut world = world();
    world.put_network(&network("old", "10.128.0.0/12", 0));
    let mut addresses = Addresses::new(&world.snapshot);
    for (other, expected) in
        [("old", NoAddress::NoSubnet("old".into())), ("gone", NoAddress::NotFound("gone".into()))]
    {
        assert_eq!(addresses.for_task(&[on("n", None), on(other, None)]), Err(expected));
    }
    let mut rest = Vec::new();
    while let Ok(given) = addresses.for_task(&[on("n", None)]) {
        rest.push(given[0].octets()[3]);
    }
    rest.sort_unstable();
    assert_eq!(rest, [2, 3, 4, 5, 6], "what was taken for nothing came back");
}

#[test]
fn a_service_has_what_it_wants_only_if_both_lists_are_the_same() {
    let mut world = world();
    world.put_network(&network("m", "10.0.6.0/29", 2));
    world.put_network(&network("early", "10.0.7.0/29", 0));
    let networks = ["n", "m", "early", "gone"];
    let lists = || (0..125).map(|number| [number % 5, number / 5 % 5, number / 25]);
    let named = |list: [usize; 3]| list.map(|index| networks.get(index).copied());
    let mut outcomes = BTreeSet::new();
    for (asked, has) in lists().flat_map(|asked| lists().map(move |has| (asked, has))) {
        let asked: Vec<&str> = named(asked).into_iter().flatten().collect();
        let mut web = service("web", 1);
        join(&mut web.spec, &asked);
        let held = named(has).into_iter().flatten();
        let held = held.map(|id| VirtualIp { network_id: id.into(), address: "10.0.5.3".parse().unwrap() });
        web.virtual_ips = held.collect();
        let has: Vec<NetworkId> = web.virtual_ips.iter().map(|held| held.network_id.clone()).collect();
        let is_settled = virtual_ips_wanted(&world.snapshot, &web) == has;
        assert_eq!(has_virtual_ips_wanted(&world.snapshot, &web), is_settled, "{asked:?} and {has:?}");
        outcomes.insert(is_settled);
    }
    assert_eq!(outcomes.len(), 2);
}
