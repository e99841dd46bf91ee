//! Placement of tasks that are on networks.

use mesh_state::keys;
use mesh_state::network::Attachment;

use super::*;
use crate::fixtures::{join, network};

/// Makes a service's task be on the network `app`.
fn on_app(service: &mut Service) {
    join(&mut service.spec, &["app"]);
}

fn waiting(id: &str, slot: u64) -> Task {
    let mut waiting = task(id, "web", slot);
    waiting.attachments = vec![Attachment { network_id: "app".into(), address: None, backend_id: None }];
    waiting
}

fn address_of(world: &World, id: &str) -> Option<String> {
    world.snapshot.tasks[&id.into()].attachments[0].address.map(|address| address.to_string())
}

#[test]
fn a_node_without_programs_or_with_an_old_agent_takes_no_task_with_networks() {
    let in_userspace = |node: &mut Node| node.description.datapath = "userspace".to_owned();
    let old = |node: &mut Node| node.description.takes_networks = false;
    assert_eq!(
        refusal(in_userspace, on_app),
        "no suitable node (no kernel programs for overlay networks on 1 node)"
    );
    assert_eq!(refusal(old, on_app), "no suitable node (agent too old for overlay networks on 1 node)");
    assert_eq!(refusal(in_userspace, |_| {}), "", "it is on no network");
    assert_eq!(refusal(old, |_| {}), "");
}

#[test]
fn a_node_whose_host_has_addresses_of_a_network_takes_no_task_on_it() {
    let placed_on = |host: &str| {
        let mut world = World::with_nodes(["a", "b"]);
        world.put_network(&network("app", "10.0.5.0/24", 1));
        world.put(keys::host_networks(&"a".into()), &[host.parse::<ipnet::Ipv4Net>().unwrap()]);
        let mut web = service("web", 2);
        on_app(&mut web);
        world.put_service(&web);
        world.put_task(&waiting("t1", 1));
        world.put_task(&waiting("t2", 2));
        world.run(plan);
        let node = |id: &str| world.snapshot.tasks[&id.into()].node_id.clone();
        [node("t1"), node("t2")].into_iter().flatten().map(|node| node.to_string()).collect::<Vec<_>>()
    };
    for inside in ["10.0.5.9/32", "10.0.5.0/24", "10.0.5.128/25"] {
        assert_eq!(placed_on(inside), ["b", "b"], "{inside}");
    }
    for apart in ["10.0.0.0/8", "10.0.6.0/24"] {
        assert_eq!(placed_on(apart).len(), 2, "{apart}");
        assert!(placed_on(apart).contains(&"a".to_owned()), "{apart}");
    }
}

#[test]
fn a_node_that_encrypts_nothing_takes_no_task_with_an_encrypted_network() {
    let placed = |name: &'static str, encrypts: bool| {
        let mut world = World::with_nodes(["a"]);
        world.put_network(&network("app", "10.0.5.0/24", 1));
        world.put_network(&network("sealed", "10.0.6.0/24", 2 | mesh_state::network::ENCRYPTED));
        let end = mesh_state::node::EncryptionEnd { public_key: "k".to_owned(), port: 4801 };
        world.update_node("a", |node| node.description.encryption = encrypts.then_some(end));
        let mut web = service("web", 1);
        join(&mut web.spec, &[name]);
        world.put_service(&web);
        wait(&mut world, "web", 1, 1);
        world.run(plan);
        world.snapshot.tasks[&"web-001".into()].leader_status.err.clone()
    };
    let refused = "no suitable node (no encryption of overlay networks on 1 node)";
    assert_eq!(placed("sealed", false), refused);
    assert_eq!(placed("sealed", true), "");
    assert_eq!(placed("app", false), "");
}

#[test]
fn addresses_come_with_the_node_and_a_task_without_one_takes_no_room() {
    let mut world = World::with_nodes(["a"]);
    world.put_network(&network("app", "10.0.5.0/29", 1));
    let mut web = service("web", 4);
    on_app(&mut web);
    web.spec.endpoint_spec.get_or_insert_default().mode = "dnsrr".to_owned();
    world.put_service(&web);
    for slot in 1..=5 {
        world.put_task(&waiting(&format!("t{slot}"), slot));
    }
    world.run(plan);
    let given: Vec<_> = (1..=4).filter_map(|slot| address_of(&world, &format!("t{slot}"))).collect();
    assert_eq!(given, ["10.0.5.2", "10.0.5.3", "10.0.5.4", "10.0.5.5"], "6 is owed to the node");
    let last = &world.snapshot.tasks[&"t5".into()];
    assert_eq!((last.node_id.clone(), address_of(&world, "t5")), (None, None));
    assert_eq!(last.leader_status.err, "no address left in network app (10.0.5.0/29)");
    assert_eq!(world.run(plan), Plan::default(), "planned on its own result");
    world.report(&"t2".into(), TaskState::Failed);
    world.run(plan);
    assert_eq!(address_of(&world, "t5").as_deref(), Some("10.0.5.6"), "t2's rests");
}

#[test]
fn a_task_that_finds_no_node_holds_no_address() {
    let mut world = World::with_nodes(["a"]);
    world.put_network(&network("app", "10.0.5.0/29", 1));
    let mut web = service("web", 1);
    on_app(&mut web);
    constrain(&mut web, "node.role==manager");
    world.put_service(&web);
    world.put_task(&waiting("t1", 1));
    world.run(plan);
    let said = world.snapshot.tasks[&"t1".into()].leader_status.err.clone();
    assert_eq!(said, "no suitable node (scheduling constraints not satisfied on 1 node)");
    assert_eq!(address_of(&world, "t1"), None);
}

#[test]
fn a_network_that_is_gone_is_named() {
    let mut world = World::with_nodes(["a"]);
    let mut web = service("web", 1);
    on_app(&mut web);
    world.put_service(&web);
    world.put_task(&waiting("t1", 1));
    world.run(plan);
    assert_eq!(world.snapshot.tasks[&"t1".into()].leader_status.err, "network app not found");
}
