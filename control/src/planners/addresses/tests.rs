//! Addresses of nodes and services in small worlds.

use mesh_state::keys;
use mesh_state::network::Attachment;
use mesh_state::task::TaskState;

use super::*;
use crate::fixtures::{World, join, network, service, task};

/// Nodes `a` and `b`, network `n`, and service `web` on it.
fn world() -> World {
    let mut world = World::with_nodes(["a", "b"]);
    world.put_network(&network("n", "10.0.5.0/29", 1));
    let mut web = service("web", 1);
    join(&mut web.spec, &["n"]);
    world.put_service(&web);
    world
}

fn virtual_ips_of(world: &World, service: &str) -> Vec<(String, String)> {
    let held = &world.snapshot.services[&service.into()].virtual_ips;
    held.iter().map(|held| (held.network_id.to_string(), held.address.to_string())).collect()
}

fn nodes_of(world: &World) -> Vec<(String, String)> {
    let nodes = &world.snapshot.networks[&"n".into()].node_addresses;
    nodes.iter().map(|(node, address)| (node.to_string(), address.to_string())).collect()
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected.iter().map(|(left, right)| ((*left).to_owned(), (*right).to_owned())).collect()
}

/// Commits plans until one plans nothing.
fn settle(world: &mut World) {
    world.run(plan);
    assert_eq!(world.run(plan).actions, [], "planned on its own result");
}

fn place(world: &mut World, id: &str, node: &str, address: &str) {
    let mut placed = task(id, "web", 1);
    placed.node_id = Some(node.into());
    placed.attachments = vec![Attachment {
        network_id: "n".into(),
        address: Some(address.parse().unwrap()),
        backend_id: None,
    }];
    world.put_task(&placed);
}

#[test]
fn a_virtual_ip_lasts_as_long_as_its_service_is_on_the_network_in_mode_vip() {
    let mut world = world();
    world.put_network(&network("m", "10.0.6.0/29", 2));
    settle(&mut world);
    assert_eq!(virtual_ips_of(&world, "web"), pairs(&[("n", "10.0.5.2")]));
    world.update_service("web", |spec| join(spec, &["m", "n"]));
    settle(&mut world);
    let both = pairs(&[("m", "10.0.6.2"), ("n", "10.0.5.2")]);
    assert_eq!(virtual_ips_of(&world, "web"), both, "in the spec's order");
    world.update_service("web", |spec| spec.task_template.force_update += 1);
    settle(&mut world);
    assert_eq!(virtual_ips_of(&world, "web"), both, "after an update of something else");
    world.update_service("web", |spec| join(spec, &["m"]));
    settle(&mut world);
    assert_eq!(virtual_ips_of(&world, "web"), pairs(&[("m", "10.0.6.2")]));
    world.update_service("web", |spec| spec.endpoint_spec.get_or_insert_default().mode = "dnsrr".into());
    settle(&mut world);
    assert_eq!(virtual_ips_of(&world, "web"), []);
}

#[test]
fn a_node_is_on_a_network_from_its_first_task_there_until_it_is_no_member() {
    let mut world = world();
    settle(&mut world);
    place(&mut world, "t", "b", "10.0.5.3");
    settle(&mut world);
    assert_eq!(nodes_of(&world), pairs(&[("b", "10.0.5.4")]));
    world.report(&"t".into(), TaskState::Shutdown);
    settle(&mut world);
    assert_eq!(nodes_of(&world), pairs(&[("b", "10.0.5.4")]), "its task has ended");
    world.delete(keys::node(&"b".into()));
    settle(&mut world);
    assert_eq!(nodes_of(&world), []);
}

#[test]
fn who_finds_a_network_used_up_is_named_and_gets_an_address_once_there_is_one() {
    let mut world = world();
    for number in 2..=6 {
        place(&mut world, &format!("t{number}"), "a", &format!("10.0.5.{number}"));
    }
    let full = world.run(plan);
    assert_eq!(full.actions, []);
    let expected = [
        "node a gets no address: no address left in network n (10.0.5.0/29)",
        "service web gets no virtual IP: no address left in network n (10.0.5.0/29)",
    ];
    assert_eq!(full.reasons, expected);
    world.report(&"t4".into(), TaskState::Failed);
    settle(&mut world);
    assert_eq!(nodes_of(&world), pairs(&[("a", "10.0.5.4")]), "the node first");
    assert_eq!(virtual_ips_of(&world, "web"), []);
    world.report(&"t2".into(), TaskState::Failed);
    settle(&mut world);
    assert_eq!(virtual_ips_of(&world, "web"), pairs(&[("n", "10.0.5.2")]));
}
