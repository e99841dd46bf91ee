//! Tests of network members in the tables of small clusters.

use std::collections::BTreeMap;

use mesh_state::ids::{NodeId, TaskId};
use mesh_state::network::{Attachment, VirtualIp};
use mesh_state::node::NodeState;
use mesh_state::task::{ContainerStatus, TaskStatus};

use super::*;
use crate::fixtures::{World, join, network, service, task};
use crate::node_service::mesh_table::{Table, for_node};

/// Nodes `a` and `b`, network `app`, service `db` on it with a virtual IP, and a task of `db` on
/// `a` that has not begun.
fn world() -> World {
    let mut world = World::with_nodes(["a", "b"]);
    let mut app = network("app", "10.0.5.0/24", 3);
    for (node, address) in [("a", "10.0.5.3"), ("b", "10.0.5.4")] {
        app.node_addresses.insert(node.into(), address.parse().unwrap());
    }
    world.put_network(&app);
    let mut db = service("db", 1);
    join(&mut db.spec, &["app"]);
    db.spec.task_template.extra.get_mut("Networks").unwrap()[0]["Aliases"] = serde_json::json!(["sql"]);
    db.virtual_ips = vec![VirtualIp { network_id: "app".into(), address: "10.0.5.2".parse().unwrap() }];
    world.put_service(&db);
    let mut first = task("t1", "db", 1);
    first.node_id = Some("a".into());
    first.attachments = vec![Attachment {
        network_id: "app".into(),
        address: Some("10.0.5.9".parse().unwrap()),
        backend_id: BackendId::new(7),
    }];
    world.put_task(&first);
    world
}

fn run(world: &mut World) {
    let container = ContainerStatus { container_id: "c1".to_owned(), ..ContainerStatus::default() };
    let status =
        TaskStatus { state: TaskState::Running, container: Some(container), ..TaskStatus::default() };
    world.report_status(&TaskId::from("t1"), status);
}

fn members(world: &World) -> Vec<MeshMember> {
    Table::of(&world.snapshot).whole().members
}

fn states(world: &World) -> Vec<BackendState> {
    members(world).iter().map(MeshMember::state).collect()
}

fn desire(world: &mut World, state: TaskState) {
    let mut task = world.snapshot.tasks[&TaskId::from("t1")].value.clone();
    task.desired_state = state;
    world.put_task(&task);
}

#[test]
fn a_service_on_a_network_is_in_the_table_without_ports() {
    let whole = Table::of(&world().snapshot).whole();
    let network = &whole.networks[0];
    assert_eq!((&*network.id, network.number, &*network.subnet), ("app", 3, "10.0.5.0/24"));
    let service = &whole.services[0];
    let expected = MeshServiceNetwork {
        network_id: "app".to_owned(),
        virtual_ip: "10.0.5.2".to_owned(),
        aliases: vec!["sql".to_owned()],
    };
    assert_eq!((&*service.name, service.ports.len(), &service.networks), ("db", 0, &vec![expected]));
    let member = &whole.members[0];
    let attachment = &member.attachments[0];
    assert_eq!((&*member.name, &*member.node_id, member.weight), ("db.1.t1", "a", 1));
    assert_eq!((&*attachment.address, attachment.backend_id), ("10.0.5.9", 7));
}

#[test]
fn an_encrypted_network_is_hidden_from_agents_that_dont_know_of_any() {
    let mut world = world();
    let before = Table::of(&world.snapshot);
    let number = 4 | mesh_state::network::ENCRYPTED;
    let mut sealed = network("sealed", "10.0.6.0/24", number);
    sealed.node_addresses.insert("a".into(), "10.0.6.2".parse().unwrap());
    sealed.node_addresses.insert("b".into(), "10.0.6.3".parse().unwrap());
    world.put_network(&sealed);
    let after = Table::of(&world.snapshot);
    for message in [after.whole(), after.since(&before)] {
        assert!(message.networks.iter().all(|network| network.id != "sealed"));
        let message = for_node(message, &"a".into(), world.now);
        let [found] = message.encrypted_networks.as_slice() else { panic!("not in its list") };
        assert_eq!((&*found.id, found.number, found.node_addresses.len()), ("sealed", number, 1));
    }
    assert_eq!(before.since(&after).removed_network_ids, ["sealed"]);
}

#[test]
fn only_a_key_of_the_right_length_is_in_the_table() {
    let mut world = world();
    let key = "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=";
    for (reported, expected) in [(key, vec![7; 32]), ("BwcH", vec![]), ("?", vec![]), ("", vec![])] {
        let end = mesh_state::node::EncryptionEnd { public_key: reported.to_owned(), port: 4801 };
        world.update_node("a", |node| {
            node.address = Some([10, 77, 0, 11].into());
            node.description.encryption = Some(end);
        });
        let table = Table::of(&world.snapshot).whole();
        assert_eq!(table.nodes[0].public_key, expected, "of {reported:?}");
    }
}

#[test]
fn a_member_is_there_before_it_serves_and_gone_once_it_has_ended() {
    let mut world = world();
    assert_eq!(states(&world), [BackendState::Unspecified]);
    run(&mut world);
    assert_eq!(states(&world), [BackendState::Active]);
    assert_eq!(members(&world)[0].container_id, "c1");
    world.set_liveness(&"a".into(), NodeState::Silent);
    assert_eq!(states(&world), [BackendState::Silent]);
    world.set_liveness(&"a".into(), NodeState::Ready);
    desire(&mut world, TaskState::Shutdown);
    assert_eq!(states(&world), [BackendState::Draining]);
    desire(&mut world, TaskState::Remove);
    assert_eq!(states(&world), [BackendState::Retired]);
    world.report(&"t1".into(), TaskState::Shutdown);
    assert_eq!(states(&world), []);
}

#[test]
fn a_removed_services_members_stay_and_its_names_dont() {
    let mut world = world();
    run(&mut world);
    world.remove_service("db");
    let whole = Table::of(&world.snapshot).whole();
    assert_eq!((whole.services.len(), whole.services[0].networks.len()), (1, 0), "{whole:?}");
    assert_eq!(states(&world), [BackendState::Retired]);
    world.report(&"t1".into(), TaskState::Shutdown);
    assert_eq!(Table::of(&world.snapshot).whole().services, []);
}

#[test]
fn a_reported_end_takes_a_member_away_if_it_is_its_nodes() {
    let mut world = world();
    run(&mut world);
    for (node, left) in [("a", 0), ("b", 1)] {
        let ended = BTreeMap::from([(TaskId::from("t1"), NodeId::from(node))]);
        let table = Table::of(&world.snapshot).without(&ended);
        assert_eq!(
            (table.whole().members.len(), table.node_of(7).is_some()),
            (left, left == 1),
            "{node} says so"
        );
    }
}

#[test]
fn changes_of_networks_and_members_are_told_alone() {
    let mut world = world();
    let before = Table::of(&world.snapshot);
    run(&mut world);
    let running = Table::of(&world.snapshot);
    let delta = running.since(&before);
    assert_eq!((delta.networks.len(), delta.members.len(), delta.services.len()), (0, 1, 0), "{delta:?}");
    world.report(&"t1".into(), TaskState::Failed);
    world.delete(mesh_state::keys::network(&"app".into()));
    let delta = Table::of(&world.snapshot).since(&running);
    assert_eq!(
        (delta.removed_network_ids, delta.removed_member_ids),
        (vec!["app".into()], vec!["t1".into()])
    );
}

#[test]
fn a_node_is_told_its_own_addresses_and_the_containers_of_all_members() {
    let mut world = world();
    run(&mut world);
    let told = for_node(Table::of(&world.snapshot).whole(), &"b".into(), world.now);
    let own: Vec<_> =
        told.networks[0].node_addresses.iter().map(|(node, address)| (&**node, &**address)).collect();
    assert_eq!(own, [("b", "10.0.5.4")]);
    assert_eq!(told.members[0].container_id, "c1");
}

#[test]
fn a_hostnames_template_is_expanded_as_its_agent_does() {
    let mut world = world();
    let mut named = |template: &str| {
        let mut db = world.snapshot.services[&"db".into()].value.clone();
        db.spec.task_template.container_spec.get_or_insert_default().hostname = template.to_owned();
        world.put_service(&db);
        members(&world)[0].hostname.clone()
    };
    assert_eq!(named(""), "");
    assert_eq!(named("fixed"), "fixed");
    assert_eq!(named("{{.Service.Name}}-{{.Task.Slot}}.{{.Node.Hostname}}"), "db-1.host-a");
    assert_eq!(named("{{.Task.Name}}"), "db.1.t1");
    assert_eq!(named("{{.Nothing}}"), "", "the agent refuses such a task");
}
