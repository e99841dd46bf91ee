//! Tests of the tables of small clusters.

use chrono::TimeDelta;
use mesh_state::lb::{POLICY_LABEL, WEIGHT_LABEL};
use mesh_state::spec::Protocol;
use mesh_state::task::{ContainerStatus, TaskStatus};

use super::*;
use crate::fixtures::{World, endpoint, ingress, node, service, task};

/// Nodes `a` and `b`; a service with a task on `a`, running at 10.128.0.2 behind port 80.
fn world() -> World {
    let mut world = World::new();
    for (id, address) in [("a", "10.0.0.1"), ("b", "10.0.0.2")] {
        let mut node = node(id);
        node.address = Some(address.parse().unwrap());
        world.add_node(&node);
    }
    let mut web = service("web", 1);
    web.ports = vec![ingress(80, 8080)];
    world.put_service(&web);
    let mut first = task("t1", "web", 1);
    first.node_id = Some("a".into());
    first.endpoints = vec![endpoint(7, 80)];
    world.put_task(&first);
    run(&mut world, "t1");
    world
}

fn run(world: &mut World, task: &str) {
    let container = ContainerStatus {
        container_id: "c".to_owned(),
        address: Some("10.128.0.2".parse().unwrap()),
        ..ContainerStatus::default()
    };
    let status =
        TaskStatus { state: TaskState::Running, container: Some(container), ..TaskStatus::default() };
    world.report_status(&TaskId::from(task), status);
}

fn states(world: &World) -> Vec<(u32, BackendState)> {
    let whole = Table::of(&world.snapshot).whole();
    whole.backends.iter().map(|backend| (backend.id, backend.state())).collect()
}

fn desire(world: &mut World, state: TaskState) {
    let mut task = world.snapshot.tasks[&TaskId::from("t1")].value.clone();
    task.desired_state = state;
    world.put_task(&task);
}

#[test]
fn a_running_task_is_an_active_backend() {
    let world = world();
    let table = Table::of(&world.snapshot);
    assert_eq!(table.generation, u64::try_from(world.snapshot.revision).unwrap());
    let whole = table.whole();
    let nodes: Vec<_> = whole.nodes.iter().map(|node| (node.id.as_str(), node.address.as_str())).collect();
    assert_eq!(nodes, [("a", "10.0.0.1"), ("b", "10.0.0.2")]);
    assert_eq!(whole.services[0].policy, "round-robin");
    let port = &whole.services[0].ports[0];
    assert_eq!((port.protocol.as_str(), port.published, port.target), ("tcp", 80, 8080));
    let backend = &whole.backends[0];
    let seen = (backend.id, backend.task_name.as_str(), backend.address.as_str(), backend.state());
    assert_eq!(seen, (7, "web.1", "10.128.0.2", BackendState::Active));
}

#[test]
fn what_is_to_stop_drains_and_what_stopped_is_gone() {
    let mut world = world();
    desire(&mut world, TaskState::Shutdown);
    assert_eq!(states(&world), [(7, BackendState::Draining)]);
    world.report(&"t1".into(), TaskState::Shutdown);
    assert_eq!(states(&world), []);
}

#[test]
fn what_was_to_stop_while_its_node_was_away_gets_no_new_flows() {
    let mut world = world();
    world.set_liveness(&"a".into(), NodeState::Down);
    let mut first = world.snapshot.tasks[&TaskId::from("t1")].value.clone();
    first.desired_state = TaskState::Shutdown;
    first.shutdown_at = Some(world.now);
    world.put_task(&first);
    assert_eq!(states(&world), [(7, BackendState::Silent)], "while the node is down");
    world.now += TimeDelta::seconds(1);
    world.set_liveness(&"a".into(), NodeState::Ready);
    assert_eq!(states(&world), [(7, BackendState::Retired)], "once it is back");
}

#[test]
fn an_unhealthy_task_gets_no_new_flows() {
    let mut world = world();
    let mut status = world.snapshot.statuses[&TaskId::from("t1")].value.clone();
    status.err = "dockerexec: unhealthy container".to_owned();
    world.report_status(&"t1".into(), status);
    assert_eq!(states(&world), [(7, BackendState::Draining)]);
}

#[test]
fn a_reported_end_takes_a_backend_away_if_it_is_its_nodes() {
    let world = world();
    let left = |node: &str| {
        let ended = BTreeMap::from([(TaskId::from("t1"), NodeId::from(node))]);
        Table::of(&world.snapshot).without(&ended).whole().backends.len()
    };
    assert_eq!((left("a"), left("b")), (0, 1), "backends left when a, and when b says so");
}

#[test]
fn a_silent_or_lost_node_silences_its_backends() {
    let mut world = world();
    for state in [NodeState::Silent, NodeState::Down] {
        world.set_liveness(&"a".into(), state);
        assert_eq!(states(&world), [(7, BackendState::Silent)], "while the node is {state:?}");
    }
    world.set_liveness(&"a".into(), NodeState::Ready);
    assert_eq!(states(&world), [(7, BackendState::Active)], "when it speaks again");
}

#[test]
fn a_task_that_does_not_run_yet_is_no_backend() {
    let mut world = world();
    let mut second = task("t2", "web", 2);
    second.node_id = Some("b".into());
    second.endpoints = vec![endpoint(8, 80)];
    world.put_task(&second);
    world.report(&"t2".into(), TaskState::Starting);
    assert_eq!(states(&world), [(7, BackendState::Active)]);
}

#[test]
fn a_removed_services_flows_go_on_until_its_tasks_have_stopped() {
    let mut world = world();
    let mut first = world.snapshot.tasks[&TaskId::from("t1")].value.clone();
    first.desired_state = TaskState::Remove;
    world.put_task(&first);
    assert_eq!(states(&world), [(7, BackendState::Retired)], "a dropped slot's task gets no new flows");
    world.remove_service("web");
    let whole = Table::of(&world.snapshot).whole();
    assert_eq!((whole.services.len(), whole.services[0].ports[0].published), (1, 80), "{whole:?}");
    assert_eq!(states(&world), [(7, BackendState::Retired)]);

    let mut next = service("next", 1);
    next.ports = vec![ingress(80, 8080)];
    world.put_service(&next);
    let whole = Table::of(&world.snapshot).whole();
    let names: Vec<_> = whole.services.iter().map(|service| &*service.name).collect();
    assert_eq!(names, ["next"], "a port has one service");
    world.remove_service("next");
    world.report(&"t1".into(), TaskState::Shutdown);
    assert_eq!(Table::of(&world.snapshot).whole().services, [], "its last task has stopped");
}

#[test]
fn weights_of_slot_service_and_node_meet_in_the_backend() {
    let mut world = world();
    let mut label = |key: &str, value: &str| {
        let ports = world.snapshot.services[&"web".into()].ports.clone();
        world.update_service("web", |spec| drop(spec.labels.insert(key.to_owned(), value.to_owned())));
        let mut web = world.snapshot.services[&"web".into()].value.clone();
        web.ports = ports;
        world.put_service(&web);
        Table::of(&world.snapshot).whole()
    };
    assert_eq!(label("other", "x").backends[0].weight, 1);
    assert_eq!(label(WEIGHT_LABEL, "3").backends[0].weight, 3);
    let whole = label("mesh.lb.weight.1", "5");
    assert_eq!(whole.backends[0].weight, 5);
    let settings: LbSettings = serde_json::from_str(&whole.services[0].settings_json).unwrap();
    assert_eq!(settings.weight.map(NonZeroU32::get), Some(3), "settings travel with the service");
    world.update_node("a", |node| drop(node.spec.labels.insert(WEIGHT_LABEL.to_owned(), "4".to_owned())));
    assert_eq!(Table::of(&world.snapshot).whole().backends[0].weight, 20);
}

#[test]
fn tcp_and_udp_on_one_number_are_two_backends() {
    let mut world = world();
    let mut web = world.snapshot.services[&"web".into()].value.clone();
    let mut udp = ingress(80, 8053);
    udp.protocol = Protocol::Udp;
    web.ports.push(udp);
    world.put_service(&web);
    let mut first = world.snapshot.tasks[&TaskId::from("t1")].value.clone();
    first.endpoints.push(TaskEndpoint { protocol: Protocol::Udp, target_port: 8053, ..endpoint(8, 80) });
    world.put_task(&first);
    let whole = Table::of(&world.snapshot).whole();
    let ports: Vec<_> =
        whole.services[0].ports.iter().map(|port| (&*port.protocol, port.published)).collect();
    assert_eq!(ports, [("tcp", 80), ("udp", 80)]);
    let backends: Vec<_> =
        whole.backends.iter().map(|backend| (backend.id, &*backend.protocol, backend.target)).collect();
    assert_eq!(backends, [(7, "tcp", 80), (8, "udp", 8053)]);
}

#[test]
fn a_delta_holds_what_changed_and_nothing_else() {
    let mut world = world();
    let old = Table::of(&world.snapshot);
    world.update_service("web", |spec| {
        spec.labels.insert(POLICY_LABEL.to_owned(), "least-connections".to_owned());
    });
    let mut web = world.snapshot.services[&"web".into()].value.clone();
    web.ports = vec![ingress(80, 8080)];
    world.put_service(&web);
    let new = Table::of(&world.snapshot);
    assert!(!new.same_entries(&old));
    let delta = new.since(&old);
    assert_eq!((delta.base_generation, delta.generation), (old.generation, new.generation));
    assert_eq!(delta.services[0].policy, "least-connections");
    let rest = (delta.nodes.len(), delta.backends.len(), delta.removed_backend_ids.len());
    assert_eq!(rest, (0, 0, 0), "nodes, backends, removed backends");

    world.report(&"t1".into(), TaskState::Failed);
    let newest = Table::of(&world.snapshot);
    assert_eq!(newest.since(&new).removed_backend_ids, [7]);
    let same = newest.since(&newest);
    assert!(same.services.is_empty() && same.removed_service_ids.is_empty(), "a delta to itself: {same:?}");
}

#[test]
fn a_node_learns_containers_of_its_own_tasks_only() {
    let whole = Table::of(&world().snapshot).whole();
    let containers = |node: &str| {
        let moment = Timestamp::from_timestamp_millis(1234).unwrap();
        let told = for_node(whole.clone(), &node.into(), moment);
        assert_eq!(told.sent_unix_ms, 1234, "its receiver works out how old the table is");
        told.backends.into_iter().map(|backend| backend.container_id).collect::<Vec<_>>()
    };
    assert_eq!(containers("a"), ["c"]);
    assert_eq!(containers("b"), [""]);
}

#[test]
fn an_address_is_one_living_nodes() {
    let mut world = world();
    let addresses = |world: &World| {
        let nodes = Table::of(&world.snapshot).whole().nodes;
        nodes.into_iter().map(|node| (node.id, node.address)).collect::<Vec<_>>()
    };
    world.update_node("b", |node| node.address = Some("10.0.0.1".parse().unwrap()));
    world.set_liveness(&"b".into(), NodeState::Down);
    assert_eq!(addresses(&world), [("a".to_owned(), "10.0.0.1".to_owned())], "b left it to a");
    world.update_node("a", |node| node.address = Some("127.0.0.1".parse().unwrap()));
    assert_eq!(addresses(&world), [("b".to_owned(), "10.0.0.1".to_owned())], "a loopback's is nobody's");
}
