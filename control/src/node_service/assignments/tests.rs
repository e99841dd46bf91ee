//! Tests of the assignments that nodes are sent in small clusters.

use mesh_state::keys;
use mesh_state::network::Attachment;

use super::*;
use crate::fixtures::{World, ingress, join, network, service, task};

fn world() -> World {
    let mut world = World::with_nodes(["a", "b"]);
    let mut web = service("web", 2);
    web.spec.labels.insert("k".to_owned(), "v".to_owned());
    world.put_service(&web);
    assign(&mut world, "t1", 1, "a", TaskState::Running);
    assign(&mut world, "t2", 2, "b", TaskState::Running);
    world
}

fn assign(world: &mut World, id: &str, slot: u64, node: &str, desired: TaskState) {
    let mut task = task(id, "web", slot);
    task.node_id = Some(node.into());
    task.desired_state = desired;
    world.put_task(&task);
}

/// The content of a message: whether it is full, the tasks set with their desired states, the tasks
/// removed.
type Said = (bool, Vec<(String, TaskState)>, Vec<String>);

fn read(message: &proto::Assignments) -> Said {
    let set = message.set.iter().map(|one| {
        let assignment: Assignment = serde_json::from_str(&one.assignment_json).unwrap();
        (one.task_id.clone(), assignment.task.desired_state)
    });
    (message.full, set.collect(), message.removed_task_ids.clone())
}

/// Returns credentials unchanged, as nothing is sealed in these tests.
#[expect(clippy::unnecessary_wraps, reason = "opening may fail elsewhere")]
fn opened(sealed: &Sealed) -> Option<RegistryAuth> {
    Some(RegistryAuth(sealed.0.clone()))
}

#[test]
fn credentials_go_with_tasks_that_are_to_run() {
    let mut world = world();
    let mut web = world.snapshot.services[&"web".into()].value.clone();
    web.registry_auth = Some(Sealed("x".to_owned()));
    world.put_service(&web);
    let auth = |world: &World| {
        let message =
            tell(&mut SentAssignments::default(), &"a".into(), &world.snapshot, &opened).unwrap().unwrap();
        serde_json::from_str::<Assignment>(&message.set[0].assignment_json).unwrap().registry_auth
    };
    assert_eq!(auth(&world), Some(RegistryAuth("x".to_owned())));
    assign(&mut world, "t1", 1, "a", TaskState::Shutdown);
    assert_eq!(auth(&world), None, "it needs no image any more");
}

fn told(told: &mut SentAssignments, world: &World) -> Option<Said> {
    tell(told, &"a".into(), &world.snapshot, &opened).unwrap().as_ref().map(read)
}

fn set(id: &str, state: TaskState) -> Vec<(String, TaskState)> {
    vec![(id.to_owned(), state)]
}

#[test]
fn everything_first_then_what_changed() {
    let (mut world, mut known) = (world(), SentAssignments::default());
    assert_eq!(told(&mut known, &world), Some((true, set("t1", TaskState::Running), vec![])));
    assert_eq!(told(&mut known, &world), None, "nothing changed");
    world.report(&"t1".into(), TaskState::Running);
    assert_eq!(told(&mut known, &world), None, "a status is the node's own word");

    assign(&mut world, "t1", 1, "a", TaskState::Shutdown);
    assert_eq!(told(&mut known, &world), Some((false, set("t1", TaskState::Shutdown), vec![])));
    world.delete(mesh_state::keys::task(&"t1".into()));
    assert_eq!(told(&mut known, &world), Some((false, vec![], vec!["t1".to_owned()])));
}

#[test]
fn a_nodes_tasks_are_looked_at_only_when_they_may_differ() {
    let (mut world, mut known) = (world(), SentAssignments::default());
    world.put_service(&service("other", 1));
    let mut elsewhere = task("t3", "other", 1);
    elsewhere.node_id = Some("b".into());
    world.put_task(&elsewhere);
    told(&mut known, &world);
    let looks = |known: &mut SentAssignments, world: &World| {
        let looks = known.may_differ(&"a".into(), &world.snapshot);
        tell(known, &"a".into(), &world.snapshot, &opened).unwrap();
        looks
    };
    assert!(!looks(&mut known, &world), "nothing changed");
    world.report(&"t3".into(), TaskState::Running);
    world.put_service(&service("other", 2));
    world.put(mesh_state::keys::ack(&"b".into()), &9_u64);
    world.set_liveness(&"b".into(), mesh_state::node::NodeState::Silent);
    assert!(!looks(&mut known, &world), "others' tasks, acknowledgements and liveness are not its own");
    world.report(&"t1".into(), TaskState::Running);
    assert!(looks(&mut known, &world), "a status of its own task");
    world.update_service("web", |spec| drop(spec.labels.insert("x".to_owned(), "y".to_owned())));
    assert!(looks(&mut known, &world), "its task's service");
    assign(&mut world, "t1", 1, "b", TaskState::Running);
    assert!(looks(&mut known, &world), "its task went elsewhere");
    assert!(!looks(&mut known, &world));
    let listed = ClusterSnapshot::from_listing(world.snapshot.revision + 1, Vec::new());
    assert!(known.may_differ(&"a".into(), &listed), "what was missed while the watch was down");
}

#[test]
fn a_drain_that_waits_for_acknowledgements_is_looked_at_when_they_come() {
    let (mut world, mut known) = (world(), SentAssignments::default());
    world.report(&"t1".into(), TaskState::Running);
    let mut served = world.snapshot.tasks[&"t1".into()].value.clone();
    served.endpoints = vec![crate::fixtures::endpoint(7, 80)];
    served.desired_state = TaskState::Shutdown;
    world.put_task(&served);
    told(&mut known, &world);
    let revision = u64::try_from(world.snapshot.revision).unwrap();
    world.put(mesh_state::keys::ack(&"a".into()), &revision);
    assert_eq!(told(&mut known, &world), None, "b has yet to acknowledge");
    world.put(mesh_state::keys::ack(&"b".into()), &revision);
    assert!(told(&mut known, &world).is_some(), "the drain is announced");
}

#[test]
fn a_node_without_tasks_is_told_so_once() {
    let mut known = SentAssignments::default();
    let world = World::with_nodes(["a"]);
    assert_eq!(told(&mut known, &world), Some((true, vec![], vec![])));
    assert_eq!(told(&mut known, &world), None);
}

#[test]
fn a_task_that_ended_is_never_one_to_run() {
    let mut world = world();
    world.report(&"t1".into(), TaskState::Failed);
    let seen = told(&mut SentAssignments::default(), &world);
    assert_eq!(
        seen,
        Some((true, set("t1", TaskState::Shutdown), vec![])),
        "told to a node that lost its memory"
    );
}

#[test]
fn an_assignment_names_what_containers_are_called_and_published_by() {
    let mut world = World::with_nodes(["a"]);
    let mut web = service("web", 1);
    let mut host = ingress(9000, 80);
    host.publish_mode = PublishMode::Host;
    web.spec.endpoint_spec.get_or_insert_default().ports = vec![ingress(80, 80), host.clone()];
    web.spec.labels.insert("k".to_owned(), "v".to_owned());
    let container = web.spec.task_template.container_spec.get_or_insert_default();
    container.extra.insert("Extra".to_owned(), 1.into());
    container.extra.insert("Init".to_owned(), true.into());
    world.put_service(&web);
    assign(&mut world, "t1", 1, "a", TaskState::Running);
    let message =
        tell(&mut SentAssignments::default(), &"a".into(), &world.snapshot, &opened).unwrap().unwrap();
    let assignment: Assignment = serde_json::from_str(&message.set[0].assignment_json).unwrap();
    assert_eq!((assignment.name.as_str(), assignment.service_name.as_str()), ("web.1", "web"));
    assert_eq!(assignment.host_ports, [host]);
    assert_eq!(assignment.service_labels.get("k").map(String::as_str), Some("v"));
    let container = assignment.spec.container_spec.unwrap();
    assert_eq!(container.image, "nginx");
    assert_eq!(
        container.extra.keys().collect::<Vec<_>>(),
        ["Init"],
        "a field that Docker has not is not told"
    );
}

#[test]
fn a_task_is_told_once_its_networks_have_all_that_it_needs() {
    let (mut world, mut known) = (World::with_nodes(["a", "b"]), SentAssignments::default());
    let mut app = network("app", "10.0.5.0/24", 7);
    app.spec.options = Some([(MTU.to_owned(), "1400".to_owned())].into());
    world.put_network(&app);
    let mut web = service("web", 1);
    join(&mut web.spec, &["app"]);
    web.spec.task_template.extra.get_mut("Networks").unwrap()[0]["Aliases"] = serde_json::json!(["www"]);
    world.put_service(&web);
    let mut one = task("t1", "web", 1);
    one.node_id = Some("a".into());
    one.attachments = vec![Attachment {
        network_id: "app".into(),
        address: Some("10.0.5.9".parse().unwrap()),
        backend_id: None,
    }];
    world.put_task(&one);
    assert_eq!(told(&mut known, &world), Some((true, vec![], vec![])), "the node has no address");
    app.node_addresses.insert("b".into(), "10.0.5.2".parse().unwrap());
    world.put_network(&app);
    assert_eq!(told(&mut known, &world), None, "another node has one");
    app.node_addresses.insert("a".into(), "10.0.5.3".parse().unwrap());
    world.put_network(&app);
    let message = tell(&mut known, &"a".into(), &world.snapshot, &opened).unwrap().unwrap();
    let assignment: Assignment = serde_json::from_str(&message.set[0].assignment_json).unwrap();
    let expected = AssignedNetwork {
        id: "app".into(),
        name: "app".to_owned(),
        number: 7,
        subnet: "10.0.5.0/24".parse().unwrap(),
        subnet6: None,
        node_address: "10.0.5.3".parse().unwrap(),
        internal: false,
        mtu: Some(1400),
        address: "10.0.5.9".parse().unwrap(),
        aliases: vec!["www".to_owned()],
    };
    assert_eq!(assignment.networks, [expected]);
    world.put_network(&app);
    assert_eq!(told(&mut known, &world), None, "nothing changed");
}

#[test]
fn a_task_that_its_node_has_is_never_left_out() {
    let mut world = World::with_nodes(["a"]);
    world.put_network(&network("app", "10.0.5.0/24", 7));
    let mut web = service("web", 1);
    join(&mut web.spec, &["app"]);
    world.put_service(&web);
    let mut one = task("t1", "web", 1);
    one.node_id = Some("a".into());
    one.attachments = vec![Attachment { network_id: "app".into(), address: None, backend_id: None }];
    world.put_task(&one);
    let at_first = |world: &World| told(&mut SentAssignments::default(), world).unwrap().1;
    assert_eq!(at_first(&world), []);
    world.report(&"t1".into(), TaskState::Running);
    world.delete(keys::network(&"app".into()));
    assert_eq!(at_first(&world), set("t1", TaskState::Running), "its network is gone, and it runs");
    one.desired_state = TaskState::Shutdown;
    world.put_task(&one);
    assert_eq!(at_first(&world), set("t1", TaskState::Shutdown));
}
