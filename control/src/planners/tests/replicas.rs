//! Tests of slots that are filled and dropped, and of deleted records.

use mesh_state::ids::NodeId;
use mesh_state::spec::ReplicatedMode;
use mesh_state::task::{Slot, TaskState};

use crate::fixtures::{World, ingress, node, service, task};
use crate::plan::{Action, Plan};
use crate::planners::global;
use crate::planners::reaper;
use crate::planners::replicated;

fn scale(world: &mut World, replicas: u64) {
    world.update_service("web", |spec| {
        spec.mode.replicated = Some(ReplicatedMode { replicas: Some(replicas) });
    });
}

fn slots(world: &World) -> Vec<u64> {
    let mut numbers: Vec<u64> = world
        .wanted("web")
        .iter()
        .map(|task| match &task.slot {
            Slot::Number(number) => *number,
            Slot::Node(node) => panic!("slot {node} of a replicated service"),
        })
        .collect();
    numbers.sort_unstable();
    numbers
}

/// Tasks `t1`, `t2`, … of `web` on these nodes; those with `true` run.
fn placed(tasks: &[(&str, bool)]) -> World {
    let mut world = World::with_nodes(["a", "b", "c"]);
    world.put_service(&service("web", tasks.len() as u64));
    for (number, (node, runs)) in (1_u64..).zip(tasks) {
        let mut value = task(&format!("t{number}"), "web", number);
        value.node_id = Some(NodeId::from(*node));
        world.put_task(&value);
        world.report(&value.id, if *runs { TaskState::Running } else { TaskState::Preparing });
    }
    world
}

#[test]
fn a_new_service_gets_its_tasks_with_backends() {
    let mut world = World::new();
    let mut web = service("web", 3);
    web.ports = vec![ingress(80, 80), ingress(443, 443)];
    world.put_service(&web);
    let plan = world.run(replicated::plan);
    assert!(matches!(plan.actions[0], Action::SetBackendCursor { .. }), "the ids' cursor comes first");
    assert_eq!(slots(&world), [1, 2, 3]);
    for task in world.wanted("web") {
        assert_eq!(task.endpoints.iter().map(|one| one.published_port).collect::<Vec<_>>(), [80, 443]);
        assert_eq!((task.leader_status.state, task.node_id), (TaskState::Pending, None));
        assert_eq!(task.leader_status.message, "pending task scheduling");
    }
    assert_eq!(world.run(replicated::plan), Plan::default(), "planned on its own result");
}

#[test]
fn scaling_down_drops_idle_tasks_then_crowded_nodes_then_high_slots() {
    /// The node of each task and whether it runs; the new scale; the slots that are kept.
    type Case = (&'static [(&'static str, bool)], u64, &'static [u64]);
    let cases: [Case; 4] = [
        (&[("a", false), ("a", true), ("b", true)], 2, &[2, 3]),
        (&[("a", true), ("b", true), ("a", true), ("c", true)], 3, &[1, 2, 4]),
        (&[("a", true), ("a", true), ("a", true), ("b", true), ("c", true)], 3, &[1, 4, 5]),
        (&[("a", true), ("b", true), ("c", true)], 2, &[1, 2]),
    ];
    for (tasks, replicas, kept) in cases {
        let mut world = placed(tasks);
        scale(&mut world, replicas);
        world.run(replicated::plan);
        assert_eq!(slots(&world), kept, "{tasks:?} scaled to {replicas}");
        assert_eq!(world.run(replicated::plan), Plan::default(), "planned on its own result");
        let dropped = world.snapshot.tasks.values().filter(|task| task.desired_state == TaskState::Remove);
        assert_eq!(dropped.count(), tasks.len() - kept.len());
    }
}

#[test]
fn scaling_up_fills_the_lowest_free_slots() {
    let mut world = placed(&[("a", true), ("b", true), ("a", true)]);
    scale(&mut world, 2);
    world.run(replicated::plan);
    assert_eq!(slots(&world), [1, 2]);
    scale(&mut world, 5);
    world.run(replicated::plan);
    assert_eq!(slots(&world), [1, 2, 3, 4, 5]);
}

#[test]
fn a_second_task_in_a_slot_is_stopped() {
    let mut world = placed(&[("a", true), ("b", true)]);
    let mut twin = task("twin", "web", 1);
    twin.node_id = Some("c".into());
    world.put_task(&twin);
    world.run(replicated::plan);
    assert_eq!(world.snapshot.tasks[&"twin".into()].desired_state, TaskState::Shutdown);
    assert_eq!(slots(&world), [1, 2]);
}

#[test]
fn a_removed_task_is_deleted_once_it_has_stopped() {
    let mut world = placed(&[("a", true), ("b", true)]);
    world.put_task(&task("unplaced", "web", 3));
    world.remove_service("web");
    world.run(reaper::plan);
    let left = |world: &World| world.snapshot.tasks.keys().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(left(&world), ["t1", "t2"], "the task without a node is deleted at once");
    assert!(world.snapshot.tasks.values().all(|task| task.desired_state == TaskState::Remove));
    world.report(&"t1".into(), TaskState::Shutdown);
    world.run(reaper::plan);
    assert_eq!(left(&world), ["t2"]);
    world.delete(mesh_state::keys::node(&"b".into()));
    world.run(reaper::plan);
    assert!(left(&world).is_empty(), "its node is no member any more");
    assert!(
        world.snapshot.specs.is_empty() && world.snapshot.statuses.is_empty(),
        "specs or statuses are left"
    );
}

#[test]
fn specs_are_kept_for_tasks_and_for_a_rollback() {
    let mut world = placed(&[("a", true)]);
    for _ in 0..3 {
        world.update_service("web", |spec| drop(spec.labels.insert("a".to_owned(), "b".to_owned())));
    }
    world.run(reaper::plan);
    let versions: Vec<u64> = world.snapshot.specs.keys().map(|(_, version)| *version).collect();
    assert_eq!(versions, [1, 3, 4], "expected the task's, the previous and the current version");
}

#[test]
fn exhausted_ids_are_a_reason_and_fill_nothing() {
    let mut world = World::new();
    let mut web = service("web", 1);
    web.ports = vec![ingress(80, 80)];
    world.put_service(&web);
    let mut holder = task("holder", "other", 1);
    holder.endpoints =
        (1..=mesh_state::ids::BackendId::MAX).map(|id| crate::fixtures::endpoint(id, 80)).collect();
    world.put_task(&holder);
    let plan = world.run(replicated::plan);
    assert!(plan.actions.is_empty(), "actions: {:?}", plan.actions);
    assert!(
        plan.reasons.iter().any(|reason| reason.contains("backend ids are in use")),
        "{:?}",
        plan.reasons
    );
}

#[test]
fn a_global_service_follows_its_nodes() {
    let mut world = World::with_nodes(["a", "b"]);
    let mut agent = crate::fixtures::global("agent");
    let placement = agent.spec.task_template.placement.get_or_insert_default();
    placement.constraints.push("node.labels.zone!=out".to_owned());
    world.put_service(&agent);
    let on = |world: &World| {
        let mut nodes: Vec<String> = world.wanted("agent").iter().map(|task| task.slot.to_string()).collect();
        nodes.sort();
        nodes
    };
    world.run(global::plan);
    assert_eq!(on(&world), ["a", "b"]);
    world.add_node(&node("c"));
    world.update_node("b", |node| drop(node.spec.labels.insert("zone".to_owned(), "out".to_owned())));
    world.run(global::plan);
    assert_eq!(on(&world), ["a", "c"], "c joined, b meets the constraint no more");
    world.delete(mesh_state::keys::node(&"a".into()));
    world.run(global::plan);
    assert_eq!(on(&world), ["c"], "a is no member any more");
    assert_eq!(world.run(global::plan), Plan::default(), "planned on its own result");
}
